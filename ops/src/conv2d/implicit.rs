//! Convolution with any kernel and stride as matrix products that read the pixels in place, for x86-64 with AVX2.
//!
//! An image is copied once, padded, and split by stride: for stride 2 into four planes per channel, of every second row and column. In these
//! planes, the pixels that a tap reads along a row of outputs are contiguous. So row `k = (channel, tap)` of the im2col matrix is the memory
//! from an offset on, and the matrix is never made. Rows of outputs have the planes' width; the few surplus columns are computed and dropped.
//!
//! - Forward: `out[co][pixel] = Σ_k W[co][k]·plane[offset(k) + pixel]`.
//! - Backward to the input: the input's pixels of one residue modulo the stride are such a product of the padded gradient with their taps.
//! - Backward to the weight: `dW[k][co] = Σ_pixel plane[offset(k) + pixel]·grad[pixel][co]`, with the gradient transposed in groups of sixteen channels.

use std::ops::Range;

use rayon::prelude::*;

use super::shape::ConvShape;
use super::transform::{LANES, gather_row};
use super::weight_sum::weight_of_parts;
use crate::cpu::activation::Activation;
use crate::cpu::simd::multiversion;
use crate::cpu::{SendPtr, filled_vec, with_scratch};
use crate::matmul::register_block::{COLUMNS, Panels, ROWS, Target, available, product_from_offsets, product_of_runs};

/// Terms of one product: a panel of both factors fits the first-level cache.
const TERMS: usize = 192;
/// Maximal number of pixels in a strip (rows of outputs that are computed together).
const STRIP: usize = 256;
/// Floats past the end of the planes that a block of columns may read.
const SLACK: usize = 2 * COLUMNS;
/// Maximal number of groups of images for the weight's gradient; fixed, so that the sum's order does not depend on the threads.
const PARTS: usize = 8;

/// Whether this path computes the convolution.
pub(super) fn applies(g: &ConvShape) -> bool {
    (g.k - 1) / g.stride <= SLACK && available()
}

/// Planes of `channels` images, each `height × width`, one after another.
#[derive(Clone, Copy)]
struct Planes {
    channels: usize,
    height: usize,
    width: usize,
}

impl Planes {
    fn plane(&self) -> usize {
        self.height * self.width
    }

    fn len(&self) -> usize {
        self.channels * self.plane() + SLACK
    }
}

impl ConvShape {
    /// The planes of one padded image, split by stride: plane `(c·s + y mod s)·s + x mod s`.
    fn split_planes(&self) -> Planes {
        let s = self.stride;
        // At least the rows and columns that a tap reads, whatever the input's size.
        let extent = |n: usize, on: usize| (n + 2 * self.padding).div_ceil(s).max(on + (self.k - 1) / s);
        Planes { channels: self.ci * s * s, height: extent(self.h, self.oh), width: extent(self.w, self.ow) }
    }

    /// Copies an image `[ci, h, w]` to its planes.
    fn split(&self, image: &[f32], planes: &Planes, out: &mut [f32]) {
        let s = self.stride;
        out.fill(0.0);
        for (row, line) in image.chunks_exact(self.w.max(1)).enumerate() {
            let (c, y) = (row / self.h, row % self.h + self.padding);
            for phase in 0..s.min(self.w) {
                // Columns phase, phase + s, … of the image are columns of one plane.
                let x = phase + self.padding;
                let plane = (c * s + y % s) * s + x % s;
                let out = &mut out[plane * planes.plane() + (y / s) * planes.width + x / s..];
                copy_every(line, phase, s, out);
            }
        }
    }

    /// Offset in the planes of the pixel that each tap `(channel, dy, dx)` of the first output reads.
    fn tap_offsets(&self, planes: &Planes) -> Vec<usize> {
        let (s, k) = (self.stride, self.k);
        (0..self.ci * k * k)
            .map(|tap| {
                let (c, dy, dx) = (tap / (k * k), tap / k % k, tap % k);
                ((c * s + dy % s) * s + dx % s) * planes.plane() + dy / s * planes.width + dx / s
            })
            .collect()
    }
}

multiversion! {
    /// Copies elements `first, first + step, …` of `from` to the start of `to`.
    pub(super) fn copy_every<T: Activation>(from: &[T], first: usize, step: usize, to: &mut [T]) {
        match step {
            1 => to[..from.len()].copy_from_slice(from),
            2 => {
                let pairs = from.chunks_exact(2);
                let rest = pairs.remainder();
                let n = pairs.len();
                for (to, pair) in to.iter_mut().zip(pairs) {
                    *to = pair[first];
                }
                if first < rest.len() {
                    to[n] = rest[first];
                }
            }
            _ => {
                for (to, from) in to.iter_mut().zip(from[first..].iter().step_by(step)) {
                    *to = *from;
                }
            }
        }
    }
}

