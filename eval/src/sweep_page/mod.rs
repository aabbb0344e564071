//! `sweep.html`: one page about a sweep that opens from a file and refers to nothing outside itself.
//!
//! It is made of the sweep's records and can be made anew at any time, while the sweep goes on too. Everything is drawn here; the page's script
//! only sorts the table and shows which marks belong to the same trial.

mod bars;
mod curves;
mod importance;
mod parallel;
mod pareto;
mod space;
mod table;
mod trial_marks;
mod two_settings;

use crate::error::{EvalError, Result};
use crate::html::escape;
use crate::plot::{self, Size};
use crate::write::write_atomically;
use curves::Quantity;
use importance::importance;
use sam_ladder_schemas::sweep::{
    CURVES_TABLE, CurveRow, FINAL_EVAL, FINAL_RECORD, FinalRecord, Objective, Pruning, SWEEP_CONFIG, SWEEP_PAGE, SearchMethod,
    SweepRecord, TRIALS_TABLE, TrialRow, TrialStatus, Validation, curves_from_batch, trials_from_batch,
};
use sam_ladder_schemas::tables::SummaryRow;
use space::{Parameter, Trial, best, objective_name, told, trials};
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

/// All that a page shows.
#[derive(Debug, Clone)]
pub struct SweepPage {
    /// Name of the sweep's folder.
    pub name: String,
    /// What the sweep was asked for.
    pub record: SweepRecord,
    /// Its trials.
    pub trials: Vec<TrialRow>,
    /// Their epochs.
    pub curves: Vec<CurveRow>,
    /// What became of the best setting on the test cases, once it was evaluated.
    pub test: Option<(FinalRecord, Vec<SummaryRow>)>,
}

/// Writes a sweep folder's `sweep.html` from the records that it holds; returns its path.
///
/// # Errors
/// When a record is missing or is none, naming it; the operating system's on writing.
pub fn write_sweep_page(sweep: &Path) -> Result<PathBuf> {
    let page = SweepPage::read(sweep)?.html();
    let path = sweep.join(SWEEP_PAGE);
    write_atomically(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(path)
}

fn table<T>(path: &Path, rows: fn(&arrow::array::RecordBatch) -> std::result::Result<Vec<T>, String>) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let failed = |reason: String| EvalError::Table { path: path.into(), reason };
    let batch = sam_ladder_cache::table::read_table(path).map_err(|error| failed(error.to_string()))?;
    rows(&batch).map_err(failed)
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|source| EvalError::Io { path: path.into(), action: "read", source })?;
    serde_json::from_slice(&bytes).map_err(|error| EvalError::Table { path: path.into(), reason: error.to_string() })
}

impl SweepPage {
    /// Reads a sweep folder's records; tables that are not there yet are empty.
    ///
    /// # Errors
    /// When a record cannot be read or is none, naming it.
    pub fn read(sweep: &Path) -> Result<Self> {
        let final_record = sweep.join(FINAL_RECORD);
        let summary = sweep.join(FINAL_EVAL).join(crate::evaluation::SUMMARY_TABLE);
        let test = if final_record.exists() && summary.exists() {
            Some((json(&final_record)?, crate::tables::read_summary(&summary)?))
        } else {
            None
        };
        let name = sweep.canonicalize().unwrap_or_else(|_| sweep.into());
        Ok(SweepPage {
            name: name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            record: json(&sweep.join(SWEEP_CONFIG))?,
            trials: table(&sweep.join(TRIALS_TABLE), trials_from_batch)?,
            curves: table(&sweep.join(CURVES_TABLE), curves_from_batch)?,
            test,
        })
    }

    /// The page.
    pub fn html(&self) -> String {
        let trials = trials(&self.trials);
        let config = &self.record.config;
        let parameters = Parameter::all(config, &trials);
        let title = format!("{} · sweep", escape(&self.name));
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
             <title>{title}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n",
            plot::STYLE,
            include_str!("sweep.css"),
        );
        page += &self.summary(&trials);
        page += "</header>\n";
        page += &self.test_section();
        page += &self.curves_section(&trials);
        page += &self.settings_section(&trials, &parameters);
        page += &section(
            "trials",
            "Trials",
            &format!(
                "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Trials\">\n{}</div>\n\
                 <p class=\"note\">A column's heading sorts by it. Pointing at a trial, here or in a chart, shows it everywhere; a click keeps it so.</p>\n",
                table::html(&trials, &parameters, &config.objectives)
            ),
        );
        page += &self.facts_section();
        let _ = write!(page, "</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("sweep.js"));
        page
    }

