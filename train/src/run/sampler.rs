//! Decides which slices and variants each step of an epoch uses.
//!
//! An epoch's plan depends only on the seed and the epoch's number, so a resumed run needs only its position to draw the same batches.

use super::random::{shuffle, unit};
use super::slice_draws::SliceDraws;
use crate::error::{Result, TrainError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sam_ladder_schemas::train::SliceOrder;
use sam_ladder_schemas::variants::{AugmentPolicy, Variant, VariantKind, seeded, variants};
use std::path::Path;

/// Row of a slice and index of a variant, as in the store.
pub type Item = (u32, u32);

/// Draws the slices and variants of each epoch.
#[derive(Debug, Clone)]
pub struct Sampler {
    rows: Vec<u32>,
    draws: VariantDraws,
    order: SliceOrder,
    seed: u64,
    slices: SliceDraws,
}

impl Sampler {
    /// A sampler over the slices in `rows`.
    pub fn new(rows: Vec<u32>, draws: VariantDraws, order: SliceOrder, seed: u64) -> Self {
        Sampler { rows, draws, order, seed, slices: SliceDraws::UNIFORM }
    }

    /// The same sampler, with other draws than each slice once.
    pub fn drawing(self, slices: SliceDraws) -> Self {
        Sampler { slices, ..self }
    }

    /// Number of slices in an epoch.
    pub fn slices(&self) -> usize {
        self.rows.len()
    }

    /// Every item that may be drawn, the likeliest variants first.
    pub fn items(&self) -> Vec<Item> {
        self.draws.by_probability().into_iter().flat_map(|variant| self.rows.iter().map(move |&row| (row, variant))).collect()
    }

    /// The slices of epoch `epoch` in order, each once unless others are drawn, with the variant drawn for it.
    pub fn epoch(&self, epoch: u32) -> Vec<Item> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Stream 0 stays unused: an epoch's draws overlap neither another epoch's nor those of a plain generator with the same seed.
        rng.set_stream(u64::from(epoch) + 1);
        let mut rows = self.rows.clone();
        if self.order == SliceOrder::Shuffled {
            shuffle(&mut rows, &mut rng);
        }
        self.slices.replace(&mut rows, &mut rng);
        rows.into_iter().map(|row| (row, self.draws.draw(&mut rng))).collect()
    }
}

/// The variants that training draws, with the cumulative sums of their probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantDraws {
    indices: Vec<u32>,
    cumulative: Vec<f64>,
}

impl VariantDraws {
    /// The variants, the likeliest first.
    fn by_probability(&self) -> Vec<u32> {
        let before = |at: usize| if at == 0 { 0.0 } else { self.cumulative[at - 1] };
        let mut order: Vec<usize> = (0..self.indices.len()).collect();
        order.sort_by(|&a, &b| (self.cumulative[b] - before(b)).total_cmp(&(self.cumulative[a] - before(a))));
        order.into_iter().map(|at| self.indices[at]).collect()
    }

    /// The draws of a policy from a store with the variants `stored`; `None` means all of them, with the stored probabilities.
    ///
    /// A narrower policy than the store's draws as from a store of that policy: the dropped variants' probability goes to the identity.
    ///
    /// # Errors
    /// If the store lacks a variant of the policy.
    pub fn new(stored: &[Variant], policy: Option<AugmentPolicy>, rotation_step: u32) -> Result<Self> {
        let wanted = match policy {
            None => stored.to_vec(),
            Some(AugmentPolicy::Seeded) => seeded_of(stored),
            Some(policy) => variants(policy, rotation_step.max(1)),
        };
        let mut indices = Vec::with_capacity(wanted.len());
        let mut cumulative = Vec::with_capacity(wanted.len());
        let mut sum = 0.0;
        for variant in &wanted {
            let index = stored
                .iter()
                .position(|have| have.kind == variant.kind)
                .ok_or_else(|| TrainError::NoVariant { variant: variant.name(), stored: stored.len() })?;
            sum += variant.probability;
            indices.push(index as u32);
            cumulative.push(sum);
        }
        if indices.is_empty() || !(sum.is_finite() && sum > 0.0) {
            return Err(TrainError::Probabilities(sum));
        }
        cumulative.iter_mut().for_each(|value| *value /= sum);
        Ok(VariantDraws { indices, cumulative })
    }

