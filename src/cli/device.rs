//! `--device auto|cpu|cuda:N`.

use crate::error::refusal;
use crate::print::print_note;
use candle_core::Device;
use sam_ladder_ops::{device as gpu, error_line};
use std::str::FromStr;

/// Where to compute, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU of a build with the feature `cuda`; else the CPU, with a warning where that build cannot open one.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| format!("expected auto, cpu or cuda:INDEX, found {text}")),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// A GPU was requested in a build without the feature `cuda`, or cannot be opened.
    pub fn open(self) -> anyhow::Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Auto if cfg!(feature = "cuda") => Ok(gpu::open(0).unwrap_or_else(|cause| {
                let cause = error_line(&cause);
                print_note!("warning: computing on the CPU, since cuda:0 cannot be opened: {cause}; --device cpu does so without this warning");
                Device::Cpu
            })),
            DeviceChoice::Auto => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) if cfg!(feature = "cuda") => match gpu::open(index) {
                Ok(device) => Ok(device),
                Err(cause) => {
                    let cause = error_line(&cause);
                    Err(refusal(format!("cannot open cuda:{index}: {cause}"), "`nvidia-smi` lists the GPUs of this machine"))
                }
            },
            DeviceChoice::Cuda(index) => Err(refusal(
                format!("--device cuda:{index} needs a build with the feature `cuda`, which this one lacks"),
                "rebuild with `cargo build --release --features cuda`, or pass --device cpu",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert!("gpu".parse::<DeviceChoice>().is_err());
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_in_a_cpu_build_names_the_feature() {
        let message = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
        assert!(message.contains("feature `cuda`"), "{message}");
    }
}
