//! What can be wrong with nnU-Net's `dataset.json`.

use sam_ladder_formats::volume::ENDINGS;

/// Classes without background that a store can tell apart from what was never written.
pub(super) const MAX_CLASSES: usize = 254;

/// What is wrong with a `dataset.json`, or with what the user chooses from it.
#[derive(Debug, thiserror::Error)]
pub enum DatasetProblem {
    /// It is not JSON, or lacks a key.
    #[error("not a dataset.json of nnU-Net: {0}")]
    Json(serde_json::Error),
    /// It does not name the channels.
    #[error("it has neither channel_names nor modality")]
    NoChannelNames,
    /// The scans are of no format that is read.
    #[error("its file_ending is {0:?}, expected one of .nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, .hdr")]
    FileEnding(String),
    /// A channel without a number.
    #[error("its channel {key:?} ({name}) is not a whole number")]
    ChannelNumber {
        /// The key.
        key: String,
        /// The channel's name.
        name: String,
    },
    /// A label without a number, in the older form.
    #[error("its label {key:?} is {name:?}, expected a whole number")]
    LabelNumber {
        /// The key.
        key: String,
        /// The value.
        name: String,
    },
    /// Several labels of the background, or of what is ignored.
    #[error("its label {0:?} is no single number")]
    OneNumber(String),
    /// A region without labels, or with the background's.
    #[error("its region {name:?} has no labels, or the background's 0")]
    RegionValues {
        /// The region.
        name: String,
    },
    /// Two regions of the same labels.
    #[error("its regions {first:?} and {second:?} are the same labels")]
    SameRegion {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Regions without a background.
    #[error("it has regions, and no background with the label 0")]
    RegionBackground,
    /// A label of any other kind.
    #[error("its label {0:?} is neither a whole number nor a name")]
    LabelValue(String),
    /// nnU-Net's label of voxels that the loss leaves out, which is not the last.
    #[error("its label {number} is {name:?}, expected it to be the last, {expected}")]
    Ignore {
        /// The label.
        number: u64,
        /// Its name.
        name: String,
        /// The label after all classes.
        expected: usize,
    },
    /// The background has another number.
    #[error("its background is label {number}, and label 0 is {first:?}")]
    Background {
        /// The background's label.
        number: usize,
        /// What label 0 is.
        first: String,
    },
    /// Label 0 is a class.
    #[error("its label 0 is {0:?}, expected the background")]
    NoBackground(String),
    /// Two names of one number.
    #[error("its {what}s {first:?} and {second:?} are both {number}")]
    Repeated {
        /// `channel` or `label`.
        what: &'static str,
        /// One name.
        first: String,
        /// The other.
        second: String,
        /// The number.
        number: u64,
    },
    /// A number is left out.
    #[error("it has {what} {found} but no {missing}, expected numbers from 0 without a gap")]
    Gap {
        /// `channel` or `label`.
        what: &'static str,
        /// The number after the gap.
        found: u64,
        /// The first number that is missing.
        missing: u64,
    },
    /// No classes, or more than a store can hold.
    #[error("it has {0} labels in addition to the background, expected 1 to {MAX_CLASSES}")]
    Classes(usize),
    /// More channels than the network takes.
    #[error("it has {found} channels, but the network takes at most {limit}")]
    TooManyChannels {
        /// Channels of the file, or those that were requested.
        found: usize,
        /// Channels that the network takes.
        limit: usize,
        /// Number and name of each channel.
        known: String,
    },
    /// A channel that was requested and is not there.
    #[error("it has no channel {channel}")]
    NoSuchChannel {
        /// The number.
        channel: u32,
        /// Number and name of each channel.
        known: String,
    },
}

impl DatasetProblem {
    /// What to do about it.
    pub fn hint(&self) -> String {
        use DatasetProblem::*;
        match self {
            Json(_) => "correct it, or copy it again".into(),
            NoChannelNames => "add \"channel_names\": {\"0\": \"CT\"}, with the names of your channels".into(),
            FileEnding(ending) => match ENDINGS.iter().find(|(known, _)| known[1..].eq_ignore_ascii_case(ending)) {
                Some((known, _)) => format!("write \"{known}\", with the dot"),
                None => "convert the scans to NIfTI".into(),
            },
            ChannelNumber { .. } => "number the channels from 0: {\"0\": \"CT\"}".into(),
            LabelNumber { key, name } if name.trim().parse::<u64>().is_ok() => {
                format!("write the number without quotes: {key:?}: {}", name.trim())
            }
            OneNumber(name) => format!("write one number: {name:?}: …"),
            RegionValues { .. } => "list the labels of the region, each a whole number from 1".into(),
            SameRegion { .. } => "remove one of them".into(),
            RegionBackground => "add \"background\": 0".into(),
            LabelNumber { .. } | LabelValue(_) | Repeated { .. } => "give each a different whole number".into(),
            Ignore { expected, .. } => format!("give it the number {expected}, in dataset.json and in the label files"),
            Background { .. } | NoBackground(_) => {
                "give \"background\" the label 0 in dataset.json and in the label files".into()
            }
            Gap { what, .. } => format!("number the {what}s from 0 without a gap, as nnU-Net does"),
            Classes(_) => format!("name 1 to {MAX_CLASSES} classes, and \"background\": 0"),
            TooManyChannels { known, .. } => format!("choose some of {known} with --channels 0,1,2"),
            NoSuchChannel { known, .. } => format!("choose some of {known} with --channels"),
        }
    }
}
