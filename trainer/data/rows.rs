//! From the values of a row to its conversation and replies, the same for every format and every command.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde_json::{Map, Value};

use super::conversation::{Turn, Turns, human_assistant, is_list_of_texts, kind, turns};
use super::layout::{Field, Layout};
use super::reason::{DropReason, Refusal};
use super::{Candidates, Message, Pair, Replies};

/// The place of a row in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Line(u64),
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// A row: what was asked, and replies to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// The conversation up to the turn that the replies answer.
    pub(crate) prompt: Vec<Message>,
    /// The preferred replies: one, but for benchmarks that have several. Of unlabeled rows, the first reply.
    pub(crate) chosen: Vec<String>,
    /// The other replies.
    pub(crate) rejected: Vec<String>,
    pub(crate) id: Option<String>,
    pub(crate) subset: Option<String>,
    pub(crate) source: Option<String>,
}

impl Row {
    /// The one reply of each kind; an error if there are more.
    pub(crate) fn only_replies(&self) -> Result<[&str; 2], Refusal> {
        match (self.chosen.as_slice(), self.rejected.as_slice()) {
            ([chosen], [rejected]) => Ok([chosen, rejected]),
            (chosen, rejected) => Err(malformed(format!(
                "{} chosen and {} rejected replies, which only j1 eval compares",
                chosen.len(),
                rejected.len()
            ))),
        }
    }
}

impl Row {
    /// How much text its pairs hold, in bytes.
    pub(crate) fn bytes_of_pairs(&self) -> u64 {
        let sum = |texts: &[String]| texts.iter().map(|text| text.len() as u64).sum::<u64>();
        let prompt: u64 = self.prompt.iter().map(|message| message.content.len() as u64 + 64).sum();
        let (chosen, rejected) = (self.chosen.len() as u64, self.rejected.len() as u64);
        let replies = sum(&self.chosen)
            .saturating_mul(rejected)
            .saturating_add(sum(&self.rejected).saturating_mul(chosen));
        prompt.saturating_mul(chosen).saturating_mul(rejected).saturating_add(replies)
    }
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(DropReason::Malformed, detail)
}

/// The values of a row by their columns.
struct Cells<'a> {
    layout: &'a Layout,
    values: Map<String, Value>,
}

impl Cells<'_> {
    fn take(&mut self, field: Field) -> Option<Value> {
        let column = self.layout.column(field)?;
        self.values.remove(column).filter(|value| !value.is_null())
    }

    /// The name of a column, as the file has it.
    fn name(&self, field: Field) -> String {
        self.layout.column(field).unwrap_or(field.name()).to_owned()
    }

    /// Whether the row has the column at all.
    fn has(&self, field: Field) -> bool {
        self.layout.column(field).is_some_and(|column| self.values.contains_key(column))
    }

    fn turns(&mut self, field: Field) -> Result<Option<Turns>, Refusal> {
        let name = self.name(field);
        let value = self.take(field).map(turns).transpose();
        value.map_err(|what| malformed(format!("{name} {what}")))
    }

    /// Both replies. A list of texts that is kept as text is an answer in JSON where the other reply is none.
    fn replies(&mut self, fields: [Field; 2]) -> Result<[Turns; 2], Refusal> {
        let list = |cells: &Self, field: Field| {
            let value = cells.layout.column(field).and_then(|column| cells.values.get(column));
            value.and_then(Value::as_str).is_some_and(is_list_of_texts)
        };
        let [first, second] = fields.map(|field| list(self, field));
        let mut reply = |field: Field| {
            if !self.has(field) {
                return Err(Refusal::missing(field.name()));
            }
            let name = self.name(field);
            if first != second
                && list(self, field)
                && let Some(Value::String(text)) = self.take(field)
            {
                return Ok(Turns::Text(text));
            }
            let turns = self.turns(field)?;
            turns.ok_or_else(|| malformed(format!("{name} has no value")))
        };
        Ok([reply(fields[0])?, reply(fields[1])?])
    }
}

