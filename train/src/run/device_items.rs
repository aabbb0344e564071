//! Training items in a GPU's memory, in the store's number format: a batch is gathered there and converted to the network's format.
//!
//! Items that do not fit are copied with each batch, also in the stored format (half the bytes of float32), while the previous step runs.

use super::gpu::{DeviceStore, budget};
use super::read_ahead::ToRead;
use super::sampler::Item;
use super::tensors::{BatchShape, BatchTensors, labels_of};
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
    /// With neighbours, the same for the embeddings, `[6·count]`.
    embedding_picks: Option<Tensor>,
    /// The batch's embeddings, a row for each that is stored: `[count, 256, g, g]`, with neighbours `[3·count, 256, g, g]`.
    embeddings: Tensor,
    /// The batch's rungs with their channels in a row, `[count, rung·c, g, g]`.
    rungs: Option<Tensor>,
}

/// Which of some items go to which rows of a batch, both `[n]`, u32.
#[derive(Clone)]
struct Picks {
    items: Tensor,
    rows: Tensor,
}

/// Where the rows of a batch come from.
struct Picked {
    /// Items in the GPU's memory.
    resident: Picks,
    resident_embeddings: Picks,
    /// Items that are read.
    read: Picks,
    read_embeddings: Picks,
    /// Neighbours that are read; `None` without neighbours.
    read_around: Option<Picks>,
}

impl KeptBatch {
    /// Memory for `count` items.
    pub(super) fn new(count: usize, shape: BatchShape, device: &Device) -> Result<Self> {
        let of = |rows: usize| Tensor::zeros(2 * rows, DType::U32, device);
        let batch = BatchTensors::empty(count, shape, device)?;
        let embeddings = if shape.neighbours { batch.embeddings.flatten(0, 1)? } else { batch.embeddings.clone() };
        let embedding_picks = if shape.neighbours { Some(of(3 * count)?) } else { None };
        let rungs = batch.rungs.as_ref().map(|rungs| rungs.flatten(1, 2)).transpose()?;
        Ok(KeptBatch { batch, shape, picks: of(count)?, embedding_picks, embeddings, rungs })
    }

    /// Whether it is for batches of this size and shape.
    pub(super) fn fits(&self, count: usize, shape: BatchShape) -> bool {
        self.shape == shape && self.picks.elem_count() == 2 * count
    }
}

impl Picks {
    /// Writes what goes where, list after list of items and their rows.
    fn write<const N: usize>(to: &Tensor, lists: [&[(u32, u32)]; N]) -> Result<[Picks; N]> {
        let all = || lists.iter().copied().flatten();
        let numbers: Vec<u32> = all().map(|&(item, _)| item).chain(all().map(|&(_, row)| row)).collect();
        overwrite(to, &numbers)?;
        let (count, mut parts) = (numbers.len() / 2, Vec::with_capacity(N));
        let mut start = 0;
        for list in lists {
            parts.push(Picks { items: to.narrow(0, start, list.len())?, rows: to.narrow(0, count + start, list.len())? });
            start += list.len();
        }
        parts.try_into().map_err(|_| internal("a list of picks is missing".into()))
    }

    fn count(&self) -> usize {
        self.items.elem_count()
    }
}

/// The items of each part of a batch, `[items, bytes]` as u8, with scales and offsets for 8-bit numbers.
struct Resident {
    embeddings: Tensor,
    images: Tensor,
    labels: Tensor,
    /// If the reader has them, and so the rungs.
    half_labels: Option<Tensor>,
    rungs: Option<Tensor>,
    /// `[items, channels, 2]`, of embeddings, images and, if the reader has them, rungs.
    quantization: Option<Vec<Tensor>>,
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
        let values = [&batch.embeddings, &batch.images].into_iter().chain(&batch.rungs);
        let item_bytes = values.map(|values| values.bytes().len() + 4 * values.quantization().len());
        let labels = batch.labels.len() + batch.half_labels.as_ref().map_or(0, Vec::len);
        let item_bytes = (item_bytes.sum::<usize>() + labels) as u64;
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

