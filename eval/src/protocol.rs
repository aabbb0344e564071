//! What a case and organ scores: which distance, in which unit, and what an organ counts that a mask has not.

use crate::dice::dice;
use crate::error::{EvalError, Result};
use crate::masks::{Mask, MaskPair, Region};
use crate::surface_distances::Surfaces;
use sam_ladder_schemas::tables::CaseRow;
use serde::{Deserialize, Serialize};

/// A named choice of every rule; [`Scoring::of`] spells it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The published code's (`calculate_metric_percase`): HD95 in voxels; no prediction counts Dice 0 and HD95 0, whether or not the
    /// reference has the organ; a prediction without reference counts Dice 1 and HD95 0. Every case counts in every mean.
    Published,
    /// HD95 in millimetres. Dice is undefined where both masks are empty, HD95 where either is: undefined values are left out of the
    /// means, which say how many cases they are over; missed and invented organs are counted.
    Standard,
}

/// Unit of the distances in the column `hd95`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DistanceUnit {
    /// The spacing is ignored.
    Voxels,
    /// By the scan's spacing.
    Millimetres,
}

/// Which number the column `hd95` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hd95Definition {
    /// 95th percentile of both directions in one list, MedPy's.
    Pooled,
    /// The larger of the two directions' 95th percentiles, MONAI's.
    Larger,
}

/// What `dice` and `hd95` are where a mask has not the organ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyRule {
    /// The published code's: missed Dice 0, HD95 0; invented Dice 1, HD95 0; in neither Dice 0, HD95 0.
    Published,
    /// Missed or invented: Dice 0, HD95 undefined; in neither both undefined. Means leave undefined values out.
    LeaveOut,
    /// Missed or invented: Dice 0, HD95 the length of the scan's diagonal between voxel centres, which no distance exceeds (the BraTS challenge's
    /// rule, whose constant 373.13 is the diagonal of its scans). In neither: both undefined.
    Penalise,
}

/// How the columns `dice`, `hd95` and `surface_dice` are counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// Unit of `hd95`.
    pub unit: DistanceUnit,
    /// Definition of `hd95`.
    pub hd95: Hd95Definition,
    /// What an organ counts that a mask has not.
    pub empty: EmptyRule,
    /// Tolerance of `surface_dice`, in millimetres.
    pub tolerance_mm: f64,
}

/// Tolerance of the surface Dice unless another is asked for, in millimetres.
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

    /// The protocol that these rules are, if they are one's; the tolerance is not part of it.
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|&protocol| Scoring { tolerance_mm: self.tolerance_mm, ..Scoring::of(protocol) } == *self)
    }

    /// Unit of `hd95`, as tables write it.
    pub fn unit_name(&self) -> &'static str {
        match self.unit {
            DistanceUnit::Voxels => "voxels",
            DistanceUnit::Millimetres => "mm",
        }
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
                "DSC is undefined where both masks are empty, HD where either is; undefined values are left out and the counts say of how many cases a mean is"
            }
            EmptyRule::Penalise => {
                "a missed or invented organ counts DSC 0 and as HD the scan's diagonal; an organ in neither mask is left out"
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

/// Names on the command line, and the way back from them.
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

/// One case's masks.
#[derive(Debug, Clone, Copy)]
pub struct CaseMasks<'a> {
    /// Case, as in the store.
    pub case: &'a str,
    /// Predicted classes, at the scan's own resolution.
    pub prediction: Mask<'a>,
    /// Reference classes.
    pub reference: Mask<'a>,
    /// Distance between voxel centres along depth, height and width, in millimetres.
    pub spacing_mm: [f64; 3],
}

/// Scores of one case: one row an organ, in the order of `class_names`, which names the classes from 1.
///
/// # Errors
/// Names the case where the masks' shapes differ, a mask holds a class without a name, or the spacing is not positive; a tolerance that is negative or not
/// finite.
pub fn evaluate_case(masks: &CaseMasks, class_names: &[String], scoring: impl Into<Scoring>) -> Result<Vec<CaseRow>> {
    let &CaseMasks { case, prediction, reference, spacing_mm } = masks;
    let scoring = scoring.into();
    check_class_names(class_names)?;
    if spacing_mm.iter().any(|spacing| !spacing.is_finite() || *spacing <= 0.0) {
        return Err(EvalError::Spacing { case: case.into(), spacing_mm });
    }
    if !scoring.tolerance_mm.is_finite() || scoring.tolerance_mm < 0.0 {
        return Err(EvalError::Tolerance { found: scoring.tolerance_mm });
    }
    let pair = MaskPair::new(case, prediction, reference, class_names.len())?;
    let classes = (1u8..=u8::MAX).zip(class_names);
    Ok(classes.map(|(class, organ)| evaluate_organ(&pair, class, organ, masks, &scoring)).collect())
}

