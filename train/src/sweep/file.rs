//! The sweep's TOML file: `docs/sweeps.md` has its reference.

use super::toml_tree::{Item, Node, Section};
use crate::error::{Result, TrainError};
use sam_ladder_schemas::sweep::{
    Budget, Condition, Domain, Objective, Pruning, Scale, Search, SearchMethod, Setting, SweepConfig, Validation,
};
use sam_ladder_schemas::train::TrainConfig;
use serde_json::{Map, Value};
use std::path::Path;

/// Settings of a training that are no settings of a sweep, and where they belong.
const ELSEWHERE: [(&str, &str); 3] = [
    ("seed", "the seeds of the runs stand in [validation] seeds"),
    ("val_cases", "validation cases stand in [validation]"),
    ("max_steps", "a sweep counts in epochs: set epochs"),
];
/// Seed of runs and of the search unless the file has one.
const DEFAULT_SEED: u64 = 1234;
/// Most values of an integer range that a grid takes without being told how many.
const WHOLE_RANGE: f64 = 1000.0;
/// Size of a file that is no sweep's any more.
const LARGEST_FILE: u64 = 1 << 20;

/// Reads and checks a sweep's file.
///
/// # Errors
/// One line that names the file, the line and the key.
pub fn read_config(path: &Path) -> Result<SweepConfig> {
    let name = path.display().to_string();
    let length = std::fs::metadata(path).map_err(crate::error::io(path))?.len();
    if length > LARGEST_FILE {
        return Err(TrainError::Setting(format!("{name}: has {length} bytes, more than any sweep's file")));
    }
    let bytes = std::fs::read(path).map_err(crate::error::io(path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| TrainError::Setting(format!("{name}: not a text: {error}")))?;
    parse_config(&name, text)
}

/// As [`read_config`], of a text; `name` is the file's in messages.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(name: &str, text: &str) -> Result<SweepConfig> {
    let mut file = Section::parse(name, text)?;
    let search = search(file.take_section("search")?)?;
    let settings = settings(file.take_section("settings")?, search.method)?;
    let pruning = pruning(file.take_section("pruning")?)?;
    let objectives = objectives(file.take_section("objective")?)?;
    let (validation, seeds) = validation(file.take_section("validation")?)?;
    let budget = budget(file.take_section("budget")?, search.method)?;
    let mut failures = file.take_section("failures")?;
    let retries = failures.take_value("retries", "a whole number", count)?.unwrap_or(1);
    failures.finish(&["retries"])?;
    file.finish(&["settings", "search", "pruning", "objective", "validation", "budget", "failures"])?;
    Ok(SweepConfig { settings, search, pruning, objectives, validation, seeds, budget, retries })
}

fn count(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|value| u32::try_from(value).ok())
}

fn at_least(least: u32) -> impl Fn(&Value) -> Option<u32> {
    move |value| count(value).filter(|&value| value >= least)
}

/// One of several words, by what serde calls them.
fn word<T: serde::de::DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn search(mut section: Section) -> Result<Search> {
    let method = section.take_value("method", "\"grid\", \"random\" or \"tpe\"", word)?.unwrap_or(SearchMethod::Random);
    let seed = section.take_value("seed", "a whole number", Value::as_u64)?.unwrap_or(DEFAULT_SEED);
    let mut known = vec!["method", "seed"];
    let mut startup = 10;
    if method == SearchMethod::Tpe {
        known.push("startup");
        startup = section.take_value("startup", "a whole number from 1", at_least(1))?.unwrap_or(startup);
    }
    section.finish(&known)?;
    Ok(Search { method, seed, startup })
}

fn pruning(mut section: Section) -> Result<Pruning> {
    let expected = "\"none\", \"asha\" or \"median\"";
    let method = section.take_value("method", expected, |value| value.as_str().map(str::to_string))?;
    let positive = "a whole number from 1";
    Ok(match method.as_deref() {
        None | Some("none") => {
            section.finish(&["method"])?;
            Pruning::None
        }
        Some("asha") => {
            let min_epochs = section.take_value("min_epochs", positive, at_least(1))?.unwrap_or(1);
            let reduction = section.take_value("reduction", "a whole number from 2", at_least(2))?.unwrap_or(3);
            section.finish(&["method", "min_epochs", "reduction"])?;
            Pruning::Asha { min_epochs, reduction }
        }
        Some("median") => {
            let min_epochs = section.take_value("min_epochs", positive, at_least(1))?.unwrap_or(1);
            let interval = section.take_value("interval", positive, at_least(1))?.unwrap_or(1);
            let startup = section.take_value("startup", positive, at_least(1))?.unwrap_or(5);
            section.finish(&["method", "min_epochs", "interval", "startup"])?;
            Pruning::Median { min_epochs, interval, startup }
        }
        Some(other) => return Err(section.refuse_all(format!("method: expected {expected}, found {other:?}"))),
    })
}

