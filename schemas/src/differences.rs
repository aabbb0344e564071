//! The values in which two JSON documents differ, side by side.

use serde_json::Value;

/// Differences that a message lists; any more are only counted.
const TOLD: usize = 6;

/// Lists where `found` differs from `expected`, as `key: EXPECTED_NAME <value>, FOUND_NAME <value>` joined by `; `; a value that one side
/// lacks is `none`.
///
/// Arrays of objects that have a `path` (source files) are matched by it. Empty when the two are equal.
pub fn differences(expected: &Value, expected_name: &str, found: &Value, found_name: &str) -> String {
    let mut all = Vec::new();
    collect("", Some(expected), Some(found), &mut all);
    let rest = all.len().saturating_sub(TOLD);
    let mut told: Vec<String> = all
        .iter()
        .take(TOLD)
        .map(|(key, e, f)| format!("{key}: {expected_name} {}, {found_name} {}", short(*e), short(*f)))
        .collect();
    if rest > 0 {
        told.push(format!("and {rest} more"));
    }
    told.join("; ")
}

type Difference<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn collect<'a>(key: &str, expected: Option<&'a Value>, found: Option<&'a Value>, out: &mut Vec<Difference<'a>>) {
    let below = |name: &str| if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
    match (expected, found) {
        (Some(e), Some(f)) if e == f => {}
        (Some(Value::Object(e)), Some(Value::Object(f))) => {
            for name in e.keys().chain(f.keys().filter(|name| !e.contains_key(*name))) {
                collect(&below(name), e.get(name), f.get(name), out);
            }
        }
        (Some(Value::Array(e)), Some(Value::Array(f))) if e.iter().chain(f).all(|v| path_of(v).is_some()) => {
            let mut paths: Vec<&str> = e.iter().chain(f).filter_map(path_of).collect();
            paths.sort_unstable();
            paths.dedup();
            for path in paths {
                let of = |side: &'a [Value]| side.iter().find(|v| path_of(v) == Some(path)).and_then(|v| v.get("sha256"));
                collect(&below(path), of(e), of(f), out);
            }
        }
        (e, f) => out.push((key.to_string(), e, f)),
    }
}

fn path_of(value: &Value) -> Option<&str> {
    value.get("path")?.as_str()
}

fn short(value: Option<&Value>) -> String {
    let Some(value) = value.filter(|value| !value.is_null()) else { return "none".into() };
    let text = value.to_string();
    if text.chars().count() <= 72 {
        return text;
    }
    let head: String = text.chars().take(68).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_values_side_by_side() {
        let store = json!({ "config": { "image_size": 512, "dtype": "f16" }, "sources": [{ "path": "a", "sha256": "1" }] });
        let asked = json!({ "config": { "image_size": 224, "dtype": "f16" }, "sources": [{ "path": "b", "sha256": "2" }] });
        let text = differences(&store, "store", &asked, "asked");
        assert_eq!(
            text,
            "config.image_size: store 512, asked 224; sources.a: store \"1\", asked none; sources.b: store none, asked \"2\""
        );
        assert_eq!(differences(&store, "store", &store, "asked"), "");
    }

    #[test]
    fn counts_what_it_does_not_list() {
        let left: Value = (0..9).map(|i| (format!("k{i}"), json!(i))).collect::<serde_json::Map<_, _>>().into();
        assert!(differences(&left, "l", &json!({}), "r").ends_with("and 3 more"));
    }
}
