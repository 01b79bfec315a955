//! `'%s' % value` and `str.format`.

use minijinja::{Error, State, Value};

use super::objects::Kind;
use super::operators::{self, Number};
use super::{ascii_of, iterate, pay_for, repr_of, split_keywords, str_of, type_error};

/// Digits after the point at most; a float has some 1075.
const MOST_DIGITS: usize = 1100;

/// What stands between % or : and the letter of the conversion.
#[derive(Clone, Copy, Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    letter: Option<char>,
}

impl Spec {
    /// The text of a number with its sign and prefix, filled to the width.
    fn number(
        &self,
        state: &State,
        negative: bool,
        prefix: &str,
        digits: &str,
    ) -> Result<String, Error> {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let align = self.align.unwrap_or(if self.zero { '=' } else { '>' });
        if align == '=' {
            let taken = sign.len() + prefix.len() + digits.chars().count();
            let missing = self.width.saturating_sub(taken);
            pay_for(state, missing)?;
            let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
            let fill: String = std::iter::repeat_n(fill, missing).collect();
            return Ok(format!("{sign}{prefix}{fill}{digits}"));
        }
        self.pad(state, &format!("{sign}{prefix}{digits}"), align)
    }

    fn text(&self, state: &State, text: &str) -> Result<String, Error> {
        let kept: String = match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text.to_owned(),
        };
        self.pad(state, &kept, self.align.unwrap_or('<'))
    }

    fn pad(&self, state: &State, text: &str, align: char) -> Result<String, Error> {
        let missing = self.width.saturating_sub(text.chars().count());
        pay_for(state, missing)?;
        let fill = |count: usize| -> String {
            std::iter::repeat_n(self.fill.unwrap_or(' '), count).collect()
        };
        Ok(match align {
            '<' => format!("{text}{}", fill(missing)),
            '^' => format!("{}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            _ => format!("{}{text}", fill(missing)),
        })
    }

    fn precision_or(&self, otherwise: usize) -> Result<usize, Error> {
        let precision = self.precision.unwrap_or(otherwise);
        if precision > MOST_DIGITS {
            return Err(type_error(format!("a precision of {precision} digits")));
        }
        Ok(precision)
    }

    fn float(&self, state: &State, number: f64) -> Result<String, Error> {
        let letter = self.letter.unwrap_or('r');
        let negative = number.is_sign_negative() && !number.is_nan();
        let size = number.abs();
        let mut digits = match letter.to_ascii_lowercase() {
            _ if size.is_nan() => "nan".to_owned(),
            _ if size.is_infinite() => "inf".to_owned(),
            'f' => format!("{size:.*}", self.precision_or(6)?),
            '%' => format!("{:.*}%", self.precision_or(6)?, size * 100.0),
            'e' => exponential(size, self.precision_or(6)?),
            'g' | 'n' => self.general(size, self.precision_or(6)?.max(1)),
            _ => match self.precision {
                None => super::write::float_repr(size, ["nan", "inf"]),
                Some(_) => {
                    let text = self.general(size, self.precision_or(6)?.max(1));
                    let whole = text.bytes().all(|byte| byte.is_ascii_digit());
                    if whole { text + ".0" } else { text }
                }
            },
        };
        if let Some(separator) = self.grouping {
            digits = grouped(&digits, 3, separator);
        }
        if letter.is_ascii_uppercase() {
            digits = digits.to_ascii_uppercase();
        }
        self.number(state, negative, "", &digits)
    }

    /// %g
    fn general(&self, size: f64, precision: usize) -> String {
        let scientific = exponential(size, precision - 1);
        let exponent = scientific.split_once('e').map_or(0, |(_, e)| e.parse::<i32>().unwrap_or(0));
        let (digits, tail) = if (-4..precision as i32).contains(&exponent) {
            let after = (precision as i32 - 1 - exponent).max(0) as usize;
            (format!("{size:.after$}"), String::new())
        } else {
            let (digits, tail) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
            (digits.to_owned(), format!("e{tail}"))
        };
        if self.alternate || !digits.contains('.') {
            return digits + &tail;
        }
        digits.trim_end_matches('0').trim_end_matches('.').to_owned() + &tail
    }

    fn whole(&self, state: &State, number: i128) -> Result<String, Error> {
        let size = number.unsigned_abs();
        let letter = self.letter.unwrap_or('d');
        let (prefix, digits) = match letter {
            'x' => ("0x", format!("{size:x}")),
            'X' => ("0X", format!("{size:X}")),
            'o' => ("0o", format!("{size:o}")),
            'b' => ("0b", format!("{size:b}")),
            _ => ("", size.to_string()),
        };
        let digits = match (self.grouping, letter) {
            (Some(separator), 'd' | 'n') => grouped(&digits, 3, separator),
            (Some(separator), _) => grouped(&digits, 4, separator),
            (None, _) => digits,
        };
        self.number(state, number < 0, if self.alternate { prefix } else { "" }, &digits)
    }
}

