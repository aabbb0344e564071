//! The crate's error type: each message is one line that says what was expected and what was found; [`TrainError::hint`] says what to do.

mod hint;

use sam_ladder_ops::error_line;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::variants::VariantKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Why a run, a sweep, a prediction or an export stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The operating system refused to read or write a file.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The store could not be read, or a table not written.
    #[error(transparent)]
    Store(#[from] sam_ladder_cache::Error),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// Weights and model do not fit together.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// A tensor operation failed: shapes, or the device's memory.
    #[error("tensor operation failed: {}", error_line(.0))]
    Tensor(#[from] candle_core::Error),
    /// A setting is unknown, of another type or out of range.
    #[error("{0}")]
    Setting(#[from] sam_ladder_schemas::setting::SettingError),
    /// A sweep's file cannot be used.
    #[error("{0}")]
    SweepFile(#[from] sam_ladder_schemas::setting::FileError),
    /// The interval of checkpoints is 0.
    #[error("checkpoint-every must be at least 1 step, found 0")]
    CheckpointEvery,
    /// An option that needs a GPU.
    #[error("{option} needs a GPU, but this device is the CPU")]
    NeedsGpu {
        /// The option, as typed.
        option: String,
        /// What to do without it.
        instead: &'static str,
    },
    /// bfloat16 where nothing computes in it.
    #[error("--precision bf16 needs a GPU or a processor with AVX512-BF16, and this CPU lacks it")]
    NeedsBf16,
    /// A precision that training does not support.
    #[error("--precision f16 is for the frozen encoder: gradients leave the range of float16")]
    EncoderPrecision,
    /// A precision that the side network does not support.
    #[error("--precision bf16 supports the side networks resnet18, resnet34 and resnet50, not vit-tiny")]
    NetworkPrecision,
    /// `--fold` is not a pair of numbers.
    #[error("--fold must be i/n with n at least 2 and i from 1 to n, such as 1/5, found {0:?}")]
    FoldSyntax(String),
    /// More folds than training cases.
    #[error("{wanted}: the store has {}, fewer than {folds} folds", counted(*cases, "training case"))]
    TooManyFolds {
        /// Source of the folds: the option, or the key of the sweep's file.
        wanted: String,
        /// Training cases of the store.
        cases: usize,
        /// Folds.
        folds: usize,
    },
    /// `--group-by` has an expression that is none.
    #[error("--group-by: {expression} is not a regular expression: {reason}")]
    GroupExpression {
        /// The expression.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A case of which `--group-by` finds no patient.
    #[error("--group-by: case {case} does not match {expression}")]
    NotMatched {
        /// The case.
        case: String,
        /// The expression.
        expression: String,
    },
    /// A case that the table of `--group-by` lacks.
    #[error("--group-by: {table} has no line of case {case}")]
    NotInTable {
        /// The case.
        case: String,
        /// The table.
        table: PathBuf,
    },
    /// Patients of the table of `--group-by` that are probably one.
    #[error("--group-by: {table}: {first} and {second} are probably one patient, written in two ways")]
    TwoWays {
        /// The table.
        table: PathBuf,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// More folds than patients.
    #[error(
        "{wanted}: the store has {} of {}, fewer than {folds} folds",
        counted(*cases, "training case"),
        counted(*groups, "patient")
    )]
    TooFewGroups {
        /// Source of the folds: the option, or the key of the sweep's file.
        wanted: String,
        /// Patients of the training cases.
        groups: usize,
        /// Training cases of the store.
        cases: usize,
        /// Folds.
        folds: usize,
    },
    /// A patient of whose cases some validate and some train.
    #[error("{held_out} is held out for validation and {trained} is trained on, but both are of patient {group}")]
    GroupDivided {
        /// The patient.
        group: String,
        /// A case that is held out.
        held_out: String,
        /// A case that is not.
        trained: String,
    },
    /// A test case among the validation cases.
    #[error("case {case} is a test case and cannot be used for validation")]
    TestCase {
        /// The case.
        case: String,
        /// The training cases.
        training: Vec<String>,
    },
    /// A validation case that the store lacks.
    #[error("the store has no training case {case}")]
    NoSuchCase {
        /// The case.
        case: String,
        /// The training cases.
        training: Vec<String>,
    },
    /// A store without training cases.
    #[error("the store has no training cases")]
    NoTrainingCases,
    /// A run that held out no case, so that there is nothing to validate it on.
    #[error("{0} held out no training case for validation")]
    NoHeldOut(PathBuf),
    /// Runs that are to be scored together and held out different cases.
    #[error(
        "{} held out the cases {}, but {} held out {}: one was trained on what the other held out",
        first.display(), first_cases.join(", "), second.display(), second_cases.join(", ")
    )]
    OtherHeldOut {
        /// One run.
        first: PathBuf,
        /// Its cases.
        first_cases: Vec<String>,
        /// The other run.
        second: PathBuf,
        /// Its cases.
        second_cases: Vec<String>,
    },
    /// A store with another scan of a held-out case's name.
    #[error("{}: its training case {case} is not known to be the scan that {} held out", store.display(), run.display())]
    OtherScan {
        /// The run.
        run: PathBuf,
        /// The store.
        store: PathBuf,
        /// The case.
        case: String,
    },
    /// A test case among those to train on.
    #[error("case {case} is a test case and cannot be trained on")]
    TrainsOnTestCase {
        /// The case.
        case: String,
        /// The training cases.
        training: Vec<String>,
    },
    /// All cases of `train_cases` are held out.
    #[error("every case of --train-cases is held out for validation")]
    NothingTrained,
    /// Slices to draw by their organs, of which none has one.
    #[error("--sampling {0}: no training slice has an organ")]
    NoForeground(&'static str),
    /// Class weights for another number of classes.
    #[error("--class-weights has {}, expected {classes}: one for the background and one for each class", counted(*found, "weight"))]
    ClassWeights {
        /// The weights.
        found: usize,
        /// The classes.
        classes: usize,
    },
    /// A run's state lacks the average of a tensor, though the run keeps one.
    #[error("the state lacks the average of {0}")]
    AverageMissing(String),
    /// Every training case validates.
    #[error("all {0} training cases are held out for validation")]
    AllHeldOut(usize),
    /// A store of scans without labels.
    #[error("{0} holds scans without labels: there is nothing to train on")]
    Unlabelled(PathBuf),
    /// A variant that the store lacks.
    #[error("the store lacks the variant {variant:?}; it holds {stored} in all")]
    NoVariant {
        /// The variant's name.
        variant: String,
        /// Variants of the store.
        stored: usize,
    },
    /// Neighbouring slices that do not lie over one another.
    #[error(
        "{0} holds seeded draws, which move each slice in its own way, so the embeddings of neighbouring slices do not go together"
    )]
    NeighboursApart(PathBuf),
    /// A store lacks the unaugmented variant.
    #[error("{0} has no identity variant")]
    NoIdentity(PathBuf),
    /// The probabilities of a store's variants.
    #[error("the store's variant probabilities sum to {0}, expected 1")]
    Probabilities(f64),
    /// A key of a weights file that the model lacks.
    #[error("{path}: key {key} is not part of the model ({})", counted(*count, "such key"))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The first such key.
        key: String,
        /// Number of such keys.
        count: usize,
        /// What the file should hold.
        advice: &'static str,
    },
    /// The run folder exists already.
    #[error("{0} exists and is not empty")]
    RunExists(PathBuf),
    /// Another process trains into the run folder.
    #[error("{0}: another process is training into this folder")]
    RunBusy(PathBuf),
    /// A folder that is not a run.
    #[error("{0} is not a run: it has no config.json")]
    NotARun(PathBuf),
    /// A setting or an input differs from those that the run was started with.
    #[error("{run}: cannot resume, {what} differs: the run has {stored}, this command has {given}")]
    ResumeMismatch {
        /// The run folder.
        run: PathBuf,
        /// Name of the setting or input.
        what: String,
        /// Value of the run.
        stored: String,
        /// Value of this call.
        given: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file of a run or sweep is damaged or missing.
    #[error("{path}: {reason}")]
    RunDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Data that cannot be encoded in its file's format.
    #[error("{what} cannot be written: {reason}")]
    Unwritable {
        /// What it is.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A stop was requested.
    #[error("stopped as requested after step {steps}, which is in the checkpoint")]
    Stopped {
        /// The run folder.
        run: PathBuf,
        /// Steps that the checkpoint has behind it.
        steps: u64,
    },
    /// A stop of a sweep was requested.
    #[error("stopped as requested; the trials in progress are saved")]
    SweepStopped {
        /// The sweep's folder.
        out: PathBuf,
        /// Further options of the command that continues it, each after a space.
        more: String,
    },
    /// The loss or a weight is not finite.
    #[error(
        "training diverged at step {step}: {what} is {value} with learning rate {lr:e}; the last good checkpoint is step {checkpoint_step} in {checkpoint}"
    )]
    Diverged {
        /// Optimizer step, from 0.
        step: u64,
        /// What is not finite.
        what: String,
        /// Its value.
        value: f32,
        /// Learning rate of the step.
        lr: f64,
        /// Steps that the last checkpoint has behind it.
        checkpoint_step: u64,
        /// The last checkpoint.
        checkpoint: PathBuf,
    },
    /// The thread that reads batches ahead has ended too early.
    #[error("the thread that reads the store has stopped")]
    ReaderStopped,
    /// A batch that several runs share could not be read, and why.
    #[error("{0}")]
    BatchUnread(String),
    /// A part of the program panicked.
    #[error("internal error: {0}")]
    Panicked(String),
    /// An untrained model without a store.
    #[error("an untrained model needs a store for SAM's decoder")]
    NeedsStore,
    /// An ensemble of no models.
    #[error("no model was given, expected at least one")]
    NoModel,
    /// A model for images of another kind.
    #[error("{path}: trained for {what} {trained}, but the images have {found}")]
    OtherImages {
        /// The model's file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// The model's.
        trained: usize,
        /// The images'.
        found: usize,
    },
    /// A run and a store of different encoders.
    #[error("{run} was trained on tensors that {store} does not hold: {differing}")]
    OtherEncoder {
        /// The run folder.
        run: PathBuf,
        /// The store.
        store: PathBuf,
        /// Each setting that differs, with both values.
        differing: String,
    },
    /// A ladder without rungs.
    #[error("{0} has no rungs, which --ladder gated mixes into the side network")]
    NoRungs(PathBuf),
    /// Logits at half the image's side without labels there.
    #[error("{0} has no labels at half the image's side, which --decoder skips-half learns from")]
    NoHalfLabels(PathBuf),
    /// A model and a store of different rungs.
    #[error("{model} was trained on rungs that {store} does not hold: {differing}")]
    OtherRungs {
        /// The model's file.
        model: PathBuf,
        /// The store.
        store: PathBuf,
        /// What differs, with both values.
        differing: String,
    },
    /// A case of a store has no slices.
    #[error("{store}: case {case} has no slices")]
    NoSlices {
        /// The store.
        store: PathBuf,
        /// The case.
        case: String,
    },
    /// A store lacks the reflections to average over.
    #[error("{store} holds no reflections of its {split} slices to average over")]
    NoReflections {
        /// The store.
        store: PathBuf,
        /// Which slices.
        split: Split,
    },
    /// Logits of a variant that cannot be mapped back to the slice.
    #[error("logits cannot be brought back from the variant {0:?}")]
    NotAReflection(VariantKind),
    /// An export's file of no known format.
    #[error("{0}: the name must end in .safetensors, .pth or .onnx")]
    Ending(PathBuf),
    /// A model for which the published code has no names.
    #[error(
        "{run}: its side network is {side_network}, its gate {gate}, its decoder {decoder}, its neighbours {neighbours}, its ladder {ladder} and the channels of its embeddings {embed_channels}, but the published code has only resnet18, scalar, plain, 0, none and 256"
    )]
    NoPublishedNames {
        /// The run folder.
        run: PathBuf,
        /// The side network's name.
        side_network: &'static str,
        /// The gate's name.
        gate: &'static str,
        /// The decoder's name.
        decoder: &'static str,
        /// Slices on each side.
        neighbours: u32,
        /// Channels of the embeddings.
        embed_channels: usize,
        /// The ladder's name.
        ladder: &'static str,
        /// The model's file.
        checkpoint: PathBuf,
    },
    /// A model in ONNX of one image with neighbours.
    #[error("{0}: its model takes the embeddings of three slices, and a model with the encoder would see the image of one")]
    EncoderOfNeighbours(PathBuf),
    /// A model in ONNX with another encoder than SAM's.
    #[error("{run}: a model in ONNX has the image encoder only if it is SAM's, and this run's is {encoder}")]
    OnnxOfEncoder {
        /// The run folder.
        run: PathBuf,
        /// The encoder's name.
        encoder: &'static str,
    },
    /// A tensor that does not belong to the image encoder.
    #[error("tensor {0} is not one of SAM's image encoder, expected image_encoder.…")]
    NotOfTheEncoder(String),
    /// HD95 in millimetres without a spacing.
    #[error("{store}: the voxel spacing of case {case} is unknown, so its HD95 cannot be measured in millimetres")]
    NoSpacing {
        /// The store.
        store: PathBuf,
        /// The case.
        case: String,
    },
    /// A sweep without a file.
    #[error("a sweep starts from a file")]
    NoSweepFile,
    /// A grid without end.
    #[error("the grid has at least {0} points")]
    GridTooLarge(usize),
    /// The sweep's folder holds one already.
    #[error("{0} holds a sweep")]
    SweepExists(PathBuf),
    /// The sweep's folder holds something else.
    #[error("{0} exists and is not empty")]
    SweepFolderTaken(PathBuf),
    /// A folder that is not a sweep.
    #[error("{0} is not a sweep: it has no sweep.json")]
    NotASweep(PathBuf),
    /// Another process is this worker of the sweep.
    #[error("{out}: another process is worker {worker} of this sweep")]
    WorkerBusy {
        /// The sweep's folder.
        out: PathBuf,
        /// `I/N`.
        worker: String,
    },
    /// A sweep's settings are not those with which it was started.
    #[error("{out}: cannot resume, the settings differ: {differing}")]
    SweepMismatch {
        /// The sweep's folder.
        out: PathBuf,
        /// Each difference, with both values.
        differing: String,
    },
    /// A sweep's inputs are not those with which it was started.
    #[error("{out}: cannot resume, {what} differs: the sweep has {stored}, this command has {given}")]
    SweepInputMismatch {
        /// The sweep's folder.
        out: PathBuf,
        /// The option.
        what: &'static str,
        /// The sweep's.
        stored: String,
        /// This call's.
        given: String,
    },
    /// A trial's record.
    #[error("trial {trial}: settings {settings:?}: {reason}")]
    TrialSettings {
        /// The trial's id.
        trial: String,
        /// Its settings, as recorded.
        settings: String,
        /// What is wrong with them.
        reason: String,
    },
    /// `--final` was begun with another trial.
    #[error("{out}: --final was started with trial {begun}, but the best trial is now {best}")]
    FinalMismatch {
        /// The sweep's folder.
        out: PathBuf,
        /// The trial of the final run.
        begun: String,
        /// The best one.
        best: String,
    },
    /// A trial that was not trained to its last epoch, or does not exist.
    #[error("{out}: has no trial {trial} that was trained to its last epoch")]
    NoSuchTrial {
        /// The sweep's folder.
        out: PathBuf,
        /// The trial's id.
        trial: String,
    },
    /// A sweep without a best trial.
    #[error("{0}: no trial was trained to its last epoch, so there is no best one")]
    NoBestTrial(PathBuf),
    /// A sweep with several best trials.
    #[error("{out}: {} trials are equally good: {}", trials.len(), trials.join(", "))]
    SeveralBestTrials {
        /// The sweep's folder.
        out: PathBuf,
        /// Their ids.
        trials: Vec<String>,
    },
    /// A second evaluation on the test cases.
    #[error(
        "{out}: the test cases are evaluated only once, and were already evaluated with trial {trial}: the result is in {result}"
    )]
    AlreadyEvaluated {
        /// The sweep's folder.
        out: PathBuf,
        /// The trial.
        trial: String,
        /// Folder of the evaluation.
        result: PathBuf,
    },
}

