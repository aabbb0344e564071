//! Matrix products with a packed factor: the encoder's constant weights, the keys and values of its attention, and weights in bfloat16.
//!
//! On processors with AVX2 the factor is stored in panels of sixteen columns, in the order in which the register block reads it (one panel
//! with AVX2, two with AVX-512). Elsewhere it is not packed, and the `gemm` crate packs it for every product. Where the numerics are bfloat16,
//! both factors are rounded to it and their sums are float32 (`matmul::bf16`). The order of the sums of a row does not depend on the rows that are
//! computed with it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod factor;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

pub(crate) use factor::Factor;

use crate::cpu::pages::{self, Buffer};
use crate::gelu::cpu::bias_gelu_in_place;
#[cfg(target_arch = "x86_64")]
use crate::matmul::bf16;
use crate::matmul::{Accumulate, MatMut, MatRef, Output, add_bias_in_place, bf16_instructions, matmul};
use crate::numerics::Numerics;

/// A number format of a product's rows.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use crate::cpu::activation::Activation as RowFormat;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::matmul::bf16::pack::FactorFormat as RowFormat;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;
/// Rows of the register block.
pub(crate) const ROWS: usize = 6;
/// Terms per cache line prefetched from the next panel.
#[cfg(target_arch = "x86_64")]
const FETCH: usize = 4;
/// Groups of [`ROWS`] rows in a tile: the packed rows of a tile and a panel fit a second-level cache of 512 KiB.
const TILE_GROUPS: usize = 12;
/// The same with bfloat16, in groups of sixteen rows. The products of 512 rows take longer than the memory needs for their weights, and 1.6 MB fit a
/// second-level cache of 2 MiB.
#[cfg(target_arch = "x86_64")]
const BF16_TILE_GROUPS: usize = 32;

thread_local! {
    /// The MLP's hidden layer of a tile, kept so that its pages are touched only once.
    static HIDDEN: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

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

/// Queries per tile of an attention's scores, a multiple of the register block: with 1024 keys the tile fits a core's second-level cache.
pub(crate) fn tile_queries(numerics: Numerics) -> usize {
    match numerics {
        Numerics::Bf16 => 64,
        _ => 11 * ROWS,
    }
}

/// Queries per task of an attention with `others` independent parts (heads, windows, images) of `queries` each: all of them, so that keys and values
/// are packed once, or a few tiles if there would be too few tasks for the threads.
pub(crate) fn task_queries(numerics: Numerics, queries: usize, others: usize) -> usize {
    const TILES: usize = 4;
    match others >= 4 * rayon::current_num_threads() {
        true => queries.max(1),
        false => TILES * tile_queries(numerics),
    }
}

/// Whether the processor computes products in these numerics.
pub(crate) fn computes_in(numerics: Numerics) -> bool {
    numerics == Numerics::F32 || (numerics == Numerics::Bf16 && bf16_instructions().is_some())
}

/// Rows of a product in float32.
fn floats<T: RowFormat>(rows: &[T]) -> &[f32] {
    T::floats(rows).expect("only bfloat16 factors are multiplied with rows in bfloat16")
}

/// As [`floats`], for writing.
fn floats_mut<T: RowFormat>(rows: &mut [T]) -> &mut [f32] {
    T::floats_mut(rows).expect("only products of bfloat16 factors are written as bfloat16")
}

/// The tiles of `rows` rows for products, one task each: as even as whole register blocks allow, the same number per thread. If factors are
/// not packed there is one tile, whose products use all threads.
pub fn tiles(rows: usize, numerics: Numerics) -> Vec<Range<usize>> {
    let (group, in_tile) = match numerics {
        #[cfg(target_arch = "x86_64")]
        Numerics::Bf16 => (bf16::ROWS, BF16_TILE_GROUPS),
        _ => (ROWS, TILE_GROUPS),
    };
    if !packs() {
        return std::iter::once(0..rows).collect();
    }
    let (groups, threads) = (rows.div_ceil(group), rayon::current_num_threads());
    let count = (threads * groups.div_ceil(threads * in_tile)).clamp(1, groups.max(1));
    let bound = |tile: usize| (tile * groups / count * group).min(rows);
    (0..count).map(|tile| bound(tile)..bound(tile + 1)).collect()
}

/// The tiles of a matrix whose rows are `width` wide.
pub(crate) fn split_tiles<'a, T>(mut matrix: &'a mut [T], tiles: &[Range<usize>], width: usize) -> Vec<&'a mut [T]> {
    let part = |tile: &Range<usize>| {
        let (part, rest) = std::mem::take(&mut matrix).split_at_mut(tile.len() * width);
        matrix = rest;
        part
    };
    tiles.iter().map(part).collect()
}

