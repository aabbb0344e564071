//! The reading half of the pipeline: scans to variants, ahead of the encoder, in a thread of its own.

use crate::preprocess::DataSlice;
use crate::scans::{CaseEntry, Scan, ScanSource};
use rayon::prelude::*;
use sam_ladder_cache::{Mask, StoreWriter};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::tables::SliceRow;
use sam_ladder_schemas::variants::Variant;
use std::ops::Range;
use std::sync::mpsc::SyncSender;

/// What the reading thread hands to the encoding one.
pub(super) enum Prepared {
    /// Neighbouring slices of a case, to be encoded together.
    Group(Group),
    /// All slices of a case were handed over before this.
    CaseEnd(CaseEnd),
    /// A case that cannot be read, and why.
    Bad { case: String, reason: String },
}

/// Neighbouring slices with their variants.
pub(super) struct Group {
    pub(super) split: Split,
    /// Rows of the store's arrays.
    pub(super) rows: Range<usize>,
    /// `[slice, variant, c, s, s]`.
    pub(super) images: Vec<f32>,
    /// `[slice, variant, s/4, s/4]`.
    pub(super) labels: Vec<u8>,
}

/// What the store records of a case beside its tensors.
pub(super) struct CaseEnd {
    pub(super) split: Split,
    pub(super) case: String,
    pub(super) rows: Vec<SliceRow>,
    /// For test cases.
    pub(super) mask: Option<Mask>,
}

/// Reads every case that is not done and sends what is missing of it, until all is sent or the receiver hangs up.
pub(super) fn prepare(
    source: &ScanSource,
    writer: &StoreWriter,
    batch_size: usize,
    out: &SyncSender<Prepared>,
) -> Result<(), sam_ladder_cache::Error> {
    for entry in source.cases() {
        if writer.is_case_done(entry.split, &entry.case)? {
            continue;
        }
        let alive = match read(source, entry) {
            Ok(scan) => send_case(scan, writer, batch_size, out)?,
            Err(reason) => out.send(Prepared::Bad { case: entry.case.clone(), reason }).is_ok(),
        };
        if !alive {
            break;
        }
    }
    Ok(())
}

fn read(source: &ScanSource, entry: &CaseEntry) -> Result<Scan, String> {
    let _span = tracing::trace_span!("read scan", case = entry.case).entered();
    let scan = source.read(entry).map_err(|e| e.to_string())?;
    if scan.shape[0] != entry.num_slices {
        return Err(format!("it has {} slices, its header said {}", scan.shape[0], entry.num_slices));
    }
    Ok(scan)
}

/// Sends what is missing of a case; whether the receiver still listens.
fn send_case(
    scan: Scan,
    writer: &StoreWriter,
    batch_size: usize,
    out: &SyncSender<Prepared>,
) -> Result<bool, sam_ladder_cache::Error> {
    let config = &writer.layout().attributes().config;
    let variants = writer.layout().variants(scan.split);
    let case_rows = writer.layout().case_rows(scan.split, &scan.case)?;
    // Groups start at fixed slices of a case and are done whole: what is encoded together does not depend on where an earlier run
    // was interrupted, so neither do the tensors' last bits.
    let group_len = (batch_size / variants.len()).max(1);
    for start in case_rows.clone().step_by(group_len) {
        let rows = start..case_rows.end.min(start + group_len);
        if rows.clone().all(|row| writer.is_slice_done(scan.split, row)) {
            continue;
        }
        let slices = rows.start - case_rows.start..rows.end - case_rows.start;
        let (images, labels) = make_variants(&scan, slices, &variants, config);
        if out.send(Prepared::Group(Group { split: scan.split, rows, images, labels })).is_err() {
            return Ok(false);
        }
    }
    let rows = slice_rows(&scan, case_rows.start, config.class_names.len());
    let Scan { case, split, shape, label, .. } = scan;
    let mask = (split == Split::Test).then_some(Mask { labels: label, shape });
    Ok(out.send(Prepared::CaseEnd(CaseEnd { split, case, rows, mask })).is_ok())
}

/// All variants of a range of slices: images `[slice, variant, c, s, s]`, labels `[slice, variant, s/4, s/4]`.
fn make_variants(scan: &Scan, slices: Range<usize>, variants: &[Variant], config: &PrecomputeConfig) -> (Vec<f32>, Vec<u8>) {
    let [_, height, width] = scan.shape;
    let pixels = height * width;
    let (image_len, label_len) = (config.image_len(), config.low_res_size().pow(2));
    let channels = scan.image.len() / scan.label.len();
    let _span = tracing::trace_span!("make variants", slices = slices.len(), variants = variants.len()).entered();
    let mut images = vec![0.0; slices.len() * variants.len() * image_len];
    let mut labels = vec![0; slices.len() * variants.len() * label_len];
    let data: Vec<DataSlice> = slices
        .into_par_iter()
        .map(|slice| {
            let planes = &scan.image[slice * channels * pixels..][..channels * pixels];
            DataSlice::new(planes, &scan.label[slice * pixels..][..pixels], [height, width], config.data_size)
        })
        .collect();
    images.par_chunks_mut(image_len).zip(labels.par_chunks_mut(label_len)).enumerate().for_each(|(i, (image, label))| {
        let variant = data[i / variants.len()].variant(variants[i % variants.len()].kind, config.image_size);
        image.copy_from_slice(&variant.image);
        label.copy_from_slice(&variant.label);
    });
    (images, labels)
}

/// The rows of a case in `slices.parquet`.
fn slice_rows(scan: &Scan, first_row: usize, num_organs: usize) -> Vec<SliceRow> {
    let [_, height, width] = scan.shape;
    scan.label
        .chunks(height * width)
        .zip(&scan.slice_sources)
        .enumerate()
        .map(|(slice, (label, source))| {
            let mut counts = [0u64; 256];
            label.iter().for_each(|&class| counts[usize::from(class)] += 1);
            SliceRow {
                row: (first_row + slice) as u32,
                case: scan.case.clone(),
                slice_index: slice as u32,
                spacing_mm: scan.spacing_mm,
                size: [height as u32, width as u32],
                voxels: counts[1..=num_organs].to_vec(),
                source: source.path.clone(),
                source_sha256: source.sha256.clone(),
            }
        })
        .collect()
}
