//! `sam-ladder inspect`: what a folder of scans holds, before anything is computed.

use super::device::DeviceChoice;
use super::image_channels::ChannelArgs;
use super::precompute::parse_window;
use super::progress::Terminal;
use crate::print::{print_line, print_note};
use anyhow::Context;
use sam_ladder_cache::{CaseLayout, StoreLayout};
use sam_ladder_eval::{inspection_lines, inspection_page};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{self, HTML_COMMENT, origin_of_text, sealed};
use sam_ladder_precompute::pipeline::{PrecomputeArgs, load_encoder, seconds_per_image};
use sam_ladder_precompute::scans::{ScanSource, SourceOptions, configure, unlike_scans};
use sam_ladder_schemas::inspection::{InspectedCost, Inspection};
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::preprocessing::{Channel, Intensity};
use sam_ladder_schemas::rungs::RUNG_CHANNELS;
use sam_ladder_schemas::store::StoreAttributes;
use sam_ladder_schemas::variants::AugmentPolicy;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What the scans are compared with: `precompute`'s presets, by the sizes of network and data.
const PRESETS: [(&str, usize, usize); 2] = [("native224", 224, 224), ("published", 512, 224)];
/// How a message begins that should be looked at.
const WARNING: &str = "warning: ";

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder inspect --scans scans
  sam-ladder inspect --scans scans --voxels --out scans.html
")]
pub struct Args {
    /// Folder of scans, in any layout that precompute reads
    #[arg(long, value_name = "DIR")]
    scans: PathBuf,
    /// Also read the voxels: values, volumes of the organs, files that cannot be used, copies of a scan
    #[arg(long)]
    voxels: bool,
    /// Page to write
    #[arg(long, value_name = "PAGE.html")]
    out: Option<PathBuf>,
    /// Replace an earlier page
    #[arg(long)]
    force: bool,
    /// Hounsfield units (other units, if no channel is CT) that become 0 and 1
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true, value_parser = parse_window)]
    window: Option<[f32; 2]>,
    #[command(flatten)]
    image_channels: ChannelArgs,
    /// In nnU-Net's layout: cases of imagesTr to count as test cases
    #[arg(long, value_name = "CASE,CASE", value_delimiter = ',')]
    test_cases: Vec<String>,
    /// How the slices lie, as nibabel's axis codes [default: as the first training scan's]
    #[arg(long, value_name = "LPS")]
    orientation: Option<Orientation>,
    /// Count the ladder's rungs after these blocks of the encoder among the costs
    #[arg(long, value_name = "BLOCK,BLOCK", value_delimiter = ',')]
    rungs: Vec<usize>,
    /// With --rungs: channels of each
    #[arg(long, value_name = "N", default_value_t = RUNG_CHANNELS)]
    rung_channels: usize,
    /// Do not measure the encoder's time on this machine
    #[arg(long)]
    no_time: bool,
    /// Where precompute would compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

