//! Products of bfloat16 factors with float32 sums, by AMX's tiles or AVX512-BF16's dot products.
//!
//! Both take the factors in the same order. A cache line holds 32 terms of one row on the left, and on the right two terms of each of sixteen columns.
//! A step is 32 terms: sixteen lines of a group of sixteen rows, or sixteen lines of a panel of sixteen columns, which is what a tile of AMX holds.
//! Factors are rounded to the nearest bfloat16, ties to even. An element's sum has the same order whatever is computed with it. The two kinds of
//! instructions sum in different orders, so their results differ in the last bits.

mod amx;
mod dot;
mod mlp;
pub(crate) mod pack;

pub(crate) use amx::Tiles;
pub(crate) use mlp::add_mlp;

use rayon::prelude::*;

use crate::cpu::pages::Buffer;
use crate::cpu::with_scratch;
use crate::gelu::cpu::{bias_gelu_in_place, bias_gelu_rows};
use crate::matmul::register_block::COLUMNS;
use crate::matmul::{Output, add_bias_in_place, add_bias_rows};
use pack::FactorFormat;

/// Terms of a step.
pub(crate) const STEP: usize = 32;
/// Rows of a group.
pub(crate) const ROWS: usize = 16;
/// Steps per pass over the destination: two panels' lines of a pass leave room in a first-level cache of 48 KiB.
const DEPTH: usize = 16;
/// 32 numbers, one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u16; STEP]);

impl Line {
    /// Zeros.
    pub(crate) const ZERO: Self = Self([0; STEP]);
}

/// What computes the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// Tiles of 16 rows of 64 bytes, and the vectors of [`Self::Dot`] for what is not a product.
    Amx,
    /// AVX512-BF16.
    Dot,
}

impl Instructions {
    /// Their name in Intel's manual.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Instructions::Amx => "AMX",
            Instructions::Dot => "AVX512-BF16",
        }
    }

    /// The tile registers, if they are what computes: alive while [`block`] is called.
    pub(crate) fn tiles(self) -> Option<Tiles> {
        (self == Instructions::Amx).then(Tiles::configure)
    }
}

/// What this processor has of them.
pub(crate) fn instructions() -> Option<Instructions> {
    let vectors = is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match vectors {
        true if amx::available() => Some(Instructions::Amx),
        true => Some(Instructions::Dot),
        false => None,
    }
}

/// The rows of a left factor, in groups.
#[derive(Clone, Copy)]
struct Left<'a> {
    /// `[rows / 16][steps][16]`
    lines: &'a [Line],
    rows: usize,
}

/// The columns of a right factor, in panels.
#[derive(Debug, Clone)]
pub(crate) struct Right {
    /// `[columns / 16][steps][16]`
    lines: Lines,
    inner: usize,
    columns: usize,
    by: Instructions,
}

/// The memory of a right factor: a weight's lies on large pages; any other factor's is reused.
#[derive(Debug, Clone)]
enum Lines {
    Weight(Buffer<Line>),
    Reused(Vec<Line>),
}

impl std::ops::Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Lines::Weight(lines) => lines,
            Lines::Reused(lines) => lines,
        }
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Lines::Weight(lines) => lines,
            Lines::Reused(lines) => lines,
        }
    }
}

/// Lines of `count` rows or columns with `inner` terms.
pub(crate) fn lines(count: usize, inner: usize) -> usize {
    count.div_ceil(COLUMNS) * inner.div_ceil(STEP) * COLUMNS
}

/// Calls `f` with `count` lines of unspecified content, which the thread keeps.
pub(crate) fn with_lines<R>(count: usize, f: impl FnOnce(&mut [Line]) -> R) -> R {
    with_scratch(count * size_of::<Line>() / size_of::<f32>(), |floats| {
        assert!(floats.as_ptr().cast::<Line>().is_aligned(), "scratch memory starts on a cache line");
        // SAFETY: as many bytes, aligned as asserted; any bits are numbers of 16 bits; the borrow is exclusive.
        f(unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), count) })
    })
}

