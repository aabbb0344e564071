//! Labels of nnU-Net's `dataset.json` that are lists: regions, which overlap. Voxels have one class each here, so the classes are the smallest parts
//! into which the regions divide the labels' values.

use super::dataset_problem::{DatasetProblem, MAX_CLASSES};
use sam_ladder_schemas::regions::ClassRegion;
use std::collections::BTreeMap;

/// What named lists of values, none of them background, amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Regions {
    /// Names of the classes from 1, in the order of their smallest values. Values that belong to the same regions are one class.
    pub(super) class_names: Vec<String>,
    /// Class by value, from the background's 0.
    pub(super) label_map: Vec<u8>,
    /// The regions, in the order of their first class, the larger one first.
    pub(super) regions: Vec<ClassRegion>,
}

/// The classes of regions, given as lists of values by name.
///
/// # Errors
/// A region without values, with the background's, or with the same as another; values with a gap; too many classes.
pub(super) fn divide(lists: BTreeMap<String, Vec<u64>>) -> Result<Regions, DatasetProblem> {
    for (name, values) in &lists {
        if values.is_empty() || values.contains(&0) {
            return Err(DatasetProblem::RegionValues { name: name.clone() });
        }
    }
    let values: Vec<u64> = {
        let mut all: Vec<u64> = lists.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    if let Some((&found, missing)) = values.iter().zip(1..).find(|&(&found, expected)| found != expected) {
        return Err(DatasetProblem::Gap { what: "label", found, missing });
    }
    // For each value the regions that it belongs to, and for each such set its class.
    let mut classes: Vec<Vec<&String>> = Vec::new();
    let mut label_map = vec![0u8];
    for value in &values {
        let regions: Vec<&String> = lists.iter().filter(|(_, values)| values.contains(value)).map(|(name, _)| name).collect();
        let at = classes.iter().position(|class| *class == regions).unwrap_or_else(|| {
            classes.push(regions);
            classes.len() - 1
        });
        if at >= MAX_CLASSES {
            return Err(DatasetProblem::Classes(values.len()));
        }
        label_map.push(at as u8 + 1);
    }
    let classes_of = |name: &String| -> Vec<u8> {
        (1u8..).zip(&classes).filter(|(_, regions)| regions.contains(&name)).map(|(class, _)| class).collect()
    };
    let mut regions: Vec<ClassRegion> =
        lists.keys().map(|name| ClassRegion { name: name.clone(), classes: classes_of(name) }).collect();
    regions.sort_by_key(|region| (region.classes[0], std::cmp::Reverse(region.classes.len())));
    if let Some([first, second]) =
        regions.windows(2).find(|pair| pair[0].classes == pair[1].classes).map(|pair| [&pair[0], &pair[1]])
    {
        return Err(DatasetProblem::SameRegion { first: first.name.clone(), second: second.name.clone() });
    }
    let class_names = class_names(&regions, classes.len());
    Ok(Regions { class_names, label_map, regions })
}

/// A class is called as a region that has no other class. Else, if it belongs to a region and to regions around that, `<region>_only`; else by all
/// its regions, `a+b`.
fn class_names(regions: &[ClassRegion], classes: usize) -> Vec<String> {
    let name = |class: u8| {
        let of_class: Vec<&ClassRegion> = regions.iter().filter(|region| region.has(class)).collect();
        let within = |inner: &ClassRegion| of_class.iter().all(|outer| inner.classes.iter().all(|&class| outer.has(class)));
        match of_class.iter().find(|region| within(region)) {
            Some(ClassRegion { name, classes }) if classes.len() == 1 => name.clone(),
            Some(ClassRegion { name, .. }) => format!("{name}_only"),
            None => of_class.iter().map(|region| region.name.as_str()).collect::<Vec<_>>().join("+"),
        }
    };
    (1u8..).take(classes).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(lists: &[(&str, &[u64])]) -> Result<Regions, String> {
        let lists = lists.iter().map(|(name, values)| (name.to_string(), values.to_vec())).collect();
        divide(lists).map_err(|problem| problem.to_string())
    }

    fn region(name: &str, classes: &[u8]) -> ClassRegion {
        ClassRegion { name: name.into(), classes: classes.to_vec() }
    }

    /// KiTS 2023 as nnU-Net converts it: kidney, tumour and cyst are 1, 2 and 3.
    #[test]
    fn nested_regions_keep_the_files_values() {
        let found = divided(&[("kidney", &[1, 2, 3]), ("masses", &[2, 3]), ("tumor", &[2])]).unwrap();
        assert_eq!(found.class_names, ["kidney_only", "tumor", "masses_only"]);
        assert_eq!(found.label_map, [0, 1, 2, 3]);
        assert_eq!(found.regions, [region("kidney", &[1, 2, 3]), region("masses", &[2, 3]), region("tumor", &[2])]);
    }

    #[test]
    fn values_of_the_same_regions_are_one_class() {
        let found = divided(&[("whole", &[1, 2, 3]), ("core", &[3])]).unwrap();
        assert_eq!((found.class_names, found.label_map), (vec!["whole_only".to_string(), "core".into()], vec![0, 1, 1, 2]));
        assert_eq!(found.regions, [region("whole", &[1, 2]), region("core", &[2])]);
    }

    #[test]
    fn regions_that_only_overlap_divide_each_other() {
        let found = divided(&[("a", &[1, 2]), ("b", &[2, 3]), ("c", &[1, 3])]).unwrap();
        assert_eq!(found.class_names, ["a+c", "a+b", "c+b"]);
        let found = divided(&[("left", &[1]), ("right", &[2]), ("both", &[1, 2])]).unwrap();
        assert_eq!(found.class_names, ["left", "right"]);
        assert_eq!(found.regions, [region("both", &[1, 2]), region("left", &[1]), region("right", &[2])]);
    }

    #[test]
    fn lists_that_are_no_regions_are_refused() {
        assert!(divided(&[("a", &[])]).unwrap_err().contains("\"a\""));
        assert!(divided(&[("a", &[0, 1])]).unwrap_err().contains("background"));
        assert!(divided(&[("a", &[1, 3])]).unwrap_err().contains("label 3 but no 2"));
        let error = divided(&[("a", &[1, 2]), ("b", &[2, 1]), ("c", &[3])]).unwrap_err();
        assert!(error.contains("\"a\" and \"b\""), "{error}");
    }
}
