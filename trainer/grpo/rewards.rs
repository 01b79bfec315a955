//! Rewards of judgements: a list of named, weighted, pure functions.
//!
//! ```text
//! format           0 to 0.2: (1/8 for each of the six tags anywhere + 2/8 if the box parses) / 5, the
//!                  original's score (haizelabs/j1-micro, rewards.py)
//! verdict          1 if the chosen reply has the strictly higher score, else 0; or another number
//!                  for what is wrong, such as SPCT's -1 (arXiv 2504.02495)
//! consistency      1 if this judgement and its partner in the other order are both right, else 0
//!                  (J1, arXiv 2505.10320)
//! length           0 up to max - cache tokens, then down in a line to -1 at max
//!                  (DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13)
//! ```
//!
//! A tie, or a judgement without a verdict, is not right: it earns what a wrong one does.
//!
//! Partners: a pair's two orders are two prompts, so two groups of G samples in the same step, and
//! sample i of one is the partner of sample i of the other. Samples are exchangeable, so pairing by
//! index is as good as by chance, and it is the same when a run is repeated. Given a right sample, its
//! expected reward is the other order's share of right samples: a judge that always favors one slot
//! earns nothing.

use serde::{Deserialize, Serialize};

use super::advantages::{Weighted, mean, std};
use crate::{
    prompt::Order,
    verdict::{FORMAT_TAGS, Verdict, format_tags, published},
};

/// What rewards look at: one judgement.
#[derive(Clone, Copy, Debug)]
pub struct Rollout<'a> {
    /// The completion's text, thinking included.
    pub text: &'a str,
    /// What was read from it.
    pub verdict: Verdict,
    /// Which reply stood in slot A.
    pub order: Order,
    /// Generated tokens, the end token included.
    pub tokens: usize,
    /// The rollout of the same pair in the other order, as its index in the step: see the top of
    /// the file. Only `consistency` asks for it.
    pub partner: Option<usize>,
}

impl Rollout<'_> {
    /// Whether the chosen reply has the strictly higher score.
    pub fn is_right(&self) -> bool {
        self.verdict.scores().is_some_and(|scores| {
            let (chosen, rejected) = self.order.by_label(scores);
            chosen > rejected
        })
    }
}

/// A reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reward {
    /// How much of the form was kept.
    Format,
    /// Right is 1.
    Verdict {
        /// What a wrong verdict, a tie or none earns: 0, or SPCT's -1.
        wrong: f64,
    },
    /// Right in both orders is 1, else 0.
    Consistency,
    /// Punishes what nears the token limit.
    Length {
        /// Tokens a completion may have: -1 from there on.
        max_tokens: usize,
        /// Tokens before that over which the punishment grows; at most `max_tokens`.
        cache_tokens: usize,
    },
}

impl Reward {
    /// The name in `rewards/<name>/mean`, in rollout files and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Reward::Format => "format",
            Reward::Verdict { .. } => "verdict",
            Reward::Consistency => "consistency",
            Reward::Length { .. } => "length",
        }
    }

    /// The reward of every rollout of a step.
    ///
    /// # Panics
    /// `consistency`, if a rollout's partner is missing, in the same order, or not its partner in turn.
    pub fn values(self, rollouts: &[Rollout<'_>]) -> Vec<f64> {
        let flag = |right: bool, wrong: f64| if right { 1.0 } else { wrong };
        let of = |(i, rollout): (usize, &Rollout)| match self {
            Reward::Format => format(rollout.text, rollout.verdict),
            Reward::Verdict { wrong } => flag(rollout.is_right(), wrong),
            Reward::Consistency => flag(rollout.is_right() && partner(rollouts, i).is_right(), 0.0),
            Reward::Length { max_tokens, cache_tokens } => {
                length(rollout.tokens, max_tokens, cache_tokens)
            }
        };
        rollouts.iter().enumerate().map(of).collect()
    }
}

/// The original's score for form, in [0, 0.2]. A box parses by the published rule, whatever the scale and however
/// the judgement ended; where a template asks for another form, a verdict in that form takes the box's place.
pub fn format(text: &str, verdict: Verdict) -> f64 {
    let parts = FORMAT_TAGS.len() + 2;
    let box_parses = published(text).scores().or(verdict.scores()).is_some();
    let kept = format_tags(text) + if box_parses { 2 } else { 0 };
    kept as f64 / parts as f64 / 5.0
}

