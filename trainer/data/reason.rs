//! Why a row is not used.

/// Why a row is not used. Reading refuses some, [`crate::data::prepare`] drops all of them and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
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

impl DropReason {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::UnknownRole => "unknown-role",
            DropReason::NoReply => "no-assistant-reply",
            DropReason::PromptsDiffer => "prompts-differ",
            DropReason::NoQuestion => "no-question",
            DropReason::EmptyReply => "empty-reply",
            DropReason::EqualReplies => "equal-replies",
            DropReason::NoPreference => "no-preference",
            DropReason::TooLong => "too-long",
            DropReason::Overlap => "overlap",
            DropReason::Duplicate => "duplicate",
            DropReason::Contradiction => "contradiction",
        }
    }

    /// The same in words.
    pub fn explanation(self) -> &'static str {
        match self {
            DropReason::Malformed => "a column is missing or holds neither text nor messages",
            DropReason::UnknownRole => "a turn is neither system, user, assistant nor tool",
            DropReason::NoReply => "a conversation does not end with the assistant's turn",
            DropReason::PromptsDiffer => {
                "prompt, chosen and rejected do not share their conversation"
            }
            DropReason::NoQuestion => "the prompt does not end with a user's turn, or it is empty",
            DropReason::EmptyReply => "a reply is empty",
            DropReason::EqualReplies => "both replies are the same",
            DropReason::NoPreference => "the label prefers neither reply",
            DropReason::TooLong => "more characters than are allowed",
            DropReason::Overlap => "the prompt stands in an excluded benchmark",
            DropReason::Duplicate => "the same as an earlier row",
            DropReason::Contradiction => "another row prefers the other reply",
        }
    }
}

/// The reason why a row was refused, and details where there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: DropReason,
    pub(crate) detail: String,
    /// The column that the row would need and does not have.
    pub(crate) missing: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(reason: DropReason, detail: impl Into<String>) -> Refusal {
        Refusal { reason, detail: detail.into(), missing: None }
    }

    pub(crate) fn missing(column: &'static str) -> Refusal {
        let detail = format!("there is no {column}");
        Refusal { reason: DropReason::Malformed, detail, missing: Some(column) }
    }

    /// The refusal as an error message.
    pub(crate) fn sentence(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.explanation().to_owned(),
            detail => detail.to_owned(),
        }
    }
}
