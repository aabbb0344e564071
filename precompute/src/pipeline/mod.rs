//! Stage one, end to end: read scans, make variants, encode them, write the store.
//!
//! A thread reads and preprocesses ahead of the encoder. Memory is bounded by one scan and a few slices with their variants,
//! however many scans there are. What was interrupted is continued by the same call.

mod encode;
mod plan;
mod prepare;

pub use encode::{Encode, SamEncoder};
pub use plan::Plan;

use crate::encoder::{EncoderArch, ImageEncoder, decoder_weights, detect_arch, random_decoder_weights};
use crate::error::{Error, Result};
use crate::scans::sha256_of_file;
use candle_core::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use prepare::{CaseEnd, Group, Prepared};
use sam_ladder_cache::{Opened, SliceTensors, StoreWriter};
use sam_ladder_ops::state_dict::StateDict;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EMBED_CHANNELS;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Images that go through the encoder together unless told otherwise.
pub const DEFAULT_BATCH_SIZE: usize = 4;
/// Groups of slices that may wait for the encoder.
const READ_AHEAD: usize = 1;
/// Seconds between redraws of the progress bar while a batch is encoded.
const REDRAW_SECONDS: u64 = 1;

/// What stage one is to do.
#[derive(Debug, Clone)]
pub struct PrecomputeArgs {
    /// Folder of scans.
    pub scans: PathBuf,
    /// Folder of the store: new, or an unfinished one of the same config.
    pub store: PathBuf,
    /// All that shapes a tensor; architecture and weights as [`identify_weights`] found them.
    pub config: PrecomputeConfig,
    /// The checkpoint that `config.weights` was identified from; `None` for random weights.
    pub checkpoint: Option<PathBuf>,
    /// Images that go through the encoder together.
    pub batch_size: usize,
    /// Where the encoder runs.
    pub device: Device,
}

/// What stage one did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Whether the store was complete before, so that nothing was to be done.
    pub already_complete: bool,
    /// Slices that this run wrote.
    pub slices_written: usize,
    /// Slices of the store.
    pub slices_total: usize,
    /// Images that this run encoded.
    pub images_encoded: usize,
    /// Wall time of this run after loading the encoder, in seconds.
    pub seconds: f64,
}

/// The architecture of a checkpoint and the name of its weights in a config.
///
/// # Errors
/// When the file cannot be read or holds no SAM encoder.
pub fn identify_weights(checkpoint: &Path) -> Result<(EncoderArch, EncoderWeights)> {
    let arch = detect_arch(&StateDict::open(checkpoint)?)?;
    Ok((arch, EncoderWeights::Checkpoint { sha256: sha256_of_file(checkpoint)? }))
}

/// Runs stage one: plans, creates or continues the store, encodes what is missing, finishes.
///
/// # Errors
/// The messages of [`Error`]: settings that do not go together, a store of another config, a checkpoint or scan that cannot be
/// read, a full disk. What is finished stays, and the same call continues.
pub fn run(args: &PrecomputeArgs) -> Result<Summary> {
    run_plan(Plan::new(&args.scans, &args.config)?, args)
}

/// As [`run`], of a plan that was made before, from the same arguments.
///
/// # Errors
/// As [`run`].
pub fn run_plan(plan: Plan, args: &PrecomputeArgs) -> Result<Summary> {
    fill_store(plan, &args.store, args.batch_size, || load(args))
}

/// An encoder and the bytes of the store's decoder file.
pub struct Loaded<E> {
    /// Encodes images.
    pub encoder: E,
    /// SAM's prompt encoder and mask decoder as a safetensors file.
    pub decoder: Vec<u8>,
}

/// As [`run_plan`], with any encoder; it is loaded only when there is something to encode or the decoder is not stored yet.
///
/// # Errors
/// As [`run`].
pub fn fill_store<E: Encode>(
    plan: Plan,
    store: &Path,
    batch_size: usize,
    load: impl FnOnce() -> Result<Loaded<E>>,
) -> Result<Summary> {
    if batch_size == 0 {
        return Err(Error::Config("batch-size must be at least 1, got 0".into()));
    }
    let slices_total = Split::ALL.into_iter().map(|split| plan.layout.num_slices(split)).sum();
    let writer = match StoreWriter::open_or_create(store, plan.layout.clone())? {
        Opened::Writer(writer) => *writer,
        Opened::Complete(_) => {
            let nothing = Summary { already_complete: true, slices_written: 0, slices_total, images_encoded: 0, seconds: 0.0 };
            return Ok(nothing);
        }
    };
    let Loaded { encoder, decoder } = load()?;
    let start = Instant::now();
    let mut run =
        Run { plan: &plan, writer: &writer, encoder: &encoder, batch_size, bar: progress_bar(&writer), bad: Vec::new() };
    let done_before = num_done(&writer);
    let outcome = writer.write_decoder(&decoder).map_err(Error::from).and_then(|()| run.encode_all());
    run.bar.finish_and_clear();
    let bad = std::mem::take(&mut run.bad);
    let done = num_done(&writer);
    let interrupted = |source: Error| {
        let full = matches!(&source, Error::Store(e) if e.is_disk_full());
        let advice = if full { "free space and run the same command again" } else { "run the same command again to continue" };
        Error::Interrupted { source: Box::new(source), store: store.into(), done, total: slices_total, advice }
    };
    let images_encoded = outcome.map_err(interrupted)?;
    if !bad.is_empty() {
        return Err(Error::BadScans { bad, total: plan.source.cases().len(), store: store.into() });
    }
    writer.finish().map_err(|e| interrupted(e.into()))?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Summary { already_complete: false, slices_written: done - done_before, slices_total, images_encoded, seconds })
}

