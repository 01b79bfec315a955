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
//! where `x` is the score of the reply in slot A and `y` of the one in slot B. Two rules read it:
//!
//! * [`parse_strict`] is the rule of the published j1 results (haizelabs/j1-micro, `rewards.py`): the
//!   first `<scores>(.*?)</scores>` of the whole completion, thinking included, and in it the first
//!   `\boxed{x, y}` of digits and dots with a comma between.
//! * [`parse_soft`] recovers what a judge meant when it did not keep to the form; the rules are at
//!   the top of `verdict/soft.rs`. Whatever strict reads, soft reads too (perhaps elsewhere in the
//!   text).
//!
//! A judgement without a verdict is a value, [`Verdict::Unparsed`] with its [`Reason`], which is
//! counted and reported. Both rules take time linear in the length of the text.

mod digits;
mod parts;
mod soft;

use std::fmt;
use std::str::FromStr;

use digits::is_number;
pub use parts::{Parts, parts};
use serde::{Deserialize, Serialize};
pub use soft::parse_soft;

/// The six tags that the format asks for, in the order of the sections.
pub const FORMAT_TAGS: [&str; 6] = [
    "<specific_criteria>",
    "</specific_criteria>",
    "<analysis>",
    "</analysis>",
    "<scores>",
    "</scores>",
];

/// What a judgement says about the two replies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The scores of the replies in slot A and slot B; both are finite.
    Scores(f64, f64),
    /// No scores could be read.
    Unparsed(Reason),
}

/// Why a judgement has no verdict. The names are used in reports and in outputs.jsonl.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
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
    /// Everything after `<think>` is thinking: the answer was never begun.
    OnlyThinking,
    /// The token limit ended the judgement before its verdict (see [`Verdict::or_truncated`]).
    Truncated,
    /// The prompt did not fit, so nothing was generated.
    PromptTooLong,
}

impl Reason {
    /// The name used in reports and files.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::NoScoresTag => "no_scores_tag",
            Reason::UnclosedScoresTag => "unclosed_scores_tag",
            Reason::NoBox => "no_box",
            Reason::BadNumber => "bad_number",
            Reason::OnlyThinking => "only_thinking",
            Reason::Truncated => "truncated",
            Reason::PromptTooLong => "prompt_too_long",
        }
    }
}

impl fmt::Display for Reason {
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

    /// The slot with the higher score, or `None` if unparsed.
    pub fn winner(self) -> Option<Winner> {
        let (a, b) = self.scores()?;
        Some(match a.partial_cmp(&b) {
            Some(std::cmp::Ordering::Greater) => Winner::A,
            Some(std::cmp::Ordering::Less) => Winner::B,
            _ => Winner::Tie,
        })
    }

    /// Blames the token limit for a missing verdict: of a judgement that was cut, "truncated" says
    /// more than "no scores tag". A verdict that was read stays as it is.
    pub fn or_truncated(self, truncated: bool) -> Verdict {
        match self {
            Verdict::Unparsed(_) if truncated => Verdict::Unparsed(Reason::Truncated),
            other => other,
        }
    }
}

/// Which rule turns a judgement into a verdict: `--match strict|soft`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchRule {
    /// The published rule, [`parse_strict`].
    #[default]
    Strict,
    /// With recovery, [`parse_soft`].
    Soft,
}

impl MatchRule {
    /// Reads a judgement by this rule.
    pub fn parse(self, text: &str) -> Verdict {
        match self {
            MatchRule::Strict => parse_strict(text),
            MatchRule::Soft => parse_soft(text),
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

/// The published rule: `<scores>(.*?)</scores>` (the dot matches newlines), then in the captured
/// text `\\boxed{([\d.]+),\s*([\d.]+)}`, then Python's `float` on both captures. The first match of
/// each decides; a box whose numbers do not convert (`1.2.3`) is not skipped for a later one.
///
/// One corner differs from Python: a number too large for an f64 is the largest one, not infinity, so that
/// scores stay finite. It compares as infinity does.
pub fn parse_strict(text: &str) -> Verdict {
    const OPEN: &str = "<scores>";
    if text.trim().is_empty() {
        return Verdict::Unparsed(Reason::Empty);
    }
    let Some(open) = text.find(OPEN) else {
        return Verdict::Unparsed(Reason::NoScoresTag);
    };
    let inside = &text[open + OPEN.len()..];
    let Some(close) = inside.find("</scores>") else {
        return Verdict::Unparsed(Reason::UnclosedScoresTag);
    };
    let Some((a, b)) = strict_box(&inside[..close]) else {
        return Verdict::Unparsed(Reason::NoBox);
    };
    match (digits::float(a), digits::float(b)) {
        (Some(a), Some(b)) => Verdict::Scores(a, b),
        _ => Verdict::Unparsed(Reason::BadNumber),
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

/// What Python's `\s` matches in a str: Unicode white space and the four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests;
