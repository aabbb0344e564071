//! `[settings]` of a sweep's file: one value, a list, or a range for each setting of `train`.

use super::{Condition, Domain, Scale, SearchMethod, Setting};
use crate::json_schema;
use crate::setting::{Problem, SettingError};
use crate::train::TrainConfig;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Settings of `train` that a sweep's file has in another table, and what to write instead.
const ELSEWHERE: [(&str, &str); 5] = [
    ("seed", "write the seeds of the runs as seeds = [1, 2] in [validation]"),
    ("val_cases", "write the validation cases as cases = [\"0005\"] in [validation]"),
    ("group_by", "write it as group_by = \"regex:EXPR\" in [validation]"),
    ("max_steps", "a sweep counts in epochs: set epochs"),
    ("early_stopping", "a sweep stops trials early by [pruning]"),
];
/// Most whole numbers that a range without `points` may have in a grid.
const WHOLE_RANGE: f64 = 1000.0;

/// Settings by name, in the file's order, each checked by the schema of [`TrainConfig`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SettingsTable(Map<String, Value>);

/// A setting in the form of a table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SettingTable {
    value: Option<Value>,
    values: Option<Vec<Value>>,
    min: Option<f64>,
    max: Option<f64>,
    scale: Option<Scale>,
    points: Option<u32>,
    when: Map<String, Value>,
}

impl JsonSchema for SettingsTable {
    fn schema_name() -> Cow<'static, str> {
        "SettingsTable".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let train = json_schema::schema_of::<TrainConfig>();
        let scale = generator.subschema_for::<Scale>();
        let mut properties = Map::new();
        for (name, schema) in train["properties"].as_object().into_iter().flatten() {
            let form = setting_forms(schema, &scale);
            let elsewhere = ELSEWHERE.iter().any(|(key, _)| key == name);
            if !elsewhere {
                properties.insert(name.replace('_', "-"), form.clone());
                properties.insert(name.clone(), form);
            }
        }
        schemars::json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
    }
}

/// The schema of a setting in any form (value, list or table), from the schema of its value.
fn setting_forms(schema: &Value, scale: &Schema) -> Value {
    let mut value = schema.clone();
    let description = value.as_object_mut().and_then(|value| {
        value.shift_remove("default");
        value.shift_remove("description")
    });
    let mut table = json!({
        "value": value,
        "values": { "type": "array", "items": value, "description": "One of these, in no order" },
    });
    if value["type"] == "integer" || value["type"] == "number" {
        table["min"] = value.clone();
        table["max"] = value.clone();
        table["scale"] = json!(scale);
        table["points"] = json!({ "type": "integer", "minimum": 2, "description": "Number of values that a grid takes from the range, both ends included" });
    }
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    table["when"] = json!({
        "type": "object",
        "additionalProperties": { "anyOf": [scalar, { "type": "array", "items": scalar }] },
        "description": "Search this setting only if settings above it in the file have these values",
    });
    json!({
        "description": description,
        "anyOf": [
            value,
            { "type": "array", "items": value },
            { "type": "object", "properties": table, "additionalProperties": false },
        ],
    })
}

impl SettingsTable {
    /// Refuses settings of `train` that belong to another table.
    ///
    /// # Errors
    /// The first such setting, with the table where it belongs.
    pub(super) fn refuse_elsewhere(file: &Value) -> Result<(), SettingError> {
        for key in file["settings"].as_object().into_iter().flat_map(Map::keys) {
            if let Some((_, place)) = ELSEWHERE.iter().find(|(name, _)| *name == name_of(key)) {
                return Err(Problem::conflict("cannot be set here", place).with(format!("settings.{key}")));
            }
        }
        Ok(())
    }

    /// The settings, with values in the form of [`TrainConfig`].
    ///
    /// # Errors
    /// The first value, range or condition that contradicts itself or another.
    pub(super) fn read(&self, method: SearchMethod) -> Result<Vec<Setting>, SettingError> {
        let mut settings: Vec<Setting> = Vec::new();
        for (key, entry) in &self.0 {
            let (name, path) = (name_of(key), format!("settings.{key}"));
            if settings.iter().any(|setting| setting.name == name) {
                return Err(Problem::conflict("is there twice", "keep one of the two spellings").with(path));
            }
            let (domain, when) = match entry {
                Value::Object(_) => {
                    let table =
                        SettingTable::deserialize(entry).map_err(|error| Problem::expected("a setting", error).with(&path))?;
                    (table.domain(&name, &path, method)?, conditions(&table.when, &path, &settings)?)
                }
                // A list of cases is one value; a list of such lists is several.
                Value::Array(values) if takes_lists(&name) && !values.iter().all(Value::is_array) => {
                    (Domain::Fixed(normal(&name, entry)), Vec::new())
                }
                Value::Array(values) => (list(&name, values, &path)?, Vec::new()),
                value => (Domain::Fixed(normal(&name, value)), Vec::new()),
            };
            refuse_unreadable(&name, &domain, &path)?;
            settings.push(Setting { name, domain, when });
        }
        Ok(settings)
    }
}

