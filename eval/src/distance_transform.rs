//! Exact Euclidean distances from one set of voxels to the nearest of another, on an anisotropic grid.
//!
//! A separable distance transform (Felzenszwalb and Huttenlocher 2012; Maurer et al. 2003), evaluated only at the queries. Along depth it
//! is a lookup in the sorted targets of a column. Within a plane each query first searches around itself, row by row, until nothing nearer
//! is possible. For masks that nearly agree, as most do, this takes a few lookups per voxel, whatever the scan's size. A plane that exceeds
//! its budget of lookups gets the full transform, which is linear in its pixels: the lower envelope of parabolas along each row, then a
//! search along height.

use crate::surface_voxels::Voxel;
use rayon::prelude::*;
use std::ops::Range;

/// Budget of lookups for the searches in a plane, per pixel of the plane: about the cost of its transform.
const SEARCH_BUDGET: usize = 2;

/// Squared distance, in the units of `spacing`, from each of `queries` to the nearest of `targets`, in the order of the queries.
///
/// Both lie in a box of `shape` `[d, h, w]`, in C order; `targets` must not be empty.
pub(crate) fn squared_distances(queries: &[Voxel], targets: &[Voxel], shape: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    let columns = TargetColumns::new(targets, shape);
    let planes: Vec<&[Voxel]> = queries.chunk_by(|a, b| a[0] == b[0]).collect();
    let parts: Vec<Vec<f64>> = planes
        .par_iter()
        .map_init(PlaneTransform::default, |transform, queries| {
            let plane = Plane { columns: &columns, z: queries[0][0], spacing };
            transform.squared_distances(queries, &plane)
        })
        .collect();
    parts.concat()
}

/// The targets by column, the line of voxels along depth through a pixel `[y, x]`.
struct TargetColumns {
    /// Depths of all targets, ascending within each column.
    depths: Vec<u16>,
    /// Where each column's depths start, `[h, w]` and the end.
    starts: Vec<usize>,
    /// One range per row: from the first to the last column that has targets.
    spans: Vec<Range<usize>>,
    width: usize,
}

impl TargetColumns {
    fn new(targets: &[Voxel], [_, height, width]: [usize; 3]) -> Self {
        let column = |&[_, y, x]: &Voxel| usize::from(y) * width + usize::from(x);
        let mut starts = vec![0usize; height * width + 1];
        targets.iter().for_each(|target| starts[column(target) + 1] += 1);
        let span = |counts: &[usize]| {
            let first = counts.iter().position(|&count| count > 0).unwrap_or(0);
            first..counts.iter().rposition(|&count| count > 0).map_or(first, |last| last + 1)
        };
        let spans = starts[1..].chunks_exact(width).map(span).collect();
        for column in 0..height * width {
            starts[column + 1] += starts[column];
        }
        let mut next = starts.clone();
        let mut depths = vec![0u16; targets.len()];
        for target in targets {
            let place = &mut next[column(target)];
            depths[*place] = target[0];
            *place += 1;
        }
        TargetColumns { depths, starts, spans, width }
    }

    /// Distance along depth from `[z, y, x]` to the nearest target of its column, in voxels.
    fn along_depth(&self, z: u16, y: usize, x: usize) -> Option<u16> {
        let column = y * self.width + x;
        let depths = &self.depths[self.starts[column]..self.starts[column + 1]];
        let after = depths.partition_point(|&depth| depth < z);
        let nearest = depths[after.saturating_sub(1)..].iter().take(2).map(|&depth| depth.abs_diff(z));
        nearest.min()
    }
}

/// One plane `[h, w]` of the queries.
struct Plane<'a> {
    columns: &'a TargetColumns,
    z: u16,
    spacing: [f64; 3],
}

impl Plane<'_> {
    /// Squared distance along depth from the plane to the nearest target of a column; `None` if it has none.
    fn depth_squared(&self, y: usize, x: usize) -> Option<f64> {
        self.columns.along_depth(self.z, y, x).map(|distance| (f64::from(distance) * self.spacing[0]).powi(2))
    }
}

/// Buffers of the transform of a plane `[h, w]`.
#[derive(Default)]
struct PlaneTransform {
    /// Squared distance over depth and width, `[h, w]`, in the rows that have targets at some depth.
    rows: Vec<f64>,
    /// The lower envelope of one row.
    envelope: Vec<Parabola>,
}

