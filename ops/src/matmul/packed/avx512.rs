//! The register block of [`super`] for AVX-512: six or twelve rows of two panels. An element's terms are added in the order of the AVX2 block, so its
//! bits are the same.

use std::arch::x86_64::*;

use super::{COLUMNS, FETCH, Line, ROWS};
use crate::matmul::register_block::{Left, Target};

/// Columns of a block.
pub(super) const WIDTH: usize = 2 * COLUMNS;
/// Groups of rows in a block, if there are as many: their sums fill 24 of 32 registers, and panels are read from the second-level cache half as
/// often as for one.
pub(super) const GROUPS: usize = 2;

/// The first `rows × columns` of one or two groups of six rows times two panels, whose `depth` lines are contiguous; each group of `a` is packed,
/// `[k][6]`. `ahead` is the address from which the next panels are prefetched.
///
/// # Safety
/// The processor has AVX-512; `depth` terms of both factors are there, and the block's elements of the target, which belong to this thread.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn packed_rows(
    depth: usize,
    a: [*const f32; 2],
    panels: *const Line,
    ahead: *const Line,
    target: Target,
    size: (usize, usize),
) {
    let left = a.map(|data| Left { data, row_stride: 1, k_stride: ROWS });
    // SAFETY: the caller's promise.
    unsafe {
        if size.0 > ROWS {
            block::<2, true>(depth, left, panels, ahead, target, size);
        } else {
            block::<1, true>(depth, [left[0]], panels, ahead, target, size);
        }
    }
}

/// [`packed_rows`] of `rows` rows, one or two groups of six, `stride` apart, and all columns.
///
/// # Safety
/// As for [`packed_rows`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn strided_rows(
    depth: usize,
    a: *const f32,
    (rows, stride): (usize, usize),
    panels: *const Line,
    target: Target,
) {
    let left = |group: usize| Left { data: a.wrapping_add(group * ROWS * stride), row_stride: stride, k_stride: 1 };
    // SAFETY: the caller's promise.
    unsafe {
        if rows > ROWS {
            block::<2, false>(depth, [left(0), left(1)], panels, panels, target, (2 * ROWS, WIDTH));
        } else {
            block::<1, false>(depth, [left(0)], panels, panels, target, (ROWS, WIDTH));
        }
    }
}

/// If `PACKED`, the rows of `a` have the strides of packed groups, known to the compiler: one address for all rows.
///
/// # Safety
/// As for [`packed_rows`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn block<const GROUPS: usize, const PACKED: bool>(
    depth: usize,
    a: [Left; GROUPS],
    panels: *const Line,
    mut ahead: *const Line,
    target: Target,
    (rows, columns): (usize, usize),
) {
    let a = a.map(|a| if PACKED { Left { row_stride: 1, k_stride: ROWS, ..a } } else { a });
    let mut sums = [[[_mm512_setzero_ps(); 2]; ROWS]; GROUPS];
    let (mut a_k, mut line) = (a.map(|a| a.data), panels);
    // SAFETY: the caller's promise; a fetch of memory that is not there does nothing.
    unsafe {
        let mut term = || {
            let b = [_mm512_load_ps(line.cast()), _mm512_load_ps(line.add(depth).cast())];
            for ((a, a_k), sums) in a.iter().zip(&mut a_k).zip(&mut sums) {
                for (row, sum) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a_k.add(row * a.row_stride));
                    sum[0] = _mm512_fmadd_ps(a, b[0], sum[0]);
                    sum[1] = _mm512_fmadd_ps(a, b[1], sum[1]);
                }
                *a_k = a_k.add(a.k_stride);
            }
            line = line.add(1);
        };
        for _ in 0..depth / FETCH {
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(depth).cast());
            ahead = ahead.wrapping_add(1);
            (0..FETCH).for_each(|_| term());
        }
        (0..depth % FETCH).for_each(|_| term());
        let lanes = |from: usize| ((1u32 << columns.saturating_sub(from).min(COLUMNS)) - 1) as __mmask16;
        let masks = [lanes(0), lanes(COLUMNS)];
        for (row, sum) in sums.as_flattened().iter().enumerate().take(rows) {
            for (half, (sum, mask)) in sum.iter().zip(masks).enumerate() {
                let y = target.data.wrapping_add(row * target.stride + half * COLUMNS);
                let value = if target.accumulate { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), *sum) } else { *sum };
                _mm512_mask_storeu_ps(y, mask, value);
            }
        }
    }
}
