//! The losses and their gradients on the CPU: one pass over the logits for the sums, one over the probabilities for the gradient.

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Region, SegmentationLoss};
use crate::cpu::with_f32;
use crate::dice_ce::LossParts;

/// Pixels per block of the softmax.
const BLOCK: usize = 64;

/// As [`super::segmentation_loss`].
pub(super) fn segmentation_loss(logits: &Tensor, labels: &Tensor, loss: &SegmentationLoss) -> Result<LossParts> {
    let (b, c, h, w) = logits.dims4()?;
    let pixels = Pixels {
        labels: label_bytes(labels, c, loss.ignore)?,
        weights: loss.weights.to_vec1()?,
        gamma: loss.gamma as f32,
        unions: loss.unions.as_ref().map(Unions::new).transpose()?,
    };
    let (mut p, sums) = with_f32(logits, "segmentation_loss", |logits| Ok(pixels.softmax_and_sums(logits, h * w)))?;
    let a = if sums.weight > 0.0 { sums.pixel / sums.weight } else { 0.0 };
    let (region, slopes) = sums.region(loss);
    let total = (1.0 - loss.lambda) * a + loss.lambda * region;
    let share = if sums.weight > 0.0 { (1.0 - loss.lambda) / sums.weight } else { 0.0 };
    pixels.probabilities_to_gradient(&mut p, h * w, share as f32, &slopes);
    let numbers = [total, a, region].map(|number| number as f32);
    Ok(LossParts { numbers: Tensor::new(&numbers, &Device::Cpu)?, gradient: Tensor::from_vec(p, (b, c, h, w), &Device::Cpu)? })
}

/// `[b, h, w]` labels, each checked to be a class; `None` for one that does not count.
fn label_bytes(labels: &Tensor, classes: usize, ignore: Option<u8>) -> Result<Vec<Option<u8>>> {
    let labels: Vec<u32> = match labels.dtype() {
        DType::U8 => labels.flatten_all()?.to_vec1::<u8>()?.into_iter().map(u32::from).collect(),
        DType::U32 => labels.flatten_all()?.to_vec1::<u32>()?,
        other => bail!("labels are {other:?}, expected u8 or u32"),
    };
    if classes > 255 {
        bail!("the loss knows up to 255 classes, got {classes}");
    }
    let class = |label: u32| match label {
        label if ignore.map(u32::from) == Some(label) => Ok(None),
        label if (label as usize) < classes => Ok(Some(label as u8)),
        label => bail!("label {label} is no class, expected a value below {classes}"),
    };
    labels.into_iter().map(class).collect()
}

/// The weights of generalised Dice: one over the squared volume, and the largest of these for a class that does not occur.
pub(super) fn volume_weights(volumes: &[f64]) -> Vec<f64> {
    let weight = |volume: f64| if volume > 0.0 { 1.0 / (volume * volume) } else { 0.0 };
    let largest = volumes.iter().map(|&volume| weight(volume)).fold(0.0, f64::max);
    volumes.iter().map(|&volume| if volume > 0.0 { weight(volume) } else { largest }).collect()
}

/// Unions of classes.
struct Unions {
    /// The classes of each.
    members: Vec<Vec<usize>>,
    /// For each class the unions that it belongs to.
    of_class: Vec<Vec<usize>>,
}

impl Unions {
    fn new(unions: &Tensor) -> Result<Self> {
        let belongs: Vec<Vec<f32>> = unions.to_vec2()?;
        let classes = unions.dim(1)?;
        let members = belongs.iter().map(|row| (0..classes).filter(|&class| row[class] > 0.0).collect()).collect();
        let of_class = (0..classes).map(|class| (0..belongs.len()).filter(|&union| belongs[union][class] > 0.0).collect());
        Ok(Unions { members, of_class: of_class.collect() })
    }
}

/// The sums over the pixels that count; by union where there are unions, else by class.
#[derive(Clone)]
struct Sums {
    /// Σ w·(1 - p)^γ·(-log p) of each pixel's class.
    pixel: f64,
    /// Σ w of each pixel's class.
    weight: f64,
    /// Σ p·t, by class.
    both: Vec<f64>,
    /// Σ p², by class.
    squares: Vec<f64>,
    /// Σ p, by class.
    predicted: Vec<f64>,
    /// Σ t, by class.
    there: Vec<f64>,
}

/// λ·dB/dp = toward·t + away·p + flat, by class.
struct Slopes {
    toward: Vec<f32>,
    away: Vec<f32>,
    flat: Vec<f32>,
}

impl Sums {
    fn new(classes: usize) -> Self {
        let zeros = || vec![0.0; classes];
        Sums { pixel: 0.0, weight: 0.0, both: zeros(), squares: zeros(), predicted: zeros(), there: zeros() }
    }

