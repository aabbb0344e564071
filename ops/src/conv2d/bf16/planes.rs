//! The padded planes of an image from which products read: split by stride, so that the pixels that a tap reads along a row of outputs are neighbours.

use super::super::implicit::copy_every;
use super::super::shape::ConvShape;
use super::with_u32;
use crate::cpu::activation::with_scratch_of;
use crate::matmul::bf16::STEP;
use crate::matmul::bf16::pack;
use half::bf16;

/// Pixels past the end of the last plane that a product may read, zeros: sixteen of a group that is not full, and the steps of a sum over pixels.
pub(super) const SLACK: usize = 4 * STEP;

/// The planes' sizes, in pixels.
#[derive(Clone, Copy)]
pub(super) struct Planes {
    /// Channels of a phase; or rows, one per channel and tap.
    pub(super) channels: usize,
    /// Phases along an axis: the stride, or 1.
    phases: usize,
    pub(super) width: usize,
    /// Pixels from a plane to the next.
    pub(super) plane: usize,
}

impl Planes {
    fn new(channels: usize, phases: usize, height: usize, width: usize) -> Self {
        // An odd number of cache lines: the planes of sixteen channels are read together, and must not share cache sets.
        let lines = (height * width).div_ceil(16) | 1;
        Self { channels, phases, width, plane: 16 * lines }
    }

    /// The padded image, split by stride into `stride²` phases: pixel (y, x) is of the phase (y mod stride, x mod stride).
    pub(super) fn split(g: &ConvShape) -> Self {
        let s = g.stride;
        // At least the rows and columns that a tap reads, whatever the input's size.
        let extent = |n: usize, on: usize| (n + 2 * g.padding).div_ceil(s).max(on + (g.k - 1) / s);
        Self::new(g.ci, s, extent(g.h, g.oh), extent(g.w, g.ow))
    }

    /// For each channel and tap the pixels that it reads, one per output.
    pub(super) fn taps(g: &ConvShape) -> Self {
        Self::new(g.ci * g.k * g.k, 1, g.oh, g.ow)
    }

    /// The output's gradient behind `margin` rows and columns of zeros, with zeros behind it for the input's last pixels.
    pub(super) fn with_margin(g: &ConvShape, margin: usize) -> Self {
        let extent = |n: usize, on: usize| margin + on.max((n + g.padding).div_ceil(g.stride) + 1);
        Self::new(g.co, 1, extent(g.h, g.oh), extent(g.w, g.ow))
    }

    /// Interleaved planes per phase: whole steps of two channels each.
    pub(super) fn pairs(&self) -> usize {
        self.channels.next_multiple_of(STEP) / 2
    }

    /// Offset in the interleaved planes of the pixel that each tap (dy, dx) of the first output reads in the first channels.
    pub(super) fn tap_offsets(&self, g: &ConvShape) -> Vec<usize> {
        self.offsets_of(g, self.pairs())
    }

    /// The same where a phase has `count` planes.
    pub(super) fn offsets_of(&self, g: &ConvShape, count: usize) -> Vec<usize> {
        let s = self.phases;
        let offset = |tap: usize| {
            let (dy, dx) = (tap / g.k, tap % g.k);
            (dy % s * s + dx % s) * count * self.plane + dy / s * self.width + dx / s
        };
        (0..g.k * g.k).map(offset).collect()
    }

    /// Calls `f` with zeros for the interleaved planes.
    pub(super) fn with_pairs<R>(&self, f: impl FnOnce(&mut [u32]) -> R) -> R {
        with_u32(self.phases * self.phases * self.pairs() * self.plane + SLACK, |source| {
            source.fill(0);
            f(source)
        })
    }

    /// Calls `f` with zeros for planes of single numbers, `channels` per phase rounded up to sixteen.
    pub(super) fn with_single<R>(&self, f: impl FnOnce(&mut [u16]) -> R) -> R {
        let len = self.phases * self.phases * self.channels.next_multiple_of(16) * self.plane + SLACK;
        with_u32(len.div_ceil(2), |source| {
            source.fill(0);
            // SAFETY: a pair is two numbers; the borrow is exclusive.
            f(unsafe { std::slice::from_raw_parts_mut(source.as_mut_ptr().cast(), len) })
        })
    }

    /// Calls `f` for each phase that has pixels of an image's row: with the first of them, and its place in the phase's first plane. A phase has `count`
    /// planes.
    fn each_part(&self, g: &ConvShape, count: usize, row: usize, mut f: impl FnMut(usize, usize)) {
        let (s, y) = (self.phases, row + g.padding);
        for first in 0..s.min(g.w) {
            let x = first + g.padding;
            f(first, (y % s * s + x % s) * count * self.plane + y / s * self.width + x / s);
        }
    }

    /// Pixels `first, first + stride, …` of an image's row; in `room` if the stride is not 1.
    fn of_phase<'a>(&self, row: &'a [bf16], first: usize, room: &'a mut [bf16]) -> &'a [bf16] {
        match self.phases {
            1 => row,
            s => {
                copy_every(row, first, s, room);
                &room[..row.len().saturating_sub(first).div_ceil(s)]
            }
        }
    }

