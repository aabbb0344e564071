//! Training runs on a made-up store: start, stop, resume, refuse, export, re-import, predict.

mod common;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use sam_ladder_cache::{Store, TrainingSplit};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_formats::state_dict::{save_pth, save_safetensors};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Silent};
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::tables::{EpochRow, StepRow};
use sam_ladder_schemas::train::{
    BEST_CHECKPOINT, CHECKPOINT, EPOCHS_TABLE, OptimizerKind, RESUME_STATE, STEPS_TABLE, TrainConfig,
};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{DeviceStore, TrainArgs, fold_cases, read_record, train};
use sam_ladder_train::{
    CaseRequest, Ensemble, ExportArgs, Groups, PredictedMask, RunCheckpoint, TrainError, WeightSource, export,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use store::{NUM_CLASSES, SCAN_SIZE, TEST_CASE, write_store};
use tempfile::TempDir;
use train_args::train_args;

/// A folder with a store of five variants, and the arguments of a run on it: 8 slices in batches of 3, so 3 steps per epoch.
fn workplace() -> (TempDir, TrainArgs) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.zarr");
    write_store(&store, StoreDtype::F32, AugmentPolicy::Flips, 1);
    let args = args(&folder, "run");
    (folder, args)
}

fn args(folder: &TempDir, run: &str) -> TrainArgs {
    let config = TrainConfig { epochs: 2, batch_size: 3, warmup: 2, ..TrainConfig::default() };
    train_args(folder.path().join("store.zarr"), folder.path().join(run), config)
}

fn words(error: &TrainError) -> String {
    common::with_hint(error, error.hint())
}

fn tensors(path: &Path) -> HashMap<String, Vec<u8>> {
    let tensors = load(path, &Device::Cpu).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let bytes = |tensor: &Tensor| -> Vec<u8> {
        let flat = tensor.flatten_all().unwrap();
        match flat.to_vec1::<f32>() {
            Ok(values) => values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect(),
            Err(_) => flat.to_vec1::<i64>().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), bytes(tensor))).collect()
}

/// Asserts that two finished runs have the same bits: model, optimizer, position, tables.
fn assert_same_run(left: &Path, right: &Path) {
    for file in [RESUME_STATE, CHECKPOINT, BEST_CHECKPOINT] {
        let [left, right] = [left, right].map(|run| tensors(&run.join(file)));
        let mut names: Vec<&String> = left.keys().chain(right.keys()).collect();
        names.sort();
        let different: Vec<_> = names.into_iter().filter(|name| left.get(*name) != right.get(*name)).collect();
        assert!(different.is_empty(), "{file}: {different:?}");
    }
    for file in [STEPS_TABLE, RESUME_STATE, CHECKPOINT, BEST_CHECKPOINT] {
        let [left, right] = [left, right].map(|run| std::fs::read(run.join(file)).unwrap());
        assert!(left == right, "{file} differs in its bytes");
    }
    let [left, right] = [left, right].map(|run| {
        let mut rows = read_rows::<EpochRow>(&run.join(EPOCHS_TABLE)).unwrap();
        rows.iter_mut().for_each(|row| row.seconds = 0.0);
        rows
    });
    assert_eq!(left, right);
}

/// Results do not depend on where items are: all of them in the GPU's memory, some of them, or none. (On the CPU the setting has no effect, but
/// with `make test-kernels` and `make gpu-check` it has.)
#[test]
fn a_run_does_not_depend_on_where_its_items_lie() {
    for dtype in [StoreDtype::F32, StoreDtype::F16, StoreDtype::Q8] {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store.zarr");
        write_store(&store, dtype, AugmentPolicy::Flips, 1);
        let run = |name: &str, device_store: DeviceStore| {
            let mut args = TrainArgs { device_store, ..args(&folder, name) };
            args.config.val_cases = vec!["0007".into()];
            train(&args).unwrap();
            args.run
        };
        let streamed = run("streamed", DeviceStore::Off);
        let resident = run("resident", DeviceStore::Bytes(1 << 30));
        // An item of this store takes 8 to 33 kilobytes, and there are about thirty.
        let partly = run("partly", DeviceStore::Bytes(300_000));
        assert_same_run(&streamed, &resident);
        assert_same_run(&streamed, &partly);
    }
}