    fn add(&mut self, other: &Sums) {
        self.pixel += other.pixel;
        self.weight += other.weight;
        let all = [
            (&mut self.both, &other.both),
            (&mut self.squares, &other.squares),
            (&mut self.predicted, &other.predicted),
            (&mut self.there, &other.there),
        ];
        for (mine, theirs) in all {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        }
    }

    /// Adds some pixels' probabilities `[C, pixels]`, from `start` on.
    fn add_unions(&mut self, unions: &Unions, p: &[f32], labels: &[Option<u8>], (pixels, start): (usize, usize)) {
        for (union, members) in unions.members.iter().enumerate() {
            for (i, own) in labels.iter().enumerate() {
                let Some(own) = own.map(usize::from) else { continue };
                let q = f64::from(members.iter().map(|class| p[class * pixels + start + i]).sum::<f32>());
                self.squares[union] += q * q;
                self.predicted[union] += q;
                if members.contains(&own) {
                    self.both[union] += q;
                    self.there[union] += 1.0;
                }
            }
        }
    }

    /// B and its slopes.
    fn region(&self, loss: &SegmentationLoss) -> (f64, Slopes) {
        let (classes, smooth, lambda) = (self.both.len(), loss.smooth, loss.lambda);
        let mean = lambda / classes as f64;
        let weights = volume_weights(&self.there);
        let weighed = |of: &dyn Fn(usize) -> f64| (0..classes).map(|class| weights[class] * of(class)).sum::<f64>();
        let numerator = 2.0 * weighed(&|class| self.both[class]) + smooth;
        let denominator = weighed(&|class| self.predicted[class] + self.there[class]) + smooth;
        // Of each class: its part of the similarity, and the slopes.
        let of_class = |class: usize| -> [f64; 4] {
            let (both, there) = (self.both[class], self.there[class]);
            match loss.region {
                Region::Dice => {
                    let (up, down) = (2.0 * both + smooth, self.squares[class] + there + smooth);
                    [up / down / classes as f64, -2.0 * mean / down, 2.0 * mean * up / (down * down), 0.0]
                }
                Region::Tversky { alpha, beta } => {
                    let up = both + smooth;
                    let down = both + alpha * (self.predicted[class] - both) + beta * (there - both) + smooth;
                    let steep = mean * up / (down * down);
                    [up / down / classes as f64, -mean / down + steep * (1.0 - alpha - beta), 0.0, steep * alpha]
                }
                Region::GeneralisedDice => {
                    let flat = lambda * weights[class] * numerator / (denominator * denominator);
                    [0.0, -2.0 * lambda * weights[class] / denominator, 0.0, flat]
                }
            }
        };
        let by_class: Vec<[f64; 4]> = (0..classes).map(of_class).collect();
        let column = |at: usize| by_class.iter().map(|numbers| numbers[at] as f32).collect();
        let similarity = match loss.region {
            Region::GeneralisedDice => numerator / denominator,
            Region::Dice | Region::Tversky { .. } => by_class.iter().map(|numbers| numbers[0]).sum(),
        };
        (1.0 - similarity, Slopes { toward: column(1), away: column(2), flat: column(3) })
    }
}

/// The pixels' labels, and how much they weigh.
struct Pixels {
    labels: Vec<Option<u8>>,
    weights: Vec<f32>,
    gamma: f32,
    /// `None` if each class is by itself.
    unions: Option<Unions>,
}

impl Pixels {
    /// Number of unions, or of classes.
    fn parts(&self) -> usize {
        self.unions.as_ref().map_or(self.weights.len(), |unions| unions.members.len())
    }

    /// Softmax over the classes of `[b, C, pixels]`, and the sums; summed image by image in order, so the result does not depend on
    /// the number of threads.
    fn softmax_and_sums(&self, logits: &[f32], pixels: usize) -> (Vec<f32>, Sums) {
        let classes = self.weights.len();
        let mut p = vec![0.0f32; logits.len()];
        let by_image: Vec<Sums> = p
            .par_chunks_mut(classes * pixels)
            .zip(logits.par_chunks(classes * pixels))
            .zip(self.labels.par_chunks(pixels))
            .map(|((p, logits), labels)| self.softmax_image(p, logits, labels))
            .collect();
        let mut sums = Sums::new(self.parts());
        by_image.iter().for_each(|image| sums.add(image));
        (p, sums)
    }

