//! The writing end of the pipeline: what is encoded becomes shards of the store, in the store's number format.

use super::prepare::{CaseEnd, Group};
use crate::error::Result;
use sam_ladder_cache::{Result as StoreResult, SliceTensors, StoreWriter, Wanted};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::Progress;
use std::sync::mpsc::Receiver;

/// Slices of a group that are written at the same time.
const SLICES_AT_ONCE: usize = 16;

/// What the encoder made of the images of a group whose embeddings are wanted.
#[derive(Default)]
pub(super) struct Made {
    /// `[image, channels, g, g]`
    pub(super) embeddings: Vec<f32>,
    /// `[image, rung, c, g, g]`; empty without rungs.
    pub(super) rungs: Vec<f32>,
}

/// What the writing thread gets.
pub(super) enum Encoded {
    /// A group with what is wanted of it.
    Group(Group, Made),
    /// All slices of a case were handed over before this.
    CaseEnd(CaseEnd),
}

/// Writes all that comes, in its order, until the sender hangs up.
pub(super) fn write_all(writer: &StoreWriter, progress: &dyn Progress, encoded: &Receiver<Encoded>) -> Result<()> {
    let mut done = num_done(writer);
    for encoded in encoded {
        match encoded {
            Encoded::Group(group, made) => {
                done += group.rows.iter().filter(|(row, _)| !writer.is_slice_done(group.split, *row)).count();
                write_group(writer, &group, &made)?;
                progress.describe(&counted(done, "slice"));
            }
            Encoded::CaseEnd(CaseEnd { split, scan, rows, mask }) => writer.write_case(split, &scan, &rows, &mask)?,
        }
    }
    Ok(())
}

/// Writes the slices of a group at the same time: a disk syncs them together. If one fails, the others are written nevertheless.
fn write_group(writer: &StoreWriter, group: &Group, made: &Made) -> Result<()> {
    let config = &writer.layout().attributes().config;
    let (image_len, label_len, half_len) = (config.image_len(), config.low_res_size().pow(2), config.half_labels_len());
    let (embedding_len, rungs_len) = (config.embeddings_len(), config.rungs_len());
    let (mut images, mut labels, mut half_labels) = (&group.images[..], &group.labels[..], &group.half_labels[..]);
    let (mut embeddings, mut rungs) = (&made.embeddings[..], &made.rungs[..]);
    let slices: Vec<_> = group
        .rows
        .iter()
        .map(|(row, wanted)| {
            let tensors = SliceTensors {
                images: take(&mut images, wanted.variants.len() * image_len),
                labels: take(&mut labels, wanted.variants.len() * label_len),
                half_labels: take(&mut half_labels, wanted.variants.len() * half_len),
                embeddings: take(&mut embeddings, wanted.embeddings.len() * embedding_len),
                rungs: take(&mut rungs, wanted.embeddings.len() * rungs_len),
            };
            (*row, wanted, tensors)
        })
        .collect();
    let write = |(row, wanted, tensors): &(usize, &Wanted, SliceTensors<'_>)| {
        let _span = tracing::trace_span!("write slice", row).entered();
        writer.write_wanted(group.split, *row, wanted, tensors)
    };
    let written: Vec<StoreResult<()>> =
        slices.chunks(SLICES_AT_ONCE).flat_map(|slices| each_on_a_thread(slices, &write)).collect();
    Ok(written.into_iter().collect::<StoreResult<()>>()?)
}

/// Calls `f` with every item at the same time. The threads are not the encoder's: waiting for a disk must not keep those from computing.
fn each_on_a_thread<T: Sync, R: Send>(items: &[T], f: &(impl Fn(&T) -> R + Sync)) -> Vec<R> {
    let [first, others @ ..] = items else { return Vec::new() };
    std::thread::scope(|scope| {
        let others: Vec<_> = others.iter().map(|item| scope.spawn(move || f(item))).collect();
        let mut all = vec![f(first)];
        for other in others {
            match other.join() {
                Ok(result) => all.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

/// The next `len` values.
fn take<'a, T>(values: &mut &'a [T], len: usize) -> &'a [T] {
    let (head, tail) = values.split_at(len);
    *values = tail;
    head
}

/// Slices of both splits that are finished.
pub(super) fn num_done(writer: &StoreWriter) -> usize {
    let done = |split| (0..writer.layout().num_slices(split)).filter(move |&row| writer.is_slice_done(split, row));
    Split::ALL.into_iter().map(|split| done(split).count()).sum()
}