fn objectives(mut section: Section) -> Result<Vec<Objective>> {
    let expected = "\"dice\", \"hd95\", or a list of both";
    let Some(item) = section.take("metric") else {
        section.finish(&["metric"])?;
        return Ok(vec![Objective::Dice]);
    };
    let found: Option<Vec<Objective>> = match &item.node {
        Node::Scalar(value) => word(value).map(|objective| vec![objective]),
        Node::List(values) => values.iter().map(word).collect(),
        Node::Table(_) => None,
    };
    let found = found.filter(|found| !found.is_empty() && (found.len() == 1 || found.len() == 2 && found[0] != found[1]));
    let Some(found) = found else {
        return Err(section.refuse(item.line, "metric", format!("expected {expected}, found {}", item.node.words())));
    };
    section.finish(&["metric"])?;
    Ok(found)
}

fn validation(mut section: Section) -> Result<(Validation, Vec<u64>)> {
    let choices: Vec<Item> = ["folds", "fold", "cases"].iter().filter_map(|key| section.take(key)).collect();
    let [choice] = choices.as_slice() else {
        return Err(section.refuse_all(
            "expected one of folds = K (all of K folds), fold = \"I/N\" (one of them) and cases = [\"0005\", …] (these training cases)",
        ));
    };
    let validation = match (choice.key.as_str(), &choice.node) {
        ("folds", Node::Scalar(value)) => at_least(2)(value).map(Validation::Folds),
        ("fold", Node::Scalar(Value::String(fold))) => fold
            .split_once('/')
            .and_then(|(index, count)| Some((index.trim().parse().ok()?, count.trim().parse().ok()?)))
            .filter(|&(index, count)| index >= 1 && index <= count && count >= 2)
            .map(|(index, count): (u32, u32)| Validation::Fold(index, count)),
        ("cases", Node::List(cases)) if !cases.is_empty() => {
            cases.iter().map(|case| case.as_str().map(str::to_string)).collect::<Option<_>>().map(Validation::Cases)
        }
        _ => None,
    };
    let Some(validation) = validation else {
        let expected = match choice.key.as_str() {
            "folds" => "a whole number from 2",
            "fold" => "a text \"I/N\", as \"1/5\", with N at least 2 and I from 1 to N",
            _ => "a list of cases, as [\"0005\", \"0006\"]",
        };
        return Err(section.refuse(choice.line, &choice.key, format!("expected {expected}, found {}", choice.node.words())));
    };
    let seeds = match section.take("seeds") {
        None => vec![DEFAULT_SEED],
        Some(item) => {
            let seeds: Option<Vec<u64>> = match &item.node {
                Node::List(values) => values.iter().map(Value::as_u64).collect(),
                Node::Scalar(value) => value.as_u64().map(|seed| vec![seed]),
                Node::Table(_) => None,
            };
            let distinct = |seeds: &Vec<u64>| !seeds.is_empty() && (1..seeds.len()).all(|i| !seeds[..i].contains(&seeds[i]));
            seeds.filter(distinct).ok_or_else(|| {
                section.refuse(
                    item.line,
                    "seeds",
                    format!("expected a list of different whole numbers, found {}", item.node.words()),
                )
            })?
        }
    };
    section.finish(&["folds", "fold", "cases", "seeds"])?;
    Ok((validation, seeds))
}

fn budget(mut section: Section, method: SearchMethod) -> Result<Budget> {
    let trials = section.take_value("trials", "a whole number from 1", at_least(1))?;
    let epochs = section.take_value("epochs", "a whole number from 1", |value| value.as_u64().filter(|&epochs| epochs > 0))?;
    let hours = section.take_value("hours", "a positive number", |value| value.as_f64().filter(|&hours| hours > 0.0))?;
    if method != SearchMethod::Grid && trials.is_none() && epochs.is_none() && hours.is_none() {
        return Err(section.refuse_all("expected at least one of trials, epochs and hours: this search has no end of its own"));
    }
    section.finish(&["trials", "epochs", "hours"])?;
    Ok(Budget { trials, epochs, hours })
}

