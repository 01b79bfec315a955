//! The methods of str, list, tuple, dict and numbers that transformers' sandbox lets templates call: those that change nothing.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::objects::{Kind, View, tuple};
use super::operators::{self, Number};
use super::texts::{self, no_keywords};
use super::{
    bind, format, int_or, is_among, is_space, iterate, pay_for, plain_dict, text, truth, type_error,
};

const OF_STR: &str = "capitalize casefold center count endswith expandtabs find format format_map index isalnum \
    isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle \
    isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex \
    rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill";
const OF_DICT: &str = "copy fromkeys get items keys values";

/// Whether values of a kind have a method that templates may call.
pub(super) fn is_method(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Str => is_among(OF_STR, name),
        Kind::List => ["copy", "count", "index"].contains(&name),
        Kind::Tuple | Kind::Range => ["count", "index"].contains(&name),
        Kind::Dict => is_among(OF_DICT, name),
        Kind::Int | Kind::Bool => name == "bit_length",
        Kind::Float => name == "is_integer",
        _ => false,
    }
}

/// `value.name(arguments)`
pub(in crate::text::template) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let kind = Kind::of(value);
    if is_method(kind, name) {
        return match kind {
            Kind::Str => of_str(state, value.as_str().unwrap_or_default(), name, arguments),
            Kind::Dict => of_dict(state, value, name, arguments),
            Kind::List | Kind::Tuple | Kind::Range => of_list(state, value, name, arguments),
            _ => of_number(value, arguments),
        };
    }
    match kind {
        Kind::Namespace | Kind::Loop | Kind::Callable => value.call_method(state, name, arguments),
        _ => {
            let found = operators::attribute(state, value, name)?;
            if found.kind() != ValueKind::Undefined {
                return found.call(state, arguments);
            }
            let message = format!("{} has no method named {name}", kind.name());
            Err(Error::new(ErrorKind::UnknownMethod, message))
        }
    }
}

fn of_number(value: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let [] = bind(arguments, [])?;
    Ok(match Number::of(value) {
        Some(Number::Int(number)) => (128 - number.unsigned_abs().leading_zeros()).into(),
        Some(Number::Float(number)) => (number.fract() == 0.0).into(),
        None => Value::UNDEFINED,
    })
}

fn of_list(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let items = iterate(state, value)?;
    let arguments = no_keywords(arguments)?;
    match (name, arguments) {
        ("copy", []) => Ok(items.into()),
        ("count", [wanted]) => {
            Ok(items.iter().filter(|item| operators::equal(item, wanted)).count().into())
        }
        ("index", [wanted, bounds @ ..]) if bounds.len() <= 2 => {
            let (start, end) = bounds_of(items.len(), bounds)?;
            let found = (start..end).find(|&at| operators::equal(&items[at], wanted));
            found.map(Value::from).ok_or_else(|| type_error("the value is not there".to_owned()))
        }
        _ => Err(type_error(format!("wrong arguments of {name}"))),
    }
}

fn of_dict(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if name == "fromkeys" {
        return from_keys(state, arguments);
    }
    let dict = value.as_object().expect("a dict is one");
    if name == "get" {
        let (key, default) = match no_keywords(arguments)? {
            [key] => (key, Value::from(())),
            [key, default] => (key, default.clone()),
            _ => return Err(type_error("get takes a key and a default".to_owned())),
        };
        if !Kind::of(key).is_hashable() {
            return Err(type_error(format!("a {} is no key", Kind::of(key).name())));
        }
        return Ok(dict.get_value(key).unwrap_or(default));
    }
    let [] = bind(arguments, [])?;
    let mut pairs = Vec::new();
    for pair in dict.try_iter_pairs().into_iter().flatten() {
        pay_for(state, 24)?;
        pairs.push(pair);
    }
    let (name, items) = match name {
        "copy" => return Ok(plain_dict(value)),
        "keys" => ("dict_keys", pairs.into_iter().map(|(key, _)| key).collect()),
        "values" => ("dict_values", pairs.into_iter().map(|(_, value)| value).collect()),
        _ => {
            let pair = |(key, value)| tuple([key, value]);
            ("dict_items", pairs.into_iter().map(pair).collect())
        }
    };
    Ok(Value::from_object(View { name, items }))
}

