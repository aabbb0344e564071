//! The sweep's TOML file: its tables as structs, whose comments are the texts of the JSON Schema and of `docs/reference/settings.md`, and the
//! rules between their keys.

use super::settings_table::SettingsTable;
use super::{Budget, Objective, Pruning, Search, SearchMethod, SweepConfig, Validation};
use crate::group_by::{GROUP_BY_FORMS, GroupBy};
use crate::setting::{FileError, Problem, SettingError};
use crate::toml_file::TomlFile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Seed of runs and of the search unless the file gives one.
const DEFAULT_SEED: u64 = 1234;
/// Trials drawn at random before TPE follows what it has seen, unless the file says.
const TPE_STARTUP: u32 = 10;
/// Epochs of the lowest rung, or at which the median is first taken, unless the file says.
const MIN_EPOCHS: u32 = 1;
/// η of successive halving unless the file says.
const REDUCTION: u32 = 3;
/// Epochs between comparisons with the median unless the file says.
const INTERVAL: u32 = 1;
/// Trials that must have reached an epoch before the median is taken, unless the file says.
const MEDIAN_STARTUP: u32 = 5;
/// Times that a failed trial is tried again unless the file says.
const RETRIES: u32 = 1;

/// A sweep's file: which settings are searched, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SweepFile {
    /// The settings of `train` that are fixed or searched; others have the default of `train`
    pub settings: SettingsTable,
    /// How points of the search space are chosen
    pub search: SearchTable,
    /// When a trial is stopped before its last epoch
    pub pruning: PruningTable,
    /// What is optimised
    pub objective: ObjectiveTable,
    /// Which training cases validate, and from which seeds each setting is trained
    pub validation: ValidationTable,
    /// When the sweep ends: at the first of these that is reached
    pub budget: Budget,
    /// What happens to trials that fail
    pub failures: FailuresTable,
}

/// `[search]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SearchTable {
    /// How points of the search space are chosen
    pub method: SearchMethod,
    /// Seed of the draws
    pub seed: u64,
    /// With method "tpe": trials drawn at random before TPE uses earlier results (10 unless given)
    #[schemars(range(min = 1))]
    pub startup: Option<u32>,
}

impl Default for SearchTable {
    fn default() -> Self {
        SearchTable { method: SearchMethod::Random, seed: DEFAULT_SEED, startup: None }
    }
}

/// Which trials are stopped early.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PruningMethod {
    /// None
    #[default]
    None,
    /// All but the best of each rung, by asynchronous successive halving (Li et al., 2018)
    Asha,
    /// Those worse than the median of earlier trials at the same epoch (Golovin et al., 2017)
    Median,
}

/// `[pruning]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruningTable {
    /// Which trials are stopped early
    pub method: PruningMethod,
    /// With "asha": epochs of the lowest rung (a number of epochs at which trials are compared); with "median": the first epoch at which trials are compared (1 unless given)
    #[schemars(range(min = 1))]
    pub min_epochs: Option<u32>,
    /// With "asha", η: the best 1/η of the trials of a rung continue to the next, which has η times the epochs (3 unless given)
    #[schemars(range(min = 2))]
    pub reduction: Option<u32>,
    /// With "median": epochs between comparisons (1 unless given)
    #[schemars(range(min = 1))]
    pub interval: Option<u32>,
    /// With "median": trials that must have reached an epoch before others are compared there (5 unless given)
    #[schemars(range(min = 1))]
    pub startup: Option<u32>,
}

/// `[objective]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveTable {
    /// Mean Dice over organs (higher is better), HD95 in millimetres (lower is better), or a list of both for a Pareto front
    pub metric: Metric,
}

impl Default for ObjectiveTable {
    fn default() -> Self {
        ObjectiveTable { metric: Metric::One(Objective::Dice) }
    }
}

