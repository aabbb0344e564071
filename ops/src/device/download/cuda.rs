//! The copies of [`super`] from a CUDA device.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result, sys};
use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use crate::device::memory::Input;

/// Buffers that no copy uses.
type Free = Arc<Mutex<Vec<Buffer>>>;

/// The stream that copies, and its buffers.
pub(crate) struct Copier {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    free: Free,
}

/// The host's side of a copy.
struct Buffer {
    pinned: PinnedHostSlice<f32>,
    /// Recorded when the numbers are made: then the copy may begin.
    made: CudaEvent,
    /// Recorded when the copy is done.
    copied: CudaEvent,
}

/// A copy under way.
pub(crate) struct Pending {
    /// Freed only when the copy is done: nothing else keeps this memory from being used again.
    source: Tensor,
    /// `None` once it is given back.
    buffer: Option<Buffer>,
    free: Free,
}

impl Copier {
    /// `None` if the device is not a GPU.
    pub(crate) fn new(device: &Device) -> Result<Option<Self>> {
        let Device::Cuda(device) = device else { return Ok(None) };
        let stream = device.cuda_stream().context().new_stream().w()?;
        Ok(Some(Self { device: device.clone(), stream, free: Free::default() }))
    }

    /// As [`super::Downloads::begin`].
    pub(crate) fn begin(&self, tensor: &Tensor) -> Result<Pending> {
        if tensor.dtype() != DType::F32 {
            bail!("expected float32 to copy to the host, found {:?}", tensor.dtype());
        }
        let source = tensor.contiguous()?;
        let compute = self.device.cuda_stream();
        let mut buffer = self.buffer(source.elem_count())?;
        buffer.made.record(&compute).w()?;
        self.stream.wait(&buffer.made).w()?;
        let queued = self.queue(&source, &mut buffer);
        if queued.is_err() {
            // The copy may be under way, and both of its sides are freed now.
            let _ = self.stream.synchronize();
        }
        queued?;
        Ok(Pending { source, buffer: Some(buffer), free: self.free.clone() })
    }

    fn queue(&self, source: &Tensor, buffer: &mut Buffer) -> Result<()> {
        let address = Input::new(source)?.pointer();
        let pinned = buffer.pinned.as_mut_slice().w()?;
        // SAFETY: both sides are at least as long as the tensor; the stream waits until it is made. `Pending` holds both sides until the copy is done.
        unsafe { result::memcpy_dtoh_async(&mut pinned[..source.elem_count()], address, self.stream.cu_stream()) }.w()?;
        buffer.copied.record(&self.stream).w()
    }

    /// A free buffer for `len` numbers, or a new one.
    fn buffer(&self, len: usize) -> Result<Buffer> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = free.iter().position(|buffer| buffer.pinned.len() >= len) {
            return Ok(free.swap_remove(index));
        }
        // Those are too small.
        free.clear();
        let context = self.device.cuda_stream().context().clone();
        // Cached, which cudarc's default is not: the host reads it. While it waits, its thread sleeps.
        // SAFETY: only what a copy has written is read.
        let pinned = unsafe { context.alloc_pinned_with_flags::<f32>(len.max(1), 0) }.w()?;
        let copied = context.new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)).w()?;
        Ok(Buffer { pinned, made: context.new_event(None).w()?, copied })
    }
}

impl Pending {
    /// As [`super::Download::wait`].
    pub(crate) fn wait(mut self) -> Result<Vec<f32>> {
        let Some(buffer) = self.buffer.take() else { bail!("a copy to the host was waited for twice") };
        let values = buffer.read(self.source.elem_count());
        match &values {
            Ok(_) => self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer),
            // The device is lost: nothing more is copied.
            Err(_) => drop(buffer),
        }
        values
    }
}

impl Buffer {
    fn read(&self, len: usize) -> Result<Vec<f32>> {
        self.copied.synchronize().w()?;
        Ok(self.pinned.as_slice().w()?[..len].to_vec())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Both sides must outlive the copy; an error cannot be reported here.
        if let Some(buffer) = &self.buffer {
            let _ = buffer.copied.synchronize();
        }
    }
}
