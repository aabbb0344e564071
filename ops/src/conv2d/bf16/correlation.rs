//! Products of a matrix with shifted views of planes.

use half::bf16;
use rayon::prelude::*;

use super::planes::Planes;
use crate::cpu::SendPtr;
use crate::matmul::bf16::{Instructions, Line, Operand, ROWS, STEP, Steps, Target, block, instructions, lines, pack};
use crate::matmul::packed::COLUMNS;

/// Where a block of results goes.
struct Scattered<'a> {
    /// Starts of the groups of columns in the first row.
    groups: &'a [usize],
    rows: usize,
    columns: usize,
    to: Destination,
}

impl Scattered<'_> {
    /// Writes `values`, rows of two groups of columns, rounded.
    ///
    /// # Safety
    /// The elements are there, and no other thread touches them; the processor has AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn write(&self, values: &[f32], out: SendPtr<bf16>) {
        for (r, values) in values.chunks_exact(2 * COLUMNS).take(self.rows).enumerate() {
            for (start, values) in self.groups.iter().zip(values.chunks_exact(COLUMNS)) {
                let rounded = pack::sixteen_rounded(&values[..self.columns]);
                // SAFETY: the caller's promise.
                unsafe {
                    let to = out.add(start + r * self.to.plane);
                    if self.to.column == 1 {
                        pack::store(rounded, self.columns, to.cast());
                        continue;
                    }
                    let mut numbers = [bf16::ZERO; COLUMNS];
                    pack::store(rounded, COLUMNS, numbers.as_mut_ptr().cast());
                    numbers[..self.columns].iter().enumerate().for_each(|(i, number)| *to.add(i * self.to.column) = *number);
                }
            }
        }
    }
}

/// `out[row][pixel] = Σ_(tap, channel) left[row][tap][channel]·source[channel][pixel + offset of the tap]`.
pub(super) struct Correlation {
    /// `[rows / 16][steps][16]`
    left: Vec<Line>,
    rows: usize,
    /// Bytes from a pixel to what each step reads of it.
    steps: Vec<usize>,
    /// Bytes from a plane to the next.
    plane: usize,
    width: usize,
    by: Instructions,
}

/// Where the results lie: that of a row of the matrix at `start + row·plane`, and of its pixel (y, x) at `y·row + x·column` from there.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub(super) start: usize,
    pub(super) plane: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

impl Correlation {
    /// `offsets` are those of the taps in the first planes of `planes`, which interleave `channels`; `left(row, tap, channel)` is the matrix.
    pub(super) fn new(
        rows: usize,
        channels: usize,
        offsets: &[usize],
        planes: &Planes,
        left: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let (width, by) = (channels.next_multiple_of(STEP), instructions());
        let inner = offsets.len() * width;
        let mut packed = vec![Line::ZERO; lines(rows, inner)];
        packed.par_chunks_mut(inner / STEP * ROWS).enumerate().for_each(|(group, lines)| {
            let n = ROWS.min(rows - group * ROWS);
            let mut values = vec![0f32; n * inner];
            for (r, values) in values.chunks_exact_mut(inner).enumerate() {
                for (tap, values) in values.chunks_exact_mut(width).enumerate() {
                    values[..channels].iter_mut().enumerate().for_each(|(c, value)| *value = left(group * ROWS + r, tap, c));
                }
            }
            // SAFETY: `applies` says that the processor has the instructions.
            unsafe { pack::rows((&values, inner), n, inner, lines) };
        });
        let bytes = size_of::<u32>();
        let of_tap = |offset: &usize| {
            let offset = *offset;
            (0..width / STEP).map(move |step| (offset + step * STEP / 2 * planes.plane) * bytes)
        };
        Self {
            left: packed,
            rows,
            steps: offsets.iter().flat_map(of_tap).collect(),
            plane: planes.plane * bytes,
            width: planes.width,
            by: by.expect("the processor has no instructions for bfloat16"),
        }
    }

    /// Computes `size` pixels (rows, columns) of every row of the matrix. Of few images, several threads share each.
    ///
    /// # Safety
    /// The destination's elements are there and belong to this task; the source has as many pixels from each offset on, and sixteen more.
    pub(super) unsafe fn apply(&self, source: &[u32], size: (usize, usize), out: SendPtr<bf16>, to: Destination, images: usize) {
        let starts: Vec<(usize, usize)> = (0..size.0).flat_map(|y| groups(size.1).map(move |x| (y, x))).collect();
        // SAFETY: the caller's promise; each pair of groups of rows is one call's.
        let two_groups = |row: usize| unsafe { self.two_groups(row, source, &starts, size.1, out, to) };
        let rows = 0..self.rows.div_ceil(2 * ROWS);
        match images >= rayon::current_num_threads() {
            true => rows.for_each(|pair| two_groups(pair * 2 * ROWS)),
            false => rows.into_par_iter().for_each(|pair| two_groups(pair * 2 * ROWS)),
        }
    }

    /// Of up to 32 rows of the matrix, from `row` on.
    ///
    /// # Safety
    /// As for [`Self::apply`].
    unsafe fn two_groups(
        &self,
        row: usize,
        source: &[u32],
        starts: &[(usize, usize)],
        columns: usize,
        out: SendPtr<bf16>,
        to: Destination,
    ) {
        let rows = (self.rows - row).min(2 * ROWS);
        let lines = |group: usize| self.left[group * self.steps.len() * ROWS..].as_ptr();
        let first = row / ROWS;
        let left = Operand::of_lines([lines(first), lines(if rows > ROWS { first + 1 } else { first })]);
        let _tiles = self.by.tiles();
        let mut values = [0f32; 4 * ROWS * COLUMNS];
        for pair in starts.chunks(2) {
            let both = [pair[0], pair[pair.len() - 1]];
            let from = both.map(|(y, x)| source[y * self.width + x..].as_ptr().cast());
            let right = Operand { start: from, line: self.plane, steps: Steps::At(&self.steps) };
            let size = (rows.div_ceil(ROWS), pair.len());
            let place = |(y, x): (usize, usize)| to.start + row * to.plane + y * to.row + x * to.column;
            // SAFETY: the caller's promise; `values` have room for a block.
            unsafe {
                let start = values.as_mut_ptr();
                let target = Target { columns: [start, start.add(COLUMNS)], stride: 2 * COLUMNS, accumulate: false };
                block(self.by, self.steps.len(), [left, right], target, size);
                let groups = &both.map(place)[..pair.len()];
                Scattered { groups, rows, columns: columns.min(COLUMNS), to }.write(&values, out);
            }
        }
    }
}

/// Starts of groups of sixteen pixels that cover `0..columns`; the last may overlap the one before it, and of fewer than sixteen there is one group.
fn groups(columns: usize) -> impl Iterator<Item = usize> {
    (0..columns.div_ceil(COLUMNS)).map(move |i| (i * COLUMNS).min(columns.saturating_sub(COLUMNS)))
}
