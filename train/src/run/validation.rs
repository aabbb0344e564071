//! Validation: scores on held-out training cases at the resolution of the loss, and the choice of these cases.

use super::sampler::Item;
use super::tensors::{BatchShape, BatchTensors};
use crate::error::{Result, TrainError};
use crate::groups::Groups;
use crate::model::LadderSam;
use crate::segment::argmax_classes;
use sam_ladder_cache::TrainingSplit;
use sam_ladder_schemas::regions::ClassRegion;
use sam_ladder_schemas::tables::SliceRow;
use sam_ladder_schemas::train::{RunRecord, TrainConfig};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A validation case at the resolution of the loss.
#[derive(Debug, Clone, Copy)]
pub struct CaseVolume<'a> {
    /// The case.
    pub case: &'a str,
    /// Classes, `[d, s/4, s/4]`.
    pub predicted: &'a [u8],
    /// Classes as stored, `[d, s/4, s/4]`.
    pub reference: &'a [u8],
    /// Depth, height and width.
    pub shape: [usize; 3],
    /// Distance between voxel centres along depth, height and width.
    pub spacing_mm: [f64; 3],
}

/// HD95 of a class of a case in millimetres, `None` if a mask lacks the class. This crate does not link the crate that computes HD95, so
/// the caller passes the function.
pub type Hd95 = Arc<dyn Fn(&CaseVolume<'_>, u8) -> Option<f64> + Send + Sync>;

/// Scores of a validation: means over the cases, then over organs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Scores {
    /// Dice; `None` if no case has an organ.
    pub(crate) dice: Option<f64>,
    /// HD95 in millimetres, if it is measured.
    pub(crate) hd95: Option<f64>,
}

/// The training cases that fold `fold` (`i/n`, i from 1 to n) holds out, which keeps the cases of a patient together.
///
/// # Errors
/// If `fold` is not such a pair, or there are fewer patients than folds.
pub fn fold_cases(store: &TrainingSplit, fold: &str, groups: &Groups) -> Result<Vec<String>> {
    let parsed = fold.split_once('/').and_then(|(i, n)| Some((i.trim().parse::<usize>().ok()?, n.trim().parse::<usize>().ok()?)));
    let Some((index, count)) = parsed.filter(|&(i, n)| i >= 1 && i <= n && n >= 2) else {
        return Err(TrainError::FoldSyntax(fold.into()));
    };
    let mut folds = groups.folds(&store.cases(), &format!("--fold {fold}"), count)?;
    Ok(folds.swap_remove(index - 1))
}

/// The patients of a run's training cases: those of the run that is resumed, or what its setting says.
///
/// # Errors
/// As [`Groups::resolve`].
pub fn groups_of(config: &TrainConfig, resumed: Option<&RunRecord>, store: &TrainingSplit) -> Result<Groups> {
    match (&config.group_by, resumed) {
        (None, _) => Ok(Groups::default()),
        (by, Some(record)) if *by == record.config.group_by => Ok(Groups::recorded(&record.groups)),
        (Some(by), _) => Groups::resolve(by, &store.cases()),
    }
}

/// Checks that `val_cases` are training cases and leave some to train on.
///
/// # Errors
/// Names the case. Test cases have their own error, since model selection must never use them.
pub(crate) fn check_cases(store: &TrainingSplit, val_cases: &[String]) -> Result<()> {
    let training = store.cases();
    if let Some(case) = val_cases.iter().find(|case| !training.contains(case)).cloned() {
        return Err(match store.is_test_case(&case) {
            true => TrainError::TestCase { case, training },
            false => TrainError::NoSuchCase { case, training },
        });
    }
    match training.len() {
        0 => Err(TrainError::NoTrainingCases),
        count if training.iter().all(|case| val_cases.contains(case)) => Err(TrainError::AllHeldOut(count)),
        _ => Ok(()),
    }
}

/// Voxels of one organ in one case.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    predicted: u64,
    reference: u64,
    both: u64,
}

impl Counts {
    /// 2|A∩B| / (|A| + |B|); undefined if the organ is in neither.
    fn dice(self) -> Option<f64> {
        let sum = self.predicted + self.reference;
        (sum > 0).then(|| 2.0 * self.both as f64 / sum as f64)
    }
}

/// Adds one slice's classes to the counts, which are indexed by class.
fn count(predicted: &[u8], reference: &[u8], counts: &mut [Counts]) {
    for (&p, &r) in predicted.iter().zip(reference) {
        counts[p as usize].predicted += 1;
        counts[r as usize].reference += 1;
        counts[p as usize].both += u64::from(p == r);
    }
}

/// Adds one slice's classes to the counts of the regions, from index 1.
fn count_regions(predicted: &[u8], reference: &[u8], regions: &[ClassRegion], counts: &mut [Counts]) {
    for (region, counts) in regions.iter().zip(&mut counts[1..]) {
        let mut of_slice = [Counts::default(); 2];
        count(&region.mask(predicted), &region.mask(reference), &mut of_slice);
        counts.predicted += of_slice[1].predicted;
        counts.reference += of_slice[1].reference;
        counts.both += of_slice[1].both;
    }
}

