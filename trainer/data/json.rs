//! JSON as people's tools write it: what is not needed may be anything, what is needed must be sound.
//!
//! Python's `json.dumps` writes `NaN` and `Infinity`, cut emoji leave half of a surrogate pair, log-probabilities
//! reach `1e400`, and metadata nest as they like. None of that is JSON that a strict reader takes, and none of it
//! matters in a column that nobody reads. So an object is first split into the texts of its values, and only those
//! that are needed are parsed; in them, `NaN` and infinities are values that are missing, as in Parquet.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Keys that a conversation is made of. Under any other key, a message may hold what it likes.
const READ: [&str; 11] = [
    "role",
    "content",
    "from",
    "value",
    "type",
    "text",
    "tool_calls",
    "function_call",
    "messages",
    "conversation",
    "conversations",
];
/// Limit of the nesting of lists and objects in a conversation.
const MAX_DEPTH: usize = 8;

/// An object's keys in their order, each with the text of its value.
pub(super) struct Fields<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    fields.push((key, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A key; half of a surrogate pair in it is replaced.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                Ok(Key(key.to_owned()))
            }

            fn visit_bytes<E>(self, key: &[u8]) -> Result<Key, E> {
                Ok(Key(String::from_utf8_lossy(key).into_owned()))
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

/// Calls `with` with an object's fields; the error says what is wrong with the text.
pub(super) fn with_fields<T>(text: &str, with: impl FnOnce(Fields<'_>) -> T) -> Result<T, String> {
    match serde_json::from_str(text) {
        Ok(fields) => Ok(with(fields)),
        Err(error) => match without_numbers_of_python(text) {
            Cow::Owned(text) => {
                serde_json::from_str(&text).map(with).map_err(|error| explain(&error))
            }
            Cow::Borrowed(_) => Err(explain(&error)),
        },
    }
}

/// A value of any kind that a column or a message may hold. Other keys than a conversation's have no value.
pub(super) fn value(text: &str) -> Result<Value, String> {
    match value_at(text, 0) {
        Err(_) if matches!(without_numbers_of_python(text), Cow::Owned(_)) => {
            value_at(&without_numbers_of_python(text), 0)
        }
        parsed => parsed,
    }
}

fn value_at(text: &str, depth: usize) -> Result<Value, String> {
    let start = text.trim_ascii_start().as_bytes().first();
    if depth == MAX_DEPTH && matches!(start, Some(b'[' | b'{')) {
        return Err(format!("more than {MAX_DEPTH} lists and objects in each other"));
    }
    match start {
        Some(b'[') => {
            let items: Vec<&RawValue> = parse(text)?;
            items.into_iter().map(|item| value_at(item.get(), depth + 1)).collect()
        }
        Some(b'{') => {
            let fields: Fields<'_> = parse(text)?;
            let mut object = Map::new();
            for (key, field) in fields.0 {
                let read = READ.contains(&key.as_str());
                let value = if read { value_at(field.get(), depth + 1)? } else { Value::Null };
                object.insert(key, value);
            }
            Ok(Value::Object(object))
        }
        _ => parse(text),
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| explain(&error))
}

/// The message of the parser, in plain words.
fn explain(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let said = error.to_string();
    let said = said.replace(&format!(" at line {line} column {column}"), "");
    let why = match said.as_str() {
        "lone leading surrogate in hex escape"
        | "unexpected end of hex escape"
        | "invalid unicode code point" => {
            "half of a surrogate pair, such as \\ud83d, as cutting an emoji leaves it"
        }
        "number out of range" => "a number beyond 1.8e308",
        "recursion limit exceeded" => "lists and objects nested too deeply",
        other => other,
    };
    match line {
        1 => format!("{why} (column {column})"),
        _ => format!("{why} (line {line} of it, column {column})"),
    }
}

/// The text with `null` for `NaN`, `Infinity` and `-Infinity` wherever a value stands.
fn without_numbers_of_python(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut found: Option<String> = None;
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'N' | b'I' | b'-' => {
                let names = ["NaN", "Infinity", "-Infinity", "-NaN"];
                let rest = &bytes[at..];
                match names.iter().find(|name| rest.starts_with(name.as_bytes())) {
                    Some(name) => {
                        let text_so_far = found.get_or_insert_default();
                        text_so_far.push_str(&text[copied..at]);
                        text_so_far.push_str("null");
                        at += name.len();
                        copied = at;
                    }
                    None => at += 1,
                }
            }
            _ => at += 1,
        }
    }
    match found {
        None => Cow::Borrowed(text),
        Some(mut replaced) => {
            replaced.push_str(&text[copied..]);
            Cow::Owned(replaced)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Vec<(String, String)>, String> {
        with_fields(text, |fields| {
            fields.0.into_iter().map(|(key, raw)| (key, raw.get().to_owned())).collect()
        })
    }

    #[test]
    fn what_is_not_read_may_be_anything() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        for odd in ["NaN", "-Infinity", "[Infinity, 1e400]", "\"\\ud83d\"", "-1e999", &deep] {
            let text = format!("{{\"prompt\": \"NaN \\\" Infinity\", \"odd\": {odd}}}");
            let fields = keys(&text).unwrap_or_else(|error| panic!("{odd:.20}: {error}"));
            assert_eq!(fields[0].0, "prompt");
            assert_eq!(fields[0].1, "\"NaN \\\" Infinity\"");
        }
        assert_eq!(keys("{\"\\ud83d\": 1}").unwrap()[0].1, "1");
        for broken in ["{\"a\":Nan}", "{\"a\":1,}", "[1]", "{\"a\":\"", "{\"a\":1} x"] {
            assert!(keys(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_read_is_sound_or_says_why() {
        let message = "[{\"role\":\"user\",\"content\":\"NaN\",\"p\":[NaN,\"\\ud800\",1e400]}]";
        assert_eq!(value(message).unwrap()[0]["content"], "NaN");
        assert_eq!(value("NaN"), Ok(Value::Null));
        assert_eq!(value(" [1, -Infinity]").unwrap()[1], Value::Null);
        assert!(
            value("\"a \\ud83d b\"").unwrap_err().contains("surrogate"),
            "{:?}",
            value("\"\\ud83d\"")
        );
        assert!(value("1e400").unwrap_err().contains("1.8e308"));
        assert!(value(&"[".repeat(50)).is_err());
        let deep = format!("{}{}", "[".repeat(9), "]".repeat(9));
        assert!(value(&deep).unwrap_err().contains("in each other"));
    }
}
