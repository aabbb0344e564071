//! Means over cases, and over organs, with their spread.

use crate::scores::Scores;
use crate::statistics::{FEWEST_CASES, Resampling, standard_deviation};
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};

/// Name of the summary's last row.
pub const MEAN: &str = "mean";

/// One row per organ, in the order of `class_names`: means over the cases in which the value is defined, with their standard
/// deviation and bootstrap interval over cases. The last row, [`MEAN`], is the mean over organs of those means, as published; its
/// cases are those in which any organ counts, its missed and invented organs sums over organs, and its intervals resample cases with all their
/// organs. Of fewer than six cases with a value there is no interval.
pub fn summarise(rows: &[CaseRow], class_names: &[String]) -> Vec<SummaryRow> {
    let scores = |value: fn(&CaseRow) -> Option<f64>| Scores::new(rows, class_names, value);
    let (dice, hd95) = (scores(|row| row.dice), scores(|row| row.hd95));
    let others = [
        scores(|row| row.hd95_voxels),
        scores(|row| row.hd95_mm),
        scores(|row| row.hd95_larger_voxels),
        scores(|row| row.hd95_larger_mm),
        scores(|row| row.surface_dice),
        scores(|row| row.volume_difference_ml),
    ];
    let all = dice.all();
    let resampling = Resampling::new(dice.cases.len());
    let count = |organ: Option<usize>, wanted: &dyn Fn(&CaseRow) -> bool| {
        let of_organ = |row: &&CaseRow| organ.is_none_or(|organ| row.organ == class_names[organ]);
        rows.iter().filter(of_organ).filter(|row| wanted(row)).count() as u32
    };
    let row = |organ: Option<usize>| {
        let interval = |scores: &Scores| {
            let enough = scores.cases_of(organ) >= FEWEST_CASES;
            enough.then(|| resampling.interval(|cases| scores.mean_of(organ, cases))).flatten()
        };
        let deviation = |scores: &Scores| organ.and_then(|organ| standard_deviation(&scores.of_organ(organ)));
        let (dice_interval, hd95_interval) = (interval(&dice), interval(&hd95));
        let [hd95_voxels, hd95_mm, hd95_larger_voxels, hd95_larger_mm, surface_dice, volume_difference_ml] =
            others.each_ref().map(|scores| scores.mean_of(organ, &all));
        SummaryRow {
            organ: organ.map_or(MEAN.into(), |organ| class_names[organ].clone()),
            dice: dice.mean_of(organ, &all),
            hd95: hd95.mean_of(organ, &all),
            dice_cases: dice.cases_of(organ) as u32,
            hd95_cases: hd95.cases_of(organ) as u32,
            missed: count(organ, &|row| row.reference_voxels > 0 && row.predicted_voxels == 0),
            invented: count(organ, &|row| row.reference_voxels == 0 && row.predicted_voxels > 0),
            dice_sd: deviation(&dice),
            hd95_sd: deviation(&hd95),
            dice_low: dice_interval.map(|interval| interval.low),
            dice_high: dice_interval.map(|interval| interval.high),
            hd95_low: hd95_interval.map(|interval| interval.low),
            hd95_high: hd95_interval.map(|interval| interval.high),
            hd95_voxels,
            hd95_mm,
            hd95_larger_voxels,
            hd95_larger_mm,
            surface_dice,
            volume_difference_ml,
        }
    };
    (0..class_names.len()).map(Some).chain([None]).map(row).collect()
}

/// Whether anything was measured in millimetres, which needs the scans' spacing; volumes then are, whatever the masks hold.
pub(crate) fn has_spacing(summary: &[SummaryRow]) -> bool {
    summary.iter().any(|row| row.volume_difference_ml.or(row.surface_dice).or(row.hd95_mm).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, organ: &str, dice: Option<f64>, hd95: Option<f64>, voxels: [u64; 2]) -> CaseRow {
        let [reference_voxels, predicted_voxels] = voxels;
        CaseRow { case: case.into(), organ: organ.into(), dice, hd95, reference_voxels, predicted_voxels, ..CaseRow::default() }
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
            [(3, 2), (1, 0), (0, 0), (3, 2)]
        );
        assert_eq!(summary.iter().map(|row| (row.missed, row.invented)).collect::<Vec<_>>(), [(0, 1), (1, 0), (0, 0), (1, 1)]);
        // Deviations of 0.5, 1 and 0, and of 2 and 4. A single value has no deviation, and neither has the mean over organs.
        assert_eq!(summary.iter().map(|row| row.dice_sd).collect::<Vec<_>>(), [Some(0.5), None, None, None]);
        assert_eq!(summary[0].hd95_sd, Some(2f64.sqrt()));
        // Three cases are too few for an interval.
        assert!(summary.iter().all(|row| row.dice_low.or(row.hd95_high).is_none()));
    }

    #[test]
    fn intervals_need_six_cases_with_a_value() {
        let names: Vec<String> = ["liver", "spleen"].map(String::from).to_vec();
        let cases = (0..6).flat_map(|case| {
            let spleen = (case < 5).then_some(0.1 * f64::from(case));
            [
                row(&case.to_string(), "liver", Some(0.1 * f64::from(case)), None, [9, 9]),
                row(&case.to_string(), "spleen", spleen, None, [9, 9]),
            ]
        });
        let summary = summarise(&cases.collect::<Vec<_>>(), &names);
        assert_eq!(summary.iter().map(|row| row.dice_cases).collect::<Vec<_>>(), [6, 5, 6]);
        let (low, high) = (summary[0].dice_low.unwrap(), summary[0].dice_high.unwrap());
        assert!(low < 0.25 && 0.25 < high && low >= 0.0 && high <= 0.5, "{low} {high}");
        assert_eq!((summary[1].dice_low, summary[2].dice_low.is_some()), (None, true));
    }

    #[test]
    fn no_cases_give_no_numbers() {
        let summary = summarise(&[], &["liver".into()]);
        assert_eq!(summary.iter().map(|row| (row.dice, row.hd95)).collect::<Vec<_>>(), [(None, None), (None, None)]);
    }
}
