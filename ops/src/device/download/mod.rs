//! Copies from a GPU that overlap with its work: into pinned memory, on a separate stream.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result, Tensor};

/// A device's copies to the host. Pinned buffers are used again, so there are as many as there are copies at once.
pub struct Downloads {
    #[cfg(feature = "cuda")]
    copier: Option<cuda::Copier>,
}

impl Downloads {
    /// For a device; on the CPU, copies are plain.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            #[cfg(feature = "cuda")]
            copier: cuda::Copier::new(device)?,
        })
    }

    /// Queues the copy of a float32 tensor behind the work that makes it. Does not wait for a GPU.
    ///
    /// # Errors
    /// The driver's; another number format.
    pub fn begin(&self, tensor: &Tensor) -> Result<Download> {
        #[cfg(feature = "cuda")]
        if let Some(copier) = &self.copier {
            return Ok(Download(Place::Coming(copier.begin(tensor)?)));
        }
        Ok(Download::here(tensor.flatten_all()?.to_vec1()?))
    }
}

/// Numbers on their way to the host. Dropped, it waits for its copy.
pub struct Download(Place);

enum Place {
    Here(Vec<f32>),
    #[cfg(feature = "cuda")]
    Coming(cuda::Pending),
}

impl Download {
    /// Numbers that are on the host already.
    pub fn here(values: Vec<f32>) -> Self {
        Self(Place::Here(values))
    }

    /// Whether [`Self::wait`] has nothing to wait for.
    pub fn is_here(&self) -> bool {
        matches!(self.0, Place::Here(_))
    }

    /// The numbers, once the copy is done.
    ///
    /// # Errors
    /// Any error on the device up to then.
    pub fn wait(self) -> Result<Vec<f32>> {
        match self.0 {
            Place::Here(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Place::Coming(pending) => pending.wait(),
        }
    }
}
