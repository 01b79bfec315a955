//! A calendar day for `strftime_now`: the same in every run, so that the prompt is.

use std::fmt;
use std::str::FromStr;

use minijinja::{Error, ErrorKind, Value};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From January 1, 1 (a Monday) on.
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A day of the Gregorian calendar from year 1 to 9999, as Python's datetime has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

/// No day of the calendar.
#[derive(Debug, thiserror::Error)]
#[error("not a date: write a day such as 2025-01-31")]
pub struct BadDate;

impl FromStr for Date {
    type Err = BadDate;

    /// YYYY-MM-DD
    fn from_str(text: &str) -> Result<Date, BadDate> {
        let digits = text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
        if !digits || text.len() != 10 {
            return Err(BadDate);
        }
        let number = |range| text.get(range).and_then(|text: &str| text.parse().ok());
        let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10))
        else {
            return Err(BadDate);
        };
        let date = Date { year, month, day };
        let sound =
            year >= 1 && (1..=12).contains(&month) && (1..=date.month_days()).contains(&day);
        if sound { Ok(date) } else { Err(BadDate) }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Date {
    /// `strftime_now(format)`
    pub(super) fn function(self) -> Value {
        Value::from_function(move |format: &str| self.strftime(format))
    }

    /// strftime() of this day's first moment, in the C locale. Formats of a time zone or a locale are refused.
    fn strftime(self, format: &str) -> Result<String, Error> {
        let mut text = String::with_capacity(format.len());
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            let directive = letters.next();
            let (padded, directive) = match directive {
                Some('-') => (false, letters.next()), // glibc's and macOS's: without padding
                directive => (true, directive),
            };
            let name = |names: &[&str], index: u32| names[index as usize].to_owned();
            let short = |name: String| name[..3].to_owned();
            let number = |number: u32, width: usize| match padded {
                true => format!("{number:0width$}"),
                false => number.to_string(),
            };
            let Date { year, month, day } = self;
            text += &match directive {
                Some('Y') => year.to_string(),
                Some('y') => number(year % 100, 2),
                Some('m') => number(month, 2),
                Some('d') => number(day, 2),
                Some('e') if padded => format!("{day:2}"),
                Some('e') => day.to_string(),
                Some('j') => number(self.day_of_year(), 3),
                Some('B') => name(&MONTHS, month - 1),
                Some('b' | 'h') => short(name(&MONTHS, month - 1)),
                Some('A') => name(&WEEKDAYS, self.weekday()),
                Some('a') => short(name(&WEEKDAYS, self.weekday())),
                Some('u') => (self.weekday() + 1).to_string(),
                Some('w') => ((self.weekday() + 1) % 7).to_string(),
                Some('F') => self.to_string(),
                Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => number(12, 2),
                Some('p') => "AM".to_owned(),
                Some('T') => "00:00:00".to_owned(),
                Some('R') => "00:00".to_owned(),
                Some('f') => "000000".to_owned(),
                Some('%') => "%".to_owned(),
                Some('n') => "\n".to_owned(),
                Some('t') => "\t".to_owned(),
                directive => {
                    let directive = directive.map(String::from).unwrap_or_default();
                    let message = format!("strftime_now has no %{directive}");
                    return Err(Error::new(ErrorKind::InvalidOperation, message));
                }
            };
        }
        Ok(text)
    }

    fn month_days(self) -> u32 {
        match self.month {
            4 | 6 | 9 | 11 => 30,
            2 if self.is_leap_year() => 29,
            2 => 28,
            _ => 31,
        }
    }

    fn is_leap_year(self) -> bool {
        self.year.is_multiple_of(4) && !self.year.is_multiple_of(100)
            || self.year.is_multiple_of(400)
    }

    /// From 1.
    fn day_of_year(self) -> u32 {
        let before = (1..self.month).map(|month| Date { month, ..self }.month_days()).sum::<u32>();
        before + self.day
    }

    /// 0 for Monday.
    fn weekday(self) -> u32 {
        let years = self.year - 1;
        (years * 365 + years / 4 - years / 100 + years / 400 + self.day_of_year() - 1) % 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_python_writes_them() {
        // datetime.strptime(day, "%Y-%m-%d").strftime(format)
        for (day, format, expected) in [
            ("2025-01-31", "%d %b %Y", "31 Jan 2025"),
            ("2024-02-29", "%Y-%m-%d", "2024-02-29"),
            (
                "2026-11-05",
                "Today is %A, %B %-d (%j), 100%%",
                "Today is Thursday, November 5 (309), 100%",
            ),
            ("2000-03-01", "%a %e %y %m/%D %H:%M:%S", "Wed  1 00 03/03/01/00 00:00:00"),
            ("0001-01-01", "%A %j %u %w", "Monday 001 1 1"),
            ("9999-12-31", "%F %A", "9999-12-31 Friday"),
            ("1900-12-31", "%j %a", "365 Mon"),
        ] {
            let date: Date = day.parse().unwrap();
            assert_eq!(date.to_string(), day);
            assert_eq!(date.strftime(format).unwrap(), expected, "{day}");
        }
        assert!("2025-01-31".parse::<Date>().unwrap().strftime("%Z").is_err());
        assert!("2025-01-31".parse::<Date>().unwrap().strftime("%").is_err());
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for text in [
            "",
            "2025-1-31",
            "2025-02-29",
            "2025-13-01",
            "2025-00-10",
            "2025-01-00",
            "0000-01-01",
            "31-01-2025",
            "2025/01/31",
            "20250131xx",
            "２025-01",
        ] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
    }
}
