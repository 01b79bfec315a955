//! Jinja2's filters of lists and dicts.

use std::collections::HashSet;

use minijinja::{Error, ErrorKind, State, Value};

use super::objects::{Generator, Group, Kind, Range, View, tuple};
use super::operators::{self, Number};
use super::{
    bind, int_or, iterate, numbers, pay_for, split_keywords, str_of, text, truth, type_error,
};
use crate::text::template::guard;

pub(super) type Filter = fn(&mut State, &[Value]) -> Result<Value, Error>;

/// By their names. A filter gets the value and its arguments.
pub(super) const FILTERS: [(&str, Filter); 36] = [
    ("length", length),
    ("count", length),
    ("list", |state, a| Ok(iterate(state, one(a)?)?.into())),
    ("first", |state, a| first(state, one(a)?)),
    ("last", last),
    ("reverse", reverse),
    ("sort", sort),
    ("unique", unique),
    ("min", |state, a| extreme(state, a, |new, old| operators::compare("<", new, old))),
    ("max", |state, a| extreme(state, a, |new, old| operators::compare("<", old, new))),
    ("sum", sum),
    ("join", join),
    ("map", map),
    ("select", |state, a| selected(state, a, false, true)),
    ("reject", |state, a| selected(state, a, false, false)),
    ("selectattr", |state, a| selected(state, a, true, true)),
    ("rejectattr", |state, a| selected(state, a, true, false)),
    ("groupby", group_by),
    ("batch", batch),
    ("slice", slice),
    ("dictsort", dict_sort),
    ("items", items),
    ("default", default),
    ("d", default),
    ("attr", attr),
    ("int", numbers::int),
    ("float", numbers::float),
    ("abs", numbers::abs),
    ("round", numbers::round),
    ("string", |state, a| match one(a)? {
        value if super::is_safe(value) => Ok(value.clone()),
        value => Ok(str_of(state, value)?.into()),
    }),
    ("tojson", super::write::to_json),
    ("safe", |state, a| Ok(Value::from_safe_string(str_of(state, one(a)?)?))),
    ("format", format),
    ("filesizeformat", numbers::file_size),
    ("urlencode", super::texts::url_encode),
    ("xmlattr", super::texts::xml_attributes),
];

/// The value of a filter without arguments.
pub(super) fn one(arguments: &[Value]) -> Result<&Value, Error> {
    match arguments {
        [value] => Ok(value),
        _ => Err(type_error("the filter takes no arguments".to_owned())),
    }
}

fn length(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    let len = match Kind::of(value) {
        Kind::Undefined => Some(0),
        Kind::Str => value.as_str().map(|text| text.chars().count()),
        Kind::List | Kind::Tuple | Kind::Range | Kind::Dict => value.len(),
        Kind::View => value.downcast_object_ref::<View>().map(|view| view.items.len()),
        Kind::Loop => value.get_attr("length").ok().and_then(|length| length.as_usize()),
        _ => None,
    };
    let name = Kind::of(value).name();
    len.map(Value::from).ok_or_else(|| type_error(format!("a {name} has no length")))
}

fn first(state: &State, value: &Value) -> Result<Value, Error> {
    match Kind::of(value) {
        Kind::Str => {
            let letter = value.as_str().and_then(|text| text.chars().next());
            Ok(letter.map_or(Value::UNDEFINED, |letter| letter.to_string().into()))
        }
        // A generator gives one item and keeps the others.
        kind if kind.is_iterable() && kind != Kind::Undefined => {
            Ok(value.try_iter()?.next().unwrap_or(Value::UNDEFINED))
        }
        _ => Ok(iterate(state, value)?.into_iter().next().unwrap_or(Value::UNDEFINED)),
    }
}

fn last(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    match Kind::of(value) {
        Kind::Generator => Err(type_error("a generator has no last item".to_owned())),
        _ => Ok(iterate(state, value)?.pop().unwrap_or(Value::UNDEFINED)),
    }
}

fn reverse(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    if let Some(text) = value.as_str() {
        return Ok(text.chars().rev().collect::<String>().into());
    }
    let mut items = iterate(state, value)?;
    items.reverse();
    Ok(match Kind::of(value) {
        Kind::Undefined | Kind::Generator => items.into(),
        _ => Generator::of(items),
    })
}

