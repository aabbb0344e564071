//! Which slices an epoch draws, where that is not each of them once. An epoch keeps its number of slices, so the schedule and the number of
//! steps do not depend on it; the draws follow from the epoch's generator only, as the order does.

use super::random::{below, shuffle};
use crate::error::{Result, TrainError};
use rand_chacha::ChaCha8Rng;
use sam_ladder_schemas::tables::SliceRow;
use sam_ladder_schemas::train_choices::Sampling;

/// How an epoch's slices are drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceDraws(Draws);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Draws {
    Uniform,
    /// The slices with an organ, and the batch size.
    Foreground(Vec<u32>, usize),
    /// The slices of each organ that occurs, and those without any if there are some.
    Organs(Vec<Vec<u32>>),
}

impl SliceDraws {
    /// Each slice once.
    pub const UNIFORM: SliceDraws = SliceDraws(Draws::Uniform);

    /// The draws from the training slices, by their classes' counts.
    ///
    /// # Errors
    /// No slice has an organ.
    pub fn new(sampling: Sampling, slices: &[&SliceRow], batch_size: usize) -> Result<Self> {
        let rows = |wanted: &dyn Fn(&SliceRow) -> bool| -> Vec<u32> {
            slices.iter().filter(|slice| wanted(slice)).map(|slice| slice.row).collect()
        };
        let has_organ = |slice: &SliceRow| slice.voxels.iter().any(|&voxels| voxels > 0);
        let with_organ = rows(&has_organ);
        if sampling != Sampling::Uniform && with_organ.is_empty() {
            return Err(TrainError::NoForeground(sampling.name()));
        }
        Ok(SliceDraws(match sampling {
            Sampling::Uniform => Draws::Uniform,
            Sampling::Foreground => Draws::Foreground(with_organ, batch_size),
            Sampling::Organs => {
                let organs = slices.iter().map(|slice| slice.voxels.len()).max().unwrap_or(0);
                let of = |organ: usize| rows(&|slice| slice.voxels.get(organ).is_some_and(|&voxels| voxels > 0));
                let strata = (0..organs).map(of).chain([rows(&|slice| !has_organ(slice))]);
                Draws::Organs(strata.filter(|rows| !rows.is_empty()).collect())
            }
        }))
    }

    /// Puts the drawn slices in the place of an epoch's, which come in a random order.
    pub(super) fn replace(&self, rows: &mut [u32], rng: &mut ChaCha8Rng) {
        let any_of = |of: &[u32], rng: &mut ChaCha8Rng| of[below(of.len() as u64, rng) as usize];
        match &self.0 {
            Draws::Uniform => {}
            Draws::Foreground(with_organ, batch_size) => {
                for batch in rows.chunks_mut((*batch_size).max(1)) {
                    let forced = batch.len().div_ceil(3);
                    let first = batch.len() - forced;
                    batch[first..].iter_mut().for_each(|row| *row = any_of(with_organ, rng));
                }
            }
            Draws::Organs(strata) => {
                let mut turn: Vec<u32> = (0..strata.len() as u32).collect();
                for round in rows.chunks_mut(strata.len()) {
                    shuffle(&mut turn, rng);
                    round.iter_mut().zip(&turn).for_each(|(row, &organ)| *row = any_of(&strata[organ as usize], rng));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::sampler::{Sampler, VariantDraws};
    use sam_ladder_schemas::train::SliceOrder;
    use sam_ladder_schemas::variants::{AugmentPolicy, variants};

    /// A thousand slices: every second has the first organ, every hundredth the second, and the third is in none.
    fn slices() -> Vec<SliceRow> {
        let slice = |row: u32| SliceRow {
            row,
            case: "a".into(),
            slice_index: row,
            spacing_mm: None,
            size: [4, 4],
            voxels: vec![u64::from(row.is_multiple_of(2)) * 9, u64::from(row % 100 == 1), 0],
            source: String::new(),
            source_sha256: String::new(),
        };
        (0..1000).map(slice).collect()
    }

    fn epoch(sampling: Sampling, number: u32) -> Vec<u32> {
        let slices = slices();
        let draws = SliceDraws::new(sampling, &slices.iter().collect::<Vec<_>>(), 8).unwrap();
        let variants = VariantDraws::new(&variants(AugmentPolicy::Flips, 1), None, 1).unwrap();
        let sampler = Sampler::new((0..1000).collect(), variants, SliceOrder::Shuffled, 7).drawing(draws);
        assert_eq!(sampler.slices(), 1000);
        sampler.epoch(number).into_iter().map(|(row, _)| row).collect()
    }

    #[test]
    fn a_third_of_each_batch_has_an_organ() {
        let rows = epoch(Sampling::Foreground, 0);
        assert_eq!(rows.len(), 1000);
        let has_organ = |row: &&u32| (**row).is_multiple_of(2) || **row % 100 == 1;
        // Three of eight are drawn so; half of the others have one anyway.
        assert!(rows.chunks(8).all(|batch| batch[batch.len() - 3..].iter().filter(has_organ).count() == 3));
        let of_all = rows.iter().filter(has_organ).count();
        let expected = 375.0 + 625.0 * 0.51;
        assert!((of_all as f64 - expected).abs() < 5.0 * (625.0f64 * 0.25).sqrt(), "{of_all}, expected {expected}");
        // Of the others each slice is there at most once, as in an epoch of all.
        let mut others: Vec<u32> = rows.chunks(8).flat_map(|batch| &batch[..batch.len() - 3]).copied().collect();
        others.sort_unstable();
        assert!(others.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn organs_are_drawn_equally_often() {
        let rows = epoch(Sampling::Organs, 0);
        // Three strata: the first organ, the second, and none. 1000 slices are 333 rounds and one more.
        let count = |of: fn(&&u32) -> bool| rows.iter().filter(of).count();
        let counts =
            [count(|row| **row % 2 == 0), count(|row| **row % 100 == 1), count(|row| **row % 2 == 1 && **row % 100 != 1)];
        assert!(counts.iter().all(|count| [333, 334].contains(count)), "{counts:?}");
        // Within an organ every slice comes about as often: ten slices of the second, 33 times each.
        for slice in (1..1000).step_by(100) {
            let times = rows.iter().filter(|&&row| row == slice).count();
            assert!((10..60).contains(&times), "{slice}: {times}");
        }
    }

    #[test]
    fn an_epochs_number_decides_its_draws() {
        for sampling in [Sampling::Organs, Sampling::Foreground] {
            assert_eq!(epoch(sampling, 3), epoch(sampling, 3));
            assert_ne!(epoch(sampling, 3), epoch(sampling, 4));
        }
    }

    #[test]
    fn slices_without_any_organ_are_refused() {
        let empty: Vec<SliceRow> = slices().into_iter().map(|slice| SliceRow { voxels: vec![0; 3], ..slice }).collect();
        let empty: Vec<&SliceRow> = empty.iter().collect();
        assert_eq!(SliceDraws::new(Sampling::Uniform, &empty, 8).unwrap(), SliceDraws::UNIFORM);
        let error = SliceDraws::new(Sampling::Organs, &empty, 8).unwrap_err().to_string();
        assert!(error.contains("organs") && error.contains("no training slice has an organ"), "{error}");
    }
}