/// Scores of one organ of a case.
fn evaluate_organ(pair: &MaskPair, class: u8, organ: &str, masks: &CaseMasks, scoring: &Scoring) -> CaseRow {
    let region = pair.region(class);
    let spacing_mm = masks.spacing_mm;
    let surfaces = Surfaces::of(pair, class);
    let (voxels, mm) = match &surfaces {
        Some(surfaces) => {
            let mm = surfaces.distances(spacing_mm);
            // Where a voxel is a millimetre in every direction, one is the other.
            let voxels = if spacing_mm == [1.0; 3] { mm.clone() } else { surfaces.distances([1.0; 3]) };
            (Some(voxels), Some(mm))
        }
        None => (None, None),
    };
    let chosen = match scoring.unit {
        DistanceUnit::Voxels => &voxels,
        DistanceUnit::Millimetres => &mm,
    };
    let measured = chosen.as_ref().map(|distances| match scoring.hd95 {
        Hd95Definition::Pooled => distances.hd95_pooled(),
        Hd95Definition::Larger => distances.hd95_larger(),
    });
    let (dice, hd95) = apply_rule(&region, measured, scoring, masks);
    // A surface without a counterpart is nowhere near it; two that are not there are undefined.
    let absent = || (!region.both_empty()).then_some(0.0);
    let voxel_ml = spacing_mm.iter().product::<f64>() / 1000.0;
    CaseRow {
        case: masks.case.into(),
        organ: organ.into(),
        dice,
        hd95,
        reference_voxels: region.reference_voxels,
        predicted_voxels: region.predicted_voxels,
        hd95_voxels: voxels.as_ref().map(|distances| distances.hd95_pooled()),
        hd95_mm: mm.as_ref().map(|distances| distances.hd95_pooled()),
        hd95_larger_voxels: voxels.as_ref().map(|distances| distances.hd95_larger()),
        hd95_larger_mm: mm.as_ref().map(|distances| distances.hd95_larger()),
        surface_dice: mm.as_ref().map(|distances| distances.surface_dice(scoring.tolerance_mm)).or_else(absent),
        volume_difference_ml: (region.predicted_voxels as f64 - region.reference_voxels as f64) * voxel_ml,
    }
}

/// `dice` and `hd95` by the rule for empty masks; `measured` is the HD95 where both masks have the organ.
fn apply_rule(region: &Region, measured: Option<f64>, scoring: &Scoring, masks: &CaseMasks) -> (Option<f64>, Option<f64>) {
    match scoring.empty {
        EmptyRule::Published if region.predicted_voxels == 0 => (Some(0.0), Some(0.0)),
        EmptyRule::Published if region.reference_voxels == 0 => (Some(1.0), Some(0.0)),
        EmptyRule::Penalise if region.missed() || region.invented() => (Some(0.0), Some(diagonal(scoring.unit, masks))),
        _ => (dice(region), measured),
    }
}

/// Distance between the centres of the scan's opposite corners.
fn diagonal(unit: DistanceUnit, masks: &CaseMasks) -> f64 {
    let spacing = match unit {
        DistanceUnit::Voxels => [1.0; 3],
        DistanceUnit::Millimetres => masks.spacing_mm,
    };
    let steps = masks.reference.shape.map(|length| (length - 1) as f64);
    steps.iter().zip(spacing).map(|(steps, spacing)| (steps * spacing).powi(2)).sum::<f64>().sqrt()
}

