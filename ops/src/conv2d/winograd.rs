//! Convolution 3×3 with stride 1 and padding 1 by Winograd's F(4×4, 3×3) (Lavin and Gray 2015, "Fast algorithms for convolutional neural networks"),
//! forward and both backwards, for x86-64 with AVX2.
//!
//! The output is cut into tiles of 4×4 pixels, each of which depends on 6×6 pixels of the input. These and the kernel are transformed to 36
//! points, where the convolution is a product, so that 36 matrix products over the channels take a quarter of the direct sum's multiplications.
//!
//! - Forward: transform a block of tiles `V[point][tile][ci]`, `M[point] = V[point]·U[point]`, transform back. A block is a few rows of tiles,
//!   so that `V` and `M` stay in the thread's caches.
//! - Backward to the input: the same with the kernel turned by 180° and its axes swapped.
//! - Backward to the weight: `dU[point] = Σ_tiles dM[point]ᵀ·V[point]`, with `dM` from the gradient's 4×4 pixels, then the kernel's transform transposed.
//!
//! Transforms work on eight channels at a time. Compared with float64 the error is about 1e-6 of the result's norm at 64 to 256 channels (3e-7
//! for the direct sum), one tenth of the golden tests' tolerance.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::shape::ConvShape;
use super::transform::{self, LANES};
use crate::cpu::{SendPtr, filled_vec, with_scratch};
use crate::matmul::register_block::{COLUMNS, Left, Panels, Target, available, product};

/// Pixels of a tile along an axis.
const TILE: usize = 4;
/// Pixels of the input that a tile needs along an axis.
const WINDOW: usize = 6;
/// Transformed points of a tile.
const POINTS: usize = WINDOW * WINDOW;
/// Approximate number of tiles in a block of the forward pass.
const BLOCK_TILES: usize = 42;
/// Floats of transformed tiles that the weight's gradient holds at a time: 12 MiB, to stay in a third-level cache.
const WEIGHT_FLOATS: usize = 3 << 20;
/// Tiles that one product of the weights' gradient sums over: a panel of both factors fits the first-level cache.
const WEIGHT_TILES: usize = 256;
/// Extra floats between the matrices of two points, so that they do not share cache sets.
const SKEW: usize = 16;

/// Whether this path computes the convolution.
pub(super) fn applies(g: &ConvShape) -> bool {
    (g.k, g.stride, g.padding) == (3, 1, 1) && g.ci.is_multiple_of(COLUMNS) && g.co.is_multiple_of(COLUMNS) && available()
}

/// `[b, co, h, w]`.
pub(super) fn forward(g: &ConvShape, x: &[f32], weight: &[f32]) -> Vec<f32> {
    assert!(applies(g) && weight.len() == g.weight_len());
    let pass = Pass { b: g.b, ci: g.ci, co: g.co, h: g.h, w: g.w };
    let at = |o: usize, i: usize, tap: usize| weight[(o * g.ci + i) * 9 + tap];
    // SAFETY: `applies` says that the processor has AVX2 and FMA.
    unsafe { pass.convolve(x, at) }
}

/// The gradient of the input, `[b, ci, h, w]`.
pub(super) fn backward_data(g: &ConvShape, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    assert!(applies(g) && weight.len() == g.weight_len());
    let pass = Pass { b: g.b, ci: g.co, co: g.ci, h: g.h, w: g.w };
    let at = |o: usize, i: usize, tap: usize| weight[(i * g.ci + o) * 9 + (8 - tap)];
    // SAFETY: as above.
    unsafe { pass.convolve(grad, at) }
}

/// The gradient of the weight, `[co, ci, 3, 3]`.
pub(super) fn backward_weight(g: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    assert!(applies(g));
    let pass = Pass { b: g.b, ci: g.ci, co: g.co, h: g.h, w: g.w };
    assert!(x.len() == pass.len(pass.ci) && grad.len() == pass.len(pass.co));
    // SAFETY: as above.
    unsafe { pass.weight_gradient(x, grad) }
}

/// One convolution `[b, ci, h, w]` → `[b, co, h, w]`.
#[derive(Clone, Copy)]
struct Pass {
    b: usize,
    ci: usize,
    co: usize,
    h: usize,
    w: usize,
}

