//! `--ladder gated`: which rungs are read, in training and in evaluation; what a run keeps and records of them; and what is refused.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use sam_ladder_cache::{Batch, ReadMode, Store};
use sam_ladder_eval::RunCurves;
use sam_ladder_formats::rows::read_rows_with;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::store::RUNG_PROJECTION;
use sam_ladder_schemas::tables::{RUNG_GATE, StepRow};
use sam_ladder_schemas::train::{Arm, CHECKPOINT, EPOCHS_TABLE, RESUME_STATE, STEPS_TABLE, SliceOrder, TrainConfig};
use sam_ladder_schemas::train_choices::LadderKind;
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::model::{LadderSam, OfSam};
use sam_ladder_train::run::{BatchShape, TrainArgs, input_tensors, read_info, read_record, rung_tensor, train};
use sam_ladder_train::{Ensemble, RunCheckpoint, WeightSource, ladder_loss, load_model};
use std::fs;
use std::path::Path;
use store::{NUM_CLASSES, RUNG_CHANNELS, TEST_CASE, write_store_of, write_store_with_rungs};
use tempfile::TempDir;
use train_args::train_args;

const BLOCKS: [usize; 3] = [1, 4, 11];
const AUGMENT: [AugmentPolicy; 2] = [AugmentPolicy::Flips, AugmentPolicy::None];

fn gated(epochs: usize) -> TrainConfig {
    TrainConfig { epochs, batch_size: 3, warmup: 0, ladder: LadderKind::Gated, ..TrainConfig::default() }
}

fn workplace(dtype: StoreDtype) -> (TempDir, TrainArgs) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.zarr");
    write_store_with_rungs(&store, dtype, AUGMENT, 1, &BLOCKS);
    let args = train_args(&store, folder.path().join("run"), gated(1));
    (folder, args)
}

fn of_run(run: &Path) -> WeightSource {
    WeightSource::Run { folder: run.into(), checkpoint: RunCheckpoint::Last }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

/// Images, embeddings, rungs and labels of rows in their plain variant.
fn by_hand(store: &Store, split: Split, rows: &[u32]) -> (Tensor, Tensor, Tensor, Vec<u8>) {
    let picks: Vec<(u32, u32)> = rows.iter().map(|&row| (row, 0)).collect();
    let mut batch = Batch::with_rungs();
    store.read_batch(split, &picks, &mut batch).unwrap();
    let shape = BatchShape { rungs: store.config().stored_rungs(), ..BatchShape::of(store.config()) };
    let (images, embeddings) = input_tensors(&batch, rows.len(), shape, &Device::Cpu).unwrap();
    let rungs = rung_tensor(&batch, rows.len(), shape, &Device::Cpu).unwrap().unwrap();
    (images, embeddings, rungs, batch.labels)
}

/// Resumed, a run has the same bytes; its gates are columns of the table of steps, and start at a half.
#[test]
fn a_run_resumes_in_the_same_bits_and_records_its_gates() {
    let (folder, mut straight) = workplace(StoreDtype::F16);
    (straight.config.epochs, straight.config.ema, straight.config.val_cases) = (2, 0.5, vec!["0006".into()]);
    let summary = train(&straight).unwrap();
    for steps in [1, 2] {
        let mut stopped = TrainArgs { run: folder.path().join(format!("stopped-{steps}")), ..straight.clone() };
        stopped.config.max_steps = Some(steps);
        train(&stopped).unwrap();
        (stopped.config.max_steps, stopped.resume) = (None, true);
        train(&stopped).unwrap();
        for file in [RESUME_STATE, CHECKPOINT, STEPS_TABLE, RUNG_PROJECTION] {
            let [left, right] = [&straight.run, &stopped.run].map(|run| fs::read(run.join(file)).unwrap());
            assert!(left == right, "{file} differs");
        }
    }

    let (rows, gates) = read_rows_with::<StepRow>(&straight.run.join(STEPS_TABLE), RUNG_GATE).unwrap();
    let names: Vec<&str> = gates.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["gate_block_1", "gate_block_4", "gate_block_11"]);
    let state = load(straight.run.join(RESUME_STATE), &Device::Cpu).unwrap();
    for ((block, (name, column)), last) in BLOCKS.iter().zip(&gates).zip(&summary.rung_gates) {
        assert_eq!(column.len(), rows.len());
        // A step of AdamW at a learning rate of 1e-3 moves α by about as much.
        assert!((column[0] - 0.5).abs() < 1e-3 && column[0] != 0.5, "{name}: {column:?}");
        let alpha = values(&state[&format!("model/CNN_encoder.ladder.{block}.alpha")])[0];
        assert_eq!(column.last(), Some(last));
        assert!((last - 1.0 / (1.0 + (-alpha).exp())).abs() < 1e-6, "{name}: {last}, α is {alpha}");
    }
    let curves = RunCurves::read(&straight.run).unwrap();
    assert_eq!(curves.rung_gates[2].0, "block 11");
    assert_eq!(curves.rung_gates[2].1[1], [1.0, f64::from(gates[2].1[1])]);
    let events = fs::read_dir(straight.run.join("tensorboard")).unwrap().next().unwrap().unwrap().path();
    let events = fs::read(events).unwrap();
    for name in names {
        let tag = format!("info/{name}");
        assert!(events.windows(tag.len()).any(|bytes| bytes == tag.as_bytes()), "{tag}");
    }
    assert!(fs::read_to_string(straight.run.join("log.txt")).is_ok());
}

