//! The organs' colours.

use sam_ladder_schemas::eval::Palette;

/// Colours of classes 1 to 8, [`Palette::Distinct`]: Okabe and Ito's without black, and a light green.
const DISTINCT: [[u8; 3]; 8] =
    [[230, 159, 0], [86, 180, 233], [0, 114, 178], [240, 228, 66], [213, 94, 0], [0, 158, 115], [204, 121, 167], [164, 222, 108]];
/// Colours of classes 1 to 8, [`Palette::ItkSnap`].
const ITK_SNAP: [[u8; 3]; 8] =
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255, 239, 213], [0, 0, 205]];

/// Colour of a class, red, green and blue; black for the background. Classes beyond the eighth get hues around the colour circle.
pub(crate) fn colour(palette: Palette, class: u8) -> [u8; 3] {
    let organs = match palette {
        Palette::Distinct => DISTINCT,
        Palette::ItkSnap => ITK_SNAP,
    };
    match class {
        0 => [0; 3],
        class if usize::from(class) <= organs.len() => organs[usize::from(class) - 1],
        // The golden angle keeps neighbours apart.
        class => hue((f64::from(class) * 137.508) % 360.0, if class % 2 == 0 { 0.95 } else { 0.7 }),
    }
}

/// `#rrggbb`.
pub(crate) fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// A saturated colour by its hue in degrees and its value in [0, 1].
fn hue(degrees: f64, value: f64) -> [u8; 3] {
    [5.0, 3.0, 1.0].map(|channel: f64| {
        let k = (channel + degrees / 60.0) % 6.0;
        (255.0 * value * (1.0 - 0.75 * k.min(4.0 - k).clamp(0.0, 1.0))).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_different_colours() {
        let distinct = |class| colour(Palette::Distinct, class);
        for a in 0..40u8 {
            for b in 0..a {
                let distance: u32 = distinct(a).iter().zip(distinct(b)).map(|(&a, b)| u32::from(a.abs_diff(b))).sum();
                assert!(distance > 16, "classes {a} and {b} look alike: {:?} {:?}", distinct(a), distinct(b));
            }
        }
        assert_eq!(hex(distinct(1)), "#e69f00");
        assert_eq!(colour(Palette::ItkSnap, 2), [0, 255, 0]);
        assert_eq!(colour(Palette::ItkSnap, 9), distinct(9));
    }
}
