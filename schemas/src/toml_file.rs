//! Settings in a TOML file. Serde reads them; errors are reported with line and column.

use crate::json_schema;
use crate::setting::{FileError, Problem, SettingError};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A TOML text as JSON, with the place where each setting begins.
pub struct TomlFile<'a> {
    name: &'a str,
    text: &'a str,
    values: Value,
    /// Byte offsets by path: `settings.lr.min`, `settings.optimizer[1]`.
    places: BTreeMap<String, usize>,
}

impl<'a> TomlFile<'a> {
    /// Parses a text; `name` is the file's in messages.
    ///
    /// # Errors
    /// If the text is not TOML, or has a value that JSON lacks: a date, `inf`, `nan`.
    pub fn parse(name: &'a str, text: &'a str) -> Result<Self, FileError> {
        let mut file = TomlFile { name, text, values: Value::Null, places: BTreeMap::new() };
        let table = DeTable::parse(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            file.at(start, Problem::Syntax(error.message().into()).with(""))
        })?;
        file.values = file.table("", table.get_ref())?;
        Ok(file)
    }

    /// All of it, as JSON.
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// The settings, checked against their schema.
    ///
    /// # Errors
    /// The first setting that is unknown, of another type or out of range.
    pub fn read<T: JsonSchema + DeserializeOwned>(&self) -> Result<T, FileError> {
        json_schema::read(&self.values, "").map_err(|error| self.locate(error))
    }

    /// Adds the place in the file of the setting, or of the nearest one that encloses it.
    pub fn locate(&self, error: SettingError) -> FileError {
        let mut path = error.setting.as_str();
        while !path.is_empty() && !self.places.contains_key(path) {
            path = &path[..path.rfind(['.', '[']).unwrap_or(0)];
        }
        self.at(self.places.get(path).copied().unwrap_or(0), error)
    }

    fn at(&self, offset: usize, error: SettingError) -> FileError {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let line = before.rsplit('\n').next().unwrap_or_default();
        FileError { file: self.name.into(), line: 1 + before.matches('\n').count(), column: 1 + line.chars().count(), error }
    }

    fn table(&mut self, path: &str, table: &DeTable<'_>) -> Result<Value, FileError> {
        // The parser sorts keys by name, but in a sweep's file a setting may depend only on earlier ones.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut all = Map::new();
        for (key, value) in entries {
            let name = key.get_ref().to_string();
            let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.places.insert(inner.clone(), key.span().start);
            all.insert(name, self.value(&inner, value)?);
        }
        Ok(Value::Object(all))
    }

    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Result<Value, FileError> {
        let scalar = match value.get_ref() {
            DeValue::Table(table) => return self.table(path, table),
            DeValue::Array(values) => {
                let mut all = Vec::with_capacity(values.len());
                for (index, value) in values.iter().enumerate() {
                    let inner = format!("{path}[{index}]");
                    self.places.insert(inner.clone(), value.span().start);
                    all.push(self.value(&inner, value)?);
                }
                return Ok(Value::Array(all));
            }
            DeValue::String(text) => Some(Value::String(text.to_string())),
            DeValue::Boolean(truth) => Some(Value::Bool(*truth)),
            DeValue::Integer(number) => {
                let unsigned = u64::from_str_radix(number.as_str(), number.radix()).map(Value::from);
                unsigned.or_else(|_| i64::from_str_radix(number.as_str(), number.radix()).map(Value::from)).ok()
            }
            DeValue::Float(number) => number.as_str().parse().ok().and_then(Number::from_f64).map(Value::Number),
            DeValue::Datetime(_) => None,
        };
        scalar.ok_or_else(|| {
            let found = self.text.get(value.span()).unwrap_or_default();
            self.locate(Problem::expected("a finite number, a string, true, false, a list or a table", found).with(path))
        })
    }
}
