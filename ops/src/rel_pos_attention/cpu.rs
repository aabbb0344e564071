//! Attention with relative positions on the CPU.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::TokenGrid;
use crate::cpu::SendPtr;
use crate::cpu::activation::{with_scratch_of, write_scaled};
use crate::cpu::simd::{exp, madd, max, multiversion, sum_by};
use crate::matmul::packed::{Factor, RowFormat, task_queries, tile_queries};
use crate::numerics::Numerics;

/// Tables of relative positions along both axes, laid out for [`Layer`].
#[derive(Debug, Clone)]
pub(super) struct Tables {
    /// `[d, 2·(2·side - 1)]`: a column for each height, last one first, then for each width, last one first. Turned round like this, the
    /// biases of one query for keys 0, 1, .. lie one after the other.
    columns: Factor,
    side: usize,
    d: usize,
}

impl Tables {
    /// Takes `rel_pos_h` and `rel_pos_w`, each `[2·side - 1, d]`, for attention over `side × side` tokens.
    pub(super) fn new(rel_pos_h: &[f32], rel_pos_w: &[f32], (side, d): (usize, usize), numerics: Numerics) -> Self {
        let rows = 2 * side - 1;
        let mut columns = Factor::new(numerics);
        columns.pack_columns(d, 2 * rows, |column, to| {
            let table = if column < rows { rel_pos_h } else { rel_pos_w };
            to.copy_from_slice(&table[(rows - 1 - column % rows) * d..][..d]);
        });
        Self { columns, side, d }
    }
}

/// Input of one layer.
pub(super) struct Layer<'a, T> {
    /// Output of the qkv layer, `[b, grid, grid, 3, heads, d]`.
    pub(super) qkv: &'a [T],
    /// Bias of the qkv layer, `[3, heads, d]`: its output for a window's padding.
    pub(super) bias: &'a [T],
    pub(super) tables: &'a Tables,
    pub(super) heads: usize,
    pub(super) grid: TokenGrid,
}

/// A task: some queries of one head of one window.
struct Task {
    /// The window's first token, and its height and width without padding.
    first: (usize, usize, usize),
    real: (usize, usize),
    head: usize,
    queries: Range<usize>,
}

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// Buffers that a thread keeps from task to task, so that their pages are touched only once.
struct Scratch {
    /// `[d, keys]`
    k: Factor,
    /// `[keys, d]`
    v: Factor,
    scores: Vec<f32>,
    biases: Vec<f32>,
    inverse_sums: Vec<f32>,
    out: Vec<f32>,
}

impl Scratch {
    fn new(numerics: Numerics) -> Self {
        let [k, v] = [(); 2].map(|()| Factor::new(numerics));
        Self { k, v, scores: vec![], biases: vec![], inverse_sums: vec![], out: vec![] }
    }
}

