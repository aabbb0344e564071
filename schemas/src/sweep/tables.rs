//! `trials.parquet` and `curves.parquet`: rows, schemas, and the way from one to the other.

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, Float32Type, Float64Type, Schema, UInt32Type, UInt64Type};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How far a trial came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialStatus {
    /// Begun and not ended: it is trained now, or waits for a higher rung, or was interrupted.
    Running,
    /// Trained to its last epoch.
    Finished,
    /// Given up before, since others were better.
    Pruned,
    /// Ended by an error, whose text is the row's `reason`; `--resume` tries again, within a limit.
    Failed,
    /// Its loss or a weight was not finite any more. It is not tried again: the same seed ends the same way.
    Diverged,
}

impl TrialStatus {
    /// All of them.
    pub const ALL: [TrialStatus; 5] =
        [TrialStatus::Running, TrialStatus::Finished, TrialStatus::Pruned, TrialStatus::Failed, TrialStatus::Diverged];

    /// The word in the table.
    pub fn name(self) -> &'static str {
        match self {
            TrialStatus::Running => "running",
            TrialStatus::Finished => "finished",
            TrialStatus::Pruned => "pruned",
            TrialStatus::Failed => "failed",
            TrialStatus::Diverged => "diverged",
        }
    }
}

/// One row of `trials.parquet`: a trial. Of several seeds and folds it holds the mean and the standard deviation over them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialRow {
    /// Id: see [`super::trial_id`].
    pub trial: String,
    /// In the order in which trials were begun, from 0.
    pub number: u32,
    /// The searched settings that are active in this trial, by name, as a JSON object.
    pub settings: String,
    /// How far it came.
    pub status: TrialStatus,
    /// Why it was pruned, failed or diverged.
    pub reason: Option<String>,
    /// Place among the trials, from 1; trials that no other one beats in both objectives share the first place, and so on. None for
    /// trials that have no value.
    pub rank: Option<u32>,
    /// Validation Dice after the last epoch that all its runs have behind them, mean over organs, then over runs.
    pub dice: Option<f64>,
    /// Standard deviation over its runs, with n - 1; none with a single run.
    pub dice_std: Option<f64>,
    /// Validation HD95 in millimetres, likewise; none where HD95 is no objective.
    pub hd95: Option<f64>,
    /// Standard deviation over its runs.
    pub hd95_std: Option<f64>,
    /// Seeds times folds.
    pub runs: u32,
    /// Epochs that each of its runs has behind it.
    pub epochs: u32,
    /// Epochs of a whole training.
    pub max_epochs: u32,
    /// Highest rung that it came to, from 0; none without successive halving.
    pub rung: Option<u32>,
    /// Times that it failed.
    pub failures: u32,
    /// The machine's time that it took, in seconds: the wall time of its epochs, divided by the trials that were trained at the same time.
    pub seconds: f64,
}

/// Schema of [`TrialRow`].
pub fn trials_schema() -> Schema {
    let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    Schema::new(vec![
        field("trial", DataType::Utf8, false),
        field("number", DataType::UInt32, false),
        field("settings", DataType::Utf8, false),
        field("status", DataType::Utf8, false),
        field("reason", DataType::Utf8, true),
        field("rank", DataType::UInt32, true),
        field("dice", DataType::Float64, true),
        field("dice_std", DataType::Float64, true),
        field("hd95", DataType::Float64, true),
        field("hd95_std", DataType::Float64, true),
        field("runs", DataType::UInt32, false),
        field("epochs", DataType::UInt32, false),
        field("max_epochs", DataType::UInt32, false),
        field("rung", DataType::UInt32, true),
        field("failures", DataType::UInt32, false),
        field("seconds", DataType::Float64, false),
    ])
}

/// One row of `curves.parquet`: an epoch of a run of a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurveRow {
    /// The trial's id.
    pub trial: String,
    /// Seed of the run.
    pub seed: u64,
    /// Fold of the run, from 1; 1 also where one fold or a list of cases validates.
    pub fold: u32,
    /// Epoch, from 0.
    pub epoch: u32,
    /// Mean loss over the epoch's steps.
    pub loss: f64,
    /// Validation Dice after the epoch, mean over organs; none where no organ is in the validation cases.
    pub val_dice: Option<f64>,
    /// Validation HD95 after the epoch, in millimetres; none where HD95 is no objective.
    pub val_hd95: Option<f64>,
    /// Gate after the epoch.
    pub gate: f32,
    /// The machine's time that the epoch took, in seconds (see [`TrialRow::seconds`]).
    pub seconds: f64,
}

