//! Batch normalisation over `[b, c, h, w]` with an optional ReLU in the same pass (Ioffe and Szegedy 2015; as `torch.nn.BatchNorm2d`).
//!
//! A channel of one batch fits the second-level cache for the sizes of this project, so the pass of the statistics and that of the
//! normalisation read memory once. Sums are taken in float32 over short runs and added up
//! in float64, in an order that does not depend on the threads.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{SendPtr, contiguous_f32, filled_vec, is_native, multiversion, tensor_from, with_f32};

/// The statistics of one batch, detached from the graph: what the running averages take in.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// Mean of each channel, `[c]`.
    pub mean: Tensor,
    /// Variance of each channel with Bessel's correction, `[c]`.
    pub var_unbiased: Tensor,
}

/// What batch normalisation needs in evaluation; every tensor is `[c]`.
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

/// Batch normalisation with the statistics of this batch, then ReLU where `relu` says so. Differentiable by `x`, `weight` and `bias`.
///
/// # Shapes
/// `x` `[b, c, h, w]`, `weight` and `bias` `[c]`; the result is as `x`.
///
/// # Errors
/// Other shapes; one value a channel, whose variance is not defined.
pub fn batch_norm_train(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, relu: bool) -> Result<(Tensor, BatchStatistics)> {
    let (b, c, h, w) = x.dims4()?;
    check_channels(c, &[weight, bias])?;
    if b * h * w < 2 {
        bail!("batch_norm: expected more than one value a channel in training, found {:?}", x.dims());
    }
    if !is_native(&[x, weight, bias]) {
        return batch_norm_train_composed(x, weight, bias, eps, relu);
    }
    let x = x.contiguous()?;
    let (statistics, normalisation) = batch_statistics(&x, eps)?;
    Ok((x.apply_op3(&weight.contiguous()?, &bias.contiguous()?, BatchNorm { normalisation, relu })?, statistics))
}

/// Mean and inverse deviation of each channel.
pub(crate) struct Normalisation {
    pub(crate) mean: Vec<f32>,
    pub(crate) inv_std: Vec<f32>,
}

/// The statistics of a contiguous float32 CPU tensor `[b, c, h, w]`.
pub(crate) fn batch_statistics(x: &Tensor, eps: f64) -> Result<(BatchStatistics, Normalisation)> {
    let (b, c, h, w) = x.dims4()?;
    let count = (b * h * w) as f64;
    let stats: Vec<(f64, f64)> = with_f32(x, "batch-norm", |data| {
        let planes = Planes { b, c, hw: h * w };
        Ok((0..c).into_par_iter().map(|channel| planes.mean_and_squares(data, channel)).collect())
    })?;
    let mean: Vec<f32> = stats.iter().map(|s| s.0 as f32).collect();
    let var_unbiased = stats.iter().map(|s| (s.1 / (count - 1.0)) as f32).collect();
    let inv_std = stats.iter().map(|s| (1.0 / (s.1 / count + eps).sqrt()) as f32).collect();
    let statistics = BatchStatistics { mean: tensor_from(mean.clone(), c)?, var_unbiased: tensor_from(var_unbiased, c)? };
    Ok((statistics, Normalisation { mean, inv_std }))
}

/// Batch normalisation with the running statistics, then ReLU where `relu` says so. Not made for training: the running statistics get no gradient.
///
/// # Shapes
/// `x` `[b, c, h, w]`; the result is as `x`.
pub fn batch_norm_inference(x: &Tensor, params: &BatchNormParams, relu: bool) -> Result<Tensor> {
    let (_, c, _, _) = x.dims4()?;
    let BatchNormParams { weight, bias, running_mean, running_var, eps } = *params;
    check_channels(c, &[weight, bias, running_mean, running_var])?;
    let scale = (weight / (running_var + eps)?.sqrt()?)?;
    let shift = (bias - (running_mean * &scale)?)?;
    let tracked = [x, weight, bias].iter().any(|t| t.track_op());
    if tracked || !is_native(&[x, &scale, &shift]) {
        let y = x.broadcast_mul(&scale.reshape((1, c, 1, 1))?)?.broadcast_add(&shift.reshape((1, c, 1, 1))?)?;
        return if relu { y.relu() } else { Ok(y) };
    }
    let op = BatchNorm { normalisation: Normalisation { mean: vec![0.0; c], inv_std: vec![1.0; c] }, relu };
    x.contiguous()?.apply_op3_no_bwd(&scale.contiguous()?, &shift.contiguous()?, &op)
}

/// [`batch_norm_train`] as a composition of candle's ops, for any device and data type; the reference of the tests.
pub fn batch_norm_train_composed(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    relu: bool,
) -> Result<(Tensor, BatchStatistics)> {
    let (b, c, h, w) = x.dims4()?;
    let count = (b * h * w) as f64;
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
    let y = if relu { y.relu()? } else { y };
    let var_unbiased = (var.detach().flatten_all()? * (count / (count - 1.0)))?;
    Ok((y, BatchStatistics { mean: mean.detach().flatten_all()?, var_unbiased }))
}

