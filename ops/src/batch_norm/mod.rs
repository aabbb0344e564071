//! Batch normalisation over `[b, c, h, w]` (Ioffe and Szegedy 2015; `torch.nn.BatchNorm2d`), fused with the operation after it.

pub(crate) mod cpu;
pub(crate) mod cuda;

use candle_core::{Result, Tensor, Var, bail};

use crate::dispatch::{Path, path};
use crate::elementwise::{relu_backward, relu_backward_sum};

/// The statistics of one batch, detached from the graph.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// Mean of each channel, `[c]`.
    pub mean: Tensor,
    /// Variance of each channel with Bessel's correction, `[c]`.
    pub var_unbiased: Tensor,
    /// `1/√(biased variance + eps)`, `[c]`, which normalises the batch.
    pub inv_std: Tensor,
}

/// Parameters of batch normalisation in evaluation; every tensor is `[c]`.
#[derive(Debug, Clone)]
pub struct BatchNormParams<'a> {
    /// Scale.
    pub weight: &'a Tensor,
    /// Shift.
    pub bias: &'a Tensor,
    /// Running mean.
    pub running_mean: &'a Tensor,
    /// Running variance (unbiased).
    pub running_var: &'a Tensor,
    /// Added to the variance, 1e-5 in PyTorch.
    pub eps: f64,
}

/// Operation after the normalisation, in the same pass over memory.
#[derive(Debug, Clone, Copy)]
pub enum Tail<'a> {
    /// Nothing.
    None,
    /// max(y, 0)
    Relu,
    /// max(y + shortcut, 0), the end of a residual block.
    AddRelu(&'a Tensor),
    /// The same with a shortcut that is normalised, too.
    AddNormalizedRelu(NormalizedShortcut<'a>),
}

/// A shortcut that ends in a batch norm.
#[derive(Debug, Clone, Copy)]
pub struct NormalizedShortcut<'a> {
    /// Its input, `[b, c, h, w]`.
    pub x: &'a Tensor,
    /// The input's statistics.
    pub statistics: &'a BatchStatistics,
    /// Scale, `[c]`.
    pub weight: &'a Tensor,
    /// Shift, `[c]`.
    pub bias: &'a Tensor,
}

/// Sums of a gradient that were taken in a pass over it, for [`normalize_backward_summed`]: on a GPU `[c, splits, 2]`, float64.
#[derive(Debug, Clone)]
pub struct GradientSums(Tensor);

/// Gradients of [`normalize`], including those through the statistics.
#[derive(Debug, Clone)]
pub struct BatchNormGradients {
    /// `[b, c, h, w]`
    pub x: Tensor,
    /// `[c]`
    pub weight: Tensor,
    /// `[c]`
    pub bias: Tensor,
}

/// The statistics of a batch, for training.
///
/// # Shapes
/// `x` `[b, c, h, w]`.
///
/// # Errors
/// A single value per channel, whose variance is undefined.
pub fn batch_statistics(x: &Tensor, eps: f64) -> Result<BatchStatistics> {
    let (b, c, h, w) = x.dims4()?;
    let _span = tracing::trace_span!("batch norm statistics", shape = ?x.dims()).entered();
    check_count(x)?;
    match path(&[x]) {
        Path::Cuda => cuda::statistics(x, eps, None),
        Path::Cpu => cpu::statistics(x, eps),
        Path::Composed => {
            let count = (b * h * w) as f64;
            let flat = x.detach().transpose(0, 1)?.reshape((c, b * h * w))?;
            let mean = flat.mean_keepdim(1)?; // [c, 1]
            let var = flat.broadcast_sub(&mean)?.sqr()?.mean_keepdim(1)?.flatten_all()?; // [c], biased
            let inv_std = (&var + eps)?.sqrt()?.recip()?;
            Ok(BatchStatistics { mean: mean.flatten_all()?, var_unbiased: (var * (count / (count - 1.0)))?, inv_std })
        }
    }
}

/// [`batch_statistics`], which the running ones follow: `running ← (1 - momentum)·running + momentum·batch`.
///
/// # Shapes
/// `x` `[b, c, h, w]`; running mean and variance `[c]`, each updated in place.
///
/// # Errors
/// Other shapes; a single value per channel.
pub fn batch_statistics_followed(x: &Tensor, eps: f64, (mean, var): (&Var, &Var), momentum: f64) -> Result<BatchStatistics> {
    check_channels(x.dims4()?.1, &[mean, var])?;
    if path(&[x, mean, var]) == Path::Cuda {
        check_count(x)?;
        return cuda::statistics(x, eps, Some((mean, var, momentum)));
    }
    let statistics = batch_statistics(x, eps)?;
    for (running, batch) in [(mean, &statistics.mean), (var, &statistics.var_unbiased)] {
        let kept = running.as_detached_tensor().affine(1.0 - momentum, 0.0)?;
        running.set(&(kept + batch.affine(momentum, 0.0)?)?)?;
    }
    Ok(statistics)
}

