//! The register blocks for AVX2 with FMA: up to six rows of a panel, which is two vectors wide.

use std::arch::x86_64::*;

use super::{COLUMNS, Left, ROWS, Target};

type Sums<const N: usize> = [[__m256; 2]; N];

impl Target {
    /// # Safety
    /// The processor has AVX2, and the block's elements are there.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn start<const N: usize>(&self) -> Sums<N> {
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        if self.accumulate {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                unsafe {
                    let row = self.data.add(r * self.stride);
                    *sum = [_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(8))];
                }
            }
        }
        sums
    }

    /// # Safety
    /// As for [`Self::start`]; the elements belong to this thread.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn finish<const N: usize>(&self, sums: Sums<N>) {
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let row = self.data.add(r * self.stride);
                _mm256_storeu_ps(row, sum[0]);
                _mm256_storeu_ps(row.add(8), sum[1]);
            }
        }
    }
}

/// [`block`] of `n` rows, at most six.
///
/// # Safety
/// As for [`block`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rows(n: usize, k: usize, a: Left, b: *const f32, target: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        match n {
            1 => block::<1>(k, a, b, target),
            2 => block::<2>(k, a, b, target),
            3 => block::<3>(k, a, b, target),
            4 => block::<4>(k, a, b, target),
            5 => block::<5>(k, a, b, target),
            6 => block::<6>(k, a, b, target),
            _ => unreachable!("{n} rows in a block"),
        }
    }
}

/// `target[r] = Σ_k a(r, k)·b[k]` for `N` rows; `b`'s rows of sixteen follow one another.
///
/// # Safety
/// The processor has AVX2 and FMA; all of `a`'s `N × k`, `b`'s `k × 16` and the target's `N × 16` elements are there, and the target's belong to this thread.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in crate::matmul) unsafe fn block<const N: usize>(k: usize, a: Left, b: *const f32, target: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = target.start::<N>();
        let (mut a_k, mut b_k) = (a.data, b);
        for _ in 0..k {
            let (b0, b1) = (_mm256_loadu_ps(b_k), _mm256_loadu_ps(b_k.add(8)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*a_k.add(r * a.row_stride));
                sum[0] = _mm256_fmadd_ps(a, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(a, b1, sum[1]);
            }
            a_k = a_k.add(a.k_stride);
            b_k = b_k.add(COLUMNS);
        }
        target.finish(sums);
    }
}

/// `target[r] = Σ_k a[k][r]·b[offsets[k]..][0..16]` for six rows; `a`'s rows of six follow one another.
///
/// # Safety
/// As for [`block`], with sixteen elements of `b` from each offset on.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn block_from_offsets(a: *const f32, b: *const f32, offsets: &[usize], target: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = target.start::<ROWS>();
        let mut a_k = a;
        for offset in offsets {
            let b_k = b.add(*offset);
            let (b0, b1) = (_mm256_loadu_ps(b_k), _mm256_loadu_ps(b_k.add(8)));
            for (r, sum) in sums.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*a_k.add(r));
                sum[0] = _mm256_fmadd_ps(a, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(a, b1, sum[1]);
            }
            a_k = a_k.add(ROWS);
        }
        target.finish(sums);
    }
}

/// `target[r] = Σ_k a[offsets[r] + k]·b[k]` for six rows; `b`'s rows of sixteen follow one another.
///
/// # Safety
/// As for [`block`], with `k` elements of `a` from each offset on.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn block_of_runs(k: usize, a: *const f32, offsets: &[usize; ROWS], b: *const f32, target: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = target.start::<ROWS>();
        let rows: [*const f32; ROWS] = std::array::from_fn(|r| a.add(offsets[r]));
        let mut b_k = b;
        for i in 0..k {
            let (b0, b1) = (_mm256_loadu_ps(b_k), _mm256_loadu_ps(b_k.add(8)));
            for (row, sum) in rows.iter().zip(sums.iter_mut()) {
                let a = _mm256_broadcast_ss(&*row.add(i));
                sum[0] = _mm256_fmadd_ps(a, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(a, b1, sum[1]);
            }
            b_k = b_k.add(COLUMNS);
        }
        target.finish(sums);
    }
}
