//! Layer norm on a GPU.

use candle_core::{DType, Result, Tensor, bail};

use crate::device::{Arg, Gpu, Grid, Input, Node, parameters, splits, suffix};
use crate::partial_sums::sum_partials;

const MODULE: &str = "layer_norm";

/// As [`super::layer_norm`]; the parameters' gradients are composed of candle's operations, as on the CPU.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let eps = eps as f32;
    let x = x.contiguous()?;
    let channels = weight.elem_count();
    let rows = x.elem_count() / channels;
    let (w, b) = (parameters(weight)?, parameters(bias)?);
    let gpu = Gpu::of(&x);
    let y = gpu.output(x.dtype(), x.shape())?;
    let args = [
        Input::new(&x)?.arg(),
        Input::new(&w)?.arg(),
        Input::new(&b)?.arg(),
        y.arg(),
        Arg::Int(rows as i32),
        Arg::Int(channels as i32),
        Arg::Float(eps),
    ];
    let kernel = format!("layer_norm_{}", suffix(x.dtype())?);
    // SAFETY: x and y are [rows, channels] of one format, weight and bias [channels] of float32.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(rows), &args)? };
    Node::tensor("layer norm", y, &[&x, weight, bias], move |inputs, _, grad| {
        let &[x, weight, bias] = inputs else { candle_core::bail!("layer norm: expected three inputs") };
        let grad = grad.contiguous()?;
        let grad_x = x.track_op().then(|| layer_norm_backward(x, weight, &grad, eps)).transpose()?;
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F32)?.reshape(((), channels));
        let grad_weight = match weight.track_op() {
            true => {
                let centred = wide(x)?;
                let centred = centred.broadcast_sub(&centred.mean_keepdim(1)?)?;
                let deviation = (centred.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
                Some((centred.broadcast_div(&deviation)? * wide(&grad)?)?.sum(0)?)
            }
            false => None,
        };
        let grad_bias = bias.track_op().then(|| wide(&grad)?.sum(0)).transpose()?;
        Ok([grad_x, grad_weight, grad_bias])
    })
}

fn layer_norm_backward(x: &Tensor, weight: &Tensor, grad: &Tensor, eps: f32) -> Result<Tensor> {
    let (channels, w) = (weight.elem_count(), parameters(weight)?);
    let rows = x.elem_count() / channels;
    let gpu = Gpu::of(x);
    let out = gpu.output(x.dtype(), x.shape())?;
    let args = [
        Input::new(x)?.arg(),
        Input::new(&w)?.arg(),
        Input::new(grad)?.arg(),
        out.arg(),
        Arg::Int(rows as i32),
        Arg::Int(channels as i32),
        Arg::Float(eps),
    ];
    let kernel = format!("layer_norm_backward_{}", suffix(x.dtype())?);
    // SAFETY: x, its gradient and the result's are [rows, channels] of one format, the weight [channels] of float32.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(rows), &args)? };
    Ok(out.tensor())
}

/// Adds `delta` and `added` to the rows of `x`, in place, then norms them: a linear layer's product and bias, the residual sum and the norm in
/// one pass. `x` is float32, so that sums over many layers stay exact; delta and the result are of type `dtype`.
///
/// # Shapes
/// x and delta `[rows, c]`, added, weight and bias `[c]` of float32 → `[rows, c]`
///
/// # Errors
/// If shapes do not match.
pub(crate) fn add_layer_norm(
    x: &Tensor,
    (delta, added): (Option<&Tensor>, Option<&Tensor>),
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let (rows, channels) = x.dims2()?;
    super::check_channels("layer norm", channels, weight, bias)?;
    let fits = delta.is_none_or(|delta| delta.dims() == x.dims() && delta.dtype() == dtype)
        && added.is_none_or(|added| added.dims() == [channels])
        && [Some(x), added, Some(weight), Some(bias)].into_iter().flatten().all(|t| t.dtype() == DType::F32);
    if !fits {
        bail!("layer norm: rows {:?}, sum {delta:?} and bias {added:?} do not go together", x.dims());
    }
    let gpu = Gpu::of(x);
    let y = gpu.output(dtype, (rows, channels))?;
    let (delta, added) = (delta.map(Input::new).transpose()?, added.map(Input::new).transpose()?);
    let pointer = |input: &Option<Input<'_>>| Arg::Pointer(input.as_ref().map_or(0, Input::pointer));
    let args = [
        Input::new(x)?.arg(),
        pointer(&delta),
        pointer(&added),
        Input::new(weight)?.arg(),
        Input::new(bias)?.arg(),
        y.arg(),
        Arg::Int(rows as i32),
        Arg::Int(channels as i32),
        Arg::Float(eps as f32),
    ];
    let kernel = format!("add_layer_norm_{}", suffix(dtype)?);
    // SAFETY: x is [rows, channels] of float32, delta and y the same of `dtype`, the others [channels] of float32: just checked.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(rows), &args)? };
    Ok(y.tensor())
}