/// The parts of "a.b.0", as keys of items. An attribute may be a number as well.
fn path(attribute: &Value) -> Vec<Value> {
    let Some(path) = attribute.as_str() else { return vec![attribute.clone()] };
    let part = |part: &str| match part.parse::<i64>() {
        Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::from(index),
        _ => Value::from(part),
    };
    path.split('.').map(part).collect()
}

/// The item's attribute; with a default, for what is undefined on the way.
fn attribute_of(
    state: &State,
    item: &Value,
    path: &[Value],
    default: Option<&Value>,
) -> Result<Value, Error> {
    let mut value = item.clone();
    for key in path {
        value = operators::item(state, &value, key)?;
        if value.is_undefined()
            && let Some(default) = default
        {
            value = default.clone();
        }
    }
    Ok(value)
}

/// A text in lower case, anything else as it is.
fn ignoring_case(value: Value) -> Value {
    match value.as_str() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}

/// sorted(): stable, and an error where two keys cannot be compared.
fn sorted<T: Clone>(
    state: &State,
    items: &[T],
    key: impl Fn(&T) -> Result<Value, Error>,
    reverse: bool,
) -> Result<Vec<T>, Error> {
    let mut keys = items.iter().map(key).collect::<Result<Vec<Value>, Error>>()?;
    let rounds = usize::BITS - items.len().leading_zeros();
    let bytes: usize = keys.iter().map(|key| key.as_str().map_or(8, |text| text.len() / 16)).sum();
    pay_for(state, bytes.saturating_mul(rounds as usize).saturating_mul(2))?;
    let mut order: Vec<usize> = (0..items.len()).collect();
    // Reversed twice, equal items keep their order.
    if reverse {
        order.reverse();
    }
    let less = |a: usize, b: usize, keys: &[Value]| {
        Ok::<bool, Error>(operators::compare("<", &keys[a], &keys[b])?.is_some_and(|o| o.is_lt()))
    };
    // A merge sort from below, as slice::sort_by takes no errors and may panic for inconsistent orders.
    let mut width = 1;
    while width < order.len() {
        let mut merged = Vec::with_capacity(order.len());
        for pair in order.chunks(2 * width) {
            let (left, right) = pair.split_at(width.min(pair.len()));
            let (mut l, mut r) = (0, 0);
            while l < left.len() && r < right.len() {
                state.consume_fuel(1)?;
                if less(right[r], left[l], &keys)? {
                    merged.push(right[r]);
                    r += 1;
                } else {
                    merged.push(left[l]);
                    l += 1;
                }
            }
            merged.extend_from_slice(&left[l..]);
            merged.extend_from_slice(&right[r..]);
        }
        order = merged;
        width *= 2;
    }
    if reverse {
        order.reverse();
    }
    keys.clear();
    Ok(order.into_iter().map(|at| items[at].clone()).collect())
}

fn sort(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, reverse, case_sensitive, attribute] =
        bind(arguments, ["value", "reverse", "case_sensitive", "attribute"])?;
    let items = iterate(state, &value.unwrap_or_default())?;
    let (reverse, case) = (truth(&reverse), truth(&case_sensitive));
    let paths: Option<Vec<Vec<Value>>> =
        attribute.filter(|it| !it.is_none()).map(|attribute| match attribute.as_str() {
            Some(names) => names.split(',').map(|name| path(&Value::from(name))).collect(),
            None => vec![path(&attribute)],
        });
    let key = |item: &Value| {
        let adjust = |value: Value| if case { value } else { ignoring_case(value) };
        let Some(paths) = &paths else { return Ok(adjust(item.clone())) };
        let keys = paths.iter().map(|path| attribute_of(state, item, path, None).map(adjust));
        // As a list, also of one.
        Ok(keys.collect::<Result<Vec<Value>, Error>>()?.into())
    };
    Ok(sorted(state, &items, key, reverse)?.into())
}

/// A key that is equal where Python's == says so.
fn hashed(value: &Value) -> Result<Value, Error> {
    if !Kind::of(value).is_hashable() {
        return Err(type_error(format!("a {} cannot be compared by hash", Kind::of(value).name())));
    }
    Ok(match Number::of(value) {
        Some(Number::Float(number)) if number.fract() == 0.0 && number.abs() < 1e18 => {
            Value::from(number as i64)
        }
        Some(number) => number.into(),
        None => value.clone(),
    })
}

