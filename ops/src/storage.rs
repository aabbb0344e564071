//! Access to the float32 data of contiguous CPU tensors inside custom operations.

use candle_core::{CpuStorage, DType, Layout, Result, bail};

/// The elements of a contiguous float32 CPU tensor.
///
/// # Errors
/// If the tensor is not contiguous or not float32.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("{op}: expected a contiguous tensor, found strides {:?} for shape {:?}", layout.stride(), layout.dims()),
    }
}

/// Refuses tensors that are not float32.
pub(crate) fn expect_f32(op: &str, tensors: &[&candle_core::Tensor]) -> Result<()> {
    for tensor in tensors {
        if tensor.dtype() != DType::F32 {
            bail!("{op}: expected float32, found {:?}", tensor.dtype());
        }
    }
    Ok(())
}
