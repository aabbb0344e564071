//! Launches `gather.cu`.

use candle_core::{DType, Result, Tensor, bail};

use crate::device::{Arg, Gpu, Grid, Input, THREADS, suffix};
use crate::gather::Stored;

const MODULE: &str = "gather";

/// Blocks over an item and over the picks.
fn grid(item_len: usize, picks: usize) -> Grid {
    Grid::blocks([item_len.div_ceil(THREADS as usize) as u32, picks as u32, 1])
}

/// As [`crate::gather::gather`].
pub(crate) fn gather(stored: &Stored<'_>, picks: &Tensor, dtype: DType) -> Result<Tensor> {
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
            let (items, channels, two) = quantization.dims3()?;
            if two != 2 || channels == 0 || !stored.item_len.is_multiple_of(channels) {
                bail!("gather: quantization of {:?} does not fit items of {} values", (items, channels, two), stored.item_len);
            }
            args.extend([Input::new(quantization)?.arg(), out.arg(), Arg::Int(channels as i32)]);
            "q8"
        }
    };
    args.extend(lens);
    gpu.launch(MODULE, &format!("gather_{from}_{}", suffix(dtype)?), grid(stored.item_len, count), &args)?;
    Ok(out.tensor())
}

/// As [`crate::gather::gather_bytes`].
pub(crate) fn gather_bytes(stored: &Tensor, item_len: usize, picks: &Tensor) -> Result<Tensor> {
    let count = picks.elem_count();
    let gpu = Gpu::of(stored);
    let out = gpu.output(DType::U8, (count, item_len))?;
    let args = [Input::new(stored)?.arg(), Input::new(picks)?.arg(), out.arg(), Arg::Size(item_len as u64)];
    gpu.launch(MODULE, "gather_bytes", grid(item_len, count), &args)?;
    Ok(out.tensor())
}