    /// What of a batch is not resident and must be read, in order.
    pub(super) fn missing(&self, whole: &ToRead) -> ToRead {
        let missing = |items: &[Item]| items.iter().filter(|item| !self.places.contains_key(item)).copied().collect();
        ToRead { items: missing(&whole.items), around: missing(&whole.around) }
    }

    /// Writes the batch of `whole`; `read` holds what is [`Self::missing`].
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn fill(&self, kept: &KeptBatch, whole: &ToRead, read: &Batch, staging: &mut Staging) -> Result<()> {
        let _span = tracing::trace_span!("gather batch", slices = whole.items.len()).entered();
        let picked = self.picked(kept, whole)?;
        let resident = picked.resident.count() + picked.resident_embeddings.count();
        match &self.resident {
            Some(stored) if resident > 0 => stored.gather(&picked, kept)?,
            None if resident > 0 => return Err(internal("items have places in memory that is not there".into())),
            _ => {}
        }
        let around = picked.read_around.as_ref().map_or(0, Picks::count);
        if picked.read.count() + around == 0 { Ok(()) } else { stage(read, &picked, kept, staging) }
    }

    /// Where the rows of a batch come from. Of each item the three embeddings follow one another: before, its own, after.
    fn picked(&self, kept: &KeptBatch, whole: &ToRead) -> Result<Picked> {
        let [resident, missing] = self.places_of(&whole.items, |index| index);
        let [resident, read] = Picks::write(&kept.picks, [&resident, &missing])?;
        let Some(to) = &kept.embedding_picks else {
            let (resident_embeddings, read_embeddings) = (resident.clone(), read.clone());
            return Ok(Picked { resident, resident_embeddings, read, read_embeddings, read_around: None });
        };
        let [mut all, own] = self.places_of(&whole.items, |index| 3 * index + 1);
        let [around, missing] = self.places_of(&whole.around, |index| 3 * (index / 2) + 2 * (index % 2));
        all.extend(around);
        let [resident_embeddings, read_embeddings, read_around] = Picks::write(to, [&all, &own, &missing])?;
        Ok(Picked { resident, resident_embeddings, read, read_embeddings, read_around: Some(read_around) })
    }

    /// The places of those items that are resident, and of the others their numbers in what is read; each with the row that `row` gives for its
    /// index.
    fn places_of(&self, items: &[Item], row: impl Fn(u32) -> u32) -> [Vec<(u32, u32)>; 2] {
        let (mut resident, mut missing) = (Vec::with_capacity(items.len()), Vec::new());
        for (item, index) in items.iter().zip(0u32..) {
            match self.places.get(item) {
                Some(&place) => resident.push((place, row(index))),
                None => missing.push((missing.len() as u32, row(index))),
            }
        }
        [resident, missing]
    }
}