/// `"dice"` or `["dice", "hd95"]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Metric {
    /// One objective.
    One(Objective),
    /// One, or two for a Pareto front.
    Several(Vec<Objective>),
}

/// `[validation]`: one of `folds`, `fold` and `cases`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationTable {
    /// Divide the training cases into this many folds, and train each setting once for each fold, which is held out
    #[schemars(range(min = 2))]
    pub folds: Option<u32>,
    /// Hold out one fold, "I/N": the I-th of N
    pub fold: Option<String>,
    /// Hold out these training cases
    pub cases: Option<Vec<String>>,
    /// Keep the cases of one patient together: "regex:EXPR" or "csv:FILE:COLUMN", as `train --group-by`
    pub group_by: Option<String>,
    /// Train each setting from each of these seeds
    pub seeds: Seeds,
}

impl Default for ValidationTable {
    fn default() -> Self {
        ValidationTable { folds: None, fold: None, cases: None, group_by: None, seeds: Seeds::Several(vec![DEFAULT_SEED]) }
    }
}

/// `1` or `[1, 2]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Seeds {
    /// One seed.
    One(u64),
    /// Several, each different.
    Several(Vec<u64>),
}

/// `[failures]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailuresTable {
    /// How often a failed trial is tried again
    pub retries: u32,
}

impl Default for FailuresTable {
    fn default() -> Self {
        FailuresTable { retries: RETRIES }
    }
}

/// Reads and checks a sweep's file; `name` is the file's in messages.
///
/// # Errors
/// The first thing that is wrong, with line and column.
pub fn parse_sweep(name: &str, text: &str) -> Result<SweepConfig, FileError> {
    let toml = TomlFile::parse(name, text)?;
    SettingsTable::refuse_elsewhere(toml.values()).map_err(|error| toml.locate(error))?;
    toml.read::<SweepFile>()?.into_config().map_err(|error| toml.locate(error))
}

impl SweepFile {
    fn into_config(self) -> Result<SweepConfig, SettingError> {
        let search = self.search.read()?;
        Ok(SweepConfig {
            settings: self.settings.read(search.method)?,
            pruning: self.pruning.read()?,
            objectives: self.objective.read()?,
            validation: self.validation.read()?,
            group_by: self.validation.read_group_by()?,
            seeds: self.validation.read_seeds()?,
            budget: check_budget(self.budget, search.method)?,
            retries: self.failures.retries,
            search,
        })
    }
}

/// Refuses a key that the table's method does not take.
fn only_with<T>(method: &str, path: &str, value: Option<T>) -> Result<(), SettingError> {
    let conflict =
        || Problem::conflict(format!("only method = {method} takes it"), "leave it out, or change the method").with(path);
    if value.is_some() { Err(conflict()) } else { Ok(()) }
}

impl SearchTable {
    fn read(&self) -> Result<Search, SettingError> {
        if self.method != SearchMethod::Tpe {
            only_with("\"tpe\"", "search.startup", self.startup)?;
        }
        Ok(Search { method: self.method, seed: self.seed, startup: self.startup.unwrap_or(TPE_STARTUP) })
    }
}

impl PruningTable {
    fn read(&self) -> Result<Pruning, SettingError> {
        let PruningTable { method, min_epochs, reduction, interval, startup } = *self;
        if method != PruningMethod::Asha {
            only_with("\"asha\"", "pruning.reduction", reduction)?;
        }
        if method != PruningMethod::Median {
            only_with("\"median\"", "pruning.interval", interval)?;
            only_with("\"median\"", "pruning.startup", startup)?;
        }
        let least = min_epochs.unwrap_or(MIN_EPOCHS);
        Ok(match method {
            PruningMethod::None => {
                only_with("\"asha\" or \"median\"", "pruning.min_epochs", min_epochs)?;
                Pruning::None
            }
            PruningMethod::Asha => Pruning::Asha { min_epochs: least, reduction: reduction.unwrap_or(REDUCTION) },
            PruningMethod::Median => {
                let (interval, startup) = (interval.unwrap_or(INTERVAL), startup.unwrap_or(MEDIAN_STARTUP));
                Pruning::Median { min_epochs: least, interval, startup }
            }
        })
    }
}

