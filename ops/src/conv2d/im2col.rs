//! Convolution of any size as matrix products: an image's windows become the columns of a matrix.

use rayon::prelude::*;

use super::shape::ConvShape;
use crate::cpu::{filled_vec, with_scratch};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};

/// Maximal number of groups of images for the weight's gradient; fixed, so that the sum's order does not depend on the threads.
const PARTS: usize = 8;

impl ConvShape {
    /// Rows of the column matrix.
    fn taps(&self) -> usize {
        self.ci * self.k * self.k
    }

    /// Output positions `o` along an axis of `n` inputs and `on` outputs for which tap `d` reads an input rather than padding.
    fn valid(&self, d: usize, n: usize, on: usize) -> std::ops::Range<usize> {
        let start = self.padding.saturating_sub(d).div_ceil(self.stride).min(on);
        let end = (n + self.padding).saturating_sub(d).div_ceil(self.stride).min(on);
        start..end.max(start)
    }

    /// Calls `f(row of the matrix, output row, valid columns, first input index)` for each row of windows and each tap.
    fn for_each_run(&self, mut f: impl FnMut(usize, usize, std::ops::Range<usize>, Option<usize>)) {
        for tap in 0..self.taps() {
            let (c, dy, dx) = (tap / (self.k * self.k), tap / self.k % self.k, tap % self.k);
            let rows = self.valid(dy, self.h, self.oh);
            let columns = self.valid(dx, self.w, self.ow);
            for oy in 0..self.oh {
                if rows.contains(&oy) && !columns.is_empty() {
                    let y = oy * self.stride + dy - self.padding;
                    let x = columns.start * self.stride + dx - self.padding;
                    f(tap, oy, columns.clone(), Some((c * self.h + y) * self.w + x));
                } else {
                    f(tap, oy, 0..0, None);
                }
            }
        }
    }

    /// One image `[ci, h, w]` → `[ci·k·k, oh·ow]`.
    fn im2col(&self, image: &[f32], columns: &mut [f32]) {
        self.for_each_run(|tap, oy, valid, from| {
            let row = &mut columns[(tap * self.oh + oy) * self.ow..][..self.ow];
            row[..valid.start].fill(0.0);
            row[valid.end..].fill(0.0);
            let Some(from) = from else { return };
            if self.stride == 1 {
                row[valid.clone()].copy_from_slice(&image[from..from + valid.len()]);
            } else {
                for (o, v) in row[valid].iter_mut().zip(image[from..].iter().step_by(self.stride)) {
                    *o = *v;
                }
            }
        });
    }

    /// The transpose of [`Self::im2col`]: adds each column's elements to their pixels.
    fn col2im(&self, columns: &[f32], image: &mut [f32]) {
        image.fill(0.0);
        self.for_each_run(|tap, oy, valid, to| {
            let Some(to) = to else { return };
            let row = &columns[(tap * self.oh + oy) * self.ow..][..self.ow];
            for (o, v) in image[to..].iter_mut().step_by(self.stride).zip(&row[valid]) {
                *o += *v;
            }
        });
    }
}

/// `[b, co, oh, ow]`.
pub(super) fn forward(g: &ConvShape, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (n, image, taps) = (g.oh * g.ow, g.ci * g.h * g.w, g.taps());
    let weight = MatRef::new(weight, g.co, taps);
    // SAFETY: every image is written by one task, whole.
    unsafe {
        filled_vec(g.output_len(), |out| {
            (0..g.b).into_par_iter().for_each(|i| {
                with_scratch(taps * n, |columns| {
                    g.im2col(&x[i * image..][..image], columns);
                    let out = MatMut::new(out.slice(i * g.co * n, g.co * n), g.co, n);
                    matmul_serial(out, weight, MatRef::new(columns, taps, n), 1.0, Accumulate::No);
                });
            });
        })
    }
}

/// The gradient of the input, `[b, ci, h, w]`.
pub(super) fn backward_data(g: &ConvShape, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    let (n, image, taps) = (g.oh * g.ow, g.ci * g.h * g.w, g.taps());
    let weight = MatRef::new(weight, g.co, taps).t();
    // SAFETY: every image is written by one task, whole.
    unsafe {
        filled_vec(g.input_len(), |out| {
            (0..g.b).into_par_iter().for_each(|i| {
                with_scratch(taps * n, |columns| {
                    let grad = MatRef::new(&grad[i * g.co * n..][..g.co * n], g.co, n);
                    matmul_serial(MatMut::new(columns, taps, n), weight, grad, 1.0, Accumulate::No);
                    g.col2im(columns, out.slice(i * image, image));
                });
            });
        })
    }
}

/// The gradient of the weight, `[co, ci, k, k]`.
pub(super) fn backward_weight(g: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let (n, image, taps) = (g.oh * g.ow, g.ci * g.h * g.w, g.taps());
    let parts = g.b.clamp(1, PARTS);
    let mut partial = vec![0.0f32; parts * g.weight_len()];
    partial.par_chunks_mut(g.weight_len().max(1)).enumerate().for_each(|(part, sum)| {
        with_scratch(taps * n, |columns| {
            for i in part * g.b / parts..(part + 1) * g.b / parts {
                g.im2col(&x[i * image..][..image], columns);
                let grad = MatRef::new(&grad[i * g.co * n..][..g.co * n], g.co, n);
                let columns = MatRef::new(columns, taps, n).t();
                matmul_serial(MatMut::new(sum, g.co, taps), grad, columns, 1.0, Accumulate::Yes);
            }
        });
    });
    crate::cpu::sum_parts(&partial, g.weight_len())
}