fn unique(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, case_sensitive, attribute] =
        bind(arguments, ["value", "case_sensitive", "attribute"])?;
    let path = attribute.filter(|it| !it.is_none()).map(|attribute| path(&attribute));
    let mut seen = HashSet::new();
    let mut items = Vec::new();
    for item in iterate(state, &value.unwrap_or_default())? {
        let key = attribute_of(state, &item, path.as_deref().unwrap_or_default(), None)?;
        let key = if truth(&case_sensitive) { key } else { ignoring_case(key) };
        if seen.insert(hashed(&key)?) {
            items.push(item);
        }
    }
    Ok(Generator::of(items))
}

fn extreme(
    state: &mut State,
    arguments: &[Value],
    order: fn(&Value, &Value) -> Result<Option<std::cmp::Ordering>, Error>,
) -> Result<Value, Error> {
    let [value, case_sensitive, attribute] =
        bind(arguments, ["value", "case_sensitive", "attribute"])?;
    let path = attribute.filter(|it| !it.is_none()).map(|attribute| path(&attribute));
    let mut best: Option<(Value, Value)> = None;
    for item in iterate(state, &value.unwrap_or_default())? {
        let key = attribute_of(state, &item, path.as_deref().unwrap_or_default(), None)?;
        let key = if truth(&case_sensitive) { key } else { ignoring_case(key) };
        let better = match &best {
            None => true,
            Some((old, _)) => order(&key, old)?.is_some_and(|order| order.is_lt()),
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

fn sum(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, attribute, start] = bind(arguments, ["iterable", "attribute", "start"])?;
    let path = attribute.filter(|it| !it.is_none()).map(|attribute| path(&attribute));
    let mut sum = start.unwrap_or_else(|| Value::from(0));
    if Kind::of(&sum) == Kind::Str {
        return Err(type_error("sum() adds no strings; use join".to_owned()));
    }
    let items = iterate(state, &value.unwrap_or_default())?;
    // Lists are joined at once, or it would take quadratic time.
    let mut list = match Kind::of(&sum) {
        Kind::List => Some(iterate(state, &sum)?),
        _ => None,
    };
    for item in items {
        let item = attribute_of(state, &item, path.as_deref().unwrap_or_default(), None)?;
        match &mut list {
            Some(list) if Kind::of(&item) == Kind::List => list.extend(iterate(state, &item)?),
            Some(_) => return Err(type_error("sum() adds only lists to a list".to_owned())),
            None => sum = operators::add(state, &sum, &item)?,
        }
    }
    Ok(list.map_or(sum, Value::from))
}

fn join(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, separator, attribute] = bind(arguments, ["value", "d", "attribute"])?;
    let separator = separator.map(|it| str_of(state, &it)).transpose()?.unwrap_or_default();
    let path = attribute.filter(|it| !it.is_none()).map(|attribute| path(&attribute));
    let mut text = String::new();
    for (index, item) in iterate(state, &value.unwrap_or_default())?.iter().enumerate() {
        let item = attribute_of(state, item, path.as_deref().unwrap_or_default(), None)?;
        let part = str_of(state, &item)?;
        if index > 0 {
            pay_for(state, separator.len())?;
            text += &separator;
        }
        pay_for(state, part.len())?;
        text += &part;
    }
    Ok(text.into())
}

fn map(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let (positional, keywords) = split_keywords(arguments);
    let (Some(value), rest) = (positional.first(), positional.get(1..).unwrap_or_default()) else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let mut results = Vec::new();
    if rest.is_empty() {
        let keywords: Vec<Value> = keywords.into_iter().cloned().collect();
        let [attribute, default] = bind(&keywords, ["attribute", "default"])?;
        let attribute =
            attribute.ok_or_else(|| type_error("map takes a filter or an attribute".to_owned()))?;
        let path = path(&attribute);
        // Nothing is asked of what is false, which need not be a list.
        let items = if value.is_true() { iterate(state, value)? } else { Vec::new() };
        for item in items {
            results.push(attribute_of(state, &item, &path, default.as_ref())?);
        }
        return Ok(Generator::of(results));
    }
    let name = text(&rest[0])?.to_owned();
    if !value.is_true() {
        return Ok(Generator::of(results));
    }
    for item in iterate(state, value)? {
        let mut arguments = vec![item];
        arguments.extend(rest[1..].iter().chain(keywords).cloned());
        results.push(guard::apply_filter(state, &name, &arguments)?);
    }
    Ok(Generator::of(results))
}

/// select, reject, selectattr, rejectattr
fn selected(
    state: &mut State,
    arguments: &[Value],
    by_attribute: bool,
    wanted: bool,
) -> Result<Value, Error> {
    let (value, mut rest) =
        arguments.split_first().ok_or(Error::from(ErrorKind::MissingArgument))?;
    let mut attribute = Vec::new();
    if by_attribute {
        let (first, others) =
            rest.split_first().ok_or_else(|| type_error("an attribute is missing".to_owned()))?;
        (attribute, rest) = (path(first), others);
    }
    let test = rest.first().map(|name| text(name).map(str::to_owned)).transpose()?;
    let mut results = Vec::new();
    let items = if value.is_true() { iterate(state, value)? } else { Vec::new() };
    for item in items {
        let tested = attribute_of(state, &item, &attribute, None)?;
        let is = match &test {
            None => tested.is_true(),
            Some(test) => {
                let mut arguments = vec![tested];
                arguments.extend_from_slice(&rest[1..]);
                guard::perform_test(state, test, &arguments)?
            }
        };
        if is == wanted {
            results.push(item);
        }
    }
    Ok(Generator::of(results))
}

fn group_by(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, attribute, default, case_sensitive] =
        bind(arguments, ["value", "attribute", "default", "case_sensitive"])?;
    let attribute = attribute.ok_or_else(|| type_error("groupby takes an attribute".to_owned()))?;
    let path = path(&attribute);
    let default = default.filter(|default| !default.is_none());
    let key = |item: &Value| attribute_of(state, item, &path, default.as_ref());
    let folded = |item: &Value| {
        key(item).map(|key| if truth(&case_sensitive) { key } else { ignoring_case(key) })
    };
    let items = sorted(state, &iterate(state, &value.unwrap_or_default())?, folded, false)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in items {
        let key = folded(&item)?;
        match groups.last_mut() {
            Some((last, members)) if operators::equal(last, &key) => members.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(_, members): (Value, Vec<Value>)| {
        // As it is written in the first one.
        let grouper = key(&members[0])?;
        Ok(Value::from_object(Group { grouper, list: members.into() }))
    };
    Ok(groups.into_iter().map(group).collect::<Result<Vec<Value>, Error>>()?.into())
}

fn batch(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, count, fill] = bind(arguments, ["value", "linecount", "fill_with"])?;
    let count = count.ok_or_else(|| type_error("batch takes a number".to_owned()))?;
    let count = int_or(&Some(count), 0)?;
    let (mut rows, mut row): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for item in iterate(state, &value.unwrap_or_default())? {
        if row.len() as i64 == count {
            rows.push(std::mem::take(&mut row).into());
        }
        row.push(item);
    }
    if !row.is_empty() {
        if let Some(fill) = fill.filter(|fill| !fill.is_none()) {
            let missing = usize::try_from(count).unwrap_or(0).saturating_sub(row.len());
            pay_for(state, missing.saturating_mul(24))?;
            row.extend(std::iter::repeat_n(fill, missing));
        }
        rows.push(row.into());
    }
    Ok(Generator::of(rows))
}

fn slice(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, slices, fill] = bind(arguments, ["value", "slices", "fill_with"])?;
    let slices = slices.ok_or_else(|| type_error("slice takes a number".to_owned()))?;
    let slices = int_or(&Some(slices), 0)?;
    let items = iterate(state, &value.unwrap_or_default())?;
    let Some(slices) = usize::try_from(slices).ok().filter(|&slices| slices > 0) else {
        // A negative number gives no slices.
        return if slices < 0 {
            Ok(Generator::of(Vec::new()))
        } else {
            Err(type_error("division by zero".to_owned()))
        };
    };
    pay_for(state, slices.saturating_mul(48))?;
    let (each, extra) = (items.len() / slices, items.len() % slices);
    let fill = fill.filter(|fill| !fill.is_none());
    let mut rest = items.as_slice();
    let mut rows: Vec<Value> = Vec::with_capacity(slices);
    for number in 0..slices {
        let (row, others) = rest.split_at(each + usize::from(number < extra));
        rest = others;
        let mut row = row.to_vec();
        row.extend(fill.clone().filter(|_| number >= extra));
        rows.push(row.into());
    }
    Ok(Generator::of(rows))
}

