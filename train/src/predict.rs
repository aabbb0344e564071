//! Predicts masks at the scans' own resolution, from models and a store or a batch.
//!
//! All predictions go through [`Ensemble`]; a single model is an ensemble of one. `segment` describes the averages. The encoder is not
//! needed.

use crate::error::{Result, TrainError};
use crate::model::{LadderSam, OfSam};
use crate::run::{BatchShape, identity_index, input_tensors, rung_tensor};
use crate::segment::{MaskRule, Segmented, reflected};
use crate::trained_model::{WeightSource, load_model};
use candle_core::{Device, Tensor};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_ops::Numerics;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::variants::{AugmentPolicy, VariantKind, variants};

/// The case to predict, and the batch size.
#[derive(Debug, Clone, Copy)]
pub struct CaseRequest<'a> {
    /// Split of the case.
    pub split: Split,
    /// The case, as in the store.
    pub case: &'a str,
    /// Slices per forward pass.
    pub batch_size: usize,
}

/// The mask of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictedMask {
    /// Case, as in the store.
    pub case: String,
    /// Classes, `[d, h, w]` in C order.
    pub mask: Vec<u8>,
    /// What else the rule makes; its mask is moved to the one above.
    pub extras: Segmented,
    /// Depth, height and width.
    pub shape: [usize; 3],
    /// Distance between voxel centres along depth, height and width, in millimetres; `None` if it is unknown.
    pub spacing_mm: Option<[f64; 3]>,
}

/// Models that segment together.
pub struct Ensemble {
    models: Vec<LadderSam>,
    average_reflections: bool,
    rule: MaskRule,
}

impl Ensemble {
    /// Loads the models for a store's images. If a split is given, logits are averaged over the reflections of its slices.
    ///
    /// # Errors
    /// No source; whatever [`load_model`] refuses; a split of which the store holds no reflections.
    pub fn load(sources: &[WeightSource], reflections: Option<Split>, store: &Store, device: &Device) -> Result<Self> {
        if sources.is_empty() {
            return Err(TrainError::NoModel);
        }
        if let Some(split) = reflections {
            averaged_variants(store, split)?;
        }
        let models = sources.iter().map(|source| load_model(source, store, device)).collect::<Result<_>>()?;
        Ok(Ensemble { models, average_reflections: reflections.is_some(), rule: MaskRule::default() })
    }

    /// An ensemble of one model, without averaging over reflections.
    pub fn of_one(model: LadderSam) -> Self {
        Self::of(vec![model], false)
    }

    /// An ensemble of models, which averages over reflections where it is asked to.
    pub fn of(models: Vec<LadderSam>, average_reflections: bool) -> Self {
        Ensemble { models, average_reflections, rule: MaskRule::default() }
    }

    /// The same ensemble, which makes masks by another rule than the published one.
    pub fn making(self, rule: MaskRule) -> Self {
        Ensemble { rule, ..self }
    }

    /// Predicts one case of a store at the scan's own resolution; `done` is called with the number of slices after each batch.
    ///
    /// # Errors
    /// A case that is not in the split, or a damaged store.
    pub fn predict_case(&self, store: &Store, request: CaseRequest, mut done: impl FnMut(usize)) -> Result<PredictedMask> {
        let CaseRequest { split, case, batch_size } = request;
        let rows: Vec<u32> = store.case_rows(split, case)?.collect();
        let Some(slice) = rows.first().map(|&row| &store.slices(split)[row as usize]) else {
            return Err(TrainError::NoSlices { store: store.path().into(), case: case.into() });
        };
        let [h, w] = slice.size.map(|side| side as usize);
        let mut extras = Segmented { mask: Vec::with_capacity(rows.len() * h * w), ..Segmented::default() };
        for rows in rows.chunks(batch_size.max(1)) {
            let logits = self.mean_logits(store, split, rows)?;
            self.rule.segment(&logits, store.config().image_size, [h, w], &mut extras)?;
            done(rows.len());
        }
        let (mask, shape) = (std::mem::take(&mut extras.mask), [rows.len(), h, w]);
        Ok(PredictedMask { case: case.to_string(), mask, extras, shape, spacing_mm: slice.spacing_mm })
    }

    /// Whether a model takes the embeddings of the slices before and after each.
    pub fn takes_neighbours(&self) -> bool {
        self.models.iter().any(|model| model.config().neighbours)
    }

    /// Whether a model takes the rungs of the ladder.
    pub fn takes_rungs(&self) -> bool {
        self.models.iter().any(|model| model.config().ladder.is_some())
    }

    /// The variants of a slice that [`Self::segment_slices`] takes.
    pub fn variants(&self) -> Vec<VariantKind> {
        let policy = if self.average_reflections { AugmentPolicy::Flips } else { AugmentPolicy::None };
        variants(policy, 1).into_iter().map(|variant| variant.kind).collect()
    }