/// dict.fromkeys(keys, value)
pub(super) fn from_keys(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let (keys, value) = match no_keywords(arguments)? {
        [keys] => (keys, Value::from(())),
        [keys, value] => (keys, value.clone()),
        _ => return Err(type_error("fromkeys takes keys and a value".to_owned())),
    };
    let keys = iterate(state, keys)?;
    if let Some(key) = keys.iter().find(|key| !Kind::of(key).is_hashable()) {
        return Err(type_error(format!("a {} is no key", Kind::of(key).name())));
    }
    Ok(Value::from_pairs(keys.into_iter().map(|key| (key, value.clone()))))
}

/// Start and end as in a slice, within `len`.
fn bounds_of(len: usize, bounds: &[Value]) -> Result<(usize, usize), Error> {
    let place = |bound: Option<&Value>, otherwise: usize| {
        let Some(bound) = bound.filter(|bound| !bound.is_none()) else { return Ok(otherwise) };
        let bound = int_or(&Some(bound.clone()), 0)?;
        let bound = if bound < 0 { bound.saturating_add(len as i64).max(0) } else { bound };
        Ok::<usize, Error>(usize::try_from(bound).unwrap_or(usize::MAX))
    };
    let (start, end) = (place(bounds.first(), 0)?, place(bounds.get(1), len)?);
    Ok((start, end.min(len)))
}

fn of_str(state: &mut State, whole: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let wrong = || type_error(format!("wrong arguments of {name}"));
    let read = arguments.iter().filter_map(|argument| Some(argument.as_str()?.len()));
    pay_for(state, read.fold(whole.len(), usize::saturating_add))?;
    let every = |is: fn(char) -> bool| Value::from(!whole.is_empty() && whole.chars().all(is));
    Ok(match name {
        "format" => return format::str_format(state, whole, arguments).map(Value::from),
        "format_map" => match no_keywords(arguments)? {
            // As named values, which it has to be told by.
            [dict] if Kind::of(dict) == Kind::Dict => {
                let names = dict.as_object().and_then(|dict| dict.try_iter_pairs());
                let names = names.into_iter().flatten();
                let named =
                    names.filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value)));
                let named: minijinja::value::Kwargs = named.collect();
                return format::str_format(state, whole, &[named.into()]).map(Value::from);
            }
            _ => return Err(wrong()),
        },
        "split" | "rsplit" => {
            let [separator, most] = bind(arguments, ["sep", "maxsplit"])?;
            let separator = separator.filter(|it| !it.is_none());
            let separator = separator.as_ref().map(text).transpose()?;
            let most = usize::try_from(int_or(&most, -1)?).unwrap_or(usize::MAX);
            return split(state, whole, separator, most, name == "rsplit");
        }
        "splitlines" => {
            let [keep] = bind(arguments, ["keepends"])?;
            let lines = split_lines(state, whole, truth(&keep))?;
            lines.into_iter().map(Value::from).collect::<Vec<Value>>().into()
        }
        "join" => match no_keywords(arguments)? {
            [items] => return join(state, whole, items),
            _ => return Err(wrong()),
        },
        "replace" => {
            let [old, new, count] = bind(arguments, ["old", "new", "count"])?;
            let (old, new) = (old.ok_or_else(wrong)?, new.ok_or_else(wrong)?);
            let (old, new) = (text(&old)?, text(&new)?);
            let most = usize::try_from(int_or(&count, -1)?).unwrap_or(usize::MAX);
            pay_for(state, whole.matches(old).take(most).count().saturating_mul(new.len()))?;
            if whole.is_empty() && most == 0 {
                return Ok("".into());
            }
            whole.replacen(old, new, most).into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let characters = match no_keywords(arguments)? {
                [] => None,
                [characters] if characters.is_none() => None,
                [characters] => Some(text(characters)?),
                _ => return Err(wrong()),
            };
            super::pay_for_strip(state, whole, characters)?;
            super::strip(whole, characters, name != "rstrip", name != "lstrip").into()
        }
        "startswith" | "endswith" => {
            let (what, bounds) = no_keywords(arguments)?.split_first().ok_or_else(wrong)?;
            let what = match Kind::of(what) {
                Kind::Tuple => iterate(state, what)?,
                _ => vec![what.clone()],
            };
            let (part, _) = part_of(whole, bounds)?;
            let mut found = false;
            for affix in &what {
                let affix = text(affix)?;
                found |= part.is_some_and(|part| match name {
                    "startswith" => part.starts_with(affix),
                    _ => part.ends_with(affix),
                });
            }
            found.into()
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (what, bounds) = no_keywords(arguments)?.split_first().ok_or_else(wrong)?;
            let what = text(what)?;
            let (part, offset) = part_of(whole, bounds)?;
            if name == "count" {
                return Ok(part.map_or(0, |part| part.matches(what).count()).into());
            }
            let found = part.and_then(|part| {
                let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
                at.map(|at| offset + part[..at].chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if name.ends_with("find") => (-1).into(),
                None => return Err(type_error("the text is not there".to_owned())),
            }
        }
        "partition" | "rpartition" => {
            let separator = match no_keywords(arguments)? {
                [separator] => text(separator)?,
                _ => return Err(wrong()),
            };
            if separator.is_empty() {
                return Err(type_error("empty separator".to_owned()));
            }
            let parts = match name {
                "partition" => whole.split_once(separator),
                _ => whole.rsplit_once(separator),
            };
            let parts = match (parts, name) {
                (Some((before, after)), _) => [before, separator, after],
                (None, "partition") => [whole, "", ""],
                _ => ["", "", whole],
            };
            tuple(parts.map(Value::from))
        }
        "removeprefix" | "removesuffix" => match (no_keywords(arguments)?, name) {
            ([affix], "removeprefix") => whole.strip_prefix(text(affix)?).unwrap_or(whole).into(),
            ([affix], _) => whole.strip_suffix(text(affix)?).unwrap_or(whole).into(),
            _ => return Err(wrong()),
        },
        "center" | "ljust" | "rjust" | "zfill" => {
            let (width, fill) = match no_keywords(arguments)? {
                [width] => (width, None),
                [width, fill] if name != "zfill" => (width, Some(text(fill)?)),
                _ => return Err(wrong()),
            };
            let width = usize::try_from(int_or(&Some(width.clone()), 0)?).unwrap_or(0);
            return pad(state, whole, name, width, fill.unwrap_or(" ")).map(Value::from);
        }
        "expandtabs" => {
            let [size] = bind(arguments, ["tabsize"])?;
            return expand_tabs(state, whole, int_or(&size, 8)?).map(Value::from);
        }
        // The others take nothing.
        _ => {
            let [] = bind(arguments, [])?;
            match name {
                "upper" => whole.to_uppercase().into(),
                "lower" => whole.to_lowercase().into(),
                "casefold" => whole.to_lowercase().replace('ß', "ss").replace('ς', "σ").into(),
                "capitalize" => texts::capitalize(whole).into(),
                "swapcase" => swap_case(whole).into(),
                "title" => title(whole).into(),
                "isalnum" => {
                    every(|it| texts::is_alphabetic(it) || texts::is_digit(it) || it.is_numeric())
                }
                "isalpha" => every(texts::is_alphabetic),
                "isascii" => whole.is_ascii().into(),
                "isdecimal" => every(texts::is_decimal),
                "isdigit" => every(texts::is_digit),
                "isnumeric" => every(|it| it.is_numeric() || texts::is_digit(it)),
                "islower" => texts::is_lower(whole).into(),
                "isupper" => texts::is_upper(whole).into(),
                "istitle" => is_title(whole).into(),
                "isspace" => every(is_space),
                "isprintable" => whole.chars().all(texts::is_printable).into(),
                _ => {
                    // isidentifier
                    let starts = whole.starts_with(|it| it == '_' || texts::is_alphabetic(it));
                    let goes_on =
                        |it| it == '_' || texts::is_alphabetic(it) || texts::is_decimal(it);
                    (starts && whole.chars().all(goes_on)).into()
                }
            }
        }
    })
}

