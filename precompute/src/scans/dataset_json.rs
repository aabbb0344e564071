//! `dataset.json` of nnU-Net's raw layout, in the form of version 2 and in the older one that the Medical Segmentation Decathlon shares.

use super::dataset_problem::{DatasetProblem, MAX_CLASSES};
use super::dataset_regions::{Regions, divide};
use super::error::ScanError;
use sam_ladder_formats::placeholder;
use sam_ladder_formats::volume::ENDINGS;
use sam_ladder_schemas::regions::ClassRegion;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file.
pub(super) const DATASET_JSON: &str = "dataset.json";
/// What nnU-Net calls label 0.
const BACKGROUND: &str = "background";
/// What nnU-Net calls voxels that no loss may look at.
const IGNORE: &str = "ignore";

/// What `dataset.json` says of a folder's scans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dataset {
    /// Names of the channels by their number.
    pub(super) channels: Vec<String>,
    /// Names of the classes from 1; background is 0.
    pub(super) class_names: Vec<String>,
    /// Class by label, from the background's 0.
    pub(super) label_map: Vec<u8>,
    /// Unions of classes, if labels are lists.
    pub(super) regions: Vec<ClassRegion>,
    /// Whether the label after the last class marks voxels that take no part: nnU-Net's `ignore`.
    pub(super) has_ignored: bool,
    /// What the names of scans end with, in either case: `.nii.gz` or the ending of another volume.
    pub(super) file_ending: String,
    /// Number of training cases, if it says one.
    pub(super) num_training: Option<u64>,
}

/// The keys that are read; others are ignored.
#[derive(Deserialize)]
struct Keys {
    channel_names: Option<BTreeMap<String, String>>,
    modality: Option<BTreeMap<String, String>>,
    labels: BTreeMap<String, LabelValue>,
    file_ending: Option<String>,
    #[serde(rename = "numTraining", default)]
    num_training: Option<serde_json::Value>,
}

/// The right-hand side of an entry of `labels`.
#[derive(Deserialize)]
#[serde(untagged)]
enum LabelValue {
    /// Version 2: `"liver": 1`.
    Number(u64),
    /// Before: `"1": "liver"`.
    Name(String),
    /// A region: `"tumour": [1, 2]`.
    Region(Vec<u64>),
    /// Anything else.
    Other(#[allow(dead_code)] IgnoredAny),
}

impl Dataset {
    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self, ScanError> {
        Self::parse(path, &placeholder::read(path)?)
    }

    /// Parses its bytes; `path` is for messages.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ScanError> {
        Self::of_json(bytes).map_err(|problem| ScanError::Dataset { path: path.into(), problem })
    }

    fn of_json(bytes: &[u8]) -> Result<Self, DatasetProblem> {
        // Some editors begin a file with a byte-order mark, which JSON does not know.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let keys: Keys = serde_json::from_slice(bytes).map_err(DatasetProblem::Json)?;
        let channels = keys.channel_names.or(keys.modality).ok_or(DatasetProblem::NoChannelNames)?;
        let file_ending = keys.file_ending.unwrap_or_else(|| ".nii.gz".into());
        if !ENDINGS.iter().any(|(ending, _)| file_ending.eq_ignore_ascii_case(ending)) {
            return Err(DatasetProblem::FileEnding(file_ending));
        }
        let channels = in_a_row("channel", by_number(channels)?)?;
        let num_training = keys.num_training.and_then(|number| number.as_u64());
        let labels = match keys.labels.values().any(|value| matches!(value, LabelValue::Region(_))) {
            true => Labels::of_regions(keys.labels)?,
            false => Labels::of_numbers(keys.labels)?,
        };
        let Labels { class_names, label_map, regions, has_ignored } = labels;
        Ok(Dataset { channels, class_names, label_map, regions, has_ignored, file_ending, num_training })
    }

    /// Number and name of each channel, for messages.
    pub(super) fn list_channels(&self) -> String {
        let named = |(index, name): (usize, &String)| format!("{index} {name}");
        self.channels.iter().enumerate().map(named).collect::<Vec<_>>().join(", ")
    }
}

/// What `labels` say.
struct Labels {
    class_names: Vec<String>,
    label_map: Vec<u8>,
    regions: Vec<ClassRegion>,
    has_ignored: bool,
}

