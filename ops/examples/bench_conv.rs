//! Measures the convolutions, batch norms and the pooling of the side network at 224 px, forward and backward.
//!
//!     cargo run --release -p sam-ladder-ops --example bench_conv [batch] [--cpu-time]
//!
//! Rates count the direct sum's operations, whatever the algorithm; times are the best of several runs. `--cpu-time` measures the processor
//! time divided by the number of threads instead of wall time, for a machine that does other work as well (Linux only; idle threads are not
//! noticed).

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use sam_ladder_ops::{
    Conv2d, Tail, add_relu, batch_statistics, max_pool2d_3x3_s2_p1, normalize, normalize_backward, normalize_relu_max_pool,
    normalize_relu_max_pool_backward,
};

const RUNS: usize = 7;

/// Milliseconds since `start`, or the processor time of the process so far divided by its threads.
fn now(start: Instant) -> f64 {
    if !std::env::args().any(|arg| arg == "--cpu-time") {
        return start.elapsed().as_secs_f64() * 1e3;
    }
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e6 / rayon::current_num_threads() as f64
}

/// The best time of several runs in milliseconds, and the last result.
fn best<T>(mut f: impl FnMut() -> Result<T>) -> Result<(f64, T)> {
    let mut best = f64::INFINITY;
    let mut last = f()?;
    let begin = Instant::now();
    for _ in 0..RUNS {
        let start = now(begin);
        last = f()?;
        best = best.min(now(begin) - start);
    }
    Ok((best, last))
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// The time of a backward pass from `y` to the variables, including candle's sums of gradients.
fn backward(y: &Tensor) -> Result<f64> {
    Ok(best(|| y.backward())?.0)
}

fn main() -> Result<()> {
    let batch = std::env::args().nth(1).and_then(|v| v.parse().ok()).unwrap_or(24);
    println!("batch {batch}, {} threads", rayon::current_num_threads());
    println!(
        "{:<22} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7}",
        "convolution", "fwd ms", "GF/s", "data ms", "GF/s", "weight ms", "GF/s"
    );
    let shapes = [
        ("stem 1-64 7x7/2", 1, 64, 224, 7, 2, 3),
        ("stem 3-64 7x7/2", 3, 64, 224, 7, 2, 3),
        ("layer1 64-64 3x3", 64, 64, 56, 3, 1, 1),
        ("layer2 64-128 3x3/2", 64, 128, 56, 3, 2, 1),
        ("layer2 128-128 3x3", 128, 128, 28, 3, 1, 1),
        ("layer2 64-128 1x1/2", 64, 128, 56, 1, 2, 0),
        ("layer3 128-256 3x3/2", 128, 256, 28, 3, 2, 1),
        ("layer3 256-256 3x3", 256, 256, 14, 3, 1, 1),
        ("layer3 128-256 1x1/2", 128, 256, 28, 1, 2, 0),
    ];
    for (name, ci, co, size, k, stride, padding) in shapes {
        let (x, w) = (random(&[batch, ci, size, size])?, random(&[co, ci, k, k])?);
        let conv = Conv2d::new(stride, padding);
        let (forward, y) = best(|| conv.forward(&x, &w))?;
        let operations = 2.0 * (y.elem_count() * ci * k * k) as f64 / 1e6;
        let seed = best(|| y.ones_like()?.contiguous())?.0;
        let data = backward(&conv.forward(Var::from_tensor(&x)?.as_tensor(), &w)?)? - seed;
        let weight = backward(&conv.forward(&x, Var::from_tensor(&w)?.as_tensor())?)? - seed;
        print!("{name:<22}");
        for ms in [forward, data, weight] {
            print!(" {ms:>9.1} {:>7.0}", operations / ms);
        }
        println!();
    }
    println!("\n{:<22} {:>9} {:>12}", "other", "fwd ms", "backward ms");
    for (c, size) in [(64, 112), (64, 56), (128, 28), (256, 14)] {
        let x = random(&[batch, c, size, size])?;
        let (weight, bias) = (Tensor::ones_like(&random(&[c])?)?, random(&[c])?);
        let grad = random(&[batch, c, size, size])?;
        let (forward, _) = best(|| normalize(&x, &batch_statistics(&x, 1e-5)?, &weight, &bias, Tail::Relu))?;
        let statistics = batch_statistics(&x, 1e-5)?;
        let (back, _) = best(|| normalize_backward(&x, &statistics, &weight, &bias, true, &grad))?;
        println!("{:<22} {forward:>9.1} {back:>12.1}", format!("batch norm {c}x{size}x{size}"));
    }
    let x = random(&[batch, 64, 112, 112])?;
    let (forward, _) = best(|| max_pool2d_3x3_s2_p1(&x))?;
    let back = backward(&max_pool2d_3x3_s2_p1(Var::from_tensor(&x)?.as_tensor())?)?;
    println!("{:<22} {forward:>9.1} {back:>12.1}", "max pool 64x112x112");
    let (weight, bias) = (Tensor::ones_like(&random(&[64])?)?, random(&[64])?);
    let grad = random(&[batch, 64, 56, 56])?;
    let (forward, _) = best(|| normalize_relu_max_pool(&x, &batch_statistics(&x, 1e-5)?, &weight, &bias))?;
    let statistics = batch_statistics(&x, 1e-5)?;
    let (_, places) = normalize_relu_max_pool(&x, &statistics, &weight, &bias)?;
    let (back, _) = best(|| normalize_relu_max_pool_backward(&x, &statistics, &weight, &bias, &places, (&grad, None)))?;
    println!("{:<22} {forward:>9.1} {back:>12.1}", "both in one op");
    let (a, b) = (random(&[batch, 64, 56, 56])?, random(&[batch, 64, 56, 56])?);
    let (forward, _) = best(|| add_relu(&a, &b))?;
    let back = backward(&add_relu(Var::from_tensor(&a)?.as_tensor(), Var::from_tensor(&b)?.as_tensor())?)?;
    println!("{:<22} {forward:>9.1} {back:>12.1}", "sum, relu 64x56x56");
    Ok(())
}
