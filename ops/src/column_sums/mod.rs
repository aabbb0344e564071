//! Sums over the rows of a matrix: the gradients of a linear layer's bias, and of a layer norm's scale and shift.

mod cpu;
mod cuda;

use candle_core::{DType, Result, Tensor};

pub(crate) use cuda::norm_column_sums as norm_column_sums_cuda;

use crate::dispatch::{Path, path};

/// The sum over the rows of each column, in a fixed order.
///
/// # Shapes
/// `[rows, c]` → `[c]`, float32 unless the matrix is wider.
///
/// # Errors
/// Those of the tensor library.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    match path(&[x]) {
        Path::Cuda => cuda::column_sums(&x.contiguous()?),
        Path::Cpu => cpu::column_sums(x),
        Path::Composed if x.dtype() == DType::F64 => x.sum(0),
        Path::Composed => x.to_dtype(DType::F32)?.sum(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::uniform;

    #[test]
    fn every_row_counts_once() -> Result<()> {
        for (rows, columns) in [(0, 3), (1, 1), (5, 7), (700, 33), (4096, 64)] {
            let x = uniform(&[rows, columns], 1)?;
            let (got, want) = (column_sums(&x)?.to_vec1::<f32>()?, x.to_dtype(DType::F64)?.sum(0)?.to_vec1::<f64>()?);
            for (got, want) in got.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() <= 2e-5 * (rows as f64).sqrt(), "{rows} rows: {got} {want}");
            }
            assert_eq!(got.len(), columns);
        }
        Ok(())
    }
}
