//! Averages at test time: of one model over a slice and its reflections, of several models over their probabilities.
//!
//! Both are taken of what the store holds: neither needs the encoder. With V variants (the slice, and its four reflections where the
//! store has them) and M models,
//!
//! ```text
//! logits_m = 1/V · Σ_v  v⁻¹(model_m(image_v, embeddings_v))       low resolution, each reflected back
//! p        = 1/M · Σ_m  softmax(upsample(logits_m))               one model's logits are compared as they are
//! class    = argmax p
//! ```

use crate::error::{Result, TrainError};
use crate::model::{LadderSam, upsample_masks};
use crate::predict::{CasePrediction, CaseRequest, WeightSource, argmax_classes, identity_variant, load_model};
use crate::run::step::{Geometry, input_tensors};
use candle_core::{Device, Tensor};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_ops::ndimage::zoom_nearest;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::variants::VariantKind;

/// Models that segment together.
pub struct Ensemble {
    models: Vec<LadderSam>,
    average_reflections: bool,
}

impl Ensemble {
    /// Loads the models for a store's images.
    ///
    /// # Errors
    /// No source; whatever [`load_model`] refuses; `average_reflections` with a store that holds no reflections of its test slices.
    pub fn load(sources: &[WeightSource], average_reflections: bool, store: &Store, device: &Device) -> Result<Self> {
        if sources.is_empty() {
            return Err(TrainError::Input("an ensemble needs at least one model".into()));
        }
        if average_reflections {
            averaged_variants(store, Split::Test)?;
        }
        let models = sources.iter().map(|source| load_model(source, store, device)).collect::<Result<_>>()?;
        Ok(Ensemble { models, average_reflections })
    }

    /// Predicts one case of a store at the scan's own resolution, as [`predict_case`](crate::predict::predict_case) does with one model.
    ///
    /// # Errors
    /// A case that is not in the split, or a damaged store.
    pub fn predict_case(&self, store: &Store, request: CaseRequest) -> Result<CasePrediction> {
        let CaseRequest { split, case, batch_size } = request;
        let rows: Vec<u32> = store.case_rows(split, case)?.collect();
        let Some(slice) = rows.first().map(|&row| &store.slices(split)[row as usize]) else {
            return Err(TrainError::Input(format!("case {case} of {} has no slices", store.path().display())));
        };
        let [h, w] = slice.size.map(|side| side as usize);
        let mut mask = Vec::with_capacity(rows.len() * h * w);
        for rows in rows.chunks(batch_size.max(1)) {
            mask.extend(masks_of_logits(&self.mean_logits(store, split, rows)?, store.config().image_size, [h, w])?);
        }
        Ok(CasePrediction { case: case.to_string(), mask, shape: [rows.len(), h, w], spacing_mm: slice.spacing_mm })
    }

    /// Each model's logits of slices, `[rows, C, s/4, s/4]`: over the identity, or the mean over it and the reflections.
    ///
    /// # Errors
    /// A row that is not in the split, a damaged store, or one without reflections where they are asked for.
    pub fn mean_logits(&self, store: &Store, split: Split, rows: &[u32]) -> Result<Vec<Tensor>> {
        let variants = match self.average_reflections {
            true => averaged_variants(store, split)?,
            false => vec![(identity_variant(store, split)?, VariantKind::Identity)],
        };
        let geometry = Geometry::of(store.config());
        let mut batch = Batch::default();
        let mut sums: Vec<Option<Tensor>> = vec![None; self.models.len()];
        for &(variant, kind) in &variants {
            let picks: Vec<(u32, u32)> = rows.iter().map(|&row| (row, variant)).collect();
            store.read_batch(split, &picks, &mut batch)?;
            for (model, sum) in self.models.iter().zip(&mut sums) {
                let (images, embeddings) = input_tensors(&batch, rows.len(), geometry, model.image_pe().device())?;
                let logits = reflected(&model.forward(&images, &embeddings)?, kind)?;
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + logits)?,
                    None => logits,
                });
            }
        }
        let mean = |sum: Tensor| if variants.len() > 1 { sum / variants.len() as f64 } else { Ok(sum) };
        Ok(sums.into_iter().flatten().map(mean).collect::<candle_core::Result<_>>()?)
    }
}

