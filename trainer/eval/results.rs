//! The output directory of `j1 eval`: what was judged, kept so that a killed run continues.
//!
//! | file | what it is | when it is written |
//! |---|---|---|
//! | `run.json` | the resolved settings, a run with others is refused; under `about`, what was begun when and where | first, whole |
//! | `outputs.jsonl` | a [`Record`] a line, with a checksum | appended and synced as each judgement ends; sorted at the end |
//! | `results.csv` | the columns of the original evaluation | at the end, whole |
//! | `rubrics.jsonl` | the measures of each judgement's criteria ([`crate::eval::rubrics`]) | at the end, whole |
//! | `scores.json` | RewardBench's results format, ours under `j1` | at the end, whole |
//! | `timing.json` | how fast it went: two equal runs differ in this and in `about` alone | at the end, whole |
//! | `.j1.lock` | an empty file; locked while a run is at work | |
//!
//! A line of outputs.jsonl is one write. A kill or a power cut can tear the last line only, which is cut off
//! when the run continues, and judged again with the same outcome. Any other damage is an error, not a guess: the
//! checksum of a line is over what it says, so that a flipped bit is seen, and spaces and escapes may change.
//! All records are held in memory, about as much as outputs.jsonl is long.

mod error;
pub(crate) mod files;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

pub use error::ResultsError;
pub use files::write_whole;
use files::{Journal, replace};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::fingerprint;
use crate::data::lines::{LineError, Lines, MAX_LINE};
use crate::data::{Candidates, Pair};
use crate::eval::rubrics::Measured;
use crate::judge::prompt::{Order, conversation_text};
use crate::judge::verdict::{self, MatchRule, Reading, Verdict, VerdictForm};

pub(crate) const RUN: &str = "run.json";
pub(crate) const OUTPUTS: &str = "outputs.jsonl";
pub(crate) const CSV: &str = "results.csv";
pub(crate) const RUBRICS: &str = "rubrics.jsonl";
const SCORES: &str = "scores.json";
const TIMING: &str = "timing.json";
const LOCK: &str = ".j1.lock";
/// Key of run.json for people; it decides nothing.
pub(crate) const ABOUT: &str = "about";
/// The setting that holds the form of a verdict.
const VERDICT: &str = "verdict";
/// The last key of a line of outputs.jsonl.
const CHECKSUM: &str = "checksum";
/// The largest run.json that is read.
const MAX_SETTINGS: u64 = 1 << 20;

/// Why a judgement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// The token limit ended it.
    Length,
    /// The prompt did not fit, so nothing was generated.
    PromptTooLong,
    /// Not known: it was written by another program. Token counts and the log-probability are 0 then and are
    /// left out of all statistics.
    Unknown,
}

/// One judgement: a line of outputs.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Position of the pair in the data, counted from 0.
    pub row: u64,
    /// The pair's id.
    pub id: String,
    /// The pair's subset.
    pub subset: Option<String>,
    /// Which of the row's replies the pair is made of, if it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Candidates>,
    /// Which reply stood in slot A.
    pub order: Order,
    /// Which sample of this pair and order, counted from 0.
    pub vote: u32,
    /// Length of the prompt in tokens.
    pub prompt_tokens: u32,
    /// Length of the completion in tokens.
    pub tokens: u32,
    /// UnparsedReason of its end.
    pub finish: Finish,
    /// Sum of the log-probabilities of the completion's tokens.
    pub log_prob: f64,
    /// The verdict by the published rule, slot A first.
    pub strict: Verdict,
    /// The verdict by the rule with recovery, slot A first.
    pub soft: Verdict,
    /// The judgement.
    pub text: String,
}

/// Key of a judgement in a run: row, order, vote.
pub type Key = (u64, Order, u32);

impl Record {
    /// Row, order and vote.
    pub fn key(&self) -> Key {
        (self.row, self.order, self.vote)
    }

    /// The verdict by a rule, slot A first.
    pub fn verdict(&self, rule: MatchRule) -> Verdict {
        match rule {
            MatchRule::Strict => self.strict,
            MatchRule::Soft => self.soft,
        }
    }

    /// The scores of the chosen and the rejected reply by a rule.
    pub fn scores_by_label(&self, rule: MatchRule) -> Option<(f64, f64)> {
        self.verdict(rule).scores().map(|scores| self.order.by_label(scores))
    }
}

