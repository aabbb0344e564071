//! The right factor of small products on one thread: the keys and values of an attention.

use super::{COLUMNS, RowFormat, floats};
#[cfg(target_arch = "x86_64")]
use super::{Line, ROWS, avx2, packs};
#[cfg(target_arch = "x86_64")]
use crate::matmul::bf16;
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};
use crate::numerics::Numerics;

/// The right factor of small products on one thread, `[inner, cols]`; its memory is reused for each packing.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    inner: usize,
    cols: usize,
    layout: Layout,
}

#[derive(Debug, Clone)]
enum Layout {
    /// `[inner, cols]`
    Plain(Vec<f32>),
    /// `[cols / 16][inner][16]`
    #[cfg(target_arch = "x86_64")]
    Panels(Vec<Line>),
    #[cfg(target_arch = "x86_64")]
    Bf16(bf16::Right),
}

impl Factor {
    /// An empty one, for products in these numerics.
    ///
    /// # Panics
    /// If the processor does not compute in them.
    pub(crate) fn new(numerics: Numerics) -> Self {
        assert!(super::computes_in(numerics), "the processor does not compute in {numerics:?}");
        #[cfg(target_arch = "x86_64")]
        let layout = match numerics {
            Numerics::Bf16 => Layout::Bf16(bf16::Right::new()),
            _ if packs() => Layout::Panels(Vec::new()),
            _ => Layout::Plain(Vec::new()),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let layout = Layout::Plain(Vec::new());
        Self { inner: 0, cols: 0, layout }
    }

    /// How products with it are computed.
    pub(crate) fn numerics(&self) -> Numerics {
        match self.layout {
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16(_) => Numerics::Bf16,
            _ => Numerics::F32,
        }
    }

    /// Row stride of a product in floats: `cols`, or an odd number of panels that is enough. The rows of a block are written together, and a multiple
    /// of 4 KiB would put them into one cache set.
    pub(crate) fn stride(&self) -> usize {
        match self.layout {
            Layout::Plain(_) => self.cols,
            #[cfg(target_arch = "x86_64")]
            Layout::Panels(_) | Layout::Bf16(_) => (self.cols.div_ceil(COLUMNS) | 1) * COLUMNS,
        }
    }

    /// Rows of memory that a product of `rows` rows needs.
    pub(crate) fn room(&self, rows: usize) -> usize {
        match self.layout {
            Layout::Plain(_) => rows,
            #[cfg(target_arch = "x86_64")]
            Layout::Panels(_) => rows.next_multiple_of(ROWS),
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16(_) => rows.next_multiple_of(bf16::ROWS),
        }
    }

    fn resize(&mut self, inner: usize, cols: usize) {
        (self.inner, self.cols) = (inner, cols);
        match &mut self.layout {
            Layout::Plain(plain) => plain.resize(inner * cols, 0.0),
            #[cfg(target_arch = "x86_64")]
            Layout::Panels(panels) => panels.resize(cols.div_ceil(COLUMNS) * inner, Line([0.0; COLUMNS])),
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16(right) => right.resize(inner, cols),
        }
    }

    /// Packs `inner` rows of `cols` values, each written by `row`.
    ///
    /// # Panics
    /// If `T` is bfloat16 but this factor's numerics are float32.
    pub(crate) fn pack_rows<T: RowFormat>(&mut self, inner: usize, cols: usize, mut row: impl FnMut(usize, &mut [T])) {
        self.resize(inner, cols);
        let mut values = vec![T::zero(); 2 * cols];
        for k in (0..inner).step_by(2) {
            let (first, second) = values.split_at_mut(cols);
            let two = k + 1 < inner;
            row(k, first);
            if two {
                row(k + 1, second);
            }
            let rows = std::iter::once(&*first).chain(two.then_some(&*second));
            match &mut self.layout {
                Layout::Plain(plain) => {
                    rows.enumerate().for_each(|(i, values)| plain[(k + i) * cols..][..cols].copy_from_slice(floats(values)));
                }
                #[cfg(target_arch = "x86_64")]
                Layout::Panels(panels) => {
                    for (i, values) in rows.enumerate() {
                        for (panel, values) in floats(values).chunks(COLUMNS).enumerate() {
                            panels[panel * inner + k + i].0[..values.len()].copy_from_slice(values);
                        }
                    }
                }
                #[cfg(target_arch = "x86_64")]
                Layout::Bf16(right) => right.pack_terms(k, first, if two { second } else { &[] }),
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let Layout::Bf16(right) = &mut self.layout {
            right.clear_rest();
        }
    }

    /// Packs `cols` columns of `inner` values, each written by `column`.
    ///
    /// # Panics
    /// As [`Self::pack_rows`].
    pub(crate) fn pack_columns<T: RowFormat>(&mut self, inner: usize, cols: usize, mut column: impl FnMut(usize, &mut [T])) {
        self.resize(inner, cols);
        let mut values = vec![T::zero(); inner * COLUMNS];
        for first in (0..cols).step_by(COLUMNS) {
            let n = COLUMNS.min(cols - first);
            for (lane, values) in values.chunks_exact_mut(inner.max(1)).take(n).enumerate() {
                column(first + lane, values);
            }
            match &mut self.layout {
                Layout::Plain(plain) => {
                    for (lane, values) in floats(&values).chunks_exact(inner.max(1)).take(n).enumerate() {
                        values.iter().enumerate().for_each(|(k, value)| plain[k * cols + first + lane] = *value);
                    }
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: factors are packed only where the processor has AVX2 and FMA.
                Layout::Panels(panels) => unsafe {
                    avx2::pack_panel(floats(&values), inner, &mut panels[first / COLUMNS * inner..][..inner]);
                },
                #[cfg(target_arch = "x86_64")]
                Layout::Bf16(right) => right.pack_columns(first, &values[..n * inner]),
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
    /// If a slice is too short, or `T` is bfloat16 but this factor's numerics are float32.
    pub(crate) fn product<T: RowFormat>(&self, left: &[T], left_stride: usize, rows: usize, out: &mut [f32]) {
        let (room, stride) = (self.room(rows), self.stride());
        assert!(rows == 0 || left.len() >= (room - 1) * left_stride + self.inner, "a left factor is too short");
        assert!(out.len() >= room * stride, "a product's destination is too short");
        match &self.layout {
            Layout::Plain(plain) => {
                let left = MatRef::strided(floats(left), rows, self.inner, left_stride);
                let right = MatRef::new(plain, self.inner, self.cols);
                matmul_serial(MatMut::new(out, rows, self.cols), left, right, 1.0, Accumulate::No);
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: factors are packed only where the processor has AVX2 and FMA; the lengths were checked.
            Layout::Panels(panels) => unsafe {
                avx2::small_product(panels, self.inner, (floats(left), left_stride), rows, (out, stride));
            },
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16(right) => right.product_with_room((left, left_stride), rows, (out, stride)),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::values;

    /// Each layout that this processor has.
    fn each() -> Vec<Factor> {
        let of = |numerics| super::super::computes_in(numerics).then(|| Factor::new(numerics));
        let plain = Factor { inner: 0, cols: 0, layout: Layout::Plain(Vec::new()) };
        [of(Numerics::F32), of(Numerics::Bf16), Some(plain)].into_iter().flatten().collect()
    }

    #[test]
    fn factors_of_rows_and_of_columns_agree() {
        for (rows, inner, cols) in [(1usize, 1, 1), (6, 64, 196), (11, 30, 17), (64, 196, 64)] {
            for mut factor in each() {
                let rounds = factor.numerics() == Numerics::Bf16;
                let rounded = |v: f32| if rounds { bf16::from_f32(v).to_f32() } else { v };
                let of = |n: usize, seed| values(n, seed).into_iter().map(rounded).collect::<Vec<f32>>();
                let (left, right) = (of(factor.room(rows) * inner, 1), of(inner * cols, 2));
                let transposed: Vec<f32> = (0..cols * inner).map(|i| right[i % inner * cols + i / inner]).collect();
                let element = |row: usize, column: usize| {
                    (0..inner).map(|k| f64::from(left[row * inner + k]) * f64::from(right[k * cols + column])).sum::<f64>()
                };
                for by_rows in [true, false] {
                    // What an earlier packing left must not be seen.
                    factor.pack_rows(inner + 40, cols + 20, |_, row| row.fill(f32::NAN));
                    if by_rows {
                        factor.pack_rows(inner, cols, |k, row| row.copy_from_slice(&right[k * cols..][..cols]));
                    } else {
                        factor.pack_columns(inner, cols, |c, column| column.copy_from_slice(&transposed[c * inner..][..inner]));
                    }
                    let mut out = vec![f32::NAN; factor.room(rows) * factor.stride()];
                    factor.product(&left, inner, rows, &mut out);
                    for (row, out) in out.chunks(factor.stride()).take(rows).enumerate() {
                        for (column, got) in out[..cols].iter().enumerate() {
                            let (got, want) = (f64::from(*got), element(row, column));
                            let what = format!("{rows}·{inner}·{cols}, {:?}, by rows {by_rows}", factor.numerics());
                            assert!((got - want).abs() < 2e-5, "{what}: ({row}, {column}) is {got}, not {want}");
                        }
                    }
                }
            }
        }
    }
}
