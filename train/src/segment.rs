//! From logits to masks, for one or several models, over a slice and its reflections.
//!
//! With V variants (the slice, or the slice and its four reflections) and M models,
//!
//! ```text
//! logits_m = 1/V · Σ_v  v⁻¹(model_m(image_v, embeddings_v))       low resolution, each reflected back
//! p        = 1/M · Σ_m  softmax(upsample(logits_m))               no softmax for a single model
//! class    = argmax p
//! ```
//!
//! Published, the class is found at the network's resolution and brought to the scan's by order 0. By [`Resample::Logits`], p is brought there, and the
//! class is found last. A slice at a time is in memory: 4·C·((M + 1)·s² + 2·h·w) bytes for C classes and M models at s pixels and slices of h × w, so
//! 59 MB for 14 classes at 512 pixels, however many slices a scan has.

use crate::agreement::Agreement;
use crate::error::{Result, TrainError};
use crate::model::upsample_masks;
use crate::on_grid::{largest_class, on_grid, relative_entropy};
use candle_core::{DType, Tensor};
use candle_nn::ops::softmax;
use rayon::prelude::*;
use sam_ladder_ops::image::ndimage::zoom_nearest;
use sam_ladder_schemas::eval::Resample;
use sam_ladder_schemas::variants::VariantKind;

/// Masks of slices, `[count, h, w]`, from each model's logits `[count, C, s/4, s/4]`: bilinear to the network's resolution, mean of the
/// probabilities if there are several models, arg-max, order 0 to `[h, w]` (`test_single_volume` of the published `utils.py`).
///
/// # Errors
/// Logits of different shapes.
pub fn masks_of_logits(low_res_logits: &[Tensor], image_size: usize, size: [usize; 2]) -> Result<Vec<u8>> {
    let count = low_res_logits.first().map_or(Ok(0), |logits| logits.dim(0))?;
    let mut out = Vec::with_capacity(count * size[0] * size[1]);
    // One slice at a time: at 1024 pixels a slice's logits take 36 MiB.
    for index in 0..count {
        let upsampled = |logits: &Tensor| upsample_masks(&logits.narrow(0, index, 1)?.contiguous()?, image_size); // [1, C, s, s]
        let scores = match low_res_logits {
            [logits] => upsampled(logits)?,
            several => {
                let mut sum = softmax(&upsampled(&several[0])?, 1)?;
                for logits in &several[1..] {
                    sum = (sum + softmax(&upsampled(logits)?, 1)?)?;
                }
                sum
            }
        };
        let classes = argmax_classes(&scores)?; // [s, s]
        out.extend(zoom_nearest(&classes, [image_size, image_size], size));
    }
    Ok(out)
}

/// What is made of logits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaskRule {
    /// How masks come to the scan's resolution. All else that is made of them comes there in the same way.
    pub resample: Resample,
    /// Also how far the models' own masks agree.
    pub agreement: bool,
    /// Also the probabilities.
    pub probabilities: bool,
    /// Also their entropy.
    pub entropy: bool,
}

/// What was made of the logits of some slices, slice after slice, at the scan's resolution.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segmented {
    /// Classes, `[slices, h, w]`.
    pub mask: Vec<u8>,
    /// How far the models' own masks agree, where that is wanted.
    pub agreement: Agreement,
    /// The probability of each class, the mean over the models, in 255ths; where they are wanted.
    pub probabilities: Vec<Vec<u8>>,
    /// The entropy of these probabilities as a share of ln C, from 0 to 1; where it is wanted.
    pub entropy: Vec<f32>,
}

impl MaskRule {
    /// Adds what it makes of the next slices' logits, each model's `[count, C, s/4, s/4]`, for slices of `size`.
    ///
    /// # Errors
    /// Logits of different shapes.
    pub fn segment(&self, low_res_logits: &[Tensor], image_size: usize, size: [usize; 2], out: &mut Segmented) -> Result<()> {
        let published = self.resample.is_published();
        if published {
            out.mask.extend(masks_of_logits(low_res_logits, image_size, size)?);
        }
        if published && !(self.agreement || self.probabilities || self.entropy) {
            return Ok(());
        }
        let count = low_res_logits.first().map_or(Ok(0), |logits| logits.dim(0))?;
        for slice in 0..count {
            self.segment_slice(low_res_logits, slice, image_size, size, out)?;
        }
        Ok(())
    }

