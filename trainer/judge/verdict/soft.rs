//! The soft rule: what a judge meant when it did not keep to the form.
//!
//! Where the published rule reads a verdict, it stands: the two rules never name different winners. Else:
//!
//! 1. **Thinking is left out.**
//! 2. **One place decides**, readable or not, and never an earlier one: the last scores section, if it holds a box or
//!    a digit; else the last box. `<score>` will do as a tag, in any case, and an open section runs to the end of the text.
//! 3. In a section the **last box** decides. One with two numbers holds the scores, A's first unless labels in
//!    it say otherwise. One with a single number needs a box with a single number before it, and they are no
//!    more than two: [`super::statement`] says which is whose. A section without a box is read like the inside of one.
//! 4. **Outside of a section** a box may be a quotation, such as a reply's answer. It counts only if its sentence and
//!    the heading above hold nothing else than what introduces scores, and name no single reply. At the very end of the
//!    judgement other words may precede a box with both scores ([`introduces_scores`]); two boxes of one number
//!    count only there. A box that contradicts scores by name in the lines above is ambiguous.
//! 5. **A judgement that was cut off** has a verdict only in its own scores section, closed: one that begins a line.
//!
//! A number may be followed by what it is out of (`8/10`, `8 out of 10`, `80 %`), both by the same, and is converted to
//! the template's scale. What is beyond a scale is no score. Any word or sign that is not known ([`super::words`])
//! makes a statement unreadable, and so does a third number: a guess is not a verdict.

use std::ops::Range;

use super::form::Scale;
use super::spans::{Boxed, Section, boxes_from_the_end, last_section};
use super::statement::{
    Place, introduces_scores, is_unfinished, names, names_a_reply, one_number, two_boxes,
    two_numbers,
};
use super::words::{Number, Slot, Token};
use super::{UnparsedReason, Verdict};

/// The longest section without a box that is read, in bytes.
const MAX_SECTION: usize = 256;
/// The most lines before a box that are looked at.
const MAX_LINES: usize = 8;
/// The most of a sentence that is looked at, in bytes.
const MAX_SENTENCE: usize = 256;

/// Reads what the published rule does not. `visible` is the judgement without its thinking, `complete` says that it is
/// known to have ended by itself, `cut` that the token limit ended it.
pub(super) fn recover(visible: &str, complete: bool, cut: bool, scale: Scale) -> Verdict {
    let pair = find(visible, complete, cut).and_then(|(a, b)| on_scale(a, b, scale));
    match pair {
        Ok((a, b)) => Verdict::Scores(a, b),
        Err(reason) => Verdict::Unparsed(reason),
    }
}

fn find(visible: &str, complete: bool, cut: bool) -> Result<(Number, Number), UnparsedReason> {
    let section = last_section(visible);
    if cut && !section.is_some_and(|section| section.closed && section.begins_line) {
        return Err(UnparsedReason::Truncated);
    }
    let missing = match section {
        Some(section) if has_scores(section.inside) => {
            return in_section(section, complete);
        }
        Some(Section { closed: true, .. }) => UnparsedReason::NoBox,
        Some(_) => UnparsedReason::UnclosedScoresTag,
        None => UnparsedReason::NoScoresTag,
    };
    if cut { Err(missing) } else { elsewhere(visible, missing) }
}

/// Whether there is something that could be scores.
fn has_scores(text: &str) -> bool {
    text.contains(char::is_numeric) || boxes_from_the_end(text).next().is_some()
}