impl Right {
    /// Without columns.
    ///
    /// # Panics
    /// If the processor has no instructions for it.
    pub(crate) fn new() -> Self {
        let by = instructions().expect("the processor has no instructions for bfloat16");
        Self { lines: Lines::Reused(Vec::new()), inner: 0, columns: 0, by }
    }

    /// The columns are the rows of `weight`, `[out, inner]`.
    pub(crate) fn of_weight(weight: &[f32], out: usize, inner: usize) -> Self {
        let mut right = Self::new();
        (right.inner, right.columns) = (inner, out);
        right.lines = Lines::Weight(Buffer::filled(Line::ZERO, lines(out, inner)));
        let steps = inner.div_ceil(STEP);
        for (panel, rows) in right.lines.chunks_exact_mut(steps * COLUMNS).zip(weight.chunks(COLUMNS * inner)) {
            // SAFETY: the processor has the instructions, or `new` had panicked; the panel has `steps` steps.
            unsafe { pack::columns(rows, inner, panel) };
        }
        right
    }

    /// Packs a whole matrix, `[columns, inner]` or, if `transposed`, `[inner, columns]`, into the memory that it has.
    pub(crate) fn pack<T: FactorFormat>(&mut self, matrix: &[T], (inner, columns): (usize, usize), transposed: bool) {
        self.resize(inner, columns);
        if transposed {
            for (pair, rows) in matrix.chunks(2 * columns.max(1)).enumerate() {
                let (first, second) = rows.split_at(columns);
                self.pack_terms(2 * pair, first, second);
            }
            return self.clear_rest();
        }
        let panel = self.steps() * COLUMNS;
        self.lines.par_chunks_mut(panel.max(1)).zip(matrix.par_chunks((COLUMNS * inner).max(1))).for_each(|(panel, rows)| {
            // SAFETY: the processor has the instructions, or `new` had panicked; the panel has the steps of its columns.
            unsafe { pack::columns(rows, inner, panel) };
        });
    }

    pub(crate) fn resize(&mut self, inner: usize, columns: usize) {
        (self.inner, self.columns) = (inner, columns);
        let mut kept = match std::mem::replace(&mut self.lines, Lines::Reused(Vec::new())) {
            Lines::Reused(lines) => lines,
            Lines::Weight(_) => Vec::new(),
        };
        kept.resize(lines(columns, inner), Line::ZERO);
        self.lines = Lines::Reused(kept);
    }

    fn steps(&self) -> usize {
        self.inner.div_ceil(STEP)
    }

    /// Packs up to sixteen columns `[n][inner]`, from the column `first` on, a multiple of 16.
    pub(crate) fn pack_columns<T: FactorFormat>(&mut self, first: usize, columns: &[T]) {
        let panel = self.steps() * COLUMNS;
        // SAFETY: the processor has the instructions, or `new` had panicked.
        unsafe { pack::columns(columns, self.inner, &mut self.lines[first / COLUMNS * panel..][..panel]) };
    }

    /// Packs the terms `k` and `k + 1` of all columns; `k` is even. `second` is empty if there is no such term.
    pub(crate) fn pack_terms<T: FactorFormat>(&mut self, k: usize, first: &[T], second: &[T]) {
        let panel = self.steps() * COLUMNS;
        // SAFETY: as above.
        unsafe { pack::terms(&mut self.lines[k / 2..], panel, first, second) };
    }

    /// Makes the terms from `self.inner` to the end of its step zero: whatever stands there is multiplied by zeros, which a NaN survives.
    pub(crate) fn clear_rest(&mut self) {
        let (steps, from) = (self.steps(), self.inner.div_ceil(2));
        for panel in self.lines.chunks_exact_mut(steps * COLUMNS) {
            panel[from..].fill(Line::ZERO);
        }
    }

