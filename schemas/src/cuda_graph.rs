//! Whether a GPU takes training steps as a CUDA graph.

/// When training steps are launched as one CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum CudaGraph {
    /// On a GPU
    #[default]
    Auto,
    /// On a GPU; any other device is refused
    On,
    /// Never: each step is launched operation by operation
    Off,
}
