//! What a side network makes of images: embeddings of SAM's shape and, for the decoder's skips, the stages before them.

use candle_core::Tensor;

/// The stages of a ResNet that join the decoder.
#[derive(Debug, Clone)]
pub(super) struct Stages<T> {
    /// The first convolution after norm and ReLU, `[b, 64, s/2, s/2]`, for logits at half the image's side.
    pub(super) stem: Option<T>,
    /// `[b, c1, s/4, s/4]`
    pub(super) layer1: T,
    /// `[b, c2, s/8, s/8]`
    pub(super) layer2: T,
}

impl<T> Stages<T> {
    /// The same of each.
    pub(super) fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Stages<U> {
        Stages { stem: self.stem.as_ref().map(&mut f), layer1: f(&self.layer1), layer2: f(&self.layer2) }
    }
}

/// The output, without a graph.
pub(super) struct SideOutput {
    /// x_cnn, `[b, 256, s/16, s/16]`.
    pub(super) x: Tensor,
    /// If the decoder takes them.
    pub(super) stages: Option<Stages<Tensor>>,
}

/// Its gradients; of a stage only where there is one.
pub(super) struct SideGradients {
    pub(super) x: Tensor,
    pub(super) stages: Option<Stages<Option<Tensor>>>,
}
