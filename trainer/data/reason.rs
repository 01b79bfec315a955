//! Why a row is not used.

/// Why a row is not used. Reading refuses some, [`crate::data::prepare`] drops all of them and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A column is missing or holds neither text nor messages.
    Malformed,
    /// A turn is neither system, user, assistant nor tool.
    UnknownRole,
    /// A conversation does not end with the assistant's reply.
    NoReply,
    /// The two conversations do not share the turns before their replies, or the prompt is another.
    PromptsDiffer,
    /// The prompt does not end with a user's turn (or what a tool answered to it), or that turn is empty.
    NoQuestion,
    /// A reply is empty, or nothing but white space.
    EmptyReply,
    /// Both replies are the same text but for white space around it.
    EqualReplies,
    /// The label prefers neither reply.
    NoPreference,
    /// More characters than are allowed.
    TooLong,
    /// The prompt is in an excluded benchmark.
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
            Reason::NoPreference => "no-preference",
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
            Reason::UnknownRole => "a turn is neither system, user, assistant nor tool",
            Reason::NoReply => "a conversation does not end with the assistant's turn",
            Reason::PromptsDiffer => "prompt, chosen and rejected do not share their conversation",
            Reason::NoQuestion => "the prompt does not end with a user's turn, or it is empty",
            Reason::EmptyReply => "a reply is empty",
            Reason::EqualReplies => "both replies are the same",
            Reason::NoPreference => "the label prefers neither reply",
            Reason::TooLong => "more characters than are allowed",
            Reason::Overlap => "the prompt stands in an excluded benchmark",
            Reason::Duplicate => "the same as an earlier row",
            Reason::Contradiction => "another row prefers the other reply",
        }
    }
}

/// The reason why a row was refused, and details where there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// The column that the row would need and does not have.
    pub(crate) missing: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Refusal {
        Refusal { reason, detail: detail.into(), missing: None }
    }

    pub(crate) fn missing(column: &'static str) -> Refusal {
        let detail = format!("there is no {column}");
        Refusal { reason: Reason::Malformed, detail, missing: Some(column) }
    }

    /// The refusal as an error message.
    pub(crate) fn sentence(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.explanation().to_owned(),
            detail => detail.to_owned(),
        }
    }
}
