//! `sam-ladder predict`: encode new scans as stage one does, then the model of stage two; composed here, as `eval` is.

mod encoded;
mod extras;
mod outputs;
mod settings;
mod values;
mod volumes;

use super::checkpoint_names::note_names;
use super::device::DeviceChoice;
use super::export::run_checkpoint;
use super::postprocess::rules_of;
use super::progress::{self, Terminal};
use super::run_facts::ensure_each_once;
use super::sam_checkpoint::{TypedWeights, WeightFiles};
use crate::error::refusal;
use crate::interrupt;
use crate::print::print_note;
use candle_core::Device;
use encoded::EncodedSlices;
use extras::{Extras, Made, disagreement, in_field};
use outputs::{Existing, Outputs, ensure_folder, ensure_mask_name, ensure_mask_of};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_eval::postprocess;
use sam_ladder_formats::nifti::write_nifti;
use sam_ladder_precompute::pipeline::{FillOptions, Plan, SamEncoder, Share, encode_variant, fill_part};
use sam_ladder_precompute::scans::{FoundScans, Grid, NewScan, ScanError, ScanSource, find_new_scans, grid_notes};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::eval::Resample;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::postprocessing::OrganRule;
use sam_ladder_schemas::precompute::EncoderWeights;
use sam_ladder_schemas::preprocessing::Preprocessing;
use sam_ladder_schemas::tables::ScanRow;
use sam_ladder_schemas::variants::{AugmentPolicy, VariantKind};
use sam_ladder_train::run::BatchShape;
use sam_ladder_train::{CaseRequest, Ensemble, MaskRule, Segmented, load_trained, run_checkpoint as run_checkpoint_file};
use settings::{EncoderFile, Settings, TypedFiles};
use std::path::{Path, PathBuf};
use std::time::Instant;
use volumes::Volumes;

/// Batches whose time the first estimate is made of, after one that warms up.
const MEASURED_BATCHES: usize = 2;

/// Arguments of `predict`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("model").required(true).multiple(true).args(["run", "checkpoint"])))]
#[command(after_help = "\
Examples:
  sam-ladder predict --scan patient.nii.gz --run runs/first \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth --out mask.nii.gz
  sam-ladder predict --scan new-scans --run runs/first \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth --out masks --store new-scans.zarr
  sam-ladder predict --scan patient.nii.gz --checkpoint epoch_194.pth --out published.nii.gz
  sam-ladder predict --scan new-scans --run runs/first --run runs/lower \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth --out both --save-entropy --statistics both.csv
