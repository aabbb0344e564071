//! Postprocessing of masks: the largest component of an organ, a smallest size, filled holes; and its choice on validation cases, organ by organ, by the
//! mean Dice, as nnU-Net chooses it.

use crate::components::{components, holes};
use crate::masks::MaskView;
use sam_ladder_schemas::postprocessing::OrganRule;
use std::ops::Range;

/// Applies the rules of the organs, of the classes from 1, to a mask `[d, h, w]`. What is removed becomes background.
///
/// # Panics
/// When the mask does not fill its shape.
pub fn postprocess(mask: &mut [u8], shape: [usize; 3], rules: &[OrganRule]) {
    assert_eq!(mask.len(), shape.iter().product::<usize>(), "a mask of shape {shape:?} has {} voxels", mask.len());
    for (class, rule) in (1..=u8::MAX).zip(rules).filter(|(_, rule)| !rule.is_nothing()) {
        // Components and holes lie within the organ's box.
        let Some(part) = Part::of(mask, shape, class) else { continue };
        let mut voxels = part.crop(mask);
        apply(rule, class, &mut voxels, part.shape());
        part.put_back(&voxels, mask);
    }
}

fn apply(rule: &OrganRule, class: u8, mask: &mut [u8], shape: [usize; 3]) {
    if rule.largest_component || rule.smallest_voxels > 0 {
        let found = components(MaskView { voxels: mask, shape }, class);
        let largest = found.iter().map(Vec::len).max().unwrap_or(0);
        // Of several largest ones the first stays.
        let kept = found.iter().position(|component| component.len() == largest);
        for (at, component) in found.iter().enumerate() {
            let goes = rule.largest_component && Some(at) != kept || (component.len() as u64) < rule.smallest_voxels;
            if goes {
                component.iter().for_each(|&voxel| mask[voxel] = 0);
            }
        }
    }
    if rule.fill_holes {
        let holes = holes(MaskView { voxels: mask, shape }, class);
        holes.into_iter().for_each(|voxel| mask[voxel] = class);
    }
}

/// The box of a class in a mask.
struct Part {
    /// `[d, h, w]` of the mask.
    whole: [usize; 3],
    sides: [Range<usize>; 3],
}

impl Part {
    /// `None` if the mask lacks the class.
    fn of(mask: &[u8], whole: [usize; 3], class: u8) -> Option<Self> {
        let [_, h, w] = whole;
        let (mut start, mut end) = ([usize::MAX; 3], [0; 3]);
        for at in (0..mask.len()).filter(|&at| mask[at] == class) {
            let place = [at / (h * w), at / w % h, at % w];
            for axis in 0..3 {
                start[axis] = start[axis].min(place[axis]);
                end[axis] = end[axis].max(place[axis] + 1);
            }
        }
        (end[0] > 0).then(|| Part { whole, sides: [0, 1, 2].map(|axis| start[axis]..end[axis]) })
    }

    fn shape(&self) -> [usize; 3] {
        self.sides.clone().map(|side| side.len())
    }

    /// The ranges of the mask's voxels that are rows of the box.
    fn rows(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let ([_, h, w], [z, y, x]) = (self.whole, &self.sides);
        z.clone().flat_map(move |z| y.clone().map(move |y| ((z * h + y) * w + x.start)..((z * h + y) * w + x.end)))
    }

    fn crop(&self, mask: &[u8]) -> Vec<u8> {
        self.rows().flat_map(|row| mask[row].iter().copied()).collect()
    }

    fn put_back(&self, voxels: &[u8], mask: &mut [u8]) {
        let width = self.sides[2].len();
        self.rows().zip(voxels.chunks(width)).for_each(|(row, voxels)| mask[row].copy_from_slice(voxels));
    }
}

/// Chooses rules on cases that come one by one.
#[derive(Debug)]
pub struct PostprocessingChoice {
    class_names: Vec<String>,
    /// Half of the organ's voxels in the case that has the fewest, by class from 1: what is smaller is no organ there.
    smallest: Vec<u64>,
    /// By class from 1, then by the candidates: the Dice of each case where it is defined.
    dice: Vec<Vec<Vec<f64>>>,
    /// Class of the references of voxels that take no part.
    ignored: Option<u8>,
}

impl PostprocessingChoice {
    /// `smallest_reference` is the least number of voxels of each organ, of the classes from 1, in the references that have it; 0 of one that none has.
    pub fn new(class_names: &[String], smallest_reference: &[u64], ignored: Option<u8>) -> Self {
        let smallest: Vec<u64> = smallest_reference.iter().map(|voxels| voxels / 2).collect();
        let dice = vec![vec![Vec::new(); 8]; smallest.len()];
        PostprocessingChoice { class_names: class_names.to_vec(), smallest, dice, ignored }
    }

    /// Candidate `number` of a class from 1: bit 0 the largest component, bit 1 the smallest size, bit 2 filled holes.
    fn candidate(&self, class: usize, number: usize) -> OrganRule {
        OrganRule {
            organ: self.class_names[class].clone(),
            largest_component: number & 1 != 0,
            smallest_voxels: if number & 2 != 0 { self.smallest[class] } else { 0 },
            fill_holes: number & 4 != 0,
            dice_before: None,
            dice_after: None,
        }
    }

