//! Connected components of a class in a mask, and the holes that it encloses.

use crate::masks::MaskView;

/// A component: the indices of its voxels, ascending.
type Component = Vec<usize>;

/// The components of a class, each as its voxels' indices, in the order of their first voxels. Voxels that touch by a face, an edge or a corner are
/// of one component, as in nnU-Net.
pub(crate) fn components(mask: MaskView<'_>, class: u8) -> Vec<Component> {
    let neighbours: Vec<[isize; 3]> = (0..27).map(|i| [i / 9 - 1, i / 3 % 3 - 1, i % 3 - 1]).filter(|by| *by != [0; 3]).collect();
    let mut open: Vec<bool> = mask.voxels.iter().map(|&found| found == class).collect();
    let mut found = Vec::new();
    for start in 0..open.len() {
        if open[start] {
            let mut component = flood(&mut open, mask.shape, start, &neighbours);
            component.sort_unstable();
            found.push(component);
        }
    }
    found
}

/// The background that a class encloses: from which no path by faces through what is not the class leads to the mask's border.
pub(crate) fn holes(mask: MaskView<'_>, class: u8) -> Vec<usize> {
    const FACES: [[isize; 3]; 6] = [[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]];
    let [d, h, w] = mask.shape;
    let mut open: Vec<bool> = mask.voxels.iter().map(|&found| found != class).collect();
    let at_border = |at: usize| {
        let [z, y, x] = [at / (h * w), at / w % h, at % w];
        z == 0 || y == 0 || x == 0 || z + 1 == d || y + 1 == h || x + 1 == w
    };
    for at in (0..open.len()).filter(|&at| at_border(at)) {
        if open[at] {
            flood(&mut open, mask.shape, at, &FACES);
        }
    }
    // Other organs that it encloses stay.
    (0..open.len()).filter(|&at| open[at] && mask.voxels[at] == 0).collect()
}

/// Takes what is connected with `start` out of `open`.
fn flood(open: &mut [bool], [d, h, w]: [usize; 3], start: usize, neighbours: &[[isize; 3]]) -> Component {
    open[start] = false;
    let mut found = vec![start];
    let mut next = 0;
    while let Some(&at) = found.get(next) {
        next += 1;
        let place = [at / (h * w), at / w % h, at % w];
        for by in neighbours {
            let moved = |axis: usize, length: usize| place[axis].checked_add_signed(by[axis]).filter(|&to| to < length);
            let (Some(z), Some(y), Some(x)) = (moved(0, d), moved(1, h), moved(2, w)) else { continue };
            let to = (z * h + y) * w + x;
            if open[to] {
                open[to] = false;
                found.push(to);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(voxels: &[u8], shape: [usize; 3]) -> MaskView<'_> {
        MaskView { voxels, shape }
    }

    #[test]
    fn voxels_that_touch_by_a_corner_are_of_one_component() {
        // [2, 2, 4]: the first slice's corner voxel touches that of the second by a corner only; the last column is apart.
        let voxels = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(components(mask(&voxels, [2, 2, 4]), 1), [vec![0, 13], vec![3]]);
        assert!(components(mask(&voxels, [2, 2, 4]), 2).is_empty());
    }

    #[test]
    fn holes_are_enclosed_by_faces_and_hold_no_other_organ() {
        // [3, 3, 3] of the organ around one voxel.
        let mut voxels = [1u8; 27];
        voxels[13] = 0;
        assert_eq!(holes(mask(&voxels, [3, 3, 3]), 1), [13]);
        voxels[13] = 2;
        assert!(holes(mask(&voxels, [3, 3, 3]), 1).is_empty(), "another organ");
        // A way out by a face.
        voxels[13] = 0;
        voxels[14] = 0;
        assert!(holes(mask(&voxels, [3, 3, 3]), 1).is_empty());
        // By an edge there is none.
        voxels[14] = 1;
        voxels[17] = 0;
        assert_eq!(holes(mask(&voxels, [3, 3, 3]), 1), [13]);
        // In a single slice everything lies at the border.
        assert!(holes(mask(&[1, 1, 1, 1, 0, 1, 1, 1, 1], [1, 3, 3]), 1).is_empty());
    }
}
