//! Convolution in bfloat16 with float32 sums, for processors with AMX or AVX512-BF16 ([`crate::matmul::bf16`]). Weights are rounded once per call. The
//! gradient of a weight is float32.
//!
//! - Forward: `out[co][pixel] = Σ_k W[co][k]·x[k][pixel]`, where a row `k = (tap, channel)` is a shifted view of the channel's padded plane ([`planes`]).
//!   Two channels' planes are interleaved, so that what a product reads of them is sixteen neighbouring pixels.
//! - Backward to the input: the input's pixels of one residue modulo the stride are such a product of the padded gradient with their taps.
//! - Backward to the weight: `dW[tap][ci][co] = Σ_pixel x[ci][pixel + tap]·grad[pixel][co]`.
//!
//! Convolutions of few channels (the first layer's) take a row per channel and tap instead of shifted views.

mod correlation;
mod planes;
mod weight;

use half::bf16;
use rayon::prelude::*;

use super::implicit::Residue;
use super::shape::ConvShape;
use crate::cpu::{SendPtr, filled_vec, with_scratch};
use crate::matmul::bf16::{STEP, instructions};
use correlation::{Correlation, Destination};
use planes::Planes;
pub(super) use weight::backward_weight;

/// Whether this path computes the convolution.
pub(super) fn applies(g: &ConvShape) -> bool {
    instructions().is_some() && g.input_len() > 0 && g.output_len() > 0 && 2 * (g.k / g.stride) <= planes::SLACK
}

/// `[b, co, oh, ow]`.
pub(super) fn forward(g: &ConvShape, x: &[bf16], weight: &[f32]) -> Vec<bf16> {
    assert!(applies(g) && x.len() == g.input_len() && weight.len() == g.weight_len());
    let (image, taps) = (g.ci * g.h * g.w, g.k * g.k);
    let shifted = g.ci.is_multiple_of(STEP);
    let planes = if shifted { Planes::split(g) } else { Planes::taps(g) };
    let correlation = match shifted {
        true => Correlation::new(g.co, g.ci, &planes.tap_offsets(g), &planes, |o, tap, c| weight[(o * g.ci + c) * taps + tap]),
        false => Correlation::new(g.co, g.ci * taps, &[0], &planes, |o, _, k| weight[o * g.ci * taps + k]),
    };
    // SAFETY: each image's pixels are written by one task each, all of them.
    unsafe {
        filled_vec(g.output_len(), |out| {
            (0..g.b).into_par_iter().for_each(|i| {
                planes.with_pairs(|source| {
                    let x = &x[i * image..][..image];
                    if shifted {
                        planes.fill_split_pairs(g, x, source)
                    } else {
                        planes.fill_tap_pairs(g, x, source)
                    }
                    let to = Destination { start: i * g.co * g.oh * g.ow, plane: g.oh * g.ow, row: g.ow, column: 1 };
                    correlation.apply(source, (g.oh, g.ow), out, to, g.b);
                });
            });
        })
    }
}

/// The input's pixels of a pair of residues, and the product that gives their gradient, if a tap reads them.
type Phase = (Residue, Residue, Option<Correlation>);

/// The gradient of the input, `[b, ci, h, w]`.
pub(super) fn backward_data(g: &ConvShape, grad: &[bf16], weight: &[f32]) -> Vec<bf16> {
    assert!(applies(g) && grad.len() == g.output_len() && weight.len() == g.weight_len());
    // The gradient with `margin` rows and columns of zeros before it, and enough after it for the last pixels.
    let (s, margin) = (g.stride, (g.k - 1) / g.stride);
    let planes = Planes::with_margin(g, margin);
    let phase = |phase: usize| -> Phase {
        let (y, x) = (Residue::new(g, phase / s, g.h), Residue::new(g, phase % s, g.w));
        if y.taps * x.taps == 0 || y.len(s) == 0 || x.len(s) == 0 {
            return (y, x, None);
        }
        let place = |tap: usize| (tap / x.taps, tap % x.taps);
        let offset = |tap: usize| {
            let (jy, jx) = place(tap);
            (margin + y.first - jy) * planes.width + margin + x.first - jx
        };
        let offsets: Vec<usize> = (0..y.taps * x.taps).map(offset).collect();
        let correlation = Correlation::new(g.ci, g.co, &offsets, &planes, |i, tap, o| {
            let (jy, jx) = place(tap);
            weight[((o * g.ci + i) * g.k + y.tap + jy * s) * g.k + x.tap + jx * s]
        });
        (y, x, Some(correlation))
    };
    let phases: Vec<Phase> = (0..s * s).map(phase).collect();
    let image = g.ci * g.h * g.w;
    let fill = |out: SendPtr<bf16>| {
        (0..g.b).into_par_iter().for_each(|i| {
            planes.with_pairs(|source| {
                planes.fill_margin_pairs(g, &grad[i * g.co * g.oh * g.ow..][..g.co * g.oh * g.ow], margin, source);
                if phases.iter().any(|(.., correlation)| correlation.is_none()) {
                    // SAFETY: the image belongs to this task.
                    unsafe { out.slice(i * image, image) }.fill(bf16::ZERO);
                }
                for (y, x, correlation) in &phases {
                    let Some(correlation) = correlation else { continue };
                    let start = i * image + y.pixels.start * g.w + x.pixels.start;
                    let to = Destination { start, plane: g.h * g.w, row: s * g.w, column: s };
                    // SAFETY: these pixels of the image belong to this task.
                    unsafe { correlation.apply(source, (y.len(s), x.len(s)), out, to, g.b) };
                }
            });
        });
    };
    // SAFETY: the phases are all pixels, and where one has no taps, all pixels are cleared first.
    unsafe { filled_vec(g.input_len(), fill) }
}

/// Calls `f` with `len` pairs of numbers of unspecified content.
fn with_u32<R>(len: usize, f: impl FnOnce(&mut [u32]) -> R) -> R {
    with_scratch(len, |floats| {
        // SAFETY: both types have four bytes and the same alignment, and any bits are a number; the borrow is exclusive.
        f(unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), len) })
    })
}
