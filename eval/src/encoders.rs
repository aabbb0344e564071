//! Encoders side by side: the scores of the runs on their stores, and what stores and runs cost.

use crate::error::Result;
use crate::folder::create_dir;
use crate::results::{Method, ResultsTable, tabulate};
use crate::statistics::median;
use crate::summary::MEAN;
use crate::table_text::{UNDEFINED, cell, interval, markdown_table, minus, number, p_text, percent, signed};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{HTML_COMMENT, Origin, is_regular_file, may_write, origin_of_text, sealed};
use sam_ladder_formats::rows::{read_rows, write_rows};
use sam_ladder_schemas::tables::{ComparisonRow, EncoderRow};
use std::path::{Path, PathBuf};

/// One row per store.
const TABLE: &str = "encoders.parquet";
/// The same for people.
const MARKDOWN: &str = "encoders.md";
/// Name of the tables by organ.
const BY_ORGAN: &str = "scores";

/// A store, and what it and the runs on it cost.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderCost {
    /// Where the store is.
    pub store: String,
    /// The encoder's name: `vit_b`.
    pub encoder: String,
    /// Channels of its embeddings.
    pub channels: usize,
    /// Pixels of the image along the side of one embedding.
    pub stride: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Bytes of the store.
    pub store_bytes: u64,
    /// Numbers that a run trains.
    pub trained_parameters: usize,
    /// Wall time of every epoch of every run.
    pub epoch_seconds: Vec<f64>,
}

/// The finished tables.
#[derive(Debug, Clone)]
pub struct EncoderTable {
    /// One row per store, in their order.
    pub rows: Vec<EncoderRow>,
    /// Scores of each organ, and the tests against the first store.
    pub by_organ: ResultsTable,
}

impl EncoderTable {
    /// The stores' evaluations, each with its cost; the first is the one that the others are tested against. Each method has the evaluations of all
    /// its seeds and folds on held-out cases.
    ///
    /// # Errors
    /// As [`tabulate`].
    pub fn new(stores: &[(Method, EncoderCost)]) -> Result<Self> {
        let methods: Vec<Method> = stores.iter().map(|(method, _)| method.clone()).collect();
        let by_organ = tabulate(&methods, None, methods.first().map(|first| &*first.name))?;
        let rows = stores.iter().map(|(method, cost)| row(method, cost, &by_organ)).collect();
        Ok(EncoderTable { rows, by_organ })
    }

    /// Costs, then scores, in Markdown.
    pub fn markdown(&self) -> String {
        let unit = self.by_organ.unit;
        let first = self.rows.first().map_or("", |row| &row.name);
        format!(
            "{}\n{}\nA row's epoch is the median of all its epochs, validation included, on the machine that trained it. Scores are of the cases that \
             each run held out, by its last model. {}. Differences are against {}, paired by case, with each case's mean over organs and seeds; \
             tests are two-sided. Of fewer than six cases there is no interval.\n",
            self.costs(),
            self.scores(unit),
            self.by_organ.rules,
            cell(first),
        )
    }

    fn costs(&self) -> String {
        let headings =
            ["Store", "Encoder", "Channels", "Stride", "Image", "Store, GB", "Parameters trained", "Epoch, s"].map(String::from);
        let row = |row: &EncoderRow| {
            vec![
                cell(&row.name),
                row.encoder.clone(),
                row.channels.to_string(),
                row.stride.to_string(),
                row.image_size.to_string(),
                format!("{:.3}", row.store_bytes as f64 / 1e9),
                row.trained_parameters.to_string(),
                row.seconds_per_epoch.map_or(UNDEFINED.into(), |seconds| format!("{seconds:.2}")),
            ]
        };
        markdown_table(&headings, self.rows.iter().map(row))
    }