/// Takes a row apart.
pub(crate) fn row(
    layout: &Layout,
    values: Map<String, Value>,
    replies: Replies,
) -> Result<Row, Refusal> {
    let mut cells = Cells { layout, values };
    let labeled = cells.has(Field::Chosen) || cells.has(Field::Rejected);
    let unlabeled = !labeled && (cells.has(Field::A) || cells.has(Field::B));
    let fields = match unlabeled && (replies == Replies::Any || cells.has(Field::Label)) {
        true => [Field::A, Field::B],
        false => [Field::Chosen, Field::Rejected],
    };
    let names = fields.map(|field| cells.name(field));
    let mut both = cells.replies(fields)?;
    let has_prompt = cells.has(Field::Prompt);
    let prompt = cells.turns(Field::Prompt)?;
    if let [Turns::Text(first), Turns::Text(second)] = &both
        && let (Some(first), Some(second)) = (human_assistant(first), human_assistant(second))
        && go_on_from(prompt.as_ref(), &first, &second)
    {
        both = [Turns::List(first), Turns::List(second)];
    }
    let (shared, mut chosen, mut rejected) = match both {
        [Turns::List(first), Turns::List(second)] => {
            let (shared, first, second) = split(&names, first, second)?;
            (shared, vec![first], vec![second])
        }
        [first, second] => match (texts(first), texts(second)) {
            (Some(first), Some(second)) => (Vec::new(), first, second),
            _ => {
                let [first, second] = names;
                return Err(malformed(format!(
                    "{first} and {second} must both be text or both lists"
                )));
            }
        },
    };
    if fields[0] == Field::A && replies != Replies::Any {
        let label = cells.take(Field::Label);
        if !first_is_better(label.as_ref(), &names).map_err(|(reason, detail)| {
            Refusal::new(reason, format!("{} {detail}", cells.name(Field::Label)))
        })? {
            std::mem::swap(&mut chosen, &mut rejected);
        }
    }
    let name = cells.name(Field::Prompt);
    let prompt = match prompt {
        None if !shared.is_empty() => shared,
        None if has_prompt => return Err(malformed(format!("{name} has no value"))),
        None => return Err(Refusal::missing("prompt")),
        Some(prompt) => joined(&name, prompt, shared)?,
    };
    let prompt = with_system(&mut cells, messages(prompt))?;
    let lenient = replies == Replies::Prepared;
    Ok(Row {
        prompt,
        chosen,
        rejected,
        id: id(&mut cells).or_else(|refusal| if lenient { Ok(None) } else { Err(refusal) })?,
        subset: text(&mut cells, Field::Subset, lenient)?,
        source: text(&mut cells, Field::Source, true)?,
    })
}

/// The prompt of a row, whatever else the row has.
pub(crate) fn prompt(layout: &Layout, values: Map<String, Value>) -> Result<Vec<Message>, Refusal> {
    if let Ok(row) = row(layout, values.clone(), Replies::Any) {
        return Ok(row.prompt);
    }
    let mut cells = Cells { layout, values };
    if !cells.has(Field::Prompt) {
        return Err(Refusal::missing("prompt"));
    }
    let name = cells.name(Field::Prompt);
    match cells.turns(Field::Prompt)? {
        Some(prompt) => Ok(messages(joined(&name, prompt, Vec::new())?)),
        None => Err(malformed(format!("{name} has no value"))),
    }
}

/// Whether replies that read as conversations are conversations: a prompt of its own kind, without a word of theirs, may have
/// asked for such texts.
fn go_on_from(prompt: Option<&Turns>, first: &[Turn], second: &[Turn]) -> bool {
    let Some(Turns::Text(text)) = prompt else { return true };
    let is_said = |(a, b): (&Turn, &Turn)| {
        a == b && a.content.as_deref().is_some_and(|said| said.trim() == text.trim())
    };
    human_assistant(text).is_some() || first.iter().zip(second).any(is_said)
}

fn texts(turns: Turns) -> Option<Vec<String>> {
    match turns {
        Turns::Text(text) => Some(vec![text]),
        Turns::Texts(texts) => Some(texts),
        Turns::List(_) => None,
    }
}

fn messages(turns: Vec<Turn>) -> Vec<Message> {
    let message =
        |turn: Turn| Message { role: turn.role, content: turn.content.unwrap_or_default() };
    turns.into_iter().map(message).collect()
}