    /// The product of `rows` rows with the factor, written as `output` says.
    ///
    /// # Shapes
    /// x `[rows, inner]`, y `[rows, columns]`, a bias `[columns]`
    ///
    /// # Panics
    /// If a slice has another length.
    pub(crate) fn product<X: FactorFormat, Y: FactorFormat>(&self, x: &[X], rows: usize, y: &mut [Y], output: Output<'_>) {
        assert!(x.len() == rows * self.inner && y.len() == rows * self.columns, "rows of other widths than the factor's");
        if rows == 0 || self.columns == 0 {
            return;
        }
        let Some(sums) = Y::floats_mut(y) else { return self.product_by_strips(x, rows, y, output) };
        let (target, add) = ((sums.as_mut_ptr(), self.columns), matches!(output, Output::Add));
        // SAFETY: the destination's length was just checked.
        unsafe { self.product_into((x, self.inner), rows, (rows, self.columns), target, add) };
        match output {
            Output::Replace | Output::Add => {}
            Output::Bias(bias) => add_bias_in_place(sums, bias),
            Output::BiasGelu(bias) => bias_gelu_in_place(sums, bias),
        }
    }

    /// As [`Self::product`], 32 columns at a time in float32, which are rounded to `y`.
    fn product_by_strips<X: FactorFormat, Y: FactorFormat>(&self, x: &[X], rows: usize, y: &mut [Y], output: Output<'_>) {
        with_lines(lines(rows, self.inner), |packed| {
            let left = self.pack_left((x, self.inner), rows, packed);
            let _tiles = self.tiles();
            with_scratch(rows * 2 * COLUMNS, |strip| {
                for first in (0..self.columns).step_by(2 * COLUMNS) {
                    let columns = first..self.columns.min(first + 2 * COLUMNS);
                    let strip = &mut strip[..rows * columns.len()];
                    let target = (strip.as_mut_ptr(), columns.len());
                    // SAFETY: the tiles are configured; the strip has room; a processor with these instructions has AVX-512.
                    unsafe {
                        self.two_panels(left, 0..self.steps(), first / COLUMNS, target, columns.len(), false);
                        write_strip(strip, columns, y, self.columns, output);
                    }
                }
            });
        });
    }

    /// `y = x·self` into memory that has room for whole groups and panels, which are written.
    ///
    /// # Panics
    /// If it lacks that room.
    pub(crate) fn product_with_room<T: FactorFormat>(&self, x: (&[T], usize), rows: usize, (y, stride): (&mut [f32], usize)) {
        let size = (rows.next_multiple_of(ROWS), self.columns.next_multiple_of(COLUMNS));
        assert!(y.len() >= size.0 * stride && stride >= size.1, "a destination is too short");
        if rows > 0 {
            // SAFETY: the destination's length was just checked.
            unsafe { self.product_into(x, rows, size, (y.as_mut_ptr(), stride), false) };
        }
    }

    /// Writes `size` elements of the product of `rows` rows.
    ///
    /// # Safety
    /// `y` has room for them, and they belong to this thread.
    unsafe fn product_into<T: FactorFormat>(
        &self,
        x: (&[T], usize),
        rows: usize,
        size: (usize, usize),
        (y, stride): (*mut f32, usize),
        add: bool,
    ) {
        with_lines(lines(rows, self.inner), |packed| {
            let left = Left { rows: size.0, ..self.pack_left(x, rows, packed) };
            let _tiles = self.tiles();
            for first in (0..size.1).step_by(2 * COLUMNS) {
                let columns = (size.1 - first).min(2 * COLUMNS);
                // SAFETY: the caller's promise.
                unsafe { self.two_panels(left, 0..self.steps(), first / COLUMNS, (y.wrapping_add(first), stride), columns, add) };
            }
        });
    }

    /// The tile registers, for [`Self::two_panels`], if they are what computes.
    fn tiles(&self) -> Option<Tiles> {
        self.by.tiles()
    }

