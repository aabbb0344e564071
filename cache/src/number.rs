//! Converts between `f32` and the number formats of a store.

#[cfg(target_endian = "big")]
compile_error!("a store's numbers are little-endian and are read in place: big-endian machines are not supported");

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use sam_ladder_schemas::precompute::StoreDtype;

/// Words that hold `values` numbers of a format.
pub(crate) fn words(values: usize, dtype: StoreDtype) -> usize {
    (values * dtype.bytes()).div_ceil(2)
}

/// `values` in the stored format, as bytes; the error is the index of the first value that is not finite in that format. For 8-bit numbers
/// use [`quantize`], which also returns scales and offsets.
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
        StoreDtype::Q8 => return quantize(values, 1).map(|(bytes, _)| bytes),
    };
    finite.map_or(Ok(bytes), Err)
}

/// Converts stored words (pairs of bytes, so that any format is aligned) to `f32`.
///
/// `words.len()` must be half of `values.len()` times the format's bytes.
pub(crate) fn decode(words: &[u16], dtype: StoreDtype, values: &mut [f32]) {
    match dtype {
        StoreDtype::F32 => bytemuck::cast_slice_mut::<f32, u16>(values).copy_from_slice(words),
        StoreDtype::F16 => bytemuck::cast_slice::<u16, f16>(words).convert_to_f32_slice(values),
        StoreDtype::Bf16 => bytemuck::cast_slice::<u16, bf16>(words).convert_to_f32_slice(values),
        StoreDtype::Q8 => dequantize(words, &[1.0, 0.0], values),
    }
}

/// Largest 8-bit code.
const LEVELS: f32 = 255.0;

/// `values` `[channels, n]` as 8-bit codes, with the scale and offset of each channel, `[channels, 2]`. A value is
/// `offset + scale·code`; the codes 0 and 255 are the channel's least and largest value. The error is the index of the first value that is
/// not finite.
pub(crate) fn quantize(values: &[f32], channels: usize) -> Result<(Vec<u8>, Vec<f32>), usize> {
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(at);
    }
    let mut codes = Vec::with_capacity(values.len());
    let mut quantization = Vec::with_capacity(2 * channels);
    for channel in values.chunks_exact(values.len() / channels) {
        let (least, largest) = channel.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        // Divided first, since the range of finite values may overflow.
        let scale = largest / LEVELS - least / LEVELS;
        let code = |value: f32| if scale > 0.0 { ((value - least) / scale).round_ties_even().min(LEVELS) as u8 } else { 0 };
        codes.extend(channel.iter().map(|&value| code(value)));
        quantization.extend([scale, least]);
    }
    Ok((codes, quantization))
}

/// Inverse of [`quantize`], to float32.
pub(crate) fn dequantize(words: &[u16], quantization: &[f32], values: &mut [f32]) {
    let codes: &[u8] = &bytemuck::cast_slice(words)[..values.len()];
    let channel_len = values.len() / (quantization.len() / 2).max(1);
    for ((values, codes), pair) in
        values.chunks_exact_mut(channel_len).zip(codes.chunks_exact(channel_len)).zip(quantization.chunks_exact(2))
    {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = pair[1] + pair[0] * f32::from(code);
        }
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
    fn eight_bits_keep_a_channel_to_half_a_step() {
        let values = [[-1.0f32, 0.25, 3.0, 1.5], [7.0, 7.0, 7.0, 7.0], [0.0, 1e-3, 2e-3, -4e-3]].concat();
        let (codes, quantization) = quantize(&values, 3).unwrap();
        assert_eq!((codes[0], codes[2], &codes[4..8]), (0, 255, &[0; 4][..]));
        assert_eq!(&quantization[2..4], &[0.0, 7.0]);
        let words: Vec<u16> = codes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let mut out = [0.0; 12];
        dequantize(&words, &quantization, &mut out);
        for (i, (found, expected)) in out.iter().zip(&values).enumerate() {
            assert!((found - expected).abs() <= quantization[i / 4 * 2] * 0.501, "{found} of {expected}");
        }
        assert_eq!(quantize(&[1.0, f32::INFINITY], 1), Err(1));
        assert!(quantize(&[f32::MIN, f32::MAX], 1).unwrap().1[0].is_finite());
    }

    #[test]
    fn values_beyond_the_format_are_refused() {
        assert_eq!(encode(&[1.0, 70000.0], StoreDtype::F16), Err(1));
        assert!(encode(&[1.0, 70000.0], StoreDtype::Bf16).is_ok());
        assert_eq!(encode(&[f32::NAN], StoreDtype::F32), Err(0));
    }
}