/// Rounds a weight to bfloat16, packs it into memory that the thread keeps, and calls `f` with it.
///
/// # Shapes
/// `[out, inner]`, or `[inner, out]` if `transposed`
///
/// # Panics
/// If the processor does not compute in bfloat16, or `weight` has another length.
pub(crate) fn with_rounded<T: RowFormat, R>(
    weight: &[T],
    (out, inner): (usize, usize),
    transposed: bool,
    f: impl FnOnce(&PackedWeight) -> R,
) -> R {
    assert!(out > 0 && inner > 0 && weight.len() == out * inner, "a weight has another length than {out}·{inner}");
    #[cfg(target_arch = "x86_64")]
    {
        thread_local! {
            static KEPT: RefCell<Option<bf16::Right>> = const { RefCell::new(None) };
        }
        let mut right = KEPT.take().unwrap_or_else(bf16::Right::new);
        right.pack(weight, (inner, out), transposed);
        let packed = PackedWeight { out, inner, layout: Layout::Bf16(right) };
        let result = f(&packed);
        if let Layout::Bf16(right) = packed.layout {
            KEPT.set(Some(right));
        }
        result
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (transposed, f);
        unreachable!("only processors of x86-64 compute in bfloat16")
    }
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
    Panels(Buffer<Line>),
    /// `[out, inner]`
    Plain(Vec<f32>),
    #[cfg(target_arch = "x86_64")]
    Bf16(bf16::Right),
}

impl PackedWeight {
    /// Packs a weight `[out, inner]`, row-major, for products in these numerics.
    ///
    /// # Panics
    /// If `weight` is of another length, a dimension is zero, or the processor does not compute in these numerics.
    pub fn new(weight: Vec<f32>, out: usize, inner: usize, numerics: Numerics) -> Self {
        assert!(out > 0 && inner > 0 && weight.len() == out * inner, "a weight has another length than {out}·{inner}");
        assert!(computes_in(numerics), "the processor does not compute in {numerics:?}");
        #[cfg(target_arch = "x86_64")]
        if numerics == Numerics::Bf16 {
            return Self { out, inner, layout: Layout::Bf16(bf16::Right::of_weight(&weight, out, inner)) };
        }
        #[cfg(target_arch = "x86_64")]
        if packs() {
            return Self { out, inner, layout: Layout::Panels(avx2::pack_weight(&weight, out, inner)) };
        }
        Self { out, inner, layout: Layout::Plain(weight) }
    }

    /// How products with it are computed.
    pub(crate) fn numerics(&self) -> Numerics {
        match self.layout {
            Layout::Panels(_) | Layout::Plain(_) => Numerics::F32,
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16(_) => Numerics::Bf16,
        }
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
        self.product_of(x, y, output);
    }

