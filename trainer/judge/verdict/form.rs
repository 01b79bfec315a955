//! In which form a template asks for its verdict, and on which scale.

use std::fmt;
use std::str::FromStr;

use engine::error::excerpt_of;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The form of verdict that a template asks its judge for. It is written as in a template's first line:
/// `\boxed{a, b} from 1 to 10`, or `[[A]], [[B]] or [[C]]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum VerdictForm {
    /// `\boxed{a, b}` in a scores section: the scores of A and B on this scale.
    Boxed(Scale),
    /// `[[A]]`, `[[B]]`, or `[[C]]` for a tie, at the end.
    Markers,
}

/// The scores that a template allows, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The lowest score, at least 0.
    pub low: f64,
    /// The highest score.
    pub high: f64,
}

impl Scale {
    /// Whether a score is on the scale.
    pub fn contains(self, score: f64) -> bool {
        (self.low..=self.high).contains(&score)
    }
}

impl Default for VerdictForm {
    /// The form that the j1 prompt asks for.
    fn default() -> VerdictForm {
        VerdictForm::Boxed(Scale { low: 1.0, high: 10.0 })
    }
}

impl fmt::Display for VerdictForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VerdictForm::Boxed(Scale { low, high }) => {
                write!(f, "\\boxed{{a, b}} from {low} to {high}")
            }
            VerdictForm::Markers => f.write_str("[[A]], [[B]] or [[C]]"),
        }
    }
}

impl FromStr for VerdictForm {
    type Err = String;

    fn from_str(text: &str) -> Result<VerdictForm, String> {
        let wrong = || {
            format!(
                "'{}' is no form of a verdict; there are \\boxed{{a, b}}, \\boxed{{a, b}} from 0 to 100 (any two \
                 numbers from 0 on) and [[A]], [[B]] or [[C]]",
                excerpt_of(text, 80)
            )
        };
        let words = text.replace(['{', '}', ',', '/'], " ");
        let words: Vec<&str> = words.split_whitespace().collect();
        match words[..] {
            ["[[A]]"] | ["[[A]]", "[[B]]"] => Ok(VerdictForm::Markers),
            ["[[A]]", "[[B]]", "[[C]]"] | ["[[A]]", "[[B]]", "or", "[[C]]"] => {
                Ok(VerdictForm::Markers)
            }
            ["\\boxed", "a" | "x", "b" | "y"] => Ok(VerdictForm::default()),
            ["\\boxed", "a" | "x", "b" | "y", "from", low, "to", high] => {
                let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite());
                let (low, high) = number(low).zip(number(high)).ok_or_else(wrong)?;
                match low >= 0.0 && low < high {
                    true => Ok(VerdictForm::Boxed(Scale { low, high })),
                    false => Err(wrong()),
                }
            }
            _ => Err(wrong()),
        }
    }
}

impl Serialize for VerdictForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerdictForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VerdictForm, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_they_are_written() {
        let boxed = |low, high| VerdictForm::Boxed(Scale { low, high });
        for (text, form) in [
            ("\\boxed{a, b}", boxed(1.0, 10.0)),
            (" \\boxed{x,y} ", boxed(1.0, 10.0)),
            ("\\boxed{a, b} from 0 to 100", boxed(0.0, 100.0)),
            ("\\boxed{a, b}, from 0.5 to 5", boxed(0.5, 5.0)),
            ("[[A]]", VerdictForm::Markers),
            ("[[A]]/[[B]]/[[C]]", VerdictForm::Markers),
            ("[[A]], [[B]] or [[C]]", VerdictForm::Markers),
        ] {
            assert_eq!(text.parse(), Ok(form), "{text}");
            assert_eq!(form.to_string().parse(), Ok(form), "{form}");
            let json = serde_json::to_string(&form).unwrap();
            assert_eq!(serde_json::from_str::<VerdictForm>(&json).unwrap(), form);
        }
        for text in [
            "",
            "1 to 10",
            "\\boxed{a, b} from 10 to 1",
            "\\boxed{a, b} from -1 to 1",
            "\\boxed{a, b} from 0 to inf",
            "\\boxed{a, b} from 0 to NaN",
            "\\boxed{a}",
            "[[B]]",
            "[[A]] \u{1b}[31m",
        ] {
            let error = text.parse::<VerdictForm>().unwrap_err();
            assert!(error.contains("from 0 to 100") && !error.contains('\u{1b}'), "{error}");
        }
    }
}
