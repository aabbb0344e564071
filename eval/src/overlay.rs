//! Pictures of a slice as files: the scan with both masks' outlines, and next to it where they differ.

use crate::display::{Difference, GreySlice, ShownSlice};
use crate::palette::colour;
use sam_ladder_schemas::eval::Palette;

/// Pixels along the longer side of a panel.
const PANEL: usize = 512;
/// Pixels between panels.
const GAP: usize = 8;
/// Pixels of a line.
const LINE: usize = 2;
/// Pixels of a dash, and of the gap after it.
const DASH: usize = 5;
/// Share of a difference's colour over the scan's grey.
const OPACITY: f32 = 0.75;
/// Pixels of a dot of the letters.
const DOT: usize = 2;
/// The letters of the body's sides, five dots wide: a row's bits from the left.
const LETTERS: [(char, [u8; 7]); 6] = [
    ('R', [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001]),
    ('L', [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111]),
    ('A', [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001]),
    ('P', [0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000]),
    ('S', [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110]),
    ('I', [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110]),
];

/// An RGB picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels along a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue of each pixel, row by row.
    pub rgb: Vec<u8>,
}

/// Colour of an organ's outline in the reference: paler than in the prediction.
pub(crate) fn reference_colour(palette: Palette, class: u8) -> [u8; 3] {
    colour(palette, class).map(|channel| channel + (255 - channel) / 2)
}

/// Draws two panels with a white gap: the scan with the outlines of the prediction, and dashed those of the reference; the scan with the
/// pixels in which they differ. The scan is resized bilinearly, masks by the nearest pixel.
pub(crate) fn draw(slice: &ShownSlice, palette: Palette) -> Picture {
    let [height, width] = panel_size(slice.size, slice.spacing_mm);
    let total_width = 2 * width + GAP;
    let mut picture = Picture { width: total_width, height, rgb: vec![255u8; total_width * height * 3] };
    let [mask_h, mask_w] = slice.size;
    let enlarged = |plane: &[u8]| -> Vec<u8> {
        let source = |at: usize| (at / width * mask_h / height) * mask_w + at % width * mask_w / width;
        (0..height * width).map(|at| plane[source(at)]).collect()
    };
    let (reference, prediction) = (enlarged(&slice.reference), enlarged(&slice.prediction));
    for y in 0..height {
        for x in 0..width {
            let grey = slice.grey.as_ref().map_or(0.0, |grey| sample(grey, y, x, [height, width]));
            let at = y * width + x;
            let is_line = |plane: &[u8]| is_outline(plane, [height, width], y, x);
            let outlined = if ((x + y) / DASH).is_multiple_of(2) && is_line(&reference) {
                reference_colour(palette, reference[at])
            } else if is_line(&prediction) {
                colour(palette, prediction[at])
            } else {
                blend(grey, [0; 3], 0.0)
            };
            picture.set(y, x, outlined);
            let difference = Difference::of(reference[at], prediction[at]);
            let different = difference.map_or_else(|| blend(grey, [0; 3], 0.0), |found| blend(grey, found.colour(), OPACITY));
            picture.set(y, width + GAP + x, different);
        }
    }
    for left in [0, width + GAP] {
        picture.write_sides(slice.sides, left, width);
    }
    picture
}

impl Picture {
    fn set(&mut self, y: usize, x: usize, colour: [u8; 3]) {
        let pixel = (y * self.width + x) * 3;
        self.rgb[pixel..pixel + 3].copy_from_slice(&colour);
    }

    /// Writes the sides of the body at the edges of a panel, if it has room for them.
    fn write_sides(&mut self, sides: Option<[char; 4]>, left: usize, width: usize) {
        let [letter_h, letter_w] = [7 * DOT, 5 * DOT];
        let Some([l, r, top, bottom]) = sides.filter(|_| width > 4 * letter_w && self.height > 4 * letter_h) else { return };
        let (middle_x, middle_y) = (left + (width - letter_w) / 2, (self.height - letter_h) / 2);
        let margin = 2 * DOT;
        self.write(l, middle_y, left + margin);
        self.write(r, middle_y, left + width - letter_w - margin);
        self.write(top, margin, middle_x);
        self.write(bottom, self.height - letter_h - margin, middle_x);
    }

