//! Python's `repr` of lists and dictionaries, which is what pandas writes into a CSV cell: single quotes, `None`,
//! tuples, and NumPy's arrays, which have no commas between their items.

use serde_json::{Map, Value};

/// Limit of the nesting of lists and dictionaries.
const MAX_DEPTH: usize = 16;

/// The value that `text` is the `repr` of, if it is one as a whole.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.space();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.space();
        if depth > MAX_DEPTH {
            return None;
        }
        for (name, value) in [
            ("None", Value::Null),
            ("nan", Value::Null),
            ("True", Value::Bool(true)),
            ("False", Value::Bool(false)),
        ] {
            if self.take(name) {
                return Some(value);
            }
        }
        if self.take("array(") {
            let list = self.value(depth + 1)?;
            self.space();
            if self.take(",") {
                self.space();
                self.take("dtype=").then_some(())?;
                self.rest = self.rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
            }
            return self.take(")").then_some(list);
        }
        match self.rest.chars().next()? {
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.dictionary(depth),
            '\'' | '"' => self.text().map(Value::String),
            _ => self.number(),
        }
    }

    fn list(&mut self, end: char, depth: usize) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut items = Vec::new();
        loop {
            self.space();
            if let Some(rest) = self.rest.strip_prefix(end) {
                self.rest = rest;
                return Some(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.space();
            // NumPy's arrays stand without.
            self.take(",");
        }
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut entries = Map::new();
        loop {
            self.space();
            if self.take("}") {
                return Some(Value::Object(entries));
            }
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            self.space();
            self.take(":").then_some(())?;
            let value = self.value(depth + 1)?;
            entries.insert(key, value);
            self.space();
            if !self.take(",") && !self.rest.starts_with('}') {
                return None;
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut characters = self.rest[1..].char_indices();
        let mut text = String::new();
        while let Some((at, character)) = characters.next() {
            match character {
                _ if character == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                '\\' => match characters.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '\n' => {}
                    escaped @ ('x' | 'u' | 'U') => {
                        let digits = match escaped {
                            'x' => 2,
                            'u' => 4,
                            _ => 8,
                        };
                        let mut code = 0;
                        for _ in 0..digits {
                            code = code * 16 + characters.next()?.1.to_digit(16)?;
                        }
                        text.push(char::from_u32(code)?);
                    }
                    escaped @ ('\\' | '\'' | '"') => text.push(escaped),
                    other => text.extend(['\\', other]),
                },
                other => text.push(other),
            }
        }
        None
    }

    fn number(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._".contains(c));
        let (number, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let value = number.parse::<f64>().ok()?;
        self.rest = rest;
        Some(serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_dictionaries_are_read_as_python_writes_them() {
        for (text, value) in [
            ("[]", json!([])),
            (
                "[{'role': 'user', 'content': \"it's\"}, {'role': 'assistant', 'content': None}]",
                json!([{"role": "user", "content": "it's"}, {"role": "assistant", "content": null}]),
            ),
            // str() of a NumPy array, as pandas writes what it read from Parquet.
            (
                "[{'content': 'a\\n\\'b\\'', 'role': 'user'}\n {'content': '\\xe9\\u00e9', 'role': 'x'}]",
                json!([{"content": "a\n'b'", "role": "user"}, {"content": "éé", "role": "x"}]),
            ),
            ("array(['a', 'b'], dtype=object)", json!(["a", "b"])),
            ("('a', True, -1.5, nan)", json!(["a", true, -1.5, null])),
            ("{1: {'x': []}}", json!({"1.0": {"x": []}})),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_not_python_is_left_alone() {
        for text in ["", "['a'", "{'a'}", "{'a': }", "[1] and more", "def f():", "['\\ud800']", "a"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), None);
        assert_eq!(parse(&"{1:".repeat(100_000)), None);
    }
}
