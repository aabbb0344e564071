//! The copies of [`super`] on a CUDA device.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};

use crate::device::memory::Output;

/// Parts of a copy start at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// Two buffers and the stream that fills them.
pub(crate) struct Copier {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    slots: [Option<Slot>; 2],
    next: usize,
}

/// Memory on both sides of a copy.
struct Slot {
    pinned: PinnedHostSlice<u8>,
    /// `[capacity]`, of which the parts are views.
    memory: Tensor,
    address: u64,
    /// Recorded when the copy is done: then the pinned side may be written.
    copied: CudaEvent,
    /// Recorded after all work that reads the device's side: then that side may be written.
    consumed: CudaEvent,
}

impl Copier {
    /// `None` if the device is not a GPU.
    pub(crate) fn new(device: &Device) -> Result<Option<Self>> {
        let Device::Cuda(device) = device else { return Ok(None) };
        let stream = device.cuda_stream().context().new_stream().w()?;
        Ok(Some(Self { device: device.clone(), stream, slots: [None, None], next: 0 }))
    }

    /// As [`super::Staging::upload`].
    pub(crate) fn upload(&mut self, parts: &[&[u8]]) -> Result<Vec<Tensor>> {
        let compute = self.device.cuda_stream();
        let mut starts = Vec::with_capacity(parts.len());
        let mut total = 0;
        for part in parts {
            starts.push(total);
            total += part.len().next_multiple_of(ALIGNMENT);
        }
        // Both at once: what is allocated later could be filled only after all work that is queued by then.
        for slot in &mut self.slots {
            if slot.as_ref().is_none_or(|slot| slot.memory.elem_count() < total) {
                if let Some(old) = slot.take() {
                    old.consumed.synchronize().w()?;
                    old.copied.synchronize().w()?;
                }
                *slot = Some(Slot::new(&self.device, &compute, total.max(1))?);
            }
        }
        self.next = 1 - self.next;
        let Some(slot) = &mut self.slots[self.next] else { bail!("no buffer for a copy") };
        // This thread writes the pinned side: wait until the copy from two uploads ago is done.
        slot.copied.synchronize().w()?;
        let pinned = slot.pinned.as_mut_slice().w()?;
        for (part, &start) in parts.iter().zip(&starts) {
            pinned[start..start + part.len()].copy_from_slice(part);
        }
        self.stream.wait(&slot.consumed).w()?;
        // SAFETY: the device's side is as long as the pinned one and is neither read nor written by other work in flight, for which the stream
        // now waits; the pinned side stays until `copied` has passed.
        unsafe { result::memcpy_htod_async(slot.address, &pinned[..total], self.stream.cu_stream()) }.w()?;
        slot.copied.record(&self.stream).w()?;
        compute.wait(&slot.copied).w()?;
        parts.iter().zip(&starts).map(|(part, &start)| slot.memory.narrow(0, start, part.len())).collect()
    }

    /// As [`super::Staging::upload_f32`].
    pub(crate) fn upload_f32(&mut self, values: &[f32], shape: Shape) -> Result<Tensor> {
        if shape.elem_count() != values.len() {
            bail!("{} numbers to copy do not fill {shape:?}", values.len());
        }
        // SAFETY: every byte of a number may be read as one.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.upload(&[bytes])?;
        let Some(slot) = &self.slots[self.next] else { bail!("no buffer for a copy") };
        let out = Output::unwritten(&Device::Cuda(self.device.clone()), DType::F32, shape)?;
        let compute = self.device.cuda_stream();
        // SAFETY: both sides are at least as long; the stream waits for the upload (`upload`), and later uploads into the slot for `consumed`.
        unsafe { result::memcpy_dtod_async(out.pointer(), slot.address, bytes.len(), compute.cu_stream()) }.w()?;
        self.consumed()?;
        Ok(out.tensor())
    }

    /// As [`super::Staging::consumed`].
    pub(crate) fn consumed(&mut self) -> Result<()> {
        if let Some(slot) = &self.slots[self.next] {
            slot.consumed.record(&self.device.cuda_stream()).w()?;
        }
        Ok(())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        // The pinned memory must outlive the copies from it; an error cannot be reported here.
        let _ = self.stream.synchronize();
    }
}

impl Slot {
    fn new(device: &CudaDevice, compute: &CudaStream, capacity: usize) -> Result<Self> {
        let context = compute.context();
        let slice: CudaSlice<u8> = device.alloc_zeros::<u8>(capacity)?;
        let address = slice.device_ptr(compute).0;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
        let memory = Tensor::from_storage(storage, capacity, BackpropOp::none(), false);
        // SAFETY: the bytes of a copy are written before it starts; what lies between the parts is never looked at.
        let pinned = unsafe { context.alloc_pinned::<u8>(capacity) }.w()?;
        let (copied, consumed) = (context.new_event(None).w()?, context.new_event(None).w()?);
        // The memory was allocated on the compute stream, so copies to it must come after that. Nothing is copied yet, so `copied` is not recorded:
        // waiting for it would wait for all work that is queued.
        consumed.record(compute).w()?;
        Ok(Self { pinned, memory, address, copied, consumed })
    }
}
