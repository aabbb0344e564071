//! Products by AVX512-BF16: a broadcast pair of terms times a pair of each of sixteen columns, added to sixteen float32 sums.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Operand, ROWS, Target};
use crate::matmul::register_block::COLUMNS;

/// Rows at a time: with two panels, their sums and both factors fill 19 of 32 registers.
const AT_A_TIME: usize = 8;

/// As [`super::block`].
///
/// # Safety
/// As there.
pub(super) unsafe fn block(steps: usize, operands: [Operand<'_>; 2], target: Target, (groups, panels): (usize, usize)) {
    for row in (0..groups * ROWS).step_by(AT_A_TIME) {
        let columns = target.columns.map(|column| column.wrapping_add(row * target.stride));
        // SAFETY: the caller's promise.
        unsafe {
            match panels {
                1 => rows::<1>(steps, row, operands, Target { columns, ..target }),
                _ => rows::<2>(steps, row, operands, Target { columns, ..target }),
            }
        }
    }
}

/// Eight rows of `PANELS` panels, from the block's row `first` on.
///
/// # Safety
/// As for [`super::block`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const PANELS: usize>(steps: usize, first: usize, [a, b]: [Operand<'_>; 2], target: Target) {
    let mut sums = [[_mm512_setzero_ps(); PANELS]; AT_A_TIME];
    let at = |row: usize, panel: usize| target.columns[panel].wrapping_add(row * target.stride);
    // SAFETY: the caller's promise; a line is a vector.
    unsafe {
        if target.accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                sums.iter_mut().enumerate().for_each(|(panel, sum)| *sum = _mm512_loadu_ps(at(row, panel)));
            }
        }
        for step in 0..steps {
            let left = a.at(first / ROWS, step).wrapping_add(first % ROWS * a.line);
            for pair in 0..COLUMNS {
                let line = |panel: usize| b.at(panel, step).wrapping_add(pair * b.line);
                let terms: [__m512bh; PANELS] = std::array::from_fn(|panel| transmute(_mm512_loadu_si512(line(panel).cast())));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let two = left.add(row * a.line).cast::<i32>().add(pair).read_unaligned();
                    let two: __m512bh = transmute(_mm512_set1_epi32(two));
                    for (sum, terms) in sums.iter_mut().zip(terms) {
                        *sum = _mm512_dpbf16_ps(*sum, two, terms);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            sums.iter().enumerate().for_each(|(panel, sum)| _mm512_storeu_ps(at(row, panel), *sum));
        }
    }
}
