//! From voxel indices to millimetres: which of a header's affines counts, how its axes lie in the body, and how far apart two grids are.
//!
//! All follows nibabel: `get_best_affine` (the sform if its code is above 0, else the qform if its code is) and `aff2axcodes`; but units of
//! metre and micrometre are converted, which nibabel leaves to its caller.

use super::Geometry;

/// Rows of an affine without the last, which is 0, 0, 0, 1.
pub type Affine = [[f64; 4]; 3];

/// Voxel sizes that differ by less than this part of themselves are the same: header and affine are often rounded differently.
const SAME_SPACING: f64 = 1e-3;

/// Directions that differ by less than this part of themselves are equally near: what headers round must not decide how a scan lies.
const EQUALLY_NEAR: f64 = 1e-4;

/// Degrees from an axis of the body, of at most 45, from which on another axis is nearly as near.
const NEARLY_HALFWAY_DEG: f64 = 42.0;

/// Axes between which the cosine is smaller stand at right angles: 0.1 degrees, far above what headers round.
const RIGHT_ANGLE: f64 = 2e-3;

impl Geometry {
    /// From voxel indices (axes 0, 1, 2 of the file) to millimetres in RAS+; `None` if the header has no affine, or one that maps the voxels
    /// to a plane or to numbers that are not finite.
    pub fn world_affine(&self) -> Option<Affine> {
        let affine = match (self.sform_code, self.qform_code) {
            (1.., _) => self.affine,
            (_, 1..) => self.qform()?,
            _ => return None,
        };
        let unit = self.millimetres_per_unit();
        let affine = affine.map(|row| row.map(|value| value * unit));
        closest_rotation(&affine).map(|_| affine)
    }

    /// For each axis of the file (0, 1, 2), the axis of the body that it follows most closely (0 right-left, 1 back-front, 2 foot-head), and
    /// whether it runs towards right, front or head; `None` without an affine.
    pub fn body_axes(&self) -> Option<([usize; 3], [bool; 3])> {
        body_axes(&self.world_affine()?)
    }

    /// How far, in degrees, an axis of the file is turned from the axis of the body that it follows, if another one is nearly as near: 45 lies
    /// halfway between two orientations, and the nearest codes say little about how the slices lie.
    pub fn halfway_deg(&self) -> Option<f64> {
        nearest_axes(&self.world_affine()?)?
            .into_iter()
            .map(|axis| axis.turned_deg)
            .max_by(f64::total_cmp)
            .filter(|degrees| *degrees > NEARLY_HALFWAY_DEG)
    }

    /// Distance between voxel centres along depth, height and width, in millimetres: the affine's, or the header's `pixdim` without one.
    pub fn spacing_mm(&self) -> [f64; 3] {
        match self.world_affine() {
            Some(affine) => {
                let [x, y, z] = spacing_of(&affine);
                [z, y, x]
            }
            None => self.pixdim_mm(),
        }
    }

    /// What `pixdim` says in millimetres along depth, height and width, if the affine says something else.
    pub fn contradicting_pixdim_mm(&self) -> Option<[f64; 3]> {
        self.world_affine()?;
        let (pixdim, spacing) = (self.pixdim_mm(), self.spacing_mm());
        let same = pixdim.iter().zip(spacing).all(|(a, b)| (a - b).abs() <= SAME_SPACING * b);
        (!same).then_some(pixdim)
    }

    /// The smallest angle between two axes, in degrees, of a scan whose affine is sheared: one by more than about 0.1 degrees off a right angle,
    /// as of a tilted gantry. The lengths of such an affine's columns measure neither volumes nor distances.
    pub fn sheared_to_deg(&self) -> Option<f64> {
        let affine = self.world_affine()?;
        let sides = spacing_of(&affine);
        let cosine = |[a, b]: [usize; 2]| {
            let product: f64 = affine.iter().map(|row| row[a] * row[b]).sum();
            (product / (sides[a] * sides[b])).abs()
        };
        let largest = [[0, 1], [0, 2], [1, 2]].map(cosine).into_iter().fold(0.0, f64::max);
        (largest > RIGHT_ANGLE).then(|| largest.min(1.0).acos().to_degrees())
    }

