//! Opening a GPU, and what the rest of the program wants to know of it.

use candle_core::{Device, Result};

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What can be had now.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Opens the GPU of an index with a stream of its own, which every thread shares, and lets it keep memory that is freed.
///
/// # Errors
/// If there is no such GPU, its driver is too old, or this build knows none.
pub fn open(index: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return super::cuda::open(index);
    #[cfg(not(feature = "cuda"))]
    return Device::new_cuda_with_stream(index);
}

/// Whether the program's kernels run on a device: a GPU, or the host while it stands in for one.
pub fn has_kernels(device: &Device) -> bool {
    device.is_cuda() || (device.is_cpu() && super::emulating())
}

/// The memory of a GPU; `None` for the CPU.
///
/// # Errors
/// The driver's.
pub fn memory(device: &Device) -> Result<Option<DeviceMemory>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::memory(device).map(|(free, total)| Some(DeviceMemory { free, total })),
        _ => Ok(None),
    }
}

/// Waits until a GPU has done all work that was queued; for clocks.
///
/// # Errors
/// Whatever went wrong on it since.
pub fn synchronize(device: &Device) -> Result<()> {
    device.synchronize()
}