/// Mean over the cases of each organ's value, then over the organs; background and undefined values are left out.
fn mean_over_organs<C>(cases: &[C], num_classes: usize, value: impl Fn(&C, usize) -> Option<f64>) -> Option<f64> {
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let organs = (1..num_classes).filter_map(|class| mean(cases.iter().filter_map(|case| value(case, class)).collect()));
    mean(organs.collect())
}

/// HD95 of a class; the diagonal of the volume if only one mask has the organ, so that a model does not gain by leaving it out. Undefined
/// if neither has it.
fn bounded_hd95(volume: &CaseVolume<'_>, class: u8, counts: Counts, hd95: &Hd95) -> Option<f64> {
    if counts.predicted == 0 && counts.reference == 0 {
        return None;
    }
    let side = |axis: usize| volume.shape[axis] as f64 * volume.spacing_mm[axis];
    let diagonal = (0..3).map(|axis| side(axis).powi(2)).sum::<f64>().sqrt();
    Some(hd95(volume, class).unwrap_or(diagonal))
}

/// Counts and classes of one case.
struct Seen {
    /// `None` if it is unknown: then no HD95 is measured.
    spacing_mm: Option<[f64; 3]>,
    counts: Vec<Counts>,
    /// Predicted and reference classes, kept if HD95 is measured.
    volumes: [Vec<u8>; 2],
}

/// The held-out slices, for scoring models.
#[derive(Debug)]
pub(crate) struct HeldOutSlices {
    items: Vec<Item>,
    slices: Vec<SliceRow>,
    batch_size: usize,
    /// What is scored instead of the classes, if there are any.
    regions: Vec<ClassRegion>,
}

impl HeldOutSlices {
    /// The identity variants of `val_cases`' slices in the training split; `None` without such cases.
    pub(crate) fn new(store: &TrainingSplit, val_cases: &[String], identity: u32, batch_size: usize) -> Option<Arc<Self>> {
        let held_out = store.slices().iter().filter(|slice| val_cases.contains(&slice.case));
        let slices: Vec<SliceRow> = held_out.cloned().collect();
        let items = slices.iter().map(|slice| (slice.row, identity)).collect();
        (!slices.is_empty())
            .then(|| Arc::new(HeldOutSlices { items, slices, batch_size, regions: store.config().regions.clone() }))
    }

    /// Number of regions, or of classes, with background.
    fn scored(&self, num_classes: usize) -> usize {
        if self.regions.is_empty() { num_classes } else { self.regions.len() + 1 }
    }

    /// The held-out slices, batch by batch.
    pub(crate) fn batches(&self) -> Vec<Vec<Item>> {
        self.items.chunks(self.batch_size).map(<[Item]>::to_vec).collect()
    }

    /// Starts a validation of one model, which then receives the batches in order. HD95 is measured if `hd95` is given.
    pub(crate) fn pass(self: &Arc<Self>, shape: BatchShape, hd95: Option<Hd95>) -> ValidationPass {
        ValidationPass { validation: self.clone(), done: 0, shape, hd95, cases: BTreeMap::new() }
    }
}

/// A validation in progress: compares the model's arg-max at low resolution with the stored labels.
pub(crate) struct ValidationPass {
    validation: Arc<HeldOutSlices>,
    /// Number of scored slices.
    done: usize,
    shape: BatchShape,
    hd95: Option<Hd95>,
    cases: BTreeMap<String, Seen>,
}

impl ValidationPass {
    /// Scores the model on the next batch.
    pub(crate) fn add(&mut self, model: &LadderSam, batch: &BatchTensors) -> Result<()> {
        let mut predicted = argmax_classes(&model.forward(&batch.images, batch.of_sam())?)?;
        let mut labels: Vec<u8> = batch.labels.flatten_all()?.to_vec1()?;
        // A pixel that takes no part is background in both, of which nothing is measured.
        for (predicted, label) in predicted.iter_mut().zip(&mut labels) {
            if usize::from(*label) >= self.shape.num_classes {
                (*predicted, *label) = (0, 0);
            }
        }
        let low = self.shape.low_res_size();
        let pixels = low.pow(2);
        let slices = &self.validation.slices[self.done..];
        for ((predicted, reference), slice) in predicted.chunks(pixels).zip(labels.chunks(pixels)).zip(slices) {
            let seen = self.cases.entry(slice.case.clone()).or_insert_with(|| Seen {
                spacing_mm: low_res_spacing(slice, low),
                counts: vec![Counts::default(); self.validation.scored(self.shape.num_classes)],
                volumes: Default::default(),
            });
            match &self.validation.regions[..] {
                [] => count(predicted, reference, &mut seen.counts),
                regions => count_regions(predicted, reference, regions, &mut seen.counts),
            }
            if self.hd95.is_some() {
                seen.volumes[0].extend_from_slice(predicted);
                seen.volumes[1].extend_from_slice(reference);
            }
            self.done += 1;
        }
        Ok(())
    }

