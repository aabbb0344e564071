//! Max-pooling 3×3 with stride 2 and padding 1, after ResNet's first convolution (`torch.nn.MaxPool2d(3, 2, 1)`).

pub(crate) mod cpu;
pub(crate) mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::dispatch::{Path, path};

/// Max-pooling with a 3×3 window, stride 2 and padding 1 of minus infinity. NaN wins, as in PyTorch. Keeps no graph: in training, pooling comes with
/// the batch norm before it ([`crate::normalize_relu_max_pool`]).
///
/// # Shapes
/// `x` `[b, c, h, w]` → `[b, c, ceil(h/2), ceil(w/2)]`.
///
/// # Errors
/// An input without pixels.
pub fn max_pool2d_3x3_s2_p1(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h == 0 || w == 0 {
        bail!("max_pool2d: expected an input with pixels, found {:?}", x.dims());
    }
    let _span = tracing::trace_span!("max-pool2d").entered();
    match path(&[x]) {
        Path::Cuda => cuda::max_pool(x),
        Path::Cpu => cpu::max_pool(x),
        Path::Composed => max_pool2d_3x3_s2_p1_composed(x),
    }
}

/// [`max_pool2d_3x3_s2_p1`] composed of candle's operations, for any device and data type; the tests' reference.
///
/// # Errors
/// Another rank.
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
                    // Keep the best where it is not less, or where it is NaN and the new value is not.
                    let keep = (best.ge(&value)? + (best.ne(&best)? * value.eq(&value)?)?)?;
                    keep.where_cond(&best, &value)?
                }
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::msg("max_pool2d: no window"))
}
