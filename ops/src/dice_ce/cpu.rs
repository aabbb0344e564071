//! The loss of equation (4) and its gradient on the CPU, in one pass over the logits.

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::LossParts;
use crate::cpu::with_f32;

/// Pixels per block of the softmax.
const BLOCK: usize = 64;

/// As [`super::dice_ce`].
pub(super) fn dice_ce(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<LossParts> {
    let (b, c, h, w) = logits.dims4()?;
    let labels = label_bytes(labels, c)?;
    let (mut p, sums) = with_f32(logits, "dice_ce", |logits| Ok(softmax_and_sums(logits, &labels, c, h * w)))?;
    let pixels = (b * h * w) as f64;
    let ce = sums.log_likelihood / -pixels;
    let numerator = |class: usize| 2.0 * sums.intersection[class] + smooth;
    let denominator = |class: usize| sums.squares[class] + sums.count[class] + smooth;
    let dice = 1.0 - (0..c).map(|class| numerator(class) / denominator(class)).sum::<f64>() / c as f64;
    let total = (1.0 - lambda) * ce + lambda * dice;
    // dDice/dp = toward·t + away·p
    let toward: Vec<f32> = (0..c).map(|class| (-2.0 * lambda / c as f64 / denominator(class)) as f32).collect();
    let away: Vec<f32> =
        (0..c).map(|class| (2.0 * lambda / c as f64 * numerator(class) / denominator(class).powi(2)) as f32).collect();
    let weights = GradientWeights { ce: ((1.0 - lambda) / pixels) as f32, toward, away };
    probabilities_to_gradient(&mut p, &labels, h * w, &weights);
    let numbers = [total, ce, dice].map(|number| number as f32);
    Ok(LossParts { numbers: Tensor::new(&numbers, &Device::Cpu)?, gradient: Tensor::from_vec(p, (b, c, h, w), &Device::Cpu)? })
}

/// `[b, h, w]` labels as bytes, each checked to be a class.
fn label_bytes(labels: &Tensor, classes: usize) -> Result<Vec<u8>> {
    let labels: Vec<u32> = match labels.dtype() {
        DType::U8 => labels.flatten_all()?.to_vec1::<u8>()?.into_iter().map(u32::from).collect(),
        DType::U32 => labels.flatten_all()?.to_vec1::<u32>()?,
        other => bail!("labels are {other:?}, expected u8 or u32"),
    };
    if classes > 256 {
        bail!("the loss knows up to 256 classes, got {classes}");
    }
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(label) => bail!("label {label} is no class, expected a value below {classes}"),
        None => Ok(labels.into_iter().map(|label| label as u8).collect()),
    }
}

/// The sums over all pixels that the loss needs.
#[derive(Clone)]
struct Sums {
    /// Σ log p of each pixel's class.
    log_likelihood: f64,
    /// Σ p·t, by class.
    intersection: Vec<f64>,
    /// Σ p², by class.
    squares: Vec<f64>,
    /// Σ t, by class.
    count: Vec<f64>,
}

impl Sums {
    fn new(classes: usize) -> Self {
        Sums { log_likelihood: 0.0, intersection: vec![0.0; classes], squares: vec![0.0; classes], count: vec![0.0; classes] }
    }

    fn add(&mut self, other: &Sums) {
        self.log_likelihood += other.log_likelihood;
        for (mine, theirs) in
            [(&mut self.intersection, &other.intersection), (&mut self.squares, &other.squares), (&mut self.count, &other.count)]
        {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        }
    }
}

/// Softmax over the classes of `[b, C, pixels]`, and the sums; summed image by image in order, so the result does not depend on
/// the number of threads.
fn softmax_and_sums(logits: &[f32], labels: &[u8], classes: usize, pixels: usize) -> (Vec<f32>, Sums) {
    let mut p = vec![0.0f32; logits.len()];
    let by_image: Vec<Sums> = p
        .par_chunks_mut(classes * pixels)
        .zip(logits.par_chunks(classes * pixels))
        .zip(labels.par_chunks(pixels))
        .map(|((p, logits), labels)| softmax_image(p, logits, labels, classes))
        .collect();
    let mut sums = Sums::new(classes);
    by_image.iter().for_each(|image| sums.add(image));
    (p, sums)
}

/// One image of [`softmax_and_sums`]: `[C, pixels]`.
fn softmax_image(p: &mut [f32], logits: &[f32], labels: &[u8], classes: usize) -> Sums {
    let pixels = labels.len();
    let mut sums = Sums::new(classes);
    for start in (0..pixels).step_by(BLOCK) {
        let n = BLOCK.min(pixels - start);
        let mut max = [f32::NEG_INFINITY; BLOCK];
        for class in 0..classes {
            let row = &logits[class * pixels + start..][..n];
            max.iter_mut().zip(row).for_each(|(max, &x)| *max = max.max(x));
        }
        let mut total = [0.0f32; BLOCK];
        for class in 0..classes {
            let row = &logits[class * pixels + start..][..n];
            let out = &mut p[class * pixels + start..][..n];
            for i in 0..n {
                out[i] = (row[i] - max[i]).exp();
                total[i] += out[i];
            }
        }
        for class in 0..classes {
            let out = &mut p[class * pixels + start..][..n];
            let mut squares = 0.0f32;
            for i in 0..n {
                out[i] /= total[i];
                squares += out[i] * out[i];
            }
            sums.squares[class] += f64::from(squares);
        }
        for i in 0..n {
            let own = usize::from(labels[start + i]);
            let at = own * pixels + start + i;
            sums.intersection[own] += f64::from(p[at]);
            sums.count[own] += 1.0;
            sums.log_likelihood += f64::from(logits[at] - max[i]) - f64::from(total[i].ln());
        }
    }
    sums
}

/// Factors of the gradient, see [`dice_ce`].
struct GradientWeights {
    ce: f32,
    toward: Vec<f32>,
    away: Vec<f32>,
}

/// Overwrites the probabilities `[b, C, pixels]` with the loss's gradient for the logits.
fn probabilities_to_gradient(p: &mut [f32], labels: &[u8], pixels: usize, weights: &GradientWeights) {
    let classes = weights.away.len();
    p.par_chunks_mut(classes * pixels).zip(labels.par_chunks(pixels)).for_each(|(p, labels)| {
        for start in (0..pixels).step_by(BLOCK) {
            let n = BLOCK.min(pixels - start);
            // Σ over the classes of p·dDice/dp
            let mut inner = [0.0f32; BLOCK];
            for class in 0..classes {
                let row = &p[class * pixels + start..][..n];
                for i in 0..n {
                    inner[i] += weights.away[class] * row[i] * row[i];
                }
            }
            let mut own = [0.0f32; BLOCK];
            for i in 0..n {
                let class = usize::from(labels[start + i]);
                own[i] = p[class * pixels + start + i];
                inner[i] += weights.toward[class] * own[i];
            }
            for class in 0..classes {
                let row = &mut p[class * pixels + start..][..n];
                for i in 0..n {
                    row[i] *= weights.ce + weights.away[class] * row[i] - inner[i];
                }
            }
            for i in 0..n {
                let class = usize::from(labels[start + i]);
                p[class * pixels + start + i] += weights.toward[class] * own[i] - weights.ce;
            }
        }
    });
}
