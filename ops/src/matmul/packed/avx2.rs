//! Packing and products of [`super`] with AVX2 and FMA, and the wider register block if available.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::{COLUMNS, FETCH, Line, ROWS, avx512};
use crate::cpu::pages::Buffer;
use crate::cpu::with_scratch;
use crate::gelu::cpu::bias_gelu_rows;
use crate::matmul::register_block::avx2::block;
use crate::matmul::register_block::{Left, Target, has_avx512};
use crate::matmul::{Output, add_bias_rows};

/// Maximal number of terms per pass over the destination.
const DEPTH: usize = 768;
/// Panels after which an activation is applied, while their results are in the second-level cache.
const STRIP: usize = 8;

type Sums = [[__m256; 2]; ROWS];

/// Starts and lengths of the blocks of the inner dimension, as even as possible.
fn blocks(inner: usize) -> impl Iterator<Item = (usize, usize)> {
    let depth = inner.div_ceil(inner.div_ceil(DEPTH)).next_multiple_of(FETCH);
    (0..inner).step_by(depth).map(move |start| (start, depth.min(inner - start)))
}

/// `[out, inner]` → the panels of each block, one block after another.
pub(super) fn pack_weight(weight: &[f32], out: usize, inner: usize) -> Buffer<Line> {
    let mut panels = Buffer::filled(Line([0.0; COLUMNS]), out.div_ceil(COLUMNS) * inner);
    let mut rest = &mut *panels;
    for (start, depth) in blocks(inner) {
        let (block, after) = rest.split_at_mut(out.div_ceil(COLUMNS) * depth);
        rest = after;
        block.par_chunks_mut(depth).enumerate().for_each(|(panel, lines)| {
            for lane in 0..COLUMNS.min(out - panel * COLUMNS) {
                let row = &weight[(panel * COLUMNS + lane) * inner + start..][..depth];
                lines.iter_mut().zip(row).for_each(|(line, value)| line.0[lane] = *value);
            }
        });
    }
    panels
}

/// `y = x·Wᵀ`, written as `output` says.
///
/// # Safety
/// The processor has AVX2 and FMA; `panels` are those of a weight `[out, inner]`; `x` is `[rows, inner]`, `y` `[rows, out]`, a bias `[out]`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn product(panels: &[Line], (out, inner): (usize, usize), x: &[f32], y: &mut [f32], output: Output<'_>) {
    let rows = x.len() / inner;
    let (groups, count) = (rows.div_ceil(ROWS), out.div_ceil(COLUMNS));
    debug_assert_eq!(panels.len(), count * inner);
    let at_a_time = if has_avx512() { avx512::WIDTH / COLUMNS } else { 1 };
    // the last row's store reaches two floats over the end
    with_scratch(groups * ROWS * inner + COLUMNS, |packed| {
        for (start, depth) in blocks(inner) {
            for group in 0..groups {
                let first = group * ROWS;
                let to = &mut packed[(start * groups + group * depth) * ROWS..];
                // SAFETY: the group's rows are there, and the packed rows with their two floats more.
                unsafe { pack_group(&x[first * inner + start..], inner, ROWS.min(rows - first), depth, to) };
            }
        }
        for (start, depth) in blocks(inner) {
            let add = start > 0 || matches!(output, Output::Add);
            let last = start + depth == inner;
            for panel in (0..count).step_by(at_a_time) {
                let through = count.min(panel + at_a_time);
                let b = panels[start * count + panel * depth..].as_ptr();
                let wide = through - panel > 1;
                let at_once = if wide { avx512::GROUPS } else { 1 };
                for (turn, group) in (0..groups).step_by(at_once).enumerate() {
                    let a = |group: usize| packed[(start * groups + group.min(groups - 1) * depth) * ROWS..].as_ptr();
                    let ahead = b.wrapping_add((through - panel) * depth + turn.min(FETCH - 1) * (depth / FETCH));
                    let (row, column) = (group * ROWS, panel * COLUMNS);
                    let size = ((at_once * ROWS).min(rows - row), out.min(through * COLUMNS) - column);
                    // SAFETY: `depth` terms of both factors are there, and the block's elements of `y`.
                    unsafe {
                        let data = y.as_mut_ptr().add(row * out + column);
                        if wide {
                            let target = Target { data, stride: out, accumulate: add };
                            avx512::packed_rows(depth, [a(group), a(group + 1)], b, ahead, target, size);
                        } else {
                            let sums = sums(depth, a(group), b.cast(), ahead.cast());
                            store(&sums, data, out, size, add);
                        }
                    }
                }
                if last && (through % STRIP == 0 || through == count) {
                    let columns = panel / STRIP * STRIP * COLUMNS..out.min(through * COLUMNS);
                    add_bias(y, out, columns, output);
                }
            }
        }
    });
}