/// The part of a text between two places that are counted in characters, and where it starts. None if it starts after its end.
fn part_of<'a>(whole: &'a str, bounds: &[Value]) -> Result<(Option<&'a str>, usize), Error> {
    if bounds.len() > 2 {
        return Err(type_error("too many arguments".to_owned()));
    }
    if bounds.is_empty() {
        return Ok((Some(whole), 0));
    }
    let len = whole.chars().count();
    let (start, end) = bounds_of(len, bounds)?;
    if start > end {
        return Ok((None, start));
    }
    let place = |count: usize| whole.char_indices().nth(count).map_or(whole.len(), |(at, _)| at);
    Ok((Some(&whole[place(start)..place(end)]), start))
}

fn pad(state: &State, whole: &str, name: &str, width: usize, fill: &str) -> Result<String, Error> {
    let mut letters = fill.chars();
    let (Some(fill), None) = (letters.next(), letters.next()) else {
        return Err(type_error("the fill is one character".to_owned()));
    };
    let len = whole.chars().count();
    let missing = width.saturating_sub(len);
    pay_for(state, missing.saturating_mul(fill.len_utf8()))?;
    let filled = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(match name {
        "ljust" => whole.to_owned() + &filled(missing),
        "rjust" => filled(missing) + whole,
        "zfill" => {
            let sign = if whole.starts_with(['-', '+']) { 1 } else { 0 };
            format!("{}{}{}", &whole[..sign], "0".repeat(missing), &whole[sign..])
        }
        _ => {
            // CPython's way with an odd number.
            let left = missing / 2 + (missing & width & 1);
            filled(left) + whole + &filled(missing - left)
        }
    })
}