")]
pub struct Args {
    /// Scans to segment: volumes of any number type and orientation, or folders of them: .nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, or a
    /// .hdr with its .img. Channels are numbered as nnU-Net's: CASE_0000.nii.gz, CASE_0001.nii.gz …
    #[arg(long, value_name = "FILE|DIR", required = true, num_args = 1..)]
    scan: Vec<PathBuf>,
    /// Run folder. Its best model is taken if it was validated, otherwise its last; window, sizes, channels and classes are the run's. Of
    /// several runs, such as all folds, the probabilities are averaged: --run A --run B
    #[arg(long, value_name = "DIR")]
    run: Vec<PathBuf>,
    /// With --run: use the last model, even if validation chose an earlier one
    #[arg(long, requires = "run", conflicts_with = "checkpoint")]
    last: bool,
    /// Whole model in the published code's names, .pth or .safetensors. With --run it replaces the run's model; without, the settings are the
    /// published ones
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// SAM checkpoint that the run's store was made with; not needed for a random encoder, or with a --checkpoint that has the image
    /// encoder
    #[arg(long, value_name = "FILE")]
    sam_checkpoint: Option<PathBuf>,
    /// Checkpoint of the encoder that the run's store was made with, if it is not SAM's. --sam-checkpoint is then needed only with --store
    #[arg(long, value_name = "FILE")]
    encoder_checkpoint: Option<PathBuf>,
    /// Mask to write, or folder for the masks of several scans, CASE.nii.gz each. Label tables for ITK-SNAP and 3D Slicer, and the
    /// organs' volumes as CSV, are written next to it
    #[arg(long, value_name = "MASK.nii.gz|DIR")]
    out: PathBuf,
    /// Orientation in which the model's training scans lie, as nibabel's axis codes, if the run does not know it: scans are turned to it, and
    /// masks back
    #[arg(long, value_name = "LPS")]
    orientation: Option<Orientation>,
    /// Keep the scans' embeddings in this store and use those that it has, so that the next model needs no encoder
    #[arg(long, value_name = "STORE.zarr")]
    store: Option<PathBuf>,
    /// Average each model's logits over a slice and its four reflections, which takes five times as long to encode
    #[arg(long)]
    average_reflections: bool,
    /// How masks come to the scan's own resolution
    #[arg(long, value_enum, default_value_t)]
    resample: Resample,
    /// Write the probability of each class, the mean over the runs, as CASE.probability.CLASS.nii.gz next to the mask: bytes, of which 255 is 1
    /// (scl_slope). All of a scan are in memory at once, a byte per voxel and class
    #[arg(long)]
    save_probabilities: bool,
    /// Write the entropy of these probabilities as CASE.entropy.nii.gz next to the mask: bytes, of which 255 is 1, the most that there can be (the
    /// logarithm of the number of classes)
    #[arg(long)]
    save_entropy: bool,
    /// Write a table of the organs: voxels, volume, mean entropy and, of several runs, how far they agree. With --skip-existing, earlier rows
    /// are kept
    #[arg(long, value_name = "FILE.csv|FILE.json")]
    statistics: Option<PathBuf>,
    /// Write masks as they come from the model, even if the run has a postprocessing
    #[arg(long)]
    no_postprocessing: bool,
    /// Replace existing masks
    #[arg(long)]
    force: bool,
    /// Keep existing masks, and make the others
    #[arg(long, conflicts_with = "force")]
    skip_existing: bool,
    /// Slices per pass of the network
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Where to compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// A scan whose header could be read, and where its mask goes.
struct MaskJob {
    scan: NewScan,
    grid: Grid,
    mask: PathBuf,
}

impl MaskJob {
    /// Writes its mask `[d, h, w]`, turned back to the scan's own grid, and what else is made of it; `after` is said of the time it took.
    fn write(&self, mut found: Segmented, tables: &mut Tables<'_>, observer: &dyn Observer, after: &str) -> anyhow::Result<()> {
        let class_names = tables.class_names;
        postprocess(&mut found.mask, self.grid.shape(), &tables.rules);
        let made =
            Made { case: &self.scan.case, grid: &self.grid, path: &self.mask, mask: &found.mask, class_names, extras: &found };
        // First all else: so no mask is without it, whenever the program is stopped.
        let said = tables.volumes.add(&self.scan.case, &found.mask, self.grid.spacing_mm())?;
        tables.extras.write_maps(&made)?;
        if tables.extras.statistics.is_some() {
            let case = in_field(&self.scan.case);
            tables.rows.retain(|row| row["case"].as_str().map(in_field) != Some(case.clone()));
            tables.rows.extend(Extras::rows(&made));
            tables.extras.write_table(&tables.rows)?;
        }
        let warning = disagreement(&self.scan.case, class_names, &found.agreement);
        let mask = found.mask;
        let mask = self.grid.turn.inverse().voxels(mask, self.grid.shape());
        write_nifti(&self.mask, &self.grid.geometry, &mask)?;
        observer.message(&format!("scan {}{after}: {}", self.scan.case, self.mask.display()));
        said.iter().chain(&warning).for_each(|line| observer.message(line));
        if mask.iter().all(|&class| class == 0) {
            observer.message(&format!("warning: scan {}: no organ found, its mask is empty", self.scan.case));
        }
        Ok(())
    }
}

impl Args {
    /// Segments.
    pub fn run(self) -> anyhow::Result<()> {
        ensure_mask_name(&self.out)?;
        ensure_folder(&self.out)?;
        ensure_each_once(&self.run)?;
        let device = self.device.open()?;
        let settings = self.settings()?;
        self.checkpoint.iter().for_each(|path| note_names(path));
        let FoundScans { scans, notes } = find_new_scans(&self.scan, &settings.config.preprocessing)?;
        notes.iter().for_each(|note| print_note!("{note}"));
        let found = scans.len();
        let outputs = Outputs::plan(scans, &self.out, self.existing())?;
        let mut bad = 0;
        check_kept(&outputs, &settings.config.preprocessing, &mut bad);
        let jobs = readable(&outputs, &settings.config.preprocessing, &mut bad);
        say_how_they_lie(&jobs, &settings.config.preprocessing, self.store.is_some());
        let slices: usize = jobs.iter().map(|job| job.grid.shape()[0]).sum();
        let there = match outputs.kept.len() {
            0 => String::new(),
            kept => format!(", and there already: {}", counted(kept, "mask")),
        };
        let (scans, slices) = (counted(jobs.len(), "scan"), counted(slices, "slice"));
        print_note!("{scans}, {slices} to segment at {} pixels{there}", settings.config.image_size);
        if !outputs.kept.is_empty() && (self.save_probabilities || self.save_entropy || self.statistics.is_some()) {
            print_note!(
                "warning: scans whose masks are there already get no maps and no new rows in the table: --force makes them anew"
            );
        }
        if !jobs.is_empty() {
            let class_names = &settings.config.class_names;
            outputs.check_label_tables(class_names)?;
            let extras = self.extras();
            let masks: Vec<&Path> = jobs.iter().map(|job| &*job.mask).collect();
            extras.check(&masks, class_names)?;
            let volumes_table = outputs.volumes_table(&self.out);
            if self.statistics.as_ref() == Some(&volumes_table) {
                let message = format!("{} is the table of the organs' volumes", volumes_table.display());
                return Err(refusal(message, "give --statistics another name"));
            }
            let volumes = Volumes::open(volumes_table, &settings)?;
            let rules =
                if self.no_postprocessing { Vec::new() } else { rules_of(&self.run, |run| self.model_of(run), class_names)? };
            let rows = extras.earlier_rows()?;
            let mut tables = Tables { volumes, extras, rules, rows, class_names };
            let work = Work { settings: &settings, outputs: &outputs, device: &device };
            let labels = match &self.store {
                Some(store) => self.predict_stored(store, jobs, work, &mut tables, &mut bad)?,
                None => Some(self.predict_all(&jobs, work, &mut tables, &mut bad)?),
            };
            if let Some([first, second]) = labels {
                print_note!("volumes of the organs: {}", tables.volumes.path().display());
                print_note!("names and colours of the classes: {}, {}", first.display(), second.display());
            }
        }
        if bad > 0 {
            let others = if bad < found { "; the others are segmented" } else { "" };
            let found = counted(found, "scan");
            return Err(refusal(
                format!("{bad} of {found} cannot be used, see the warnings above{others}"),
                "put good copies of these files in place, then run the same command again with --skip-existing",
            ));
        }
        Ok(())
    }

