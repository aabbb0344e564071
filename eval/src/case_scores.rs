//! The scores of one case: one row per organ.

use crate::error::{EvalError, Result};
use crate::hd95;
use crate::masks::{MaskPair, MaskView};
use crate::protocol::{Scoring, dice_and_hd95};
use crate::surface_dice::surface_dice;
use crate::surface_distances::Surfaces;
use sam_ladder_schemas::eval::{DistanceUnit, Hd95Definition};
use sam_ladder_schemas::regions::ClassRegion;
use sam_ladder_schemas::tables::CaseRow;

/// One case's masks.
#[derive(Debug, Clone, Copy)]
pub struct CaseMasks<'a> {
    /// Case, as in the store.
    pub case: &'a str,
    /// Predicted classes, at the scan's own resolution.
    pub prediction: MaskView<'a>,
    /// Reference classes.
    pub reference: MaskView<'a>,
    /// Distance between voxel centres along depth, height and width, in millimetres; `None` if it is unknown.
    pub spacing_mm: Option<[f64; 3]>,
}

/// Scores of one case: one row per organ, in the order of `class_names`, which names the classes from 1.
///
/// # Errors
/// Names the case if the masks' shapes differ, a mask holds a class without a name, the spacing is not positive, or it is unknown and HD95 is
/// to be in millimetres. Refuses a tolerance that is negative or not finite.
pub fn evaluate_case(masks: &CaseMasks, class_names: &[String], scoring: impl Into<Scoring>) -> Result<Vec<CaseRow>> {
    let &CaseMasks { case, prediction, reference, spacing_mm } = masks;
    let scoring = scoring.into();
    check_class_names(class_names)?;
    match spacing_mm {
        Some(spacing_mm) if spacing_mm.iter().any(|spacing| !spacing.is_finite() || *spacing <= 0.0) => {
            return Err(EvalError::Spacing { case: case.into(), spacing_mm });
        }
        None if scoring.unit == DistanceUnit::Millimetres => return Err(EvalError::NoSpacing { case: case.into() }),
        _ => {}
    }
    if !scoring.tolerance_mm.is_finite() || scoring.tolerance_mm < 0.0 {
        return Err(EvalError::Tolerance { found: scoring.tolerance_mm });
    }
    let pair = MaskPair::new(case, prediction, reference, class_names.len())?;
    let classes = (1u8..=u8::MAX).zip(class_names);
    Ok(classes.map(|(class, organ)| evaluate_organ(&pair, class, organ, masks, &scoring)).collect())
}

/// As [`evaluate_case`], of unions of the classes: one row per region.
///
/// # Errors
/// As [`evaluate_case`].
pub fn evaluate_regions(
    masks: &CaseMasks,
    class_names: &[String],
    regions: &[ClassRegion],
    scoring: impl Into<Scoring>,
) -> Result<Vec<CaseRow>> {
    let scoring = scoring.into();
    let CaseMasks { case, prediction, reference, .. } = *masks;
    check_class_names(class_names)?;
    MaskPair::new(case, prediction, reference, class_names.len())?;
    let of_region = |region: &ClassRegion| {
        let [predicted, referred] = [prediction, reference].map(|mask| region.mask(mask.voxels));
        let united = CaseMasks {
            prediction: MaskView { voxels: &predicted, ..prediction },
            reference: MaskView { voxels: &referred, ..reference },
            ..*masks
        };
        evaluate_case(&united, std::slice::from_ref(&region.name), scoring)
    };
    Ok(regions.iter().map(of_region).collect::<Result<Vec<_>>>()?.concat())
}

