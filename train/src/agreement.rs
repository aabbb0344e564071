//! How far several models agree on the mask of a scan: the Dice of each one's mask with each other's, organ by organ.

/// Voxels by class, of each model's own mask and of each pair's common part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    members: Vec<Vec<u64>>,
    /// Of each pair of models, in the order (0, 1), (0, 2), (1, 2), …: voxels that both give the class.
    common: Vec<Vec<u64>>,
}

impl Agreement {
    /// Adds some voxels' classes, by each model.
    pub(crate) fn add(&mut self, masks: &[Vec<u8>]) {
        let empty = || vec![0u64; 256];
        self.members.resize_with(masks.len(), empty);
        self.common.resize_with(masks.len() * masks.len().saturating_sub(1) / 2, empty);
        let mut common = self.common.iter_mut();
        for (second, mask) in masks.iter().enumerate() {
            mask.iter().for_each(|&class| self.members[second][usize::from(class)] += 1);
            for first in &masks[..second] {
                let Some(common) = common.next() else { continue };
                let both = first.iter().zip(mask).filter(|(a, b)| a == b);
                both.for_each(|(&class, _)| common[usize::from(class)] += 1);
            }
        }
    }

    /// Number of models.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The mean over the pairs of models of the Dice of their masks of a class; a pair of which neither has it is left out. `None` of fewer than two
    /// models, and where none has the class.
    pub fn mean_dice(&self, class: u8) -> Option<f64> {
        let class = usize::from(class);
        let mut dice = Vec::new();
        let mut common = self.common.iter();
        for second in 0..self.members.len() {
            for first in 0..second {
                let sum = self.members[first][class] + self.members[second][class];
                let both = common.next()?[class];
                if sum > 0 {
                    dice.push(2.0 * both as f64 / sum as f64);
                }
            }
        }
        (!dice.is_empty()).then(|| dice.iter().sum::<f64>() / dice.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_compared_and_averaged() {
        let mut found = Agreement::default();
        // In two parts, as slices come. Class 1: the masks have 2, 2 and 0 voxels, the first two share one.
        found.add(&[vec![1, 0], vec![1, 1], vec![0, 2]]);
        found.add(&[vec![1, 0], vec![0, 0], vec![0, 0]]);
        assert_eq!(found.members(), 3);
        // 2·1/4, 0/2 and 0/2.
        assert_eq!(found.mean_dice(1), Some(0.5 / 3.0));
        // Class 2 has one voxel in the third: two pairs have it, the third pair is left out.
        assert_eq!(found.mean_dice(2), Some(0.0));
        assert_eq!(found.mean_dice(3), None);
        let mut one = Agreement::default();
        one.add(&[vec![1, 1]]);
        assert_eq!(one.mean_dice(1), None);
    }
}