/// A product of a packed matrix with rows of pixels: `out[row][pixel] = Σ_k left[row][k]·source[offsets[k] + pixel]`.
struct Product {
    /// `[rows/6][k][6]`, padded with zeros.
    left: Vec<f32>,
    rows: usize,
    offsets: Vec<usize>,
}

impl Product {
    fn new(rows: usize, offsets: Vec<usize>, left: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let terms = offsets.len();
        let mut packed = vec![0.0; rows.div_ceil(ROWS) * terms * ROWS];
        packed.par_chunks_mut((terms * ROWS).max(1)).enumerate().for_each(|(group, packed)| {
            for lane in 0..ROWS.min(rows - group * ROWS) {
                for k in 0..terms {
                    packed[k * ROWS + lane] = left(group * ROWS + lane, k);
                }
            }
        });
        Self { left: packed, rows, offsets }
    }

    /// Rows of the result, including those of zeros.
    fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(ROWS)
    }

    /// Computes `pixels` columns (a multiple of sixteen) from `source` on into `out`, `[padded_rows][pixels]`.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `source` has `pixels` floats from each offset on.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn compute(&self, source: *const f32, pixels: usize, out: &mut [f32]) {
        assert!(pixels.is_multiple_of(COLUMNS) && out.len() == self.padded_rows() * pixels);
        let terms = self.offsets.len();
        for start in (0..terms).step_by(TERMS) {
            let offsets = &self.offsets[start..terms.min(start + TERMS)];
            let left = (self.left[start * ROWS..].as_ptr(), terms * ROWS, self.padded_rows() / ROWS);
            let target = Target { data: out.as_mut_ptr(), stride: pixels, accumulate: start > 0 };
            // SAFETY: `left` has `terms` terms of each group, `out` all elements; the rest is the caller's promise.
            unsafe { product_from_offsets(left, source, offsets, pixels, target) };
        }
    }
}

/// Rows of outputs per strip: as many as fit, with the least waste in whole blocks.
fn strip_rows(rows: usize, columns: usize, width: usize) -> usize {
    let blocks = |n: usize| ((n - 1) * width + columns).div_ceil(COLUMNS);
    (1..=rows.max(1))
        .take_while(|n| *n == 1 || blocks(*n) * COLUMNS <= STRIP)
        .min_by_key(|n| (blocks(*n) * 10_000 / (n * columns.max(1)), usize::MAX - n))
        .unwrap_or(1)
}

/// Calls `f` for each of `0..n`, on several threads unless there are already enough tasks.
fn for_each_strip(n: usize, images: usize, f: impl Fn(usize) + Sync + Send) {
    if images >= rayon::current_num_threads() { (0..n).for_each(f) } else { (0..n).into_par_iter().for_each(f) }
}

/// `[b, co, oh, ow]`.
pub(super) fn forward(g: &ConvShape, x: &[f32], weight: &[f32]) -> Vec<f32> {
    assert!(applies(g) && x.len() == g.input_len() && weight.len() == g.weight_len());
    let (image, planes) = (g.ci * g.h * g.w, g.split_planes());
    let offsets = g.tap_offsets(&planes);
    let terms = offsets.len();
    let product = Product::new(g.co, offsets, |o, k| weight[o * terms + k]);
    let strip = strip_rows(g.oh, g.ow, planes.width);
    // SAFETY: each image's strips are written by one task each, whole.
    unsafe {
        filled_vec(g.output_len(), |out| {
            (0..g.b).into_par_iter().for_each(|i| {
                with_scratch(planes.len(), |source| {
                    g.split(&x[i * image..][..image], &planes, source);
                    let source = &*source;
                    for_each_strip(g.oh.div_ceil(strip), g.b, |s| {
                        let rows = s * strip..g.oh.min((s + 1) * strip);
                        let pixels = ((rows.len() - 1) * planes.width + g.ow).next_multiple_of(COLUMNS);
                        with_scratch(product.padded_rows() * pixels, |result| {
                            product.compute(source[rows.start * planes.width..].as_ptr(), pixels, result);
                            for o in 0..g.co {
                                for (r, oy) in rows.clone().enumerate() {
                                    let to = out.slice(((i * g.co + o) * g.oh + oy) * g.ow, g.ow);
                                    to.copy_from_slice(&result[o * pixels + r * planes.width..][..g.ow]);
                                }
                            }
                        });
                    });
                });
            });
        })
    }
}

