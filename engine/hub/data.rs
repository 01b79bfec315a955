//! The files of a data set that hold rows: one file, a pattern of shards, or all of a folder if they are one part of it. Local
//! folders have the same rule.

use super::HubError;
use super::reference::{Reference, check_file_name};
use glob::{MatchOptions, Pattern};

/// Endings of files that hold rows; each may have `.gz` after it.
const DATA_ENDINGS: [&str; 7] =
    [".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow", ".feather"];
/// Files beside the shards of a data set that hold no rows.
const NO_ROWS: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "prepare.json"];
/// Parts of a data set that must not be mixed.
const SPLITS: [&str; 9] =
    ["train", "held_out", "heldout", "test", "validation", "valid", "val", "dev", "eval"];
/// The most candidates that a message names.
const CANDIDATES: usize = 12;

/// How `*`, `?` and `[...]` match a path: never a `/`, and no hidden name unless it is spelled out.
pub const PATTERN: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Whether a file of this name holds rows.
pub fn is_data(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let lower = lower.strip_suffix(".gz").unwrap_or(&lower);
    !name.starts_with(['.', '_'])
        && !NO_ROWS.contains(&lower)
        && DATA_ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

/// The part of a data set that a file name says, such as `train` in `train-00000-of-00002.parquet`.
pub fn split(name: &str) -> Option<&'static str> {
    let stem = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    let is = |split: &str| {
        stem.strip_prefix(split)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    SPLITS.into_iter().find(|split| is(split))
}

/// Whether a name is a pattern.
pub fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// The files of a pattern, a folder or an id alone, and the path to open for them in a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The files' paths in the repository, sorted.
    pub(super) files: Vec<String>,
    /// A file, a pattern, or a folder; the repository itself if it is empty.
    pub(super) open: String,
}

/// Chooses among the files of a repository.
pub(super) fn choose(reference: &Reference, mut listing: Vec<String>) -> Result<Chosen, HubError> {
    listing.retain(|file| check_file_name(file).is_ok());
    listing.sort();
    let asked = reference.file.as_deref();
    if let Some(pattern) = asked.filter(|asked| is_pattern(asked)) {
        let parsed = Pattern::new(pattern).map_err(|error| HubError::BadId {
            spec: format!("{}:{pattern}", reference.id),
            reason: error.msg,
        })?;
        let fits = |file: &&String| parsed.matches_with(file, PATTERN);
        let files: Vec<String> = listing.iter().filter(fits).cloned().collect();
        return match files.is_empty() {
            true => Err(ambiguous(reference, "no file has a name of this pattern", &listing)),
            false => Ok(Chosen { files, open: pattern.to_string() }),
        };
    }
    let under = asked.map(|folder| format!("{}/", folder.trim_end_matches('/')));
    if let Some(under) = &under {
        listing.retain(|file| file.starts_with(under));
    }
    let files: Vec<String> = listing.into_iter().filter(|file| is_data(last(file))).collect();
    let Some(first) = files.first() else {
        return Err(ambiguous(reference, "no data file in it", &files));
    };
    if files.len() == 1 {
        return Ok(Chosen { open: first.clone(), files });
    }
    let folder = folder(first).to_string();
    let part =
        |file: &String| (split(last(file)), last(file).rsplit('.').next().map(str::to_owned));
    let is_one = |file: &String| self::folder(file) == folder && part(file) == part(first);
    match files.iter().all(is_one) {
        true => Ok(Chosen { open: folder, files }),
        false => Err(ambiguous(reference, "several data files in it", &files)),
    }
}

/// The first of the shards `NAME-00000-of-00002` and so on that are not among the files.
pub(super) fn missing_shard(files: &[String]) -> Option<String> {
    for file in files {
        let Some((before, rest)) = file.rsplit_once("-of-") else { continue };
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (count, after) = rest.split_at(digits);
        let Some((name, number)) = before.rsplit_once('-') else { continue };
        let Ok(all) = count.parse::<usize>() else { continue };
        let width = number.len();
        if number.parse::<usize>().is_err() || all > 100_000 {
            continue;
        }
        let shard = |i: usize| format!("{name}-{i:0width$}-of-{count}{after}");
        // One check of a set is enough: by its first member.
        if let Some(i) = (0..all).find(|&i| files.binary_search(&shard(i)).is_err()) {
            return Some(shard(i));
        }
    }
    None
}

fn folder(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn last(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn ambiguous(reference: &Reference, problem: &'static str, files: &[String]) -> HubError {
    let data: Vec<&str> =
        files.iter().map(String::as_str).filter(|file| is_data(last(file))).collect();
    let shown = &data[..data.len().min(CANDIDATES)];
    let mut candidates = String::new();
    if !shown.is_empty() {
        candidates = format!(", of {}", shown.join(", "));
    }
    if data.len() > shown.len() {
        candidates.push_str(&format!(" and {} more", data.len() - shown.len()));
    }
    HubError::AmbiguousData { repository: reference.id.clone(), problem, candidates }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_told_from_other_names() {
        assert_eq!(split("train.jsonl"), Some("train"));
        assert_eq!(split("held_out.jsonl"), Some("held_out"));
        assert_eq!(split("test-00000-of-00001.parquet"), Some("test"));
        assert_eq!(split("validation-0.parquet"), Some("validation"));
        for name in ["trainer.jsonl", "data-00000-of-00002.arrow", "part-1.csv", "devices.csv"] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn files_of_rows_are_known_by_their_names() {
        for name in ["a.jsonl", "A.JSON", "x.csv.gz", "train-00000-of-00001.parquet", "d.feather"] {
            assert!(is_data(name), "{name}");
        }
        for name in
            ["README.md", ".hidden.jsonl", "_x.csv", "state.json", "dataset_infos.json", "a.gz"]
        {
            assert!(!is_data(name), "{name}");
        }
    }

    #[test]
    fn a_set_of_shards_says_how_many_it_has() {
        let missing = |files: &[&str]| {
            missing_shard(&files.iter().map(|file| file.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(
            missing(&["d/train-00000-of-00002.parquet", "d/train-00001-of-00002.parquet"]),
            None
        );
        assert_eq!(missing(&["a.jsonl", "best-of-4.jsonl", "x-of-y.csv", "1-of-"]), None);
        let first = missing(&["d/train-00001-of-00002.parquet"]);
        assert_eq!(first.as_deref(), Some("d/train-00000-of-00002.parquet"));
        let other = missing(&["a-0-of-1.csv", "b-0-of-3.jsonl.gz", "b-1-of-3.jsonl.gz"]);
        assert_eq!(other.as_deref(), Some("b-2-of-3.jsonl.gz"));
    }
}
