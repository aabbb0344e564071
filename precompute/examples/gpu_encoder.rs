//! Times the image encoder on a GPU: `gpu_encoder ARCH SIZE BATCH f32|tf32|bf16|f16 DEVICE [ROUNDS]`, as `gpu_encoder vit_b 512 16 bf16 cuda:0`.
//! Prints the rate of the matrix products and the median of the rounds in seconds per image. `DEVICE` may be `cpu`, to try the program.
//!
//! `--against-f32` times nothing, but compares the embeddings with those of float32, from the same weights and images, and counts values that
//! are not finite.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use sam_ladder_ops::device::{open, synchronize};
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder, Placement, VitConfig};
use sam_ladder_schemas::precision::Precision;

/// Floating-point operations of the products of one image: linear layers, scores, weighted sums and the neck.
fn operations(arch: EncoderArch, image_size: usize) -> f64 {
    if !arch.is_sam() {
        let (c, depth, grid) = (arch.embed_dim() as f64, arch.depth() as f64, image_size / arch.patch());
        let tokens = (1 + arch.registers() + grid * grid) as f64;
        return 2.0 * depth * tokens * (12.0 * c * c + tokens * 2.0 * c);
    }
    let config = &VitConfig::new(arch, image_size);
    let (c, grid) = (config.embed_dim as f64, config.grid());
    let tokens = (grid * grid) as f64;
    let mut sum = tokens * (3.0 * 256.0 * c + c * 256.0 + 9.0 * 256.0 * 256.0);
    for block in 0..config.depth {
        let side = config.attention_side(block);
        let windows = grid.div_ceil(side).pow(2) as f64;
        let window = (side * side) as f64;
        sum += tokens * 12.0 * c * c + windows * window * window * 2.0 * c;
    }
    2.0 * sum
}

/// Prints the largest difference, relative to the largest value of `want`, and how many values are not finite.
fn compare(got: &Tensor, want: &Tensor) -> Result<(), Box<dyn std::error::Error>> {
    let [got, want] = [got, want].map(|t| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
    let (got, want) = (got?, want?);
    let odd = got.iter().chain(&want).filter(|value| !value.is_finite()).count();
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = got.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    println!("{:.3e} of the largest value", difference / largest);
    println!("{odd} values not finite");
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (flags, arguments): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let [arch, size, batch, precision, device, rest @ ..] = arguments.as_slice() else {
        return Err("usage: gpu_encoder ARCH SIZE BATCH f32|tf32|bf16|f16 DEVICE [ROUNDS] [--against-f32]".into());
    };
    let arch = EncoderArch::ALL
        .into_iter()
        .find(|known| known.name() == arch)
        .ok_or("ARCH is an encoder's name, such as vit_b or dinov3_vits16")?;
    let precision =
        [Precision::F32, Precision::Tf32, Precision::Bf16, Precision::F16].into_iter().find(|known| known.name() == precision);
    let precision = precision.ok_or("the precision is f32, tf32, bf16 or f16")?;
    let (size, batch): (usize, usize) = (size.parse()?, batch.parse()?);
    let rounds: usize = rest.first().map_or(Ok(20), |rounds| rounds.parse())?;
    let device = match device.strip_prefix("cuda:") {
        Some(index) => open(index.parse()?)?,
        None => Device::Cpu,
    };
    let encoder = ImageEncoder::random(arch, size, 0, Placement { device: &device, precision })?;
    let size = encoder.image_size();
    let values: Vec<f32> = (0..batch * size * size).map(|i| (i * 7919 % 1013) as f32 / 1013.0).collect();
    let images = Tensor::from_vec(values, (batch, 1, size, size), &device)?;
    if flags.iter().any(|flag| flag == "--against-f32") {
        let exact = ImageEncoder::random(arch, size, 0, Placement { device: &device, precision: Precision::F32 })?;
        return compare(&encoder.forward(&images)?, &exact.forward(&images)?);
    }
    for _ in 0..2 {
        encoder.forward(&images)?;
    }
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds.max(1) {
        synchronize(&device)?;
        let start = Instant::now();
        encoder.forward(&images)?;
        synchronize(&device)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let image = seconds[seconds.len() / 2] / batch as f64;
    println!("{:.2} TFLOP/s", operations(arch, size) / image / 1e12);
    println!("{image:.7} s/image");
    Ok(())
}