/// An output directory in use by this process.
#[derive(Debug)]
pub struct Results {
    directory: PathBuf,
    journal: Journal,
    records: Vec<Record>,
    done: BTreeSet<Key>,
    /// Held, not read: closing it gives the directory free.
    _lock: File,
}

impl Results {
    /// Opens a directory, made if it is not there, for a run with these settings (a JSON object). If a run
    /// with the same settings was begun in it, its judgements are read and the run continues. What is under `about` in
    /// them is written with a new run, and not compared.
    pub fn open(directory: &Path, settings: &Value) -> Result<Results, ResultsError> {
        let (lock, reread) = claim(directory, settings)?;
        let outputs = directory.join(OUTPUTS);
        let (records, done, length) = load(&outputs, reread)?;
        let journal = Journal::open(&outputs, length)?;
        Ok(Results { directory: directory.to_owned(), journal, records, done, _lock: lock })
    }

    /// The judgements that need not be made again.
    pub fn done(&self) -> &BTreeSet<Key> {
        &self.done
    }

    /// Refuses judgements that a run which asks for these would not make: they would count in its scores.
    pub fn only(&self, asked: &BTreeSet<Key>) -> Result<(), ResultsError> {
        match self.done.difference(asked).next() {
            None => Ok(()),
            Some(&(row, order, vote)) => {
                let path = self.journal.path().to_owned();
                Err(ResultsError::NotAsked { path, row, order, vote })
            }
        }
    }

    /// All judgements so far: in the order they ended, after [`Results::finish`] by row, order and vote.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Adds a judgement; it is on the disk when this returns. After an error nothing was added, and the same
    /// record can be appended again or the run be continued later.
    pub fn append(&mut self, record: Record) -> Result<(), ResultsError> {
        let key = record.key();
        assert!(!self.done.contains(&key), "{key:?} was judged before");
        if !record.log_prob.is_finite() {
            return Err(ResultsError::NotFinite { row: record.row, value: record.log_prob });
        }
        let line = line(&record);
        if line.len() as u64 > MAX_LINE {
            return Err(ResultsError::TooLong {
                path: self.journal.path().to_owned(),
                line: self.records.len() as u64 + 1,
            });
        }
        self.journal.append(&line)?;
        self.done.insert(key);
        self.records.push(record);
        Ok(())
    }

    /// Sorts outputs.jsonl by row, order and vote, and writes results.csv, rubrics.jsonl, scores.json and, if given,
    /// timing.json. Files that already hold the right bytes are left alone, so finishing twice changes nothing
    /// (give no timing the second time). `pairs` are the data; `rule` decides the csv's scores.
    pub fn finish(
        &mut self,
        pairs: &[Pair],
        rule: MatchRule,
        rubrics: &[Measured],
        scores: &Value,
        timing: Option<&Value>,
    ) -> Result<(), ResultsError> {
        self.records.sort_by_key(Record::key);
        let by_row: HashMap<u64, &Pair> = pairs.iter().map(|pair| (pair.row, pair)).collect();
        for record in &self.records {
            if by_row.get(&record.row).is_none_or(|pair| pair.id != record.id) {
                return Err(ResultsError::UnknownRow {
                    path: self.journal.path().to_owned(),
                    row: record.row,
                    id: record.id.clone(),
                });
            }
        }
        let outputs = self.directory.join(OUTPUTS);
        let replaced = replace(&outputs, |file| {
            self.records.iter().try_for_each(|record| file.write_all(&line(record)))
        })?;
        if replaced {
            let length = fs::metadata(&outputs)
                .map_err(|source| ResultsError::io("read", &outputs, source))?
                .len();
            self.journal = Journal::open(&outputs, length)?;
        }
        replace(&self.directory.join(CSV), |file| {
            let mut csv = csv::Writer::from_writer(file);
            csv.write_record(CSV_COLUMNS).map_err(unwrap_csv)?;
            for record in &self.records {
                let cells = csv_cells(by_row[&record.row], record, rule);
                csv.write_record(cells).map_err(unwrap_csv)?;
            }
            csv.flush()
        })?;
        replace(&self.directory.join(RUBRICS), |file| {
            let mut sorted: Vec<&Measured> = rubrics.iter().collect();
            sorted.sort_by_key(|measured| measured.key());
            sorted.into_iter().try_for_each(|measured| {
                serde_json::to_writer(&mut *file, measured)?;
                file.write_all(b"\n")
            })
        })?;
        write_whole(&self.directory.join(SCORES), pretty(scores).as_bytes())?;
        if let Some(timing) = timing {
            write_whole(&self.directory.join(TIMING), pretty(timing).as_bytes())?;
        }
        Ok(())
    }
}

