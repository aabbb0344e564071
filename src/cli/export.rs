//! `sam-ladder export`.

use super::progress::Terminal;
use super::sam_checkpoint::ensure_same;
use crate::error::refusal;
use crate::print::print_note;
use candle_core::Tensor;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_precompute::encoder::{random_encoder_tensors, sized_encoder_tensors};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::precompute::EncoderWeights;
use sam_ladder_train::{ExportArgs, RunCheckpoint, TrainError, export};
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder export --run runs/first --out model.safetensors
  sam-ladder export --run runs/first --out model.pth \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth
  sam-ladder export --run runs/first --out model.onnx
")]
pub struct Args {
    /// Run folder
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// File to write; its extension decides the format
    #[arg(long, value_name = "FILE.{safetensors,pth,onnx}")]
    out: PathBuf,
    /// Use the last model, even if validation chose an earlier one
    #[arg(long)]
    last: bool,
    /// Include the image encoder, so that an ONNX model takes only images. Needs --sam-checkpoint, unless the run's store has a random
    /// encoder. Refused for a run with --neighbours 1
    #[arg(long)]
    with_encoder: bool,
    /// SAM checkpoint of the run's store: implies --with-encoder. The published code loads such a file with strict=True
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
        // A model with the image encoder takes seconds to make and to write.
        let progress = Terminal::new().begin(Phase { total: None, ..Phase::new("export", Unit::Files, 0) });
        progress.describe(&format!("making {}", self.out.display()));
        let image_encoder = self.image_encoder()?;
        let args =
            ExportArgs { run: self.run, checkpoint: run_checkpoint(self.last), out: self.out, force: self.force, image_encoder };
        let exported = export(&args)?;
        drop(progress);
        let files: Vec<String> = exported.files.iter().map(|file| file.display().to_string()).collect();
        print_note!("{}: {}", counted(exported.tensors, "tensor"), files.join(", "));
        Ok(())
    }

    /// The image encoder's tensors at the run's image size, if they are wanted.
    fn image_encoder(&self) -> anyhow::Result<Option<Vec<(String, Tensor)>>> {
        if self.sam_checkpoint.is_none() && !self.with_encoder {
            return Ok(None);
        }
        let record = sam_ladder_train::run::read_record(&self.run)?;
        if !record.store.encoder.is_sam() {
            let (run, encoder) = (self.run.clone(), record.store.encoder.name());
            return Err(TrainError::OnnxOfEncoder { run, encoder }.into());
        }
        match (&self.sam_checkpoint, &record.store.weights) {
            (Some(path), weights) => {
                ensure_same(path, weights, &self.run)?;
                Ok(Some(sized_encoder_tensors(&StateDict::open(path)?, record.image_size)?))
            }
            (None, EncoderWeights::Random { seed }) => {
                Ok(Some(random_encoder_tensors(record.store.encoder, record.image_size, *seed)?))
            }
            (None, EncoderWeights::Checkpoint { sha256 }) => Err(refusal(
                format!("--with-encoder: the weights of the image encoder are not in {}", self.run.display()),
                format!("pass the SAM checkpoint of its store with --sam-checkpoint; its SHA-256 is {sha256}"),
            )),
        }
    }
}
