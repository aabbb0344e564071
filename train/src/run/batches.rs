//! Sources of batches: a store that is read batch by batch or kept in the host's memory (the [`Reader`] knows which), or a GPU's memory.

use super::device_items::DeviceItems;
use super::read_ahead::ReadAhead;
use super::sampler::Item;
use super::tensors::{BatchShape, BatchTensors, batch_tensors};
use crate::error::Result;
use candle_core::Device;
use sam_ladder_cache::Reader;
use sam_ladder_ops::device::Staging;
use std::sync::Arc;

/// Makes batches.
pub(crate) struct BatchSource {
    reader: Arc<Reader>,
    device: Device,
    /// On a GPU: the items in its memory, and the staging buffers for the others.
    on_device: Option<(Arc<DeviceItems>, Staging)>,
}

impl BatchSource {
    /// Batches for models on `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn new(reader: Arc<Reader>, device: &Device, items: Option<Arc<DeviceItems>>) -> Result<Self> {
        let on_device = match items {
            Some(items) => Some((items, Staging::new(device)?)),
            None => None,
        };
        Ok(BatchSource { reader, device: device.clone(), on_device })
    }

    /// The batches of `plan`, in order. While one is processed, the next is read.
    pub(crate) fn batches(&mut self, plan: Vec<Vec<Item>>, shape: BatchShape) -> impl Iterator<Item = Result<BatchTensors>> {
        // Items in the GPU's memory are not read.
        let to_read = match &self.on_device {
            Some((on_device, _)) => plan.iter().map(|items| on_device.missing(items)).collect(),
            None => plan.clone(),
        };
        let mut ahead = ReadAhead::start(&self.reader, to_read);
        plan.into_iter().map(move |items| {
            let read = ahead.next_batch()?;
            let tensors = match &mut self.on_device {
                Some((on_device, staging)) => on_device.tensors(&items, &read, shape, staging),
                None => batch_tensors(&read, items.len(), shape, &self.device),
            };
            ahead.give_back(read);
            tensors
        })
    }
}