fn settings(mut section: Section, method: SearchMethod) -> Result<Vec<Setting>> {
    let mut settings: Vec<Setting> = Vec::new();
    for item in section.take_all() {
        let name = item.key.replace('-', "_");
        let refuse = |message: String| section.refuse(item.line, &item.key, message);
        if let Some((_, where_to)) = ELSEWHERE.iter().find(|(key, _)| *key == name) {
            return Err(refuse(where_to.to_string()));
        }
        if !default_settings().contains_key(&name) {
            let names = default_settings().into_iter().map(|(name, _)| name);
            let names: Vec<String> = names.filter(|name| ELSEWHERE.iter().all(|(key, _)| key != name)).collect();
            return Err(refuse(format!("no setting of a training; those are {}", names.join(", "))));
        }
        if settings.iter().any(|setting| setting.name == name) {
            return Err(refuse("is there twice".into()));
        }
        let line = item.line;
        let key = item.key.clone();
        let (domain, when) = match item.node {
            Node::Scalar(value) => (Domain::Fixed(value), Vec::new()),
            Node::List(values) => (Domain::List(values), Vec::new()),
            Node::Table(items) => {
                let mut inner = section.inner(&key, line, items);
                let when = conditions(&mut inner, &settings)?;
                (domain(inner, &name, method)?, when)
            }
        };
        check_values(&name, &domain).map_err(|message| section.refuse(line, &key, message))?;
        let domain = normal(&name, domain);
        settings.push(Setting { name, domain, when });
    }
    Ok(settings)
}

/// A domain in the form of a table: `value`, `values`, or `min` and `max`.
fn domain(mut section: Section, name: &str, method: SearchMethod) -> Result<Domain> {
    let known = ["value", "values", "min", "max", "scale", "points", "when"];
    if let Some(item) = section.take("value") {
        let Node::Scalar(value) = item.node else {
            return Err(section.refuse(
                item.line,
                "value",
                "expected a number, a text or a truth value; several stand in values = [ ]",
            ));
        };
        section.finish(&["value", "when"])?;
        return Ok(Domain::Fixed(value));
    }
    if let Some(item) = section.take("values") {
        let Node::List(values) = item.node else {
            return Err(section.refuse(item.line, "values", "expected a list"));
        };
        section.finish(&["values", "when"])?;
        return Ok(Domain::List(values));
    }
    let (min, max) =
        (section.take_value("min", "a number", Value::as_f64)?, section.take_value("max", "a number", Value::as_f64)?);
    let scale = section.take_value("scale", "\"linear\", \"log\" or \"integer\"", word)?.unwrap_or(Scale::Linear);
    let points = section.take_value("points", "a whole number from 2", at_least(2))?;
    let (Some(min), Some(max)) = (min, max) else {
        return Err(section.refuse_all("expected value = …, values = [ … ], or min = … and max = …"));
    };
    if min >= max {
        return Err(section.refuse_all(format!("expected min below max, found {min} and {max}")));
    }
    if scale == Scale::Log && min <= 0.0 {
        return Err(section.refuse_all(format!("a range on the log scale begins above 0, found min = {min}")));
    }
    let integer = scale == Scale::Integer || takes_whole_numbers(name);
    if integer && (min.fract() != 0.0 || max.fract() != 0.0) {
        return Err(section.refuse_all(format!("expected whole numbers, found min = {min} and max = {max}")));
    }
    let counts_itself = integer && scale != Scale::Log && max - min < WHOLE_RANGE;
    if method == SearchMethod::Grid && points.is_none() && !counts_itself {
        return Err(section.refuse_all("a grid needs to know how many values it takes of this range: add points = N"));
    }
    section.finish(&known)?;
    Ok(Domain::Range { min, max, scale, integer, points })
}

