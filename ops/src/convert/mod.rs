//! Tensors in another number format, one or many at a time.
//!
//! On a GPU it replaces candle's casts, whose kernels would be a module more to load.

mod cuda;

use candle_core::{DType, Result, Tensor, bail};

use half::bf16;

use crate::cpu::activation::convert;
use crate::device::{copy_into, has_kernels};
use crate::dispatch::{Path, path};
use crate::strided_copy::contiguous;

/// The tensor in a number format, without a graph; itself if it has it already.
///
/// # Errors
/// Those of the tensor library.
pub fn to_format(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.detach());
    }
    let between = [x.dtype(), dtype].contains(&DType::F32) && matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
    match path(&[x]) {
        Path::Cuda if between => cuda::convert(&contiguous(&x.detach())?, dtype),
        Path::Cpu if dtype == DType::BF16 => convert::<f32, bf16>(x),
        Path::Cpu if x.dtype() == DType::BF16 && dtype == DType::F32 => convert::<bf16, f32>(x),
        _ => x.detach().to_dtype(dtype),
    }
}

/// Writes each tensor, float32, to the other of its pair, which has as many elements of another number format, the same in all pairs. On a GPU
/// this is one launch for up to 64 pairs.
///
/// # Errors
/// Pairs that do not match, or are not contiguous.
pub fn convert_all(pairs: &[(Tensor, Tensor)]) -> Result<()> {
    let Some((_, first)) = pairs.first() else { return Ok(()) };
    for (from, to) in pairs {
        let fits = from.dtype() == DType::F32 && to.dtype() == first.dtype() && from.elem_count() == to.elem_count();
        if !fits || !from.is_contiguous() || !to.is_contiguous() || !to.device().same_device(from.device()) {
            bail!("convert: {from:?} does not go to {to:?}");
        }
    }
    if has_kernels(first.device()) {
        return cuda::convert_all(pairs, first.dtype());
    }
    pairs.iter().try_for_each(|(from, to)| copy_into(to, &from.to_dtype(to.dtype())?))
}

/// The sum over the second axis, in a number format, without a graph.
///
/// # Shapes
/// `[n, m, ..]`, float32 → `[n, 1, ..]`
///
/// # Errors
/// Fewer than two axes; another type.
pub fn sum_second_axis(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match path(&[x]) {
        Path::Cuda if x.dtype() == DType::F32 => cuda::sum_second_axis(&x.detach().contiguous()?, dtype),
        _ => x.detach().sum_keepdim(1)?.to_dtype(dtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pairs_are_converted_in_place_and_must_match() -> Result<()> {
        let x = Tensor::new(&[1.0f32, 1.0 + 1.0 / 512.0, -3.0], &Device::Cpu)?;
        let to = Tensor::zeros(3, DType::BF16, &Device::Cpu)?;
        convert_all(&[(x.clone(), to.clone())])?;
        // 1 + 2⁻⁹ is halfway between two numbers of bfloat16 and goes to the even one.
        assert_eq!(to.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1.0, 1.0, -3.0]);
        assert!(convert_all(&[(x.narrow(0, 0, 2)?, to.clone())]).is_err());
        assert!(convert_all(&[(to.clone(), to)]).is_err());
        assert_eq!(to_format(&x, DType::F32)?.to_vec1::<f32>()?, x.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn the_second_axis_is_summed() -> Result<()> {
        let x = Tensor::new(&[[[1f32, 2.0], [10.0, 20.0]], [[3.0, 4.0], [30.0, 40.0]]], &Device::Cpu)?;
        assert_eq!(sum_second_axis(&x, DType::F32)?.to_vec3::<f32>()?, [[[11.0, 22.0]], [[33.0, 44.0]]]);
        Ok(())
    }
}
