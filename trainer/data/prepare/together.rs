//! Whether files of a prepared directory belong together.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use super::{HELD_OUT, PrepareError, SETTINGS, TRAIN, UNFINISHED};
use crate::data::fingerprint;
use crate::data::{Message, Pair};

/// The largest `prepare.json`, in bytes.
const MAX_SETTINGS: u64 = 64 << 20;

/// Refuses training and held-out pairs of one directory if the `prepare.json` beside them describes others, or is
/// missing where the pairs show that they were prepared and are not of one split. Says whether it was there.
pub fn check_together(
    [train, held_out]: [&Path; 2],
    train_pairs: &[Pair],
    held_out_pairs: &[Pair],
) -> Result<bool, PrepareError> {
    let of_one_directory = match (train.canonicalize(), held_out.canonicalize()) {
        (Ok(train), Ok(held_out)) => train.parent() == held_out.parent(),
        _ => false,
    };
    if !of_one_directory {
        return Ok(false);
    }
    let path = train.with_file_name(SETTINGS);
    let refuse = |problem: String| Err(PrepareError::NotTogether { path: path.clone(), problem });
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_SETTINGS).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let prepared = |pair: &Pair| {
                pair.id.len() == 32 && pair.id.bytes().all(|byte| byte.is_ascii_hexdigit())
            };
            let all = train_pairs.iter().chain(held_out_pairs).all(prepared);
            let shared = shared_prompts(train_pairs, held_out_pairs);
            return match all && shared > 0 {
                true => refuse(format!(
                    "it is missing, and {shared} of {} held-out pairs have a prompt of the training data",
                    held_out_pairs.len()
                )),
                false => Ok(false),
            };
        }
        Err(source) => return Err(PrepareError::io("read", &path, source)),
    }
    let Ok(settings) = serde_json::from_slice::<Value>(&text) else {
        return refuse("it is damaged".to_owned());
    };
    if settings.get(UNFINISHED).is_some() {
        return refuse("the run that wrote these files was killed, or is still at work".to_owned());
    }
    for (file, part, name) in [(train, "train", TRAIN), (held_out, "held_out", HELD_OUT)] {
        // A file of another name is the user's.
        if file.file_name().is_none_or(|found| found != name) {
            continue;
        }
        let print = fingerprint::of_file(file);
        let print = print.map_err(|source| PrepareError::io("read", file, source))?;
        if settings[part]["fingerprint"] != print.as_str() {
            return refuse(format!("it describes another {name} than the one beside it"));
        }
    }
    Ok(true)
}

/// The number of held-out pairs whose prompt is in the training data.
pub fn shared_prompts(train: &[Pair], held_out: &[Pair]) -> usize {
    let prompts: HashSet<&[Message]> = train.iter().map(|pair| pair.prompt.as_slice()).collect();
    held_out.iter().filter(|pair| prompts.contains(pair.prompt.as_slice())).count()
}
