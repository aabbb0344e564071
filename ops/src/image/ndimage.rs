//! Resizing, rotating and flipping of slices exactly as in SciPy and NumPy: the published augmentation calls
//! `scipy.ndimage.zoom`, `scipy.ndimage.rotate`, `numpy.rot90` and `numpy.flip`.
//!
//! A slice is `[h, w]` in row-major order, passed with its shape. All arithmetic is in f64 as in SciPy; these functions run on
//! one thread each, callers spread slices over threads.
//!
//! Two properties of SciPy's default `mode="constant"` are kept on purpose. A coordinate outside `[0, n - 1]`, even slightly, gets the fill
//! value 0, not its nearest neighbour: rotated slices lose half a pixel at the border, and a zoom whose last grid point rounds to just above
//! `n - 1` has a last row or column of zeros. And the spline of order 3 extends the slice by reflection about the centres of its outermost
//! pixels.

/// Pole of the cubic B-spline's recursive prefilter, `sqrt(3) - 2` (Unser, Aldroubi and Eden 1991).
const CUBIC_POLE: f64 = -0.267_949_192_431_122_7;

/// `numpy.rot90(slice, quarter_turns)`: counter-clockwise quarter turns in the plane. Returns the turned slice and its shape.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn rot90<T: Copy>(slice: &[T], [h, w]: [usize; 2], quarter_turns: usize) -> (Vec<T>, [usize; 2]) {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    match quarter_turns % 4 {
        0 => (slice.to_vec(), [h, w]),
        1 => (gather([w, h], |row, column| slice[column * w + (w - 1 - row)]), [w, h]),
        2 => (gather([h, w], |row, column| slice[(h - 1 - row) * w + (w - 1 - column)]), [h, w]),
        _ => (gather([w, h], |row, column| slice[(h - 1 - column) * w + row]), [w, h]),
    }
}

/// `numpy.flip(slice, axis)`: axis 0 reverses the rows, any other axis the columns.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn flip<T: Copy>(slice: &[T], [h, w]: [usize; 2], axis: usize) -> Vec<T> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    match axis {
        0 => gather([h, w], |row, column| slice[(h - 1 - row) * w + column]),
        _ => gather([h, w], |row, column| slice[row * w + (w - 1 - column)]),
    }
}

/// `scipy.ndimage.rotate(slice, angle_degrees, order=0, reshape=False)`: keeps the shape; pixels from outside are `T::default()`.
///
/// Equal to SciPy's bit for bit at the whole degrees from -20 to 19 of the published augmentation. At the few angles whose sine
/// and cosine are rational multiples of each other or of 1 (30, 45, 60, ...), pixels may lie exactly between two others; the last
/// bit of the sine then decides, and may do so differently.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn rotate_nearest<T: Copy + Default>(slice: &[T], [h, w]: [usize; 2], angle_degrees: f64) -> Vec<T> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    let (sin, cos) = sin_cos_degrees(angle_degrees);
    // Output pixel (row, column) shows input pixel R (row, column) + offset, where R turns about the slice's centre.
    let centre = [(h as f64 - 1.0) / 2.0, (w as f64 - 1.0) / 2.0];
    let offset = [centre[0] - (cos * centre[0] + sin * centre[1]), centre[1] - (-sin * centre[0] + cos * centre[1])];
    gather([h, w], |row, column| {
        let (row, column) = (row as f64, column as f64);
        let source_row = nearest_index(row * cos + column * sin + offset[0], h);
        let source_column = nearest_index(row * -sin + column * cos + offset[1], w);
        match (source_row, source_column) {
            (Some(row), Some(column)) => slice[row * w + column],
            _ => T::default(),
        }
    })
}

