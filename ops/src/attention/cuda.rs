//! Softmax attention on a GPU.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Gradients, Grid, Input, Node, Output, suffix};

const MODULE: &str = "attention";
/// Head widths for which there are kernels.
const WIDTHS: [usize; 3] = [8, 16, 32];

/// Whether there is a kernel for this head width and these tensors, which must have the same number format.
pub(super) fn has_kernel(d: usize, tensors: [&Tensor; 3]) -> bool {
    WIDTHS.contains(&d) && tensors.iter().all(|t| t.dtype() == tensors[0].dtype())
}

/// Strides of batch, head and row.
fn strides(t: &Tensor) -> [u64; 3] {
    std::array::from_fn(|axis| t.stride()[axis] as u64)
}

fn sizes(q: &Tensor, k: &Tensor, scale: f32) -> Result<[Arg<'static>; 5]> {
    let ((b, heads, queries, _), keys) = (q.dims4()?, k.dim(2)?);
    let [b, heads, queries, keys] = [b, heads, queries, keys].map(|n| Arg::Int(n as i32));
    Ok([b, heads, queries, keys, Arg::Float(scale)])
}

/// As [`super::attention`], but returns `[b, nq, heads, d]`; the last axes must be contiguous.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
    Node::tensor("attention", forward(q, k, v, scale)?, &[q, k, v], move |inputs, _, grad| {
        let &[q, k, v] = inputs else { candle_core::bail!("attention: expected three inputs") };
        backward(q, k, v, &grad.contiguous()?, scale)
    })
}

/// As [`super::multi_head_attention`], for contiguous tokens.
pub(super) fn multi_head(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
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
fn forward(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Output> {
    let (b, heads, queries, d) = q.dims4()?;
    let gpu = Gpu::of(q);
    let out = gpu.output(q.dtype(), (b, queries, heads, d))?;
    let pointers = [Input::strided(q)?.arg(), Input::strided(k)?.arg(), Input::strided(v)?.arg(), out.arg()];
    let strides = [strides(q), strides(k), strides(v)];
    let strides = strides.each_ref().map(|strides| Arg::LongWords(strides));
    let args = [&pointers[..], &strides, &sizes(q, k, scale)?].concat();
    let kernel = format!("attention_{d}_{}", suffix(q.dtype())?);
    // SAFETY: three tensors of one format with their strides and sizes, whose last axis is contiguous, and a result of the queries' size.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(b * heads * queries), &args)? };
    Ok(out)
}

/// `grad` is `[b, nq, heads, d]`.
fn backward(q: &Tensor, k: &Tensor, v: &Tensor, grad: &Tensor, scale: f32) -> Result<Gradients> {
    let ((b, heads, queries, d), keys) = (q.dims4()?, k.dim(2)?);
    let (gpu, suffix) = (Gpu::of(q), suffix(q.dtype())?);
    let of_q = gpu.output(q.dtype(), (b, queries, heads, d))?;
    let statistics = gpu.output(DType::F32, (3, b * heads * queries))?;
    let inputs = [Input::strided(q)?.arg(), Input::strided(k)?.arg(), Input::strided(v)?.arg(), Input::new(grad)?.arg()];
    let (strides, sizes) = ([strides(q), strides(k), strides(v)], sizes(q, k, scale)?);
    let strides = strides.each_ref().map(|strides| Arg::LongWords(strides));
    let args = [&inputs[..], &[of_q.arg(), statistics.arg()], &strides, &sizes].concat();
    let grid = Grid::warps(b * heads * queries);
    // SAFETY: as in `forward`; the gradient is as the result and of its format, `statistics` has three numbers for each query.
    unsafe { gpu.launch(MODULE, &format!("attention_backward_queries_{d}_{suffix}"), grid, &args)? };
    let [of_k, of_v] = [(); 2].map(|()| gpu.output(q.dtype(), (b, keys, heads, d)));
    let (of_k, of_v) = (of_k?, of_v?);
    if k.track_op() || v.track_op() {
        let args = [&inputs[..], &[statistics.arg(), of_k.arg(), of_v.arg()], &strides, &sizes].concat();
        let grid = Grid::warps(b * heads * keys);
        // SAFETY: as above, with results of the keys' size.
        unsafe { gpu.launch(MODULE, &format!("attention_backward_keys_{d}_{suffix}"), grid, &args)? };
    }
    let part = |of: &Tensor, gradient: Output| of.track_op().then(|| gradient.tensor().transpose(1, 2)).transpose();
    Ok([part(q, of_q)?, part(k, of_k)?, part(v, of_v)?])
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{Result, Tensor};

    use crate::testing::kernels::{FORMATS, compare};
    use crate::testing::uniform;

    #[test]
    fn attention_between_tokens_and_pixels() -> Result<()> {
        for dtype in FORMATS {
            for (b, heads, queries, keys, d) in
                [(2, 3, 5, 70, 16), (1, 2, 70, 10, 16), (1, 2, 10, 10, 32), (1, 1, 1, 1, 8), (2, 2, 33, 31, 8)]
            {
                let inputs = [
                    uniform(&[b, queries, heads * d], 1)?,
                    uniform(&[b, keys, heads * d], 2)?,
                    uniform(&[b, keys, heads * d], 3)?,
                ];
                let split = |t: &Tensor| t.reshape((b, t.dim(1)?, heads, d))?.transpose(1, 2);
                compare("attention", &inputs, &[0, 1, 2], dtype, |t| {
                    Ok(vec![crate::attention(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.7)?.contiguous()?])
                })?;
                compare("attention of several heads", &inputs, &[0, 1, 2], dtype, |t| {
                    Ok(vec![crate::multi_head_attention(&t[0], &t[1], &t[2], heads, 0.7)?])
                })?;
            }
        }
        Ok(())
    }
}
