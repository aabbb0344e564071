//! Max-pooling 3×3, stride 2, padding 1: the one after ResNet's first convolution.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{contiguous_f32, filled_vec, is_native, tensor_from, with_f32};

/// Max-pooling with a 3×3 window, stride 2 and padding 1 of minus infinity. NaN wins, as in PyTorch; the gradient goes to the first maximum in the
/// window's rows (to the last NaN where there is one).
///
/// # Shapes
/// `x` `[b, c, h, w]` → `[b, c, ceil(h/2), ceil(w/2)]`.
pub fn max_pool2d_3x3_s2_p1(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h == 0 || w == 0 {
        bail!("max_pool2d: expected an input with pixels, found {:?}", x.dims());
    }
    if is_native(&[x]) { x.contiguous()?.apply_op1(MaxPool) } else { max_pool2d_3x3_s2_p1_composed(x) }
}

/// [`max_pool2d_3x3_s2_p1`] as a composition of candle's ops, for any device and data type; the reference of the tests.
pub fn max_pool2d_3x3_s2_p1_composed(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    // Padded to [b, c, 2·(oh + 1), 2·(ow + 1)], so that a window's row or column is a phase of every second one.
    let fill = |shape: [usize; 4]| Tensor::full(f32::NEG_INFINITY, shape.as_slice(), x.device())?.to_dtype(x.dtype());
    let left = fill([b, c, h, 1])?;
    let right = fill([b, c, h, 2 * (ow + 1) - 1 - w])?;
    let wide = Tensor::cat(&[&left, x, &right], 3)?;
    let top = fill([b, c, 1, 2 * (ow + 1)])?;
    let bottom = fill([b, c, 2 * (oh + 1) - 1 - h, 2 * (ow + 1)])?;
    let padded = Tensor::cat(&[&top, &wide, &bottom], 2)?.reshape(&[b, c, oh + 1, 2, ow + 1, 2])?;
    let mut best: Option<Tensor> = None;
    for dy in 0..3 {
        for dx in 0..3 {
            let value = padded
                .narrow(3, dy % 2, 1)?
                .narrow(5, dx % 2, 1)?
                .narrow(2, dy / 2, oh)?
                .narrow(4, dx / 2, ow)?
                .contiguous()?
                .reshape((b, c, oh, ow))?;
            best = Some(match best {
                None => value,
                Some(best) => {
                    // Kept where it is not less, or where it is NaN and the new value is not.
                    let keep = (best.ge(&value)? + (best.ne(&best)? * value.eq(&value)?)?)?;
                    keep.where_cond(&best, &value)?
                }
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::msg("max_pool2d: no window"))
}

struct MaxPool;

/// The window of an output index along one axis of `n` elements.
fn window(o: usize, n: usize) -> std::ops::Range<usize> {
    (2 * o).saturating_sub(1)..(2 * o + 2).min(n)
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let x = contiguous_f32(storage, layout, self.name())?;
        let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
        // SAFETY: every plane is written by one task, whole.
        let data = unsafe {
            filled_vec(b * c * oh * ow, |out| {
                (0..b * c).into_par_iter().for_each(|p| {
                    let (x, out) = (&x[p * h * w..(p + 1) * h * w], out.slice(p * oh * ow, oh * ow));
                    for oy in 0..oh {
                        for ox in 0..ow {
                            out[oy * ow + ox] = x[first_maximum(x, w, window(oy, h), window(ox, w))];
                        }
                    }
                });
            })
        };
        Ok((CpuStorage::F32(data), Shape::from((b, c, oh, ow))))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, h, w) = x.dims4()?;
        let (_, _, oh, ow) = grad.dims4()?;
        with_f32(x, self.name(), |x_data| {
            with_f32(grad, self.name(), |g| {
                let mut data = vec![0.0; x_data.len()];
                data.par_chunks_mut(h * w).zip(x_data.par_chunks(h * w)).zip(g.par_chunks(oh * ow)).for_each(|((out, x), g)| {
                    for oy in 0..oh {
                        for ox in 0..ow {
                            out[first_maximum(x, w, window(oy, h), window(ox, w))] += g[oy * ow + ox];
                        }
                    }
                });
                tensor_from(data, x.shape()).map(Some)
            })
        })
    }
}

/// Where the maximum of a window is: the first in scan order, or the last NaN.
#[inline(always)]
fn first_maximum(x: &[f32], w: usize, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> usize {
    let mut at = rows.start * w + columns.start;
    let mut best = x[at];
    for y in rows {
        for (i, &v) in x[y * w + columns.start..y * w + columns.end].iter().enumerate() {
            if v > best || v.is_nan() {
                best = v;
                at = y * w + columns.start + i;
            }
        }
    }
    at
}
