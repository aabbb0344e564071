//! Batch normalisation on the CPU.
//!
//! At this project's sizes, a channel of a batch fits the second-level cache, so statistics and normalisation together read memory once.
//! Sums are float32 over short runs and float64 over these, in an order that does not depend on the threads.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{BatchNormGradients, BatchStatistics, Tail};
use crate::cpu::simd::multiversion;
use crate::cpu::{SendPtr, contiguous_f32, filled_vec, tensor_from, with_f32};

/// As [`super::batch_statistics`].
pub(super) fn statistics(x: &Tensor, eps: f64) -> Result<BatchStatistics> {
    let (b, c, h, w) = x.dims4()?;
    let count = (b * h * w) as f64;
    let stats: Vec<(f64, f64)> = with_f32(x, "batch-norm", |data| {
        let planes = Planes { b, c, hw: h * w };
        Ok((0..c).into_par_iter().map(|channel| planes.mean_and_squares(data, channel)).collect())
    })?;
    let each = |f: &dyn Fn(&(f64, f64)) -> f64| tensor_from(stats.iter().map(|s| f(s) as f32).collect(), c);
    Ok(BatchStatistics {
        mean: each(&|s| s.0)?,
        var_unbiased: each(&|s| s.1 / (count - 1.0))?,
        inv_std: each(&|s| 1.0 / (s.1 / count + eps).sqrt())?,
    })
}

/// As [`super::normalize`].
pub(super) fn normalize(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    tail: Tail<'_>,
) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let affine = Affines::new(statistics, weight, bias, matches!(tail, Tail::Relu))?;
    let planes = Planes { b, c, hw: h * w };
    let write = |x: &[f32], shortcut: Option<&[f32]>| {
        // SAFETY: each channel's planes are written by one task, and together they are all elements.
        let data = unsafe {
            filled_vec(x.len(), |out| {
                (0..c).into_par_iter().for_each(|channel| {
                    let affine = affine.of(channel);
                    for start in planes.starts(channel) {
                        let range = start..start + planes.hw;
                        let out = out.slice(start, planes.hw);
                        match shortcut {
                            Some(shortcut) => affine_add_relu_plane(&x[range.clone()], &shortcut[range], &affine, out),
                            None => affine_plane(&x[range], &affine, out),
                        }
                    }
                });
            })
        };
        tensor_from(data, (b, c, h, w))
    };
    with_f32(x, "batch-norm", |x| match tail {
        Tail::AddRelu(shortcut) => with_f32(shortcut, "batch-norm", |shortcut| write(x, Some(shortcut))),
        Tail::None | Tail::Relu => write(x, None),
        Tail::AddNormalizedRelu(_) => candle_core::bail!("batch-norm: a shortcut is normalised before"),
    })
}

/// As [`super::normalize_backward`].
pub(super) fn normalize_backward(
    x: &Tensor,
    statistics: &BatchStatistics,
    weight: &Tensor,
    bias: &Tensor,
    relu: bool,
    grad: &Tensor,
) -> Result<BatchNormGradients> {
    let (b, c, h, w) = x.dims4()?;
    let (planes, affine) = (Planes { b, c, hw: h * w }, Affines::new(statistics, weight, bias, relu)?);
    let mut sums = vec![(0.0f32, 0.0f32); c];
    let grad_x = with_f32(x, "batch-norm", |x| {
        with_f32(grad, "batch-norm", |g| {
            let input = Backward { planes: &planes, x, g };
            // SAFETY: each channel's planes are written by one task, and together they are all elements.
            let data = unsafe {
                filled_vec(x.len(), |out| {
                    sums.par_iter_mut().enumerate().for_each(|(channel, sums)| {
                        let affine = affine.of(channel);
                        *sums = input.sums(channel, &affine);
                        input.grad_x(channel, &affine, *sums, out);
                    });
                })
            };
            tensor_from(data, (b, c, h, w))
        })
    })?;
    Ok(BatchNormGradients {
        x: grad_x,
        weight: tensor_from(sums.iter().map(|s| s.1).collect(), c)?,
        bias: tensor_from(sums.iter().map(|s| s.0).collect(), c)?,
    })
}

