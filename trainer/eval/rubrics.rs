//! Whether a judge's criteria speak of their own row, measured without another model.
//!
//! A criteria section is held against the sources of all rows of an evaluation, the pool. A source is a row's prompt and
//! its replies. Words are runs of letters and digits in lower case; scripts without spaces give overlapping three-character
//! pieces. Words of the judge's template are left out, as every prompt has them, and of the criteria's words the first
//! [`MAX_WORDS`] count, so that length alone gains nothing. With N sources, of which df have the word w:
//!
//! ```text
//! idf(w)   = ln((N + 1) / (df + 1/2))
//! g(C, S)  = Σ idf(w) over the distinct words of C that are in S / Σ idf(w) over the distinct words of C
//! lift     = g(C, own S) - mean of g(C, S) over the other rows          in [-1, 1]
//! v(w)     = (1 + ln tf) · idf(w)
//! bits     = log2 N + log2 softmax(cos(v_C, v_S) / 0.05) at the own S   at most log2 N
//! ```
//!
//! The mean of `bits` is a lower bound on the mutual information of criteria and row, in bits (InfoNCE; van den Oord, Li and
//! Vinyals, arXiv 1807.03748). It depends on the pool: only numbers of the same rows compare. The shuffled control holds each
//! text against the next row's source: what of a number is due to the language of the task and not to the row.
//!
//! Copying the prompt would maximize both, so [`Means::copied`] stands beside them. They are measures of what was learned,
//! and no reward: a policy would learn to copy.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::data::Pair;
use crate::eval::bootstrap::{Draws, Interval, hash, interval_over};
use crate::eval::results::{Finish, Key, Record};
use crate::judge::prompt::{Order, Template, conversation_text};
use crate::judge::verdict::parts;

/// Words of a criteria section that count.
pub const MAX_WORDS: usize = 60;
/// What cosines are divided by. Wrong texts have about 0 bits at this value, as a control should.
const TEMPERATURE: f64 = 0.05;
/// Words in a row that the template must share to be echoed.
const ECHO: usize = 5;
/// Words in a row that a source must share to be copied.
const COPY: usize = 8;
/// More bits than any pool has: of 2^64 sources at most, and as many below 0 as cosines over the temperature come to.
const MAX_BITS: f64 = 128.0;

/// What a row's criteria may speak of.
#[derive(Clone, Copy, Debug)]
pub struct RowText<'a> {
    /// The conversation up to the replies.
    pub prompt: &'a str,
    /// All replies.
    pub replies: &'a [&'a str],
}

/// The criteria section of one judgement.
#[derive(Clone, Copy, Debug)]
pub struct Criteria<'a> {
    /// Its row: an index into the sources.
    pub source: usize,
    /// The section; `None` if the judgement has none.
    pub text: Option<&'a str>,
}

/// The measures of one judgement. Without criteria all are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Whether there are criteria.
    pub written: bool,
    /// Bits of matching with the own row.
    pub bits: f64,
    /// The control: bits of matching with the next row.
    pub bits_shuffled: f64,
    /// Lift by prompt and replies.
    pub lift: f64,
    /// The control: lift by the next row.
    pub lift_shuffled: f64,
    /// Lift by the prompt alone.
    pub lift_prompt: f64,
    /// Lift by the replies alone.
    pub lift_replies: f64,
    /// Criteria that are listed.
    pub listed: u32,
    /// Listed criteria whose heading is not in the template.
    pub own: u32,
    /// Share of the words that stand in five words of the template in a row.
    pub echoed: f64,
    /// Share of the words that stand in eight words of the own source in a row.
    pub copied: f64,
}

impl Measures {
    /// Whether they can be of any judgement at all: what is read from a file need not be.
    pub fn are_possible(&self) -> bool {
        let bits = [self.bits, self.bits_shuffled].iter().all(|bits| bits.abs() <= MAX_BITS);
        let lifts = [self.lift, self.lift_shuffled, self.lift_prompt, self.lift_replies];
        let shares = [self.echoed, self.copied].iter().all(|share| (0.0..=1.0).contains(share));
        let nothing = self.written || *self == Measures::default();
        nothing
            && bits
            && shares
            && lifts.iter().all(|lift| lift.abs() <= 1.0)
            && self.own <= self.listed
    }
}

/// The measures of one judgement of an evaluation: a line of rubrics.jsonl.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The pair's row.
    pub row: u64,
    /// Which reply stood in slot A.
    pub order: Order,
    /// Which sample of this pair and order.
    pub vote: u32,
    /// The row of the data: another one than the pair's where a row has several replies.
    pub data_row: u64,
    /// The measures.
    #[serde(flatten)]
    pub measures: Measures,
}

