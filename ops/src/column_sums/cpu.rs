//! Sums over rows on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::multiversion;
use crate::cpu::{sum_parts, tensor_from, with_numbers};

/// Rows that one task adds.
const ROWS: usize = 256;

multiversion! {
    fn add_rows<T: Activation>(rows: &[T], sums: &mut [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value.value();
            }
        }
    }
}

/// As [`super::column_sums`].
pub(super) fn column_sums(x: &Tensor) -> Result<Tensor> {
    in_format!(x, sums_of(x))
}

fn sums_of<T: Activation>(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let columns_or_one = columns.max(1);
    let mut parts = vec![0f32; rows.div_ceil(ROWS) * columns];
    with_numbers(x, "column sums", |x: &[T]| {
        let tasks = parts.par_chunks_mut(columns_or_one).zip(x.par_chunks(ROWS * columns_or_one));
        tasks.for_each(|(part, rows)| add_rows(rows, part));
        Ok(())
    })?;
    tensor_from(sum_parts(&parts, columns_or_one)[..columns].to_vec(), columns)
}
