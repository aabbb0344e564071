//! Max-pooling on a GPU.

use candle_core::{Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, Output, THREADS, suffix};

const MODULE: &str = "max_pool";
/// Planes per launch: the limit of a grid's second axis.
const PLANES: usize = 65_535;

/// Launches a kernel over the planes of `[b, c, h, w]`, as many as fit a grid at a time; `points` threads per plane. `args` gives the arguments from an
/// image on, before the number of channels and the sides.
///
/// # Safety
/// As [`Gpu::launch`], for the images from the one that `args` is called with on.
pub(crate) unsafe fn over_planes(
    (module, kernel): (&'static str, &str),
    x: &Tensor,
    points: usize,
    args: impl Fn(usize) -> Vec<Arg<'static>>,
) -> Result<()> {
    let (b, c, h, w) = x.dims4()?;
    let images = (PLANES / c.max(1)).max(1);
    let kernel = format!("{kernel}_{}", suffix(x.dtype())?);
    for first in (0..b).step_by(images) {
        let planes = images.min(b - first) * c;
        let grid = Grid::blocks([points.div_ceil(THREADS as usize) as u32, planes as u32, 1]);
        let args = [&args(first)[..], &[c, h, w].map(|n| Arg::Int(n as i32))].concat();
        // SAFETY: the caller's promise; the grid has a row of blocks for each of the planes from `first` on.
        unsafe { Gpu::of(x).launch(module, &kernel, grid, &args)? };
    }
    Ok(())
}

/// `arg`, a pointer, advanced by `elements` of the type of `like`.
pub(crate) fn moved(arg: Arg<'static>, elements: usize, like: &Tensor) -> Arg<'static> {
    match arg {
        Arg::Pointer(pointer) => Arg::Pointer(pointer + (elements * like.dtype().size_in_bytes()) as u64),
        other => other,
    }
}

/// Elements of an image before and after pooling.
pub(crate) fn image_lens(x: &Tensor) -> Result<(usize, usize)> {
    let (_, c, h, w) = x.dims4()?;
    Ok((c * h * w, c * h.div_ceil(2) * w.div_ceil(2)))
}

/// Memory for the pooled planes of `x`.
pub(crate) fn pooled(x: &Tensor) -> Result<Output> {
    let (b, c, h, w) = x.dims4()?;
    Gpu::of(x).output(x.dtype(), (b, c, h.div_ceil(2), w.div_ceil(2)))
}

/// As [`super::max_pool2d_3x3_s2_p1`].
pub(super) fn max_pool(x: &Tensor) -> Result<Tensor> {
    let x = x.detach().contiguous()?;
    let (out, input, (inner, outer)) = (pooled(&x)?, Input::new(&x)?.arg(), image_lens(&x)?);
    let args = |first: usize| vec![moved(input, first * inner, &x), moved(out.arg(), first * outer, &x)];
    // SAFETY: an image has `inner` elements before pooling and `outer` after it.
    unsafe { over_planes((MODULE, "max_pool"), &x, outer / x.dim(1)?.max(1), args)? };
    Ok(out.tensor())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use crate::batch_norm::BatchStatistics;
    use crate::testing::kernels::{FORMATS, compare_results};
    use crate::testing::uniform;

    #[test]
    fn max_pooling_plain_and_after_batch_norm() -> Result<()> {
        for dtype in FORMATS {
            for (b, c, h, w) in [(2, 3, 8, 6), (1, 2, 7, 9), (2, 2, 1, 1), (1, 1, 33, 40)] {
                // Few values, so that windows have equal maxima.
                let x = (uniform(&[b, c, h, w], 1)? * 4.0)?.round()?;
                compare_results("max-pool", &[x], &[0], dtype, |t| Ok(vec![crate::max_pool2d_3x3_s2_p1(&t[0])?]))?;
                if b * h * w < 2 {
                    continue;
                }
                let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
                let pooled = |seed| uniform(&[b, c, oh, ow], seed);
                let inputs = [uniform(&[b, c, h, w], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?, pooled(4)?, pooled(5)?];
                // The gradient goes to one element of a window: in 16 bits the statistics' rounding could choose another, so they are exact here.
                let statistics = |t: &Tensor| -> Result<BatchStatistics> {
                    let ones = Tensor::ones(c, DType::F32, t.device())?;
                    Ok(BatchStatistics {
                        mean: ones.affine(0.125, 0.0)?,
                        var_unbiased: ones.clone(),
                        inv_std: ones.affine(2.0, 0.0)?,
                    })
                };
                compare_results("batch norm, ReLU and max-pool", &inputs, &[0, 3, 4], dtype, |t| {
                    let statistics = statistics(&t[0])?;
                    let (y, places) = crate::normalize_relu_max_pool(&t[0], &statistics, &t[1], &t[2])?;
                    let back = |grad| crate::normalize_relu_max_pool_backward(&t[0], &statistics, &t[1], &t[2], &places, grad);
                    let (one, two) = (back((&t[3], None))?, back((&t[3], Some(&t[4])))?);
                    Ok(vec![y, one.x, one.weight, one.bias, two.x, two.weight, two.bias])
                })?;
            }
        }
        let x = Tensor::new(&[[[[1.0f32, f32::NAN], [3.0, 0.0]]]], &Device::Cpu)?;
        compare_results("max-pool of what is not a number", &[x], &[0], DType::F32, |t| {
            Ok(vec![crate::max_pool2d_3x3_s2_p1(&t[0])?])
        })
    }
}
