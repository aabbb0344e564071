//! Fetches embeddings, and rungs if there are any, from the encoder's device, behind the encoder, and puts those of a group together.

use super::prepare::{CaseEnd, Group};
use super::write::{Encoded, Made};
use crate::error::{Error, Result};
use sam_ladder_ops::device::Download;
use sam_ladder_schemas::observer::Progress;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender};

/// Batches in a device's queue when the first of them is waited for: the device has work while the host takes a result.
const IN_FLIGHT: usize = 2;

/// What the encoding thread hands to the fetching one.
pub(super) enum Begun {
    /// Images of which the embeddings come.
    Batch { embeddings: Download, images: usize },
    /// A group, after all its batches.
    Group(Group),
    /// All slices of a case were handed over before this.
    CaseEnd(CaseEnd),
}

impl Begun {
    /// Whether it has to be waited for.
    fn is_queued(&self) -> bool {
        matches!(self, Begun::Batch { embeddings, .. } if !embeddings.is_here())
    }
}

/// Puts the embeddings of each group together and passes them on, in order.
pub(super) struct Fetcher<'a> {
    /// Values of an image's embedding, and of its rungs.
    lens: [usize; 2],
    progress: &'a dyn Progress,
    out: SyncSender<Encoded>,
    /// Those of the group that is under way.
    made: Made,
    /// Images of which the embeddings were fetched.
    images: usize,
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(lens: [usize; 2], progress: &'a dyn Progress, out: SyncSender<Encoded>) -> Self {
        Fetcher { lens, progress, out, made: Made::default(), images: 0 }
    }

    /// Takes what comes until the sender hangs up, and then what is still queued; or until nobody listens. The number of images.
    pub(super) fn fetch_all(mut self, begun: &Receiver<Begun>) -> Result<usize> {
        let mut behind = VecDeque::new();
        let mut queued = 0;
        for next in begun {
            queued += usize::from(next.is_queued());
            behind.push_back(next);
            while queued >= IN_FLIGHT || behind.front().is_some_and(|first| !first.is_queued()) {
                let Some(first) = behind.pop_front() else { break };
                queued -= usize::from(first.is_queued());
                if !self.pass_on(first)? {
                    return Ok(self.images);
                }
            }
        }
        for rest in behind {
            if !self.pass_on(rest)? {
                break;
            }
        }
        Ok(self.images)
    }

    /// Whether the writer still listens.
    fn pass_on(&mut self, begun: Begun) -> Result<bool> {
        let encoded = match begun {
            Begun::Batch { embeddings, images } => {
                let embeddings = tracing::trace_span!("wait for the device", images).in_scope(|| embeddings.wait())?;
                let [of_embeddings, of_rungs] = self.lens.map(|len| images * len);
                let expected = of_embeddings + of_rungs;
                if embeddings.len() != expected {
                    return Err(Error::EncoderShape { batch: images, expected, found: embeddings.len() });
                }
                self.made.rungs.extend_from_slice(&embeddings[of_embeddings..]);
                if self.made.embeddings.is_empty() && of_rungs == 0 {
                    self.made.embeddings = embeddings;
                } else {
                    self.made.embeddings.extend_from_slice(&embeddings[..of_embeddings]);
                }
                self.images += images;
                self.progress.advance(images as u64);
                return Ok(true);
            }
            Begun::Group(group) => Encoded::Group(group, std::mem::take(&mut self.made)),
            Begun::CaseEnd(end) => Encoded::CaseEnd(end),
        };
        Ok(tracing::trace_span!("wait for the writer").in_scope(|| self.out.send(encoded).is_ok()))
    }
}
