//! Pictures of a slice: scan, reference and prediction side by side.

use crate::palette::colour;
use sam_ladder_schemas::eval::Palette;

/// Pixels along the longer side of a panel.
const PANEL: usize = 320;
/// Pixels between panels.
const GAP: usize = 6;
/// Share of the organ's colour over the scan's grey.
const OPACITY: f32 = 0.55;

/// One slice of a scan, at any resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct GreySlice {
    /// Height and width, in pixels.
    pub size: [usize; 2],
    /// Grey values `[h, w]`, 0 black to 1 white; others are clipped.
    pub values: Vec<f32>,
}

/// Content of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    /// The scan; black if `None`.
    pub grey: Option<&'a GreySlice>,
    /// Reference classes `[h, w]`.
    pub reference: &'a [u8],
    /// Predicted classes `[h, w]`.
    pub prediction: &'a [u8],
    /// Height and width of the masks, in pixels.
    pub size: [usize; 2],
    /// Distance between the masks' pixels along height and width, in millimetres, which gives the panels the scan's proportions.
    pub spacing_mm: [f64; 2],
    /// Colours of the organs.
    pub palette: Palette,
}

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

/// Draws scan, reference and prediction side by side, with white gaps. The scan is resized bilinearly, masks by the nearest pixel.
pub fn draw(panels: &Panels) -> Picture {
    let [height, width] = panel_size(panels.size, panels.spacing_mm);
    let total_width = 3 * width + 2 * GAP;
    let mut rgb = vec![255u8; total_width * height * 3];
    let [mask_h, mask_w] = panels.size;
    for y in 0..height {
        for x in 0..width {
            let grey = panels.grey.map_or(0.0, |grey| sample(grey, y, x, [height, width]));
            let source = (y * mask_h / height) * mask_w + x * mask_w / width;
            let classes = [0, panels.reference[source], panels.prediction[source]];
            for (panel, class) in classes.into_iter().enumerate() {
                let pixel = (y * total_width + panel * (width + GAP) + x) * 3;
                rgb[pixel..pixel + 3].copy_from_slice(&blend(grey, panels.palette, class));
            }
        }
    }
    Picture { width: total_width, height, rgb }
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

/// Grey with an organ's colour over it.
fn blend(grey: f32, palette: Palette, class: u8) -> [u8; 3] {
    let opacity = if class == 0 { 0.0 } else { OPACITY };
    colour(palette, class)
        .map(|channel| (255.0 * grey.clamp(0.0, 1.0) * (1.0 - opacity) + f32::from(channel) * opacity).round() as u8)
}

/// The picture as a PNG file.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_show_scan_reference_and_prediction() {
        let grey = GreySlice { size: [2, 2], values: vec![1.0; 4] };
        let panels = Panels {
            grey: Some(&grey),
            reference: &[1, 1, 1, 1],
            prediction: &[0, 0, 2, 2],
            size: [2, 2],
            spacing_mm: [0.7, 0.7],
            palette: Palette::Distinct,
        };
        let picture = draw(&panels);
        assert_eq!((picture.width, picture.height), (3 * PANEL + 2 * GAP, PANEL));
        let pixel = |y: usize, x: usize| &picture.rgb[(y * picture.width + x) * 3..][..3];
        assert_eq!(pixel(0, 0), [255; 3]);
        assert_eq!(pixel(0, PANEL + GAP), blend(1.0, Palette::Distinct, 1));
        assert_eq!(pixel(0, 2 * (PANEL + GAP)), [255; 3]);
        assert_eq!(pixel(PANEL - 1, 2 * (PANEL + GAP)), blend(1.0, Palette::Distinct, 2));
        let decoded = png::Decoder::new(std::io::Cursor::new(encode_png(&picture).unwrap())).read_info().unwrap();
        assert_eq!((decoded.info().width as usize, decoded.info().height as usize), (picture.width, picture.height));
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
        assert_eq!(blend(7.0, Palette::Distinct, 0), [255; 3]);
        assert_eq!(blend(-1.0, Palette::Distinct, 0), [0; 3]);
    }
}