    /// As [`Self::product`], in other formats: a result in bfloat16 is computed in float32 and rounded last.
    ///
    /// # Panics
    /// As there, or if `x` or `y` is bfloat16 but the weight is not.
    pub(crate) fn product_of<X: RowFormat, Y: RowFormat>(&self, x: &[X], y: &mut [Y], output: Output<'_>) {
        let rows = x.len() / self.inner;
        assert!(x.len() == rows * self.inner && y.len() == rows * self.out, "rows of other widths than the weight's");
        if let Output::Bias(bias) | Output::BiasGelu(bias) = output {
            assert_eq!(bias.len(), self.out, "a bias of another length than the weight's");
        }
        match &self.layout {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: panels are made only where the processor has AVX2 and FMA; the lengths were checked.
            Layout::Panels(panels) => unsafe {
                avx2::product(panels, (self.out, self.inner), floats(x), floats_mut(y), output);
            },
            #[cfg(not(target_arch = "x86_64"))]
            Layout::Panels(_) => unreachable!("panels are for x86-64"),
            Layout::Plain(weight) => self.product_plain(weight, floats(x), floats_mut(y), output),
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16(weight) => weight.product(x, rows, y, output),
        }
    }

    /// `y += gelu(x·selfᵀ + bias)·secondᵀ`: a perceptron of two layers.
    ///
    /// # Shapes
    /// x `[rows, inner]`, a bias `[out]`, second `[width, out]`, y `[rows, width]`
    ///
    /// # Panics
    /// If a slice has another length, or `T` is bfloat16 but the weights are not.
    pub(crate) fn add_mlp<T: RowFormat>(&self, bias: &[f32], second: &PackedWeight, x: &[T], y: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let (Layout::Bf16(first), Layout::Bf16(second)) = (&self.layout, &second.layout) {
            return bf16::add_mlp((first, bias), second, x, y);
        }
        let len = x.len() / self.inner * self.out;
        // Taken out while it is in use: a tile that rayon runs on this thread meanwhile gets another.
        let mut hidden = HIDDEN.take();
        if hidden.len() < len {
            hidden = pages::filled(0.0, len);
        }
        self.product_of(x, &mut hidden[..len], Output::BiasGelu(bias));
        second.product(&hidden[..len], y, Output::Add);
        HIDDEN.set(hidden);
    }

    fn product_plain(&self, weight: &[f32], x: &[f32], y: &mut [f32], output: Output<'_>) {
        let Self { out, inner, .. } = *self;
        let rows = x.len() / inner;
        let accumulate = if matches!(output, Output::Add) { Accumulate::Yes } else { Accumulate::No };
        let weight = MatRef::new(weight, out, inner).t();
        matmul(MatMut::new(y, rows, out), MatRef::new(x, rows, inner), weight, 1.0, accumulate);
        match output {
            Output::Replace | Output::Add => {}
            Output::Bias(bias) => y.par_chunks_mut(ROWS * out).for_each(|rows| add_bias_in_place(rows, bias)),
            Output::BiasGelu(bias) => y.par_chunks_mut(ROWS * out).for_each(|rows| bias_gelu_in_place(rows, bias)),
        }
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
            for (weight, path) in [(PackedWeight::new(w.clone(), out, inner, Numerics::F32), "packed"), (plain, "plain")] {
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
        let weight = PackedWeight::new(values(out * inner, 2), out, inner, Numerics::F32);
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
        PackedWeight::new(w.clone(), out, inner, Numerics::F32).product(&x, &mut all, Output::Add);
        for first in (0..out).step_by(COLUMNS) {
            let n = COLUMNS.min(out - first);
            let mut some = vec![1.0; rows * n];
            PackedWeight::new(w[first * inner..][..n * inner].to_vec(), n, inner, Numerics::F32).product(
                &x,
                &mut some,
                Output::Add,
            );
            for (some, all) in some.chunks_exact(n).zip(all.chunks_exact(out)) {
                assert_eq!(some, &all[first..][..n]);
            }
        }
    }

    #[test]
    fn tiles_are_all_rows_in_order() {
        for (rows, numerics) in [0, 1, 6, 9, 196, 784, 1024].into_iter().flat_map(|n| [(n, Numerics::F32), (n, Numerics::Bf16)]) {
            let tiles = tiles(rows, numerics);
            assert_eq!(tiles.first().map(|tile| tile.start), Some(0));
            assert!(tiles.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(tiles.last().map(|tile| tile.end), Some(rows));
        }
    }
}
