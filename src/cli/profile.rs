//! `--profile FILE`: where the time goes, as a trace for Perfetto or `chrome://tracing`.

use crate::error::refusal;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::layer::SubscriberExt;

/// The option itself.
#[derive(Debug, clap::Args)]
pub struct Profile {
    /// Write a trace of where the time goes, for ui.perfetto.dev or chrome://tracing; about 30 kB per step
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
}

impl Profile {
    /// Records spans until the guard is dropped; nothing without the option.
    ///
    /// # Errors
    /// A file that is there already or cannot be made.
    pub fn start(&self) -> anyhow::Result<Option<FlushGuard>> {
        self.profile.as_deref().map(record).transpose()
    }
}

fn record(path: &Path) -> anyhow::Result<FlushGuard> {
    let file = File::create_new(path).map_err(|error| {
        refusal(format!("cannot write the profile {}: {error}", path.display()), "name another file with --profile")
    })?;
    let (layer, guard) = ChromeLayerBuilder::new().writer(BufWriter::new(file)).include_args(true).build();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;
    Ok(guard)
}