/// Adds the bias of some columns of `y`, whose rows have `width` columns, if there is one, and applies the activation.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_bias(y: &mut [f32], width: usize, columns: Range<usize>, output: Output<'_>) {
    let parts = y.chunks_exact_mut(width).map(|row| &mut row[columns.clone()]);
    match output {
        Output::Replace | Output::Add => {}
        Output::Bias(bias) => parts.for_each(|part| add_bias_rows(part, &bias[columns.clone()])),
        Output::BiasGelu(bias) => parts.for_each(|part| bias_gelu_rows::<true>(part, &bias[columns.clone()])),
    }
}

/// `Σ_k a[k][row]·b[k][column]` of six rows and sixteen columns, while the cache lines from `ahead` on are fetched.
///
/// # Safety
/// The processor has AVX2 and FMA; `depth` rows of both factors are there, and `b` starts on a cache line.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn sums(depth: usize, mut a: *const f32, mut b: *const f32, mut ahead: *const f32) -> Sums {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller's promise; a fetch of memory that is not there does nothing.
    unsafe {
        for _ in 0..depth / FETCH {
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            ahead = ahead.wrapping_add(COLUMNS);
            for _ in 0..FETCH {
                term(a, b, &mut sums);
                (a, b) = (a.add(ROWS), b.add(COLUMNS));
            }
        }
        for _ in 0..depth % FETCH {
            term(a, b, &mut sums);
            (a, b) = (a.add(ROWS), b.add(COLUMNS));
        }
    }
    sums
}

/// # Safety
/// As for [`sums`], of one term.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn term(a: *const f32, b: *const f32, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        let (b0, b1) = (_mm256_load_ps(b), _mm256_load_ps(b.add(COLUMNS / 2)));
        for (row, sum) in sums.iter_mut().enumerate() {
            let a = _mm256_broadcast_ss(&*a.add(row));
            sum[0] = _mm256_fmadd_ps(a, b0, sum[0]);
            sum[1] = _mm256_fmadd_ps(a, b1, sum[1]);
        }
    }
}

/// Writes the first `rows × columns` sums, or adds them.
///
/// # Safety
/// The processor has AVX2 and FMA; these elements of `y` are there, rows `stride` apart, and belong to this thread.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store(sums: &Sums, y: *mut f32, stride: usize, (rows, columns): (usize, usize), add: bool) {
    if (rows, columns) != (ROWS, COLUMNS) {
        // SAFETY: the caller's promise.
        return unsafe { store_part(sums, y, stride, (rows, columns), add) };
    }
    for (row, sum) in sums.iter().enumerate() {
        for (half, sum) in sum.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let y = y.add(row * stride + half * COLUMNS / 2);
                let value = if add { _mm256_add_ps(_mm256_loadu_ps(y), *sum) } else { *sum };
                _mm256_storeu_ps(y, value);
            }
        }
    }
}

/// [`store`] at the edges.
///
/// # Safety
/// As for [`store`].
#[cold]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_part(sums: &Sums, y: *mut f32, stride: usize, (rows, columns): (usize, usize), add: bool) {
    for (row, sum) in sums.iter().enumerate().take(rows) {
        let mut values = [0.0; COLUMNS];
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(values.as_mut_ptr(), sum[0]);
            _mm256_storeu_ps(values.as_mut_ptr().add(COLUMNS / 2), sum[1]);
            let y = std::slice::from_raw_parts_mut(y.add(row * stride), columns);
            for (y, value) in y.iter_mut().zip(values) {
                *y = if add { *y + value } else { value };
            }
        }
    }
}

