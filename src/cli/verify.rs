//! `sam-ladder verify`.

use super::device::DeviceChoice;
use super::progress::Terminal;
use super::sam_checkpoint::ensure_same;
use anyhow::{Context, bail};
use sam_ladder_cache::{Error, Report, verify};
use sam_ladder_precompute::pipeline::{FillOptions, Plan, PrecomputeArgs, load, repair};
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder verify --store synapse.zarr
  sam-ladder verify --store synapse.zarr --repair --scans /data/RawData \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth
")]
pub struct Args {
    /// Store to check: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// Mend what is damaged; what does not follow from the manifest is recomputed from the sources, and nothing else
    #[arg(long)]
    repair: bool,
    /// With --repair: folder of the scans that the store was made of
    #[arg(long, value_name = "DIR", requires = "repair")]
    scans: Option<PathBuf>,
    /// With --repair: the SAM checkpoint that the store was made with; a store of a random encoder needs none
    #[arg(long, value_name = "FILE", requires = "repair")]
    sam_checkpoint: Option<PathBuf>,
    /// With --repair: images that the encoder takes at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..), requires = "repair")]
    batch_size: u32,
    /// With --repair: auto, cpu or cuda:INDEX
    #[arg(long, default_value = "auto", requires = "repair")]
    device: DeviceChoice,
}

impl Args {
    /// Checks, and mends if asked to.
    pub fn run(self) -> anyhow::Result<()> {
        let report = match self.check() {
            Err(error) if self.repair && matches!(error.downcast_ref(), Some(Error::Incomplete { .. })) => {
                eprintln!("{} is unfinished: what is missing of it comes first", self.store.display());
                self.mend(&Report::of_unfinished(&self.store)?)?;
                self.check()?
            }
            checked => checked?,
        };
        for path in &report.unexpected {
            eprintln!("unexpected: {} is no part of the store, and is left where it is", path.display());
        }
        for damage in &report.damage {
            println!("damaged: {damage}");
        }
        if report.damage.is_empty() {
            eprintln!("{} is whole: {} files checked", self.store.display(), report.files);
            return Ok(());
        }
        let damaged = report.damage.len();
        if !self.repair {
            bail!(
                "{} has {damaged} damaged parts: run `sam-ladder verify --store {0} --repair` with --scans DIR and, unless the encoder is random, \
                 --sam-checkpoint FILE",
                self.store.display()
            );
        }
        self.mend(&report)?;
        let after = self.check()?;
        if let Some(damage) = after.damage.first() {
            bail!("{} is still damaged after the repair: {damage}; is the disk failing?", self.store.display());
        }
        eprintln!("{}: {damaged} damaged parts are repaired", self.store.display());
        Ok(())
    }

    fn check(&self) -> anyhow::Result<Report> {
        let (terminal, progress) = (Terminal::new(), Mutex::new(None));
        let report = verify(&self.store, &|done, total| {
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            let phase = || (terminal.begin(Phase::new("", Unit::Files, total)), 0);
            let (progress, reported) = progress.get_or_insert_with(phase);
            progress.advance(done.saturating_sub(*reported));
            *reported = done.max(*reported);
        });
        drop(progress);
        report.map_err(|error| match error {
            Error::Manifest { path, reason } => anyhow::anyhow!(
                "{}: {reason}, and the other copy of the manifest is no better, so there is nothing to check against; \
                 run `sam-ladder precompute` into a new folder",
                path.display()
            ),
            other => other.into(),
        })
    }

    fn mend(&self, report: &Report) -> anyhow::Result<()> {
        let config = &report.attributes.config;
        if let Some(path) = &self.sam_checkpoint {
            ensure_same(path, &config.weights, &self.store)?;
        }
        let observer = Terminal::new();
        let plan = || {
            let scans = self.scans.as_deref().ok_or_else(|| {
                sam_ladder_precompute::error::Error::Config(
                    "this damage can only be mended from the scans: pass --scans DIR, the folder that the store was made of"
                        .into(),
                )
            })?;
            Plan::new(scans, config, &*observer)
        };
        let device = self.device.open()?;
        let args = PrecomputeArgs {
            scans: self.scans.clone().unwrap_or_default(),
            store: self.store.clone(),
            config: config.clone(),
            checkpoint: self.sam_checkpoint.clone(),
            batch_size: self.batch_size as usize,
            device,
            observer: observer.clone(),
        };
        let options = FillOptions::whole(args.batch_size, &*args.observer);
        let summary = repair(&self.store, report, &options, plan, || load(&args)).context("the repair stopped")?;
        if let Some(summary) = summary {
            eprintln!("{} slices written, {} images encoded", summary.slices_written, summary.images_encoded);
        }
        Ok(())
    }
}
