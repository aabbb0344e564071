//! Two-dimensional convolution without bias, forward and both backwards.
//!
//! Three ways to compute it on the CPU, of which the first that applies is taken:
//!
//! - `winograd`: 3×3 with stride 1 and padding 1 where both channel counts are multiples of 16, with AVX2;
//! - `implicit`: any other kernel and stride, with AVX2;
//! - `im2col`: everything on other processors, through the `gemm` crate.
//!
//! On other devices candle's own convolution is used. Milliseconds at batch 24 on two Zen 3 cores with AVX2, beside PyTorch 2.15 (oneDNN) with two
//! threads; processor time over the number of threads, since the machine did other work, both with an allocator that keeps freed memory
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
//! Every sum has an order of its own that no thread changes, so that a run repeats bit for bit.

mod im2col;
#[cfg(target_arch = "x86_64")]
mod implicit;
#[cfg(target_arch = "x86_64")]
mod kernel;
#[cfg(target_arch = "x86_64")]
mod transform;
#[cfg(target_arch = "x86_64")]
mod winograd;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{contiguous_f32, is_native, tensor_from, with_f32};

/// Convolution (cross-correlation, as everywhere in deep learning) with a square kernel and zero padding, no bias. Differentiable by both arguments;
/// a gradient is computed only for one that is tracked.
///
/// # Shapes
/// `x` `[b, ci, h, w]`, `weight` `[co, ci, k, k]` → `[b, co, (h + 2·padding - k)/stride + 1, (w + 2·padding - k)/stride + 1]`.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let op = Conv2d { stride, padding };
    op.geometry(x.shape(), weight.shape())?;
    if is_native(&[x, weight]) {
        x.contiguous()?.apply_op2(&weight.contiguous()?, op)
    } else {
        conv2d_composed(x, weight, stride, padding)
    }
}

/// [`conv2d`] by candle's own op, for any device and data type; the reference of the tests.
pub fn conv2d_composed(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    x.conv2d(weight, padding, stride, 1, 1)
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Images.
    b: usize,
    /// Input channels.
    ci: usize,
    /// Input height.
    h: usize,
    /// Input width.
    w: usize,
    /// Output channels.
    co: usize,
    /// Kernel height and width.
    k: usize,
    /// Step between windows.
    stride: usize,
    /// Rows and columns of zeros at each side.
    padding: usize,
    /// Output height.
    oh: usize,
    /// Output width.
    ow: usize,
}

impl Geometry {
    fn input_len(&self) -> usize {
        self.b * self.ci * self.h * self.w
    }

    fn output_len(&self) -> usize {
        self.b * self.co * self.oh * self.ow
    }

    fn weight_len(&self) -> usize {
        self.co * self.ci * self.k * self.k
    }
}

struct Conv2d {
    stride: usize,
    padding: usize,
}

impl Conv2d {
    fn geometry(&self, x: &Shape, weight: &Shape) -> Result<Geometry> {
        let Conv2d { stride, padding } = *self;
        let (b, ci, h, w) = x.dims4()?;
        let (co, wi, k, kw) = weight.dims4()?;
        if wi != ci || kw != k || k == 0 || stride == 0 {
            bail!("conv2d: expected a weight of [co, {ci}, k, k] and a stride of at least 1, found {weight:?} and {stride}");
        }
        if h + 2 * padding < k || w + 2 * padding < k {
            bail!("conv2d: expected an input of at least {k}x{k} with padding {padding}, found {h}x{w}");
        }
        let (oh, ow) = ((h + 2 * padding - k) / stride + 1, (w + 2 * padding - k) / stride + 1);
        Ok(Geometry { b, ci, h, w, co, k, stride, padding, oh, ow })
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let g = self.geometry(l1.shape(), l2.shape())?;
        let (x, weight) = (contiguous_f32(s1, l1, self.name())?, contiguous_f32(s2, l2, self.name())?);
        Ok((CpuStorage::F32(forward(&g, x, weight)), Shape::from((g.b, g.co, g.oh, g.ow))))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = self.geometry(x.shape(), weight.shape())?;
        with_f32(grad, self.name(), |grad| {
            let grad_x = if x.track_op() {
                Some(tensor_from(with_f32(weight, self.name(), |weight| Ok(backward_data(&g, grad, weight)))?, x.shape())?)
            } else {
                None
            };
            let grad_weight = if weight.track_op() {
                Some(tensor_from(with_f32(x, self.name(), |x| Ok(backward_weight(&g, x, grad)))?, weight.shape())?)
            } else {
                None
            };
            Ok((grad_x, grad_weight))
        })
    }
}

fn forward(g: &Geometry, x: &[f32], weight: &[f32]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if winograd::applies(g) {
        return winograd::forward(g, x, weight);
    } else if implicit::applies(g) {
        return implicit::forward(g, x, weight);
    }
    im2col::forward(g, x, weight)
}

fn backward_data(g: &Geometry, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if winograd::applies(g) {
        return winograd::backward_data(g, grad, weight);
    } else if implicit::applies(g) {
        return implicit::backward_data(g, grad, weight);
    }
    im2col::backward_data(g, grad, weight)
}

fn backward_weight(g: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if winograd::applies(g) {
        return winograd::backward_weight(g, x, grad);
    } else if implicit::applies(g) {
        return implicit::backward_weight(g, x, grad);
    }
    im2col::backward_weight(g, x, grad)
}
