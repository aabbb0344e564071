//! What a case and organ scores, under either protocol.

use crate::dice::dice;
use crate::error::{EvalError, Result};
use crate::hd95::hd95;
use crate::masks::{Mask, MaskPair};
use sam_ladder_schemas::tables::CaseRow;
use serde::{Deserialize, Serialize};

/// How distances are measured, and what an organ counts that a mask has not.
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

impl Protocol {
    /// Both protocols.
    pub const ALL: [Protocol; 2] = [Protocol::Published, Protocol::Standard];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Published => "published",
            Protocol::Standard => "standard",
        }
    }

    /// Unit of HD95.
    pub fn distance_unit(self) -> &'static str {
        match self {
            Protocol::Published => "voxels",
            Protocol::Standard => "mm",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.name() == name)
            .ok_or_else(|| format!("unknown protocol {name:?}; use published or standard"))
    }
}

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
/// Names the case where the masks' shapes differ, a mask holds a class without a name, or the spacing is not positive.
pub fn evaluate_case(masks: &CaseMasks, class_names: &[String], protocol: Protocol) -> Result<Vec<CaseRow>> {
    let &CaseMasks { case, prediction, reference, spacing_mm } = masks;
    check_class_names(class_names)?;
    if spacing_mm.iter().any(|spacing| !spacing.is_finite() || *spacing <= 0.0) {
        return Err(EvalError::Spacing { case: case.into(), spacing_mm });
    }
    let pair = MaskPair::new(case, prediction, reference, class_names.len())?;
    let row = |(class, organ): (u8, &String)| {
        let region = pair.region(class);
        let (dice, hd95) = match protocol {
            Protocol::Published if region.predicted_voxels == 0 => (Some(0.0), Some(0.0)),
            Protocol::Published if region.reference_voxels == 0 => (Some(1.0), Some(0.0)),
            Protocol::Published => (dice(&region), hd95(&pair, class, [1.0; 3])),
            Protocol::Standard => (dice(&region), hd95(&pair, class, spacing_mm)),
        };
        CaseRow {
            case: case.into(),
            organ: organ.clone(),
            dice,
            hd95,
            reference_voxels: region.reference_voxels,
            predicted_voxels: region.predicted_voxels,
        }
    };
    Ok((1u8..=u8::MAX).zip(class_names).map(row).collect())
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
    fn rows(protocol: Protocol) -> Vec<CaseRow> {
        let names: Vec<String> = ["liver", "spleen", "aorta", "stomach"].map(String::from).to_vec();
        let shape = [2, 1, 4];
        let mask = |voxels| Mask { voxels, shape };
        let masks = CaseMasks {
            case: "0008",
            prediction: mask(&[1, 0, 0, 3, 0, 0, 0, 0]),
            reference: mask(&[0, 0, 2, 0, 1, 0, 0, 0]),
            spacing_mm: [5.0, 0.5, 0.5],
        };
        evaluate_case(&masks, &names, protocol).unwrap()
    }

    fn scores(protocol: Protocol) -> Vec<(Option<f64>, Option<f64>)> {
        rows(protocol).iter().map(|row| (row.dice, row.hd95)).collect()
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
    fn rows_carry_names_and_voxels() {
        let rows = rows(Protocol::Standard);
        assert!(rows.iter().all(|row| row.case == "0008"));
        assert_eq!(rows.iter().map(|row| row.organ.as_str()).collect::<Vec<_>>(), ["liver", "spleen", "aorta", "stomach"]);
        let voxels: Vec<_> = rows.iter().map(|row| (row.reference_voxels, row.predicted_voxels)).collect();
        assert_eq!(voxels, [(1, 1), (1, 0), (0, 1), (0, 0)]);
    }

    #[test]
    fn bad_spacing_and_names_are_refused() {
        let mask = Mask { voxels: &[0], shape: [1, 1, 1] };
        for spacing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let masks = CaseMasks { case: "0001", prediction: mask, reference: mask, spacing_mm: [1.0, spacing, 1.0] };
            let error = evaluate_case(&masks, &["liver".into()], Protocol::Standard).unwrap_err().to_string();
            assert!(error.contains("case 0001") && error.contains("spacing"), "{error}");
        }
        let masks = CaseMasks { case: "0001", prediction: mask, reference: mask, spacing_mm: [1.0; 3] };
        assert!(evaluate_case(&masks, &[], Protocol::Standard).unwrap_err().to_string().contains("0 organ names"));
        assert_eq!("published".parse(), Ok(Protocol::Published));
        assert!("paper".parse::<Protocol>().unwrap_err().contains("published or standard"));
    }
}
