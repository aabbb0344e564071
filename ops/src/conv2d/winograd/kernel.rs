//! The register block of the Winograd matrix products, for AVX2 with FMA.

use std::arch::x86_64::*;

/// Columns of a block: two vectors.
pub(super) const COLUMNS: usize = 16;

/// A factor read one element at a time: element (row, k) is at `row * row_stride + k * k_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) data: *const f32,
    pub(super) row_stride: usize,
    pub(super) k_stride: usize,
}

/// `c[r][0..16] = Σ_k a(r, k)·b[k][0..16]`, or `+=` where `accumulate` says so, for `ROWS` rows `c_stride` apart.
///
/// # Safety
/// The processor has AVX2 and FMA; all of `a`'s `ROWS × k`, `b`'s `k × 16` and `c`'s `ROWS × 16` elements are there, and `c`'s belong to this thread.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn block<const ROWS: usize>(k: usize, a: Left, b: *const f32, c: *mut f32, c_stride: usize, accumulate: bool) {
    let mut sum = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller's promise.
    unsafe {
        if accumulate {
            for (r, sum) in sum.iter_mut().enumerate() {
                *sum = [_mm256_loadu_ps(c.add(r * c_stride)), _mm256_loadu_ps(c.add(r * c_stride + 8))];
            }
        }
        let (mut a_k, mut b_k) = (a.data, b);
        for _ in 0..k {
            let (b0, b1) = (_mm256_loadu_ps(b_k), _mm256_loadu_ps(b_k.add(8)));
            for (r, sum) in sum.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*a_k.add(r * a.row_stride));
                sum[0] = _mm256_fmadd_ps(a, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(a, b1, sum[1]);
            }
            a_k = a_k.add(a.k_stride);
            b_k = b_k.add(COLUMNS);
        }
        for (r, sum) in sum.iter().enumerate() {
            _mm256_storeu_ps(c.add(r * c_stride), sum[0]);
            _mm256_storeu_ps(c.add(r * c_stride + 8), sum[1]);
        }
    }
}