    fn summary(&self, trials: &[Trial]) -> String {
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
            Validation::Cases(cases) => format!("{} training cases held out", cases.len()),
        };
        let lead = format!(
            "{method} over {} with {}; {validation}. The test cases took no part in it.",
            names.join(", "),
            pruning(&config.pruning)
        );
        let count = |status: TrialStatus| trials.iter().filter(|trial| trial.row.status == status).count();
        let mut tiles: Vec<(String, String)> = Vec::new();
        if let Some(best) = best(trials) {
            for &objective in &config.objectives {
                let Some(value) = space::objective_value(best.row, objective) else { continue };
                let std = if objective == Objective::Dice { best.row.dice_std.map(|std| 100.0 * std) } else { best.row.hd95_std };
                let std = std.map_or_else(String::new, |std| format!(" <small>± {std:.2}</small>"));
                tiles.push((format!("Best: {}", objective_name(objective)), format!("{value:.2}{std}")));
            }
        }
        let statuses: Vec<String> = (TrialStatus::ALL.into_iter())
            .filter(|&status| count(status) > 0)
            .map(|status| format!("{} {}", count(status), status.name()))
            .collect();
        tiles.push((format!("Trials: {}", statuses.join(", ")), trials.len().to_string()));
        let epochs = |of: fn(&TrialRow) -> u32| trials.iter().map(|trial| u64::from(of(trial.row) * trial.row.runs)).sum::<u64>();
        let (trained, all) = (epochs(|row| row.epochs), epochs(|row| row.max_epochs));
        tiles.push((format!("Epochs trained, of {all} without pruning"), trained.to_string()));
        let seconds: f64 = trials.iter().map(|trial| trial.row.seconds).sum();
        tiles.push(("Machine time".into(), duration(seconds)));
        let tiles: String =
            tiles.iter().map(|(name, value)| format!("<div><dt>{}</dt><dd>{value}</dd></div>\n", escape(name))).collect();
        let mut out = format!("<p class=\"lead\">{}</p>\n<dl class=\"tiles\">\n{tiles}</dl>\n", escape(&lead));
        match best(trials) {
            Some(best) => {
                let settings: Vec<String> = (best.settings.iter())
                    .map(|(name, value)| format!("{} <b>{}</b>", escape(name), escape(&told(value))))
                    .collect();
                let _ = writeln!(
                    out,
                    "<p class=\"winner\" data-trial=\"{0}\">Best setting (trial {0}): {1}</p>",
                    best.row.number,
                    settings.join(", ")
                );
            }
            None => out += "<p class=\"winner\">No trial has a value yet.</p>\n",
        }
        out
    }

    fn test_section(&self) -> String {
        let Some((record, summary)) = &self.test else { return String::new() };
        let mean = summary.iter().find(|row| row.organ == crate::summary::MEAN);
        let value = |value: Option<f64>| value.map_or("undefined".into(), |value| format!("{value:.2}"));
        let text = format!(
            "<p>The setting of trial <code>{}</code>, trained on all training cases and evaluated once on the test cases: mean Dice <b>{} %</b>, mean \
             HD95 <b>{}</b>.</p>\n",
            escape(&record.trial),
            value(mean.and_then(|row| row.dice).map(|dice| 100.0 * dice)),
            value(mean.and_then(|row| row.hd95)),
        );
        section("test", "Test cases", &text)
    }

    fn curves_section(&self, trials: &[Trial]) -> String {
        const SIZE: Size = Size { width: 560.0, height: 330.0 };
        let mut quantities = vec![
            ("Validation Dice", Quantity { label: "Dice, percent", value: |row| row.val_dice.map(|dice| 100.0 * dice) }),
            ("Training loss", Quantity { label: "loss", value: |row| Some(row.loss) }),
        ];
        if self.record.config.objectives.contains(&Objective::Hd95) {
            quantities.insert(1, ("Validation HD95", Quantity { label: "HD95, mm", value: |row| row.val_hd95 }));
        }
        quantities.push(("Gate: SAM's share", Quantity { label: "sigmoid(α)", value: |row| Some(f64::from(row.gate)) }));
        let charts: String = (quantities.iter())
            .map(|(heading, quantity)| figure(heading, &curves::draw(trials, &self.curves, quantity, SIZE)))
            .collect();
        let text = format!(
            "<div class=\"charts\">\n{charts}</div>\n<p class=\"note\">A line is a trial, the mean over its runs; it ends where the trial ended or was pruned. \
             The better a trial's rank, the stronger its colour; the best is <span class=\"key\">highlighted</span>.</p>\n"
        );
        section("curves", "Learning curves", &text)
    }

    fn settings_section(&self, trials: &[Trial], parameters: &[Parameter]) -> String {
        const HALF: Size = Size { width: 560.0, height: 360.0 };
        let objectives = &self.record.config.objectives;
        let main = objectives.first().copied().unwrap_or(Objective::Dice);
        let importance = importance(trials, parameters, &self.curves, main);
        let mut text = figure(
            "Every trial: settings and objectives",
            &parallel::draw(trials, parameters, objectives, Size { width: 1120.0, height: 380.0 }),
        );
        text += "<div class=\"charts\">\n";
        if let [first, second] = objectives[..] {
            text += &figure("Pareto front", &pareto::draw(trials, [second, first], HALF));
        }
        let order: Vec<String> = importance.iter().flat_map(|found| found.shares.iter().map(|(name, _)| name.clone())).collect();
        let two = two_settings::choose(parameters, &order);
        if let Some((two, svg)) = two.and_then(|two| Some((two, two_settings::draw(two, trials, main, HALF)?))) {
            let heading = format!("{} × {}: best {} of a cell", two[1].name, two[0].name, objective_name(main));
            text += &figure(&heading, &svg);
        }
        if let Some(importance) = &importance {
            text += &figure("Importance of each setting", &bars::draw(importance, HALF.width));
        }
        text += "</div>\n";
        if let Some(importance) = &importance {
            let objective = if main == Objective::Dice { "validation Dice" } else { "validation HD95" };
            let _ = writeln!(
                text,
                "<p class=\"note\" id=\"importance-definition\">Importance is the share of the variance of the {objective} between trials that a setting explains by itself: \
                 ε² of a one-way analysis of variance, 1 − (SSW / (N − k)) / (SST / (N − 1)), with the trials in k groups by the setting's value (numbers in at most four \
                 groups of about as many trials), SSW the sum of squares within the groups and SST that of all N = {} trials; negative shares are told as 0. Trials are compared after \
                 epoch {}, the last that all of them reached. Shares of settings that act together do not add up to 100 %, and with few trials they are rough.</p>",
                importance.trials, importance.epochs
            );
        } else {
            text += "<p class=\"note\">Importance needs at least three trials that have ended.</p>\n";
        }
        section("settings", "Settings", &text)
    }

    fn facts_section(&self) -> String {
        let SweepRecord { program, cache_id, config, jobs, folds, .. } = &self.record;
        let mut facts = vec![
            ("Program".to_string(), program.clone()),
            ("Store".into(), cache_id.clone()),
            ("Search".into(), format!("{:?}, seed {}", config.search.method, config.search.seed).to_lowercase()),
            ("Pruning".into(), pruning(&config.pruning)),
            ("Trials at a time".into(), jobs.to_string()),
            ("Seeds".into(), config.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        ];
        for (index, cases) in folds.iter().enumerate() {
            facts.push((format!("Validation cases, fold {}", index + 1), cases.join(", ")));
        }
        for setting in config.settings.iter().filter(|setting| !setting.is_searched()) {
            if let sam_ladder_schemas::sweep::Domain::Fixed(value) = &setting.domain {
                facts.push((setting.name.clone(), told(value)));
            }
        }
        let facts: String =
            facts.iter().map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value))).collect();
        section("facts", "Sweep", &format!("<dl class=\"facts\">\n{facts}</dl>\n"))
    }
}

