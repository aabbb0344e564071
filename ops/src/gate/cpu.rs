//! The gate on the CPU, plane by plane. A plane is a channel of an image; with one gate for all, a run of numbers.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Gates, Map, Sizes};
use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::multiversion;
use crate::cpu::{CHUNK, SendPtr, filled_vec, tensor_from, with_f32, with_numbers};

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

/// The gates, and what of the maps has which.
struct Planes {
    /// Sigmoids.
    values: Vec<f32>,
    sizes: Sizes,
    /// Numbers of a plane; the last may have fewer.
    len: usize,
}

impl Planes {
    fn new(logits: &Tensor, sizes: Sizes) -> Result<Self> {
        // With the library's exponential, which becomes infinite: a gate far below zero is closed.
        let sigmoid = |logit: &f32| 1.0 / (1.0 + (-logit).exp());
        let values = with_f32(logits, "gate", |logits| Ok(logits.iter().map(sigmoid).collect::<Vec<f32>>()))?;
        let len = if sizes.gates == Gates::One { CHUNK } else { sizes.pixels };
        Ok(Planes { values, sizes, len: len.max(1) })
    }

    /// That of all numbers of a plane, or those of each.
    fn of(&self, plane: usize) -> Gate<'_> {
        let Sizes { channels, pixels, gates, .. } = self.sizes;
        match gates {
            Gates::One => Gate::Same(self.values[0]),
            Gates::Channels => Gate::Same(self.values[plane % channels]),
            Gates::Pixels => Gate::Each(&self.values[plane / channels * pixels..][..pixels]),
        }
    }

    /// A result as large as a map, whose planes `f` writes.
    fn each<T: Activation>(&self, len: usize, f: impl Fn(usize, std::ops::Range<usize>, &mut [T]) + Sync) -> Vec<T> {
        let fill = |out: SendPtr<T>| {
            (0..len.div_ceil(self.len)).into_par_iter().for_each(|plane| {
                let range = plane * self.len..len.min((plane + 1) * self.len);
                // SAFETY: the planes are disjoint and all of the result; `f` writes all of its plane.
                f(plane, range.clone(), unsafe { out.slice(range.start, range.len()) });
            });
        };
        // SAFETY: as above.
        unsafe { filled_vec(len, fill) }
    }
}

/// The gates of a plane's numbers.
enum Gate<'a> {
    Same(f32),
    Each(&'a [f32]),
}

fn mixed<T: Activation>(sam: &Tensor, cnn: &Tensor, gates: &Planes) -> Result<Tensor> {
    with_numbers(sam, "gate", |a: &[T]| {
        with_numbers(cnn, "gate", |b: &[T]| {
            let y = gates.each(a.len(), |plane, at, out| match gates.of(plane) {
                Gate::Same(gate) => mix_run(&a[at.clone()], &b[at], gate, out),
                Gate::Each(gates) => mix_each(&a[at.clone()], &b[at], gates, out),
            });
            tensor_from(y, sam.shape())
        })
    })
}

fn of_map<T: Activation>(gradient: &Tensor, gates: &Planes, map: Map) -> Result<Tensor> {
    with_numbers(gradient, "gate", |g: &[T]| {
        let found = gates.each(g.len(), |plane, at, out| match (gates.of(plane), map) {
            (Gate::Same(gate), Map::Sam) => share_run(&g[at], gate, out),
            (Gate::Same(gate), Map::Cnn) => rest_run(&g[at], gate, out),
            (Gate::Each(gates), Map::Sam) => share_each(&g[at], gates, out),
            (Gate::Each(gates), Map::Cnn) => rest_each(&g[at], gates, out),
        });
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
    fn mix_run<T: Activation>(a: &[T], b: &[T], gate: f32, out: &mut [T]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            let (a, b) = (a.value(), b.value());
            *o = T::nearest((a - b) * gate + b);
        }
    }
}

multiversion! {
    fn mix_each<T: Activation>(a: &[T], b: &[T], gates: &[f32], out: &mut [T]) {
        for (((o, a), b), gate) in out.iter_mut().zip(a).zip(b).zip(gates) {
            let (a, b) = (a.value(), b.value());
            *o = T::nearest((a - b) * gate + b);
        }
    }
}

multiversion! {
    fn share_run<T: Activation>(g: &[T], gate: f32, out: &mut [T]) {
        for (o, g) in out.iter_mut().zip(g) {
            *o = T::nearest(g.value() * gate);
        }
    }
}

multiversion! {
    fn share_each<T: Activation>(g: &[T], gates: &[f32], out: &mut [T]) {
        for ((o, g), gate) in out.iter_mut().zip(g).zip(gates) {
            *o = T::nearest(g.value() * gate);
        }
    }
}

multiversion! {
    fn rest_run<T: Activation>(g: &[T], gate: f32, out: &mut [T]) {
        for (o, g) in out.iter_mut().zip(g) {
            *o = T::nearest(g.value() - g.value() * gate);
        }
    }
}

multiversion! {
    fn rest_each<T: Activation>(g: &[T], gates: &[f32], out: &mut [T]) {
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