    /// The file of a run's model, or of what replaces it.
    fn model_of(&self, run: &Path) -> PathBuf {
        self.checkpoint.clone().unwrap_or_else(|| run_checkpoint_file(run, run_checkpoint(self.last)))
    }

    fn existing(&self) -> Existing {
        match (self.force, self.skip_existing) {
            (true, _) => Existing::Replace,
            (_, true) => Existing::Skip,
            _ => Existing::Refuse,
        }
    }

    fn extras(&self) -> Extras {
        let (probabilities, entropy) = (self.save_probabilities, self.save_entropy);
        Extras { probabilities, entropy, statistics: self.statistics.clone(), existing: self.existing() }
    }

    fn load_models(&self, settings: &Settings, device: &Device) -> anyhow::Result<Ensemble> {
        let shape = BatchShape::of(&settings.config);
        let models =
            settings.weights.iter().map(|weights| load_trained(weights, shape, device)).collect::<Result<Vec<_>, _>>()?;
        let rule = MaskRule {
            resample: self.resample,
            agreement: models.len() > 1,
            probabilities: self.save_probabilities,
            entropy: self.save_entropy || self.statistics.is_some(),
        };
        Ok(Ensemble::of(models, self.average_reflections).making(rule))
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = Settings::new(TypedFiles {
            runs: &self.run,
            last: self.last,
            checkpoint: self.checkpoint.as_deref(),
            frozen: TypedWeights { sam: self.sam_checkpoint.as_deref(), encoder: self.encoder_checkpoint.as_deref() },
        })?;
        if let Some(orientation) = self.orientation {
            settings.config.preprocessing.orientation = Some(orientation);
        }
        if self.average_reflections && self.store.is_some() {
            // A store has the reflections of test slices only next to those of training slices, of which there are none.
            (settings.config.augment, settings.config.test_augment) = (AugmentPolicy::Flips, AugmentPolicy::Flips);
        }
        if self.store.is_some() && matches!(settings.encoder, EncoderFile::Published(_)) {
            let hint = "pass --sam-checkpoint in addition to --checkpoint, or remove --store";
            return Err(refusal("--store needs SAM's own checkpoint, since a store keeps SAM's decoder too", hint));
        }
        if let (Some(_), EncoderFile::Files(WeightFiles { decoder: None, .. }), Some(EncoderWeights::Checkpoint { sha256 })) =
            (&self.store, &settings.encoder, &settings.config.decoder_weights)
        {
            let hint = format!("pass SAM's checkpoint (SHA-256 {sha256}) with --sam-checkpoint too, or remove --store");
            return Err(refusal("--store needs SAM's checkpoint too, since a store keeps SAM's decoder", hint));
        }
        Ok(settings)
    }

