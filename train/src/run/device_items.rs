//! Training items in a GPU's memory, in the store's number format: a batch is gathered there and converted to the network's format.
//!
//! Items that do not fit are copied with each batch, also in the stored format (half the bytes of float32), while the previous step runs.

use super::gpu::{DeviceStore, budget};
use super::sampler::Item;
use super::tensors::{BatchShape, BatchTensors};
use crate::error::{Result, internal};
use candle_core::{DType, Device, Tensor};
use sam_ladder_cache::{Batch, Reader, Values};
use sam_ladder_ops::device::{Staging, memory, overwrite};
use sam_ladder_ops::{Stored, as_f32, gather_bytes_to, gather_to};
use sam_ladder_schemas::observer::Observer;
use sam_ladder_schemas::precompute::StoreDtype;
use std::collections::HashMap;
use std::sync::Arc;

/// Items that are read and copied together when the store is loaded.
const LOAD_ITEMS: usize = 32;

/// The items in a GPU's memory.
pub(crate) struct DeviceItems {
    /// Index of each resident item.
    places: HashMap<Item, u32>,
    resident: Option<Resident>,
}

/// A batch in memory that stays, so that its steps allocate nothing and a recorded one finds it where it was.
pub(super) struct KeptBatch {
    pub(super) batch: BatchTensors,
    shape: BatchShape,
    /// `[2·count]`, u32: which item goes to which row, first all items, then their rows.
    picks: Tensor,
}

/// Which of some items go to which rows of a batch, both `[n]`, u32.
struct Picks {
    items: Tensor,
    rows: Tensor,
}

impl KeptBatch {
    /// Memory for `count` items.
    pub(super) fn new(count: usize, shape: BatchShape, device: &Device) -> Result<Self> {
        let picks = Tensor::zeros(2 * count, DType::U32, device)?;
        Ok(KeptBatch { batch: BatchTensors::empty(count, shape, device)?, shape, picks })
    }

    /// Whether it is for batches of this size and shape.
    pub(super) fn fits(&self, count: usize, shape: BatchShape) -> bool {
        self.shape == shape && self.picks.elem_count() == 2 * count
    }

    /// Writes what goes where: the resident items, then those that are read.
    fn pick(&self, resident: &[(u32, u32)], read: &[(u32, u32)]) -> Result<[Picks; 2]> {
        let all = || resident.iter().chain(read);
        let numbers: Vec<u32> = all().map(|&(item, _)| item).chain(all().map(|&(_, row)| row)).collect();
        overwrite(&self.picks, &numbers)?;
        let (first, second, count) = (resident.len(), read.len(), resident.len() + read.len());
        let part = |start: usize, len: usize| -> Result<Picks> {
            Ok(Picks { items: self.picks.narrow(0, start, len)?, rows: self.picks.narrow(0, count + start, len)? })
        };
        Ok([part(0, first)?, part(first, second)?])
    }
}

/// The items of each part of a batch, `[items, bytes]` as u8, with scales and offsets for 8-bit numbers.
struct Resident {
    embeddings: Tensor,
    images: Tensor,
    labels: Tensor,
    /// `[items, channels, 2]`
    quantization: Option<[Tensor; 2]>,
    format: DType,
}

impl DeviceItems {
    /// Loads as many of `items` as fit, the likeliest first; [`DeviceStore::Auto`] leaves `reserve` bytes free. `None` if the device has no memory apart from the host's.
    ///
    /// # Errors
    /// A part of the store that cannot be read.
    pub(crate) fn load(
        reader: &Reader,
        items: impl FnOnce() -> Vec<Item>,
        (device, wanted, reserve): (&Device, DeviceStore, u64),
        observer: &dyn Observer,
    ) -> Result<Option<Arc<Self>>> {
        let Some(memory) = memory(device)? else { return Ok(None) };
        let items = items();
        let mut on_device = DeviceItems { places: HashMap::new(), resident: None };
        let Some(&first) = items.first() else { return Ok(Some(Arc::new(on_device))) };
        let mut batch = Batch::default();
        reader.read_batch(&[first], &mut batch)?;
        let item_bytes = [&batch.embeddings, &batch.images].map(|v| v.bytes().len() + 4 * v.quantization().len());
        let item_bytes = (item_bytes.iter().sum::<usize>() + batch.labels.len()) as u64;
        let room = budget(memory, wanted, reserve);
        let count = items.len().min((room / item_bytes) as usize).min(u32::MAX as usize);
        observer.message(&report(items.len(), count, item_bytes, room, wanted));
        if count > 0 {
            on_device.resident = Some(Resident::empty(&batch, count, device)?);
        }
        for (chunk_index, chunk) in items[..count].chunks(LOAD_ITEMS).enumerate() {
            reader.read_batch(chunk, &mut batch)?;
            if let Some(resident) = &on_device.resident {
                resident.set(chunk_index * LOAD_ITEMS, chunk.len(), &batch, device)?;
            }
            on_device.places.extend(chunk.iter().enumerate().map(|(i, &item)| (item, (chunk_index * LOAD_ITEMS + i) as u32)));
        }
        Ok(Some(Arc::new(on_device)))
    }

    /// The items that are not resident and must be read, in order.
    pub(super) fn missing(&self, items: &[Item]) -> Vec<Item> {
        items.iter().filter(|item| !self.places.contains_key(item)).copied().collect()
    }

