//! `sam-ladder verify`.

use super::device::DeviceChoice;
use super::progress::Terminal;
use super::sam_checkpoint::TypedWeights;
use crate::error::refusal;
use crate::print::{print_line, print_note};
use anyhow::Context;
use sam_ladder_cache::{Error, VerifyReport, verify};
use sam_ladder_precompute::pipeline::{FillOptions, Plan, PrecomputeArgs, load, repair};
use sam_ladder_schemas::counted::counted;
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
    /// Repair what is damaged, and change nothing else; tensors are recomputed from the scans
    #[arg(long)]
    repair: bool,
    /// With --repair: folder of the scans that the store was made from
    #[arg(long, value_name = "DIR", requires = "repair")]
    scans: Option<PathBuf>,
    /// With --repair: SAM checkpoint that the store was made with; not needed for a random encoder
    #[arg(long, value_name = "FILE", requires = "repair")]
    sam_checkpoint: Option<PathBuf>,
    /// With --repair: checkpoint of the store's encoder, if it is not SAM's
    #[arg(long, value_name = "FILE", requires = "repair")]
    encoder_checkpoint: Option<PathBuf>,
    /// With --repair: images per pass of the encoder
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..), requires = "repair")]
    batch_size: u32,
    /// With --repair, where to compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto", requires = "repair")]
    device: DeviceChoice,
}

impl Args {
    /// Checks, and repairs with `--repair`.
    pub fn run(self) -> anyhow::Result<()> {
        let report = match self.check() {
            Err(error) if self.repair && matches!(error.downcast_ref(), Some(Error::Incomplete { .. })) => {
                print_note!("{} is unfinished: what is missing is computed first", self.store.display());
                self.mend(&VerifyReport::of_unfinished(&self.store)?)?;
                self.check()?
            }
            checked => checked?,
        };
        for path in &report.unexpected {
            print_note!("unexpected: {} is not part of the store, and is left in place", path.display());
        }
        for damage in &report.damage {
            print_line!("damaged: {damage}");
        }
        if report.damage.is_empty() {
            print_note!("{} is undamaged: {} checked", self.store.display(), counted(report.files, "file"));
            return Ok(());
        }
        let damaged = match report.damage.len() {
            1 => "1 damaged part".to_owned(),
            several => format!("{several} damaged parts"),
        };
        if !self.repair {
            let hint = format!(
                "run `sam-ladder verify --store {} --repair` with --scans DIR and, unless the encoder is random, --sam-checkpoint FILE",
                self.store.display()
            );
            return Err(refusal(format!("{} has {damaged}", self.store.display()), hint));
        }
        self.mend(&report)?;
        let after = self.check()?;
        if let Some(damage) = after.damage.first() {
            let message = format!("{} is still damaged after the repair: {damage}", self.store.display());
            return Err(refusal(message, "the disk may be failing: check it, and repair again"));
        }
        print_note!("{}: repaired {damaged}", self.store.display());
        Ok(())
    }

    fn check(&self) -> anyhow::Result<VerifyReport> {
        let (terminal, progress) = (Terminal::new(), Mutex::new(None));
        let report = verify(&self.store, &|done, total| {
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            let phase = || (terminal.begin(Phase::new("checking", Unit::Files, total)), 0);
            let (progress, reported) = progress.get_or_insert_with(phase);
            progress.advance(done.saturating_sub(*reported));
            *reported = done.max(*reported);
        });
        drop(progress);
        report.map_err(|error| match error {
            Error::Manifest { path, reason } => refusal(
                format!(
                    "{}: {reason}; the other copy of the manifest is damaged too, so there is nothing to check against",
                    path.display()
                ),
                "run `sam-ladder precompute` into a new folder",
            ),
            other => other.into(),
        })
    }

    fn mend(&self, report: &VerifyReport) -> anyhow::Result<()> {
        let config = &report.attributes.config;
        let typed = TypedWeights { sam: self.sam_checkpoint.as_deref(), encoder: self.encoder_checkpoint.as_deref() };
        let files = typed.checked(config, &self.store)?;
        let observer = Terminal::new();
        let plan = || {
            let scans =
                self.scans.as_deref().ok_or_else(|| sam_ladder_precompute::error::Error::NeedsScans(self.store.clone()))?;
            Plan::new(scans, config, &*observer)
        };
        let device = self.device.open()?;
        let args = PrecomputeArgs {
            scans: self.scans.clone().unwrap_or_default(),
            store: self.store.clone(),
            config: config.clone(),
            checkpoint: files.encoder,
            decoder_checkpoint: files.decoder,
            batch_size: self.batch_size as usize,
            device,
            observer: observer.clone(),
        };
        let options = FillOptions::whole(args.batch_size, &*args.observer);
        let summary = repair(&self.store, report, &options, plan, || load(&args)).context("the repair stopped")?;
        if let Some(summary) = summary {
            let (slices, images) = (counted(summary.slices_written, "slice"), counted(summary.images_encoded, "image"));
            print_note!("{slices} written, {images} encoded");
        }
        Ok(())
    }
}
