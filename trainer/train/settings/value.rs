//! Values as TOML has them.

use toml::de::DeValue;

/// A type of setting.
pub(super) trait Value: Sized {
    /// The value, or `None` if it is of another type.
    fn read(value: &DeValue<'_>) -> Option<Self>;

    /// The value in TOML; [`Value::read`] gives the same back.
    fn write(&self) -> String;

    /// All that is allowed, where the type alone says it.
    fn allowed() -> Option<String> {
        None
    }
}

impl Value for bool {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn allowed() -> Option<String> {
        Some("true | false".to_owned())
    }
}

impl Value for u64 {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        let integer = value.as_integer()?;
        u64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for usize {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        u64::read(value)?.try_into().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        u64::read(value)?.try_into().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Value for f64 {
    /// A whole number is a number too.
    fn read(value: &DeValue<'_>) -> Option<Self> {
        let number = match value.as_float() {
            Some(float) => float.as_str().parse().ok()?,
            None => {
                let integer = value.as_integer()?;
                i64::from_str_radix(integer.as_str(), integer.radix()).ok()? as f64
            }
        };
        Some(number).filter(|number: &f64| number.is_finite())
    }

    fn write(&self) -> String {
        format!("{self:?}") // the shortest that reads back as the same bits, with a point or an exponent
    }
}

impl Value for String {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }

    /// JSON's escapes are TOML's, but for DEL, which only TOML wants escaped.
    fn write(&self) -> String {
        serde_json::Value::from(self.as_str()).to_string().replace('\u{7f}', "\\u007F")
    }
}

impl Value for Vec<String> {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        value.as_array()?.iter().map(|item| String::read(item.get_ref())).collect()
    }

    fn write(&self) -> String {
        format!("[{}]", self.iter().map(Value::write).collect::<Vec<_>>().join(", "))
    }
}

impl Value for [f64; 2] {
    fn read(value: &DeValue<'_>) -> Option<Self> {
        let numbers: Option<Vec<f64>> =
            value.as_array()?.iter().map(|item| f64::read(item.get_ref())).collect();
        numbers?.try_into().ok()
    }

    fn write(&self) -> String {
        format!("[{}, {}]", self[0].write(), self[1].write())
    }
}
