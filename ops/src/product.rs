//! One float32 matrix product on the calling thread, for ops that split their work over the threads themselves.

use gemm::Parallelism;

/// A view of a row-major matrix or of its transpose.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows × cols`, rows one after another.
    pub(crate) fn rows(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, which moves nothing.
    pub(crate) fn transposed(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// `out = a·b`, or `out += a·b` where `accumulate` says so; `out` is row-major.
pub(crate) fn matmul(a: Matrix, b: Matrix, out: &mut [f32], accumulate: bool) {
    assert_eq!(a.cols, b.rows);
    assert_eq!(out.len(), a.rows * b.cols);
    debug_assert!(a.data.len() == a.rows * a.cols && b.data.len() == b.rows * b.cols);
    // SAFETY: the constructors tie shapes and strides to the slices' lengths, and `out` is checked above; `out` is a distinct, exclusive borrow.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
