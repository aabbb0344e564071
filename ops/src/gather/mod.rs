//! Gathers batches from stored numbers in a device's memory, and converts them to the network's number format.

mod cpu;
mod cuda;

use candle_core::{DType, Result, Shape, Tensor, bail};

use crate::device::has_kernels;

/// Items in a store's number format, contiguous in a device's memory.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The items, `[items·item_bytes]` of u8.
    pub bytes: &'a Tensor,
    /// Their number format: float32, bfloat16 or float16; ignored if there is a quantization.
    pub dtype: DType,
    /// Values per item.
    pub item_len: usize,
    /// For 8-bit codes: scale and offset of each channel, `[items, channels, 2]`, float32.
    pub quantization: Option<&'a Tensor>,
}

impl Stored<'_> {
    /// Bytes per item, padded to an even number.
    fn item_bytes(&self) -> usize {
        let value = if self.quantization.is_some() { 1 } else { self.dtype.size_in_bytes() };
        (self.item_len * value).next_multiple_of(2)
    }
}

/// The items with the indices `picks`, as `dtype`.
///
/// # Shapes
/// picks `[n]`, u32, each below the number of items → `[n, item_len]`
///
/// # Errors
/// Tensors of another type, or on different devices.
pub fn gather(stored: &Stored<'_>, picks: &Tensor, dtype: DType) -> Result<Tensor> {
    check(stored.bytes, picks)?;
    if let Some(quantization) = stored.quantization {
        let (items, channels, two) = quantization.dims3()?;
        if two != 2 || channels == 0 || !stored.item_len.is_multiple_of(channels) {
            bail!("gather: quantization of {:?} does not fit items of {} values", (items, channels, two), stored.item_len);
        }
    }
    if has_kernels(picks.device()) { cuda::gather(stored, picks, dtype) } else { cpu::gather(stored, picks)?.to_dtype(dtype) }
}

/// As [`gather`], for items of bytes, which stay bytes.
///
/// # Errors
/// As [`gather`].
pub fn gather_bytes(stored: &Tensor, item_len: usize, picks: &Tensor) -> Result<Tensor> {
    check(stored, picks)?;
    if has_kernels(picks.device()) {
        cuda::gather_bytes(stored, item_len, picks)
    } else {
        cpu::gather_bytes(stored, item_len, picks)
    }
}

/// Reinterprets bytes as float32 numbers.
///
/// # Errors
/// A number of bytes that does not match the shape.
pub fn as_f32(bytes: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if bytes.dtype() != DType::U8 || bytes.elem_count() != 4 * shape.elem_count() {
        bail!("expected the bytes of {shape:?} float32 numbers, found {:?}", bytes.dims());
    }
    let stored = Stored { bytes, dtype: DType::F32, item_len: shape.elem_count(), quantization: None };
    gather(&stored, &Tensor::new(&[0u32], bytes.device())?, DType::F32)?.reshape(shape)
}

fn check(bytes: &Tensor, picks: &Tensor) -> Result<()> {
    if bytes.dtype() != DType::U8 || picks.dtype() != DType::U32 || picks.elem_count() > 65_535 {
        bail!("gather: expected bytes and up to 65535 u32 picks, found {:?} and {:?}", bytes, picks);
    }
    if !bytes.device().same_device(picks.device()) {
        bail!("gather: expected both tensors on one device, found {:?} and {:?}", bytes.device(), picks.device());
    }
    Ok(())
}
