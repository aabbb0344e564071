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

mod cuda;
#[cfg(feature = "cuda")]
mod cudnn;
mod im2col;
#[cfg(target_arch = "x86_64")]
mod implicit;
#[cfg(target_arch = "x86_64")]
mod transform;
#[cfg(target_arch = "x86_64")]
mod winograd;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, Var, bail};

use crate::cpu::{contiguous_f32, is_native, tensor_from, with_f32};
use crate::device;

/// Convolution (cross-correlation, as everywhere in deep learning) with a square kernel and zero padding, no bias. Differentiable by both arguments;
/// a gradient is computed only for one that is tracked.
///
/// # Shapes
/// `x` `[b, ci, h, w]`, `weight` `[co, ci, k, k]` → `[b, co, (h + 2·padding - k)/stride + 1, (w + 2·padding - k)/stride + 1]`.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let op = Conv2d { stride, padding };
    let g = op.geometry(x.shape(), weight.shape())?;
    if device::runs_on(&[x, weight]) {
        return cuda::conv2d(x, weight, &g);
    }
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

/// The gradient of [`conv2d`]'s input, `[b, ci, h, w]`, from that of its result, `[b, co, oh, ow]`.
///
/// # Errors
/// Shapes that do not go together.
pub fn conv2d_backward_input(
    grad: &Tensor,
    weight: &Tensor,
    input_size: (usize, usize),
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let op = Conv2d { stride, padding };
    let shape = Shape::from((grad.dim(0)?, weight.dim(1)?, input_size.0, input_size.1));
    let g = op.geometry(&shape, weight.shape())?;
    g.check_grad(grad)?;
    let _span = tracing::trace_span!("conv2d backward input", ?g).entered();
    if device::runs_on(&[grad, weight]) {
        return cuda::backward_input(grad, weight, &g);
    }
    if !is_native(&[grad, weight]) {
        let x = Tensor::zeros(&shape, grad.dtype(), grad.device())?;
        return vjp(&x, grad, |x| conv2d_composed(x, &weight.detach(), stride, padding));
    }
    backward_input_f32(grad, weight, &g)
}

/// The CPU's [`conv2d`] without a graph.
pub(crate) fn forward_f32(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let data = with_f32(x, "conv2d", |x| with_f32(weight, "conv2d", |weight| Ok(forward(g, x, weight))))?;
    tensor_from(data, (g.b, g.co, g.oh, g.ow))
}

/// The CPU's [`conv2d_backward_input`].
pub(crate) fn backward_input_f32(grad: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let data = with_f32(grad, "conv2d", |grad| with_f32(weight, "conv2d", |weight| Ok(backward_data(g, grad, weight))))?;
    tensor_from(data, (g.b, g.ci, g.h, g.w))
}

/// The CPU's [`conv2d_backward_weight`].
pub(crate) fn backward_weight_f32(x: &Tensor, grad: &Tensor, g: &Geometry) -> Result<Tensor> {
    let data = with_f32(x, "conv2d", |x| with_f32(grad, "conv2d", |grad| Ok(backward_weight(g, x, grad))))?;
    tensor_from(data, (g.co, g.ci, g.k, g.k))
}

/// The gradient of [`conv2d`]'s weight, `[co, ci, kernel, kernel]`, from that of its result, `[b, co, oh, ow]`.
///
/// # Errors
/// Shapes that do not go together.
pub fn conv2d_backward_weight(x: &Tensor, grad: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let op = Conv2d { stride, padding };
    let shape = Shape::from((grad.dim(1)?, x.dim(1)?, kernel, kernel));
    let g = op.geometry(x.shape(), &shape)?;
    g.check_grad(grad)?;
    let _span = tracing::trace_span!("conv2d backward weight", ?g).entered();
    if device::runs_on(&[x, grad]) {
        return cuda::backward_weight(x, grad, &g);
    }
    if !is_native(&[x, grad]) {
        let weight = Tensor::zeros(&shape, x.dtype(), x.device())?;
        return vjp(&weight, grad, |weight| conv2d_composed(&x.detach(), weight, stride, padding));
    }
    backward_weight_f32(x, grad, &g)
}

