//! Jinja2's filters of texts, and the classes of characters that str has.

use std::sync::LazyLock;

use minijinja::{Error, State, Value};
use regex::Regex;

use super::filters::{Filter, one};
use super::objects::Kind;
use super::{
    bind, int_or, is_safe, is_undefined, iterate, methods, pay_for, split_keywords, str_of, text,
    truth, type_error,
};

/// By their names.
pub(super) const FILTERS: [(&str, Filter); 18] = [
    ("upper", |state, a| of_text(state, a, |text| text.to_uppercase())),
    ("lower", |state, a| of_text(state, a, |text| text.to_lowercase())),
    ("capitalize", |state, a| of_text(state, a, capitalize)),
    ("title", |state, a| of_text(state, a, title)),
    ("trim", trim),
    ("replace", replace),
    ("indent", indent),
    ("center", center),
    ("truncate", truncate),
    ("wordwrap", word_wrap),
    ("wordcount", |state, a| {
        static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\w+").expect("sound"));
        Ok(WORD.find_iter(&str_of(state, one(a)?)?).count().into())
    }),
    ("striptags", strip_tags),
    ("e", escaped),
    ("escape", escaped),
    ("forceescape", |state, a| Ok(Value::from_safe_string(escape(&str_of(state, one(a)?)?)))),
    // Names that minijinja has and Jinja2 has not, for templates that were written for it.
    ("lines", |state, a| methods::call(state, one(a)?, "splitlines", &[])),
    ("split", |state, a| {
        let value = a.first().cloned().unwrap_or_default();
        methods::call(state, &value, "split", a.get(1..).unwrap_or_default())
    }),
    ("bool", |_, a| Ok(one(a)?.is_true().into())),
];

fn like(value: &Value, text: String) -> Value {
    if is_safe(value) { Value::from_safe_string(text) } else { text.into() }
}

fn of_text(
    state: &mut State,
    arguments: &[Value],
    change: impl Fn(&str) -> String,
) -> Result<Value, Error> {
    let value = one(arguments)?;
    Ok(like(value, change(&str_of(state, value)?)))
}

/// str.capitalize()
pub(super) fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &letters.as_str().to_lowercase()
}

/// The filter: words begin after white space and some brackets.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    for word in text.split_inclusive(|letter| super::is_space(letter) || "-({[<".contains(letter)) {
        titled += &capitalize(word);
    }
    titled
}

fn trim(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, characters] = bind(arguments, ["value", "chars"])?;
    let value = value.unwrap_or_default();
    let characters = characters.filter(|it| !it.is_none());
    let characters = characters.as_ref().map(text).transpose()?;
    let whole = str_of(state, &value)?;
    super::pay_for_strip(state, &whole, characters)?;
    Ok(like(&value, super::strip(&whole, characters, true, true).to_owned()))
}

fn replace(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, old, new, count] = bind(arguments, ["s", "old", "new", "count"])?;
    let missing = || type_error("replace takes an old and a new text".to_owned());
    let (old, new) = (old.ok_or_else(missing)?, new.ok_or_else(missing)?);
    let value = Value::from(str_of(state, &value.unwrap_or_default())?);
    let (old, new) = (str_of(state, &old)?.into(), str_of(state, &new)?.into());
    let count = count.filter(|count| !count.is_none()).unwrap_or_else(|| Value::from(-1));
    methods::call(state, &value, "replace", &[old, new, count])
}

fn indent(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, width, first, blank] = bind(arguments, ["s", "width", "first", "blank"])?;
    let value = value.unwrap_or_default();
    let by = match width.as_ref().and_then(Value::as_str) {
        Some(by) => by.to_owned(),
        None => {
            let width = usize::try_from(int_or(&width, 4)?).unwrap_or(0);
            pay_for(state, width)?;
            " ".repeat(width)
        }
    };
    let lines = methods::split_lines(state, &(text(&value)?.to_owned() + "\n"), false)?;
    pay_for(state, lines.len().saturating_mul(by.len()))?;
    let mut indented = String::new();
    for (number, line) in lines.iter().enumerate() {
        if number > 0 {
            indented.push('\n');
        }
        let is_indented = match number {
            0 => truth(&first),
            _ => truth(&blank) || !line.is_empty(),
        };
        if is_indented {
            indented += &by;
        }
        indented += line;
    }
    // Without `blank`, a line end at the end stays one.
    Ok(like(&value, indented))
}