    /// The same with the qform, of a header whose sform counts although both are coded.
    pub fn with_qform(&self) -> Option<Geometry> {
        (self.sform_code > 0 && self.qform_code > 0).then(|| Geometry { sform_code: 0, ..self.clone() })
    }

    /// The largest distance between the same corner of two grids, in millimetres; `None` if one of them has no affine.
    pub fn corner_distance_mm(&self, other: &Geometry) -> Option<f64> {
        let (own, others) = (self.corners()?, other.corners()?);
        let distance = |(a, b): (&[f64; 3], &[f64; 3])| (0..3).map(|axis| (a[axis] - b[axis]).powi(2)).sum::<f64>().sqrt();
        own.iter().zip(&others).map(distance).max_by(f64::total_cmp)
    }

    /// Where the centres of the eight corner voxels lie.
    fn corners(&self) -> Option<[[f64; 3]; 8]> {
        let affine = self.world_affine()?;
        let [depth, height, width] = self.shape.map(|side| (side - 1) as f64);
        Some(std::array::from_fn(|corner| {
            let at = |bit: usize, last: f64| if corner >> bit & 1 == 1 { last } else { 0.0 };
            let index = [at(0, width), at(1, height), at(2, depth)];
            affine.map(|row| row[3] + (0..3).map(|axis| row[axis] * index[axis]).sum::<f64>())
        }))
    }

    /// `pixdim` along depth, height and width, in millimetres.
    fn pixdim_mm(&self) -> [f64; 3] {
        let unit = self.millimetres_per_unit();
        [self.pixdim[3], self.pixdim[2], self.pixdim[1]].map(|side| side.abs() * unit)
    }

    /// Millimetres of a unit of space: metres and micrometres are converted; a header that names no unit means millimetres.
    fn millimetres_per_unit(&self) -> f64 {
        match self.xyzt_units & 7 {
            1 => 1000.0,
            3 => 0.001,
            _ => 1.0,
        }
    }

    /// The affine of the quaternion, as nibabel's `get_qform`; `None` if the quaternion is longer than 1.
    fn qform(&self) -> Option<Affine> {
        let [b, c, d] = self.quaternion;
        let rest = 1.0 - (b * b + c * c + d * d);
        // nibabel's threshold for rounding errors of float32.
        if rest < -3.0 * f64::from(f32::EPSILON) || rest.is_nan() {
            return None;
        }
        let a = rest.max(0.0).sqrt();
        let rotation = [
            [1.0 - 2.0 * (c * c + d * d), 2.0 * (b * c - d * a), 2.0 * (b * d + c * a)],
            [2.0 * (b * c + d * a), 1.0 - 2.0 * (b * b + d * d), 2.0 * (c * d - b * a)],
            [2.0 * (b * d - c * a), 2.0 * (c * d + b * a), 1.0 - 2.0 * (b * b + c * c)],
        ];
        let third = if self.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        let sides = [self.pixdim[1].abs(), self.pixdim[2].abs(), self.pixdim[3].abs() * third];
        Some(std::array::from_fn(|row| {
            let [x, y, z] = std::array::from_fn(|axis| rotation[row][axis] * sides[axis]);
            [x, y, z, self.translation[row]]
        }))
    }
}

/// Distance between voxel centres along axes 0, 1 and 2.
pub fn spacing_of(affine: &Affine) -> [f64; 3] {
    [0, 1, 2].map(|axis| affine.iter().map(|row| row[axis] * row[axis]).sum::<f64>().sqrt())
}

/// nibabel's `aff2axcodes`; of axes that are equally near the first is taken, whatever rounding says.
fn body_axes(affine: &Affine) -> Option<([usize; 3], [bool; 3])> {
    let nearest = nearest_axes(affine)?;
    Some((nearest.map(|axis| axis.body), nearest.map(|axis| axis.is_positive)))
}

