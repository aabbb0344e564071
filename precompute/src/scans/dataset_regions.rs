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

/// A class is called by its innermost regions, those that it belongs to and that have no other such region within them: as the region if that has no
/// other class, else `<region>_only`; `a+b` where regions cross. A name that something else has gets a number.
fn class_names(regions: &[ClassRegion], classes: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for class in (1u8..).take(classes) {
        let of_class: Vec<&ClassRegion> = regions.iter().filter(|region| region.has(class)).collect();
        let within = |inner: &ClassRegion, outer: &ClassRegion| inner != outer && inner.classes.iter().all(|&c| outer.has(c));
        let mut innermost: Vec<&ClassRegion> =
            of_class.iter().copied().filter(|outer| !of_class.iter().any(|inner| within(inner, outer))).collect();
        innermost.sort_by(|a, b| a.name.cmp(&b.name));
        let (name, is_region) = match innermost[..] {
            [ClassRegion { name, classes }] if classes.len() == 1 => (name.clone(), true),
            [ClassRegion { name, .. }] => (format!("{name}_only"), false),
            _ => (innermost.iter().map(|region| region.name.as_str()).collect::<Vec<_>>().join("+"), false),
        };
        let is_taken = |name: &String| names.contains(name) || !is_region && regions.iter().any(|region| region.name == *name);
        let numbered = (2..).map(|number| format!("{name} {number}"));
        names.extend(std::iter::once(name.clone()).chain(numbered).find(|name| !is_taken(name)));
    }
    names
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
        assert_eq!(found.class_names, ["a+c", "a+b", "b+c"]);
        let found = divided(&[("left", &[1]), ("right", &[2]), ("both", &[1, 2])]).unwrap();
        assert_eq!(found.class_names, ["left", "right"]);
        assert_eq!(found.regions, [region("both", &[1, 2]), region("left", &[1]), region("right", &[2])]);
    }

    #[test]
    fn names_are_of_the_innermost_regions_and_each_once() {
        let found = divided(&[("all", &[1, 2, 3, 4]), ("liver/spleen", &[1, 2, 3]), ("x", &[1, 4])]).unwrap();
        assert_eq!(
            (found.class_names, found.label_map),
            (["liver/spleen+x", "liver/spleen_only", "x_only"].map(String::from).to_vec(), vec![0, 1, 2, 2, 3])
        );
        let found = divided(&[("a", &[1, 2]), ("b", &[2, 3]), ("a+b", &[3])]).unwrap();
        assert_eq!(found.class_names, ["a_only", "a+b 2", "a+b"]);
        let found = divided(&[("kidney", &[1, 2]), ("cyst", &[2]), ("kidney_only", &[3])]).unwrap();
        assert_eq!(found.class_names, ["kidney_only 2", "cyst", "kidney_only"]);
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