    /// Predicts `count` slices of `size` `[h, w]` without a store, and adds what it makes of them.
    ///
    /// `batches` holds, for each of [`Self::variants`], images `[count, c, s, s]` and embeddings `[count, 256, s/16, s/16]`, and if it
    /// [takes neighbours](Self::takes_neighbours) the embeddings around, `[count, 2, 256, s/16, s/16]`, and if it [takes rungs](Self::takes_rungs)
    /// these, `[count, rung, c, s/16, s/16]`; labels are ignored.
    ///
    /// # Errors
    /// Buffers of another size.
    pub fn segment_slices(
        &self,
        batches: &[(VariantKind, Batch)],
        count: usize,
        size: [usize; 2],
        out: &mut Segmented,
    ) -> Result<()> {
        let mut sums: Vec<Option<Tensor>> = vec![None; self.models.len()];
        for (kind, batch) in batches {
            self.add_logits(batch, count, *kind, &mut sums)?;
        }
        let image_size = self.models.first().map_or(0, |model| model.config().image_size);
        self.rule.segment(&means(sums, batches.len())?, image_size, size, out)
    }

    /// Predicts `count` slices without a store and without reflections: `[count, h, w]` classes for the size `[h, w]`.
    ///
    /// `batch` holds images `[count, c, s, s]` and embeddings `[count, 256, s/16, s/16]`; its labels are ignored.
    ///
    /// # Errors
    /// Buffers of another size.
    pub fn predict_slices(&self, batch: &Batch, count: usize, size: [usize; 2]) -> Result<Vec<u8>> {
        let logits = self.models.iter().map(|model| logits(model, batch, count)).collect::<Result<Vec<_>>>()?;
        let image_size = self.models.first().map_or(0, |model| model.config().image_size);
        let mut out = Segmented::default();
        self.rule.segment(&logits, image_size, size, &mut out)?;
        Ok(out.mask)
    }

    /// Adds each model's logits of a batch of one variant, reflected back.
    fn add_logits(&self, batch: &Batch, count: usize, kind: VariantKind, sums: &mut [Option<Tensor>]) -> Result<()> {
        for (model, sum) in self.models.iter().zip(sums) {
            let logits = reflected(&logits(model, batch, count)?, kind)?;
            *sum = Some(match sum.take() {
                Some(sum) => (sum + logits)?,
                None => logits,
            });
        }
        Ok(())
    }

    /// Each model's logits of slices, `[rows, C, s/4, s/4]`, or at half the image's side: of the identity, or the mean over identity and reflections.
    ///
    /// # Errors
    /// A row that is not in the split, a damaged store, or a store without the reflections to average over.
    pub fn mean_logits(&self, store: &Store, split: Split, rows: &[u32]) -> Result<Vec<Tensor>> {
        let variants = match self.average_reflections {
            true => averaged_variants(store, split)?,
            false => vec![(identity_variant(store, split)?, VariantKind::Identity)],
        };
        let mut batch = if self.takes_rungs() { Batch::with_rungs() } else { Batch::default() };
        let mut sums: Vec<Option<Tensor>> = vec![None; self.models.len()];
        for &(variant, kind) in &variants {
            let picks: Vec<(u32, u32)> = rows.iter().map(|&row| (row, variant)).collect();
            match self.takes_neighbours() {
                true => store.read_batch_around(split, &picks, &mut batch)?,
                false => store.read_batch(split, &picks, &mut batch)?,
            }
            self.add_logits(&batch, rows.len(), kind, &mut sums)?;
        }
        means(sums, variants.len())
    }
}

/// The means of sums over so many variants.
fn means(sums: Vec<Option<Tensor>>, variants: usize) -> Result<Vec<Tensor>> {
    let mean = |sum: Tensor| if variants > 1 { sum / variants as f64 } else { Ok(sum) };
    Ok(sums.into_iter().flatten().map(mean).collect::<candle_core::Result<_>>()?)
}

/// A model's logits of `count` slices, `[count, C, s/4, s/4]`, or at half the image's side.
fn logits(model: &LadderSam, batch: &Batch, count: usize) -> Result<Tensor> {
    let s = model.config().image_size;
    let shape = BatchShape {
        image_size: s,
        num_classes: model.config().num_classes,
        channels: batch.images.len() / (count * s * s).max(1),
        embed_channels: model.config().embed_channels,
        precision: Numerics::F32,
        logits_stride: model.config().decoder.logits_stride(),
        neighbours: model.config().neighbours,
        rungs: model.config().ladder,
    };
    let device = model.image_pe().device();
    let (images, embeddings) = input_tensors(batch, count, shape, device)?;
    let rungs = rung_tensor(batch, count, shape, device)?;
    Ok(model.forward(&images, OfSam { embeddings: &embeddings, rungs: rungs.as_ref() })?)
}

/// Index of the unaugmented variant.
///
/// # Errors
/// When the store has none.
pub fn identity_variant(store: &Store, split: Split) -> Result<u32> {
    identity_index(store.variants(split), store.path())
}

/// Indices and kinds of a split's identity and reflections.
fn averaged_variants(store: &Store, split: Split) -> Result<Vec<(u32, VariantKind)>> {
    let kinds = store.variants(split).iter().map(|variant| variant.kind).enumerate();
    let variants: Vec<(u32, VariantKind)> = kinds
        .filter(|(_, kind)| matches!(kind, VariantKind::Identity | VariantKind::Reflection { .. }))
        .map(|(index, kind)| (index as u32, kind))
        .collect();
    if variants.len() < 2 {
        return Err(TrainError::NoReflections { store: store.path().into(), split });
    }
    Ok(variants)
}
