//! The soft rule: what a judge meant when it did not keep to the form.
//!
//! The rules, in order; the first that gives two scores decides.
//!
//! 1. **Thinking is left out**: everything from `<think>` to `</think>`, everything before a
//!    `</think>` that was never opened (the prompt opened it), everything after a `<think>` that is
//!    never closed. Nesting is not followed: the first `</think>` closes.
//! 2. **The last readable box** of what remains: `boxed` (with any number of backslashes, or none)
//!    followed by `{...}`, braces balanced, over line ends if it must be. A box without its `}` counts
//!    if its line ends or a tag begins after it; at the very end of the text it does not, as its last
//!    digit may be missing.
//! 3. **Two boxes of one number each**, at most [`BOX_GAP`] bytes apart, are A's and B's scores (or,
//!    labelled, as their labels say). This is checked in the same backward pass as rule 2.
//! 4. **The last scores section** of what remains, without a box: `<scores>` or `<score>`, in any
//!    case, spaces allowed in the tag, closed or running to the end of the text (then, as in rule
//!    2, a number at the very end does not count).
//! 5. **Unclosed thinking**: the last complete `<scores>...</scores>` inside it, as rules 2 and 4 read
//!    it. A bare box there is not a verdict: the judge is still weighing.
//! 6. **The strict rule** on the whole text.
//!
//! What is read as two scores (the inside of a box or of a section), at most [`MAX_SPAN`] bytes:
//! exactly two numbers, digits with an optional decimal part, not negative. Each may be
//! followed by `/10` or `out of 10` (or, if both have it, the same other number) and preceded by a
//! label, `A` or `B`, perhaps with words of [`WORDS`] (`Response A: 8`); labels decide over position.
//! Between them may stand spaces, line ends, commas, semicolons, bars, colons, equals signs,
//! ampersands, brackets, braces, dollar signs, backslashes, markdown's `*`, `_`, backticks and list
//! dashes. Any other word or sign makes the span unreadable, and so does a third number: a guess is
//! not a verdict.

use super::{Reason, Verdict, parse_strict};

/// The longest inside of a box or a section that is read, in bytes.
const MAX_SPAN: usize = 256;
/// The most bytes between two boxes of one number each.
const BOX_GAP: usize = 80;
/// Words allowed beside the numbers, in lower case.
const WORDS: [&str; 22] = [
    "response",
    "responses",
    "reply",
    "assistant",
    "answer",
    "candidate",
    "score",
    "scores",
    "the",
    "is",
    "for",
    "of",
    "out",
    "and",
    "vs",
    "final",
    "overall",
    "points",
    "text",
    "mathbf",
    "textbf",
    "gets",
];

/// Reads a judgement by the soft rule; the module's head lists what it recovers.
pub fn parse_soft(text: &str) -> Verdict {
    if text.trim().is_empty() {
        return Verdict::Unparsed(Reason::Empty);
    }
    let Split { visible, unclosed } = split(text);
    let mut reason = None;
    for span in visible.iter().rev() {
        match last_box(span) {
            Ok((a, b)) => return Verdict::Scores(a, b),
            Err(found) => reason = stronger(reason, found),
        }
    }
    for span in visible.iter().rev() {
        match last_section(span, false) {
            Ok((a, b)) => return Verdict::Scores(a, b),
            Err(found) => reason = stronger(reason, found),
        }
    }
    if let Some(thinking) = unclosed
        && let Ok((a, b)) = last_section(thinking, true)
    {
        return Verdict::Scores(a, b);
    }
    if let verdict @ Verdict::Scores(..) = parse_strict(text) {
        return verdict;
    }
    let nothing_visible = visible.iter().all(|span| span.trim().is_empty());
    Verdict::Unparsed(match reason {
        _ if nothing_visible => Reason::OnlyThinking,
        Some(reason) => reason,
        None => Reason::NoScoresTag,
    })
}

/// The text outside thinking, in order, and the thinking that is never closed.
struct Split<'a> {
    visible: Vec<&'a str>,
    unclosed: Option<&'a str>,
}

fn split(text: &str) -> Split<'_> {
    const OPEN: &str = "<think>";
    const CLOSE: &str = "</think>";
    let mut rest = text;
    let mut visible = Vec::new();
    // Thinking that the prompt opened.
    if let Some(close) = rest.find(CLOSE)
        && rest.find(OPEN).is_none_or(|open| close < open)
    {
        rest = &rest[close + CLOSE.len()..];
    }
    while let Some(open) = rest.find(OPEN) {
        visible.push(&rest[..open]);
        let inside = &rest[open + OPEN.len()..];
        match inside.find(CLOSE) {
            Some(close) => rest = &inside[close + CLOSE.len()..],
            None => return Split { visible, unclosed: Some(inside) },
        }
    }
    visible.push(rest);
    Split { visible, unclosed: None }
}

