//! Measures what a GPU can do, for comparison: `gpu_rates DEVICE`, as `gpu_rates cuda:0`. Prints the rates of square matrix products in bfloat16
//! and float32, and of copies within the device (read and written bytes). `DEVICE` may be `cpu`, to try the program, with small sizes.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use sam_ladder_ops::device::{open, synchronize};

/// Median seconds of one call of `work`, over five rounds.
fn seconds(device: &Device, calls: usize, work: impl Fn() -> candle_core::Result<Tensor>) -> candle_core::Result<f64> {
    let mut rounds = Vec::new();
    for _ in 0..6 {
        synchronize(device)?;
        let start = Instant::now();
        for _ in 0..calls {
            work()?;
        }
        synchronize(device)?;
        rounds.push(start.elapsed().as_secs_f64() / calls as f64);
    }
    // The first round warms up.
    let mut rounds = rounds.split_off(1);
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[rounds.len() / 2])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("usage: gpu_rates DEVICE")?;
    let device = match name.strip_prefix("cuda:") {
        Some(index) => open(index.parse()?)?,
        None => Device::Cpu,
    };
    let (side, elements) = if device.is_cuda() { (8192usize, 1usize << 28) } else { (256, 1 << 20) };
    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F32, "f32")] {
        let factor = Tensor::full(0.5f32, (side, side), &device)?.to_dtype(dtype)?;
        let taken = seconds(&device, 10, || factor.matmul(&factor))?;
        println!("{:.2} TFLOP/s {name}", 2.0 * (side as f64).powi(3) / taken / 1e12);
    }
    let values = Tensor::zeros(elements, DType::F32, &device)?;
    let taken = seconds(&device, 10, || values.copy())?;
    println!("{:.3} TB/s copied", 8.0 * elements as f64 / taken / 1e12);
    Ok(())
}
