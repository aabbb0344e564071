//! Regions: unions of classes, which nnU-Net's `dataset.json` names by lists of labels. Losses and scores are over them where a dataset has some.

use crate::setting::{Problem, SettingError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A union of classes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassRegion {
    /// Its name.
    pub name: String,
    /// The classes, from 1, ascending.
    pub classes: Vec<u8>,
}

impl ClassRegion {
    /// Whether voxels of a class belong to it.
    pub fn has(&self, class: u8) -> bool {
        self.classes.contains(&class)
    }

    /// A mask of the region: 1 where its classes are, else 0.
    pub fn mask(&self, classes: &[u8]) -> Vec<u8> {
        let mut table = [0u8; 256];
        self.classes.iter().for_each(|&class| table[usize::from(class)] = 1);
        classes.iter().map(|&class| table[usize::from(class)]).collect()
    }
}

/// Checks regions of so many classes without background: named, each once, with classes that there are.
///
/// # Errors
/// The region that is none.
pub(crate) fn check(regions: &[ClassRegion], num_organs: usize) -> Result<(), SettingError> {
    for (at, region) in regions.iter().enumerate() {
        let path = format!("regions[{at}]");
        if region.name.trim().is_empty() || region.name == "mean" {
            let reason = format!("a region cannot be called {:?}", region.name);
            return Err(Problem::conflict(reason, "rename the region").with(path));
        }
        if regions[..at].iter().any(|before| before.name == region.name) {
            return Err(Problem::conflict(format!("{:?} is there twice", region.name), "rename one of them").with(path));
        }
        let known = region.classes.iter().all(|&class| class > 0 && usize::from(class) <= num_organs);
        if region.classes.is_empty() || !known || !region.classes.is_sorted_by(|a, b| a < b) {
            let expected = format!("ascending classes from 1 to {num_organs}");
            return Err(Problem::expected(expected, format!("{:?}", region.classes)).with(path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str, classes: &[u8]) -> ClassRegion {
        ClassRegion { name: name.into(), classes: classes.to_vec() }
    }

    #[test]
    fn a_region_is_its_classes() {
        let kidney = region("kidney", &[1, 3]);
        assert_eq!(kidney.mask(&[0, 1, 2, 3, 255]), [0, 1, 0, 1, 0]);
        assert!(kidney.has(3) && !kidney.has(2));
    }

    #[test]
    fn what_is_no_region_is_refused() {
        assert!(check(&[region("whole", &[1, 2, 3]), region("core", &[2])], 3).is_ok());
        let refused = |regions: &[ClassRegion]| check(regions, 3).unwrap_err().to_string();
        assert!(refused(&[region("", &[1])]).contains("cannot be called"));
        assert!(refused(&[region("mean", &[1])]).contains("cannot be called"));
        assert!(refused(&[region("a", &[1]), region("a", &[2])]).contains("there twice"));
        for classes in [&[][..], &[0, 1], &[4], &[2, 1], &[1, 1]] {
            assert!(refused(&[region("a", classes)]).contains("classes from 1 to 3"), "{classes:?}");
        }
    }
}
