//! `sam-ladder phantom`.

use super::progress::Terminal;
use crate::print::print_note;
use sam_ladder_precompute::phantom::{PhantomConfig, write_phantom};
use sam_ladder_schemas::counted::counted;
use std::path::PathBuf;

/// Arguments of `phantom`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder phantom --out scans
  sam-ladder phantom --out larger --cases 30 --size 256 --depth 60 --seed 7
")]
pub struct Args {
    /// Folder for the scans; a new or an empty one
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of scans, for training and testing together
    #[arg(long, value_name = "N", default_value_t = 6)]
    cases: usize,
    /// Side of a slice in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 128)]
    size: usize,
    /// Slices per scan
    #[arg(long, value_name = "SLICES", default_value_t = 24)]
    depth: usize,
    /// Seed of shapes, positions and noise
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

impl Args {
    /// Writes the scans.
    pub fn run(self) -> anyhow::Result<()> {
        let Args { out, cases, size, depth, seed } = self;
        write_phantom(&PhantomConfig { out: out.clone(), cases, size, depth, seed }, &*Terminal::new())?;
        let (scans, slices) = (counted(cases, "scan"), counted(depth, "slice"));
        print_note!("in {}: {scans} of {slices} of {size}×{size}", out.display());
        Ok(())
    }
}