impl ObjectiveTable {
    fn read(&self) -> Result<Vec<Objective>, SettingError> {
        let objectives = match &self.metric {
            Metric::One(objective) => vec![*objective],
            Metric::Several(objectives) => objectives.clone(),
        };
        match objectives.as_slice() {
            [_] => Ok(objectives),
            [first, second] if first != second => Ok(objectives),
            other => {
                let found = format!("a list of {}", other.len());
                Err(Problem::expected("\"dice\", \"hd95\", or a list of both", found).with("objective.metric"))
            }
        }
    }
}

impl ValidationTable {
    fn read(&self) -> Result<Validation, SettingError> {
        match (self.folds, &self.fold, &self.cases) {
            (Some(count), None, None) => Ok(Validation::Folds(count)),
            (None, Some(fold), None) => {
                let expected = "\"I/N\" such as \"1/5\", with N at least 2 and I from 1 to N";
                let numbers = fold.split_once('/').and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
                let good = numbers.filter(|&(index, count): &(u32, u32)| index >= 1 && index <= count && count >= 2);
                let (index, count) =
                    good.ok_or_else(|| Problem::expected(expected, format!("{fold:?}")).with("validation.fold"))?;
                Ok(Validation::Fold(index, count))
            }
            (None, None, Some(cases)) if !cases.is_empty() => Ok(Validation::Cases(cases.clone())),
            (None, None, Some(_)) => Err(Problem::expected("a list of cases", "an empty list").with("validation.cases")),
            _ => {
                let expected = "one of folds = K (all of K folds), fold = \"I/N\" (one of them) and cases = [\"0005\", …]";
                let given = [("folds", self.folds.is_some()), ("fold", self.fold.is_some()), ("cases", self.cases.is_some())];
                let given: Vec<&str> = given.into_iter().filter_map(|(key, given)| given.then_some(key)).collect();
                let found = if given.is_empty() { "none".to_string() } else { given.join(" and ") };
                Err(Problem::expected(expected, found).with("validation"))
            }
        }
    }

    fn read_group_by(&self) -> Result<Option<GroupBy>, SettingError> {
        let Some(text) = &self.group_by else { return Ok(None) };
        let wrong = |_| Problem::expected(GROUP_BY_FORMS, format!("{text:?}")).with("validation.group_by");
        text.parse().map(Some).map_err(wrong)
    }

    fn read_seeds(&self) -> Result<Vec<u64>, SettingError> {
        let seeds = match &self.seeds {
            Seeds::One(seed) => vec![*seed],
            Seeds::Several(seeds) => seeds.clone(),
        };
        if seeds.is_empty() || (1..seeds.len()).any(|at| seeds[..at].contains(&seeds[at])) {
            return Err(Problem::expected("a list of different whole numbers", format!("{seeds:?}")).with("validation.seeds"));
        }
        Ok(seeds)
    }
}

