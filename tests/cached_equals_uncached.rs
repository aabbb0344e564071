//! Training from a store gives the same losses as training with the encoder in the loop: up to float32 rounding for a float32 store, within a
//! measured bound for the two 16-bit formats.

#[path = "common/device.rs"]
mod device;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::{Device, Tensor};
use sam_ladder_cache::Store;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_precompute::encoder::ImageEncoder;
use sam_ladder_precompute::phantom::{PhantomConfig, write_phantom};
use sam_ladder_precompute::pipeline::{PrecomputeArgs, run};
use sam_ladder_precompute::preprocess::DataSlice;
use sam_ladder_precompute::scans::{Scan, ScanSource};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::observer::{Silent, silent};
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::{SliceOrder, TrainConfig};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::model::{LadderSam, ModelConfig};
use sam_ladder_train::run::train;
use sam_ladder_train::run::{BatchTensors, StepLosses, StepSettings, train_step};
use sam_ladder_train::run::{Sampler, VariantDraws};
use sam_ladder_train::{InitSources, LadderLoss, Optimizer, initial_weights, learning_rate};
use std::collections::BTreeMap;
use std::path::Path;
use train_args::train_args;

/// Bounds on the relative difference of a loss.
struct Bounds {
    /// For the first step, whose weights are the same: the effect of the number format on the model's inputs.
    first_step: f64,
    /// For any step. AdamW's first updates are nearly the gradients' signs, so they propagate the format's rounding.
    any_step: f64,
}

/// Both runs do the same operations on the same numbers, so only rounding may differ. Measured on AVX2: no bit differs.
const F32: Bounds = Bounds { first_step: 1e-6, any_step: 5e-5 };
/// Measured: 1.2e-5 and 7.0e-3, the cross-entropy's; of the total loss 5.0e-6 and 3.2e-3.
const F16: Bounds = Bounds { first_step: 1e-4, any_step: 3e-2 };
/// Measured: 1.2e-4 and 2.1e-2, the cross-entropy's; of the total loss 4.7e-5 and 7.0e-3.
const BF16: Bounds = Bounds { first_step: 1e-3, any_step: 6e-2 };

const IMAGE_SIZE: usize = 64;
const DATA_SIZE: usize = 40;
const ENCODER_SEED: u64 = 3;

/// Two epochs of 5 slices in batches of 2, with all variants that the stores have.
fn train_config() -> TrainConfig {
    TrainConfig { epochs: 2, batch_size: 2, warmup: 2, order: SliceOrder::Shuffled, ..TrainConfig::default() }
}

fn precompute(scans: &Path, store: &Path, dtype: StoreDtype) {
    let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: ENCODER_SEED });
    config.image_size = IMAGE_SIZE;
    config.data_size = DATA_SIZE;
    config.augment = AugmentPolicy::Reference;
    config.rotation_step = 20;
    config.dtype = dtype;
    let args = PrecomputeArgs {
        scans: scans.into(),
        store: store.into(),
        config,
        checkpoint: None,
        decoder_checkpoint: None,
        batch_size: 4,
        device: Device::Cpu,
        observer: silent(),
    };
    run(&args).unwrap();
}

/// Losses of each step of a run from a store.
fn cached(store: &Path, run: &Path) -> Vec<StepLosses> {
    train(&train_args(store, run, train_config())).unwrap();
    let rows = read_rows::<StepRow>(&run.join("steps.parquet")).unwrap();
    rows.iter().map(|row| StepLosses { total: row.loss, ce: row.ce, dice: row.dice }).collect()
}