/// Memory of the transformed points of a row of tiles.
#[derive(Clone, Copy)]
struct Points {
    /// The first point of the first tile, for eight channels.
    data: *mut f32,
    /// Floats from one point to the next.
    point: usize,
    /// Floats from one tile to the next.
    tile: usize,
}

impl Pass {
    fn len(&self, channels: usize) -> usize {
        self.b * channels * self.h * self.w
    }

    /// Tiles in a row.
    fn columns(&self) -> usize {
        self.w.div_ceil(TILE)
    }

    /// Rows of tiles of all images.
    fn rows(&self) -> usize {
        self.b * self.h.div_ceil(TILE)
    }

    /// Image and first pixel row of a row of tiles.
    fn position(&self, row: usize) -> (usize, usize) {
        let rows = self.h.div_ceil(TILE);
        (row / rows, row % rows * TILE)
    }

    /// Scratch floats for transforming a row of tiles.
    fn row_scratch(&self) -> usize {
        2 * WINDOW * (TILE * self.columns() + 2) * LANES
    }

    /// The forward pass; `weight(o, i, tap)` is the kernel.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    unsafe fn convolve(&self, x: &[f32], weight: impl Fn(usize, usize, usize) -> f32 + Sync) -> Vec<f32> {
        let Pass { ci, co, .. } = *self;
        assert_eq!(x.len(), self.len(ci));
        let (rows, columns) = (self.rows(), self.columns());
        let block_rows = (BLOCK_TILES / columns.max(1)).clamp(1, rows.max(1));
        let tiles = block_rows * columns;
        let (v_point, m_point) = (tiles * ci + SKEW, tiles * co + SKEW);
        with_scratch(POINTS * ci * co, |u| {
            u.par_chunks_mut(POINTS * ci * COLUMNS).enumerate().for_each(|(o, u)| {
                // SAFETY: the features are there by the caller's promise; `u` has the group's points.
                unsafe { transform_kernel(ci, |lane, i, tap| weight(o * COLUMNS + lane, i, tap), u) }
            });
            let u = &*u;
            // SAFETY: each row of tiles is written by one block, whole, and together they are all pixels.
            unsafe {
                filled_vec(self.len(co), |out| {
                    (0..rows.div_ceil(block_rows)).into_par_iter().for_each(|index| {
                        let first = index * block_rows;
                        let count = block_rows.min(rows - first);
                        with_scratch(POINTS * (v_point + m_point) + self.row_scratch(), |scratch| {
                            let (v, rest) = scratch.split_at_mut(POINTS * v_point);
                            let (m, row_scratch) = rest.split_at_mut(POINTS * m_point);
                            for c in (0..ci).step_by(LANES) {
                                for r in 0..count {
                                    let data = v.as_mut_ptr().add(r * columns * ci + c);
                                    let target = Points { data, point: v_point, tile: ci };
                                    self.transform_input(x, (first + r, c), target, row_scratch);
                                }
                            }
                            self.multiply(count * columns, u, (v, v_point), (m, m_point));
                            for c in (0..co).step_by(LANES) {
                                for r in 0..count {
                                    let data = m.as_mut_ptr().add(r * columns * co + c);
                                    let source = Points { data, point: m_point, tile: co };
                                    self.transform_output(source, (first + r, c), out, row_scratch);
                                }
                            }
                        });
                    });
                })
            }
        })
    }

    /// `M[point][tile][co] = V[point][tile][ci]·U[point][ci][co]` of some tiles.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    unsafe fn multiply(&self, tiles: usize, u: &[f32], (v, v_point): (&[f32], usize), (m, m_point): (&mut [f32], usize)) {
        let Pass { ci, co, .. } = *self;
        for point in 0..POINTS {
            let a = Left { data: v[point * v_point..][..tiles * ci].as_ptr(), row_stride: ci, k_stride: 1 };
            let b = Panels { data: u[point * ci * COLUMNS..].as_ptr(), stride: POINTS * ci * COLUMNS, count: co / COLUMNS };
            let data = m[point * m_point..][..tiles * co].as_mut_ptr();
            // SAFETY: the caller's promise; `u` has `ci` rows for each group of channels and point.
            unsafe { product(ci, (a, tiles), b, Target { data, stride: co, accumulate: false }) };
        }
    }

    /// The gradient of the weight.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    unsafe fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let Pass { ci, co, .. } = *self;
        let (rows, columns) = (self.rows(), self.columns());
        let part_rows = (WEIGHT_FLOATS / (POINTS * (ci + co) * columns).max(1)).clamp(1, rows.max(1));
        let tiles = part_rows * columns;
        let (v_point, m_point) = (tiles * ci + SKEW, tiles * co + SKEW);
        if rows * columns == 0 {
            return vec![0.0; co * ci * 9];
        }
        let mut out = vec![0.0f32; co * ci * 9];
        with_scratch(POINTS * (v_point + m_point + co * ci), |scratch| {
            let (v, rest) = scratch.split_at_mut(POINTS * v_point);
            let (m, du) = rest.split_at_mut(POINTS * m_point);
            let (v_ptr, m_ptr) = (SendPtr::new(v.as_mut_ptr()), SendPtr::new(m.as_mut_ptr()));
            for first in (0..rows).step_by(part_rows) {
                let count = part_rows.min(rows - first);
                // V[point][ci/16][tile][16] and dM[point][co/8][tile][8], by groups of eight channels.
                (0..(ci + co) / LANES).into_par_iter().for_each(|group| {
                    with_scratch(self.row_scratch(), |row_scratch| {
                        for r in 0..count {
                            // SAFETY: each group of channels has its own elements of `v` or `m`.
                            unsafe {
                                if group < ci / LANES {
                                    let c = group * LANES;
                                    let start = c / COLUMNS * tiles * COLUMNS + r * columns * COLUMNS + c % COLUMNS;
                                    let target = Points { data: v_ptr.add(start), point: v_point, tile: COLUMNS };
                                    self.transform_input(x, (first + r, c), target, row_scratch);
                                } else {
                                    let c = (group - ci / LANES) * LANES;
                                    let start = (c * tiles) + r * columns * LANES;
                                    let target = Points { data: m_ptr.add(start), point: m_point, tile: LANES };
                                    self.transform_gradient(grad, (first + r, c), target, row_scratch);
                                }
                            }
                        }
                    });
                });
                let (v, m) = (&*v, &*m);
                du.par_chunks_mut(co * ci).enumerate().for_each(|(point, du)| {
                    let (v, m) = (&v[point * v_point..][..v_point], &m[point * m_point..][..m_point]);
                    // SAFETY: the processor has AVX2 and FMA; the point's panels have `tiles` tiles, `du` a number for each pair of channels.
                    unsafe { self.add_products((count * columns, tiles), v, m, du, first > 0) };
                });
            }
            let du = &*du;
            out.par_chunks_mut(ci * 9).enumerate().for_each(|(o, out)| {
                for i in (0..ci).step_by(LANES) {
                    // SAFETY: `du` has eight elements of each point there, and `out` eight kernels.
                    unsafe { transform_kernel_gradient(&du[o * ci + i..], co * ci, &mut out[i * 9..(i + LANES) * 9]) };
                }
            });
        });
        out
    }

    /// `dU[co][ci] = Σ_tile dM[tile][co]·V[tile][ci]` of one point over the first `count` of `tiles` tiles, added to what is there or not.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `v` is `[ci/16][tiles][16]`, `m` `[co/8][tiles][8]`, `du` `[co][ci]`.
    unsafe fn add_products(&self, (count, tiles): (usize, usize), v: &[f32], m: &[f32], du: &mut [f32], add: bool) {
        let Pass { ci, co, .. } = *self;
        for start in (0..count).step_by(WEIGHT_TILES) {
            let k = WEIGHT_TILES.min(count - start);
            let b = Panels { data: v[start * COLUMNS..].as_ptr(), stride: tiles * COLUMNS, count: ci / COLUMNS };
            for panel in (0..b.count).step_by(2) {
                let b = b.part(panel, 2);
                for o in (0..co).step_by(LANES) {
                    let a = Left { data: m[o * tiles + start * LANES..].as_ptr(), row_stride: 1, k_stride: LANES };
                    let data = du[o * ci + panel * COLUMNS..].as_mut_ptr();
                    // SAFETY: the panels have `k` tiles from `start` on, `du` has eight rows from `o` on.
                    unsafe { product(k, (a, LANES), b, Target { data, stride: ci, accumulate: add || start > 0 }) };
                }
            }
        }
    }

    /// A row of tiles of eight channels of the input, transformed.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `row` is a row of tiles, `c` the first of eight channels of `ci`; `target` has the row's points, `scratch` `row_scratch()` floats.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn transform_input(&self, x: &[f32], (row, c): (usize, usize), target: Points, scratch: &mut [f32]) {
        let Pass { ci, h, w, .. } = *self;
        let (image, top) = self.position(row);
        let columns = self.columns();
        let width = TILE * columns + 2;
        let (pixels, points) = scratch.split_at_mut(WINDOW * width * LANES);
        for dy in 0..WINDOW {
            let line = &mut pixels[dy * width * LANES..][..width * LANES];
            // Input row top + dy - 1, from column -1 on.
            if (1..=h).contains(&(top + dy)) {
                line[..LANES].fill(0.0);
                line[(w + 1) * LANES..].fill(0.0);
                let from = &x[((image * ci + c) * h + top + dy - 1) * w..];
                // SAFETY: eight planes follow from `c` on, and `line` has `w` pixels after the first.
                unsafe { transform::gather_row(from.as_ptr(), h * w, w, line[LANES..].as_mut_ptr(), LANES) };
            } else {
                line.fill(0.0);
            }
        }
        let (pixels, points) = (pixels.as_ptr(), points.as_mut_ptr());
        // SAFETY: `pixels` and `points` hold 6·width vectors each, `target` the row's points.
        unsafe {
            for column in 0..width {
                let d = transform::input(std::array::from_fn(|dy| _mm256_loadu_ps(pixels.add((dy * width + column) * LANES))));
                for (i, d) in d.into_iter().enumerate() {
                    _mm256_storeu_ps(points.add((column * WINDOW + i) * LANES), d);
                }
            }
            for tile in 0..columns {
                for i in 0..WINDOW {
                    let d = std::array::from_fn(|dx| _mm256_loadu_ps(points.add(((tile * TILE + dx) * WINDOW + i) * LANES)));
                    for (j, d) in transform::input(d).into_iter().enumerate() {
                        _mm256_storeu_ps(target.data.add((i * WINDOW + j) * target.point + tile * target.tile), d);
                    }
                }
            }
        }
    }

    /// A row of tiles of eight channels of the output's gradient, transformed.
    ///
    /// # Safety
    /// As for [`Self::transform_input`], with `c` a channel of `co`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn transform_gradient(&self, grad: &[f32], (row, c): (usize, usize), target: Points, scratch: &mut [f32]) {
        let Pass { co, h, w, .. } = *self;
        let (image, top) = self.position(row);
        let columns = self.columns();
        let width = TILE * columns;
        for dy in 0..TILE {
            let line = &mut scratch[dy * width * LANES..][..width * LANES];
            if top + dy < h {
                line[w * LANES..].fill(0.0);
                let from = &grad[((image * co + c) * h + top + dy) * w..];
                // SAFETY: eight planes follow from `c` on, and `line` has `w` pixels.
                unsafe { transform::gather_row(from.as_ptr(), h * w, w, line.as_mut_ptr(), LANES) };
            } else {
                line.fill(0.0);
            }
        }
        let pixels = scratch.as_ptr();
        // SAFETY: `pixels` holds 4·width vectors, `target` the row's points.
        unsafe {
            for tile in 0..columns {
                let mut half = [[_mm256_setzero_ps(); TILE]; WINDOW];
                for dx in 0..TILE {
                    let load = |dy: usize| _mm256_loadu_ps(pixels.add((dy * width + tile * TILE + dx) * LANES));
                    for (half, y) in half.iter_mut().zip(transform::output_transposed(std::array::from_fn(load))) {
                        half[dx] = y;
                    }
                }
                for (i, half) in half.into_iter().enumerate() {
                    for (j, y) in transform::output_transposed(half).into_iter().enumerate() {
                        _mm256_storeu_ps(target.data.add((i * WINDOW + j) * target.point + tile * target.tile), y);
                    }
                }
            }
        }
    }

    /// A row of tiles of eight channels of the output, transformed back and written to `out`.
    ///
    /// # Safety
    /// As for [`Self::transform_input`], with `c` a channel of `co`; `out` is `[b, co, h, w]` and these rows of these channels belong to this thread.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn transform_output(&self, source: Points, (row, c): (usize, usize), out: SendPtr, scratch: &mut [f32]) {
        let Pass { co, h, w, .. } = *self;
        let (image, top) = self.position(row);
        let columns = self.columns();
        let width = TILE * columns;
        let pixels = scratch.as_mut_ptr();
        // SAFETY: `pixels` holds 4·width vectors, `source` the row's points, and `out` the rows from `top` on that lie within `h`.
        unsafe {
            for tile in 0..columns {
                let mut half = [[_mm256_setzero_ps(); WINDOW]; TILE];
                for j in 0..WINDOW {
                    let load = |i: usize| _mm256_loadu_ps(source.data.add((i * WINDOW + j) * source.point + tile * source.tile));
                    for (half, m) in half.iter_mut().zip(transform::output(std::array::from_fn(load))) {
                        half[j] = m;
                    }
                }
                for (dy, half) in half.into_iter().enumerate() {
                    for (dx, y) in transform::output(half).into_iter().enumerate() {
                        _mm256_storeu_ps(pixels.add((dy * width + tile * TILE + dx) * LANES), y);
                    }
                }
            }
            for dy in 0..TILE.min(h - top) {
                let to = out.add(((image * co + c) * h + top + dy) * w);
                transform::scatter_row(pixels.add(dy * width * LANES), w, to, h * w);
            }
        }
    }
}