    /// Scan by scan, with nothing on disk but the masks and the label tables, which are returned.
    fn predict_all(
        &self,
        jobs: &[MaskJob],
        Work { settings, outputs, device }: Work,
        written: &mut Tables<'_>,
        bad: &mut usize,
    ) -> anyhow::Result<[PathBuf; 2]> {
        let model = self.load_models(settings, device)?;
        let encoder = settings.load_encoder(device)?;
        // What is refused is refused before this, and leaves no file behind.
        let tables = outputs.write_label_tables(&settings.config.class_names)?;
        let observer = Terminal::new();
        let mut pace = Pace::new(&*observer, jobs);
        for job in jobs {
            pace.progress.describe(&format!("scan {}", job.scan.case));
            let started = Instant::now();
            let scan = match job.scan.read(&settings.config.preprocessing) {
                Ok(scan) => scan,
                Err(error) => {
                    observer.message(&left_out(&job.scan.case, &error));
                    *bad += 1;
                    pace.progress.advance(job.grid.shape()[0] as u64);
                    continue;
                }
            };
            scan.notes.iter().chain(&values::strange(&scan.row, settings)).for_each(|note| observer.message(note));
            let [depth, height, width] = scan.shape;
            let mut found = Segmented { mask: Vec::with_capacity(depth * height * width), ..Segmented::default() };
            let mut variants: Vec<_> = model.variants().into_iter().map(|kind| (kind, EncodedSlices::default())).collect();
            for first in (0..depth).step_by(self.batch_size as usize) {
                let slices = first..depth.min(first + self.batch_size as usize);
                let count = slices.len();
                let batch = |(kind, kept): &mut (VariantKind, EncodedSlices)| -> anyhow::Result<(VariantKind, Batch)> {
                    let encode = |slices| Ok(encode_variant::<SamEncoder>(&scan, slices, *kind, (&settings.config, &encoder))?);
                    Ok((*kind, kept.batch(slices.clone(), (depth, model.takes_neighbours()), &settings.config, encode)?))
                };
                let batches = variants.iter_mut().map(batch).collect::<anyhow::Result<Vec<_>>>()?;
                model.segment_slices(&batches, count, [height, width], &mut found)?;
                pace.done(count);
            }
            let time = progress::duration(started.elapsed().as_secs_f64());
            job.write(found, written, &*observer, &format!(": {} in {time}", counted(depth, "slice")))?;
        }
        Ok(tables)
    }

