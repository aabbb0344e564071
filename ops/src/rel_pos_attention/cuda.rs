//! Attention with relative positions on a GPU.

use candle_core::{DType, Result, Tensor};

use super::TokenGrid;
use crate::device::{Arg, Gpu, Grid, Input, parameters, suffix};

const MODULE: &str = "rel_pos_attention";
/// Queries of a block, as in the source.
const QUERIES: usize = 64;
/// Head widths of the 16-bit kernels.
const WIDTHS: [usize; 4] = [16, 32, 64, 80];
/// Sixteens of columns that a thread of the float32 kernel holds.
const COLUMNS: [usize; 4] = [1, 2, 4, 5];

/// Whether there is a kernel for this head width.
pub(crate) fn has_kernel(d: usize, dtype: DType) -> bool {
    if dtype == DType::F32 { COLUMNS.contains(&d.div_ceil(16)) } else { WIDTHS.contains(&d) }
}

/// As [`super::RelPosAttention::forward`], which checks the shapes.
pub(super) fn rel_pos_attention(
    qkv: &Tensor,
    bias: &Tensor,
    table: &Tensor,
    (side, heads, d): (usize, usize, usize),
    TokenGrid { batch, grid }: TokenGrid,
) -> Result<Tensor> {
    let dtype = table.dtype();
    let (qkv, bias) = (qkv.to_dtype(dtype)?.contiguous()?, parameters(bias)?);
    let (tokens, windows, rows) = (side * side, grid.div_ceil(side), 2 * side - 1);
    let gpu = Gpu::of(&qkv);
    let out = gpu.output(dtype, (batch * grid * grid, heads * d))?;
    let blocks = [tokens.div_ceil(QUERIES) as u32, heads as u32, (batch * windows * windows) as u32];
    let (kernel, threads, shared_bytes) = if dtype == DType::F32 {
        let stride = d + 4;
        let floats = (QUERIES + 2 * 32) * stride + QUERIES * 33 + QUERIES * (2 * side + 1);
        (format!("rel_pos_attention_{}_f32", d.div_ceil(16)), 256, floats * 4)
    } else {
        let halves = 64 * (d + 8) + d * (64 + 8);
        let terms = QUERIES * ((2 * rows).div_ceil(8) * 8 + 4);
        (format!("rel_pos_attention_{d}_{}", suffix(dtype)?), 128, halves * 2 + (terms + 2 * 64) * 4)
    };
    let sizes = [grid, side, windows, heads, d].map(|n| n as u32);
    let args = [
        Input::new(&qkv)?.arg(),
        Input::new(&bias)?.arg(),
        Input::new(table)?.arg(),
        out.arg(),
        Arg::Words(&sizes),
        Arg::Float((d as f32).powf(-0.5)),
    ];
    // SAFETY: qkv is [b·grid·grid, 3·heads·d], the bias [3·heads·d] of float32, the table [2·rows, d] and the result [b·grid·grid, heads·d]; the shared
    // memory is what the source lays out for these sizes.
    unsafe { gpu.launch(MODULE, &kernel, Grid { blocks, threads, shared_bytes: shared_bytes as u32 }, &args)? };
    Ok(out.tensor())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use super::super::{RelPosAttention, TokenGrid};
    use super::has_kernel;
    use crate::numerics::Numerics;
    use crate::testing::kernels::{FORMATS, assert_close, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn the_encoders_attention() -> Result<()> {
        for (batch, grid, side, heads, d) in [
            (1, 8, 8, 2, 16),   // global, one tile
            (2, 5, 5, 1, 16),   // global, fewer tokens than a tile
            (1, 20, 20, 1, 32), // global, several tiles, the last not full
            (1, 20, 14, 2, 64), // windows that reach over the edge
            (2, 14, 14, 1, 80),
            (1, 6, 4, 3, 8), // only float32
        ] {
            let (width, grid) = (heads * d, TokenGrid { batch, grid });
            let (qkv, bias) = (uniform(&[grid.tokens(), 3 * width], 1)?, uniform(&[3 * width], 2)?);
            let [heights, widths] = [3, 4].map(|seed| uniform(&[2 * side - 1, d], seed));
            let (heights, widths) = (heights?, widths?);
            for (dtype, numerics) in FORMATS.into_iter().zip([Numerics::F32, Numerics::Bf16, Numerics::F16]) {
                if !has_kernel(d, dtype) {
                    assert_ne!(dtype, DType::F32);
                    continue;
                }
                let rounded = |t: &Tensor| t.to_dtype(dtype)?.to_dtype(DType::F32);
                let layer = RelPosAttention::new(&rounded(&heights)?, &rounded(&widths)?, side, heads, Numerics::F32)?;
                let want = layer.forward(&rounded(&qkv)?, &bias, grid)?;
                on_device(|device| {
                    let there = |t: &Tensor| t.to_device(device);
                    let layer = RelPosAttention::new(&there(&heights)?, &there(&widths)?, side, heads, numerics)?;
                    let got = layer.forward(&there(&qkv)?, &there(&bias)?, grid)?;
                    let what = format!("attention of {grid:?} by {side}, {d} wide, {dtype:?}");
                    assert_close(&what, &got, &want, 2.0 * tolerance(dtype))
                })?;
            }
        }
        Ok(())
    }

    /// The terms of a block's queries grow with the grid; no card has memory for these.
    #[test]
    fn an_image_too_large_for_a_blocks_memory_is_refused_in_words() -> Result<()> {
        let (side, heads, d) = (450, 1, 16);
        let grid = TokenGrid { batch: 1, grid: side };
        on_device(|device| {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
            let table = zeros(&[2 * side - 1, d])?;
            let layer = RelPosAttention::new(&table, &table, side, heads, Numerics::F32)?;
            let refused = layer.forward(&zeros(&[grid.tokens(), 3 * heads * d])?, &zeros(&[3 * heads * d])?, grid);
            let words = refused.unwrap_err().to_string();
            assert!(words.contains("bytes of shared memory") && words.contains("image size is too large"), "{words}");
            Ok(())
        })
    }
}
