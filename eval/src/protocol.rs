//! The protocols, published and standard: the definition and unit of HD95, and the scores of an organ that a mask lacks.

use crate::dice::dice;
use crate::masks::Region;
use serde::{Deserialize, Serialize};

/// A named set of rules; [`Scoring::of`] gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The published code's (`calculate_metric_percase`): HD95 in voxels. An organ without prediction counts Dice 0 and HD95 0,
    /// whether or not the reference has it. A prediction without reference counts Dice 1 and HD95 0. Every case counts in
    /// every mean.
    Published,
    /// HD95 in millimetres. Dice is undefined if both masks are empty, HD95 if either is. Means leave undefined values out and
    /// say how many cases they are over. Missed and invented organs are counted.
    Standard,
}

/// Unit of the distances in the column `hd95`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DistanceUnit {
    /// Voxels: the spacing is ignored.
    Voxels,
    /// Millimetres, by the scan's spacing.
    Millimetres,
}

/// Definition of the column `hd95`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hd95Definition {
    /// 95th percentile over both directions together, as in MedPy.
    Pooled,
    /// The larger of the two directions' 95th percentiles, as in MONAI.
    Larger,
}

/// Values of `dice` and `hd95` if a mask lacks the organ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyRule {
    /// The published code's. Missed: Dice 0, HD95 0. Invented: Dice 1, HD95 0. In neither mask: Dice 0, HD95 0.
    Published,
    /// Missed or invented: Dice 0, HD95 undefined. In neither mask: both undefined. Means leave undefined values out.
    LeaveOut,
    /// Missed or invented: Dice 0, HD95 the length of the scan's diagonal between voxel centres, which no distance exceeds
    /// (the BraTS challenge's rule, whose constant 373.13 is the diagonal of its scans). In neither mask: both undefined.
    Penalise,
}

impl EmptyRule {
    /// Dice and HD95 of a class by this rule. `measured` is the HD95 if both masks have the class, `diagonal` the length of
    /// the scan's diagonal, in the same unit.
    pub(crate) fn apply(self, region: &Region, measured: Option<f64>, diagonal: f64) -> (Option<f64>, Option<f64>) {
        match self {
            EmptyRule::Published if region.predicted_voxels == 0 => (Some(0.0), Some(0.0)),
            EmptyRule::Published if region.reference_voxels == 0 => (Some(1.0), Some(0.0)),
            EmptyRule::Penalise if region.missed() || region.invented() => (Some(0.0), Some(diagonal)),
            _ => (dice(region), measured),
        }
    }
}

/// How the columns `dice`, `hd95` and `surface_dice` are counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// Unit of `hd95`.
    pub unit: DistanceUnit,
    /// Definition of `hd95`.
    pub hd95: Hd95Definition,
    /// Scores of an organ that a mask lacks.
    pub empty: EmptyRule,
    /// Tolerance of `surface_dice`, in millimetres.
    pub tolerance_mm: f64,
}

/// Default tolerance of the surface Dice, in millimetres.
pub const DEFAULT_TOLERANCE_MM: f64 = 2.0;

impl Scoring {
    /// The rules of a protocol.
    pub fn of(protocol: Protocol) -> Scoring {
        let (unit, empty) = match protocol {
            Protocol::Published => (DistanceUnit::Voxels, EmptyRule::Published),
            Protocol::Standard => (DistanceUnit::Millimetres, EmptyRule::LeaveOut),
        };
        Scoring { unit, empty, hd95: Hd95Definition::Pooled, tolerance_mm: DEFAULT_TOLERANCE_MM }
    }

    /// The protocol with these rules, if there is one; the tolerance is not part of a protocol.
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|&protocol| Scoring { tolerance_mm: self.tolerance_mm, ..Scoring::of(protocol) } == *self)
    }

    /// Unit of `hd95`, as in tables.
    pub fn unit_name(&self) -> &'static str {
        match self.unit {
            DistanceUnit::Voxels => "voxels",
            DistanceUnit::Millimetres => "mm",
        }
    }

    /// The rules by their names on the command line.
    pub(crate) fn options(&self) -> String {
        let Scoring { unit, hd95, empty, tolerance_mm } = self;
        format!("{empty}, {hd95} HD95 in {unit}, tolerance {tolerance_mm} mm")
    }

    /// One sentence that says what `dice` and `hd95` are.
    pub fn describe(&self) -> String {
        let percentile = match self.hd95 {
            Hd95Definition::Pooled => "the 95th percentile of the surface distances of both directions in one list (MedPy)",
            Hd95Definition::Larger => "the larger of the two directions' 95th percentiles of the surface distances (MONAI)",
        };
        let rule = match self.empty {
            EmptyRule::Published => {
                "an organ without prediction counts DSC 0 and HD 0, a prediction without reference DSC 100 and HD 0"
            }
            EmptyRule::LeaveOut => {
                "DSC is undefined if both masks are empty, HD if either is; undefined values are left out, and the counts say how many \
                 cases a mean is over"
            }
            EmptyRule::Penalise => {
                "a missed or invented organ counts DSC 0 and, as HD, the scan's diagonal; an organ in neither mask is left out"
            }
        };
        format!("DSC is Dice in percent, HD is HD95 in {}, {percentile}; {rule}", self.unit_name())
    }
}

impl From<Protocol> for Scoring {
    fn from(protocol: Protocol) -> Scoring {
        Scoring::of(protocol)
    }
}

/// Names on the command line, and parsing them.
macro_rules! named {
    ($kind:ident, $($variant:ident => $name:literal),+) => {
        impl $kind {
            /// Every value.
            pub const ALL: [$kind; [$($name),+].len()] = [$($kind::$variant),+];

            /// The name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $($kind::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $kind {
            type Err = String;

            fn from_str(name: &str) -> std::result::Result<Self, String> {
                let known = [$($name),+];
                let found = $kind::ALL.into_iter().find(|value| value.name() == name);
                found.ok_or_else(|| format!("unknown name {name:?}; use {}", known.join(" or ")))
            }
        }
    };
}

named!(Protocol, Published => "published", Standard => "standard");
named!(DistanceUnit, Voxels => "voxels", Millimetres => "mm");
named!(Hd95Definition, Pooled => "pooled", Larger => "larger");
named!(EmptyRule, Published => "published", LeaveOut => "leave-out", Penalise => "penalise");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_to_their_values() {
        assert_eq!("published".parse(), Ok(Protocol::Published));
        assert!("paper".parse::<Protocol>().unwrap_err().contains("published or standard"));
        assert_eq!("leave-out".parse(), Ok(EmptyRule::LeaveOut));
        assert_eq!(EmptyRule::ALL.map(EmptyRule::name), ["published", "leave-out", "penalise"]);
        assert_eq!(Scoring::of(Protocol::Standard).protocol(), Some(Protocol::Standard));
        let other = Scoring { empty: EmptyRule::Penalise, ..Scoring::of(Protocol::Standard) };
        assert_eq!(other.protocol(), None);
    }
}
