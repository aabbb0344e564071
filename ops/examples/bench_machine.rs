//! Measures the processor's peak rates, and the rates of matrix products. Prints `name, threads, rate, unit` lines for one thread and for all
//! (`RAYON_NUM_THREADS`): fused multiply-adds without memory access, the first product of the MLP of ViT-B at 224, batch 4, by the `gemm` crate
//! and with a packed weight (also with bfloat16 factors, where the processor multiplies them), and copies of a block larger than the caches.

use std::time::Instant;

use candle_core::Device;
use rayon::prelude::*;
use sam_ladder_ops::Numerics;
use sam_ladder_ops::matmul::Output;
use sam_ladder_ops::matmul::packed::{PackedWeight, tiles};
use sam_ladder_ops::matmul::{Accumulate, MatMut, MatRef, matmul, matmul_serial};

/// Rows, out, inner.
const SHAPE: (usize, usize, usize) = (784, 3072, 768);
/// Floats of a copy: 256 MiB.
const COPY: usize = 64 << 20;
const ROUNDS: usize = 7;

/// Least seconds of several runs.
fn least(mut run: impl FnMut()) -> f64 {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}

/// Operations of `n` rounds of fused multiply-adds of ten independent vectors of the greatest width.
#[cfg(target_arch = "x86_64")]
fn multiply_add(n: usize) -> f64 {
    use std::arch::x86_64::*;

    macro_rules! rounds {
        ($name:ident, $features:literal, $set:ident, $fma:ident, $first:ident) => {
            #[target_feature(enable = $features)]
            fn $name(n: usize) -> f32 {
                let (a, b, start) = ($set(0.999), $set(0.001), $set(0.5));
                let [mut x0, mut x1, mut x2, mut x3, mut x4] = [start; 5];
                let [mut x5, mut x6, mut x7, mut x8, mut x9] = [start; 5];
                for _ in 0..n {
                    x0 = $fma(x0, a, b);
                    x1 = $fma(x1, a, b);
                    x2 = $fma(x2, a, b);
                    x3 = $fma(x3, a, b);
                    x4 = $fma(x4, a, b);
                    x5 = $fma(x5, a, b);
                    x6 = $fma(x6, a, b);
                    x7 = $fma(x7, a, b);
                    x8 = $fma(x8, a, b);
                    x9 = $fma(x9, a, b);
                }
                [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9].into_iter().map(|x| $first(x)).sum()
            }
        };
    }
    rounds!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32);
    rounds!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32);

    let n_hidden = std::hint::black_box(n);
    let lanes = match () {
        // SAFETY: the features were just detected.
        () if is_x86_feature_detected!("avx512f") => std::hint::black_box((unsafe { avx512(n_hidden) }, 16)).1,
        () if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => {
            // SAFETY: as above.
            std::hint::black_box((unsafe { avx2(n_hidden) }, 8)).1
        }
        () => 0,
    };
    (n * 10 * lanes * 2) as f64
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add(_: usize) -> f64 {
    0.0
}

fn print(name: &str, threads: usize, amount: f64, seconds: f64, unit: &str) {
    println!("{name}, {threads}, {:.1}, {unit}", amount / seconds / 1e9);
}

fn main() {
    let all = rayon::current_num_threads();
    const N: usize = 10_000_000;
    let operations = multiply_add(1) * N as f64;
    if operations > 0.0 {
        print(
            "fused multiply-add",
            1,
            operations,
            least(|| {
                multiply_add(N);
            }),
            "GFLOP/s",
        );
        let seconds = least(|| {
            (0..all).into_par_iter().with_max_len(1).for_each(|_| {
                multiply_add(N);
            })
        });
        print("fused multiply-add", all, operations * all as f64, seconds, "GFLOP/s");
    }

    let (rows, out, inner) = SHAPE;
    let operations = (2 * rows * out * inner) as f64;
    let (x, w, mut y) = (vec![0.5f32; rows * inner], vec![0.25f32; out * inner], vec![0f32; rows * out]);
    let (left, right) = (MatRef::new(&x, rows, inner), MatRef::new(&w, out, inner).t());
    let seconds = least(|| matmul_serial(MatMut::new(&mut y, rows, out), left, right, 1.0, Accumulate::No));
    print("product by the gemm crate", 1, operations, seconds, "GFLOP/s");
    let seconds = least(|| matmul(MatMut::new(&mut y, rows, out), left, right, 1.0, Accumulate::No));
    print("product by the gemm crate", all, operations, seconds, "GFLOP/s");

    for (numerics, name) in
        [(Numerics::F32, "product with a packed weight"), (Numerics::Bf16, "product with a packed weight, bfloat16")]
    {
        if !numerics.supported_on(&Device::Cpu) {
            continue;
        }
        let weight = PackedWeight::new(w.clone(), out, inner, numerics);
        let tile = tiles(rows, numerics).first().map_or(rows, |tile| tile.len());
        let product = |(x, y): (&[f32], &mut [f32])| weight.product(x, y, Output::Replace);
        let seconds = least(|| x.chunks(tile * inner).zip(y.chunks_mut(tile * out)).for_each(product));
        print(name, 1, operations, seconds, "GFLOP/s");
        let seconds = least(|| x.par_chunks(tile * inner).zip(y.par_chunks_mut(tile * out)).with_max_len(1).for_each(product));
        print(name, all, operations, seconds, "GFLOP/s");
    }

    let (from, mut to) = (vec![1f32; COPY], vec![0f32; COPY]);
    let bytes = (2 * COPY * size_of::<f32>()) as f64;
    print("copy, read and written", 1, bytes, least(|| to.copy_from_slice(&from)), "GB/s");
    let part = COPY.div_ceil(all);
    let seconds = least(|| to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from)));
    print("copy, read and written", all, bytes, seconds, "GB/s");
}
