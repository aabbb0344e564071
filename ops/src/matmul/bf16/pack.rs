//! Puts factors in the order of [`super`]. Those in float32 are rounded to bfloat16: NaN stays NaN; numbers below 1.2e-38 become zero.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use super::{Line, ROWS, STEP};
use crate::cpu::activation::Activation;
use crate::matmul::register_block::COLUMNS;

/// A number format of factors in memory.
pub(crate) trait FactorFormat: Activation {
    /// Sixteen numbers of each of two rows from `from` on, as bfloat16; zeros beyond a row's end.
    ///
    /// # Safety
    /// The processor has AVX512-BF16.
    unsafe fn sixteen_of_each(first: &[Self], second: &[Self], from: usize) -> __m512i;

    /// The numbers of a row from `k` on, 32 of them, as bfloat16; zeros beyond its end.
    ///
    /// # Safety
    /// The processor has AVX512-BF16.
    unsafe fn step_of(row: &[Self], k: usize) -> __m512i;
}

impl FactorFormat for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn sixteen_of_each(first: &[f32], second: &[f32], from: usize) -> __m512i {
        rounded(sixteen(first, from), sixteen(second, from))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn step_of(row: &[f32], k: usize) -> __m512i {
        rounded(sixteen(row, k), sixteen(row, k + 16))
    }
}

impl FactorFormat for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn sixteen_of_each(first: &[bf16], second: &[bf16], from: usize) -> __m512i {
        let sixteen = |row: &[bf16]| {
            let rest = row.get(from..).unwrap_or_default();
            // SAFETY: as many numbers as the mask has bits are there.
            unsafe { _mm256_maskz_loadu_epi16(mask(rest.len()), rest.as_ptr().cast()) }
        };
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(sixteen(first)), sixteen(second))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn step_of(row: &[bf16], k: usize) -> __m512i {
        let rest = row.get(k..).unwrap_or_default();
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_epi16(long_mask(rest.len()), rest.as_ptr().cast()) }
    }
}

/// 32 numbers: sixteen of each, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn rounded(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 64 bytes of numbers.
    unsafe { transmute(_mm512_cvtne2ps_pbh(second, first)) }
}

/// Rows of `inner` terms, `stride` apart, into groups; the rows that a group lacks are zero.
///
/// # Safety
/// The processor has AVX512-BF16; the rows are there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn rows<T: FactorFormat>((x, stride): (&[T], usize), rows: usize, inner: usize, to: &mut [Line]) {
    let steps = inner.div_ceil(STEP);
    for (group, to) in to.chunks_exact_mut(steps * ROWS).enumerate() {
        for r in 0..ROWS {
            let row = group * ROWS + r;
            let values = if row < rows { &x[row * stride..][..inner] } else { &[] };
            for step in 0..steps {
                // SAFETY: a line is a vector.
                unsafe { _mm512_store_si512(to[step * ROWS + r].0.as_mut_ptr().cast(), T::step_of(values, step * STEP)) };
            }
        }
    }
}

/// Up to 32 columns of some rows, `[rows, columns]`, as the step `step` of groups of `steps` steps.
///
/// # Safety
/// The processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn one_step(x: &[f32], columns: usize, rows: usize, (to, steps, step): (&mut [Line], usize, usize)) {
    for (group, to) in to.chunks_exact_mut(steps * ROWS).enumerate() {
        for (r, line) in to[step * ROWS..][..ROWS].iter_mut().enumerate() {
            let row = group * ROWS + r;
            let values = if row < rows { &x[row * columns..][..columns] } else { &[] };
            // SAFETY: a line is a vector.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), f32::step_of(values, 0)) };
        }
    }
}

/// Up to sixteen columns `[n][inner]` into a panel; those that it lacks are zero.
///
/// # Safety
/// The processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn columns<T: FactorFormat>(x: &[T], inner: usize, panel: &mut [Line]) {
    for (step, panel) in panel.chunks_exact_mut(COLUMNS).enumerate() {
        let column = |lane: usize| x.get(lane * inner..(lane + 1) * inner).unwrap_or_default();
        // SAFETY: the caller's promise.
        let pairs: [__m512i; 16] = std::array::from_fn(|lane| unsafe { T::step_of(column(lane), step * STEP) });
        for (line, pairs) in panel.iter_mut().zip(transpose(pairs)) {
            // SAFETY: a line is a vector.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), pairs) };
        }
    }
}