/// The run keeps the store's projection, and its record and its model are bound to it.
#[test]
fn a_run_keeps_the_projection_of_its_store() {
    let (_folder, args) = workplace(StoreDtype::F32);
    train(&args).unwrap();
    let kept = fs::read(args.run.join(RUNG_PROJECTION)).unwrap();
    assert!(kept == fs::read(args.store.join(RUNG_PROJECTION)).unwrap());
    let store = Store::open(&args.store).unwrap();
    let sha256 = store.rung_projection_sha256().unwrap();
    let record = read_record(&args.run).unwrap();
    assert_eq!(record.inputs.rung_projection.unwrap().sha256, sha256);
    let info = read_info(&args.run.join(CHECKPOINT)).unwrap().unwrap();
    assert_eq!(info.rung_projection.as_deref(), Some(sha256));
    assert_eq!(
        (info.ladder.unwrap().blocks().collect::<Vec<_>>(), info.ladder.unwrap().channels()),
        (BLOCKS.into(), RUNG_CHANNELS)
    );
    // A run without a ladder has no trace of it.
    let mut plain = TrainArgs { run: args.run.with_file_name("plain"), ..args };
    plain.config.ladder = LadderKind::None;
    train(&plain).unwrap();
    assert!(!plain.run.join(RUNG_PROJECTION).exists());
    for file in ["config.json", CHECKPOINT] {
        let bytes = fs::read(plain.run.join(file)).unwrap();
        assert!(!bytes.windows(6).any(|word| word == b"ladder") || file == CHECKPOINT && no_ladder(&bytes), "{file}");
    }
    let (_, gates) = read_rows_with::<StepRow>(&plain.run.join(STEPS_TABLE), RUNG_GATE).unwrap();
    assert!(gates.is_empty());
}

/// Whether a checkpoint's header names no ladder: the program's own name, `sam_ladder`, does not count.
fn no_ladder(bytes: &[u8]) -> bool {
    let header = String::from_utf8_lossy(&bytes[8..8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize]);
    !header.replace("sam_ladder", "").contains("ladder")
}

