//! Launches `attention/rel_pos.cu`.

use candle_core::{DType, Result, Tensor, bail};

use crate::device::{Arg, Gpu, Grid, Input, suffix};

const MODULE: &str = "rel_pos_attention";
/// Queries of a block, as in the source.
const QUERIES: usize = 64;
/// Widths of a head that the 16-bit kernels are made for.
const WIDTHS: [usize; 4] = [16, 32, 64, 80];
/// Sixteens of columns that a thread of the float32 kernel holds.
const COLUMNS: [usize; 4] = [1, 2, 4, 5];

/// The layer's sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) grid: usize,
    pub(crate) side: usize,
    pub(crate) heads: usize,
    pub(crate) d: usize,
}

impl Sizes {
    /// Whether there is a kernel for these sizes.
    pub(crate) fn has_kernel(&self, dtype: DType) -> bool {
        if dtype == DType::F32 { COLUMNS.contains(&self.d.div_ceil(16)) } else { WIDTHS.contains(&self.d) }
    }
}

/// As [`crate::rel_pos_attention::rel_pos_attention`].
pub(crate) fn rel_pos_attention(qkv: &Tensor, bias: &Tensor, table: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let Sizes { batch, grid, side, heads, d } = sizes;
    let dtype = qkv.dtype();
    let (bias, table) = (crate::device::parameters(bias)?, table.to_dtype(dtype)?.contiguous()?);
    let (tokens, windows, rows) = (side * side, grid.div_ceil(side), 2 * side - 1);
    if table.dims() != [2 * rows, d] {
        bail!("relative positions: expected a table of [{}, {d}], found {:?}", 2 * rows, table.dims());
    }
    let gpu = Gpu::of(qkv);
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
    let geometry = [grid, side, windows, heads, d].map(|n| n as i32);
    let args = [
        Input::new(qkv)?.arg(),
        Input::new(&bias)?.arg(),
        Input::new(&table)?.arg(),
        out.arg(),
        Arg::Geometry(geometry),
        Arg::Float((d as f32).powf(-0.5)),
    ];
    gpu.launch(MODULE, &kernel, Grid { blocks, threads, shared_bytes: shared_bytes as u32 }, &args)?;
    Ok(out.tensor())
}
