//! Max-pooling on the CPU.
//!
//! A plane is split into even and odd columns, so that a row of windows reads contiguous memory. The backward pass (of pooling after batch norm,
//! [`crate::batch_norm_pool`]) finds each window's maximum again, which is cheaper than storing its position.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::{multiversion, zero_if};
use crate::cpu::{filled_vec, tensor_from, with_numbers, with_scratch};

/// As [`super::max_pool2d_3x3_s2_p1`].
pub(super) fn max_pool(x: &Tensor) -> Result<Tensor> {
    in_format!(x, pooled(x))
}

fn pooled<T: Activation>(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let split = Split { h, w };
    let (pixels, outputs) = (h * w, split.rows() * split.columns());
    with_numbers(x, "max-pool2d", |x: &[T]| {
        // SAFETY: every plane is written by one task, whole.
        let data = unsafe {
            filled_vec(b * c * outputs, |out| {
                x.par_chunks_exact(pixels).enumerate().for_each(|(p, x)| {
                    let out: &mut [T] = out.slice(p * outputs, outputs);
                    with_scratch(split.len(), |scratch| forward_plane(&split, x, scratch, out));
                });
            })
        };
        tensor_from(data, (b, c, split.rows(), split.columns()))
    })
}

/// A plane of `h × w` with a border, split into even and odd columns: `h + 2` rows, each the even columns and then the odd ones with one more
/// before the first and perhaps one after the last.
pub(crate) struct Split {
    pub(crate) h: usize,
    pub(crate) w: usize,
}

impl Split {
    /// Rows of windows.
    pub(crate) fn rows(&self) -> usize {
        self.h.div_ceil(2)
    }

    /// Windows in a row.
    pub(crate) fn columns(&self) -> usize {
        self.w.div_ceil(2)
    }

    /// Floats of a row.
    fn stride(&self) -> usize {
        2 * self.columns() + 1
    }

    pub(crate) fn len(&self) -> usize {
        (self.h + 2) * self.stride()
    }

    /// The even and the odd columns of a row, counted from the border.
    #[inline(always)]
    fn row<'a>(&self, split: &'a [f32], row: usize) -> (&'a [f32], &'a [f32]) {
        split[row * self.stride()..][..self.stride()].split_at(self.columns())
    }

    /// Splits a plane; the border is minus infinity.
    #[inline(always)]
    fn fill<T: Activation>(&self, x: &[T], split: &mut [f32]) {
        let columns = self.columns();
        let (top, rest) = split.split_at_mut(self.stride());
        top.fill(f32::NEG_INFINITY);
        for (row, line) in rest.chunks_exact_mut(self.stride()).enumerate() {
            let Some(x) = x.get(row * self.w..(row + 1) * self.w) else {
                line.fill(f32::NEG_INFINITY);
                continue;
            };
            let (even, odd) = line.split_at_mut(columns);
            odd[0] = f32::NEG_INFINITY;
            odd[columns] = f32::NEG_INFINITY;
            let pairs = x.chunks_exact(2);
            if let [last] = pairs.remainder() {
                even[columns - 1] = last.value();
            }
            for ((even, odd), pair) in even.iter_mut().zip(&mut odd[1..]).zip(pairs) {
                *even = pair[0].value();
                *odd = pair[1].value();
            }
        }
    }

    /// The nine runs that hold the elements of a row's windows, in scan order.
    #[inline(always)]
    fn taps<'a>(&self, split: &'a [f32], row: usize) -> [&'a [f32]; 9] {
        let n = self.columns();
        std::array::from_fn(|tap| {
            let (even, odd) = self.row(split, 2 * row + tap / 3);
            match tap % 3 {
                0 => &odd[..n],
                1 => &even[..n],
                _ => &odd[1..][..n],
            }
        })
    }
}

/// Whether `v` replaces the maximum so far: if it is larger (so the first of equal values stays) or NaN.
#[inline(always)]
fn replaces(v: f32, best: f32) -> bool {
    (v > best) | v.is_nan()
}