/// DAPO's soft overlong punishment of a completion of `tokens` tokens, in [-1, 0].
pub fn length(tokens: usize, max_tokens: usize, cache_tokens: usize) -> f64 {
    assert!(cache_tokens <= max_tokens, "cache {cache_tokens} of at most {max_tokens} tokens");
    let free = max_tokens - cache_tokens;
    if tokens <= free {
        0.0
    } else if tokens >= max_tokens {
        -1.0
    } else {
        -((tokens - free) as f64) / cache_tokens as f64
    }
}

fn partner<'a, 'b>(rollouts: &'a [Rollout<'b>], i: usize) -> &'a Rollout<'b> {
    let index = rollouts[i].partner.unwrap_or_else(|| panic!("rollout {i} has no partner"));
    let partner = &rollouts[index];
    assert_eq!(partner.partner, Some(i), "partner of rollout {index}, partner of {i}");
    assert_ne!(partner.order, rollouts[i].order, "rollouts {i} and {index} have one order");
    partner
}

/// A reward and how much it counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Which.
    pub reward: Reward,
    /// c_k of the weighted sum.
    pub weight: f64,
}

/// The rewards of a step: one column an entry of the list, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
}

/// One reward of every rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// What was computed, and its weight.
    pub entry: Entry,
    /// A value a rollout.
    pub values: Vec<f64>,
}

impl Column {
    /// `rewards/<name>/mean`, over the step.
    pub fn mean(&self) -> f64 {
        mean(&self.values)
    }

    /// `rewards/<name>/std`, unbiased, over the step.
    pub fn std(&self) -> f64 {
        std(&self.values)
    }
}

impl Table {
    /// Computes every reward of the list.
    pub fn new(entries: &[Entry], rollouts: &[Rollout<'_>]) -> Table {
        let column = |&entry: &Entry| Column { entry, values: entry.reward.values(rollouts) };
        Table { columns: entries.iter().map(column).collect() }
    }

    /// What [`super::advantages::advantages`] takes.
    pub fn weighted(&self) -> Vec<Weighted<'_>> {
        self.columns
            .iter()
            .map(|column| Weighted { weight: column.entry.weight, values: &column.values })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Reason;

    const WHOLE: &str = "<think>t</think>\n<specific_criteria>c</specific_criteria>\n\
        <analysis>a</analysis>\n<scores>\n\\boxed{8, 6}\n</scores>";

    fn rollout(verdict: Verdict, order: Order, partner: Option<usize>) -> Rollout<'static> {
        Rollout { text: "", verdict, order, tokens: 1, partner }
    }

    #[test]
    fn format_is_the_originals_score() {
        let near = |text: &str, want: f64| {
            let score = format(text, Verdict::Unparsed(Reason::NoBox));
            assert!((score - want).abs() < 1e-15, "{text:?}: {score}");
        };
        near(WHOLE, 0.2);
        near("", 0.0);
        near("no form at all \\boxed{8, 6}", 0.0);
        // A tag counts wherever it stands, and in any order.
        near("</analysis> <specific_criteria>", 2.0 / 8.0 / 5.0);
        // Six tags and a box that does not parse; a missing tag and one that does.
        near(&WHOLE.replace("8, 6", "8 6"), 0.15);
        near(&WHOLE.replace("8, 6", "1.2.3, 6"), 0.15);
        near(&WHOLE.replace("<analysis>", ""), 0.175);
        // The box without its closing tag: 1 tag of 6, and no section to parse.
        near("<scores>\\boxed{8, 6}", 0.025);
        near("<scores>\\boxed{8, 6}</scores>", 0.1);
    }

