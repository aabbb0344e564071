//! CUDA graphs: a GPU's work, recorded once and repeated with one launch.
//!
//! The work must be the same each time: the same kernels with the same arguments in the same memory. Values that change between launches are
//! read from memory outside the graph; memory that the work allocates it must also free. Before using a graph, compare its result with the
//! work's.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result};

/// Recorded work.
pub struct Graph {
    #[cfg(feature = "cuda")]
    recording: cuda::Recording,
}

/// Does work that is repeated, and keeps its small uploads (such as shapes of strided tensors): the next time they are there. While a graph is
/// recorded nothing can be uploaded, so this comes before.
///
/// # Errors
/// Those of the work.
pub fn prepare<T>(device: &Device, work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cuda")]
    let _kept = match device {
        Device::Cuda(device) => Some(device.enable_cuda_graph_htod_cache()),
        _ => None,
    };
    #[cfg(not(feature = "cuda"))]
    let _ = device;
    work()
}

/// Whether [`capture`] works on a device.
pub fn can_capture(device: &Device) -> bool {
    super::has_kernels(device)
}

/// Records the device's part of `work` without executing it. Other threads must not use the device meanwhile.
///
/// # Errors
/// A device that is not a GPU; work that failed, waited for the device, uploaded what [`prepare`] did not, or freed earlier memory. The
/// device's stream then records nothing, and takes work again.
pub fn capture(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Graph { recording: cuda::record(device, work)? }),
        _ => {
            drop(work);
            candle_core::bail!("CUDA graphs need a GPU, this device is {device:?}")
        }
    }
}

impl Graph {
    /// Queues the recorded work.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.recording.launch();
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("this build knows no GPU")
    }
}
