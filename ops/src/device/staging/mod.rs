//! Copies to a GPU that overlap with its work: from pinned memory, on a separate stream, into one of two buffers.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result, Shape, Tensor};

/// Two alternating buffers. The result of [`Self::upload`] is valid until the second call after it.
pub struct Staging {
    device: Device,
    #[cfg(feature = "cuda")]
    copier: Option<cuda::Copier>,
}

impl Staging {
    /// For a device; on the CPU, copies are plain.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            copier: cuda::Copier::new(device)?,
        })
    }

    /// Starts copying; each part becomes a u8 tensor, which is complete for later work on the device. Waits for the device only if it is two
    /// copies behind.
    ///
    /// # Errors
    /// The driver's.
    pub fn upload(&mut self, parts: &[&[u8]]) -> Result<Vec<Tensor>> {
        #[cfg(feature = "cuda")]
        if let Some(copier) = &mut self.copier {
            return copier.upload(parts);
        }
        parts.iter().map(|part| Tensor::from_slice(part, part.len(), &self.device)).collect()
    }

    /// Starts copying float32 numbers. The result has memory of its own: it stays valid, and [`Self::consumed`] is not for it. Waits as
    /// [`Self::upload`].
    ///
    /// # Errors
    /// The driver's; another number of values than the shape has.
    pub fn upload_f32(&mut self, values: &[f32], shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        #[cfg(feature = "cuda")]
        if let Some(copier) = &mut self.copier {
            return copier.upload_f32(values, shape);
        }
        Tensor::from_slice(values, shape, &self.device)
    }

    /// Call this when all work that reads the last upload is queued: its buffer is reused only after that work.
    ///
    /// # Errors
    /// The driver's.
    pub fn consumed(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(copier) = &mut self.copier {
            return copier.consumed();
        }
        Ok(())
    }
}
