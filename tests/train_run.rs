//! Training runs on a made-up store: start, stop, resume, learn, diverge; which cases are trained on.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/run.rs"]
mod run;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::Device;
use candle_core::safetensors::load;
use run::{args, predict, tensors, words, workplace};
use sam_ladder_cache::TrainingSplit;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::tables::{EpochRow, StepRow};
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, EPOCHS_TABLE, OptimizerKind, RESUME_STATE, STEPS_TABLE};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{CudaGraph, DeviceStore, TrainArgs, fold_cases, read_record, train};
use sam_ladder_train::{Groups, RunCheckpoint, TrainError, WeightSource};
use std::path::Path;
use store::{TEST_CASE, write_store};

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
/// with `make test-cuda-host-whole` and `make gpu-check` it has.)
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

/// A recorded and repeated step equals a plain one. (On the CPU a graph is refused; `make test-cuda-host-whole` and `make gpu-check` record one.)
#[test]
fn a_run_through_a_graph_is_the_run() {
    let (folder, mut plain) = workplace();
    // 6 slices in batches of 3: two plain steps, one both ways, three through the graph.
    plain.config.val_cases = vec!["0007".into()];
    plain.config.epochs = 3;
    let graphed = TrainArgs { run: folder.path().join("graphed"), cuda_graph: CudaGraph::On, ..plain.clone() };
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

#[test]
fn augmentation_that_the_store_lacks_is_refused() {
    let (_folder, mut args) = workplace();
    args.config.augment = Some(AugmentPolicy::Reference);
    let error = words(&train(&args).unwrap_err());
    assert!(error.contains("rotate-20") && error.contains("precompute"), "{error}");
}
