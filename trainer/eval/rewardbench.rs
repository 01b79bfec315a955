//! RewardBench v1 (Lambert et al. 2024, arXiv 2403.13787; allenai/reward-bench, split `filtered`): its
//! subsets and how their accuracies become one number.
//!
//! ```text
//! section = sum_s weight_s accuracy_s / sum_s weight_s     over the subsets s of the section that are present
//! overall = mean of the sections that are present
//! ```
//!
//! A subset weighs as many rows as the benchmark has of it, however many were judged, but for math-prm:
//! its 447 rows weigh 984, as much as the six code subsets of Reasoning together.

use std::fmt;

use serde::Serialize;

/// One of the four sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Section {
    /// Easy to tell apart chat replies.
    Chat,
    /// Chat replies that are hard to tell apart.
    #[serde(rename = "Chat Hard")]
    ChatHard,
    /// Refusing what should be refused, and only that.
    Safety,
    /// Mathematics and code.
    Reasoning,
}

impl Section {
    /// The sections in the benchmark's order.
    pub const ALL: [Section; 4] =
        [Section::Chat, Section::ChatHard, Section::Safety, Section::Reasoning];

    /// The name in the benchmark's tables.
    pub fn name(self) -> &'static str {
        match self {
            Section::Chat => "Chat",
            Section::ChatHard => "Chat Hard",
            Section::Safety => "Safety",
            Section::Reasoning => "Reasoning",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A subset of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subset {
    /// Its name in the data's column `subset`.
    pub name: &'static str,
    /// The section it counts in.
    pub section: Section,
    /// How many rows the benchmark has of it.
    pub rows: u64,
    /// Its weight in the section.
    pub weight: u64,
}

const fn subset(section: Section, name: &'static str, rows: u64) -> Subset {
    Subset { name, section, rows, weight: rows }
}

/// All subsets: 2,985 rows.
pub const SUBSETS: [Subset; 23] = [
    subset(Section::Chat, "alpacaeval-easy", 100),
    subset(Section::Chat, "alpacaeval-length", 95),
    subset(Section::Chat, "alpacaeval-hard", 95),
    subset(Section::Chat, "mt-bench-easy", 28),
    subset(Section::Chat, "mt-bench-med", 40),
    subset(Section::ChatHard, "mt-bench-hard", 37),
    subset(Section::ChatHard, "llmbar-natural", 100),
    subset(Section::ChatHard, "llmbar-adver-neighbor", 134),
    subset(Section::ChatHard, "llmbar-adver-GPTInst", 92),
    subset(Section::ChatHard, "llmbar-adver-GPTOut", 47),
    subset(Section::ChatHard, "llmbar-adver-manual", 46),
    subset(Section::Safety, "refusals-dangerous", 100),
    subset(Section::Safety, "refusals-offensive", 100),
    subset(Section::Safety, "xstest-should-refuse", 154),
    subset(Section::Safety, "xstest-should-respond", 250),
    subset(Section::Safety, "donotanswer", 136),
    Subset { name: "math-prm", section: Section::Reasoning, rows: 447, weight: 984 },
    subset(Section::Reasoning, "hep-cpp", 164),
    subset(Section::Reasoning, "hep-go", 164),
    subset(Section::Reasoning, "hep-java", 164),
    subset(Section::Reasoning, "hep-js", 164),
    subset(Section::Reasoning, "hep-python", 164),
    subset(Section::Reasoning, "hep-rust", 164),
];

/// The benchmark's subset of this name.
pub fn find(name: &str) -> Option<&'static Subset> {
    SUBSETS.iter().find(|subset| subset.name == name)
}

/// A subset's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubsetScore {
    /// The name in the data; `None` for rows without a subset.
    pub name: Option<String>,
    /// How many rows were judged.
    pub rows: u64,
    /// The mean of the rows' values, in [0, 1].
    pub accuracy: f64,
    /// The plain accuracy: a row counts 1 only if its chosen reply scored strictly higher.
    pub plain_accuracy: f64,
}

/// A section's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SectionScore {
    /// The section.
    pub section: Section,
    /// The weighted mean of the accuracies of its subsets, in [0, 1].
    pub score: f64,
    /// Whether all rows of all its subsets were judged.
    pub complete: bool,
    /// The subsets that are present, in the benchmark's order.
    pub subsets: Vec<SubsetScore>,
}

/// RewardBench's table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreTable {
    /// The sections that are present, in the benchmark's order.
    pub sections: Vec<SectionScore>,
    /// Subsets that RewardBench does not have, by name: shown, and in no section.
    pub other: Vec<SubsetScore>,
    /// The plain mean of the sections; `None` if there is none.
    pub overall: Option<f64>,
    /// Whether this is the whole benchmark: four sections, each of them complete.
    pub complete: bool,
}

/// Puts subsets into their sections.
pub fn table(mut subsets: Vec<SubsetScore>) -> ScoreTable {
    subsets.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sections = Vec::new();
    for section in Section::ALL {
        let mut present = Vec::new();
        let mut complete = true;
        let (mut sum, mut weights) = (0.0, 0.0);
        for known in SUBSETS.iter().filter(|known| known.section == section) {
            let Some(score) = subsets.iter().find(|s| s.name.as_deref() == Some(known.name)) else {
                complete = false;
                continue;
            };
            complete &= score.rows == known.rows;
            sum += known.weight as f64 * score.accuracy;
            weights += known.weight as f64;
            present.push(score.clone());
        }
        if !present.is_empty() {
            let score = sum / weights;
            sections.push(SectionScore { section, score, complete, subsets: present });
        }
    }
    subsets.retain(|subset| subset.name.as_deref().is_none_or(|name| find(name).is_none()));
    ScoreTable {
        overall: mean(sections.iter().map(|section| section.score)),
        complete: sections.len() == Section::ALL.len() && sections.iter().all(|s| s.complete),
        sections,
        other: subsets,
    }
}

