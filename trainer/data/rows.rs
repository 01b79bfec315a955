//! From a row's values to a [`Pair`], the same for every format.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::{DataError, Message, Pair, Replies};

/// Where a row stands in its file, for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Line(u64),
    Row(u64),
}

impl Place {
    pub(super) fn problem(self, path: &Path, problem: String) -> DataError {
        DataError::Row { path: path.to_owned(), place: self.to_string(), problem }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// Makes a pair of a row. `columns` are the names to list when one is missing.
pub(super) fn pair(
    path: &Path,
    place: Place,
    row: u64,
    mut values: Map<String, Value>,
    replies: Replies,
) -> Result<Pair, DataError> {
    let problem = |problem: String| place.problem(path, problem);
    let found: Vec<String> = values.keys().cloned().collect();
    let missing = |missing| DataError::MissingColumn {
        path: path.to_owned(),
        place: if row > 0 { format!(", {place}") } else { String::new() },
        missing,
        found: if found.is_empty() { "none".to_owned() } else { found.join(", ") },
    };
    let mut reply = |column: &'static str| match values.remove(column) {
        None => Err(missing(column)),
        Some(value) => turns(value).map_err(|what| problem(format!("{column} {what}"))),
    };
    let unlabeled = |name: &String| name == "a" || name == "b";
    let labeled = |name: &String| name == "chosen" || name == "rejected";
    let (first, second) = match replies {
        Replies::Any if found.iter().any(unlabeled) && !found.iter().any(labeled) => ("a", "b"),
        _ => ("chosen", "rejected"),
    };
    let (chosen, rejected) = (reply(first)?, reply(second)?);
    let prompt = match values.remove("prompt") {
        None | Some(Value::Null) => None,
        Some(value) => Some(turns(value).map_err(|what| problem(format!("prompt {what}")))?),
    };
    let (shared, chosen, rejected) = match (chosen, rejected) {
        (Turns::Text(chosen), Turns::Text(rejected)) => (Vec::new(), chosen, rejected),
        (Turns::List(chosen), Turns::List(rejected)) => split(chosen, rejected).map_err(problem)?,
        _ => return Err(problem(format!("{first} and {second} must both be text or both lists"))),
    };
    let prompt = match prompt {
        _ if !shared.is_empty() => shared,
        Some(Turns::Text(text)) => vec![Message { role: "user".to_owned(), content: text }],
        Some(Turns::List(messages)) => messages,
        None if found.iter().any(|name| name == "prompt") => {
            return Err(problem("prompt has no value".to_owned()));
        }
        None => return Err(missing("prompt")),
    };
    let subset = match values.remove("subset") {
        None | Some(Value::Null) => None,
        Some(Value::String(subset)) => Some(subset),
        Some(other) => return Err(problem(format!("subset is {}, not text", kind(&other)))),
    };
    let id = match values.remove("id") {
        None | Some(Value::Null) => row.to_string(),
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) if id.is_u64() || id.is_i64() => id.to_string(),
        // pandas makes 7.0 of 7 in a column that misses a value somewhere.
        Some(Value::Number(id))
            if id.as_f64().is_some_and(|id| id.fract() == 0.0 && id.abs() < 1e15) =>
        {
            format!("{:.0}", id.as_f64().unwrap_or_default())
        }
        Some(other) => {
            return Err(problem(format!("id is {}, not text or a whole number", kind(&other))));
        }
    };
    Ok(Pair { id, row, prompt, chosen, rejected, subset })
}

/// Renames the second and later rows of an id to `id#2`, `id#3`, and so on.
pub(super) fn with_unique_ids(mut pairs: Vec<Pair>) -> Vec<Pair> {
    let mut taken: HashSet<String> = HashSet::with_capacity(pairs.len());
    // How often an id was seen, so that a thousand equal ids do not take a million look-ups.
    let mut seen: HashMap<String, u64> = HashMap::new();
    for pair in &mut pairs {
        if taken.contains(&pair.id) {
            let count = seen.entry(pair.id.clone()).or_insert(1);
            loop {
                *count += 1;
                let candidate = format!("{}#{count}", pair.id);
                if !taken.contains(&candidate) {
                    pair.id = candidate;
                    break;
                }
            }
        }
        taken.insert(pair.id.clone());
    }
    pairs
}

pub(crate) enum Turns {
    Text(String),
    List(Vec<Message>),
}

/// Text or a list of messages; the error says what else it is.
pub(crate) fn turns(value: Value) -> Result<Turns, String> {
    match value {
        Value::String(text) => Ok(Turns::Text(text)),
        Value::Array(items) if items.is_empty() => Err("is an empty list".to_owned()),
        Value::Array(items) => {
            items.into_iter().enumerate().map(message).collect::<Result<_, _>>().map(Turns::List)
        }
        Value::Null => Err("has no value".to_owned()),
        other => Err(format!("is {}, not text or a list of messages", kind(&other))),
    }
}

fn message((turn, value): (usize, Value)) -> Result<Message, String> {
    let Value::Object(mut fields) = value else {
        return Err(format!(
            "turn {turn} is {}, not a message with role and content",
            kind(&value)
        ));
    };
    let mut text = |field: &str| match fields.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("turn {turn}: {field} is {}, not text", kind(&other))),
        None => Err(format!("turn {turn} has no {field}")),
    };
    Ok(Message { role: text("role")?, content: text("content")? })
}

/// The turns that both conversations share, and the one reply that each adds.
fn split(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
) -> Result<(Vec<Message>, String, String), String> {
    let shared = (chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count())
        .min(chosen.len() - 1)
        .min(rejected.len() - 1);
    if chosen.len() != shared + 1 || rejected.len() != shared + 1 {
        return Err(format!(
            "chosen ({} turns) and rejected ({} turns) must differ in their last turn only; they share {shared}",
            chosen.len(),
            rejected.len()
        ));
    }
    let reply = |messages: &mut Vec<Message>| messages.pop().map(|m| m.content).unwrap_or_default();
    let (chosen_reply, rejected_reply) = (reply(&mut chosen), reply(&mut rejected));
    Ok((chosen, chosen_reply, rejected_reply))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
