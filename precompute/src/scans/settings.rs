//! What a folder's layout decides in the config, and what the user decides.

use super::dataset_problem::DatasetProblem;
use super::error::ScanError;
use super::folder::Unused;
use super::{CaseEntry, Layout, find_layout, nnunet, raw_synapse};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::image_channels::ChannelsFrom;
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::preprocessing::{Channel, IGNORED_CLASS, Intensity, MAX_CHANNELS, Preprocessing};
use std::path::Path;

/// Range of a scan's values that becomes [0, 1] where nothing fixed does: what lies beyond is mostly noise.
const PERCENTILES: Intensity = Intensity::Percentiles { low: 0.5, high: 99.5 };

/// What the user may choose for a folder of scans.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceOptions {
    /// The window of the CT channels; where no channel is CT, of all channels.
    pub window: Option<[f32; 2]>,
    /// Numbers of the channels to take, in the order in which the network sees them; `None` takes all.
    pub channels: Option<Vec<u32>>,
    /// Training cases to hold out as `test`.
    pub test_cases: Vec<String>,
    /// The orientation in which slices are taken. Scans of the raw and the published layout are never turned: there it says how they lie.
    pub orientation: Option<Orientation>,
    /// Distance between voxel centres along depth, height and width, for the published layout, whose files do not say it.
    pub spacing_mm: Option<[f64; 3]>,
    /// Names of the labels from 1, for the published layout, whose files do not say them.
    pub class_names: Option<Vec<String>>,
    /// What the three channels of the image are, of scans of one channel.
    pub channels_from: ChannelsFrom,
}

/// The config for a folder of scans: its classes, labels and channels as the layout has them, and the options.
///
/// The raw and the published layout have the published classes and one CT channel. In nnU-Net's, `dataset.json` names both: a channel called
/// CT is windowed, any other is scaled between percentiles of each scan unless a window is given. The orientation is that of the first training
/// scan unless one is given; the raw layout's scans are never turned, as published, but a model of them knows how they lie.
///
/// # Errors
/// When there are no scans, or scans in two layouts; when `dataset.json` cannot be used, has more channels than the network takes or lacks one
/// that was requested, or when an option does not apply to the layout.
pub fn configure(dir: &Path, options: &SourceOptions, config: PrecomputeConfig) -> Result<PrecomputeConfig, ScanError> {
    let (layout, root) = find_layout(dir)?;
    let preprocessed = layout == Layout::Published;
    let applies = [
        ("--channels", options.channels.is_none() || layout == Layout::NnUnet),
        ("--test-cases", options.test_cases.is_empty() || layout == Layout::NnUnet),
        ("--window", options.window.is_none() || !preprocessed),
        ("--spacing", options.spacing_mm.is_none() || preprocessed),
        ("--classes", options.class_names.is_none() || preprocessed),
    ];
    if let Some((option, _)) = applies.into_iter().find(|(_, applies)| !applies) {
        return Err(ScanError::NotForLayout { path: dir.into(), option, layout: layout.name() });
    }
    if layout == Layout::NnUnet {
        return configure_nnunet(&root, options, config);
    }
    let mut config = config;
    config.preprocessing.window_hu = options.window.unwrap_or(config.preprocessing.window_hu);
    config.preprocessing.spacing_mm = options.spacing_mm;
    config.preprocessing.channels_from = options.channels_from;
    config.preprocessing.orientation = match layout {
        Layout::RawSynapse => {
            options.orientation.or_else(|| training_orientation(raw_synapse::cases(&root, &mut Unused::listing_errors()), &[]))
        }
        _ => options.orientation,
    };
    if let Some(class_names) = &options.class_names {
        // The labels are classes already.
        config.preprocessing.label_map = (0..=u8::MAX).take(class_names.len() + 1).collect();
        config.class_names = class_names.clone();
    }
    Ok(config)
}

/// How the first training scan lies that says it; `None` if none does. What is wrong with the folder is reported when it is opened.
fn training_orientation(cases: Result<Vec<CaseEntry>, ScanError>, test_cases: &[String]) -> Option<Orientation> {
    let mut cases = cases.unwrap_or_default();
    cases.retain(|case| case.split == Split::Train && !test_cases.contains(&case.case));
    cases.sort_by(|a, b| a.case.cmp(&b.case));
    cases.iter().find_map(|case| case.grid.as_ref()?.orientation())
}

fn configure_nnunet(root: &Path, options: &SourceOptions, config: PrecomputeConfig) -> Result<PrecomputeConfig, ScanError> {
    let dataset = nnunet::dataset(root)?;
    let bad = |problem| Err(ScanError::Dataset { path: root.join(super::dataset_json::DATASET_JSON), problem });
    let chosen = options.channels.clone().unwrap_or_else(|| (0..).take(dataset.channels.len()).collect());
    if chosen.len() > MAX_CHANNELS {
        let (found, known) = (chosen.len(), dataset.list_channels());
        return bad(DatasetProblem::TooManyChannels { found, limit: MAX_CHANNELS, known });
    }
    let mut channels = Vec::with_capacity(chosen.len());
    for index in chosen {
        match dataset.channels.get(index as usize) {
            Some(name) => channels.push(Channel { index, name: name.clone(), intensity: PERCENTILES }),
            None => return bad(DatasetProblem::NoSuchChannel { channel: index, known: dataset.list_channels() }),
        }
    }
    // nnU-Net, too, knows CT by its name, in any case.
    let is_ct = |channel: &Channel| channel.name.eq_ignore_ascii_case("CT");
    let all = options.window.is_some() && !channels.iter().any(is_ct);
    for channel in &mut channels {
        if all || is_ct(channel) {
            channel.intensity = Intensity::Window;
        }
    }
    let mut test_cases = options.test_cases.clone();
    test_cases.sort_unstable();
    test_cases.dedup();
    let mut preprocessing = Preprocessing {
        window_hu: options.window.unwrap_or(config.preprocessing.window_hu),
        label_map: dataset.label_map.into_iter().chain(dataset.has_ignored.then_some(IGNORED_CLASS)).collect(),
        channels,
        orientation: options.orientation,
        spacing_mm: None,
        channels_from: options.channels_from,
    };
    if options.orientation.is_none() {
        preprocessing.orientation =
            training_orientation(nnunet::cases(root, &preprocessing, &mut Unused::listing_errors()), &test_cases);
    }
    Ok(PrecomputeConfig { preprocessing, class_names: dataset.class_names, regions: dataset.regions, test_cases, ..config })
}
