//! The register blocks for AVX-512: of 32 registers up to 28 hold sums.

use std::arch::x86_64::*;

use super::{COLUMNS, Left, ROWS, Target};

/// Rows of a block of two panels.
pub(super) const MOST_ROWS: usize = 14;
/// Panels of a block of six rows.
pub(super) const MOST_PANELS: usize = 4;

type Sums<const N: usize, const P: usize> = [[__m512; P]; N];

/// Takes the sums from the target if it is added to; otherwise they are zeros.
///
/// # Safety
/// The processor has AVX-512, and the block's elements are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn start<const N: usize, const P: usize>(sums: &mut Sums<N, P>, target: Target) {
    for (r, sums) in sums.iter_mut().enumerate() {
        for (p, sum) in sums.iter_mut().enumerate() {
            let from = target.data.wrapping_add(r * target.stride + p * COLUMNS);
            // SAFETY: the caller's promise.
            *sum = if target.accumulate { unsafe { _mm512_loadu_ps(from) } } else { _mm512_setzero_ps() };
        }
    }
}

/// Writes the sums.
///
/// # Safety
/// As for [`start`]; the elements belong to this thread.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const N: usize, const P: usize>(sums: &Sums<N, P>, target: Target) {
    for (r, sums) in sums.iter().enumerate() {
        for (p, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(target.data.wrapping_add(r * target.stride + p * COLUMNS), *sum) };
        }
    }
}

/// Adds `a`·`b` for one row.
#[inline]
#[target_feature(enable = "avx512f")]
fn add<const P: usize>(sums: &mut [__m512; P], a: f32, b: [__m512; P]) {
    let a = _mm512_set1_ps(a);
    for (sum, b) in sums.iter_mut().zip(b) {
        *sum = _mm512_fmadd_ps(a, b, *sum);
    }
}

/// `target[r] = Σ_k a(r, k)·b[k]` for `n` rows, at most [`MOST_ROWS`], and `P` panels, at most two.
///
/// # Safety
/// The processor has AVX-512; all elements of both factors and of the target are there, and the target's belong to this thread.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn rows<const P: usize>(n: usize, k: usize, a: Left, b: [*const f32; P], target: Target) {
    macro_rules! blocks {
        ($($n:literal)*) => {
            match n {
                $(
                    // SAFETY: the caller's promise.
                    $n => unsafe { block::<$n, P>(k, a, b, target) },
                )*
                _ => unreachable!("{n} rows in a block"),
            }
        };
    }
    blocks!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// # Safety
/// As for [`rows`], with `N` rows.
#[target_feature(enable = "avx512f")]
unsafe fn block<const N: usize, const P: usize>(k: usize, a: Left, mut b: [*const f32; P], target: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); P]; N];
        start(&mut sums, target);
        let mut a_k = a.data;
        for _ in 0..k {
            let values = b.map(|b| _mm512_loadu_ps(b));
            for (r, sums) in sums.iter_mut().enumerate() {
                add(sums, *a_k.add(r * a.row_stride), values);
            }
            a_k = a_k.add(a.k_stride);
            b = b.map(|b| b.add(COLUMNS));
        }
        finish(&sums, target);
    }
}

/// `target[r] = Σ_k a[k][r]·b[offsets[k]..]` for `G` packed groups of six rows, at most two, and `P` times sixteen columns, at most two.
///
/// # Safety
/// As for [`rows`], with the columns of `b` from each offset on.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn block_from_offsets<const G: usize, const P: usize>(
    a: [*const f32; G],
    b: *const f32,
    offsets: &[usize],
    target: Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[[_mm512_setzero_ps(); P]; ROWS]; G];
        for (g, sums) in sums.iter_mut().enumerate() {
            start(sums, target.at(g * ROWS, 0));
        }
        for (k, offset) in offsets.iter().enumerate() {
            let values = std::array::from_fn(|p| _mm512_loadu_ps(b.add(offset + p * COLUMNS)));
            for (sums, a) in sums.iter_mut().zip(a) {
                for (r, sums) in sums.iter_mut().enumerate() {
                    add(sums, *a.add(k * ROWS + r), values);
                }
            }
        }
        for (g, sums) in sums.iter().enumerate() {
            finish(sums, target.at(g * ROWS, 0));
        }
    }
}

/// `target[r] = Σ_k a[offsets[r] + k]·b[k]` for six rows and `P` panels, at most [`MOST_PANELS`].
///
/// # Safety
/// As for [`rows`], with `k` elements of `a` from each offset on.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn block_of_runs<const P: usize>(
    k: usize,
    a: *const f32,
    offsets: &[usize; ROWS],
    b: [*const f32; P],
    target: Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); P]; ROWS];
        start(&mut sums, target);
        let rows = offsets.map(|offset| a.add(offset));
        for i in 0..k {
            let values = b.map(|b| _mm512_loadu_ps(b.add(i * COLUMNS)));
            for (row, sums) in rows.iter().zip(sums.iter_mut()) {
                add(sums, *row.add(i), values);
            }
        }
        finish(&sums, target);
    }
}
