//! The encoder's attention: global or within windows, with decomposed relative positions (`image_encoder.py`, `Attention`,
//! `window_partition`, `add_decomposed_rel_pos`). Forward only: the encoder is frozen.
//!
//! Queries, keys and values are gathered head by head, window by window, so nothing is permuted in memory; a padding token of a window
//! is zero after the norm, so that its key and value are the biases: it takes part as a key, and costs no matrix product before.
//! Scores live one tile at a time.

pub(crate) mod cuda;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::attention::softmax::scores_to_weights;
use crate::cpu::SendPtr;
use crate::cpu::simd::multiversion;
use crate::device;
use crate::matmul::packed::Factor;

/// Queries of one tile of scores, whole register blocks: with 1024 keys the tile fits a core's second-level cache.
const TILE_QUERIES: usize = 66;
/// Queries of one task: its keys and values are packed once.
const TASK_QUERIES: usize = 4 * TILE_QUERIES;

/// Tables of relative positions along both axes, laid out for [`RelPosAttention`].
#[derive(Debug, Clone)]
pub struct RelPosTable {
    /// `[d, 2·(2·side - 1)]`: a column for each height, last one first, then for each width, last one first. Turned round like this, the
    /// biases of one query for keys 0, 1, .. lie one after the other.
    columns: Factor,
    side: usize,
    d: usize,
}

impl RelPosTable {
    /// Takes `rel_pos_h` and `rel_pos_w`, each `[2·side - 1, d]`, for attention over `side × side` tokens.
    ///
    /// # Panics
    /// If a table has another length than `(2·side - 1)·d`.
    pub fn new(rel_pos_h: &[f32], rel_pos_w: &[f32], side: usize, d: usize) -> Self {
        let rows = 2 * side - 1;
        for table in [rel_pos_h, rel_pos_w] {
            assert_eq!(table.len(), rows * d, "a table of relative positions has another length");
        }
        let mut columns = Factor::default();
        columns.pack_columns(d, 2 * rows, |column, to| {
            let table = if column < rows { rel_pos_h } else { rel_pos_w };
            to.copy_from_slice(&table[(rows - 1 - column % rows) * d..][..d]);
        });
        Self { columns, side, d }
    }
}

/// One attention layer of the encoder on a GPU, between the two linear layers around it; as [`RelPosAttention`] on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct DeviceRelPosAttention<'a> {
    /// Products of the qkv layer without its bias, `[b·grid·grid, 3·heads·d]`: float32, bfloat16 or float16.
    pub qkv: &'a Tensor,
    /// Bias of the qkv layer, `[3·heads·d]`.
    pub bias: &'a Tensor,
    /// Both tables of relative positions, `[2·(2·side - 1), d]`: heights, then widths.
    pub rel_pos: &'a Tensor,
    /// Tokens along the side of a window, or of the grid if attention is global.
    pub side: usize,
    /// Images.
    pub batch: usize,
    /// Tokens along the side of an image.
    pub grid: usize,
    /// Attention heads.
    pub heads: usize,
}

impl DeviceRelPosAttention<'_> {
    /// Whether there is a kernel for heads as wide as these and their number format.
    pub fn has_kernel(heads_width: usize, dtype: candle_core::DType) -> bool {
        let sizes = cuda::Sizes { batch: 1, grid: 1, side: 1, heads: 1, d: heads_width };
        sizes.has_kernel(dtype)
    }

    /// Attends as [`RelPosAttention::forward`]: → `[b·grid·grid, heads·d]`
    ///
    /// # Errors
    /// If a shape does not follow from `batch`, `grid`, `heads` and the bias, or there is no kernel.
    pub fn forward(&self) -> Result<Tensor> {
        let &Self { qkv, bias, rel_pos, side, batch, grid, heads } = self;
        let d = bias.elem_count() / 3 / heads;
        let sizes = cuda::Sizes { batch, grid, side, heads, d };
        if qkv.dims() != [batch * grid * grid, 3 * heads * d] || !device::runs_on(&[qkv]) || !sizes.has_kernel(qkv.dtype()) {
            bail!("attention: no kernel for qkv of {:?} and {heads} heads of {d} as {:?}", qkv.dims(), qkv.dtype());
        }
        cuda::rel_pos_attention(qkv, bias, rel_pos, sizes)
    }
}

/// One attention layer of the encoder, between the two linear layers around it.
#[derive(Debug, Clone, Copy)]
pub struct RelPosAttention<'a> {
    /// Products of the qkv layer without its bias, `[b, grid, grid, 3, heads, d]`.
    pub qkv: &'a [f32],
    /// Bias of the qkv layer, `[3, heads, d]`.
    pub bias: &'a [f32],
    /// Relative positions, for the window's side, or the grid's if attention is global.
    pub rel_pos: &'a RelPosTable,
    /// Images.
    pub batch: usize,
    /// Tokens along the side of an image.
    pub grid: usize,
    /// Attention heads.
    pub heads: usize,
}

/// What one task does: some queries of one head of one window.
struct Task {
    /// The window's first token, its real height and its real width.
    first: (usize, usize, usize),
    real: (usize, usize),
    head: usize,
    queries: std::ops::Range<usize>,
}

/// Buffers that a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    /// `[d, keys]`
    k: Factor,
    /// `[keys, d]`
    v: Factor,
    scores: Vec<f32>,
    biases: Vec<f32>,
    inverse_sums: Vec<f32>,
    out: Vec<f32>,
}

