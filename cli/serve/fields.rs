//! A request's fields, checked one by one: each error names its field. Fields that nobody knows are left alone.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of a JSON object, and those of another one that hold where it has none. A field that is null is not there.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    own: &'a Map<String, Value>,
    common: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The object that a body is.
    pub(super) fn of(body: &'a Value) -> Result<Fields<'a>, ApiError> {
        let own = body.as_object().ok_or_else(|| ApiError::bad("the body is not a JSON object"))?;
        Ok(Fields { own, common: None })
    }

    /// The fields of an object within this one, where these hold, too.
    pub(super) fn within(&self, item: &'a Value) -> Result<Fields<'a>, ApiError> {
        let own = item.as_object().ok_or_else(|| ApiError::bad("an object is wanted"))?;
        Ok(Fields { own, common: Some(self.own) })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let own = self.own.get(name).or_else(|| self.common?.get(name));
        own.filter(|value| !value.is_null())
    }

    /// The names of the object's own fields.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.own.keys().map(String::as_str)
    }

    /// A number within its range.
    pub(super) fn number(
        &self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiError::field(name, format!("a number from {low} to {high} is wanted"))),
        }
    }

    /// A whole number within its range.
    pub(super) fn whole(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        // Some clients write whole numbers as 5.0.
        let exact = 0.0..=(1_u64 << 53) as f64;
        let whole = |number: f64| {
            (exact.contains(&number) && number.fract() == 0.0).then_some(number as u64)
        };
        let number = value.as_u64().or_else(|| value.as_f64().and_then(whole));
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(ApiError::field(name, format!("a whole number from {low} to {high} is wanted")))
            }
        }
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| ApiError::field(name, "true or false is wanted"))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| ApiError::field(name, "a string is wanted"))
    }

    pub(super) fn list(&self, name: &str, most: usize) -> Result<Option<&'a [Value]>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_array() {
            Some(list) if list.len() <= most => Ok(Some(list)),
            Some(_) => Err(ApiError::field(name, format!("at most {most} are taken"))),
            None => Err(ApiError::field(name, "a list is wanted")),
        }
    }

    /// A string, or a list of strings.
    pub(super) fn texts(&self, name: &str, most: usize) -> Result<Vec<&'a str>, ApiError> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(_) => {
                let list = self.list(name, most)?.unwrap_or_default();
                let text = |value: &'a Value| {
                    value
                        .as_str()
                        .ok_or_else(|| ApiError::field(name, "a list of strings is wanted"))
                };
                list.iter().map(text).collect()
            }
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ApiError> {
        let Some(given) = self.text(name)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == given) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                Err(ApiError::field(name, format!("one of {} is wanted", words.join(", "))))
            }
        }
    }

    /// Refuses a field that asks for what is not done, unless its value asks for nothing.
    pub(super) fn only(&self, name: &str, neutral: &[Value]) -> Result<(), ApiError> {
        let Some(value) = self.get(name) else { return Ok(()) };
        let same = |neutral: &Value| {
            value == neutral || (value.is_number() && value.as_f64() == neutral.as_f64())
        };
        if neutral.iter().any(same) {
            return Ok(());
        }
        let wanted: Vec<String> = neutral.iter().map(Value::to_string).collect();
        let hint = match wanted.is_empty() {
            true => "leave it out".to_owned(),
            false => format!("leave it out, or give {}", wanted.join(" or ")),
        };
        Err(ApiError::field(name, format!("is not supported by this server; {hint}")))
    }
}