/// Indices and kinds of a split's identity and reflections.
fn averaged_variants(store: &Store, split: Split) -> Result<Vec<(u32, VariantKind)>> {
    let kinds = store.variants(split).iter().map(|variant| variant.kind).enumerate();
    let variants: Vec<(u32, VariantKind)> = kinds
        .filter(|(_, kind)| matches!(kind, VariantKind::Identity | VariantKind::Reflection { .. }))
        .map(|(index, kind)| (index as u32, kind))
        .collect();
    if variants.len() < 2 {
        return Err(TrainError::Input(format!(
            "{} holds no reflections of its {split} slices to average over: run precompute again with --test-augment flips, which encodes \
             them alone, or leave --average-reflections out",
            store.path().display()
        )));
    }
    Ok(variants)
}

/// `[b, c, n, n]` under a variant that is a reflection, and so its own inverse: `np.flip(np.rot90(x, k), axis)` of each plane.
fn reflected(x: &Tensor, kind: VariantKind) -> Result<Tensor> {
    Ok(match kind {
        VariantKind::Identity => x.clone(),
        VariantKind::Reflection { k: 0, axis } => x.flip(&[2 + usize::from(axis)])?,
        VariantKind::Reflection { k: 1, axis: 0 } => x.transpose(2, 3)?.contiguous()?,
        VariantKind::Reflection { k: 1, .. } => x.transpose(2, 3)?.contiguous()?.flip(&[2, 3])?,
        other => return Err(TrainError::Input(format!("logits cannot be brought back from the variant {other:?}"))),
    })
}

/// Masks of slices from each model's logits `[count, C, s/4, s/4]`: bilinear to the network's resolution, the mean of the probabilities where
/// there are several models, arg-max, order 0 to `[h, w]` (`test_single_volume` of the published `utils.py`); `[count, h, w]`.
///
/// # Errors
/// Logits of different shapes.
pub fn masks_of_logits(low_res_logits: &[Tensor], image_size: usize, size: [usize; 2]) -> Result<Vec<u8>> {
    let count = low_res_logits.first().map_or(Ok(0), |logits| logits.dim(0))?;
    let mut out = Vec::with_capacity(count * size[0] * size[1]);
    // One slice at a time: at 1024 pixels its logits take 36 MiB.
    for index in 0..count {
        let upsampled = |logits: &Tensor| upsample_masks(&logits.narrow(0, index, 1)?.contiguous()?, image_size); // [1, C, s, s]
        let scores = match low_res_logits {
            [logits] => upsampled(logits)?,
            several => {
                let mut sum = softmax(&upsampled(&several[0])?)?;
                for logits in &several[1..] {
                    sum = (sum + softmax(&upsampled(logits)?)?)?;
                }
                sum
            }
        };
        let classes = argmax_classes(&scores)?; // [s, s]
        out.extend(zoom_nearest(&classes, [image_size, image_size], size));
    }
    Ok(out)
}

/// Over the classes: `[b, C, h, w]` → the same.
fn softmax(logits: &Tensor) -> candle_core::Result<Tensor> {
    let exp = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_ops::ndimage::{flip, rot90};
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
        assert!(reflected(&Tensor::zeros((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap(), rotation).is_err());
    }

    #[test]
    fn several_models_vote_by_their_probabilities() {
        // One pixel: a model that is nearly sure of class 1 outweighs two that lean towards class 0.
        let model = |logits: [f32; 2]| Tensor::from_vec(logits.to_vec(), (1, 2, 1, 1), &Device::Cpu).unwrap();
        let (leaning, sure) = (model([0.2, 0.0]), model([0.0, 5.0]));
        assert_eq!(masks_of_logits(std::slice::from_ref(&leaning), 1, [2, 1]).unwrap(), [0, 0]);
        assert_eq!(masks_of_logits(&[leaning.clone(), leaning, sure], 1, [1, 1]).unwrap(), [1]);
        // By their logits class 0 would win, 30 against 2 · 9.
        let [far, near] = [model([30.0, 0.0]), model([0.0, 9.0])];
        assert_eq!(masks_of_logits(&[far, near.clone(), near], 1, [1, 1]).unwrap(), [1]);
        assert!(masks_of_logits(&[], 1, [1, 1]).unwrap().is_empty());
    }
}
