//! What is shown of cases, organs and costs, in the cells of a table.

use crate::table_text::UNDEFINED;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::inspection::{InspectedCase, InspectedCost};

pub(super) const ORGAN_COLUMNS: [&str; 5] = ["training cases", "test cases", "middle volume", "smallest", "largest"];
pub(super) const COST_COLUMNS: [&str; 3] = ["images", "disk, at most", "encoding"];

/// A heading, and a case's cell below it.
pub(super) type Column = (&'static str, fn(&InspectedCase) -> String);

/// What is shown of a case.
pub(super) fn case_columns() -> [Column; 6] {
    [
        ("split", |case| case.split.to_string()),
        ("slices", |case| case.slices.to_string()),
        ("height × width", |case| case.plane.map_or(UNDEFINED.into(), |[h, w]| format!("{h} × {w}"))),
        ("voxel, mm", |case| {
            case.spacing_mm
                .map_or(UNDEFINED.into(), |[z, y, x]| format!("{} × {} × {}", millimetres(z), millimetres(y), millimetres(x)))
        }),
        ("orientation", |case| case.orientation.clone().unwrap_or(UNDEFINED.into())),
        ("file", |case| case.file.clone()),
    ]
}

/// At most three decimals.
fn millimetres(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// How many cases have an organ, and its volume in them.
pub(super) struct OrganFacts {
    /// Cases with the organ, and all, of each split.
    with: [(usize, usize); 2],
    /// Volumes and their unit, sorted.
    volumes: Vec<f64>,
    unit: &'static str,
}

impl OrganFacts {
    pub fn of(cases: &[InspectedCase], organ: usize) -> Self {
        let counts: Vec<(&InspectedCase, u64)> =
            cases.iter().filter_map(|case| Some((case, *case.organ_voxels()?.get(organ)?))).collect();
        let with = Split::ALL.map(|split| {
            let of_split = counts.iter().filter(|(case, _)| case.split == split);
            (of_split.clone().filter(|(_, count)| *count > 0).count(), of_split.count())
        });
        let there = || counts.iter().filter(|(_, count)| *count > 0);
        let in_ml = there().all(|(case, _)| case.spacing_mm.is_some());
        let mut volumes: Vec<f64> =
            there().map(|(case, count)| *count as f64 * if in_ml { case.voxel_ml().unwrap_or(f64::NAN) } else { 1.0 }).collect();
        volumes.sort_by(f64::total_cmp);
        OrganFacts { with, volumes, unit: if in_ml { "ml" } else { "voxels" } }
    }

    pub fn cells(&self) -> Vec<String> {
        let volume = |value: Option<&f64>| match value {
            None => UNDEFINED.into(),
            Some(value) if self.unit == "ml" => format!("{value:.1} ml"),
            Some(value) => format!("{value} voxels"),
        };
        let share = |(with, all): (usize, usize)| if all == 0 { UNDEFINED.into() } else { format!("{with} of {all}") };
        let half = self.volumes.len() / 2;
        let middle = match self.volumes.len() {
            0 => None,
            count if count.is_multiple_of(2) => Some((self.volumes[half - 1] + self.volumes[half]) / 2.0),
            _ => Some(self.volumes[half]),
        };
        vec![
            share(self.with[0]),
            share(self.with[1]),
            volume(middle.as_ref()),
            volume(self.volumes.first()),
            volume(self.volumes.last()),
        ]
    }
}

pub(super) fn cost_cells(cost: &InspectedCost) -> [String; 3] {
    let bytes = match cost.bytes as f64 {
        bytes if bytes < 1e9 => format!("{:.0} MB", bytes / 1e6),
        bytes => format!("{:.1} GB", bytes / 1e9),
    };
    [cost.images.to_string(), bytes, cost.seconds.map_or(UNDEFINED.into(), duration)]
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::inspection;
    use super::*;

    #[test]
    fn organs_are_counted_in_millilitres_of_the_cases_that_have_them() {
        let cases = inspection().cases;
        // 3 × 0.5 × 0.75 mm³ = 1.125e-3 ml for each voxel.
        assert_eq!(
            OrganFacts::of(&cases, 0).cells(),
            ["2 of 2", "–", "4.5 ml", "1.8 ml", "7.2 ml"].map(|cell| cell.replace('–', UNDEFINED))
        );
        assert_eq!(OrganFacts::of(&cases, 1).cells()[..3], ["1 of 2".to_string(), UNDEFINED.into(), "0.9 ml".into()]);
        let mut unknown = cases;
        unknown[1].spacing_mm = None;
        assert_eq!(OrganFacts::of(&unknown, 1).cells()[2], "800 voxels");
    }
}
