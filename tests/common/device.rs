//! The device that tests run on: the CPU, or the GPU that `SAM_LADDER_TEST_DEVICE` names (`cuda:0`; see `make gpu-check`).
#![allow(dead_code)] // not every test binary that compiles this file uses all of it

use candle_core::Device;

thread_local! {
    static OPENED: std::cell::OnceCell<Device> = const { std::cell::OnceCell::new() };
}

/// The device under test. Tests that run at the same time share a GPU, each with its own stream.
pub fn device() -> Device {
    OPENED.with(|opened| opened.get_or_init(open).clone())
}

fn open() -> Device {
    let Ok(name) = std::env::var("SAM_LADDER_TEST_DEVICE") else { return Device::Cpu };
    let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
    let index = index.unwrap_or_else(|| panic!("SAM_LADDER_TEST_DEVICE is {name:?}, expected cuda:INDEX"));
    sam_ladder_ops::device::open(index).unwrap()
}