/// Refuses a single value per channel.
fn check_count(x: &Tensor) -> Result<()> {
    let (b, _, h, w) = x.dims4()?;
    if b * h * w < 2 {
        bail!("batch_norm: expected more than one value per channel in training, found {:?}", x.dims());
    }
    Ok(())
}

/// `(x - mean)·inv_std·weight + bias`, then the tail. Keeps no graph: see [`normalize_backward`].
///
/// # Shapes
/// `x` and the shortcut `[b, c, h, w]`, `weight` and `bias` `[c]`; the result is as `x`.
///
/// # Errors
/// Other shapes.
pub fn normalize(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, tail: Tail<'_>) -> Result<Tensor> {
    let (_, c, _, _) = x.dims4()?;
    check_channels(c, &[weight, bias])?;
    let _span = tracing::trace_span!("batch norm", shape = ?x.dims()).entered();
    let shortcut = match tail {
        Tail::None | Tail::Relu => None,
        Tail::AddRelu(shortcut) => Some(shortcut),
        Tail::AddNormalizedRelu(NormalizedShortcut { x, weight, bias, .. }) => {
            check_channels(c, &[weight, bias])?;
            Some(x)
        }
    };
    if let Some(shortcut) = shortcut.filter(|shortcut| shortcut.dims() != x.dims()) {
        bail!("batch_norm: expected a shortcut of {:?}, found {:?}", x.dims(), shortcut.dims());
    }
    let on = path(&[x, weight, bias]);
    if let Tail::AddNormalizedRelu(other) = tail
        && on == Path::Composed
    {
        let shortcut = normalize(other.x, other.statistics, other.weight, other.bias, Tail::None)?;
        return normalize(x, statistics, weight, bias, Tail::AddRelu(&shortcut));
    }
    match on {
        Path::Cuda => cuda::normalize(x, statistics, weight, bias, tail),
        Path::Cpu => cpu::normalize(x, statistics, weight, bias, tail),
        Path::Composed => {
            let channels = |t: &Tensor| t.detach().reshape((1, c, 1, 1));
            let y = x
                .detach()
                .broadcast_sub(&channels(&statistics.mean)?)?
                .broadcast_mul(&channels(&(&statistics.inv_std * weight)?)?)?
                .broadcast_add(&channels(bias)?)?;
            match tail {
                Tail::None => Ok(y),
                Tail::Relu => y.relu(),
                Tail::AddRelu(shortcut) => (y + shortcut.detach())?.relu(),
                Tail::AddNormalizedRelu(_) => bail!("batch_norm: a shortcut is normalised before"),
            }
        }
    }
}

/// The gradients of `x`, `weight` and `bias`, given that of [`normalize`]'s result with [`Tail::None`] or, if `relu`, [`Tail::Relu`], whose
/// mask is recomputed from `x`. For [`Tail::AddRelu`], `grad` is the gradient of the sum before the ReLU
/// ([`relu_backward`](crate::elementwise::relu_backward)).
///
/// # Shapes
/// As for [`normalize`]; `grad` as `x`.
///
/// # Errors
/// Other shapes.
pub fn normalize_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let _span = tracing::trace_span!("batch norm backward", shape = ?x.dims()).entered();
    if grad.dims() != x.dims() {
        bail!("batch_norm: expected a gradient of {:?}, found {:?}", x.dims(), grad.dims());
    }
    match path(&[x, weight, bias, grad]) {
        Path::Cuda => cuda::normalize_backward(x, statistics, weight, bias, relu, grad),
        Path::Cpu => cpu::normalize_backward(x, statistics, weight, bias, relu, grad),
        Path::Composed => normalize_backward_composed(x, statistics, weight, bias, relu, grad),
    }
}

/// [`normalize_backward`] without ReLU, of a gradient whose sums were taken before (`None`: they were not).
///
/// # Shapes
/// As for [`normalize_backward`].
///
/// # Errors
/// Other shapes.
pub fn normalize_backward_summed(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
    sums: Option<&GradientSums>,
) -> Result<BatchNormGradients> {
    match sums {
        Some(sums) if path(&[x, weight, bias, grad]) == Path::Cuda && grad.dims() == x.dims() => {
            let _span = tracing::trace_span!("batch norm backward", shape = ?x.dims()).entered();
            cuda::normalize_backward_summed(x, statistics, weight, bias, grad, sums)
        }
        _ => normalize_backward(x, statistics, weight, bias, false, grad),
    }
}

