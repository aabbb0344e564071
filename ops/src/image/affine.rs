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
        let affine = Affine::about_centre([6, 7], 17.0, 1.25, [0.5, -0.85]);
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
        0.000000, 0.000000, 0.056482, 0.421344, 0.607530, 0.304214, 0.000000,
        0.669723, 0.284795, 0.410323, 0.988197, 0.614092, 0.265068, 0.000000,
        0.701292, 0.183059, 0.070673, 0.738173, 0.628851, 0.209464, 0.000000,
        0.578901, 0.319417, 0.449883, 0.740976, 0.533164, 0.299792, 0.403305,
        0.526639, 0.237907, 0.792001, 0.982406, 0.478301, 0.235003, 0.862521,
        0.568267, 0.168613, 0.424699, 0.832835, 0.510344, 0.097291, 0.520473,
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
