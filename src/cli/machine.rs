//! How training uses the machine: options of `train` and `sweep`. They change no setting of a run.

use super::device::DeviceChoice;
use sam_ladder_cache::ReadMode;
use sam_ladder_train::run::{CudaGraph, DeviceStore};

/// The options themselves.
#[derive(Debug, clap::Args)]
pub struct Machine {
    /// Where batches are read from
    #[arg(long, value_enum, default_value_t)]
    pub read: ReadMode,
    /// Training data to keep in the GPU's memory: auto (as much as fits), off, or a number of bytes such as 20G
    #[arg(long, value_name = "auto|off|BYTES", default_value = "auto")]
    pub device_store: DeviceStore,
    /// Launch training steps as one CUDA graph, once a step taken both ways has the same bits
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "on")]
    pub cuda_graph: CudaGraph,
    /// Where to compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
}