    /// One image of [`Self::softmax_and_sums`]: `[C, pixels]`.
    fn softmax_image(&self, p: &mut [f32], logits: &[f32], labels: &[Option<u8>]) -> Sums {
        let (pixels, classes) = (labels.len(), self.weights.len());
        let mut sums = Sums::new(self.parts());
        for start in (0..pixels).step_by(BLOCK) {
            let n = BLOCK.min(pixels - start);
            let mut largest = [f32::NEG_INFINITY; BLOCK];
            for class in 0..classes {
                let row = &logits[class * pixels + start..][..n];
                largest.iter_mut().zip(row).for_each(|(largest, &x)| *largest = largest.max(x));
            }
            // Σ exp over all classes, and over those that are not the pixel's.
            let (mut total, mut others) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
            for class in 0..classes {
                for i in 0..n {
                    let e = (logits[class * pixels + start + i] - largest[i]).exp();
                    p[class * pixels + start + i] = e;
                    total[i] += e;
                    others[i] += if labels[start + i] == Some(class as u8) { 0.0 } else { e };
                }
            }
            for class in 0..classes {
                let (mut squares, mut predicted) = (0.0f32, 0.0f32);
                for i in 0..n {
                    let out = &mut p[class * pixels + start + i];
                    *out /= total[i];
                    let counted = if labels[start + i].is_some() { *out } else { 0.0 };
                    squares += counted * counted;
                    predicted += counted;
                }
                if self.unions.is_none() {
                    sums.squares[class] += f64::from(squares);
                    sums.predicted[class] += f64::from(predicted);
                }
            }
            if let Some(unions) = &self.unions {
                sums.add_unions(unions, p, &labels[start..][..n], (pixels, start));
            }
            for i in 0..n {
                let Some(own) = labels[start + i].map(usize::from) else { continue };
                let at = own * pixels + start + i;
                let log_p = f64::from(logits[at] - largest[i]) - f64::from(total[i].ln());
                sums.pixel -= f64::from(self.weights[own] * focus(others[i] / total[i], self.gamma)) * log_p;
                sums.weight += f64::from(self.weights[own]);
                if self.unions.is_none() {
                    sums.both[own] += f64::from(p[at]);
                    sums.there[own] += 1.0;
                }
            }
        }
        sums
    }

    /// Overwrites the probabilities `[b, C, pixels]` with the loss's gradient for the logits; `share` is (1 - λ) / Σ w.
    fn probabilities_to_gradient(&self, p: &mut [f32], pixels: usize, share: f32, slopes: &Slopes) {
        let classes = self.weights.len();
        p.par_chunks_mut(classes * pixels).zip(self.labels.par_chunks(pixels)).for_each(|(p, labels)| {
            for (i, label) in labels.iter().enumerate() {
                let at = |class: usize| class * pixels + i;
                let Some(own) = label.map(usize::from) else {
                    (0..classes).for_each(|class| p[at(class)] = 0.0);
                    continue;
                };
                let other: f32 = (0..classes).filter(|&class| class != own).map(|class| p[at(class)]).sum();
                let pull = share * self.weights[own] * self.pull(p[at(own)], other);
                let own_part = |part: usize, is_own: bool, p: f32| {
                    let toward = if is_own { slopes.toward[part] } else { 0.0 };
                    toward + slopes.away[part] * p + slopes.flat[part]
                };
                let of_unions: Option<Vec<f32>> = self.unions.as_ref().map(|unions| {
                    let of_union = |(union, members): (usize, &Vec<usize>)| {
                        own_part(union, members.contains(&own), members.iter().map(|&class| p[at(class)]).sum())
                    };
                    let slopes: Vec<f32> = unions.members.iter().enumerate().map(of_union).collect();
                    unions.of_class.iter().map(|of| of.iter().map(|&union| slopes[union]).sum()).collect()
                });
                let slope = |class: usize, p: f32| match &of_unions {
                    Some(slopes) => slopes[class],
                    None => own_part(class, class == own, p),
                };
                // Σ over the classes of p·dB/dp
                let inner: f32 = (0..classes).map(|class| p[at(class)] * slope(class, p[at(class)])).sum();
                for class in 0..classes {
                    let own_p = p[at(class)];
                    let t = if class == own { 1.0 } else { 0.0 };
                    p[at(class)] = pull * (own_p - t) + own_p * (slope(class, own_p) - inner);
                }
            }
        });
    }

    /// -p·d/dp of (1 - p)^γ·(-log p), which for γ = 0 is 1; `other` is 1 - p.
    fn pull(&self, p: f32, other: f32) -> f32 {
        let gamma = self.gamma;
        if gamma == 0.0 {
            return 1.0;
        }
        // Both terms vanish with 1 - p, the second as (1 - p)^γ. A probability of 0 has a finite p·log p.
        let second = if other > 0.0 && p > 0.0 { gamma * p * other.powf(gamma - 1.0) * p.ln() } else { 0.0 };
        focus(other, gamma) - second
    }
}

/// (1 - p)^γ.
fn focus(other: f32, gamma: f32) -> f32 {
    if gamma == 0.0 { 1.0 } else { other.powf(gamma) }
}