/// The axis of the body that an axis of the array follows.
#[derive(Clone, Copy)]
struct Nearest {
    body: usize,
    is_positive: bool,
    /// Degrees between the two, in the plane with the next nearest axis of the body that was free: at most 45.
    turned_deg: f64,
}

/// The body's axis that each axis of the array follows most closely. Axes that follow theirs most closely choose first, so that no two choose
/// the same.
fn nearest_axes(affine: &Affine) -> Option<[Nearest; 3]> {
    let mut rotation = closest_rotation(affine)?;
    let strengths = [0, 1, 2].map(|axis| rotation.iter().map(|row| row[axis].abs()).fold(0.0, f64::max));
    let mut nearest = [Nearest { body: 0, is_positive: true, turned_deg: 0.0 }; 3];
    let mut left = vec![0, 1, 2];
    while let Some(next) = first_of_largest(left.iter().map(|&axis| strengths[axis])) {
        let axis = left.remove(next);
        let along = rotation.map(|row| row[axis].abs());
        let body = first_of_largest(along)?;
        let second = (0..3).filter(|&row| row != body).map(|row| along[row]).fold(0.0, f64::max);
        let turned_deg = second.atan2(along[body]).to_degrees();
        nearest[axis] = Nearest { body, is_positive: rotation[body][axis] > 0.0, turned_deg };
        rotation[body] = [0.0; 3];
    }
    Some(nearest)
}

/// Where the largest of some numbers from 0 stands; the first of those that are as large but for rounding.
fn first_of_largest(numbers: impl IntoIterator<Item = f64>) -> Option<usize> {
    let numbers: Vec<f64> = numbers.into_iter().collect();
    let largest = numbers.iter().copied().max_by(f64::total_cmp)?;
    numbers.iter().position(|&number| number >= largest * (1.0 - EQUALLY_NEAR))
}

