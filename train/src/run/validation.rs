//! Dice over held-out training cases at the resolution of the loss, and which cases those are.

use crate::error::{Result, TrainError};
use crate::model::LadderSam;
use crate::run::batches::for_each_batch;
use crate::run::sampler::Item;
use crate::run::trainer::{Geometry, batch_tensors};
use candle_core::Device;
use sam_ladder_cache::{Reader, Store};
use sam_ladder_schemas::classes::Split;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The store's training cases, sorted.
pub fn training_cases(store: &Store) -> Vec<String> {
    let mut cases = store.cases(Split::Train);
    cases.sort_unstable();
    cases
}

/// The training cases that fold `fold` (`i/n`, i from 1 to n) holds out: every n-th of the sorted cases, from the i-th.
///
/// # Errors
/// When `fold` is no such pair, or there are fewer cases than folds.
pub fn fold_cases(store: &Store, fold: &str) -> Result<Vec<String>> {
    let parsed = fold.split_once('/').and_then(|(i, n)| Some((i.trim().parse::<usize>().ok()?, n.trim().parse::<usize>().ok()?)));
    let Some((index, count)) = parsed.filter(|&(i, n)| i >= 1 && i <= n && n >= 2) else {
        return Err(TrainError::Setting(format!("--fold must be i/n with n at least 2 and i from 1 to n, as 1/5, got {fold:?}")));
    };
    let cases = training_cases(store);
    if cases.len() < count {
        return Err(TrainError::Setting(format!(
            "--fold {fold}: the store has {} training cases, fewer than {count} folds",
            cases.len()
        )));
    }
    Ok(cases.into_iter().skip(index - 1).step_by(count).collect())
}

/// Checks that `val_cases` are training cases and leave some to train on.
///
/// # Errors
/// Naming the case; test cases are refused as such, since model selection must never see them.
pub(crate) fn check_cases(store: &Store, val_cases: &[String]) -> Result<()> {
    let cases = training_cases(store);
    for case in val_cases {
        if cases.contains(case) {
            continue;
        }
        if store.slices(Split::Test).iter().any(|slice| slice.case == *case) {
            return Err(TrainError::Setting(format!(
                "case {case} is a test case and cannot validate: choose among the training cases {}",
                cases.join(", ")
            )));
        }
        return Err(TrainError::Setting(format!("the store has no training case {case}: it has {}", cases.join(", "))));
    }
    if cases.iter().all(|case| val_cases.contains(case)) {
        return Err(TrainError::Setting(if cases.is_empty() {
            "the store has no training cases: run precompute on scans that have some".into()
        } else {
            format!("all {} training cases are held out for validation: leave some to train on", cases.len())
        }));
    }
    Ok(())
}

/// Voxels of one organ in one case.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    predicted: u64,
    reference: u64,
    both: u64,
}

impl Counts {
    /// 2|A∩B| / (|A| + |B|); undefined where the organ is in neither.
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

/// Mean over the cases of each organ's Dice, then over the organs; background and undefined values are left out.
fn mean_dice(cases: &BTreeMap<&str, Vec<Counts>>, num_classes: usize) -> Option<f64> {
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let organs = (1..num_classes).filter_map(|class| mean(cases.values().filter_map(|counts| counts[class].dice()).collect()));
    mean(organs.collect())
}

/// Held-out slices and what it takes to score a model on them.
pub(crate) struct Validation<'a> {
    items: Vec<Item>,
    cases: Vec<&'a str>,
    batch_size: usize,
}

impl<'a> Validation<'a> {
    /// The identity variants of `val_cases`' slices in the training split; `None` without such cases.
    pub(crate) fn new(store: &'a Store, val_cases: &[String], identity: u32, batch_size: usize) -> Option<Self> {
        let held_out: Vec<_> = store.slices(Split::Train).iter().filter(|slice| val_cases.contains(&slice.case)).collect();
        let items = held_out.iter().map(|slice| (slice.row, identity)).collect();
        let cases = held_out.iter().map(|slice| slice.case.as_str()).collect();
        (!held_out.is_empty()).then_some(Validation { items, cases, batch_size })
    }

    /// Dice of the model's arg-max at low resolution against the stored labels.
    pub(crate) fn score(&self, model: &LadderSam, reader: &Reader, geometry: Geometry, device: &Device) -> Result<Option<f64>> {
        let mut cases: BTreeMap<&str, Vec<Counts>> = BTreeMap::new();
        let plan: Vec<&[Item]> = self.items.chunks(self.batch_size).collect();
        for_each_batch(reader, &plan, |index, items, batch| {
            let tensors = batch_tensors(batch, items.len(), geometry, device)?;
            let logits = model.forward(&tensors.images, &tensors.embeddings)?;
            let predicted = crate::predict::argmax_classes(&logits)?;
            let pixels = geometry.low_res_size().pow(2);
            let names = &self.cases[index * self.batch_size..];
            for ((predicted, reference), &name) in predicted.chunks(pixels).zip(batch.labels.chunks(pixels)).zip(names) {
                let counts = cases.entry(name).or_insert_with(|| vec![Counts::default(); geometry.num_classes]);
                count(predicted, reference, counts);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(mean_dice(&cases, geometry.num_classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(pairs: &[(&'static str, &[u8], &[u8])]) -> Option<f64> {
        let mut cases = BTreeMap::new();
        for (case, predicted, reference) in pairs {
            count(predicted, reference, cases.entry(*case).or_insert_with(|| vec![Counts::default(); 3]));
        }
        mean_dice(&cases, 3)
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