/// The loss of a run's first step is that of its first model on the rungs of its slices, read by hand; wherever they are kept.
#[test]
fn a_step_takes_the_rungs_of_its_slices() {
    for (dtype, mode, neighbours) in
        [(StoreDtype::F32, ReadMode::Stream, 0), (StoreDtype::Q8, ReadMode::Resident, 1), (StoreDtype::Bf16, ReadMode::Stream, 1)]
    {
        let (folder, mut args) = workplace(dtype);
        args.config = TrainConfig {
            order: SliceOrder::Sequential,
            augment: Some(AugmentPolicy::None),
            max_steps: Some(0),
            neighbours,
            ..args.config
        };
        train(&args).unwrap();
        let mut one = TrainArgs { run: folder.path().join("one"), read_mode: mode, ..args.clone() };
        one.config.max_steps = Some(1);
        train(&one).unwrap();
        let found = read_rows_with::<StepRow>(&one.run.join(STEPS_TABLE), RUNG_GATE).unwrap().0[0].loss;

        let store = Store::open(&args.store).unwrap();
        let model = load_model(&of_run(&args.run), &store, &Device::Cpu).unwrap();
        let (images, own, rungs, labels) = by_hand(&store, Split::Train, &[0, 1, 2]);
        let low = store.config().low_res_size();
        let labels = Tensor::from_vec(labels, (3, low, low), &Device::Cpu).unwrap();
        // At the start the sum over three slices is the slice itself.
        let embeddings = if neighbours == 0 { own } else { Tensor::stack(&[&own, &own, &own], 1).unwrap() };
        let loss = |model: &LadderSam, rungs: &Tensor| {
            let of_sam = OfSam { embeddings: &embeddings, rungs: Some(rungs) };
            let pass = model.forward_train(&images, of_sam).unwrap();
            ladder_loss(&pass.low_res_logits, &labels, NUM_CLASSES, 0.8).unwrap().read().unwrap()[0]
        };
        let expected = loss(&model, &rungs);
        let off = |other: f32| (other - expected).abs() / expected;
        assert!(off(found) < 1e-6, "{dtype:?}: {found}, expected {expected}");
        // Another order of rungs, and those of other slices, have other losses.
        let reversed = Tensor::cat(&[2, 1, 0].map(|at| rungs.narrow(1, at, 1).unwrap()), 1).unwrap();
        let (.., others, _) = by_hand(&store, Split::Train, &[3, 4, 5]);
        for other in [reversed, others] {
            let other = loss(&model, &other);
            assert!(off(other) > 1e-5, "{dtype:?}: {other}, expected {expected}");
        }
    }
}

/// Models with a ladder and without predict together, each from what it takes, also over reflections.
#[test]
fn models_with_and_without_a_ladder_predict_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.zarr");
    let store = write_store_with_rungs(&path, StoreDtype::F16, [AugmentPolicy::Flips; 2], 1, &BLOCKS);
    let climbing = train_args(&path, folder.path().join("climbing"), gated(1));
    let mut plain = TrainArgs { run: folder.path().join("plain"), ..climbing.clone() };
    plain.config.ladder = LadderKind::None;
    let mut both_ways = TrainArgs { run: folder.path().join("both"), ..climbing.clone() };
    both_ways.config.neighbours = 1;
    let runs = [climbing, plain, both_ways];
    runs.iter().for_each(|args| drop(train(args).unwrap()));
    let rows: Vec<u32> = store.case_rows(Split::Test, TEST_CASE.0).unwrap().collect();
    let sources = runs.each_ref().map(|args| of_run(&args.run));
    let loaded = |source: &WeightSource| load_model(source, &store, &Device::Cpu).unwrap();
    for reflections in [None, Some(Split::Test)] {
        let all = Ensemble::load(&sources, reflections, &store, &Device::Cpu).unwrap();
        let found = all.mean_logits(&store, Split::Test, &rows).unwrap();
        for (source, found) in sources.iter().zip(&found) {
            let lone = Ensemble::of(vec![loaded(source)], reflections.is_some());
            assert_eq!(values(found), values(&lone.mean_logits(&store, Split::Test, &rows).unwrap()[0]));
        }
        assert_ne!(values(&found[0]), values(&found[1]));
    }
    let (images, embeddings, rungs, _) = by_hand(&store, Split::Test, &rows);
    let lone = Ensemble::of_one(loaded(&sources[0])).mean_logits(&store, Split::Test, &rows).unwrap();
    let by_hand = loaded(&sources[0]).forward(&images, OfSam { embeddings: &embeddings, rungs: Some(&rungs) }).unwrap();
    assert_eq!(values(&lone[0]), values(&by_hand));
}