/// The rotation, perhaps with a reflection, that is closest to an affine without its voxel sizes: the polar factor, which nibabel takes
/// from a singular value decomposition, by Newton's iteration R ← (R + R⁻ᵀ) / 2 (Higham 1986). `None` for an affine that is singular or
/// not finite.
fn closest_rotation(affine: &Affine) -> Option<[[f64; 3]; 3]> {
    if !affine.iter().flatten().all(|value| value.is_finite()) {
        return None;
    }
    let sides = spacing_of(affine);
    if sides.iter().any(|side| *side < f64::MIN_POSITIVE.sqrt()) {
        return None;
    }
    let mut rotation: [[f64; 3]; 3] = std::array::from_fn(|row| std::array::from_fn(|axis| affine[row][axis] / sides[axis]));
    for _ in 0..100 {
        let inverse_transposed = inverse_transposed(&rotation)?;
        let next: [[f64; 3]; 3] =
            std::array::from_fn(|row| std::array::from_fn(|axis| (rotation[row][axis] + inverse_transposed[row][axis]) / 2.0));
        let change = next.iter().flatten().zip(rotation.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        rotation = next;
        if change < 1e-15 {
            break;
        }
    }
    Some(rotation)
}

/// The inverse's transpose of a matrix whose columns have length 1: its cofactors over its determinant.
fn inverse_transposed(m: &[[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let cofactor = |row: usize, column: usize| {
        let [r1, r2] = [(row + 1) % 3, (row + 2) % 3];
        let [c1, c2] = [(column + 1) % 3, (column + 2) % 3];
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let determinant: f64 = (0..3).map(|column| m[0][column] * cofactor(0, column)).sum();
    (determinant.abs() > 1e-9)
        .then(|| std::array::from_fn(|row| std::array::from_fn(|column| cofactor(row, column) / determinant)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_affine(rows: [[f64; 3]; 3]) -> Geometry {
        let affine = rows.map(|[x, y, z]| [x, y, z, 0.0]);
        Geometry { affine, ..Geometry::aligned([5, 4, 3], [1.0; 3]) }
    }

    fn codes(geometry: &Geometry) -> Option<String> {
        let (axes, positive) = geometry.body_axes()?;
        Some((0..3).map(|axis| ["LR", "PA", "IS"][axes[axis]].as_bytes()[usize::from(positive[axis])] as char).collect())
    }

    #[test]
    fn axis_codes_are_nibabels() {
        // nibabel 5.4: aff2axcodes of rotations by SciPy's Rotation.random(random_state=0..5) times diag(0.7, 0.8, 3), of a sheared affine and
        // of a turn by 45 degrees.
        let expected = [
            ([[0.5308, -0.2572, 1.7013], [0.4387, 0.0962, -2.3097], [0.1256, 0.7514, 0.878]], "RSP"),
            ([[0.4942, -0.5619, -0.2722], [-0.1345, -0.2506, 2.79], [-0.4772, -0.5113, -1.0686]], "RIA"),
            ([[-0.1604, 0.7595, 0.6443], [-0.6558, -0.22, 0.649], [0.1851, -0.1213, 2.8572]], "PRS"),
            ([[0.6593, 0.2237, -0.5595], [0.1224, 0.0529, 2.9471], [0.2009, -0.7663, 0.0402]], "RIA"),
            ([[-0.3076, 0.664, 1.0307], [-0.54, -0.1221, -1.8534], [-0.3222, -0.4292, 2.1219]], "PRS"),
            ([[-0.6424, 0.119, 1.105], [-0.1693, -0.7559, -0.6625], [0.2206, -0.2334, 2.7092]], "LPS"),
            ([[0.8, 0.3, 0.0], [0.0, -0.7, 0.6], [0.1, 0.0, 2.5]], "RPS"),
            ([[0.99, -0.99, 0.0], [0.99, 0.99, 0.0], [0.0, 0.0, 1.0]], "RAS"),
        ];
        for (rows, axes) in expected {
            assert_eq!(codes(&with_affine(rows)).as_deref(), Some(axes), "{rows:?}");
        }
        for wrong in [[[1.0, 1.0, 0.0]; 3], [[0.0; 3]; 3], [[f64::NAN, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]] {
            assert_eq!(with_affine(wrong).world_affine(), None, "{wrong:?}");
        }
    }

    #[test]
    fn rounding_does_not_decide_how_a_scan_at_45_degrees_lies() {
        // Turned about the body's long axis by 45 degrees, as in nibabel 5.4: aff2axcodes of the exact one is LPS; the same rounded otherwise is PRS.
        let turned = |degrees: f64| {
            let (sin, cos) = degrees.to_radians().sin_cos();
            with_affine([[-1.5 * cos, 1.5 * sin, 0.0], [-1.5 * sin, -1.5 * cos, 0.0], [0.0, 0.0, 5.0]])
        };
        for degrees in [45.0 - 1e-4, 45.0 - 1e-7, 45.0, 45.0 + 1e-7, 45.0 + 1e-4] {
            let scan = turned(degrees);
            assert_eq!(codes(&scan).as_deref(), Some("LPS"), "{degrees}");
            assert!((scan.halfway_deg().unwrap() - 45.0).abs() < 1e-3, "{degrees}");
        }
        let near: Vec<_> =
            [0.0, 30.0, 41.0, 43.0, 47.0, 50.0].map(|degrees| turned(degrees).halfway_deg().map(f64::round)).into();
        assert_eq!(near, [None, None, None, Some(43.0), Some(43.0), None]);
        assert_eq!([44.9, 45.1].map(|degrees| codes(&turned(degrees)).unwrap()), ["LPS", "PRS"]);
    }

    #[test]
    fn the_sform_goes_before_the_qform() {
        // nibabel 5.4: Nifti1Header.get_best_affine() with sform_code 0.
        let qform = Geometry {
            sform_code: 0,
            pixdim: [-1.0, 0.7, 0.8, 3.0, 1.0, 1.0, 1.0, 1.0],
            quaternion: [0.1, -0.2, 0.3],
            translation: [-10.0, 20.0, 30.0],
            ..Geometry::aligned([5, 4, 3], [1.0; 3])
        };
        let expected = [
            [0.518, -0.4771337084, 0.9328342204, -10.0],
            [0.3614919796, 0.64, 0.9164171348, 20.0],
            [0.3016613178, 0.0523778930, -2.7, 30.0],
        ];
        let found = qform.world_affine().unwrap();
        let apart = found.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-7, "{found:?}");
        assert_eq!(codes(&qform).as_deref(), Some("RAI"));
        assert_eq!(codes(&Geometry { sform_code: 2, ..qform.clone() }).as_deref(), Some("RAS"), "the sform is the identity");
        let neither = Geometry { qform_code: 0, ..qform.clone() };
        assert_eq!((neither.world_affine(), neither.spacing_mm()), (None, [3.0, 0.8, 0.7]));
        assert_eq!(Geometry { quaternion: [1.0, 1.0, 0.0], ..qform }.world_affine(), None);
    }

    #[test]
    fn the_affine_decides_the_spacing_and_units_are_converted() {
        let mut geometry = Geometry::aligned([5, 4, 3], [3.0, 0.8, 0.8]);
        assert_eq!(geometry.contradicting_pixdim_mm(), None);
        geometry.pixdim[1..3].fill(0.6);
        assert_eq!((geometry.spacing_mm(), geometry.contradicting_pixdim_mm()), ([3.0, 0.8, 0.8], Some([3.0, 0.6, 0.6])));
        let in_units = |xyzt_units, scale: f64| {
            let spacing = [3.0 * scale, 0.8 * scale, 0.7 * scale];
            Geometry { xyzt_units, ..Geometry::aligned([5, 4, 3], spacing) }.spacing_mm().map(|side| (side * 1e6).round() / 1e6)
        };
        // The time's unit is in the higher bits.
        for (units, scale) in [(0, 1.0), (2, 1.0), (2 | 8, 1.0), (3, 1000.0), (1 | 16, 0.001)] {
            assert_eq!(in_units(units, scale), [3.0, 0.8, 0.7], "unit {units}");
        }
    }

    #[test]
    fn a_tilted_gantry_shears_and_a_rotation_does_not() {
        // Slices of 2 x 2 mm every 5 mm, each moved by 5 tan 25 degrees: the second and the third column are at 65 degrees.
        let tilted = with_affine([[2.0, 0.0, 0.0], [0.0, 2.0, 5.0 * 25f64.to_radians().tan()], [0.0, 0.0, 5.0]]);
        assert!((tilted.sheared_to_deg().unwrap() - 65.0).abs() < 1e-9);
        let (sin, cos) = 17f64.to_radians().sin_cos();
        for slip in [0.0, 1e-3] {
            let turned = with_affine([[0.7 * cos, -0.8 * sin, slip], [0.7 * sin, 0.8 * cos, 0.0], [0.0, 0.0, 1.0]]);
            assert_eq!(turned.sheared_to_deg(), None, "{slip}");
        }
        assert_eq!(Geometry { sform_code: 0, qform_code: 0, ..tilted }.sheared_to_deg(), None);
    }

    #[test]
    fn grids_are_as_far_apart_as_their_farthest_corner() {
        let grid = Geometry::aligned([5, 4, 3], [3.0, 0.8, 0.7]);
        assert_eq!(grid.corner_distance_mm(&grid), Some(0.0));
        let moved = |x: f64| {
            let mut moved = grid.clone();
            moved.affine[0][3] += x;
            moved
        };
        assert_eq!(grid.corner_distance_mm(&moved(30.0)), Some(30.0));
        let twice = Geometry::aligned([5, 4, 3], [6.0, 0.8, 0.7]);
        assert_eq!(grid.corner_distance_mm(&twice), Some(12.0));
        let nowhere = Geometry { sform_code: 0, qform_code: 0, ..grid.clone() };
        assert_eq!(grid.corner_distance_mm(&nowhere), None);
    }
}
