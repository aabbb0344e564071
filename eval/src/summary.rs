//! Means over cases, and over organs.

use sam_ladder_schemas::tables::{CaseRow, SummaryRow};

/// Name of the summary's last row.
pub const MEAN: &str = "mean";

/// One row an organ, in the order of `class_names`: means over the cases where the value is defined. The last row, [`MEAN`], is the mean over
/// organs of those means, as published; its counts are sums over organs.
pub fn summarise(rows: &[CaseRow], class_names: &[String]) -> Vec<SummaryRow> {
    let mut summary: Vec<SummaryRow> = class_names.iter().map(|organ| summarise_organ(rows, organ)).collect();
    let total = |count: fn(&SummaryRow) -> u32| summary.iter().map(count).sum();
    let overall = SummaryRow {
        organ: MEAN.into(),
        dice: mean(summary.iter().filter_map(|row| row.dice)),
        hd95: mean(summary.iter().filter_map(|row| row.hd95)),
        dice_cases: total(|row| row.dice_cases),
        hd95_cases: total(|row| row.hd95_cases),
        missed: total(|row| row.missed),
        invented: total(|row| row.invented),
    };
    summary.push(overall);
    summary
}

fn summarise_organ(rows: &[CaseRow], organ: &str) -> SummaryRow {
    let of_organ = || rows.iter().filter(|row| row.organ == organ);
    let count = |wanted: fn(&&CaseRow) -> bool| of_organ().filter(wanted).count() as u32;
    SummaryRow {
        organ: organ.into(),
        dice: mean(of_organ().filter_map(|row| row.dice)),
        hd95: mean(of_organ().filter_map(|row| row.hd95)),
        dice_cases: count(|row| row.dice.is_some()),
        hd95_cases: count(|row| row.hd95.is_some()),
        missed: count(|row| row.reference_voxels > 0 && row.predicted_voxels == 0),
        invented: count(|row| row.reference_voxels == 0 && row.predicted_voxels > 0),
    }
}

/// Mean of the values; `None` of none.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, organ: &str, dice: Option<f64>, hd95: Option<f64>, voxels: [u64; 2]) -> CaseRow {
        let [reference_voxels, predicted_voxels] = voxels;
        CaseRow { case: case.into(), organ: organ.into(), dice, hd95, reference_voxels, predicted_voxels }
    }

    #[test]
    fn the_mean_is_over_organs_of_means_over_cases() {
        let names: Vec<String> = ["liver", "spleen", "aorta"].map(String::from).to_vec();
        let rows = [
            row("1", "liver", Some(0.5), Some(2.0), [9, 9]),
            row("1", "spleen", Some(0.0), None, [9, 0]),
            row("1", "aorta", None, None, [0, 0]),
            row("2", "liver", Some(1.0), Some(4.0), [9, 9]),
            row("2", "spleen", None, None, [0, 0]),
            row("2", "aorta", None, None, [0, 0]),
            row("3", "liver", Some(0.0), None, [0, 4]),
        ];
        let summary = summarise(&rows, &names);
        assert_eq!(summary.iter().map(|row| row.organ.as_str()).collect::<Vec<_>>(), ["liver", "spleen", "aorta", "mean"]);
        assert_eq!(summary.iter().map(|row| row.dice).collect::<Vec<_>>(), [Some(0.5), Some(0.0), None, Some(0.25)]);
        assert_eq!(summary.iter().map(|row| row.hd95).collect::<Vec<_>>(), [Some(3.0), None, None, Some(3.0)]);
        assert_eq!(
            summary.iter().map(|row| (row.dice_cases, row.hd95_cases)).collect::<Vec<_>>(),
            [(3, 2), (1, 0), (0, 0), (4, 2)]
        );
        assert_eq!(summary.iter().map(|row| (row.missed, row.invented)).collect::<Vec<_>>(), [(0, 1), (1, 0), (0, 0), (1, 1)]);
    }

    #[test]
    fn no_cases_give_no_numbers() {
        let summary = summarise(&[], &["liver".into()]);
        assert_eq!(summary.iter().map(|row| (row.dice, row.hd95)).collect::<Vec<_>>(), [(None, None), (None, None)]);
    }
}