pub(crate) fn check_channels(c: usize, params: &[&Tensor]) -> Result<()> {
    match params.iter().find(|p| p.dims() != [c]) {
        Some(p) => bail!("batch_norm: expected parameters of shape [{c}] for an input of {c} channels, found {:?}", p.dims()),
        None => Ok(()),
    }
}

/// `relu?((x - mean)·inv_std·weight + bias)`; mean and inverse deviation belong to the op, so that the backward has them.
struct BatchNorm {
    normalisation: Normalisation,
    relu: bool,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Normalisation { mean, inv_std } = &self.normalisation;
        let x = contiguous_f32(s1, l1, self.name())?;
        let (weight, bias) = (contiguous_f32(s2, l2, self.name())?, contiguous_f32(s3, l3, self.name())?);
        let planes = Planes::of(l1.shape())?;
        // SAFETY: each channel's planes are written by one task, and together they are all elements.
        let data = unsafe {
            filled_vec(x.len(), |out| {
                (0..planes.c).into_par_iter().for_each(|c| {
                    let scale = inv_std[c] * weight[c];
                    let affine = Affine { scale, mean: mean[c], shift: bias[c], relu: self.relu };
                    for start in planes.starts(c) {
                        affine_plane(&x[start..start + planes.hw], &affine, out.slice(start, planes.hw));
                    }
                });
            })
        };
        Ok((CpuStorage::F32(data), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Normalisation { mean, inv_std } = &self.normalisation;
        let planes = Planes::of(x.shape())?;
        let mut sums = vec![(0.0f32, 0.0f32); planes.c];
        let grad_x = with_f32(x, self.name(), |x_data| {
            with_f32(weight, self.name(), |w| {
                with_f32(res, self.name(), |y| {
                    with_f32(grad, self.name(), |g| {
                        let input = Backward { planes: &planes, x: x_data, y: self.relu.then_some(y), g };
                        if !x.track_op() {
                            sums.par_iter_mut().enumerate().for_each(|(c, s)| *s = input.sums(c, mean[c], inv_std[c]));
                            return Ok(None);
                        }
                        // SAFETY: each channel's planes are written by one task, and together they are all elements.
                        let data = unsafe {
                            filled_vec(x_data.len(), |out| {
                                sums.par_iter_mut().enumerate().for_each(|(c, s)| {
                                    *s = input.sums(c, mean[c], inv_std[c]);
                                    input.grad_x(c, (mean[c], inv_std[c], w[c]), *s, out);
                                });
                            })
                        };
                        Ok(Some(tensor_from(data, x.shape())?))
                    })
                })
            })
        })?;
        let grad_weight = tensor_from(sums.iter().map(|s| s.1).collect(), planes.c)?;
        let grad_bias = tensor_from(sums.iter().map(|s| s.0).collect(), planes.c)?;
        Ok((grad_x, weight.track_op().then_some(grad_weight), bias.track_op().then_some(grad_bias)))
    }
}

/// The planes of a `[b, c, h, w]` tensor.
pub(crate) struct Planes {
    pub(crate) b: usize,
    pub(crate) c: usize,
    pub(crate) hw: usize,
}

impl Planes {
    fn of(shape: &Shape) -> Result<Self> {
        let (b, c, h, w) = shape.dims4()?;
        Ok(Self { b, c, hw: h * w })
    }

    /// Where the planes of a channel start.
    pub(crate) fn starts(&self, channel: usize) -> impl Iterator<Item = usize> + use<> {
        let (c, hw) = (self.c, self.hw);
        (0..self.b).map(move |b| (b * c + channel) * hw)
    }