multiversion! {
    pub(crate) fn forward_plane<T: Activation, U: Activation>(split: &Split, x: &[T], scratch: &mut [f32], out: &mut [U]) {
        split.fill(x, scratch);
        for (row, out) in out.chunks_exact_mut(split.columns()).enumerate() {
            let taps = split.taps(scratch, row);
            for (i, out) in out.iter_mut().enumerate() {
                let mut best = f32::NEG_INFINITY;
                for tap in taps {
                    let v = tap[i];
                    best = if replaces(v, best) { v } else { best };
                }
                *out = U::nearest(best);
            }
        }
    }
}

multiversion! {
    pub(crate) fn backward_plane<T: Activation>(split: &Split, x: &[f32], g: &[T], scratch: &mut [f32], out: &mut [f32]) {
        let columns = split.columns();
        let (values, rest) = scratch.split_at_mut(split.len());
        let (grads, place) = rest.split_at_mut(split.len());
        split.fill(x, values);
        grads.fill(0.0);
        for (row, g) in g.chunks_exact(columns).enumerate() {
            let taps = split.taps(values, row);
            for (i, place) in place.iter_mut().enumerate() {
                // A window with only minus infinity gives its gradient to the centre.
                let (mut best, mut at) = (f32::NEG_INFINITY, 4.0);
                for (tap, values) in taps.iter().enumerate() {
                    let v = values[i];
                    let replace = replaces(v, best);
                    best = if replace { v } else { best };
                    at = if replace { tap as f32 } else { at };
                }
                *place = at;
            }
            for dy in 0..3 {
                let (even, odd) = grads[(2 * row + dy) * split.stride()..][..split.stride()].split_at_mut(columns);
                for (dx, line) in [(1, even), (0, &mut odd[..columns])] {
                    add_where(g, place, (3 * dy + dx) as f32, line);
                }
                add_where(g, place, (3 * dy + 2) as f32, &mut odd[1..]);
            }
        }
        for (row, out) in out.chunks_exact_mut(split.w).enumerate() {
            let (even, odd) = split.row(grads, row + 1);
            for ((pair, even), odd) in out.chunks_exact_mut(2).zip(even).zip(&odd[1..]) {
                pair[0] = *even;
                pair[1] = *odd;
            }
            if split.w % 2 == 1 {
                out[split.w - 1] = even[columns - 1];
            }
        }
    }
}

/// Adds `g` to `line` where `place` is `tap`.
#[inline(always)]
fn add_where<T: Activation>(g: &[T], place: &[f32], tap: f32, line: &mut [f32]) {
    for ((line, g), place) in line.iter_mut().zip(g).zip(place) {
        *line += zero_if(*place != tap, g.value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Values and gradients that PyTorch made (`tests/data/make_conv.py`), also where maxima tie.
    #[test]
    fn pooling_is_pytorchs() -> Result<()> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/conv_pytorch.safetensors");
        let golden = candle_core::safetensors::load(file, &Device::Cpu)?;
        let values = |name: &str| golden[&format!("max_pool/{name}")].flatten_all()?.to_vec1::<f32>();
        let (_, _, h, w) = golden["max_pool/x"].dims4()?;
        let split = Split { h, w };
        let (pixels, outputs) = (h * w, split.rows() * split.columns());
        let (x, result, of_result, of_x) = (values("x")?, values("result")?, values("grad_result")?, values("grad_x")?);
        let mut scratch = vec![0.0; 2 * split.len() + split.columns()];
        for (plane, x) in x.chunks_exact(pixels).enumerate() {
            let (mut y, mut gradient) = (vec![0f32; outputs], vec![0f32; pixels]);
            forward_plane(&split, x, &mut scratch, &mut y);
            assert_eq!(y, result[plane * outputs..][..outputs]);
            backward_plane(&split, x, &of_result[plane * outputs..][..outputs], &mut scratch, &mut gradient);
            for (got, want) in gradient.iter().zip(&of_x[plane * pixels..]) {
                assert!((got - want).abs() <= 1e-6, "{got}, PyTorch {want}");
            }
        }
        Ok(())
    }
}
