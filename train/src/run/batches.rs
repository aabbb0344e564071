//! Sources of batches: a store that is read batch by batch or kept in the host's memory (the [`Reader`] knows which), or a GPU's memory.

use super::device_items::{DeviceItems, KeptBatch};
use super::read_ahead::{ReadAhead, ToRead};
use super::sampler::Item;
use super::tensors::{BatchShape, BatchTensors, batch_tensors};
use crate::error::Result;
use candle_core::Device;
use sam_ladder_cache::{Batch, Reader};
use sam_ladder_ops::device::Staging;
use std::sync::Arc;

/// Makes batches.
pub(crate) struct BatchSource {
    reader: Arc<Reader>,
    device: Device,
    on_device: Option<OnDevice>,
}

/// On a GPU: the items in its memory, the staging buffers for the others, and the batches' memory, one of each size.
struct OnDevice {
    items: Arc<DeviceItems>,
    staging: Staging,
    kept: Vec<KeptBatch>,
    device: Device,
}

impl BatchSource {
    /// Batches for models on `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn new(reader: Arc<Reader>, device: &Device, items: Option<Arc<DeviceItems>>) -> Result<Self> {
        let on_device = match items {
            Some(items) => Some(OnDevice { items, staging: Staging::new(device)?, kept: Vec::new(), device: device.clone() }),
            None => None,
        };
        Ok(BatchSource { reader, device: device.clone(), on_device })
    }

    /// The batches of `plan`, in order. While one is processed, the next is read. On a GPU each has the memory of the one before of its size:
    /// what is queued for the device before the next batch is asked for still sees its own.
    pub(crate) fn batches(&mut self, plan: Vec<Vec<Item>>, shape: BatchShape) -> impl Iterator<Item = Result<BatchTensors>> {
        let plan: Vec<ToRead> = plan.into_iter().map(|items| self.whole(items, shape)).collect();
        // Items in the GPU's memory are not read.
        let to_read = match &self.on_device {
            Some(OnDevice { items: resident, .. }) => plan.iter().map(|batch| resident.missing(batch)).collect(),
            None => plan.clone(),
        };
        let mut ahead = ReadAhead::start(&self.reader, to_read);
        plan.into_iter().map(move |batch| {
            let read = ahead.next_batch()?;
            let tensors = match &mut self.on_device {
                Some(on_device) => on_device.batch(&batch, &read, shape),
                None => batch_tensors(&read, batch.items.len(), shape, &self.device),
            };
            ahead.give_back(read);
            tensors
        })
    }

    /// All that a batch is made of: its items, and for a model with neighbours those before and after each, in the same variant.
    fn whole(&self, items: Vec<Item>, shape: BatchShape) -> ToRead {
        let neighbours = |&(row, variant): &Item| self.reader.around(row).map(|row| (row, variant));
        let around = if shape.neighbours { items.iter().flat_map(neighbours).collect() } else { Vec::new() };
        ToRead { items, around }
    }
}

impl OnDevice {
    /// The batch of `whole`, of which `read` holds what is not resident.
    fn batch(&mut self, whole: &ToRead, read: &Batch, shape: BatchShape) -> Result<BatchTensors> {
        let count = whole.items.len();
        let index = match self.kept.iter().position(|kept| kept.fits(count, shape)) {
            Some(index) => index,
            None => {
                self.kept.push(KeptBatch::new(count, shape, &self.device)?);
                self.kept.len() - 1
            }
        };
        let kept = &self.kept[index];
        self.items.fill(kept, whole, read, &mut self.staging)?;
        Ok(kept.batch.clone())
    }
}
