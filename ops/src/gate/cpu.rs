//! The gate on the CPU, plane by plane. A plane is a channel of an image; with one gate for all, a run of numbers.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Gates, Map, Sizes};
use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::multiversion;
use crate::cpu::{CHUNK, SendPtr, filled_vec, tensor_from, with_f32, with_numbers, with_scratch};

/// As [`super::mix`].
pub(super) fn mix(sam: &Tensor, cnn: &Tensor, logits: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let gates = Planes::new(logits, sizes)?;
    in_format!(sam, mixed(sam, cnn, &gates))
}

/// The gradient of one of the maps.
pub(super) fn mix_backward(gradient: &Tensor, logits: &Tensor, sizes: Sizes, map: Map) -> Result<Tensor> {
    let gates = Planes::new(logits, sizes)?;
    in_format!(gradient, of_map(gradient, &gates, map))
}

/// The gradient of the logits, float32.
pub(super) fn mix_backward_logits(
    gradient: &Tensor,
    sam: &Tensor,
    cnn: &Tensor,
    logits: &Tensor,
    sizes: Sizes,
) -> Result<Tensor> {
    let gates = Planes::new(logits, sizes)?;
    let sums = in_format!(gradient, sums_of(gradient, [sam, cnn], &gates))?;
    let found = sums.iter().zip(&gates.values).map(|(sum, gate)| sum * gate * (1.0 - gate)).collect();
    tensor_from(found, logits.shape())
}

/// The gates, and the planes of the maps that they belong to.
struct Planes {
    /// Sigmoids.
    values: Vec<f32>,
    sizes: Sizes,
    /// Elements of a plane; the last plane may be shorter.
    len: usize,
}

impl Planes {
    fn new(logits: &Tensor, sizes: Sizes) -> Result<Self> {
        // The standard `exp` overflows to infinity, so that a very negative logit closes its gate exactly.
        let sigmoid = |logit: &f32| 1.0 / (1.0 + (-logit).exp());
        let values = with_f32(logits, "gate", |logits| Ok(logits.iter().map(sigmoid).collect::<Vec<f32>>()))?;
        let len = if sizes.gates == Gates::One { CHUNK } else { sizes.pixels };
        Ok(Planes { values, sizes, len: len.max(1) })
    }

    /// Calls `f` with the gate of each of the `len` elements of a plane.
    fn with_gates(&self, plane: usize, len: usize, f: impl FnOnce(&[f32])) {
        let Sizes { channels, pixels, gates, .. } = self.sizes;
        let same = match gates {
            Gates::Pixels => return f(&self.values[plane / channels * pixels..][..len]),
            Gates::One => self.values[0],
            Gates::Channels => self.values[plane % channels],
        };
        with_scratch(len, |gates| {
            gates.fill(same);
            f(gates);
        });
    }

    /// A result of `len` elements, plane by plane on all threads.
    ///
    /// # Safety
    /// `f`, which gets a plane's elements, their gates and memory for the result, writes all of it.
    unsafe fn each<T: Activation>(&self, len: usize, f: impl Fn(Range<usize>, &[f32], &mut [T]) + Sync) -> Vec<T> {
        let fill = |out: SendPtr<T>| {
            (0..len.div_ceil(self.len)).into_par_iter().for_each(|plane| {
                let range = plane * self.len..len.min((plane + 1) * self.len);
                // SAFETY: the planes are disjoint and lie within the result.
                let out = unsafe { out.slice(range.start, range.len()) };
                self.with_gates(plane, range.len(), |gates| f(range, gates, out));
            });
        };
        // SAFETY: the planes are all of the result, and the caller's promise.
        unsafe { filled_vec(len, fill) }
    }
}

fn mixed<T: Activation>(sam: &Tensor, cnn: &Tensor, gates: &Planes) -> Result<Tensor> {
    with_numbers(sam, "gate", |a: &[T]| {
        with_numbers(cnn, "gate", |b: &[T]| {
            // SAFETY: `mix_run` writes all of its last argument, which is as long as the others.
            let y = unsafe { gates.each(a.len(), |at, gates, out| mix_run(&a[at.clone()], &b[at], gates, out)) };
            tensor_from(y, sam.shape())
        })
    })
}

