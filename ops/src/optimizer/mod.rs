//! The update of all variables of a model in one launch, for GPUs. The CPU's, which is its reference, is `train::optimizer`'s.

pub(crate) mod cuda;

use candle_core::{DType, Result, Tensor, bail};

use crate::device;

/// A variable on a GPU with its gradient and its moments, float32 and contiguous. Variable and moments are updated in place.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    /// The variable.
    pub value: &'a Tensor,
    /// Its gradient.
    pub gradient: &'a Tensor,
    /// First moment, or SGD's momentum.
    pub first: &'a Tensor,
    /// Second moment; SGD, which has none, gives the first again.
    pub second: &'a Tensor,
}

/// The numbers of one update, which every variable of a launch shares: PyTorch's Adam, AdamW and SGD.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateRule {
    /// SGD with momentum, else Adam.
    pub sgd: bool,
    /// Learning rate.
    pub lr: f32,
    /// Factor of the value before the update: 1 - lr·decay for AdamW.
    pub keep: f32,
    /// Decay that is added to the gradient: Adam and SGD.
    pub l2: f32,
    /// lr over the first moment's bias correction.
    pub step_size: f32,
    /// Root of the second moment's bias correction.
    pub correction2_sqrt: f32,
    /// 1 - β₁
    pub rest1: f32,
    /// β₂
    pub beta2: f32,
    /// 1 - β₂
    pub rest2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// SGD's momentum.
    pub momentum: f32,
}

impl UpdateRule {
    /// What changes from one update to the next, as [`step`] reads it from memory: learning rate, `keep`, `step_size`, `correction2_sqrt`.
    pub fn moving(&self) -> [f32; 4] {
        [self.lr, self.keep, self.step_size, self.correction2_sqrt]
    }

    /// As the kernel takes it.
    pub(crate) fn words(&self) -> [u32; 11] {
        let UpdateRule { sgd, lr, keep, l2, step_size, correction2_sqrt, rest1, beta2, rest2, eps, momentum } = *self;
        let numbers = [lr, keep, l2, step_size, correction2_sqrt, rest1, beta2, rest2, eps, momentum].map(f32::to_bits);
        std::array::from_fn(|i| if i == 0 { u32::from(!sgd) } else { numbers[i - 1] })
    }
}

/// Whether [`step`] takes variables that live where this one does.
pub fn has_step(variable: &Tensor) -> bool {
    device::runs_on(&[variable])
}

/// Updates every variable. Where one of the float32 numbers of `guard` is not finite, nothing is: the losses of a step guard its update without
/// the host having read them. `moving` takes the place of the rule's own [`UpdateRule::moving`], read when the update is made.
///
/// # Errors
/// Tensors that are not float32, contiguous and on one GPU, or that do not go together.
pub fn step(slots: &[Slot<'_>], rule: &UpdateRule, guard: Option<&Tensor>, moving: Option<&Tensor>) -> Result<()> {
    if let Some(moving) = moving
        && (moving.dims() != [4] || moving.dtype() != DType::F32)
    {
        bail!("optimizer: expected four float32 numbers that move, found {:?} of {:?}", moving.dims(), moving.dtype());
    }
    for Slot { value, gradient, first, second } in slots {
        for tensor in [value, gradient, first, second] {
            if tensor.dtype() != DType::F32 || !device::runs_on(&[tensor]) {
                bail!("optimizer: expected float32 on the GPU, found {:?} on {:?}", tensor.dtype(), tensor.device());
            }
        }
    }
    cuda::step(slots, rule, guard, moving)
}
