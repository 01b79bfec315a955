//! Digits as Python reads them: `\d` matches those of every script, and `float` takes them all.

/// Where the digits of other scripts begin: the zeros of Unicode 14's category Nd, each followed by its
/// one to nine.
#[rustfmt::skip]
const ZEROS: [u32; 65] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
    0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50,
    0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650,
    0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50,
    0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// The value of a decimal digit of any script.
fn digit(c: char) -> Option<u8> {
    if c.is_ascii() {
        return c.to_digit(10).map(|value| value as u8);
    }
    let code = u32::from(c);
    let before = ZEROS.partition_point(|&zero| zero <= code);
    let value = code - ZEROS.get(before.checked_sub(1)?)?;
    (value < 10).then_some(value as u8)
}

/// Whether Python's `[\d.]` matches.
pub(super) fn is_number(c: char) -> bool {
    c == '.' || digit(c).is_some()
}

/// Python's `float` of a text of `[\d.]`. What Python takes for infinity is the largest finite number here: it is
/// above every score and equal to itself as well, and files can hold it.
pub(super) fn float(text: &str) -> Option<f64> {
    let ascii = |c| digit(c).map_or(c, |value| char::from(b'0' + value));
    let value: f64 = text.chars().map(ascii).collect::<String>().parse().ok()?;
    Some(value.min(f64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_unicode() {
        let nd = regex::Regex::new(r"^\d$").unwrap();
        for c in '\0'..=char::MAX {
            // Later versions of Unicode have more scripts: none of ours may be missing there.
            assert!(digit(c).is_none() || nd.is_match(c.encode_utf8(&mut [0; 4])), "{c:?}");
        }
        for (text, value) in
            [("\u{663}9.", 39.0), ("\u{ff17}", 7.0), (".\u{1d7d7}", 0.9), ("07", 7.0)]
        {
            assert_eq!(float(text), Some(value), "{text}");
        }
        for text in ["", ".", "1.2.3", "1..2"] {
            assert_eq!(float(text), None, "{text}");
        }
        assert_eq!(float(&"9".repeat(400)), Some(f64::MAX));
        assert!(!is_number('\u{b2}') && !is_number('\u{2167}') && is_number('.'));
    }
}
