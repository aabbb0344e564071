//! The loss of the paper's equation (4) on a GPU: value and gradient without a number that the host waits for. Its reference is
//! `train::loss`, which calls it.

pub(crate) mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::device;

/// Whether [`dice_ce`] takes these logits.
pub fn has_dice_ce(logits: &Tensor) -> bool {
    device::runs_on(&[logits]) && logits.dims().get(1).is_some_and(|&classes| classes <= cuda::CLASSES)
}

/// (1 - λ)·CE + λ·Dice of the softmax of `logits`, with its graph; and, without one, `[3]`: the same, cross-entropy, 1 - Dice. `smooth` keeps
/// Dice defined. A label that is no class makes the numbers NaN.
///
/// # Shapes
/// logits `[b, C, h, w]`, labels `[b, h, w]` → `[]` and `[3]`, float32
///
/// # Errors
/// Other shapes, more than 32 classes, or tensors that are not on a GPU.
pub fn dice_ce(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<(Tensor, Tensor)> {
    let (b, _, h, w) = logits.dims4()?;
    if labels.dims() != [b, h, w] || !has_dice_ce(logits) {
        bail!("dice_ce: logits {:?} and labels {:?} do not go together on the GPU", logits.dims(), labels.dims());
    }
    cuda::dice_ce(logits, labels, lambda, smooth)
}
