//! Verdicts as markers: `[[A]]`, `[[B]]`, or `[[C]]` for a tie (MT-Bench's form, arXiv 2306.05685).
//!
//! The last marker outside thinking decides, readable or not, as a vote: 1 to 0, 0 to 1, or half to each. A line that
//! holds different markers is one that lists what may be said, such as the prompt's, and decides nothing. A
//! judgement that was cut off has no verdict: nothing says that its last marker would have stayed the last.

use super::{Reason, Verdict};

/// The longest inside of a marker, in bytes.
const MAX_MARKER: usize = 24;

/// Reads a judgement without its thinking: strictly, where only the three markers are read, or softly, in any case,
/// with spaces and emphasis inside, and `[[Tie]]`.
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
    let Some((start, marker)) = last else { return Verdict::Unparsed(Reason::NoMarker) };
    let line = &visible[visible[..start].rfind('\n').map_or(0, |at| at + 1)..];
    let line = line.split('\n').next().unwrap_or_default();
    let others = ["[[A]]", "[[B]]", "[[C]]"].iter().filter(|marker| line.contains(**marker));
    if others.count() > 1 {
        return Verdict::Unparsed(Reason::Ambiguous);
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
        _ => Verdict::Unparsed(Reason::BadMarker),
    }
}