    /// Mean, and the sum of squared differences from it: sums of the differences from the first plane's mean, which is close enough for their
    /// squares not to cancel.
    fn mean_and_squares(&self, x: &[f32], channel: usize) -> (f64, f64) {
        let plane = |start| &x[start..start + self.hw];
        let count = (self.b * self.hw) as f64;
        let guess = (sums_around(plane(channel * self.hw), 0.0).0 / self.hw as f64) as f32;
        let (mut sum, mut squares) = (0.0, 0.0);
        for start in self.starts(channel) {
            let (s, q) = sums_around(plane(start), guess);
            sum += s;
            squares += q;
        }
        (guess as f64 + sum / count, (squares - sum * sum / count).max(0.0))
    }
}

/// Elements whose sum is taken in float32, over 32 accumulators of 8 elements, before it goes on in float64.
const RUN: usize = 256;
/// Independent accumulators.
const LANES: usize = 32;

/// The sums of both of `terms` over `0..len`.
#[inline(always)]
fn sum_pairs(len: usize, mut terms: impl FnMut(usize) -> (f32, f32)) -> (f64, f64) {
    let mut total = (0.0f64, 0.0f64);
    let mut start = 0;
    while start + LANES <= len {
        let end = (start + RUN).min(len - (len - start) % LANES);
        let (mut first, mut second) = ([0.0f32; LANES], [0.0f32; LANES]);
        while start < end {
            for lane in 0..LANES {
                let (a, b) = terms(start + lane);
                first[lane] += a;
                second[lane] += b;
            }
            start += LANES;
        }
        for stride in [16, 8, 4, 2, 1] {
            for lane in 0..stride {
                first[lane] += first[lane + stride];
                second[lane] += second[lane + stride];
            }
        }
        total.0 += first[0] as f64;
        total.1 += second[0] as f64;
    }
    for i in start..len {
        let (a, b) = terms(i);
        total.0 += a as f64;
        total.1 += b as f64;
    }
    total
}

multiversion! {
    /// The sum of `x - centre` and that of its square.
    fn sums_around(x: &[f32], centre: f32) -> (f64, f64) {
        sum_pairs(x.len(), |i| (x[i] - centre, (x[i] - centre) * (x[i] - centre)))
    }
}

pub(crate) struct Affine {
    pub(crate) scale: f32,
    pub(crate) mean: f32,
    pub(crate) shift: f32,
    pub(crate) relu: bool,
}

multiversion! {
    pub(crate) fn affine_plane(x: &[f32], affine: &Affine, out: &mut [f32]) {
        let Affine { scale, mean, shift, relu } = *affine;
        if relu {
            for (o, x) in out.iter_mut().zip(x) {
                let v = (x - mean) * scale + shift;
                *o = if v < 0.0 { 0.0 } else { v };
            }
        } else {
            for (o, x) in out.iter_mut().zip(x) {
                *o = (x - mean) * scale + shift;
            }
        }
    }
}

/// What the backward reads. `y` is the result where a ReLU followed.
struct Backward<'a> {
    planes: &'a Planes,
    x: &'a [f32],
    y: Option<&'a [f32]>,
    g: &'a [f32],
}

impl Backward<'_> {
    /// The sums over a channel of the gradient before the ReLU, and of it times the normalised input: the gradients of bias and weight.
    fn sums(&self, channel: usize, mean: f32, inv_std: f32) -> (f32, f32) {
        let (mut sum, mut dot) = (0.0, 0.0);
        for start in self.planes.starts(channel) {
            let range = start..start + self.planes.hw;
            let (s, d) = match self.y {
                Some(y) => backward_sums_relu(&self.x[range.clone()], &y[range.clone()], &self.g[range], mean),
                None => backward_sums(&self.x[range.clone()], &self.g[range], mean),
            };
            sum += s;
            dot += d;
        }
        (sum as f32, (dot * inv_std as f64) as f32)
    }

    /// Writes the gradient of a channel's input.
    ///
    /// # Safety
    /// `out` is as long as `x`, and no other thread touches this channel's planes.
    unsafe fn grad_x(&self, channel: usize, (mean, inv_std, weight): (f32, f32, f32), (sum, dot): (f32, f32), out: SendPtr) {
        let count = (self.planes.b * self.planes.hw) as f32;
        let coefficients = [weight * inv_std, sum / count, dot / count * inv_std, mean];
        for start in self.planes.starts(channel) {
            let range = start..start + self.planes.hw;
            // SAFETY: the caller's promise.
            let out = unsafe { out.slice(start, self.planes.hw) };
            match self.y {
                Some(y) => grad_x_relu(&self.x[range.clone()], &y[range.clone()], &self.g[range], coefficients, out),
                None => grad_x_plain(&self.x[range.clone()], &self.g[range], coefficients, out),
            }
        }
    }
}

#[inline(always)]
fn masked(y: f32, g: f32) -> f32 {
    if y <= 0.0 { 0.0 } else { g }
}

multiversion! {
    pub(crate) fn backward_sums(x: &[f32], g: &[f32], mean: f32) -> (f64, f64) {
        let n = x.len();
        let g = &g[..n];
        sum_pairs(n, |i| (g[i], g[i] * (x[i] - mean)))
    }
}

multiversion! {
    fn backward_sums_relu(x: &[f32], y: &[f32], g: &[f32], mean: f32) -> (f64, f64) {
        let n = x.len();
        let (y, g) = (&y[..n], &g[..n]);
        sum_pairs(n, |i| (masked(y[i], g[i]), masked(y[i], g[i]) * (x[i] - mean)))
    }
}

multiversion! {
    fn grad_x_plain(x: &[f32], g: &[f32], coefficients: [f32; 4], out: &mut [f32]) {
        let [scale, offset, slope, mean] = coefficients;
        for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
            *o = scale * (g - offset - (x - mean) * slope);
        }
    }
}

multiversion! {
    fn grad_x_relu(x: &[f32], y: &[f32], g: &[f32], coefficients: [f32; 4], out: &mut [f32]) {
        let [scale, offset, slope, mean] = coefficients;
        for (((o, x), y), g) in out.iter_mut().zip(x).zip(y).zip(g) {
            *o = scale * (masked(*y, *g) - offset - (x - mean) * slope);
        }
    }
}