/// %e: an exponent of two digits at least.
fn exponential(size: f64, precision: usize) -> String {
    let text = format!("{size:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Separators between the digits before the point.
fn grouped(digits: &str, size: usize, separator: char) -> String {
    let end = digits.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(digits.len());
    let mut text = String::new();
    for (index, digit) in digits[..end].chars().enumerate() {
        if index > 0 && (end - index).is_multiple_of(size) {
            text.push(separator);
        }
        text.push(digit);
    }
    text + &digits[end..]
}

/// `text % values`
pub(super) fn percent(state: &mut State, text: &str, values: &Value) -> Result<String, Error> {
    let kind = Kind::of(values);
    let mut positional =
        if kind == Kind::Tuple { iterate(state, values)? } else { vec![values.clone()] }
            .into_iter();
    // A list or a dict need not be used up.
    let mut unused = !matches!(kind, Kind::Tuple | Kind::List | Kind::Dict);
    let mut missing = || {
        positional.next().ok_or_else(|| type_error("not enough values for the format".to_owned()))
    };
    let mut result = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            result.push(letter);
            continue;
        }
        let mut named = None;
        if letters.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            loop {
                match letters.next() {
                    Some(')') => break,
                    Some(letter) => name.push(letter),
                    None => return Err(type_error("% without its end".to_owned())),
                }
            }
            let found = values.as_object().filter(|_| kind == Kind::Dict);
            let found = found.and_then(|dict| dict.get_value(&Value::from(name.as_str())));
            named = Some(found.ok_or_else(|| type_error(format!("no value {name:?}")))?);
        }
        let mut spec = Spec::default();
        while let Some(flag) = letters.next_if(|letter| "#0- +".contains(*letter)) {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
        }
        let mut count = |letters: &mut std::iter::Peekable<std::str::Chars>| {
            if letters.next_if_eq(&'*').is_some() {
                return match Number::of(&missing()?) {
                    Some(Number::Int(count)) => Ok(Some(count)),
                    _ => Err(type_error("* takes a whole number".to_owned())),
                };
            }
            let mut digits = String::new();
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            Ok((!digits.is_empty()).then(|| digits.parse().unwrap_or(i128::MAX)))
        };
        let width = count(&mut letters)?.unwrap_or(0);
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if letters.next_if_eq(&'.').is_some() {
            let precision = count(&mut letters)?.unwrap_or(0).max(0);
            spec.precision = Some(usize::try_from(precision).unwrap_or(usize::MAX));
        }
        while letters.next_if(|letter| "hlL".contains(*letter)).is_some() {}
        let Some(letter) = letters.next() else {
            return Err(type_error("% without its end".to_owned()));
        };
        if letter == '%' {
            result.push('%');
            continue;
        }
        let value = match named {
            Some(value) => {
                unused = false;
                value
            }
            None => missing()?,
        };
        result += &converted(state, spec, letter, &value)?;
        pay_for(state, spec.width)?;
    }
    if kind != Kind::Tuple {
        unused &= positional.next().is_some();
    } else {
        unused = positional.next().is_some();
    }
    if unused {
        return Err(type_error("not all values are used by the format".to_owned()));
    }
    Ok(result)
}

