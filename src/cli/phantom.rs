//! `sam-ladder phantom`.

use super::progress::Terminal;
use sam_ladder_precompute::phantom::{PhantomConfig, write_phantom};
use std::path::PathBuf;

/// Arguments of `phantom`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder phantom --out scans
  sam-ladder phantom --out larger --cases 30 --size 256 --depth 60 --seed 7
")]
pub struct Args {
    /// Folder for the scans; must not exist yet or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of scans, training and test cases together
    #[arg(long, value_name = "N", default_value_t = 6)]
    cases: usize,
    /// Pixels along the side of a slice
    #[arg(long, value_name = "PIXELS", default_value_t = 128)]
    size: usize,
    /// Slices a scan
    #[arg(long, value_name = "SLICES", default_value_t = 24)]
    depth: usize,
    /// Seed of shapes, positions and noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Args {
    /// Writes the scans.
    pub fn run(self) -> anyhow::Result<()> {
        let Args { out, cases, size, depth, seed } = self;
        write_phantom(&PhantomConfig { out: out.clone(), cases, size, depth, seed }, &*Terminal::new())?;
        eprintln!("{cases} scans of {depth} slices of {size}×{size} are in {}", out.display());
        Ok(())
    }
}