    fn scores(&self, unit: &str) -> String {
        let headings = [
            "Store".into(),
            "DSC ↑".into(),
            format!("HD95, {unit} ↓"),
            "Difference in DSC".into(),
            "95 % interval".into(),
            "p, Wilcoxon".into(),
            "p, permutation".into(),
            "Difference in HD95".into(),
            "p, Wilcoxon".into(),
            "p, permutation".into(),
        ];
        let spread = |value, deviation: Option<f64>, text: fn(Option<f64>) -> String| match deviation {
            Some(_) => format!("{} ± {}", text(value), text(deviation)),
            None => text(value),
        };
        let row = |row: &EncoderRow| {
            vec![
                cell(&row.name),
                spread(row.dice, row.dice_sd, percent),
                spread(row.hd95, row.hd95_sd, number),
                signed(row.dice_gain.map(|gain| 100.0 * gain)),
                minus(&interval(row.dice_gain_low, row.dice_gain_high, percent)),
                p_text(row.dice_wilcoxon_p),
                p_text(row.dice_permutation_p),
                signed(row.hd95_change),
                p_text(row.hd95_wilcoxon_p),
                p_text(row.hd95_permutation_p),
            ]
        };
        markdown_table(&headings, self.rows.iter().map(row))
    }

    /// Refuses a folder in which [`Self::write`] would replace what is not ours, or what someone has edited.
    ///
    /// # Errors
    /// As [`ResultsTable::may_write`].
    pub fn may_write(folder: &Path) -> Result<()> {
        let files = [folder.join(MARKDOWN), folder.join(TABLE)];
        let origin = |path: &Path| match path == files[0] {
            true => origin_of_text(path, HTML_COMMENT),
            false => Origin::ours_if(is_regular_file(path) && read_rows::<EncoderRow>(path).is_ok()),
        };
        may_write(&files, true, "a comparison of encoders by sam-ladder", origin)?;
        ResultsTable::may_write(folder, BY_ORGAN, true)
    }

    /// Writes `encoders.md`, `encoders.parquet` and, by organ, `scores.md`, `scores.tex` and `scores.parquet`; returns the path of the first.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        create_dir(folder)?;
        write_rows(&folder.join(TABLE), &self.rows)?;
        self.by_organ.write(folder, BY_ORGAN)?;
        let path = folder.join(MARKDOWN);
        write_atomic(&path, sealed(&format!("{}\n", self.markdown()), HTML_COMMENT).as_bytes())?;
        Ok(path)
    }
}

fn row(method: &Method, cost: &EncoderCost, table: &ResultsTable) -> EncoderRow {
    let scores = table.rows.iter().find(|row| row.method == method.name && row.organ == MEAN);
    let tests = table.comparisons.iter().find(|comparison| comparison.method == method.name);
    // A comparison's second side is the first store.
    let test = |metric: &str| tests?.rows.iter().find(|row| row.organ == MEAN && row.metric == metric);
    let against = |test: Option<&ComparisonRow>| {
        let turned = |value: fn(&ComparisonRow) -> Option<f64>| test.and_then(value).map(|value| 0.0 - value);
        [turned(|row| row.difference), turned(|row| row.difference_high), turned(|row| row.difference_low)]
    };
    let (dice, hd95) = (test("dice"), test("hd95"));
    let ([dice_gain, dice_gain_low, dice_gain_high], [hd95_change, hd95_change_low, hd95_change_high]) =
        (against(dice), against(hd95));
    EncoderRow {
        name: method.name.clone(),
        store: cost.store.clone(),
        encoder: cost.encoder.clone(),
        channels: cost.channels as u32,
        stride: cost.stride as u32,
        image_size: cost.image_size as u32,
        store_bytes: cost.store_bytes,
        trained_parameters: cost.trained_parameters as u64,
        seconds_per_epoch: median(&cost.epoch_seconds),
        seeds: scores.and_then(|row| row.seeds).unwrap_or(0),
        folds: scores.and_then(|row| row.folds).unwrap_or(0),
        cases: scores.and_then(|row| row.cases).unwrap_or(0),
        dice: scores.and_then(|row| row.dice),
        dice_sd: scores.and_then(|row| row.dice_sd),
        hd95: scores.and_then(|row| row.hd95),
        hd95_sd: scores.and_then(|row| row.hd95_sd),
        dice_gain,
        dice_gain_low,
        dice_gain_high,
        dice_wilcoxon_p: dice.and_then(|row| row.wilcoxon_p),
        dice_permutation_p: dice.and_then(|row| row.permutation_p),
        hd95_change,
        hd95_change_low,
        hd95_change_high,
        hd95_wilcoxon_p: hd95.and_then(|row| row.wilcoxon_p),
        hd95_permutation_p: hd95.and_then(|row| row.permutation_p),
    }
}