/// Makes a directory this run's: locks it, and compares the settings in its run.json with this run's, or writes
/// them if there are none. Where an earlier version began it, its texts are kept and its verdicts, which had other
/// rules, are to be read again in the form that is returned.
fn claim(directory: &Path, settings: &Value) -> Result<(File, Option<VerdictForm>), ResultsError> {
    assert!(settings.is_object(), "settings are a JSON object, got {settings}");
    let lock = lock(directory)?;
    let run = directory.join(RUN);
    let mut reread = None;
    match read_json(&run)? {
        Some(stored) => {
            compare_settings(&run, &stored, settings)?;
            let form = settings.get(VERDICT).and_then(Value::as_str);
            reread =
                form.and_then(|form| form.parse().ok()).filter(|_| stored.get(VERDICT).is_none());
        }
        None => write_whole(&run, pretty(settings).as_bytes())?,
    }
    Ok((lock, reread))
}

/// Creates a directory that is to hold a run or holds one, and locks it against other processes while the file lives.
pub(crate) fn lock(directory: &Path) -> Result<File, ResultsError> {
    let io = |path: &Path, source| ResultsError::io("open", path, source);
    fs::create_dir_all(directory).map_err(|e| ResultsError::io("create", directory, e))?;
    if !directory.join(RUN).exists() {
        refuse_foreign(directory)?;
    }
    let lock_path = directory.join(LOCK);
    let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
    let lock = lock.map_err(|source| io(&lock_path, source))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(ResultsError::Locked { path: directory.to_owned() });
        }
        // Some network file systems have no locks; a run is worth more than its guard.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(source)) => return Err(io(&lock_path, source)),
    }
    files::remove_leftovers(directory)?;
    Ok(lock)
}

const CSV_COLUMNS: [&str; 6] = ["prompt", "chosen", "rejected", "judgement", "scores", "correct"];

/// Cells as pandas writes the original's: scores `[9.0, 3.0]` (chosen first, empty if unparsed), correct
/// `True` or `False`.
fn csv_cells(pair: &Pair, record: &Record, rule: MatchRule) -> [String; 6] {
    let scores = record.scores_by_label(rule);
    let correct = scores.is_some_and(|(chosen, rejected)| chosen > rejected);
    [
        conversation_text(&pair.prompt),
        pair.chosen.clone(),
        pair.rejected.clone(),
        record.text.clone(),
        scores.map_or(String::new(), |(chosen, rejected)| format!("[{chosen:?}, {rejected:?}]")),
        if correct { "True" } else { "False" }.to_owned(),
    ]
}