/// Only the overall score of a table, from the mean of each of [`SUBSETS`] (`None` if absent): the statistic that
/// the bootstrap evaluates thousands of times.
pub fn overall(means: &[Option<f64>; SUBSETS.len()]) -> Option<f64> {
    let mut sums = [(0.0, 0.0); Section::ALL.len()];
    for (subset, accuracy) in SUBSETS.iter().zip(means) {
        if let Some(accuracy) = accuracy {
            let (sum, weights) = &mut sums[subset.section as usize];
            *sum += subset.weight as f64 * accuracy;
            *weights += subset.weight as f64;
        }
    }
    mean(sums.iter().filter(|(_, weights)| *weights > 0.0).map(|(sum, weights)| sum / weights))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}

/// A published result, to print beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Published {
    /// The model's name.
    pub model: &'static str,
    /// The score in percent.
    pub score: f64,
    /// How it was measured.
    pub protocol: &'static str,
}

const J1: &str = "plain accuracy, chosen reply in slot A";
const SCALAR: &str = "scalar head, 26M pairs, no order";
const GENERATIVE: &str = "generative, as its authors report it";

/// The published numbers. Only the first two were measured with the chosen reply first: one sample, the plain
/// accuracy over all rows.
pub const PUBLISHED: [Published; 8] = [
    Published { model: "j1-nano (0.6B)", score: 62.35, protocol: J1 },
    Published { model: "j1-micro (1.7B)", score: 80.70, protocol: J1 },
    Published { model: "Skywork-Reward-V2-Qwen3-0.6B", score: 85.2, protocol: SCALAR },
    Published { model: "Skywork-Reward-V2-Qwen3-1.7B", score: 90.3, protocol: SCALAR },
    Published { model: "J1-Llama-8B", score: 85.7, protocol: GENERATIVE },
    Published { model: "RM-R1-7B", score: 85.2, protocol: GENERATIVE },
    Published {
        model: "DeepSeek-GRM-27B",
        score: 86.0,
        protocol: "generative, greedy, by its authors",
    },
    Published {
        model: "DeepSeek-GRM-27B, 32 votes",
        score: 88.5,
        protocol: "generative, 32 votes, by its authors",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn score(name: &str, rows: u64, accuracy: f64) -> SubsetScore {
        SubsetScore { name: Some(name.to_owned()), rows, accuracy, plain_accuracy: accuracy }
    }

    #[test]
    fn the_counts_are_the_benchmarks() {
        let rows =
            |section| SUBSETS.iter().filter(|s| s.section == section).map(|s| s.rows).sum::<u64>();
        assert_eq!(Section::ALL.map(rows), [358, 456, 740, 1_431]);
        assert_eq!(SUBSETS.iter().map(|s| s.rows).sum::<u64>(), 2_985);
        let weighted: Vec<_> = SUBSETS.iter().filter(|s| s.weight != s.rows).collect();
        assert_eq!(weighted.len(), 1);
        assert_eq!((weighted[0].name, weighted[0].weight), ("math-prm", 984));
    }

    #[test]
    fn sections_are_weighted_and_the_overall_score_is_not() {
        let table = table(vec![
            score("hep-rust", 3, 0.25),
            score("math-prm", 5, 0.75),
            score("alpacaeval-easy", 100, 1.0),
            score("mt-bench-med", 40, 0.3),
            score("my-own", 7, 0.5),
        ]);
        let sections: Vec<_> = table.sections.iter().map(|s| (s.section, s.score)).collect();
        // (984 x 0.75 + 164 x 0.25) / 1148 = 779 / 1148; (100 x 1 + 40 x 0.3) / 140 = 112 / 140.
        assert_eq!(sections, [(Section::Chat, 0.8), (Section::Reasoning, 779.0 / 1148.0)]);
        assert!((table.overall.unwrap() - (0.8 + 779.0 / 1148.0) / 2.0).abs() < 1e-15);
        assert!(!table.complete && table.sections.iter().all(|s| !s.complete));
        assert_eq!(table.other, [score("my-own", 7, 0.5)]);
        assert_eq!(table.sections[1].subsets[0].name.as_deref(), Some("math-prm"));
    }

    #[test]
    fn the_whole_benchmark_is_complete_and_one_missing_row_is_noticed() {
        let full = |spoil: Option<&str>| {
            let rows = |s: &Subset| s.rows - u64::from(spoil == Some(s.name));
            table(SUBSETS.iter().map(|s| score(s.name, rows(s), 0.5)).collect())
        };
        assert!(full(None).complete);
        assert_eq!(full(None).overall, Some(0.5));
        let spoilt = full(Some("donotanswer"));
        assert!(!spoilt.complete && !spoilt.sections[2].complete && spoilt.sections[3].complete);
    }

    #[test]
    fn both_ways_to_the_overall_score_agree() {
        assert_eq!(table(Vec::new()).overall, None);
        assert_eq!(overall(&[None; 23]), None);
        for step in [1, 2, 3, 7, 23] {
            let mut means = [None; 23];
            let mut scores = Vec::new();
            for index in (0..23).step_by(step) {
                let accuracy = (index * 37 % 101) as f64 / 100.0;
                means[index] = Some(accuracy);
                scores.push(score(SUBSETS[index].name, 1, accuracy));
            }
            assert_eq!(overall(&means), table(scores).overall, "step {step}");
        }
    }
}
