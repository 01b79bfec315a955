//! An evaluation that was written before: its judgements, and what lies beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{RescoreError, rescore};
use crate::data::lines::{LineError, Lines, MAX_LINE};
use crate::data::{self, DataError};
use crate::eval::results::{CSV, Key, OUTPUTS, RUBRICS, RUN, Record, read_json};
use crate::eval::rubrics::{Measured, Measures};
use crate::judge::verdict::VerdictForm;

/// Judgements of a file or of a directory of `j1 eval`.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The file of judgements.
    pub path: PathBuf,
    /// Its judgements, sorted.
    pub records: Vec<Record>,
    /// Measures of their criteria, of those that rubrics.jsonl beside them has; `None` without that file.
    pub rubrics: Option<BTreeMap<Key, Measures>>,
    /// What decides which rows the measures' pool has; `None` if it is not known.
    pool: Option<Value>,
}

/// Prompt, chosen and rejected reply of a pair.
pub type PairText = [String; 3];

impl Evaluation {
    /// Opens a directory that `j1 eval` wrote, or a file of judgements that [`rescore`] reads.
    pub fn open(path: &Path, form: Option<VerdictForm>) -> Result<Evaluation, RescoreError> {
        let path = if path.is_dir() { path.join(OUTPUTS) } else { path.to_owned() };
        let records = rescore(&path, form)?;
        let is_outputs = path.file_name().is_some_and(|name| name == OUTPUTS);
        let rubrics = if is_outputs { measures(&path.with_file_name(RUBRICS))? } else { None };
        let run = read_json(&path.with_file_name(RUN)).ok().flatten().filter(|_| is_outputs);
        let pool = run.map(|run| {
            json!([
                run["data"],
                run["rows"],
                run["limit"],
                run["limit"].as_u64().map(|_| &run["seed"])
            ])
        });
        Ok(Evaluation { path, records, rubrics, pool })
    }

    /// Whether measures of the criteria of both are of the same pool of rows, so that they compare.
    pub fn has_the_pool_of(&self, other: &Evaluation) -> bool {
        self.pool.is_some() && self.pool == other.pool
    }

    /// The texts of the pairs by row, from the results.csv that was written with the judgements; `None` if there is none, or
    /// if it is of other judgements.
    pub fn texts(&self) -> Result<Option<BTreeMap<u64, PairText>>, RescoreError> {
        let path = self.path.with_file_name(CSV);
        if !path.is_file() {
            return Ok(None);
        }
        let file =
            File::open(&path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        let mut texts = BTreeMap::new();
        let (mut place, mut same) = (0, true);
        data::csv::visit(&path, file, usize::MAX, |line, names, cells| {
            let cell = |name: &str| {
                let cell =
                    names.iter().position(|known| known == name).and_then(|at| cells.get(at));
                data::csv::text(&path, line, cell.unwrap_or_default()).map(str::to_owned)
            };
            let judgement = cell("judgement")?;
            match self.records.get(place) {
                Some(record) if record.text == judgement => {
                    if !texts.contains_key(&record.row) {
                        texts.insert(
                            record.row,
                            [cell("prompt")?, cell("chosen")?, cell("rejected")?],
                        );
                    }
                }
                _ => same = false,
            }
            place += 1;
            Ok::<_, RescoreError>(())
        })?;
        Ok((same && place == self.records.len()).then_some(texts))
    }
}

/// The measures of a rubrics.jsonl; `None` if there is no such file.
fn measures(path: &Path) -> Result<Option<BTreeMap<Key, Measures>>, RescoreError> {
    if !path.is_file() {
        return Ok(None);
    }
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(io)?));
    let mut measures = BTreeMap::new();
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(Some(measures)),
            Err(LineError::Io(source)) => return Err(io(source).into()),
            Err(LineError::TooLong(line)) => {
                return Err(
                    DataError::TooLong { path: path.to_owned(), line, limit: MAX_LINE }.into()
                );
            }
        };
        let problem = |problem: String| RescoreError::Line {
            path: path.to_owned(),
            line: line.number,
            problem,
        };
        let one: Measured = serde_json::from_slice(line.bytes)
            .map_err(|error| problem(format!("not the measures of a judgement: {error}")))?;
        if !one.measures.are_possible() {
            return Err(problem("no judgement has these measures".to_owned()));
        }
        if measures.insert(one.key(), one.measures).is_some() {
            let (row, order, vote) = one.key();
            return Err(problem(format!(
                "row {row}, {order}, vote {vote} stands in a line before, too"
            )));
        }
    }
}
