//! Softmax attention on a GPU.

use candle_core::{DType, Result, Tensor};

use super::Attention;
use crate::device::{Arg, Gpu, Grid, Input, Output, suffix};

const MODULE: &str = "attention";
/// Head widths for which there are kernels.
const WIDTHS: [usize; 3] = [8, 16, 32];

/// Whether there is a kernel for this head width and these tensors, which must have the same number format.
pub(super) fn has_kernel(d: usize, tensors: [&Tensor; 3]) -> bool {
    WIDTHS.contains(&d) && tensors.iter().all(|t| t.dtype() == tensors[0].dtype())
}

/// Strides of batch, head and row of tokens `[b, n, heads·d]`, whose last axis is contiguous.
fn strides(t: &Tensor, d: usize) -> [u64; 3] {
    [t.stride()[0] as u64, d as u64, t.stride()[1] as u64]
}

/// The sizes of a call, and its scale.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
    scale: f32,
}

impl Sizes {
    fn of(attention: &Attention, [q, k, _]: &[Tensor; 3]) -> Result<Self> {
        let ((b, queries, c), heads) = (q.dims3()?, attention.heads);
        Ok(Sizes { b, heads, queries, keys: k.dim(1)?, d: c / heads, scale: attention.scale as f32 })
    }

    fn args(&self) -> [Arg<'static>; 5] {
        let [b, heads, queries, keys] = [self.b, self.heads, self.queries, self.keys].map(|n| Arg::Int(n as i32));
        [b, heads, queries, keys, Arg::Float(self.scale)]
    }
}

/// The attention of queries, keys and values.
pub(super) fn forward(attention: &Attention, tensors: &[Tensor; 3]) -> Result<Tensor> {
    let (sizes, [q, k, v]) = (Sizes::of(attention, tensors)?, tensors);
    let gpu = Gpu::of(q);
    let out = gpu.output(q.dtype(), q.shape())?;
    let pointers = [Input::strided(q)?.arg(), Input::strided(k)?.arg(), Input::strided(v)?.arg(), out.arg()];
    let strides = tensors.each_ref().map(|t| strides(t, sizes.d));
    let strides = strides.each_ref().map(|strides| Arg::LongWords(strides));
    let args = [&pointers[..], &strides, &sizes.args()].concat();
    let kernel = format!("attention_{}_{}", sizes.d, suffix(q.dtype())?);
    let grid = Grid::warps(sizes.b * sizes.heads * sizes.queries);
    // SAFETY: three tensors of one format with their strides and sizes, whose last axis is contiguous, and a result of the queries' size.
    unsafe { gpu.launch(MODULE, &kernel, grid, &args)? };
    Ok(out.tensor())
}

/// The gradients of the inputs, of which `tensors` are the parts, from the contiguous one of the result. Those of keys and values are unspecified
/// unless `of_keys`.
pub(super) fn backward(
    attention: &Attention,
    packs: &[Tensor],
    tensors: &[Tensor; 3],
    gradient: &Tensor,
    of_keys: bool,
) -> Result<Vec<Tensor>> {
    let (sizes, [q, k, v]) = (Sizes::of(attention, tensors)?, tensors);
    let Sizes { b, heads, queries, keys, d, .. } = sizes;
    let (gpu, suffix) = (Gpu::of(q), suffix(q.dtype())?);
    // Each gradient has its input's layout, so that a part of it has the strides of that part.
    let found = packs.iter().map(|pack| gpu.output(pack.dtype(), pack.shape())).collect::<Result<Vec<_>>>()?;
    let [of_q, of_k, of_v] = attention.parts.map(|(pack, part)| found[pack].arg_at(part * heads * d, q.dtype()));
    let statistics = gpu.output(DType::F32, (3, b * heads * queries))?;
    let inputs = [Input::strided(q)?.arg(), Input::strided(k)?.arg(), Input::strided(v)?.arg(), Input::new(gradient)?.arg()];
    let strides = tensors.each_ref().map(|t| strides(t, d));
    let strides = strides.each_ref().map(|strides| Arg::LongWords(strides));
    let args = [&inputs[..], &[of_q, statistics.arg()], &strides, &sizes.args()].concat();
    let grid = Grid::warps(b * heads * queries);
    // SAFETY: as in `forward`; the gradient is as the result and of its format, that of the queries has their strides, `statistics` has three
    // numbers for each query.
    unsafe { gpu.launch(MODULE, &format!("attention_backward_queries_{d}_{suffix}"), grid, &args)? };
    if of_keys {
        let args = [&inputs[..], &[statistics.arg(), of_k, of_v], &strides, &sizes.args()].concat();
        let grid = Grid::warps(b * heads * keys);
        // SAFETY: as above, with gradients that have the strides of keys and values.
        unsafe { gpu.launch(MODULE, &format!("attention_backward_keys_{d}_{suffix}"), grid, &args)? };
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
            for (b, heads, queries, keys, d) in
                [(2, 3, 5, 70, 16), (1, 2, 70, 10, 16), (1, 2, 10, 10, 32), (1, 1, 1, 1, 8), (2, 2, 33, 31, 8)]
            {
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
