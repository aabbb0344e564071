//! A run's folder: who may write there, what it records, checksums, and what a resume compares.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/run.rs"]
mod run;
#[path = "common/said.rs"]
mod said;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use run::{export_args, predict, words, workplace};
use said::Said;
use sam_ladder_cache::Store;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_formats::state_dict::save_safetensors;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::tables::{EpochRow, StepRow};
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, EPOCHS_TABLE, RESUME_STATE, STEPS_TABLE};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{TrainArgs, read_record, train};
use sam_ladder_train::{ExportArgs, RunCheckpoint, TrainError, WeightSource, export};
use std::sync::Arc;
use store::write_store;

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
    let mut lines = said.take();
    let on_cpu = args.device.is_cpu();
    if !on_cpu {
        // Where the items lie is said first.
        lines.remove(0);
    }
    let expected = [
        "trains on 2 cases (6 slices); holds out 1 case (2 slices) for validation: 0007",
        if on_cpu { "on the CPU in f32, 2 epochs, up to step 4" } else { "on cuda:0 in f32, 2 epochs, up to step 4" },
        "initial weights: SAM's decoder from the store, the rest random by the seed 1234",
    ];
    assert_eq!(lines[..3], expected);
    assert!(lines[3].starts_with("warning: the side network starts from random weights"), "{lines:?}");
    args.resume = true;
    train(&args).unwrap();
    assert!(said.take().contains(&"resumes after step 4, 2 epochs done".to_string()));
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
    assert!(error.contains("weights.seed: the run has 1, the store has 2") && error.contains("other.zarr"), "{error}");
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
