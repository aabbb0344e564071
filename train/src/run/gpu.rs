//! What a GPU changes in a run: the precision, the source of batches, when the host reads a step's losses, and whether steps can be
//! recorded.

use crate::error::{Result, TrainError};
use candle_core::Device;
use sam_ladder_ops::Numerics;
use sam_ladder_ops::device::{DeviceMemory, can_capture};
pub use sam_ladder_schemas::device_store::DeviceStore;
use sam_ladder_schemas::gpu_precision::GpuPrecision as Asked;
use sam_ladder_schemas::train::{SideNetworkKind, TrainConfig};

/// Memory that is kept free for a step at 512 pixels with a batch of 24, and for the libraries.
pub const RESERVE_BYTES: u64 = 10 << 30;

/// Bytes for stored items: the wanted number, limited by the free memory. `Auto` leaves [`RESERVE_BYTES`] free, and as much again for a
/// recorded step, which has memory of its own in addition to that of the last, smaller batch of an epoch.
pub(super) fn budget(memory: DeviceMemory, wanted: DeviceStore, cuda_graph: bool) -> u64 {
    let reserve = if cuda_graph { 2 * RESERVE_BYTES } else { RESERVE_BYTES };
    match wanted {
        DeviceStore::Off => 0,
        DeviceStore::Auto => memory.free.saturating_sub(reserve),
        DeviceStore::Bytes(bytes) => bytes.min(memory.free),
    }
}

/// The numerics of a run.
///
/// # Errors
/// float16, which is for the encoder; anything except float32 on the CPU; bfloat16 with a side network that is not a ResNet.
pub(super) fn set_up(device: &Device, config: &TrainConfig) -> Result<Numerics> {
    let asked = config.precision;
    let precision = match asked {
        Asked::F32 => Numerics::F32,
        Asked::Tf32 => Numerics::Tf32,
        Asked::Bf16 => Numerics::Bf16,
        Asked::F16 => {
            return Err(TrainError::EncoderPrecision);
        }
    };
    if !precision.supported_on(device) {
        return Err(TrainError::NeedsGpu { option: format!("--precision {}", asked.name()), instead: "pass --precision f32" });
    }
    if precision == Numerics::Bf16 && config.side_network == SideNetworkKind::VitTiny {
        return Err(TrainError::NetworkPrecision);
    }
    Ok(precision)
}

/// If `cuda_graph` is set, checks that the device can repeat recorded steps.
///
/// # Errors
/// The CPU.
pub(crate) fn check_cuda_graph(device: &Device, cuda_graph: bool) -> Result<()> {
    if cuda_graph && !can_capture(device) {
        return Err(TrainError::NeedsGpu { option: "--cuda-graph".into(), instead: "leave it out" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 GiB are free: the graph's memory is that of a second step.
    #[test]
    fn auto_leaves_memory_for_a_step_and_again_for_a_recorded_one() {
        let memory = DeviceMemory { free: 32 << 30, total: 40 << 30 };
        assert_eq!(budget(memory, DeviceStore::Auto, false), 22 << 30);
        assert_eq!(budget(memory, DeviceStore::Auto, true), 12 << 30);
        assert_eq!(budget(DeviceMemory { free: 1 << 30, ..memory }, DeviceStore::Auto, true), 0);
        assert_eq!(budget(memory, DeviceStore::Bytes(40 << 30), true), 32 << 30);
    }

    #[test]
    fn a_precision_that_the_cpu_lacks_is_refused_by_name() {
        for (asked, needle) in [(Asked::F16, "is for the frozen encoder"), (Asked::Bf16, "--precision bf16 needs a GPU")] {
            if asked == Asked::Bf16 && Numerics::Bf16.supported_on(&Device::Cpu) {
                continue;
            }
            let error =
                set_up(&Device::Cpu, &TrainConfig { precision: asked, ..TrainConfig::default() }).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        assert_eq!(set_up(&Device::Cpu, &TrainConfig::default()).unwrap(), Numerics::F32);
    }
}