    fn segment_slice(
        &self,
        low_res_logits: &[Tensor],
        slice: usize,
        image_size: usize,
        size: [usize; 2],
        out: &mut Segmented,
    ) -> Result<()> {
        let pixels = size[0] * size[1];
        let (mut mean, mut members): (Vec<f32>, _) = (Vec::new(), Vec::new());
        for logits in low_res_logits {
            let upsampled = upsample_masks(&logits.narrow(0, slice, 1)?.contiguous()?, image_size)?; // [1, C, s, s]
            let of_member: Vec<f32> = softmax(&upsampled, 1)?.flatten_all()?.to_vec1()?;
            if self.agreement {
                // Alone, a model's mask is that of its logits, as anywhere else.
                let own = match self.resample {
                    Resample::Published => masks_of_logits(&[logits.narrow(0, slice, 1)?], image_size, size)?,
                    Resample::Logits => largest_class(&on_grid(&of_member, image_size, size, self.resample), pixels),
                };
                members.push(own);
            }
            match mean.is_empty() {
                true => mean = of_member,
                false => mean.iter_mut().zip(&of_member).for_each(|(mean, p)| *mean += p),
            }
        }
        out.agreement.add(&members);
        let share = 1.0 / low_res_logits.len().max(1) as f32;
        mean.iter_mut().for_each(|mean| *mean *= share);
        let on_grid = on_grid(&mean, image_size, size, self.resample);
        if self.resample == Resample::Logits {
            out.mask.extend(largest_class(&on_grid, pixels));
        }
        if self.entropy {
            out.entropy.extend(relative_entropy(&on_grid, pixels));
        }
        if self.probabilities {
            out.probabilities.resize(on_grid.len() / pixels.max(1), Vec::new());
            for (out, plane) in out.probabilities.iter_mut().zip(on_grid.chunks(pixels.max(1))) {
                out.extend(plane.iter().map(|p| (p * 255.0).round() as u8));
            }
        }
        Ok(())
    }
}

/// The class with the highest logit per pixel, the first in a tie, as in `torch.argmax`: `[b, C, h, w]` → `[b, h, w]`.
///
/// # Errors
/// A tensor of another rank.
pub fn argmax_classes(logits: &Tensor) -> Result<Vec<u8>> {
    let (b, c, h, w) = logits.dims4()?;
    let pixels = h * w;
    let values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut classes = vec![0u8; b * pixels];
    let images = classes.par_chunks_mut(pixels).zip(values.par_chunks(c * pixels));
    images.for_each(|(classes, values)| classes.copy_from_slice(&largest_class(values, pixels)));
    Ok(classes)
}

