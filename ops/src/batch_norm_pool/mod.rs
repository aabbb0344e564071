//! Batch norm, ReLU and max-pooling in one op, for the layers after ResNet's first convolution, where activations are largest.
//!
//! Neither the normalised activations nor their gradient, the two largest tensors of a training step, are ever held in memory: on the CPU the
//! backward pass recomputes them plane by plane in the caches, on a GPU it knows where each window's maximum was.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, Var, bail};

use crate::add::add;
use crate::batch_norm::{BatchNormGradients, BatchStatistics, Tail, check_channels, normalize, normalize_backward};
use crate::dispatch::{Path, path};
use crate::max_pool::max_pool2d_3x3_s2_p1;

/// Where the maximum of each window lies in it, for [`normalize_relu_max_pool_backward`]: on a GPU a byte for each, on the CPU they are found
/// again.
#[derive(Debug, Clone)]
pub struct Places(Option<Tensor>);

/// [`normalize`] with [`Tail::Relu`], then [`max_pool2d_3x3_s2_p1`]. Keeps no graph: see [`normalize_relu_max_pool_backward`].
///
/// # Shapes
/// `x` `[b, c, h, w]`, `weight` and `bias` `[c]` → `[b, c, ceil(h/2), ceil(w/2)]`.
///
/// # Errors
/// As [`normalize`] and [`max_pool2d_3x3_s2_p1`].
pub fn normalize_relu_max_pool(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<(Tensor, Places)> {
    check_channels(x.dims4()?.1, &[weight, bias])?;
    let _span = tracing::trace_span!("batch norm, max pool", shape = ?x.dims()).entered();
    match path(&[x, weight, bias]) {
        Path::Cuda => {
            let (pooled, places) = cuda::normalize_relu_max_pool(x, statistics, weight, bias)?;
            Ok((pooled, Places(Some(places))))
        }
        Path::Cpu => Ok((cpu::normalize_relu_max_pool(x, statistics, weight, bias)?, Places(None))),
        Path::Composed => Ok((max_pool2d_3x3_s2_p1(&normalize(x, statistics, weight, bias, Tail::Relu)?)?, Places(None))),
    }
}

/// The gradients of `x`, `weight` and `bias`, given that of [`normalize_relu_max_pool`]'s result in one part or two; includes those through the
/// statistics.
///
/// # Shapes
/// As for [`normalize_relu_max_pool`]; each part of the gradient as its result.
///
/// # Errors
/// As [`normalize_relu_max_pool`].
pub fn normalize_relu_max_pool_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    places: &Places,
    (grad, second): (&Tensor, Option<&Tensor>),
) -> Result<BatchNormGradients> {
    let _span = tracing::trace_span!("batch norm, max pool backward", shape = ?x.dims()).entered();
    if let Some(second) = second.filter(|second| second.dims() != grad.dims()) {
        bail!("batch_norm_pool: expected parts of a gradient of one shape, found {:?} and {:?}", grad.dims(), second.dims());
    }
    let on = path(&[x, weight, bias, grad]);
    if on == Path::Cuda {
        let Some(places) = &places.0 else {
            bail!("batch_norm_pool: a gradient on the GPU without the places of a forward pass there")
        };
        return cuda::normalize_relu_max_pool_backward(x, statistics, weight, bias, places, (grad, second));
    }
    let sum = second.map(|second| add(grad, second)).transpose()?;
    let grad = sum.as_ref().unwrap_or(grad);
    match on {
        Path::Cuda | Path::Cpu => cpu::normalize_relu_max_pool_backward(x, statistics, weight, bias, grad),
        Path::Composed => {
            let y = Var::from_tensor(&normalize(x, statistics, weight, bias, Tail::None)?)?;
            let sum = (max_pool2d_3x3_s2_p1(&y.as_tensor().relu()?)? * grad)?.sum_all()?;
            let Some(grad) = sum.backward()?.remove(&y) else { bail!("batch_norm_pool: no gradient") };
            normalize_backward(x, statistics, weight, bias, false, &grad)
        }
    }
}
