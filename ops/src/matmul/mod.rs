//! Float32 matrix products of views of row-major memory, by the `gemm` crate.

#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16;
pub mod packed;
#[cfg(target_arch = "x86_64")]
pub(crate) mod register_block;

use gemm::Parallelism;

use crate::cpu::simd::multiversion;

/// The instructions by which this processor computes products of bfloat16 numbers, if it has any ([`crate::Numerics::Bf16`]).
pub fn bf16_instructions() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return bf16::instructions().map(bf16::Instructions::name);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Whether a product replaces the destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// `dst = alpha·lhs·rhs`.
    No,
    /// `dst += alpha·lhs·rhs`.
    Yes,
}

/// What becomes of a layer's product `x·Wᵀ`.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    /// `y = x·Wᵀ`
    Replace,
    /// `y += x·Wᵀ`
    Add,
    /// `y = x·Wᵀ + bias`
    Bias(&'a [f32]),
    /// `y = gelu(x·Wᵀ + bias)`
    BiasGelu(&'a [f32]),
}

multiversion! {
    /// Adds a bias to every row of `x`, which has its length.
    pub(crate) fn add_bias_in_place(x: &mut [f32], bias: &[f32]) {
        add_bias_rows(x, bias);
    }
}

/// The body of [`add_bias_in_place`], for callers that are compiled for an instruction set.
#[inline(always)]
pub(crate) fn add_bias_rows(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
}

/// A matrix for reading: `rows × cols` with any strides.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix of `rows × cols` whose rows follow one another.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If `data` ends before the last element.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || data.len() >= (rows - 1) * row_stride + cols);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without copying.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A row-major matrix for writing.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix of `rows × cols` whose rows follow one another.
    ///
    /// # Panics
    /// If `data` is shorter.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols);
        Self { data, rows, cols }
    }
}

/// `dst = alpha·lhs·rhs` (or `+=`) on all threads.
pub fn matmul(dst: MatMut, lhs: MatRef, rhs: MatRef, alpha: f32, accumulate: Accumulate) {
    product(dst, lhs, rhs, alpha, accumulate, Parallelism::Rayon(0));
}

/// `dst = alpha·lhs·rhs` (or `+=`) on the calling thread.
pub fn matmul_serial(dst: MatMut, lhs: MatRef, rhs: MatRef, alpha: f32, accumulate: Accumulate) {
    product(dst, lhs, rhs, alpha, accumulate, Parallelism::None);
}

fn product(dst: MatMut, lhs: MatRef, rhs: MatRef, alpha: f32, accumulate: Accumulate, parallelism: Parallelism) {
    assert!(lhs.cols == rhs.rows && dst.rows == lhs.rows && dst.cols == rhs.cols);
    // SAFETY: the constructors check that each view's elements lie within its slice, and `dst` is an exclusive borrow.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            lhs.cols,
            dst.data.as_mut_ptr(),
            1,
            dst.cols as isize,
            accumulate == Accumulate::Yes,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