    /// Whether neighbouring slices are moved differently in one of these variants of a store.
    pub(crate) fn move_slices_apart(&self, stored: &[Variant]) -> bool {
        self.indices.iter().any(|&index| matches!(stored[index as usize].kind, VariantKind::Draw { .. }))
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> u32 {
        let at = unit(rng);
        let found = self.cumulative.partition_point(|&sum| sum <= at);
        self.indices[found.min(self.indices.len() - 1)]
    }
}

/// Identity and the draws that are stored, or a first one if none is.
fn seeded_of(stored: &[Variant]) -> Vec<Variant> {
    let draws =
        || stored.iter().filter_map(|variant| if let VariantKind::Draw { seed, .. } = variant.kind { Some(seed) } else { None });
    seeded(draws().next().unwrap_or(0), (draws().count() as u32).max(1))
}

/// Index of the unaugmented variant among those of the store at `path`.
///
/// # Errors
/// When it has none.
pub(crate) fn identity_index(variants: &[Variant], path: &Path) -> Result<u32> {
    let found = variants.iter().position(|variant| variant.kind == VariantKind::Identity);
    found.map(|index| index as u32).ok_or_else(|| TrainError::NoIdentity(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(policy: AugmentPolicy, order: SliceOrder, slices: u32) -> Sampler {
        let stored = variants(AugmentPolicy::Reference, 1);
        let draws = VariantDraws::new(&stored, Some(policy), 1).unwrap();
        Sampler::new((0..slices).collect(), draws, order, 7)
    }

    #[test]
    fn an_epoch_is_a_permutation_that_its_number_decides() {
        let sampler = sampler(AugmentPolicy::Reference, SliceOrder::Shuffled, 100);
        let first = sampler.epoch(0);
        let mut rows: Vec<u32> = first.iter().map(|item| item.0).collect();
        assert_ne!(rows, (0..100).collect::<Vec<_>>());
        rows.sort_unstable();
        assert_eq!(rows, (0..100).collect::<Vec<_>>());
        assert_eq!(first, sampler.epoch(0));
        assert_ne!(first, sampler.epoch(1));
    }

    #[test]
    fn sequential_order_is_the_stored_one() {
        let sampler = sampler(AugmentPolicy::None, SliceOrder::Sequential, 5);
        assert_eq!(sampler.epoch(3), (0..5).map(|row| (row, 0)).collect::<Vec<_>>());
    }

    #[test]
    fn variants_come_by_their_probabilities() {
        let sampler = sampler(AugmentPolicy::Reference, SliceOrder::Shuffled, 100_000);
        let mut counts = [0usize; 44];
        sampler.epoch(0).iter().for_each(|item| counts[item.1 as usize] += 1);
        for (count, variant) in counts.iter().zip(variants(AugmentPolicy::Reference, 1)) {
            let expected = variant.probability * 1e5;
            let deviation = (expected * (1.0 - variant.probability)).sqrt();
            assert!((*count as f64 - expected).abs() < 5.0 * deviation, "{}: {count}, expected {expected}", variant.name());
        }
    }

    #[test]
    fn a_narrower_policy_draws_what_its_own_store_would() {
        let wide = variants(AugmentPolicy::Reference, 1);
        let narrow = variants(AugmentPolicy::Flips, 1);
        let from_wide = VariantDraws::new(&wide, Some(AugmentPolicy::Flips), 1).unwrap();
        let from_narrow = VariantDraws::new(&narrow, None, 1).unwrap();
        assert_eq!(from_wide, from_narrow);
    }

    #[test]
    fn a_wider_policy_than_the_store_is_refused() {
        let error = VariantDraws::new(&variants(AugmentPolicy::Flips, 1), Some(AugmentPolicy::Reference), 1).unwrap_err();
        assert!(error.to_string().contains("rotate-20"), "{error}");
    }
}
