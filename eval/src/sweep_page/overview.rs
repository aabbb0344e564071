//! The sweep in words and numbers: what was searched, the results, and its settings.

use super::SweepPage;
use super::noise::within_noise;
use super::space::{Trial, best, objective_name, objective_value, value_text};
use crate::page::{facts, section};
use crate::plot::svg::digits;
use crate::summary::MEAN;
use maud::{Markup, html};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::sweep::{
    Budget, Domain, Objective, Pruning, SearchMethod, SweepRecord, TrialRow, TrialStatus, Validation,
};
use std::collections::BTreeMap;

/// Reasons that are listed.
const REASONS: usize = 8;

impl SweepPage {
    /// Below the title: what was searched and how, the main numbers, and the best setting.
    pub(super) fn overview(&self, trials: &[Trial]) -> Markup {
        html! {
            p.lead { (self.lead()) }
            dl.tiles { @for (name, value) in self.tiles(trials) { div { dt { (name) } dd { (value) } } } }
            @if let Some(best) = best(trials) {
                p.winner data-trial=(best.row.number) {
                    "Best setting (trial " (best.row.number) "): "
                    @for (index, (name, value)) in best.settings.iter().enumerate() {
                        @if index > 0 { ", " }
                        (name) " " b { (value_text(value)) }
                    }
                    ". "
                    @if let Some(&objective) = self.record.config.objectives.first() { (within_noise(best, trials, objective)) }
                }
            } @else {
                p.winner { "No trial has a value yet." }
            }
        }
    }

    fn lead(&self) -> String {
        let config = &self.record.config;
        let method = match config.search.method {
            SearchMethod::Grid => "Grid search",
            SearchMethod::Random => "Random search",
            SearchMethod::Tpe => "TPE search",
        };
        let names: Vec<&str> = config.searched().map(|setting| setting.name.as_str()).collect();
        let validation = match &config.validation {
            Validation::Folds(count) => format!("{count}-fold cross-validation over the training cases"),
            Validation::Fold(index, of) => format!("fold {index} of {of} of the training cases held out"),
            Validation::Cases(cases) => format!("{} held out", counted(cases.len(), "training case")),
        };
        let (names, pruning) = (names.join(", "), pruning(&config.pruning));
        format!("{method} over {names} with {pruning}; {validation}. The test cases took no part in it.")
    }

    /// Names and values of the main numbers.
    fn tiles(&self, trials: &[Trial]) -> Vec<(String, Markup)> {
        let mut tiles: Vec<(String, Markup)> = Vec::new();
        if let Some(best) = best(trials) {
            for &objective in &self.record.config.objectives {
                let Some(value) = objective_value(best.row, objective) else { continue };
                let std = if objective == Objective::Dice { best.row.dice_std.map(|std| 100.0 * std) } else { best.row.hd95_std };
                let value = html! { (format!("{value:.2}")) @if let Some(std) = std { " " small { (format!("± {std:.2}")) } } };
                tiles.push((format!("Best: {}", objective_name(objective)), value));
            }
        }
        let count = |status: TrialStatus| trials.iter().filter(|trial| trial.row.status == status).count();
        let statuses: Vec<String> = (TrialStatus::ALL.into_iter())
            .filter(|&status| count(status) > 0)
            .map(|status| format!("{} {}", count(status), status.name()))
            .collect();
        let epochs = |of: fn(&TrialRow) -> u32| trials.iter().map(|trial| u64::from(of(trial.row) * trial.row.runs)).sum::<u64>();
        let (trained, all) = (epochs(|row| row.epochs), epochs(|row| row.max_epochs));
        let seconds: f64 = trials.iter().map(|trial| trial.row.seconds).sum();
        tiles.extend([
            (format!("Trials: {}", statuses.join(", ")), html! { (trials.len()) }),
            (format!("Epochs trained, of {all} without pruning"), html! { (trained) }),
            ("Machine time".into(), html! { (duration(seconds)) }),
        ]);
        tiles
    }

