//! What is found in one slice: where all runs agree with one another, and not with the label.

use crate::picture_choice::slice_dice;
use crate::statistics::mean;
use std::collections::BTreeMap;

/// The masks of one slice `[h, w]`.
pub(super) struct SliceMasks<'a> {
    pub size: [usize; 2],
    /// Each run's mask.
    pub runs: &'a [&'a [u8]],
    pub label: &'a [u8],
    /// Class of the label of pixels that take no part.
    pub ignored: Option<u8>,
}

/// A disputed slice.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SliceFinding {
    /// Where the label is disputed, `[h, w]`.
    pub disputed: Vec<bool>,
    /// Pixels of that.
    pub pixels: usize,
    /// The label and the runs' class of most of them, and how many these are.
    pub label: u8,
    pub predicted: u8,
    pub of_these: usize,
    /// Mean Dice of two runs' masks in the slice, over the pairs; `None` with one run, and if no run has an organ there.
    pub agreement: Option<f64>,
    /// Mean Dice of a run's mask and the label in the slice, over the runs.
    pub dice: Option<f64>,
}

impl SliceMasks<'_> {
    /// What is disputed in the slice; `None` if nothing is.
    ///
    /// A pixel is disputed if all runs give it the same class, and the label another. Runs commonly differ from a label by a pixel along an organ's
    /// edge: of the disputed pixels those count that lie in a square of 3 × 3 such pixels (a morphological opening).
    pub fn finding(&self) -> Option<SliceFinding> {
        let [first, others @ ..] = self.runs else { return None };
        let is_disputed = |at: usize| {
            let (label, predicted) = (self.label[at], first[at]);
            label != predicted && Some(label) != self.ignored && others.iter().all(|run| run[at] == predicted)
        };
        let disputed = opened(&(0..self.label.len()).map(is_disputed).collect::<Vec<bool>>(), self.size);
        let mut pairs: BTreeMap<(u8, u8), usize> = BTreeMap::new();
        for at in (0..disputed.len()).filter(|&at| disputed[at]) {
            *pairs.entry((self.label[at], first[at])).or_default() += 1;
        }
        let ((label, predicted), of_these) = pairs.iter().map(|(pair, count)| (*pair, *count)).max_by_key(|(_, count)| *count)?;
        let counted = |of: &[u8]| -> Vec<u8> {
            of.iter().zip(self.label).map(|(&class, &label)| if Some(label) == self.ignored { 0 } else { class }).collect()
        };
        let (runs, reference): (Vec<Vec<u8>>, _) = (self.runs.iter().map(|run| counted(run)).collect(), counted(self.label));
        let pairs_of_runs = (0..runs.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
        Some(SliceFinding {
            pixels: pairs.values().sum(),
            label,
            predicted,
            of_these,
            agreement: mean(pairs_of_runs.filter_map(|(a, b)| slice_dice(&runs[a], &runs[b], &[]))),
            dice: mean(runs.iter().filter_map(|run| slice_dice(run, &reference, &[]))),
            disputed,
        })
    }
}

/// The pixels of a plane `[h, w]` that lie in a square of 3 × 3 pixels that are all set.
fn opened(plane: &[bool], [height, width]: [usize; 2]) -> Vec<bool> {
    let mut out = vec![false; plane.len()];
    for top in 0..height.saturating_sub(2) {
        for left in 0..width.saturating_sub(2) {
            let rows = (top..top + 3).map(|y| y * width + left..y * width + left + 3);
            if rows.clone().all(|row| plane[row].iter().all(|&set| set)) {
                rows.for_each(|row| out[row].fill(true));
            }
        }
    }
    out
}

/// The class that most runs give each voxel; of two with as many votes the lower.
pub(super) fn vote(runs: &[&[u8]]) -> Vec<u8> {
    let [first, others @ ..] = runs else { return Vec::new() };
    let voxel = |at: usize| {
        if others.iter().all(|run| run[at] == first[at]) {
            return first[at];
        }
        let mut votes = [0u32; 256];
        runs.iter().for_each(|run| votes[usize::from(run[at])] += 1);
        let most = votes.iter().max().copied().unwrap_or(0);
        votes.iter().position(|&count| count == most).unwrap_or(0) as u8
    };
    (0..first.len()).map(voxel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plane from rows of digits; dots are background.
    fn plane(rows: &[&str]) -> Vec<u8> {
        rows.concat().bytes().map(|digit| if digit == b'.' { 0 } else { digit - b'0' }).collect()
    }

    fn find(label: &[&str], runs: &[&[&str]], ignored: Option<u8>) -> Option<SliceFinding> {
        let size = [label.len(), label[0].len()];
        let (label, runs): (_, Vec<Vec<u8>>) = (plane(label), runs.iter().map(|run| plane(run)).collect());
        let runs: Vec<&[u8]> = runs.iter().map(Vec::as_slice).collect();
        SliceMasks { size, runs: &runs, label: &label, ignored }.finding()
    }

    const NOTHING: [&str; 4] = ["......"; 4];
    const ORGAN: [&str; 4] = ["......", ".222..", ".222..", ".222.."];

    #[test]
    fn an_organ_that_all_runs_see_and_the_label_lacks_is_disputed() {
        let found = find(&NOTHING, &[&ORGAN, &["222222"; 4]], None).unwrap();
        assert_eq!((found.pixels, found.label, found.predicted, found.of_these), (9, 0, 2, 9));
        // The runs share 9 of 9 and 24 pixels; neither shares one with the label.
        assert_eq!((found.agreement, found.dice), (Some(18.0 / 33.0), Some(0.0)));
    }

    #[test]
    fn what_one_run_confirms_is_not_disputed() {
        assert_eq!(find(&NOTHING, &[&ORGAN, &NOTHING], None), None);
        assert_eq!(find(&ORGAN, &[&ORGAN, &ORGAN], None), None);
        assert_eq!(find(&ORGAN, &[], None), None);
    }

    #[test]
    fn a_rim_of_two_pixels_does_not_count_and_an_ignored_class_never() {
        let narrower = ["......", ".2....", ".2....", ".2...."];
        assert_eq!(find(&ORGAN, &[&narrower], None), None, "2 × 3 pixels");
        assert_eq!(find(&ORGAN, &[&NOTHING], None).unwrap().pixels, 9);
        assert_eq!(find(&ORGAN, &[&NOTHING], Some(2)), None);
        let found = find(&["2221..", "2221..", "2221.."], &[&["333111", "333111", "333111"]], Some(1)).unwrap();
        // Of the pixels that take part: three columns of 2 that are 3, and the columns of 1 that the label lacks are two wide.
        assert_eq!((found.pixels, found.label, found.predicted, found.agreement), (9, 2, 3, None));
    }

    #[test]
    fn the_pair_with_most_pixels_is_named() {
        let label = ["111...2222", "111...2222", "111...2222"];
        let found = find(&label, &[&["333...4444", "333...4444", "333...4444"]], None).unwrap();
        assert_eq!((found.pixels, found.label, found.predicted, found.of_these), (21, 2, 4, 12));
    }

    #[test]
    fn the_majority_votes_and_of_equals_the_lower_class() {
        assert_eq!(vote(&[&[1, 2, 3], &[1, 0, 3], &[0, 2, 1]]), [1, 2, 3]);
        assert_eq!(vote(&[&[5, 2], &[3, 0]]), [3, 0]);
        assert!(vote(&[]).is_empty());
    }
}
