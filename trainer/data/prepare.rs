//! `j1 data prepare`: files of preference pairs to checked JSONL in two disjoint parts.
//!
//! Read is whatever [`data`] reads, Skywork's nested Parquet included. Written are
//!
//! | file | what it is |
//! |---|---|
//! | `train.jsonl` | one pair per line: `id`, `source` and `subset` if the input has them, `prompt` (messages), `chosen`, `rejected` |
//! | `held_out.jsonl` | the same, for evaluation |
//! | `prepare.json` | the settings, rows by reason and by source, fingerprints of all files; written last |
//!
//! `id` is a hash of roles, contents and labels, so equal pairs have equal ids in any file. Which side of the
//! split a pair falls on is a hash of the seed and of its **prompt**: it does not depend on the other rows,
//! and pairs about one prompt are never on both sides, where one would leak into the other.
//!
//! A row that cannot teach is dropped and counted by its [`DropReason`]. Two rows that say the opposite of each
//! other are both dropped: nothing tells which of them is right, and so the outcome does not depend on the
//! order of the file.
//!
//! The file is read twice, once to decide and once to write, so that memory holds a few dozen bytes a row.
//! Equal inputs and settings give equal bytes. On an error or an interruption nothing is written.
//!
//! # Three files as one
//!
//! Three renames cannot be one, and a run may be killed between two of them. So before the first, `prepare.json` is
//! replaced by one that says `unfinished`, and only when both other files are there does it get its contents. Whoever
//! uses the two together asks [`check_together`], which compares them with it. The directory is locked meanwhile, and
//! what killed runs left in it is removed.

mod error;
mod inspect;
mod overlap;
mod row;
mod staged;
mod survey;
mod together;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

pub use crate::data::DropReason;
pub use error::PrepareError;
pub use inspect::{Inspection, Lengths, inspect};
use overlap::Benchmark;
pub use survey::Dropped;
use survey::Survey;
pub use together::{check_together, shared_prompts};

use crate::data::fingerprint::Fingerprint;
use crate::data::{self, Columns, Replies, Source, Wanted};
use crate::eval::results::write_whole;

const TRAIN: &str = "train.jsonl";
const HELD_OUT: &str = "held_out.jsonl";
const SETTINGS: &str = "prepare.json";
/// The key that `prepare.json` has while the files beside it are replaced.
const UNFINISHED: &str = "unfinished";
/// Rows between two looks at the interrupt flag and two reports of progress.
const STRIDE: usize = 256;

/// Settings of a preparation.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Share of the prompts that goes to `held_out.jsonl`, from 0 to below 1.
    pub held_out: f64,
    /// Which share that is.
    pub seed: u64,
    /// The most characters of prompt and both replies together.
    pub max_chars: Option<usize>,
    /// Benchmarks whose prompts must not be trained on.
    pub exclude: Vec<Source>,
    /// Count the rows that overlap with a benchmark, but keep them.
    pub keep_overlap: bool,
    /// Names of columns, where the input has its own.
    pub columns: Columns,
}

