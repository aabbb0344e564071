//! Matrix products with a packed factor: the encoder's constant weights, and the keys and values of its attention.
//!
//! On processors with AVX2 the factor is stored in panels of sixteen columns, in the order in which the register block reads it (one panel
//! with AVX2, two with AVX-512). Elsewhere it is not packed, and the `gemm` crate packs it for every product. The order of the sums of a row
//! does not depend on the rows that are computed with it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use rayon::prelude::*;

use crate::gelu::cpu::bias_gelu_in_place;
use crate::matmul::{Accumulate, MatMut, MatRef, matmul, matmul_serial};

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;
/// Rows of the register block.
pub(crate) const ROWS: usize = 6;
/// Terms per cache line prefetched from the next panel.
#[cfg(target_arch = "x86_64")]
const FETCH: usize = 4;
/// Groups of [`ROWS`] rows in a tile: the packed rows of a tile and a panel fit a second-level cache of 512 KiB.
const TILE_GROUPS: usize = 12;

/// Sixteen columns of one row of a panel, one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; COLUMNS]);

/// Whether factors are packed into panels.
pub fn packs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::matmul::register_block::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The tiles of `rows` rows for products, one task each: as even as whole register blocks allow, the same number per thread. If factors are
/// not packed there is one tile, whose products use all threads.
pub fn tiles(rows: usize) -> Vec<Range<usize>> {
    if !packs() {
        return std::iter::once(0..rows).collect();
    }
    let (groups, threads) = (rows.div_ceil(ROWS), rayon::current_num_threads());
    let count = (threads * groups.div_ceil(threads * TILE_GROUPS)).clamp(1, groups.max(1));
    let bound = |tile: usize| (tile * groups / count * ROWS).min(rows);
    (0..count).map(|tile| bound(tile)..bound(tile + 1)).collect()
}

/// The tiles of a matrix whose rows are `width` wide.
pub(crate) fn split_tiles<'a>(mut matrix: &'a mut [f32], tiles: &[Range<usize>], width: usize) -> Vec<&'a mut [f32]> {
    let part = |tile: &Range<usize>| {
        let (part, rest) = std::mem::take(&mut matrix).split_at_mut(tile.len() * width);
        matrix = rest;
        part
    };
    tiles.iter().map(part).collect()
}

/// How a product writes to its destination.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    /// `y = x·Wᵀ`
    Replace,
    /// `y += x·Wᵀ`
    Add,
    /// `y = gelu(x·Wᵀ + bias)`
    BiasGelu(&'a [f32]),
}

/// The weight of a linear layer, `[out, inner]`, packed.
#[derive(Debug)]
pub struct PackedWeight {
    out: usize,
    inner: usize,
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    /// Per block of the inner dimension: `[out / 16][inner of the block][16]`.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "panels are for x86-64"))]
    Panels(Vec<Line>),
    /// `[out, inner]`
    Plain(Vec<f32>),
}

impl PackedWeight {
    /// Packs a weight `[out, inner]`, row-major.
    ///
    /// # Panics
    /// If `weight` is of another length, or a dimension is zero.
    pub fn new(weight: Vec<f32>, out: usize, inner: usize) -> Self {
        assert!(out > 0 && inner > 0 && weight.len() == out * inner, "a weight has another length than {out}·{inner}");
        #[cfg(target_arch = "x86_64")]
        if packs() {
            return Self { out, inner, layout: Layout::Panels(avx2::pack_weight(&weight, out, inner)) };
        }
        Self { out, inner, layout: Layout::Plain(weight) }
    }

    /// Number of output features.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Number of input features.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// The product of some rows with the weight; on the calling thread if the weight is packed.
    ///
    /// # Shapes
    /// x `[rows, inner]`, y `[rows, out]`, a bias `[out]`
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn product(&self, x: &[f32], y: &mut [f32], output: Output<'_>) {
        let rows = x.len() / self.inner;
        assert!(x.len() == rows * self.inner && y.len() == rows * self.out, "rows of other widths than the weight's");
        if let Output::BiasGelu(bias) = output {
            assert_eq!(bias.len(), self.out, "a bias of another length than the weight's");
        }
        match &self.layout {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: panels are made only where the processor has AVX2 and FMA; the lengths were checked.
            Layout::Panels(panels) => unsafe { avx2::product(panels, (self.out, self.inner), x, y, output) },
            #[cfg(not(target_arch = "x86_64"))]
            Layout::Panels(_) => unreachable!("panels are for x86-64"),
            Layout::Plain(weight) => self.product_plain(weight, x, y, output),
        }
    }