impl Measured {
    /// Which judgement it is of.
    pub fn key(&self) -> Key {
        (self.row, self.order, self.vote)
    }
}

/// The words of a text, for all measures.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut pieces): (String, Vec<char>) = (String::new(), Vec::new());
    for c in text.chars().flat_map(char::to_lowercase).chain([' ']) {
        if is_unspaced(c) {
            pieces.push(c);
        } else if !pieces.is_empty() {
            words.extend(pieces.windows(pieces.len().min(3)).map(|piece| piece.iter().collect()));
            pieces.clear();
        }
        if c.is_alphanumeric() && !is_unspaced(c) {
            word.push(c);
        } else if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
    }
    words
}

/// Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Kana, Han.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{3134f}')
        && c.is_alphanumeric()
}

/// The share of `words` that stand in one of `runs`, each of which has `n` words.
fn share_in_runs(words: &[String], runs: &HashSet<&[String]>, n: usize) -> f64 {
    let mut shared = vec![false; words.len()];
    for (start, run) in words.windows(n).enumerate() {
        if runs.contains(run) {
            shared[start..start + n].fill(true);
        }
    }
    shared.iter().filter(|shared| **shared).count() as f64 / words.len().max(1) as f64
}

/// The headings of the criteria that a section lists: lines with a mark of a list, none deeper than the first, each up to its
/// colon, bracket or dash. In a section without marks every line is one.
fn headings(text: &str) -> Vec<&str> {
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    let indent = |line: &str| line.len() - line.trim_start().len();
    let marked: Vec<&str> = lines().filter(|line| mark(line.trim_start()).is_some()).collect();
    let listed: Vec<&str> = match marked.first() {
        Some(first) => {
            marked.iter().copied().filter(|line| indent(line) <= indent(first)).collect()
        }
        // A line that ends in a colon leads to what follows.
        None => lines().filter(|line| !line.trim_end().ends_with(':')).collect(),
    };
    let heading = |line: &'_ str| -> usize {
        let end = [":", "(", " - ", " – ", "—"].iter().filter_map(|stop| line.find(stop)).min();
        end.unwrap_or(line.len())
    };
    let headings = listed.into_iter().map(str::trim).map(|line| mark(line).unwrap_or(line));
    headings.map(|line| &line[..heading(line)]).collect()
}

/// What follows a mark of a list (`1.`, `2)`, `-`, `*`, `•`), if the line begins with one.
fn mark(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = match rest.len() < line.len() {
        true => rest.strip_prefix(['.', ')'])?,
        false => line.strip_prefix(['-', '*', '•', '+'])?,
    };
    Some(rest.trim_start_matches(['*', ' ', '_', '#']))
}

/// The pool: what all rows say, as words with their numbers.
struct Pool {
    ids: HashMap<String, usize>,
    idf: Vec<f64>,
    /// By word: the sources that have it, and how often.
    postings: Vec<Vec<(usize, u32)>>,
    /// By word, the sources whose prompt has it, and whose replies have it.
    prompts: Vec<Vec<usize>>,
    replies: Vec<Vec<usize>>,
    /// By source: the length of v_S.
    norms: Vec<f64>,
}

