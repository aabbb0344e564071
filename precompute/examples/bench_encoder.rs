//! Times the image encoder on the CPU: `bench_encoder ARCH SIZE BATCH [ROUNDS] [PRECISION]`, for example `bench_encoder vit_b 224 4` or
//! `bench_encoder vit_b 224 4 5 bf16`. Prints the median of the rounds (5 by default) in seconds per image, and the precision (f32 by default).
//! `RAYON_NUM_THREADS` sets the number of threads.

use std::time::Instant;

use candle_core::{Device, Tensor};
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder, Placement};
use sam_ladder_schemas::precision::Precision;

#[path = "../../src/allocator.rs"]
mod allocator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    allocator::keep_freed_pages();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [arch, size, batch, rest @ ..] = arguments.as_slice() else {
        return Err("usage: bench_encoder ARCH SIZE BATCH [ROUNDS] [PRECISION]".into());
    };
    let arch = EncoderArch::ALL
        .into_iter()
        .find(|known| known.name() == arch)
        .ok_or("ARCH is an encoder's name, such as vit_b or dinov3_vits16")?;
    let (size, batch): (usize, usize) = (size.parse()?, batch.parse()?);
    let rounds: usize = rest.first().map_or(Ok(5), |rounds| rounds.parse())?;
    let precision = rest.get(1).map_or(Ok(Precision::F32), |name| precision(name))?;
    let encoder = ImageEncoder::random(arch, size, 0, Placement { device: &Device::Cpu, precision })?;
    let images = Tensor::rand(0f32, 1f32, (batch, 1, encoder.image_size(), encoder.image_size()), &Device::Cpu)?;
    encoder.forward(&images)?;
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds.max(1) {
        let start = Instant::now();
        encoder.forward(&images)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    println!("{:.5} s/image {}", seconds[seconds.len() / 2] / batch as f64, precision.name());
    Ok(())
}

/// What the CPU may compute in; whether this one does is the encoder's to say.
fn precision(name: &str) -> Result<Precision, String> {
    let known = [Precision::F32, Precision::Bf16];
    known.into_iter().find(|known| known.name() == name).ok_or_else(|| format!("PRECISION is f32 or bf16, not {name}"))
}
