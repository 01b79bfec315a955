//! One row of preference data: taken apart, checked, named by its content.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::data::{Message, Turns, turns};
use crate::fingerprint::Fingerprint;

/// Why a row is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A column is missing or holds neither text nor messages.
    Malformed,
    /// A turn is neither system, user nor assistant.
    UnknownRole,
    /// A conversation does not end with the assistant's reply.
    NoReply,
    /// The two conversations do not share the turns before their replies.
    PromptsDiffer,
    /// The prompt does not end with a user's turn, or that turn is empty.
    NoQuestion,
    /// A reply is empty, or nothing but white space.
    EmptyReply,
    /// Both replies are the same text but for white space around it.
    EqualReplies,
    /// More characters than `--max-chars`.
    TooLong,
    /// Its prompt stands in an excluded benchmark.
    Overlap,
    /// An earlier row is the same.
    Duplicate,
    /// Another row prefers the other reply.
    Contradiction,
}

impl Reason {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::UnknownRole => "unknown-role",
            Reason::NoReply => "no-assistant-reply",
            Reason::PromptsDiffer => "prompts-differ",
            Reason::NoQuestion => "no-question",
            Reason::EmptyReply => "empty-reply",
            Reason::EqualReplies => "equal-replies",
            Reason::TooLong => "too-long",
            Reason::Overlap => "overlap",
            Reason::Duplicate => "duplicate",
            Reason::Contradiction => "contradiction",
        }
    }

    /// The same in words.
    pub fn explanation(self) -> &'static str {
        match self {
            Reason::Malformed => "a column is missing or holds neither text nor messages",
            Reason::UnknownRole => "a turn is neither system, user nor assistant",
            Reason::NoReply => "a conversation does not end with the assistant's turn",
            Reason::PromptsDiffer => "chosen and rejected do not share their prompt",
            Reason::NoQuestion => "the prompt does not end with a user's turn, or it is empty",
            Reason::EmptyReply => "a reply is empty",
            Reason::EqualReplies => "both replies are the same",
            Reason::TooLong => "longer than --max-chars",
            Reason::Overlap => "the prompt stands in an excluded benchmark",
            Reason::Duplicate => "the same as an earlier row",
            Reason::Contradiction => "another row prefers the other reply",
        }
    }
}

/// What a row was refused for, and more about it where there is more to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

impl Refusal {
    fn new(reason: Reason, detail: impl Into<String>) -> Refusal {
        Refusal { reason, detail: detail.into() }
    }
}

/// A sound row, as it is written.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subset: Option<String>,
    pub(super) prompt: Vec<Message>,
    pub(super) chosen: String,
    pub(super) rejected: String,
}

impl Row {
    /// The hash of the pair.
    pub(super) fn id(&self) -> u128 {
        self.hash(&[&self.chosen, &self.rejected])
    }

    /// The hash of the pair with its labels swapped.
    pub(super) fn swapped_id(&self) -> u128 {
        self.hash(&[&self.rejected, &self.chosen])
    }

    /// The hash of the prompt alone.
    pub(super) fn prompt_id(&self) -> u128 {
        self.hash(&[])
    }

    fn hash(&self, replies: &[&str]) -> u128 {
        let mut hash = Fingerprint::new();
        hash.text(&self.prompt.len().to_string());
        for message in &self.prompt {
            hash.text(&message.role);
            hash.text(&message.content);
        }
        replies.iter().for_each(|reply| hash.text(reply));
        number(hash)
    }

    /// Where it comes from: its source, else its subset.
    pub(super) fn origin(&self) -> &str {
        self.source.as_deref().or(self.subset.as_deref()).unwrap_or("unnamed")
    }

    /// Characters of the prompt's turns, of the chosen and of the rejected reply.
    pub(super) fn chars(&self) -> [usize; 3] {
        let prompt = self.prompt.iter().map(|message| message.content.chars().count()).sum();
        [prompt, self.chosen.chars().count(), self.rejected.chars().count()]
    }

    /// Its line, with the line feed.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a row is JSON");
        line.push(b'\n');
        line
    }
}

/// The fingerprint as a number.
pub(super) fn number(fingerprint: Fingerprint) -> u128 {
    u128::from_str_radix(&fingerprint.finish(), 16).expect("a fingerprint is 32 hexadecimal digits")
}

/// Takes a row apart and checks what can be checked about it alone.
pub(super) fn check(mut values: Map<String, Value>) -> Result<Row, Refusal> {
    let mut column = |name: &str| {
        let value = values.remove(name).filter(|value| !value.is_null());
        let malformed = |what: String| Refusal::new(Reason::Malformed, format!("{name} {what}"));
        value.map(turns).transpose().map_err(malformed)
    };
    let needed = |name: &str, value: Option<Turns>| {
        value.ok_or_else(|| Refusal::new(Reason::Malformed, format!("{name} has no value")))
    };
    let chosen = needed("chosen", column("chosen")?)?;
    let rejected = needed("rejected", column("rejected")?)?;
    let prompt = column("prompt")?;
    let (shared, chosen, rejected) = match (chosen, rejected) {
        (Turns::Text(chosen), Turns::Text(rejected)) => (Vec::new(), chosen, rejected),
        (Turns::List(chosen), Turns::List(rejected)) => split(chosen, rejected)?,
        _ => {
            let what = "chosen and rejected must both be text or both lists";
            return Err(Refusal::new(Reason::Malformed, what));
        }
    };
    let prompt = match prompt {
        _ if !shared.is_empty() => shared,
        Some(Turns::Text(text)) => vec![Message::new("user", &text)],
        Some(Turns::List(messages)) => messages,
        None => return Err(Refusal::new(Reason::Malformed, "there is no prompt")),
    };
    check_roles(&prompt)?;
    match prompt.last() {
        Some(last) if last.role == "user" && !last.content.trim().is_empty() => {}
        _ => return Err(Refusal::new(Reason::NoQuestion, "")),
    }
    if chosen.trim().is_empty() || rejected.trim().is_empty() {
        return Err(Refusal::new(Reason::EmptyReply, ""));
    }
    if chosen.trim() == rejected.trim() {
        return Err(Refusal::new(Reason::EqualReplies, ""));
    }
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let (source, subset) = (text(values.remove("source")), text(values.remove("subset")));
    let mut row = Row { id: String::new(), source, subset, prompt, chosen, rejected };
    row.id = format!("{:032x}", row.id());
    Ok(row)
}

/// The turns before the replies, and the replies of the two conversations.
fn split(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
) -> Result<(Vec<Message>, String, String), Refusal> {
    check_roles(&chosen)?;
    check_roles(&rejected)?;
    let reply = |messages: &mut Vec<Message>| match messages.pop() {
        Some(last) if last.role == "assistant" => Ok(last.content),
        _ => Err(Refusal::new(Reason::NoReply, "")),
    };
    let replies = (reply(&mut chosen)?, reply(&mut rejected)?);
    if chosen != rejected {
        return Err(Refusal::new(Reason::PromptsDiffer, ""));
    }
    Ok((chosen, replies.0, replies.1))
}

fn check_roles(messages: &[Message]) -> Result<(), Refusal> {
    let known = |role: &str| matches!(role, "system" | "user" | "assistant");
    match messages.iter().find(|message| !known(&message.role)) {
        Some(message) => {
            let role: String = message.role.chars().take(40).collect();
            Err(Refusal::new(Reason::UnknownRole, format!("{role:?}")))
        }
        None => Ok(()),
    }
}