impl TrainError {
    /// Whether the machine is at fault and not the work: a full disk, a limit on the size of files, a file system that became read-only, too many open files, no memory.
    /// Any other work would fail in the same way.
    pub(crate) fn is_of_the_machine(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let of_candle = match error.downcast_ref() {
                Some(candle_core::Error::Io(error)) => Some(error),
                _ => None,
            };
            if error.downcast_ref().or(of_candle).is_some_and(is_of_the_machine) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// Whether a file of a run or a sweep is damaged: not one that cannot be read just now.
    pub(crate) fn is_damage(&self) -> bool {
        use sam_ladder_formats::Error as File;
        match self {
            TrainError::RunDamaged { .. } | TrainError::AverageMissing(_) => true,
            TrainError::File(error) => {
                matches!(error, File::Format { .. } | File::Truncated { .. } | File::Columns { .. } | File::Rows { .. })
            }
            _ => false,
        }
    }

    /// A short form, for a table.
    pub(crate) fn in_short(&self) -> String {
        match self {
            TrainError::Diverged { step, what, value, lr, .. } => {
                format!("{what} is {value} at step {step} with learning rate {lr:e}")
            }
            other => other.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }
}

/// Result with a [`TrainError`].
pub type Result<T> = std::result::Result<T, TrainError>;

/// Turns an [`std::io::Error`] into a [`TrainError`] that names `path`.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError + '_ {
    move |source| TrainError::Io { path: path.to_path_buf(), source }
}

/// Numbers of the operating system's errors that no [`std::io::ErrorKind`] stands for: too many open files in all, and in this process.
const TOO_MANY_FILES: [i32; 2] = [23, 24];

fn is_of_the_machine(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem | OutOfMemory)
        || cfg!(unix) && error.raw_os_error().is_some_and(|number| TOO_MANY_FILES.contains(&number))
}