/// The transformed kernels of sixteen outputs, `[point][ci][16]`; `weight(lane, i, tap)` is the kernel.
///
/// # Safety
/// The processor has AVX2 and FMA; `u` has `36·ci·16` floats.
#[target_feature(enable = "avx2,fma")]
unsafe fn transform_kernel(ci: usize, weight: impl Fn(usize, usize, usize) -> f32, u: &mut [f32]) {
    for i in 0..ci {
        for lanes in [0, LANES] {
            let mut taps = [[0.0f32; LANES]; 9];
            for (tap, values) in taps.iter_mut().enumerate() {
                for (lane, value) in values.iter_mut().enumerate() {
                    *value = weight(lanes + lane, i, tap);
                }
            }
            // SAFETY: an array of eight floats is a vector.
            let load = |tap: usize| unsafe { _mm256_loadu_ps(taps[tap].as_ptr()) };
            let mut half = [[_mm256_setzero_ps(); 3]; WINDOW];
            for dx in 0..3 {
                for (half, g) in half.iter_mut().zip(transform::kernel([load(dx), load(3 + dx), load(6 + dx)])) {
                    half[dx] = g;
                }
            }
            for (p, half) in half.into_iter().enumerate() {
                for (q, g) in transform::kernel(half).into_iter().enumerate() {
                    let to = &mut u[((p * WINDOW + q) * ci + i) * COLUMNS + lanes..][..LANES];
                    // SAFETY: `to` has eight floats.
                    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), g) };
                }
            }
        }
    }
}

/// The gradient of eight kernels, `[8][9]`, from that of their points, which are `point` floats apart.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn transform_kernel_gradient(du: &[f32], point: usize, out: &mut [f32]) {
    // SAFETY: the slice has eight floats.
    let load = |p: usize| unsafe { _mm256_loadu_ps(du[p * point..][..LANES].as_ptr()) };
    let mut half = [[_mm256_setzero_ps(); WINDOW]; 3];
    for q in 0..WINDOW {
        for (half, g) in half.iter_mut().zip(transform::kernel_transposed(std::array::from_fn(|p| load(p * WINDOW + q)))) {
            half[q] = g;
        }
    }
    for (dy, half) in half.into_iter().enumerate() {
        for (dx, g) in transform::kernel_transposed(half).into_iter().enumerate() {
            let mut lanes = [0.0f32; LANES];
            // SAFETY: an array of eight floats is a vector.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), g) };
            for (lane, value) in lanes.into_iter().enumerate() {
                out[lane * 9 + dy * 3 + dx] = value;
            }
        }
    }
}