/// The turns that both conversations share, and the one reply that each adds.
fn split(
    names: &[String; 2],
    mut first: Vec<Turn>,
    mut second: Vec<Turn>,
) -> Result<(Vec<Turn>, String, String), Refusal> {
    let lengths = [first.len(), second.len()];
    let shared = first.iter().zip(&second).take_while(|(a, b)| a == b).count();
    let reply = |name: &String, turns: &mut Vec<Turn>| match turns.pop() {
        Some(last) if last.role != "assistant" => Err(Refusal::new(
            DropReason::NoReply,
            format!(
                "the last turn of {name} is of {:?}, not the assistant's reply",
                short(&last.role)
            ),
        )),
        Some(Turn { content: Some(content), .. }) => Ok(content),
        _ => Err(Refusal::new(
            DropReason::EmptyReply,
            format!("the last turn of {name} has no text (does it only call a tool?)"),
        )),
    };
    let replies = (reply(&names[0], &mut first)?, reply(&names[1], &mut second)?);
    if first != second {
        let [a, b] = names;
        return Err(Refusal::new(
            DropReason::PromptsDiffer,
            format!(
                "{a} ({} turns) and {b} ({} turns) must differ in their last turn only; they share {shared}",
                lengths[0], lengths[1]
            ),
        ));
    }
    Ok((first, replies.0, replies.1))
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The conversation that `prompt` and the turns before the replies make together: nothing of either is left out.
fn joined(name: &str, prompt: Turns, shared: Vec<Turn>) -> Result<Vec<Turn>, Refusal> {
    let differ = |what: &str| {
        Err(Refusal::new(
            DropReason::PromptsDiffer,
            format!(
                "{name} {what} the turns that both replies begin with; give one of them, or \
                 leave {name} unread"
            ),
        ))
    };
    let prompt = match prompt {
        Turns::Text(text) => match human_assistant(&text) {
            // `Human: ...\n\nAssistant:`, which the replies go on from.
            Some(mut turns) if turns.last().is_some_and(|turn| turn.content.is_none()) => {
                turns.pop();
                turns
            }
            _ if shared.is_empty() => {
                vec![Turn { role: "user".to_owned(), content: Some(text) }]
            }
            _ => {
                let said = |turn: &Turn| {
                    turn.content.as_deref().is_some_and(|content| content.trim() == text.trim())
                };
                return match shared.iter().any(said) {
                    true => Ok(shared),
                    false => differ("is none of"),
                };
            }
        },
        Turns::Texts(texts) => {
            return Err(malformed(format!(
                "{name} is a list of {} texts, not text or a list of messages",
                texts.len()
            )));
        }
        Turns::List(turns) => turns,
    };
    if shared.is_empty() || prompt.windows(shared.len()).next_back() == Some(shared.as_slice()) {
        return Ok(prompt);
    }
    if shared.windows(prompt.len()).any(|window| window == prompt) {
        return Ok(shared);
    }
    // What one ends with, the other begins with.
    let most = prompt.len().min(shared.len());
    let common = (1..=most).rev().find(|&n| prompt[prompt.len() - n..] == shared[..n]);
    let follows = || {
        let only_system = prompt.iter().all(|turn| turn.role == "system");
        let begins_a_system = shared.first().is_some_and(|turn| turn.role == "system");
        let answered = prompt.last().is_some_and(|turn| turn.role == "assistant")
            && shared.first().is_some_and(|turn| turn.role == "user");
        let repeats = shared.first().is_some_and(|first| prompt.contains(first));
        !begins_a_system && !repeats && (only_system || answered)
    };
    match common {
        None if !follows() => differ("does not fit"),
        common => {
            let mut all = prompt;
            all.extend(shared.into_iter().skip(common.unwrap_or(0)));
            Ok(all)
        }
    }
}

/// With the column `system` before it.
fn with_system(cells: &mut Cells<'_>, mut prompt: Vec<Message>) -> Result<Vec<Message>, Refusal> {
    let name = cells.name(Field::System);
    let system = match cells.take(Field::System) {
        None => return Ok(prompt),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(prompt),
        Some(Value::String(text)) => text,
        Some(other) => return Err(malformed(format!("{name} is {}, not text", kind(&other)))),
    };
    match prompt.first() {
        Some(first) if first.role == "system" && first.content.trim() == system.trim() => {}
        Some(first) if first.role == "system" => {
            return Err(Refusal::new(
                DropReason::PromptsDiffer,
                format!("{name} is another text than the conversation's system turn"),
            ));
        }
        _ => prompt.insert(0, Message { role: "system".to_owned(), content: system }),
    }
    Ok(prompt)
}

/// Whether the label calls the first reply the better one.
fn first_is_better(
    label: Option<&Value>,
    names: &[String; 2],
) -> Result<bool, (DropReason, String)> {
    let text = match label {
        Some(Value::String(text)) => text.trim().to_lowercase(),
        Some(Value::Number(number)) => number.to_string(),
        None => return Err((DropReason::NoPreference, "has no value".to_owned())),
        Some(other) => {
            return Err((DropReason::Malformed, format!("is {}, not text or 0 or 1", kind(other))));
        }
    };
    let plain = text.trim_matches(['[', ']']).replace(' ', "");
    let is = |names: &[&str]| names.contains(&plain.as_str());
    let [first, second] = names.each_ref().map(|name| name.to_lowercase());
    if is(&["a", "a>b", "a>>b", "model_a", "0", "0.0", "response_a", &first]) {
        Ok(true)
    } else if is(&["b", "b>a", "b>>a", "a<b", "a<<b", "model_b", "1", "1.0", "response_b", &second])
    {
        Ok(false)
    } else if is(&["a=b", "b=a", "c"]) || text.contains("tie") {
        Err((
            DropReason::NoPreference,
            format!("is {:?}, which prefers neither reply", short(&text)),
        ))
    } else {
        Err((
            DropReason::Malformed,
            format!("is {:?}; it must be A, A>B or 0, or B, B>A or 1", short(&text)),
        ))
    }
}

fn text(cells: &mut Cells<'_>, field: Field, lenient: bool) -> Result<Option<String>, Refusal> {
    let name = cells.name(field);
    match cells.take(field) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() && lenient => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) if lenient => Ok(None),
        Some(other) => Err(malformed(format!("{name} is {}, not text", kind(&other)))),
    }
}

