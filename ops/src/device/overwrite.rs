//! Writes into memory that is there already, so that its address stays and nothing is allocated.

use candle_core::{Result, Tensor, WithDType, bail};

#[cfg(feature = "cuda")]
use super::{cuda, memory::Input};

/// Replaces the elements of a contiguous tensor by the host's numbers, in the order of the device's work. They are read before this returns;
/// nothing waits for the device.
///
/// # Errors
/// Another number of elements, another type, or a tensor that is not contiguous; the driver's.
pub fn overwrite<T: WithDType>(to: &Tensor, values: &[T]) -> Result<()> {
    if to.dtype() != T::DTYPE || to.elem_count() != values.len() || !to.is_contiguous() {
        bail!("{} numbers of {:?} do not replace {to:?}", values.len(), T::DTYPE);
    }
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = to.device() {
        // SAFETY: every byte of a number may be read as one.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        // SAFETY: the tensor has as many elements of as many bytes, next to each other.
        return unsafe { cuda::write(device, Input::new(to)?.pointer(), bytes) };
    }
    to.slice_set(&Tensor::from_slice(values, to.shape(), to.device())?, 0, 0)
}

/// Replaces the elements of a tensor by those of another one; both are contiguous and share no memory.
///
/// # Errors
/// Another number of elements, another type, another device, or a tensor that is not contiguous; the driver's.
pub fn copy_into(to: &Tensor, from: &Tensor) -> Result<()> {
    let fits = to.dtype() == from.dtype() && to.elem_count() == from.elem_count() && to.device().same_device(from.device());
    if !fits || !to.is_contiguous() || !from.is_contiguous() {
        bail!("{from:?} does not replace {to:?}");
    }
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = to.device() {
        let bytes = to.elem_count() * to.dtype().size_in_bytes();
        // SAFETY: both tensors have as many bytes, next to each other.
        return unsafe { cuda::copy(device, Input::new(to)?.pointer(), Input::new(from)?.pointer(), bytes) };
    }
    to.flatten_all()?.slice_set(&from.flatten_all()?, 0, 0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// A row is replaced, and what lies next to it stays.
    pub(in super::super) fn check(device: &Device) -> Result<()> {
        let kept = Tensor::zeros((3, 2), DType::F32, device)?;
        let row = kept.narrow(0, 1, 1)?;
        overwrite(&row, &[1.5f32, -2.0])?;
        copy_into(&kept.narrow(0, 2, 1)?.flatten_all()?, &Tensor::new(&[7f32, 8.0], device)?)?;
        assert_eq!(kept.to_device(&Device::Cpu)?.to_vec2::<f32>()?, [[0.0, 0.0], [1.5, -2.0], [7.0, 8.0]]);
        assert!(overwrite(&row, &[1.0f32]).is_err() && overwrite(&row, &[1u32, 2]).is_err());
        assert!(overwrite(&kept.narrow(1, 0, 1)?, &[1f32, 2.0, 3.0]).is_err());
        assert!(copy_into(&row, &Tensor::new(&[1u32, 2], device)?).is_err());
        Ok(())
    }

    #[test]
    fn a_row_is_replaced_in_place() -> Result<()> {
        check(&Device::Cpu)
    }
}
