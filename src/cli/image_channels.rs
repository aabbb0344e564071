//! `--channels-from` and `--windows`: what the three channels of a grey scan's image are.

use crate::error::refusal;
use sam_ladder_schemas::image_channels::{ChannelSource, ChannelsFrom, parse_windows};

/// The options.
#[derive(Debug, Clone, clap::Args)]
pub struct ChannelArgs {
    /// For scans of one channel: what the three channels are that encoder and side network see
    #[arg(long, value_enum, default_value_t)]
    channels_from: ChannelSource,
    /// With --channels-from windows: three windows, by name or as LOW:HIGH in Hounsfield units [default: soft,liver,bone]. Names, by level and
    /// width: soft (40, 400), liver (100, 200), bone (400, 1800), lung (-600, 1500), brain (40, 80), published (75, 400)
    #[arg(long, value_name = "WINDOW,WINDOW,WINDOW", allow_hyphen_values = true, value_parser = parse_windows)]
    windows: Option<[[f32; 2]; 3]>,
}

impl ChannelArgs {
    /// What was chosen, in addition to `--window`.
    ///
    /// # Errors
    /// Options that have no effect together.
    pub fn chosen(&self, window: Option<[f32; 2]>) -> anyhow::Result<ChannelsFrom> {
        match (self.channels_from, self.windows) {
            (ChannelSource::Windows, _) if window.is_some() => {
                let message = "--channels-from windows takes three windows, and --window states one";
                Err(refusal(message, "state all three with --windows, and leave --window out"))
            }
            (ChannelSource::Windows, windows) => {
                Ok(ChannelsFrom::Windows { hu: windows.unwrap_or(ChannelsFrom::DEFAULT_WINDOWS) })
            }
            (_, Some(_)) => Err(refusal(
                "--windows has no effect without --channels-from windows",
                "add --channels-from windows, or remove --windows",
            )),
            (ChannelSource::Neighbours, None) => Ok(ChannelsFrom::Neighbours),
            (ChannelSource::Slice, None) => Ok(ChannelsFrom::Slice),
        }
    }
}
