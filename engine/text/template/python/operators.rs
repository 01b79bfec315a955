//! Python's operators, attributes, items and slices.

use std::cmp::Ordering;

use minijinja::{Error, ErrorKind, State, UndefinedBehavior, Value};

use super::objects::{Group, Kind, Method, Range, tuple};
use super::{format, is_safe, iterate, methods, pay_for, str_of, type_error};

/// Bytes of an item in a list, for what is paid before a list is made.
const ITEM_BYTES: usize = 24;

#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    /// Of a number or a bool.
    pub(super) fn of(value: &Value) -> Option<Number> {
        match Kind::of(value) {
            Kind::Bool => Some(Number::Int(i128::from(value.is_true()))),
            Kind::Int => i128::try_from(value.clone()).ok().map(Number::Int),
            Kind::Float => f64::try_from(value.clone()).ok().map(Number::Float),
            _ => None,
        }
    }

    pub(super) fn as_f64(self) -> f64 {
        match self {
            Number::Int(number) => number as f64,
            Number::Float(number) => number,
        }
    }
}

impl From<Number> for Value {
    fn from(number: Number) -> Value {
        match number {
            Number::Int(number) => match i64::try_from(number) {
                Ok(number) => number.into(),
                Err(_) => number.into(),
            },
            Number::Float(number) => number.into(),
        }
    }
}

/// The filters that stand for operators, by the name under which they are called.
pub(super) type Operator = fn(&mut State, &Value, &Value) -> Result<Value, Error>;
pub(super) const OPERATORS: [(&str, Operator); 15] = [
    ("=op-add", add),
    ("=op-sub", sub),
    ("=op-mul", mul),
    ("=op-div", div),
    ("=op-floordiv", floor_div),
    ("=op-rem", rem),
    ("=op-pow", pow),
    ("=op-concat", concat),
    ("=op-eq", |_, a, b| Ok(equal(a, b).into())),
    ("=op-ne", |_, a, b| Ok((!equal(a, b)).into())),
    ("=op-lt", |_, a, b| Ok((compare("<", a, b)? == Some(Ordering::Less)).into())),
    ("=op-le", |_, a, b| Ok(compare("<=", a, b)?.is_some_and(Ordering::is_le).into())),
    ("=op-gt", |_, a, b| Ok((compare(">", a, b)? == Some(Ordering::Greater)).into())),
    ("=op-ge", |_, a, b| Ok(compare(">=", a, b)?.is_some_and(Ordering::is_ge).into())),
    ("=op-in", |state, needle, container| Ok(contains(state, container, needle)?.into())),
];

fn unsupported(operator: &str, a: &Value, b: &Value) -> Error {
    let (a, b) = (Kind::of(a), Kind::of(b));
    if a == Kind::Undefined || b == Kind::Undefined {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of {operator}"));
    }
    type_error(format!("{} {operator} {} is not defined", a.name(), b.name()))
}

fn too_large() -> Error {
    type_error("a whole number of more than 127 bits".to_owned())
}

/// An operation on whole numbers, which may fail, or on floats.
fn arithmetic(
    operator: &str,
    a: &Value,
    b: &Value,
    whole: impl Fn(i128, i128) -> Option<i128>,
    float: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            whole(a, b).map(|number| Number::Int(number).into()).ok_or_else(too_large)
        }
        (Some(a), Some(b)) => Ok(float(a.as_f64(), b.as_f64()).into()),
        _ => Err(unsupported(operator, a, b)),
    }
}

pub(super) fn add(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (Kind::of(a), Kind::of(b)) {
        (Kind::Str, Kind::Str) => join(state, a, b),
        (kind @ (Kind::List | Kind::Tuple), other) if kind == other => {
            let mut items = iterate(state, a)?;
            items.extend(iterate(state, b)?);
            Ok(if kind == Kind::Tuple { tuple(items) } else { items.into() })
        }
        _ => arithmetic("+", a, b, i128::checked_add, |a, b| a + b),
    }
}

fn sub(_: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    arithmetic("-", a, b, i128::checked_sub, |a, b| a - b)
}

