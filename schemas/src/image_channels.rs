//! What the three channels of the image of a grey scan are.

use crate::setting::{Problem, SettingError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the three channels of the image are made of, of scans of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChannelsFrom {
    /// The slice itself, stored once and repeated three times: the published choice.
    #[default]
    Slice,
    /// The slices below, at and above: at the index before, at it and after it. At the ends of a scan the slice itself is repeated.
    Neighbours,
    /// The slice in three windows.
    Windows {
        /// The values that become 0 and 1 in each of the three channels, in Hounsfield units.
        hu: [[f32; 2]; 3],
    },
}

/// A choice of `--channels-from`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ChannelSource {
    /// The slice, three times: the published choice
    #[default]
    Slice,
    /// The slices below, at and above; at the ends of a scan the slice itself is repeated
    Neighbours,
    /// The slice in three windows of Hounsfield units, which --windows chooses
    Windows,
}

/// A window that has a name: its level and width, in Hounsfield units.
#[cfg(any(feature = "cli", test))]
struct NamedWindow {
    name: &'static str,
    level: f32,
    width: f32,
}

/// The windows that `--windows` knows by name. `published` is the one of the published code.
#[cfg(any(feature = "cli", test))]
const NAMED: [NamedWindow; 6] = [
    NamedWindow { name: "soft", level: 40.0, width: 400.0 },
    NamedWindow { name: "liver", level: 100.0, width: 200.0 },
    NamedWindow { name: "bone", level: 400.0, width: 1800.0 },
    NamedWindow { name: "lung", level: -600.0, width: 1500.0 },
    NamedWindow { name: "brain", level: 40.0, width: 80.0 },
    NamedWindow { name: "published", level: 75.0, width: 400.0 },
];

#[cfg(any(feature = "cli", test))]
impl NamedWindow {
    fn hu(&self) -> [f32; 2] {
        [self.level - self.width / 2.0, self.level + self.width / 2.0]
    }
}

impl ChannelsFrom {
    /// Three windows: soft, liver, bone.
    pub const DEFAULT_WINDOWS: [[f32; 2]; 3] = [[-160.0, 240.0], [0.0, 200.0], [-500.0, 1300.0]];

    /// Whether this is the published choice, which configs leave out so that older stores keep their identity.
    pub fn is_slice(&self) -> bool {
        *self == ChannelsFrom::Slice
    }

    /// The windows of the three channels, if they are windows.
    pub fn windows(&self) -> Option<&[[f32; 2]; 3]> {
        match self {
            ChannelsFrom::Windows { hu } => Some(hu),
            ChannelsFrom::Slice | ChannelsFrom::Neighbours => None,
        }
    }

    /// The channel of a stored image that shows the slice itself: of its neighbours the middle one, of others the first.
    pub fn shown_channel(&self) -> usize {
        usize::from(*self == ChannelsFrom::Neighbours)
    }

    /// Checks the windows.
    ///
    /// # Errors
    /// The first window that does not ascend.
    pub fn check(&self) -> Result<(), SettingError> {
        let descends = |[low, high]: &&[f32; 2]| !(low.is_finite() && high.is_finite() && low < high);
        match self.windows().and_then(|hu| hu.iter().find(descends)) {
            None => Ok(()),
            Some([low, high]) => {
                let found = format!("{low} and {high}");
                Err(Problem::expected("two ascending numbers for each window", found).with("preprocessing.channels_from"))
            }
        }
    }
}

/// `--windows`: three names, or pairs of numbers such as `-160:240`.
///
/// # Errors
/// In words, for anything else.
#[cfg(feature = "cli")]
pub fn parse_windows(typed: &str) -> Result<[[f32; 2]; 3], String> {
    let one = |word: &str| {
        let named = || NAMED.iter().find(|window| window.name == word).map(NamedWindow::hu);
        let numbers = || {
            let (low, high) = word.split_once(':')?;
            let window = [low.trim().parse::<f32>().ok()?, high.trim().parse::<f32>().ok()?];
            (window[0] < window[1] && window.iter().all(|hu| hu.is_finite())).then_some(window)
        };
        named().or_else(numbers)
    };
    let windows: Option<Vec<[f32; 2]>> = typed.split(',').map(|word| one(word.trim())).collect();
    windows.and_then(|windows| windows.try_into().ok()).ok_or_else(|| {
        let names: Vec<&str> = NAMED.iter().map(|window| window.name).collect();
        format!("expected three windows such as soft,liver,bone or -160:240,0:200,-500:1300; names: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_windows_are_their_level_and_width() {
        let expected = [
            ("soft", [-160.0, 240.0]),
            ("liver", [0.0, 200.0]),
            ("bone", [-500.0, 1300.0]),
            ("lung", [-1350.0, 150.0]),
            ("brain", [0.0, 80.0]),
            ("published", [-125.0, 275.0]),
        ];
        let found = NAMED.map(|window| (window.name, window.hu()));
        assert_eq!(found, expected);
        assert_eq!(ChannelsFrom::DEFAULT_WINDOWS, [expected[0].1, expected[1].1, expected[2].1]);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn windows_are_typed_as_names_or_numbers() {
        assert_eq!(parse_windows("soft,liver,bone"), Ok(ChannelsFrom::DEFAULT_WINDOWS));
        assert_eq!(parse_windows("-160:240, 0:200,-500:1300"), Ok(ChannelsFrom::DEFAULT_WINDOWS));
        assert_eq!(parse_windows("published,-1.5:2,brain"), Ok([[-125.0, 275.0], [-1.5, 2.0], [0.0, 80.0]]));
        for wrong in
            ["", "soft", "soft,liver", "soft,liver,bone,lung", "5:5,0:1,0:1", "2:1,0:1,0:1", "a:b,0:1,0:1", "nan:1,0:1,0:1"]
        {
            assert!(parse_windows(wrong).unwrap_err().contains("soft,liver,bone"), "{wrong}");
        }
    }
}