/// Rules 2 and 3, from the last box backwards.
fn last_box(text: &str) -> Result<(f64, f64), Reason> {
    let mut single: Option<(usize, Number)> = None; // a box of one number: where it starts
    let mut reason = Reason::NoScoresTag;
    for (start, word) in text.rmatch_indices("boxed") {
        let mut one = None;
        let mut is_box = false;
        for inside in box_insides(&text[start + word.len()..]) {
            is_box = true;
            match read_numbers(inside) {
                Some(Numbers::Two(a, b)) => return Ok((a, b)),
                Some(Numbers::One(number)) => one = one.or(Some((number, inside.len()))),
                None => {}
            }
        }
        if !is_box {
            continue;
        }
        match one {
            Some((mut number, length)) => {
                let end = start + word.len() + length + 2;
                if number.label.is_none() {
                    number.label = label_before(&text[..start]);
                }
                if let Some((next, second)) = single
                    && next.saturating_sub(end) <= BOX_GAP
                    && let Some(pair) = pair(number, second)
                {
                    return Ok(pair);
                }
                single = Some((start, number));
            }
            None => single = None,
        }
        reason = Reason::BadNumber;
    }
    Err(reason)
}

/// What may stand between the braces of a box, given the text after `boxed`: up to the brace that closes it,
/// and up to the end of its line or to a tag, if that comes first.
fn box_insides(rest: &str) -> impl Iterator<Item = &str> {
    let (mut closed, mut cut) = (None, None);
    let inside = rest.strip_prefix('{').unwrap_or_default();
    let mut depth = 1;
    for (at, byte) in inside.bytes().enumerate().take(MAX_SPAN) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b'\n' | b'<' if cut.is_none() => cut = Some(&inside[..at]),
            _ => {}
        }
        if depth == 0 {
            closed = Some(&inside[..at]);
            break;
        }
    }
    closed.into_iter().chain(cut)
}

/// Rule 4; `closed_only` is rule 5, which reads a box in the section, too.
fn last_section(text: &str, closed_only: bool) -> Result<(f64, f64), Reason> {
    let mut reason = Reason::NoScoresTag;
    let mut end = text.len();
    for (start, _) in text.rmatch_indices('<') {
        let Some((name, length)) = tag(&text[start..]) else { continue };
        if name != Tag::Open {
            end = start;
            continue;
        }
        let closed =
            end < text.len() && tag(&text[end..]).is_some_and(|(name, _)| name == Tag::Close);
        let inside = &text[start + length..end];
        // A section that the text's end cut may have lost digits: its last line must be whole.
        let whole = closed || inside.trim_end().len() < inside.len();
        end = start;
        if !closed {
            reason = Reason::UnclosedScoresTag;
        }
        if inside.len() > MAX_SPAN || !whole || (closed_only && !closed) {
            continue;
        }
        if closed_only && let Ok(scores) = last_box(inside) {
            return Ok(scores);
        }
        if let Some(Numbers::Two(a, b)) = read_numbers(inside) {
            return Ok((a, b));
        }
        reason = if closed { Reason::NoBox } else { Reason::UnclosedScoresTag };
    }
    Err(reason)
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Open,
    Close,
}

/// A `<scores>` or `</scores>` at the start of `text`, and its length in bytes. Up to four spaces
/// are allowed at each place, which keeps the look-ahead short.
fn tag(text: &str) -> Option<(Tag, usize)> {
    let spaces = |s: &str| s.bytes().take(4).take_while(|&b| b == b' ').count();
    let mut at = 1;
    at += spaces(&text[at..]);
    let mut tag = Tag::Open;
    if text[at..].starts_with('/') {
        tag = Tag::Close;
        at += 1;
        at += spaces(&text[at..]);
    }
    if !text.as_bytes().get(at..at + 5)?.eq_ignore_ascii_case(b"score") {
        return None;
    }
    at += 5;
    if text.as_bytes().get(at).is_some_and(|b| b.eq_ignore_ascii_case(&b's')) {
        at += 1;
    }
    at += spaces(&text[at..]);
    text[at..].starts_with('>').then_some((tag, at + 1))
}