    /// Through a store, which is made, continued or grown where it lacks a scan; the label tables, if there are masks.
    fn predict_stored(
        &self,
        store: &Path,
        mut jobs: Vec<MaskJob>,
        Work { settings, outputs, device }: Work,
        written: &mut Tables<'_>,
        bad: &mut usize,
    ) -> anyhow::Result<Option<[PathBuf; 2]>> {
        let observer = Terminal::new();
        ensure_same_rungs(store, settings)?;
        let mut plan = plan_of(&jobs, settings, &*observer)?;
        if !holds(store, &plan) {
            // A bad scan must not cost the masks of the others.
            let before = jobs.len();
            jobs.retain(|job| is_readable(job, settings, &*observer, bad));
            if jobs.is_empty() {
                return Ok(None);
            }
            if jobs.len() < before {
                plan = plan_of(&jobs, settings, &*observer)?;
            }
        }
        // Hashes, encoding: each has its own bar.
        let encoded = if holds(store, &plan) {
            0
        } else {
            let stop = interrupt::stop_flag("the slices in flight are finished")?;
            let options =
                FillOptions { batch_size: self.batch_size as usize, share: Share::ALL, stop: &stop, observer: &*observer };
            fill_part(&plan, store, &options, || settings.load_frozen(device))?.images_encoded
        };
        print_note!("{} encoded, the embeddings are in {}", counted(encoded, "slice"), store.display());
        let store = Store::open(store)?;
        let model = self.load_models(settings, device)?;
        let tables = outputs.write_label_tables(&settings.config.class_names)?;
        let of_jobs = |scan: &&ScanRow| jobs.iter().any(|job| job.scan.case == scan.case);
        for scan in store.scans(Split::Test).iter().filter(of_jobs) {
            values::strange(scan, settings).iter().for_each(|note| observer.message(note));
        }
        let progress = begin_slices(&*observer, &jobs);
        for job in &jobs {
            progress.describe(&format!("scan {}", job.scan.case));
            let request = CaseRequest { split: Split::Test, case: &job.scan.case, batch_size: self.batch_size as usize };
            let predicted = model.predict_case(&store, request, |slices| progress.advance(slices as u64))?;
            let found = Segmented { mask: predicted.mask, ..predicted.extras };
            job.write(found, written, &*observer, "")?;
        }
        Ok(Some(tables))
    }
}

/// What is written of every scan in addition to its mask.
struct Tables<'a> {
    volumes: Volumes<'a>,
    extras: Extras,
    /// The postprocessing.
    rules: Vec<OrganRule>,
    /// The rows of the table of statistics so far.
    rows: Vec<serde_json::Value>,
    class_names: &'a [String],
}

/// What is the same for every scan.
#[derive(Clone, Copy)]
struct Work<'a> {
    settings: &'a Settings,
    outputs: &'a Outputs,
    device: &'a Device,
}

/// The store that the scans become.
fn plan_of(jobs: &[MaskJob], settings: &Settings, observer: &dyn Observer) -> anyhow::Result<Plan> {
    let scans: Vec<NewScan> = jobs.iter().map(|job| job.scan.clone()).collect();
    let plan = Plan::of(ScanSource::unlabelled(&scans, &settings.config.preprocessing)?, &settings.config, observer)?;
    Ok(plan.with_rungs(settings.rungs.clone()))
}

/// A warning of a scan without a mask, with the reason and what to do.
fn left_out(case: &str, error: &ScanError) -> String {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("warning: scan {case} is left out: {error}{hint}")
}

/// Whether a scan's voxels can be read; if not, it is noted in `bad`.
fn is_readable(job: &MaskJob, settings: &Settings, observer: &dyn Observer, bad: &mut usize) -> bool {
    let Err(error) = job.scan.read(&settings.config.preprocessing) else { return true };
    observer.message(&left_out(&job.scan.case, &error));
    *bad += 1;
    false
}

fn begin_slices(observer: &dyn Observer, jobs: &[MaskJob]) -> Box<dyn Progress> {
    let slices = jobs.iter().map(|job| job.grid.shape()[0] as u64).sum();
    observer.begin(Phase::new("", Unit::Slices, slices))
}

/// Says which of the masks that are there are none of their scans.
fn check_kept(outputs: &Outputs, preprocessing: &Preprocessing, bad: &mut usize) {
    for (scan, mask) in &outputs.kept {
        if let Err(error) = ensure_mask_of(scan, mask, preprocessing) {
            print_note!("warning: scan {} is left out, since its mask is there and cannot be one: {error}", scan.case);
            *bad += 1;
        }
    }
}

