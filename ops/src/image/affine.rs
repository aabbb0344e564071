//! Affine maps of slices as `scipy.ndimage.affine_transform` makes them.

use super::ndimage::{CubicTap, gather, nearest_index, spline_coefficients};

/// From a pixel (row, column) of the output to the coordinate in the input that it shows: `matrix · pixel + offset`, as SciPy takes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Rows of the matrix.
    pub matrix: [[f64; 2]; 2],
    /// Rows and columns.
    pub offset: [f64; 2],
}

impl Affine {
    /// A plane `[h, w]` turned about its centre by an angle, in the sense of `scipy.ndimage.rotate`, drawn `factor` times as large, and moved by
    /// `shift` pixels along rows and columns.
    pub fn about_centre([h, w]: [usize; 2], angle_degrees: f64, factor: f64, shift: [f64; 2]) -> Self {
        let (sin, cos) = angle_degrees.to_radians().sin_cos();
        let matrix = [[cos / factor, sin / factor], [-sin / factor, cos / factor]];
        let centre = [(h as f64 - 1.0) / 2.0, (w as f64 - 1.0) / 2.0];
        let shown = [centre[0] + shift[0], centre[1] + shift[1]];
        let offset = [0, 1].map(|axis| centre[axis] - (matrix[axis][0] * shown[0] + matrix[axis][1] * shown[1]));
        Affine { matrix, offset }
    }

    fn at(&self, row: usize, column: usize) -> [f64; 2] {
        let [row, column] = [row as f64, column as f64];
        [0, 1].map(|axis| self.matrix[axis][0] * row + self.matrix[axis][1] * column + self.offset[axis])
    }
}

/// `scipy.ndimage.affine_transform(slice, matrix, offset, order=3)`, of the same shape: what comes from outside is 0, and values may slightly exceed the
/// range of the slice.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn affine_cubic(slice: &[f32], [h, w]: [usize; 2], affine: Affine) -> Vec<f32> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    if slice.is_empty() {
        return Vec::new();
    }
    let coefficients = spline_coefficients(slice, [h, w]);
    gather([h, w], |row, column| {
        let [y, x] = affine.at(row, column);
        let (Some(rows), Some(columns)) = (CubicTap::new(y, h), CubicTap::new(x, w)) else { return 0.0 };
        let along = |row: usize| -> f64 {
            columns.indices.iter().zip(&columns.weights).map(|(&column, weight)| coefficients[row * w + column] * weight).sum()
        };
        rows.indices.iter().zip(&rows.weights).map(|(&row, weight)| along(row) * weight).sum::<f64>() as f32
    })
}

/// `scipy.ndimage.affine_transform(slice, matrix, offset, order=0)`, of the same shape: what comes from outside is `T::default()`.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn affine_nearest<T: Copy + Default>(slice: &[T], [h, w]: [usize; 2], affine: Affine) -> Vec<T> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    gather([h, w], |row, column| {
        let [y, x] = affine.at(row, column);
        match (nearest_index(y, h), nearest_index(x, w)) {
            (Some(y), Some(x)) => slice[y * w + x],
            _ => T::default(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::ndimage::rotate_nearest;
    use super::*;

    /// `((i * 37 + 11) % 53) / 53` for the i-th of 6 × 7 pixels.
    fn slice() -> Vec<f32> {
        (0..42).map(|i| ((i * 37 + 11) % 53) as f32 / 53.0).collect()
    }

    /// The values of SciPy 1.17 for the same arrays, from `tests/data/make_affine.py`.
    #[test]
    fn planes_are_those_of_scipy() {
        let affine = Affine::about_centre([6, 7], 17.0, 1.25, [0.5, -0.75]);
        let cubic = affine_cubic(&slice(), [6, 7], affine);
        let nearest = affine_nearest(&(1..43).collect::<Vec<u8>>(), [6, 7], affine);
        assert_eq!(nearest, EXPECTED_NEAREST);
        for (at, (found, expected)) in cubic.iter().zip(EXPECTED_CUBIC).enumerate() {
            assert!((found - expected).abs() < 1e-6, "pixel {at}: {found}, expected {expected}");
        }
    }

    #[test]
    fn an_angle_turns_as_a_rotation_does_and_nothing_is_the_identity() {
        let slice: Vec<u16> = (0..35 * 35).collect();
        for angle in [-20, 7, 19] {
            let affine = Affine::about_centre([35, 35], angle.into(), 1.0, [0.0; 2]);
            assert_eq!(affine_nearest(&slice, [35, 35], affine), rotate_nearest(&slice, [35, 35], angle.into()));
        }
        let identity = Affine::about_centre([35, 35], 0.0, 1.0, [0.0; 2]);
        assert_eq!(affine_nearest(&slice, [35, 35], identity), slice);
        // The body moves down by two rows and to the left by one column.
        let moved = affine_nearest(&slice, [35, 35], Affine::about_centre([35, 35], 0.0, 1.0, [2.0, -1.0]));
        assert_eq!((moved[2 * 35], moved[0], moved[34]), (slice[1], 0, 0));
    }

    #[rustfmt::skip]
    const EXPECTED_CUBIC: [f32; 42] = [
        0.0000000, 0.0000000, 0.0733508, 0.3584787, 0.6342436, 0.3183004, 0.0000000,
        0.7167887, 0.3125607, 0.3540476, 0.9689870, 0.6723566, 0.2817333, 0.0000000,
        0.7377018, 0.2383458, 0.0244988, 0.6924269, 0.6666623, 0.2518612, 0.0000000,
        0.6040294, 0.3418452, 0.4070263, 0.7408529, 0.5580882, 0.3176723, 0.3758304,
        0.5707773, 0.2375217, 0.7181220, 1.0147638, 0.5281339, 0.2214943, 0.7972310,
        0.6060161, 0.1930689, 0.3657851, 0.8277428, 0.5623627, 0.1118598, 0.4493055,
    ];
    #[rustfmt::skip]
    const EXPECTED_NEAREST: [u8; 42] = [
        0, 0, 5, 5, 13, 14, 0,
        3, 11, 11, 12, 13, 21, 0,
        10, 10, 18, 19, 20, 20, 0,
        16, 17, 18, 26, 26, 27, 28,
        23, 24, 25, 25, 33, 34, 35,
        30, 31, 31, 32, 33, 41, 41,
    ];
}