    /// Rounds the rows of a left factor.
    ///
    /// # Panics
    /// If `x` is too short.
    fn pack_left<'a, T: FactorFormat>(&self, (x, stride): (&[T], usize), rows: usize, to: &'a mut [Line]) -> Left<'a> {
        assert!(x.len() >= (rows - 1) * stride + self.inner && stride >= self.inner, "a left factor is too short");
        // SAFETY: the processor has the instructions, or `new` had panicked; the rows are there.
        unsafe { pack::rows((x, stride), rows, self.inner, to) };
        Left { lines: to, rows }
    }

    /// The product of all rows, which hold these steps of the inner dimension, with up to two panels, into `y`, whose rows are `stride` apart.
    ///
    /// # Safety
    /// The result of [`Self::tiles`] is alive; `y` has room for `left.rows` rows of `columns` numbers, at most 32, which belong to this thread.
    unsafe fn two_panels(
        &self,
        left: Left<'_>,
        steps: std::ops::Range<usize>,
        panel: usize,
        (y, stride): (*mut f32, usize),
        columns: usize,
        add: bool,
    ) {
        let panels = columns.div_ceil(COLUMNS);
        let line = |panel: usize, step: usize| (panel * self.steps() + steps.start + step) * COLUMNS;
        let b = |i: usize, step: usize| self.lines[line(panel + i.min(panels - 1), step)..].as_ptr();
        let a = |group: usize, step: usize| left.lines[(group * steps.len() + step) * ROWS..].as_ptr();
        for step in (0..steps.len()).step_by(DEPTH) {
            let depth = DEPTH.min(steps.len() - step);
            for group in (0..left.rows.div_ceil(ROWS)).step_by(2) {
                let rows = (left.rows - group * ROWS).min(2 * ROWS);
                let second = if rows > ROWS { group + 1 } else { group };
                let a = Operand::of_lines([a(group, step), a(second, step)]);
                let b = Operand::of_lines([b(0, step), b(1, step)]);
                let start = y.wrapping_add(group * ROWS * stride);
                let target = Target { columns: [start, start.wrapping_add(COLUMNS)], stride, accumulate: add || step > 0 };
                // SAFETY: the lines of both groups and panels are there, and the caller's promise.
                unsafe { block_within(self.by, depth, [a, b], target, (rows, columns)) };
            }
        }
    }
}

/// Where a block reads a factor: for each of two groups (or panels) the sixteen lines of its first step, and how to get from there to the others.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// The first line of each.
    pub(crate) start: [*const u8; 2],
    /// Bytes from a line to the next.
    pub(crate) line: usize,
    /// From the first step to each.
    pub(crate) steps: Steps<'a>,
}

/// Bytes from the first step to the others.
#[derive(Clone, Copy)]
pub(crate) enum Steps<'a> {
    /// As many for each.
    Every(usize),
    /// One number per step.
    At(&'a [usize]),
}

impl Operand<'_> {
    /// Of lines one after another.
    pub(crate) fn of_lines(start: [*const Line; 2]) -> Self {
        Self { start: start.map(<*const Line>::cast), line: size_of::<Line>(), steps: Steps::Every(ROWS * size_of::<Line>()) }
    }

    /// The first line of a step.
    #[inline(always)]
    fn at(&self, which: usize, step: usize) -> *const u8 {
        self.start[which].wrapping_add(match self.steps {
            Steps::Every(bytes) => step * bytes,
            Steps::At(bytes) => bytes[step],
        })
    }
}

/// Destination of a block: for each panel its first number, rows `stride` numbers apart, replaced or added to.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) columns: [*mut f32; 2],
    pub(crate) stride: usize,
    pub(crate) accumulate: bool,
}

/// A block of one or two groups of rows and one or two panels of columns: the product of `steps` steps of both operands.
///
/// # Safety
/// The processor has the instructions; for [`Instructions::Amx`] the tiles are configured. The operands' lines and the target's elements are there, and
/// the latter belong to this thread.
pub(crate) unsafe fn block(by: Instructions, steps: usize, operands: [Operand<'_>; 2], target: Target, size: (usize, usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        match by {
            Instructions::Amx => amx::block(steps, operands, target, size),
            Instructions::Dot => dot::block(steps, operands, target, size),
        }
    }
}

