//! Exact Euclidean distances from one set of voxels to the nearest of another, on an anisotropic grid.
//!
//! A separable distance transform (Felzenszwalb and Huttenlocher 2012; Maurer et al. 2003) that evaluates its last pass only where it is
//! asked: along depth by two sweeps over whole planes, along each row by the lower envelope of parabolas, and along height by looking
//! outward from each query until no nearer voxel can come.

use rayon::prelude::*;

/// Depth distance of a column without target voxels.
const FAR: u16 = u16::MAX;

/// Squared distance, in the units of `spacing`, from each voxel set in `queries` to the nearest one set in `targets`: one value a query, in C order.
///
/// Both are `[d, h, w]`, of `shape`, 0 or 1. `targets` must not be empty, and the depth is less than 65535.
pub(crate) fn squared_distances(queries: &[u8], targets: &[u8], shape: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    let [_, height, width] = shape;
    let plane = height * width;
    let along_depth = depth_distances(targets, plane);
    let parts: Vec<Vec<f64>> = queries
        .par_chunks(plane)
        .zip(along_depth.par_chunks(plane))
        .map_init(PlaneTransform::default, |transform, (queries, along_depth)| {
            transform.squared_distances(queries, along_depth, width, spacing)
        })
        .collect();
    parts.concat()
}

/// Distance along depth, in voxels, to the nearest target of the same column, or [`FAR`]: `[d, h, w]`.
fn depth_distances(targets: &[u8], plane: usize) -> Vec<u16> {
    let mut distances: Vec<u16> = targets.iter().map(|&target| if target != 0 { 0 } else { FAR }).collect();
    let sweep = |from: &[u16], to: &mut [u16]| {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = (*to).min(from.saturating_add(1));
        }
    };
    let depth = targets.len() / plane;
    for z in 1..depth {
        let (before, here) = distances.split_at_mut(z * plane);
        sweep(&before[(z - 1) * plane..], &mut here[..plane]);
    }
    for z in (1..depth).rev() {
        let (here, after) = distances.split_at_mut(z * plane);
        sweep(&after[..plane], &mut here[(z - 1) * plane..]);
    }
    distances
}

/// Buffers of the two passes within a plane `[h, w]`.
#[derive(Default)]
struct PlaneTransform {
    /// Squared distance over depth and width, `[h, w]`; infinite in rows that see no target.
    rows: Vec<f64>,
    /// The lower envelope of one row.
    envelope: Vec<Parabola>,
}

/// One parabola of a lower envelope, which is lowest from `from` on.
#[derive(Clone, Copy)]
struct Parabola {
    /// Column of its vertex.
    column: usize,
    /// Height of its vertex.
    height: f64,
    /// Where it starts to be lowest, in columns.
    from: f64,
}

impl PlaneTransform {
    fn squared_distances(&mut self, queries: &[u8], along_depth: &[u16], width: usize, spacing: [f64; 3]) -> Vec<f64> {
        let [spacing_d, spacing_h, spacing_w] = spacing;
        if queries.iter().all(|&query| query == 0) {
            return Vec::new();
        }
        self.rows.resize(queries.len(), f64::INFINITY);
        for (along_depth, row) in along_depth.chunks_exact(width).zip(self.rows.chunks_exact_mut(width)) {
            row_distances(along_depth, row, &mut self.envelope, [spacing_d, spacing_w]);
        }
        let height = queries.len() / width;
        let mut distances = Vec::new();
        for y in 0..height {
            for x in (0..width).filter(|&x| queries[y * width + x] != 0) {
                let mut best = self.rows[y * width + x];
                for step in 1..height {
                    let along_height = (step as f64 * spacing_h).powi(2);
                    if along_height >= best || (step > y && y + step >= height) {
                        break;
                    }
                    if step <= y {
                        best = best.min(self.rows[(y - step) * width + x] + along_height);
                    }
                    if y + step < height {
                        best = best.min(self.rows[(y + step) * width + x] + along_height);
                    }
                }
                distances.push(best);
            }
        }
        distances
    }
}

/// Second pass: `row[x]` = min over columns v of (spacing_d · along_depth[v])² + (spacing_w · (x - v))².
fn row_distances(along_depth: &[u16], row: &mut [f64], envelope: &mut Vec<Parabola>, [spacing_d, spacing_w]: [f64; 2]) {
    envelope.clear();
    for (column, _) in along_depth.iter().enumerate().filter(|&(_, &distance)| distance != FAR) {
        let height = (f64::from(along_depth[column]) * spacing_d).powi(2);
        let mut from = f64::NEG_INFINITY;
        while let Some(last) = envelope.last() {
            // Where the new parabola and the last one cross.
            let run = (column - last.column) as f64;
            from = 0.5 * ((height - last.height) / (spacing_w * spacing_w * run) + (column + last.column) as f64);
            if from > last.from {
                break;
            }
            envelope.pop();
        }
        envelope.push(Parabola { column, height, from });
    }
    let Some(&first) = envelope.first() else {
        row.fill(f64::INFINITY);
        return;
    };
    let (mut parabola, mut next) = (first, 1);
    for (x, value) in row.iter_mut().enumerate() {
        while next < envelope.len() && envelope[next].from <= x as f64 {
            parabola = envelope[next];
            next += 1;
        }
        *value = parabola.height + ((x as f64 - parabola.column as f64) * spacing_w).powi(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every query against every target.
    fn brute_force(queries: &[u8], targets: &[u8], [_, height, width]: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
        let position = |index: usize| [index / width / height, index / width % height, index % width].map(|i| i as f64);
        let set = |voxels: &[u8]| (0..voxels.len()).filter(|&i| voxels[i] != 0).map(position).collect::<Vec<_>>();
        let targets = set(targets);
        set(queries)
            .into_iter()
            .map(|query| {
                let squared =
                    |target: &[f64; 3]| (0..3).map(|axis| ((query[axis] - target[axis]) * spacing[axis]).powi(2)).sum::<f64>();
                targets.iter().map(squared).fold(f64::INFINITY, f64::min)
            })
            .collect()
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
            for sparsity in [1, 3, 40] {
                let len: usize = shape.iter().product();
                let queries: Vec<u8> = (0..len).map(|_| u8::from(random() % 2 == 0)).collect();
                let mut targets: Vec<u8> = (0..len).map(|_| u8::from(random() % sparsity == 0)).collect();
                targets[random() as usize % len] = 1;
                let (found, expected) =
                    (squared_distances(&queries, &targets, shape, spacing), brute_force(&queries, &targets, shape, spacing));
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() <= 1e-12 * expected.max(1.0),
                        "{shape:?} {spacing:?}: {found} for {expected}"
                    );
                }
            }
        }
    }
}