impl Labels {
    /// Each is a number.
    fn of_numbers(labels: BTreeMap<String, LabelValue>) -> Result<Self, DatasetProblem> {
        let (class_names, has_ignored) = class_names(labels)?;
        let label_map = (0..=u8::MAX).take(class_names.len() + 1).collect();
        Ok(Labels { class_names, label_map, regions: Vec::new(), has_ignored })
    }

    /// Some are lists of numbers, of which each is then a region.
    fn of_regions(labels: BTreeMap<String, LabelValue>) -> Result<Self, DatasetProblem> {
        let (mut lists, mut ignored, mut background) = (BTreeMap::new(), None, None);
        for (name, value) in labels {
            // What is no region may be written as one.
            let is_no_region = [IGNORE, BACKGROUND].iter().any(|special| name.trim().eq_ignore_ascii_case(special));
            let value = match value {
                LabelValue::Region(numbers) if is_no_region => match numbers[..] {
                    [number] => LabelValue::Number(number),
                    _ => return Err(DatasetProblem::OneNumber(name)),
                },
                other => other,
            };
            match value {
                LabelValue::Number(number) if name.trim().eq_ignore_ascii_case(IGNORE) => ignored = Some((number, name)),
                LabelValue::Number(number) if name.trim().eq_ignore_ascii_case(BACKGROUND) => background = Some(number),
                LabelValue::Number(number) => drop(lists.insert(name, vec![number])),
                LabelValue::Region(numbers) => drop(lists.insert(name, numbers)),
                LabelValue::Name(_) | LabelValue::Other(_) => return Err(DatasetProblem::LabelValue(name)),
            }
        }
        if background != Some(0) {
            return Err(DatasetProblem::RegionBackground);
        }
        let Regions { class_names, label_map, regions } = divide(lists)?;
        if let Some((number, name)) = ignored.clone().filter(|(number, _)| *number != label_map.len() as u64) {
            return Err(DatasetProblem::Ignore { number, name, expected: label_map.len() });
        }
        Ok(Labels { class_names, label_map, regions, has_ignored: ignored.is_some() })
    }
}

/// Names of the classes from 1, from `labels` in either form, and whether there is a label of voxels that take no part.
fn class_names(labels: BTreeMap<String, LabelValue>) -> Result<(Vec<String>, bool), DatasetProblem> {
    let mut names = BTreeMap::new();
    let mut ignored = None;
    for (key, value) in labels {
        let (number, name) = match value {
            LabelValue::Number(number) => (number, key),
            LabelValue::Name(name) => match key.parse() {
                Ok(number) => (number, name),
                Err(_) => return Err(DatasetProblem::LabelNumber { key, name }),
            },
            LabelValue::Region(_) | LabelValue::Other(_) => return Err(DatasetProblem::LabelValue(key)),
        };
        if name.eq_ignore_ascii_case(IGNORE) && ignored.is_none() {
            ignored = Some((number, name));
            continue;
        }
        if let Some(first) = names.insert(number, name.clone()) {
            return Err(DatasetProblem::Repeated { what: "label", first, second: name, number });
        }
    }
    // nnU-Net, too, wants it after all others.
    if let Some((number, name)) = ignored.clone().filter(|(number, _)| *number != names.len() as u64) {
        return Err(DatasetProblem::Ignore { number, name, expected: names.len() });
    }
    let mut names = in_a_row("label", names)?;
    if names.len() < 2 || names.len() + usize::from(ignored.is_some()) > MAX_CLASSES + 1 {
        return Err(DatasetProblem::Classes(names.len().saturating_sub(1)));
    }
    let is_background = |name: &String| name.trim().eq_ignore_ascii_case(BACKGROUND);
    if let Some(number) = names.iter().position(is_background).filter(|number| *number != 0) {
        return Err(DatasetProblem::Background { number, first: names.swap_remove(0) });
    }
    let first = names.remove(0);
    if !is_background(&first) {
        return Err(DatasetProblem::NoBackground(first));
    }
    Ok((names, ignored.is_some()))
}

/// Names by their numbers, which are the keys.
fn by_number(names: BTreeMap<String, String>) -> Result<BTreeMap<u64, String>, DatasetProblem> {
    let mut numbered = BTreeMap::new();
    for (key, name) in names {
        let Ok(number) = key.parse() else { return Err(DatasetProblem::ChannelNumber { key, name }) };
        if let Some(first) = numbered.insert(number, name.clone()) {
            return Err(DatasetProblem::Repeated { what: "channel", first, second: name, number });
        }
    }
    Ok(numbered)
}