/// As [`super::batch_norm_train`], by the statistics of the batch.
pub(super) fn train(x: &Tensor, statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    let op = BatchNorm { statistics: statistics.clone(), relu };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

/// The op of [`train`]; it keeps the statistics for the backward pass.
struct BatchNorm {
    statistics: BatchStatistics,
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
        let tensor = |storage, layout: &Layout| {
            tensor_from(contiguous_f32(storage, layout, self.name())?.to_vec(), layout.shape().clone())
        };
        let tail = if self.relu { Tail::Relu } else { Tail::None };
        let y = super::normalize(&tensor(s1, l1)?, &self.statistics, &tensor(s2, l2)?, &tensor(s3, l3)?, tail)?;
        let data = with_f32(&y, self.name(), |y| Ok(y.to_vec()))?;
        Ok((CpuStorage::F32(data), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grads = super::normalize_backward(x, &self.statistics, weight, bias, self.relu, grad)?;
        Ok((x.track_op().then_some(grads.x), weight.track_op().then_some(grads.weight), bias.track_op().then_some(grads.bias)))
    }
}

/// The planes of a `[b, c, h, w]` tensor.
pub(crate) struct Planes {
    pub(crate) b: usize,
    pub(crate) c: usize,
    pub(crate) hw: usize,
}

impl Planes {
    /// Start of each plane of a channel.
    pub(crate) fn starts(&self, channel: usize) -> impl Iterator<Item = usize> + use<> {
        let (c, hw) = (self.c, self.hw);
        (0..self.b).map(move |b| (b * c + channel) * hw)
    }

    /// Mean, and the sum of squared differences from it. Sums are of the differences from the first plane's mean, which is close enough to avoid
    /// cancellation.
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

/// Elements that are summed in float32, over 32 accumulators of 8 elements, before the sum continues in float64.
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

/// The affine map of every channel.
pub(crate) struct Affines {
    mean: Vec<f32>,
    inv_std: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    relu: bool,
}

impl Affines {
    pub(crate) fn new(statistics: &BatchStatistics, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Self> {
        let values = |t: &Tensor| t.to_vec1::<f32>();
        let BatchStatistics { mean, inv_std, .. } = statistics;
        Ok(Affines { mean: values(mean)?, inv_std: values(inv_std)?, weight: values(weight)?, bias: values(bias)?, relu })
    }

    pub(crate) fn of(&self, channel: usize) -> Affine {
        let (mean, inv_std) = (self.mean[channel], self.inv_std[channel]);
        Affine { scale: inv_std * self.weight[channel], mean, inv_std, shift: self.bias[channel], relu: self.relu }
    }
}

/// `relu?((x - mean)·scale + shift)`
pub(crate) struct Affine {
    pub(crate) scale: f32,
    pub(crate) mean: f32,
    pub(crate) inv_std: f32,
    pub(crate) shift: f32,
    pub(crate) relu: bool,
}

multiversion! {
    pub(crate) fn affine_plane(x: &[f32], affine: &Affine, out: &mut [f32]) {
        let Affine { scale, mean, shift, relu, .. } = *affine;
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

multiversion! {
    fn affine_add_relu_plane(x: &[f32], shortcut: &[f32], affine: &Affine, out: &mut [f32]) {
        let Affine { scale, mean, shift, .. } = *affine;
        for ((o, x), s) in out.iter_mut().zip(x).zip(shortcut) {
            let v = (x - mean) * scale + shift + s;
            *o = if v < 0.0 { 0.0 } else { v };
        }
    }
}

/// Input of the backward pass.
struct Backward<'a> {
    planes: &'a Planes,
    x: &'a [f32],
    g: &'a [f32],
}

impl Backward<'_> {
    /// The sums over a channel of the gradient before the ReLU, and of it times the normalised input: the gradients of bias and weight.
    fn sums(&self, channel: usize, affine: &Affine) -> (f32, f32) {
        let (mut sum, mut dot) = (0.0, 0.0);
        for start in self.planes.starts(channel) {
            let range = start..start + self.planes.hw;
            let (x, g) = (&self.x[range.clone()], &self.g[range]);
            let (s, d) = if affine.relu { backward_sums_relu(x, g, affine) } else { backward_sums(x, g, affine.mean) };
            sum += s;
            dot += d;
        }
        (sum as f32, (dot * f64::from(affine.inv_std)) as f32)
    }

    /// Writes the gradient of a channel's input.
    ///
    /// # Safety
    /// `out` is as long as `x`, and no other thread touches this channel's planes.
    unsafe fn grad_x(&self, channel: usize, affine: &Affine, (sum, dot): (f32, f32), out: SendPtr) {
        let count = (self.planes.b * self.planes.hw) as f32;
        let means = [sum / count, dot / count * affine.inv_std];
        for start in self.planes.starts(channel) {
            let range = start..start + self.planes.hw;
            let (x, g) = (&self.x[range.clone()], &self.g[range]);
            // SAFETY: the caller's promise.
            let out = unsafe { out.slice(start, self.planes.hw) };
            if affine.relu { grad_x_relu(x, g, affine, means, out) } else { grad_x_plain(x, g, affine, means, out) }
        }
    }
}

/// `g` where the ReLU after the normalisation is positive, otherwise 0. Uses the arithmetic of [`affine_plane`], so that both agree to the
/// last bit.
#[inline(always)]
fn masked(x: f32, g: f32, affine: &Affine) -> f32 {
    if (x - affine.mean) * affine.scale + affine.shift <= 0.0 { 0.0 } else { g }
}

multiversion! {
    pub(crate) fn backward_sums(x: &[f32], g: &[f32], mean: f32) -> (f64, f64) {
        let n = x.len();
        let g = &g[..n];
        sum_pairs(n, |i| (g[i], g[i] * (x[i] - mean)))
    }
}

multiversion! {
    fn backward_sums_relu(x: &[f32], g: &[f32], affine: &Affine) -> (f64, f64) {
        let n = x.len();
        let g = &g[..n];
        sum_pairs(n, |i| {
            let g = masked(x[i], g[i], affine);
            (g, g * (x[i] - affine.mean))
        })
    }
}

multiversion! {
    fn grad_x_plain(x: &[f32], g: &[f32], affine: &Affine, means: [f32; 2], out: &mut [f32]) {
        for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
            *o = affine.scale * (g - means[0] - (x - affine.mean) * means[1]);
        }
    }
}

multiversion! {
    fn grad_x_relu(x: &[f32], g: &[f32], affine: &Affine, means: [f32; 2], out: &mut [f32]) {
        for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
            *o = affine.scale * (masked(*x, *g, affine) - means[0] - (x - affine.mean) * means[1]);
        }
    }
}
