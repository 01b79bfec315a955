//! Splits PTX into tokens that know their line.

use crate::fault::LoadError;

/// What a token is; its text is kept beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TokenKind {
    /// An identifier, register, directive or opcode with all its modifiers: `%r1`, `.reg`,
    /// `ld.global.v4.f32`, `$L__BB0_2`, `cp.async.cg.shared.global.L2::128B`.
    Word,
    /// A number, as the bits it stands for.
    Number(u64, NumberKind),
    /// A string without its quotes.
    Text,
    /// One of `{ } [ ] ( ) < > , ; : = + - ! @ |` and whatever else stands alone.
    Punctuation(char),
}

/// How a number was written, which decides how a floating-point operand reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberKind {
    /// Decimal, octal, binary or hexadecimal digits.
    Integer,
    /// `0f` and eight digits.
    Single,
    /// `0d` and sixteen digits, or a decimal fraction.
    Double,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: TokenKind,
    pub(crate) text: &'a str,
    pub(crate) line: u32,
}

/// All tokens of `source`. Comments and white space are dropped.
pub(crate) fn tokens(source: &str) -> Result<Vec<Token<'_>>, LoadError> {
    let mut lexer = Lexer { source, bytes: source.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::with_capacity(source.len() / 4);
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    source: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, LoadError> {
        self.skip_blanks()?;
        let Some(&first) = self.bytes.get(self.at) else { return Ok(None) };
        let (start, line) = (self.at, self.line);
        let kind = if first == b'"' {
            return self.string().map(Some);
        } else if first.is_ascii_digit() {
            self.advance_while(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
            let text = &self.source[start..self.at];
            match number(text) {
                Some((bits, kind)) => TokenKind::Number(bits, kind),
                None => return Err(LoadError::syntax(line, format!("`{text}` is not a number"))),
            }
        } else if is_word(first) {
            self.word();
            TokenKind::Word
        } else {
            // A character of several bytes is legal nowhere; it ends up in an error message whole.
            let character = self.source[start..].chars().next().unwrap_or('?');
            self.at += character.len_utf8();
            TokenKind::Punctuation(character)
        };
        Ok(Some(Token { kind, text: &self.source[start..self.at], line }))
    }

    fn skip_blanks(&mut self) -> Result<(), LoadError> {
        loop {
            match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(b'\n'), _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (Some(byte), _) if byte.is_ascii_whitespace() => self.at += 1,
                (Some(b'/'), Some(b'/')) => self.advance_while(|byte| byte != b'\n'),
                (Some(b'/'), Some(b'*')) => {
                    let opened = self.line;
                    let Some(length) = self.source[self.at + 2..].find("*/") else {
                        return Err(LoadError::syntax(opened, "a comment never ends"));
                    };
                    let end = self.at + 2 + length + 2;
                    self.line += self.source[self.at..end].matches('\n').count() as u32;
                    self.at = end;
                }
                _ => return Ok(()),
            }
        }
    }

    fn string(&mut self) -> Result<Token<'a>, LoadError> {
        let (start, line) = (self.at + 1, self.line);
        let Some(length) = self.source[start..].find(['"', '\n']) else {
            return Err(LoadError::syntax(line, "a string never ends"));
        };
        self.at = start + length + 1;
        if self.bytes[start + length] == b'\n' {
            return Err(LoadError::syntax(line, "a string never ends"));
        }
        Ok(Token { kind: TokenKind::Text, text: &self.source[start..start + length], line })
    }

    /// A word may hold `::`, as in `.L2::128B`, but a single colon ends it: that is a label's.
    fn word(&mut self) {
        loop {
            self.advance_while(is_word);
            if self.source[self.at..].starts_with("::") {
                self.at += 2;
            } else {
                return;
            }
        }
    }

    fn advance_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.bytes.get(self.at).is_some_and(|&byte| wanted(byte)) {
            self.at += 1;
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn number(text: &str) -> Option<(u64, NumberKind)> {
    let digits = text.trim_end_matches('U');
    let prefixed = |radix: u32| u64::from_str_radix(digits.get(2..)?, radix).ok();
    match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0f") if digits.len() == 10 => Some((prefixed(16)?, NumberKind::Single)),
        Some("0d") if digits.len() == 18 => Some((prefixed(16)?, NumberKind::Double)),
        Some("0x") => Some((prefixed(16)?, NumberKind::Integer)),
        Some("0b") => Some((prefixed(2)?, NumberKind::Integer)),
        _ if digits.contains('.') => {
            Some((digits.parse::<f64>().ok()?.to_bits(), NumberKind::Double))
        }
        _ if digits.len() > 1 && digits.starts_with('0') => {
            Some((u64::from_str_radix(digits, 8).ok()?, NumberKind::Integer))
        }
        _ => Some((digits.parse().ok()?, NumberKind::Integer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_lines() {
        let source = "ld.L2::128B %r1; // x\n/* y\n */ $L_1: 0f3F800000 0x10 -7 017 1.5";
        let tokens = tokens(source).expect("legal text");
        let texts: Vec<_> = tokens.iter().map(|token| token.text).collect();
        let expected =
            ["ld.L2::128B", "%r1", ";", "$L_1", ":", "0f3F800000", "0x10", "-", "7", "017", "1.5"];
        assert_eq!(texts, expected);
        assert_eq!(tokens[3].line, 3);
        assert_eq!(tokens[5].kind, TokenKind::Number(0x3f80_0000, NumberKind::Single));
        assert_eq!(tokens[9].kind, TokenKind::Number(15, NumberKind::Integer));
        assert_eq!(tokens[10].kind, TokenKind::Number(1.5f64.to_bits(), NumberKind::Double));
    }

    #[test]
    fn broken_text_is_an_error_with_its_line() {
        for source in ["\n/* open", "\n\"open", "\n\"open\n\"", "\n0xzz", "\n09"] {
            assert_eq!(tokens(source).expect_err(source).line(), Some(2), "{source:?}");
        }
    }
}