#[test]
fn what_has_no_rungs_or_others_is_refused_before_anything_is_written() {
    let (folder, args) = workplace(StoreDtype::F32);
    let at = |name: &str| folder.path().join(name);
    let refused = |args: &TrainArgs| {
        let error = train(args).unwrap_err();
        common::with_hint(&error, error.hint())
    };
    write_store_of(&at("plain.zarr"), StoreDtype::F32, AUGMENT, 1);
    let plain = TrainArgs { store: at("plain.zarr"), ..args.clone() };
    let error = refused(&plain);
    assert!(error.contains("plain.zarr has no rungs") && error.contains("precompute --rungs 2,5,8,11"), "{error}");
    for arm in [Arm::CnnOnly, Arm::SamOnly] {
        let mut other = args.clone();
        other.config.arm = arm;
        assert!(refused(&other).contains("ladder: the ladder mixes SAM's rungs"));
    }
    assert!(!args.run.exists());

    train(&args).unwrap();
    // The same config and sources, so the same cache_id, and another projection: as of a store that has grown and one that was made at once.
    write_store_with_rungs(&at("other.zarr"), StoreDtype::F32, AUGMENT, 1, &BLOCKS);
    replace_projection(&at("other.zarr"));
    let other = Store::open(at("other.zarr")).unwrap();
    assert_eq!(other.attributes().cache_id, Store::open(&args.store).unwrap().attributes().cache_id);
    let error = load_model(&of_run(&args.run), &other, &Device::Cpu).err().unwrap();
    let error = common::with_hint(&error, error.hint());
    assert!(error.contains("was trained on rungs that") && error.contains("projection"), "{error}");
    let resumed = TrainArgs { store: at("other.zarr"), resume: true, ..args.clone() };
    assert!(refused(&resumed).contains("SHA-256 of the rungs' projection differs"), "{}", refused(&resumed));

    for (name, blocks) in [("blocks.zarr", &BLOCKS[..2]), ("none.zarr", &[][..])] {
        let other = write_store_with_rungs(&at(name), StoreDtype::F32, AUGMENT, 1, blocks);
        for source in [of_run(&args.run), WeightSource::Checkpoint(args.run.join(CHECKPOINT))] {
            let error = load_model(&source, &other, &Device::Cpu).err().unwrap().to_string();
            assert!(error.contains("was trained on rungs that"), "{error}");
        }
    }
    // A model without a ladder takes any.
    let mut without = TrainArgs { run: at("without"), ..args };
    without.config.ladder = LadderKind::None;
    train(&without).unwrap();
    load_model(&of_run(&without.run), &other, &Device::Cpu).unwrap();
    let epochs = |run: &Path| fs::read(run.join(EPOCHS_TABLE)).unwrap();
    assert!(!epochs(&without.run).is_empty());
}

/// Puts another projection into a store, as if it had been made with it.
fn replace_projection(store: &Path) {
    let path = store.join(RUNG_PROJECTION);
    let before = fs::read(&path).unwrap();
    let mut tensors = load(&path, &Device::Cpu).unwrap();
    for tensor in tensors.values_mut() {
        *tensor = (&*tensor * 2.0).unwrap();
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let [old, new] = [before, fs::read(&path).unwrap()].map(|bytes| sam_ladder_formats::hash::sha256_hex(&bytes));
    for name in ["zarr.json", "manifest.json"] {
        let text = fs::read_to_string(store.join(name)).unwrap().replace(&old, &new);
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let attributes: sam_ladder_schemas::store::StoreAttributes = serde_json::from_value(json["attributes"].clone()).unwrap();
        json["attributes"]["checksum"] = attributes.expected_checksum().into();
        fs::write(store.join(name), format!("{}\n", serde_json::to_string_pretty(&json).unwrap())).unwrap();
    }
}
