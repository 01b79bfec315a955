//! `j1 data inspect`: what is in a file of pairs, before anything is done with it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::overlap::Benchmark;
use super::survey::{Survey, dropped_json};
use super::{DropReason, Dropped, PrepareError, PrepareOptions, PrepareProgress};
use crate::data::{Columns, DataError, Format, Layouts, Replies, Source, Wanted};

/// The most columns and sources that are told apart: enough for any sound file.
const MAX_NAMES: usize = 1_000;

/// Statistics over rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    /// Arithmetic mean.
    pub mean: f64,
    /// The 50th, 90th and 99th percentile (the smallest length that this percentage of rows does not exceed).
    pub percentiles: [u32; 3],
    /// The largest length.
    pub max: u32,
}

impl Lengths {
    /// Quantiles of lengths in any order; `None` without any.
    fn of(mut lengths: Vec<u32>) -> Option<Lengths> {
        lengths.sort_unstable();
        let max = *lengths.last()?;
        let count = lengths.len();
        let percentile = |p: usize| lengths[(count * p).div_ceil(100).max(1) - 1];
        let mean = lengths.iter().map(|&n| f64::from(n)).sum::<f64>() / count as f64;
        Some(Lengths { mean, percentiles: [50, 90, 99].map(percentile), max })
    }

    fn json(&self) -> Value {
        let [p50, p90, p99] = self.percentiles;
        json!({ "mean": self.mean, "p50": p50, "p90": p90, "p99": p99, "max": self.max })
    }
}

/// Statistics and examples of a data file, as `j1 data inspect` shows them.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// The file's format.
    pub format: Format,
    /// Whether it is known which reply is better. If not, `chosen` is the first reply.
    pub labeled: bool,
    /// Rows of the file.
    pub rows: usize,
    /// Each column with the rows that have it, and whether j1 reads it.
    pub columns: BTreeMap<String, (usize, bool)>,
    /// Rows that `j1 data prepare` would drop.
    pub dropped: BTreeMap<DropReason, Dropped>,
    /// Sound rows whose prompt an earlier row has too.
    pub repeated_prompts: usize,
    /// Sound rows by source, or subset where there is no source.
    pub sources: BTreeMap<String, usize>,
    /// Lengths of sound rows: `prompt turns`, then characters of `prompt`, `chosen`, `rejected`.
    pub lengths: Vec<(&'static str, Lengths)>,
    /// Share of the sound rows whose chosen reply is the longer one: a judge may learn that instead.
    pub chosen_longer: f64,
    /// The first sound rows, as they would be written.
    pub examples: Vec<Value>,
}

impl Inspection {
    /// The inspection as JSON.
    pub fn to_json(&self) -> Value {
        let columns: BTreeMap<&String, Value> = (self.columns.iter())
            .map(|(name, (rows, read))| (name, json!({ "rows": rows, "read": read })))
            .collect();
        let lengths: BTreeMap<&str, Value> =
            self.lengths.iter().map(|(name, lengths)| (*name, lengths.json())).collect();
        json!({
            "format": format!("{:?}", self.format).to_lowercase(),
            "labeled": self.labeled,
            "rows": self.rows,
            "columns": columns,
            "dropped": dropped_json(&self.dropped),
            "repeated_prompts": self.repeated_prompts,
            "sources": self.sources,
            "lengths": lengths,
            "chosen_longer": self.chosen_longer,
            "examples": self.examples,
        })
    }
}

/// Looks through a file; `examples` of its rows are kept to be shown.
pub fn inspect(
    source: &Source,
    columns: &Columns,
    examples: usize,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<Inspection, PrepareError> {
    let look = |replies, progress: &mut dyn FnMut(PrepareProgress)| {
        let wanted = Wanted { replies, columns: columns.clone(), ..Wanted::default() };
        look(source, &wanted, examples, stop, progress)
    };
    match look(Replies::Prepared, progress) {
        Err(PrepareError::Data(error @ DataError::MissingColumn { .. })) => {
            // Replies called a and b need no label to be judged.
            look(Replies::Any, progress).map_err(|_| error.into())
        }
        seen => seen,
    }
}

fn look(
    source: &Source,
    wanted: &Wanted,
    examples: usize,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<Inspection, PrepareError> {
    let mut columns: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    let mut sources: BTreeMap<String, usize> = BTreeMap::new();
    let mut lengths: [Vec<u32>; 4] = Default::default();
    let (mut longer, mut shown) = (0_usize, Vec::new());
    let mut layouts = Layouts::new(wanted);
    let survey = Survey::take(
        source,
        wanted,
        &PrepareOptions::default(),
        &Benchmark::default(),
        stop,
        progress,
        &mut |names, row| {
            let layout = layouts.of(names);
            for name in names {
                if columns.len() < MAX_NAMES || columns.contains_key(name) {
                    let column = columns.entry(name.clone()).or_default();
                    *column = (column.0 + 1, layout.reads(name));
                }
            }
            let Some(row) = row else { return };
            if sources.len() < MAX_NAMES || sources.contains_key(row.origin()) {
                *sources.entry(row.origin().to_owned()).or_default() += 1;
            }
            let [prompt, chosen, rejected] = row.chars();
            longer += usize::from(chosen > rejected);
            for (list, length) in
                lengths.iter_mut().zip([row.prompt.len(), prompt, chosen, rejected])
            {
                list.push(u32::try_from(length).unwrap_or(u32::MAX));
            }
            if shown.len() < examples {
                shown.push(serde_json::to_value(row).expect("a row is JSON"));
            }
        },
    )?;
    let sound = lengths[0].len();
    let labeled = wanted.replies != Replies::Any;
    let [first, second] = if labeled { ["chosen", "rejected"] } else { ["a", "b"] };
    let names = ["prompt turns", "prompt", first, second];
    let lengths = (names.into_iter().zip(lengths))
        .filter_map(|(name, lengths)| Some((name, Lengths::of(lengths)?)))
        .collect();
    Ok(Inspection {
        format: source.format(),
        labeled,
        rows: survey.rows(),
        columns,
        dropped: survey.dropped().clone(),
        repeated_prompts: survey.repeated_prompts(),
        sources,
        lengths,
        chosen_longer: if sound == 0 { 0.0 } else { longer as f64 / sound as f64 },
        examples: shown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_lengths_that_occur() {
        assert_eq!(Lengths::of(Vec::new()), None);
        let one = Lengths::of(vec![7]).unwrap();
        assert_eq!(one, Lengths { mean: 7.0, percentiles: [7; 3], max: 7 });
        let hundred = Lengths::of((1..=100).rev().collect()).unwrap();
        assert_eq!(hundred, Lengths { mean: 50.5, percentiles: [50, 90, 99], max: 100 });
    }
}