    fn product_plain(&self, weight: &[f32], x: &[f32], y: &mut [f32], output: Output<'_>) {
        let Self { out, inner, .. } = *self;
        let rows = x.len() / inner;
        let accumulate = if matches!(output, Output::Add) { Accumulate::Yes } else { Accumulate::No };
        let weight = MatRef::new(weight, out, inner).t();
        matmul(MatMut::new(y, rows, out), MatRef::new(x, rows, inner), weight, 1.0, accumulate);
        if let Output::BiasGelu(bias) = output {
            y.par_chunks_mut(ROWS * out).for_each(|rows| bias_gelu_in_place(rows, bias));
        }
    }
}

/// The right factor of small products on one thread, `[inner, cols]`; its memory is reused for each packing.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    inner: usize,
    cols: usize,
    panels: Vec<Line>,
    plain: Vec<f32>,
    packs: bool,
}

impl Default for Factor {
    fn default() -> Self {
        Self { inner: 0, cols: 0, panels: Vec::new(), plain: Vec::new(), packs: packs() }
    }
}

impl Factor {
    /// Row stride of a product in floats: `cols`, or whole panels.
    pub(crate) fn stride(&self) -> usize {
        if self.packs { self.cols.next_multiple_of(COLUMNS) } else { self.cols }
    }

    /// Rows of memory that a product of `rows` rows needs.
    pub(crate) fn room(&self, rows: usize) -> usize {
        if self.packs { rows.next_multiple_of(ROWS) } else { rows }
    }

    fn resize(&mut self, inner: usize, cols: usize) {
        (self.inner, self.cols) = (inner, cols);
        if self.packs {
            self.panels.resize(cols.div_ceil(COLUMNS) * inner, Line([0.0; COLUMNS]));
        } else {
            self.plain.resize(inner * cols, 0.0);
        }
    }

    /// Packs `inner` rows of `cols` values, each written by `row`.
    pub(crate) fn pack_rows(&mut self, inner: usize, cols: usize, mut row: impl FnMut(usize, &mut [f32])) {
        self.resize(inner, cols);
        let mut values = vec![0.0; cols];
        for k in 0..inner {
            row(k, &mut values);
            if self.packs {
                for (panel, values) in values.chunks(COLUMNS).enumerate() {
                    self.panels[panel * inner + k].0[..values.len()].copy_from_slice(values);
                }
            } else {
                self.plain[k * cols..][..cols].copy_from_slice(&values);
            }
        }
    }

    /// Packs `cols` columns of `inner` values, each written by `column`.
    pub(crate) fn pack_columns(&mut self, inner: usize, cols: usize, mut column: impl FnMut(usize, &mut [f32])) {
        self.resize(inner, cols);
        let mut values = vec![0.0; inner * COLUMNS];
        for first in (0..cols).step_by(COLUMNS) {
            let n = COLUMNS.min(cols - first);
            for (lane, values) in values.chunks_exact_mut(inner.max(1)).take(n).enumerate() {
                column(first + lane, values);
            }
            if self.packs {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: factors are packed only where the processor has AVX2 and FMA.
                unsafe {
                    avx2::pack_panel(&values, inner, &mut self.panels[first / COLUMNS * inner..][..inner]);
                }
            } else {
                for (lane, values) in values.chunks_exact(inner.max(1)).take(n).enumerate() {
                    values.iter().enumerate().for_each(|(k, value)| self.plain[k * cols + first + lane] = *value);
                }
            }
        }
    }