fn pairs(dict: &Value) -> Vec<(Value, Value)> {
    let pairs = dict.as_object().and_then(|dict| dict.try_iter_pairs());
    pairs.into_iter().flatten().collect()
}

fn dict_sort(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, case_sensitive, by, reverse] =
        bind(arguments, ["value", "case_sensitive", "by", "reverse"])?;
    let value = value.unwrap_or_default();
    if Kind::of(&value) != Kind::Dict {
        return Err(type_error(format!("a {} has no items", Kind::of(&value).name())));
    }
    let by_key = match by.as_ref().map(|by| by.as_str()) {
        None | Some(Some("key")) => true,
        Some(Some("value")) => false,
        _ => return Err(type_error("dictsort is by \"key\" or \"value\"".to_owned())),
    };
    let key = |(key, value): &(Value, Value)| {
        let it = if by_key { key } else { value };
        Ok(if truth(&case_sensitive) { it.clone() } else { ignoring_case(it.clone()) })
    };
    let sorted = sorted(state, &pairs(&value), key, truth(&reverse))?;
    Ok(sorted.into_iter().map(|(key, value)| tuple([key, value])).collect::<Vec<Value>>().into())
}

fn items(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    match Kind::of(value) {
        Kind::Undefined => Ok(Generator::of(Vec::new())),
        Kind::Dict => {
            let pairs = pairs(value).into_iter().map(|(key, value)| tuple([key, value]));
            Ok(Generator::of(pairs.collect()))
        }
        kind => Err(type_error(format!("a {} has no items", kind.name()))),
    }
}