/// One term of every column and the next term, into a line of each panel; panels are `panel` lines apart.
///
/// # Safety
/// The processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn terms<T: FactorFormat>(lines: &mut [Line], panel: usize, first: &[T], second: &[T]) {
    for (i, from) in (0..first.len()).step_by(COLUMNS).enumerate() {
        // SAFETY: a line is a vector.
        unsafe { _mm512_store_si512(lines[i * panel].0.as_mut_ptr().cast(), pairs_from(first, second, from)) };
    }
}

/// Two rows, one number of each after the other; the second may be empty, for zeros.
///
/// # Safety
/// The processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn pairs<T: FactorFormat>(first: &[T], second: &[T], to: &mut [u32]) {
    assert!(to.len() >= first.len());
    for x in (0..first.len()).step_by(16) {
        let mask = mask(first.len() - x);
        // SAFETY: as many numbers as the mask has bits are there.
        unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().add(x).cast(), mask, pairs_from(first, second, x)) };
    }
}

/// A row.
///
/// # Safety
/// The processor has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn row<T: FactorFormat>(from: &[T], to: &mut [u16]) {
    assert!(to.len() >= from.len());
    for x in (0..from.len()).step_by(STEP) {
        let mask = long_mask(from.len() - x);
        // SAFETY: as many numbers as the mask has bits are there.
        unsafe { _mm512_mask_storeu_epi16(to.as_mut_ptr().add(x).cast(), mask, T::step_of(from, x)) };
    }
}

/// Up to sixteen numbers, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn sixteen_rounded(from: &[f32]) -> __m256i {
    // SAFETY: both types are 32 bytes of numbers.
    unsafe { transmute(_mm512_cvtneps_pbh(sixteen(from, 0))) }
}

/// Writes the first `count` of sixteen numbers.
///
/// # Safety
/// The elements are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn store(numbers: __m256i, count: usize, to: *mut u16) {
    // SAFETY: the caller's promise.
    unsafe { _mm256_mask_storeu_epi16(to.cast(), mask(count), numbers) };
}

/// A bit for each of the first `count` of sixteen numbers.
#[inline]
fn mask(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// A bit for each of the first `count` of 32 numbers.
#[inline]
fn long_mask(count: usize) -> __mmask32 {
    ((1u64 << count.min(STEP)) - 1) as __mmask32
}

/// Sixteen numbers of a row from `from` on; zeros beyond its end.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen(row: &[f32], from: usize) -> __m512 {
    let rest = row.get(from..).unwrap_or_default();
    // SAFETY: as many numbers as the mask has bits are there.
    unsafe { _mm512_maskz_loadu_ps(mask(rest.len()), rest.as_ptr()) }
}

/// Sixteen numbers of each of two rows, one of each after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pairs_from<T: FactorFormat>(first: &[T], second: &[T], from: usize) -> __m512i {
    // The numbers 0, 16, 1, 17, ..
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
            i += 1;
        }
        order
    };
    // SAFETY: both types are 64 bytes of numbers; the processor has what this function is compiled for.
    let (order, numbers) = unsafe { (transmute::<[u16; 32], __m512i>(ORDER), T::sixteen_of_each(first, second, from)) };
    _mm512_permutexvar_epi16(order, numbers)
}

/// The transpose of sixteen rows of sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    // Within each quarter of a vector: pairs of two rows, then quadruples of four.
    let mut four = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
        let (low_ab, high_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low_cd, high_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        four[4 * i] = _mm512_unpacklo_epi64(low_ab, low_cd);
        four[4 * i + 1] = _mm512_unpackhi_epi64(low_ab, low_cd);
        four[4 * i + 2] = _mm512_unpacklo_epi64(high_ab, high_cd);
        four[4 * i + 3] = _mm512_unpackhi_epi64(high_ab, high_cd);
    }
    // `four[4·i + c]` has in its quarter q the column 4·q + c of the rows 4·i to 4·i + 3.
    let mut columns = r;
    for c in 0..4 {
        let [w, x, y, z] = [four[c], four[4 + c], four[8 + c], four[12 + c]];
        let (even_wx, odd_wx) = (_mm512_shuffle_i32x4::<0x88>(w, x), _mm512_shuffle_i32x4::<0xDD>(w, x));
        let (even_yz, odd_yz) = (_mm512_shuffle_i32x4::<0x88>(y, z), _mm512_shuffle_i32x4::<0xDD>(y, z));
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even_wx, even_yz);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd_wx, odd_yz);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xDD>(even_wx, even_yz);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xDD>(odd_wx, odd_yz);
    }
    columns
}
