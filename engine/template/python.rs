//! What Jinja templates take from Python, where minijinja differs: str() and repr() of values, json.dumps, string methods, the
//! whitespace that strip() and split() know, and transformers' raise_exception.
//!
//! Methods that can make much out of little pay for it in fuel before they allocate.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::guard::MAX_DEPTH;

/// minijinja's price: one unit of fuel for 64 bytes.
const BYTES_PER_FUEL: usize = 64;

/// The source of the error that `raise_exception` makes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Replaces what differs from Python in `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(write_output);
    environment.set_unknown_method_callback(call_method);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        let raised = Raised(message.to_owned());
        Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()).with_source(raised))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |state: &State, value: &Value| {
        let mut writer = Writer::new(state);
        writer.write_str_of(value)?;
        writer.finish()
    });
    environment.add_filter("trim", |state: &State, value: &str, characters: Option<&str>| {
        pay_for_strip(state, value, characters)?;
        Ok::<String, Error>(strip(value, characters, true, true).to_owned())
    });
    environment.add_filter("sum", sum);
}

/// `{{ value }}` prints str(value); an undefined value prints nothing.
fn write_output(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let failed = |_| Error::new(ErrorKind::WriteFailure, "the output takes no more");
    if let Some(text) = value.as_str() {
        return output.write_str(text).map_err(failed);
    }
    let mut writer = Writer::new(state);
    writer.write_str_of(value)?;
    output.write_str(&writer.finish()?).map_err(failed)
}

/// Text that pays its fuel as it grows.
struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    text: String,
    paid: usize,
    depth: usize,
}

impl<'a, 'template, 'env> Writer<'a, 'template, 'env> {
    fn new(state: &'a State<'template, 'env>) -> Self {
        Writer { state, text: String::new(), paid: 0, depth: 0 }
    }

    fn finish(mut self) -> Result<String, Error> {
        self.pay(0)?;
        Ok(self.text)
    }

    /// Pays for what was written and for `next` bytes more.
    fn pay(&mut self, next: usize) -> Result<(), Error> {
        let due = self.text.len().saturating_add(next).saturating_sub(self.paid) / BYTES_PER_FUEL;
        self.paid += due * BYTES_PER_FUEL;
        self.state.consume_fuel(due as u64)
    }

    fn enter(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = format!("a value is nested deeper than {MAX_DEPTH}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        self.state.consume_fuel(1)
    }

    /// str(value)
    fn write_str_of(&mut self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => {
                self.pay(text.len())?;
                self.text.push_str(text);
                Ok(())
            }
            None if value.is_undefined() => Ok(()),
            None => self.write_repr(value),
        }
    }