/// The names of 0, 1, 2, … without a gap.
fn in_a_row(what: &'static str, names: BTreeMap<u64, String>) -> Result<Vec<String>, DatasetProblem> {
    match names.keys().zip(0..).find(|&(&number, expected)| number != expected) {
        Some((&found, missing)) => Err(DatasetProblem::Gap { what, found, missing }),
        None => Ok(names.into_values().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Dataset, String> {
        Dataset::parse(Path::new("Dataset027_ACDC/dataset.json"), json.as_bytes()).map_err(|error| {
            let message = error.to_string();
            assert!(error.hint().is_some(), "{message}");
            assert!(message.starts_with("Dataset027_ACDC/dataset.json: ") && !message.contains('\n'), "{message}");
            message
        })
    }

    fn labels(labels: &str) -> Result<Dataset, String> {
        parse(&format!(r#"{{"channel_names": {{"0": "CT"}}, "labels": {labels}, "file_ending": ".nii.gz"}}"#))
    }

    #[test]
    fn both_forms_say_the_same() {
        let new = r#"{"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "PZ": 1, "TZ": 2},
                      "numTraining": 32, "file_ending": ".nii.gz", "overwrite_image_reader_writer": "SimpleITKIO"}"#;
        let old = r#"{"name": "PROSTATE", "tensorImageSize": "4D", "modality": {"0": "T2", "1": "ADC"},
                      "labels": {"0": "background", "1": "PZ", "2": "TZ"}, "training": [{"image": "a", "label": "b"}]}"#;
        let expected = Dataset {
            channels: vec!["T2".into(), "ADC".into()],
            class_names: vec!["PZ".into(), "TZ".into()],
            label_map: vec![0, 1, 2],
            regions: Vec::new(),
            has_ignored: false,
            file_ending: ".nii.gz".into(),
            num_training: Some(32),
        };
        assert_eq!(parse(new).as_ref(), Ok(&expected));
        assert_eq!(parse(&format!("\u{feff}{new}")).as_ref(), Ok(&expected), "a byte-order mark");
        assert_eq!(parse(old).as_ref(), Ok(&Dataset { num_training: None, ..expected.clone() }));
        assert_eq!(expected.list_channels(), "0 T2, 1 ADC");
    }

    #[test]
    fn ten_labels_are_in_the_order_of_their_numbers() {
        let entries: Vec<String> = (1..12).map(|i| format!(r#""{i}": "organ {i}""#)).collect();
        let names = labels(&format!(r#"{{"0": "Background", {}}}"#, entries.join(","))).unwrap().class_names;
        assert_eq!((names.len(), names[0].as_str(), names[9].as_str()), (11, "organ 1", "organ 10"));
    }

    #[test]
    fn labels_that_mean_something_else_are_refused() {
        for (json, part) in [
            (r#"{"background": 0, "whole tumour": [1, 3], "core": 3}"#, "label 3 but no 2"),
            (r#"{"background": 0, "whole tumour": [], "core": 1}"#, "\"whole tumour\""),
            (r#"{"background": 0, "whole tumour": [0, 1], "core": 1}"#, "\"whole tumour\""),
            (r#"{"background": 0, "whole tumour": ["1"], "core": 1}"#, "\"whole tumour\" is neither"),
            (r#"{"whole tumour": [1, 2], "core": 2}"#, "no background"),
            (r#"{"background": 0, "a": [1, 2], "b": 2, "ignore": [3, 4]}"#, "\"ignore\" is no single number"),
            (r#"{"background": 0, "a": [1, 2], "b": [2, 1]}"#, "\"a\" and \"b\" are the same"),
            (
                r#"{"background": 0, "a": [1, 2], "b": 2, "ignore": 5}"#,
                "its label 5 is \"ignore\", expected it to be the last, 3",
            ),
            (r#"{"background": 0, "liver": 2, "ignore": 1}"#, "its label 1 is \"ignore\", expected it to be the last, 2"),
            (r#"{"background": 0, "liver": 1, "ignore": 255}"#, "its label 255 is \"ignore\", expected it to be the last, 2"),
            (r#"{"background": 0, "liver": 2}"#, "label 2 but no 1"),
            (r#"{"liver": 1, "spleen": 2}"#, "label 1 but no 0"),
            (r#"{"background": 0, "liver": 1, "spleen": 1}"#, "\"liver\" and \"spleen\" are both 1"),
            (r#"{"background": 0, "liver": "1"}"#, "\"liver\" is \"1\", expected a whole number"),
            (r#"{"background": 0, "liver": 1.5}"#, "\"liver\" is neither"),
            (r#"{"background": 0, "liver": -1}"#, "\"liver\" is neither"),
            (r#"{"background": 0}"#, "0 labels in addition to the background"),
            ("{}", "0 labels in addition to the background"),
            (r#"{"liver": 0, "spleen": 1}"#, "its label 0 is \"liver\", expected the background"),
            (r#"{"liver": 0, "spleen": 1, "background": 2}"#, "its background is label 2, and label 0 is \"liver\""),
        ] {
            let message = labels(json).unwrap_err();
            assert!(message.contains(part), "{json}: {message}");
        }
        let many: Vec<String> = (0..256).map(|i| format!(r#""c{i}": {i}"#)).collect();
        assert!(labels(&format!("{{{}}}", many.join(","))).unwrap_err().contains("255 labels"));
        let most: Vec<String> = (1..255).map(|i| format!(r#""c{i}": {i}"#)).collect();
        assert_eq!(labels(&format!(r#"{{"background": 0, {}}}"#, most.join(","))).unwrap().class_names.len(), 254);
    }

    #[test]
    fn the_last_label_may_be_of_voxels_that_take_no_part() {
        let found = labels(r#"{"background": 0, "liver": 1, "spleen": 2, "ignore": 3}"#).unwrap();
        assert_eq!((found.class_names, found.has_ignored), (vec!["liver".to_string(), "spleen".into()], true));
        let old = labels(r#"{"0": "background", "1": "liver", "2": "Ignore"}"#).unwrap();
        assert_eq!((old.class_names.len(), old.has_ignored), (1, true));
        let most: Vec<String> = (1..255).map(|i| format!(r#""c{i}": {i}"#)).collect();
        let full = format!(r#"{{"background": 0, {}, "ignore": 255}}"#, most.join(","));
        assert!(labels(&full).unwrap_err().contains("254 labels"));
    }

    #[test]
    fn lists_are_regions() {
        let found = labels(r#"{"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "ignore": 4}"#).unwrap();
        assert_eq!(found.class_names, ["kidney_only", "tumor", "masses_only"]);
        assert_eq!((found.label_map, found.has_ignored), (vec![0, 1, 2, 3], true));
        let names: Vec<&str> = found.regions.iter().map(|region| region.name.as_str()).collect();
        assert_eq!(names, ["kidney", "masses", "tumor"]);
        assert!(labels(r#"{"background": 0, "a": 1}"#).unwrap().regions.is_empty());
        let lists = labels(r#"{"background": [0], "a": [1, 2], "b": [2], "Ignore": [3]}"#).unwrap();
        assert_eq!((lists.class_names, lists.has_ignored), (vec!["a_only".to_string(), "b".into()], true));
    }

    #[test]
    fn hints_say_how_the_line_should_be() {
        let hint = |json: &str| Dataset::parse(Path::new("dataset.json"), json.as_bytes()).unwrap_err().hint().unwrap();
        let quoted = r#"{"channel_names": {"0": "CT"}, "labels": {"background": "0", "liver": "1"}}"#;
        assert_eq!(hint(quoted), r#"write the number without quotes: "background": 0"#);
        let ending = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": "nii.gz"}"#;
        assert_eq!(hint(ending), r#"write ".nii.gz", with the dot"#);
    }

    #[test]
    fn other_files_are_refused() {
        for (json, part) in [
            ("", "not a dataset.json"),
            ("[]", "not a dataset.json"),
            (r#"{"channel_names": {"0": "CT"}}"#, "missing field `labels`"),
            (r#"{"labels": {"background": 0, "a": 1}}"#, "neither channel_names nor modality"),
            (r#"{"channel_names": {"1": "CT"}, "labels": {"background": 0, "a": 1}}"#, "channel 1 but no 0"),
            (r#"{"channel_names": {"0": "a", "00": "b"}, "labels": {"background": 0, "a": 1}}"#, "are both 0"),
            (r#"{"channel_names": {"CT": "0"}, "labels": {"background": 0, "a": 1}}"#, "\"CT\" (0) is not a whole number"),
            (r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}"#, ".png"),
        ] {
            let message = parse(json).unwrap_err();
            assert!(message.contains(part), "{json}: {message}");
        }
    }
}
