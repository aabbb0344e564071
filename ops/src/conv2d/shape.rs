//! The sizes of a convolution.

use candle_core::{Result, Shape, Tensor, bail};

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConvShape {
    /// Images.
    pub(super) b: usize,
    /// Input channels.
    pub(super) ci: usize,
    /// Input height.
    pub(super) h: usize,
    /// Input width.
    pub(super) w: usize,
    /// Output channels.
    pub(super) co: usize,
    /// Kernel height and width.
    pub(super) k: usize,
    /// Step between windows.
    pub(super) stride: usize,
    /// Rows and columns of zeros at each side.
    pub(super) padding: usize,
    /// Output height.
    pub(super) oh: usize,
    /// Output width.
    pub(super) ow: usize,
}

impl ConvShape {
    /// Of an input `[b, ci, h, w]` and a weight `[co, ci, k, k]`.
    pub(super) fn new(x: &Shape, weight: &Shape, stride: usize, padding: usize) -> Result<Self> {
        let (b, ci, h, w) = x.dims4()?;
        let (co, wi, k, kw) = weight.dims4()?;
        if wi != ci || kw != k || k == 0 || stride == 0 {
            bail!("conv2d: expected a weight of [co, {ci}, k, k] and a stride of at least 1, found {weight:?} and {stride}");
        }
        if h + 2 * padding < k || w + 2 * padding < k {
            bail!("conv2d: expected an input of at least {k}x{k} with padding {padding}, found {h}x{w}");
        }
        let (oh, ow) = ((h + 2 * padding - k) / stride + 1, (w + 2 * padding - k) / stride + 1);
        Ok(Self { b, ci, h, w, co, k, stride, padding, oh, ow })
    }

    pub(super) fn input_len(&self) -> usize {
        self.b * self.ci * self.h * self.w
    }

    pub(super) fn output_len(&self) -> usize {
        self.b * self.co * self.oh * self.ow
    }

    pub(super) fn weight_len(&self) -> usize {
        self.co * self.ci * self.k * self.k
    }

    /// Refuses a gradient that is not of the output's shape.
    pub(super) fn check_grad(&self, grad: &Tensor) -> Result<()> {
        let expected = [self.b, self.co, self.oh, self.ow];
        if grad.dims() != expected {
            bail!("conv2d: expected a gradient of {expected:?}, found {:?}", grad.dims());
        }
        Ok(())
    }
}
