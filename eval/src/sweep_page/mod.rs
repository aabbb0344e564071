//! `sweep.html`: a single self-contained page about a sweep.
//!
//! It is made from the sweep's records and can be made again at any time, also during the sweep. Everything is drawn here; the page's script
//! only sorts the table and highlights the marks of the same trial.

mod curves;
mod importance;
mod importance_bars;
#[cfg(test)]
mod made_up;
mod noise;
mod overview;
mod parallel;
mod pareto;
mod scatter;
mod space;
mod trial_marks;
mod trials_table;
mod two_settings;

use crate::error::Result;
use crate::folder::{SUMMARY_TABLE, read_json};
use crate::page::{Document, scrolling, section};
use crate::plot::Size;
use curves::Quantity;
use importance::{Importance, importance};
use maud::{Markup, html};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::rows::{read_rows, read_rows_without};
use sam_ladder_schemas::sweep::{
    CURVES_TABLE, CurveRow, FINAL_EVAL, FINAL_RECORD, FinalRecord, Objective, RETIRED_TRIAL_COLUMNS, SWEEP_CONFIG, SWEEP_PAGE,
    SweepRecord, TRIALS_TABLE, TrialRow,
};
use sam_ladder_schemas::tables::SummaryRow;
use serde::de::DeserializeOwned;
use space::{Parameter, Trial, objective_name, trials};
use std::path::{Path, PathBuf};

/// Content of a page.
#[derive(Debug, Clone)]
struct SweepPage {
    /// Name of the sweep's folder.
    name: String,
    /// The sweep's settings.
    record: SweepRecord,
    /// Its trials.
    trials: Vec<TrialRow>,
    /// Their epochs.
    curves: Vec<CurveRow>,
    /// The best setting's scores on the test cases, if it was evaluated.
    test: Option<(FinalRecord, Vec<SummaryRow>)>,
}

/// Writes a sweep folder's `sweep.html` from the folder's records; returns its path.
///
/// # Errors
/// If a record is missing or cannot be read, or the page cannot be written; names the file.
pub fn write_sweep_page(sweep: &Path) -> Result<PathBuf> {
    let page = SweepPage::read(sweep)?.html();
    let path = sweep.join(SWEEP_PAGE);
    write_atomic(&path, page.as_bytes())?;
    Ok(path)
}

/// The rows of a table; empty if it does not exist yet.
fn table<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if path.exists() { Ok(read_rows_without(path, &RETIRED_TRIAL_COLUMNS)?) } else { Ok(Vec::new()) }
}

impl SweepPage {
    /// Reads a sweep folder's records; tables that do not exist yet are empty.
    ///
    /// # Errors
    /// If a record cannot be read; names it.
    fn read(sweep: &Path) -> Result<Self> {
        let final_record = sweep.join(FINAL_RECORD);
        let summary = sweep.join(FINAL_EVAL).join(SUMMARY_TABLE);
        let test = if final_record.exists() && summary.exists() {
            Some((read_json(&final_record)?, read_rows(&summary)?))
        } else {
            None
        };
        let name = sweep.canonicalize().unwrap_or_else(|_| sweep.into());
        Ok(SweepPage {
            name: name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            record: read_json(&sweep.join(SWEEP_CONFIG))?,
            trials: table(&sweep.join(TRIALS_TABLE))?,
            curves: table(&sweep.join(CURVES_TABLE))?,
            test,
        })
    }

    /// The page.
    fn html(&self) -> String {
        let trials = trials(&self.trials);
        let config = &self.record.config;
        let parameters = Parameter::all(config, &trials);
        let document = Document {
            title: &format!("{} · sweep", self.name),
            allows: "script-src 'unsafe-inline'",
            style: include_str!("sweep.css"),
            script: include_str!("sweep.js"),
        };
        let table = html! {
            (scrolling("Trials", trials_table::html(&trials, &parameters, &config.objectives)))
            (self.reasons())
            p.note {
                "A trial has the number in which it was started; its folder is trials/ and the name behind the number. \
                 A column's heading sorts by it. Pointing at a trial, here or in a chart, shows it everywhere; a click keeps it so."
            }
        };
        let body = html! {
            (self.test_section())
            (self.curves_section(&trials))
            (self.settings_section(&trials, &parameters))
            (section("trials", "Trials", table))
            (self.facts_section())
        };
        document.html(self.overview(&trials), body)
    }

    fn curves_section(&self, trials: &[Trial]) -> Markup {
        const SIZE: Size = Size { width: 560.0, height: 330.0 };
        let mut quantities = vec![
            (
                "Validation Dice, percent: higher is better",
                Quantity { label: "Dice, percent", value: |row| row.val_dice.map(|dice| 100.0 * dice) },
            ),
            ("Training loss: lower is better", Quantity { label: "loss", value: |row| Some(row.loss) }),
        ];
        if self.record.config.objectives.contains(&Objective::Hd95) {
            quantities
                .insert(1, ("Validation HD95, mm: lower is better", Quantity { label: "HD95, mm", value: |row| row.val_hd95 }));
        }
        quantities.push((
            "Gate, SAM's share of the embeddings",
            Quantity { label: "sigmoid(α)", value: |row| Some(f64::from(row.gate)) },
        ));
        let body = html! {
            div.charts {
                @for (heading, quantity) in &quantities { (figure(heading, curves::draw(trials, &self.curves, quantity, SIZE))) }
            }
            p.note {
                "A line is a trial, the mean over its runs; it ends where the trial ended or was pruned. The better a trial's rank, the \
                 stronger its colour; the best is " span.key { "highlighted" } "."
            }
        };
        section("curves", "Learning curves", body)
    }

