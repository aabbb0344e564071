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

/// A voxel of a box, `[z, y, x]` from its start.
pub(crate) type Voxel = [u16; 3];

/// Surface voxels of `class` in the box, in C order.
///
/// A voxel of the class is on the surface if one of its six face neighbours is not of the class or lies outside the volume (`border_value` 0
/// of `scipy.ndimage.binary_erosion`, as MedPy calls it). Neighbours are looked up in the whole volume, so the box changes nothing.
pub(crate) fn surface_voxels(voxels: &[u8], shape: [usize; 3], class: u8, crop: Crop) -> Vec<Voxel> {
    let [depth, height, width] = shape;
    let [crop_d, crop_h, _] = crop.shape();
    let (x0, x1) = (crop.start[2], crop.end[2]);
    let outside = vec![0u8; width];
    let row = |z: Option<usize>, y: Option<usize>| match (z, y) {
        (Some(z), Some(y)) if z < depth && y < height => &voxels[(z * height + y) * width..][..width],
        _ => &outside[..],
    };
    let plane = |crop_z: usize| {
        let mut found = Vec::new();
        for crop_y in 0..crop_h {
            let (z, y) = (crop.start[0] + crop_z, crop.start[1] + crop_y);
            let here = row(Some(z), Some(y));
            // Fast path: most rows lack the class.
            if !here[x0..x1].contains(&class) {
                continue;
            }
            let (before, after) = (row(z.checked_sub(1), Some(y)), row(Some(z + 1), Some(y)));
            let (above, below) = (row(Some(z), y.checked_sub(1)), row(Some(z), Some(y + 1)));
            for x in (x0..x1).filter(|&x| here[x] == class) {
                let is_class = |neighbour: Option<&u8>| neighbour == Some(&class);
                let inside = [before, after, above, below].iter().all(|row| row[x] == class)
                    && is_class(x.checked_sub(1).map(|x| &here[x]))
                    && is_class(here.get(x + 1));
                if !inside {
                    found.push([crop_z as u16, crop_y as u16, (x - x0) as u16]);
                }
            }
        }
        found
    };
    (0..crop_d).into_par_iter().map(plane).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cube_keeps_its_shell() {
        let shape = [3, 4, 5];
        let found = surface_voxels(&[1u8; 60], shape, 1, Crop { start: [0; 3], end: shape });
        // Only [1, 1..3, 1..4] has all six neighbours.
        let inner = |&[z, y, x]: &Voxel| z == 1 && (1..3).contains(&y) && (1..4).contains(&x);
        assert_eq!(found.len(), 60 - 6);
        assert!(!found.iter().any(inner), "{found:?}");
    }

    #[test]
    fn a_slice_is_all_surface_and_other_classes_are_not() {
        let voxels = [1, 1, 1, 1, 1, 1, 1, 1, 2];
        let found = surface_voxels(&voxels, [1, 3, 3], 1, Crop { start: [0; 3], end: [1, 3, 3] });
        assert_eq!(found.len(), 8);
        assert_eq!((found[0], found[7]), ([0, 0, 0], [0, 2, 1]));
    }

    #[test]
    fn the_box_changes_nothing() {
        let shape = [4, 5, 6];
        let voxels: Vec<u8> = (0..120u32).map(|i| u8::from(i.wrapping_mul(2654435761) >> 30 > 0)).collect();
        let whole = surface_voxels(&voxels, shape, 1, Crop { start: [0; 3], end: shape });
        let crop = Crop { start: [1, 2, 1], end: [4, 4, 5] };
        let within = |&[z, y, x]: &Voxel| (1..4).contains(&z) && (2..4).contains(&y) && (1..5).contains(&x);
        let expected: Vec<Voxel> = whole.into_iter().filter(within).map(|[z, y, x]| [z - 1, y - 2, x - 1]).collect();
        assert_eq!(surface_voxels(&voxels, shape, 1, crop), expected);
    }
}