    /// Adds a case: its mask and its reference, of the same shape.
    pub fn add(&mut self, mask: MaskView<'_>, reference: &[u8]) {
        for class in 0..self.dice.len() {
            let label = class as u8 + 1;
            let there = reference.iter().filter(|&&found| found == label).count();
            let Some(part) = Part::of(mask.voxels, mask.shape, label) else {
                // Nothing changes what is not there.
                let missed = (there > 0).then_some(0.0);
                self.dice[class].iter_mut().for_each(|dice| dice.extend(missed));
                continue;
            };
            let (voxels, reference) = (part.crop(mask.voxels), part.crop(reference));
            for number in 0..8 {
                let mut voxels = voxels.clone();
                apply(&self.candidate(class, number), label, &mut voxels, part.shape());
                let dice = self.dice_of(label, &voxels, &reference, there);
                self.dice[class][number].extend(dice);
            }
        }
    }

    /// Dice of a class within its box, of which the whole reference has `there` voxels; `None` where neither has it.
    fn dice_of(&self, class: u8, mask: &[u8], reference: &[u8], there: usize) -> Option<f64> {
        let found = mask.iter().zip(reference).filter(|(p, r)| **p == class && Some(**r) != self.ignored);
        let (found, both) = found.fold((0, 0), |(found, both), (_, r)| (found + 1, both + usize::from(*r == class)));
        (found + there > 0).then(|| 2.0 * both as f64 / (found + there) as f64)
    }

    /// The best candidate of each organ. Without a gain in the mean Dice nothing is done, and of equal ones the least.
    pub fn choose(&self) -> Vec<OrganRule> {
        let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let best = |class: usize| {
            let means: Vec<Option<f64>> = self.dice[class].iter().map(|values| mean(values)).collect();
            let mut order: Vec<usize> = (0..8).collect();
            order.sort_by_key(|number| (number.count_ones(), *number));
            let better = |best: usize, &number: &usize| if means[number] > means[best] { number } else { best };
            let best = order.iter().fold(0, better);
            OrganRule { dice_before: means[0], dice_after: means[best], ..self.candidate(class, best) }
        };
        (0..self.dice.len()).map(best).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(largest_component: bool, smallest_voxels: u64, fill_holes: bool) -> OrganRule {
        OrganRule { organ: "a".into(), largest_component, smallest_voxels, fill_holes, dice_before: None, dice_after: None }
    }

    /// Three parts of 3, 2 and 1 voxels in a line.
    const LINE: [u8; 10] = [1, 1, 1, 0, 1, 1, 0, 1, 0, 2];

    fn after(rules: &[OrganRule]) -> [u8; 10] {
        let mut mask = LINE;
        postprocess(&mut mask, [1, 1, 10], rules);
        mask
    }

    #[test]
    fn what_is_small_or_not_the_largest_goes() {
        assert_eq!(after(&[rule(false, 0, false)]), LINE);
        assert_eq!(after(&[rule(true, 0, false)]), [1, 1, 1, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(after(&[rule(false, 2, false)]), [1, 1, 1, 0, 1, 1, 0, 0, 0, 2]);
        assert_eq!(after(&[rule(true, 4, false)]), [0, 0, 0, 0, 0, 0, 0, 0, 0, 2], "not even the largest is as large");
        assert_eq!(after(&[rule(false, 0, false), rule(false, 2, false)])[9], 0, "each organ has its own rule");
    }

    #[test]
    fn holes_are_filled_after_what_is_small_has_gone() {
        let mut mask = [1u8; 27];
        mask[13] = 0;
        postprocess(&mut mask, [3, 3, 3], &[rule(true, 0, true)]);
        assert_eq!(mask, [1; 27]);
    }

    #[test]
    fn only_what_raises_the_mean_is_chosen() {
        let names = ["a".to_string(), "b".to_string()];
        let mut choice = PostprocessingChoice::new(&names, &[4, 1], None);
        // Organ a: the reference is the first part, so that the largest component is right. Organ b is right already.
        let reference = [1, 1, 1, 0, 0, 0, 0, 0, 0, 2];
        choice.add(MaskView { voxels: &LINE, shape: [1, 1, 10] }, &reference);
        let chosen = choice.choose();
        // Before: 2·3/(6 + 3); after: 1. The smallest size, half of 4, alone leaves the second part.
        assert_eq!((chosen[0].largest_component, chosen[0].smallest_voxels, chosen[0].fill_holes), (true, 0, false));
        assert_eq!((chosen[0].dice_before, chosen[0].dice_after), (Some(2.0 / 3.0), Some(1.0)));
        assert!(chosen[1].is_nothing() && chosen[1].dice_after == Some(1.0));
        // A second case in which the organ has two parts: removing one costs more than it gains.
        let two = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];
        choice.add(MaskView { voxels: &LINE, shape: [1, 1, 10] }, &two);
        let chosen = choice.choose();
        // By the size: (6/8 + 1) / 2; by the largest component: (1 + 6/8) / 2; equal, and the first of them stays.
        assert_eq!((chosen[0].largest_component, chosen[0].smallest_voxels), (true, 0));
        assert_eq!(chosen[0].dice_after, Some(0.875));
        assert_eq!(PostprocessingChoice::new(&names, &[0, 0], None).choose()[0].dice_before, None);
    }
}