fn expand_tabs(state: &State, whole: &str, size: i64) -> Result<String, Error> {
    let size = usize::try_from(size).unwrap_or(0);
    let (mut expanded, mut column) = (String::new(), 0);
    for letter in whole.chars() {
        match letter {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                pay_for(state, spaces)?;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            _ => {
                expanded.push(letter);
                column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(expanded)
}

fn swap_case(whole: &str) -> String {
    let mut swapped = String::with_capacity(whole.len());
    for letter in whole.chars() {
        match letter.is_uppercase() {
            true => swapped.extend(letter.to_lowercase()),
            false => swapped.extend(letter.to_uppercase()),
        }
    }
    swapped
}

/// str.title(): a letter after a non-letter is upper case, any other lower case.
fn title(whole: &str) -> String {
    let mut titled = String::with_capacity(whole.len());
    let mut inside = false;
    for letter in whole.chars() {
        if inside {
            titled.extend(letter.to_lowercase());
        } else {
            titled.extend(letter.to_uppercase());
        }
        inside = letter.is_alphabetic();
    }
    titled
}

fn is_title(whole: &str) -> bool {
    let (mut inside, mut cased) = (false, false);
    for letter in whole.chars() {
        if letter.is_uppercase() && inside || letter.is_lowercase() && !inside {
            return false;
        }
        inside = letter.is_uppercase() || letter.is_lowercase();
        cased |= inside;
    }
    cased
}

fn join(state: &State, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut joined = String::new();
    for (index, item) in iterate(state, items)?.iter().enumerate() {
        let Some(item) = item.as_str() else {
            let name = Kind::of(item).name();
            return Err(type_error(format!("join() takes texts, item {index} is {name}")));
        };
        if index > 0 {
            pay_for(state, separator.len())?;
            joined += separator;
        }
        pay_for(state, item.len())?;
        joined += item;
    }
    Ok(joined.into())
}

fn split(
    state: &State,
    whole: &str,
    separator: Option<&str>,
    most: usize,
    from_end: bool,
) -> Result<Value, Error> {
    let mut parts = Vec::new();
    let mut push = |part: &str| {
        parts.push(Value::from(part));
        state.consume_fuel(1)
    };
    match separator {
        Some("") => return Err(type_error("empty separator".to_owned())),
        Some(separator) if from_end => {
            for part in whole.rsplitn(most.saturating_add(1), separator) {
                push(part)?;
            }
        }
        Some(separator) => {
            for part in whole.splitn(most.saturating_add(1), separator) {
                push(part)?;
            }
        }
        None if from_end => {
            let mut rest = whole.trim_end_matches(is_space);
            let mut splits = 0;
            while !rest.is_empty() {
                let start = if splits < most { rest.rfind(is_space) } else { None };
                let Some(start) = start else {
                    push(rest)?;
                    break;
                };
                let end = rest[start..].chars().next().map_or(0, char::len_utf8) + start;
                push(&rest[end..])?;
                rest = rest[..start].trim_end_matches(is_space);
                splits += 1;
            }
        }
        None => {
            let mut rest = whole.trim_start_matches(is_space);
            let mut splits = 0;
            while !rest.is_empty() {
                let end = if splits < most { rest.find(is_space) } else { None };
                let Some(end) = end else {
                    push(rest)?;
                    break;
                };
                push(&rest[..end])?;
                rest = rest[end..].trim_start_matches(is_space);
                splits += 1;
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts.into())
}

/// str.splitlines()
pub(super) fn split_lines(state: &State, whole: &str, keep: bool) -> Result<Vec<String>, Error> {
    let ends = |letter: char| {
        matches!(
            letter,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), whole);
    while !rest.is_empty() {
        state.consume_fuel(1)?;
        let end = rest.find(ends).unwrap_or(rest.len());
        let ending = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(letter) => letter.len_utf8(),
            None => 0,
        };
        lines.push(rest[..if keep { end + ending } else { end }].to_owned());
        rest = &rest[end + ending..];
    }
    Ok(lines)
}
