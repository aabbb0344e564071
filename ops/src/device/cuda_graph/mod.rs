//! CUDA graphs: the work that a GPU is given, recorded once and repeated with one launch.
//!
//! The work must be the same each time: the same kernels with the same arguments in the same memory. What changes from one launch to the next is read
//! from memory that lives outside; memory that the work makes it must also free. Whoever captures a graph should compare what it does
//! with what the work does before relying on it.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result};

/// Recorded work.
pub struct Graph(Recorded);

enum Recorded {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Recording),
    /// Where the host stands in for a GPU the work is done again.
    #[cfg(feature = "emulate-kernels")]
    Emulated,
}

/// Does a piece of work that a graph will be made of: what it uploads (the shapes of strided tensors, among others) is kept, since nothing can be uploaded
/// while a graph is recorded.
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

/// Records what `work` would have the device do, which does none of it. Other threads must not use the device meanwhile.
///
/// # Errors
/// A device that is no GPU; work that failed, waited for the device, uploaded what [`prepare`] did not, or freed memory from before.
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
    /// Queues what was recorded behind what was queued before. `work` is the work that was captured; only a host that stands in for a GPU
    /// does it.
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