    /// `out = left·self`.
    ///
    /// # Shapes
    /// left `[rows, inner]`, with row stride `left_stride`; out `[rows, cols]`, with row stride [`Self::stride`]. Both have room for
    /// [`Self::room`] rows; the content beyond the rows and columns is unspecified.
    ///
    /// # Panics
    /// If a slice is too short.
    pub(crate) fn product(&self, left: &[f32], left_stride: usize, rows: usize, out: &mut [f32]) {
        let (room, stride) = (self.room(rows), self.stride());
        assert!(rows == 0 || left.len() >= (room - 1) * left_stride + self.inner, "a left factor is too short");
        assert!(out.len() >= room * stride, "a product's destination is too short");
        #[cfg(target_arch = "x86_64")]
        if self.packs {
            // SAFETY: factors are packed only where the processor has AVX2 and FMA; the lengths were checked.
            unsafe { avx2::small_product(&self.panels, self.inner, (left, left_stride), rows, (out, stride)) };
            return;
        }
        let left = MatRef::strided(left, rows, self.inner, left_stride);
        let right = MatRef::new(&self.plain, self.inner, self.cols);
        matmul_serial(MatMut::new(out, rows, self.cols), left, right, 1.0, Accumulate::No);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::erf;
    use crate::testing::values;

    /// The product in float64.
    fn expected(x: &[f32], weight: &[f32], inner: usize, out: usize) -> Vec<f64> {
        let row = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        x.chunks_exact(inner).flat_map(|x| weight.chunks_exact(inner).take(out).map(move |w| row(x, w))).collect()
    }

    fn assert_close(got: &[f32], want: impl Iterator<Item = f64>, what: &str) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*got) - want).abs() < 2e-5, "{what}: element {i} is {got}, not {want}");
        }
    }

    #[test]
    fn products_follow_the_definition_packed_or_not() {
        for (rows, inner, out) in [(1, 1, 1), (6, 8, 16), (13, 24, 40), (7, 770, 33), (66, 64, 144), (12, 3072, 16)] {
            let (x, w, bias) = (values(rows * inner, 1), values(out * inner, 2), values(out, 3));
            let x: Vec<f32> = x.iter().map(|x| x / (inner as f32).sqrt()).collect();
            let want = expected(&x, &w, inner, out);
            let plain = PackedWeight { out, inner, layout: Layout::Plain(w.clone()) };
            for (weight, path) in [(PackedWeight::new(w.clone(), out, inner), "packed"), (plain, "plain")] {
                let what = format!("{path} {rows}·{inner}·{out}");
                let mut y = vec![f32::NAN; rows * out];
                weight.product(&x, &mut y, Output::Replace);
                assert_close(&y, want.iter().copied(), &what);
                let mut y = vec![1.0; rows * out];
                weight.product(&x, &mut y, Output::Add);
                assert_close(&y, want.iter().map(|v| v + 1.0), &what);
                let mut y = vec![f32::NAN; rows * out];
                weight.product(&x, &mut y, Output::BiasGelu(&bias));
                let gelu = |v: f64| 0.5 * v * (1.0 + f64::from(erf::<true>((v / std::f64::consts::SQRT_2) as f32)));
                assert_close(&y, want.iter().enumerate().map(|(i, v)| gelu(v + f64::from(bias[i % out]))), &what);
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (inner, out) = (1540, 48);
        let weight = PackedWeight::new(values(out * inner, 2), out, inner);
        let x = values(20 * inner, 1);
        let mut all = vec![0.0; 20 * out];
        weight.product(&x, &mut all, Output::Replace);
        for (first, n) in [(0, 1), (3, 5), (7, 13)] {
            let mut some = vec![0.0; n * out];
            weight.product(&x[first * inner..][..n * inner], &mut some, Output::Replace);
            assert_eq!(some, all[first * out..][..n * out]);
        }
    }

    #[test]
    fn a_column_does_not_depend_on_its_neighbours() {
        // A matrix of only sixteen columns uses the narrow block, even where there is a wider one.
        let (rows, inner, out) = (13, 1540, 72);
        let (x, w) = (values(rows * inner, 1), values(out * inner, 2));
        let mut all = vec![1.0; rows * out];
        PackedWeight::new(w.clone(), out, inner).product(&x, &mut all, Output::Add);
        for first in (0..out).step_by(COLUMNS) {
            let n = COLUMNS.min(out - first);
            let mut some = vec![1.0; rows * n];
            PackedWeight::new(w[first * inner..][..n * inner].to_vec(), n, inner).product(&x, &mut some, Output::Add);
            for (some, all) in some.chunks_exact(n).zip(all.chunks_exact(out)) {
                assert_eq!(some, &all[first..][..n]);
            }
        }
    }

    #[test]
    fn factors_of_rows_and_of_columns_agree() {
        for (rows, inner, cols) in [(1usize, 1, 1), (6, 64, 196), (11, 30, 17), (64, 196, 64)] {
            let (left, right) = (values(rows.next_multiple_of(ROWS) * inner, 1), values(inner * cols, 2));
            let transposed: Vec<f32> = (0..cols * inner).map(|i| right[i % inner * cols + i / inner]).collect();
            let want = expected(&left[..rows * inner], &transposed, inner, cols);
            for packs in [packs(), false] {
                let mut factor = Factor { packs, ..Factor::default() };
                for by_rows in [true, false] {
                    if by_rows {
                        factor.pack_rows(inner, cols, |k, row| row.copy_from_slice(&right[k * cols..][..cols]));
                    } else {
                        factor.pack_columns(inner, cols, |c, column| column.copy_from_slice(&transposed[c * inner..][..inner]));
                    }
                    let mut out = vec![f32::NAN; factor.room(rows) * factor.stride()];
                    factor.product(&left, inner, rows, &mut out);
                    let got: Vec<f32> = out.chunks(factor.stride()).take(rows).flat_map(|row| row[..cols].to_vec()).collect();
                    assert_close(&got, want.iter().copied(), &format!("{rows}·{inner}·{cols} {packs} {by_rows}"));
                }
            }
        }
    }

    #[test]
    fn tiles_are_all_rows_in_order() {
        for rows in [0, 1, 6, 9, 196, 784, 1024] {
            let tiles = tiles(rows);
            assert_eq!(tiles.first().map(|tile| tile.start), Some(0));
            assert!(tiles.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(tiles.last().map(|tile| tile.end), Some(rows));
        }
    }
}