/// Losses of the same steps with preprocessing, augmentation and encoder in the loop. Only the store's tables (which say which slice a row is,
/// and which image a variant) and the decoder are read.
fn uncached(scans: &Path, store: &Path) -> Vec<StepLosses> {
    let store = Store::open(store).unwrap();
    let config = train_config();
    let source = ScanSource::open(scans, &store.config().preprocessing).unwrap();
    let entries = source.cases().iter().filter(|entry| entry.split == Split::Train);
    let scans: BTreeMap<String, Scan> = entries.map(|entry| (entry.case.clone(), source.read(entry).unwrap())).collect();
    let encoder = ImageEncoder::random(EncoderArch::VitB, IMAGE_SIZE, ENCODER_SEED, &Device::Cpu).unwrap();

    let model_config = ModelConfig::published(IMAGE_SIZE, store.config().num_classes(), config.arm);
    let sources = InitSources { sam_decoder: store.decoder_path(), cnn_checkpoint: None, init: None, seed: config.seed };
    let weights = initial_weights(&model_config, &sources).unwrap();
    let model = LadderSam::new(&model_config, &weights, &Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(config.optimizer, config.weight_decay, model.trainable()).unwrap();

    let variants = store.variants(Split::Train);
    let slices = store.slices(Split::Train);
    let draws = VariantDraws::new(variants, config.augment, store.config().rotation_step).unwrap();
    let sampler = Sampler::new((0..slices.len() as u32).collect(), draws, config.order, config.seed);
    let max_iterations = config.epochs * slices.len().div_ceil(config.batch_size);
    let mut losses = Vec::new();
    for epoch in 0..config.epochs as u32 {
        for items in sampler.epoch(epoch).chunks(config.batch_size) {
            let (mut images, mut labels) = (Vec::new(), Vec::new());
            for &(row, variant) in items {
                let slice = &slices[row as usize];
                let scan = &scans[&slice.case];
                let [_, h, w] = scan.shape;
                let pixels = slice.slice_index as usize * h * w..(slice.slice_index as usize + 1) * h * w;
                let data = DataSlice::new(&scan.image[pixels.clone()], &scan.label[pixels], [h, w], DATA_SIZE);
                let tensors = data.variant(variants[variant as usize].kind, IMAGE_SIZE);
                images.extend(tensors.image);
                labels.extend(tensors.label);
            }
            let images = Tensor::from_vec(images, (items.len(), 1, IMAGE_SIZE, IMAGE_SIZE), &Device::Cpu).unwrap();
            let labels = Tensor::from_vec(labels, (items.len(), IMAGE_SIZE / 4, IMAGE_SIZE / 4), &Device::Cpu).unwrap();
            let embeddings = encoder.forward(&images).unwrap();
            let lr = learning_rate(losses.len(), config.lr, config.warmup, max_iterations);
            let batch = BatchTensors { images, embeddings, labels, rungs: None };
            losses.push(
                train_step(&model, &mut optimizer, &batch, StepSettings { loss: &LadderLoss::published(config.lambda), lr })
                    .unwrap(),
            );
        }
    }
    losses
}

/// Largest relative difference over the steps of the total loss, cross-entropy and Dice loss.
fn difference(left: &[StepLosses], right: &[StepLosses]) -> [f64; 3] {
    assert_eq!(left.len(), right.len());
    let largest = |value: fn(&StepLosses) -> f32| {
        let pairs = left.iter().zip(right).map(|(left, right)| (f64::from(value(left)), f64::from(value(right))));
        pairs.map(|(left, right)| (left - right).abs() / right.abs()).fold(0.0, f64::max)
    };
    [largest(|losses| losses.total), largest(|losses| losses.ce), largest(|losses| losses.dice)]
}

#[test]
fn a_cached_run_equals_an_uncached_one() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    write_phantom(&PhantomConfig { out: scans.clone(), cases: 2, size: 48, depth: 5, seed: 5 }, &Silent).unwrap();
    let formats = [(StoreDtype::F32, F32), (StoreDtype::F16, F16), (StoreDtype::Bf16, BF16)];
    let mut expected = Vec::new();
    for (dtype, bounds) in formats {
        let store = folder.path().join(format!("{dtype:?}.zarr"));
        precompute(&scans, &store, dtype);
        if expected.is_empty() {
            expected = uncached(&scans, &store);
            assert_eq!(expected.len(), 6);
        }
        let losses = cached(&store, &folder.path().join(format!("run-{dtype:?}")));
        let first_step = difference(&losses[..1], &expected[..1]);
        let any_step = difference(&losses, &expected);
        let words = |found: [f64; 3]| found.map(|found| format!("{found:.1e}")).join(" ");
        println!("{dtype:?}, loss, cross-entropy, Dice loss: first step {}, any step {}", words(first_step), words(any_step));
        let within = |found: [f64; 3], bound: f64| found.iter().all(|&found| found < bound);
        let fits = within(first_step, bounds.first_step) && within(any_step, bounds.any_step);
        assert!(fits, "{dtype:?}: {losses:?}\nexpected {expected:?}");
    }
}
