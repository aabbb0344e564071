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

    fn check(&self) -> Result<()> {
        let Some(quantization) = self.quantization else { return Ok(()) };
        let (items, channels, two) = quantization.dims3()?;
        if two != 2 || channels == 0 || !self.item_len.is_multiple_of(channels) {
            bail!("gather: quantization of {:?} does not fit items of {} values", (items, channels, two), self.item_len);
        }
        Ok(())
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
    stored.check()?;
    if has_kernels(picks.device()) { cuda::gather(stored, picks, dtype) } else { cpu::gather(stored, picks)?.to_dtype(dtype) }
}

/// As [`gather`], into a tensor that is there: item `picks[i]` becomes row `rows[i]` of `out`, in the number format of `out`.
///
/// # Shapes
/// picks and rows `[n]`, u32; out `[r, ..]`, contiguous, with `item_len` values per row; each row below r
///
/// # Errors
/// As [`gather`]; a result of another shape.
pub fn gather_to(stored: &Stored<'_>, picks: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
    check(stored.bytes, picks)?;
    stored.check()?;
    check_rows(picks, rows, out, stored.item_len)?;
    if has_kernels(picks.device()) {
        return cuda::gather_to(stored, picks, rows, out);
    }
    cpu::set_rows(&cpu::gather(stored, picks)?.to_dtype(out.dtype())?, rows, out)
}

/// As [`gather_to`], for items of bytes.
///
/// # Errors
/// As [`gather_to`].
pub fn gather_bytes_to(stored: &Tensor, item_len: usize, picks: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
    check(stored, picks)?;
    check_rows(picks, rows, out, item_len)?;
    if out.dtype() != DType::U8 {
        bail!("gather: expected a result of bytes, found {out:?}");
    }
    if has_kernels(picks.device()) {
        return cuda::gather_bytes_to(stored, item_len, picks, rows, out);
    }
    cpu::set_rows(&cpu::gather_bytes(stored, item_len, picks)?, rows, out)
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

fn check_rows(picks: &Tensor, rows: &Tensor, out: &Tensor, item_len: usize) -> Result<()> {
    if rows.dtype() != DType::U32 || rows.elem_count() != picks.elem_count() {
        bail!("gather: expected a u32 row for each pick, found {rows:?} for {picks:?}");
    }
    if !out.is_contiguous() || out.elem_count() != out.dim(0)? * item_len {
        bail!("gather: expected a contiguous result of {item_len} values per row, found {:?}", out.layout());
    }
    if ![rows, out].iter().all(|t| t.device().same_device(picks.device())) {
        bail!("gather: expected all tensors on one device, found {rows:?} and {out:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Three items of two float32 numbers, of which two go to the outer rows of three.
    #[test]
    fn items_go_to_their_rows_and_leave_the_others() -> Result<()> {
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let bytes = Tensor::from_slice(&bytes, bytes.len(), &Device::Cpu)?;
        let of = |indices: [u32; 2]| Tensor::new(&indices, &Device::Cpu);
        let stored = Stored { bytes: &bytes, dtype: DType::F32, item_len: 2, quantization: None };
        let out = Tensor::new(&[[9f32, 9.0], [9.0, 9.0], [9.0, 9.0]], &Device::Cpu)?;
        gather_to(&stored, &of([2, 0])?, &of([0, 2])?, &out)?;
        assert_eq!(out.to_vec2::<f32>()?, [[4.0, 5.0], [9.0, 9.0], [0.0, 1.0]]);
        let labels = Tensor::zeros((3, 8), DType::U8, &Device::Cpu)?;
        gather_bytes_to(&bytes, 8, &of([1, 2])?, &of([2, 1])?, &labels)?;
        assert_eq!(labels.get(1)?.to_vec1::<u8>()?, bytes.narrow(0, 16, 8)?.to_vec1::<u8>()?);
        assert!(gather_to(&stored, &of([2, 0])?, &Tensor::new(&[0u32], &Device::Cpu)?, &out).is_err());
        assert!(gather_to(&stored, &of([2, 0])?, &of([0, 2])?, &out.narrow(1, 0, 1)?).is_err());
        Ok(())
    }
}
