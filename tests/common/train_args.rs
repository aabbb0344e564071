//! Arguments of training runs.

use crate::device::device;
use sam_ladder_cache::ReadMode;
use sam_ladder_schemas::observer::silent;
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_train::run::{CudaGraph, TrainArgs};
use std::path::PathBuf;

/// A new run on the device under test from random weights, which prints nothing.
pub fn train_args(store: impl Into<PathBuf>, run: impl Into<PathBuf>, config: TrainConfig) -> TrainArgs {
    TrainArgs {
        store: store.into(),
        run: run.into(),
        config,
        groups: None,
        cnn_checkpoint: None,
        init: None,
        resume: false,
        device: device(),
        read_mode: ReadMode::Stream,
        cache: None,
        device_store: Default::default(),
        cuda_graph: CudaGraph::Off,
        checkpoint_every: None,
        program: "test".into(),
        observer: silent(),
    }
}