/// Copies what was read to the device, and decodes it into its rows of the batch.
fn stage(read: &Batch, picked: &Picked, kept: &KeptBatch, staging: &mut Staging) -> Result<()> {
    let mut values = vec![&read.embeddings, &read.images];
    let around = picked.read_around.as_ref().map(|picks| (values.len(), picks));
    values.extend(around.map(|_| &read.around));
    if kept.rungs.is_some() && read.rungs.is_none() {
        return Err(internal("a batch was read without the rungs that it takes".into()));
    }
    let rungs = kept.rungs.as_ref().zip(read.rungs.as_ref()).map(|(to, read)| {
        values.push(read);
        (values.len() - 1, to)
    });
    let parts = values.len();
    let bytes = values.iter().map(|values| values.bytes());
    let quantization = values.iter().map(|values| float_bytes(values.quantization()));
    let labels = labels_of(read, kept.shape)?;
    let copied = staging.upload(&bytes.chain(quantization).chain([labels]).collect::<Vec<_>>())?;
    let decode = |part: usize, picks: &Picks, to: &Tensor| -> Result<()> {
        let (values, count) = (values[part], picks.count());
        if count == 0 {
            return Ok(());
        }
        let quantization = match values.dtype() {
            StoreDtype::Q8 => Some(as_f32(&copied[parts + part], (count, to.dim(1)?, 2))?),
            _ => None,
        };
        let (bytes, dtype, item_len) = (&copied[part], number_format(values.dtype()), values.len() / count);
        let stored = Stored { bytes, dtype, item_len, quantization: quantization.as_ref() };
        Ok(gather_to(&stored, &picks.items, &picks.rows, to)?)
    };
    decode(1, &picked.read, &kept.batch.images)?;
    decode(0, &picked.read_embeddings, &kept.embeddings)?;
    if let Some((part, picks)) = around {
        decode(part, picks, &kept.embeddings)?;
    }
    if let Some((part, to)) = rungs {
        decode(part, &picked.read, to)?;
    }
    let Picks { items, rows } = &picked.read;
    if picked.read.count() > 0 {
        gather_bytes_to(&copied[2 * parts], labels.len() / picked.read.count(), items, rows, &kept.batch.labels)?;
    }
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
            half_labels: batch.half_labels.as_ref().map(|labels| bytes(labels.len())).transpose()?,
            rungs: batch.rungs.as_ref().map(|rungs| bytes(rungs.bytes().len())).transpose()?,
            quantization: match batch.images.dtype() {
                StoreDtype::Q8 => {
                    // None without numbers: a GPU's driver allocates nothing of zero bytes.
                    let values = [&batch.embeddings, &batch.images].into_iter().chain(&batch.rungs);
                    Some(values.map(pairs).collect::<candle_core::Result<_>>()?)
                }
                _ => None,
            },
            format: number_format(batch.images.dtype()),
        })
    }

    /// Copies `count` read items to their places, from index `first`.
    fn set(&self, first: usize, count: usize, batch: &Batch, device: &Device) -> Result<()> {
        let parts =
            [(&self.embeddings, batch.embeddings.bytes()), (&self.images, batch.images.bytes()), (&self.labels, &batch.labels)];
        let rungs = self.rungs.as_ref().zip(batch.rungs.as_ref()).map(|(to, from)| (to, from.bytes()));
        let half_labels = self.half_labels.as_ref().zip(batch.half_labels.as_deref());
        for (to, from) in parts.into_iter().chain(rungs).chain(half_labels) {
            to.slice_set(&Tensor::from_slice(from, (count, from.len() / count), device)?, 0, first)?;
        }
        if let Some(quantization) = &self.quantization {
            for (to, from) in quantization.iter().zip([&batch.embeddings, &batch.images].into_iter().chain(&batch.rungs)) {
                let pairs = from.quantization();
                to.slice_set(&Tensor::from_slice(pairs, (count, pairs.len() / count / 2, 2), device)?, 0, first)?;
            }
        }
        Ok(())
    }

    /// Writes some items to their rows of a batch.
    fn gather(&self, picked: &Picked, kept: &KeptBatch) -> Result<()> {
        let images = (&self.images, 1, &picked.resident, &kept.batch.images);
        let embeddings = (&self.embeddings, 0, &picked.resident_embeddings, &kept.embeddings);
        let rungs = self.rungs.as_ref().zip(kept.rungs.as_ref()).map(|(bytes, to)| (bytes, 2, &picked.resident, to));
        for (bytes, part, picks, to) in [images, embeddings].into_iter().chain(rungs) {
            if picks.count() == 0 {
                continue;
            }
            let quantization = self.quantization.as_ref().map(|quantization| &quantization[part]);
            let item_len = to.elem_count() / to.dim(0)?;
            let stored = Stored { bytes, dtype: self.format, item_len, quantization };
            gather_to(&stored, &picks.items, &picks.rows, to)?;
        }
        let Picks { items, rows } = &picked.resident;
        if picked.resident.count() == 0 {
            return Ok(());
        }
        let labels = match (&self.half_labels, kept.shape.takes_half_labels()) {
            (_, false) => &self.labels,
            (Some(half_labels), true) => half_labels,
            (None, true) => return Err(internal("the labels at half the image's side are not in memory".into())),
        };
        Ok(gather_bytes_to(labels, labels.dim(1)?, items, rows, &kept.batch.labels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tensors::batch_tensors;
    use super::*;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};

    /// Items of these rows as a store returns them, with the embeddings of those around: the values count up from the row.
    fn stored(config: &PrecomputeConfig, rows: &[Item], around: &[Item]) -> Batch {
        let of = |rows: &[Item], len: usize| -> Vec<f32> {
            rows.iter().flat_map(|&(row, _)| (0..len).map(move |i| (row * 7) as f32 + (i * 31 % 64) as f32)).collect()
        };
        let batch = Batch::as_stored(config, &of(rows, 256), &of(rows, 256)).unwrap();
        let batch = if around.is_empty() { batch } else { batch.with_around(config, &of(around, 256)).unwrap() };
        let batch = match config.rungs_len() {
            0 => batch,
            len => batch.and_rungs(config, &of(rows, len)).unwrap(),
        };
        let labels = |pixels: usize| rows.iter().flat_map(|&(row, _)| vec![row as u8; pixels]).collect();
        Batch { labels: labels(16), half_labels: config.half_labels.then(|| labels(64)), ..batch }
    }

    #[test]
    fn a_batch_is_the_same_wherever_its_items_are() -> Result<()> {
        let cpu = Device::Cpu;
        for (dtype, neighbours, blocks) in [
            (StoreDtype::F32, false, vec![]),
            (StoreDtype::F16, true, vec![]),
            (StoreDtype::Q8, false, vec![]),
            (StoreDtype::Q8, true, vec![]),
            (StoreDtype::F32, false, vec![2, 5]),
            (StoreDtype::Bf16, true, vec![11]),
            (StoreDtype::Q8, true, vec![2, 5, 8]),
        ] {
            let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
            (config.image_size, config.dtype) = (16, dtype);
            config.half_labels = blocks.len() == 1;
            (config.rungs, config.rung_channels) = (blocks, 7);
            let rungs = config.stored_rungs();
            let logits_stride = if config.half_labels { 2 } else { 4 };
            let shape = BatchShape { logits_stride, neighbours, rungs, ..BatchShape::of(&config) };
            let items = vec![(2, 0), (5, 0), (0, 0)];
            let around = vec![(1, 0), (3, 0), (4, 0), (5, 0), (0, 0), (1, 0)];
            let whole = ToRead { items, around: if neighbours { around } else { Vec::new() } };
            let expected = batch_tensors(&stored(&config, &whole.items, &whole.around), 3, shape, &cpu)?;
            for rows in [vec![], vec![0u32, 1, 2, 3, 4, 5], vec![5, 1], vec![3], vec![0, 2, 5]] {
                let resident: Vec<Item> = rows.iter().map(|&row| (row, 0)).collect();
                let mut on_device = DeviceItems { places: HashMap::new(), resident: None };
                if !resident.is_empty() {
                    let all = stored(&config, &resident, &[]);
                    let memory = Resident::empty(&stored(&config, &resident[..1], &[]), rows.len(), &cpu)?;
                    memory.set(0, rows.len(), &all, &cpu)?;
                    on_device.places.extend(resident.into_iter().zip(0..));
                    on_device.resident = Some(memory);
                }
                let missing = on_device.missing(&whole);
                let read = stored(&config, &missing.items, &missing.around);
                let kept = KeptBatch::new(3, shape, &cpu)?;
                on_device.fill(&kept, &whole, &read, &mut Staging::new(&cpu)?)?;
                assert_eq!(kept.batch.parts().len(), if rungs.is_some() { 4 } else { 3 });
                for (found, expected) in kept.batch.parts().into_iter().zip(expected.parts()) {
                    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                    assert_eq!(found.dims(), expected.dims());
                    assert_eq!(values(found)?, values(expected)?, "{dtype:?}, {rows:?} in memory");
                }
            }
        }
        Ok(())
    }
}