/// Refuses a list of organs that is empty or longer than a mask's classes.
pub(crate) fn check_class_names(class_names: &[String]) -> Result<()> {
    match class_names.len() {
        1..=255 => Ok(()),
        found => Err(EvalError::ClassNames { found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class 1 in both, 2 missed, 3 invented, 4 in neither.
    fn rows(scoring: impl Into<Scoring>) -> Vec<CaseRow> {
        let names: Vec<String> = ["liver", "spleen", "aorta", "stomach"].map(String::from).to_vec();
        let shape = [2, 1, 4];
        let mask = |voxels| Mask { voxels, shape };
        let masks = CaseMasks {
            case: "0008",
            prediction: mask(&[1, 0, 0, 3, 0, 0, 0, 0]),
            reference: mask(&[0, 0, 2, 0, 1, 0, 0, 0]),
            spacing_mm: [5.0, 0.5, 0.5],
        };
        evaluate_case(&masks, &names, scoring).unwrap()
    }

    fn scores(scoring: impl Into<Scoring>) -> Vec<(Option<f64>, Option<f64>)> {
        rows(scoring).iter().map(|row| (row.dice, row.hd95)).collect()
    }

    #[test]
    fn published_counts_every_organ() {
        let zero = (Some(0.0), Some(0.0));
        assert_eq!(scores(Protocol::Published), [(Some(0.0), Some(1.0)), zero, (Some(1.0), Some(0.0)), zero]);
    }

    #[test]
    fn standard_leaves_undefined_out_and_measures_millimetres() {
        let half = (Some(0.0), None);
        assert_eq!(scores(Protocol::Standard), [(Some(0.0), Some(5.0)), half, half, (None, None)]);
    }

    #[test]
    fn penalise_takes_the_scans_diagonal() {
        let mut scoring = Scoring { empty: EmptyRule::Penalise, ..Scoring::of(Protocol::Standard) };
        // 1 step of 5 mm, none, 3 steps of 0.5 mm.
        let worst = (Some(0.0), Some((25.0f64 + 2.25).sqrt()));
        assert_eq!(scores(scoring), [(Some(0.0), Some(5.0)), worst, worst, (None, None)]);
        scoring.unit = DistanceUnit::Voxels;
        assert_eq!(scores(scoring)[1].1, Some(10f64.sqrt()));
    }

    #[test]
    fn the_other_columns_know_no_rule() {
        for scoring in [Scoring::of(Protocol::Published), Scoring::of(Protocol::Standard)] {
            let rows = rows(scoring);
            let columns: Vec<_> =
                rows.iter().map(|row| (row.hd95_voxels, row.hd95_mm, row.hd95_larger_voxels, row.hd95_larger_mm)).collect();
            let none = (None, None, None, None);
            assert_eq!(columns, [(Some(1.0), Some(5.0), Some(1.0), Some(5.0)), none, none, none]);
            assert_eq!(rows.iter().map(|row| row.surface_dice).collect::<Vec<_>>(), [Some(0.0), Some(0.0), Some(0.0), None]);
            // One voxel is 1.25 cubic millimetres.
            let ml = 0.00125;
            assert_eq!(rows.iter().map(|row| row.volume_difference_ml).collect::<Vec<_>>(), [0.0, -ml, ml, 0.0]);
        }
    }

    #[test]
    fn rows_carry_names_and_voxels() {
        let rows = rows(Protocol::Standard);
        assert!(rows.iter().all(|row| row.case == "0008"));
        assert_eq!(rows.iter().map(|row| row.organ.as_str()).collect::<Vec<_>>(), ["liver", "spleen", "aorta", "stomach"]);
        let voxels: Vec<_> = rows.iter().map(|row| (row.reference_voxels, row.predicted_voxels)).collect();
        assert_eq!(voxels, [(1, 1), (1, 0), (0, 1), (0, 0)]);
    }

    #[test]
    fn bad_spacing_names_and_tolerances_are_refused() {
        let mask = Mask { voxels: &[0], shape: [1, 1, 1] };
        for spacing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let masks = CaseMasks { case: "0001", prediction: mask, reference: mask, spacing_mm: [1.0, spacing, 1.0] };
            let error = evaluate_case(&masks, &["liver".into()], Protocol::Standard).unwrap_err().to_string();
            assert!(error.contains("case 0001") && error.contains("spacing"), "{error}");
        }
        let masks = CaseMasks { case: "0001", prediction: mask, reference: mask, spacing_mm: [1.0; 3] };
        assert!(evaluate_case(&masks, &[], Protocol::Standard).unwrap_err().to_string().contains("0 organ names"));
        for tolerance_mm in [-1.0, f64::NAN] {
            let scoring = Scoring { tolerance_mm, ..Scoring::of(Protocol::Standard) };
            assert!(evaluate_case(&masks, &["liver".into()], scoring).unwrap_err().to_string().contains("tolerance"));
        }
    }

    #[test]
    fn names_lead_back_to_what_they_name() {
        assert_eq!("published".parse(), Ok(Protocol::Published));
        assert!("paper".parse::<Protocol>().unwrap_err().contains("published or standard"));
        assert_eq!("leave-out".parse(), Ok(EmptyRule::LeaveOut));
        assert_eq!(EmptyRule::ALL.map(EmptyRule::name), ["published", "leave-out", "penalise"]);
        assert_eq!(Scoring::of(Protocol::Standard).protocol(), Some(Protocol::Standard));
        let other = Scoring { empty: EmptyRule::Penalise, ..Scoring::of(Protocol::Standard) };
        assert_eq!(other.protocol(), None);
    }
}