/// `scipy.ndimage.zoom(slice, (oh / h, ow / w), order=0)`: the nearest pixel on the endpoint grid.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn zoom_nearest<T: Copy + Default>(slice: &[T], [h, w]: [usize; 2], [oh, ow]: [usize; 2]) -> Vec<T> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    if [h, w] == [oh, ow] {
        return slice.to_vec();
    }
    let rows: Vec<Option<usize>> = endpoint_grid(h, oh).map(|coordinate| nearest_index(coordinate, h)).collect();
    let columns: Vec<Option<usize>> = endpoint_grid(w, ow).map(|coordinate| nearest_index(coordinate, w)).collect();
    gather([oh, ow], |row, column| match (rows[row], columns[column]) {
        (Some(row), Some(column)) => slice[row * w + column],
        _ => T::default(),
    })
}

/// `scipy.ndimage.zoom(slice, (oh / h, ow / w), order=0, mode="nearest")`: as [`zoom_nearest`], but where rounding leads beyond the last pixel, as from
/// 384 to 192, it is that pixel instead of zero.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn zoom_nearest_within<T: Copy + Default>(slice: &[T], [h, w]: [usize; 2], [oh, ow]: [usize; 2]) -> Vec<T> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    if [h, w] == [oh, ow] || slice.is_empty() {
        return slice.to_vec();
    }
    let of_side = |from: usize, to: usize| -> Vec<usize> {
        let last = from - 1;
        endpoint_grid(from, to).map(|coordinate| nearest_index(coordinate.min(last as f64), from).unwrap_or(last)).collect()
    };
    let (rows, columns) = (of_side(h, oh), of_side(w, ow));
    gather([oh, ow], |row, column| slice[rows[row] * w + columns[column]])
}

/// `scipy.ndimage.zoom(slice, (oh / h, ow / w), order=1)`: bilinear on the endpoint grid, in PyTorch `interpolate(mode="bilinear",
/// align_corners=True)`.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn zoom_linear(slice: &[f32], [h, w]: [usize; 2], [oh, ow]: [usize; 2]) -> Vec<f32> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    if [h, w] == [oh, ow] {
        return slice.to_vec();
    }
    if slice.is_empty() {
        return vec![0.0; oh * ow];
    }
    let tap = |n: usize| {
        move |coordinate: f64| {
            // Rounding may lead beyond the last pixel.
            let coordinate = coordinate.clamp(0.0, (n - 1) as f64);
            let low = (coordinate as usize).min(n.saturating_sub(2));
            (low, (low + 1).min(n - 1), (coordinate - low as f64) as f32)
        }
    };
    let columns: Vec<(usize, usize, f32)> = endpoint_grid(w, ow).map(tap(w)).collect();
    let mut out = Vec::with_capacity(oh * ow);
    for (top, bottom, down) in endpoint_grid(h, oh).map(tap(h)) {
        let [top, bottom] = [top, bottom].map(|row| &slice[row * w..][..w]);
        out.extend(columns.iter().map(|&(left, right, along)| {
            let upper = top[left] + (top[right] - top[left]) * along;
            let lower = bottom[left] + (bottom[right] - bottom[left]) * along;
            upper + (lower - upper) * down
        }));
    }
    out
}

