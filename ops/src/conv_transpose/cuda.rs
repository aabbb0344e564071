//! The 2×2 transposed convolution on a GPU: a matrix product by the device's library, and `kernel.cu` around it.

use candle_core::{DType, Result, Tensor, bail};

use crate::device::{Arg, F32Math, Gpu, Grid, Input, Node, matmul, parameters, splits, suffix};
use crate::partial_sums::sum_partials;

const MODULE: &str = "conv_transpose";

/// As [`super::conv_transpose2d_2x2`].
pub(super) fn conv_transpose2d_2x2(x: &Tensor, weight: &Tensor, bias: &Tensor, math: F32Math) -> Result<Tensor> {
    let x = x.contiguous()?;
    let ((b, ci, h, w), (_, co, _, _)) = (x.dims4()?, weight.dims4()?);
    let matrix = weight.detach().to_dtype(x.dtype())?.contiguous()?.reshape((ci, co * 4))?;
    let patches = matmul(&matrix.t()?.expand((b, co * 4, ci))?, &x.detach().reshape((b, ci, h * w))?, math)?; // [b, co·4, h·w]
    let shift = parameters(bias)?;
    let gpu = Gpu::of(&x);
    let out = gpu.output(x.dtype(), (b, co, 2 * h, 2 * w))?;
    let pairs = b * co * 2 * h * w;
    let pointers = [Input::new(&patches)?.arg(), Input::new(&shift)?.arg(), out.arg()];
    let sizes = [Arg::Int(co as i32), Arg::Int(h as i32), Arg::Int(w as i32), Arg::Size(pairs as u64)];
    let (kernel, args) = (format!("unfold_patches_{}", suffix(x.dtype())?), [&pointers[..], &sizes].concat());
    // SAFETY: patches [b, co·4, h·w] and the result [b, co, 2h, 2w] hold `pairs` pairs of one format, the bias `co` numbers.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(pairs), &args)? };
    Node::tensor("conv-transpose2d", out, &[&x, weight, bias], move |inputs, _, grad| {
        let &[x, weight, bias] = inputs else { bail!("conv-transpose2d: expected three inputs") };
        let ((b, ci, h, w), (_, co, _, _)) = (x.dims4()?, weight.dims4()?);
        let grad = grad.contiguous()?;
        let patches = fold_patches(&grad, (b, co, h, w))?; // [b, co·4, h·w]
        let of_x = || {
            let matrix = weight.detach().to_dtype(x.dtype())?.contiguous()?.reshape((ci, co * 4))?;
            matmul(&matrix.expand((b, ci, co * 4))?, &patches, math)?.reshape(x.shape())
        };
        let of_weight = || {
            let parts = matmul(&x.detach().reshape((b, ci, h * w))?, &patches.transpose(1, 2)?, math)?; // [b, ci, co·4]
            parts.to_dtype(DType::F32)?.sum(0)?.reshape(weight.shape())?.to_dtype(weight.dtype())
        };
        let of_bias = || channel_sums(&grad)?.to_dtype(bias.dtype());
        Ok([
            x.track_op().then(of_x).transpose()?,
            weight.track_op().then(of_weight).transpose()?,
            bias.track_op().then(of_bias).transpose()?,
        ])
    })
}

fn fold_patches(grad: &Tensor, (b, co, h, w): (usize, usize, usize, usize)) -> Result<Tensor> {
    let gpu = Gpu::of(grad);
    let out = gpu.output(grad.dtype(), (b, co * 4, h * w))?;
    let pairs = b * co * 2 * h * w;
    let args = [Input::new(grad)?.arg(), out.arg(), Arg::Int(h as i32), Arg::Int(w as i32), Arg::Size(pairs as u64)];
    let kernel = format!("fold_patches_{}", suffix(grad.dtype())?);
    // SAFETY: the gradient [b, co, 2h, 2w] and the patches [b, co·4, h·w] hold `pairs` pairs of one format.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(pairs), &args)? };
    Ok(out.tensor())
}

/// Sums of `[b, c, h, w]` over all axes except the channels, `[c]` of float32.
fn channel_sums(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let gpu = Gpu::of(x);
    let splits = splits(b * h * w);
    let partial = gpu.output(DType::F64, (c, splits))?;
    let sizes = [b, c, h * w].map(|n| Arg::Int(n as i32));
    let args = [&[Input::new(x)?.arg(), partial.arg()][..], &sizes].concat();
    let (kernel, grid) = (format!("channel_sums_{}", suffix(x.dtype())?), Grid::blocks([splits as u32, c as u32, 1]));
    // SAFETY: `x` is [b, c, h·w], and each of its channels has a float64 number for each split.
    unsafe { gpu.launch(MODULE, &kernel, grid, &args)? };
    sum_partials(&gpu, &partial, c)
}
