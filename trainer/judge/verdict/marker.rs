//! Verdicts as markers: `[[A]]`, `[[B]]`, or `[[C]]` for a tie (MT-Bench's form, arXiv 2306.05685).
//!
//! The last marker outside thinking decides, readable or not, as a vote: 1 to 0, 0 to 1, or half to each. What lists the
//! verdicts that may be said, such as the prompt's sentence, decides nothing: a line with different markers, lines next
//! to each other with all three, a marker that is said for a case (`[[A]] if A is better`). A judgement that was
//! cut off has no verdict: nothing says that its last marker would have stayed the last.

use super::statement::{Place, names};
use super::words::Slot;
use super::{UnparsedReason, Verdict};

/// The longest inside of a marker, in bytes.
const MAX_MARKER: usize = 24;

/// Reads a judgement without its thinking: strictly, where only the three markers are read, or softly, in any case,
/// with spaces and emphasis inside, and `[[Response A]]` and `[[Tie]]`.
pub(super) fn read(visible: &str, soft: bool) -> Verdict {
    let mut last = None;
    for (start, _) in visible.match_indices("[[") {
        let inside = &visible[start + 2..];
        // `[[1, 2], [3, 4]]` is a list.
        let length = inside.bytes().take(MAX_MARKER + 1).position(|byte| byte == b']');
        let Some(length) = length.filter(|&length| inside[length..].starts_with("]]")) else {
            continue;
        };
        if !inside[..length].contains(|c: char| c.is_ascii_digit()) {
            last = Some((start, &inside[..length]));
        }
    }
    let Some((start, marker)) = last else { return Verdict::Unparsed(UnparsedReason::NoMarker) };
    if is_listed(visible, start) {
        return Verdict::Unparsed(UnparsedReason::Ambiguous);
    }
    let tidy = match soft {
        true => marker.trim_matches([' ', '*', '_', '`']).to_ascii_uppercase(),
        false => marker.to_owned(),
    };
    match tidy.as_str() {
        "A" => Verdict::Scores(1.0, 0.0),
        "B" => Verdict::Scores(0.0, 1.0),
        "C" => Verdict::Scores(0.5, 0.5),
        "TIE" if soft => Verdict::Scores(0.5, 0.5),
        _ => match names(marker, Place::Plain).filter(|_| soft).as_deref() {
            Some([Slot::A]) => Verdict::Scores(1.0, 0.0),
            Some([Slot::B]) => Verdict::Scores(0.0, 1.0),
            _ => Verdict::Unparsed(UnparsedReason::BadMarker),
        },
    }
}

const MARKERS: [&str; 3] = ["[[A]]", "[[B]]", "[[C]]"];
/// The most lines of a list that are looked at.
const MAX_LINES: usize = 8;

/// Whether the marker at `start` is one of a list of what may be said.
fn is_listed(text: &str, start: usize) -> bool {
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].split('\n').next().unwrap_or_default();
    let held = |text: &str| MARKERS.iter().filter(|marker| text.contains(**marker)).count();
    let above = text[..line_start].rsplit('\n').skip(1);
    let above = above.take_while(|line| !line.trim().is_empty()).take(MAX_LINES);
    let block = above.collect::<Vec<_>>().concat() + line;
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let case = ["if", "when", "where", "means"];
    let after = words(line[start - line_start..].split_once("]]").map_or("", |(_, after)| after));
    let before = words(&line[..start - line_start]);
    let compares = ["better", "tie", "equal", "equally"];
    held(line) > 1
        || held(&block) == MARKERS.len()
        || after.first().is_some_and(|word| case.contains(&word.as_str()))
        || (before.first().is_some_and(|word| case.contains(&word.as_str()))
            && before.iter().any(|word| compares.contains(&word.as_str())))
}