    #[test]
    fn a_verdict_is_right_only_if_strictly_so() {
        let cases = [
            (Verdict::Scores(8.0, 6.0), Order::ChosenFirst, true),
            (Verdict::Scores(8.0, 6.0), Order::RejectedFirst, false),
            (Verdict::Scores(6.0, 8.0), Order::RejectedFirst, true),
            (Verdict::Scores(7.0, 7.0), Order::ChosenFirst, false),
            (Verdict::Scores(7.0, 7.0), Order::RejectedFirst, false),
            (Verdict::Unparsed(Reason::NoBox), Order::ChosenFirst, false),
        ];
        let rollouts = cases.map(|(verdict, order, _)| rollout(verdict, order, None));
        let right = cases.map(|(.., right)| if right { 1.0 } else { 0.0 });
        assert_eq!(Reward::Verdict { wrong: 0.0 }.values(&rollouts), right);
        assert_eq!(Reward::Verdict { wrong: -1.0 }.values(&rollouts), right.map(|r| 2.0 * r - 1.0));
    }

    #[test]
    fn consistency_is_right_in_both_orders_or_nothing() {
        // Two groups of four: right in both, in the first, in the second, in neither.
        let (a, b) = (Verdict::Scores(9.0, 1.0), Verdict::Scores(1.0, 9.0));
        let tie = Verdict::Scores(5.0, 5.0);
        let first = [a, a, tie, b];
        let second = [b, a, b, Verdict::Unparsed(Reason::Empty)];
        let mut rollouts = Vec::new();
        for (i, verdict) in first.into_iter().enumerate() {
            rollouts.push(rollout(verdict, Order::ChosenFirst, Some(4 + i)));
        }
        for (i, verdict) in second.into_iter().enumerate() {
            rollouts.push(rollout(verdict, Order::RejectedFirst, Some(i)));
        }
        let want = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        assert_eq!(Reward::Consistency.values(&rollouts), want);
        assert_eq!(
            Reward::Verdict { wrong: 0.0 }.values(&rollouts),
            [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
        );
    }

    #[test]
    fn partners_are_checked() {
        let right = Verdict::Scores(9.0, 1.0);
        let panics = |rollouts: &[Rollout]| {
            let rollouts = rollouts.to_vec();
            std::panic::catch_unwind(move || Reward::Consistency.values(&rollouts)).is_err()
        };
        let (chosen, rejected) = (Order::ChosenFirst, Order::RejectedFirst);
        let pair = |order, i, j| [rollout(right, chosen, i), rollout(right, order, j)];
        assert!(!panics(&pair(rejected, Some(1), Some(0))));
        assert!(panics(&pair(rejected, None, Some(0))));
        assert!(panics(&pair(rejected, Some(1), Some(1))));
        assert!(panics(&pair(chosen, Some(1), Some(0))));
    }

    #[test]
    fn length_falls_in_a_line_over_the_cache() {
        let at = |tokens| length(tokens, 100, 20);
        assert_eq!([0, 80, 85, 90, 99].map(at), [0.0, 0.0, -0.25, -0.5, -0.95]);
        assert_eq!([100, 101, 5_000].map(at), [-1.0; 3]);
        // Without a cache it is a step at the limit, and a cache may be all there is.
        assert_eq!([99, 100].map(|tokens| length(tokens, 100, 0)), [0.0, 0.0]);
        assert_eq!(length(101, 100, 0), -1.0);
        assert_eq!([0, 25, 100].map(|tokens| length(tokens, 100, 100)), [0.0, -0.25, -1.0]);
    }

    #[test]
    fn a_table_has_a_column_an_entry() {
        let rollouts = [
            Rollout {
                text: WHOLE,
                tokens: 9,
                ..rollout(published(WHOLE), Order::ChosenFirst, None)
            },
            rollout(Verdict::Unparsed(Reason::Empty), Order::ChosenFirst, None),
        ];
        let length = Reward::Length { max_tokens: 10, cache_tokens: 4 };
        let entries = [(Reward::Format, 1.0), (Reward::Verdict { wrong: 0.0 }, 2.0), (length, 0.5)];
        let entries = entries.map(|(reward, weight)| Entry { reward, weight });
        let table = Table::new(&entries, &rollouts);
        let names: Vec<_> = table.columns.iter().map(|c| c.entry.reward.name()).collect();
        assert_eq!(names, ["format", "verdict", "length"]);
        assert_eq!(table.columns[1].values, [1.0, 0.0]);
        assert_eq!((table.columns[1].mean(), table.columns[1].std()), (0.5, 0.5f64.sqrt()));
        let weighted = table.weighted();
        assert_eq!(weighted[2].weight, 0.5);
        assert_eq!(weighted[2].values, [-0.75, 0.0]);
    }
}