fn center(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, width] = bind(arguments, ["value", "width"])?;
    let value = value.unwrap_or_default();
    let width = Value::from(int_or(&width, 80)?);
    let whole = Value::from(str_of(state, &value)?);
    methods::call(state, &whole, "center", &[width])
}

fn truncate(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, length, kill_words, end, leeway] =
        bind(arguments, ["s", "length", "killwords", "end", "leeway"])?;
    let value = value.unwrap_or_default();
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = text(&end)?;
    let leeway = leeway.filter(|leeway| !leeway.is_none());
    let (length, leeway) = (int_or(&length, 255)?, int_or(&leeway, 5)?);
    let kept = usize::try_from(length).ok().and_then(|it| it.checked_sub(end.chars().count()));
    let (Some(kept), false) = (kept, leeway < 0) else {
        return Err(type_error(format!("nothing can be cut to {length} characters")));
    };
    let len = match Kind::of(&value) {
        Kind::Str => value.as_str().map_or(0, |text| text.chars().count()),
        Kind::Undefined => 0,
        Kind::List | Kind::Tuple | Kind::Dict | Kind::Range => value.len().unwrap_or(0),
        Kind::View => iterate(state, &value)?.len(),
        kind => return Err(type_error(format!("a {} has no length", kind.name()))),
    };
    if len as i64 <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let start: String = text(&value)?.chars().take(kept).collect();
    let start = match start.rsplit_once(' ') {
        Some((words, _)) if !truth(&kill_words) => words,
        _ => &start,
    };
    Ok(format!("{start}{end}").into())
}

/// textwrap.wrap() of each line, without its finer rules for hyphens between digits.
fn word_wrap(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, width, break_words, separator, break_hyphens] =
        bind(arguments, ["s", "width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let value = value.unwrap_or_default();
    is_undefined(&value)?;
    let width = int_or(&width, 79)?;
    let separator = separator.filter(|it| !it.is_none()).unwrap_or_else(|| Value::from("\n"));
    let (break_words, break_hyphens) =
        (break_words.is_none_or(|it| it.is_true()), break_hyphens.is_none_or(|it| it.is_true()));
    let mut lines = Vec::new();
    for line in methods::split_lines(state, text(&value)?, false)? {
        let width = usize::try_from(width).ok().filter(|width| *width > 0 || line.is_empty());
        let width = width.ok_or_else(|| type_error("the width should be above 0".to_owned()))?;
        let wrapped = wrap(&line, width, break_words, break_hyphens);
        pay_for(state, line.len() + wrapped.len() * 24)?;
        lines.push(wrapped.join(text(&separator)?));
    }
    pay_for(state, lines.len().saturating_mul(text(&separator)?.len()))?;
    Ok(lines.join(text(&separator)?).into())
}

fn wrap(line: &str, width: usize, break_words: bool, break_hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<Vec<char>> = Vec::new();
    let letters: Vec<char> = line.chars().collect();
    let blank = |letter: char| "\t\n\u{b}\u{c}\r ".contains(letter);
    for (at, &letter) in letters.iter().enumerate() {
        let word = |at: Option<usize>| {
            at.and_then(|at| letters.get(at)).is_some_and(|it| it.is_alphabetic() || *it == '_')
        };
        let after_hyphen = at >= 3
            && break_hyphens
            && letters[at - 1] == '-'
            && word(Some(at - 2))
            && (word(Some(at - 3)) || letters[at - 3] == '-')
            && word(Some(at))
            && (word(Some(at + 1)) || letters.get(at + 1) == Some(&'-'));
        let starts = at == 0 || blank(letter) != blank(letters[at - 1]) || after_hyphen;
        match chunks.last_mut() {
            Some(chunk) if !starts => chunk.push(letter),
            _ => chunks.push(vec![letter]),
        }
    }
    chunks.reverse();
    let is_blank = |chunk: &[char]| chunk.iter().all(|letter| super::is_space(*letter));
    let mut lines: Vec<String> = Vec::new();
    while let Some(first) = chunks.last() {
        if is_blank(first) && !lines.is_empty() {
            chunks.pop();
        }
        let (mut line, mut len): (Vec<Vec<char>>, usize) = (Vec::new(), 0);
        while let Some(chunk) = chunks.pop_if(|chunk| len + chunk.len() <= width) {
            len += chunk.len();
            line.push(chunk);
        }
        if let Some(chunk) = chunks.last_mut().filter(|chunk| chunk.len() > width) {
            let room = if width < 1 { 1 } else { width - len };
            if break_words {
                let mut cut = room;
                if break_hyphens
                    && let Some(hyphen) = chunk[..room].iter().rposition(|it| *it == '-')
                    && hyphen > 0
                    && chunk[..hyphen].iter().any(|it| *it != '-')
                {
                    cut = hyphen + 1;
                }
                line.push(chunk.drain(..cut).collect());
            } else if line.is_empty() {
                line.extend(chunks.pop());
            }
        }
        if line.last().is_some_and(|chunk| is_blank(chunk)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.into_iter().flatten().collect());
        }
    }
    lines
}

