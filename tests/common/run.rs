//! A run on the made-up store, and what is asked of it: its tensors, its model's masks.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use crate::common::with_hint;
use crate::device::device;
use crate::store::write_store;
use crate::train_args::train_args;
use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use sam_ladder_cache::Store;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::TrainArgs;
use sam_ladder_train::{CaseRequest, Ensemble, ExportArgs, PredictedMask, RunCheckpoint, TrainError, WeightSource};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with a store of five variants, and the arguments of a run on it: 8 slices in batches of 3, so 3 steps per epoch.
pub fn workplace() -> (TempDir, TrainArgs) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.zarr");
    write_store(&store, StoreDtype::F32, AugmentPolicy::Flips, 1);
    let args = args(&folder, "run");
    (folder, args)
}

pub fn args(folder: &TempDir, run: &str) -> TrainArgs {
    let config = TrainConfig { epochs: 2, batch_size: 3, warmup: 2, ..TrainConfig::default() };
    train_args(folder.path().join("store.zarr"), folder.path().join(run), config)
}

pub fn words(error: &TrainError) -> String {
    with_hint(error, error.hint())
}

pub fn tensors(path: &Path) -> HashMap<String, Vec<u8>> {
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

pub fn export_args(run: &Path, out: PathBuf) -> ExportArgs {
    ExportArgs { run: run.into(), checkpoint: RunCheckpoint::BestOrLast, out, force: false, image_encoder: None }
}

pub fn predict(store: &Path, weights: WeightSource, batch_size: usize) -> Result<Vec<PredictedMask>, TrainError> {
    let store = Store::open(store)?;
    let ensemble = Ensemble::load(&[weights], None, &store, &device())?;
    let request = |case| CaseRequest { split: Split::Test, case, batch_size };
    store.cases(Split::Test).iter().map(|case| ensemble.predict_case(&store, request(case), |_| ())).collect()
}
