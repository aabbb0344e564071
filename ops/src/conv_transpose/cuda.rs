//! The 2×2 transposed convolution: a matrix product by the device's library, and `conv_transpose.cu` around it.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, Node, SPLITS, parameters, suffix};

const MODULE: &str = "conv_transpose";

/// As [`crate::conv_transpose::conv_transpose2d_2x2`].
pub(crate) fn conv_transpose2d_2x2(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let ((b, ci, h, w), (_, co, _, _)) = (x.dims4()?, weight.dims4()?);
    let matrix = weight.detach().to_dtype(x.dtype())?.contiguous()?.reshape((ci, co * 4))?;
    let patches = matrix.t()?.expand((b, co * 4, ci))?.matmul(&x.detach().reshape((b, ci, h * w))?)?; // [b, co·4, h·w]
    let shift = parameters(bias)?;
    let gpu = Gpu::of(&x);
    let out = gpu.output(x.dtype(), (b, co, 2 * h, 2 * w))?;
    let pairs = b * co * 2 * h * w;
    let pointers = [Input::new(&patches)?.arg(), Input::new(&shift)?.arg(), out.arg()];
    let sizes = [Arg::Int(co as i32), Arg::Int(h as i32), Arg::Int(w as i32), Arg::Size(pairs as u64)];
    let kernel = format!("unfold_patches_{}", suffix(x.dtype())?);
    gpu.launch(MODULE, &kernel, Grid::over(pairs), &[&pointers[..], &sizes].concat())?;
    Node::tensor("conv-transpose2d", out, &[&x, weight, bias], |inputs, _, grad| {
        let &[x, weight, bias] = inputs else { candle_core::bail!("conv-transpose2d: expected three inputs") };
        let ((b, ci, h, w), (_, co, _, _)) = (x.dims4()?, weight.dims4()?);
        let grad = grad.contiguous()?;
        let patches = fold_patches(&grad, (b, co, h, w))?; // [b, co·4, h·w]
        let matrix = weight.detach().to_dtype(x.dtype())?.contiguous()?.reshape((ci, co * 4))?;
        let grad_x = match x.track_op() {
            true => Some(matrix.expand((b, ci, co * 4))?.matmul(&patches)?.reshape(x.shape())?),
            false => None,
        };
        let grad_weight = match weight.track_op() {
            true => {
                let parts = x.detach().reshape((b, ci, h * w))?.matmul(&patches.transpose(1, 2)?)?; // [b, ci, co·4]
                Some(parts.to_dtype(DType::F32)?.sum(0)?.reshape(weight.shape())?.to_dtype(weight.dtype())?)
            }
            false => None,
        };
        let grad_bias = match bias.track_op() {
            true => Some(channel_sums(&grad)?.to_dtype(bias.dtype())?),
            false => None,
        };
        Ok([grad_x, grad_weight, grad_bias])
    })
}

fn fold_patches(grad: &Tensor, (b, co, h, w): (usize, usize, usize, usize)) -> Result<Tensor> {
    let gpu = Gpu::of(grad);
    let out = gpu.output(grad.dtype(), (b, co * 4, h * w))?;
    let pairs = b * co * 2 * h * w;
    let args = [Input::new(grad)?.arg(), out.arg(), Arg::Int(h as i32), Arg::Int(w as i32), Arg::Size(pairs as u64)];
    gpu.launch(MODULE, &format!("fold_patches_{}", suffix(grad.dtype())?), Grid::over(pairs), &args)?;
    Ok(out.tensor())
}

/// Sums of `[b, c, h, w]` over all but the channels, `[c]` of float32.
fn channel_sums(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let gpu = Gpu::of(x);
    let partial = gpu.output(DType::F64, (c, SPLITS))?;
    let sizes = [b, c, h * w].map(|n| Arg::Int(n as i32));
    let args = [&[Input::new(x)?.arg(), partial.arg()][..], &sizes].concat();
    let grid = Grid::blocks([SPLITS as u32, c as u32, 1]);
    gpu.launch(MODULE, &format!("channel_sums_{}", suffix(x.dtype())?), grid, &args)?;
    crate::elementwise::cuda::sum_partials(&gpu, &partial, c)
}
