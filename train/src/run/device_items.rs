//! Training items in a GPU's memory, in the store's number format: a batch is gathered there and converted to the network's format.
//!
//! Items that do not fit are copied with each batch, also in the stored format (half the bytes of float32), while the previous step runs.

use super::gpu::{DeviceStore, budget};
use super::sampler::Item;
use super::tensors::{BatchShape, BatchTensors};
use crate::error::{Result, internal};
use candle_core::{DType, Device, Tensor};
use sam_ladder_cache::{Batch, Reader, Values};
use sam_ladder_ops::device::{Staging, memory};
use sam_ladder_ops::{Stored, as_f32, gather, gather_bytes};
use sam_ladder_schemas::encoder::EMBED_CHANNELS;
use sam_ladder_schemas::observer::Observer;
use sam_ladder_schemas::precompute::StoreDtype;
use std::collections::HashMap;
use std::sync::Arc;

/// Items that are read and copied together when the store is loaded.
const LOAD_ITEMS: usize = 32;

/// The items in a GPU's memory.
pub(crate) struct DeviceItems {
    device: Device,
    /// Index of each resident item.
    places: HashMap<Item, u32>,
    resident: Option<Resident>,
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
    /// Loads as many of `items` as fit, the likeliest first. `None` if the device has no memory apart from the host's.
    ///
    /// # Errors
    /// A part of the store that cannot be read.
    pub(crate) fn load(
        reader: &Reader,
        items: impl FnOnce() -> Vec<Item>,
        (device, wanted, cuda_graph): (&Device, DeviceStore, bool),
        observer: &dyn Observer,
    ) -> Result<Option<Arc<Self>>> {
        let Some(memory) = memory(device)? else { return Ok(None) };
        let items = items();
        let mut on_device = DeviceItems { device: device.clone(), places: HashMap::new(), resident: None };
        let Some(&first) = items.first() else { return Ok(Some(Arc::new(on_device))) };
        let mut batch = Batch::default();
        reader.read_batch(&[first], &mut batch)?;
        let item_bytes = [&batch.embeddings, &batch.images].map(|v| v.bytes().len() + 4 * v.quantization().len());
        let item_bytes = (item_bytes.iter().sum::<usize>() + batch.labels.len()) as u64;
        let room = budget(memory, wanted, cuda_graph);
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

    /// The batch of `items`; `read` holds the items that are [`Self::missing`].
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn tensors(&self, items: &[Item], read: &Batch, shape: BatchShape, staging: &mut Staging) -> Result<BatchTensors> {
        let _span = tracing::trace_span!("gather batch", slices = items.len()).entered();
        let places: Vec<u32> = items.iter().filter_map(|item| self.places.get(item).copied()).collect();
        let missing = items.len() - places.len();
        let resident = match &self.resident {
            Some(resident) if !places.is_empty() => {
                Some(resident.gather(&Tensor::from_slice(&places, places.len(), &self.device)?, shape)?)
            }
            _ => None,
        };
        let staged = if missing > 0 { Some(self.staged(missing, read, shape, staging)?) } else { None };
        let [images, embeddings, labels] = match (resident, staged) {
            (Some(resident), Some(staged)) => {
                // Resident items come first, then the others: restore the order of the items.
                let (mut of_resident, mut of_staged) = (0u32.., places.len() as u32..);
                let order = items.iter().filter_map(|item| match self.places.contains_key(item) {
                    true => of_resident.next(),
                    false => of_staged.next(),
                });
                let order = Tensor::from_vec(order.collect(), items.len(), &self.device)?;
                let [i, e, l] = [0, 1, 2].map(|part| Tensor::cat(&[&resident[part], &staged[part]], 0)?.index_select(&order, 0));
                [i?, e?, l?]
            }
            (Some(parts), None) | (None, Some(parts)) => parts,
            (None, None) => return Err(internal("a batch of no items".into())),
        };
        let BatchShape { image_size: s, channels, .. } = shape;
        let (b, g, low) = (items.len(), shape.grid_size(), shape.low_res_size());
        Ok(BatchTensors {
            images: images.reshape((b, channels, s, s))?,
            embeddings: embeddings.reshape((b, EMBED_CHANNELS, g, g))?,
            labels: labels.reshape((b, low, low))?,
        })
    }

    /// Copies the read items to the device, and decodes them there.
    fn staged(&self, count: usize, read: &Batch, shape: BatchShape, staging: &mut Staging) -> Result<[Tensor; 3]> {
        let pairs = [&read.embeddings, &read.images].map(Values::quantization);
        let quantization: Vec<&[u8]> = pairs.iter().map(|pairs| float_bytes(pairs)).collect();
        let copied =
            staging.upload(&[read.embeddings.bytes(), read.images.bytes(), &read.labels, quantization[0], quantization[1]])?;
        let [embeddings, images, labels, of_embeddings, of_images] = copied.as_slice() else {
            return Err(internal(format!("the copy of a batch has {} parts, expected five", copied.len())));
        };
        let all = Tensor::arange(0, count as u32, &self.device)?;
        let values = |bytes: &Tensor, values: &Values, pairs: &Tensor, channels: usize| -> Result<Tensor> {
            let quantization = match values.dtype() {
                StoreDtype::Q8 => Some(as_f32(pairs, (count, channels, 2))?),
                _ => None,
            };
            let stored = Stored {
                bytes,
                dtype: number_format(values.dtype()),
                item_len: values.len() / count.max(1),
                quantization: quantization.as_ref(),
            };
            Ok(gather(&stored, &all, shape.precision.dtype())?)
        };
        let gathered = [
            values(images, &read.images, of_images, shape.channels)?,
            values(embeddings, &read.embeddings, of_embeddings, EMBED_CHANNELS)?,
            gather_bytes(labels, read.labels.len() / count.max(1), &all)?,
        ];
        staging.consumed()?;
        Ok(gathered)
    }
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

    /// Images, embeddings and labels of some items.
    fn gather(&self, places: &Tensor, shape: BatchShape) -> Result<[Tensor; 3]> {
        let (s, g) = (shape.image_size, shape.grid_size());
        let values = |bytes: &Tensor, item_len: usize, part: usize| -> Result<Tensor> {
            let quantization = self.quantization.as_ref().map(|quantization| &quantization[part]);
            let stored = Stored { bytes, dtype: self.format, item_len, quantization };
            Ok(gather(&stored, places, shape.precision.dtype())?)
        };
        Ok([
            values(&self.images, shape.channels * s * s, 1)?,
            values(&self.embeddings, EMBED_CHANNELS * g * g, 0)?,
            gather_bytes(&self.labels, self.labels.dim(1)?, places)?,
        ])
    }
}