    fn settings_section(&self, trials: &[Trial], parameters: &[Parameter]) -> Markup {
        const HALF: Size = Size { width: 560.0, height: 360.0 };
        let objectives = &self.record.config.objectives;
        let main = objectives.first().copied().unwrap_or(Objective::Dice);
        let importance = importance(trials, parameters, &self.curves, main);
        let order: Vec<String> = importance.iter().flat_map(|found| found.shares.iter().map(|(name, _)| name.clone())).collect();
        let two = two_settings::choose(parameters, &order);
        let map = two.and_then(|two| {
            let heading = format!("{} over {} and {}", objective_name(main), two[1].name, two[0].name);
            Some(figure(&heading, two_settings::draw(two, trials, main, HALF)?))
        });
        let all = parallel::draw(trials, parameters, objectives, Size { width: 1120.0, height: 380.0 });
        let body = html! {
            (figure("Every trial: settings and objectives", all))
            div.charts {
                @if let [first, second] = objectives[..] { (figure("Pareto front", pareto::draw(trials, [second, first], HALF))) }
                @if let Some(map) = map { (map) }
                @if let Some(importance) = &importance {
                    (figure("Importance of each setting", importance_bars::draw(importance, HALF.width)))
                }
            }
            @if let Some(importance) = &importance { (importance_note(importance, main)) }
            @else { p.note { "Importance needs at least three trials that have ended." } }
        };
        section("settings", "Settings", body)
    }
}

/// Explains the importance of a setting.
fn importance_note(importance: &Importance, objective: Objective) -> Markup {
    let objective = if objective == Objective::Dice { "validation Dice" } else { "validation HD95" };
    html! {
        p.note #importance-definition {
            "Importance is the share of the variance of the " (objective) " between trials that a setting explains by itself: ε² of a one-way \
             analysis of variance, 1 − (SSW / (N − k)) / (SST / (N − 1)), with the trials in k groups by the setting's value (numbers in at \
             most four groups of about as many trials), SSW the sum of squares within the groups and SST that of all N = "
            (importance.trials) " trials; negative shares are reported as 0. Trials are compared after epoch " (importance.epochs)
            ", the last that all of them reached. Shares of settings that act together do not add up to 100 %, and with few trials they are \
             rough."
        }
    }
}

fn figure(caption: &str, svg: Markup) -> Markup {
    html! { figure { figcaption { (caption) } (svg) } }
}

#[cfg(test)]
mod tests {
    use super::made_up::{config, curve, row};
    use super::*;
    use sam_ladder_schemas::sweep::TrialStatus;
    use sam_ladder_schemas::train::{InputFile, RunInputs};

    fn page(trials: Vec<TrialRow>, curves: Vec<CurveRow>) -> SweepPage {
        let file = InputFile { name: "sam_decoder.safetensors".into(), sha256: "0".into(), path: None };
        let record = SweepRecord {
            program: "test".into(),
            cache_id: "abc".into(),
            config: config(),
            jobs: 2,
            folds: vec![vec!["0005".into()]],
            groups: Default::default(),
            inputs: RunInputs { sam_decoder: file, cnn_checkpoint: None, init: None, rung_projection: None },
            store_path: None,
        };
        SweepPage { name: "a <sweep>".into(), record, trials, curves, test: None }
    }

    /// The page without its script, which mentions NaN.
    fn drawn(html: &str) -> &str {
        html.split("<script>").next().unwrap_or_default()
    }

    #[test]
    fn the_page_has_every_part_and_refers_to_nothing_outside() {
        let rows: Vec<TrialRow> = (0..12).map(|number| row(number, Some(number + 1))).collect();
        let curves =
            (0..12).flat_map(|trial| (0..4).map(move |epoch| curve(trial, 1, epoch, 0.1 * f64::from(epoch + trial % 3))));
        let html = page(rows, curves.collect()).html();
        for part in [
            "class=\"plot curves\"",
            "class=\"plot parallel\"",
            "class=\"plot scatter\"",
            "class=\"plot importance\"",
            "<table class=\"trials\"",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(html.contains("a &lt;sweep&gt;") && !html.contains("a <sweep>"));
        assert!(html.contains("id=\"importance-definition\"") && !html.contains("Pareto"));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(!drawn(&html).contains("NaN"));
    }

    #[test]
    fn a_sweep_that_has_just_begun_has_a_page_too() {
        let html = page(vec![], vec![]).html();
        assert!(html.contains("No trial has a value yet") && !drawn(&html).contains("NaN"));
        let html = page(vec![TrialRow { status: TrialStatus::Running, dice: None, epochs: 0, ..row(0, None) }], vec![]).html();
        assert!(html.contains("1 running") && !drawn(&html).contains("NaN"));
    }
}