/// `scipy.ndimage.zoom(slice, (oh / h, ow / w), order=3)`: cubic B-spline interpolation on the endpoint grid, after the spline
/// prefilter. The result may slightly exceed the range of the slice, as in SciPy.
///
/// # Panics
/// When `slice` does not have `h * w` elements.
pub fn zoom_cubic(slice: &[f32], [h, w]: [usize; 2], [oh, ow]: [usize; 2]) -> Vec<f32> {
    assert_eq!(slice.len(), h * w, "a slice of shape {h}x{w} has {} elements", h * w);
    if [h, w] == [oh, ow] {
        return slice.to_vec();
    }
    if slice.is_empty() {
        return vec![0.0; oh * ow];
    }
    let coefficients = spline_coefficients(slice, [h, w]);
    let row_taps: Vec<Option<CubicTap>> = endpoint_grid(h, oh).map(|coordinate| CubicTap::new(coordinate, h)).collect();
    let column_taps: Vec<Option<CubicTap>> = endpoint_grid(w, ow).map(|coordinate| CubicTap::new(coordinate, w)).collect();
    let mut out = vec![0.0f32; oh * ow];
    let mut mixed = vec![0.0f64; w];
    for (row_tap, out_row) in row_taps.iter().zip(out.chunks_exact_mut(ow.max(1))) {
        let Some(row_tap) = row_tap else { continue };
        let [r0, r1, r2, r3] = row_tap.indices.map(|row| &coefficients[row * w..(row + 1) * w]);
        let [y0, y1, y2, y3] = row_tap.weights;
        for (column, value) in mixed.iter_mut().enumerate() {
            *value = r0[column] * y0 + r1[column] * y1 + r2[column] * y2 + r3[column] * y3;
        }
        for (tap, value) in column_taps.iter().zip(out_row) {
            let Some(tap) = tap else { continue };
            let [c0, c1, c2, c3] = tap.indices.map(|column| mixed[column]);
            let [x0, x1, x2, x3] = tap.weights;
            *value = (c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3) as f32;
        }
    }
    out
}

/// Four neighbouring spline coefficients along an axis and their weights at one coordinate.
pub(super) struct CubicTap {
    pub indices: [usize; 4],
    pub weights: [f64; 4],
}

impl CubicTap {
    /// `None` where the coordinate lies outside `[0, n - 1]`.
    pub fn new(coordinate: f64, n: usize) -> Option<Self> {
        if !(coordinate >= 0.0 && coordinate <= (n - 1) as f64) {
            return None;
        }
        let floor = coordinate.floor();
        let start = floor as isize - 1;
        let indices = std::array::from_fn(|tap| reflect(start + tap as isize, n));
        let y = coordinate - floor;
        let z = 1.0 - y;
        let w0 = z * z * z / 6.0;
        let w1 = (y * y * (y - 2.0) * 3.0 + 4.0) / 6.0;
        let w2 = (z * z * (z - 2.0) * 3.0 + 4.0) / 6.0;
        Some(CubicTap { indices, weights: [w0, w1, w2, 1.0 - w0 - w1 - w2] })
    }
}

/// Index within `[0, n)` of an index that left it by less than a length: reflection about the centres of the outermost pixels.
fn reflect(index: isize, n: usize) -> usize {
    if n <= 1 {
        return 0;
    }
    let period = 2 * (n as isize - 1);
    let index = index.rem_euclid(period);
    index.min(period - index) as usize
}

/// B-spline coefficients `[h, w]` of a slice: the recursive prefilter along each axis (`scipy.ndimage.spline_filter`).
pub(super) fn spline_coefficients(slice: &[f32], [h, w]: [usize; 2]) -> Vec<f64> {
    let mut coefficients: Vec<f64> = slice.iter().map(|&value| f64::from(value)).collect();
    prefilter_columns(&mut coefficients, [h, w]);
    let mut transposed = gather([w, h], |column, row| coefficients[row * w + column]);
    prefilter_columns(&mut transposed, [w, h]);
    gather([h, w], |row, column| transposed[column * h + row])
}

