//! Times stage two's training step on a GPU: `gpu_step SIZE BATCH f32|tf32|bf16 DEVICE [STEPS] [--graph] [--losses]`, as `gpu_step 512 24 bf16 cuda:0`.
//! `--graph` runs it as a CUDA graph; `--resnet34`, `--resnet50` or `--vit-tiny` takes another side network. `--losses` times nothing, but prints the losses of STEPS steps, with the same batches and initial
//! weights at every precision.
//!
//! A step is forward, loss, backward and the AdamW update, with stored float16 numbers that are resident on the device and gathered there;
//! the host waits only at the end. Prints the seconds per step and per image, and the memory used. `DEVICE` may be `cpu`, to try the program.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use made_up::{noise, weights};
use sam_ladder_ops::device::{has_kernels, memory, open, overwrite, synchronize};
use sam_ladder_ops::{Numerics, Stored, gather_bytes_to, gather_to};
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Silent};
use sam_ladder_schemas::train::{Arm, OptimizerKind, SideNetworkKind};
use sam_ladder_train::Optimizer;
use sam_ladder_train::model::{LadderSam, ModelConfig};
use sam_ladder_train::run::{BatchTensors, StepGraph, StepLosses, StepSettings, start_step};

mod made_up;

/// Prints what became of the graph.
#[derive(Debug)]
struct Printed;

impl Observer for Printed {
    fn message(&self, text: &str) {
        println!("{text}");
    }

    fn begin(&self, _: Phase<'_>) -> Box<dyn Progress> {
        Box::new(Silent)
    }
}

/// Items in a store's float16, as bytes on the device.
fn stored(items: usize, item_len: usize, seed: u64, device: &Device) -> candle_core::Result<Tensor> {
    let halves = Tensor::from_vec(noise(items * item_len, seed), items * item_len, &Device::Cpu)?.to_dtype(DType::F16)?;
    let bytes: Vec<u8> = halves.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::from_vec(bytes, items * item_len * 2, device)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (flags, arguments): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let [graph, show_losses] = ["--graph", "--losses"].map(|flag| flags.iter().any(|given| given == flag));
    let [size, batch, precision, device, rest @ ..] = arguments.as_slice() else {
        return Err("usage: gpu_step SIZE BATCH f32|tf32|bf16 DEVICE [STEPS] [--graph] [--losses]".into());
    };
    let (size, batch): (usize, usize) = (size.parse()?, batch.parse()?);
    let steps: usize = rest.first().map_or(Ok(30), |steps| steps.parse())?;
    let precision = match precision.as_str() {
        "f32" => Numerics::F32,
        "tf32" => Numerics::Tf32,
        "bf16" => Numerics::Bf16,
        _ => return Err("the precision is f32, tf32 or bf16".into()),
    };
    let device = match device.strip_prefix("cuda:") {
        Some(index) => open(index.parse()?)?,
        None => Device::Cpu,
    };
    if !precision.supported_on(&device) {
        return Err("the CPU computes in f32".into());
    }
    let free_before = memory(&device)?.map(|memory| memory.free);
    let others = [SideNetworkKind::Resnet34, SideNetworkKind::Resnet50, SideNetworkKind::VitTiny];
    let side_network = others.into_iter().find(|kind| flags.iter().any(|flag| flag[2..] == *kind.name()));
    let side_network = side_network.unwrap_or(SideNetworkKind::Resnet18);
    let config = ModelConfig { math: precision.math(), side_network, ..ModelConfig::published(size, 9, Arm::Full) };
    let model = LadderSam::new(&config, &weights(&config)?, &device)?;
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, 0.1, model.trainable())?;
    let (grid, low, items) = (size / 16, size / 4, 2 * batch);
    let (image_len, embedding_len) = (size * size, 256 * grid * grid);
    let (images, embeddings) = (stored(items, image_len, 101, &device)?, stored(items, embedding_len, 102, &device)?);
    let labels: Vec<u8> = noise(items * low * low, 103).iter().map(|x| ((x + 1.0) * 4.5) as u8).collect();
    let labels = Tensor::from_vec(labels, items * low * low, &device)?;
    // Each batch has the memory of the one before, as in `train`.
    let kept = BatchTensors {
        images: Tensor::zeros((batch, 1, size, size), precision.dtype(), &device)?,
        embeddings: Tensor::zeros((batch, 256, grid, grid), precision.dtype(), &device)?,
        labels: Tensor::zeros((batch, low, low), DType::U8, &device)?,
        rungs: None,
    };
    let indices = Tensor::zeros(2 * batch, DType::U32, &device)?;
    let make = |step: usize| -> candle_core::Result<BatchTensors> {
        let picks = (0..batch).map(|i| ((step + i) % items) as u32).chain(0..batch as u32);
        overwrite(&indices, &picks.collect::<Vec<_>>())?;
        let (picks, rows) = (indices.narrow(0, 0, batch)?, indices.narrow(0, batch, batch)?);
        for (bytes, item_len, to) in [(&images, image_len, &kept.images), (&embeddings, embedding_len, &kept.embeddings)] {
            let stored = Stored { bytes, dtype: DType::F16, item_len, quantization: None };
            gather_to(&stored, &picks, &rows, to)?;
        }
        gather_bytes_to(&labels, low * low, &picks, &rows, &kept.labels)?;
        Ok(kept.clone())
    };
    let fixed = if has_kernels(&device) {
        None
    } else {
        Some(BatchTensors {
            images: Tensor::from_vec(noise(batch * image_len, 101), (batch, 1, size, size), &device)?,
            embeddings: Tensor::from_vec(noise(batch * embedding_len, 102), (batch, 256, grid, grid), &device)?,
            labels: labels.narrow(0, 0, batch * low * low)?.reshape((batch, low, low))?,
            rungs: None,
        })
    };
    let loss = sam_ladder_train::LadderLoss::published(0.8);
    let settings = StepSettings { loss: &loss, lr: 1e-3 };
    let mut step_graph = graph.then(|| StepGraph::new(Arc::new(Printed)));
    let mut step = |step: usize| -> Result<Tensor, Box<dyn std::error::Error>> {
        let batch = match &fixed {
            Some(batch) => batch.clone(),
            None => make(step)?,
        };
        Ok(match &mut step_graph {
            Some(graph) => graph.step(&model, &mut optimizer, &batch, settings)?,
            None => start_step(&model, &mut optimizer, &batch, settings)?,
        })
    };
    if show_losses {
        for index in 0..steps {
            let losses = StepLosses::read(&step(index)?)?;
            println!("{index},{},{},{}", losses.total, losses.ce, losses.dice);
        }
        return Ok(());
    }
    let mut run = |count: usize| -> Result<f64, Box<dyn std::error::Error>> {
        synchronize(&device)?;
        let start = Instant::now();
        for index in 0..count {
            step(index)?;
        }
        synchronize(&device)?;
        Ok(start.elapsed().as_secs_f64() / count.max(1) as f64)
    };
    run(4)?; // warm-up: libraries choose their algorithms, and a graph is recorded
    let mut seconds = [run(steps)?, run(steps)?, run(steps)?];
    seconds.sort_by(f64::total_cmp);
    if let (Some(before), Some(after)) = (free_before, memory(&device)?) {
        println!("{:.2} GiB taken", (before.saturating_sub(after.free)) as f64 / f64::from(1 << 30));
    }
    println!("{:.6} s/step, {:.6} to {:.6}", seconds[1], seconds[0], seconds[2]);
    println!("{:.7} s/image", seconds[1] / batch as f64);
    Ok(())
}