/// `when = { optimizer = "sgd", arm = ["full", "cnn-only"] }`.
fn conditions(section: &mut Section, before: &[Setting]) -> Result<Vec<Condition>> {
    let mut table = match section.take("when") {
        None => return Ok(Vec::new()),
        Some(Item { line, node: Node::Table(items), .. }) => section.inner("when", line, items),
        Some(item) => {
            let message = format!("expected a table, as {{ optimizer = \"sgd\" }}, found {}", item.node.words());
            return Err(section.refuse(item.line, "when", message));
        }
    };
    let mut conditions = Vec::new();
    for item in table.take_all() {
        let name = item.key.replace('-', "_");
        let refuse = |message: String| table.refuse(item.line, &item.key, message);
        let Some(other) = before.iter().find(|setting| setting.name == name) else {
            return Err(refuse("a condition looks at a setting that stands before this one in [settings]".into()));
        };
        let values = match item.node {
            Node::Scalar(value) => vec![value],
            Node::List(values) => values,
            Node::Table(_) => return Err(refuse("expected a value or a list of values".into())),
        };
        let values: Vec<Value> = values.into_iter().map(|value| normal_value(&name, value)).collect();
        let possible: &[Value] = match &other.domain {
            Domain::Fixed(value) => std::slice::from_ref(value),
            Domain::List(possible) => possible,
            Domain::Range { .. } => return Err(refuse("a condition looks at a fixed value or a list, not at a range".into())),
        };
        if let Some(never) = values.iter().find(|value| !possible.contains(value)) {
            return Err(refuse(format!("{name} is never {never}")));
        }
        conditions.push(Condition { setting: name, values });
    }
    Ok(conditions)
}

/// The settings of a training with their defaults, by name.
pub(super) fn default_settings() -> Map<String, Value> {
    match serde_json::to_value(TrainConfig::default()) {
        Ok(Value::Object(settings)) => settings,
        _ => Map::new(),
    }
}

/// The training's settings with some of them given.
///
/// # Errors
/// What is wrong with the first bad one.
pub(super) fn train_config(given: &Map<String, Value>) -> std::result::Result<TrainConfig, String> {
    let mut settings = default_settings();
    settings.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    let config: TrainConfig = serde_json::from_value(Value::Object(settings)).map_err(|error| error.to_string())?;
    config.validate()?;
    Ok(config)
}

fn alone(name: &str, value: &Value) -> std::result::Result<TrainConfig, String> {
    train_config(&Map::from_iter([(name.to_string(), value.clone())]))
}

/// Whether a setting refuses what is no whole number.
fn takes_whole_numbers(name: &str) -> bool {
    alone(name, &1.into()).is_ok() && alone(name, &Value::from(1.5)).is_err_and(|error| error.contains("invalid type"))
}

fn check_values(name: &str, domain: &Domain) -> std::result::Result<(), String> {
    let check = |value: &Value| alone(name, value).map(drop);
    match domain {
        Domain::Fixed(value) => check(value),
        Domain::List(values) => {
            if values.is_empty() {
                return Err("the list is empty".into());
            }
            for (index, value) in values.iter().enumerate() {
                check(value)?;
                let same = |other: &Value| normal_value(name, other.clone()) == normal_value(name, value.clone());
                if values[..index].iter().any(same) {
                    return Err(format!("the list has {value} twice"));
                }
            }
            Ok(())
        }
        Domain::Range { min, max, integer, .. } => [*min, *max].into_iter().try_for_each(|end| {
            let value = number(end, *integer);
            check(&value)
        }),
    }
}

/// A number as JSON, whole where the setting takes whole numbers.
pub(super) fn number(value: f64, integer: bool) -> Value {
    if integer && value >= 0.0 { Value::from(value as u64) } else { Value::from(value) }
}

/// A value as the training's settings have it: `1` and `1.0` are one learning rate, and give a trial one id.
fn normal_value(name: &str, value: Value) -> Value {
    let written = alone(name, &value).ok().and_then(|config| serde_json::to_value(config).ok());
    match written {
        Some(Value::Object(mut settings)) => settings.remove(name).unwrap_or(value),
        _ => value,
    }
}

