//! Times stage two's training step on the CPU: `bench_step SIZE BATCH [STEPS] [resnet18|resnet34|resnet50|vit-tiny] [scalar|channel|pixel]
//! [plain|skips] [0|1] [none|gated] [f32|bf16]` prints the median seconds per image, and the precision; the number is that of the neighbours, and a
//! ladder has four rungs of 64 channels.
//!
//! A step is forward, loss, backward and the AdamW update, with images and embeddings that are already in memory and seeded random
//! weights; `bench/time_step.py` does the same in PyTorch.

use std::time::Instant;

use candle_core::{Device, Tensor};
use made_up::{noise, weights};
use sam_ladder_ops::{Numerics, to_format};
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind, OptimizerKind, SideNetworkKind};
use sam_ladder_schemas::train_choices::{DecoderKind, LadderKind};
use sam_ladder_train::model::{LadderSam, ModelConfig, OfSam};
use sam_ladder_train::{Optimizer, ladder_loss};

#[path = "../../src/allocator.rs"]
mod allocator;
mod made_up;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The model that the arguments name.
fn chosen(size: usize, arguments: &[String]) -> Result<ModelConfig, Box<dyn std::error::Error>> {
    let mut config = ModelConfig::published(size, 9, Arm::Full);
    if let Some(name) = arguments.get(3) {
        let all = [SideNetworkKind::Resnet18, SideNetworkKind::Resnet34, SideNetworkKind::Resnet50, SideNetworkKind::VitTiny];
        config.side_network = all.into_iter().find(|network| network.name() == name).ok_or("no such side network")?;
    }
    if let Some(name) = arguments.get(4) {
        let all = [GateKind::Scalar, GateKind::Channel, GateKind::Pixel];
        config.gate = all.into_iter().find(|gate| gate.name() == name).ok_or("no such gate")?;
    }
    if let Some(name) = arguments.get(5) {
        let all = [DecoderKind::Plain, DecoderKind::Skips, DecoderKind::SkipsHalf];
        config.decoder = all.into_iter().find(|decoder| decoder.name() == name).ok_or("no such decoder")?;
    }
    config.neighbours = arguments.get(6).is_some_and(|number| number != "0");
    config.ladder =
        Rungs::new(&[2, 5, 8, 11], 64).filter(|_| arguments.get(7).is_some_and(|name| name == LadderKind::Gated.name()));
    Ok(config)
}

/// The precision that the last argument names.
fn precision(name: Option<&String>) -> Result<Numerics, String> {
    match name.map(String::as_str) {
        None | Some("f32") => Ok(Numerics::F32),
        Some("bf16") if Numerics::Bf16.supported_on(&Device::Cpu) => Ok(Numerics::Bf16),
        Some("bf16") => Err("bf16: this processor lacks AVX512-BF16".into()),
        Some(other) => Err(format!("PRECISION is f32 or bf16, not {other}")),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    allocator::keep_freed_pages();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).map(|argument| argument.parse::<usize>()).transpose();
    let (Some(size), Some(batch)) = (number(0)?, number(1)?) else {
        return Err(
            "usage: bench_step SIZE BATCH [STEPS] [SIDE_NETWORK] [GATE] [DECODER] [NEIGHBOURS] [LADDER] [PRECISION]".into()
        );
    };
    let steps = number(2)?.unwrap_or(5).max(1);
    let (config, precision) = (chosen(size, &arguments)?, precision(arguments.get(8))?);
    let of_noise = |dims: &[usize], seed| {
        let values = Tensor::from_vec(noise(dims.iter().product(), seed), dims, &Device::Cpu)?;
        to_format(&values, precision.dtype())
    };
    let model = LadderSam::new(&config, &weights(&config)?, &Device::Cpu)?;
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, 0.1, model.trainable())?;
    let (grid, low) = (size / 16, size / config.decoder.logits_stride());
    let images = of_noise(&[batch, 1, size, size], 101)?;
    let slices: &[usize] = if config.neighbours { &[3] } else { &[] };
    let embeddings = of_noise(&[&[batch][..], slices, &[256, grid, grid]].concat(), 102)?;
    let of_rungs = |rungs: Rungs| of_noise(&[batch, rungs.count(), rungs.channels(), grid, grid], 104);
    let rungs = config.ladder.map(of_rungs).transpose()?;
    let labels: Vec<u8> = noise(batch * low * low, 103).iter().map(|x| ((x + 1.0) * 4.5) as u8).collect();
    let labels = Tensor::from_vec(labels, (batch, low, low), &Device::Cpu)?;

    let mut parts = [const { Vec::<f64>::new() }; 4];
    let mut totals = Vec::new();
    for step in 0..=steps {
        let start = Instant::now();
        let pass = model.forward_train(&images, OfSam { embeddings: &embeddings, rungs: rungs.as_ref() })?;
        let forward = Instant::now();
        let loss = ladder_loss(&pass.low_res_logits, &labels, config.num_classes, 0.8)?;
        let lossed = Instant::now();
        let gradients = pass.backward(loss.gradient)?;
        let backward = Instant::now();
        optimizer.step(&gradients, 1e-3)?;
        drop(gradients);
        let end = Instant::now();
        if step == 0 {
            continue; // the first step touches memory for the first time
        }
        totals.push((end - start).as_secs_f64());
        for (part, time) in parts.iter_mut().zip([forward - start, lossed - forward, backward - lossed, end - backward]) {
            part.push(time.as_secs_f64());
        }
    }
    let [forward, loss, backward, update] = parts.map(median);
    let parameters: usize = model.trainable().iter().map(|(_, var)| var.elem_count()).sum();
    println!("{parameters} parameters are trained");
    println!("forward {forward:.3} s, loss {loss:.3} s, backward {backward:.3} s, optimizer {update:.3} s");
    let least = totals.iter().copied().fold(f64::INFINITY, f64::min);
    let total = median(totals);
    println!("{total:.3} s/step, least {least:.3}");
    println!("{:.5} s/image {}", total / batch as f64, if precision == Numerics::Bf16 { "bf16" } else { "f32" });
    Ok(())
}