/// A recorded and repeated step equals a plain one. (On the CPU a graph is refused; `make test-kernels-whole` and `make gpu-check` record one.)
#[test]
fn a_run_through_a_graph_is_the_run() {
    let (folder, mut plain) = workplace();
    // 6 slices in batches of 3: two plain steps, one both ways, three through the graph.
    plain.config.val_cases = vec!["0007".into()];
    plain.config.epochs = 3;
    let graphed = TrainArgs { run: folder.path().join("graphed"), cuda_graph: true, ..plain.clone() };
    if !sam_ladder_ops::device::has_kernels(&plain.device) {
        let reason = train(&graphed).unwrap_err().to_string();
        assert!(reason.contains("--cuda-graph needs a GPU"), "{reason}");
        assert!(!graphed.run.exists());
        return;
    }
    train(&plain).unwrap();
    train(&graphed).unwrap();
    assert_same_run(&plain.run, &graphed.run);
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let (folder, mut straight) = workplace();
    straight.config.val_cases = vec!["0007".into()];
    straight.config.epochs = 3;
    let summary = train(&straight).unwrap();
    // 6 slices are left for training: 2 steps per epoch.
    assert_eq!((summary.steps, summary.epochs), (6, 3));

    // Stopped in the middle of an epoch, then at the end of one.
    let mut stopped = TrainArgs { run: folder.path().join("stopped"), ..straight.clone() };
    for (max_steps, resume) in [(Some(3), false), (Some(4), true), (None, true)] {
        stopped.config.max_steps = max_steps;
        stopped.resume = resume;
        train(&stopped).unwrap();
    }
    assert_same_run(&straight.run, &stopped.run);

    // Killed after the tables of step 5 were written and before its state: the tables are ahead and the state is that of step 3.
    let mut killed = TrainArgs { run: folder.path().join("killed"), ..straight.clone() };
    killed.config.max_steps = Some(3);
    killed.checkpoint_every = Some(1);
    train(&killed).unwrap();
    let state = std::fs::read(killed.run.join(RESUME_STATE)).unwrap();
    let model = std::fs::read(killed.run.join(CHECKPOINT)).unwrap();
    killed.config.max_steps = Some(5);
    killed.resume = true;
    train(&killed).unwrap();
    std::fs::write(killed.run.join(RESUME_STATE), state).unwrap();
    killed.config.max_steps = None;
    train(&killed).unwrap();
    assert_same_run(&straight.run, &killed.run);

    assert_eq!(read_record(&killed.run).unwrap().config.max_steps, None);

    // Killed after the last state was written and before its model: the model follows, though no step is left.
    std::fs::write(killed.run.join(CHECKPOINT), model).unwrap();
    train(&killed).unwrap();
    assert_same_run(&straight.run, &killed.run);

    // A finished run is not changed.
    assert_eq!(train(&killed).unwrap(), summary);
}

#[test]
fn every_optimizer_resumes_in_the_same_bits() {
    let (folder, base) = workplace();
    for optimizer in [OptimizerKind::Adam, OptimizerKind::Sgd] {
        let mut straight = TrainArgs { run: folder.path().join(format!("{optimizer:?}")), ..base.clone() };
        straight.config.optimizer = optimizer;
        straight.config.max_steps = Some(3);
        train(&straight).unwrap();
        let mut stopped = TrainArgs { run: folder.path().join(format!("{optimizer:?}-stopped")), ..straight.clone() };
        stopped.config.max_steps = Some(2);
        train(&stopped).unwrap();
        stopped.config.max_steps = Some(3);
        stopped.resume = true;
        train(&stopped).unwrap();
        for file in [RESUME_STATE, CHECKPOINT] {
            assert_eq!(tensors(&straight.run.join(file)), tensors(&stopped.run.join(file)), "{optimizer:?} {file}");
        }
    }
}

