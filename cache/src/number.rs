//! Between `f32` and the number formats of a store.

#[cfg(target_endian = "big")]
compile_error!("a store's numbers are little-endian and are read in place: big-endian machines are not supported");

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use sam_ladder_schemas::precompute::StoreDtype;

/// `values` in the stored format, as bytes; the index of the first value that is not finite there is the error.
pub(crate) fn encode(values: &[f32], dtype: StoreDtype) -> Result<Vec<u8>, usize> {
    let mut bytes = vec![0u8; values.len() * dtype.bytes()];
    let finite = match dtype {
        StoreDtype::F32 => {
            bytes.copy_from_slice(bytemuck::cast_slice(values));
            values.iter().position(|value| !value.is_finite())
        }
        StoreDtype::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytes.copy_from_slice(bytemuck::cast_slice(&halves));
            halves.iter().position(|value| !value.is_finite())
        }
        StoreDtype::Bf16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytes.copy_from_slice(bytemuck::cast_slice(&halves));
            halves.iter().position(|value| !value.is_finite())
        }
    };
    finite.map_or(Ok(bytes), Err)
}

/// Stored words (pairs of bytes, so that any format can be kept aligned) to `f32`.
///
/// `words.len()` must be `values.len()` times the format's bytes, halved.
pub(crate) fn decode(words: &[u16], dtype: StoreDtype, values: &mut [f32]) {
    match dtype {
        StoreDtype::F32 => bytemuck::cast_slice_mut::<f32, u16>(values).copy_from_slice(words),
        StoreDtype::F16 => bytemuck::cast_slice::<u16, f16>(words).convert_to_f32_slice(values),
        StoreDtype::Bf16 => bytemuck::cast_slice::<u16, bf16>(words).convert_to_f32_slice(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(values: &[f32], dtype: StoreDtype) -> Vec<f32> {
        let bytes = encode(values, dtype).unwrap();
        assert_eq!(bytes.len(), values.len() * dtype.bytes());
        let words: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let mut out = vec![0.0; values.len()];
        decode(&words, dtype, &mut out);
        out
    }

    #[test]
    fn formats_round_as_ieee_says() {
        let values = [0.0, -1.5, 1.0 + 1.0 / 4096.0, 3.0e-5, 60000.0];
        assert_eq!(round_trip(&values, StoreDtype::F32), values);
        let halves: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
        assert_eq!(round_trip(&values, StoreDtype::F16), halves);
        let brains: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(round_trip(&values, StoreDtype::Bf16), brains);
        assert!(round_trip(&[], StoreDtype::F16).is_empty());
    }

    #[test]
    fn values_beyond_the_format_are_refused() {
        assert_eq!(encode(&[1.0, 70000.0], StoreDtype::F16), Err(1));
        assert!(encode(&[1.0, 70000.0], StoreDtype::Bf16).is_ok());
        assert_eq!(encode(&[f32::NAN], StoreDtype::F32), Err(0));
    }
}