/// The cubic prefilter down every column of `c: [n, width]`, mirror boundary: gain, a causal pass that starts from the sum
/// over the endlessly mirrored column, and an anticausal pass. Whole rows at a time, so that columns share vector registers.
fn prefilter_columns(c: &mut [f64], [n, width]: [usize; 2]) {
    if n <= 1 {
        return;
    }
    let z = CUBIC_POLE;
    let gain = (1.0 - z) * (1.0 - 1.0 / z);
    c.iter_mut().for_each(|value| *value *= gain);

    let z_end = z.powi(n.min(1 << 20) as i32 - 1);
    let (first, rest) = c.split_at_mut(width);
    let row = |i: usize| &rest[(i - 1) * width..i * width];
    for (start, end) in first.iter_mut().zip(row(n - 1)) {
        *start += z_end * end;
    }
    let mut z_i = z;
    for i in 1..n - 1 {
        // The rest of the series is below the smallest f32.
        if z_i.abs() < 1e-50 {
            break;
        }
        for ((start, here), mirrored) in first.iter_mut().zip(row(i)).zip(row(n - 1 - i)) {
            *start += z_i * (here + z_end * mirrored);
        }
        z_i *= z;
    }
    first.iter_mut().for_each(|start| *start /= 1.0 - z_end * z_end);

    for i in 1..n {
        let (before, here) = c.split_at_mut(i * width);
        for (value, previous) in here[..width].iter_mut().zip(&before[(i - 1) * width..]) {
            *value += z * previous;
        }
    }
    let (before, last) = c.split_at_mut((n - 1) * width);
    for (value, previous) in last.iter_mut().zip(&before[(n - 2) * width..]) {
        *value = (z * previous + *value) * z / (z * z - 1.0);
    }
    for i in (0..n - 1).rev() {
        let (here, after) = c.split_at_mut((i + 1) * width);
        for (value, next) in here[i * width..].iter_mut().zip(&after[..width]) {
            *value = z * (next - *value);
        }
    }
}

/// The coordinates, on an axis of `n` pixels, of the `out_n` pixels of a zoom; both ends coincide.
fn endpoint_grid(n: usize, out_n: usize) -> impl Iterator<Item = f64> {
    let step = if out_n > 1 { (n as f64 - 1.0) / (out_n as f64 - 1.0) } else { 1.0 };
    (0..out_n).map(move |index| index as f64 * step)
}

/// The pixel nearest to a coordinate, halves upwards; `None` outside `[0, n - 1]`.
pub(super) fn nearest_index(coordinate: f64, n: usize) -> Option<usize> {
    (coordinate >= 0.0 && coordinate <= n as f64 - 1.0).then(|| (coordinate + 0.5).floor() as usize)
}