#[test]
fn a_run_learns_and_touches_only_what_is_trainable() {
    let (folder, mut start) = workplace();
    start.config.max_steps = Some(0);
    train(&start).unwrap();
    let mut trained = TrainArgs { run: folder.path().join("trained"), ..start.clone() };
    trained.config.epochs = 10;
    trained.config.max_steps = None;
    trained.config.augment = Some(AugmentPolicy::None);
    train(&trained).unwrap();
    let rows = read_rows::<StepRow>(&trained.run.join(STEPS_TABLE)).unwrap();
    assert_eq!(rows.len(), 30);
    assert!(rows.iter().enumerate().all(|(index, row)| row.step == index as u64 && row.epoch == index as u32 / 3));
    let mean = |rows: &[sam_ladder_schemas::tables::StepRow]| rows.iter().map(|row| row.loss).sum::<f32>() / rows.len() as f32;
    assert!(mean(&rows[27..]) < 0.8 * mean(&rows[..3]), "{} {}", mean(&rows[..3]), mean(&rows[27..]));

    let [before, after] = [&start.run, &trained.run].map(|run| tensors(&run.join(CHECKPOINT)));
    assert_eq!(before.len(), after.len());
    for (name, value) in &before {
        let moves = name == "sam.alpha" || name.starts_with("CNN_encoder.") || name.contains(".output_upscaling.");
        assert_eq!(value != &after[name], moves, "{name}");
    }
    // No validation cases, no best model.
    assert!(!trained.run.join(BEST_CHECKPOINT).exists());
    assert!(std::fs::read_dir(trained.run.join("tensorboard")).unwrap().count() == 1);
    let record = read_record(&trained.run).unwrap();
    assert_eq!(record.config, trained.config);
    assert_eq!(record.inputs.sam_decoder.name, "sam_decoder.safetensors");
}

#[test]
fn an_existing_run_is_refused_and_a_missing_one_cannot_resume() {
    let (folder, mut args) = workplace();
    args.resume = true;
    let error = words(&train(&args).unwrap_err());
    assert!(error.contains("config.json") && error.contains("--resume"), "{error}");
    args.resume = false;
    args.config.max_steps = Some(0);
    train(&args).unwrap();
    let before = std::fs::read(args.run.join(CHECKPOINT)).unwrap();
    let error = train(&args).unwrap_err();
    assert!(matches!(error, TrainError::RunExists(_)) && words(&error).contains("--resume"), "{error}");
    assert_eq!(std::fs::read(args.run.join(CHECKPOINT)).unwrap(), before);

    // A start that was interrupted before its settings were written is not a run yet; a folder with other content must not be
    // written to.
    std::fs::remove_file(args.run.join("config.json")).unwrap();
    std::fs::remove_dir_all(args.run.join("tensorboard")).unwrap();
    train(&args).unwrap();

    // Models of another origin, or of a run that trained, are somebody's.
    let model = std::fs::read(args.run.join(CHECKPOINT)).unwrap();
    let whole = args.run.clone();
    for (name, file) in [(CHECKPOINT, model), ("steps.parquet", b"mine".to_vec()), ("state.safetensors", b"mine".to_vec())] {
        args.run = folder.path().join(format!("only-{name}"));
        std::fs::create_dir(&args.run).unwrap();
        std::fs::write(args.run.join(name), &file).unwrap();
        assert!(matches!(train(&args).unwrap_err(), TrainError::RunExists(_)), "{name}");
        assert_eq!(std::fs::read(args.run.join(name)).unwrap(), file);
    }
    args.run = whole;
    std::fs::remove_dir_all(&args.run).unwrap();
    args.config.max_steps = Some(1);
    train(&args).unwrap();
    std::fs::remove_file(args.run.join("config.json")).unwrap();
    std::fs::remove_dir_all(args.run.join("tensorboard")).unwrap();
    assert!(matches!(train(&args).unwrap_err(), TrainError::RunExists(_)), "a run that trained a step");
    args.run = folder.path().join("notes");
    std::fs::create_dir(&args.run).unwrap();
    std::fs::write(args.run.join("notes.txt"), "keep").unwrap();
    assert!(matches!(train(&args).unwrap_err(), TrainError::RunExists(_)));
}

