//! What Jinja templates take from Python and Jinja2, where minijinja differs: kinds of values, operators, tests, filters, methods,
//! str() and repr(), json.dumps, and transformers' raise_exception. Results and errors are those of Jinja2 3.1 in transformers'
//! sandbox: tests/fixtures/chat/expressions.py compares some thousand expressions.
//!
//! A function that can make a large value out of a small one pays for it in fuel before it allocates.

mod filters;
mod format;
mod methods;
mod numbers;
mod objects;
mod operators;
mod predicates;
mod texts;
mod write;

use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

pub(super) use methods::call as call_method;
pub(super) use objects::{Generator, Kind, Method, View};
use operators::Number;
pub(super) use operators::{attribute, item, slice};
use write::Writer;

/// minijinja's price: one unit of fuel for 64 bytes.
const BYTES_PER_FUEL: usize = 64;

/// Names of filters for operators, which no template can write.
pub(super) const NEGATE: &str = "=op-neg";
pub(super) const ITEM: &str = "=op-item";
pub(super) const SLICE: &str = "=op-slice";
pub(super) const UNPACK: &str = "=op-unpack";
pub(super) const ITERATE: &str = "=op-iterate";

/// The source of the error that `raise_exception` makes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Replaces the functions, filters and tests that differ from Python.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(write_output);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        let raised = Raised(message.to_owned());
        Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()).with_source(raised))
    });
    environment.add_function("range", |arguments: Rest<ValueOrKwargs>| {
        filters::range(&arguments.into_values())
    });
    environment.add_function("namespace", |state: &mut State, arguments: Rest<ValueOrKwargs>| {
        namespace(state, &arguments.into_values())
    });
    environment.add_global("dict", Value::from_object(objects::DictType));
    for (name, filter) in filters::FILTERS.into_iter().chain(texts::FILTERS) {
        let takes_undefined = matches!(name, "default" | "d");
        environment.add_filter(name, move |state: &mut State, arguments: Rest<ValueOrKwargs>| {
            let arguments = arguments.into_values();
            if !takes_undefined {
                strict(state, &arguments)?;
            }
            filter(state, &arguments)
        });
    }
    for (name, test) in predicates::TESTS {
        let takes_undefined = matches!(name, "defined" | "undefined");
        environment.add_test(name, move |state: &mut State, arguments: Rest<ValueOrKwargs>| {
            let arguments = arguments.into_values();
            if !takes_undefined {
                strict(state, &arguments)?;
            }
            test(state, &arguments)
        });
    }
    for (name, operator) in operators::OPERATORS {
        environment.add_filter(
            name,
            move |state: &mut State, a: ValueOrKwargs, b: ValueOrKwargs| {
                let operands = [a.into_value(), b.into_value()];
                strict(state, &operands)?;
                operator(state, &operands[0], &operands[1])
            },
        );
    }
    environment.add_filter(NEGATE, |value: ValueOrKwargs| operators::neg(&value));
    environment.add_filter(ITEM, |state: &State, value: ValueOrKwargs, key: ValueOrKwargs| {
        item(state, &value, &key)
    });
    environment.add_filter(
        SLICE,
        |state: &mut State,
         value: ValueOrKwargs,
         start: ValueOrKwargs,
         stop: ValueOrKwargs,
         step: ValueOrKwargs| slice(state, &value, [&start, &stop, &step]),
    );
    environment.add_filter(UNPACK, |state: &State, value: ValueOrKwargs| {
        strict(state, std::slice::from_ref(&value))?;
        iterate(state, &value).map(Value::from)
    });
    environment.add_filter(ITERATE, |state: &State, value: ValueOrKwargs| {
        let value = value.into_value();
        strict(state, std::slice::from_ref(&value))?;
        match Kind::of(&value) {
            // A loop asks for the length.
            Kind::Generator => iterate(state, &value).map(Value::from),
            kind if kind.is_iterable() => Ok(value),
            kind => Err(type_error(format!("a {} has no items", kind.name()))),
        }
    });
}

/// Whether `name` is one of the words of `names`.
pub(super) fn is_among(names: &str, name: &str) -> bool {
    names.split(' ').any(|known| known == name)
}

/// In a strict template, nothing is done with an undefined value.
fn strict(state: &State, values: &[Value]) -> Result<(), Error> {
    let undefined = values.iter().any(Value::is_undefined);
    if undefined && matches!(state.undefined_behavior(), UndefinedBehavior::Strict) {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    Ok(())
}

/// `{{ value }}` prints str(value); an undefined value prints nothing.
fn write_output(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let failed = |_| Error::new(ErrorKind::WriteFailure, "the output takes no more");
    if let Some(text) = value.as_str() {
        return output.write_str(text).map_err(failed);
    }
    output.write_str(&str_of(state, value)?).map_err(failed)
}

fn type_error(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Fails if the value is undefined.
fn is_undefined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(Error::from(ErrorKind::UndefinedError)) } else { Ok(()) }
}

/// Positional and named arguments.
fn split_keywords(arguments: &[Value]) -> (&[Value], Option<&Value>) {
    match arguments.split_last() {
        Some((keywords, positional)) if keywords.is_kwargs() => (positional, Some(keywords)),
        _ => (arguments, None),
    }
}