/// Sine and cosine of an angle in degrees, exact at multiples of 90 degrees.
fn sin_cos_degrees(angle_degrees: f64) -> (f64, f64) {
    let quarter_turns = (angle_degrees / 90.0).round();
    let (sin, cos) = (angle_degrees - 90.0 * quarter_turns).to_radians().sin_cos();
    match quarter_turns.rem_euclid(4.0) as u8 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// A slice of shape `[h, w]` from the value of each of its pixels.
pub(super) fn gather<T>([h, w]: [usize; 2], value: impl Fn(usize, usize) -> T) -> Vec<T> {
    let mut out = Vec::with_capacity(h * w);
    for row in 0..h {
        out.extend((0..w).map(|column| value(row, column)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SciPy 1.17: `zoom(a, 0.5, order=0)` of 32 rows has zeros at the end, with `mode="nearest"` the last row. Of 8 to 5 both are the same.
    #[test]
    fn nearest_pixels_may_be_kept_within_the_slice() {
        let a: Vec<u8> = (0..32).collect();
        let expected = [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31];
        assert_eq!(zoom_nearest_within(&a, [32, 1], [16, 1]), expected);
        assert_eq!(zoom_nearest(&a, [32, 1], [16, 1])[15], 0);
        assert_eq!(zoom_nearest_within(&a[..8], [1, 8], [1, 5]), zoom_nearest(&a[..8], [1, 8], [1, 5]));
    }

    #[test]
    fn quarter_turns_are_counter_clockwise() {
        let slice = [1, 2, 3, 4, 5, 6];
        assert_eq!(rot90(&slice, [2, 3], 1), (vec![3, 6, 2, 5, 1, 4], [3, 2]));
        assert_eq!(rot90(&slice, [2, 3], 2), (vec![6, 5, 4, 3, 2, 1], [2, 3]));
        assert_eq!(rot90(&slice, [2, 3], 3), (vec![4, 1, 5, 2, 6, 3], [3, 2]));
        assert_eq!(rot90(&slice, [2, 3], 4), (slice.to_vec(), [2, 3]));
        assert_eq!(flip(&slice, [2, 3], 0), [4, 5, 6, 1, 2, 3]);
        assert_eq!(flip(&slice, [2, 3], 1), [3, 2, 1, 6, 5, 4]);
    }

    /// What `scipy.ndimage.zoom(order=1)` and PyTorch's `interpolate(mode="bilinear", align_corners=True)` give, in float64.
    #[test]
    fn linear_zoom_is_scipys_and_pytorchs() {
        let slice = [0.1, 0.9, 0.3, 0.7, 0.2, 0.5f32];
        let expected = [
            [0.1, 0.633_333_3, 0.7, 0.3],
            [0.25, 0.566_666_7, 0.6, 0.35],
            [0.4, 0.5, 0.5, 0.4],
            [0.55, 0.433_333_3, 0.4, 0.45],
            [0.7, 0.366_666_7, 0.3, 0.5f32],
        ];
        let found = zoom_linear(&slice, [2, 3], [5, 4]);
        for (found, expected) in found.iter().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert_eq!(zoom_linear(&slice, [2, 3], [1, 2]), [0.1, 0.3]);
        assert_eq!(zoom_linear(&slice, [2, 3], [2, 3]), slice);
        assert_eq!(zoom_linear(&[0.5], [1, 1], [2, 2]), [0.5; 4]);
    }

    #[test]
    fn rotation_by_quarter_turns_is_rot90() {
        let slice: Vec<u8> = (0..49).collect();
        for turns in 0..4usize {
            let rotated = rotate_nearest(&slice, [7, 7], 90.0 * turns as f64);
            assert_eq!(rotated, rot90(&slice, [7, 7], turns).0, "{turns} quarter turns");
        }
    }

    #[test]
    fn rotation_fills_what_comes_from_outside_with_zero() {
        let rotated = rotate_nearest(&[1u8; 64], [8, 8], 20.0);
        assert_eq!(rotated[0], 0);
        assert_eq!(rotated[8 * 4 + 4], 1);
    }

    #[test]
    fn zoom_to_the_same_shape_copies() {
        let slice = [0.25f32, 1.0, -3.0, 0.5, 0.125, 7.0];
        assert_eq!(zoom_cubic(&slice, [2, 3], [2, 3]), slice);
        assert_eq!(zoom_nearest(&slice, [2, 3], [2, 3]), slice);
    }

    #[test]
    fn cubic_zoom_interpolates_the_pixels_and_reproduces_constants() {
        let slice: Vec<f32> = (0..35).map(|i| ((i * 7919) % 13) as f32).collect();
        let zoomed = zoom_cubic(&slice, [5, 7], [9, 13]);
        for row in 0..5 {
            for column in 0..7 {
                let (got, expected) = (zoomed[2 * row * 13 + 2 * column], slice[row * 7 + column]);
                assert!((got - expected).abs() < 1e-5, "pixel {row},{column}: {got} is not {expected}");
            }
        }
        assert!(zoom_cubic(&[0.75; 35], [5, 7], [11, 4]).iter().all(|value| (value - 0.75).abs() < 1e-6));
    }

    #[test]
    fn degenerate_shapes_do_not_panic() {
        assert_eq!(zoom_cubic(&[], [0, 3], [2, 2]), [0.0; 4]);
        assert_eq!(zoom_cubic(&[2.0], [1, 1], [2, 2]), [2.0; 4]);
        assert_eq!(zoom_cubic(&[2.0, 3.0], [2, 1], [1, 1]), [2.0]);
        assert_eq!(zoom_nearest(&[] as &[u8], [0, 0], [2, 2]), [0; 4]);
        assert_eq!(zoom_nearest(&[5u8, 6], [1, 2], [1, 1]), [5]);
        assert!(rotate_nearest(&[] as &[u8], [0, 0], 5.0).is_empty());
        assert!(zoom_cubic(&[1.0, 2.0], [1, 2], [0, 4]).is_empty());
    }
}