fn mul(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    let repeated = |kind| matches!(kind, Kind::Str | Kind::List | Kind::Tuple);
    let (value, count) = match (Kind::of(a), Kind::of(b)) {
        (kind, _) if repeated(kind) => (a, b),
        (_, kind) if repeated(kind) => (b, a),
        _ => return arithmetic("*", a, b, i128::checked_mul, |a, b| a * b),
    };
    let Some(Number::Int(count)) = Number::of(count) else { return Err(unsupported("*", a, b)) };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = value.as_str() {
        pay_for(state, text.len().saturating_mul(count))?;
        let text = text.repeat(count);
        return Ok(if is_safe(value) { Value::from_safe_string(text) } else { text.into() });
    }
    let items = iterate(state, value)?;
    pay_for(state, items.len().saturating_mul(count).saturating_mul(ITEM_BYTES))?;
    let all: Vec<Value> = std::iter::repeat_n(items, count).flatten().collect();
    Ok(if value.is_tuple() { tuple(all) } else { all.into() })
}

fn zero_division() -> Error {
    type_error("division by zero".to_owned())
}

fn div(_: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(_), Some(b)) if b.as_f64() == 0.0 => Err(zero_division()),
        (Some(a), Some(b)) => Ok((a.as_f64() / b.as_f64()).into()),
        _ => Err(unsupported("/", a, b)),
    }
}

fn floor_div(_: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    if Number::of(a).is_some() && Number::of(b).is_some_and(|b| b.as_f64() == 0.0) {
        return Err(zero_division());
    }
    let whole = |a: i128, b: i128| {
        let quotient = a.checked_div(b)?;
        Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
    };
    arithmetic("//", a, b, whole, |a, b| (a / b).floor())
}

pub(super) fn rem(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(text) = a.as_str() {
        return format::percent(state, text, b).map(Value::from);
    }
    if Number::of(a).is_some() && Number::of(b).is_some_and(|b| b.as_f64() == 0.0) {
        return Err(zero_division());
    }
    let whole = |a: i128, b: i128| {
        let rest = a.checked_rem(b)?;
        Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
    };
    let float = |a: f64, b: f64| {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest.copysign(b) }
    };
    arithmetic("%", a, b, whole, float)
}

fn pow(_: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) if b >= 0 => {
            let power = u32::try_from(b).ok().and_then(|b| a.checked_pow(b));
            power.map(|power| Number::Int(power).into()).ok_or_else(too_large)
        }
        (Some(a), Some(b)) if a.as_f64() == 0.0 && b.as_f64() < 0.0 => Err(zero_division()),
        (Some(a), Some(b)) => Ok(a.as_f64().powf(b.as_f64()).into()),
        _ => Err(unsupported("**", a, b)),
    }
}

pub(super) fn neg(value: &Value) -> Result<Value, Error> {
    match Number::of(value) {
        Some(Number::Int(number)) => Ok(Number::Int(-number).into()),
        Some(Number::Float(number)) => Ok((-number).into()),
        None => Err(type_error(format!("-{} is not defined", Kind::of(value).name()))),
    }
}

/// `~`
fn concat(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    let (mut text, more) = (str_of(state, a)?, str_of(state, b)?);
    pay_for(state, text.len().saturating_add(more.len()))?;
    text += &more;
    Ok(text.into())
}

/// `+` of texts. Where one is markup (what `escape` and `safe` give), the other is escaped.
fn join(state: &mut State, a: &Value, b: &Value) -> Result<Value, Error> {
    let safe = is_safe(a) || is_safe(b);
    let mut text = String::new();
    for value in [a, b] {
        let part = str_of(state, value)?;
        pay_for(state, part.len())?;
        match safe && !is_safe(value) {
            true => text += &super::texts::escape(&part),
            false => text += &part,
        }
    }
    Ok(if safe { Value::from_safe_string(text) } else { text.into() })
}

