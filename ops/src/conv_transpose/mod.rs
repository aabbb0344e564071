//! Transposed convolution 2×2 with stride 2 (`torch.nn.ConvTranspose2d(ci, co, 2, 2)`, the mask decoder's upscaling), as one matrix product and a reshuffle.
//!
//! Windows with stride 2 do not overlap, so each input pixel gives its own 2×2 patch: `[co·4, ci] × [ci, h·w]` holds all patches, and only
//! their order differs from the result's.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::device::F32Math;
use crate::dispatch::{Path, path};

/// Transposed convolution with a 2×2 kernel and stride 2. Differentiable with respect to all three tensors; `math` says how a GPU rounds float32
/// factors.
///
/// # Shapes
/// `x` `[b, ci, h, w]`, `weight` `[ci, co, 2, 2]` (PyTorch's layout), `bias` `[co]` → `[b, co, 2h, 2w]`.
///
/// # Errors
/// Other shapes.
pub fn conv_transpose2d_2x2(x: &Tensor, weight: &Tensor, bias: &Tensor, math: F32Math) -> Result<Tensor> {
    let (_, ci, _, _) = x.dims4()?;
    let (wi, co, kh, kw) = weight.dims4()?;
    if wi != ci || (kh, kw) != (2, 2) || bias.dims() != [co] {
        bail!(
            "conv_transpose2d: expected a weight of [{ci}, co, 2, 2] and a bias of [co], found {:?} and {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    match path(&[x, weight, bias]) {
        Path::Cuda => cuda::conv_transpose2d_2x2(x, weight, bias, math),
        Path::Cpu => cpu::conv_transpose2d_2x2(x, weight, bias),
        Path::Composed => conv_transpose2d_2x2_composed(x, weight, bias),
    }
}

/// [`conv_transpose2d_2x2`] composed of candle's operations, for any device and data type; the tests' reference.
///
/// # Errors
/// Other shapes.
pub fn conv_transpose2d_2x2_composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (b, ci, h, w) = x.dims4()?;
    let (_, co, _, _) = weight.dims4()?;
    let pixels = x.reshape((b, ci, h * w))?.transpose(1, 2)?.contiguous()?.reshape((b * h * w, ci))?;
    let patches = pixels.matmul(&weight.reshape((ci, co * 4))?)?; // [b*h*w, co*4]
    patches
        .reshape(&[b, h, w, co, 2, 2])?
        .permute([0, 3, 1, 4, 2, 5])? // [b, co, h, 2, w, 2]
        .reshape((b, co, 2 * h, 2 * w))?
        .broadcast_add(&bias.reshape((1, co, 1, 1))?)
}