/// One pass over what is missing.
struct Run<'a, E> {
    plan: &'a Plan,
    writer: &'a StoreWriter,
    encoder: &'a E,
    batch_size: usize,
    bar: ProgressBar,
    bad: Vec<(String, String)>,
}

impl<E: Encode> Run<'_, E> {
    /// Encodes and writes all that is missing; the number of images encoded.
    fn encode_all(&mut self) -> Result<usize> {
        let (sender, receiver) = sync_channel(READ_AHEAD);
        let (plan, writer, batch_size) = (self.plan, self.writer, self.batch_size);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || prepare::prepare(&plan.source, writer, batch_size, &sender));
            let mut images_encoded = 0;
            for prepared in receiver {
                match prepared {
                    Prepared::Group(group) => images_encoded += self.encode_group(&group)?,
                    Prepared::CaseEnd(CaseEnd { split, case, rows, mask }) => {
                        self.writer.write_case(split, &case, &rows, mask.as_ref())?;
                    }
                    Prepared::Bad { case, reason } => {
                        self.bar.suspend(|| eprintln!("warning: case {case} is left out: {reason}"));
                        self.bad.push((case, reason));
                    }
                }
            }
            match reader.join() {
                Ok(outcome) => outcome?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            Ok(images_encoded)
        })
    }

    fn encode_group(&self, group: &Group) -> Result<usize> {
        let config = &self.writer.layout().attributes().config;
        let image_len = config.image_len();
        let embedding_len = EMBED_CHANNELS * config.grid_size().pow(2);
        let num_images = group.images.len() / image_len;
        let mut embeddings = Vec::with_capacity(num_images * embedding_len);
        for images in group.images.chunks(self.batch_size * image_len) {
            let batch = images.len() / image_len;
            let encoded =
                tracing::trace_span!("encode", batch).in_scope(|| self.encoder.encode(images, batch, config.image_size))?;
            if encoded.len() != batch * embedding_len {
                return Err(Error::EncoderShape { batch, expected: batch * embedding_len, found: encoded.len() });
            }
            embeddings.extend_from_slice(&encoded);
            self.bar.inc(batch as u64);
        }
        let num_slices = group.rows.len();
        let (images, labels) =
            (group.images.chunks(group.images.len() / num_slices), group.labels.chunks(group.labels.len() / num_slices));
        let embeddings = embeddings.chunks(embeddings.len() / num_slices);
        for (row, ((embeddings, images), labels)) in group.rows.clone().zip(embeddings.zip(images).zip(labels)) {
            let _span = tracing::trace_span!("write slice", row).entered();
            self.writer.write_slice(group.split, row, &SliceTensors { embeddings, images, labels })?;
        }
        self.bar.set_message(format!("{} slices", num_done(self.writer)));
        Ok(num_images)
    }
}

/// Slices of both splits that are finished.
fn num_done(writer: &StoreWriter) -> usize {
    let done = |split| (0..writer.layout().num_slices(split)).filter(move |&row| writer.is_slice_done(split, row));
    Split::ALL.into_iter().map(|split| done(split).count()).sum()
}

/// Images done of all images, images a second and time left, on standard error when that is a terminal.
fn progress_bar(writer: &StoreWriter) -> ProgressBar {
    let done = |split| (0..writer.layout().num_slices(split)).filter(move |&row| writer.is_slice_done(split, row)).count();
    let done: usize = Split::ALL.into_iter().map(|split| done(split) * writer.layout().num_variants(split)).sum();
    let bar = ProgressBar::new(writer.layout().num_items() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} images, {msg}, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message("reading");
    bar.set_position(done as u64);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_secs(REDRAW_SECONDS));
    bar
}

/// The encoder that the arguments ask for, on their device, and the decoder that goes with it.
fn load(args: &PrecomputeArgs) -> Result<Loaded<SamEncoder>> {
    let PrecomputeConfig { encoder: arch, image_size, .. } = args.config;
    let (encoder, decoder) = match (&args.config.weights, &args.checkpoint) {
        (EncoderWeights::Checkpoint { .. }, Some(path)) => {
            let weights = StateDict::open(path)?;
            (ImageEncoder::load(&weights, arch, image_size, &args.device)?, decoder_weights(&weights)?)
        }
        (EncoderWeights::Random { seed }, None) => {
            (ImageEncoder::random(arch, image_size, *seed, &args.device)?, random_decoder_weights(*seed)?)
        }
        (EncoderWeights::Checkpoint { .. }, None) => {
            return Err(Error::Config("the config's weights are a checkpoint's, but no checkpoint file was given".into()));
        }
        (EncoderWeights::Random { .. }, Some(path)) => {
            return Err(Error::Config(format!(
                "both random weights and the checkpoint {} were given; choose one",
                path.display()
            )));
        }
    };
    Ok(Loaded { encoder: SamEncoder::new(encoder, args.device.clone()), decoder: to_safetensors(&decoder)? })
}

fn to_safetensors(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::serialize(views, None).map_err(|e| Error::Config(format!("cannot encode the decoder's weights: {e}")))
}
