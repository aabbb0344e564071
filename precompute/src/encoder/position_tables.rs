//! Position tables brought to another image size when a checkpoint is loaded, as `load_from` of the published code does
//! (`F.interpolate`, bilinear, `align_corners=False`): the absolute table along both axes, the global blocks' relative tables along
//! their rows.

/// Where output sample `index` of `size` falls between the input's samples: the two neighbours and the second one's share.
fn source(index: usize, size: usize, input_size: usize) -> (usize, usize, f32) {
    let scale = input_size as f32 / size as f32;
    let at = ((index as f32 + 0.5) * scale - 0.5).max(0.0);
    let low = (at as usize).min(input_size - 1);
    (low, (low + 1).min(input_size - 1), at - low as f32)
}

/// Resizes a table of relative positions along its rows.
///
/// # Shapes
/// table `[input_rows, width]` → `[rows, width]`
pub fn resize_rows(table: &[f32], input_rows: usize, rows: usize) -> Vec<f32> {
    let width = table.len() / input_rows;
    let mut resized = Vec::with_capacity(rows * width);
    for row in 0..rows {
        let (low, high, share) = source(row, rows, input_rows);
        let (low, high) = (&table[low * width..(low + 1) * width], &table[high * width..(high + 1) * width]);
        resized.extend(low.iter().zip(high).map(|(low, high)| low * (1.0 - share) + high * share));
    }
    resized
}

/// Resizes the table of absolute positions along both axes.
///
/// # Shapes
/// table `[input_side, input_side, width]` → `[side, side, width]`
pub fn resize_square(table: &[f32], input_side: usize, side: usize) -> Vec<f32> {
    let width = table.len() / (input_side * input_side);
    let row = |y: usize| &table[y * input_side * width..(y + 1) * input_side * width];
    let columns: Vec<f32> = (0..input_side).flat_map(|y| resize_rows(row(y), input_side, side)).collect(); // [input_side, side, width]
    resize_rows(&columns, input_side, side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_interpolate() {
        // torch.nn.functional.interpolate([0, 10, 20, 40], size, mode="linear", align_corners=False)
        let table = [0.0, 10.0, 20.0, 40.0];
        assert_eq!(resize_rows(&table, 4, 2), [5.0, 30.0]);
        assert_eq!(resize_rows(&table, 4, 8), [0.0, 2.5, 7.5, 12.5, 17.5, 25.0, 35.0, 40.0]);
        assert_eq!(resize_rows(&table, 4, 4), table);
        assert_eq!(resize_rows(&[3.0, 4.0], 1, 3), [3.0, 4.0, 3.0, 4.0, 3.0, 4.0]);
    }

    #[test]
    fn a_square_is_resized_along_both_axes() {
        // f(y, x) = 4y + x, two values a cell
        let table: Vec<f32> = (0..16).flat_map(|i| [i as f32, -(i as f32)]).collect();
        let resized = resize_square(&table, 4, 2);
        assert_eq!(resized, [2.5, -2.5, 4.5, -4.5, 10.5, -10.5, 12.5, -12.5]);
    }
}