/// Applies a variant that is a reflection, and so its own inverse, to `[b, c, n, n]`: `np.flip(np.rot90(x, k), axis)` of each plane.
pub(crate) fn reflected(x: &Tensor, kind: VariantKind) -> Result<Tensor> {
    Ok(match kind {
        VariantKind::Identity => x.clone(),
        VariantKind::Reflection { k: 0, axis } => x.flip(&[2 + usize::from(axis)])?,
        VariantKind::Reflection { k: 1, axis: 0 } => x.transpose(2, 3)?.contiguous()?,
        VariantKind::Reflection { k: 1, .. } => x.transpose(2, 3)?.contiguous()?.flip(&[2, 3])?,
        other => return Err(TrainError::NotAReflection(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use sam_ladder_ops::image::ndimage::{flip, rot90};
    use sam_ladder_schemas::variants::{AugmentPolicy, variants};

    #[test]
    fn logits_come_back_from_each_reflection() {
        let n = 5;
        let plane: Vec<f32> = (0..n * n).map(|i| i as f32).collect();
        for variant in variants(AugmentPolicy::Flips, 1) {
            let made = match variant.kind {
                VariantKind::Reflection { k, axis } => flip(&rot90(&plane, [n, n], k.into()).0, [n, n], axis.into()),
                _ => plane.clone(),
            };
            let other: Vec<f32> = made.iter().map(|x| -x).collect();
            let made = Tensor::from_vec([made, other].concat(), (1, 2, n, n), &Device::Cpu).unwrap();
            let back = reflected(&made, variant.kind).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(back[..n * n], plane, "{}", variant.name());
            assert!(back[n * n..].iter().zip(&plane).all(|(a, b)| *a == -b));
        }
        let rotation = VariantKind::Rotation { angle_degrees: 3 };
        assert!(reflected(&Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap(), rotation).is_err());
    }

    #[test]
    fn several_models_vote_by_their_probabilities() {
        // One pixel: a model that is nearly sure of class 1 outweighs two that lean towards class 0.
        let model = |logits: [f32; 2]| Tensor::from_vec(logits.to_vec(), (1, 2, 1, 1), &Device::Cpu).unwrap();
        let (leaning, sure) = (model([0.2, 0.0]), model([0.0, 5.0]));
        assert_eq!(masks_of_logits(std::slice::from_ref(&leaning), 1, [2, 1]).unwrap(), [0, 0]);
        assert_eq!(masks_of_logits(&[leaning.clone(), leaning, sure], 1, [1, 1]).unwrap(), [1]);
        // By logits class 0 would win, 30 against 2 · 9.
        let [far, near] = [model([30.0, 0.0]), model([0.0, 9.0])];
        assert_eq!(masks_of_logits(&[far, near.clone(), near], 1, [1, 1]).unwrap(), [1]);
        assert!(masks_of_logits(&[], 1, [1, 1]).unwrap().is_empty());
    }

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 100.0 - 5.0).collect()
    }

    /// Everything that is made of logits follows from the probabilities on the scan's grid, which PyTorch's way of interpolating defines.
    #[test]
    fn what_is_made_of_the_logits_goes_together() {
        let (classes, low, size) = (4, 3, [7, 9]);
        let logits = |seed| Tensor::from_vec(noise(2 * classes * low * low, seed), (2, classes, low, low), &Device::Cpu).unwrap();
        let models = [logits(1), logits(2)];
        for resample in [Resample::Published, Resample::Logits] {
            let rule = MaskRule { resample, agreement: true, probabilities: true, entropy: true };
            let mut all = Segmented::default();
            rule.segment(&models, 4 * low, size, &mut all).unwrap();
            let pixels = 2 * size[0] * size[1];
            assert_eq!((all.mask.len(), all.probabilities.len(), all.entropy.len()), (pixels, classes, pixels));
            let plain = MaskRule { resample, ..MaskRule::default() };
            let mut mask = Segmented::default();
            plain.segment(&models, 4 * low, size, &mut mask).unwrap();
            assert_eq!(mask, Segmented { mask: all.mask.clone(), ..Segmented::default() });
            let own = [0, 1].map(|model| {
                let mut own = Segmented::default();
                plain.segment(&models[model..=model], 4 * low, size, &mut own).unwrap();
                own.mask
            });
            let mut agreement = Agreement::default();
            agreement.add(&own);
            assert_eq!((all.agreement.members(), all.agreement.mean_dice(1)), (2, agreement.mean_dice(1)));
            for pixel in 0..pixels {
                let p: Vec<f32> = all.probabilities.iter().map(|plane| f32::from(plane[pixel]) / 255.0).collect();
                assert!((p.iter().sum::<f32>() - 1.0).abs() < 0.01);
                let most = p.iter().fold(0.0, |most: f32, p| most.max(*p));
                assert!(p[usize::from(all.mask[pixel])] > most - 0.005, "the mask is the most probable class");
                let entropy = -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f32>() / 4.0f32.ln();
                assert!((entropy - all.entropy[pixel]).abs() < 0.02, "{entropy} {}", all.entropy[pixel]);
            }
            let published = masks_of_logits(&models, 4 * low, size).unwrap();
            assert_eq!(all.mask == published, resample == Resample::Published);
        }
    }

    #[test]
    fn argmax_takes_the_first_of_equals() {
        // [1, 3, 1, 3]: a tie of all, a tie of the last two, a clear middle.
        let logits = Tensor::new(&[[[[1f32, 0.0, 0.0]], [[1.0, 2.0, 5.0]], [[1.0, 2.0, 4.0]]]], &Device::Cpu).unwrap();
        assert_eq!(argmax_classes(&logits).unwrap(), [0, 1, 1]);
    }
}
