//! Launches `attention/attention.cu`.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, Node, suffix};

const MODULE: &str = "attention";
/// Widths of a head that kernels are made for.
const WIDTHS: [usize; 3] = [8, 16, 32];

/// Whether there is a kernel for heads of this width.
pub(crate) fn has_width(d: usize) -> bool {
    WIDTHS.contains(&d)
}

/// Strides of batch, head and row.
fn strides(t: &Tensor) -> Arg<'static> {
    let s = t.stride();
    Arg::Strides([s[0] as i64, s[1] as i64, s[2] as i64])
}

fn sizes(q: &Tensor, k: &Tensor, scale: f32) -> Result<[Arg<'static>; 5]> {
    let ((b, heads, queries, _), keys) = (q.dims4()?, k.dim(2)?);
    let [b, heads, queries, keys] = [b, heads, queries, keys].map(|n| Arg::Int(n as i32));
    Ok([b, heads, queries, keys, Arg::Float(scale)])
}

/// As [`crate::attention::attention`], but `[b, nq, heads, d]`; the last axes must be contiguous.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
    Node::tensor("attention", forward(q, k, v, scale)?, &[q, k, v], move |inputs, _, grad| {
        let &[q, k, v] = inputs else { candle_core::bail!("attention: expected three inputs") };
        backward(q, k, v, &grad.contiguous()?, scale)
    })
}

/// As [`crate::attention::multi_head_attention`], of contiguous tokens.
pub(crate) fn multi_head(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
    let (b, queries, c) = q.dims3()?;
    let split = move |t: &Tensor| t.reshape((b, t.dim(1)?, heads, c / heads))?.transpose(1, 2);
    let out = forward(&split(&q.detach())?, &split(&k.detach())?, &split(&v.detach())?, scale)?;
    Node::tensor("attention", out.reshape((b, queries, c)), &[q, k, v], move |inputs, _, grad| {
        let &[q, k, v] = inputs else { candle_core::bail!("attention: expected three inputs") };
        let grad = grad.contiguous()?.reshape((b, queries, heads, c / heads))?;
        let join = |gradient: Option<Tensor>| match gradient {
            Some(gradient) => gradient.transpose(1, 2)?.reshape((b, gradient.dim(2)?, c)).map(Some),
            None => Ok(None),
        };
        let [of_q, of_k, of_v] = backward(&split(q)?, &split(k)?, &split(v)?, &grad, scale)?;
        Ok([join(of_q)?, join(of_k)?, join(of_v)?])
    })
}

/// `[b, nq, heads, d]`
fn forward(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<crate::device::Output> {
    let (b, heads, queries, d) = q.dims4()?;
    let gpu = Gpu::of(q);
    let out = gpu.output(q.dtype(), (b, queries, heads, d))?;
    let pointers = [Input::strided(q)?.arg(), Input::strided(k)?.arg(), Input::strided(v)?.arg(), out.arg()];
    let args = [&pointers[..], &[strides(q), strides(k), strides(v)], &sizes(q, k, scale)?].concat();
    gpu.launch(MODULE, &format!("attention_{d}_{}", suffix(q.dtype())?), Grid::warps(b * heads * queries), &args)?;
    Ok(out)
}

/// `grad` is `[b, nq, heads, d]`.
fn backward(q: &Tensor, k: &Tensor, v: &Tensor, grad: &Tensor, scale: f32) -> Result<crate::device::Gradients> {
    let ((b, heads, queries, d), keys) = (q.dims4()?, k.dim(2)?);
    let (gpu, suffix) = (Gpu::of(q), suffix(q.dtype())?);
    let of_q = gpu.output(q.dtype(), (b, queries, heads, d))?;
    let statistics = gpu.output(DType::F32, (3, b * heads * queries))?;
    let inputs = [Input::strided(q)?.arg(), Input::strided(k)?.arg(), Input::strided(v)?.arg(), Input::new(grad)?.arg()];
    let (strides, sizes) = ([strides(q), strides(k), strides(v)], sizes(q, k, scale)?);
    let args = [&inputs[..], &[of_q.arg(), statistics.arg()], &strides, &sizes].concat();
    let grid = Grid::warps(b * heads * queries);
    gpu.launch(MODULE, &format!("attention_backward_queries_{d}_{suffix}"), grid, &args)?;
    let [of_k, of_v] = [(); 2].map(|()| gpu.output(q.dtype(), (b, keys, heads, d)));
    let (of_k, of_v) = (of_k?, of_v?);
    if k.track_op() || v.track_op() {
        let args = [&inputs[..], &[statistics.arg(), of_k.arg(), of_v.arg()], &strides, &sizes].concat();
        let grid = Grid::warps(b * heads * keys);
        gpu.launch(MODULE, &format!("attention_backward_keys_{d}_{suffix}"), grid, &args)?;
    }
    let part =
        |of: &Tensor, gradient: crate::device::Output| of.track_op().then(|| gradient.tensor().transpose(1, 2)).transpose();
    Ok([part(q, of_q)?, part(k, of_k)?, part(v, of_v)?])
}