impl Args {
    /// Looks, prints, and writes the page.
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(out) = &self.out {
            let origin = |path: &Path| origin_of_text(path, HTML_COMMENT);
            outputs::may_write(std::slice::from_ref(out), self.force, "a page of sam-ladder inspect", origin)?;
            if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
            }
        }
        let options = SourceOptions {
            window: self.window,
            test_cases: self.test_cases.clone(),
            orientation: self.orientation,
            channels_from: self.image_channels.chosen(self.window)?,
            ..SourceOptions::default()
        };
        let (rungs, rung_channels) = (self.rungs.clone(), self.rung_channels);
        let config = PrecomputeConfig { rungs, rung_channels, ..PrecomputeConfig::default() };
        let config = configure(&self.scans, &options, config)?;
        config.validate()?;
        let (source, unusable) = ScanSource::open_usable(&self.scans, &config.preprocessing)?;
        let source = source.with_test_cases(&config.test_cases)?;
        let said = Arc::new(Said { terminal: Terminal::new(), messages: Mutex::default() });
        let mut messages = config.region_notes();
        messages.extend(source.notes(&config.class_names));
        let cases = source.inspect(config.class_names.len(), self.voxels, &*said);
        messages.append(&mut said.messages.lock().unwrap_or_else(PoisonError::into_inner));
        let (warnings, remarks): (Vec<_>, Vec<_>) = messages.into_iter().partition(|message| message.starts_with(WARNING));
        let mut warnings: Vec<String> = warnings.iter().map(|warning| warning[WARNING.len()..].to_string()).collect();
        warnings.extend(unusable.iter().map(|error| format!("a case cannot be used: {error}")));
        warnings.extend(unlike_scans(&cases, &config.class_names));
        if self.voxels
            && let Ok(sources) = source.sources(&*said)
        {
            // A file that cannot be read is among the warnings already.
            warnings.extend(source.repeated(&sources).iter().map(|note| note.trim_start_matches(WARNING).to_string()));
        }
        let inspection = Inspection {
            folder: self.scans.display().to_string(),
            layout: source.layout_name().into(),
            class_names: config.class_names.clone(),
            channels: channels(&config),
            orientation: config.preprocessing.orientation.map(|codes| codes.to_string()),
            costs: self.costs(&source, &config, &said.terminal)?,
            cases,
            warnings,
            remarks,
        };
        print_line!("{}", inspection_lines(&inspection));
        if let Some(out) = &self.out {
            write_atomic(out, sealed(&inspection_page(&inspection), HTML_COMMENT).as_bytes())?;
            print_note!("{}", out.display());
        }
        Ok(())
    }

    /// Images, bytes and time of each preset, with the published augmentation and with reflections only.
    fn costs(
        &self,
        source: &ScanSource,
        config: &PrecomputeConfig,
        terminal: &Arc<Terminal>,
    ) -> anyhow::Result<Vec<InspectedCost>> {
        let mut costs = Vec::new();
        let phase = || terminal.begin(Phase::new("timing the encoder", Unit::Images, PRESETS.len() as u64));
        let progress = (!self.no_time).then(phase);
        for (preset, image_size, data_size) in PRESETS {
            let config =
                PrecomputeConfig { image_size, data_size, weights: EncoderWeights::Random { seed: 0 }, ..config.clone() };
            let seconds = match &progress {
                None => None,
                Some(progress) => {
                    progress.describe(&format!("--preset {preset}"));
                    let seconds = self.seconds(&config, terminal)?;
                    progress.advance(1);
                    Some(seconds)
                }
            };
            for augment in [AugmentPolicy::Flips, AugmentPolicy::Reference] {
                let layout = layout(source, PrecomputeConfig { augment, ..config.clone() })?;
                let images = layout.num_items();
                let augment = if augment == AugmentPolicy::Flips { " --augment flips" } else { "" };
                // The slices of whose tokens the rungs' projection is made are encoded once more.
                let encoded = images + layout.attributes().rung_sample.len();
                costs.push(InspectedCost {
                    options: format!("--preset {preset}{augment}{}", self.rung_options()),
                    images,
                    bytes: layout.num_bytes(),
                    seconds: seconds.map(|each| each * encoded as f64),
                });
            }
        }
        Ok(costs)
    }

    /// The options of rungs, as they are typed.
    fn rung_options(&self) -> String {
        let blocks: Vec<String> = self.rungs.iter().map(usize::to_string).collect();
        match (self.rungs.is_empty(), self.rung_channels) {
            (true, _) => String::new(),
            (false, RUNG_CHANNELS) => format!(" --rungs {}", blocks.join(",")),
            (false, channels) => format!(" --rungs {} --rung-channels {channels}", blocks.join(",")),
        }
    }

    /// Seconds per image, of an encoder with random weights.
    fn seconds(&self, config: &PrecomputeConfig, terminal: &Arc<Terminal>) -> anyhow::Result<f64> {
        let args = PrecomputeArgs {
            scans: self.scans.clone(),
            store: PathBuf::new(),
            config: config.clone(),
            checkpoint: None,
            decoder_checkpoint: None,
            batch_size: 1,
            device: self.device.open()?,
            observer: terminal.clone(),
        };
        Ok(seconds_per_image(&load_encoder(&args)?, config, args.batch_size)?)
    }
}

/// The layout of the store that the scans would become; their files are not hashed.
fn layout(source: &ScanSource, config: PrecomputeConfig) -> anyhow::Result<StoreLayout> {
    let cases = source.cases().iter().map(|case| CaseLayout {
        case: case.case.clone(),
        split: case.split,
        num_slices: case.num_slices,
        sources: Vec::new(),
    });
    Ok(StoreLayout::new(StoreAttributes::new(config, Vec::new()), cases.collect())?)
}

/// The channels, and how their values become [0, 1].
fn channels(config: &PrecomputeConfig) -> Vec<String> {
    let preprocessing = &config.preprocessing;
    let [low, high] = preprocessing.window_hu;
    if let (Some(windows), [only]) = (preprocessing.channels_from.windows(), &preprocessing.channels[..]) {
        let windows = windows.map(|[low, high]| format!("{low} to {high}"));
        return vec![format!("{}, {} become 0 to 1 in three channels", only.name, windows.join(", "))];
    }
    let one = |channel: &Channel| match channel.intensity {
        Intensity::Window => format!("{}, {low} to {high} become 0 to 1", channel.name),
        Intensity::Percentiles { low, high } => {
            format!("{}, each scan's {low}th to {high}th percentile become 0 to 1", channel.name)
        }
    };
    preprocessing.channels.iter().map(one).collect()
}

/// Keeps what is said, and shows progress.
#[derive(Debug)]
struct Said {
    terminal: Arc<Terminal>,
    messages: Mutex<Vec<String>>,
}

impl Observer for Said {
    fn message(&self, text: &str) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(text.into());
    }

    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress> {
        self.terminal.begin(phase)
    }
}