/// One parabola of a lower envelope.
#[derive(Clone, Copy)]
struct Parabola {
    /// Column of its vertex.
    column: usize,
    /// Height of its vertex.
    height: f64,
    /// First place at which it is the lowest, in columns.
    from: f64,
}

impl PlaneTransform {
    fn squared_distances(&mut self, queries: &[Voxel], plane: &Plane) -> Vec<f64> {
        let width = plane.columns.width;
        let pixels = plane.columns.spans.len() * width;
        let pixel = |&[_, y, x]: &Voxel| [y, x].map(usize::from);
        let mut budget = SEARCH_BUDGET * pixels;
        let mut distances: Vec<f64> = queries.iter().map_while(|query| search(plane, pixel(query), &mut budget)).collect();
        let left = &queries[distances.len()..];
        if !left.is_empty() {
            self.rows.resize(pixels, f64::INFINITY);
            for (y, row) in self.rows.chunks_exact_mut(width).enumerate() {
                row_distances(plane, y, row, &mut self.envelope);
            }
            distances.extend(left.iter().map(|query| look_along_height(&self.rows, plane, pixel(query))));
        }
        distances
    }
}

/// Visits the rows that have targets, nearest to row `y` first, each with its squared distance along height. Stops when this reaches the
/// least squared distance so far, which `visit` returns. `None` if `visit` returns `None`.
fn rows_outward(plane: &Plane, y: usize, mut visit: impl FnMut(usize, f64) -> Option<f64>) -> Option<f64> {
    let mut best = f64::INFINITY;
    let height = plane.columns.spans.len();
    for step in 0..height {
        let along_height = (step as f64 * plane.spacing[1]).powi(2);
        if along_height >= best || (step > y && y + step >= height) {
            break;
        }
        let above = y.checked_sub(step);
        let below = (step > 0 && y + step < height).then_some(y + step);
        for y in [above, below].into_iter().flatten().filter(|&y| !plane.columns.spans[y].is_empty()) {
            best = visit(y, along_height)?;
        }
    }
    Some(best)
}

/// Squared distance from a pixel `[y, x]` by searching around it; `None` if this exceeds the budget of lookups.
fn search(plane: &Plane, [y, x]: [usize; 2], budget: &mut usize) -> Option<f64> {
    let mut best = f64::INFINITY;
    rows_outward(plane, y, |y, along_height| {
        let span = &plane.columns.spans[y];
        // From the span's nearest column to its farthest.
        let nearest = span.start.saturating_sub(x).max((x + 1).saturating_sub(span.end));
        let farthest = x.saturating_sub(span.start).max((span.end - 1).saturating_sub(x));
        for aside in nearest..=farthest {
            let in_plane = along_height + (aside as f64 * plane.spacing[2]).powi(2);
            if in_plane >= best {
                break;
            }
            *budget = budget.checked_sub(1)?;
            for x in [x.checked_sub(aside), x.checked_add(aside)].into_iter().flatten().filter(|x| span.contains(x)) {
                if let Some(depth_squared) = plane.depth_squared(y, x) {
                    best = best.min(in_plane + depth_squared);
                }
            }
        }
        Some(best)
    })
}

/// Last pass: squared distance from a pixel `[y, x]`, given the squared distances over depth and width.
fn look_along_height(rows: &[f64], plane: &Plane, [y, x]: [usize; 2]) -> f64 {
    let mut best = f64::INFINITY;
    let found = rows_outward(plane, y, |y, along_height| {
        best = best.min(rows[y * plane.columns.width + x] + along_height);
        Some(best)
    });
    found.unwrap_or(f64::INFINITY)
}

