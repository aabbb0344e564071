//! How a slice is shown: in the radiological convention, with the sides of the body, by the orientation of the scan's axes.

use sam_ladder_schemas::orientation::Orientation;

/// From a slice as it lies to the screen: the patient's right side is on the left, the front on top or on the left, the head on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Display {
    /// Rows and columns change places, before anything is reversed.
    transposed: bool,
    reversed_rows: bool,
    reversed_columns: bool,
    /// The sides of the body at the screen's left, right, top and bottom; `None` if nothing says how the scan lies.
    pub sides: Option<[char; 4]>,
}

/// The body's axis of a side, and the side towards which that axis runs on a screen: to the right or down.
fn axis_of(side: char) -> (usize, char) {
    match side {
        'L' | 'R' => (0, 'L'),
        'A' | 'P' => (1, 'P'),
        _ => (2, 'I'),
    }
}

fn opposite(side: char) -> char {
    match side {
        'L' => 'R',
        'R' => 'L',
        'A' => 'P',
        'P' => 'A',
        'S' => 'I',
        _ => 'S',
    }
}

impl Display {
    /// Of the slices of an array whose axes are width, height and depth; as they lie, if their orientation is unknown.
    pub fn of(orientation: Option<Orientation>) -> Display {
        let Some([width, height, _]) = orientation.map(Orientation::codes) else { return Display::default() };
        // Right-left lies across and foot-head upright; back-front takes what is left.
        let transposed = axis_of(width).0 > axis_of(height).0;
        let (across, down) = if transposed { (height, width) } else { (width, height) };
        let [(_, right), (_, bottom)] = [across, down].map(axis_of);
        Display {
            transposed,
            reversed_columns: across != right,
            reversed_rows: down != bottom,
            sides: Some([opposite(right), right, opposite(bottom), bottom]),
        }
    }

    /// A plane `[h, w]` as it is shown.
    pub fn plane<T: Copy>(self, plane: &[T], [height, width]: [usize; 2]) -> Vec<T> {
        let [rows, columns] = self.size([height, width]);
        let pixel = |row: usize, column: usize| {
            let row = if self.reversed_rows { rows - 1 - row } else { row };
            let column = if self.reversed_columns { columns - 1 - column } else { column };
            if self.transposed { plane[column * width + row] } else { plane[row * width + column] }
        };
        (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))).map(|(row, column)| pixel(row, column)).collect()
    }

    /// What belongs to rows and columns, as it is shown.
    pub fn size<T: Copy>(self, [height, width]: [T; 2]) -> [T; 2] {
        if self.transposed { [width, height] } else { [height, width] }
    }
}

/// One slice of a scan, at any resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct GreySlice {
    /// Height and width, in pixels.
    pub size: [usize; 2],
    /// Grey values `[h, w]`, 0 black to 1 white; others are clipped.
    pub values: Vec<f32>,
}

/// A slice as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ShownSlice {
    /// The scan; black if `None`.
    pub grey: Option<GreySlice>,
    /// Reference classes `[h, w]`.
    pub reference: Vec<u8>,
    /// Predicted classes `[h, w]`.
    pub prediction: Vec<u8>,
    /// Height and width of the masks, in pixels.
    pub size: [usize; 2],
    /// Distance between the masks' pixels along height and width, in millimetres, which gives the picture the scan's proportions.
    pub spacing_mm: [f64; 2],
    /// The sides of the body at the left, right, top and bottom.
    pub sides: Option<[char; 4]>,
}

/// How two masks differ in a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Only the reference has an organ.
    Missed = 1,
    /// Only the prediction has one.
    Added = 2,
    /// Both have one, and not the same.
    OtherOrgan = 3,
}

impl Difference {
    pub const ALL: [Difference; 3] = [Difference::Missed, Difference::Added, Difference::OtherOrgan];

    /// `None` where both are the same.
    pub fn of(reference: u8, prediction: u8) -> Option<Difference> {
        match (reference, prediction) {
            (reference, prediction) if reference == prediction => None,
            (_, 0) => Some(Difference::Missed),
            (0, _) => Some(Difference::Added),
            _ => Some(Difference::OtherOrgan),
        }
    }

    /// What a legend calls it.
    pub fn name(self) -> &'static str {
        match self {
            Difference::Missed => "only in the reference",
            Difference::Added => "only in the prediction",
            Difference::OtherOrgan => "in both, as different organs",
        }
    }

    /// Red, green and blue; different in lightness, also for colour-blind readers.
    pub fn colour(self) -> [u8; 3] {
        match self {
            Difference::Missed => [64, 156, 255],
            Difference::Added => [255, 106, 48],
            Difference::OtherOrgan => [250, 230, 80],
        }
    }
}

impl ShownSlice {
    /// The differences, as numbers of [`Difference`]; 0 where both masks are the same.
    pub fn differences(&self) -> Vec<u8> {
        let both = self.reference.iter().zip(&self.prediction);
        both.map(|(&reference, &prediction)| Difference::of(reference, prediction).map_or(0, |found| found as u8)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each pixel of `[2, 3]` becomes, and the sides.
    fn shown(codes: &str) -> (Vec<u8>, String) {
        let display = Display::of(Some(codes.parse().unwrap()));
        (display.plane(&[1, 2, 3, 4, 5, 6], [2, 3]), display.sides.unwrap().iter().collect())
    }

    #[test]
    fn the_patients_right_is_on_the_left_and_the_front_on_top() {
        assert_eq!(shown("LPS"), (vec![1, 2, 3, 4, 5, 6], "RLAP".into()));
        assert_eq!(shown("LPI"), shown("LPS"), "the order of the slices changes none");
        // RAS: columns run to the right side of the body and rows to the front.
        assert_eq!(shown("RAS"), (vec![6, 5, 4, 3, 2, 1], "RLAP".into()));
        assert_eq!(shown("LAS"), (vec![4, 5, 6, 1, 2, 3], "RLAP".into()));
        // Columns run to the back, rows to the left.
        assert_eq!(shown("PLS"), (vec![1, 4, 2, 5, 3, 6], "RLAP".into()));
        // Coronal and sagittal slices: the head is on top, and of sagittal ones the front on the left.
        assert_eq!(shown("LIP"), (vec![1, 2, 3, 4, 5, 6], "RLSI".into()));
        assert_eq!(shown("ASR"), (vec![6, 5, 4, 3, 2, 1], "APSI".into()));
        assert_eq!(shown("SPR"), (vec![3, 6, 2, 5, 1, 4], "APSI".into()));
    }

    #[test]
    fn a_scan_of_unknown_orientation_is_shown_as_it_lies() {
        let display = Display::of(None);
        assert_eq!((display.plane(&[1, 2, 3, 4], [2, 2]), display.sides), (vec![1, 2, 3, 4], None));
        assert_eq!((display.size([2, 3]), Display::of(Some("PLS".parse().unwrap())).size([2, 3])), ([2, 3], [3, 2]));
    }

    #[test]
    fn differences_are_of_three_kinds() {
        let found = [(0, 0), (4, 4), (4, 0), (0, 4), (4, 5)].map(|(reference, prediction)| Difference::of(reference, prediction));
        assert_eq!(found, [None, None, Some(Difference::Missed), Some(Difference::Added), Some(Difference::OtherOrgan)]);
    }
}