    /// Writes the batch of `items`; `read` holds the items that are [`Self::missing`].
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn fill(&self, kept: &KeptBatch, items: &[Item], read: &Batch, staging: &mut Staging) -> Result<()> {
        let _span = tracing::trace_span!("gather batch", slices = items.len()).entered();
        let (mut resident, mut missing) = (Vec::with_capacity(items.len()), Vec::new());
        for (item, row) in items.iter().zip(0u32..) {
            match self.places.get(item) {
                Some(&place) => resident.push((place, row)),
                None => missing.push((missing.len() as u32, row)),
            }
        }
        let [of_resident, of_missing] = kept.pick(&resident, &missing)?;
        match &self.resident {
            Some(stored) if !resident.is_empty() => stored.gather(&of_resident, &kept.batch)?,
            None if !resident.is_empty() => return Err(internal("items have places in memory that is not there".into())),
            _ => {}
        }
        if missing.is_empty() { Ok(()) } else { stage(missing.len(), read, &of_missing, &kept.batch, staging) }
    }
}

/// Copies the read items to the device, and decodes them into their rows of `batch`.
fn stage(count: usize, read: &Batch, picks: &Picks, batch: &BatchTensors, staging: &mut Staging) -> Result<()> {
    let pairs = [&read.embeddings, &read.images].map(Values::quantization);
    let quantization: Vec<&[u8]> = pairs.iter().map(|pairs| float_bytes(pairs)).collect();
    let copied =
        staging.upload(&[read.embeddings.bytes(), read.images.bytes(), &read.labels, quantization[0], quantization[1]])?;
    let [embeddings, images, labels, of_embeddings, of_images] = copied.as_slice() else {
        return Err(internal(format!("the copy of a batch has {} parts, expected five", copied.len())));
    };
    let decode = |bytes: &Tensor, values: &Values, pairs: &Tensor, to: &Tensor| -> Result<()> {
        let quantization = match values.dtype() {
            StoreDtype::Q8 => Some(as_f32(pairs, (count, to.dim(1)?, 2))?),
            _ => None,
        };
        let item_len = values.len() / count.max(1);
        let stored = Stored { bytes, dtype: number_format(values.dtype()), item_len, quantization: quantization.as_ref() };
        Ok(gather_to(&stored, &picks.items, &picks.rows, to)?)
    };
    decode(images, &read.images, of_images, &batch.images)?;
    decode(embeddings, &read.embeddings, of_embeddings, &batch.embeddings)?;
    gather_bytes_to(labels, read.labels.len() / count.max(1), &picks.items, &picks.rows, &batch.labels)?;
    Ok(staging.consumed()?)
}

/// The message at the start of a run.
fn report(items: usize, count: usize, item_bytes: u64, room: u64, wanted: DeviceStore) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let all = format!("{items} training items, {:.2} GiB", gib(items as u64 * item_bytes));
    match (count, wanted) {
        (_, DeviceStore::Off) => format!("{all}: read batch by batch (--device-store off)"),
        (0, _) => format!("{all}: read batch by batch, {:.2} GiB of the GPU's memory is free for them", gib(room)),
        (count, _) if count == items => format!("{all}: all in the GPU's memory"),
        (count, _) => format!(
            "{all}: {count} in the GPU's memory, {:.2} GiB; the others are read batch by batch",
            gib(count as u64 * item_bytes)
        ),
    }
}

fn number_format(dtype: StoreDtype) -> DType {
    match dtype {
        StoreDtype::F16 | StoreDtype::Q8 => DType::F16,
        StoreDtype::Bf16 => DType::BF16,
        StoreDtype::F32 => DType::F32,
    }
}

fn float_bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

impl Resident {
    /// Room for `count` items like the one of `batch`.
    fn empty(batch: &Batch, count: usize, device: &Device) -> Result<Self> {
        let bytes = |len: usize| Tensor::zeros((count, len), DType::U8, device);
        let pairs = |values: &Values| Tensor::zeros((count, values.quantization().len() / 2, 2), DType::F32, device);
        Ok(Resident {
            embeddings: bytes(batch.embeddings.bytes().len())?,
            images: bytes(batch.images.bytes().len())?,
            labels: bytes(batch.labels.len())?,
            quantization: match batch.images.dtype() {
                StoreDtype::Q8 => Some([pairs(&batch.embeddings)?, pairs(&batch.images)?]),
                _ => None,
            },
            format: number_format(batch.images.dtype()),
        })
    }

    /// Copies `count` read items to their places, from index `first`.
    fn set(&self, first: usize, count: usize, batch: &Batch, device: &Device) -> Result<()> {
        let parts =
            [(&self.embeddings, batch.embeddings.bytes()), (&self.images, batch.images.bytes()), (&self.labels, &batch.labels)];
        for (to, from) in parts {
            to.slice_set(&Tensor::from_slice(from, (count, from.len() / count), device)?, 0, first)?;
        }
        if let Some(quantization) = &self.quantization {
            for (to, from) in quantization.iter().zip([&batch.embeddings, &batch.images]) {
                let pairs = from.quantization();
                to.slice_set(&Tensor::from_slice(pairs, (count, pairs.len() / count / 2, 2), device)?, 0, first)?;
            }
        }
        Ok(())
    }

    /// Writes some items to their rows of a batch.
    fn gather(&self, picks: &Picks, batch: &BatchTensors) -> Result<()> {
        for (bytes, part, to) in [(&self.images, 1, &batch.images), (&self.embeddings, 0, &batch.embeddings)] {
            let quantization = self.quantization.as_ref().map(|quantization| &quantization[part]);
            let item_len = to.elem_count() / to.dim(0)?;
            let stored = Stored { bytes, dtype: self.format, item_len, quantization };
            gather_to(&stored, &picks.items, &picks.rows, to)?;
        }
        Ok(gather_bytes_to(&self.labels, self.labels.dim(1)?, &picks.items, &picks.rows, &batch.labels)?)
    }
}
