//! The number formats of results: sums go to float32 memory as they are, to bfloat16 rounded.

use half::bf16;

use crate::matmul::bf16::pack::{self, FactorFormat};
use crate::matmul::packed::COLUMNS;

/// A number format of results.
pub(in super::super) trait Output: FactorFormat {
    /// Whether sums are stored as they are.
    const TAKES_SUMS: bool;

    /// Writes up to sixteen sums from `to` on, `step` apart.
    ///
    /// # Safety
    /// The elements are there, and no other thread touches them; the processor has AVX512-BF16.
    unsafe fn write(sums: &[f32], to: *mut Self, step: usize);
}

impl Output for f32 {
    const TAKES_SUMS: bool = true;

    #[inline(always)]
    unsafe fn write(sums: &[f32], to: *mut Self, step: usize) {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i * step) = *sum };
        }
    }
}

impl Output for bf16 {
    const TAKES_SUMS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn write(sums: &[f32], to: *mut Self, step: usize) {
        let rounded = pack::sixteen_rounded(sums);
        // SAFETY: the caller's promise.
        unsafe {
            if step == 1 {
                return pack::store(rounded, sums.len(), to.cast());
            }
            let mut numbers = [0u16; COLUMNS];
            pack::store(rounded, COLUMNS, numbers.as_mut_ptr());
            numbers.iter().take(sums.len()).enumerate().for_each(|(i, bits)| *to.add(i * step) = bf16::from_bits(*bits));
        }
    }
}
