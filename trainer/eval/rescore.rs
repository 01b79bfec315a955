//! Scores for judgements that are already written: the verdicts are read again from the texts, without a model.
//!
//! Two kinds of files are read:
//!
//! * our outputs.jsonl. A torn last line, as a killed run leaves it, is left out;
//! * a table (.csv, or .jsonl with an object a line) with the columns of the original evaluation: `prompt`,
//!   `chosen`, `rejected`, `judgement`, and optionally `scores`, `subset` and `id`. Each line is a row of its own.
//!   The published file calls two of them `Pipeline_root.block.unit[DirectScoreJudge]_score` and `pairwise_score`.
//!
//! Such a table does not say which reply stood in slot A. In the original's it is always the chosen one. In our
//! results.csv it need not be. Where the outputs.jsonl of the same run lies beside it, that one is read in its place.
//! Alone, it tells by `scores`, where the chosen reply's score stands first, while in the judgement slot A's does:
//! where they are each other's reverse, the rejected reply was A. If a table is known to hold both orders, a line
//! that does not tell (a tie, or nothing parsed) is an error, not a guess.

mod evaluation;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

pub use evaluation::{Evaluation, PairText};
use serde_json::{Map, Value};

use crate::data::lines::{LineError, Lines, MAX_LINE};
use crate::data::{self, DataError, Format};
use crate::eval::results::{Finish, Key, Record, ResultsError, is_as_written, read_json};
use crate::judge::prompt::Order;
use crate::judge::verdict::{self, Reading, VerdictForm};

/// Columns that a table must have.
const NEEDED: [&str; 4] = ["prompt", "chosen", "rejected", "judgement"];

/// Why judgements could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum RescoreError {
    /// The file cannot be read as lines or cells.
    #[error("{0}")]
    Data(#[from] DataError),
    /// Parquet is not a format of judgements.
    #[error("{}: judgements are read from .jsonl and .csv, not from Parquet", path.display())]
    Parquet { path: PathBuf },
    /// A column is missing.
    #[error(
        "{}, line {line}: there is no column {missing}; judgements are an outputs.jsonl of this program, or a \
         table with the columns prompt, chosen, rejected and judgement", path.display()
    )]
    MissingColumn { path: PathBuf, line: u64, missing: &'static str },
    /// A line does not hold a judgement.
    #[error("{}, line {line}: {problem}", path.display())]
    Line { path: PathBuf, line: u64, problem: String },
    /// A directory without judgements.
    #[error(
        "{} holds no outputs.jsonl; give a directory that j1 eval wrote, or a file of judgements", path.display()
    )]
    NoOutputs { path: PathBuf },
    /// A file of the directory cannot be read.
    #[error("{0}")]
    Results(#[from] ResultsError),
    /// The table holds both orders, and this line does not tell its own.
    #[error(
        "{}, line {line}: this table holds judgements with the rejected reply in slot A, and this line does not \
         tell which reply stood there; rescore the outputs.jsonl of the same run instead", path.display()
    )]
    UnknownOrder { path: PathBuf, line: u64 },
}

/// Reads judgements, at least one, sorted by row, order and vote. Lengths and log-probabilities that the
/// file does not tell are 0, with [`Finish::Unknown`]. `form` is what the judge was asked for; `None` for what the
/// run.json beside the file says, or else for what the j1 prompt asks.
pub fn rescore(path: &Path, form: Option<VerdictForm>) -> Result<Vec<Record>, RescoreError> {
    if path.is_dir() {
        let (path, found) = (path.to_owned(), "a directory; give a file in it".to_owned());
        return Err(DataError::UnknownFormat { path, found }.into());
    }
    // It is opened more than once.
    if path.exists() && !path.is_file() {
        let (path, found) = (path.to_owned(), "a pipe or a device; give a file".to_owned());
        return Err(DataError::UnknownFormat { path, found }.into());
    }
    let form = form.or_else(|| form_of_run(path)).unwrap_or_default();
    let mut records = match data::detect(path)? {
        Format::Jsonl => from_jsonl(path, form)?,
        Format::Csv => from_csv(path, form)?,
        Format::Parquet | Format::Arrow => {
            return Err(RescoreError::Parquet { path: path.to_owned() });
        }
    };
    if records.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() }.into());
    }
    records.sort_by_key(Record::key);
    Ok(records)
}

