//! Attention with relative positions on a GPU.

use candle_core::{DType, Result, Tensor};

use super::TokenGrid;
use crate::device::{Arg, Gpu, Grid, Input, parameters, suffix};

const MODULE: &str = "rel_pos_attention";
/// Head widths of the 16-bit kernels.
const WIDTHS: [usize; 4] = [16, 32, 64, 80];
/// Sixteens of columns that a thread of the float32 kernel holds.
const COLUMNS: [usize; 4] = [1, 2, 4, 5];
/// Tokens of a chunk of the 16-bit kernels, which lies in one row of a window.
const CHUNK: usize = 16;
/// Chunks of queries that a warp takes.
const WARP_CHUNKS: usize = 2;

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
    let windows = batch * grid.div_ceil(side).pow(2);
    let gpu = Gpu::of(&qkv);
    let out = gpu.output(dtype, (batch * grid * grid, heads * d))?;
    let (kernel, launch) =
        if dtype == DType::F32 { exact(side, d) } else { (matrix_kernel(side, d, dtype)?, matrix_units(side, d)) };
    let launch = Grid { blocks: [launch.blocks[0], heads as u32, windows as u32], ..launch };
    let sizes = [grid, side, grid.div_ceil(side), heads, d].map(|n| n as u32);
    let args = [
        Input::new(&qkv)?.arg(),
        Input::new(&bias)?.arg(),
        Input::new(table)?.arg(),
        out.arg(),
        Arg::Words(&sizes),
        Arg::Float((d as f32).powf(-0.5)),
    ];
    // SAFETY: qkv is [b·grid·grid, 3·heads·d], the bias [3·heads·d] of float32, the table [2·rows, d] and the result [b·grid·grid, heads·d]; rows are
    // multiples of 16 bytes, and the shared memory is what the source lays out for these sizes.
    unsafe { gpu.launch(MODULE, &kernel, launch, &args)? };
    Ok(out.tensor())
}

/// Name and launch of the float32 kernel: blocks of 64 queries, tiles of 32 keys.
fn exact(side: usize, d: usize) -> (String, Grid) {
    const QUERIES: usize = 64;
    const KEYS: usize = 32;
    let floats = (QUERIES + 2 * KEYS) * (d + 4) + QUERIES * (KEYS + 1) + QUERIES * (2 * side + 1);
    let blocks = [(side * side).div_ceil(QUERIES) as u32, 1, 1];
    (format!("rel_pos_attention_{}_f32", d.div_ceil(16)), Grid { blocks, threads: 256, shared_bytes: (4 * floats) as u32 })
}

/// Name of the 16-bit kernel, with the chunks per row of a window for which there is a kernel of its own.
fn matrix_kernel(side: usize, d: usize, dtype: DType) -> Result<String> {
    let per_row = match side.div_ceil(CHUNK) {
        few @ (1 | 2) => few,
        _ => 0,
    };
    Ok(format!("rel_pos_attention_{d}_{per_row}_{}", suffix(dtype)?))
}

/// Launch of the 16-bit kernel. A small window is one block, so that its keys are read once; where there are many keys, fewer queries
/// leave room for their positions in the memory that the block shares.
fn matrix_units(side: usize, d: usize) -> Grid {
    let per_row = side.div_ceil(CHUNK);
    let chunks = side * per_row;
    let warps = match per_row {
        1 => chunks.div_ceil(WARP_CHUNKS),
        2 => 4,
        _ => 2,
    };
    let (queries, stride) = (warps * WARP_CHUNKS * CHUNK, d + 8);
    let keys = CHUNK * if d <= 64 { 4 } else { 2 };
    let tiles = (2 * 2 * keys).max(queries) * stride;
    let by_row = (queries * (side | 1)).next_multiple_of(2);
    let by_place = queries * (per_row * CHUNK + 8);
    Grid {
        blocks: [chunks.div_ceil(warps * WARP_CHUNKS) as u32, 1, 1],
        threads: (32 * warps) as u32,
        shared_bytes: (2 * tiles + 4 * (by_row + by_place)) as u32,
    }
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
            (1, 33, 33, 1, 16), // more than two chunks of 16 tokens per row
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