impl Pool {
    fn new(sources: &[RowText<'_>], template: &HashSet<String>) -> Pool {
        let mut pool = Pool {
            ids: HashMap::new(),
            idf: Vec::new(),
            postings: Vec::new(),
            prompts: Vec::new(),
            replies: Vec::new(),
            norms: vec![0.0; sources.len()],
        };
        for (source, texts) in sources.iter().enumerate() {
            let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
            let prompt = [texts.prompt];
            for (part, texts) in [&prompt[..], texts.replies].into_iter().enumerate() {
                let mut there = HashSet::new();
                let said = texts.iter().flat_map(|text| words(text));
                for word in said.filter(|word| !template.contains(word)) {
                    let id = pool.id(word);
                    *counts.entry(id).or_default() += 1;
                    if there.insert(id) {
                        [&mut pool.prompts, &mut pool.replies][part][id].push(source);
                    }
                }
            }
            for (id, count) in counts {
                pool.postings[id].push((source, count));
            }
        }
        let n = sources.len() as f64;
        pool.idf =
            pool.postings.iter().map(|p| ((n + 1.0) / (p.len() as f64 + 0.5)).ln()).collect();
        for (postings, idf) in pool.postings.iter().zip(&pool.idf) {
            for &(source, count) in postings {
                pool.norms[source] += (weight(count) * idf).powi(2);
            }
        }
        pool.norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
        pool
    }

    fn id(&mut self, word: String) -> usize {
        let next = self.postings.len();
        let id = *self.ids.entry(word).or_insert(next);
        if id == next {
            self.postings.push(Vec::new());
            self.prompts.push(Vec::new());
            self.replies.push(Vec::new());
        }
        id
    }

    /// Lifts by prompt and replies, and bits, of a text for its row and for the next.
    fn measure(&self, said: &[String], source: usize) -> Measures {
        let n = self.norms.len();
        let unknown = ((n as f64 + 1.0) / 0.5).ln();
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        said.iter().for_each(|word| *counts.entry(word).or_default() += 1);
        let (mut total, mut norm) = (0.0, 0.0);
        let mut dots = vec![0.0; n];
        let mut shared = [vec![0.0; n], vec![0.0; n], vec![0.0; n]];
        for (&word, &count) in &counts {
            let id = self.ids.get(word).copied();
            let idf = id.map_or(unknown, |id| self.idf[id]);
            let value = weight(count) * idf;
            total += idf;
            norm += value * value;
            let Some(id) = id else { continue };
            for &(source, count) in &self.postings[id] {
                dots[source] += value * weight(count) * idf;
                shared[0][source] += idf;
            }
            self.prompts[id].iter().for_each(|&source| shared[1][source] += idf);
            self.replies[id].iter().for_each(|&source| shared[2][source] += idf);
        }
        if total == 0.0 {
            // Nothing but the template's words: a text that fits every row alike.
            return Measures::default();
        }
        let lift = |shared: &[f64], own: usize| {
            let others = (shared.iter().sum::<f64>() - shared[own]) / (n - 1).max(1) as f64;
            (shared[own] - others) / total
        };
        let norm = norm.sqrt();
        let cosine = |source: usize| match norm * self.norms[source] {
            0.0 => 0.0,
            lengths => dots[source] / lengths,
        };
        // At most 1, so that no exponent overflows: e^20.
        let sum: f64 = (0..n).map(|source| (cosine(source) / TEMPERATURE).exp()).sum();
        let bits = |own| (n as f64).log2() + cosine(own) / TEMPERATURE / 2f64.ln() - sum.log2();
        let next = (source + 1) % n;
        Measures {
            bits: bits(source),
            bits_shuffled: bits(next),
            lift: lift(&shared[0], source),
            lift_shuffled: lift(&shared[0], next),
            lift_prompt: lift(&shared[1], source),
            lift_replies: lift(&shared[2], source),
            ..Measures::default()
        }
    }
}

fn weight(count: u32) -> f64 {
    1.0 + f64::from(count).ln()
}

/// The measures of every judgement, in their order. `template` is the text of the judge's template.
///
/// # Panics
/// If a judgement names a source that is not there.
pub fn measure(
    sources: &[RowText<'_>],
    judgements: &[Criteria<'_>],
    template: &str,
) -> Vec<Measures> {
    let template = words(template);
    let common: HashSet<String> = template.iter().cloned().collect();
    let joined = format!(" {} ", template.join(" "));
    let template_runs: HashSet<&[String]> = template.windows(ECHO).collect();
    let pool = Pool::new(sources, &common);
    let of = |judgement: &Criteria<'_>| {
        let RowText { prompt, replies } = sources[judgement.source];
        let Some(text) = judgement.text.filter(|text| !text.trim().is_empty()) else {
            return Measures::default();
        };
        let all = words(text);
        let counted = all.iter().filter(|word| !common.contains(*word)).take(MAX_WORDS);
        let measures = pool.measure(&counted.cloned().collect::<Vec<_>>(), judgement.source);
        let headings = headings(text).into_iter().map(words).filter(|words| !words.is_empty());
        let own: Vec<bool> =
            headings.map(|words| !joined.contains(&format!(" {} ", words.join(" ")))).collect();
        let own_source =
            [prompt].iter().chain(replies).flat_map(|text| words(text)).collect::<Vec<_>>();
        Measures {
            written: true,
            listed: own.len() as u32,
            own: own.iter().filter(|own| **own).count() as u32,
            echoed: share_in_runs(&all, &template_runs, ECHO),
            copied: share_in_runs(&all, &own_source.windows(COPY).collect(), COPY),
            ..measures
        }
    };
    judgements.iter().map(of).collect()
}

/// The measures of records, in their order. The pool has every pair once; judgements that were not made, and those of
/// pairs that are not there, are left out.
pub fn of_records(pairs: &[Pair], records: &[Record], template: &Template) -> Vec<Measured> {
    let places: HashMap<u64, usize> =
        pairs.iter().enumerate().map(|(place, pair)| (pair.row, place)).collect();
    let prompts: Vec<String> = pairs.iter().map(|pair| conversation_text(&pair.prompt)).collect();
    let replies: Vec<[&str; 2]> =
        pairs.iter().map(|pair| [pair.chosen.as_str(), pair.rejected.as_str()]).collect();
    let sources: Vec<RowText> =
        prompts.iter().zip(&replies).map(|(prompt, replies)| RowText { prompt, replies }).collect();
    let made = records.iter().filter(|record| record.finish != Finish::PromptTooLong);
    let (of, judgements): (Vec<&Record>, Vec<Criteria>) = made
        .filter_map(|record| {
            let source = *places.get(&record.row)?;
            Some((record, Criteria { source, text: parts(&record.text).criteria }))
        })
        .unzip();
    let measures = measure(&sources, &judgements, &template.to_source());
    let measured = |(record, measures): (&Record, Measures)| Measured {
        row: record.row,
        order: record.order,
        vote: record.vote,
        data_row: record.candidates.map_or(record.row, |candidates| candidates.row),
        measures,
    };
    of.into_iter().zip(measures).map(measured).collect()
}

/// A mean over judgements, with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// 95 %, by a bootstrap over rows: a row is drawn with all that was judged about it.
    pub interval: Interval,
}

/// What `scores.json` has of an evaluation's criteria.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Means {
    /// Judgements; those without criteria count with 0 bits and a lift of 0.
    pub judgements: u64,
    /// Judgements without criteria.
    pub missing: u64,
    /// Sources in the pool, N.
    pub sources: u64,
    /// Bits of matching, of at most log2 N.
    pub bits: Mean,
    /// The control: of texts held against the next row.
    pub bits_shuffled: Mean,
    /// Lift by prompt and replies.
    pub lift: Mean,
    /// The control.
    pub lift_shuffled: Mean,
    /// Lift by the prompt alone.
    pub lift_prompt: Mean,
    /// Lift by the replies alone.
    pub lift_replies: Mean,
    /// Share of the listed criteria that the template does not name; `None` if none is listed.
    pub own_criteria: Option<f64>,
    /// Mean share of words echoed from the template, of those that wrote criteria.
    pub echoed: f64,
    /// Mean share of words copied from the own source, of those that wrote criteria.
    pub copied: f64,
}