/// The input's pixels of one residue modulo the stride, along one axis.
pub(super) struct Residue {
    /// Taps that read these pixels: `tap, tap + stride, …`, `taps` of them.
    pub(super) tap: usize,
    pub(super) taps: usize,
    /// The output whose first tap reads the first pixel.
    pub(super) first: usize,
    /// The pixels.
    pub(super) pixels: Range<usize>,
}

impl Residue {
    /// For the pixels `y` of `0..n` with `(y + padding) mod stride = tap`.
    pub(super) fn new(g: &ConvShape, tap: usize, n: usize) -> Self {
        let first = g.padding.saturating_sub(tap).div_ceil(g.stride);
        let start = first * g.stride + tap - g.padding;
        Self { tap, taps: g.k.saturating_sub(tap).div_ceil(g.stride), first, pixels: start.min(n)..n }
    }

    /// Number of pixels.
    pub(super) fn len(&self, stride: usize) -> usize {
        self.pixels.len().div_ceil(stride)
    }
}

/// The products that give the input's gradient, for the pixels of each pair of residues that a tap reads.
fn phases(g: &ConvShape, weight: &[f32], planes: &Planes, margin: usize) -> Vec<(Residue, Residue, Option<Product>)> {
    let s = g.stride;
    let phase = |phase: usize| {
        let (y, x) = (Residue::new(g, phase / s, g.h), Residue::new(g, phase % s, g.w));
        let taps = y.taps * x.taps;
        if taps == 0 || y.len(s) == 0 || x.len(s) == 0 {
            return (y, x, None);
        }
        let split = |k: usize| (k / taps, k % taps / x.taps, k % taps % x.taps);
        let offset = |k: usize| {
            let (o, jy, jx) = split(k);
            o * planes.plane() + (margin + y.first - jy) * planes.width + margin + x.first - jx
        };
        let product = Product::new(g.ci, (0..g.co * taps).map(offset).collect(), |i, k| {
            let (o, jy, jx) = split(k);
            weight[((o * g.ci + i) * g.k + y.tap + jy * s) * g.k + x.tap + jx * s]
        });
        (y, x, Some(product))
    };
    (0..s * s).map(phase).collect()
}

/// The gradient of the input, `[b, ci, h, w]`.
pub(super) fn backward_data(g: &ConvShape, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    assert!(applies(g) && grad.len() == g.output_len() && weight.len() == g.weight_len());
    let s = g.stride;
    // The gradient with `margin` rows and columns of zeros before it, and enough after it for the last pixels.
    let margin = (g.k - 1) / s;
    let extent = |n: usize, on: usize| margin + on.max((n + g.padding).div_ceil(s) + 1);
    let planes = Planes { channels: g.co, height: extent(g.h, g.oh), width: extent(g.w, g.ow) };
    let phases = phases(g, weight, &planes, margin);
    let complete = phases.iter().all(|(_, _, product)| product.is_some());
    let fill = |out: SendPtr| {
        (0..g.b).into_par_iter().for_each(|i| {
            with_scratch(planes.len(), |source| {
                source.fill(0.0);
                let image = &grad[i * g.co * g.oh * g.ow..][..g.co * g.oh * g.ow];
                for (row, line) in image.chunks_exact(g.ow.max(1)).enumerate() {
                    let (o, oy) = (row / g.oh, row % g.oh);
                    source[o * planes.plane() + (margin + oy) * planes.width + margin..][..g.ow].copy_from_slice(line);
                }
                let source = &*source;
                if !complete {
                    // SAFETY: the image belongs to this task.
                    unsafe { out.slice(i * g.ci * g.h * g.w, g.ci * g.h * g.w) }.fill(0.0);
                }
                for (y, x, product) in &phases {
                    let Some(product) = product else { continue };
                    let (rows, columns) = (y.len(s), x.len(s));
                    let strip = strip_rows(rows, columns, planes.width);
                    for_each_strip(rows.div_ceil(strip), g.b, |index| {
                        let rows = index * strip..rows.min((index + 1) * strip);
                        let pixels = ((rows.len() - 1) * planes.width + columns).next_multiple_of(COLUMNS);
                        with_scratch(product.padded_rows() * pixels, |result| {
                            // SAFETY: `applies` says that the processor has AVX2 and FMA, the planes have slack behind them, and each pixel is
                            // written by one task.
                            unsafe {
                                product.compute(source.as_ptr().add(rows.start * planes.width), pixels, result);
                                for c in 0..g.ci {
                                    for (r, row) in rows.clone().enumerate() {
                                        let from = &result[c * pixels + r * planes.width..][..columns];
                                        let start = ((i * g.ci + c) * g.h + y.pixels.start + row * s) * g.w + x.pixels.start;
                                        let to = out.slice(start, (columns - 1) * s + 1);
                                        spread(from, s, to);
                                    }
                                }
                            }
                        });
                    });
                }
            });
        });
    };
    // SAFETY: the phases are all pixels, and where one has no taps, all pixels are cleared first.
    unsafe { filled_vec(g.input_len(), fill) }
}