/// The arguments by the names of the parameters, as a call in Python binds them.
fn bind<const N: usize>(
    arguments: &[Value],
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (positional, keywords) = split_keywords(arguments);
    let mut bound = [const { None }; N];
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    for (place, value) in bound.iter_mut().zip(positional) {
        *place = Some(value.clone());
    }
    let keywords = keywords.and_then(|keywords| keywords.as_object()?.try_iter_pairs());
    for (name, value) in keywords.into_iter().flatten() {
        let at = names.iter().position(|known| name.as_str() == Some(known));
        match at.map(|at| &mut bound[at]) {
            Some(place @ None) => *place = Some(value),
            Some(_) => return Err(type_error(format!("two values for {name}"))),
            None => return Err(type_error(format!("there is no argument {name}"))),
        }
    }
    Ok(bound)
}

fn text(value: &Value) -> Result<&str, Error> {
    let wrong = || type_error(format!("expected a text, got {}", Kind::of(value).name()));
    value.as_str().ok_or_else(wrong)
}

fn truth(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(Value::is_true)
}

fn int_or(value: &Option<Value>, otherwise: i64) -> Result<i64, Error> {
    let Some(value) = value else { return Ok(otherwise) };
    match Number::of(value) {
        Some(Number::Int(number)) => {
            Ok(number.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
        }
        _ => {
            let name = Kind::of(value).name();
            Err(type_error(format!("expected a whole number, got {name}")))
        }
    }
}

fn is_safe(value: &Value) -> bool {
    value.is_safe() && value.as_str().is_some()
}

/// str(value)
fn str_of(state: &State, value: &Value) -> Result<String, Error> {
    let mut writer = Writer::new(state);
    writer.write_str_of(value)?;
    writer.finish()
}

/// repr(value)
fn repr_of(state: &State, value: &Value) -> Result<String, Error> {
    let mut writer = Writer::new(state);
    writer.write_repr(value)?;
    writer.finish()
}

/// A repr() with escapes for all that is not ASCII.
fn ascii_of(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for letter in text.chars() {
        match u32::from(letter) {
            ..0x80 => ascii.push(letter),
            code @ ..0x100 => ascii += &format!("\\x{code:02x}"),
            code @ ..0x1_0000 => ascii += &format!("\\u{code:04x}"),
            code => ascii += &format!("\\U{code:08x}"),
        }
    }
    ascii
}

/// The items of a value that Python can iterate over, paid for.
fn iterate(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let kind = Kind::of(value);
    if !kind.is_iterable() {
        return Err(type_error(format!("a {} has no items", kind.name())));
    }
    if kind == Kind::Undefined {
        return Ok(Vec::new());
    }
    if let Some(text) = value.as_str() {
        pay_for(state, text.len().saturating_mul(8))?;
        return Ok(text.chars().map(|letter| Value::from(letter.to_string())).collect());
    }
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        items.push(item?);
        if items.len().is_multiple_of(8) {
            state.consume_fuel(1)?;
        }
    }
    Ok(items)
}

fn pay_for(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

/// A dict of the same keys and values.
fn plain_dict(map: &Value) -> Value {
    let pairs = map.as_object().and_then(|map| map.try_iter_pairs());
    Value::from_pairs(pairs.into_iter().flatten())
}

/// dict(pairs, **more)
fn dict(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let (positional, keywords) = split_keywords(arguments);
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    let mut extend = |map: &Value| {
        let more = map.as_object().and_then(|map| map.try_iter_pairs());
        pairs.extend(more.into_iter().flatten());
    };
    match positional {
        [] => {}
        [map] if Kind::of(map) == Kind::Dict => extend(map),
        [list] => {
            for pair in iterate(state, list)? {
                match iterate(state, &pair)?.as_slice() {
                    [key, value] if Kind::of(key).is_hashable() => {
                        extend(&Value::from_pairs([(key.clone(), value.clone())]));
                    }
                    _ => return Err(type_error("dict takes a dict or pairs".to_owned())),
                }
            }
        }
        _ => return Err(Error::from(ErrorKind::TooManyArguments)),
    }
    keywords.into_iter().for_each(extend);
    pay_for(state, pairs.len().saturating_mul(48))?;
    Ok(Value::from_pairs(pairs))
}

/// namespace(pairs, **more)
fn namespace(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let attributes = dict(state, arguments)?;
    let hidden = |key: &Value| key.as_str().is_none_or(|name| name.starts_with('_'));
    if let Some(name) = iterate(state, &attributes)?.iter().find(|key| hidden(key)) {
        return Err(type_error(format!("a namespace has no attribute {name}")));
    }
    minijinja::functions::namespace(Some(attributes.into()))
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

/// Every character of the text may be compared with every one that is stripped.
fn pay_for_strip(state: &State, text: &str, characters: Option<&str>) -> Result<(), Error> {
    let set = characters.map_or(0, str::len);
    if set <= BYTES_PER_FUEL {
        return Ok(());
    }
    pay_for(state, text.len().saturating_mul(set / BYTES_PER_FUEL))
}