/// html.escape() as markupsafe does it.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&#34;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(letter),
        }
    }
    escaped
}

fn escaped(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    if is_safe(value) {
        return Ok(value.clone());
    }
    let whole = str_of(state, value)?;
    pay_for(state, whole.len().saturating_mul(2))?;
    Ok(Value::from_safe_string(escape(&whole)))
}

fn strip_tags(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let whole = str_of(state, one(arguments)?)?;
    let mut stripped = String::new();
    for [start, end] in [["<!--", "-->"], ["<", ">"]] {
        let source = if start == "<" { std::mem::take(&mut stripped) } else { whole.clone() };
        let mut rest = source.as_str();
        while let Some(at) = rest.find(start) {
            let Some(after) = rest[at..].find(end) else { break };
            stripped += &rest[..at];
            rest = &rest[at + after + end.len()..];
        }
        stripped += rest;
    }
    let words: Vec<&str> =
        stripped.split(super::is_space).filter(|word| !word.is_empty()).collect();
    Ok(unescape(&words.join(" ")).into())
}

/// html.unescape() for numbers and the names in use.
fn unescape(text: &str) -> String {
    const NAMES: [(&str, &str); 18] = [
        ("amp", "&"),
        ("lt", "<"),
        ("gt", ">"),
        ("quot", "\""),
        ("apos", "'"),
        ("nbsp", "\u{a0}"),
        ("copy", "©"),
        ("reg", "®"),
        ("hellip", "…"),
        ("ndash", "–"),
        ("mdash", "—"),
        ("lsquo", "‘"),
        ("rsquo", "’"),
        ("ldquo", "“"),
        ("rdquo", "”"),
        ("laquo", "«"),
        ("raquo", "»"),
        ("eacute", "é"),
    ];
    static ENTITY: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-z]+);").expect("sound")
    });
    let letter = |entity: &regex::Captures| -> Option<String> {
        let name = &entity[1];
        let code = match name.strip_prefix('#') {
            None => {
                return NAMES
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, it)| (*it).to_owned());
            }
            Some(code) => code,
        };
        let code = match code.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => code.parse(),
        };
        code.ok().and_then(char::from_u32).map(String::from)
    };
    ENTITY
        .replace_all(text, |entity: &regex::Captures| {
            letter(entity).unwrap_or_else(|| entity[0].to_owned())
        })
        .into_owned()
}

fn quoted(text: &str, safe: &str, space: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                quoted.push(char::from(byte));
            }
            b' ' => quoted += space,
            _ if safe.as_bytes().contains(&byte) => quoted.push(char::from(byte)),
            _ => quoted += &format!("%{byte:02X}"),
        }
    }
    quoted
}

