//! Gathers batches from stored numbers in a GPU's memory.

use candle_core::{DType, Result, Tensor};

use super::Stored;
use crate::device::{Arg, Gpu, Grid, Input, THREADS, suffix};

const MODULE: &str = "gather";

/// Blocks over an item and over the picks.
fn grid(item_len: usize, picks: usize) -> Grid {
    Grid::blocks([item_len.div_ceil(THREADS as usize) as u32, picks as u32, 1])
}

/// As [`super::gather`].
pub(super) fn gather(stored: &Stored<'_>, picks: &Tensor, dtype: DType) -> Result<Tensor> {
    let count = picks.elem_count();
    let gpu = Gpu::of(stored.bytes);
    let out = gpu.output(dtype, (count, stored.item_len))?;
    let (bytes, indices) = (Input::new(stored.bytes)?, Input::new(picks)?);
    let mut args = vec![bytes.arg(), indices.arg()];
    let lens = [Arg::Size(stored.item_len as u64), Arg::Size(stored.item_bytes() as u64)];
    let from = match stored.quantization {
        None => {
            args.push(out.arg());
            suffix(stored.dtype)?
        }
        Some(quantization) => {
            let channels = quantization.dim(1)?;
            args.extend([Input::new(quantization)?.arg(), out.arg(), Arg::Int(channels as i32)]);
            "q8"
        }
    };
    args.extend(lens);
    let kernel = format!("gather_{from}_{}", suffix(dtype)?);
    // SAFETY: the result has an item for each pick; that each pick names one of the stored items is the caller's part, as of any index on a GPU.
    unsafe { gpu.launch(MODULE, &kernel, grid(stored.item_len, count), &args)? };
    Ok(out.tensor())
}

/// As [`super::gather_bytes`].
pub(super) fn gather_bytes(stored: &Tensor, item_len: usize, picks: &Tensor) -> Result<Tensor> {
    let count = picks.elem_count();
    let gpu = Gpu::of(stored);
    let out = gpu.output(DType::U8, (count, item_len))?;
    let args = [Input::new(stored)?.arg(), Input::new(picks)?.arg(), out.arg(), Arg::Size(item_len as u64)];
    // SAFETY: as in `gather`.
    unsafe { gpu.launch(MODULE, "gather_bytes", grid(item_len, count), &args)? };
    Ok(out.tensor())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use crate::testing::kernels::{FORMATS, assert_close, on_device, to_cpu};
    use crate::testing::uniform;

    #[test]
    fn batches_are_gathered_from_every_format() -> Result<()> {
        use crate::{Stored, gather, gather_bytes};
        let (items, item_len, channels) = (5, 303, 3);
        let values = uniform(&[items, item_len], 1)?;
        let picks = [3u32, 0, 4, 4];
        let chosen = |t: &Tensor| t.index_select(&Tensor::new(&picks, &Device::Cpu)?, 0);
        for stored in FORMATS {
            let rounded = values.to_dtype(stored)?;
            let bytes: Vec<u8> = match stored {
                DType::F32 => rounded.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
                DType::BF16 => rounded.flatten_all()?.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
                _ => rounded.flatten_all()?.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            for dtype in FORMATS {
                on_device(|device| {
                    let bytes = Tensor::from_slice(&bytes, bytes.len(), device)?;
                    let from = Stored { bytes: &bytes, dtype: stored, item_len, quantization: None };
                    let got = gather(&from, &Tensor::new(&picks, device)?, dtype)?;
                    let want = chosen(&rounded.to_dtype(DType::F32)?)?.to_dtype(dtype)?;
                    assert_close(&format!("{stored:?} as {dtype:?}"), &got, &want, 0.0)
                })?;
            }
        }
        // Items of an odd number of bytes are padded.
        let codes: Vec<u8> = (0..items * (item_len + 1)).map(|i| (i * 37 % 256) as u8).collect();
        let pairs = uniform(&[items, channels, 2], 2)?;
        let pair_values = pairs.flatten_all()?.to_vec1::<f32>()?;
        let want: Vec<f32> = picks
            .iter()
            .flat_map(|&item| {
                let (codes, pair_values) = (&codes, &pair_values);
                (0..item_len).map(move |i| {
                    let pair = (item as usize * channels + i / (item_len / channels)) * 2;
                    pair_values[pair + 1] + pair_values[pair] * f32::from(codes[item as usize * (item_len + 1) + i])
                })
            })
            .collect();
        on_device(|device| {
            let (bytes, pairs) = (Tensor::from_slice(&codes, codes.len(), device)?, pairs.to_device(device)?);
            let from = Stored { bytes: &bytes, dtype: DType::F32, item_len, quantization: Some(&pairs) };
            let picked = Tensor::new(&picks, device)?;
            assert_close(
                "8 bits",
                &gather(&from, &picked, DType::F32)?,
                &Tensor::from_slice(&want, (4, item_len), &Device::Cpu)?,
                1e-6,
            )?;
            let labels = to_cpu(&gather_bytes(&bytes, 304, &picked)?)?.to_vec2::<f32>()?;
            for (row, &pick) in labels.iter().zip(&picks) {
                assert!(row.iter().zip(&codes[pick as usize * 304..]).all(|(&a, &b)| a == f32::from(b)));
            }
            Ok(())
        })
    }
}