/// The system's error inside, so that a full disk is still told as one.
fn unwrap_csv(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

fn line(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a record is JSON");
    let value = serde_json::from_slice(&line).expect("a record is JSON");
    line.pop();
    line.extend(format!(",\"{CHECKSUM}\":\"{}\"}}\n", fingerprint::of_json(&value)).bytes());
    line
}

/// Takes the checksum out of a line, and says whether the rest is what it was made of. Lines without one are of older
/// versions or other programs.
pub(crate) fn is_as_written(values: &mut Map<String, Value>) -> bool {
    let Some(checksum) = values.remove(CHECKSUM) else { return true };
    let value = Value::Object(std::mem::take(values));
    let is_same = checksum == fingerprint::of_json(&value);
    if let Value::Object(rest) = value {
        *values = rest;
    }
    is_same
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A directory without a run may hold nothing but what a run that was killed at its start leaves.
pub(crate) fn refuse_foreign(directory: &Path) -> Result<(), ResultsError> {
    let io = |source| ResultsError::io("list", directory, source);
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name != LOCK && !files::is_leftover(&name) {
            return Err(ResultsError::Foreign {
                path: directory.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

/// A small JSON object, or `None` if there is no such file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, ResultsError> {
    let io = |source| ResultsError::io("read", path, source);
    let not_json = |message: String| ResultsError::NotJson { path: path.to_owned(), message };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_SETTINGS + 1), &mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_SETTINGS {
        return Err(not_json(format!("it is longer than {MAX_SETTINGS} bytes")));
    }
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => Err(not_json("it is not an object".to_owned())),
        Err(error) => Err(not_json(error.to_string())),
    }
}

/// Settings that earlier versions did not write, and the values with which they judged. Those that are null need none.
fn later() -> [(&'static str, Value); 3] {
    [
        ("repetition_penalty", 1.0.into()),
        ("stop_strings", Value::Array(Vec::new())),
        (VERDICT, VerdictForm::default().to_string().into()),
    ]
}

/// The first setting, by name, that differs between what the directory was made with and this run.
pub(crate) fn compare_settings(
    path: &Path,
    stored: &Value,
    given: &Value,
) -> Result<(), ResultsError> {
    let mut stored = stored.clone();
    for (name, value) in later() {
        if given.get(name).is_some()
            && let Some(stored) = stored.as_object_mut()
        {
            stored.entry(name).or_insert(value);
        }
    }
    let stored = &stored;
    let Some((name, stored, given)) = difference("", Some(stored), Some(given)) else {
        return Ok(());
    };
    let show = |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
    let (stored, given) = (show(stored), show(given));
    Err(ResultsError::Setting { path: path.to_owned(), name, stored, given })
}

type Difference<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn difference<'a>(
    name: &str,
    stored: Option<&'a Value>,
    given: Option<&'a Value>,
) -> Option<Difference<'a>> {
    if let (Some(Value::Object(stored)), Some(Value::Object(given))) = (stored, given) {
        let names: BTreeSet<&String> = stored.keys().chain(given.keys()).collect();
        let separator = if name.is_empty() { "" } else { "." };
        let mut compared = names.into_iter().filter(|key| !(name.is_empty() && *key == ABOUT));
        return compared.find_map(|key| {
            difference(&format!("{name}{separator}{key}"), stored.get(key), given.get(key))
        });
    }
    let is_set = |value: &&Value| !value.is_null();
    (stored.filter(is_set) != given.filter(is_set)).then(|| (name.to_owned(), stored, given))
}

/// The records of outputs.jsonl, their keys, and how many bytes of the file they take: what follows is a torn line.
/// With `reread` verdicts are read from the texts.
fn load(
    path: &Path,
    reread: Option<VerdictForm>,
) -> Result<(Vec<Record>, BTreeSet<Key>, u64), ResultsError> {
    let io = |source| ResultsError::io("read", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(io(error)),
    };
    let mut lines = Lines::new(BufReader::new(file));
    let (mut records, mut done, mut length) = (Vec::new(), BTreeSet::new(), 0);
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(LineError::Io(source)) => return Err(io(source)),
            Err(LineError::TooLong(line)) => {
                return Err(ResultsError::TooLong { path: path.to_owned(), line });
            }
        };
        if !line.terminated {
            break;
        }
        let corrupt = |message: String| ResultsError::Corrupt {
            path: path.to_owned(),
            line: line.number,
            message,
        };
        let foreign = |error| corrupt(format!("not a judgement of this program: {error}"));
        let mut values: Map<String, Value> = serde_json::from_slice(line.bytes).map_err(foreign)?;
        if !is_as_written(&mut values) {
            let message = "it was changed after it was written, as its checksum tells";
            return Err(corrupt(message.to_owned()));
        }
        let mut record: Record = serde_json::from_value(Value::Object(values)).map_err(foreign)?;
        if let Some(form) = reread {
            let Reading { strict, soft } = verdict::read(&record.text, record.finish, form);
            (record.strict, record.soft) = (strict, soft);
        }
        if !done.insert(record.key()) {
            let (row, order, vote) = record.key();
            let (path, line) = (path.to_owned(), line.number);
            return Err(ResultsError::Duplicate { path, line, row, order, vote });
        }
        length = line.offset + line.bytes.len() as u64 + 1;
        records.push(record);
    }
    Ok((records, done, length))
}

/// For tests: judgements by what matters about them.
#[cfg(test)]
impl Record {
    /// A judgement that says `text`, read on the bundled template's scale.
    pub(crate) fn saying(row: u64, order: Order, finish: Finish, text: String) -> Record {
        let Reading { strict, soft } = verdict::read(&text, finish, VerdictForm::default());
        Record {
            row,
            id: row.to_string(),
            subset: None,
            candidates: None,
            order,
            vote: 0,
            prompt_tokens: 1,
            tokens: 1,
            finish,
            log_prob: -1.0,
            strict,
            soft,
            text,
        }
    }
}

#[cfg(test)]
mod tests;
