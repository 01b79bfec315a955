//! From the text of a judgement to a verdict: pure functions over `&str`.
//!
//! A judgement ends, when it is well formed, with
//!
//! ```text
//! <scores>
//! \boxed{x, y}
//! </scores>
//! ```
//!
//! where `x` is the score of the reply in slot A and `y` of the one in slot B. [`read`] reads it by two rules:
//!
//! * **strict**: the rule of the published j1 results (haizelabs/j1-micro, `rewards.py`), the default everywhere: the
//!   first `<scores>(.*?)</scores>` of the whole completion, thinking included, and in it the first
//!   `\boxed{x, y}` of digits and dots with a comma between. In two things it is stricter: a score must be on
//!   the template's scale, and a judgement that the token limit cut off counts only if its own scores section had
//!   closed, one that begins a line outside of thinking.
//! * **soft**: where strict reads a verdict, the same one; else what a judge meant when it did not keep to
//!   the form. The rules are at the top of `verdict/soft.rs`.
//!
//! A template may ask for another form or scale ([`VerdictForm`]). A judgement without a verdict is a value,
//! [`Verdict::Unparsed`] with its [`UnparsedReason`], which is counted and reported. All takes time linear in the length
//! of the text.

mod digits;
mod form;
mod marker;
mod parts;
mod soft;
mod spans;
mod statement;
mod words;

use std::fmt;
use std::str::FromStr;

use digits::is_number;
pub use form::{Scale, VerdictForm};
pub use parts::{Parts, parts};
use serde::{Deserialize, Serialize};

use crate::eval::results::Finish;

/// The six tags that the format asks for, in the order of the sections.
pub const FORMAT_TAGS: [&str; 6] = [
    "<specific_criteria>",
    "</specific_criteria>",
    "<analysis>",
    "</analysis>",
    SCORES_TAGS[0],
    SCORES_TAGS[1],
];

/// What opens and closes the section of scores.
pub const SCORES_TAGS: [&str; 2] = ["<scores>", "</scores>"];

/// The verdict of a judgement on two replies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The scores of the replies in slot A and slot B; both are finite.
    Scores(f64, f64),
    /// No scores could be read.
    Unparsed(UnparsedReason),
}

/// Why a judgement has no verdict. The names are used in reports and in outputs.jsonl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnparsedReason {
    /// The judgement is empty or white space.
    Empty,
    /// There is no `<scores>` section (soft: and no box either).
    NoScoresTag,
    /// `<scores>` is opened and never closed.
    UnclosedScoresTag,
    /// The section holds no `\boxed{x, y}`.
    NoBox,
    /// There is a box, but what it holds are not two numbers.
    BadNumber,
    /// A score is not on the template's scale.
    OutOfScale,
    /// There are two scores, but not which is whose.
    Ambiguous,
    /// The last box is inside other text, as a quoted answer is.
    Quoted,
    /// There is no `[[A]]`, `[[B]]` or `[[C]]`.
    NoMarker,
    /// The last `[[...]]` is none of the three.
    BadMarker,
    /// Everything after `<think>` is thinking: the answer was never begun.
    OnlyThinking,
    /// The token limit ended the judgement before its verdict.
    Truncated,
    /// The prompt did not fit, so nothing was generated.
    PromptTooLong,
}