fn of_map<T: Activation>(gradient: &Tensor, gates: &Planes, map: Map) -> Result<Tensor> {
    with_numbers(gradient, "gate", |g: &[T]| {
        let run: fn(&[T], &[f32], &mut [T]) = if map == Map::Sam { share_run } else { rest_run };
        // SAFETY: both write all of their last argument, which is as long as the others.
        let found = unsafe { gates.each(g.len(), |at, gates, out| run(&g[at], gates, out)) };
        tensor_from(found, gradient.shape())
    })
}

/// `Σ g·(a - b)` over the numbers that have one gate, in an order that does not depend on the threads.
fn sums_of<T: Activation>(gradient: &Tensor, [sam, cnn]: [&Tensor; 2], gates: &Planes) -> Result<Vec<f32>> {
    let Sizes { images, channels, pixels, gates: kind } = gates.sizes;
    with_numbers(gradient, "gate", |g: &[T]| {
        with_numbers(sam, "gate", |a: &[T]| {
            with_numbers(cnn, "gate", |b: &[T]| {
                if kind == Gates::Pixels {
                    let mut sums = vec![0f32; images * pixels];
                    sums.par_chunks_mut(pixels.max(1)).enumerate().for_each(|(image, sums)| {
                        for channel in 0..channels {
                            let at = (image * channels + channel) * pixels..(image * channels + channel + 1) * pixels;
                            add_products(&g[at.clone()], &a[at.clone()], &b[at], sums);
                        }
                    });
                    return Ok(sums);
                }
                let planes = g.par_chunks(gates.len).zip(a.par_chunks(gates.len)).zip(b.par_chunks(gates.len));
                let of_planes: Vec<f32> = planes.map(|((g, a), b)| product_with_difference(g, a, b)).collect();
                let mut sums = vec![0f64; gates.values.len()];
                let count = sums.len();
                of_planes.iter().enumerate().for_each(|(plane, sum)| sums[plane % count] += f64::from(*sum));
                Ok(sums.into_iter().map(|sum| sum as f32).collect())
            })
        })
    })
}

multiversion! {
    fn mix_run<T: Activation>(a: &[T], b: &[T], gates: &[f32], out: &mut [T]) {
        for (((o, a), b), gate) in out.iter_mut().zip(a).zip(b).zip(gates) {
            let (a, b) = (a.value(), b.value());
            *o = T::nearest((a - b) * gate + b);
        }
    }
}

multiversion! {
    fn share_run<T: Activation>(g: &[T], gates: &[f32], out: &mut [T]) {
        for ((o, g), gate) in out.iter_mut().zip(g).zip(gates) {
            *o = T::nearest(g.value() * gate);
        }
    }
}

multiversion! {
    fn rest_run<T: Activation>(g: &[T], gates: &[f32], out: &mut [T]) {
        for ((o, g), gate) in out.iter_mut().zip(g).zip(gates) {
            *o = T::nearest(g.value() - g.value() * gate);
        }
    }
}

multiversion! {
    fn add_products<T: Activation>(g: &[T], a: &[T], b: &[T], sums: &mut [f32]) {
        for (((sum, g), a), b) in sums.iter_mut().zip(g).zip(a).zip(b) {
            *sum += g.value() * (a.value() - b.value());
        }
    }
}

multiversion! {
    /// `Σ g·(a - b)`, in sixteen sums that are added at the end.
    fn product_with_difference<T: Activation>(g: &[T], a: &[T], b: &[T]) -> f32 {
        const LANES: usize = 16;
        let mut sums = [0f32; LANES];
        for ((g, a), b) in g.chunks(LANES).zip(a.chunks(LANES)).zip(b.chunks(LANES)) {
            for (((sum, g), a), b) in sums.iter_mut().zip(g).zip(a).zip(b) {
                *sum += g.value() * (a.value() - b.value());
            }
        }
        sums.iter().sum()
    }
}