    /// repr(value)
    fn write_repr(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.text.push_str("None"),
            ValueKind::Undefined => self.text.push_str("Undefined"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "True" } else { "False" }),
            ValueKind::Number if !value.is_integer() => {
                self.text.push_str(&float_repr(f64::try_from(value.clone())?, ["nan", "inf"]));
            }
            ValueKind::String => {
                let text = value.as_str().unwrap_or_default();
                self.pay(text.len())?;
                write_string_repr(&mut self.text, text);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let brackets = if value.is_tuple() { ['(', ')'] } else { ['[', ']'] };
                self.enter()?;
                self.text.push(brackets[0]);
                let mut len = 0;
                for item in value.try_iter()? {
                    self.text.push_str(if len > 0 { ", " } else { "" });
                    self.write_repr(&item)?;
                    self.pay(0)?;
                    len += 1;
                }
                self.text.push_str(if value.is_tuple() && len == 1 { "," } else { "" });
                self.text.push(brackets[1]);
                self.depth -= 1;
            }
            ValueKind::Map => {
                self.enter()?;
                self.text.push('{');
                for (index, key) in value.try_iter()?.enumerate() {
                    self.text.push_str(if index > 0 { ", " } else { "" });
                    self.write_repr(&key)?;
                    self.text.push_str(": ");
                    self.write_repr(&value.get_item(&key)?)?;
                    self.pay(0)?;
                }
                self.text.push('}');
                self.depth -= 1;
            }
            // Whole numbers print alike; the rest (macros, the loop) is nothing that a sound template prints.
            _ => write!(self.text, "{value}").map_err(|_| Error::from(ErrorKind::WriteFailure))?,
        }
        self.pay(0)
    }

    /// json.dumps(value)
    fn write_json(&mut self, value: &Value, style: &JsonStyle) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => {
                write!(self.text, "{value}").map_err(|_| Error::from(ErrorKind::WriteFailure))?;
            }
            ValueKind::Number => {
                let number = f64::try_from(value.clone())?;
                self.text.push_str(&float_repr(number, ["NaN", "Infinity"]));
            }
            ValueKind::String => {
                self.write_json_string(value.as_str().unwrap_or_default(), style)?
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.enter()?;
                self.text.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.separate(&mut empty, style)?;
                    self.write_json(&item, style)?;
                }
                self.close(']', empty, style)?;
            }
            ValueKind::Map => {
                self.enter()?;
                self.text.push('{');
                let mut empty = true;
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if style.sort_keys {
                    keys.sort();
                }
                for key in keys {
                    self.separate(&mut empty, style)?;
                    match key.as_str() {
                        Some(text) => self.write_json_string(text, style)?,
                        None => {
                            self.text.push('"');
                            self.write_json(&key, style)?;
                            self.text.push('"');
                        }
                    }
                    self.text.push_str(&style.colon);
                    self.write_json(&value.get_item(&key)?, style)?;
                }
                self.close('}', empty, style)?;
            }
            kind => {
                let message = format!("{kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        self.pay(0)
    }

    fn separate(&mut self, empty: &mut bool, style: &JsonStyle) -> Result<(), Error> {
        if !*empty {
            self.text.push_str(&style.comma);
        }
        *empty = false;
        self.break_line(style)
    }

    fn close(&mut self, bracket: char, empty: bool, style: &JsonStyle) -> Result<(), Error> {
        self.depth -= 1;
        if !empty {
            self.break_line(style)?;
        }
        self.text.push(bracket);
        Ok(())
    }

    fn break_line(&mut self, style: &JsonStyle) -> Result<(), Error> {
        if let Some(indent) = style.indent {
            let width = indent.saturating_mul(self.depth);
            self.pay(width)?;
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', width));
        }
        Ok(())
    }

    fn write_json_string(&mut self, text: &str, style: &JsonStyle) -> Result<(), Error> {
        self.pay(text.len())?;
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                _ if character < ' ' || style.ensure_ascii && !(' '..='~').contains(&character) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        self.text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
        Ok(())
    }
}

/// The arguments of json.dumps.
struct JsonStyle {
    indent: Option<usize>,
    comma: String,
    colon: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

/// transformers' `tojson`: json.dumps with ensure_ascii=False and no HTML escapes.
fn to_json(state: &State, value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let ensure_ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.clone(), colon.clone()),
        Some(_) => {
            let message = "separators should be two strings";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle { indent, comma, colon, ensure_ascii, sort_keys };
    let mut writer = Writer::new(state);
    writer.write_json(value, &style)?;
    writer.finish()
}

/// repr() of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn float_repr(number: f64, [nan, infinity]: [&str; 2]) -> String {
    if number.is_nan() {
        return nan.to_owned();
    }
    if number.is_infinite() {
        return format!("{}{infinity}", if number < 0.0 { "-" } else { "" });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// repr() of a string.
fn write_string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            _ if character.is_control() || character != ' ' && is_space(character) => {
                let code = u32::from(character);
                if code < 0x100 {
                    out.push_str(&format!("\\x{code:02x}"));
                } else {
                    out.push_str(&format!("\\u{code:04x}"));
                }
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
}

/// str.isspace() of one character: Unicode's White_Space and the four information separators.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn strip<'a>(text: &'a str, characters: Option<&str>, start: bool, end: bool) -> &'a str {
    let strips = |character: char| match characters {
        Some(characters) => characters.contains(character),
        None => is_space(character),
    };
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
}

/// A method that minijinja's values do not have: Python's.
fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let fallback = minijinja_contrib::pycompat::unknown_method_callback;
    let Some(text) = value.as_str() else { return fallback(state, value, method, arguments) };
    let read = arguments.iter().filter_map(|argument| Some(argument.as_str()?.len()));
    pay_for(state, read.fold(text.len(), usize::saturating_add))?;
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            pay_for_strip(state, text, characters)?;
            Ok(strip(text, characters, method != "rstrip", method != "lstrip").into())
        }
        "split" => {
            let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) =
                from_args(arguments)?;
            let named_separator: Option<String> = named.get("sep")?;
            let most = most.or(named.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
            named.assert_all_used()?;
            let separator = separator.or(named_separator.as_deref());
            split(state, text, separator, most.unwrap_or(usize::MAX))
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(arguments)?;
            split_lines(state, text, keep.unwrap_or(false))
        }
        "title" => {
            let () = from_args(arguments)?;
            Ok(title(text).into())
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "replace" => {
            let (old, new, _): (&str, &str, Option<i32>) = from_args(arguments)?;
            pay_for(state, text.matches(old).count().saturating_mul(new.len()))?;
            fallback(state, value, method, arguments)
        }
        "join" => {
            let (values,): (&Value,) = from_args(arguments)?;
            let mut joined = Writer::new(state);
            for (index, item) in values.try_iter()?.enumerate() {
                if index > 0 {
                    joined.pay(text.len())?;
                    joined.text.push_str(text);
                }
                let Some(item) = item.as_str() else {
                    let message = format!("join() takes strings, item {index} is {}", item.kind());
                    return Err(Error::new(ErrorKind::InvalidOperation, message));
                };
                joined.pay(item.len())?;
                joined.text.push_str(item);
            }
            Ok(joined.finish()?.into())
        }
        "format" => {
            // A width in a format specification makes a gigabyte out of ten characters.
            if text.contains(':') || text.contains('!') {
                let message = "str.format with format specifications is not supported";
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
            let longest = arguments.iter().filter_map(|value| Some(value.as_str()?.len())).max();
            pay_for(state, text.matches('{').count().saturating_mul(longest.unwrap_or(64)))?;
            fallback(state, value, method, arguments)
        }
        _ => fallback(state, value, method, arguments),
    }
}