/// Packs `depth` columns of up to six rows, `[k][6]`; missing rows are zero.
///
/// # Safety
/// The processor has AVX2; the rows' elements are there, `stride` apart, and `packed` has `depth·6 + 2` floats.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_group(x: &[f32], stride: usize, rows: usize, depth: usize, packed: &mut [f32]) {
    debug_assert!(x.len() >= (rows - 1) * stride + depth && packed.len() >= depth * ROWS + 2);
    let whole = depth / 8 * 8;
    for k in (0..whole).step_by(8) {
        let load = |row: usize| match row < rows {
            // SAFETY: the caller's promise.
            true => unsafe { _mm256_loadu_ps(x.as_ptr().add(row * stride + k)) },
            false => _mm256_setzero_ps(),
        };
        let zero = _mm256_setzero_ps();
        let columns = transpose([load(0), load(1), load(2), load(3), load(4), load(5), zero, zero]);
        for (i, column) in columns.into_iter().enumerate() {
            // SAFETY: the two floats over the end of a column are the next one's, which is written later, or of the slack.
            unsafe { _mm256_storeu_ps(packed.as_mut_ptr().add((k + i) * ROWS), column) };
        }
    }
    for k in whole..depth {
        for row in 0..ROWS {
            packed[k * ROWS + row] = if row < rows { x[row * stride + k] } else { 0.0 };
        }
    }
}

/// The transpose of eight rows of eight.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    // columns i and i + 4 of four rows, for each i
    let four = |a, b, c, d| {
        let (low_ab, high_ab) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (low_cd, high_cd) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(low_ab, low_cd),
            _mm256_shuffle_ps::<0xEE>(low_ab, low_cd),
            _mm256_shuffle_ps::<0x44>(high_ab, high_cd),
            _mm256_shuffle_ps::<0xEE>(high_ab, high_cd),
        ]
    };
    let (first, second) = (four(r[0], r[1], r[2], r[3]), four(r[4], r[5], r[6], r[7]));
    let low = |i: usize| _mm256_permute2f128_ps::<0x20>(first[i], second[i]);
    let high = |i: usize| _mm256_permute2f128_ps::<0x31>(first[i], second[i]);
    [low(0), low(1), low(2), low(3), high(0), high(1), high(2), high(3)]
}

/// Packs sixteen columns `[16][inner]` into a panel.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack_panel(columns: &[f32], inner: usize, panel: &mut [Line]) {
    assert!(columns.len() == COLUMNS * inner && panel.len() == inner);
    let whole = inner / 8 * 8;
    for k in (0..whole).step_by(8) {
        for half in [0, 8] {
            // SAFETY: eight floats of each of the sixteen columns are there from `k` on.
            let load = |row: usize| unsafe { _mm256_loadu_ps(columns.as_ptr().add((half + row) * inner + k)) };
            let rows = transpose([load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)]);
            for (line, row) in panel[k..k + 8].iter_mut().zip(rows) {
                // SAFETY: half a line has eight floats.
                unsafe { _mm256_storeu_ps(line.0.as_mut_ptr().add(half), row) };
            }
        }
    }
    for (k, line) in panel.iter_mut().enumerate().skip(whole) {
        line.0.iter_mut().enumerate().for_each(|(lane, value)| *value = columns[lane * inner + k]);
    }
}

/// `out = left·factor` with all rows of the register block, including those beyond `rows`.
///
/// # Safety
/// The processor has AVX2 and FMA; `panels` hold `inner` rows each and as many columns as a row of `out`, whose rows are `stride` apart; left
/// and out have whole groups of six rows.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn small_product(
    panels: &[Line],
    inner: usize,
    (left, left_stride): (&[f32], usize),
    rows: usize,
    (out, stride): (&mut [f32], usize),
) {
    let at_a_time = if has_avx512() { avx512::WIDTH / COLUMNS } else { 1 };
    for (index, lines) in panels.chunks(inner.max(1) * at_a_time).enumerate() {
        let wide = lines.len() > inner;
        let at_once = if wide { avx512::GROUPS * ROWS } else { ROWS };
        for row in (0..rows).step_by(at_once) {
            // SAFETY: the caller's promise.
            unsafe {
                let left = left.as_ptr().add(row * left_stride);
                let data = out.as_mut_ptr().add(row * stride + index * at_a_time * COLUMNS);
                let target = Target { data, stride, accumulate: false };
                if wide {
                    avx512::strided_rows(inner, left, (rows - row, left_stride), lines.as_ptr(), target);
                } else {
                    let left = Left { data: left, row_stride: left_stride, k_stride: 1 };
                    block::<ROWS>(inner, left, lines.as_ptr().cast(), target);
                }
            }
        }
    }
}