/// How many judgements the run that wrote the file was to make, as far as its run.json and scores.json beside it tell:
/// a line that was taken out leaves no other trace. `records` are those of the file.
pub fn asked_for(path: &Path, records: &[Record]) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    if !["outputs.jsonl", "results.csv"].contains(&name) {
        return None;
    }
    let beside = |name: &str| read_json(&path.with_file_name(name)).ok().flatten();
    let scored = || beside("scores.json")?["j1"]["judgements"].as_u64();
    let run = || {
        let run = beside("run.json")?;
        let number = |key: &str| run.get(key)?.as_u64();
        let rows = number("limit").unwrap_or(u64::MAX).min(number("rows")?);
        let orders = if run.get("order")? == "both" { 2 } else { 1 };
        // A row of several replies is as many pairs as it has; those without a judgement cannot be known.
        let pairs: BTreeSet<u64> = records.iter().map(|record| record.row).collect();
        let row = |record: &Record| record.candidates.map_or(record.row, |one| one.row);
        let known: BTreeSet<u64> = records.iter().map(row).collect();
        let pairs = (pairs.len() as u64).checked_add(rows.saturating_sub(known.len() as u64))?;
        pairs.checked_mul(orders)?.checked_mul(number("votes")?)
    };
    scored().max(run())
}

/// The form that the run which wrote the file asked for.
fn form_of_run(path: &Path) -> Option<VerdictForm> {
    let settings = read_json(&path.with_file_name("run.json")).ok()??;
    settings.get("verdict")?.as_str()?.parse().ok()
}

fn from_jsonl(path: &Path, form: VerdictForm) -> Result<Vec<Record>, RescoreError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(io)?));
    let mut table = Table::new(path, form);
    let mut ours: Vec<Record> = Vec::new();
    let mut seen: BTreeMap<Key, u64> = BTreeMap::new();
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(LineError::Io(source)) => return Err(io(source).into()),
            Err(LineError::TooLong(line)) => {
                let path = path.to_owned();
                return Err(DataError::TooLong { path, line, limit: MAX_LINE }.into());
            }
        };
        let (number, torn) = (line.number, !line.terminated);
        let bytes = line.bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1);
        let bytes = bytes.unwrap_or(line.bytes);
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let problem =
            |problem: String| RescoreError::Line { path: path.to_owned(), line: number, problem };
        let mut values: Map<String, Value> = match serde_json::from_slice(bytes) {
            Ok(values) => values,
            Err(_) if torn && !ours.is_empty() => break,
            Err(error) => return Err(problem(format!("not a JSON object: {error}"))),
        };
        let is_ours = values.contains_key("order") && values.contains_key("text");
        if (is_ours && !table.rows.is_empty()) || (!is_ours && !ours.is_empty()) {
            return Err(problem("other columns than in the lines before".to_owned()));
        }
        if !is_ours {
            table.add(number, values)?;
            continue;
        }
        if !is_as_written(&mut values) {
            let what = "it was changed after it was written, as its checksum tells; run j1 eval again on its directory, or \
                        take the key \"checksum\" out of the line if you meant to change it";
            return Err(problem(what.to_owned()));
        }
        let mut record: Record = serde_json::from_value(Value::Object(values))
            .map_err(|error| problem(format!("not a judgement of this program: {error}")))?;
        let Reading { strict, soft } = verdict::read(&record.text, record.finish, form);
        (record.strict, record.soft) = (strict, soft);
        if let Some(first) = seen.insert(record.key(), number) {
            let (row, order, vote) = record.key();
            let what = format!("row {row}, {order}, vote {vote} stands in line {first} too");
            return Err(problem(what));
        }
        ours.push(record);
    }
    if ours.is_empty() { table.finish() } else { Ok(ours) }
}

fn from_csv(path: &Path, form: VerdictForm) -> Result<Vec<Record>, RescoreError> {
    let mut table = Table::new(path, form);
    let file =
        File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    data::csv::visit(path, file, usize::MAX, |line, names, record| {
        let mut values = Map::new();
        for (name, cell) in names.iter().zip(record) {
            // Of columns with the same name the first counts; empty cells of optional columns have no value.
            let column = column(name);
            let optional = matches!(column, "subset" | "id" | "scores");
            if !values.contains_key(name) && (NEEDED.contains(&column) || optional) {
                let text = data::csv::text(path, line, cell)?;
                let empty = optional && text.is_empty();
                values.insert(name.clone(), if empty { Value::Null } else { text.into() });
            }
        }
        table.add(line, values)
    })?;
    table.finish()
}

