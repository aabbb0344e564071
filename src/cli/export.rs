//! `sam-ladder export`.

use super::sam_checkpoint::ensure_same;
use crate::print::print_note;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_precompute::encoder::sized_encoder_tensors;
use sam_ladder_schemas::counted::counted;
use sam_ladder_train::{ExportArgs, RunCheckpoint, export};
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder export --run runs/first --out model.safetensors
  sam-ladder export --run runs/first --out model.pth \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth
")]
pub struct Args {
    /// Run folder
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// File to write; its extension decides the format
    #[arg(long, value_name = "FILE.{safetensors,pth}")]
    out: PathBuf,
    /// Use the last model, even if validation chose an earlier one
    #[arg(long)]
    last: bool,
    /// SAM checkpoint of the run's store: adds the image encoder, so that the published code loads the file with strict=True
    #[arg(long, value_name = "FILE")]
    sam_checkpoint: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

/// Which of a run's models `--last` means.
pub fn run_checkpoint(last: bool) -> RunCheckpoint {
    if last { RunCheckpoint::Last } else { RunCheckpoint::BestOrLast }
}

impl Args {
    /// Writes the file.
    pub fn run(self) -> anyhow::Result<()> {
        let image_encoder = match &self.sam_checkpoint {
            None => None,
            Some(path) => {
                let record = sam_ladder_train::run::read_record(&self.run)?;
                ensure_same(path, &record.store.weights, &self.run)?;
                Some(sized_encoder_tensors(&StateDict::open(path)?, record.image_size)?)
            }
        };
        let args =
            ExportArgs { run: self.run, checkpoint: run_checkpoint(self.last), out: self.out, force: self.force, image_encoder };
        let tensors = export(&args)?;
        print_note!("{}: {}", counted(tensors, "tensor"), args.out.display());
        Ok(())
    }
}
