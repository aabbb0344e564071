//! Where a phantom's organs lie and what they look like in CT.
//!
//! Positions are fractions of the field of view: x from the patient's right (-1) to the left (1), y from front (-1) to back
//! (1), z from the lowest slice (0) to the highest (1).

use rand::{Rng, RngExt};

const AIR_HU: f32 = -1000.0;
const FAT_HU: f32 = -100.0;
const MUSCLE_HU: f32 = 55.0;
const PERITONEUM_HU: f32 = -60.0;
/// Half the body's width and depth.
const BODY_RADII: [f64; 2] = [0.86, 0.64];

/// An organ before a case's variation.
struct Organ {
    /// Raw Synapse label; 0 for what has none.
    label: u8,
    centre: [f64; 3],
    radii: [f64; 3],
    hu: f32,
}

const fn organ(label: u8, centre: [f64; 3], radii: [f64; 3], hu: f32) -> Organ {
    Organ { label, centre, radii, hu }
}

/// In painting order: the later covers the earlier. Contrast-enhanced values of the portal venous phase.
const ORGANS: [Organ; 17] = [
    organ(0, [0.05, -0.24, 0.16], [0.45, 0.20, 0.17], 25.0),    // bowel
    organ(0, [0.00, -0.34, 0.30], [0.30, 0.12, 0.12], 15.0),    // transverse colon
    organ(6, [-0.38, -0.04, 0.66], [0.38, 0.40, 0.32], 115.0),  // liver
    organ(7, [0.32, -0.24, 0.66], [0.23, 0.20, 0.26], 35.0),    // stomach
    organ(1, [0.58, 0.16, 0.68], [0.16, 0.23, 0.22], 135.0),    // spleen
    organ(2, [-0.36, 0.32, 0.36], [0.13, 0.14, 0.22], 195.0),   // right kidney
    organ(3, [0.36, 0.32, 0.40], [0.13, 0.14, 0.22], 195.0),    // left kidney
    organ(12, [-0.24, 0.24, 0.62], [0.07, 0.04, 0.06], 70.0),   // right adrenal gland
    organ(13, [0.24, 0.24, 0.66], [0.07, 0.04, 0.06], 70.0),    // left adrenal gland
    organ(11, [0.12, -0.02, 0.48], [0.25, 0.09, 0.13], 90.0),   // pancreas
    organ(4, [-0.24, -0.28, 0.46], [0.11, 0.11, 0.13], 8.0),    // gallbladder
    organ(10, [-0.06, -0.02, 0.60], [0.16, 0.05, 0.06], 165.0), // portal and splenic vein
    organ(0, [0.00, 0.42, 0.50], [0.15, 0.13, 2.00], 380.0),    // spine
    organ(0, [0.00, 0.46, 0.50], [0.07, 0.06, 2.00], 40.0),     // spinal canal
    organ(9, [-0.13, 0.20, 0.50], [0.075, 0.065, 2.00], 150.0), // inferior vena cava
    organ(5, [0.12, 0.12, 0.94], [0.055, 0.05, 0.22], 45.0),    // oesophagus
    organ(8, [0.05, 0.23, 0.50], [0.075, 0.075, 2.00], 240.0),  // aorta
];

/// An organ of one case.
struct Shape {
    label: u8,
    centre: [f64; 3],
    radii: [f64; 3],
    hu: f32,
    /// Phases of the dents and bulges.
    phases: [f64; 6],
}

/// The body of one case.
pub(super) struct Body {
    shape: [usize; 3],
    radii: [f64; 2],
    organs: Vec<Shape>,
}