    /// An image `[ci, h, w]` into interleaved planes.
    pub(super) fn fill_split_pairs(&self, g: &ConvShape, image: &[bf16], to: &mut [u32]) {
        let (area, count) = (g.h * g.w, self.pairs());
        with_scratch_of(2 * g.w, |room| {
            let (a, b) = room.split_at_mut(g.w);
            for (pair, channels) in image.chunks(2 * area).enumerate() {
                let (one, two) = channels.split_at(area.min(channels.len()));
                for row in 0..g.h {
                    let pixels = row * g.w..(row + 1) * g.w;
                    self.each_part(g, count, row, |first, place| {
                        let a = self.of_phase(&one[pixels.clone()], first, a);
                        let b = two.get(pixels.clone()).map_or(&[][..], |two| self.of_phase(two, first, b));
                        // SAFETY: `applies` says that the processor has the instructions.
                        unsafe { pack::pairs(a, b, &mut to[place + pair * self.plane..][..a.len()]) };
                    });
                }
            }
        });
    }

    /// An image `[ci, h, w]` into planes of single numbers.
    pub(super) fn fill_split(&self, g: &ConvShape, image: &[bf16], to: &mut [u16]) {
        let count = self.channels.next_multiple_of(16);
        with_scratch_of(g.w, |room| {
            for (line, values) in image.chunks_exact(g.w).enumerate() {
                let (channel, row) = (line / g.h, line % g.h);
                self.each_part(g, count, row, |first, place| {
                    let values = self.of_phase(values, first, room);
                    // SAFETY: `applies` says that the processor has the instructions.
                    unsafe { pack::row(values, &mut to[place + channel * self.plane..][..values.len()]) };
                });
            }
        });
    }

    /// The pixels that the tap `k` (channel, dy, dx) reads for a row of outputs.
    fn tap_row(g: &ConvShape, image: &[bf16], k: usize, oy: usize, to: &mut [bf16]) {
        let (channel, dy, dx) = (k / (g.k * g.k), k / g.k % g.k, k % g.k);
        to.fill(bf16::ZERO);
        let y = oy * g.stride + dy;
        // The first output that reads a pixel rather than padding, and that pixel.
        let start = g.padding.saturating_sub(dx).div_ceil(g.stride);
        let first = start * g.stride + dx - g.padding;
        if y < g.padding || y >= g.h + g.padding || start >= g.ow || first >= g.w {
            return;
        }
        let line = &image[(channel * g.h + y - g.padding) * g.w..][..g.w];
        let n = (g.w - first).div_ceil(g.stride).min(g.ow - start);
        copy_every(&line[first..first + (n - 1) * g.stride + 1], 0, g.stride, &mut to[start..start + n]);
    }

    /// An image `[ci, h, w]` into interleaved planes of a channel and tap each.
    pub(super) fn fill_tap_pairs(&self, g: &ConvShape, image: &[bf16], to: &mut [u32]) {
        with_scratch_of(2 * g.ow, |rows| {
            let (a, b) = rows.split_at_mut(g.ow);
            for k in (0..self.channels).step_by(2) {
                for oy in 0..g.oh {
                    Self::tap_row(g, image, k, oy, a);
                    if k + 1 < self.channels {
                        Self::tap_row(g, image, k + 1, oy, b)
                    } else {
                        b.fill(bf16::ZERO)
                    }
                    // SAFETY: `applies` says that the processor has the instructions.
                    unsafe { pack::pairs(a, b, &mut to[k / 2 * self.plane + oy * g.ow..]) };
                }
            }
        });
    }

    /// An image `[ci, h, w]` into planes of single numbers of a channel and tap each.
    pub(super) fn fill_taps(&self, g: &ConvShape, image: &[bf16], to: &mut [u16]) {
        with_scratch_of(g.ow, |row| {
            for k in 0..self.channels {
                for oy in 0..g.oh {
                    Self::tap_row(g, image, k, oy, row);
                    // SAFETY: as above.
                    unsafe { pack::row(row, &mut to[k * self.plane + oy * g.ow..]) };
                }
            }
        });
    }

    /// The output's gradient `[co, oh, ow]` into interleaved planes.
    pub(super) fn fill_margin_pairs(&self, g: &ConvShape, grad: &[bf16], margin: usize, to: &mut [u32]) {
        let area = g.oh * g.ow;
        for (pair, channels) in grad.chunks(2 * area).enumerate() {
            for oy in 0..g.oh {
                let row = |channel: usize| channels.get(channel * area + oy * g.ow..channel * area + (oy + 1) * g.ow);
                let to = &mut to[pair * self.plane + (margin + oy) * self.width + margin..];
                // SAFETY: as above.
                unsafe { pack::pairs(row(0).unwrap_or_default(), row(1).unwrap_or_default(), to) };
            }
        }
    }
}