fn normal(name: &str, domain: Domain) -> Domain {
    match domain {
        Domain::Fixed(value) => Domain::Fixed(normal_value(name, value)),
        Domain::List(values) => Domain::List(values.into_iter().map(|value| normal_value(name, value)).collect()),
        range @ Domain::Range { .. } => range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[settings]
epochs = 9
optimizer = ["adamw", "sgd"]
lr = { min = 1e-4, max = 1e-2, scale = "log", points = 3 }
lambda = { min = 0.0, max = 1.0 }
weight-decay = { values = [0, 0.1], when = { optimizer = "adamw" } }
warmup = { min = 0, max = 20 }

[search]
method = "tpe"
startup = 4

[pruning]
method = "asha"
reduction = 2

[validation]
folds = 3
seeds = [1, 2]

[budget]
trials = 20
"#;

    #[test]
    fn a_good_file_is_read() {
        let config = parse_config("s.toml", GOOD).unwrap();
        let names: Vec<&str> = config.settings.iter().map(|setting| setting.name.as_str()).collect();
        assert_eq!(names, ["epochs", "optimizer", "lr", "lambda", "weight_decay", "warmup"]);
        assert_eq!(config.settings[4].domain, Domain::List(vec![0.0.into(), 0.1.into()]));
        assert_eq!(config.settings[4].when, [Condition { setting: "optimizer".into(), values: vec!["adamw".into()] }]);
        assert!(matches!(config.settings[5].domain, Domain::Range { integer: true, .. }));
        assert!(matches!(config.settings[3].domain, Domain::Range { integer: false, .. }));
        assert_eq!(config.pruning, Pruning::Asha { min_epochs: 1, reduction: 2 });
        assert_eq!(config.runs_per_trial(), 6);
        assert_eq!(config.objectives, [Objective::Dice]);
    }

    #[test]
    fn what_is_wrong_is_told_by_line_and_key() {
        for (from, to, expected) in [
            ("epochs = 9", "epochs = 0", "s.toml:3: settings.epochs: epochs and batch-size must be at least 1"),
            ("epochs = 9", "epochs = 1.5", "s.toml:3: settings.epochs: invalid type"),
            ("epochs = 9", "epocs = 9", "s.toml:3: settings.epocs: no setting of a training"),
            ("epochs = 9", "seed = 9", "s.toml:3: settings.seed: the seeds of the runs stand in [validation]"),
            ("\"sgd\"]", "\"sdg\"]", "s.toml:4: settings.optimizer: unknown variant `sdg`"),
            ("min = 1e-4", "min = 0", "s.toml:5: settings.lr: a range on the log scale begins above 0"),
            ("min = 1e-4", "min = 1", "s.toml:5: settings.lr: expected min below max"),
            ("max = 1e-2, scale", "scale", "s.toml:5: settings.lr: expected value"),
            ("points = 3", "steps = 3", "s.toml:5: settings.lr.steps: unknown key"),
            ("max = 1.0", "max = 1.5", "s.toml:6: settings.lambda: lambda must lie in [0, 1]"),
            (
                "{ optimizer =",
                "{ arm =",
                "s.toml:7: settings.weight-decay.when.arm: a condition looks at a setting that stands before",
            ),
            ("= \"adamw\" }", "= \"adam\" }", "s.toml:7: settings.weight-decay.when.optimizer: optimizer is never \"adam\""),
            ("max = 20", "max = 20.5", "s.toml:8: settings.warmup: expected whole numbers"),
            ("\"tpe\"", "\"bayes\"", "s.toml:11: search.method: expected \"grid\", \"random\" or \"tpe\", found \"bayes\""),
            ("startup = 4", "start = 4", "s.toml:12: search.start: unknown key"),
            ("reduction = 2", "reduction = 1", "s.toml:16: pruning.reduction: expected a whole number from 2"),
            ("folds = 3", "folds = 1", "s.toml:19: validation.folds: expected a whole number from 2"),
            ("folds = 3", "fold = \"4/3\"", "s.toml:19: validation.fold: expected a text"),
            ("folds = 3", "", "s.toml:18: validation: expected one of folds"),
            ("seeds = [1, 2]", "seeds = [1, 1]", "s.toml:20: validation.seeds: expected a list of different"),
            ("trials = 20", "", "s.toml:22: budget: expected at least one of trials"),
            ("trials = 20", "trials = 20\nepochs 3", "s.toml:24: not TOML"),
            ("[budget]", "[buget]", "budget: expected at least one of trials"),
            ("trials = 20", "trials = nan", "s.toml:23: budget.trials: expected a finite number"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = parse_config("s.toml", &text).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} → {to}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_grid_says_how_many_values_it_takes_of_a_range() {
        let grid = GOOD.replacen("\"tpe\"\nstartup = 4", "\"grid\"", 1);
        let error = parse_config("s.toml", &grid).unwrap_err().to_string();
        assert!(error.contains("s.toml:6: settings.lambda: a grid needs"), "{error}");
        let told = grid.replacen("max = 1.0", "max = 1.0, points = 2", 1);
        parse_config("s.toml", &told).unwrap();
    }
}