impl UnparsedReason {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            UnparsedReason::Empty => "empty",
            UnparsedReason::NoScoresTag => "no_scores_tag",
            UnparsedReason::UnclosedScoresTag => "unclosed_scores_tag",
            UnparsedReason::NoBox => "no_box",
            UnparsedReason::BadNumber => "bad_number",
            UnparsedReason::OutOfScale => "out_of_scale",
            UnparsedReason::Ambiguous => "ambiguous",
            UnparsedReason::Quoted => "quoted",
            UnparsedReason::NoMarker => "no_marker",
            UnparsedReason::BadMarker => "bad_marker",
            UnparsedReason::OnlyThinking => "only_thinking",
            UnparsedReason::Truncated => "truncated",
            UnparsedReason::PromptTooLong => "prompt_too_long",
        }
    }

    /// The reason in words, to follow "no verdict:" or a count.
    pub fn sentence(self) -> &'static str {
        match self {
            UnparsedReason::Empty => "the judgement is empty",
            UnparsedReason::NoScoresTag => "there is no <scores> section",
            UnparsedReason::UnclosedScoresTag => "the <scores> section is not closed",
            UnparsedReason::NoBox => "the <scores> section holds no \\boxed{a, b}",
            UnparsedReason::BadNumber => "the last box does not hold two scores",
            UnparsedReason::OutOfScale => "a score is not on the scale",
            UnparsedReason::Ambiguous => "it is not clear which score is whose",
            UnparsedReason::Quoted => "the last box is part of other text",
            UnparsedReason::NoMarker => "there is no [[A]], [[B]] or [[C]]",
            UnparsedReason::BadMarker => "the last [[...]] is not A, B or C",
            UnparsedReason::OnlyThinking => "the thinking never ended",
            UnparsedReason::Truncated => "cut off at the token limit",
            UnparsedReason::PromptTooLong => "the prompt was too long",
        }
    }
}

impl fmt::Display for UnparsedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which reply a verdict prefers, by slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    /// The reply in slot A has the higher score.
    A,
    /// The reply in slot B has the higher score.
    B,
    /// The scores are equal.
    Tie,
}

impl Verdict {
    /// The scores of slot A and slot B, if there are any.
    pub fn scores(self) -> Option<(f64, f64)> {
        match self {
            Verdict::Scores(a, b) => Some((a, b)),
            Verdict::Unparsed(_) => None,
        }
    }

    /// Why there are no scores; `None` if there are.
    pub fn unparsed(self) -> Option<UnparsedReason> {
        match self {
            Verdict::Scores(..) => None,
            Verdict::Unparsed(reason) => Some(reason),
        }
    }

    /// The slot with the higher score, or `None` if unparsed.
    pub fn winner(self) -> Option<Winner> {
        let (a, b) = self.scores()?;
        Some(match a.partial_cmp(&b) {
            Some(std::cmp::Ordering::Greater) => Winner::A,
            Some(std::cmp::Ordering::Less) => Winner::B,
            _ => Winner::Tie,
        })
    }
}

/// Which rule turns a judgement into a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchRule {
    /// The published rule.
    #[default]
    Strict,
    /// The same with recovery.
    Soft,
}

impl MatchRule {
    /// The rule that is reported beside this one.
    pub fn other(self) -> MatchRule {
        match self {
            MatchRule::Strict => MatchRule::Soft,
            MatchRule::Soft => MatchRule::Strict,
        }
    }

    /// `strict` or `soft`.
    pub fn name(self) -> &'static str {
        match self {
            MatchRule::Strict => "strict",
            MatchRule::Soft => "soft",
        }
    }
}

impl fmt::Display for MatchRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MatchRule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "strict" => Ok(MatchRule::Strict),
            "soft" => Ok(MatchRule::Soft),
            _ => Err(format!("unknown match rule '{name}': it is strict or soft")),
        }
    }
}

/// The verdicts of one judgement by both rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The verdict by the published rule.
    pub strict: Verdict,
    /// With recovery: the same, where strict reads one.
    pub soft: Verdict,
}

