//! A sweep's configuration in the words of its file, to say how two differ.

use sam_ladder_schemas::sweep::{Condition, Domain, Objective, Pruning, Scale, SearchMethod, Setting, SweepConfig, Validation};
use serde_json::Value;

/// Differences that a message lists; any more are only counted.
const LISTED: usize = 6;

/// In what two configurations differ, except budget and retries: `settings.lr is 0.001 in the sweep and 0.01 in the file`. `None` if in nothing.
pub(super) fn differences(sweep: &SweepConfig, file: &SweepConfig) -> Option<String> {
    let (sweep, file) = (keys(sweep), keys(file));
    let of = |all: &[(String, String)], key: &str| {
        let found = all.iter().find(|(found, _)| found == key);
        found.map_or_else(|| "not set".to_string(), |(_, words)| words.clone())
    };
    let added = file.iter().filter(|(key, _)| sweep.iter().all(|(known, _)| known != key));
    let mut differing: Vec<String> = (sweep.iter().chain(added))
        .filter(|(key, _)| of(&sweep, key) != of(&file, key))
        .map(|(key, _)| format!("{key} is {} in the sweep and {} in the file", of(&sweep, key), of(&file, key)))
        .collect();
    let more = differing.len().saturating_sub(LISTED);
    differing.truncate(LISTED);
    if more > 0 {
        differing.push(format!("and {more} more"));
    }
    (!differing.is_empty()).then(|| differing.join("; "))
}

/// Every key with its value. The order of the settings counts as one, since a grid follows it.
fn keys(config: &SweepConfig) -> Vec<(String, String)> {
    let SweepConfig { settings, search, pruning, objectives, validation, group_by, seeds, budget: _, retries: _ } = config;
    let mut all: Vec<(String, String)> = Vec::new();
    let mut put = |key: &str, words: String| all.push((key.into(), words));
    for setting in settings {
        put(&format!("settings.{}", setting.name), setting_words(setting));
    }
    let method = match search.method {
        SearchMethod::Grid => "grid",
        SearchMethod::Random => "random",
        SearchMethod::Tpe => "tpe",
    };
    put("search.method", method.into());
    put("search.seed", search.seed.to_string());
    if search.method == SearchMethod::Tpe {
        put("search.startup", search.startup.to_string());
    }
    match pruning {
        Pruning::None => put("pruning.method", "none".into()),
        Pruning::Asha { min_epochs, reduction } => {
            put("pruning.method", "asha".into());
            put("pruning.min_epochs", min_epochs.to_string());
            put("pruning.reduction", reduction.to_string());
        }
        Pruning::Median { min_epochs, interval, startup } => {
            put("pruning.method", "median".into());
            put("pruning.min_epochs", min_epochs.to_string());
            put("pruning.interval", interval.to_string());
            put("pruning.startup", startup.to_string());
        }
    }
    let objective = |objective: &Objective| match objective {
        Objective::Dice => "dice".to_string(),
        Objective::Hd95 => "hd95".to_string(),
    };
    put("objective.metric", listed(objectives.iter().map(objective), "and"));
    match validation {
        Validation::Folds(count) => put("validation.folds", count.to_string()),
        Validation::Fold(index, count) => put("validation.fold", format!("{index}/{count}")),
        Validation::Cases(cases) => put("validation.cases", listed(cases.iter().cloned(), "and")),
    }
    if let Some(by) = group_by {
        put("validation.group_by", by.to_string());
    }
    put("validation.seeds", listed(seeds.iter().map(u64::to_string), "and"));
    // Last: a setting that only one of the two has explains more.
    put("the order of the settings", listed(settings.iter().map(|setting| setting.name.clone()), "then"));
    all
}

fn setting_words(setting: &Setting) -> String {
    let domain = match &setting.domain {
        Domain::Fixed(value) => word(value),
        Domain::List(values) => listed(values.iter().map(word), "or"),
        Domain::Range { min, max, scale, integer, points } => {
            let scale = match (scale, integer) {
                (Scale::Log, false) => " on the log scale",
                (Scale::Log, true) => " in whole numbers on the log scale",
                (_, true) => " in whole numbers",
                (Scale::Linear | Scale::Integer, false) => "",
            };
            let points = points.map_or_else(String::new, |points| format!(", {points} points"));
            format!("{min} to {max}{scale}{points}")
        }
    };
    let when = |condition: &Condition| format!("{} is {}", condition.setting, listed(condition.values.iter().map(word), "or"));
    if setting.when.is_empty() {
        return domain;
    }
    format!("{domain} when {}", listed(setting.when.iter().map(when), "and"))
}

