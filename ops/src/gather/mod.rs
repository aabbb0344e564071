//! Batches out of stored numbers that lie in a GPU's memory, brought to the number format that the network computes in.

mod cuda;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::device;

/// Items in a store's number format, one after the other in a GPU's memory.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The items, `[items·item_bytes]` of u8.
    pub bytes: &'a Tensor,
    /// What they hold: float32, bfloat16 or float16; ignored where there is a quantization.
    pub dtype: DType,
    /// Values of an item.
    pub item_len: usize,
    /// Of 8-bit codes the scale and the offset of each channel, `[items, channels, 2]`, float32.
    pub quantization: Option<&'a Tensor>,
}

impl Stored<'_> {
    /// Bytes of an item; they are padded to pairs.
    pub(crate) fn item_bytes(&self) -> usize {
        let value = if self.quantization.is_some() { 1 } else { self.dtype.size_in_bytes() };
        (self.item_len * value).next_multiple_of(2)
    }
}

/// The items that `picks` names, as `dtype`.
///
/// # Shapes
/// picks `[n]`, u32, each below the number of items → `[n, item_len]`
///
/// # Errors
/// Tensors of another kind, or that are not on a GPU.
pub fn gather(stored: &Stored<'_>, picks: &Tensor, dtype: DType) -> Result<Tensor> {
    check(stored.bytes, picks)?;
    cuda::gather(stored, picks, dtype)
}

/// As [`gather`], of items of bytes that stay bytes.
///
/// # Errors
/// As [`gather`].
pub fn gather_bytes(stored: &Tensor, item_len: usize, picks: &Tensor) -> Result<Tensor> {
    check(stored, picks)?;
    cuda::gather_bytes(stored, item_len, picks)
}

/// The same bytes as float32 numbers.
pub(crate) fn reinterpret_f32(bytes: &Tensor, shape: Shape) -> Result<Tensor> {
    let stored = Stored { bytes, dtype: DType::F32, item_len: shape.elem_count(), quantization: None };
    gather(&stored, &Tensor::new(&[0u32], bytes.device())?, DType::F32)?.reshape(shape)
}

fn check(bytes: &Tensor, picks: &Tensor) -> Result<()> {
    if bytes.dtype() != DType::U8 || picks.dtype() != DType::U32 || picks.elem_count() > 65_535 {
        bail!("gather: expected bytes and up to 65535 u32 picks, found {:?} and {:?}", bytes, picks);
    }
    if !device::has_kernels(bytes.device()) || !bytes.device().same_device(picks.device()) {
        bail!("gather: expected both tensors on one GPU, found {:?} and {:?}", bytes.device(), picks.device());
    }
    Ok(())
}
