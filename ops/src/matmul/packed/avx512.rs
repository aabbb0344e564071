//! The register block of [`super`] for AVX-512: six rows of two panels. An element's terms are added in the order of the AVX2 block, so its
//! bits are the same.

use std::arch::x86_64::*;

use super::{COLUMNS, FETCH, Line, ROWS};
use crate::matmul::register_block::{Left, Target};

/// Columns of a block.
pub(super) const WIDTH: usize = 2 * COLUMNS;

/// Whether the processor supports this block.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// The first `rows × columns` of six rows times two panels, whose `depth` lines are contiguous; rows of `a` are packed, `[k][6]`. `ahead` is the
/// address from which the next panels are prefetched.
///
/// # Safety
/// The processor has AVX-512; `depth` terms of both factors are there, and the block's elements of the target, which belong to this thread.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn packed_rows(
    depth: usize,
    a: *const f32,
    panels: *const Line,
    ahead: *const Line,
    target: Target,
    size: (usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe { block(depth, Left { data: a, row_stride: 1, k_stride: ROWS }, panels, ahead, target, size) };
}

/// [`packed_rows`] for rows `stride` apart and the whole block.
///
/// # Safety
/// As for [`packed_rows`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn strided_rows(depth: usize, a: *const f32, stride: usize, panels: *const Line, target: Target) {
    // SAFETY: the caller's promise.
    unsafe { block(depth, Left { data: a, row_stride: stride, k_stride: 1 }, panels, panels, target, (ROWS, WIDTH)) };
}

/// # Safety
/// As for [`packed_rows`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn block(
    depth: usize,
    a: Left,
    panels: *const Line,
    mut ahead: *const Line,
    target: Target,
    (rows, columns): (usize, usize),
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let (mut a_k, mut line) = (a.data, panels);
    // SAFETY: the caller's promise; a fetch of memory that is not there does nothing.
    unsafe {
        let mut term = || {
            let b = [_mm512_load_ps(line.cast()), _mm512_load_ps(line.add(depth).cast())];
            for (row, sum) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a_k.add(row * a.row_stride));
                sum[0] = _mm512_fmadd_ps(a, b[0], sum[0]);
                sum[1] = _mm512_fmadd_ps(a, b[1], sum[1]);
            }
            (a_k, line) = (a_k.add(a.k_stride), line.add(1));
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
        for (row, sum) in sums.iter().enumerate().take(rows) {
            for (half, (sum, mask)) in sum.iter().zip(masks).enumerate() {
                let y = target.data.wrapping_add(row * target.stride + half * COLUMNS);
                let value = if target.accumulate { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), *sum) } else { *sum };
                _mm512_mask_storeu_ps(y, mask, value);
            }
        }
    }
}
