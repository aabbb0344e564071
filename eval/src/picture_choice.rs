//! Chooses the slices of a case that get a picture: the worst, the best and the fullest.

use crate::masks::MaskView;
use rayon::prelude::*;
use sam_ladder_schemas::regions::ClassRegion;

/// Slices with fewer organ voxels than this share of the fullest slice's count neither as worst nor as best: a few voxels at an organ's
/// end say little.
const LEAST_SHARE: f64 = 0.05;

/// The reason to show a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Its mean Dice is among the case's lowest.
    Worst,
    /// Its mean Dice is among the case's highest.
    Best,
    /// It has the most organ voxels in the reference.
    Fullest,
    /// All are shown.
    All,
}

impl Choice {
    pub fn name(self) -> &'static str {
        match self {
            Choice::Worst => "worst",
            Choice::Best => "best",
            Choice::Fullest => "fullest",
            Choice::All => "",
        }
    }
}

/// A slice that is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ChosenSlice {
    pub slice: usize,
    pub choice: Choice,
    /// Mean Dice over the organs that either mask has in the slice; `None` if there are none.
    pub dice: Option<f64>,
}

/// Organ voxels of the reference and of the prediction in a slice, and its mean Dice.
struct SliceScore {
    voxels: [usize; 2],
    dice: Option<f64>,
}

fn score(prediction: &[u8], reference: &[u8], regions: &[ClassRegion]) -> SliceScore {
    // Predicted, reference and shared voxels of each class.
    let mut counts = [[0usize; 3]; 256];
    for (&predicted, &referred) in prediction.iter().zip(reference) {
        counts[usize::from(predicted)][0] += 1;
        counts[usize::from(referred)][1] += 1;
        counts[usize::from(predicted)][2] += usize::from(predicted == referred);
    }
    let present = || counts[1..].iter().filter(|[predicted, referred, _]| predicted + referred > 0);
    let dice = crate::statistics::mean(
        present().map(|&[predicted, referred, shared]| 2.0 * shared as f64 / (predicted + referred) as f64),
    );
    let voxels = [1, 0].map(|mask| present().map(|counts| counts[mask]).sum());
    if regions.is_empty() {
        return SliceScore { voxels, dice };
    }
    let of_region = |region: &ClassRegion| score(&region.mask(prediction), &region.mask(reference), &[]).dice;
    SliceScore { voxels, dice: crate::statistics::mean(regions.iter().filter_map(of_region)) }
}

/// Mean Dice of a slice over the regions, or without regions over the classes, that either mask has in it; `None` if there are none.
pub(crate) fn slice_dice(prediction: &[u8], reference: &[u8], regions: &[ClassRegion]) -> Option<f64> {
    score(prediction, reference, regions).dice
}

