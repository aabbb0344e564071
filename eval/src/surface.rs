//! Surface voxels of a class: those that a binary erosion with the connectivity-1 structuring element removes.

use rayon::prelude::*;

/// A box of voxels `start..end` of a volume, on `[depth, height, width]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crop {
    pub start: [usize; 3],
    pub end: [usize; 3],
}

impl Crop {
    /// `[d, h, w]` of the box.
    pub fn shape(&self) -> [usize; 3] {
        std::array::from_fn(|axis| self.end[axis] - self.start[axis])
    }
}

/// 1 at each surface voxel of `class` in the box, else 0: `[d, h, w]` of the box, in C order.
///
/// A voxel of the class is on the surface if one of its six face neighbours is not of the class or lies outside the volume (`border_value` 0
/// of `scipy.ndimage.binary_erosion`, as MedPy calls it). Neighbours are looked up in the whole volume, so the box changes nothing.
pub(crate) fn surface(voxels: &[u8], shape: [usize; 3], class: u8, crop: Crop) -> Vec<u8> {
    let [depth, height, width] = shape;
    let [crop_d, crop_h, crop_w] = crop.shape();
    let [_, _, x0] = crop.start;
    let x1 = crop.end[2];
    let outside = vec![0u8; width];
    let row = |z: Option<usize>, y: Option<usize>| match (z, y) {
        (Some(z), Some(y)) if z < depth && y < height => &voxels[(z * height + y) * width..][..width],
        _ => &outside[..],
    };
    let mut flags = vec![0u8; crop_d * crop_h * crop_w];
    flags.par_chunks_mut(crop_h * crop_w).enumerate().for_each(|(crop_z, plane)| {
        for (crop_y, flags) in plane.chunks_exact_mut(crop_w).enumerate() {
            let (z, y) = (crop.start[0] + crop_z, crop.start[1] + crop_y);
            let here = row(Some(z), Some(y));
            let neighbours = [
                row(z.checked_sub(1), Some(y)),
                row(Some(z + 1), Some(y)),
                row(Some(z), y.checked_sub(1)),
                row(Some(z), Some(y + 1)),
            ];
            let [before, after, above, below] = neighbours.map(|row| &row[x0..x1]);
            for x in 0..crop_w {
                let inside = (before[x] == class) & (after[x] == class) & (above[x] == class) & (below[x] == class);
                flags[x] = u8::from((here[x0 + x] == class) & !inside);
            }
            // Along the row: each end of a stretch of the class is surface too.
            for x in x0..x1 {
                let left = x == 0 || here[x - 1] != class;
                let right = x + 1 == width || here[x + 1] != class;
                flags[x - x0] |= u8::from((here[x] == class) & (left | right));
            }
        }
    });
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cube_keeps_its_shell() {
        let shape = [3, 4, 5];
        let voxels = vec![1u8; 60];
        let flags = surface(&voxels, shape, 1, Crop { start: [0; 3], end: shape });
        let inner: Vec<usize> = flags.iter().enumerate().filter(|&(_, &flag)| flag == 0).map(|(index, _)| index).collect();
        // Only [1, 1..3, 1..4] has all six neighbours.
        assert_eq!(inner, [20 + 6, 20 + 7, 20 + 8, 20 + 11, 20 + 12, 20 + 13]);
    }

    #[test]
    fn a_slice_is_all_surface_and_other_classes_are_not() {
        let voxels = [1, 1, 1, 1, 1, 1, 1, 1, 2];
        let flags = surface(&voxels, [1, 3, 3], 1, Crop { start: [0; 3], end: [1, 3, 3] });
        assert_eq!(flags, [1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn the_box_changes_nothing() {
        let shape = [4, 5, 6];
        let voxels: Vec<u8> = (0..120u32).map(|i| u8::from((i * 2654435761) >> 30 > 0)).collect();
        let whole = surface(&voxels, shape, 1, Crop { start: [0; 3], end: shape });
        let crop = Crop { start: [1, 2, 1], end: [4, 4, 5] };
        let part = surface(&voxels, shape, 1, crop);
        let [d, h, w] = crop.shape();
        for (z, y, x) in (0..d).flat_map(|z| (0..h).flat_map(move |y| (0..w).map(move |x| (z, y, x)))) {
            assert_eq!(part[(z * h + y) * w + x], whole[((z + 1) * 5 + y + 2) * 6 + x + 1]);
        }
    }
}
