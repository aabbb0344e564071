//! Copies to a GPU that run while it works: through memory that the driver pins, on a stream of their own, into one of two buffers.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result, Tensor};

/// Two buffers in turn. What [`Self::upload`] gave is good until the second call after it.
pub struct Staging {
    device: Device,
    #[cfg(feature = "cuda")]
    copier: Option<cuda::Copier>,
}

impl Staging {
    /// For a device; on the CPU copies are plain ones.
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

    /// Starts copying; each part becomes a tensor of u8 that later work on the device finds whole. Does not wait for the device, unless
    /// it is two copies behind.
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

    /// To be called when all work that reads the last upload was queued: its buffer is filled again only after that work.
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