    /// The best setting's scores on the test cases; empty before it was evaluated.
    pub(super) fn test_section(&self) -> Markup {
        let Some((record, summary)) = &self.test else { return html! {} };
        let mean = summary.iter().find(|row| row.organ == MEAN);
        let value = |value: Option<f64>| value.map_or("undefined".into(), |value| format!("{value:.2}"));
        let dice = value(mean.and_then(|row| row.dice).map(|dice| 100.0 * dice));
        let hd95 = value(mean.and_then(|row| row.hd95));
        let body = html! {
            p {
                "The setting of trial " (self.name_of(&record.trial)) ", trained on all training cases and evaluated once on the test cases: mean \
                 Dice " b { (dice) " %" } ", mean HD95 " b { (hd95) } "."
            }
        };
        section("test", "Test cases", body)
    }

    /// A trial's number and the name of its folder.
    fn name_of(&self, id: &str) -> Markup {
        let number = self.trials.iter().find(|row| row.trial == id).map(|row| row.number);
        html! { @if let Some(number) = number { (number) " " } code { (id) } }
    }

    /// Why trials ended early, and how many for each reason.
    pub(super) fn reasons(&self) -> Markup {
        let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for row in &self.trials {
            if let Some(reason) = &row.reason {
                *counts.entry((row.status.name(), reason)).or_default() += 1;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(what, count)| (std::cmp::Reverse(count), what));
        let rest: u32 = counts.iter().skip(REASONS).map(|(_, count)| count).sum();
        html! {
            @if !counts.is_empty() {
                ul.reasons {
                    @for ((status, reason), count) in counts.iter().take(REASONS) { li { (count) " " (status) ": " (reason) } }
                    @if rest > 0 { li { (rest) " more, for other reasons" } }
                }
            }
        }
    }

    /// Settings of the sweep.
    pub(super) fn facts_section(&self) -> Markup {
        let SweepRecord { program, cache_id, config, jobs, folds, store_path, .. } = &self.record;
        let store = store_path.as_ref().map_or(String::new(), |path| format!("{}, ", path.display()));
        let mut all = vec![
            ("Program".to_string(), program.clone()),
            ("Store".into(), format!("{store}cache_id {cache_id}")),
            (
                "Objectives".into(),
                config.objectives.iter().map(|objective| objective_name(*objective)).collect::<Vec<_>>().join("; "),
            ),
            ("Search".into(), format!("{:?}, seed {}", config.search.method, config.search.seed).to_lowercase()),
            ("Pruning".into(), pruning(&config.pruning)),
            ("Budget".into(), budget(&config.budget)),
            ("Retries of a failed trial".into(), config.retries.to_string()),
            ("Trials at a time".into(), jobs.to_string()),
            ("Seeds".into(), config.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        ];
        if let Some(by) = &config.group_by {
            all.push(("Patients kept together by".into(), by.to_string()));
        }
        for (index, cases) in folds.iter().enumerate() {
            all.push((format!("Validation cases, fold {}", index + 1), cases.join(", ")));
        }
        for setting in &config.settings {
            let when = setting.when.iter().map(|condition| {
                let values: Vec<String> = condition.values.iter().map(value_text).collect();
                format!(", if {} is {}", condition.setting, values.join(" or "))
            });
            all.push((setting.name.clone(), domain(&setting.domain) + &when.collect::<String>()));
        }
        section("facts", "Sweep", facts(&all))
    }
}

/// The values that a setting takes.
fn domain(domain: &Domain) -> String {
    match domain {
        Domain::Fixed(value) => value_text(value),
        Domain::List(values) => format!("one of {}", values.iter().map(value_text).collect::<Vec<_>>().join(", ")),
        Domain::Range { min, max, scale, .. } => {
            format!("from {} to {}, {}", digits(*min), digits(*max), format!("{scale:?}").to_lowercase())
        }
    }
}

fn budget(budget: &Budget) -> String {
    let parts = [
        budget.trials.map(|trials| counted(trials, "trial")),
        budget.epochs.map(|epochs| counted(epochs, "epoch")),
        budget.hours.map(|hours| format!("{hours} h")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn pruning(pruning: &Pruning) -> String {
    match pruning {
        Pruning::None => "no pruning".into(),
        Pruning::Asha { min_epochs, reduction } => {
            format!("successive halving (ASHA: from {}, one in {reduction} continues)", counted(*min_epochs, "epoch"))
        }
        Pruning::Median { min_epochs, .. } => format!("median pruning from epoch {min_epochs}"),
    }
}

/// Seconds in words.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_aloud() {
        assert_eq!([3.25, 75.0, 7384.0].map(duration), ["3.2 s", "1 min 15 s", "2 h 03 min"]);
    }
}