fn id(cells: &mut Cells<'_>) -> Result<Option<String>, Refusal> {
    let name = cells.name(Field::Id);
    match cells.take(Field::Id) {
        None => Ok(None),
        Some(Value::String(id)) => Ok(Some(id)),
        Some(Value::Bool(id)) => Ok(Some(id.to_string())),
        Some(Value::Number(id)) if id.is_u64() || id.is_i64() => Ok(Some(id.to_string())),
        // pandas makes 7.0 of 7 in a column that misses a value somewhere.
        Some(Value::Number(id))
            if id.as_f64().is_some_and(|id| id.fract() == 0.0 && id.abs() < 1e15) =>
        {
            Ok(Some(format!("{:.0}", id.as_f64().unwrap_or_default())))
        }
        Some(other) => {
            Err(malformed(format!("{name} is {}, not text or a whole number", kind(&other))))
        }
    }
}

/// The pairs of all rows, one or several of each.
pub(super) fn pairs(mut rows: Vec<Row>) -> Vec<Pair> {
    for (number, row) in rows.iter_mut().enumerate() {
        row.id.get_or_insert_with(|| number.to_string());
    }
    make_ids_unique(&mut rows);
    let mut pairs = Vec::with_capacity(rows.len());
    for (number, row) in rows.into_iter().enumerate() {
        let several = row.chosen.len() > 1 || row.rejected.len() > 1;
        let id = row.id.unwrap_or_default();
        for (c, chosen) in row.chosen.iter().enumerate() {
            for (r, rejected) in row.rejected.iter().enumerate() {
                let candidates =
                    Candidates { row: number as u64, chosen: c as u32, rejected: r as u32 };
                pairs.push(Pair {
                    id: if several { format!("{id}{}", candidates.suffix()) } else { id.clone() },
                    row: pairs.len() as u64,
                    prompt: row.prompt.clone(),
                    chosen: chosen.clone(),
                    rejected: rejected.clone(),
                    subset: row.subset.clone(),
                    candidates: several.then_some(candidates),
                });
            }
        }
    }
    pairs
}

/// Renames the second and later rows of an id to `id#2`, `id#3`, and so on.
fn make_ids_unique(rows: &mut [Row]) {
    let mut taken: HashSet<String> = HashSet::with_capacity(rows.len());
    // How often an id was seen, so that a thousand equal ids do not take a million look-ups.
    let mut seen: HashMap<String, u64> = HashMap::new();
    for id in rows.iter_mut().filter_map(|row| row.id.as_mut()) {
        if taken.contains(id) {
            let count = seen.entry(id.clone()).or_insert(1);
            loop {
                *count += 1;
                let candidate = format!("{id}#{count}");
                if !taken.contains(&candidate) {
                    *id = candidate;
                    break;
                }
            }
        }
        taken.insert(id.clone());
    }
}
