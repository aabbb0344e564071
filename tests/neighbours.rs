//! `--neighbours 1`: which slices are read around each, in training and in prediction.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use sam_ladder_cache::{Batch, ReadMode, Store, TrainingSplit, Values};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_formats::state_dict::save_safetensors;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::{Arm, CHECKPOINT, STEPS_TABLE, SliceOrder, TrainConfig};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{BatchShape, TrainArgs, input_tensors, train};
use sam_ladder_train::{Ensemble, RunCheckpoint, WeightSource, ladder_loss, load_model};
use std::path::{Path, PathBuf};
use store::{IMAGE_SIZE, NUM_CLASSES, TEST_CASE, write_store_of};
use tempfile::TempDir;
use train_args::train_args;

/// Of the cases' 3, 3 and 2 slices, the rows before and after each.
const AROUND: [[u32; 2]; 8] = [[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5], [6, 7], [6, 7]];
/// Weights of the slices before, at and after.
const WEIGHTS: [f32; 3] = [2.0, 0.25, -0.5];

fn embeddings(store: &Store, split: Split, picks: &[(u32, u32)]) -> Vec<f32> {
    let mut batch = Batch::default();
    store.read_batch(split, picks, &mut batch).unwrap();
    batch.embeddings.to_vec()
}

#[test]
fn the_slices_around_are_of_the_same_case_and_variant() {
    for dtype in [StoreDtype::F32, StoreDtype::F16, StoreDtype::Q8] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.zarr");
        let store = write_store_of(&path, dtype, [AugmentPolicy::Flips, AugmentPolicy::None], 1);
        assert_eq!((0..8).map(|row| store.around(Split::Train, row)).collect::<Vec<_>>(), AROUND);
        assert_eq!([0, 1].map(|row| store.around(Split::Test, row)), [[0, 1]; 2]);

        let picks = [(2, 1), (3, 0), (7, 4)];
        let around = [(1, 1), (2, 1), (3, 0), (4, 0), (6, 4), (7, 4)];
        let expected = embeddings(&store, Split::Train, &around);
        let mut batch = Batch::default();
        store.read_batch_around(Split::Train, &picks, &mut batch).unwrap();
        assert_eq!(batch.around.to_vec(), expected, "{dtype:?}");
        assert_eq!(batch.embeddings.to_vec(), embeddings(&store, Split::Train, &picks));
        store.read_batch(Split::Train, &picks, &mut batch).unwrap();
        assert!(batch.around.is_empty());

        let split = TrainingSplit::open(&path).unwrap();
        for mode in [ReadMode::Stream, ReadMode::Resident] {
            let reader = split.reader(mode);
            let mut values = Values::default();
            // The second time from memory.
            for _ in 0..2 {
                reader.read_embeddings(&around, &mut values).unwrap();
                assert_eq!(values.to_vec(), expected, "{dtype:?} {mode:?}");
            }
            assert_eq!(reader.around(5), [4, 5]);
            let absent = reader.read_embeddings(&[(8, 0)], &mut values).unwrap_err().to_string();
            assert!(absent.contains("slice 8, variant 0"), "{absent}");
        }
    }
}

/// A store, and the arguments of runs whose model sums the slices by [`WEIGHTS`]; and of the same model without neighbours.
struct Runs {
    folder: TempDir,
    summing: TrainArgs,
    plain: TrainArgs,
}

