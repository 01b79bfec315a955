//! Typed access to the keys of config.json, generation_config.json and adapter_config.json.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::config::error::ConfigError;
use crate::error::excerpt;

/// Typed access to a JSON object that remembers the file for its messages. `null` counts as absent.
pub(crate) struct JsonObject<'a> {
    pub(crate) path: &'a Path,
    pub(crate) object: &'a Map<String, Value>,
    /// The key under which the object itself stands.
    section: Option<&'static str>,
}

impl<'a> JsonObject<'a> {
    pub(crate) fn new(path: &'a Path, value: &'a Value) -> Result<JsonObject<'a>, ConfigError> {
        match value.as_object() {
            Some(object) => Ok(JsonObject { path, object, section: None }),
            None => Err(ConfigError::NotAnObject {
                path: path.to_owned(),
                got: excerpt(&value.to_string()),
            }),
        }
    }

    /// The object under `key`, whose messages name the key too.
    pub(crate) fn inside(&self, key: &'static str) -> Result<Option<JsonObject<'a>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_object() {
            Some(object) => Ok(Some(JsonObject { path: self.path, object, section: Some(key) })),
            None => Err(self.wrong(key, "an object", value)),
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn required_count(&self, key: &str, most: usize) -> Result<usize, ConfigError> {
        self.count(key, most)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn count(&self, key: &str, most: usize) -> Result<Option<usize>, ConfigError> {
        self.whole(key, 1, most)
    }

    pub(crate) fn whole(
        &self,
        key: &str,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if !value.is_number() {
            return Err(self.wrong(key, "a whole number", value));
        }
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                Err(self.out_of_range(key, value, format!("a whole number from {least} to {most}")))
            }
        }
    }

    pub(crate) fn positive(&self, key: &str, most: f64) -> Result<Option<f64>, ConfigError> {
        self.number(key, f64::MIN_POSITIVE, most)
    }

    pub(crate) fn number(
        &self,
        key: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(number) = value.as_f64() else {
            return Err(self.wrong(key, "a number", value));
        };
        if !(least..=most).contains(&number) {
            let expected = if least == f64::MIN_POSITIVE {
                "a positive number".to_owned()
            } else {
                format!("a number from {least} to {most}")
            };
            return Err(self.out_of_range(key, value, expected));
        }
        Ok(Some(number))
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false", value))
    }

    /// One id or a list of ids.
    pub(crate) fn ids(&self, key: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let ids = list.iter().map(|id| {
            id.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.wrong(key, "a token id or a list of token ids", id))
        });
        Ok(Some(ids.collect::<Result<_, _>>()?))
    }

    pub(crate) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { path: self.path.to_owned(), key: self.full(key) }
    }

    pub(crate) fn wrong(&self, key: &str, expected: &'static str, value: &Value) -> ConfigError {
        ConfigError::WrongType {
            path: self.path.to_owned(),
            key: self.full(key),
            expected,
            got: excerpt(&value.to_string()),
        }
    }

    pub(crate) fn out_of_range(
        &self,
        key: &str,
        got: &impl std::fmt::Display,
        expected: String,
    ) -> ConfigError {
        ConfigError::OutOfRange {
            path: self.path.to_owned(),
            key: self.full(key),
            expected,
            got: excerpt(&got.to_string()),
        }
    }

    pub(crate) fn contradiction(&self, message: String) -> ConfigError {
        let message = match self.section {
            Some(section) => format!("{section}: {message}"),
            None => message,
        };
        ConfigError::Contradiction { path: self.path.to_owned(), message }
    }

    pub(crate) fn unsupported(
        &self,
        key: &str,
        value: &Value,
        supported: impl Into<String>,
    ) -> ConfigError {
        let got = excerpt(&value.to_string());
        let (path, key) = (self.path.to_owned(), self.full(key));
        ConfigError::Unsupported { path, key, got, supported: supported.into() }
    }

    /// The key with the section it stands in.
    fn full(&self, key: &str) -> String {
        match self.section {
            Some(section) => format!("{section}.{key}"),
            None => key.to_owned(),
        }
    }
}