    /// Whether all batches were added.
    pub(crate) fn is_whole(&self) -> bool {
        self.done == self.validation.slices.len()
    }

    /// The scores.
    pub(crate) fn scores(self) -> Scores {
        let (low, scored) = (self.shape.low_res_size(), self.validation.scored(self.shape.num_classes));
        let regions = &self.validation.regions;
        let cases: Vec<(String, Seen)> = self.cases.into_iter().collect();
        let dice = mean_over_organs(&cases, scored, |(_, seen), class| seen.counts[class].dice());
        let hd95 = self.hd95.and_then(|hd95| {
            mean_over_organs(&cases, scored, |(case, seen), class| {
                let of_region = class.checked_sub(1).and_then(|at| regions.get(at));
                let volumes = seen.volumes.each_ref().map(|of| of_region.map(|region| region.mask(of)));
                let [predicted, reference] = [0, 1].map(|of| volumes[of].as_deref().unwrap_or(&seen.volumes[of]));
                let shape = [predicted.len() / low.pow(2), low, low];
                let volume = CaseVolume { case, predicted, reference, shape, spacing_mm: seen.spacing_mm? };
                let label = if of_region.is_some() { 1 } else { class as u8 };
                bounded_hd95(&volume, label, seen.counts[class], &hd95)
            })
        });
        Scores { dice, hd95 }
    }
}

/// Distance between slices and between the pixels of a slice that was resized to a side of `low` pixels.
fn low_res_spacing(slice: &SliceRow, low: usize) -> Option<[f64; 3]> {
    let [depth, height, width] = slice.spacing_mm?;
    let [rows, columns] = slice.size.map(f64::from);
    Some([depth, height * rows / low as f64, width * columns / low as f64])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(pairs: &[(&'static str, &[u8], &[u8])]) -> Option<f64> {
        let mut cases = BTreeMap::new();
        for (case, predicted, reference) in pairs {
            count(predicted, reference, cases.entry(*case).or_insert_with(|| vec![Counts::default(); 3]));
        }
        let cases: Vec<Vec<Counts>> = cases.into_values().collect();
        mean_over_organs(&cases, 3, |counts, class| counts[class].dice())
    }

    /// A voxel of the wrong class of the right region is right for the region.
    #[test]
    fn regions_are_scored_as_unions() {
        let region = |classes: &[u8]| ClassRegion { name: "r".into(), classes: classes.to_vec() };
        let mut counts = vec![Counts::default(); 3];
        for _ in 0..2 {
            count_regions(&[0, 1, 2, 2, 0], &[0, 2, 1, 2, 1], &[region(&[1, 2]), region(&[2])], &mut counts);
        }
        assert_eq!(counts[1].dice(), Some(2.0 * 3.0 / 7.0));
        assert_eq!(counts[2].dice(), Some(2.0 / 4.0));
    }

    #[test]
    fn an_organ_that_one_mask_lacks_is_as_far_as_the_volume_is_wide() {
        let volume = CaseVolume { case: "a", predicted: &[0], reference: &[1], shape: [1, 4, 3], spacing_mm: [12.0, 1.0, 1.0] };
        let never: Hd95 = Arc::new(|_, _| None);
        let counts = |predicted, reference| Counts { predicted, reference, both: 0 };
        assert_eq!(bounded_hd95(&volume, 1, counts(0, 1), &never), Some(13.0));
        assert_eq!(bounded_hd95(&volume, 1, counts(1, 0), &never), Some(13.0));
        assert_eq!(bounded_hd95(&volume, 1, counts(0, 0), &never), None);
        let known: Hd95 = Arc::new(|_, _| Some(2.5));
        assert_eq!(bounded_hd95(&volume, 1, counts(1, 1), &known), Some(2.5));
    }

    #[test]
    fn perfect_none_and_partial_overlap() {
        assert_eq!(scored(&[("a", &[0, 1, 2], &[0, 1, 2])]), Some(1.0));
        assert_eq!(scored(&[("a", &[1, 0], &[0, 1])]), Some(0.0));
        // Organ 1: 2·1/(2 + 1).
        assert_eq!(scored(&[("a", &[1, 1, 0], &[1, 0, 0])]), Some(2.0 / 3.0));
    }

    #[test]
    fn an_organ_in_neither_is_left_out() {
        assert_eq!(scored(&[("a", &[0, 0], &[0, 0])]), None);
        assert_eq!(scored(&[("a", &[1], &[1]), ("b", &[0], &[0])]), Some(1.0));
    }

    #[test]
    fn slices_of_a_case_count_together() {
        // Organ 1 over the case: predicted 1, reference 3, both 1.
        assert_eq!(scored(&[("a", &[1, 0], &[1, 0]), ("a", &[0, 0], &[1, 1])]), Some(0.5));
    }
}
