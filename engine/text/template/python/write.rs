//! str() and repr() of values, and json.dumps.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::objects::{Generator, Kind, Range, View};
use super::operators::compare;
use super::{BYTES_PER_FUEL, bind, int_or, iterate, text, texts, truth, type_error};
use crate::text::template::guard::MAX_DEPTH;

/// Text that pays its fuel as it grows.
pub(super) struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    text: String,
    paid: usize,
    depth: usize,
}

impl<'a, 'template, 'env> Writer<'a, 'template, 'env> {
    pub(super) fn new(state: &'a State<'template, 'env>) -> Self {
        Writer { state, text: String::new(), paid: 0, depth: 0 }
    }

    pub(super) fn finish(mut self) -> Result<String, Error> {
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
    pub(super) fn write_str_of(&mut self, value: &Value) -> Result<(), Error> {
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
    pub(super) fn write_repr(&mut self, value: &Value) -> Result<(), Error> {
        if let Some(range) = value.downcast_object_ref::<Range>() {
            self.text += &range.to_string();
            return self.pay(0);
        }
        if let Some(view) = value.downcast_object_ref::<View>() {
            self.text += view.name;
            self.text.push('(');
            self.write_repr(&view.items.clone().into())?;
            self.text.push(')');
            return self.pay(0);
        }
        if value.as_str().is_some() && super::is_safe(value) {
            self.text += "Markup(";
            self.write_repr(&value.as_str().unwrap_or_default().into())?;
            self.text.push(')');
            return self.pay(0);
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("None"),
            ValueKind::Undefined => self.text.push_str("Undefined"),
            _ if value.downcast_object_ref::<Generator>().is_some() => {
                self.text += "<generator object>";
            }
            _ if Kind::of(value) == Kind::Namespace => {
                self.text += "<Namespace ";
                self.write_repr(&super::plain_dict(value))?;
                self.text.push('>');
            }
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
                let is_tuple = Kind::of(value) == Kind::Tuple;
                let brackets = if is_tuple { ['(', ')'] } else { ['[', ']'] };
                self.enter()?;
                self.text.push(brackets[0]);
                let mut len = 0;
                for item in value.try_iter()? {
                    self.text.push_str(if len > 0 { ", " } else { "" });
                    self.write_repr(&item)?;
                    self.pay(0)?;
                    len += 1;
                }
                self.text.push_str(if is_tuple && len == 1 { "," } else { "" });
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
            // Whole numbers print alike; sound templates print no other kinds (macros, the loop).
            _ => write!(self.text, "{value}").map_err(|_| Error::from(ErrorKind::WriteFailure))?,
        }
        self.pay(0)
    }

    /// json.dumps(value)
    fn write_json(&mut self, value: &Value, style: &JsonStyle) -> Result<(), Error> {
        match value.kind() {
            _ if !matches!(
                Kind::of(value),
                Kind::None
                    | Kind::Bool
                    | Kind::Int
                    | Kind::Float
                    | Kind::Str
                    | Kind::List
                    | Kind::Tuple
                    | Kind::Dict
            ) =>
            {
                let name = Kind::of(value).name();
                return Err(type_error(format!("a {name} is not JSON serializable")));
            }
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
                    let mixed =
                        keys.windows(2).find_map(|two| compare("<", &two[0], &two[1]).err());
                    if let Some(error) = mixed {
                        return Err(error);
                    }
                    keys.sort();
                }
                for key in keys {
                    self.separate(&mut empty, style)?;
                    match key.as_str() {
                        Some(text) => self.write_json_string(text, style)?,
                        None if Kind::of(&key) == Kind::Tuple => {
                            return Err(type_error("a tuple is no key in JSON".to_owned()));
                        }
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
            kind => return Err(type_error(format!("{kind} is not JSON serializable"))),
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
        if let Some(indent) = &style.indent {
            self.pay(indent.len().saturating_mul(self.depth))?;
            self.text.push('\n');
            (0..self.depth).for_each(|_| self.text.push_str(indent));
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
    indent: Option<String>,
    comma: String,
    colon: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

/// transformers' `tojson`: json.dumps with ensure_ascii=False and no HTML escapes.
pub(super) fn to_json(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, ensure_ascii, indent, separators, sort_keys] =
        bind(arguments, ["x", "ensure_ascii", "indent", "separators", "sort_keys"])?;
    let value = value.unwrap_or_default();
    let indent = match indent.filter(|indent| !indent.is_none()) {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = usize::try_from(int_or(&Some(indent.clone()), 0)?).unwrap_or(0);
                super::pay_for(state, width)?;
                " ".repeat(width)
            }
        }),
        None => None,
    };
    let (comma, colon) = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => match iterate(state, &separators)?.as_slice() {
            [comma, colon] => (text(comma)?.to_owned(), text(colon)?.to_owned()),
            _ => return Err(type_error("separators should be two strings".to_owned())),
        },
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let (ensure_ascii, sort_keys) = (truth(&ensure_ascii), truth(&sort_keys));
    let style = JsonStyle { indent, comma, colon, ensure_ascii, sort_keys };
    let mut writer = Writer::new(state);
    writer.write_json(&value, &style)?;
    Ok(writer.finish()?.into())
}

/// repr() of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(number: f64, [nan, infinity]: [&str; 2]) -> String {
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
            _ if !texts::is_printable(character) => match u32::from(character) {
                code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
                code @ ..0x1_0000 => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
            _ => out.push(character),
        }
    }
    out.push(quote);
}
