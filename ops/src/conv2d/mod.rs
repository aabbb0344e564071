//! Two-dimensional convolution without bias, forward and backward; on a GPU by cuDNN.
//!
//! On the CPU, the first of these ways that applies is used:
//!
//! - `bf16`: any, if activations are bfloat16 or factors are to be rounded to it, and the processor has instructions for that;
//! - `winograd`: 3×3 with stride 1 and padding 1 if both channel counts are multiples of 16, with AVX2;
//! - `implicit`: any other kernel and stride, with AVX2;
//! - `im2col`: everything on other processors, through the `gemm` crate.
//!
//! With AVX-512 the products of the second and the third use wider blocks ([`crate::matmul::register_block`]), with the same bits.
//!
//! Milliseconds at batch 24 on two Zen 3 cores with AVX2, compared with PyTorch 2.15 (oneDNN) with two threads. Times are processor time
//! divided by the number of threads, since the machine did other work; both used an allocator that keeps freed memory
//! (`examples/bench_conv.rs`):
//!
//! | convolution, input | way | forward | PyTorch | to input | PyTorch | to weight | PyTorch |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | 1→64 7×7/2, 224² | implicit | 14.5 | 18.6 | not needed | | 15.9 | 111 |
//! | 64→64 3×3, 56² | winograd | 10.6 | 31.9 | 13.1 | 32.1 | 12.0 | 46.8 |
//! | 64→128 3×3/2, 56² | implicit | 18.8 | 21.7 | 23.9 | 24.7 | 18.6 | 26.1 |
//! | 128→128 3×3, 28² | winograd | 9.3 | 32.0 | 10.7 | 38.0 | 12.0 | 46.8 |
//! | 64→128 1×1/2, 56² | implicit | 3.5 | 15.5 | 6.0 | 22.6 | 3.8 | 15.1 |
//! | 128→256 3×3/2, 28² | implicit | 18.2 | 28.5 | 21.6 | 30.8 | 19.8 | 31.9 |
//! | 256→256 3×3, 14² | winograd | 12.5 | 41.9 | 14.0 | 41.9 | 15.4 | 51.8 |
//! | 128→256 1×1/2, 28² | implicit | 2.9 | 14.0 | 4.3 | 18.0 | 3.1 | 14.8 |
//!
//! The order of every sum is fixed and does not depend on the threads, so results are reproducible bit for bit.

#[cfg(any(feature = "cuda", test))]
mod algorithm;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod cpu;
mod cuda;
#[cfg(feature = "cuda")]
mod cudnn;
mod im2col;
#[cfg(target_arch = "x86_64")]
mod implicit;
mod shape;
#[cfg(target_arch = "x86_64")]
mod transform;
#[cfg(target_arch = "x86_64")]
mod weight_sum;
#[cfg(target_arch = "x86_64")]
mod winograd;

use candle_core::{Result, Shape, Tensor, Var};

use crate::device::F32Math;
use crate::dispatch::{Path, path};
use crate::tape::{Value, record};
use shape::ConvShape;

/// A convolution (cross-correlation, as everywhere in deep learning) with a square kernel and zero padding, no bias (`torch.nn.Conv2d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Step between windows, at least 1.
    pub stride: usize,
    /// Rows and columns of zeros at each side.
    pub padding: usize,
    /// How float32 factors are rounded.
    pub math: F32Math,
}

impl Conv2d {
    /// In exact float32.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride, padding, math: F32Math::Exact }
    }

    /// The same with another way to take float32 factors.
    pub fn with_math(self, math: F32Math) -> Self {
        Self { math, ..self }
    }

    /// Convolves. Keeps no graph: see [`Self::recorded`], or [`Self::backward_input`] and [`Self::backward_weight`].
    ///
    /// # Shapes
    /// `x` `[b, ci, h, w]`, `weight` `[co, ci, k, k]` → `[b, co, (h + 2·padding - k)/stride + 1, (w + 2·padding - k)/stride + 1]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn forward(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let shape = self.shape(x.shape(), weight.shape())?;
        let _span = tracing::trace_span!("conv2d", ?shape).entered();
        match path(&[x, weight]) {
            Path::Cuda => cuda::forward(*self, x, weight, &shape),
            Path::Cpu => cpu::forward(x, weight, &shape),
            Path::Composed => self.composed(x, weight),
        }
    }

    /// [`Self::forward`], recorded.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn recorded(&self, x: &Value, weight: &Value) -> Result<Value> {
        let (conv, input, factor) = (*self, x.tensor().clone(), weight.tensor().clone());
        let ((_, _, h, w), kernel) = (input.dims4()?, factor.dim(2)?);
        record(self.forward(&input, &factor)?, &[x, weight], move |gradient, wanted| {
            Ok(vec![
                wanted[0].then(|| conv.backward_input(gradient, &factor, (h, w))).transpose()?,
                wanted[1].then(|| conv.backward_weight(&input, gradient, kernel)).transpose()?,
            ])
        })
    }

    /// The gradient of the input, `[b, ci, h, w]`, given that of the output, `[b, co, oh, ow]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn backward_input(&self, grad: &Tensor, weight: &Tensor, input_size: (usize, usize)) -> Result<Tensor> {
        let x = Shape::from((grad.dim(0)?, weight.dim(1)?, input_size.0, input_size.1));
        let shape = self.shape(&x, weight.shape())?;
        shape.check_grad(grad)?;
        let _span = tracing::trace_span!("conv2d backward input", ?shape).entered();
        match path(&[grad, weight]) {
            Path::Cuda => cuda::backward_input(*self, grad, weight, &shape),
            Path::Cpu => cpu::backward_input(grad, weight, &shape),
            Path::Composed => {
                let x = Tensor::zeros(&x, grad.dtype(), grad.device())?;
                gradient_of(&x, grad, |x| self.composed(x, &weight.detach()))
            }
        }
    }

    /// The gradient of the weight, `[co, ci, kernel, kernel]`, given that of the output, `[b, co, oh, ow]`.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn backward_weight(&self, x: &Tensor, grad: &Tensor, kernel: usize) -> Result<Tensor> {
        let weight = Shape::from((grad.dim(1)?, x.dim(1)?, kernel, kernel));
        let shape = self.shape(x.shape(), &weight)?;
        shape.check_grad(grad)?;
        let _span = tracing::trace_span!("conv2d backward weight", ?shape).entered();
        match path(&[x, grad]) {
            Path::Cuda => cuda::backward_weight(*self, x, grad, &shape),
            Path::Cpu => cpu::backward_weight(x, grad, &shape),
            Path::Composed => {
                let weight = Tensor::zeros(&weight, x.dtype(), x.device())?;
                gradient_of(&weight, grad, |weight| self.composed(&x.detach(), weight))
            }
        }
    }

    /// [`Self::forward`] by candle's op, for any device and data type; the tests' reference.
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn composed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        x.conv2d(weight, self.padding, self.stride, 1, 1)
    }

    fn shape(&self, x: &Shape, weight: &Shape) -> Result<ConvShape> {
        ConvShape::new(x, weight, self.stride, self.padding)
    }
}

/// The gradient of `x`, given that of `f(x)`, by candle's backward.
fn gradient_of(x: &Tensor, grad: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let x = Var::from_tensor(x)?;
    let mut grads = (f(&x)? * grad.detach())?.sum_all()?.backward()?;
    grads.remove(&x).ok_or_else(|| candle_core::Error::msg("conv2d: no gradient"))
}