/// Reads a judgement. Why it ended is part of what it says: one that was cut off may be about to say something else.
pub fn read(text: &str, finish: Finish, form: VerdictForm) -> Reading {
    let both = |reason| {
        let unparsed = Verdict::Unparsed(reason);
        Reading { strict: unparsed, soft: unparsed }
    };
    let cut = finish == Finish::Length;
    let (visible, open_thinking) = spans::without_thinking(text);
    let answered = !visible.trim().is_empty();
    match form {
        _ if finish == Finish::PromptTooLong => both(UnparsedReason::PromptTooLong),
        VerdictForm::Markers if cut => both(UnparsedReason::Truncated),
        _ if text.trim().is_empty() => {
            both(if cut { UnparsedReason::Truncated } else { UnparsedReason::Empty })
        }
        VerdictForm::Markers if !answered => both(UnparsedReason::OnlyThinking),
        VerdictForm::Markers => {
            Reading { strict: marker::read(&visible, false), soft: marker::read(&visible, true) }
        }
        VerdictForm::Boxed(_)
            if cut && (open_thinking || !spans::own_section_is_closed(&visible)) =>
        {
            both(UnparsedReason::Truncated)
        }
        VerdictForm::Boxed(scale) => {
            let strict = match published(text) {
                Verdict::Scores(a, b) if !scale.contains(a) || !scale.contains(b) => {
                    Verdict::Unparsed(UnparsedReason::OutOfScale)
                }
                verdict => verdict,
            };
            let soft = match strict {
                Verdict::Scores(..) => strict,
                Verdict::Unparsed(_) if !answered => {
                    Verdict::Unparsed(UnparsedReason::OnlyThinking)
                }
                Verdict::Unparsed(_) => soft::recover(&visible, finish == Finish::Stop, cut, scale),
            };
            Reading { strict, soft }
        }
    }
}

/// The published rule, whatever the scale: `<scores>(.*?)</scores>` (the dot matches newlines), then in the captured
/// text `\\boxed{([\d.]+),\s*([\d.]+)}`, then Python's `float` on both captures. The first match of
/// each decides; a box whose numbers do not convert (`1.2.3`) is not skipped for a later one.
///
/// One corner differs from Python: a number too large for an f64 is the largest one, not infinity, so that
/// scores stay finite. It compares as infinity does.
pub(crate) fn published(text: &str) -> Verdict {
    const OPEN: &str = "<scores>";
    if text.trim().is_empty() {
        return Verdict::Unparsed(UnparsedReason::Empty);
    }
    let Some(open) = text.find(OPEN) else {
        return Verdict::Unparsed(UnparsedReason::NoScoresTag);
    };
    let inside = &text[open + OPEN.len()..];
    let Some(close) = inside.find("</scores>") else {
        return Verdict::Unparsed(UnparsedReason::UnclosedScoresTag);
    };
    let Some((a, b)) = strict_box(&inside[..close]) else {
        return Verdict::Unparsed(UnparsedReason::NoBox);
    };
    match (digits::float(a), digits::float(b)) {
        (Some(a), Some(b)) => Verdict::Scores(a, b),
        _ => Verdict::Unparsed(UnparsedReason::BadNumber),
    }
}

/// How many of the six [`FORMAT_TAGS`] occur anywhere in the text: 0 to 6.
pub fn format_tags(text: &str) -> usize {
    FORMAT_TAGS.iter().filter(|tag| text.contains(*tag)).count()
}

/// The captures of the first `\\boxed{([\d.]+),\s*([\d.]+)}`. No part of the pattern can match
/// what the next part needs, so nothing is ever tried twice and the scan is linear.
fn strict_box(text: &str) -> Option<(&str, &str)> {
    const BOXED: &str = "\\boxed{";
    for (start, _) in text.match_indices(BOXED) {
        let rest = &text[start + BOXED.len()..];
        let a = &rest[..rest.find(|c| !is_number(c)).unwrap_or(rest.len())];
        let Some(rest) = rest[a.len()..].strip_prefix(',') else { continue };
        let rest = rest.trim_start_matches(is_python_space);
        let b = &rest[..rest.find(|c| !is_number(c)).unwrap_or(rest.len())];
        if !a.is_empty() && !b.is_empty() && rest[b.len()..].starts_with('}') {
            return Some((a, b));
        }
    }
    None
}

/// Whether Python's `\s` matches the character in a str: Unicode white space and the four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests;
