//! The search space on a page: each searched setting with its scale, and each trial's value of it.

use crate::plot::svg::digits;
use crate::plot::{AxisScale, ScaleKind};
use sam_ladder_schemas::sweep::{Domain, Objective, Scale, Setting, SweepConfig, TrialRow, TrialStatus};
use serde_json::{Map, Value};

/// A trial, for drawing.
#[derive(Debug, Clone)]
pub(crate) struct Trial<'a> {
    /// Its row.
    pub row: &'a TrialRow,
    /// Its searched settings.
    pub settings: Map<String, Value>,
    /// Share in [0, 1] of the ranked trials that are not better than it: 1 for the best. `None` without a rank.
    pub quality: Option<f64>,
}

/// The trials in the order of their numbers. Settings that are not a JSON object count as empty.
pub(crate) fn trials(rows: &[TrialRow]) -> Vec<Trial<'_>> {
    let ranks: Vec<u32> = rows.iter().filter_map(|row| row.rank).collect();
    let quality = |rank: u32| {
        let worse = ranks.iter().filter(|&&other| other > rank).count();
        if ranks.len() < 2 { 1.0 } else { worse as f64 / (ranks.len() - 1) as f64 }
    };
    let mut all: Vec<Trial> = (rows.iter())
        .map(|row| {
            let settings = match serde_json::from_str(&row.settings) {
                Ok(Value::Object(settings)) => settings,
                _ => Map::new(),
            };
            Trial { row, settings, quality: row.rank.map(quality) }
        })
        .collect();
    all.sort_by_key(|trial| trial.row.number);
    all
}

/// The best trial: the first of rank 1.
pub(crate) fn best<'t, 'a>(trials: &'t [Trial<'a>]) -> Option<&'t Trial<'a>> {
    trials.iter().find(|trial| trial.row.rank == Some(1))
}

/// An objective's name, with its unit and the direction in which it gets better.
pub(crate) fn objective_name(objective: Objective) -> &'static str {
    match objective {
        Objective::Dice => "Dice, percent ↑",
        Objective::Hd95 => "HD95, mm ↓",
    }
}

/// A trial's value of an objective, Dice in percent.
pub(crate) fn objective_value(row: &TrialRow, objective: Objective) -> Option<f64> {
    match objective {
        Objective::Dice => row.dice.map(|dice| 100.0 * dice),
        Objective::Hd95 => row.hd95,
    }
}

/// Whether a trial ended, and without an error.
pub(crate) fn is_measured(row: &TrialRow) -> bool {
    matches!(row.status, TrialStatus::Finished | TrialStatus::Pruned)
}

/// A setting's values on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    /// Numbers on a scale.
    Numbers(ScaleKind),
    /// Words, in this order.
    Words(Vec<String>),
}

/// A searched setting.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameter {
    pub name: String,
    pub values: Values,
}

impl Parameter {
    /// The searched settings of a sweep, in its file's order.
    pub fn all(config: &SweepConfig, trials: &[Trial]) -> Vec<Parameter> {
        config.searched().map(|setting| Parameter { name: setting.name.clone(), values: values(setting, trials) }).collect()
    }

    /// A trial's number; `None` if the setting is not active in it, or is not a number.
    pub fn number(&self, trial: &Trial) -> Option<f64> {
        match self.values {
            Values::Numbers(_) => trial.settings.get(&self.name).and_then(Value::as_f64),
            Values::Words(_) => None,
        }
    }

    /// A trial's value as it is written; `None` if the setting is not active in it.
    pub fn text(&self, trial: &Trial) -> Option<String> {
        trial.settings.get(&self.name).map(value_text)
    }

    /// The scale over all trials' numbers, or with a place per word.
    pub fn scale(&self, trials: &[Trial]) -> AxisScale {
        match &self.values {
            Values::Numbers(kind) => AxisScale::over(*kind, trials.iter().filter_map(|trial| self.number(trial))),
            Values::Words(words) => AxisScale::new(ScaleKind::Linear, -0.5, words.len() as f64 - 0.5),
        }
    }

    /// A trial's position on that scale.
    pub fn place(&self, trial: &Trial) -> Option<f64> {
        match &self.values {
            Values::Numbers(_) => self.number(trial),
            Values::Words(words) => {
                let word = self.text(trial)?;
                words.iter().position(|known| *known == word).map(|index| index as f64)
            }
        }
    }

    /// The scale's marks: round numbers, or the words.
    pub fn ticks(&self, scale: &AxisScale) -> Vec<(f64, String)> {
        match &self.values {
            Values::Numbers(_) => scale.ticks(5),
            Values::Words(words) => words.iter().enumerate().map(|(index, word)| (index as f64, word.clone())).collect(),
        }
    }
}

/// Numbers if every value is one, otherwise words: first those of the list, then others that trials have.
fn values(setting: &Setting, trials: &[Trial]) -> Values {
    let used = || trials.iter().filter_map(|trial| trial.settings.get(&setting.name));
    let listed: Vec<&Value> = match &setting.domain {
        Domain::Range { scale, .. } => {
            return Values::Numbers(if *scale == Scale::Log { ScaleKind::Log } else { ScaleKind::Linear });
        }
        Domain::List(values) => values.iter().collect(),
        Domain::Fixed(value) => vec![value],
    };
    let numbers: Option<Vec<f64>> = listed.iter().copied().chain(used()).map(Value::as_f64).collect();
    if let Some(mut numbers) = numbers {
        numbers.sort_by(f64::total_cmp);
        // Positive numbers over a wide range, such as 1e-4, 1e-3, 1e-2, get a logarithmic scale.
        let spread = numbers.first().zip(numbers.last()).map_or(1.0, |(low, high)| high / low);
        let log = numbers.iter().all(|&number| number > 0.0) && spread >= 30.0;
        return Values::Numbers(if log { ScaleKind::Log } else { ScaleKind::Linear });
    }
    let mut words: Vec<String> = Vec::new();
    for word in listed.into_iter().chain(used()).map(value_text) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    Values::Words(words)
}

/// A value as it is written: text without quotes, numbers with four significant digits.
pub(crate) fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(number)) => digits(number),
            (None, None) => number.to_string(),
        },
        Value::Null => "none".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::made_up::{row, setting};
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_shortly() {
        let values = [json!("adamw"), json!(3), json!(0.5), json!(1e-4), json!(null)];
        assert_eq!(values.map(|value| value_text(&value)), ["adamw", "3", "0.5", "1e-4", "none"]);
    }

    #[test]
    fn qualities_follow_the_ranks() {
        let rows = [row(0, Some(2)), row(1, Some(1)), row(2, None), row(3, Some(3))];
        let trials = trials(&rows);
        assert_eq!(trials.iter().map(|trial| trial.quality).collect::<Vec<_>>(), [Some(0.5), Some(1.0), None, Some(0.0)]);
        assert_eq!(best(&trials).unwrap().row.number, 1);
        assert!(best(&[]).is_none());
    }

    #[test]
    fn lists_are_numbers_or_words() {
        let of = |values: Vec<Value>| values_of(&setting("x", Domain::List(values)));
        fn values_of(setting: &Setting) -> Values {
            values(setting, &[])
        }
        assert_eq!(of(vec![json!(1e-4), json!(1e-3), json!(1e-2)]), Values::Numbers(ScaleKind::Log));
        assert_eq!(of(vec![json!(0.2), json!(0.5), json!(0.8)]), Values::Numbers(ScaleKind::Linear));
        assert_eq!(of(vec![json!("adamw"), json!("sgd")]), Values::Words(vec!["adamw".into(), "sgd".into()]));
    }
}
