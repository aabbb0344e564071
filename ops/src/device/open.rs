//! Opens a GPU, and reports its properties.

use candle_core::{Device, Result};

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Currently free.
    pub free: u64,
    /// Total.
    pub total: u64,
}

/// Opens the GPU with an index, with one stream that all threads share, and lets it keep freed memory.
///
/// # Errors
/// If there is no such GPU, its driver is too old, or this build does not support GPUs.
pub fn open(index: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return super::cuda::open(index);
    #[cfg(not(feature = "cuda"))]
    return Device::new_cuda_with_stream(index);
}

/// Whether the program's kernels run on a device.
pub fn has_kernels(device: &Device) -> bool {
    device.is_cuda()
}

/// Whether a device queues work and returns at once. The host should read results late, and several threads gain nothing from sharing such
/// a device.
pub fn queues_work(device: &Device) -> bool {
    has_kernels(device)
}

/// The memory of a GPU; `None` for the CPU, which has only the host's.
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

/// Waits until a GPU has done all queued work; for timing.
///
/// # Errors
/// Any error on the device since the last wait.
pub fn synchronize(device: &Device) -> Result<()> {
    device.synchronize()
}