fn converted(
    state: &mut State,
    mut spec: Spec,
    letter: char,
    value: &Value,
) -> Result<String, Error> {
    spec.letter = Some(letter);
    if spec.align == Some('<') {
        spec.zero = false;
    }
    let wrong = || {
        let name = Kind::of(value).name();
        type_error(format!("%{letter} takes a number, not {name}"))
    };
    let plain = |state: &State, text: String| {
        let align = spec.align.or(Some('>'));
        Spec { align, zero: false, ..spec }.text(state, &text)
    };
    match letter {
        's' => str_of(state, value).and_then(|text| plain(state, text)),
        'r' => repr_of(state, value).and_then(|text| plain(state, text)),
        'a' => repr_of(state, value).and_then(|text| plain(state, ascii_of(&text))),
        'c' => {
            let letter = match (Number::of(value), value.as_str()) {
                (Some(Number::Int(code)), _) => u32::try_from(code).ok().and_then(char::from_u32),
                (_, Some(text)) if text.chars().count() == 1 => text.chars().next(),
                _ => None,
            };
            plain(state, letter.ok_or_else(wrong)?.to_string())
        }
        'd' | 'i' | 'u' => match Number::of(value).ok_or_else(wrong)? {
            Number::Int(number) => Spec { letter: Some('d'), ..spec }.whole(state, number),
            Number::Float(number) if number.is_finite() => {
                Spec { letter: Some('d'), ..spec }.whole(state, number as i128)
            }
            Number::Float(_) => Err(wrong()),
        },
        'x' | 'X' | 'o' => match Number::of(value) {
            Some(Number::Int(number)) => spec.whole(state, number),
            _ => Err(wrong()),
        },
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            spec.float(state, Number::of(value).ok_or_else(wrong)?.as_f64())
        }
        _ => Err(type_error(format!("unknown format %{letter}"))),
    }
}

/// `text.format(...)`
pub(super) fn str_format(state: &mut State, text: &str, values: &[Value]) -> Result<String, Error> {
    let (positional, keywords) = split_keywords(values);
    let mut fields = Fields { positional, keywords, next: Some(0) };
    fields.fill(state, text, 2)
}

struct Fields<'a> {
    positional: &'a [Value],
    keywords: Option<&'a Value>,
    /// The next field without a number; none once a field had one.
    next: Option<usize>,
}

impl Fields<'_> {
    fn fill(&mut self, state: &mut State, text: &str, depth: usize) -> Result<String, Error> {
        let broken = || type_error("a single { or } in a format".to_owned());
        if depth == 0 {
            return Err(type_error("a format is nested too deep".to_owned()));
        }
        let mut result = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            result += &rest[..at];
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                result += brace;
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(broken());
            }
            let mut open = 1;
            let end = rest.find(|letter| {
                open += i32::from(letter == '{') - i32::from(letter == '}');
                open == 0
            });
            let end = end.ok_or_else(broken)?;
            result += &self.field(state, &rest[..end], depth)?;
            rest = &rest[end + 1..];
            pay_for(state, result.len() / 8)?;
        }
        Ok(result + rest)
    }

    fn field(&mut self, state: &mut State, field: &str, depth: usize) -> Result<String, Error> {
        let bracketed = field.find(']').filter(|at| {
            let colon = field.find([':', '!']);
            field.find('[').is_some_and(|open| open < *at && colon.is_none_or(|c| open < c))
        });
        let from = bracketed.unwrap_or(0);
        let (name, spec) = match field[from..].find(':') {
            Some(at) => (&field[..from + at], &field[from + at + 1..]),
            None => (field, ""),
        };
        let (name, conversion) = match name.rsplit_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (name, None),
        };
        let value = self.value(state, name)?;
        let spec = self.fill(state, spec, depth - 1).or_else(|error| match spec {
            "" => Ok(String::new()),
            _ => Err(error),
        })?;
        match conversion {
            None => formatted(state, &value, &spec),
            Some("s") => str_of(state, &value).and_then(|s| formatted(state, &s.into(), &spec)),
            Some("r") => repr_of(state, &value).and_then(|s| formatted(state, &s.into(), &spec)),
            Some("a") => {
                let text = ascii_of(&repr_of(state, &value)?);
                formatted(state, &text.into(), &spec)
            }
            Some(other) => Err(type_error(format!("unknown conversion !{other}"))),
        }
    }

    fn value(&mut self, state: &State, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let missing = || type_error(format!("no value {first:?} for the format"));
        let mut value = match (first, first.parse::<usize>()) {
            ("", _) => {
                let next = self.next.ok_or_else(missing)?;
                self.next = Some(next + 1);
                self.positional.get(next).cloned().ok_or_else(missing)?
            }
            (_, Ok(number)) => {
                if self.next.is_some_and(|next| next > 0) {
                    return Err(missing());
                }
                self.next = None;
                self.positional.get(number).cloned().ok_or_else(missing)?
            }
            _ => {
                let keywords = self.keywords.and_then(Value::as_object);
                let value = keywords.and_then(|map| map.get_value(&Value::from(first)));
                value.ok_or_else(missing)?
            }
        };
        while !rest.is_empty() {
            let (key, is_item, after) = match rest.strip_prefix('[') {
                Some(inside) => {
                    let end = inside.find(']').ok_or_else(missing)?;
                    (&inside[..end], true, &inside[end + 1..])
                }
                None => {
                    let inside = &rest[1..];
                    let end = inside.find(['.', '[']).unwrap_or(inside.len());
                    (&inside[..end], false, &inside[end..])
                }
            };
            value = match key.parse::<usize>() {
                Ok(index) if is_item => operators::item(state, &value, &Value::from(index))?,
                _ if is_item => operators::item(state, &value, &Value::from(key))?,
                _ => operators::attribute(state, &value, key)?,
            };
            rest = after;
        }
        Ok(value)
    }
}

