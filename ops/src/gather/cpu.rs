//! Gathers batches from stored numbers in the host's memory.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::Stored;

/// As [`super::gather`], as float32.
pub(super) fn gather(stored: &Stored<'_>, picks: &Tensor) -> Result<Tensor> {
    let picks = picks.to_vec1::<u32>()?;
    let bytes = stored.bytes.flatten_all()?.to_vec1::<u8>()?;
    let mut values = Vec::with_capacity(picks.len() * stored.item_len);
    for &pick in &picks {
        let item = item(&bytes, pick, stored.item_bytes())?;
        match (stored.quantization, stored.dtype) {
            (Some(quantization), _) => {
                let pairs = quantization.get(pick as usize)?.to_vec2::<f32>()?; // [channels, 2]
                let codes = item[..stored.item_len].chunks_exact(stored.item_len / pairs.len());
                for (codes, pair) in codes.zip(&pairs) {
                    values.extend(codes.iter().map(|&code| pair[1] + pair[0] * f32::from(code)));
                }
            }
            (None, DType::F32) => values.extend(item.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
            (None, DType::BF16) => {
                values.extend(pairs_of(item, stored.item_len).map(|bytes| bf16::from_le_bytes(bytes).to_f32()))
            }
            (None, DType::F16) => values.extend(pairs_of(item, stored.item_len).map(|bytes| f16::from_le_bytes(bytes).to_f32())),
            (None, other) => bail!("gather: expected float32, bfloat16 or float16, found {other:?}"),
        }
    }
    Tensor::from_vec(values, (picks.len(), stored.item_len), &Device::Cpu)
}

/// As [`super::gather_bytes`].
pub(super) fn gather_bytes(stored: &Tensor, item_len: usize, picks: &Tensor) -> Result<Tensor> {
    let picks = picks.to_vec1::<u32>()?;
    let bytes = stored.flatten_all()?.to_vec1::<u8>()?;
    let mut out = Vec::with_capacity(picks.len() * item_len);
    for &pick in &picks {
        out.extend_from_slice(item(&bytes, pick, item_len)?);
    }
    Tensor::from_vec(out, (picks.len(), item_len), &Device::Cpu)
}

/// Copies each row of `values` `[n, item_len]` to the row of `out` that `rows` names.
pub(super) fn set_rows(values: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
    let table = out.reshape((out.dim(0)?, values.dim(1)?))?;
    for (i, row) in rows.to_vec1::<u32>()?.into_iter().enumerate() {
        table.slice_set(&values.narrow(0, i, 1)?, 0, row as usize)?;
    }
    Ok(())
}

/// The bytes of an item.
fn item(bytes: &[u8], pick: u32, len: usize) -> Result<&[u8]> {
    let start = pick as usize * len;
    match bytes.get(start..start + len) {
        Some(item) => Ok(item),
        None => bail!("gather: item {pick} of {len} bytes is not among {} bytes", bytes.len()),
    }
}

/// The first `len` pairs of bytes.
fn pairs_of(item: &[u8], len: usize) -> impl Iterator<Item = [u8; 2]> {
    item.as_chunks().0.iter().take(len).copied()
}