/// A table's lines, while it is not known yet whether it holds both orders.
struct Table<'a> {
    path: &'a Path,
    form: VerdictForm,
    rows: Vec<(u64, Option<Order>, Record)>,
}

impl<'a> Table<'a> {
    fn new(path: &'a Path, form: VerdictForm) -> Self {
        Table { path, form, rows: Vec::new() }
    }

    fn add(&mut self, line: u64, mut values: Map<String, Value>) -> Result<(), RescoreError> {
        let path = self.path;
        let renamed: Vec<String> =
            values.keys().filter(|name| column(name) != name.as_str()).cloned().collect();
        for name in renamed {
            if !values.contains_key(column(&name))
                && let Some(value) = values.remove(&name)
            {
                values.insert(column(&name).to_owned(), value);
            }
        }
        if let Some(&missing) = NEEDED.iter().find(|&&name| !values.contains_key(name)) {
            return Err(RescoreError::MissingColumn { path: path.to_owned(), line, missing });
        }
        let mut text = |column: &str| match values.remove(column) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) if column == "id" => Ok(Some(number.to_string())),
            Some(_) => {
                let problem = format!("{column} is not text");
                Err(RescoreError::Line { path: path.to_owned(), line, problem })
            }
        };
        let row = self.rows.len() as u64;
        // Where the original got no judgement it wrote none: that is an empty one.
        let judgement = text("judgement")?.unwrap_or_default();
        let (subset, id) = (text("subset")?, text("id")?);
        let Reading { strict, soft } = verdict::read(&judgement, Finish::Unknown, self.form);
        let written = values.get("scores").and_then(written_scores);
        let order = [strict, soft].into_iter().find_map(|verdict| {
            let (a, b) = verdict.scores().filter(|(a, b)| a != b)?;
            match written? {
                written if written == (a, b) => Some(Order::ChosenFirst),
                written if written == (b, a) => Some(Order::RejectedFirst),
                _ => None,
            }
        });
        let record = Record {
            row,
            id: id.unwrap_or_else(|| row.to_string()),
            subset,
            candidates: None,
            order: order.unwrap_or(Order::ChosenFirst),
            vote: 0,
            prompt_tokens: 0,
            tokens: 0,
            finish: Finish::Unknown,
            log_prob: 0.0,
            strict,
            soft,
            text: judgement,
        };
        self.rows.push((line, order, record));
        Ok(())
    }

    fn finish(self) -> Result<Vec<Record>, RescoreError> {
        let beside = self.path.with_file_name("outputs.jsonl");
        if beside != self.path
            && beside.is_file()
            && let Ok(outputs) = rescore(&beside, Some(self.form))
            && outputs.iter().map(|output| &output.text).eq(self.rows.iter().map(|row| &row.2.text))
        {
            return Ok(outputs);
        }
        let mixed = beside.is_file()
            || self.rows.iter().any(|(_, order, _)| *order == Some(Order::RejectedFirst));
        match self.rows.iter().find(|(_, order, _)| mixed && order.is_none()) {
            Some((line, ..)) => {
                Err(RescoreError::UnknownOrder { path: self.path.to_owned(), line: *line })
            }
            None => Ok(self.rows.into_iter().map(|(_, _, record)| record).collect()),
        }
    }
}

/// This module's name of a column that the original evaluation writes under the names its pipeline makes.
fn column(name: &str) -> &str {
    match name {
        "pairwise_score" => "scores",
        _ if name.starts_with("Pipeline_") && name.ends_with("_score") => "judgement",
        _ => name,
    }
}

/// `[9.0, 3.0]`, as a list or as text, with brackets or parentheses as Python writes lists and tuples.
fn written_scores(value: &Value) -> Option<(f64, f64)> {
    match value {
        Value::Array(scores) => match scores.as_slice() {
            [first, second] => Some((first.as_f64()?, second.as_f64()?)),
            _ => None,
        },
        Value::String(text) => {
            let (first, second) = text.trim().trim_matches(['[', ']', '(', ')']).split_once(',')?;
            Some((first.trim().parse().ok()?, second.trim().parse().ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
