//! The gradient of a convolution's weight with bfloat16 factors.

use half::bf16;
use rayon::prelude::*;

use super::super::shape::ConvShape;
use super::super::weight_sum::weight_of_parts;
use super::planes::Planes;
use super::{STEP, applies};
use crate::cpu::activation::with_scratch_of;
use crate::cpu::filled_vec;
use crate::matmul::bf16::{Line, Operand, ROWS, Steps, Target, block, instructions, pack, with_lines};
use crate::matmul::packed::COLUMNS;

/// Maximal number of groups of images; fixed, so that the sum's order does not depend on the threads.
const PARTS: usize = 8;
/// Steps of pixels at a time: two panels of the gradient fit a first-level cache.
const DEPTH: usize = 16;

/// The sizes of a gradient of the weight.
struct Sizes {
    planes: Planes,
    /// Where each tap starts to read; a row per channel and tap has its tap within it.
    offsets: Vec<usize>,
    /// Planes per phase, and panels' columns.
    rows: usize,
    columns: usize,
    /// Steps of pixels: all rows of outputs with the planes' width.
    steps: usize,
}

impl Sizes {
    fn new(g: &ConvShape) -> (Self, bool) {
        let shifted = g.ci.is_multiple_of(ROWS);
        let planes = if shifted { Planes::split(g) } else { Planes::taps(g) };
        let rows = planes.channels.next_multiple_of(ROWS);
        let offsets = if shifted { planes.offsets_of(g, rows) } else { vec![0] };
        let steps = (g.oh * planes.width).div_ceil(STEP);
        (Self { planes, offsets, rows, columns: g.co.next_multiple_of(COLUMNS), steps }, shifted)
    }

    /// Numbers of a part of the sum, `[tap][row][column]`.
    fn part(&self) -> usize {
        self.offsets.len() * self.rows * self.columns
    }
}

/// The gradient of the weight, `[co, ci, k, k]`.
pub(in super::super) fn backward_weight(g: &ConvShape, x: &[bf16], grad: &[bf16]) -> Vec<f32> {
    assert!(applies(g) && x.len() == g.input_len() && grad.len() == g.output_len());
    let (sizes, shifted) = Sizes::new(g);
    let (image, outputs) = (g.ci * g.h * g.w, g.co * g.oh * g.ow);
    let (parts, part_len) = (g.b.clamp(1, PARTS), sizes.part());
    let of_part = |part: usize, sum: &mut [f32]| {
        let first = part * g.b / parts;
        for i in first..(part + 1) * g.b / parts {
            sizes.planes.with_single(|source| {
                let x = &x[i * image..][..image];
                if shifted {
                    sizes.planes.fill_split(g, x, source)
                } else {
                    sizes.planes.fill_taps(g, x, source)
                }
                with_lines(sizes.columns / COLUMNS * sizes.steps * COLUMNS, |lines| {
                    sizes.pack_gradient(g, &grad[i * outputs..][..outputs], lines);
                    sizes.add(source, lines, sum, i > first);
                });
            });
        }
    };
    // SAFETY: each part has an image, and the first one's products replace all of the part.
    let partial = unsafe {
        filled_vec(parts * part_len, |out| {
            (0..parts).into_par_iter().for_each(|part| of_part(part, out.slice(part * part_len, part_len)));
        })
    };
    let taps = g.k * g.k;
    let row = |place: usize| if shifted { place % taps * sizes.rows + place / taps } else { place };
    let rows: Vec<usize> = (0..g.ci * taps).map(row).collect();
    weight_of_parts(&partial, part_len, sizes.columns, (g.co, &rows))
}

impl Sizes {
    /// An image's gradient `[co, oh, ow]` as a right factor whose terms are pixels, zeros beyond a row's end.
    fn pack_gradient(&self, g: &ConvShape, grad: &[bf16], lines: &mut [Line]) {
        let pixels = self.steps * STEP;
        with_scratch_of(COLUMNS * pixels, |values: &mut [bf16]| {
            for (panel, channels) in grad.chunks(COLUMNS * g.oh * g.ow).enumerate() {
                values.fill(bf16::ZERO);
                for (row, line) in channels.chunks_exact(g.ow).enumerate() {
                    let (channel, oy) = (row / g.oh, row % g.oh);
                    values[channel * pixels + oy * self.planes.width..][..g.ow].copy_from_slice(line);
                }
                let panel = &mut lines[panel * self.steps * COLUMNS..][..self.steps * COLUMNS];
                // SAFETY: `applies` says that the processor has the instructions.
                unsafe { pack::columns(values, pixels, panel) };
            }
        });
    }

    /// Adds an image's products to the sum, or replaces it by them.
    fn add(&self, source: &[u16], lines: &[Line], sum: &mut [f32], accumulate: bool) {
        let by = instructions().expect("`applies` says that the processor has the instructions");
        let _tiles = by.tiles();
        let bytes = size_of::<u16>();
        for column in (0..self.columns).step_by(2 * COLUMNS) {
            let panels = (self.columns - column).div_ceil(COLUMNS).min(2);
            for step in (0..self.steps).step_by(DEPTH) {
                let depth = DEPTH.min(self.steps - step);
                let panel = |i: usize| lines[((column / COLUMNS + i.min(panels - 1)) * self.steps + step) * COLUMNS..].as_ptr();
                let right = Operand::of_lines([panel(0), panel(1)]);
                for (tap, offset) in self.offsets.iter().enumerate() {
                    for row in (0..self.rows).step_by(2 * ROWS) {
                        let groups = (self.rows - row).div_ceil(ROWS).min(2);
                        let group = |i: usize| {
                            source[offset + (row + i.min(groups - 1) * ROWS) * self.planes.plane + step * STEP..].as_ptr().cast()
                        };
                        let every = Steps::Every(STEP * bytes);
                        let left = Operand { start: [group(0), group(1)], line: self.planes.plane * bytes, steps: every };
                        let start = sum[(tap * self.rows + row) * self.columns + column..].as_mut_ptr();
                        let columns = [start, start.wrapping_add(COLUMNS)];
                        let target = Target { columns, stride: self.columns, accumulate: accumulate || step > 0 };
                        // SAFETY: the planes have slack behind them, the sum has whole groups and panels.
                        unsafe { block(by, depth, [left, right], target, (groups, panels)) };
                    }
                }
            }
        }
    }
}