/// As [`super::layer_norm_2d`].
pub(super) fn layer_norm_2d(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let eps = eps as f32;
    let x = x.contiguous()?;
    let (b, c, h, w) = x.dims4()?;
    let (weights, biases) = (parameters(weight)?, parameters(bias)?);
    let gpu = Gpu::of(&x);
    let y = gpu.output(x.dtype(), x.shape())?;
    let sizes = [Arg::Int(b as i32), Arg::Int(c as i32), Arg::Int((h * w) as i32), Arg::Float(eps)];
    let pointers = [Input::new(&x)?.arg(), Input::new(&weights)?.arg(), Input::new(&biases)?.arg(), y.arg()];
    let (kernel, args) = (format!("layer_norm_2d_{}", suffix(x.dtype())?), [&pointers[..], &sizes].concat());
    // SAFETY: x and y are [b, c, h·w] of one format, weight and bias [c] of float32.
    unsafe { gpu.launch(MODULE, &kernel, Grid::over(b * h * w), &args)? };
    Node::tensor("layer norm 2d", y, &[&x, weight, bias], move |inputs, _, grad| {
        let &[x, weight, bias] = inputs else { candle_core::bail!("layer norm 2d: expected three inputs") };
        let (grad_x, grad_parameters) = layer_norm_2d_backward(x, weight, &grad.contiguous()?, eps)?;
        let [of_weight, of_bias] = [0, 1].map(|i| grad_parameters.get(i));
        Ok([
            x.track_op().then_some(grad_x),
            weight.track_op().then_some(of_weight?.to_dtype(weight.dtype())?),
            bias.track_op().then_some(of_bias?.to_dtype(bias.dtype())?),
        ])
    })
}

/// The gradient of x, and `[2, c]`, those of weight and bias.
fn layer_norm_2d_backward(x: &Tensor, weight: &Tensor, grad: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (b, c, h, w) = x.dims4()?;
    let weights = parameters(weight)?;
    let gpu = Gpu::of(x);
    let (out, statistics) = (gpu.output(x.dtype(), x.shape())?, gpu.output(DType::F32, (2, b * h * w))?);
    let (inputs, suffix) = ([Input::new(x)?, Input::new(grad)?], suffix(x.dtype())?);
    let sizes = [Arg::Int(b as i32), Arg::Int(c as i32), Arg::Int((h * w) as i32)];
    let pointers = [inputs[0].arg(), Input::new(&weights)?.arg(), inputs[1].arg(), out.arg(), statistics.arg()];
    let args = [&pointers[..], &sizes, &[Arg::Float(eps)]].concat();
    // SAFETY: x, the gradient and the result are [b, c, h·w] of one format; two float32 numbers for each pixel.
    unsafe { gpu.launch(MODULE, &format!("layer_norm_2d_backward_{suffix}"), Grid::over(b * h * w), &args)? };
    let splits = splits(b * h * w);
    let partial = gpu.output(DType::F64, (2, c, splits))?;
    let pointers = [inputs[0].arg(), inputs[1].arg(), statistics.arg(), partial.arg()];
    let grid = Grid::blocks([splits as u32, c as u32, 1]);
    let args = [&pointers[..], &sizes].concat();
    // SAFETY: as above, with two float64 numbers for each channel and split.
    unsafe { gpu.launch(MODULE, &format!("layer_norm_2d_sums_{suffix}"), grid, &args)? };
    Ok((out.tensor(), sum_partials(&gpu, &partial, (2, c))?))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use super::add_layer_norm;
    use crate::testing::kernels::{FORMATS, assert_close, compare, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn layer_norms() -> Result<()> {
        for dtype in FORMATS {
            for (rows, c) in [(7, 256), (65, 33), (1, 1)] {
                let inputs = [uniform(&[rows, c], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?];
                compare("layer norm", &inputs, &[0], dtype, |t| Ok(vec![crate::layer_norm(&t[0], &t[1], &t[2], 1e-5)?]))?;
            }
            for (b, c, h, w) in [(2, 64, 6, 7), (1, 5, 1, 3), (3, 16, 20, 20)] {
                let inputs = [uniform(&[b, c, h, w], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?];
                compare("layer norm 2d", &inputs, &[0], dtype, |t| Ok(vec![crate::layer_norm_2d(&t[0], &t[1], &t[2], 1e-6)?]))?;
            }
        }
        Ok(())
    }

    #[test]
    fn residual_sum_and_norm_in_one() -> Result<()> {
        // Rows in registers, of ViT-B's and ViT-H's width at most; of a width that is no multiple of 4.
        for ((rows, c), dtype) in [(9, 100), (3, 1280), (5, 33)].into_iter().flat_map(|size| FORMATS.map(|dtype| (size, dtype))) {
            let (x, delta) = (uniform(&[rows, c], 1)?, uniform(&[rows, c], 2)?.to_dtype(dtype)?);
            let [added, weight, bias] = [3, 4, 5].map(|seed| uniform(&[c], seed));
            let (added, weight, bias) = (added?, weight?, bias?);
            let sum = (&x + delta.to_dtype(DType::F32)?)?.broadcast_add(&added)?;
            let want = crate::composed::layer_norm_composed(&sum, &weight, &bias, 1e-6)?;
            on_device(|device| {
                let there = |t: &Tensor| t.to_device(device)?.copy();
                let x = there(&x)?;
                let (added, weight, bias, delta) = (there(&added)?, there(&weight)?, there(&bias)?, there(&delta)?);
                let y = add_layer_norm(&x, (Some(&delta), Some(&added)), (&weight, &bias), 1e-6, dtype)?;
                assert_close("sum", &x, &sum, 1e-6)?;
                assert_close("norm of the sum", &y, &want, tolerance(dtype))?;
                let y = add_layer_norm(&x, (None, None), (&weight, &bias), 1e-6, dtype)?;
                assert_close("norm without a sum", &y, &want, tolerance(dtype))
            })?;
        }
        Ok(())
    }
}
