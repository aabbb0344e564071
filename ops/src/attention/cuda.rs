//! Softmax attention on a GPU.

use candle_core::{DType, Result, Tensor, bail};

use super::Attention;
use crate::device::{Arg, Gpu, Grid, Input, Output, suffix};

const MODULE: &str = "attention";
/// Head widths for which there are kernels.
const WIDTHS: [usize; 3] = [8, 16, 32];

/// Whether there is a kernel for this head width and these tensors, which must have the same number format.
pub(super) fn has_kernel(d: usize, tensors: [&Tensor; 3]) -> bool {
    WIDTHS.contains(&d) && tensors.iter().all(|t| t.dtype() == tensors[0].dtype())
}

/// Rows that a block keeps in shared memory, as in `kernel.cu`.
const STAGED: usize = 32;
/// Threads of a block where each takes a row.
const ROW_THREADS: u32 = 128;

/// A forward pass: the result, and what the backward pass needs of it.
pub(super) struct Forward {
    /// `[b, nq, heads·d]`
    pub(super) out: Tensor,
    /// The logarithm of Σ exp(score) of each query, `[b, heads, nq]` of float32.
    lse: Tensor,
}

/// A call's tensors, in the form in which the kernels take them.
struct Call<'a> {
    gpu: Gpu,
    pointers: [Input<'a>; 3],
    strides: [[u64; 3]; 3],
    scale: f32,
    b: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
    suffix: &'static str,
}

impl<'a> Call<'a> {
    /// Of queries, keys and values whose last axes are contiguous.
    fn new(attention: &Attention, tensors: &'a [Tensor; 3]) -> Result<Self> {
        let [q, k, v] = tensors;
        let ((b, queries, c), heads, keys) = (q.dims3()?, attention.heads, k.dim(1)?);
        let pointers = [Input::strided(q)?, Input::strided(k)?, Input::strided(v)?];
        if pointers.iter().any(|pointer| !pointer.pointer().is_multiple_of(16)) {
            bail!("attention: rows do not start at multiples of 16 bytes");
        }
        let d = c / heads;
        // Of batch, head and row.
        let strides = |t: &Tensor| [t.stride()[0] as u64, d as u64, t.stride()[1] as u64];
        let strides = [strides(q), strides(k), strides(v)];
        let scale = attention.scale as f32;
        Ok(Call { gpu: Gpu::of(q), pointers, strides, scale, b, heads, queries, keys, d, suffix: suffix(q.dtype())? })
    }

    /// A float32 number for each query.
    fn of_queries(&self) -> Result<Output> {
        self.gpu.output(DType::F32, (self.b, self.heads, self.queries))
    }

    /// Launches a kernel for `rows` rows of each head; `few` is part of its name if the other side has few rows.
    ///
    /// # Safety
    /// `args` are the kernel's parameters between the strides and the sizes.
    unsafe fn launch(&self, kernel: &str, few: &str, (rows, others): (usize, usize), args: &[Arg<'static>]) -> Result<()> {
        let strides = self.strides.each_ref().map(|strides| Arg::LongWords(strides));
        let pointers = self.pointers.each_ref().map(Input::arg);
        let sizes = [self.b, self.heads, self.queries, self.keys].map(|n| Arg::Int(n as i32));
        let args = [&pointers[..], &strides, args, &sizes, &[Arg::Float(self.scale)]].concat();
        let staged = others <= STAGED;
        let grid = match staged {
            true => Grid {
                blocks: [rows.div_ceil(ROW_THREADS as usize) as u32, self.heads as u32, self.b as u32],
                threads: ROW_THREADS,
                shared_bytes: 0,
            },
            false => Grid::warps(self.b * self.heads * rows),
        };
        let name = format!("{kernel}{}_{}_{}", if staged { few } else { "" }, self.d, self.suffix);
        // SAFETY: three tensors of one format with their strides and sizes; for the rest, the caller's promise.
        unsafe { self.gpu.launch(MODULE, &name, grid, &args) }
    }
}

/// The attention of queries, keys and values.
pub(super) fn forward(attention: &Attention, tensors: &[Tensor; 3]) -> Result<Forward> {
    let call = Call::new(attention, tensors)?;
    let (out, lse) = (call.gpu.output(tensors[0].dtype(), tensors[0].shape())?, call.of_queries()?);
    let rows = (call.queries, call.keys);
    // SAFETY: a result of the queries' size and a number for each query.
    unsafe { call.launch("attention", "_few_keys", rows, &[out.arg(), lse.arg()])? };
    Ok(Forward { out: out.tensor(), lse: lse.tensor() })
}

/// The gradients of the inputs, of which `tensors` are the parts, from the contiguous one of the result. Those of keys and values are unspecified
/// unless `of_keys`.
pub(super) fn backward(
    attention: &Attention,
    packs: &[Tensor],
    tensors: &[Tensor; 3],
    Forward { out, lse }: &Forward,
    gradient: &Tensor,
    of_keys: bool,
) -> Result<Vec<Tensor>> {
    let call = Call::new(attention, tensors)?;
    // Each gradient has its input's layout, so that a part of it has the strides of that part.
    let found = packs.iter().map(|pack| call.gpu.output(pack.dtype(), pack.shape())).collect::<Result<Vec<_>>>()?;
    let [of_q, of_k, of_v] =
        attention.parts.map(|(pack, part)| found[pack].arg_at(part * call.heads * call.d, tensors[0].dtype()));
    let (delta, gradient, lse) = (call.of_queries()?, Input::new(gradient)?.arg(), Input::new(lse)?.arg());
    let args = [gradient, Input::new(out)?.arg(), lse, of_q, delta.arg()];
    // SAFETY: the gradient is as the result and of its format, that of the queries has their strides; a number for each query.
    unsafe { call.launch("attention_backward_queries", "_few_keys", (call.queries, call.keys), &args)? };
    if of_keys {
        let args = [gradient, lse, delta.arg(), of_k, of_v];
        // SAFETY: as above, with gradients that have the strides of keys and values.
        unsafe { call.launch("attention_backward_keys", "_few_queries", (call.keys, call.queries), &args)? };
    }
    Ok(found.into_iter().map(Output::tensor).collect())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::Result;

    use crate::testing::kernels::{FORMATS, compare};
    use crate::testing::uniform;

    #[test]
    fn attention_between_tokens_and_pixels() -> Result<()> {
        for dtype in FORMATS {
            for (b, heads, queries, keys, d) in [
                (2, 3, 5, 70, 16),
                (1, 2, 150, 10, 16),
                (1, 2, 10, 10, 32),
                (1, 1, 1, 1, 8),
                (2, 2, 33, 31, 8),
                (1, 2, 40, 35, 32),
            ] {
                let c = heads * d;
                let inputs = [uniform(&[b, queries, c], 1)?, uniform(&[b, keys, c], 2)?, uniform(&[b, keys, c], 3)?];
                compare("attention", &inputs, &[0, 1, 2], dtype, |v| {
                    crate::multi_head_attention(&v[0], &v[1], &v[2], heads, 0.7)
                })?;
                let packed = [inputs[0].clone(), uniform(&[b, keys, 2 * c], 5)?];
                compare("cross-attention", &packed, &[0, 1], dtype, |v| {
                    crate::multi_head_cross_attention(&v[0], &v[1], heads, 0.7)
                })?;
                let qkv = [uniform(&[b, keys, 3 * c], 4)?];
                compare("self-attention", &qkv, &[0], dtype, |v| crate::multi_head_self_attention(&v[0], heads, 0.7))?;
            }
        }
        Ok(())
    }
}
