//! The settings of `eval`: how masks are scored, and how they are shown.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The cases that are scored
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum ScoredSplit {
    /// The store's test scans
    #[default]
    Test,
    /// The training cases that the run held out for validation, at the scans' own resolution
    Validation,
}

impl ScoredSplit {
    /// As it is typed and stored: `validation`.
    pub fn name(self) -> &'static str {
        match self {
            ScoredSplit::Test => "test",
            ScoredSplit::Validation => "validation",
        }
    }
}

/// A named set of rules for scoring
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Distances in voxels, empty masks as in the published code (calculate_metric_percase); every case counts in every mean
    Published,
    /// Distances in millimetres; undefined values are left out of the means, and missed and invented organs are counted
    Standard,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Protocol; 2] = [Protocol::Published, Protocol::Standard];

    /// As it is typed and stored: `published`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Published => "published",
            Protocol::Standard => "standard",
        }
    }
}

/// Unit of HD95
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum DistanceUnit {
    /// Voxels: the spacing is ignored
    Voxels,
    /// Millimetres, by the scan's spacing
    // Typed as tables write it; records of evaluations hold the whole word.
    #[cfg_attr(feature = "cli", value(name = "mm", alias = "millimetres"))]
    Millimetres,
}

impl DistanceUnit {
    /// As it is typed, and as it stands in tables: `mm`.
    pub fn name(self) -> &'static str {
        match self {
            DistanceUnit::Voxels => "voxels",
            DistanceUnit::Millimetres => "mm",
        }
    }
}

/// Definition of HD95
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Hd95Definition {
    /// The percentile of both directions' distances together, as in MedPy
    Pooled,
    /// The larger of the two directions' percentiles, as in MONAI
    Larger,
}

impl Hd95Definition {
    /// As it is typed and stored: `pooled`.
    pub fn name(self) -> &'static str {
        match self {
            Hd95Definition::Pooled => "pooled",
            Hd95Definition::Larger => "larger",
        }
    }
}

/// Dice and HD95 of an organ that a mask lacks
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum EmptyRule {
    /// As in the published code. Missed: Dice 0, HD95 0. Invented: Dice 1, HD95 0. In neither mask: Dice 0, HD95 0
    Published,
    /// Missed or invented: Dice 0, HD95 undefined. In neither mask: both undefined. Means leave undefined values out
    LeaveOut,
    /// Missed or invented: Dice 0, HD95 the length of the scan's diagonal. In neither mask: both undefined
    // The diagonal between voxel centres, which no distance exceeds: the BraTS challenge's rule, whose constant 373.13 is the
    // diagonal of its scans.
    Penalise,
}

impl EmptyRule {
    /// Every rule.
    pub const ALL: [EmptyRule; 3] = [EmptyRule::Published, EmptyRule::LeaveOut, EmptyRule::Penalise];

    /// As it is typed and stored: `leave-out`.
    pub fn name(self) -> &'static str {
        match self {
            EmptyRule::Published => "published",
            EmptyRule::LeaveOut => "leave-out",
            EmptyRule::Penalise => "penalise",
        }
    }
}

/// Published rows on the twelve Synapse test scans
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PublishedRows {
    /// Methods: the paper's Table I, and rows of other sources
    Methods,
    /// The paper's ablation, its Table II
    Ablation,
}

/// How masks come to the scan's own resolution
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    /// Each pixel takes the class of the nearest pixel at the network's resolution: the published way
    #[default]
    Published,
    /// Probabilities are brought to the scan's resolution, bilinearly, and each pixel takes the most probable class there
    Logits,
}

impl Resample {
    /// As it is typed and stored: `published`.
    pub fn name(self) -> &'static str {
        match self {
            Resample::Published => "published",
            Resample::Logits => "logits",
        }
    }

    /// Whether it is the published one.
    pub fn is_published(&self) -> bool {
        *self == Resample::Published
    }
}

/// Colours of the organs in pictures
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Palette {
    /// Different in hue and lightness on a grey scan, also for colour-blind readers
    #[default]
    Distinct,
    /// ITK-SNAP's, of its labels 1 to 8
    ItkSnap,
}

/// The settings of `eval` that change its scores or pictures.
///
/// Each is defined only here, as those of training in [`crate::train::TrainConfig`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(deny_unknown_fields, default)]
pub struct EvalSettings {
    /// Cases to score
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub split: ScoredSplit,
    /// How masks are scored
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub protocol: Protocol,
    /// Score of an organ that is missed (the prediction lacks it), invented (the reference lacks it) or in neither mask, if not the
    /// protocol's
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub empty: Option<EmptyRule>,
    /// HD95 (95th percentile of the distances between two surfaces): how both directions are counted
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub hd95: Hd95Definition,
    /// Unit of HD95, if not the protocol's
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub unit: Option<DistanceUnit>,
    /// Distance in millimetres up to which two surfaces agree, for the surface Dice
    #[cfg_attr(feature = "cli", arg(long, value_name = "MM"))]
    #[schemars(range(min = 0))]
    pub tolerance_mm: f64,
    /// Distance between voxel centres along depth, height and width, for scans whose files do not say it. Without it, nothing of them is
    /// measured in millimetres
    #[cfg_attr(feature = "cli", arg(long, value_name = "MM,MM,MM", value_parser = crate::preprocessing::parse_spacing))]
    pub spacing: Option<[f64; 3]>,
    /// Colours of the organs in pictures
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub colours: Palette,
    /// How masks come to the scan's own resolution
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub resample: Resample,
}

impl Default for EvalSettings {
    /// The published protocol.
    fn default() -> Self {
        EvalSettings {
            split: ScoredSplit::Test,
            protocol: Protocol::Published,
            empty: None,
            hd95: Hd95Definition::Pooled,
            unit: None,
            tolerance_mm: 2.0,
            spacing: None,
            colours: Palette::default(),
            resample: Resample::Published,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_have_one_spelling() {
        assert_eq!(json!(Protocol::ALL), json!(Protocol::ALL.map(Protocol::name)));
        assert_eq!(json!(EmptyRule::ALL), json!(EmptyRule::ALL.map(EmptyRule::name)));
        for split in [ScoredSplit::Test, ScoredSplit::Validation] {
            assert_eq!(json!(split), split.name());
        }
        for resample in [Resample::Published, Resample::Logits] {
            assert_eq!(json!(resample), resample.name());
        }
        for definition in [Hd95Definition::Pooled, Hd95Definition::Larger] {
            assert_eq!(json!(definition), definition.name());
        }
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_unit_is_typed_as_in_tables_or_as_stored() {
        use clap::ValueEnum;
        for unit in DistanceUnit::value_variants() {
            for word in [unit.name(), json!(unit).as_str().unwrap()] {
                assert_eq!(DistanceUnit::from_str(word, false).as_ref(), Ok(unit));
            }
        }
    }
}
