//! The model, the batches and the labels of the golden training cases, remade by the rule.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use crate::common::{rule_values, rule_weight};
use crate::device::device;
use candle_core::{DType, Device, Result, Tensor};
use sam_ladder_schemas::train::Arm;
use sam_ladder_train::model::{LadderSam, ModelConfig, ModelWeights};

/// The published model at 224 px with 9 classes.
pub fn config(arm: Arm) -> ModelConfig {
    ModelConfig::published(224, 9, arm)
}

/// The model of [`rule_weights`].
pub fn rule_model(arm: Arm) -> LadderSam {
    LadderSam::new(&config(arm), &rule_weights(arm), &device()).unwrap()
}

/// Weights by the rule, which uses SAM's keys without `sam.`.
pub fn rule_weights(arm: Arm) -> ModelWeights {
    let weights = ModelWeights::expected(&config(arm))
        .into_iter()
        .map(|(name, shape)| {
            let values = rule_weight(name.strip_prefix("sam.").unwrap_or(&name), &shape);
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let tensor = if name.ends_with("num_batches_tracked") { tensor.to_dtype(DType::I64).unwrap() } else { tensor };
            (name, tensor)
        })
        .collect();
    ModelWeights(weights)
}

/// A batch: images `[b, 1, 224, 224]`, embeddings `[b, 256, 14, 14]`, labels `[b, 56, 56]`.
pub struct Batch {
    pub images: Tensor,
    pub embeddings: Tensor,
    pub labels: Tensor,
}

/// The batch of `b` whose tensors are called `<name>.images`, `<name>.embeddings`, `<name>.labels`.
pub fn rule_batch(name: &str, b: usize) -> Result<Batch> {
    rule_batch_of(name, b, 224)
}

/// As [`rule_batch`] for images of `size` pixels: images `[b, 1, s, s]`, embeddings `[b, 256, s/16, s/16]`, labels `[b, s/4, s/4]`.
pub fn rule_batch_of(name: &str, b: usize, size: usize) -> Result<Batch> {
    let (g, device) = (size / 16, device());
    let images = rule_values(&format!("{name}.images"), b * size * size).into_iter().map(|u| (u + 1.0) / 2.0).collect();
    let embeddings = rule_values(&format!("{name}.embeddings"), b * 256 * g * g);
    let coarse: Vec<u8> =
        rule_values(&format!("{name}.labels"), b * g * g).into_iter().map(|u| ((u + 1.0) / 2.0 * 9.0) as u8).collect();
    let coarse = Tensor::from_vec(coarse, (b, g, 1, g, 1), &Device::Cpu)?;
    Ok(Batch {
        images: Tensor::from_vec(images, (b, 1, size, size), &device)?,
        embeddings: Tensor::from_vec(embeddings, (b, 256, g, g), &device)?,
        labels: coarse.broadcast_as((b, g, 4, g, 4))?.contiguous()?.reshape((b, 4 * g, 4 * g))?.to_device(&device)?,
    })
}

/// Labels `[b, h, w]` at twice the resolution, each four times.
pub fn twice(labels: &Tensor) -> Result<Tensor> {
    let (b, h, w) = labels.dims3()?;
    labels.reshape((b, h, 1, w, 1))?.broadcast_as((b, h, 2, w, 2))?.contiguous()?.reshape((b, 2 * h, 2 * w))
}

/// Euclidean norm.
pub fn norm(x: &Tensor) -> f64 {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Norm of the difference over the norm of the expected values.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let [found, expected] = [found, expected].map(|t| t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
    norm(&(found - &expected).unwrap()) / norm(&expected)
}

/// Adds `delta` to one element.
pub fn nudge(tensor: &Tensor, index: &[usize], delta: f32) -> Tensor {
    let at = index.iter().zip(tensor.dims()).fold(0, |at, (i, n)| at * n + i);
    let mut values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[at] += delta;
    Tensor::from_vec(values, tensor.shape(), tensor.device()).unwrap()
}
