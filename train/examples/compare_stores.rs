//! Measures the effect of a store's number format: `compare_stores REFERENCE OTHER RUN` compares the test slices of two stores of the same
//! scans, and the logits of the run's model on them. Errors are absolute; the reference's standard deviation is printed with them.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_schemas::classes::Split;
use sam_ladder_train::{RunCheckpoint, WeightSource, load_model};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Largest and root-mean-square difference, and the standard deviation of `expected`.
fn errors(found: &[f32], expected: &[f32]) -> [f64; 3] {
    let n = expected.len() as f64;
    let differences = || found.iter().zip(expected).map(|(f, e)| f64::from(f - e).abs());
    let mean = expected.iter().map(|&e| f64::from(e)).sum::<f64>() / n;
    let variance = expected.iter().map(|&e| (f64::from(e) - mean).powi(2)).sum::<f64>() / n;
    [differences().fold(0.0, f64::max), (differences().map(|d| d * d).sum::<f64>() / n).sqrt(), variance.sqrt()]
}

fn main() -> Outcome<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [reference, other, run] = paths.as_slice() else { return Err("usage: compare_stores REFERENCE OTHER RUN".into()) };
    let (reference, other) = (Store::open(reference)?, Store::open(other)?);
    let weights = WeightSource::Run { folder: run.clone(), checkpoint: RunCheckpoint::Last };
    let model = load_model(&weights, &reference, &Device::Cpu)?;
    let (s, g) = (reference.config().image_size, reference.config().grid_size());
    let picks: Vec<(u32, u32)> = (0..reference.slices(Split::Test).len() as u32).map(|row| (row, 0)).collect();
    let read = |store: &Store| -> Outcome<[Vec<f32>; 3]> {
        let mut all = [Vec::new(), Vec::new(), Vec::new()];
        let mut batch = Batch::default();
        for picks in picks.chunks(8) {
            store.read_batch(Split::Test, picks, &mut batch)?;
            let (embeddings, images) = (batch.embeddings.to_vec(), batch.images.to_vec());
            let logits = model.forward(
                &Tensor::from_slice(&images, (picks.len(), 1, s, s), &Device::Cpu)?,
                &Tensor::from_slice(&embeddings, (picks.len(), 256, g, g), &Device::Cpu)?,
            )?;
            for (all, part) in all.iter_mut().zip([embeddings, images, logits.flatten_all()?.to_vec1()?]) {
                all.extend(part);
            }
        }
        Ok(all)
    };
    let (expected, found) = (read(&reference)?, read(&other)?);
    for (i, name) in ["embeddings", "images", "logits"].into_iter().enumerate() {
        let [largest, rms, deviation] = errors(&found[i], &expected[i]);
        println!("{name}: largest {largest:.2e}, rms {rms:.2e}, deviation {deviation:.3}");
    }
    Ok(())
}