/// Scores of one organ of a case.
fn evaluate_organ(pair: &MaskPair, class: u8, organ: &str, masks: &CaseMasks, scoring: &Scoring) -> CaseRow {
    let region = pair.region(class);
    let spacing_mm = masks.spacing_mm;
    let surfaces = Surfaces::of(pair, class);
    let (voxels, mm) = match &surfaces {
        Some(surfaces) => {
            let mm = spacing_mm.map(|spacing| surfaces.distances(spacing));
            // If voxels are 1 mm in every direction, both are equal.
            let voxels = match &mm {
                Some(mm) if spacing_mm == Some([1.0; 3]) => mm.clone(),
                _ => surfaces.distances([1.0; 3]),
            };
            (Some(voxels), mm)
        }
        None => (None, None),
    };
    let chosen = match scoring.unit {
        DistanceUnit::Voxels => &voxels,
        DistanceUnit::Millimetres => &mm,
    };
    let measured = chosen.as_ref().map(match scoring.hd95 {
        Hd95Definition::Pooled => hd95::pooled,
        Hd95Definition::Larger => hd95::larger,
    });
    let (dice, hd95) = dice_and_hd95(scoring.empty, &region, measured, diagonal(scoring.unit, masks));
    // A surface without a counterpart is nowhere near one; where neither mask has a surface, the value is undefined.
    let absent = || (surfaces.is_none() && spacing_mm.is_some() && !region.both_empty()).then_some(0.0);
    let voxel_ml = spacing_mm.map(|spacing| spacing.iter().product::<f64>() / 1000.0);
    let difference = region.predicted_voxels as f64 - region.reference_voxels as f64;
    CaseRow {
        case: masks.case.into(),
        organ: organ.into(),
        dice,
        hd95,
        reference_voxels: region.reference_voxels,
        predicted_voxels: region.predicted_voxels,
        hd95_voxels: voxels.as_ref().map(hd95::pooled),
        hd95_mm: mm.as_ref().map(hd95::pooled),
        hd95_larger_voxels: voxels.as_ref().map(hd95::larger),
        hd95_larger_mm: mm.as_ref().map(hd95::larger),
        surface_dice: mm.as_ref().map(|distances| surface_dice(distances, scoring.tolerance_mm)).or_else(absent),
        volume_difference_ml: voxel_ml.map(|ml| difference * ml),
    }
}

