//! The reading half of the pipeline: scans to images, ahead of the encoder. One thread reads the next scan while another makes images of this one.

use super::share::GroupRange;
use crate::preprocess::DataSlice;
use crate::scans::{CaseEntry, Scan, ScanError, ScanSource};
use rayon::prelude::*;
use sam_ladder_cache::{ReferenceMask, StoreLayout, StoreWriter, Wanted};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use std::borrow::Cow;
use std::sync::mpsc::{Receiver, SyncSender};

/// What comes to the encoding thread.
pub(super) enum Prepared {
    /// Neighbouring slices of a case, to be encoded together.
    Group(Group),
    /// All slices of a case were handed over before this.
    CaseEnd(CaseEnd),
    /// What the user should know of a case.
    Note(String),
    /// A case that cannot be read, and why.
    Bad { case: String, error: ScanError },
}

/// Neighbouring slices with the variants that are wanted of each.
pub(super) struct Group {
    pub(super) split: Split,
    /// Rows of the store's arrays, and what is wanted of each.
    pub(super) rows: Vec<(usize, Wanted)>,
    /// `[wanted variant of each slice, c, s, s]`.
    pub(super) images: Vec<f32>,
    /// `[wanted variant of each slice, s/4, s/4]`.
    pub(super) labels: Vec<u8>,
    /// `[wanted variant of each slice, s/2, s/2]`; empty if the store has none.
    pub(super) half_labels: Vec<u8>,
}

impl Group {
    /// The images whose embeddings are wanted, in the order of the slices and their variants.
    pub(super) fn to_encode(&self, image_len: usize) -> Cow<'_, [f32]> {
        if self.rows.iter().all(|(_, wanted)| wanted.embeddings == wanted.variants) {
            return Cow::Borrowed(&self.images);
        }
        let variants = self.rows.iter().flat_map(|(_, wanted)| wanted.variants.iter().map(|v| wanted.embeddings.contains(v)));
        let chosen = self.images.chunks(image_len).zip(variants).filter(|(_, encode)| *encode);
        Cow::Owned(chosen.flat_map(|(image, _)| image).copied().collect())
    }
}

/// What the store records of a case in addition to its tensors.
pub(super) struct CaseEnd {
    pub(super) split: Split,
    pub(super) scan: ScanRow,
    pub(super) rows: Vec<SliceRow>,
    pub(super) mask: ReferenceMask,
}

/// What one worker is to read.
pub(super) struct Work<'a> {
    pub(super) source: &'a ScanSource,
    pub(super) writer: &'a StoreWriter,
    /// The worker's groups.
    pub(super) groups: &'a [GroupRange],
}

/// What is missing of one case.
struct Missing<'a> {
    groups: Vec<&'a GroupRange>,
    /// Whether the case has to be recorded.
    record: bool,
}

/// A case of which something is missing, read.
pub(super) struct CaseRead<'a> {
    entry: &'a CaseEntry,
    missing: Missing<'a>,
    scan: Result<Scan, ScanError>,
}

