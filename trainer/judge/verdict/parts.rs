//! The sections of a judgement, for showing it. Tolerant: a section may miss its closing tag, and
//! any of them may be absent.

/// The sections of one judgement, trimmed. What was not found is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The text inside `<think>`, to the end of the text if it is never closed.
    pub thinking: Option<&'a str>,
    /// The criteria the judge made for this query.
    pub criteria: Option<&'a str>,
    /// The critique of both replies.
    pub analysis: Option<&'a str>,
    /// The scores section, with its box.
    pub scores: Option<&'a str>,
    /// The whole answer: all that is not thinking.
    pub answer: &'a str,
}

/// Splits a judgement into its sections. Sections are looked for in the answer (after `</think>`);
/// one that is not closed ends where the next section begins, or at the end.
pub fn parts(text: &str) -> Parts<'_> {
    let (thinking, answer) = split_thinking(text);
    Parts {
        thinking: thinking.map(str::trim).filter(|part| !part.is_empty()),
        criteria: section(answer, "<specific_criteria>", "</specific_criteria>"),
        analysis: section(answer, "<analysis>", "</analysis>"),
        scores: section(answer, "<scores>", "</scores>"),
        answer: answer.trim(),
    }
}

/// The thinking and the rest. A `</think>` without its `<think>` closes thinking that the prompt
/// opened; a `<think>` without its `</think>` hides all that follows.
fn split_thinking(text: &str) -> (Option<&str>, &str) {
    const OPEN: &str = "<think>";
    const CLOSE: &str = "</think>";
    let start = text.find(OPEN);
    match text.rfind(CLOSE) {
        Some(close) => {
            let start = start.filter(|&start| start < close).map_or(0, |start| start + OPEN.len());
            (Some(&text[start..close]), &text[close + CLOSE.len()..])
        }
        None => match start {
            Some(start) => (Some(&text[start + OPEN.len()..]), &text[..start]),
            None => (None, text),
        },
    }
}

fn section<'a>(answer: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let inside = &answer[answer.find(open)? + open.len()..];
    let end = super::FORMAT_TAGS
        .iter()
        .filter(|&&tag| tag == close || (tag != open && !tag.starts_with("</")))
        .filter_map(|tag| inside.find(tag))
        .min()
        .unwrap_or(inside.len());
    Some(inside[..end].trim())
}