/// The gradient before a ReLU with the result `res`, given that after it in one part or two, as
/// [`relu_backward`](crate::elementwise::relu_backward): at the end of a residual block. On a GPU the same pass sums it for the batch norm whose
/// input is `x`, and for that of the shortcut if there is one; otherwise there are no sums.
///
/// # Shapes
/// All tensors and the result have the same shape `[b, c, h, w]`.
///
/// # Errors
/// Other shapes.
pub fn relu_backward_summed(
    res: &Tensor,
    (first, second): (&Tensor, Option<&Tensor>),
    (x, statistics): (&Tensor, &BatchStatistics),
    shortcut: Option<(&Tensor, &BatchStatistics)>,
) -> Result<(Tensor, Vec<GradientSums>)> {
    let all = [Some(res), Some(first), second, Some(x), shortcut.map(|(x, _)| x)];
    if let Some(other) = all.into_iter().flatten().find(|tensor| tensor.dims() != res.dims()) {
        bail!("batch_norm: expected tensors of {:?}, found {:?}", res.dims(), other.dims());
    }
    let _span = tracing::trace_span!("relu backward", shape = ?res.dims()).entered();
    if path(&[res, first, x]) == Path::Cuda {
        return cuda::relu_backward_summed(res, (first, second), (x, statistics), shortcut);
    }
    let grad = match second {
        Some(second) => relu_backward_sum(res, first, second)?,
        None => relu_backward(res, first)?,
    };
    Ok((grad, Vec::new()))
}

fn normalize_backward_composed(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let (b, c, h, w) = x.dims4()?;
    let channels = |t: &Tensor| t.detach().reshape((1, c, 1, 1));
    let (weight, inv_std) = (weight.detach(), &statistics.inv_std);
    let normal = x.detach().broadcast_sub(&channels(&statistics.mean)?)?.broadcast_mul(&channels(inv_std)?)?;
    let grad = if relu {
        let y = normal.broadcast_mul(&channels(&weight)?)?.broadcast_add(&channels(bias)?)?;
        (y.gt(0.0)?.to_dtype(grad.dtype())? * grad)?
    } else {
        grad.clone()
    };
    let per_channel = |t: Tensor| t.transpose(0, 1)?.reshape((c, b * h * w))?.sum(1);
    let sum = per_channel(grad.clone())?;
    let dot = per_channel((&grad * &normal)?)?;
    let count = (b * h * w) as f64;
    let mean_part = normal.broadcast_mul(&channels(&(&dot / count)?)?)?.broadcast_add(&channels(&(&sum / count)?)?)?;
    let x = (grad - mean_part)?.broadcast_mul(&channels(&(weight * inv_std)?)?)?;
    Ok(BatchNormGradients { x, weight: dot, bias: sum })
}

/// Batch normalisation with the running statistics, then ReLU if `relu`. Keeps no graph.
///
/// # Shapes
/// `x` `[b, c, h, w]`; the result is as `x`.
///
/// # Errors
/// Other shapes.
pub fn batch_norm_inference(x: &Tensor, params: &BatchNormParams, relu: bool) -> Result<Tensor> {
    let (_, c, _, _) = x.dims4()?;
    let BatchNormParams { weight, bias, running_mean, running_var, eps } = *params;
    check_channels(c, &[weight, bias, running_mean, running_var])?;
    let scale = (weight / (running_var + eps)?.sqrt()?)?;
    let shift = (bias - (running_mean * &scale)?)?;
    let (mean, inv_std) = (scale.zeros_like()?, scale.ones_like()?);
    let statistics = BatchStatistics { mean, var_unbiased: inv_std.clone(), inv_std };
    normalize(x, &statistics, &scale, &shift, if relu { Tail::Relu } else { Tail::None })
}

/// [`normalize`] with the statistics of `x`, then ReLU if `relu`, composed of candle's operations on its graph, for any data type; the tests' reference.
///
/// # Errors
/// Other shapes.
pub fn batch_norm_train_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, relu: bool) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let flat = x.transpose(0, 1)?.reshape((c, b * h * w))?; // [c, b*h*w]
    let mean = flat.mean_keepdim(1)?; // [c, 1]
    let centred = flat.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim(1)?; // [c, 1], biased
    let y = centred
        .broadcast_div(&(&var + eps)?.sqrt()?)?
        .broadcast_mul(&weight.reshape((c, 1))?)?
        .broadcast_add(&bias.reshape((c, 1))?)?
        .reshape((c, b, h, w))?
        .transpose(0, 1)?
        .contiguous()?;
    if relu { y.relu() } else { Ok(y) }
}

pub(crate) fn check_channels(c: usize, params: &[&Tensor]) -> Result<()> {
    match params.iter().find(|p| p.dims() != [c]) {
        Some(p) => bail!("batch_norm: expected parameters of shape [{c}] for an input of {c} channels, found {:?}", p.dims()),
        None => Ok(()),
    }
}