/// Turns an encoder's error into a [`TrainError`] that names the data.
pub(crate) fn unwritable<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TrainError {
    move |error| TrainError::Unwritable { what, reason: error.to_string() }
}

/// A mistake of the program itself about a tensor.
pub(crate) fn internal(reason: String) -> TrainError {
    candle_core::Error::Msg(reason).into()
}

/// Does `work`, and turns a panic into an error: a panic of one run must not end another one.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(TrainError::Panicked(text.unwrap_or_else(|| "a panic without a message".into())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn the_machines_faults_are_known_however_they_are_wrapped() {
        let wrapped = |error: fn() -> Error| -> [TrainError; 4] {
            let file = || sam_ladder_formats::Error::io("write", "a")(error());
            let store = TrainError::Store(file().into());
            let tensor = TrainError::Tensor(error().into());
            [TrainError::File(file()), store, tensor, io(Path::new("a"))(error())]
        };
        let faults: [fn() -> Error; 5] = [
            || ErrorKind::StorageFull.into(),
            || ErrorKind::QuotaExceeded.into(),
            || ErrorKind::FileTooLarge.into(),
            || ErrorKind::ReadOnlyFilesystem.into(),
            || Error::from_raw_os_error(24),
        ];
        for fault in faults {
            assert!(wrapped(fault).iter().all(TrainError::is_of_the_machine), "{}", fault());
        }
        assert!(!wrapped(|| ErrorKind::NotFound.into()).iter().any(TrainError::is_of_the_machine));
        assert!(!TrainError::RunBusy("a".into()).is_of_the_machine());
    }
}