/// `==`
pub(in crate::text::template) fn equal(a: &Value, b: &Value) -> bool {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return match (a, b) {
            (Number::Int(a), Number::Int(b)) => a == b,
            _ => a.as_f64() == b.as_f64(),
        };
    }
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return a == b;
    }
    match (Kind::of(a), Kind::of(b)) {
        (Kind::Undefined, Kind::Undefined) | (Kind::None, Kind::None) => true,
        (kind @ (Kind::List | Kind::Tuple | Kind::Range), other) if kind == other => {
            let (Ok(a), Ok(b)) = (a.try_iter(), b.try_iter()) else { return false };
            let (a, b): (Vec<Value>, Vec<Value>) = (a.collect(), b.collect());
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| equal(a, b))
        }
        (Kind::Dict, Kind::Dict) => {
            let (Some(pairs), Some(other)) = (a.as_object(), b.as_object()) else { return false };
            a.len() == b.len()
                && pairs.try_iter_pairs().into_iter().flatten().all(|(key, value)| {
                    other.get_value(&key).is_some_and(|other| equal(&value, &other))
                })
        }
        _ => minijinja::tests::is_sameas(a, b),
    }
}

/// The order of two values; none for NaN.
pub(super) fn compare(operator: &str, a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => return Ok(Some(a.cmp(&b))),
        (Some(a), Some(b)) => return Ok(a.as_f64().partial_cmp(&b.as_f64())),
        _ => {}
    }
    match (Kind::of(a), Kind::of(b)) {
        (Kind::Str, Kind::Str) => Ok(Some(a.as_str().cmp(&b.as_str()))),
        (kind @ (Kind::List | Kind::Tuple), other) if kind == other => {
            let (a, b): (Vec<Value>, Vec<Value>) =
                (a.try_iter()?.collect(), b.try_iter()?.collect());
            match a.iter().zip(&b).find(|(a, b)| !equal(a, b)) {
                Some((a, b)) => compare(operator, a, b),
                None => Ok(Some(a.len().cmp(&b.len()))),
            }
        }
        _ => Err(unsupported(operator, a, b)),
    }
}

/// `needle in container`
pub(super) fn contains(state: &State, container: &Value, needle: &Value) -> Result<bool, Error> {
    match Kind::of(container) {
        Kind::Str => match (container.as_str(), needle.as_str()) {
            (Some(text), Some(part)) => Ok(text.contains(part)),
            _ => Err(unsupported("in", needle, container)),
        },
        Kind::Dict => {
            if !Kind::of(needle).is_hashable() {
                let name = Kind::of(needle).name();
                return Err(type_error(format!("{name} cannot be a key of a dict")));
            }
            Ok(container.as_object().is_some_and(|dict| dict.get_value(needle).is_some()))
        }
        kind if kind.is_iterable() => {
            Ok(iterate(state, container)?.iter().any(|item| equal(item, needle)))
        }
        _ => Err(unsupported("in", needle, container)),
    }
}