impl Means {
    /// Of judgements. `None` without any, or with a single source.
    pub fn new(sources: usize, measured: &[Measured], seed: u64) -> Option<Means> {
        if measured.is_empty() || sources < 2 {
            return None;
        }
        let mean = |of: fn(&Measures) -> f64| {
            let values: Vec<_> =
                measured.iter().map(|one| (one.data_row, of(&one.measures))).collect();
            mean_over_rows(&values, seed)
        };
        let written: Vec<&Measures> =
            measured.iter().map(|one| &one.measures).filter(|m| m.written).collect();
        let share = |of: fn(&Measures) -> f64| {
            written.iter().map(|m| of(m)).sum::<f64>() / written.len().max(1) as f64
        };
        let listed: u32 = written.iter().map(|m| m.listed).sum();
        let own: u32 = written.iter().map(|m| m.own).sum();
        Some(Means {
            judgements: measured.len() as u64,
            missing: (measured.len() - written.len()) as u64,
            sources: sources as u64,
            bits: mean(|m| m.bits),
            bits_shuffled: mean(|m| m.bits_shuffled),
            lift: mean(|m| m.lift),
            lift_shuffled: mean(|m| m.lift_shuffled),
            lift_prompt: mean(|m| m.lift_prompt),
            lift_replies: mean(|m| m.lift_replies),
            own_criteria: (listed > 0).then(|| f64::from(own) / f64::from(listed)),
            echoed: share(|m| m.echoed),
            copied: share(|m| m.copied),
        })
    }
}

/// The mean of values, each with its row, and its interval by a bootstrap over rows.
///
/// # Panics
/// If there is no value.
fn mean_over_rows(values: &[(u64, f64)], seed: u64) -> Mean {
    assert!(!values.is_empty(), "a mean of nothing");
    let mut rows: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for (row, value) in values {
        let (sum, count) = rows.entry(*row).or_default();
        *sum += value;
        *count += 1.0;
    }
    let rows: Vec<(f64, f64)> = rows.into_values().collect();
    let mean = |(sum, count): (f64, f64)| sum / count;
    let add = |a: (f64, f64), b: &(f64, f64)| (a.0 + b.0, a.1 + b.1);
    // "rubr" keeps this stream apart from others made of the same seed.
    let draws = Draws::new(hash(&[0x7275_6272, seed]));
    let of = |rows: &mut dyn Iterator<Item = &(f64, f64)>| mean(rows.fold((0.0, 0.0), add));
    Mean {
        mean: of(&mut rows.iter()),
        interval: interval_over(&rows, draws, |rows| Some(of(rows))).expect("there are resamples"),
    }
}

#[cfg(test)]
mod tests;