    /// Writes a letter, white with a black edge, at its upper left corner.
    fn write(&mut self, letter: char, y: usize, x: usize) {
        let Some((_, rows)) = LETTERS.iter().find(|(name, _)| *name == letter) else { return };
        let dots = || {
            (0..7)
                .flat_map(|row| (0..5).map(move |column| (row, column)))
                .filter(|(row, column)| rows[*row] >> (4 - column) & 1 == 1)
        };
        for (colour, edge) in [([0; 3], 1), ([255; 3], 0)] {
            for (row, column) in dots() {
                let (from_y, from_x) = (y + row * DOT - edge, x + column * DOT - edge);
                for (dy, dx) in (0..DOT + 2 * edge).flat_map(|dy| (0..DOT + 2 * edge).map(move |dx| (dy, dx))) {
                    self.set(from_y + dy, from_x + dx, colour);
                }
            }
        }
    }
}

/// Whether a pixel belongs to an organ and is less than a line's width from where it ends.
fn is_outline(plane: &[u8], [height, width]: [usize; 2], y: usize, x: usize) -> bool {
    let class = plane[y * width + x];
    if class == 0 {
        return false;
    }
    let differs = |dy: isize, dx: isize| {
        let (y, x) = (y.checked_add_signed(dy), x.checked_add_signed(dx));
        let found = y.zip(x).filter(|&(y, x)| y < height && x < width).map(|(y, x)| plane[y * width + x]);
        found != Some(class)
    };
    (1..=LINE as isize).any(|far| differs(far, 0) || differs(-far, 0) || differs(0, far) || differs(0, -far))
}

/// Height and width of a panel: the longer side is [`PANEL`], and pixels are square in millimetres.
fn panel_size([height, width]: [usize; 2], spacing_mm: [f64; 2]) -> [usize; 2] {
    let extent = [height as f64 * spacing_mm[0], width as f64 * spacing_mm[1]];
    let scale = PANEL as f64 / extent[0].max(extent[1]);
    extent.map(|extent| ((extent * scale).round() as usize).clamp(8, PANEL))
}

/// Grey at a panel's pixel, bilinear between pixel centres.
fn sample(grey: &GreySlice, y: usize, x: usize, panel: [usize; 2]) -> f32 {
    let at = |position: usize, axis: usize| {
        let source = (position as f32 + 0.5) * grey.size[axis] as f32 / panel[axis] as f32 - 0.5;
        let source = source.clamp(0.0, grey.size[axis] as f32 - 1.0);
        let low = source.floor() as usize;
        (low, (low + 1).min(grey.size[axis] - 1), source.fract())
    };
    let ((y0, y1, fy), (x0, x1, fx)) = (at(y, 0), at(x, 1));
    let value = |y: usize, x: usize| grey.values[y * grey.size[1] + x];
    let along = |y: usize| value(y, x0) * (1.0 - fx) + value(y, x1) * fx;
    along(y0) * (1.0 - fy) + along(y1) * fy
}

/// Grey with a colour over it.
fn blend(grey: f32, colour: [u8; 3], opacity: f32) -> [u8; 3] {
    colour.map(|channel| (255.0 * grey.clamp(0.0, 1.0) * (1.0 - opacity) + f32::from(channel) * opacity).round() as u8)
}

/// The picture as a PNG file.
pub(crate) fn encode_png(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    encode([picture.width, picture.height], png::ColorType::Rgb, &picture.rgb)
}

/// A slice of a scan as a PNG file of greys, at its own resolution; a black pixel if there is none.
pub(crate) fn encode_grey(slice: Option<&GreySlice>) -> Result<Vec<u8>, png::EncodingError> {
    match slice {
        Some(GreySlice { size: [height, width], values }) => {
            let grey: Vec<u8> = values.iter().map(|&value| blend(value, [0; 3], 0.0)[0]).collect();
            encode([*width, *height], png::ColorType::Grayscale, &grey)
        }
        None => encode([1, 1], png::ColorType::Grayscale, &[0]),
    }
}

