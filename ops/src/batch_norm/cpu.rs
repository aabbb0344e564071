//! Batch normalisation on the CPU.
//!
//! At this project's sizes, a channel of a batch fits the second-level cache, so statistics and normalisation together read memory once.
//! Sums are float32 over short runs and float64 over these, in an order that does not depend on the threads.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{BatchNormGradients, BatchStatistics, Tail};
use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::multiversion;
use crate::cpu::{SendPtr, filled_vec, tensor_from, with_numbers};

/// As [`super::batch_statistics`].
pub(super) fn statistics(x: &Tensor, eps: f64) -> Result<BatchStatistics> {
    in_format!(x, statistics_of(x, eps))
}

fn statistics_of<T: Activation>(x: &Tensor, eps: f64) -> Result<BatchStatistics> {
    let (b, c, h, w) = x.dims4()?;
    let count = (b * h * w) as f64;
    let stats: Vec<(f64, f64)> = with_numbers(x, "batch-norm", |data: &[T]| {
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
    let affines = Affines::new(statistics, weight, bias, matches!(tail, Tail::Relu))?;
    in_format!(x, normalize_in(x, &affines, tail))
}

fn normalize_in<T: Activation>(x: &Tensor, affines: &Affines, tail: Tail<'_>) -> Result<Tensor> {
    match tail {
        Tail::None | Tail::Relu => each_plane::<T>(x, None, |channel, x, _, out| affine_plane(x, &affines.of(channel), out)),
        Tail::AddRelu(shortcut) => each_plane(x, Some(shortcut), |channel, x, shortcut, out: &mut [T]| {
            affine_add_relu_plane(x, shortcut, &affines.of(channel), out);
        }),
        Tail::AddNormalizedRelu(other) => {
            let others = Affines::new(other.statistics, other.weight, other.bias, false)?;
            each_plane(x, Some(other.x), |channel, x, shortcut, out: &mut [T]| {
                affines_add_relu_plane(x, shortcut, &affines.of(channel), &others.of(channel), out);
            })
        }
    }
}

/// `f(channel, x, shortcut, out)` for every plane of a tensor and of a shortcut of the same shape; without one, its plane is empty. `f` writes all
/// of `out`.
fn each_plane<T: Activation>(
    x: &Tensor,
    shortcut: Option<&Tensor>,
    f: impl Fn(usize, &[T], &[T], &mut [T]) + Sync,
) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let planes = Planes { b, c, hw: h * w };
    let write = |x: &[T], shortcut: &[T]| {
        // SAFETY: each channel's planes are written by one task, and together they are all elements.
        let data = unsafe {
            filled_vec(x.len(), |out| {
                (0..c).into_par_iter().for_each(|channel| {
                    for start in planes.starts(channel) {
                        let range = start..start + planes.hw;
                        let shortcut = shortcut.get(range.clone()).unwrap_or_default();
                        f(channel, &x[range], shortcut, out.slice(start, planes.hw));
                    }
                });
            })
        };
        tensor_from(data, (b, c, h, w))
    };
    with_numbers(x, "batch-norm", |x| match shortcut {
        Some(shortcut) => with_numbers(shortcut, "batch-norm", |shortcut| write(x, shortcut)),
        None => write(x, &[]),
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
    let affines = Affines::new(statistics, weight, bias, relu)?;
    in_format!(x, normalize_backward_in(x, &affines, grad))
}

fn normalize_backward_in<T: Activation>(x: &Tensor, affines: &Affines, grad: &Tensor) -> Result<BatchNormGradients> {
    let (b, c, h, w) = x.dims4()?;
    let planes = Planes { b, c, hw: h * w };
    let mut sums = vec![(0.0f32, 0.0f32); c];
    let grad_x = with_numbers(x, "batch-norm", |x: &[T]| {
        with_numbers(grad, "batch-norm", |g| {
            let input = Backward { planes: &planes, x, g };
            // SAFETY: each channel's planes are written by one task, and together they are all elements.
            let data = unsafe {
                filled_vec(x.len(), |out| {
                    sums.par_iter_mut().enumerate().for_each(|(channel, sums)| {
                        let affine = affines.of(channel);
                        *sums = input.sums(channel, &affine);
                        input.grad_x(channel, &affine, *sums, out);
                    });
                })
            };
            tensor_from(data, (b, c, h, w))
        })
    })?;
    BatchNormGradients::new(grad_x, &sums)
}

impl BatchNormGradients {
    /// `sums` are the gradients of bias and weight.
    pub(crate) fn new(x: Tensor, sums: &[(f32, f32)]) -> Result<Self> {
        let each = |f: &dyn Fn(&(f32, f32)) -> f32| tensor_from(sums.iter().map(f).collect(), sums.len());
        Ok(BatchNormGradients { x, weight: each(&|sums| sums.1)?, bias: each(&|sums| sums.0)? })
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
    fn mean_and_squares<T: Activation>(&self, x: &[T], channel: usize) -> (f64, f64) {
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

/// The sums of both of `terms` over the pairs of numbers.
#[inline(always)]
fn sum_pairs<T: Activation, U: Activation>(a: &[T], b: &[U], terms: impl Fn(f32, f32) -> (f32, f32)) -> (f64, f64) {
    let b = &b[..a.len()];
    let mut total = (0.0f64, 0.0f64);
    let whole = a.len() / LANES * LANES;
    for (a, b) in a[..whole].chunks(RUN).zip(b[..whole].chunks(RUN)) {
        let (mut first, mut second) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (a, b) = (a.as_chunks::<LANES>().0, b.as_chunks::<LANES>().0);
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                let (x, y) = terms(a[lane].value(), b[lane].value());
                first[lane] += x;
                second[lane] += y;
            }
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
    for (a, b) in a[whole..].iter().zip(&b[whole..]) {
        let (x, y) = terms(a.value(), b.value());
        total.0 += x as f64;
        total.1 += y as f64;
    }
    total
}

multiversion! {
    /// The sum of `x - centre` and that of its square.
    fn sums_around<T: Activation>(x: &[T], centre: f32) -> (f64, f64) {
        sum_pairs(x, x, |x, _| (x - centre, (x - centre) * (x - centre)))
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
    pub(crate) fn affine_plane<T: Activation, U: Activation>(x: &[T], affine: &Affine, out: &mut [U]) {
        let Affine { scale, mean, shift, relu, .. } = *affine;
        if relu {
            for (o, x) in out.iter_mut().zip(x) {
                let v = (x.value() - mean) * scale + shift;
                *o = U::nearest(if v < 0.0 { 0.0 } else { v });
            }
        } else {
            for (o, x) in out.iter_mut().zip(x) {
                *o = U::nearest((x.value() - mean) * scale + shift);
            }
        }
    }
}

multiversion! {
    fn affine_add_relu_plane<T: Activation>(x: &[T], shortcut: &[T], affine: &Affine, out: &mut [T]) {
        let Affine { scale, mean, shift, .. } = *affine;
        for ((o, x), s) in out.iter_mut().zip(x).zip(shortcut) {
            let v = (x.value() - mean) * scale + shift + s.value();
            *o = T::nearest(if v < 0.0 { 0.0 } else { v });
        }
    }
}

multiversion! {
    fn affines_add_relu_plane<T: Activation>(x: &[T], shortcut: &[T], affine: &Affine, other: &Affine, out: &mut [T]) {
        let Affine { scale, mean, shift, .. } = *affine;
        for ((o, x), s) in out.iter_mut().zip(x).zip(shortcut) {
            let s = (s.value() - other.mean) * other.scale + other.shift;
            let v = (x.value() - mean) * scale + shift + s;
            *o = T::nearest(if v < 0.0 { 0.0 } else { v });
        }
    }
}

/// Input of the backward pass.
struct Backward<'a, T> {
    planes: &'a Planes,
    x: &'a [T],
    g: &'a [T],
}

impl<T: Activation> Backward<'_, T> {
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
    unsafe fn grad_x(&self, channel: usize, affine: &Affine, (sum, dot): (f32, f32), out: SendPtr<T>) {
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
    pub(crate) fn backward_sums<T: Activation, U: Activation>(x: &[T], g: &[U], mean: f32) -> (f64, f64) {
        sum_pairs(x, g, |x, g| (g, g * (x - mean)))
    }
}

multiversion! {
    fn backward_sums_relu<T: Activation>(x: &[T], g: &[T], affine: &Affine) -> (f64, f64) {
        sum_pairs(x, g, |x, g| {
            let g = masked(x, g, affine);
            (g, g * (x - affine.mean))
        })
    }
}

multiversion! {
    fn grad_x_plain<T: Activation>(x: &[T], g: &[T], affine: &Affine, means: [f32; 2], out: &mut [T]) {
        for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
            *o = T::nearest(affine.scale * (g.value() - means[0] - (x.value() - affine.mean) * means[1]));
        }
    }
}

multiversion! {
    fn grad_x_relu<T: Activation>(x: &[T], g: &[T], affine: &Affine, means: [f32; 2], out: &mut [T]) {
        for ((o, x), g) in out.iter_mut().zip(x).zip(g) {
            let g = masked(x.value(), g.value(), affine);
            *o = T::nearest(affine.scale * (g - means[0] - (x.value() - affine.mean) * means[1]));
        }
    }
}