pub(super) fn url_encode(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let value = one(arguments)?;
    let kind = Kind::of(value);
    if kind == Kind::Str || !kind.is_iterable() {
        let whole = str_of(state, value)?;
        pay_for(state, whole.len().saturating_mul(3))?;
        return Ok(quoted(&whole, "/", "%20").into());
    }
    let mut parts = Vec::new();
    let pairs = match kind {
        Kind::Dict => methods::call(state, value, "items", &[])?,
        _ => value.clone(),
    };
    for pair in iterate(state, &pairs)? {
        let pair = iterate(state, &pair)?;
        let [key, value] = pair.as_slice() else {
            return Err(type_error("urlencode takes pairs".to_owned()));
        };
        let (key, value) = (str_of(state, key)?, str_of(state, value)?);
        pay_for(state, (key.len() + value.len()).saturating_mul(3))?;
        parts.push(format!("{}={}", quoted(&key, "", "+"), quoted(&value, "", "+")));
    }
    Ok(parts.join("&").into())
}

pub(super) fn xml_attributes(state: &mut State, arguments: &[Value]) -> Result<Value, Error> {
    let [value, space] = bind(arguments, ["d", "autospace"])?;
    let value = value.unwrap_or_default();
    if Kind::of(&value) != Kind::Dict {
        return Err(type_error(format!("a {} has no items", Kind::of(&value).name())));
    }
    let mut parts = Vec::new();
    for key in iterate(state, &value)? {
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = text(&key)?;
        if name.contains([' ', '\t', '\n', '\u{b}', '\u{c}', '\r', '/', '>', '=']) {
            return Err(type_error(format!("{name:?} is no name of an attribute")));
        }
        let item =
            if is_safe(&item) { str_of(state, &item)? } else { escape(&str_of(state, &item)?) };
        pay_for(state, item.len())?;
        parts.push(format!("{}=\"{item}\"", escape(name)));
    }
    let all = parts.join(" ");
    let spaced = space.is_none_or(|space| space.is_true()) && !all.is_empty();
    Ok(if spaced { format!(" {all}") } else { all }.into())
}

/// str.islower(): there are letters with case, all lower.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase)
        && !text.chars().any(|it| it.is_uppercase() || is_title_case(it))
}

pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase)
        && !text.chars().any(|it| it.is_lowercase() || is_title_case(it))
}

/// Lt, as in ǅ.
fn is_title_case(letter: char) -> bool {
    !letter.is_ascii() && is(&TITLE_CASE, letter)
}

static TITLE_CASE: LazyLock<Regex> = LazyLock::new(|| class(r"\p{Lt}"));
static LETTER: LazyLock<Regex> = LazyLock::new(|| class(r"\p{L}"));
static DECIMAL: LazyLock<Regex> = LazyLock::new(|| class(r"\p{Nd}"));
static UNPRINTABLE: LazyLock<Regex> = LazyLock::new(|| class(r"[\p{C}\p{Z}]"));

fn class(pattern: &str) -> Regex {
    Regex::new(pattern).expect("sound")
}

fn is(class: &Regex, letter: char) -> bool {
    class.is_match(letter.encode_utf8(&mut [0; 4]))
}

pub(super) fn is_alphabetic(letter: char) -> bool {
    if letter.is_ascii() { letter.is_ascii_alphabetic() } else { is(&LETTER, letter) }
}

pub(super) fn is_decimal(letter: char) -> bool {
    if letter.is_ascii() { letter.is_ascii_digit() } else { is(&DECIMAL, letter) }
}

/// Decimals and superscripts, subscripts, circled digits.
pub(super) fn is_digit(letter: char) -> bool {
    is_decimal(letter)
        || matches!(letter, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐')
}

pub(super) fn is_printable(letter: char) -> bool {
    if letter.is_ascii() { (' '..='~').contains(&letter) } else { !is(&UNPRINTABLE, letter) }
}

/// The value of a decimal digit of any script: those of one stand in a row of ten.
pub(super) fn decimal(letter: char) -> Option<u32> {
    if letter.is_ascii() || !is_decimal(letter) {
        return letter.to_digit(10);
    }
    let code = u32::from(letter);
    let before = (1..10).take_while(|back| char::from_u32(code - back).is_some_and(is_decimal));
    Some(before.count() as u32)
}

/// The text that a method without names of arguments gets; for `split_keywords`.
pub(super) fn no_keywords(arguments: &[Value]) -> Result<&[Value], Error> {
    match split_keywords(arguments) {
        (positional, None) => Ok(positional),
        _ => Err(type_error("the method takes no named arguments".to_owned())),
    }
}
