//! The transforms of Winograd's F(4×4, 3×3) on vectors of eight channels, and the conversion between rows of pixels and such vectors.
//!
//! The interpolation points are 0, ±a, ±b and infinity with a = 3/4 and b = 3/2, which halves the rounding error of the usual ±1, ±2.

use std::arch::x86_64::*;

/// Channels in a vector.
pub(super) const LANES: usize = 8;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// Denominators of the kernel's transform at 0, ±a and ±b.
const F0: f32 = A2 * B2;
const FA: f32 = 2.0 * A2 * (A2 - B2);
const FB: f32 = 2.0 * B2 * (B2 - A2);

type Vector = __m256;

#[inline]
#[target_feature(enable = "avx2,fma")]
fn constant(v: f32) -> Vector {
    _mm256_set1_ps(v)
}

/// `c·x + y`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fma(c: f32, x: Vector, y: Vector) -> Vector {
    _mm256_fmadd_ps(constant(c), x, y)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(x: Vector, y: Vector) -> Vector {
    _mm256_add_ps(x, y)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sub(x: Vector, y: Vector) -> Vector {
    _mm256_sub_ps(x, y)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn scale(c: f32, x: Vector) -> Vector {
    _mm256_mul_ps(constant(c), x)
}

/// `Bᵀ·d`: six pixels of the input.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn input(d: [Vector; 6]) -> [Vector; 6] {
    let (even_a, odd_a) = (fma(-B2, d[2], d[4]), fma(-B2, d[1], d[3]));
    let (even_b, odd_b) = (fma(-A2, d[2], d[4]), fma(-A2, d[1], d[3]));
    [
        fma(F0, d[0], fma(-(A2 + B2), d[2], d[4])),
        fma(A, odd_a, even_a),
        fma(-A, odd_a, even_a),
        fma(B, odd_b, even_b),
        fma(-B, odd_b, even_b),
        fma(F0, d[1], fma(-(A2 + B2), d[3], d[5])),
    ]
}

/// `Aᵀ·m`: four pixels of the output.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn output(m: [Vector; 6]) -> [Vector; 4] {
    let (sum_a, difference_a) = (add(m[1], m[2]), sub(m[1], m[2]));
    let (sum_b, difference_b) = (add(m[3], m[4]), sub(m[3], m[4]));
    [
        add(m[0], add(sum_a, sum_b)),
        fma(A, difference_a, scale(B, difference_b)),
        fma(A2, sum_a, scale(B2, sum_b)),
        add(m[5], fma(A * A2, difference_a, scale(B * B2, difference_b))),
    ]
}

/// `A·y`, the transpose of [`output`]: four pixels of the output's gradient.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn output_transposed(y: [Vector; 4]) -> [Vector; 6] {
    let (even_a, odd_a) = (fma(A2, y[2], y[0]), fma(A2, y[3], y[1]));
    let (even_b, odd_b) = (fma(B2, y[2], y[0]), fma(B2, y[3], y[1]));
    [y[0], fma(A, odd_a, even_a), fma(-A, odd_a, even_a), fma(B, odd_b, even_b), fma(-B, odd_b, even_b), y[3]]
}

/// `G·g`: three taps of the kernel.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn kernel(g: [Vector; 3]) -> [Vector; 6] {
    let (even_a, odd_a) = (scale(1.0 / FA, fma(A2, g[2], g[0])), scale(A / FA, g[1]));
    let (even_b, odd_b) = (scale(1.0 / FB, fma(B2, g[2], g[0])), scale(B / FB, g[1]));
    [scale(1.0 / F0, g[0]), add(even_a, odd_a), sub(even_a, odd_a), add(even_b, odd_b), sub(even_b, odd_b), g[2]]
}

/// `Gᵀ·u`, the transpose of [`kernel`]: three taps of the kernel's gradient.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn kernel_transposed(u: [Vector; 6]) -> [Vector; 3] {
    let (sum_a, difference_a) = (scale(1.0 / FA, add(u[1], u[2])), sub(u[1], u[2]));
    let (sum_b, difference_b) = (scale(1.0 / FB, add(u[3], u[4])), sub(u[3], u[4]));
    [
        fma(1.0 / F0, u[0], add(sum_a, sum_b)),
        fma(A / FA, difference_a, scale(B / FB, difference_b)),
        add(u[5], fma(A2, sum_a, scale(B2, sum_b))),
    ]
}

/// The transpose of eight vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(r: [Vector; 8]) -> [Vector; 8] {
    let pair = |i: usize, j: usize| (_mm256_unpacklo_ps(r[i], r[j]), _mm256_unpackhi_ps(r[i], r[j]));
    let ((a0, a1), (a2, a3), (a4, a5), (a6, a7)) = (pair(0, 1), pair(2, 3), pair(4, 5), pair(6, 7));
    let low = |x, y| _mm256_shuffle_ps::<0b01_00_01_00>(x, y);
    let high = |x, y| _mm256_shuffle_ps::<0b11_10_11_10>(x, y);
    let b = [low(a0, a2), high(a0, a2), low(a1, a3), high(a1, a3), low(a4, a6), high(a4, a6), low(a5, a7), high(a5, a7)];
    let first = |x, y| _mm256_permute2f128_ps::<0x20>(x, y);
    let second = |x, y| _mm256_permute2f128_ps::<0x31>(x, y);
    [
        first(b[0], b[4]),
        first(b[1], b[5]),
        first(b[2], b[6]),
        first(b[3], b[7]),
        second(b[0], b[4]),
        second(b[1], b[5]),
        second(b[2], b[6]),
        second(b[3], b[7]),
    ]
}

/// Starts of groups of eight pixels that cover `0..n`; the last group may overlap the one before it.
fn groups(n: usize) -> impl Iterator<Item = usize> {
    (0..n.div_ceil(LANES)).map(move |i| (i * LANES).min(n - LANES))
}

/// `n` pixels of eight planes, `plane` elements apart → `n` vectors, `stride` floats apart.
///
/// # Safety
/// The processor has AVX2 and FMA; the pixels and the vectors are there.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn gather_row(from: *const f32, plane: usize, n: usize, to: *mut f32, stride: usize) {
    // SAFETY: the caller's promise; a group lies within `0..n`.
    unsafe {
        if n < LANES {
            for x in 0..n {
                for lane in 0..LANES {
                    *to.add(x * stride + lane) = *from.add(lane * plane + x);
                }
            }
            return;
        }
        for x in groups(n) {
            let rows = transpose(std::array::from_fn(|lane| _mm256_loadu_ps(from.add(lane * plane + x))));
            for (i, row) in rows.into_iter().enumerate() {
                _mm256_storeu_ps(to.add((x + i) * stride), row);
            }
        }
    }
}

/// The inverse of [`gather_row`].
///
/// # Safety
/// As for [`gather_row`]; the planes' pixels belong to this thread.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn scatter_row(from: *const f32, n: usize, to: *mut f32, plane: usize) {
    // SAFETY: the caller's promise; a group lies within `0..n`.
    unsafe {
        if n < LANES {
            for x in 0..n {
                for lane in 0..LANES {
                    *to.add(lane * plane + x) = *from.add(x * LANES + lane);
                }
            }
            return;
        }
        for x in groups(n) {
            let rows = transpose(std::array::from_fn(|i| _mm256_loadu_ps(from.add((x + i) * LANES))));
            for (lane, row) in rows.into_iter().enumerate() {
                _mm256_storeu_ps(to.add(lane * plane + x), row);
            }
        }
    }
}
