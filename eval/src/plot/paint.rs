//! Colours of marks.

/// Colour of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Colour of a series, from 0; there are eight colours, in light and in dark, which then repeat.
    Series(usize),
    /// Red, green and blue, the same in light and dark: an organ's colour.
    Fixed([u8; 3]),
}

impl Paint {
    /// The colour in CSS.
    pub fn css(self) -> String {
        match self {
            Paint::Series(index) => format!("var(--plot-{})", index % 8 + 1),
            Paint::Fixed([red, green, blue]) => format!("#{red:02x}{green:02x}{blue:02x}"),
        }
    }
}

/// Colours of a sequential map from 0 to 1, evenly spaced: dark blue to yellow, with increasing lightness.
const RAMP: [[u8; 3]; 7] =
    [[29, 27, 84], [48, 60, 132], [38, 104, 148], [29, 143, 143], [73, 181, 114], [163, 212, 74], [245, 231, 68]];

/// Colour of a share in [0, 1] on the sequential map; others are clipped.
pub(crate) fn ramp(share: f64) -> [u8; 3] {
    let position = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let index = (position as usize).min(RAMP.len() - 2);
    let between = position - index as f64;
    std::array::from_fn(|channel| {
        let [low, high] = [index, index + 1].map(|index| f64::from(RAMP[index][channel]));
        (low + (high - low) * between).round() as u8
    })
}

/// Black or white, whichever is more legible on a colour.
pub(crate) fn ink_on([red, green, blue]: [u8; 3]) -> &'static str {
    // ITU-R BT.709 luma.
    let luma = 0.2126 * f64::from(red) + 0.7152 * f64::from(green) + 0.0722 * f64::from(blue);
    if luma > 128.0 { "#000" } else { "#fff" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_repeat_and_fixed_colours_are_hexadecimal() {
        assert_eq!([Paint::Series(0), Paint::Series(8)].map(Paint::css), ["var(--plot-1)", "var(--plot-1)"]);
        assert_eq!(Paint::Fixed([255, 0, 10]).css(), "#ff000a");
    }

    #[test]
    fn the_ramp_grows_lighter() {
        let luma = |[r, g, b]: [u8; 3]| 0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b);
        let shades: Vec<f64> = (0..=60).map(|step| luma(ramp(f64::from(step) / 60.0))).collect();
        assert!(shades.windows(2).all(|pair| pair[0] < pair[1]), "{shades:?}");
        assert_eq!((ramp(-1.0), ramp(2.0)), (RAMP[0], RAMP[6]));
        assert_eq!((ink_on(RAMP[0]), ink_on(RAMP[6])), ("#fff", "#000"));
    }
}