/// The gradient of `x` from that of `f(x)`, by candle's own backward.
fn vjp(x: &Tensor, grad: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let x = Var::from_tensor(x)?;
    let mut grads = (f(&x)? * grad.detach())?.sum_all()?.backward()?;
    grads.remove(&x).ok_or_else(|| candle_core::Error::msg("conv2d: no gradient"))
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    /// Images.
    pub(crate) b: usize,
    /// Input channels.
    pub(crate) ci: usize,
    /// Input height.
    pub(crate) h: usize,
    /// Input width.
    pub(crate) w: usize,
    /// Output channels.
    pub(crate) co: usize,
    /// Kernel height and width.
    pub(crate) k: usize,
    /// Step between windows.
    pub(crate) stride: usize,
    /// Rows and columns of zeros at each side.
    pub(crate) padding: usize,
    /// Output height.
    pub(crate) oh: usize,
    /// Output width.
    pub(crate) ow: usize,
}

impl Geometry {
    pub(crate) fn input_len(&self) -> usize {
        self.b * self.ci * self.h * self.w
    }

    pub(crate) fn output_len(&self) -> usize {
        self.b * self.co * self.oh * self.ow
    }

    pub(crate) fn weight_len(&self) -> usize {
        self.co * self.ci * self.k * self.k
    }

    fn check_grad(&self, grad: &Tensor) -> Result<()> {
        let expected = [self.b, self.co, self.oh, self.ow];
        if grad.dims() != expected {
            bail!("conv2d: expected a gradient of {expected:?}, found {:?}", grad.dims());
        }
        Ok(())
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
        let _span = tracing::trace_span!("conv2d", ?g).entered();
        let (x, weight) = (contiguous_f32(s1, l1, self.name())?, contiguous_f32(s2, l2, self.name())?);
        Ok((CpuStorage::F32(forward(&g, x, weight)), Shape::from((g.b, g.co, g.oh, g.ow))))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Conv2d { stride, padding } = *self;
        let (_, _, h, w) = x.dims4()?;
        let grad_x = x.track_op().then(|| conv2d_backward_input(grad, weight, (h, w), stride, padding)).transpose()?;
        let grad_weight =
            weight.track_op().then(|| conv2d_backward_weight(x, grad, weight.dim(2)?, stride, padding)).transpose()?;
        Ok((grad_x, grad_weight))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn assert_same(what: &str, got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
        assert!(error < 3e-6, "{what} differs by {error:e}");
    }

    /// The paths that this processor would not take are held to those that it does.
    #[test]
    fn all_ways_to_compute_a_convolution_agree() {
        for (ci, co, h, w, k, stride, padding) in [
            (16, 32, 13, 14, 3, 1, 1),
            (64, 256, 10, 9, 3, 1, 1),
            (256, 128, 14, 14, 3, 1, 1),
            (3, 20, 21, 18, 7, 2, 3),
            (8, 16, 9, 8, 1, 2, 0),
        ] {
            let op = Conv2d { stride, padding };
            let g = op.geometry(&Shape::from((3, ci, h, w)), &Shape::from((co, ci, k, k))).unwrap();
            let (x, weight, grad) = (values(g.input_len(), 1), values(g.weight_len(), 2), values(g.output_len(), 3));
            let plain = (
                im2col::forward(&g, &x, &weight),
                im2col::backward_data(&g, &grad, &weight),
                im2col::backward_weight(&g, &x, &grad),
            );
            let chosen = (forward(&g, &x, &weight), backward_data(&g, &grad, &weight), backward_weight(&g, &x, &grad));
            for (what, got, want) in
                [("forward", &chosen.0, &plain.0), ("data", &chosen.1, &plain.1), ("weight", &chosen.2, &plain.2)]
            {
                assert_same(&format!("{what} {g:?}"), got, want);
            }
            #[cfg(target_arch = "x86_64")]
            if implicit::applies(&g) {
                assert_same("implicit forward", &implicit::forward(&g, &x, &weight), &plain.0);
                assert_same("implicit data", &implicit::backward_data(&g, &grad, &weight), &plain.1);
                assert_same("implicit weight", &implicit::backward_weight(&g, &x, &grad), &plain.2);
            }
        }
    }
}
