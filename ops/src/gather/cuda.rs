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
    let out = Gpu::of(stored.bytes).output(dtype, (picks.elem_count(), stored.item_len))?;
    fill(stored, picks, Arg::Pointer(0), out.arg(), dtype)?;
    Ok(out.tensor())
}

/// As [`super::gather_to`].
pub(super) fn gather_to(stored: &Stored<'_>, picks: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
    fill(stored, picks, Input::new(rows)?.arg(), Input::new(out)?.arg(), out.dtype())
}

/// `out` has an item of `dtype` for each row that `rows` names, or if it is null for each pick.
fn fill(stored: &Stored<'_>, picks: &Tensor, rows: Arg<'static>, out: Arg<'static>, dtype: DType) -> Result<()> {
    let (bytes, indices) = (Input::new(stored.bytes)?, Input::new(picks)?);
    let mut args = vec![bytes.arg(), indices.arg(), rows];
    let lens = [Arg::Size(stored.item_len as u64), Arg::Size(stored.item_bytes() as u64)];
    let from = match stored.quantization {
        None => {
            args.push(out);
            suffix(stored.dtype)?
        }
        Some(quantization) => {
            let channels = quantization.dim(1)?;
            args.extend([Input::new(quantization)?.arg(), out, Arg::Int(channels as i32)]);
            "q8"
        }
    };
    args.extend(lens);
    let kernel = format!("gather_{from}_{}", suffix(dtype)?);
    let grid = grid(stored.item_len, picks.elem_count());
    // SAFETY: that each pick names one of the stored items, and each row one of the result's, is the caller's part, as of any index on a GPU.
    unsafe { Gpu::of(stored.bytes).launch(MODULE, &kernel, grid, &args) }
}

/// As [`super::gather_bytes`].
pub(super) fn gather_bytes(stored: &Tensor, item_len: usize, picks: &Tensor) -> Result<Tensor> {
    let out = Gpu::of(stored).output(DType::U8, (picks.elem_count(), item_len))?;
    fill_bytes(stored, item_len, picks, Arg::Pointer(0), out.arg())?;
    Ok(out.tensor())
}

/// As [`super::gather_bytes_to`].
pub(super) fn gather_bytes_to(stored: &Tensor, item_len: usize, picks: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
    fill_bytes(stored, item_len, picks, Input::new(rows)?.arg(), Input::new(out)?.arg())
}

/// As [`fill`], of bytes.
fn fill_bytes(stored: &Tensor, item_len: usize, picks: &Tensor, rows: Arg<'static>, out: Arg<'static>) -> Result<()> {
    let args = [Input::new(stored)?.arg(), Input::new(picks)?.arg(), rows, out, Arg::Size(item_len as u64)];
    // SAFETY: as in `fill`.
    unsafe { Gpu::of(stored).launch(MODULE, "gather_bytes", grid(item_len, picks.elem_count()), &args) }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use crate::testing::kernels::{FORMATS, assert_close, on_device, to_cpu};
    use crate::testing::uniform;

    #[test]
    fn batches_are_gathered_from_every_format() -> Result<()> {
        use crate::{Stored, gather, gather_bytes, gather_bytes_to, gather_to};
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
                    assert_close(&format!("{stored:?} as {dtype:?}"), &got, &want, 0.0)?;
                    // The same in two parts, of which the second fills the rows that the first leaves.
                    let out = Tensor::zeros((4, 3, 101), dtype, device)?;
                    for rows in [[3u32, 0], [1, 2]] {
                        let part: Vec<u32> = rows.iter().map(|&row| picks[row as usize]).collect();
                        let (part, rows) = (Tensor::new(part, device)?, Tensor::new(&rows, device)?);
                        gather_to(&from, &part, &rows, &out)?;
                    }
                    assert_close("by rows", &out.reshape((4, item_len))?, &want, 0.0)
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
            let want = Tensor::from_slice(&want, (4, item_len), &Device::Cpu)?;
            assert_close("8 bits", &gather(&from, &picked, DType::F32)?, &want, 1e-6)?;
            let labels = to_cpu(&gather_bytes(&bytes, 304, &picked)?)?.to_vec2::<f32>()?;
            for (row, &pick) in labels.iter().zip(&picks) {
                assert!(row.iter().zip(&codes[pick as usize * 304..]).all(|(&a, &b)| a == f32::from(b)));
            }
            let turned = Tensor::zeros((4, 304), DType::U8, device)?;
            gather_bytes_to(&bytes, 304, &picked, &Tensor::new(&[3u32, 2, 1, 0], device)?, &turned)?;
            assert_eq!(to_cpu(&turned.get(0)?)?.to_vec1::<f32>()?, labels[3]);
            assert_eq!(to_cpu(&turned.get(3)?)?.to_vec1::<f32>()?, labels[0]);
            let q8 = Tensor::zeros((4, item_len), DType::F32, device)?;
            gather_to(&from, &picked, &Tensor::new(&[1u32, 0, 2, 3], device)?, &q8)?;
            let swapped = Tensor::cat(&[&want.narrow(0, 1, 1)?, &want.narrow(0, 0, 1)?, &want.narrow(0, 2, 2)?], 0)?;
            assert_close("8 bits by rows", &q8, &swapped, 1e-6)
        })
    }
}