impl Runs {
    fn new(dtype: StoreDtype) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store.zarr");
        write_store_of(&store, dtype, [AugmentPolicy::Flips, AugmentPolicy::None], 1);
        let config = TrainConfig {
            epochs: 1,
            batch_size: 3,
            warmup: 0,
            max_steps: Some(0),
            order: SliceOrder::Sequential,
            augment: Some(AugmentPolicy::None),
            // Without the side network the embeddings decide everything.
            arm: Arm::SamOnly,
            ..TrainConfig::default()
        };
        let plain = train_args(&store, folder.path().join("plain"), config);
        train(&plain).unwrap();
        let mut weights = load(plain.run.join(CHECKPOINT), &Device::Cpu).unwrap();
        let around = Tensor::new(&WEIGHTS, &Device::Cpu).unwrap().broadcast_as((256, 3)).unwrap().contiguous().unwrap();
        weights.insert("sam.neighbours.weight".into(), around);
        let init = folder.path().join("summing.safetensors");
        save_safetensors(&init, &weights.into_iter().collect::<Vec<_>>()).unwrap();
        let mut summing = TrainArgs { run: folder.path().join("summing"), init: Some(init), ..plain.clone() };
        summing.config.neighbours = 1;
        train(&summing).unwrap();
        Runs { folder, summing, plain }
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn of_run(run: &Path) -> WeightSource {
    WeightSource::Run { folder: run.into(), checkpoint: RunCheckpoint::Last }
}

/// Images and labels of rows in their plain variant, and the sums of the embeddings around them.
fn by_hand(store: &Store, split: Split, rows: &[u32], around: &[[u32; 2]]) -> (Tensor, Tensor, Tensor) {
    let plain = |rows: Vec<u32>| rows.into_iter().map(|row| (row, 0)).collect::<Vec<_>>();
    let mut batch = Batch::default();
    store.read_batch(split, &plain(rows.to_vec()), &mut batch).unwrap();
    let (images, own) = input_tensors(&batch, rows.len(), BatchShape::of(store.config()), &Device::Cpu).unwrap();
    let of = |side: usize| {
        let values = embeddings(store, split, &plain(around.iter().map(|rows| rows[side]).collect()));
        Tensor::from_vec(values, own.shape(), &Device::Cpu).unwrap()
    };
    let part = |tensor: &Tensor, weight: f32| (tensor * f64::from(weight)).unwrap();
    let sum = (part(&of(0), WEIGHTS[0]) + part(&own, WEIGHTS[1])).unwrap() + part(&of(1), WEIGHTS[2]);
    let low = IMAGE_SIZE / 4;
    (images, sum.unwrap(), Tensor::from_vec(batch.labels, (rows.len(), low, low), &Device::Cpu).unwrap())
}

/// The loss of a run's first step is that of the model without neighbours on sums by hand, for the slices of each case.
#[test]
fn a_step_sums_the_slices_around() {
    for (dtype, mode) in [(StoreDtype::F32, ReadMode::Stream), (StoreDtype::Q8, ReadMode::Resident)] {
        let runs = Runs::new(dtype);
        let store = Store::open(&runs.plain.store).unwrap();
        for (case, rows) in [("0005", 0..3u32), ("0006", 3..6), ("0007", 6..8)] {
            let mut args = TrainArgs { run: runs.run(case), read_mode: mode, ..runs.summing.clone() };
            (args.config.max_steps, args.config.train_cases) = (Some(1), vec![case.into()]);
            train(&args).unwrap();
            let found = read_rows::<StepRow>(&args.run.join(STEPS_TABLE)).unwrap()[0].loss;

            let rows: Vec<u32> = rows.collect();
            let model = load_model(&of_run(&runs.plain.run), &store, &Device::Cpu).unwrap();
            let loss = |around: &dyn Fn(u32) -> [u32; 2]| {
                let around: Vec<[u32; 2]> = rows.iter().map(|&row| around(row)).collect();
                let (images, sums, labels) = by_hand(&store, Split::Train, &rows, &around);
                let pass = model.forward_train(&images, &sums).unwrap();
                ladder_loss(&pass.low_res_logits, &labels, NUM_CLASSES, 0.8).unwrap().read().unwrap()[0]
            };
            let expected = loss(&|row| AROUND[row as usize]);
            let off = |other: f32| (other - expected).abs() / expected;
            assert!(off(found) < 1e-6, "{case}: {found}, expected {expected}");
            // Each other choice of rows has another loss: the other way round, themselves, and of the next case.
            let last = rows[rows.len() - 1];
            let over_the_end =
                |row: u32| if row == last { [AROUND[row as usize][0], (row + 1) % 8] } else { AROUND[row as usize] };
            for other in [loss(&|row| AROUND[row as usize].map(|_| row)), loss(&over_the_end)] {
                assert!(off(other) > 1e-5, "{case}: {other}, expected {expected}");
            }
            let [before, after] = [0, 1].map(|side| move |row: u32| AROUND[row as usize][side]);
            let turned = loss(&|row| [after(row), before(row)]);
            assert!(off(turned) > 1e-5, "{case}: {turned}, expected {expected}");
        }
    }
}

/// A model with neighbours and one without predict together, each from its own embeddings.
#[test]
fn a_prediction_sums_the_slices_around() {
    let runs = Runs::new(StoreDtype::F32);
    let store = Store::open(&runs.plain.store).unwrap();
    let rows: Vec<u32> = store.case_rows(Split::Test, TEST_CASE.0).unwrap().collect();
    let sources = [&runs.summing, &runs.plain].map(|args| of_run(&args.run));
    let both = Ensemble::load(&sources, None, &store, &Device::Cpu).unwrap();
    let found = both.mean_logits(&store, Split::Test, &rows).unwrap();
    let plain = load_model(&sources[1], &store, &Device::Cpu).unwrap();
    let (images, sums, _) = by_hand(&store, Split::Test, &rows, &[[0, 1], [0, 1]]);
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = values(&plain.forward(&images, &sums).unwrap());
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let off = values(&found[0]).iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off < 1e-5 * largest, "{off} of {largest}");
    let alone = Ensemble::of_one(plain).mean_logits(&store, Split::Test, &rows).unwrap();
    assert_eq!(values(&found[1]), values(&alone[0]));
    assert_ne!(values(&found[0]), values(&found[1]));
}