/// The scans whose headers can be read; of the others the reason is said.
fn readable(outputs: &Outputs, preprocessing: &Preprocessing, bad: &mut usize) -> Vec<MaskJob> {
    let mut jobs = Vec::with_capacity(outputs.masks.len());
    for (scan, mask) in &outputs.masks {
        match scan.grid(preprocessing) {
            Ok(grid) => jobs.push(MaskJob { scan: scan.clone(), grid, mask: mask.clone() }),
            Err(error) => {
                print_note!("{}", left_out(&scan.case, &error));
                *bad += 1;
            }
        }
    }
    jobs
}

/// Which scans are turned, and what is wrong with their headers; the plan of a store says it itself.
fn say_how_they_lie(jobs: &[MaskJob], preprocessing: &Preprocessing, has_store: bool) {
    if preprocessing.orientation.is_none() && !jobs.is_empty() {
        print_note!(
            "warning: the orientation of the scans that the model was trained on is unknown: scans are taken as they lie; --orientation \
             states it"
        );
    }
    if has_store {
        return;
    }
    let scans = jobs.iter().map(|job| (job.scan.case.as_str(), job.scan.files[0].as_path(), &job.grid));
    grid_notes(scans, preprocessing.orientation, false).iter().for_each(|note| print_note!("{note}"));
}

/// Refuses a finished store whose rungs were made by another projection than the runs'.
fn ensure_same_rungs(store: &Path, settings: &Settings) -> anyhow::Result<()> {
    let Ok(found) = Store::open(store) else { return Ok(()) };
    let (stored, wanted) = (found.rung_projection_sha256(), settings.rung_sha256.as_deref());
    if stored.is_none() || wanted.is_none() || stored == wanted {
        return Ok(());
    }
    let message = format!("{} has the rungs of another run: their projection is another", store.display());
    Err(refusal(message, "choose another --store"))
}

/// Whether a finished store of these settings has every scan of the plan, byte for byte the same.
fn holds(store: &Path, plan: &Plan) -> bool {
    let asked = plan.layout().attributes();
    let Ok(store) = Store::open(store) else { return false };
    let found = store.attributes();
    let sources = |attributes: &sam_ladder_schemas::store::StoreAttributes, paths: &[String]| -> Vec<_> {
        attributes.sources.iter().filter(|source| paths.contains(&source.path)).cloned().collect()
    };
    let has = |case: &sam_ladder_schemas::store::CaseLayout| {
        found.cases.contains(case) && sources(found, &case.sources) == sources(asked, &case.sources)
    };
    found.config == asked.config && asked.cases.iter().all(has)
}

/// Says, once it is known, how long a scan takes.
struct Pace<'a> {
    observer: &'a dyn Observer,
    progress: Box<dyn Progress>,
    /// Slices of each scan.
    scans: Vec<usize>,
    batches: usize,
    slices: usize,
    since: Option<Instant>,
}

impl<'a> Pace<'a> {
    fn new(observer: &'a dyn Observer, jobs: &[MaskJob]) -> Self {
        let scans = jobs.iter().map(|job| job.grid.shape()[0]).collect();
        Pace { observer, progress: begin_slices(observer, jobs), scans, batches: 0, slices: 0, since: None }
    }

    fn done(&mut self, slices: usize) {
        self.progress.advance(slices as u64);
        self.batches += 1;
        // The first batch warms up: caches, kernels, memory.
        let Some(since) = self.since else {
            self.since = Some(Instant::now());
            return;
        };
        self.slices += slices;
        if self.batches == 1 + MEASURED_BATCHES {
            let per_slice = since.elapsed().as_secs_f64() / self.slices as f64;
            let first = progress::duration(self.scans[0] as f64 * per_slice);
            let total = progress::duration(self.scans.iter().sum::<usize>() as f64 * per_slice);
            let slices = counted(self.scans[0], "slice");
            self.observer
                .message(&format!("about {first} for the first scan of {slices} ({per_slice:.3} s per slice), {total} for all"));
        }
    }
}