fn pruning(pruning: &Pruning) -> String {
    match pruning {
        Pruning::None => "no pruning".into(),
        Pruning::Asha { min_epochs, reduction } => {
            format!("successive halving (ASHA: from {min_epochs} epochs, one in {reduction} goes on)")
        }
        Pruning::Median { min_epochs, .. } => format!("median pruning from epoch {min_epochs}"),
    }
}

/// Seconds as a reader says them.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

fn section(id: &str, heading: &str, body: &str) -> String {
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n{body}</section>\n")
}

fn figure(caption: &str, svg: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>\n{svg}</figure>\n", escape(caption))
}

#[cfg(test)]
mod tests_data {
    //! Records made up by a rule.

    use sam_ladder_schemas::sweep::{
        Budget, CurveRow, Domain, Objective, Pruning, Scale, Search, SearchMethod, Setting, SweepConfig, TrialRow, TrialStatus,
        Validation,
    };

    pub(super) fn setting(name: &str, domain: Domain) -> Setting {
        Setting { name: name.into(), domain, when: vec![] }
    }

    /// lr on a logarithmic range, λ on a linear one.
    pub(super) fn config() -> SweepConfig {
        let range = |min, max, scale| Domain::Range { min, max, scale, integer: false, points: None };
        SweepConfig {
            settings: vec![
                setting("lr", range(1e-5, 1e-1, Scale::Log)),
                setting("lambda", range(0.0, 1.0, Scale::Linear)),
                setting("epochs", Domain::Fixed(8.into())),
            ],
            search: Search { method: SearchMethod::Random, seed: 1, startup: 8 },
            pruning: Pruning::None,
            objectives: vec![Objective::Dice],
            validation: Validation::Fold(1, 3),
            seeds: vec![1],
            budget: Budget { trials: Some(12), epochs: None, hours: None },
            retries: 1,
        }
    }

