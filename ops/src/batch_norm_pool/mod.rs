//! Batch norm, ReLU and max-pooling in one op, for the layers after ResNet's first convolution, where activations are largest.
//!
//! The backward pass recomputes the normalised activations plane by plane in the caches, so that neither they nor their gradient, the two
//! largest tensors of a training step, are ever held in memory.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, Var};

use crate::batch_norm::{BatchNormGradients, BatchStatistics, Tail, check_channels, normalize, normalize_backward};
use crate::dispatch::{Path, path};
use crate::max_pool::max_pool2d_3x3_s2_p1;

/// [`normalize`] with [`Tail::Relu`], then [`max_pool2d_3x3_s2_p1`]. Keeps no graph: see [`normalize_relu_max_pool_backward`].
///
/// # Shapes
/// `x` `[b, c, h, w]`, `weight` and `bias` `[c]` → `[b, c, ceil(h/2), ceil(w/2)]`.
///
/// # Errors
/// As [`normalize`] and [`max_pool2d_3x3_s2_p1`].
pub fn normalize_relu_max_pool(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check_channels(x.dims4()?.1, &[weight, bias])?;
    let _span = tracing::trace_span!("batch norm, max pool", shape = ?x.dims()).entered();
    match path(&[x, weight, bias]) {
        Path::Cuda => cuda::normalize_relu_max_pool(x, statistics, weight, bias),
        Path::Cpu => cpu::normalize_relu_max_pool(x, statistics, weight, bias),
        Path::Composed => max_pool2d_3x3_s2_p1(&normalize(x, statistics, weight, bias, Tail::Relu)?),
    }
}

/// The gradients of `x`, `weight` and `bias`, given that of [`normalize_relu_max_pool`]'s result; includes those through the statistics.
///
/// # Shapes
/// As for [`normalize_relu_max_pool`]; `grad` as its result.
///
/// # Errors
/// As [`normalize_relu_max_pool`].
pub fn normalize_relu_max_pool_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let _span = tracing::trace_span!("batch norm, max pool backward", shape = ?x.dims()).entered();
    match path(&[x, weight, bias, grad]) {
        Path::Cuda => cuda::normalize_relu_max_pool_backward(x, statistics, weight, bias, grad),
        Path::Cpu => cpu::normalize_relu_max_pool_backward(x, statistics, weight, bias, grad),
        Path::Composed => {
            let y = Var::from_tensor(&normalize(x, statistics, weight, bias, Tail::None)?)?;
            let sum = (max_pool2d_3x3_s2_p1(&y.as_tensor().relu()?)? * grad)?.sum_all()?;
            let Some(grad) = sum.backward()?.remove(&y) else { candle_core::bail!("batch_norm_pool: no gradient") };
            normalize_backward(x, statistics, weight, bias, false, &grad)
        }
    }
}