fn check_budget(budget: Budget, method: SearchMethod) -> Result<Budget, SettingError> {
    let endless = budget.trials.is_none() && budget.epochs.is_none() && budget.hours.is_none();
    if endless && method != SearchMethod::Grid {
        let reason = "the search would never end: expected at least one of trials, epochs and hours";
        return Err(Problem::conflict(reason, "add `trials = 20` to [budget], or set method = \"grid\"").with("budget"));
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::super::{Condition, Domain};
    use super::*;

    const GOOD: &str = include_str!("example.toml");

    #[test]
    fn a_good_file_is_read() {
        let config = parse_sweep("s.toml", GOOD).unwrap();
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
    fn what_is_wrong_is_reported_with_line_column_and_key() {
        let mut wrong = Vec::new();
        for (from, to, expected) in [
            ("epochs = 9", "epochs = 0", "s.toml:3:1: settings.epochs: expected a whole number from 1, a list"),
            ("epochs = 9", "epochs = 1.5", "s.toml:3:1: settings.epochs: expected a whole number from 1, a list"),
            ("epochs = 9", "epocs = 9", "s.toml:3:1: settings.epocs: unknown key, did you mean `epochs`?"),
            (
                "epochs = 9",
                "seed = 9",
                "s.toml:3:1: settings.seed: cannot be set here, write the seeds of the runs as seeds = [1, 2]",
            ),
            ("epochs = 9", "epochs = 9\nepochs = 8", "s.toml:4:1: not TOML: duplicate key"),
            ("warmup", "weight_decay = 0.0\nwarmup", "s.toml:8:1: settings.weight_decay: is there twice"),
            (
                "\"sgd\"]",
                "\"sdg\"]",
                "s.toml:4:23: settings.optimizer[1]: expected \"adamw\", \"adam\" or \"sgd\", found \"sdg\"",
            ),
            ("\"sgd\"]", "\"adamw\"]", "s.toml:4:1: settings.optimizer: \"adamw\" is there twice"),
            ("\"adamw\", \"sgd\"]", "]", "s.toml:4:1: settings.optimizer: expected a list of values, found an empty list"),
            ("min = 1e-4", "min = 0", "s.toml:5:8: settings.lr.min: expected a number above 0, found 0"),
            (
                "lambda = { min = 0.0",
                "lambda = { scale = \"log\", min = 0.0",
                "s.toml:6:27: settings.lambda.min: expected a number above 0 on the log scale",
            ),
            ("min = 1e-4", "min = 1", "s.toml:5:8: settings.lr.min: expected less than max = 0.01, found 1"),
            ("max = 1e-2, scale", "scale", "s.toml:5:1: settings.lr: expected value = …"),
            ("points = 3", "steps = 3", "s.toml:5:47: settings.lr.steps: unknown key"),
            ("max = 1.0", "max = 1.5", "s.toml:6:23: settings.lambda.max: expected a number from 0 to 1, found 1.5"),
            (
                "{ optimizer =",
                "{ arm =",
                "s.toml:7:46: settings.weight-decay.when.arm: a condition looks at a setting that stands before",
            ),
            ("= \"adamw\" }", "= \"adam\" }", "s.toml:7:46: settings.weight-decay.when.optimizer: is never \"adam\""),
            ("max = 20", "max = 20.5", "s.toml:8:21: settings.warmup.max: expected a whole number"),
            ("\"tpe\"", "\"bayes\"", "s.toml:11:1: search.method: expected \"grid\", \"random\" or \"tpe\", found \"bayes\""),
            ("startup = 4", "start = 4", "s.toml:12:1: search.start: unknown key, did you mean `startup`?"),
            ("\"tpe\"", "\"random\"", "s.toml:12:1: search.startup: only method = \"tpe\" takes it"),
            ("reduction = 2", "reduction = 1", "s.toml:16:1: pruning.reduction: expected a whole number from 2, found 1"),
            ("reduction = 2", "startup = 2", "s.toml:16:1: pruning.startup: only method = \"median\" takes it"),
            ("folds = 3", "folds = 1", "s.toml:19:1: validation.folds: expected a whole number from 2, found 1"),
            ("folds = 3", "fold = \"4/3\"", "s.toml:19:1: validation.fold: expected \"I/N\""),
            ("folds = 3", "", "s.toml:18:2: validation: expected one of folds"),
            ("folds = 3", "folds = 3\nfold = \"1/3\"", "s.toml:18:2: validation: expected one of folds"),
            (
                "folds = 3",
                "folds = 3\ngroup_by = \"patient\"",
                "s.toml:20:1: validation.group_by: expected regex:EXPR or csv:FILE:COLUMN, found \"patient\"",
            ),
            ("seeds = [1, 2]", "seeds = [1, 1]", "s.toml:20:1: validation.seeds: expected a list of different"),
            ("seeds = [1, 2]", "seeds = [1, -2]", "s.toml:20:13: validation.seeds[1]: expected a whole number from 0, found -2"),
            ("trials = 20", "", "s.toml:22:2: budget: the search would never end"),
            (
                "trials = 20",
                "trials = 5000000000",
                "s.toml:23:1: budget.trials: expected a whole number from 1, found 5000000000",
            ),
            ("trials = 20", "hours = 0", "s.toml:23:1: budget.hours: expected a number above 0, found 0"),
            ("trials = 20", "trials = 20\nepochs 3", "s.toml:24:8: not TOML"),
            ("[budget]", "[budgets]", "s.toml:22:2: budgets: unknown key, did you mean `budget`?"),
            ("[budget]", "[[budget]]", "s.toml:22:3: budget: expected a table, found a list of 1"),
            ("trials = 20", "trials = nan", "s.toml:23:1: budget.trials: expected a finite number"),
            ("trials = 20", "trials = 20\n[objective]\nmetric = [\"dice\", \"dice\"]", "s.toml:25:1: objective.metric: expected"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = parse_sweep("s.toml", &text).unwrap_err();
            let both = format!("{error}{}", error.hint().map_or_else(String::new, |hint| format!(", {hint}")));
            if !both.contains(expected) || both.contains('\n') {
                wrong.push(format!("{from} → {to}:\n{both}\nwithout {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }

    #[test]
    fn choices_beyond_the_paper_are_searched() {
        let choices = "epochs = 9\nema = { min = 0.9, max = 0.999 }\nsampling = [\"uniform\", \"organs\"]\n\
                       class_weights = [\"none\", \"inverse-frequency\", \"1, 2.0\"]\ntrain_cases = [\"a\", \"b\"]\n\
                       train_fraction = [1, 0.5]\nloss = \"tversky\"\ntversky_beta = { min = 0.5, max = 0.9, when = { loss = \"tversky\" } }";
        let config = parse_sweep("s.toml", &GOOD.replacen("epochs = 9", choices, 1)).unwrap();
        let of = |name: &str| &config.settings.iter().find(|setting| setting.name == name).unwrap().domain;
        assert!(matches!(of("ema"), Domain::Range { integer: false, .. }));
        assert_eq!(*of("class_weights"), Domain::List(vec!["none".into(), "inverse-frequency".into(), "1,2".into()]));
        assert_eq!(*of("train_cases"), Domain::Fixed(serde_json::json!(["a", "b"])));
        // One way to write a number, so that a point has one id.
        assert_eq!(*of("train_fraction"), Domain::List(vec![1.0.into(), 0.5.into()]));
        let refused = |line: &str| parse_sweep("s.toml", &GOOD.replacen("epochs = 9", line, 1)).unwrap_err();
        let error = refused("epochs = 9\nearly_stopping = 5");
        assert!(error.hint().unwrap().contains("[pruning]"), "{error}");
        assert!(refused("epochs = 9\nclass_weights = \"heavy\"").to_string().contains("class_weights"));
        assert!(refused("epochs = 9\nema = 1").to_string().contains("expected a number from 0 to 0.999999"));
    }

    #[test]
    fn a_grid_says_how_many_values_it_takes_of_a_range() {
        let grid = GOOD.replacen("\"tpe\"\nstartup = 4", "\"grid\"", 1);
        let error = parse_sweep("s.toml", &grid).unwrap_err().to_string();
        assert!(error.contains("s.toml:6:1: settings.lambda: a grid needs"), "{error}");
        let with_points = grid.replacen("max = 1.0", "max = 1.0, points = 2", 1);
        parse_sweep("s.toml", &with_points).unwrap();
    }
}
