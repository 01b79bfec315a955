//! Jinja2's filters of numbers, and the numbers in texts.

use minijinja::{Error, State, Value};

use super::filters::one;
use super::objects::Kind;
use super::operators::Number;
use super::{bind, int_or, is_undefined, str_of, truth, type_error};

/// int(text, base): signs, underscores between digits, a prefix of the base, digits of any script.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(super::is_space);
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.get(..2) {
        Some("0x") if matches!(base, 0 | 16) => (16, lower[2..].trim_start_matches('_')),
        Some("0o") if matches!(base, 0 | 8) => (8, lower[2..].trim_start_matches('_')),
        Some("0b") if matches!(base, 0 | 2) => (2, lower[2..].trim_start_matches('_')),
        _ => (if base == 0 { 10 } else { base }, digits),
    };
    let sound = !digits.is_empty()
        && !digits.starts_with('_')
        && !digits.ends_with('_')
        && !digits.contains("__");
    let mut number: i128 = 0;
    for digit in digits.chars().filter(|&digit| digit != '_') {
        let digit = digit.to_digit(base).or_else(|| super::texts::decimal(digit))?;
        number = number.checked_mul(i128::from(base))?.checked_add(i128::from(digit))?;
    }
    sound.then_some(if negative { -number } else { number })
}

/// float(text)
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(super::is_space);
    let around = |at: usize, step: isize| {
        let at = at.checked_add_signed(step).and_then(|at| text.as_bytes().get(at));
        at.is_some_and(u8::is_ascii_digit)
    };
    if text.match_indices('_').any(|(at, _)| !around(at, -1) || !around(at, 1)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

pub(super) fn int(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, default, base] = bind(arguments, ["value", "default", "base"])?;
    let (value, default) = (value.unwrap_or_default(), default.unwrap_or_else(|| Value::from(0)));
    is_undefined(&value)?;
    if let Some(text) = value.as_str() {
        let base = int_or(&base, 10)?;
        let whole = u32::try_from(base).ok().filter(|base| *base == 0 || (2..=36).contains(base));
        let whole = whole.and_then(|base| parse_int(text, base));
        let float = || parse_float(text).filter(|number| number.is_finite());
        let number = whole.or_else(|| float().map(|number| number as i128));
        return Ok(number.map_or(default, |number| Number::Int(number).into()));
    }
    Ok(match Number::of(&value) {
        Some(Number::Int(number)) => Number::Int(number).into(),
        Some(Number::Float(number)) if number.is_infinite() => {
            return Err(type_error("infinity is no whole number".to_owned()));
        }
        Some(Number::Float(number)) if !number.is_nan() => Number::Int(number as i128).into(),
        _ => default,
    })
}

pub(super) fn float(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, default] = bind(arguments, ["value", "default"])?;
    let (value, default) = (value.unwrap_or_default(), default.unwrap_or_else(|| Value::from(0.0)));
    is_undefined(&value)?;
    let number = match value.as_str() {
        Some(text) => parse_float(text),
        None => Number::of(&value).map(Number::as_f64),
    };
    Ok(number.map_or(default, Value::from))
}

pub(super) fn abs(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    match Number::of(value) {
        Some(Number::Int(number)) => Ok(Number::Int(number.abs()).into()),
        Some(Number::Float(number)) => Ok(number.abs().into()),
        None => Err(type_error(format!("abs() of a {}", Kind::of(value).name()))),
    }
}

pub(super) fn round(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, precision, method] = bind(arguments, ["value", "precision", "method"])?;
    let value = value.unwrap_or_default();
    let precision = int_or(&precision, 0)?;
    let method = method.as_ref().map_or(Some("common"), |method| method.as_str());
    let wrong = || type_error(format!("round of a {}", Kind::of(&value).name()));
    let number = Number::of(&value).ok_or_else(wrong)?;
    let places = i32::try_from(precision).ok().filter(|places| (-300..=300).contains(places));
    let places = places.ok_or_else(|| type_error(format!("{precision} places")))?;
    let towards = match method {
        Some("common") => None,
        Some("ceil") => Some(f64::ceil as fn(f64) -> f64),
        Some("floor") => Some(f64::floor as fn(f64) -> f64),
        _ => return Err(type_error("round is common, ceil or floor".to_owned())),
    };
    let power = 10f64.powi(places);
    if let Some(towards) = towards {
        return Ok((towards(number.as_f64() * power) / power).into());
    }
    Ok(match number {
        Number::Int(number) if places >= 0 => Number::Int(number).into(),
        Number::Int(number) => {
            let unit = 10i128.checked_pow(places.unsigned_abs()).unwrap_or(i128::MAX);
            let (down, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
            let up = rest > unit - rest || rest == unit - rest && down % 2 != 0;
            Number::Int((down + i128::from(up)).saturating_mul(unit)).into()
        }
        // Half to even of the exact decimal, as Python rounds.
        Number::Float(number) if places >= 0 && number.is_finite() => {
            format!("{number:.*}", places as usize).parse::<f64>().unwrap_or(number).into()
        }
        Number::Float(number) => ((number * power).round_ties_even() / power).into(),
    })
}

pub(super) fn file_size(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, binary] = bind(arguments, ["value", "binary"])?;
    let value = value.unwrap_or_default();
    let bytes = match value.as_str() {
        Some(text) => parse_float(text),
        None => Number::of(&value).map(Number::as_f64),
    };
    let wrong = str_of(state, &value)?;
    let bytes = bytes.ok_or_else(|| type_error(format!("{wrong:?} is no size")))?;
    let (base, units) = match truth(&binary) {
        true => (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()).into());
    }
    let mut unit: f64 = base;
    for name in units {
        unit *= base;
        if bytes < unit || name.starts_with('Y') {
            return Ok(format!("{:.1} {name}", base * bytes / unit).into());
        }
    }
    Err(type_error("no such size".to_owned()))
}