/// Writes `from` to every `step`-th element of `to`.
fn spread(from: &[f32], step: usize, to: &mut [f32]) {
    for (to, from) in to.iter_mut().step_by(step).zip(from) {
        *to = *from;
    }
}

/// The gradient of the weight, `[co, ci, k, k]`.
pub(super) fn backward_weight(g: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    assert!(applies(g) && x.len() == g.input_len() && grad.len() == g.output_len());
    let planes = g.split_planes();
    let mut offsets = g.tap_offsets(&planes);
    let taps = offsets.len();
    offsets.resize(taps.next_multiple_of(ROWS), 0);
    let (groups, _) = offsets.as_chunks::<ROWS>();
    let columns = g.co.next_multiple_of(COLUMNS);
    let pixels = g.oh * planes.width;
    let part_len = offsets.len() * columns;
    let parts = g.b.clamp(1, PARTS);
    let image = g.ci * g.h * g.w;
    if g.b == 0 || pixels == 0 {
        return vec![0.0; g.weight_len()];
    }
    let of_part = |part: usize, sum: &mut [f32]| {
        with_scratch(planes.len() + columns * pixels, |scratch| {
            let (source, transposed) = scratch.split_at_mut(planes.len());
            let first = part * g.b / parts;
            for i in first..(part + 1) * g.b / parts {
                g.split(&x[i * image..][..image], &planes, source);
                transpose_gradient(g, &grad[i * g.co * g.oh * g.ow..][..g.co * g.oh * g.ow], planes.width, transposed);
                for start in (0..pixels).step_by(TERMS) {
                    let terms = TERMS.min(pixels - start);
                    let (data, stride) = (transposed[start * COLUMNS..].as_ptr(), pixels * COLUMNS);
                    let b = Panels { data, stride, count: columns / COLUMNS };
                    let target = Target { data: sum.as_mut_ptr(), stride: columns, accumulate: i > first || start > 0 };
                    // SAFETY: `applies` says that the processor has AVX2 and FMA; the planes hold all outputs' pixels from each offset on and slack
                    // behind; `sum` has all elements.
                    unsafe { product_of_runs(terms, source[start..].as_ptr(), groups, b, target) };
                }
            }
        });
    };
    // SAFETY: each part has an image, and the first one's products replace all of the part.
    let partial = unsafe {
        filled_vec(parts * part_len, |out| {
            (0..parts).into_par_iter().for_each(|part| of_part(part, out.slice(part * part_len, part_len)));
        })
    };
    weight_of_parts(&partial, part_len, columns, (g.co, &(0..taps).collect::<Vec<_>>()))
}

/// One image's gradient `[co, oh, ow]` → `[co/16][oh · width][16]`, with zeros in the columns past `ow` and in the channels past `co`.
fn transpose_gradient(g: &ConvShape, grad: &[f32], width: usize, out: &mut [f32]) {
    let (plane, pixels) = (g.oh * g.ow, g.oh * width);
    let whole = g.co.is_multiple_of(COLUMNS);
    for (group, out) in out.chunks_exact_mut(pixels * COLUMNS).enumerate() {
        if !whole {
            out.fill(0.0);
        }
        for (oy, out) in out.chunks_exact_mut(width * COLUMNS).enumerate() {
            out[g.ow * COLUMNS..].fill(0.0);
            let from = |lane: usize| &grad[(group * COLUMNS + lane) * plane + oy * g.ow..][..g.ow];
            if whole {
                for half in [0, LANES] {
                    // SAFETY: `applies` says that the processor has AVX2 and FMA; eight planes follow, and `out` has `ow` pixels of 16 floats.
                    unsafe { gather_row(from(half).as_ptr(), plane, g.ow, out[half..].as_mut_ptr(), COLUMNS) };
                }
                continue;
            }
            for lane in 0..COLUMNS.min(g.co - group * COLUMNS) {
                for (out, v) in out[lane..].iter_mut().step_by(COLUMNS).zip(from(lane)) {
                    *out = *v;
                }
            }
        }
    }
}
