//! The organs' colours.

use serde::{Deserialize, Serialize};

/// Colours of the organs in pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Palette {
    /// Colours that differ in hue and lightness on a grey scan, also for colour-blind readers (Okabe and Ito's set without black, and a light
    /// green).
    #[default]
    Distinct,
    /// ITK-SNAP's colours of labels 1 to 8.
    ItkSnap,
}

/// Colours of classes 1 to 8, [`Palette::Distinct`].
const DISTINCT: [[u8; 3]; 8] =
    [[230, 159, 0], [86, 180, 233], [0, 114, 178], [240, 228, 66], [213, 94, 0], [0, 158, 115], [204, 121, 167], [164, 222, 108]];
/// Colours of classes 1 to 8, [`Palette::ItkSnap`].
const ITK_SNAP: [[u8; 3]; 8] =
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255, 239, 213], [0, 0, 205]];

impl Palette {
    /// Every palette.
    pub const ALL: [Palette; 2] = [Palette::Distinct, Palette::ItkSnap];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Palette::Distinct => "distinct",
            Palette::ItkSnap => "itk-snap",
        }
    }

    /// Colour of a class, red, green and blue; black for the background. Classes beyond the eighth get hues around the colour circle.
    pub fn colour(self, class: u8) -> [u8; 3] {
        let organs = match self {
            Palette::Distinct => DISTINCT,
            Palette::ItkSnap => ITK_SNAP,
        };
        match class {
            0 => [0; 3],
            class => organs.get(usize::from(class) - 1).copied().unwrap_or_else(|| colour(class)),
        }
    }
}

impl std::fmt::Display for Palette {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Palette {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Palette::ALL.into_iter().find(|palette| palette.name() == name);
        found.ok_or_else(|| format!("unknown colours {name:?}; use distinct or itk-snap"))
    }
}

/// Colour of a class in [`Palette::Distinct`]. Classes beyond the eighth get hues around the colour circle.
pub fn colour(class: u8) -> [u8; 3] {
    match class {
        0 => [0; 3],
        class if usize::from(class) <= DISTINCT.len() => DISTINCT[usize::from(class) - 1],
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
        for a in 0..40u8 {
            for b in 0..a {
                let distance: u32 = colour(a).iter().zip(colour(b)).map(|(&a, b)| u32::from(a.abs_diff(b))).sum();
                assert!(distance > 16, "classes {a} and {b} look alike: {:?} {:?}", colour(a), colour(b));
            }
        }
        assert_eq!(hex(colour(1)), "#e69f00");
        assert_eq!(Palette::ItkSnap.colour(2), [0, 255, 0]);
        assert_eq!(Palette::ItkSnap.colour(9), colour(9));
        assert_eq!("itk-snap".parse(), Ok(Palette::ItkSnap));
        assert!("rainbow".parse::<Palette>().is_err());
    }
}
