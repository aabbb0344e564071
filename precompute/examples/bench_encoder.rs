//! Times the image encoder on the CPU: `bench_encoder ARCH SIZE BATCH [ROUNDS]`, for example `bench_encoder vit_b 224 4`. Prints the median
//! of the rounds (5 by default) in seconds per image. `RAYON_NUM_THREADS` sets the number of threads.

use std::time::Instant;

use candle_core::{Device, Tensor};
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [arch, size, batch, rounds @ ..] = arguments.as_slice() else {
        return Err("usage: bench_encoder ARCH SIZE BATCH [ROUNDS]".into());
    };
    let arch = EncoderArch::ALL
        .into_iter()
        .find(|known| known.name() == arch)
        .ok_or("ARCH is an encoder's name, such as vit_b or dinov3_vits16")?;
    let (size, batch): (usize, usize) = (size.parse()?, batch.parse()?);
    let rounds: usize = rounds.first().map_or(Ok(5), |rounds| rounds.parse())?;
    let encoder = ImageEncoder::random(arch, size, 0, &Device::Cpu)?;
    let images = Tensor::rand(0f32, 1f32, (batch, 1, encoder.image_size(), encoder.image_size()), &Device::Cpu)?;
    encoder.forward(&images)?;
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds.max(1) {
        let start = Instant::now();
        encoder.forward(&images)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    println!("{:.5} s/image", seconds[seconds.len() / 2] / batch as f64);
    Ok(())
}