/// Every character of the text may be compared with every one that is stripped.
fn pay_for_strip(state: &State, text: &str, characters: Option<&str>) -> Result<(), Error> {
    let set = characters.map_or(0, str::len);
    if set <= BYTES_PER_FUEL {
        return Ok(());
    }
    pay_for(state, text.len().saturating_mul(set / BYTES_PER_FUEL))
}

/// sum(). Lists, where `start` is one, the crate adds in quadratic time. Strings it adds as well, which Python refuses.
fn sum(
    state: &State,
    values: Value,
    attribute: Option<&str>,
    start: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let given = if start.is_some() { start.clone() } else { named.get("start")? };
    let invalid = |message: &str| Error::new(ErrorKind::InvalidOperation, message.to_owned());
    let mut sum: Vec<Value> = match given.as_ref().map(Value::kind) {
        Some(ValueKind::String) => return Err(invalid("sum() adds no strings; use join")),
        Some(ValueKind::Seq) => given.iter().flat_map(Value::try_iter).flatten().collect(),
        _ => return minijinja::filters::sum(state, values, attribute, start, named),
    };
    let attribute = attribute.or(named.get("attribute")?);
    named.assert_all_used()?;
    for item in values.try_iter()?.checked() {
        let path = attribute.into_iter().flat_map(|path| path.split('.'));
        let item = path.into_iter().try_fold(item?, |item, name| item.get_attr(name))?;
        if item.kind() != ValueKind::Seq {
            return Err(invalid("sum() adds only lists to a list"));
        }
        for part in item.try_iter()?.checked() {
            state.consume_fuel(1)?;
            sum.push(part?);
        }
    }
    Ok(sum.into())
}

fn pay_for(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

fn split(state: &State, text: &str, separator: Option<&str>, most: usize) -> Result<Value, Error> {
    let mut parts = Vec::new();
    let mut push = |part: &str| {
        parts.push(Value::from(part));
        state.consume_fuel(1)
    };
    match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => {
            for part in text.splitn(most.saturating_add(1), separator) {
                push(part)?;
            }
        }
        None => {
            let mut rest = text.trim_start_matches(is_space);
            let mut splits = 0;
            while !rest.is_empty() {
                let end = if splits < most { rest.find(is_space) } else { None };
                let Some(end) = end else {
                    // Python strips the end of the last part only where it would have split there.
                    push(if splits < most { rest } else { rest.trim_end_matches(is_space) })?;
                    break;
                };
                push(&rest[..end])?;
                rest = rest[end..].trim_start_matches(is_space);
                splits += 1;
            }
        }
    }
    Ok(parts.into())
}

fn split_lines(state: &State, text: &str, keep: bool) -> Result<Value, Error> {
    let ends = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        state.consume_fuel(1)?;
        let end = rest.find(ends).unwrap_or(rest.len());
        let ending = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(character) => character.len_utf8(),
            None => 0,
        };
        lines.push(Value::from(&rest[..if keep { end + ending } else { end }]));
        rest = &rest[end + ending..];
    }
    Ok(lines.into())
}

/// str.title(): a letter after a non-letter is upper case, any other lower case.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            titled.extend(character.to_lowercase());
        } else {
            titled.extend(character.to_uppercase());
        }
        inside = character.is_alphabetic();
    }
    titled
}
