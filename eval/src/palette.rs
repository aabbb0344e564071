//! One colour an organ.

/// Colours of classes 1 to 8, far apart in hue and lightness on a grey scan (Okabe and Ito's set without black, and a light green).
const ORGANS: [[u8; 3]; 8] =
    [[230, 159, 0], [86, 180, 233], [0, 114, 178], [240, 228, 66], [213, 94, 0], [0, 158, 115], [204, 121, 167], [164, 222, 108]];

/// Colour of a class, red, green and blue; black for the background. Classes beyond the eighth take hues around the circle.
pub fn colour(class: u8) -> [u8; 3] {
    match class {
        0 => [0; 3],
        class if usize::from(class) <= ORGANS.len() => ORGANS[usize::from(class) - 1],
        // The golden angle keeps neighbours apart.
        class => hue((f64::from(class) * 137.508) % 360.0, if class % 2 == 0 { 0.95 } else { 0.7 }),
    }
}

/// `#rrggbb`.
pub(crate) fn hex(class: u8) -> String {
    let [red, green, blue] = colour(class);
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
    fn classes_are_told_apart() {
        for a in 0..40u8 {
            for b in 0..a {
                let distance: u32 = colour(a).iter().zip(colour(b)).map(|(&a, b)| u32::from(a.abs_diff(b))).sum();
                assert!(distance > 16, "classes {a} and {b} look alike: {:?} {:?}", colour(a), colour(b));
            }
        }
        assert_eq!(hex(1), "#e69f00");
    }
}
