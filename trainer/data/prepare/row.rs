//! One row of preference data: checked, and named by its content.

use serde::Serialize;

use crate::data::fingerprint::Fingerprint;
use crate::data::{self, DropReason, Message, Refusal};

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

/// Checks what can be checked about a row alone.
pub(super) fn check(row: data::Row) -> Result<Row, Refusal> {
    let [chosen, rejected] = row.only_replies()?.map(str::to_owned);
    let data::Row { prompt, source, subset, .. } = row;
    check_roles(&prompt)?;
    // What a tool found is answered as a question is, if there was one.
    let asked = |message: &&Message| message.role == "user" && !message.content.trim().is_empty();
    let is_asked = match prompt.last() {
        Some(last) if last.role == "tool" => prompt.iter().any(|message| asked(&message)),
        Some(last) => asked(&last),
        None => false,
    };
    if !is_asked {
        return Err(Refusal::new(DropReason::NoQuestion, ""));
    }
    if chosen.trim().is_empty() || rejected.trim().is_empty() {
        return Err(Refusal::new(DropReason::EmptyReply, ""));
    }
    if chosen.trim() == rejected.trim() {
        return Err(Refusal::new(DropReason::EqualReplies, ""));
    }
    let mut row = Row { id: String::new(), source, subset, prompt, chosen, rejected };
    row.id = format!("{:032x}", row.id());
    Ok(row)
}

fn check_roles(messages: &[Message]) -> Result<(), Refusal> {
    let known = |role: &str| matches!(role, "system" | "user" | "assistant" | "tool");
    match messages.iter().find(|message| !known(&message.role)) {
        Some(message) => {
            let role: String = message.role.chars().take(40).collect();
            Err(Refusal::new(DropReason::UnknownRole, format!("{role:?}")))
        }
        None => Ok(()),
    }
}
