//! What a side network makes of images: embeddings of SAM's shape and, for the decoder's skips, the stages before them.

use candle_core::Tensor;

/// The output, without a graph.
pub(super) struct SideOutput {
    /// x_cnn, `[b, 256, s/16, s/16]`.
    pub(super) x: Tensor,
    /// layer1 `[b, c1, s/4, s/4]` and layer2 `[b, c2, s/8, s/8]`, if the decoder takes them.
    pub(super) stages: Option<[Tensor; 2]>,
}

/// Its gradients; of a stage only where there is one.
pub(super) struct SideGradients {
    pub(super) x: Tensor,
    pub(super) stages: [Option<Tensor>; 2],
}