/// Distance between the centres of the scan's opposite corners.
fn diagonal(unit: DistanceUnit, masks: &CaseMasks) -> f64 {
    let spacing = match unit {
        DistanceUnit::Voxels => [1.0; 3],
        // Without a spacing, millimetres are refused.
        DistanceUnit::Millimetres => masks.spacing_mm.unwrap_or([1.0; 3]),
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
    use sam_ladder_schemas::eval::{EmptyRule, Protocol};

    /// Class 1 in both, 2 missed, 3 invented, 4 in neither.
    fn rows(scoring: impl Into<Scoring>) -> Vec<CaseRow> {
        let names: Vec<String> = ["liver", "spleen", "aorta", "stomach"].map(String::from).to_vec();
        let shape = [2, 1, 4];
        let mask = |voxels| MaskView { voxels, shape };
        let masks = CaseMasks {
            case: "0008",
            prediction: mask(&[1, 0, 0, 3, 0, 0, 0, 0]),
            reference: mask(&[0, 0, 2, 0, 1, 0, 0, 0]),
            spacing_mm: Some([5.0, 0.5, 0.5]),
        };
        evaluate_case(&masks, &names, scoring).unwrap()
    }

    fn scores(scoring: impl Into<Scoring>) -> Vec<(Option<f64>, Option<f64>)> {
        rows(scoring).iter().map(|row| (row.dice, row.hd95)).collect()
    }

    /// Classes 1 and 2 as one organ: what has the other class is right, too.
    #[test]
    fn regions_are_scored_as_unions_of_their_classes() {
        let names: Vec<String> = ["kidney_only", "tumor"].map(String::from).to_vec();
        let mask = |voxels| MaskView { voxels, shape: [1, 1, 5] };
        let [prediction, reference] = [mask(&[0u8, 1, 2, 2, 0]), mask(&[0u8, 2, 1, 2, 1])];
        let masks = CaseMasks { case: "a", prediction, reference, spacing_mm: Some([1.0; 3]) };
        let region = |name: &str, classes: &[u8]| ClassRegion { name: name.into(), classes: classes.to_vec() };
        let regions = [region("kidney", &[1, 2]), region("tumor", &[2])];
        let rows = evaluate_regions(&masks, &names, &regions, Protocol::Standard).unwrap();
        let found: Vec<_> = rows.iter().map(|row| (row.organ.as_str(), row.dice, row.reference_voxels)).collect();
        assert_eq!(found, [("kidney", Some(6.0 / 7.0), 4), ("tumor", Some(0.5), 2)]);
        // Six distances of 0 and one of 1.
        assert!((rows[0].hd95.unwrap() - 0.7).abs() < 1e-12);
        let wrong = CaseMasks { prediction: mask(&[0, 3, 0, 0, 0]), ..masks };
        assert!(evaluate_regions(&wrong, &names, &regions, Protocol::Standard).is_err(), "class 3 has no name");
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
    fn no_rule_changes_the_other_columns() {
        for scoring in [Scoring::of(Protocol::Published), Scoring::of(Protocol::Standard)] {
            let rows = rows(scoring);
            let columns: Vec<_> =
                rows.iter().map(|row| (row.hd95_voxels, row.hd95_mm, row.hd95_larger_voxels, row.hd95_larger_mm)).collect();
            let none = (None, None, None, None);
            assert_eq!(columns, [(Some(1.0), Some(5.0), Some(1.0), Some(5.0)), none, none, none]);
            assert_eq!(rows.iter().map(|row| row.surface_dice).collect::<Vec<_>>(), [Some(0.0), Some(0.0), Some(0.0), None]);
            // One voxel is 1.25 cubic millimetres.
            let ml = 0.00125;
            assert_eq!(rows.iter().map(|row| row.volume_difference_ml).collect::<Vec<_>>(), [0.0, -ml, ml, 0.0].map(Some));
        }
    }

    #[test]
    fn nothing_is_measured_in_millimetres_without_a_spacing() {
        let mask = MaskView { voxels: &[0, 1, 1], shape: [1, 1, 3] };
        let other = MaskView { voxels: &[1, 1, 2], shape: [1, 1, 3] };
        let masks = CaseMasks { case: "0001", prediction: mask, reference: other, spacing_mm: None };
        let names = ["liver", "spleen"].map(String::from);
        let rows = evaluate_case(&masks, &names, Protocol::Published).unwrap();
        assert_eq!((rows[0].dice, rows[0].hd95, rows[0].hd95_voxels), (Some(0.5), Some(1.0), Some(1.0)));
        for row in &rows {
            let mm = (row.hd95_mm, row.hd95_larger_mm, row.surface_dice, row.volume_difference_ml);
            assert_eq!(mm, (None, None, None, None), "{}", row.organ);
        }
        let error = evaluate_case(&masks, &names, Protocol::Standard).unwrap_err();
        assert!(error.to_string().contains("case 0001") && error.hint().unwrap().contains("--spacing"), "{error}");
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
        let mask = MaskView { voxels: &[0], shape: [1, 1, 1] };
        for spacing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let masks = CaseMasks { case: "0001", prediction: mask, reference: mask, spacing_mm: Some([1.0, spacing, 1.0]) };
            let error = evaluate_case(&masks, &["liver".into()], Protocol::Standard).unwrap_err().to_string();
            assert!(error.contains("case 0001") && error.contains("spacing"), "{error}");
        }
        let masks = CaseMasks { case: "0001", prediction: mask, reference: mask, spacing_mm: Some([1.0; 3]) };
        assert!(evaluate_case(&masks, &[], Protocol::Standard).unwrap_err().to_string().contains("0 organ names"));
        for tolerance_mm in [-1.0, f64::NAN] {
            let scoring = Scoring { tolerance_mm, ..Scoring::of(Protocol::Standard) };
            assert!(evaluate_case(&masks, &["liver".into()], scoring).unwrap_err().to_string().contains("tolerance"));
        }
    }
}