/// Schema of [`CurveRow`].
pub fn curves_schema() -> Schema {
    let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    Schema::new(vec![
        field("trial", DataType::Utf8, false),
        field("seed", DataType::UInt64, false),
        field("fold", DataType::UInt32, false),
        field("epoch", DataType::UInt32, false),
        field("loss", DataType::Float64, false),
        field("val_dice", DataType::Float64, true),
        field("val_hd95", DataType::Float64, true),
        field("gate", DataType::Float32, false),
        field("seconds", DataType::Float64, false),
    ])
}

fn text<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

/// The table of these rows.
///
/// # Errors
/// Arrow's, as text.
pub fn trials_batch(rows: &[TrialRow]) -> Result<RecordBatch, String> {
    let count = |value: fn(&TrialRow) -> u32| Arc::new(rows.iter().map(value).collect::<UInt32Array>()) as ArrayRef;
    let maybe = |value: fn(&TrialRow) -> Option<u32>| Arc::new(rows.iter().map(value).collect::<UInt32Array>()) as ArrayRef;
    let double = |value: fn(&TrialRow) -> Option<f64>| Arc::new(rows.iter().map(value).collect::<Float64Array>()) as ArrayRef;
    let columns = vec![
        text(rows.iter().map(|row| Some(row.trial.as_str()))),
        count(|row| row.number),
        text(rows.iter().map(|row| Some(row.settings.as_str()))),
        text(rows.iter().map(|row| Some(row.status.name()))),
        text(rows.iter().map(|row| row.reason.as_deref())),
        maybe(|row| row.rank),
        double(|row| row.dice),
        double(|row| row.dice_std),
        double(|row| row.hd95),
        double(|row| row.hd95_std),
        count(|row| row.runs),
        count(|row| row.epochs),
        count(|row| row.max_epochs),
        maybe(|row| row.rung),
        count(|row| row.failures),
        Arc::new(rows.iter().map(|row| row.seconds).collect::<Float64Array>()) as ArrayRef,
    ];
    RecordBatch::try_new(Arc::new(trials_schema()), columns).map_err(|error| error.to_string())
}

/// The table of these rows.
///
/// # Errors
/// Arrow's, as text.
pub fn curves_batch(rows: &[CurveRow]) -> Result<RecordBatch, String> {
    let double = |value: fn(&CurveRow) -> f64| Arc::new(rows.iter().map(value).collect::<Float64Array>()) as ArrayRef;
    let maybe = |value: fn(&CurveRow) -> Option<f64>| Arc::new(rows.iter().map(value).collect::<Float64Array>()) as ArrayRef;
    let count = |value: fn(&CurveRow) -> u32| Arc::new(rows.iter().map(value).collect::<UInt32Array>()) as ArrayRef;
    let columns = vec![
        text(rows.iter().map(|row| Some(row.trial.as_str()))),
        Arc::new(rows.iter().map(|row| row.seed).collect::<UInt64Array>()) as ArrayRef,
        count(|row| row.fold),
        count(|row| row.epoch),
        double(|row| row.loss),
        maybe(|row| row.val_dice),
        maybe(|row| row.val_hd95),
        Arc::new(rows.iter().map(|row| row.gate).collect::<Float32Array>()) as ArrayRef,
        double(|row| row.seconds),
    ];
    RecordBatch::try_new(Arc::new(curves_schema()), columns).map_err(|error| error.to_string())
}

/// A column's values; nulls become `None`.
fn numbers<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str) -> Result<Vec<Option<T::Native>>, String> {
    let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<T>());
    let column = column.ok_or_else(|| format!("has no column {name} of type {}", T::DATA_TYPE))?;
    Ok((0..column.len()).map(|index| column.is_valid(index).then(|| column.value(index))).collect())
}

fn texts(batch: &RecordBatch, name: &str) -> Result<Vec<Option<String>>, String> {
    let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    let column = column.ok_or_else(|| format!("has no column {name} of text"))?;
    Ok((0..column.len()).map(|index| column.is_valid(index).then(|| column.value(index).to_string())).collect())
}

/// The values of a column without nulls.
fn full<T>(name: &str, values: Result<Vec<Option<T>>, String>) -> Result<Vec<T>, String> {
    values?.into_iter().collect::<Option<_>>().ok_or_else(|| format!("column {name} has an empty cell"))
}

