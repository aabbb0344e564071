//! What a GPU changes in a run: the precision, the source of batches, when the host reads a step's losses, and whether steps can be
//! recorded.

use crate::error::{Result, TrainError};
use candle_core::Device;
use sam_ladder_ops::Numerics;
use sam_ladder_ops::device::memory;
use sam_ladder_schemas::gpu_precision::GpuPrecision as Asked;
use sam_ladder_schemas::train::{SideNetwork, TrainConfig};

/// Memory that is kept free for a step at 512 pixels with a batch of 24, and for the libraries.
pub const RESERVE_BYTES: u64 = 10 << 30;

/// Whether a store's training items live in the GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceStore {
    /// As many as fit in the free memory minus `RESERVE_BYTES`.
    #[default]
    Auto,
    /// None: each batch is copied.
    Off,
    /// As many as fit this many bytes.
    Bytes(u64),
}

impl std::str::FromStr for DeviceStore {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(DeviceStore::Auto),
            "off" => Ok(DeviceStore::Off),
            _ => {
                let (digits, shift) = match text.as_bytes().last() {
                    Some(b'G') => (&text[..text.len() - 1], 30),
                    Some(b'M') => (&text[..text.len() - 1], 20),
                    _ => (text, 0),
                };
                let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
                bytes
                    .map(DeviceStore::Bytes)
                    .ok_or_else(|| format!("expected auto, off or a number of bytes as 20000000000 or 20G, got {text:?}"))
            }
        }
    }
}

/// Whether a device has its own memory and computes asynchronously: a GPU, or the host when it emulates one. Such a device holds items of
/// a store, can record and repeat steps, and has its losses read late.
pub(crate) fn is_gpu(device: &Device) -> bool {
    sam_ladder_ops::device::has_kernels(device)
}

/// Bytes for stored items: the wanted number, limited by the free memory.
pub(super) fn budget(device: &Device, wanted: DeviceStore) -> Result<u64> {
    let free = memory(device)?.map_or(0, |memory| memory.free);
    Ok(match wanted {
        DeviceStore::Off => 0,
        DeviceStore::Auto => free.saturating_sub(RESERVE_BYTES),
        // If the CPU emulates a GPU, the free memory is unknown.
        DeviceStore::Bytes(bytes) if device.is_cpu() => bytes,
        DeviceStore::Bytes(bytes) => bytes.min(free),
    })
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
    if precision == Numerics::Bf16 && config.side_network == SideNetwork::VitTiny {
        return Err(TrainError::NetworkPrecision);
    }
    Ok(precision)
}

/// If `cuda_graph` is set, checks that the device can repeat recorded steps.
///
/// # Errors
/// The CPU.
pub(crate) fn check_cuda_graph(device: &Device, cuda_graph: bool) -> Result<()> {
    if cuda_graph && !is_gpu(device) {
        return Err(TrainError::NeedsGpu { option: "--cuda-graph".into(), instead: "leave it out" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_store_are_parsed() {
        for (text, expected) in [
            ("auto", DeviceStore::Auto),
            ("off", DeviceStore::Off),
            ("0", DeviceStore::Bytes(0)),
            ("3G", DeviceStore::Bytes(3 << 30)),
            ("5M", DeviceStore::Bytes(5 << 20)),
            ("123", DeviceStore::Bytes(123)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for wrong in ["", "G", "-1", "1T", "99999999999999999999", "18446744073709551615G"] {
            assert!(wrong.parse::<DeviceStore>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_precision_that_the_cpu_lacks_is_refused_by_name() {
        for (asked, needle) in [(Asked::F16, "is for the frozen encoder"), (Asked::Bf16, "--precision bf16 needs a GPU")] {
            if asked == Asked::Bf16 && is_gpu(&Device::Cpu) {
                continue;
            }
            let error =
                set_up(&Device::Cpu, &TrainConfig { precision: asked, ..TrainConfig::default() }).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        assert_eq!(set_up(&Device::Cpu, &TrainConfig::default()).unwrap(), Numerics::F32);
    }
}