/// Second pass: `row[x]` = min over columns v of the squared distance along depth at v, plus (spacing · (x - v))². Rows without targets are not changed.
fn row_distances(plane: &Plane, y: usize, row: &mut [f64], envelope: &mut Vec<Parabola>) {
    let spacing = plane.spacing[2];
    envelope.clear();
    for column in plane.columns.spans[y].clone() {
        let Some(height) = plane.depth_squared(y, column) else { continue };
        let mut from = f64::NEG_INFINITY;
        while let Some(last) = envelope.last() {
            // Where the new parabola and the last one cross.
            let run = (column - last.column) as f64;
            from = 0.5 * ((height - last.height) / (spacing * spacing * run) + (column + last.column) as f64);
            if from > last.from {
                break;
            }
            envelope.pop();
        }
        envelope.push(Parabola { column, height, from });
    }
    let Some(&first) = envelope.first() else { return };
    let (mut parabola, mut next) = (first, 1);
    for (x, value) in row.iter_mut().enumerate() {
        while next < envelope.len() && envelope[next].from <= x as f64 {
            parabola = envelope[next];
            next += 1;
        }
        *value = parabola.height + ((x as f64 - parabola.column as f64) * spacing).powi(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every query against every target.
    fn brute_force(queries: &[Voxel], targets: &[Voxel], spacing: [f64; 3]) -> Vec<f64> {
        let squared = |a: &Voxel, b: &Voxel| {
            (0..3).map(|axis| ((f64::from(a[axis]) - f64::from(b[axis])) * spacing[axis]).powi(2)).sum::<f64>()
        };
        queries.iter().map(|query| targets.iter().map(|target| squared(query, target)).fold(f64::INFINITY, f64::min)).collect()
    }

    fn assert_equal(found: &[f64], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-12 * expected.max(1.0), "{what}: {found} for {expected}");
        }
    }

    #[test]
    fn equals_brute_force_on_random_voxels() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        let shapes = [[1, 1, 1], [1, 9, 7], [6, 1, 5], [5, 8, 1], [7, 11, 13], [3, 20, 4]];
        let spacings = [[1.0, 1.0, 1.0], [5.0, 0.84, 0.91], [0.3, 2.0, 7.0]];
        for (shape, spacing) in shapes.iter().flat_map(|shape| spacings.iter().map(move |spacing| (*shape, *spacing))) {
            let [depth, height, width] = shape;
            for sparsity in [1, 3, 40] {
                let mut pick = |one_in: u64| -> Vec<Voxel> {
                    let all = (0..depth)
                        .flat_map(|z| (0..height).flat_map(move |y| (0..width).map(move |x| [z, y, x].map(|i| i as u16))));
                    let last = [depth, height, width].map(|length| length as u16 - 1);
                    all.filter(|&voxel| random() % one_in == 0 || voxel == last).collect()
                };
                let (queries, targets) = (pick(2), pick(sparsity));
                let expected = brute_force(&queries, &targets, spacing);
                assert_equal(
                    &squared_distances(&queries, &targets, shape, spacing),
                    &expected,
                    &format!("{shape:?} {spacing:?}"),
                );

                // The transform of a whole plane, whatever the cost of searching.
                let columns = TargetColumns::new(&targets, shape);
                let (mut rows, mut envelope) = (vec![f64::INFINITY; height * width], Vec::new());
                for (query, expected) in queries.iter().zip(&expected) {
                    let plane = Plane { columns: &columns, z: query[0], spacing };
                    for (y, row) in rows.chunks_exact_mut(width).enumerate() {
                        row_distances(&plane, y, row, &mut envelope);
                    }
                    let found = look_along_height(&rows, &plane, [query[1], query[2]].map(usize::from));
                    assert_equal(&[found], &[*expected], &format!("transform, {shape:?} {spacing:?}"));
                }
            }
        }
    }

    #[test]
    fn planes_that_exceed_their_share_are_transformed() {
        let shape = [40, 60, 60];
        let all = |z: u16| (0..60u16).flat_map(move |y| (0..60u16).map(move |x| [z, y, x]));
        let queries: Vec<Voxel> = all(0).filter(|&[_, y, x]| x < 20 && y < 30).collect();
        let targets: Vec<Voxel> = all(39).filter(|&[_, y, x]| (x + y) % 3 == 0).collect();
        let plane = Plane { columns: &TargetColumns::new(&targets, shape), z: 0, spacing: [1.0; 3] };
        let mut budget = SEARCH_BUDGET * 60 * 60;
        assert!(
            queries.iter().any(|&[_, y, x]| search(&plane, [y, x].map(usize::from), &mut budget).is_none()),
            "the search sufficed"
        );
        let found = squared_distances(&queries, &targets, shape, [1.0; 3]);
        assert_equal(&found, &brute_force(&queries, &targets, [1.0; 3]), "far");
    }
}