impl Default for PrepareOptions {
    /// The published split, 80 to 20, and nothing excluded.
    fn default() -> Self {
        PrepareOptions {
            held_out: 0.2,
            seed: 0,
            max_chars: None,
            exclude: Vec::new(),
            keep_overlap: false,
            columns: Columns::default(),
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrepareProgress {
    /// The current pass: `checking` or `writing`.
    pub doing: &'static str,
    /// Rows read so far.
    pub rows: usize,
}

/// Result of a preparation; its JSON form is `prepare.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareReport {
    /// Rows of the input.
    pub rows: usize,
    /// Rows that were not written.
    pub dropped: BTreeMap<DropReason, Dropped>,
    /// Rows that overlap with a benchmark, dropped or not.
    pub overlap: usize,
    /// Rows written to `train.jsonl` and `held_out.jsonl`, by source.
    pub sources: BTreeMap<String, [usize; 2]>,
    /// The contents of `prepare.json`.
    pub json: Value,
}

impl PrepareReport {
    /// Rows of `train.jsonl` and of `held_out.jsonl`.
    pub fn written(&self) -> [usize; 2] {
        self.sources.values().fold([0; 2], |sum, n| [sum[0] + n[0], sum[1] + n[1]])
    }
}

/// Prepares `input` into the directory `out`. `stop` is looked at all the time, `progress` is told now and
/// then. Errors: [`PrepareError`]; then neither file was touched.
pub fn prepare(
    input: &Source,
    out: &Path,
    options: &PrepareOptions,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<PrepareReport, PrepareError> {
    assert!((0.0..1.0).contains(&options.held_out), "held out is a share below 1, got {options:?}");
    refuse_own_inputs(input, out, options)?;
    let benchmark = Benchmark::read(&options.exclude)?;
    let print = input.fingerprint()?;
    let survey =
        Survey::take(input, &wanted(options), options, &benchmark, stop, progress, &mut |_, _| {})?;
    if survey.kept() == 0 {
        return Err(PrepareError::NothingKept {
            path: input.path().to_owned(),
            rows: survey.rows(),
            reasons: survey.reasons_text(),
        });
    }
    let existed = out.exists();
    fs::create_dir_all(out).map_err(|source| PrepareError::io("create", out, source))?;
    let written = write(input, out, options, &survey, &print, stop, progress);
    if written.is_err() && !existed {
        // Only an empty directory goes; what somebody else put there stays.
        let _ = fs::remove_dir(out);
    }
    written
}

/// The second pass, the report, and the three files put in place.
fn write(
    input: &Source,
    out: &Path,
    options: &PrepareOptions,
    survey: &Survey<'_>,
    print: &str,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<PrepareReport, PrepareError> {
    let _lock = staged::lock(out)?;
    staged::remove_leftovers(out)?;
    let mut files = [staged::create(&out.join(TRAIN))?, staged::create(&out.join(HELD_OUT))?];
    let mut sources: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut number = 0;
    data::visit(input, None, &wanted(options), |at, _, row| {
        tick("writing", number, stop, progress)?;
        let expected = survey.kept_id(number);
        number += 1;
        let Some(expected) = expected else { return Ok(()) };
        let changed =
            || PrepareError::Changed { path: input.path().to_owned(), place: input.describe(at) };
        let row = row.and_then(row::check).map_err(|_| changed())?;
        if row.id() != expected {
            return Err(changed());
        }
        let side = usize::from(is_held_out(options, row.prompt_id()));
        sources.entry(row.origin().to_owned()).or_default()[side] += 1;
        files[side]
            .write_all(&row.line())
            .map_err(|source| PrepareError::io("write", &out.join([TRAIN, HELD_OUT][side]), source))
    })?;
    if number != survey.rows() {
        let place = format!("row {number}");
        return Err(PrepareError::Changed { path: input.path().to_owned(), place });
    }
    for file in &mut files {
        file.finish().map_err(|source| PrepareError::io("write", file.path(), source))?;
    }
    let mut report = PrepareReport {
        rows: survey.rows(),
        dropped: survey.dropped().clone(),
        overlap: survey.overlap(),
        sources,
        json: Value::Null,
    };
    let prints = [staged::fingerprint(&files[0])?, staged::fingerprint(&files[1])?];
    report.json = to_json(input, print, options, &report, &prints)?;
    let settings = out.join(SETTINGS);
    // A file that cannot be compared is another one.
    let same = files.each_mut().map(|file| file.is_there().unwrap_or(false));
    let is_other = |side: &usize| !same[*side] && files[*side].path().exists();
    if !settings.exists()
        && let Some(file) = (0..files.len()).find(is_other).map(|side| &files[side])
    {
        return Err(PrepareError::Foreign { path: file.path().to_owned() });
    }
    if stop.load(Ordering::Relaxed) {
        return Err(PrepareError::Interrupted);
    }
    if same.contains(&false) {
        let marker = json!({
            "j1": env!("CARGO_PKG_VERSION"),
            UNFINISHED: "the files beside this one are being replaced; if no j1 data prepare is at work, it was \
                         killed: run it again",
        });
        write_whole(&settings, format!("{marker:#}\n").as_bytes())?;
        for file in files {
            let path = file.path().to_owned();
            file.place().map_err(|source| PrepareError::io("write", &path, source))?;
        }
    }
    write_whole(&settings, format!("{:#}\n", report.json).as_bytes())?;
    Ok(report)
}

/// The fields that both passes read from the input.
fn wanted(options: &PrepareOptions) -> Wanted {
    let columns = options.columns.clone();
    Wanted { replies: Replies::Prepared, columns, ..Wanted::default() }
}

/// Writing over what is read would lose it: the original's training file was replaced by its own test split.
fn refuse_own_inputs(
    input: &Source,
    out: &Path,
    options: &PrepareOptions,
) -> Result<(), PrepareError> {
    for output in [TRAIN, HELD_OUT, SETTINGS].map(|name| out.join(name)) {
        let Ok(output) = output.canonicalize() else { continue };
        for path in options.exclude.iter().chain([input]).flat_map(Source::paths) {
            if path.canonicalize().is_ok_and(|path| path == output) {
                return Err(PrepareError::WouldReplaceInput { path: path.to_owned() });
            }
        }
    }
    Ok(())
}

/// Every [`STRIDE`] rows: the interrupt flag, and a report.
fn tick(
    doing: &'static str,
    rows: usize,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(PrepareProgress),
) -> Result<(), PrepareError> {
    if rows.is_multiple_of(STRIDE) {
        if stop.load(Ordering::Relaxed) {
            return Err(PrepareError::Interrupted);
        }
        progress(PrepareProgress { doing, rows });
    }
    Ok(())
}

/// Whether the pairs about this prompt are held out: a uniform number in [0, 1) made of the seed and the
/// prompt alone, against the share.
fn is_held_out(options: &PrepareOptions, prompt_id: u128) -> bool {
    let mut hash = Fingerprint::new();
    hash.text("j1 data prepare: side");
    hash.text(&options.seed.to_string());
    hash.text(&format!("{prompt_id:032x}"));
    let draw = (row::number(hash) >> 75) as f64 / (1_u64 << 53) as f64;
    draw < options.held_out
}

fn to_json(
    input: &Source,
    print: &str,
    options: &PrepareOptions,
    report: &PrepareReport,
    prints: &[String; 2],
) -> Result<Value, PrepareError> {
    let mut exclude = Vec::new();
    for source in &options.exclude {
        exclude.push(json!({ "file": source.name(), "fingerprint": source.fingerprint()? }));
    }
    let sources: BTreeMap<&str, Value> = (report.sources.iter())
        .map(|(name, [train, held])| (name.as_str(), json!({ "train": train, "held_out": held })))
        .collect();
    let [train, held_out] = report.written();
    Ok(json!({
        "j1": env!("CARGO_PKG_VERSION"),
        "input": { "file": input.name(), "fingerprint": print },
        "settings": {
            "held_out": options.held_out,
            "seed": options.seed,
            "max_chars": options.max_chars,
            "exclude": exclude,
            "keep_overlap": options.keep_overlap,
        },
        "rows": report.rows,
        "dropped": survey::dropped_json(&report.dropped),
        "overlap": report.overlap,
        "sources": sources,
        "train": { "file": TRAIN, "rows": train, "fingerprint": prints[0] },
        "held_out": { "file": HELD_OUT, "rows": held_out, "fingerprint": prints[1] },
    }))
}

#[cfg(test)]
mod tests;
