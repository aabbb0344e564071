//! From logits to masks, for one or several models, over a slice and its reflections.
//!
//! With V variants (the slice, or the slice and its four reflections) and M models,
//!
//! ```text
//! logits_m = 1/V · Σ_v  v⁻¹(model_m(image_v, embeddings_v))       low resolution, each reflected back
//! p        = 1/M · Σ_m  softmax(upsample(logits_m))               no softmax for a single model
//! class    = argmax p
//! ```

use crate::error::{Result, TrainError};
use crate::model::upsample_masks;
use candle_core::{DType, Tensor};
use candle_nn::ops::softmax;
use rayon::prelude::*;
use sam_ladder_ops::image::ndimage::zoom_nearest;
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

/// The class with the highest logit per pixel, the first in a tie, as in `torch.argmax`: `[b, C, h, w]` → `[b, h, w]`.
///
/// # Errors
/// A tensor of another rank.
pub fn argmax_classes(logits: &Tensor) -> Result<Vec<u8>> {
    let (b, c, h, w) = logits.dims4()?;
    let pixels = h * w;
    let values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut classes = vec![0u8; b * pixels];
    classes.par_chunks_mut(pixels).zip(values.par_chunks(c * pixels)).for_each(|(classes, values)| {
        let mut best = values[..pixels].to_vec();
        for class in 1..c {
            let row = &values[class * pixels..][..pixels];
            for ((class_here, best), &value) in classes.iter_mut().zip(&mut best).zip(row) {
                if value > *best {
                    *best = value;
                    *class_here = class as u8;
                }
            }
        }
    });
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

    #[test]
    fn argmax_takes_the_first_of_equals() {
        // [1, 3, 1, 3]: a tie of all, a tie of the last two, a clear middle.
        let logits = Tensor::new(&[[[[1f32, 0.0, 0.0]], [[1.0, 2.0, 5.0]], [[1.0, 2.0, 4.0]]]], &Device::Cpu).unwrap();
        assert_eq!(argmax_classes(&logits).unwrap(), [0, 1, 1]);
    }
}