/// A value without quotation marks.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => format!("[{}]", values.iter().map(word).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// `a, b or c`.
fn listed(words: impl Iterator<Item = String>, last: &str) -> String {
    let words: Vec<String> = words.collect();
    match words.as_slice() {
        [] => "none".into(),
        [one] => one.clone(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::sweep::parse_sweep;

    const FILE: &str = include_str!("../../../schemas/src/sweep/example.toml");

    /// Every kind of change is said in words, without braces, quotation marks or Rust's names.
    #[test]
    fn what_differs_is_said_in_the_words_of_the_file() {
        let parse = |text: &str| parse_sweep("s.toml", text).unwrap();
        let sweep = parse(FILE);
        for (from, to, expected) in [
            ("epochs = 9", "epochs = 8", "settings.epochs is 9 in the sweep and 8 in the file"),
            (
                "\"sgd\"]",
                "\"adam\", \"sgd\"]",
                "settings.optimizer is adamw or sgd in the sweep and adamw, adam or sgd in the file",
            ),
            (
                "max = 1e-2, scale = \"log\", points = 3",
                "max = 2e-2",
                "settings.lr is 0.0001 to 0.01 on the log scale, 3 points in the sweep and 0.0001 to 0.02 in the file",
            ),
            (
                "= \"adamw\" }",
                "= [\"adamw\", \"sgd\"] }",
                "settings.weight_decay is 0.0 or 0.1 when optimizer is adamw in the sweep and 0.0 or 0.1 when optimizer is adamw or sgd in the file",
            ),
            (
                "warmup = { min = 0, max = 20 }\n",
                "",
                "settings.warmup is 0 to 20 in whole numbers in the sweep and not set in the file; the order of the settings is",
            ),
            ("max = 20 }\n", "max = 20 }\narm = \"cnn-only\"\n", "settings.arm is not set in the sweep and cnn-only in the file"),
            ("startup = 4", "startup = 5", "search.startup is 4 in the sweep and 5 in the file"),
            (
                "\"tpe\"\nstartup = 4",
                "\"random\"",
                "search.method is tpe in the sweep and random in the file; search.startup is 4",
            ),
            ("reduction = 2", "reduction = 4", "pruning.reduction is 2 in the sweep and 4 in the file"),
            ("\"asha\"\nreduction = 2", "\"median\"", "pruning.method is asha in the sweep and median in the file"),
            ("folds = 3", "fold = \"1/3\"", "validation.folds is 3 in the sweep and not set in the file"),
            ("folds = 3", "cases = [\"0005\"]", "validation.cases is not set in the sweep and 0005 in the file"),
            (
                "folds = 3",
                "folds = 3\ngroup_by = \"regex:^(.)\"",
                "validation.group_by is not set in the sweep and regex:^(.) in the file",
            ),
            ("seeds = [1, 2]", "seeds = 1", "validation.seeds is 1 and 2 in the sweep and 1 in the file"),
            (
                "[budget]",
                "[objective]\nmetric = [\"dice\", \"hd95\"]\n[budget]",
                "objective.metric is dice in the sweep and dice and hd95 in the file",
            ),
        ] {
            let text = FILE.replacen(from, to, 1);
            assert_ne!(text, FILE, "{from}");
            let said = differences(&sweep, &parse(&text)).unwrap();
            assert!(said.contains(expected), "{from}: {said}");
            assert!(!said.contains(['{', '"']) && !said.contains("Some"), "{said}");
        }
        let moved = FILE.replacen("epochs = 9\n", "", 1).replacen("\n[search]", "epochs = 9\n\n[search]", 1);
        let said = differences(&sweep, &parse(&moved)).unwrap();
        assert!(
            said.starts_with("the order of the settings is epochs, optimizer, lr, lambda, weight_decay then warmup in the sweep"),
            "{said}"
        );
        // Budget and retries may change.
        let other = FILE.replacen("trials = 20", "trials = 2\n[failures]\nretries = 3", 1);
        assert_eq!(differences(&sweep, &parse(&other)), None);
    }
}