fn default(_: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, default, boolean] = bind(arguments, ["value", "default_value", "boolean"])?;
    let value = value.unwrap_or_default();
    if value.is_undefined() || truth(&boolean) && !value.is_true() {
        return Ok(default.unwrap_or_else(|| Value::from("")));
    }
    Ok(value)
}

fn attr(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, name] = bind(arguments, ["obj", "name"])?;
    let name = name.ok_or_else(|| type_error("attr takes a name".to_owned()))?;
    let value = value.unwrap_or_default();
    let name = str_of(state, &name)?;
    Ok(operators::own_attribute(&value, &name)?.unwrap_or(Value::UNDEFINED))
}

fn format(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let (positional, keywords) = split_keywords(arguments);
    let (Some(value), values) = (positional.first(), positional.get(1..).unwrap_or_default())
    else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let values = match keywords {
        Some(_) if !values.is_empty() => {
            return Err(type_error("format takes values or named values".to_owned()));
        }
        Some(keywords) => super::plain_dict(keywords),
        None => tuple(values.to_vec()),
    };
    let template = str_of(state, value)?;
    super::format::percent(state, &template, &values).map(Value::from)
}

/// range(stop) or range(start, stop, step), within Jinja2's limit.
pub(super) fn range(arguments: &[Value]) -> Result<Value, Error> {
    const LONGEST: usize = 100_000;
    let numbers = arguments.iter().map(|value| match Number::of(value) {
        Some(Number::Int(number)) => i64::try_from(number).ok(),
        _ => None,
    });
    let numbers: Option<Vec<i64>> = numbers.collect();
    let range = match numbers.as_deref() {
        Some(&[stop]) => Range { start: 0, stop, step: 1 },
        Some(&[start, stop]) => Range { start, stop, step: 1 },
        Some(&[start, stop, step]) if step != 0 => Range { start, stop, step },
        _ => return Err(type_error("range takes one to three whole numbers".to_owned())),
    };
    if range.len() > LONGEST {
        return Err(type_error(format!("a range has at most {LONGEST} items")));
    }
    Ok(Value::from_object(range))
}
