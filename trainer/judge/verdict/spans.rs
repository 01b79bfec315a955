//! The spans of a judgement that may hold its verdict: text outside thinking, scores sections, boxes.

use std::borrow::Cow;
use std::ops::Range;

use super::statement::is_heading;

/// The longest inside of a box that is read, in bytes.
const MAX_BOX: usize = 256;
/// Limit of the text on a line before the value that it introduces, in bytes.
const MAX_LINE: usize = 256;

/// A judgement without its thinking, and whether it ends in thinking that was never closed.
///
/// Thinking is everything from `<think>` to the next `</think>` or to the end, and everything before a
/// `</think>` that nothing opened: the prompt did.
pub(super) fn without_thinking(text: &str) -> (Cow<'_, str>, bool) {
    const OPEN: &str = "<think>";
    const CLOSE: &str = "</think>";
    if !text.contains(OPEN) && !text.contains(CLOSE) {
        return (Cow::Borrowed(text), false);
    }
    let mut visible = String::with_capacity(text.len());
    let (mut from, mut thinking) = (0, false);
    for (at, _) in text.match_indices('<') {
        if text[at..].starts_with(CLOSE) {
            if !thinking {
                visible.clear();
            }
            (from, thinking) = (at + CLOSE.len(), false);
        } else if !thinking && text[at..].starts_with(OPEN) {
            visible.push_str(&text[from..at]);
            visible.push('\n');
            thinking = true;
        }
    }
    if !thinking {
        visible.push_str(&text[from..]);
    }
    (Cow::Owned(visible), thinking)
}

/// A scores section: from a `<scores>` to the next tag of the kind, or to the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) inside: &'a str,
    /// Whether `</scores>` ends it.
    pub(super) closed: bool,
    /// Whether its tag begins a line, but for another tag or a heading: not so where a sentence quotes it.
    pub(super) begins_line: bool,
}

/// The last scores section.
pub(super) fn last_section(text: &str) -> Option<Section<'_>> {
    let mut next = None;
    for (start, _) in text.rmatch_indices('<') {
        let Some((kind, length)) = tag(&text[start..]) else { continue };
        match kind {
            Tag::Open => return Some(section(text, start, length, next)),
            Tag::Close => next = Some((start, kind)),
        }
    }
    None
}

/// Whether some scores section is closed that is the judge's own: it begins a line.
pub(super) fn own_section_is_closed(text: &str) -> bool {
    let mut open = None;
    for (start, _) in text.match_indices('<') {
        let Some((kind, length)) = tag(&text[start..]) else { continue };
        if kind == Tag::Close
            && let Some((start, length)) = open
            && section(text, start, length, None).begins_line
        {
            return true;
        }
        open = (kind == Tag::Open).then_some((start, length));
    }
    false
}

fn section(text: &str, start: usize, length: usize, next: Option<(usize, Tag)>) -> Section<'_> {
    let end = next.map_or(text.len(), |(at, _)| at);
    Section {
        inside: &text[start + length..end],
        closed: matches!(next, Some((_, Tag::Close))),
        begins_line: line_before(&text[..start]).is_some_and(is_heading),
    }
}

/// The end of `text` from its last line's start or its last tag on; `None` if that is long.
fn line_before(text: &str) -> Option<&str> {
    let mut from = text.len().saturating_sub(MAX_LINE);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let near = &text[from..];
    match near.rfind(['\n', '>']) {
        Some(at) => Some(&near[at + 1..]),
        None => (from == 0).then_some(near),
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Tag {
    Open,
    Close,
}

/// A `<scores>` or `</scores>` at the start of `text`, and its length in bytes. `score` will do, in any case, and up
/// to four spaces at each place, which keeps the look-ahead short.
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

/// `\boxed{...}` with any number of backslashes, or none.
#[derive(Debug, Clone)]
pub(super) struct Boxed {
    /// Offset of its first byte.
    pub(super) start: usize,
    /// What it may hold: up to the brace that closes it, and, if that comes first, up to the end of its line or to a
    /// tag, for a box that is never closed. Empty for one that holds nothing or that the text's end cut.
    pub(super) insides: Vec<Range<usize>>,
}

/// The boxes of a text, the last one first.
pub(super) fn boxes_from_the_end(text: &str) -> impl Iterator<Item = Boxed> {
    const WORD: &[u8] = b"boxed";
    let bytes = text.as_bytes();
    let is_word = |at: &usize| {
        matches!(bytes[*at], b'b' | b'B')
            && (bytes.get(*at..at + WORD.len())).is_some_and(|word| word.eq_ignore_ascii_case(WORD))
    };
    (0..bytes.len()).rev().filter(is_word).filter_map(move |at| {
        let before = text[..at].trim_end_matches('\\');
        let slashes = at - before.len();
        if slashes == 0 && before.ends_with(char::is_alphanumeric) {
            return None;
        }
        let mut inside = at + WORD.len();
        inside += text[inside..].bytes().take(4).take_while(|&b| b == b' ').count();
        inside += usize::from(text[inside..].starts_with("\\{"));
        let insides = match text[inside..].starts_with('{') {
            true => insides(text, inside + 1),
            // `\boxed 8, 6` is one that cannot be read; "boxed" alone is a word.
            false if slashes > 0 => Vec::new(),
            false => return None,
        };
        Some(Boxed { start: before.len(), insides })
    })
}

fn insides(text: &str, start: usize) -> Vec<Range<usize>> {
    let mut insides = Vec::new();
    let mut depth = 1;
    for (length, byte) in text.as_bytes()[start..].iter().take(MAX_BOX).enumerate() {
        let at = start + length;
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b'\n' | b'<' if insides.is_empty() => insides.push(start..at),
            _ => {}
        }
        if depth == 0 {
            insides.insert(0, start..at);
            break;
        }
    }
    insides
}
