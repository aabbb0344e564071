//! The JSON Schema of a set of settings, made from its struct. Editors complete from it, values are checked against it, and errors and the
//! documentation take from it the words for the values that a setting accepts.

use crate::setting::{Problem, SettingError};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// The JSON Schema (draft 2020-12) of a type, without references.
pub fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    json!(settings.into_generator().into_root_schema_for::<T>())
}

/// Checks a value against the settings' schema and reads it; `path` is the value's place, for messages.
///
/// # Errors
/// The first setting that is unknown, of another type or out of range.
pub fn read<T: JsonSchema + DeserializeOwned>(value: &Value, path: &str) -> Result<T, SettingError> {
    check(value, &schema_of::<T>(), path)?;
    // The schema accepts numbers that are too large for their type; serde does not.
    T::deserialize(value).map_err(|error| Problem::expected("another value", error).with(path))
}

/// Checks a value against a schema. Knows the keywords of JSON Schema that [`schema_of`] writes.
///
/// # Errors
/// The first setting that is unknown, of another type or out of range.
pub fn check(value: &Value, schema: &Value, path: &str) -> Result<(), SettingError> {
    let forms = forms(schema);
    let nested = |kind: &str| forms.iter().filter(|form| kind_of(form) == kind).collect::<Vec<_>>();
    let first_good = |results: Vec<Result<(), SettingError>>| {
        let found = results.iter().find(|result| result.is_ok()).or(results.first());
        found.cloned().unwrap_or_else(|| Err(Problem::expected(words(schema), short(value)).with(path)))
    };
    match value {
        Value::Null if is_nullable(schema) => Ok(()),
        Value::Array(values) => {
            let items = |form: &&&Value| {
                let item = |(index, value)| check(value, &form["items"], &format!("{path}[{index}]"));
                values.iter().enumerate().try_for_each(item)
            };
            first_good(nested("array").iter().map(items).collect())
        }
        Value::Object(entries) => first_good(nested("object").iter().map(|form| check_table(entries, form, path)).collect()),
        scalar if forms.iter().any(|form| allows(form, scalar)) => Ok(()),
        scalar => Err(Problem::expected(words(schema), short(scalar)).with(path)),
    }
}

fn check_table(entries: &Map<String, Value>, schema: &Value, path: &str) -> Result<(), SettingError> {
    let nothing = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&nothing);
    let inner = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    for (key, value) in entries {
        match (properties.get(key), &schema["additionalProperties"]) {
            (Some(schema), _) => check(value, schema, &inner(key))?,
            (None, Value::Bool(false)) => {
                return Err(Problem::Unknown { known: properties.keys().cloned().collect() }.with(inner(key)));
            }
            (None, Value::Null | Value::Bool(true)) => {}
            (None, others) => check(value, others, &inner(key))?,
        }
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    match required.into_iter().find(|key| !entries.contains_key(*key)) {
        Some(key) => Err(Problem::Missing(words(&properties[key])).with(inner(key))),
        None => Ok(()),
    }
}

/// The values that a schema allows, in words: `a number from 0 to 1`, `"adamw", "adam" or "sgd"`.
pub fn words(schema: &Value) -> String {
    let mut all: Vec<String> = Vec::new();
    for form in forms(schema) {
        match (form.get("const"), form["enum"].as_array()) {
            (Some(word), _) => all.push(word.to_string()),
            (None, Some(words)) => all.extend(words.iter().filter(|word| !word.is_null()).map(Value::to_string)),
            (None, None) => all.push(format!("{}{}", kind_words(form), range_words(form))),
        }
    }
    all.dedup();
    match all.as_slice() {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn kind_words(form: &Value) -> &'static str {
    match (kind_of(form), kind_of(&form["items"])) {
        ("integer", _) => "a whole number",
        ("number", _) => "a number",
        ("string", _) => "a string",
        ("boolean", _) => "true or false",
        ("array", "string") if form["items"]["enum"].is_null() => "a list of strings",
        ("array", "integer") => "a list of whole numbers",
        ("array", "number") => "a list of numbers",
        ("array", _) => "a list",
        _ => "a table",
    }
}

fn range_words(form: &Value) -> String {
    let number = |key: &str| form[key].as_f64();
    let range = match (number("minimum"), number("exclusiveMinimum"), number("maximum")) {
        (Some(low), _, Some(high)) => format!(" from {low} to {high}"),
        (Some(low), _, None) => format!(" from {low}"),
        (None, Some(low), Some(high)) => format!(" above {low} and up to {high}"),
        (None, Some(low), None) => format!(" above {low}"),
        (None, None, Some(high)) => format!(" up to {high}"),
        (None, None, None) => String::new(),
    };
    let multiple = number("multipleOf").map_or_else(String::new, |of| format!(", a multiple of {of}"));
    range + &multiple
}

/// The forms that a schema allows besides null, each of one type.
fn forms(schema: &Value) -> Vec<&Value> {
    match ["anyOf", "oneOf"].into_iter().find_map(|key| schema[key].as_array()) {
        Some(all) => all.iter().flat_map(forms).collect(),
        None if schema["type"] == "null" => Vec::new(),
        None => vec![schema],
    }
}

fn is_nullable(schema: &Value) -> bool {
    let kinds = &schema["type"];
    let alternatives = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    kinds == "null"
        || kinds.as_array().is_some_and(|all| all.contains(&"null".into()))
        || alternatives.into_iter().any(is_nullable)
}

fn kind_of(form: &Value) -> &str {
    let kinds = form["type"].as_array();
    let kind = kinds.map_or(Some(&form["type"]), |kinds| kinds.iter().find(|kind| *kind != "null"));
    kind.and_then(Value::as_str).unwrap_or_default()
}

fn allows(form: &Value, scalar: &Value) -> bool {
    if let Some(word) = form.get("const") {
        return word == scalar;
    }
    if let Some(words) = form["enum"].as_array() {
        return words.contains(scalar);
    }
    match kind_of(form) {
        "integer" => (scalar.is_u64() || scalar.is_i64()) && in_range(form, scalar),
        "number" => scalar.is_number() && in_range(form, scalar),
        "string" => scalar.is_string(),
        "boolean" => scalar.is_boolean(),
        _ => false,
    }
}

fn in_range(form: &Value, number: &Value) -> bool {
    let Some(number) = number.as_f64() else { return false };
    let limit = |key: &str| form[key].as_f64();
    let largest = if form["format"] == "uint32" { f64::from(u32::MAX) } else { f64::INFINITY };
    limit("minimum").is_none_or(|low| number >= low)
        && limit("exclusiveMinimum").is_none_or(|low| number > low)
        && number <= limit("maximum").unwrap_or(largest)
        && limit("multipleOf").is_none_or(|of| number % of == 0.0)
}

/// A value in a few words.
fn short(value: &Value) -> String {
    match value {
        Value::Null => "a number that is not finite".into(),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "a table".into(),
        scalar => scalar.to_string(),
    }
}
