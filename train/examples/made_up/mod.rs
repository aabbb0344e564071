//! Made-up numbers and weights, for examples and tests.
#![allow(dead_code)] // each program compiles this file anew and uses only a part of it

use candle_core::{DType, Device, Result, Tensor};
use sam_ladder_train::model::{ModelConfig, ModelWeights};

/// Values in [-1, 1) from a linear congruential generator.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Weights of a sane scale: unit norm weights and variances, small biases, He-like matrices.
pub fn weights(config: &ModelConfig) -> Result<ModelWeights> {
    let mut weights = ModelWeights::default();
    for (i, (name, shape)) in ModelWeights::expected(config).into_iter().enumerate() {
        let count = shape.iter().product();
        let fan_in: usize = shape.iter().skip(1).product::<usize>().max(1);
        let scale = if shape.len() < 2 { 1.0 / 16.0 } else { (3.0 / fan_in as f32).sqrt() };
        let one = name.ends_with("running_var") || (shape.len() == 1 && name.ends_with("weight"));
        let values = if one { vec![1.0; count] } else { noise(count, i as u64 + 1).iter().map(|x| x * scale).collect() };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        let tensor = if name.ends_with("num_batches_tracked") { tensor.to_dtype(DType::I64)? } else { tensor };
        weights.0.insert(name, tensor);
    }
    Ok(weights)
}