/// A label that stands directly before a box: `A: \boxed{8}`, `**Response B**: $\boxed{6}$`.
fn label_before(text: &str) -> Option<char> {
    let noise = |c: char| c.is_ascii_whitespace() || ":=*_`$\\()".contains(c);
    let text = text.trim_end_matches(noise);
    let label = text.chars().next_back().filter(|c| matches!(c, 'A' | 'B'))?;
    let before = text[..text.len() - 1].chars().next_back();
    (!before.is_some_and(char::is_alphanumeric)).then_some(label)
}

#[derive(Clone, Copy)]
struct Number {
    value: f64,
    /// What it is out of, if written.
    scale: Option<f64>,
    /// `A` or `B`, if written.
    label: Option<char>,
}

enum Numbers {
    One(Number),
    Two(f64, f64),
}

/// One or two scores and nothing else that matters, or `None`.
fn read_numbers(span: &str) -> Option<Numbers> {
    let mut numbers: Vec<Number> = Vec::with_capacity(2);
    let mut label = None;
    let mut scale_next = false; // after `/` or `out of`
    let mut last_word = "";
    let mut rest = span;
    while let Some(c) = rest.chars().next() {
        if c.is_ascii_digit() {
            let length = number_length(rest)?;
            let value = rest[..length].parse::<f64>().ok().filter(|v| v.is_finite())?;
            rest = &rest[length..];
            if scale_next {
                let number = numbers.last_mut()?;
                if number.scale.is_some() || value == 0.0 {
                    return None;
                }
                number.scale = Some(value);
            } else {
                if numbers.len() == 2 {
                    return None;
                }
                numbers.push(Number { value, scale: None, label: label.take() });
            }
            (scale_next, last_word) = (false, "");
        } else if c.is_ascii_alphabetic() {
            let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let word = &rest[..length];
            rest = &rest[length..];
            match word {
                "A" | "B" | "a" | "b" if label.is_none() => {
                    label = Some(word.as_bytes()[0].to_ascii_uppercase() as char);
                }
                "of" | "Of" | "OF" if !last_word.eq_ignore_ascii_case("out") => return None,
                _ if !WORDS.iter().any(|known| word.eq_ignore_ascii_case(known)) => return None,
                _ => {}
            }
            scale_next = last_word.eq_ignore_ascii_case("out") && word.eq_ignore_ascii_case("of");
            last_word = word;
        } else {
            let length = c.len_utf8();
            match c {
                '/' if !scale_next && !numbers.is_empty() => scale_next = true,
                // A list's dash; before a digit it would be a sign or a range.
                '-' if rest[length..].starts_with(' ') && !scale_next => {}
                ',' | ';' | '|' | '，' | '；' | '\n' if !scale_next => last_word = "",
                ' ' | '\t' | '\r' => {}
                ':' | '=' | '*' | '_' | '`' | '$' | '\\' | '(' | ')' | '[' | ']' | '{' | '}'
                | '&' | '：'
                    if !scale_next => {}
                _ => return None,
            }
            rest = &rest[length..];
        }
    }
    if scale_next || label.is_some() {
        return None;
    }
    match numbers[..] {
        [one] => Some(Numbers::One(one)),
        [first, second] => pair(first, second).map(|(a, b)| Numbers::Two(a, b)),
        _ => None,
    }
}

/// The length of the number at the start: digits, perhaps a dot and digits. A letter, a second
/// dot or a percent sign right after it makes it something else.
fn number_length(text: &str) -> Option<usize> {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let mut length = digits(text);
    if text[length..].starts_with('.') {
        length += 1 + digits(&text[length + 1..]);
    }
    let next = text[length..].chars().next();
    let continues = next.is_some_and(|c| c.is_alphanumeric() || c == '.' || c == '%');
    (!continues).then_some(length)
}

/// The scores of A and B from two numbers, by label or else by position.
fn pair(first: Number, second: Number) -> Option<(f64, f64)> {
    let same_scale = match (first.scale, second.scale) {
        (Some(a), Some(b)) => a == b,
        (Some(one), None) | (None, Some(one)) => one == 10.0,
        (None, None) => true,
    };
    if !same_scale {
        return None;
    }
    match (first.label, second.label) {
        (Some('B'), Some('A')) => Some((second.value, first.value)),
        (Some('A') | None, Some('B') | None) => Some((first.value, second.value)),
        _ => None,
    }
}

/// Of two reasons the one that says more: a box that is not two numbers, a section without a box,
/// an open section, nothing at all.
fn stronger(known: Option<Reason>, found: Reason) -> Option<Reason> {
    let rank = |reason| match reason {
        Reason::BadNumber => 3,
        Reason::NoBox => 2,
        Reason::UnclosedScoresTag => 1,
        _ => 0,
    };
    match known {
        Some(known) if rank(known) >= rank(found) => Some(known),
        _ => Some(found),
    }
}
