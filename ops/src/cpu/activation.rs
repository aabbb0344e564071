//! Number formats of activations on the CPU: float32, and bfloat16, which is computed in float32 and rounded when it is written.

use candle_core::{Result, Tensor, WithDType};
use half::bf16;
use rayon::prelude::*;

use super::{CHUNK, filled_vec, tensor_from, with_numbers, with_scratch};
use crate::cpu::simd::multiversion;

/// A number of an activation: at most four bytes, any of whose bits are a number.
pub(crate) trait Activation: WithDType {
    /// Its value.
    fn value(self) -> f32;

    /// The nearest number, ties to even. NaN stays NaN.
    fn nearest(value: f32) -> Self;

    /// The numbers themselves, if this is float32.
    fn floats(numbers: &[Self]) -> Option<&[f32]>;

    /// As [`Self::floats`], for writing.
    fn floats_mut(numbers: &mut [Self]) -> Option<&mut [f32]>;

    /// Calls `f` with `out` itself if it is float32, otherwise with `room`, which is as long and is rounded to `out` afterwards.
    fn write_by(out: &mut [Self], room: &mut [f32], f: impl FnOnce(&mut [f32]));
}

impl Activation for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }

    fn floats(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }

    fn floats_mut(numbers: &mut [Self]) -> Option<&mut [f32]> {
        Some(numbers)
    }

    fn write_by(out: &mut [Self], _: &mut [f32], f: impl FnOnce(&mut [f32])) {
        f(out);
    }
}

impl Activation for bf16 {
    #[inline(always)]
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without branches, so that loops over it become vector code.
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        let bits = value.to_bits();
        let even = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        // A NaN whose payload is in the lower half must not become an infinity.
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { even } as u16)
    }

    fn floats(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn floats_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    fn write_by(out: &mut [Self], room: &mut [f32], f: impl FnOnce(&mut [f32])) {
        f(room);
        convert_run(room, out);
    }
}

/// Calls a function in the number format of a tensor: bfloat16, or float32.
macro_rules! in_format {
    ($x:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $x.dtype() {
            candle_core::DType::BF16 => $f::<half::bf16>($($arg),*),
            _ => $f::<f32>($($arg),*),
        }
    };
}
pub(crate) use in_format;

multiversion! {
    /// Each number in another format.
    pub(crate) fn convert_run<T: Activation, U: Activation>(from: &[T], to: &mut [U]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = U::nearest(from.value());
        }
    }
}

multiversion! {
    /// Each number times a factor.
    pub(crate) fn write_scaled<T: Activation>(from: &[f32], factor: f32, to: &mut [T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::nearest(from * factor);
        }
    }
}

/// The tensor in another of these formats.
pub(crate) fn convert<T: Activation, U: Activation>(x: &Tensor) -> Result<Tensor> {
    with_numbers(x, "convert", |from: &[T]| {
        // SAFETY: the runs are all elements.
        let data = unsafe {
            filled_vec::<U>(from.len(), |out| {
                from.par_chunks(CHUNK).enumerate().for_each(|(i, from)| convert_run(from, out.slice(i * CHUNK, from.len())));
            })
        };
        tensor_from(data, x.shape())
    })
}

/// As [`with_scratch`], in this format.
pub(crate) fn with_scratch_of<T: Activation, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    with_scratch((len * size_of::<T>()).div_ceil(size_of::<f32>()), |floats| {
        // SAFETY: as many bytes, whose alignment is at least this format's; any bits are a number; the borrow is exclusive.
        f(unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), len) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_is_rounded_to_the_nearest_and_ties_to_even() {
        let values =
            (0..=u16::MAX).flat_map(|high| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| u32::from(high) << 16 | low));
        for value in values.map(f32::from_bits) {
            let (found, expected) = (<bf16 as Activation>::nearest(value), bf16::from_f32(value));
            assert_eq!(found.to_bits(), expected.to_bits(), "{value:e}");
            assert_eq!(found.value().to_bits(), found.to_f32().to_bits());
        }
    }

    #[test]
    fn tensors_change_their_format() -> Result<()> {
        let numbers: Vec<f32> = (0..CHUNK + 8).map(|i| i as f32 * 0.37 - 1e3).collect();
        let x = tensor_from(numbers.clone(), (numbers.len() / 8, 8))?;
        let narrow = convert::<f32, bf16>(&x)?;
        assert_eq!(narrow.dims(), x.dims());
        let expected: Vec<f32> = numbers.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(convert::<bf16, f32>(&narrow)?.flatten_all()?.to_vec1::<f32>()?, expected);
        Ok(())
    }
}
