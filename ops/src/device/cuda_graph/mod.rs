//! CUDA graphs: a GPU's work, recorded once and repeated with one launch.
//!
//! The work must be the same each time: the same kernels with the same arguments in the same memory. Values that change between launches are
//! read from memory outside the graph; memory that the work allocates it must also free. Before using a graph, compare its result with the
//! work's.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result};

/// Recorded work.
pub struct Graph(Recorded);

enum Recorded {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Recording),
    /// If the host emulates a GPU, the work is done again.
    #[cfg(feature = "emulate-kernels")]
    Emulated,
}

/// Does work that a graph will record later, and keeps its uploads (such as shapes of strided tensors), since nothing can be uploaded while a
/// graph is recorded.
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

/// Whether [`capture`] works on a device: a GPU, or the host while it emulates one.
pub fn can_capture(device: &Device) -> bool {
    super::has_kernels(device)
}

/// Records the device's part of `work` without executing it. Other threads must not use the device meanwhile.
///
/// # Errors
/// A device that is not a GPU; work that failed, waited for the device, uploaded what [`prepare`] did not, or freed earlier memory.
pub fn capture(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Graph(Recorded::Cuda(cuda::record(device, work)?))),
        #[cfg(feature = "emulate-kernels")]
        Device::Cpu if super::emulating() => Ok(Graph(Recorded::Emulated)),
        _ => {
            drop(work);
            candle_core::bail!("CUDA graphs need a GPU, this device is {device:?}")
        }
    }
}

impl Graph {
    /// Queues the recorded work. `work` is the captured work; only a host that emulates a GPU calls it.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.0 {
            #[cfg(feature = "cuda")]
            Recorded::Cuda(ref recording) => {
                drop(work);
                recording.launch()
            }
            #[cfg(feature = "emulate-kernels")]
            Recorded::Emulated => work(),
            #[cfg(not(any(feature = "cuda", feature = "emulate-kernels")))]
            _ => {
                drop(work);
                candle_core::bail!("this build knows no GPU")
            }
        }
    }
}