    /// A finished trial whose Dice falls with its number: 0.9 - number/100.
    pub(super) fn row(number: u32, rank: Option<u32>) -> TrialRow {
        TrialRow {
            trial: format!("{number:012x}"),
            number,
            settings: format!(r#"{{"lr":{},"lambda":{}}}"#, 1e-4 * f64::from(number + 1), 0.05 * f64::from(number % 20)),
            status: TrialStatus::Finished,
            reason: None,
            rank,
            dice: Some(0.9 - f64::from(number) / 100.0),
            dice_std: None,
            hd95: None,
            hd95_std: None,
            runs: 1,
            epochs: 4,
            max_epochs: 4,
            rung: None,
            failures: 0,
            seconds: 1.5,
        }
    }

    pub(super) fn curve(trial: u32, seed: u64, epoch: u32, dice: f64) -> CurveRow {
        let trial = format!("{trial:012x}");
        CurveRow { trial, seed, fold: 1, epoch, loss: 1.0 - dice, val_dice: Some(dice), val_hd95: None, gate: 0.5, seconds: 0.3 }
    }
}

#[cfg(test)]
mod tests {
    use super::tests_data::{config, curve, row};
    use super::*;
    use sam_ladder_schemas::train::{InputFile, RunInputs};

    fn page(trials: Vec<TrialRow>, curves: Vec<CurveRow>) -> SweepPage {
        let file = InputFile { name: "sam_decoder.safetensors".into(), sha256: "0".into() };
        let record = SweepRecord {
            program: "test".into(),
            cache_id: "abc".into(),
            config: config(),
            jobs: 2,
            folds: vec![vec!["0005".into()]],
            inputs: RunInputs { sam_decoder: file, cnn_checkpoint: None, init: None },
        };
        SweepPage { name: "a <sweep>".into(), record, trials, curves, test: None }
    }

    /// The page without its script, which knows what NaN is.
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
            "class=\"plot heat-map\"",
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

    #[test]
    fn durations_are_read_aloud() {
        assert_eq!([3.25, 75.0, 7384.0].map(duration), ["3.2 s", "1 min 15 s", "2 h 03 min"]);
    }
}
