//! Launches `norm.cu`.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, Node, SPLITS, parameters, suffix};

const MODULE: &str = "layer_norm";

/// As [`crate::layer_norm::layer_norm`]; the parameters' gradients are a composition, as on the CPU.
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
    gpu.launch(MODULE, &format!("layer_norm_{}", suffix(x.dtype())?), Grid::warps(rows), &args)?;
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
    gpu.launch(MODULE, &format!("layer_norm_backward_{}", suffix(x.dtype())?), Grid::warps(rows), &args)?;
    Ok(out.tensor())
}

/// Adds `delta` and `added` to the rows of `x`, in place, then norms them: see [`crate::layer_norm::add_layer_norm_rows`]. `x` is float32, the
/// result of type `dtype`.
///
/// # Shapes
/// x and delta `[rows, c]`, added, weight and bias `[c]` → `[rows, c]`
pub(crate) fn add_layer_norm(
    x: &Tensor,
    (delta, added): (Option<&Tensor>, Option<&Tensor>),
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let (rows, channels) = x.dims2()?;
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
    gpu.launch(MODULE, &format!("add_layer_norm_{}", suffix(dtype)?), Grid::warps(rows), &args)?;
    Ok(y.tensor())
}

/// As [`crate::layer_norm::layer_norm_2d`].
pub(crate) fn layer_norm_2d(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let eps = eps as f32;
    let x = x.contiguous()?;
    let (b, c, h, w) = x.dims4()?;
    let (weights, biases) = (parameters(weight)?, parameters(bias)?);
    let gpu = Gpu::of(&x);
    let y = gpu.output(x.dtype(), x.shape())?;
    let sizes = [Arg::Int(b as i32), Arg::Int(c as i32), Arg::Int((h * w) as i32), Arg::Float(eps)];
    let pointers = [Input::new(&x)?.arg(), Input::new(&weights)?.arg(), Input::new(&biases)?.arg(), y.arg()];
    gpu.launch(
        MODULE,
        &format!("layer_norm_2d_{}", suffix(x.dtype())?),
        Grid::over(b * h * w),
        &[&pointers[..], &sizes].concat(),
    )?;
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
    gpu.launch(MODULE, &format!("layer_norm_2d_backward_{suffix}"), Grid::over(b * h * w), &args)?;
    let partial = gpu.output(DType::F64, (2, c, SPLITS))?;
    let pointers = [inputs[0].arg(), inputs[1].arg(), statistics.arg(), partial.arg()];
    let grid = Grid::blocks([SPLITS as u32, c as u32, 1]);
    gpu.launch(MODULE, &format!("layer_norm_2d_sums_{suffix}"), grid, &[&pointers[..], &sizes].concat())?;
    Ok((out.tensor(), crate::elementwise::cuda::sum_partials(&gpu, &partial, (2, c))?))
}