/// Rule 3 of the module's list.
fn in_section(section: Section<'_>, complete: bool) -> Result<(Number, Number), UnparsedReason> {
    let text = section.inside;
    let mut boxes = boxes_from_the_end(text);
    let Some(last) = boxes.next() else {
        // The text's end may have cut the last number.
        let whole = section.closed || complete || text.ends_with(char::is_whitespace);
        let read = match whole && text.len() <= MAX_SECTION {
            true => two_numbers(text),
            false => Err(UnparsedReason::BadNumber),
        };
        return read.map_err(|reason| match reason {
            UnparsedReason::BadNumber if section.closed => UnparsedReason::NoBox,
            UnparsedReason::BadNumber => UnparsedReason::UnclosedScoresTag,
            other => other,
        });
    };
    let before = boxes.next();
    match content(text, &last)? {
        Content::Two(pair, _) => not_decimal_commas(text, before, &last).map(|()| pair),
        Content::One(second, end) => {
            let (before, first, first_end) = single(text, before)?;
            if single(text, boxes.next()).is_ok() {
                return Err(UnparsedReason::Ambiguous);
            }
            let (between, after) = (&text[first_end..last.start], &text[end..]);
            // Other words after the line are reasons; known ones may be labels.
            let after = match names(after, Place::Section) {
                Some(_) => after,
                None => after.split('\n').next().unwrap_or_default(),
            };
            two_boxes(&text[..before.start], &first, between, &second, after, Place::Section)
        }
    }
}

/// Rule 4 of the module's list.
fn elsewhere(text: &str, missing: UnparsedReason) -> Result<(Number, Number), UnparsedReason> {
    let mut boxes = boxes_from_the_end(text);
    let Some(last) = boxes.next() else { return Err(missing) };
    let before = boxes.next();
    match content(text, &last)? {
        Content::Two(pair, end) => {
            not_decimal_commas(text, before, &last)?;
            let (before, after) =
                (introduction(&text[..last.start]), rest_of_sentence(&text[end..]));
            if contradicted(&text[..last.start], pair) {
                return Err(UnparsedReason::Ambiguous);
            }
            let ends = text[end..].trim_matches(DECORATION).is_empty();
            if ends && before.is_some_and(introduces_scores) {
                return Ok(pair);
            }
            let around = before.zip(after).and_then(|(before, after)| {
                let names_in = |text| names(text, Place::Loose);
                Some([names_in(before)?, names_in(after)?].concat())
            });
            match around.as_deref() {
                Some([] | [Slot::A, Slot::B]) => Ok(pair),
                _ => Err(UnparsedReason::Quoted),
            }
        }
        Content::One(second, end) => {
            let (before, first, first_end) = single(text, before)?;
            let before = introduction(&text[..before.start]).ok_or(UnparsedReason::Quoted)?;
            let (between, after) =
                (&text[first_end..last.start], text[end..].trim_end_matches(DECORATION));
            if after.contains('\n') {
                return Err(UnparsedReason::Quoted);
            }
            let pair = two_boxes(before, &first, between, &second, after, Place::Loose);
            pair.map_err(|_| UnparsedReason::Quoted)
        }
    }
}

/// The readable contents of a box, and the offset of its end.
enum Content {
    Two((Number, Number), usize),
    One(Vec<Token>, usize),
}

fn content(text: &str, boxed: &Boxed) -> Result<Content, UnparsedReason> {
    let end = |inside: usize| inside + usize::from(text[inside..].starts_with('}'));
    let mut reason = UnparsedReason::BadNumber;
    for inside in &boxed.insides {
        match two_numbers(&text[inside.clone()]) {
            Ok(pair) => return Ok(Content::Two(pair, end(inside.end))),
            Err(UnparsedReason::Ambiguous) => reason = UnparsedReason::Ambiguous,
            Err(_) => {}
        }
    }
    let one = |inside: &Range<usize>| {
        Some(Content::One(one_number(&text[inside.clone()])?, end(inside.end)))
    };
    boxed.insides.iter().find_map(one).ok_or(reason)
}

/// A box of one number, what it holds and where it ends.
fn single(text: &str, boxed: Option<Boxed>) -> Result<(Boxed, Vec<Token>, usize), UnparsedReason> {
    let boxed = boxed.ok_or(UnparsedReason::BadNumber)?;
    match content(text, &boxed)? {
        Content::One(tokens, end) => Ok((boxed, tokens, end)),
        Content::Two(..) => Err(UnparsedReason::BadNumber),
    }
}