impl<T: RowFormat> Layer<'_, T> {
    /// Attends, and joins the heads: → `out`, `[b, grid, grid, heads·d]`.
    ///
    /// # Panics
    /// If a slice's length does not follow from the grid, the heads and the tables.
    pub(super) fn forward(&self, out: &mut [T]) {
        let (tokens, d) = (self.grid.tokens(), self.tables.d);
        let width = self.heads * d;
        assert_eq!(self.bias.len(), 3 * width, "the bias does not split into heads");
        assert_eq!(self.qkv.len(), tokens * 3 * width, "qkv has another length");
        assert_eq!(out.len(), tokens * width, "the output has another length");
        let tasks = self.tasks();
        let shared = SendPtr::new(out.as_mut_ptr());
        tasks.par_iter().with_max_len(1).for_each(|task| {
            // Taken out while it is in use: a task that rayon runs on this thread meanwhile gets another.
            let kept = SCRATCH.take().filter(|scratch| scratch.k.numerics() == self.tables.columns.numerics());
            let mut scratch = kept.unwrap_or_else(|| Scratch::new(self.tables.columns.numerics()));
            self.run(task, d, &mut scratch, shared);
            SCRATCH.set(Some(scratch));
        });
    }

    fn tasks(&self) -> Vec<Task> {
        let (side, numerics) = (self.tables.side, self.tables.columns.numerics());
        let parts = self.grid.batch * self.grid.grid.div_ceil(side).pow(2) * self.heads;
        let at_a_time = task_queries(numerics, side * side, parts);
        let mut tasks = Vec::new();
        for image in 0..self.grid.batch {
            for y in (0..self.grid.grid).step_by(side) {
                for x in (0..self.grid.grid).step_by(side) {
                    let real = (side.min(self.grid.grid - y), side.min(self.grid.grid - x));
                    let count = real.0 * real.1;
                    for head in 0..self.heads {
                        for start in (0..count).step_by(at_a_time) {
                            let queries = start..(start + at_a_time).min(count);
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
        (image * self.grid.grid + first_y + y) * self.grid.grid + first_x + x
    }

    /// Packs keys and values of the whole window; then processes the queries, a tile at a time.
    fn run(&self, task: &Task, d: usize, scratch: &mut Scratch, out: SendPtr<T>) {
        let keys = self.tables.side * self.tables.side;
        scratch.k.pack_columns(d, keys, |key, to: &mut [T]| to.copy_from_slice(self.part(task, d, 1, key)));
        scratch.v.pack_rows(keys, d, |key, to: &mut [T]| to.copy_from_slice(self.part(task, d, 2, key)));
        let at_a_time = tile_queries(self.tables.columns.numerics());
        for start in task.queries.clone().step_by(at_a_time) {
            let queries = start..(start + at_a_time).min(task.queries.end);
            self.weigh(task, d, queries.clone(), scratch);
            let Scratch { v, scores, k, inverse_sums, out: values, .. } = &mut *scratch;
            v.product(scores, k.stride(), queries.len(), values);
            let column = task.head * d;
            for ((query, values), inverse_sum) in queries.zip(values.chunks_exact(v.stride())).zip(&*inverse_sums) {
                let row = self.row(task, query / task.real.1, query % task.real.1);
                // SAFETY: `row` is a token of this task's window and `column..column + d` is this task's head; no other task has the
                // same queries of the same head, so no other thread touches the range; it lies within the output, whose length was
                // checked.
                let out = unsafe { out.slice(row * self.heads * d + column, d) };
                write_scaled(values, *inverse_sum, out);
            }
        }
    }

    /// Part 0, 1 or 2 (query, key, value) of a window's token.
    fn part(&self, task: &Task, d: usize, part: usize, token: usize) -> &[T] {
        let (side, width) = (self.tables.side, self.heads * d);
        let (y, x, column) = (token / side, token % side, part * width + task.head * d);
        match y < task.real.0 && x < task.real.1 {
            true => &self.qkv[self.row(task, y, x) * 3 * width + column..][..d],
            false => &self.bias[column..][..d],
        }
    }

    /// The weights of every key for some queries, in place of their scores, each row still to be multiplied by its inverse sum.
    fn weigh(&self, task: &Task, d: usize, queries: Range<usize>, scratch: &mut Scratch) {
        let (side, table) = (self.tables.side, &self.tables.columns);
        let (n, scale) = (queries.len(), 1.0 / (d as f32).sqrt());
        let Scratch { k, v, scores, biases, inverse_sums, out } = scratch;
        let room = k.room(n);
        scores.resize(room * k.stride(), 0.0);
        biases.resize(room * table.stride(), 0.0);
        inverse_sums.resize(n, 0.0);
        out.resize(room * v.stride(), 0.0);
        with_scratch_of(room * d, |q: &mut [T]| {
            for (query, to) in queries.clone().zip(q.chunks_exact_mut(d)) {
                to.copy_from_slice(self.part(task, d, 0, query / task.real.1 * side + query % task.real.1));
            }
            k.product(q, d, n, scores);
            table.product(q, d, n, biases);
        });
        let rows = scores.chunks_exact_mut(k.stride()).zip(biases.chunks_exact(table.stride()));
        for ((query, (scores, biases)), inverse_sum) in queries.zip(rows).zip(inverse_sums) {
            let (y, x) = (query / task.real.1, query % task.real.1);
            let (heights, widths) = biases[..2 * (2 * side - 1)].split_at(2 * side - 1);
            let axes = (&heights[side - 1 - y..2 * side - 1 - y], &widths[side - 1 - x..2 * side - 1 - x]);
            scores_to_weights(&mut scores[..side * side], scale, axes.0, axes.1, inverse_sum);
        }
    }
}

multiversion! {
    /// Exponentials of one query's scores, in place, after they are scaled, the biases of each key's row and column are added and the
    /// largest is subtracted; `inverse_sum` takes 1 over their sum. Keys lie row by row, `heights.len()` rows of `widths.len()`.
    fn scores_to_weights(scores: &mut [f32], scale: f32, heights: &[f32], widths: &[f32], inverse_sum: &mut f32) {
        match widths.len() {
            // the encoder's windows and its grids at 224 and 512: with a length that is known, no loop has a remainder
            14 => add_biases::<14, FMA>(scores, scale, heights, widths),
            32 => add_biases::<32, FMA>(scores, scale, heights, widths),
            n => {
                for (scores, height) in scores.chunks_exact_mut(n.max(1)).zip(heights) {
                    for (score, width) in scores.iter_mut().zip(widths) {
                        *score = madd::<FMA>(*score, scale, height + width);
                    }
                }
            }
        }
        let largest = max(scores);
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - largest);
        }
        *inverse_sum = 1.0 / sum_by(scores, |v| v);
    }
}

#[inline(always)]
fn add_biases<const N: usize, const FMA: bool>(scores: &mut [f32], scale: f32, heights: &[f32], widths: &[f32]) {
    let Some(widths) = widths.first_chunk::<N>() else { return };
    for (scores, height) in scores.as_chunks_mut::<N>().0.iter_mut().zip(heights) {
        for i in 0..N {
            scores[i] = madd::<FMA>(scores[i], scale, height + widths[i]);
        }
    }
}
