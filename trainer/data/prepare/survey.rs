//! The first pass over a file: what becomes of every row.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::overlap::Benchmark;
use super::row::{Row, check};
use super::{DropReason, PrepareError, PrepareOptions, PrepareProgress, tick};
use crate::data::{self, At, Refusal, Source, Wanted};

/// Places named for each reason.
const NAMED: usize = 3;

/// Rows that were dropped for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Number of rows.
    pub rows: usize,
    /// The first few: place, and what is wrong where the reason alone does not say it.
    pub first: Vec<String>,
}

/// Whether a row is kept, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept(u128),
    Dropped,
}

/// Sees the columns of every row, and the row if it is sound by itself; it may still be a duplicate, or overlap.
pub(super) type EachRow<'a> = &'a mut dyn FnMut(&[String], Option<&Row>);

/// The fate of all rows of a file.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    source: &'a Source,
    fates: Vec<Fate>,
    dropped: BTreeMap<DropReason, Dropped>,
    overlap: usize,
    /// The first row of each pair, and its place.
    seen: HashMap<u128, (usize, At)>,
    /// How many rows there are about each prompt, of those that are sound in themselves.
    prompts: HashMap<u128, usize>,
}

impl<'a> Survey<'a> {
    /// Reads a source.
    pub(super) fn take(
        source: &'a Source,
        wanted: &Wanted,
        options: &PrepareOptions,
        benchmark: &Benchmark,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(PrepareProgress),
        each: EachRow<'_>,
    ) -> Result<Survey<'a>, PrepareError> {
        let mut survey = Survey {
            source,
            fates: Vec::new(),
            dropped: BTreeMap::new(),
            overlap: 0,
            seen: HashMap::new(),
            prompts: HashMap::new(),
        };
        data::visit(source, None, wanted, |at, columns, row| {
            tick("checking", survey.rows(), stop, progress)?;
            match row.and_then(check) {
                Ok(row) => {
                    each(columns, Some(&row));
                    survey.sound(at, &row, options, benchmark);
                }
                Err(Refusal { reason, detail, .. }) => {
                    each(columns, None);
                    survey.drop_row(reason, at, &detail);
                }
            }
            Ok::<_, PrepareError>(())
        })?;
        Ok(survey)
    }

    fn sound(&mut self, at: At, row: &Row, options: &PrepareOptions, benchmark: &Benchmark) {
        *self.prompts.entry(row.prompt_id()).or_default() += 1;
        let chars: usize = row.chars().iter().sum();
        if options.max_chars.is_some_and(|most| chars > most) {
            return self.drop_row(DropReason::TooLong, at, &format!("{chars} characters"));
        }
        if benchmark.contains(&row.prompt) {
            self.overlap += 1;
            if !options.keep_overlap {
                return self.drop_row(DropReason::Overlap, at, "");
            }
        }
        let id = row.id();
        if let Some((_, first)) = self.seen.get(&id) {
            let detail = format!("as {}", self.source.describe(*first));
            return self.drop_row(DropReason::Duplicate, at, &detail);
        }
        self.seen.insert(id, (self.fates.len(), at));
        if let Some(&(number, other)) = self.seen.get(&row.swapped_id()) {
            if self.fates[number] != Fate::Dropped {
                self.fates[number] = Fate::Dropped;
                let detail = format!("against {}", self.source.describe(at));
                self.count(DropReason::Contradiction, other, &detail);
            }
            let detail = format!("against {}", self.source.describe(other));
            return self.drop_row(DropReason::Contradiction, at, &detail);
        }
        self.fates.push(Fate::Kept(id));
    }

    fn drop_row(&mut self, reason: DropReason, at: At, detail: &str) {
        self.fates.push(Fate::Dropped);
        self.count(reason, at, detail);
    }

    fn count(&mut self, reason: DropReason, at: At, detail: &str) {
        let dropped = self.dropped.entry(reason).or_default();
        dropped.rows += 1;
        if dropped.first.len() < NAMED {
            let separator = if detail.is_empty() { "" } else { ": " };
            let place = self.source.describe(at);
            dropped.first.push(format!("{place}{separator}{detail}"));
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.fates.len()
    }

    pub(super) fn kept(&self) -> usize {
        self.fates.iter().filter(|&&fate| fate != Fate::Dropped).count()
    }

    /// The id of a row that is kept.
    pub(super) fn kept_id(&self, number: usize) -> Option<u128> {
        match self.fates.get(number) {
            Some(&Fate::Kept(id)) => Some(id),
            _ => None,
        }
    }

    pub(super) fn dropped(&self) -> &BTreeMap<DropReason, Dropped> {
        &self.dropped
    }

    pub(super) fn overlap(&self) -> usize {
        self.overlap
    }

    /// Rows whose prompt an earlier row has too.
    pub(super) fn repeated_prompts(&self) -> usize {
        self.prompts.values().map(|rows| rows - 1).sum()
    }

    /// `3 duplicate, 1 empty-reply`.
    pub(super) fn reasons_text(&self) -> String {
        let reasons = self.dropped.iter().map(|(reason, dropped)| {
            let first = dropped.first.first().map_or("", String::as_str);
            format!("{} {} ({first})", dropped.rows, reason.name())
        });
        reasons.collect::<Vec<_>>().join(", ")
    }
}

/// The counts in the form of `prepare.json`.
pub(super) fn dropped_json(dropped: &BTreeMap<DropReason, Dropped>) -> Value {
    let reasons = dropped.iter().map(|(reason, dropped)| {
        (reason.name().to_owned(), json!({ "rows": dropped.rows, "first": dropped.first }))
    });
    Value::Object(reasons.collect())
}