impl Body {
    /// Draws a case's variation for scans of shape `[d, h, w]`.
    pub(super) fn draw(rng: &mut impl Rng, shape @ [depth, height, width]: [usize; 3]) -> Self {
        let scale = rng.random_range(0.92..1.06);
        let radii = BODY_RADII.map(|radius| radius * scale * rng.random_range(0.97..1.03));
        // No organ falls between pixels or slices, however few there are.
        let least = [2.4 / width as f64, 2.4 / height as f64, 0.8 / depth as f64];
        let organs = ORGANS
            .iter()
            .map(|organ| {
                let jitter: [f64; 3] = std::array::from_fn(|_| rng.random_range(-0.03..0.03));
                let stretch: [f64; 3] = std::array::from_fn(|_| rng.random_range(0.88..1.12));
                let in_plane = [scale, scale, 1.0];
                Shape {
                    label: organ.label,
                    centre: std::array::from_fn(|axis| organ.centre[axis] * in_plane[axis] + jitter[axis]),
                    radii: std::array::from_fn(|axis| (organ.radii[axis] * in_plane[axis] * stretch[axis]).max(least[axis])),
                    hu: organ.hu + rng.random_range(-8.0..8.0),
                    phases: std::array::from_fn(|_| rng.random_range(0.0..std::f64::consts::TAU)),
                }
            })
            .collect();
        Body { shape, radii, organs }
    }

    /// Hounsfield units, without noise, and raw labels of a slice, each `[h, w]`.
    pub(super) fn slice(&self, slice: usize) -> (Vec<f32>, Vec<u8>) {
        let [depth, height, width] = self.shape;
        let position = |index: usize, n: usize| 2.0 * (index as f64 + 0.5) / n as f64 - 1.0;
        let z = (slice as f64 + 0.5) / depth as f64;
        let mut hu = vec![AIR_HU; height * width];
        let mut labels = vec![0u8; height * width];
        for row in 0..height {
            for column in 0..width {
                let (x, y) = (position(column, width), position(row, height));
                let radius = (x / self.radii[0]).hypot(y / self.radii[1]);
                if radius < 1.0 {
                    // Skin and fat, the wall's muscles, and what lies between the organs.
                    let tissue = if radius > 0.90 {
                        FAT_HU
                    } else if radius > 0.82 {
                        MUSCLE_HU
                    } else {
                        PERITONEUM_HU
                    };
                    hu[row * width + column] = tissue;
                }
            }
        }
        for organ in &self.organs {
            let span = |axis: usize, n: usize| {
                let index = |edge: f64| ((edge + 1.0) / 2.0 * n as f64).clamp(0.0, n as f64) as usize;
                // Bulges reach beyond the ellipsoid by less than a fifth.
                let reach = 1.2 * organ.radii[axis];
                index(organ.centre[axis] - reach)..(index(organ.centre[axis] + reach) + 1).min(n)
            };
            for row in span(1, height) {
                for column in span(0, width) {
                    let (x, y) = (position(column, width), position(row, height));
                    let inside_wall = (x / self.radii[0]).hypot(y / self.radii[1]) < 0.84;
                    if inside_wall && organ.contains([x, y, z]) {
                        hu[row * width + column] = organ.hu;
                        labels[row * width + column] = organ.label;
                    }
                }
            }
        }
        (hu, labels)
    }
}

impl Shape {
    /// Whether a point lies in the ellipsoid, whose surface waves by about a tenth of its radius.
    fn contains(&self, point: [f64; 3]) -> bool {
        let q: [f64; 3] = std::array::from_fn(|axis| (point[axis] - self.centre[axis]) / self.radii[axis]);
        let [x, y, z] = q;
        let r2 = x * x + y * y + z * z;
        if r2 > 1.44 {
            return false;
        }
        let [a, b, c, d, e, f] = self.phases;
        let wave = (2.6 * x + a).sin() * (2.2 * y + b).cos()
            + (2.4 * y + c).sin() * (2.0 * z + d).cos()
            + (2.8 * z + e).sin() * (2.1 * x + f).cos();
        // Dents vanish at the centre, so that the thinnest organ keeps its core.
        r2 < 1.0 + 0.13 * wave * r2.sqrt()
    }
}