/// A block of `rows` rows and `columns` neighbouring columns, by way of a whole one if it is at the edge.
///
/// # Safety
/// As for [`block`], of these elements of the target.
unsafe fn block_within(
    by: Instructions,
    steps: usize,
    operands: [Operand<'_>; 2],
    target: Target,
    (rows, columns): (usize, usize),
) {
    let size = (rows.div_ceil(ROWS), columns.div_ceil(COLUMNS));
    if rows.is_multiple_of(ROWS) && columns.is_multiple_of(COLUMNS) {
        // SAFETY: the caller's promise.
        return unsafe { block(by, steps, operands, target, size) };
    }
    let mut values = [0f32; 4 * ROWS * COLUMNS];
    let width = 2 * COLUMNS;
    // SAFETY: a row's `columns` elements are there.
    let row = |r: usize| unsafe { std::slice::from_raw_parts_mut(target.columns[0].add(r * target.stride), columns) };
    if target.accumulate {
        values.chunks_exact_mut(width).take(rows).enumerate().for_each(|(r, values)| values[..columns].copy_from_slice(row(r)));
    }
    let start = values.as_mut_ptr();
    let whole = Target { columns: [start, start.wrapping_add(COLUMNS)], stride: width, accumulate: target.accumulate };
    // SAFETY: the block fits the values; the rest is the caller's promise.
    unsafe { block(by, steps, operands, whole, size) };
    values.chunks_exact(width).take(rows).enumerate().for_each(|(r, values)| row(r).copy_from_slice(&values[..columns]));
}

/// Writes some columns of a product to those of `y`, whose rows have `width` columns, as `output` says.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn write_strip<T: FactorFormat>(
    strip: &mut [f32],
    columns: std::ops::Range<usize>,
    y: &mut [T],
    width: usize,
    output: Output<'_>,
) {
    for (sums, y) in strip.chunks_exact_mut(columns.len()).zip(y.chunks_exact_mut(width)) {
        let y = &mut y[columns.clone()];
        match output {
            Output::Replace => {}
            Output::Add => sums.iter_mut().zip(&*y).for_each(|(sum, y)| *sum += y.value()),
            Output::Bias(bias) => add_bias_rows(sums, &bias[columns.clone()]),
            Output::BiasGelu(bias) => bias_gelu_rows::<true>(sums, &bias[columns.clone()]),
        }
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::nearest(*sum));
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::values;

    /// The product of the rounded factors in float64.
    fn expected(x: &[f32], weight: &[f32], inner: usize) -> Vec<f64> {
        let rounded = |v: f32| f64::from(bf16::from_f32(v));
        let row = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| rounded(*x) * rounded(*w)).sum::<f64>();
        x.chunks_exact(inner).flat_map(|x| weight.chunks_exact(inner).map(move |w| row(x, w))).collect()
    }

    /// The factor by each kind of instructions that this processor has; none on one that has none.
    pub(super) fn each_kind(right: &Right) -> Vec<Right> {
        let kinds = [Instructions::Amx, Instructions::Dot];
        let has = |by: &Instructions| instructions().is_some_and(|best| best == *by || *by == Instructions::Dot);
        kinds.into_iter().filter(has).map(|by| Right { by, ..right.clone() }).collect()
    }

    #[test]
    fn products_are_those_of_the_rounded_factors() {
        if instructions().is_none() {
            return;
        }
        for (rows, inner, out) in
            [(1, 1, 1), (16, 32, 16), (32, 64, 32), (13, 24, 40), (49, 770, 33), (66, 64, 144), (17, 3072, 48)]
        {
            let x: Vec<f32> = values(rows * inner, 1).iter().map(|x| x / (inner as f32).sqrt()).collect();
            let (w, bias) = (values(out * inner, 2), values(out, 3));
            let want = expected(&x, &w, inner);
            for right in each_kind(&Right::of_weight(&w, out, inner)) {
                for (output, before) in [(Output::Replace, f32::NAN), (Output::Add, 1.0), (Output::Bias(&bias), f32::NAN)] {
                    let mut y = vec![before; rows * out];
                    right.product(&x, rows, &mut y, output);
                    // What float32 rounds of a sum of up to 3072 terms; each product of rounded factors is exact.
                    for (i, (got, want)) in y.iter().zip(&want).enumerate() {
                        let want = match output {
                            Output::Add => want + 1.0,
                            Output::Bias(bias) => want + f64::from(bias[i % out]),
                            _ => *want,
                        };
                        let by = right.by;
                        assert!((f64::from(*got) - want).abs() < 1e-5, "{by:?} {rows}·{inner}·{out}: {i} is {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_and_a_column_do_not_depend_on_the_others() {
        if instructions().is_none() {
            return;
        }
        let (rows, inner, out) = (70, 1540, 72);
        let (x, w) = (values(rows * inner, 1), values(out * inner, 2));
        for right in each_kind(&Right::of_weight(&w, out, inner)) {
            let mut all = vec![1.0; rows * out];
            right.product(&x, rows, &mut all, Output::Add);
            for (first, n) in [(0, 1), (3, 20), (37, 33)] {
                let mut some = vec![1.0; n * out];
                right.product(&x[first * inner..][..n * inner], n, &mut some, Output::Add);
                assert_eq!(some, all[first * out..][..n * out], "rows from {first}");
            }
            for first in (0..out).step_by(COLUMNS) {
                let n = COLUMNS.min(out - first);
                let part = Right { by: right.by, ..Right::of_weight(&w[first * inner..][..n * inner], n, inner) };
                let mut some = vec![1.0; rows * n];
                part.product(&x, rows, &mut some, Output::Add);
                for (some, all) in some.chunks_exact(n).zip(all.chunks_exact(out)) {
                    assert_eq!(some, &all[first..][..n], "columns from {first}");
                }
            }
        }
    }

    /// Rows in bfloat16 are as those in float32 that they round to, and a result in bfloat16 is float32's, rounded once.
    #[test]
    fn rows_in_bfloat16_give_the_bits_of_rounded_ones() {
        if instructions().is_none() {
            return;
        }
        let narrow = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<bf16>>();
        for (rows, inner, out) in [(1, 1, 1), (49, 770, 33), (66, 64, 144)] {
            let (x, w, bias) = (values(rows * inner, 1), values(out * inner, 2), values(out, 3));
            let before = narrow(&values(rows * out, 4));
            for right in each_kind(&Right::of_weight(&w, out, inner)) {
                for output in [Output::Replace, Output::Add, Output::Bias(&bias), Output::BiasGelu(&bias)] {
                    let mut want: Vec<f32> = before.iter().map(|y| y.to_f32()).collect();
                    right.product(&x, rows, &mut want, output);
                    let mut wide: Vec<f32> = before.iter().map(|y| y.to_f32()).collect();
                    right.product(&narrow(&x), rows, &mut wide, output);
                    assert_eq!(wide, want, "{rows}·{inner}·{out}");
                    let mut narrowed = before.clone();
                    right.product(&x, rows, &mut narrowed, output);
                    // In float32 the sums start from y, in bfloat16 y is added at the end, so the last bits may differ.
                    let off = |(got, want): (&bf16, &f32)| (got.to_f32() - want).abs() > want.abs() / 128.0 + 1e-6;
                    match output {
                        Output::Add => assert!(!narrowed.iter().zip(&want).any(off), "{rows}·{inner}·{out}"),
                        _ => assert_eq!(narrowed, narrow(&want), "{rows}·{inner}·{out}"),
                    }
                }
            }
        }
    }

    #[test]
    fn no_nan_is_lost_and_none_appears() {
        if instructions().is_none() {
            return;
        }
        let (inner, out) = (40, 20);
        for right in each_kind(&Right::of_weight(&values(inner * out, 1), out, inner)) {
            let mut x = values(2 * inner, 2);
            x[7] = f32::from_bits(0x7fff_ffff);
            let mut y = vec![0.0; 2 * out];
            right.product(&x, 2, &mut y, Output::Replace);
            assert!(y[..out].iter().all(|v| v.is_nan()) && y[out..].iter().all(|v| v.is_finite()));
        }
    }
}
