//! Launches `elementwise.cu`.

use candle_core::{DType, Result, Shape, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, Node, Output, parameters, suffix};

const MODULE: &str = "elementwise";
/// Blocks that share a sum over everything.
const SUM_BLOCKS: usize = 256;

/// Launches a kernel of up to three inputs of one shape and format whose result is of that shape too.
fn map(kernel: &str, inputs: &[&Tensor], scalar: Option<&Tensor>) -> Result<Output> {
    let [first, ..] = inputs else { candle_core::bail!("{kernel}: expected an input") };
    let (gpu, dtype, n) = (Gpu::of(first), first.dtype(), first.elem_count());
    let out = gpu.output(dtype, first.shape())?;
    let held = inputs.iter().map(|t| Input::new(t)).collect::<Result<Vec<_>>>()?;
    let fours = held.iter().all(|input| input.is_aligned(dtype));
    let scalar = scalar.map(Input::new).transpose()?;
    let mut args: Vec<Arg<'_>> = held.iter().map(Input::arg).collect();
    args.extend(scalar.as_ref().map(Input::arg));
    args.extend([out.arg(), Arg::Size(n as u64), Arg::Int(i32::from(fours))]);
    gpu.launch(MODULE, &format!("{kernel}_{}", suffix(dtype)?), Grid::over(n.div_ceil(4)), &args)?;
    Ok(out)
}

/// As [`crate::elementwise::add_relu`].
pub(crate) fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    Node::tensor("add-relu", map("add_relu", &[&a, &b], None)?, &[&a, &b], |inputs, res, grad| {
        let grad = relu_backward(res, grad)?;
        Ok([inputs[0].track_op().then(|| grad.clone()), inputs[1].track_op().then_some(grad), None])
    })
}

/// As [`crate::elementwise::relu_backward`].
pub(crate) fn relu_backward(res: &Tensor, grad: &Tensor) -> Result<Tensor> {
    Ok(map("relu_backward", &[&res.contiguous()?, &grad.contiguous()?], None)?.tensor())
}

/// As [`crate::elementwise::relu_backward_sum`].
pub(crate) fn relu_backward_sum(res: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(map("relu_backward_sum", &[&res.contiguous()?, &a.contiguous()?, &b.contiguous()?], None)?.tensor())
}

/// As [`crate::gelu::gelu`].
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    Node::tensor("gelu", map("gelu", &[&x], None)?, &[&x], |inputs, _, grad| {
        Ok([Some(map("gelu_backward", &[&grad.contiguous()?, inputs[0]], None)?.tensor()), None, None])
    })
}

/// What [`add_bias`] does with the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Gelu,
}

/// Adds a bias `[c]` to every row of a fresh `[.., c]` of type `dtype`, in place.
pub(crate) fn add_bias(gpu: &Gpu, x: &Output, dtype: DType, bias: &Tensor, activation: Activation) -> Result<()> {
    let (n, bias) = (x.len(), parameters(bias)?);
    let args = [
        x.arg(),
        Input::new(&bias)?.arg(),
        Arg::Size(n as u64),
        Arg::Int(bias.elem_count() as i32),
        Arg::Int(i32::from(activation == Activation::Gelu)),
    ];
    gpu.launch(MODULE, &format!("add_bias_{}", suffix(dtype)?), Grid::over(n), &args)
}

/// As [`crate::elementwise::mix`].
pub(crate) fn mix(sam: &Tensor, cnn: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let (sam, cnn) = (sam.contiguous()?, cnn.contiguous()?);
    let y = map("mix", &[&sam, &cnn], Some(&parameters(gate)?))?;
    Node::tensor("gate", y, &[&sam, &cnn, gate], |inputs, _, grad| {
        let &[sam, cnn, gate] = inputs else { candle_core::bail!("gate: expected three inputs") };
        let (grad, share) = (grad.contiguous()?, parameters(gate)?);
        let grad_sam = sam.track_op().then(|| grad.broadcast_mul(&share.to_dtype(grad.dtype())?)).transpose()?;
        let grad_cnn =
            cnn.track_op().then(|| Ok::<_, candle_core::Error>(map("mix_backward_cnn", &[&grad], Some(&share))?.tensor()));
        let grad_gate =
            gate.track_op().then(|| mix_backward_gate(&grad, sam, cnn)?.reshape(gate.shape())?.to_dtype(gate.dtype()));
        Ok([grad_sam, grad_cnn.transpose()?, grad_gate.transpose()?])
    })
}

fn mix_backward_gate(grad: &Tensor, sam: &Tensor, cnn: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(grad);
    let partial = gpu.output(DType::F64, SUM_BLOCKS)?;
    let pointers = [Input::new(grad)?, Input::new(sam)?, Input::new(cnn)?];
    let mut args: Vec<Arg<'_>> = pointers.iter().map(Input::arg).collect();
    args.extend([partial.arg(), Arg::Size(grad.elem_count() as u64)]);
    let grid = Grid::blocks([SUM_BLOCKS as u32, 1, 1]);
    gpu.launch(MODULE, &format!("mix_backward_gate_{}", suffix(grad.dtype())?), grid, &args)?;
    sum_partials(&gpu, &partial, 1)
}

/// Adds up what blocks left, `[sums, splits]` of float64, in the order of the splits; float32 of `shape`.
pub(crate) fn sum_partials(gpu: &Gpu, partial: &Output, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let sums = shape.elem_count();
    let out = gpu.output(DType::F32, shape)?;
    let args = [partial.arg(), out.arg(), Arg::Int((partial.len() / sums.max(1)) as i32), Arg::Int(sums as i32)];
    gpu.launch(MODULE, "sum_partials", Grid::over(sums), &args)?;
    Ok(out.tensor())
}