fn encode([width, height]: [usize; 2], kind: png::ColorType, data: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(kind);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(data)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(reference: &[u8], prediction: &[u8], size: [usize; 2]) -> ShownSlice {
        ShownSlice {
            grey: Some(GreySlice { size: [2, 2], values: vec![1.0; 4] }),
            reference: reference.to_vec(),
            prediction: prediction.to_vec(),
            size,
            spacing_mm: [0.7, 0.7],
            sides: None,
        }
    }

    /// Rows: both have organ 1; only the reference; only the prediction, another organ.
    #[test]
    fn panels_show_outlines_and_differences() {
        let picture = draw(&slice(&[1, 1, 1, 1], &[1, 1, 0, 2], [2, 2]), Palette::Distinct);
        assert_eq!((picture.width, picture.height), (2 * PANEL + GAP, PANEL));
        let pixel = |y: usize, x: usize| &picture.rgb[(y * picture.width + x) * 3..][..3];
        let half = PANEL / 2;
        // Inside an organ is the scan.
        assert_eq!(pixel(half / 2, half / 2), [255; 3]);
        // Along the picture's upper edge both end: dashes of the paler colour, and between them the other.
        let edge: Vec<&[u8]> = (0..4 * DASH).map(|x| pixel(0, x)).collect();
        assert_eq!(edge[0], reference_colour(Palette::Distinct, 1));
        assert_eq!(edge[DASH], colour(Palette::Distinct, 1));
        // The prediction ends in the middle of the left half; below it is no line of it.
        assert_eq!(pixel(half - 1, half / 2), colour(Palette::Distinct, 1));
        assert_eq!(pixel(half + 1, half / 2), [255; 3]);
        let right = PANEL + GAP;
        assert_eq!(pixel(half / 2, right + half / 2), [255; 3], "the same");
        assert_eq!(pixel(half + 50, right + 50), blend(1.0, Difference::Missed.colour(), OPACITY));
        assert_eq!(pixel(half + 50, right + half + 50), blend(1.0, Difference::OtherOrgan.colour(), OPACITY));
        let decoded = png::Decoder::new(std::io::Cursor::new(encode_png(&picture).unwrap())).read_info().unwrap();
        assert_eq!((decoded.info().width as usize, decoded.info().height as usize), (picture.width, picture.height));
    }

    #[test]
    fn the_sides_of_the_body_stand_at_the_edges() {
        let mut shown = slice(&[0; 4], &[0; 4], [2, 2]);
        shown.grey = None;
        let empty = draw(&shown, Palette::Distinct);
        shown.sides = Some(['R', 'L', 'A', 'P']);
        let marked = draw(&shown, Palette::Distinct);
        // White pixels in the left panel, by which edge they are at.
        let mut found = [0; 4];
        for (y, x) in (0..PANEL).flat_map(|y| (0..PANEL).map(move |x| (y, x))) {
            let at = (y * marked.width + x) * 3;
            if marked.rgb[at] != empty.rgb[at] {
                let edge = [x < 20, x > PANEL - 20, y < 20, y > PANEL - 20];
                assert_eq!(edge.iter().filter(|at| **at).count(), 1, "at {y}, {x}");
                found[edge.iter().position(|at| *at).unwrap()] += 1;
            }
        }
        let dots = |letter: char| {
            let rows = LETTERS.iter().find(|(name, _)| *name == letter).unwrap().1;
            rows.iter().map(|row| row.count_ones()).sum::<u32>() as usize * DOT * DOT
        };
        assert_eq!(found, ['R', 'L', 'A', 'P'].map(dots));
        // A panel without room has no letters.
        shown.spacing_mm = [0.7, 7.0];
        assert_eq!(draw(&shown, Palette::Distinct).height, 51);
    }

    #[test]
    fn panels_have_the_scans_proportions() {
        assert_eq!(panel_size([512, 512], [0.7, 0.7]), [PANEL, PANEL]);
        assert_eq!(panel_size([100, 50], [1.0, 1.0]), [PANEL, PANEL / 2]);
        assert_eq!(panel_size([100, 50], [1.0, 4.0]), [PANEL / 2, PANEL]);
        assert_eq!(panel_size([1, 5000], [1.0, 1.0]), [8, PANEL]);
    }

    #[test]
    fn grey_is_smooth_and_clipped() {
        let grey = GreySlice { size: [1, 2], values: vec![0.0, 1.0] };
        let row: Vec<f32> = (0..4).map(|x| sample(&grey, 0, x, [1, 4])).collect();
        assert_eq!(row, [0.0, 0.25, 0.75, 1.0]);
        assert_eq!((blend(7.0, [0; 3], 0.0), blend(-1.0, [0; 3], 0.0)), ([255; 3], [0; 3]));
        let png = encode_grey(Some(&GreySlice { size: [1, 2], values: vec![-1.0, 0.5] })).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = [9; 2];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [0, 128]);
    }
}
