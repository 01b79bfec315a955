//! Jinja2's tests.

use std::cmp::Ordering;

use minijinja::{Error, State, Value};

use super::objects::Kind;
use super::operators::{self, Number};
use super::{bind, is_safe, str_of, texts, type_error};

type Test = fn(&mut State, &[Value]) -> Result<bool, Error>;

/// All of them, by their names.
pub(super) const TESTS: [(&str, Test); 39] = [
    ("boolean", |_, a| alone(a, |kind| kind == Kind::Bool)),
    ("callable", callable),
    ("defined", |_, a| alone(a, |kind| kind != Kind::Undefined)),
    ("undefined", |_, a| alone(a, |kind| kind == Kind::Undefined)),
    ("none", |_, a| alone(a, |kind| kind == Kind::None)),
    ("number", |_, a| alone(a, |kind| matches!(kind, Kind::Bool | Kind::Int | Kind::Float))),
    ("integer", |_, a| alone(a, |kind| kind == Kind::Int)),
    ("float", |_, a| alone(a, |kind| kind == Kind::Float)),
    ("string", |_, a| alone(a, |kind| kind == Kind::Str)),
    ("mapping", |_, a| alone(a, |kind| kind == Kind::Dict)),
    ("sequence", |_, a| {
        use Kind::{Dict, List, Range, Str, Tuple, Undefined};
        alone(a, |kind| matches!(kind, Str | List | Tuple | Range | Dict | Undefined))
    }),
    ("iterable", |_, a| alone(a, Kind::is_iterable)),
    ("true", |_, a| one(a).map(|value| Kind::of(value) == Kind::Bool && value.is_true())),
    ("false", |_, a| one(a).map(|value| Kind::of(value) == Kind::Bool && !value.is_true())),
    ("odd", |state, a| remainder_is(state, one(a)?, &Value::from(2), 1)),
    ("even", |state, a| remainder_is(state, one(a)?, &Value::from(2), 0)),
    ("divisibleby", |state, a| remainder_is(state, first(a, 1)?, &a[1], 0)),
    ("lower", |state, a| Ok(texts::is_lower(&str_of(state, one(a)?)?))),
    ("upper", |state, a| Ok(texts::is_upper(&str_of(state, one(a)?)?))),
    ("eq", equal),
    ("equalto", equal),
    ("==", equal),
    ("ne", |state, a| equal(state, a).map(|equal| !equal)),
    ("!=", |state, a| equal(state, a).map(|equal| !equal)),
    ("gt", |_, a| compared(a, Ordering::is_gt)),
    ("greaterthan", |_, a| compared(a, Ordering::is_gt)),
    (">", |_, a| compared(a, Ordering::is_gt)),
    ("ge", |_, a| compared(a, Ordering::is_ge)),
    (">=", |_, a| compared(a, Ordering::is_ge)),
    ("lt", |_, a| compared(a, Ordering::is_lt)),
    ("lessthan", |_, a| compared(a, Ordering::is_lt)),
    ("<", |_, a| compared(a, Ordering::is_lt)),
    ("le", |_, a| compared(a, Ordering::is_le)),
    ("<=", |_, a| compared(a, Ordering::is_le)),
    ("in", |state, a| operators::contains(state, &first(a, 1).map(|_| a[1].clone())?, &a[0])),
    ("sameas", |_, a| first(a, 1).map(|value| minijinja::tests::is_sameas(value, &a[1]))),
    ("escaped", |_, a| one(a).map(is_safe)),
    ("filter", |state, a| known(one(a)?, |name| minijinja::tests::is_filter(state, name))),
    ("test", |state, a| known(one(a)?, |name| minijinja::tests::is_test(state, name))),
];

/// The value of a test that takes so many arguments.
fn first(arguments: &[Value], more: usize) -> Result<&Value, Error> {
    match arguments {
        [value, rest @ ..] if rest.len() == more && !rest.iter().any(Value::is_kwargs) => Ok(value),
        _ => Err(type_error(format!("the test takes {more} arguments"))),
    }
}

fn one(arguments: &[Value]) -> Result<&Value, Error> {
    first(arguments, 0)
}

fn alone(arguments: &[Value], is: impl Fn(Kind) -> bool) -> Result<bool, Error> {
    one(arguments).map(|value| is(Kind::of(value)))
}

fn callable(_: &mut State, arguments: &[Value]) -> Result<bool, Error> {
    // Jinja2's Undefined has a __call__, which fails.
    alone(arguments, |kind| matches!(kind, Kind::Callable | Kind::Undefined | Kind::Loop))
}

fn remainder_is(
    state: &mut State,
    value: &Value,
    divisor: &Value,
    rest: i64,
) -> Result<bool, Error> {
    Ok(operators::equal(&operators::rem(state, value, divisor)?, &Value::from(rest)))
}

fn equal(_: &mut State, arguments: &[Value]) -> Result<bool, Error> {
    let [a, b] = bind(arguments, ["value", "other"])?;
    match (a, b) {
        (Some(a), Some(b)) => Ok(operators::equal(&a, &b)),
        _ => Err(type_error("the test takes an argument".to_owned())),
    }
}

fn compared(arguments: &[Value], is: fn(Ordering) -> bool) -> Result<bool, Error> {
    let value = first(arguments, 1)?;
    Ok(operators::compare("<", value, &arguments[1])?.is_some_and(is))
}

fn known(name: &Value, is_known: impl Fn(&str) -> bool) -> Result<bool, Error> {
    if !Kind::of(name).is_hashable() {
        return Err(type_error(format!("{} is no name", Kind::of(name).name())));
    }
    // Names of our own for operators cannot be written as filters.
    Ok(Number::of(name).is_none()
        && name.as_str().is_some_and(|name| !name.starts_with(['=', '.', '@']) && is_known(name)))
}