/// `A: \boxed{7,5}, B: \boxed{8,5}` are two numbers with decimal commas.
fn not_decimal_commas(
    text: &str,
    before: Option<Boxed>,
    last: &Boxed,
) -> Result<(), UnparsedReason> {
    let glued = |boxed: &Boxed| {
        let inside = boxed.insides.first().map_or("", |inside| &text[inside.clone()]);
        inside.split_once(',').is_some_and(|(_, rest)| rest.starts_with(char::is_numeric))
    };
    match before {
        Some(before) if glued(&before) && glued(last) => {
            let between = text.get(before.insides[0].end..last.start);
            if between.is_some_and(names_a_reply) { Err(UnparsedReason::Ambiguous) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// Whether the lines before a box give the other reply the higher score, by name. They may be on another scale, or not rounded.
fn contradicted(before: &str, (a, b): (Number, Number)) -> bool {
    let mut lines = before.rsplit('\n').take(MAX_LINES).filter(|line| !line.trim().is_empty());
    let mut near = String::new();
    lines.by_ref().take(3).any(|line| {
        near = format!("{line}\n{near}");
        let named = names_a_reply(&near).then(|| two_numbers(&near));
        matches!(named, Some(Ok((x, y)))
            if (x.value < y.value && a.value > b.value) || (x.value > y.value && a.value < b.value))
    })
}

/// Whether a character only sets text off.
const DECORATION: [char; 18] =
    [' ', '\n', '\r', '\t', '*', '_', '`', '$', '#', '.', '\\', '[', ']', '(', ')', '-', '|', '。'];

/// What leads up to the end of `text`: the rest of its sentence or line and, before it, a heading: one that ends in a
/// colon, where a line begins, or one of names only. `None` if that is long.
fn introduction(text: &str) -> Option<&str> {
    let from = sentence_start(text)?;
    let above = text[..from].trim_end_matches(DECORATION);
    let begins = text[from..].trim_matches(DECORATION).is_empty();
    let heading = sentence_start(above).filter(|&start| {
        let names = names(&above[start..], Place::Section);
        (begins && (above.ends_with([':', '：']) || is_unfinished(&above[start..])))
            || names.is_some_and(|names| !names.is_empty())
    });
    Some(&text[heading.unwrap_or(from)..])
}

/// Where the sentence begins that the text's end is in: after a full stop, a line's end or a tag.
fn sentence_start(text: &str) -> Option<usize> {
    let mut from = text.len().saturating_sub(MAX_SENTENCE);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let near = &text[from..];
    let mut next = ' ';
    for (at, c) in near.char_indices().rev() {
        let ends = match c {
            '\n' | '。' | '！' | '？' => true,
            '.' | '!' | '?' => {
                next.is_whitespace()
                    && !["vs", "e.g", "i.e"].iter().any(|word| near[..at].ends_with(word))
            }
            '>' => near[..at].rfind('<').is_some_and(|open| !near[open..at].contains(' ')),
            _ => false,
        };
        if ends {
            return Some(from + at + c.len_utf8());
        }
        next = c;
    }
    (from == 0).then_some(0)
}

/// The text up to the end of the sentence, or to a line's end or a tag; `None` if that is long.
fn rest_of_sentence(text: &str) -> Option<&str> {
    for (at, c) in text.char_indices().take_while(|(at, _)| *at <= MAX_SENTENCE) {
        let next = text[at + c.len_utf8()..].chars().next();
        let ends = match c {
            '\n' | '。' | '！' | '？' | '<' => true,
            '.' | '!' | '?' => next.is_none_or(char::is_whitespace),
            _ => false,
        };
        if ends {
            return Some(&text[..at]);
        }
    }
    (text.len() <= MAX_SENTENCE).then_some(text)
}

/// The two scores on the template's scale.
fn on_scale(a: Number, b: Number, scale: Scale) -> Result<(f64, f64), UnparsedReason> {
    let same = match (a.out_of, b.out_of) {
        (Some(a), Some(b)) => a == b,
        (Some(one), None) | (None, Some(one)) => one == scale.high,
        (None, None) => true,
    };
    let place = |number: Number| {
        let value = match number.out_of {
            Some(out_of) if number.value > out_of => return None,
            Some(out_of) if out_of != scale.high => number.value * scale.high / out_of,
            _ => number.value,
        };
        scale.contains(value).then_some(value)
    };
    match (same, place(a), place(b)) {
        (false, ..) => Err(UnparsedReason::BadNumber),
        (true, Some(a), Some(b)) => Ok((a, b)),
        (true, ..) => Err(UnparsedReason::OutOfScale),
    }
}
