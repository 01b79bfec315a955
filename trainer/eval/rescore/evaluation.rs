//! An evaluation that was written before: its judgements, and what lies beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{RescoreError, rescore};
use crate::data::lines::{LineError, Lines, MAX_LINE};
use crate::data::{self, DataError};
use crate::eval::results::{CSV, Key, OUTPUTS, RUBRICS, RUN, Record, read_json};
use crate::eval::rubrics::{Measured, Measures};

/// Judgements of a directory of `j1 eval`, or of a file.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The file of judgements.
    pub path: PathBuf,
    /// Its judgements, sorted.
    pub records: Vec<Record>,
    /// Measures of their criteria. A file that is not of a directory of `j1 eval`, or of one that is older, has none.
    pub rubrics: Option<BTreeMap<Key, Measures>>,
    /// run.json beside the judgements, if they are in a directory of `j1 eval`.
    run: Option<Value>,
}

/// Prompt, chosen and rejected reply of a pair.
pub type PairText = [String; 3];

impl Evaluation {
    /// Opens a directory that `j1 eval` wrote, or a file of judgements that [`rescore`] reads.
    pub fn open(path: &Path) -> Result<Evaluation, RescoreError> {
        let path = match path.is_dir() {
            false => path.to_owned(),
            true if path.join(OUTPUTS).is_file() => path.join(OUTPUTS),
            true => return Err(RescoreError::NoOutputs { path: path.to_owned() }),
        };
        let records = rescore(&path, None)?;
        let is_ours =
            [OUTPUTS, CSV].iter().any(|name| path.file_name().is_some_and(|n| n == *name));
        let run = if is_ours { read_json(&path.with_file_name(RUN))? } else { None };
        let rubrics = if run.is_some() { measures(&path.with_file_name(RUBRICS))? } else { None };
        Ok(Evaluation { path, records, rubrics, run })
    }

    /// Whether both are known to be of different data: by what their runs say, or else by the texts of their pairs, as ids may
    /// be row numbers.
    pub fn is_of_other_data(&self, other: &Evaluation) -> Result<bool, RescoreError> {
        let data = |of: &Evaluation| of.run.as_ref()?.get("data").cloned();
        if let Some((own, other)) = data(self).zip(data(other)) {
            return Ok(own != other);
        }
        let rows = |of: &Evaluation| -> BTreeSet<u64> {
            of.records.iter().map(|record| record.row).collect()
        };
        let both = rows(self).intersection(&rows(other)).copied().collect();
        Ok(self.texts(&both)?.zip(other.texts(&both)?).is_some_and(|(own, other)| own != other))
    }

    /// Whether measures of the criteria of both compare: they are of the same pool of rows, and of judges with the same
    /// template, whose words do not count.
    pub fn measures_as(&self, other: &Evaluation) -> bool {
        let pool = |of: &Evaluation| {
            let run = of.run.as_ref()?;
            let (data, rows) = (run.get("data")?.as_str()?, run.get("rows")?.as_u64()?);
            let limit = run.get("limit").and_then(Value::as_u64).filter(|limit| *limit < rows);
            let seed = limit.map(|_| &run["seed"]);
            Some(json!([data, rows, limit, seed, run["template"]]))
        };
        pool(self).is_some_and(|own| Some(own) == pool(other))
    }

    /// The texts of these pairs by row: from the table that holds the judgements, or from the results.csv that was written
    /// with them. `None` if there is none, or if it is of other judgements.
    pub fn texts(
        &self,
        rows: &BTreeSet<u64>,
    ) -> Result<Option<BTreeMap<u64, PairText>>, RescoreError> {
        let is_csv = self.path.extension().is_some_and(|extension| extension == "csv");
        let path = if is_csv { self.path.clone() } else { self.path.with_file_name(CSV) };
        if !path.is_file() {
            return Ok(None);
        }
        let file =
            File::open(&path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        let mut texts = BTreeMap::new();
        let (mut place, mut same) = (0, true);
        data::csv::visit(&path, file, usize::MAX, |line, names, cells| {
            let cell = |name: &str| {
                let place = names.iter().position(|known| super::column(known) == name);
                let cell = place.and_then(|place| cells.get(place)).unwrap_or_default();
                data::csv::text(&path, line, cell).map(str::to_owned)
            };
            match self.records.get(place) {
                Some(record) if record.text == cell("judgement")? => {
                    if rows.contains(&record.row) && !texts.contains_key(&record.row) {
                        let text = [cell("prompt")?, cell("chosen")?, cell("rejected")?];
                        texts.insert(record.row, text);
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
                let path = path.to_owned();
                return Err(DataError::TooLong { path, line, limit: MAX_LINE }.into());
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