impl Work<'_> {
    /// Reads every case of which something is missing and sends it, until all is sent or the receiver hangs up.
    pub(super) fn read_all<'a>(&'a self, out: &SyncSender<CaseRead<'a>>) -> Result<(), sam_ladder_cache::Error> {
        for entry in self.source.cases() {
            let missing = self.missing(entry)?;
            if missing.groups.is_empty() && !missing.record {
                continue;
            }
            let scan = read(self.source, entry, self.writer.layout());
            if out.send(CaseRead { entry, missing, scan }).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Makes what is missing of every case that comes, and sends it on, until the sender or the receiver hangs up.
    pub(super) fn make_all(
        &self,
        cases: &Receiver<CaseRead<'_>>,
        out: &SyncSender<Prepared>,
    ) -> Result<(), sam_ladder_cache::Error> {
        for CaseRead { entry, missing, scan } in cases {
            let listens = match scan {
                Ok(scan) => self.send_case(scan, &missing, out)?,
                Err(error) => out.send(Prepared::Bad { case: entry.case.clone(), error }).is_ok(),
            };
            if !listens {
                break;
            }
        }
        Ok(())
    }

    /// Groups of a split whose images are made at once: as many as it takes for every thread to have an image to make.
    fn groups_at_once(&self, split: Split) -> usize {
        let of_split = self.groups.iter().filter(|group| group.split == split);
        let slices = of_split.map(|group| group.rows.len()).max().unwrap_or(1);
        let images = slices * self.writer.layout().num_variants(split);
        rayon::current_num_threads().div_ceil(images.max(1))
    }

    /// The largest number of groups whose images are made at once.
    pub(super) fn most_groups_at_once(&self) -> usize {
        Split::ALL.map(|split| self.groups_at_once(split)).into_iter().max().unwrap_or(1)
    }

    fn missing(&self, entry: &CaseEntry) -> Result<Missing<'_>, sam_ladder_cache::Error> {
        let rows = self.writer.layout().case_rows(entry.split, &entry.case)?;
        let of_case = |group: &&GroupRange| group.split == entry.split && rows.contains(&group.rows.start);
        let mine: Vec<&GroupRange> = self.groups.iter().filter(of_case).collect();
        let record = mine.iter().any(|group| group.first) && !self.writer.is_case_recorded(entry.split, &entry.case)?;
        let undone = |group: &&GroupRange| group.rows.clone().any(|row| !self.writer.is_slice_done(group.split, row));
        Ok(Missing { groups: mine.into_iter().filter(undone).collect(), record })
    }

    /// Sends what is missing of a case; whether the receiver still listens.
    fn send_case(&self, mut scan: Scan, missing: &Missing, out: &SyncSender<Prepared>) -> Result<bool, sam_ladder_cache::Error> {
        let config = &self.writer.layout().attributes().config;
        let first_row = self.writer.layout().case_rows(scan.split, &scan.case)?.start;
        for note in std::mem::take(&mut scan.notes) {
            if out.send(Prepared::Note(note)).is_err() {
                return Ok(false);
            }
        }
        for groups in missing.groups.chunks(self.groups_at_once(scan.split)) {
            let made: Vec<Group> = groups.par_iter().map(|group| self.make_group(&scan, first_row, group)).collect();
            for group in made {
                if out.send(Prepared::Group(group)).is_err() {
                    return Ok(false);
                }
            }
        }
        if !missing.record {
            return Ok(true);
        }
        let rows = slice_rows(&scan, first_row, config.class_names.len());
        let Scan { split, shape, label, row: scan, .. } = scan;
        let mask = ReferenceMask { labels: label, shape };
        Ok(out.send(Prepared::CaseEnd(CaseEnd { split, scan, rows, mask })).is_ok())
    }

    fn make_group(&self, scan: &Scan, first_row: usize, group: &GroupRange) -> Group {
        let rows: Vec<(usize, Wanted)> = group.rows.clone().map(|row| (row, self.writer.wanted(scan.split, row))).collect();
        let (images, labels, half_labels) = self.make_variants(scan, first_row, &rows);
        Group { split: scan.split, rows, images, labels, half_labels }
    }

    /// The wanted variants of some slices: images `[variant, c, s, s]`, labels `[variant, s/4, s/4]`, and `[variant, s/2, s/2]` if the store has them.
    fn make_variants(&self, scan: &Scan, first_row: usize, rows: &[(usize, Wanted)]) -> (Vec<f32>, Vec<u8>, Vec<u8>) {
        let config = &self.writer.layout().attributes().config;
        let variants = self.writer.layout().variants(scan.split);
        let [_, height, width] = scan.shape;
        let (image_len, label_len, half_len) = (config.image_len(), config.low_res_size().pow(2), config.half_labels_len());
        let _span = tracing::trace_span!("make variants", slices = rows.len()).entered();
        let slices: Vec<DataSlice> = rows
            .par_iter()
            .map(|(row, _)| {
                let slice = row - first_row;
                let planes = scan.planes(slice, config.preprocessing.channels_from);
                DataSlice::new(&planes, scan.labels(slice), [height, width], config.data_size).of_case(&scan.case, slice)
            })
            .collect();
        let pairs = slices.iter().zip(rows);
        let items: Vec<(&DataSlice, usize)> =
            pairs.flat_map(|(slice, (_, wanted))| wanted.variants.iter().map(move |&variant| (slice, variant))).collect();
        let mut images = vec![0.0; items.len() * image_len];
        let mut labels = vec![0; items.len() * label_len];
        let mut half_labels = vec![0; items.len() * half_len];
        let mut rest = half_labels.as_mut_slice();
        let halves: Vec<&mut [u8]> = items.iter().map(|_| rest.split_off_mut(..half_len).unwrap_or_default()).collect();
        let places = images.par_chunks_mut(image_len).zip(labels.par_chunks_mut(label_len)).zip(halves);
        places.zip(&items).for_each(|(((image, label), half), (slice, variant))| {
            let made = slice.variant(variants[*variant].kind, config.image_size);
            image.copy_from_slice(&made.image);
            label.copy_from_slice(&made.label);
            if !half.is_empty() {
                half.copy_from_slice(&made.half_label());
            }
        });
        (images, labels, half_labels)
    }
}

/// Reads a case: the very bytes of which the layout has the hashes.
pub(super) fn read(source: &ScanSource, entry: &CaseEntry, layout: &StoreLayout) -> Result<Scan, ScanError> {
    let _span = tracing::trace_span!("read scan", case = entry.case).entered();
    let scan = source.read_checked(entry, &layout.attributes().sources)?;
    if scan.shape[0] != entry.num_slices {
        let path = entry.files.first().cloned().unwrap_or_default();
        return Err(ScanError::Changed { path, found: scan.shape[0], expected: entry.num_slices });
    }
    Ok(scan)
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