/// Two trainings into one folder: one of them trains, and the other is refused, whether it starts or resumes.
#[test]
fn a_run_folder_has_one_writer() {
    let (_folder, mut args) = workplace();
    args.config.epochs = 1;
    let outcomes = std::thread::scope(|scope| {
        let [first, second] = [0, 1].map(|_| scope.spawn(|| train(&args)));
        [first.join().unwrap(), second.join().unwrap()]
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
    assert!(matches!(refused, TrainError::RunBusy(_) | TrainError::RunExists(_)), "{refused}");
    assert_eq!(read_rows::<StepRow>(&args.run.join(STEPS_TABLE)).unwrap().len(), 3);

    args.resume = true;
    let other = std::fs::File::create(args.run.join(".lock")).unwrap();
    other.lock().unwrap();
    let error = words(&train(&args).unwrap_err());
    assert!(error.contains("another process is training into this folder") && error.contains("wait"), "{error}");
    drop(other);
    train(&args).unwrap();
}

/// Each model has a checksum, which every reader checks.
#[test]
fn a_damaged_model_is_refused_with_both_checksums() {
    let (folder, mut args) = workplace();
    args.config.val_cases = vec!["0007".into()];
    args.config.epochs = 1;
    train(&args).unwrap();
    let flip = |file: &str| {
        let path = args.run.join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        move || std::fs::write(&path, &whole).unwrap()
    };
    let named = |file: &str, error: TrainError| {
        let error = words(&error);
        assert!(error.contains(file) && error.contains("its CRC-32C is ") && error.contains(", expected "), "{error}");
    };
    let restore = flip(RESUME_STATE);
    named(RESUME_STATE, train(&TrainArgs { resume: true, ..args.clone() }).unwrap_err());
    restore();
    train(&TrainArgs { resume: true, ..args.clone() }).unwrap();
    for (file, checkpoint) in [(CHECKPOINT, RunCheckpoint::Last), (BEST_CHECKPOINT, RunCheckpoint::BestOrLast)] {
        let restore = flip(file);
        let run = WeightSource::Run { folder: args.run.clone(), checkpoint };
        named(file, predict(&args.store, run, 2).unwrap_err());
        named(file, predict(&args.store, WeightSource::Checkpoint(args.run.join(file)), 2).unwrap_err());
        let out = folder.path().join("m.pth");
        named(file, export(&ExportArgs { checkpoint, ..export_args(&args.run, out) }).unwrap_err());
        let init = Some(args.run.join(file));
        named(file, train(&TrainArgs { init, run: folder.path().join("from"), ..args.clone() }).unwrap_err());
        restore();
    }
    // A file without a checksum, of another program.
    let tensors: Vec<(String, Tensor)> = load(args.run.join(CHECKPOINT), &Device::Cpu).unwrap().into_iter().collect();
    let foreign = folder.path().join("foreign.safetensors");
    save_safetensors(&foreign, &tensors).unwrap();
    predict(&args.store, WeightSource::Checkpoint(foreign), 2).unwrap();
}

/// The lines of a run.
#[derive(Debug, Default)]
struct Said(Mutex<Vec<String>>);

impl Observer for Said {
    fn message(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }

    fn begin(&self, _: Phase<'_>) -> Box<dyn Progress> {
        Box::new(Silent)
    }
}

#[test]
fn a_run_says_what_it_will_do_and_its_log_has_every_epoch() {
    let (_folder, mut args) = workplace();
    let said = Arc::new(Said::default());
    args.observer = said.clone();
    args.config.val_cases = vec!["0007".into()];
    let summary = train(&args).unwrap();
    let rows = read_rows::<EpochRow>(&args.run.join(EPOCHS_TABLE)).unwrap();
    let best = rows.iter().filter_map(|row| row.val_dice).reduce(f64::max);
    assert_eq!(summary.best_val_dice, best);
    let first = rows.iter().position(|row| row.val_dice == best).unwrap() as u32 + 1;
    assert_eq!(summary.best_epoch, Some(first));
    let lines = std::mem::take(&mut *said.0.lock().unwrap());
    let expected = [
        "trains on 2 cases (6 slices); holds out 1 case (2 slices) for validation: 0007",
        "on the CPU in f32, 2 epochs, up to step 4",
        "initial weights: SAM's decoder from the store, the rest random by the seed 1234",
    ];
    assert_eq!(lines[..3], expected);
    assert!(lines[3].starts_with("warning: the side network starts from random weights"), "{lines:?}");
    args.resume = true;
    train(&args).unwrap();
    assert!(said.0.lock().unwrap().iter().any(|line| line == "resumes after step 4, 2 epochs are done"));
    let log = std::fs::read_to_string(args.run.join("log.txt")).unwrap();
    assert!(expected.iter().all(|line| log.contains(line)), "{log}");
    for row in &rows {
        let part = format!(
            "Z epoch {}/2: loss {:.4}, dice loss {:.4}, val dice {:.4} (best ",
            row.epoch + 1,
            row.loss,
            row.dice,
            row.val_dice.unwrap()
        );
        assert!(log.contains(&part), "{part} is not in\n{log}");
    }
    assert_eq!(read_record(&args.run).unwrap().store_path, Some(args.store.clone()));
}

#[test]
fn resuming_with_other_settings_or_another_store_shows_both() {
    let (folder, mut args) = workplace();
    args.config.max_steps = Some(0);
    train(&args).unwrap();
    args.resume = true;

    let mut other = args.clone();
    other.config.lr = 0.5;
    let error = train(&other).unwrap_err().to_string();
    assert!(error.contains("lr differs") && error.contains("0.001") && error.contains("0.5"), "{error}");

    let mut other = args.clone();
    other.store = folder.path().join("other.zarr");
    let other_id = write_store(&other.store, StoreDtype::F32, AugmentPolicy::Flips, 2).attributes().cache_id.clone();
    let id = Store::open(&args.store).unwrap().attributes().cache_id.clone();
    let error = train(&other).unwrap_err().to_string();
    assert!(error.contains("cache_id") && error.contains(&id) && error.contains(&other_id), "{error}");
    assert!(error.contains("weights.seed: the run's 1, this one's 2"), "{error}");
    let weights = WeightSource::Run { folder: args.run.clone(), checkpoint: RunCheckpoint::Last };
    let error = predict(&other.store, weights.clone(), 2).unwrap_err().to_string();
    assert!(error.contains("weights.seed: run 1, store 2") && error.contains("other.zarr"), "{error}");
    // Other variants of the same encoder's tensors are accepted.
    let more = folder.path().join("more.zarr");
    write_store(&more, StoreDtype::F32, AugmentPolicy::None, 1);
    assert!(predict(&more, weights, 2).is_ok());

    let mut other = args.clone();
    other.init = Some(args.run.join(CHECKPOINT));
    let error = train(&other).unwrap_err().to_string();
    assert!(error.contains("--init differs") && error.contains("none") && error.contains(CHECKPOINT), "{error}");

    // A state that is cut short names its file.
    let path = args.run.join(RESUME_STATE);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = train(&args).unwrap_err().to_string();
    assert!(error.contains(RESUME_STATE), "{error}");
}

#[test]
fn a_diverging_run_stops_and_keeps_its_last_good_checkpoint() {
    let (_folder, mut args) = workplace();
    args.config.optimizer = OptimizerKind::Sgd;
    args.config.lr = 1e30;
    args.config.warmup = 0;
    args.checkpoint_every = Some(1);
    let error = train(&args).unwrap_err();
    let TrainError::Diverged { step, lr, checkpoint_step, .. } = &error else { panic!("{error}") };
    assert_eq!(*lr, 1e30);
    assert!(checkpoint_step <= step, "{error}");
    let message = error.to_string();
    assert!(message.contains("step") && message.contains("1e30") && message.contains(CHECKPOINT), "{message}");
    for (name, tensor) in load(args.run.join(CHECKPOINT), &Device::Cpu).unwrap() {
        let sum = tensor.to_dtype(candle_core::DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{name}");
    }
}

#[test]
fn test_cases_never_validate_and_are_never_read() {
    let (folder, mut args) = workplace();
    for (cases, word) in [(vec![TEST_CASE.0], "test case"), (vec!["0009"], "0009"), (vec!["0005", "0006", "0007"], "held out")] {
        args.config.val_cases = cases.into_iter().map(String::from).collect();
        let error = train(&args).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(!args.run.exists());
    }
    // Every byte of the test arrays is damaged, and training with validation does not notice.
    let mut damaged = 0;
    for array in ["embeddings", "images", "labels"] {
        damaged += damage(&folder.path().join("store.zarr/test").join(array));
    }
    assert!(damaged > 0);
    args.config.val_cases = vec!["0005".into()];
    let summary = train(&args).unwrap();
    assert!(summary.best_val_dice.is_some());
    assert!(args.run.join(BEST_CHECKPOINT).exists());
    let weights = WeightSource::Run { folder: args.run.clone(), checkpoint: RunCheckpoint::Last };
    assert!(predict(&args.store, weights, 2).is_err());
}

/// Overwrites the chunks below a folder with ones, and counts them.
fn damage(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += damage(&path);
        } else if path.file_name().unwrap() != "zarr.json" {
            let length = std::fs::metadata(&path).unwrap().len() as usize;
            std::fs::write(&path, vec![0xffu8; length]).unwrap();
            count += 1;
        }
    }
    count
}

#[test]
fn folds_partition_the_training_cases() {
    let (_folder, args) = workplace();
    let store = TrainingSplit::open(&args.store).unwrap();
    let mut all: Vec<String> =
        (1..=3).flat_map(|fold| fold_cases(&store, &format!("{fold}/3"), &Groups::default()).unwrap()).collect();
    all.sort();
    assert_eq!(all, ["0005", "0006", "0007"]);
    assert_eq!(fold_cases(&store, "1/2", &Groups::default()).unwrap(), ["0005", "0007"]);
    for wrong in ["0/3", "4/3", "1/1", "x", "1/4"] {
        assert!(fold_cases(&store, wrong, &Groups::default()).unwrap_err().to_string().contains(wrong));
    }
}

fn export_args(run: &Path, out: PathBuf) -> ExportArgs {
    ExportArgs { run: run.into(), checkpoint: RunCheckpoint::BestOrLast, out, force: false, image_encoder: None }
}

#[test]
fn init_takes_what_export_wrote() {
    let (folder, mut args) = workplace();
    args.config.max_steps = Some(2);
    train(&args).unwrap();
    let trained = tensors(&args.run.join(CHECKPOINT));
    let encoder = vec![(
        "image_encoder.pos_embed".to_string(),
        Tensor::zeros((1, 4, 4, 768), candle_core::DType::F32, &Device::Cpu).unwrap(),
    )];
    for (name, image_encoder) in [("m.safetensors", None), ("m.pth", None), ("whole.pth", Some(encoder))] {
        let out = folder.path().join(name);
        export(&ExportArgs { image_encoder, ..export_args(&args.run, out.clone()) }).unwrap();
        let error = words(&export(&export_args(&args.run, out.clone())).unwrap_err());
        assert!(error.contains(name) && error.contains("--force"), "{error}");
        let mut taken = TrainArgs { run: folder.path().join(format!("from-{name}")), init: Some(out), ..args.clone() };
        taken.config.max_steps = Some(0);
        train(&taken).unwrap();
        assert_eq!(tensors(&taken.run.join(CHECKPOINT)), trained, "{name}");
        assert_eq!(read_record(&taken.run).unwrap().inputs.init.unwrap().name, name);
    }
    let error = export(&export_args(&args.run, folder.path().join("m.bin"))).unwrap_err().to_string();
    assert!(error.contains("m.bin") && error.contains(".pth"), "{error}");
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let (folder, mut args) = workplace();
    args.config.max_steps = Some(0);
    train(&args).unwrap();
    let whole: Vec<(String, Tensor)> = load(args.run.join(CHECKPOINT), &Device::Cpu).unwrap().into_iter().collect();
    let attempt = |file: &str, tensors: Vec<(String, Tensor)>, cnn: bool| {
        let path = folder.path().join(file);
        save_safetensors(&path, &tensors).unwrap();
        let (cnn_checkpoint, init) = if cnn { (Some(path), None) } else { (None, Some(path)) };
        train(&TrainArgs { run: folder.path().join(format!("run-{file}")), cnn_checkpoint, init, ..args.clone() })
    };
    let key = "sam.mask_decoder.iou_token.weight";
    let zeros = |n: usize| Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu).unwrap();

    let missing = whole.iter().filter(|(name, _)| name != key).cloned().collect();
    let error = attempt("missing.safetensors", missing, false).unwrap_err().to_string();
    assert!(error.contains("missing.safetensors") && error.contains(key), "{error}");

    let mut extra = whole.clone();
    extra.push(("sam.surprise".into(), zeros(1)));
    let error = attempt("extra.safetensors", extra, false).unwrap_err().to_string();
    assert!(error.contains("extra.safetensors") && error.contains("sam.surprise"), "{error}");

    let shaped = whole.iter().map(|(name, tensor)| (name.clone(), if name == key { zeros(7) } else { tensor.clone() })).collect();
    let error = attempt("shape.safetensors", shaped, false).unwrap_err().to_string();
    assert!(error.contains(key) && error.contains("[7]") && error.contains("[1, 256]"), "{error}");

    // With the prefix `module.` and the parts that stage two does not use, it is accepted.
    let mut wrapped: Vec<(String, Tensor)> =
        whole.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.clone())).collect();
    for name in
        ["sam.image_encoder.pos_embed", "sam_encoder.pos_embed", "CNN_encoder.layer4.0.conv1.weight", "CNN_encoder.fc.bias"]
    {
        wrapped.push((format!("module.{name}"), zeros(3)));
    }
    attempt("wrapped.safetensors", wrapped, false).unwrap();

    // torchvision's names, as in an older checkpoint without step counters.
    let cnn = |scale: f64| -> Vec<(String, Tensor)> {
        let parts = whole.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("CNN_encoder.")?.to_string(), tensor)));
        let parts = parts.filter(|(name, _)| !name.ends_with("num_batches_tracked"));
        let mut parts: Vec<_> = parts.map(|(name, tensor)| (name, (tensor * scale).unwrap())).collect();
        parts.push(("layer4.0.conv1.weight".into(), zeros(1)));
        parts.push(("fc.bias".into(), zeros(1)));
        parts
    };
    save_pth(folder.path().join("resnet18.pth"), &cnn(0.5)).unwrap();
    let taken = TrainArgs {
        run: folder.path().join("with-cnn"),
        cnn_checkpoint: Some(folder.path().join("resnet18.pth")),
        ..args.clone()
    };
    train(&taken).unwrap();
    let [plain, taken] = [&args.run, &taken.run].map(|run| load(run.join(CHECKPOINT), &Device::Cpu).unwrap());
    let first = |tensors: &HashMap<String, Tensor>| {
        tensors["CNN_encoder.conv1.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    };
    assert_eq!(first(&taken), 0.5 * first(&plain));

    let mut deeper = cnn(1.0);
    deeper.push(("layer1.2.conv1.weight".into(), zeros(1)));
    let error = attempt("resnet34.safetensors", deeper, true).unwrap_err().to_string();
    assert!(error.contains("resnet34.safetensors") && error.contains("layer1.2.conv1.weight"), "{error}");
}

#[test]
fn augmentation_that_the_store_lacks_is_refused() {
    let (_folder, mut args) = workplace();
    args.config.augment = Some(AugmentPolicy::Reference);
    let error = words(&train(&args).unwrap_err());
    assert!(error.contains("rotate-20") && error.contains("precompute"), "{error}");
}

fn predict(store: &Path, weights: WeightSource, batch_size: usize) -> Result<Vec<PredictedMask>, TrainError> {
    let store = Store::open(store)?;
    let ensemble = Ensemble::load(&[weights], None, &store, &Device::Cpu)?;
    let request = |case| CaseRequest { split: Split::Test, case, batch_size };
    store.cases(Split::Test).iter().map(|case| ensemble.predict_case(&store, request(case), |_| ())).collect()
}

#[test]
fn predictions_have_the_scans_shape_and_do_not_depend_on_the_batch() {
    let (folder, mut args) = workplace();
    args.config.epochs = 16;
    args.config.augment = Some(AugmentPolicy::None);
    train(&args).unwrap();
    let run = || WeightSource::Run { folder: args.run.clone(), checkpoint: RunCheckpoint::BestOrLast };
    let masks = predict(&args.store, run(), 1).unwrap();
    assert_eq!(masks.len(), 1);
    let PredictedMask { case, mask, shape, spacing_mm } = &masks[0];
    assert_eq!(*spacing_mm, Some([3.0, 0.8, 0.7]));
    assert_eq!(case, TEST_CASE.0);
    assert_eq!(*shape, [TEST_CASE.1, SCAN_SIZE[0] as usize, SCAN_SIZE[1] as usize]);
    assert_eq!(mask.len(), shape.iter().product::<usize>());
    assert!(mask.iter().all(|&class| (class as usize) < NUM_CLASSES));
    assert!(mask.iter().any(|&class| class > 0), "the trained model finds nothing");
    assert_eq!(masks, predict(&args.store, run(), 2).unwrap());

    let out = folder.path().join("m.pth");
    export(&export_args(&args.run, out.clone())).unwrap();
    assert_eq!(masks, predict(&args.store, WeightSource::Checkpoint(out), 2).unwrap());

    let arm = sam_ladder_schemas::train::Arm::SamOnly;
    let untrained = predict(&args.store, WeightSource::ZeroShot { seed: 1, arm }, 2).unwrap();
    assert_ne!(untrained, masks);
    let nowhere = WeightSource::Run { folder: folder.path().join("nowhere"), checkpoint: RunCheckpoint::Last };
    assert!(predict(&args.store, nowhere, 2).unwrap_err().to_string().contains("nowhere"));
}