/// Refuses values that the schema allows and the setting does not: words of a form of their own.
fn refuse_unreadable(name: &str, domain: &Domain, path: &str) -> Result<(), SettingError> {
    let values = match domain {
        Domain::Fixed(value) => std::slice::from_ref(value),
        Domain::List(values) => values.as_slice(),
        Domain::Range { .. } => &[],
    };
    let unreadable =
        values.iter().find_map(|value| TrainConfig::with(&Map::from_iter([(name.to_string(), value.clone())])).err());
    unreadable.map_or(Ok(()), |error| Err(error.problem.with(path)))
}

/// A setting's name in `config.json`: `batch-size` is `batch_size`.
fn name_of(key: &str) -> String {
    key.replace('-', "_")
}

impl SettingTable {
    fn domain(&self, name: &str, path: &str, method: SearchMethod) -> Result<Domain, SettingError> {
        let is_range = self.min.is_some() || self.max.is_some() || self.scale.is_some() || self.points.is_some();
        match (&self.value, &self.values, is_range) {
            (Some(value), None, false) => Ok(Domain::Fixed(normal(name, value))),
            (None, Some(values), false) => list(name, values, &format!("{path}.values")),
            (None, None, true) if self.min.is_some() && self.max.is_some() => self.range(name, path, method),
            _ => {
                let found = if is_range { "a part of these, or more than one" } else { "none or more than one" };
                Err(Problem::expected("value = …, or values = [ … ], or min = … and max = …", found).with(path))
            }
        }
    }

    fn range(&self, name: &str, path: &str, method: SearchMethod) -> Result<Domain, SettingError> {
        let (min, max) = (self.min.unwrap_or_default(), self.max.unwrap_or_default());
        let scale = self.scale.unwrap_or(Scale::Linear);
        if min >= max {
            return Err(Problem::expected(format!("less than max = {max}"), min).with(format!("{path}.min")));
        }
        if scale == Scale::Log && min <= 0.0 {
            return Err(Problem::expected("a number above 0 on the log scale", min).with(format!("{path}.min")));
        }
        let integer = scale == Scale::Integer || takes_whole_numbers(name);
        if let Some((key, end)) = [("min", min), ("max", max)].into_iter().find(|(_, end)| integer && end.fract() != 0.0) {
            return Err(Problem::expected("a whole number", end).with(format!("{path}.{key}")));
        }
        let counts_itself = integer && scale != Scale::Log && max - min < WHOLE_RANGE;
        if method == SearchMethod::Grid && self.points.is_none() && !counts_itself {
            let reason = "a grid needs to know how many values it takes of this range";
            return Err(Problem::conflict(reason, "add `points = 5`").with(path));
        }
        Ok(Domain::Range { min, max, scale, integer, points: self.points })
    }
}

fn list(name: &str, values: &[Value], path: &str) -> Result<Domain, SettingError> {
    if values.is_empty() {
        return Err(Problem::expected("a list of values", "an empty list").with(path));
    }
    let values: Vec<Value> = values.iter().map(|value| normal(name, value)).collect();
    if let Some(at) = (1..values.len()).find(|&at| values[..at].contains(&values[at])) {
        return Err(Problem::conflict(format!("{} is there twice", values[at]), "keep one of them").with(path));
    }
    Ok(Domain::List(values))
}

/// `when = { optimizer = "sgd", arm = ["full", "cnn-only"] }`.
fn conditions(when: &Map<String, Value>, path: &str, before: &[Setting]) -> Result<Vec<Condition>, SettingError> {
    let condition = |(key, value): (&String, &Value)| {
        let (name, path) = (name_of(key), format!("{path}.when.{key}"));
        let conflict = |reason: &str, hint: &str| Problem::conflict(reason, hint).with(&path);
        let Some(other) = before.iter().find(|setting| setting.name == name) else {
            return Err(conflict(
                "a condition looks at a setting that stands before this one",
                "move that setting up in [settings]",
            ));
        };
        let values = match value {
            Value::Array(values) => values.iter().map(|value| normal(&name, value)).collect(),
            value => vec![normal(&name, value)],
        };
        let possible = match &other.domain {
            Domain::Fixed(value) => std::slice::from_ref(value),
            Domain::List(possible) => possible.as_slice(),
            Domain::Range { .. } => {
                return Err(conflict("a condition looks at a fixed value or a list, not at a range", "give that setting a list"));
            }
        };
        match values.iter().find(|value| !possible.contains(value)) {
            Some(never) => Err(conflict(&format!("is never {never}"), "name values that the setting has in this file")),
            None => Ok(Condition { setting: name, values }),
        }
    };
    when.iter().map(condition).collect()
}

/// Whether a setting takes whole numbers only.
fn takes_whole_numbers(name: &str) -> bool {
    TrainConfig::value_in(&json!(TrainConfig::default()), name).is_u64()
}

/// Whether a setting's value is a list.
fn takes_lists(name: &str) -> bool {
    TrainConfig::value_in(&json!(TrainConfig::default()), name).is_array()
}

/// A value in the form of [`TrainConfig`]: `1` and `1.0` are the same learning rate and must give the same trial id.
fn normal(name: &str, value: &Value) -> Value {
    let config = TrainConfig::with(&Map::from_iter([(name.to_string(), value.clone())]));
    config.map_or_else(|_| value.clone(), |config| TrainConfig::value_in(&json!(config), name))
}