fn strict(state: &State, value: &Value) -> Result<(), Error> {
    if value.is_undefined() && matches!(state.undefined_behavior(), UndefinedBehavior::Strict) {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    Ok(())
}

/// `value.name`: an attribute, else an item.
pub(in crate::text::template) fn attribute(
    state: &State,
    value: &Value,
    name: &str,
) -> Result<Value, Error> {
    strict(state, value)?;
    Ok(match own_attribute(value, name)? {
        Some(found) => found,
        None => own_item(value, &Value::from(name))?.unwrap_or(Value::UNDEFINED),
    })
}

/// `value[key]`: an item, else an attribute.
pub(in crate::text::template) fn item(
    state: &State,
    value: &Value,
    key: &Value,
) -> Result<Value, Error> {
    strict(state, value)?;
    strict(state, key)?;
    if let Some(found) = own_item(value, key)? {
        return Ok(found);
    }
    let attribute = key.as_str().map(|name| own_attribute(value, name)).transpose()?;
    Ok(attribute.flatten().unwrap_or(Value::UNDEFINED))
}

/// getattr(value, name)
pub(super) fn own_attribute(value: &Value, name: &str) -> Result<Option<Value>, Error> {
    Ok(match Kind::of(value) {
        Kind::Undefined => {
            return Err(Error::new(
                ErrorKind::UndefinedError,
                format!("there is no value to take {name:?} from"),
            ));
        }
        Kind::Namespace | Kind::Loop | Kind::Callable => value.get_attr(name).ok(),
        Kind::Tuple if value.downcast_object_ref::<Group>().is_some() => {
            let group = value.downcast_object_ref::<Group>();
            group.and_then(|group| match name {
                "grouper" => Some(group.grouper.clone()),
                "list" => Some(group.list.clone()),
                _ => None,
            })
        }
        kind => methods::is_method(kind, name)
            .then(|| Value::from_object(Method { value: value.clone(), name: name.to_owned() })),
    }
    .filter(|found| !found.is_undefined()))
}

fn own_item(value: &Value, key: &Value) -> Result<Option<Value>, Error> {
    let index = |len: usize| -> Option<usize> {
        let Some(Number::Int(index)) = Number::of(key) else { return None };
        let len = len as i128;
        let index = if index < 0 { index + len } else { index };
        (0..len).contains(&index).then_some(index as usize)
    };
    Ok(match Kind::of(value) {
        Kind::Undefined => {
            return Err(Error::new(
                ErrorKind::UndefinedError,
                "there is no value to take an item from",
            ));
        }
        Kind::Str => {
            let text = value.as_str().unwrap_or_default();
            if text.is_ascii() {
                index(text.len()).map(|at| Value::from(&text[at..=at]))
            } else {
                let at = index(text.chars().count());
                at.and_then(|at| text.chars().nth(at)).map(|letter| letter.to_string().into())
            }
        }
        Kind::List | Kind::Tuple | Kind::Range => {
            index(value.len().unwrap_or(0)).and_then(|at| value.get_item_by_index(at).ok())
        }
        Kind::Dict => {
            let hashable = Kind::of(key).is_hashable();
            value.as_object().filter(|_| hashable).and_then(|dict| dict.get_value(key))
        }
        Kind::Namespace => None,
        _ => None,
    })
}

/// `value[start:stop:step]`
pub(in crate::text::template) fn slice(
    state: &mut State,
    value: &Value,
    bounds: [&Value; 3],
) -> Result<Value, Error> {
    strict(state, value)?;
    let mut numbers = [None; 3];
    for (number, bound) in numbers.iter_mut().zip(bounds) {
        *number = match (Kind::of(bound), Number::of(bound)) {
            (Kind::None, _) => None,
            (_, Some(Number::Int(bound))) => {
                Some(bound.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
            }
            _ => return Err(type_error("the bounds of a slice are whole numbers".to_owned())),
        };
    }
    let [start, stop, step] = numbers;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(type_error("cannot slice by step size of 0".to_owned()));
    }
    let bounds = |len: usize| {
        let len = i64::try_from(len).unwrap_or(i64::MAX);
        let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let place = |given: Option<i64>, otherwise: i64| match given {
            Some(given) if given < 0 => given.saturating_add(len).max(lowest),
            Some(given) => given.min(highest),
            None => otherwise,
        };
        let (first, end) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
        (place(start, first), place(stop, end))
    };
    let places = |len: usize| {
        let (first, end) = bounds(len);
        let inside = move |place: &i64| if step > 0 { *place < end } else { *place > end };
        std::iter::successors(Some(first), move |place| place.checked_add(step))
            .take_while(inside)
            .map(|place| usize::try_from(place).unwrap_or(0))
    };
    match Kind::of(value) {
        Kind::Str => {
            let text = value.as_str().unwrap_or_default();
            if text.is_ascii() {
                let letters = text.as_bytes();
                let picked: String =
                    places(letters.len()).map(|at| char::from(letters[at])).collect();
                return Ok(picked.into());
            }
            let letters: Vec<char> = text.chars().collect();
            Ok(places(letters.len()).map(|at| letters[at]).collect::<String>().into())
        }
        Kind::Range => {
            let range = *value.downcast_object_ref::<Range>().expect("of this kind");
            let (first, end) = bounds(range.len());
            let at = |place: i64| range.start.saturating_add(range.step.saturating_mul(place));
            let step = range.step.saturating_mul(step);
            Ok(Value::from_object(Range { start: at(first), stop: at(end), step }))
        }
        kind @ (Kind::List | Kind::Tuple) => {
            let items = iterate(state, value)?;
            let picked: Vec<Value> = places(items.len()).map(|at| items[at].clone()).collect();
            Ok(if kind == Kind::Tuple { tuple(picked) } else { picked.into() })
        }
        Kind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        kind => Err(type_error(format!("a {} cannot be sliced", kind.name()))),
    }
}