/// The rows of a table.
///
/// # Errors
/// A column that is missing, of another type or empty where it must not be, or an unknown status.
pub fn trials_from_batch(batch: &RecordBatch) -> Result<Vec<TrialRow>, String> {
    let text = |name| full(name, texts(batch, name));
    let count = |name| full(name, numbers::<UInt32Type>(batch, name));
    let maybe = |name| numbers::<Float64Type>(batch, name);
    let (trial, number, settings, status) = (text("trial")?, count("number")?, text("settings")?, text("status")?);
    let (reason, rank, rung) =
        (texts(batch, "reason")?, numbers::<UInt32Type>(batch, "rank")?, numbers::<UInt32Type>(batch, "rung")?);
    let (dice, dice_std, hd95, hd95_std) = (maybe("dice")?, maybe("dice_std")?, maybe("hd95")?, maybe("hd95_std")?);
    let (runs, epochs, max_epochs, failures) = (count("runs")?, count("epochs")?, count("max_epochs")?, count("failures")?);
    let seconds = full("seconds", maybe("seconds"))?;
    let status_of = |name: &str| {
        TrialStatus::ALL
            .into_iter()
            .find(|status| status.name() == name)
            .ok_or_else(|| format!("column status has {name:?}, expected running, finished, pruned, failed or diverged"))
    };
    let row = |i: usize| {
        Ok(TrialRow {
            trial: trial[i].clone(),
            number: number[i],
            settings: settings[i].clone(),
            status: status_of(&status[i])?,
            reason: reason[i].clone(),
            rank: rank[i],
            dice: dice[i],
            dice_std: dice_std[i],
            hd95: hd95[i],
            hd95_std: hd95_std[i],
            runs: runs[i],
            epochs: epochs[i],
            max_epochs: max_epochs[i],
            rung: rung[i],
            failures: failures[i],
            seconds: seconds[i],
        })
    };
    (0..batch.num_rows()).map(row).collect()
}

/// The rows of a table.
///
/// # Errors
/// A column that is missing, of another type or empty where it must not be.
pub fn curves_from_batch(batch: &RecordBatch) -> Result<Vec<CurveRow>, String> {
    let count = |name| full(name, numbers::<UInt32Type>(batch, name));
    let double = |name| full(name, numbers::<Float64Type>(batch, name));
    let trial = full("trial", texts(batch, "trial"))?;
    let seed = full("seed", numbers::<UInt64Type>(batch, "seed"))?;
    let (fold, epoch) = (count("fold")?, count("epoch")?);
    let (loss, seconds) = (double("loss")?, double("seconds")?);
    let (val_dice, val_hd95) = (numbers::<Float64Type>(batch, "val_dice")?, numbers::<Float64Type>(batch, "val_hd95")?);
    let gate = full("gate", numbers::<Float32Type>(batch, "gate"))?;
    let row = |i: usize| CurveRow {
        trial: trial[i].clone(),
        seed: seed[i],
        fold: fold[i],
        epoch: epoch[i],
        loss: loss[i],
        val_dice: val_dice[i],
        val_hd95: val_hd95[i],
        gate: gate[i],
        seconds: seconds[i],
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_their_tables() {
        let row = TrialRow {
            trial: "0123456789ab".into(),
            number: 3,
            settings: r#"{"lr":0.001}"#.into(),
            status: TrialStatus::Pruned,
            reason: Some("worse than the median".into()),
            rank: Some(2),
            dice: Some(0.5),
            dice_std: None,
            hd95: None,
            hd95_std: None,
            runs: 1,
            epochs: 3,
            max_epochs: 9,
            rung: Some(1),
            failures: 0,
            seconds: 1.5,
        };
        let rows = vec![TrialRow { reason: None, rank: None, dice: None, ..row.clone() }, row];
        assert_eq!(trials_from_batch(&trials_batch(&rows).unwrap()).unwrap(), rows);
        assert_eq!(trials_from_batch(&trials_batch(&[]).unwrap()).unwrap(), []);
        let curve = CurveRow {
            trial: "0123456789ab".into(),
            seed: u64::MAX,
            fold: 1,
            epoch: 0,
            loss: 0.7,
            val_dice: None,
            val_hd95: Some(4.0),
            gate: 0.5,
            seconds: 0.1,
        };
        let batch = curves_batch(std::slice::from_ref(&curve)).unwrap();
        assert_eq!(curves_from_batch(&batch).unwrap(), [curve]);
        assert!(trials_from_batch(&batch).unwrap_err().contains("number"));
    }
}