/// The `each` slices with the lowest mean Dice, as many with the highest, and the one with the most organ voxels in the reference; each
/// once, by ascending index. If the reference is empty, the prediction's voxels count; if that is empty too, the middle slice is shown.
pub(crate) fn choose_slices(prediction: MaskView, reference: MaskView, regions: &[ClassRegion], each: usize) -> Vec<ChosenSlice> {
    let [depth, height, width] = reference.shape;
    let plane = height * width;
    let scores: Vec<SliceScore> = (prediction.voxels.par_chunks_exact(plane).zip(reference.voxels.par_chunks_exact(plane)))
        .map(|(prediction, reference)| score(prediction, reference, regions))
        .collect();
    let Some(mask) = (0..2).find(|&mask| scores.iter().any(|score| score.voxels[mask] > 0)) else {
        return vec![ChosenSlice { slice: depth / 2, choice: Choice::Fullest, dice: None }];
    };
    let most = scores.iter().map(|score| score.voxels[mask]).max().unwrap_or(0);
    let fullest = scores.iter().position(|score| score.voxels[mask] == most).unwrap_or(0);
    let counts = |slice: &usize| scores[*slice].voxels[mask] as f64 >= LEAST_SHARE * most as f64;
    let mut ranked: Vec<usize> = (0..depth).filter(counts).collect();
    // The sort is stable: of equal slices the first counts as worse.
    ranked.sort_by(|&a, &b| scores[a].dice.unwrap_or(0.0).total_cmp(&scores[b].dice.unwrap_or(0.0)));
    let worst = ranked.iter().take(each).map(|&slice| (slice, Choice::Worst));
    let best = ranked.iter().rev().take(each).map(|&slice| (slice, Choice::Best));
    let mut chosen: Vec<ChosenSlice> = Vec::new();
    for (slice, choice) in worst.chain(best).chain([(fullest, Choice::Fullest)]) {
        if chosen.iter().all(|other| other.slice != slice) {
            chosen.push(ChosenSlice { slice, choice, dice: scores[slice].dice });
        }
    }
    chosen.sort_by_key(|chosen| chosen.slice);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slices `[depth, 1, 20]` by their number of reference voxels of class 1 and how many of these are predicted.
    fn choose(slices: &[[usize; 2]], each: usize) -> Vec<(usize, Choice)> {
        let shape = [slices.len(), 1, 20];
        let mask = |which: usize| -> Vec<u8> {
            slices.iter().flat_map(|counts| (0..20).map(move |x| u8::from(x < counts[which]))).collect()
        };
        let (reference, prediction) = (mask(0), mask(1));
        let [prediction, reference] = [&prediction, &reference].map(|voxels| MaskView { voxels, shape });
        choose_slices(prediction, reference, &[], each).iter().map(|chosen| (chosen.slice, chosen.choice)).collect()
    }

    /// Class 2 in place of 1 within a region is right for it, and wrong for the region of 2.
    #[test]
    fn a_slices_dice_is_over_the_regions() {
        let region = |classes: &[u8]| ClassRegion { name: "r".into(), classes: classes.to_vec() };
        let (prediction, reference) = ([0, 1, 2, 2], [0, 1, 1, 2]);
        assert_eq!(slice_dice(&prediction, &reference, &[region(&[1, 2]), region(&[2])]), Some((1.0 + 2.0 / 3.0) / 2.0));
        assert_eq!(slice_dice(&prediction, &reference, &[]), Some(2.0 / 3.0));
        assert_eq!(slice_dice(&[0; 4], &[0; 4], &[region(&[1])]), None);
    }

    #[test]
    fn worst_best_and_fullest() {
        let slices = [[0, 0], [10, 10], [10, 2], [20, 15], [10, 9], [0, 0]];
        assert_eq!(choose(&slices, 1), [(1, Choice::Best), (2, Choice::Worst), (3, Choice::Fullest)]);
        assert_eq!(choose(&slices, 2), [(1, Choice::Best), (2, Choice::Worst), (3, Choice::Worst), (4, Choice::Best)]);
        assert_eq!(choose(&slices, 0), [(3, Choice::Fullest)]);
    }

    #[test]
    fn a_slice_stands_once_and_tiny_ones_are_passed_over() {
        assert_eq!(choose(&[[10, 5]], 3), [(0, Choice::Worst)]);
        // One voxel of the reference is 5 % of 20; a slice without any is skipped.
        assert_eq!(choose(&[[20, 10], [0, 3]], 1), [(0, Choice::Worst)]);
    }

    #[test]
    fn empty_masks_have_a_slice_too() {
        assert_eq!(choose(&[[0, 0]; 5], 2), [(2, Choice::Fullest)]);
        assert_eq!(choose(&[[0, 1], [0, 4], [0, 0]], 0), [(1, Choice::Fullest)]);
    }

    #[test]
    fn the_mean_is_over_organs_of_either_mask() {
        // Class 1 agrees, class 2 is missed, class 3 invented.
        let found = score(&[1, 1, 0, 3], &[1, 1, 2, 0], &[]);
        assert_eq!((found.dice, found.voxels), (Some(1.0 / 3.0), [3, 3]));
        assert_eq!(score(&[0], &[0], &[]).dice, None);
    }
}