/// format(value, spec)
fn formatted(state: &mut State, value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return str_of(state, value);
    }
    let kind = Kind::of(value);
    let unknown = || type_error(format!("format {spec:?} of {}", kind.name()));
    let parsed = parse(spec).ok_or_else(unknown)?;
    match (kind, Number::of(value), parsed.letter) {
        (Kind::Str, ..) => {
            let numeric = parsed.sign.is_some() || parsed.grouping.is_some() || parsed.alternate;
            if numeric || parsed.align == Some('=') || !matches!(parsed.letter, None | Some('s')) {
                return Err(unknown());
            }
            let fill = parsed.fill.or(parsed.zero.then_some('0'));
            Spec { fill, ..parsed }.text(state, value.as_str().unwrap_or_default())
        }
        (_, Some(Number::Int(code)), Some('c')) => {
            let letter = u32::try_from(code).ok().and_then(char::from_u32).ok_or_else(unknown)?;
            parsed.text(state, &letter.to_string())
        }
        (_, Some(Number::Int(number)), None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b'))
            if parsed.precision.is_none() =>
        {
            parsed.whole(state, number)
        }
        (_, Some(Number::Int(_)), None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b')) => Err(unknown()),
        (_, Some(number), None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%')) => {
            parsed.float(state, number.as_f64())
        }
        _ => Err(unknown()),
    }
}

/// [[fill]align][sign][#][0][width][grouping][.precision][type]
fn parse(text: &str) -> Option<Spec> {
    let mut spec = Spec::default();
    let letters: Vec<char> = text.chars().collect();
    let aligns = |at: usize| letters.get(at).copied().filter(|letter| "<>=^".contains(*letter));
    let mut at = 0;
    if let Some(align) = aligns(1) {
        (spec.fill, spec.align, at) = (Some(letters[0]), Some(align), 2);
    } else if let Some(align) = aligns(0) {
        (spec.align, at) = (Some(align), 1);
    }
    let mut rest = letters[at..].iter().copied().peekable();
    spec.sign = rest.next_if(|letter| "+- ".contains(*letter));
    spec.alternate = rest.next_if_eq(&'#').is_some();
    spec.zero = rest.next_if_eq(&'0').is_some();
    let number = |rest: &mut std::iter::Peekable<_>| {
        let mut digits = String::new();
        while let Some(digit) = rest.next_if(|letter: &char| letter.is_ascii_digit()) {
            digits.push(digit);
        }
        (!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX))
    };
    spec.width = number(&mut rest).unwrap_or(0);
    spec.grouping = rest.next_if(|letter| ",_".contains(*letter));
    if rest.next_if_eq(&'.').is_some() {
        spec.precision = Some(number(&mut rest)?);
    }
    spec.letter = rest.next();
    rest.next().is_none().then_some(spec)
}