impl RelPosAttention<'_> {
    /// Attends, with scores `q·k/√d` plus `q·R_h` plus `q·R_w`, and joins the heads.
    ///
    /// # Shapes
    /// → `out`, `[b, grid, grid, heads·d]`
    ///
    /// # Panics
    /// If a slice's length does not follow from `batch`, `grid`, `heads` and the bias.
    pub fn forward(&self, out: &mut [f32]) {
        let tokens = self.batch * self.grid * self.grid;
        let width = self.bias.len() / 3;
        let d = width / self.heads;
        assert_eq!(self.bias.len(), 3 * self.heads * d, "the bias does not split into heads");
        assert_eq!(self.qkv.len(), tokens * 3 * width, "qkv has another length");
        assert_eq!(out.len(), tokens * width, "the output has another length");
        assert_eq!(self.rel_pos.d, d, "relative positions are of another width");
        let tasks = self.tasks();
        let shared = SendPtr::new(out.as_mut_ptr());
        tasks.par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, task| self.run(task, d, scratch, shared));
    }

    fn tasks(&self) -> Vec<Task> {
        let side = self.rel_pos.side;
        let mut tasks = Vec::new();
        for image in 0..self.batch {
            for y in (0..self.grid).step_by(side) {
                for x in (0..self.grid).step_by(side) {
                    let real = (side.min(self.grid - y), side.min(self.grid - x));
                    let count = real.0 * real.1;
                    for head in 0..self.heads {
                        for start in (0..count).step_by(TASK_QUERIES) {
                            let queries = start..(start + TASK_QUERIES).min(count);
                            tasks.push(Task { first: (image, y, x), real, head, queries });
                        }
                    }
                }
            }
        }
        tasks
    }

    /// Row of `qkv` and of the output of the window's real token at (y, x).
    fn row(&self, task: &Task, y: usize, x: usize) -> usize {
        let (image, first_y, first_x) = task.first;
        (image * self.grid + first_y + y) * self.grid + first_x + x
    }

    fn run(&self, task: &Task, d: usize, scratch: &mut Scratch, out: SendPtr) {
        let width = self.heads * d;
        let side = self.rel_pos.side;
        let keys = side * side;
        let scale = 1.0 / (d as f32).sqrt();
        // keys and values of the whole window, biases where it is padded
        let column = task.head * d;
        let gather = |part: usize, key: usize, to: &mut [f32]| {
            let (y, x, column) = (key / side, key % side, part * width + column);
            let bias = &self.bias[column..column + d];
            if y < task.real.0 && x < task.real.1 {
                let start = self.row(task, y, x) * 3 * width + column;
                write_sum(&self.qkv[start..start + d], bias, to);
            } else {
                to.copy_from_slice(bias);
            }
        };
        scratch.k.pack_columns(d, keys, |key, to| gather(1, key, to));
        scratch.v.pack_rows(keys, d, |key, to| gather(2, key, to));
        let (k, v, table) = (&scratch.k, &scratch.v, &self.rel_pos.columns);
        for start in task.queries.clone().step_by(TILE_QUERIES) {
            let queries = start..(start + TILE_QUERIES).min(task.queries.end);
            let n = queries.len();
            let room = k.room(n);
            scratch.q.resize(room * d, 0.0);
            scratch.scores.resize(room * k.stride(), 0.0);
            scratch.biases.resize(room * table.stride(), 0.0);
            scratch.inverse_sums.resize(n, 0.0);
            scratch.out.resize(room * v.stride(), 0.0);
            for (query, to) in queries.clone().zip(scratch.q.chunks_exact_mut(d)) {
                gather(0, query / task.real.1 * side + query % task.real.1, to);
            }
            k.product(&scratch.q, d, n, &mut scratch.scores);
            table.product(&scratch.q, d, n, &mut scratch.biases);
            let rows = scratch.scores.chunks_exact_mut(k.stride()).zip(scratch.biases.chunks_exact(table.stride()));
            for ((query, (scores, biases)), inverse_sum) in queries.clone().zip(rows).zip(&mut scratch.inverse_sums) {
                let (y, x) = (query / task.real.1, query % task.real.1);
                let (heights, widths) = biases[..2 * (2 * side - 1)].split_at(2 * side - 1);
                let axes = (&heights[side - 1 - y..2 * side - 1 - y], &widths[side - 1 - x..2 * side - 1 - x]);
                scores_to_weights(&mut scores[..keys], scale, axes.0, axes.1, inverse_sum);
            }
            v.product(&scratch.scores, k.stride(), n, &mut scratch.out);
            for ((query, values), inverse_sum) in queries.zip(scratch.out.chunks_exact(v.stride())).zip(&scratch.inverse_sums) {
                let row = self.row(task, query / task.real.1, query % task.real.1);
                // SAFETY: `row` is a token of this task's window and `column..column + d` is this task's head; no other task has the
                // same queries of the same head, so no other thread touches the range; it lies within the output, whose length was
                // checked.
                let out = unsafe { out.slice(row * width + column, d) };
                write_scaled(values, *inverse_sum, out);
            }
        }
    }
}

multiversion! {
    fn write_sum(a: &[f32], b: &[f32], to: &mut [f32]) {
        for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
            *to = a + b;
        }
    }
}

multiversion! {
    fn write_scaled(from: &[f32], scale: f32, to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from * scale;
        }
    }
}
