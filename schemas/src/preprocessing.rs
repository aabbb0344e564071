//! How a scan becomes the image that the network sees: window, label map, channels, orientation.

use crate::image_channels::ChannelsFrom;
use crate::orientation::Orientation;
use crate::setting::{Problem, SettingError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a raw scan becomes the image that the network sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Hounsfield window: values are clipped to it and scaled to [0, 1], in every channel whose intensity is [`Intensity::Window`].
    pub window_hu: [f32; 2],
    /// Raw label → class, by index; a raw label beyond the end is an error.
    pub label_map: Vec<u8>,
    /// The image's channels, 1 to [`MAX_CHANNELS`]. The published case, one windowed CT channel, is left out of the JSON.
    #[serde(default = "one_ct_channel", skip_serializing_if = "is_one_ct_channel")]
    pub channels: Vec<Channel>,
    /// Orientation of the array whose third axis gives the slices: a scan stored otherwise is turned to it, by its affine. `None` takes every scan
    /// as it lies in its file, and is left out of the JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub orientation: Option<Orientation>,
    /// Distance between voxel centres along depth, height and width in millimetres, of scans whose files do not say it. Left out of the JSON
    /// if it is not stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing_mm: Option<[f64; 3]>,
    /// What the three channels of the image of a scan of one channel are. The published choice is left out of the JSON.
    #[serde(default, skip_serializing_if = "ChannelsFrom::is_slice")]
    pub channels_from: ChannelsFrom,
}

impl Default for Preprocessing {
    /// The published window and label map.
    fn default() -> Self {
        Preprocessing {
            window_hu: [-125.0, 275.0],
            label_map: crate::classes::SYNAPSE_LABEL_MAP.to_vec(),
            channels: one_ct_channel(),
            orientation: None,
            spacing_mm: None,
            channels_from: ChannelsFrom::Slice,
        }
    }
}

/// Class of voxels that take no part in losses and scores, in the label map, labels and masks of a store: nnU-Net's label `ignore`. 255 marks what was
/// never written.
pub const IGNORED_CLASS: u8 = 254;

/// Channels that SAM's encoder and ResNet-18 take. A single channel is repeated three times; with two channels the third is zero.
pub const MAX_CHANNELS: usize = 3;

/// One channel of the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// Its number in the source: `_0000` of nnU-Net's file names is 0.
    pub index: u32,
    /// Its name in the source: `CT`, `T2`.
    pub name: String,
    /// How its values become [0, 1].
    pub intensity: Intensity,
}

/// How a channel's values become [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Intensity {
    /// Clipped to [`Preprocessing::window_hu`] and scaled to [0, 1].
    Window,
    /// Clipped to the range between two percentiles of the scan's voxels and scaled to [0, 1].
    Percentiles {
        /// Percentile that becomes 0.
        low: f64,
        /// Percentile that becomes 1.
        high: f64,
    },
}

/// The published case.
pub(crate) fn one_ct_channel() -> Vec<Channel> {
    vec![Channel { index: 0, name: "CT".into(), intensity: Intensity::Window }]
}

fn is_one_ct_channel(channels: &[Channel]) -> bool {
    channels == one_ct_channel()
}

/// Whether three numbers can be distances between voxel centres.
pub fn is_spacing(spacing_mm: [f64; 3]) -> bool {
    spacing_mm.iter().all(|side| side.is_finite() && *side > 0.0)
}

/// `--spacing`: three positive numbers.
///
/// # Errors
/// In words, for anything else.
#[cfg(feature = "cli")]
pub fn parse_spacing(typed: &str) -> Result<[f64; 3], String> {
    let numbers: Option<Vec<f64>> = typed.split(',').map(|number| number.trim().parse().ok()).collect();
    let spacing = numbers.and_then(|numbers| <[f64; 3]>::try_from(numbers).ok()).filter(|spacing| is_spacing(*spacing));
    spacing.ok_or_else(|| "expected three positive numbers such as 3,0.8,0.8: depth, height, width".into())
}

impl Preprocessing {
    /// [`IGNORED_CLASS`], if labels of so many organs may have it. Of 254 organs it is the last one's class.
    pub fn ignored_class(&self, num_organs: usize) -> Option<u8> {
        let is_there = num_organs < usize::from(IGNORED_CLASS) && self.label_map.contains(&IGNORED_CLASS);
        is_there.then_some(IGNORED_CLASS)
    }

    /// One to three channels, each once, with a range.
    pub(crate) fn check_channels(&self) -> Result<(), SettingError> {
        if self.channels.is_empty() || self.channels.len() > MAX_CHANNELS {
            let expected = format!("from 1 to {MAX_CHANNELS} channels");
            return Err(Problem::expected(expected, self.channels.len()).with("preprocessing.channels"));
        }
        for (at, channel) in self.channels.iter().enumerate() {
            let path = format!("preprocessing.channels[{at}]");
            if self.channels[..at].iter().any(|before| before.index == channel.index) {
                let reason = format!("channel {} is there twice", channel.index);
                return Err(Problem::conflict(reason, "name each channel once").with(path));
            }
            if let Intensity::Percentiles { low, high } = channel.intensity
                && !(0.0 <= low && low < high && high <= 100.0)
            {
                let found = format!("{low} and {high}");
                return Err(Problem::expected("percentiles that ascend within 0 and 100", found).with(path));
            }
        }
        Ok(())
    }

    /// Three channels are made only of one, and windows only of values with a unit.
    pub(crate) fn check_channels_from(&self) -> Result<(), SettingError> {
        let refuse = |reason: String, hint: &str| Err(Problem::conflict(reason, hint).with("preprocessing.channels_from"));
        if self.channels_from.is_slice() {
            return Ok(());
        }
        let [only] = &self.channels[..] else {
            let names: Vec<&str> = self.channels.iter().map(|channel| channel.name.as_str()).collect();
            let reason =
                format!("the three channels are made of one, and these scans have {}: {}", names.len(), names.join(", "));
            return refuse(reason, "take one of them with --channels, or leave --channels-from out");
        };
        if self.channels_from.windows().is_some() && only.intensity != Intensity::Window {
            let reason = format!(
                "windows are in Hounsfield units, and the channel {:?} is scaled between percentiles of each scan",
                only.name
            );
            return refuse(
                reason,
                "call the channel CT in dataset.json if it is CT; for other images leave --channels-from windows out",
            );
        }
        self.channels_from.check()
    }
}
