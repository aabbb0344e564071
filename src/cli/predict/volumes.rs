//! The organs' volumes in new masks, and whether they are plausible next to those of the cases that the model was trained on.

use super::settings::Settings;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::csv::{field, one_line};
use sam_ladder_formats::outputs::{HASH_COMMENT, is_there, origin_of_text, sealed};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::regions::ClassRegion;
use sam_ladder_schemas::tables::{VolumeRange, voxel_ml};
use std::path::{Path, PathBuf};

/// The columns of the table.
const HEADER: &str = "case,organ,voxels,volume_ml,trained_low_ml,trained_high_ml,trained_cases,trained_with_organ,remark";
/// Organs that are printed; of masks with more, only those that are not as in training.
const PRINTED: usize = 12;

/// `volumes.csv`: a row per case and organ, of this and of earlier calls.
#[derive(Debug)]
pub struct Volumes<'a> {
    path: PathBuf,
    /// The rows as text, each with its case.
    rows: Vec<(String, String)>,
    class_names: &'a [String],
    /// Unions of these.
    regions: &'a [ClassRegion],
    /// By class from 1; empty if nothing is known.
    training: &'a [VolumeRange],
}

/// How a volume compares with those that were trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remark {
    /// Nothing speaks against it, or nothing is known.
    None,
    Below,
    Above,
    /// Less than half of the least.
    FarBelow,
    /// More than twice the largest.
    FarAbove,
    /// Every case that was trained on has the organ, and the mask lacks it.
    Missing,
}

/// An organ in a mask.
#[derive(Debug)]
struct Organ<'a> {
    name: &'a str,
    voxels: u64,
    ml: Option<f64>,
    training: Option<&'a VolumeRange>,
    remark: Remark,
}

impl<'a> Volumes<'a> {
    /// The table at a path, with the rows that are there.
    ///
    /// # Errors
    /// A file that is no such table, or was changed since.
    pub fn open(path: PathBuf, settings: &'a Settings) -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        if is_there(&path) {
            origin_of_text(&path, HASH_COMMENT).may_replace(&path, "a table of volumes by sam-ladder")?;
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines = text.lines().skip(1).filter(|line| !line.starts_with(HASH_COMMENT.open));
            rows = lines.map(|line| (first_field(line), line.to_string())).collect();
        }
        let PrecomputeConfig { class_names, regions, .. } = &settings.config;
        Ok(Volumes { path, rows, class_names, regions, training: &settings.training_volumes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the rows of a case's mask, in place of its earlier ones, and returns what is to be said of it. `spacing_mm` is `None` where nothing
    /// says it.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, case: &str, mask: &[u8], spacing_mm: Option<[f64; 3]>) -> anyhow::Result<Vec<String>> {
        let organs = organs((self.class_names, self.regions), self.training, mask, spacing_mm);
        let key = one_line(case);
        self.rows.retain(|(of, _)| *of != key);
        self.rows.extend(organs.iter().map(|organ| (key.clone(), organ.line(&key))));
        let mut text = format!("{HEADER}\n");
        self.rows.iter().for_each(|(_, line)| text += &format!("{line}\n"));
        write_atomic(&self.path, sealed(&text, HASH_COMMENT).as_bytes())?;
        Ok(said(case, &organs, spacing_mm.is_some()))
    }
}

/// The classes, and the regions of several of them, of which nothing is known from training.
fn organs<'a>(
    (names, regions): (&'a [String], &'a [ClassRegion]),
    training: &'a [VolumeRange],
    mask: &[u8],
    spacing_mm: Option<[f64; 3]>,
) -> Vec<Organ<'a>> {
    let mut voxels = [0u64; 256];
    mask.iter().for_each(|&class| voxels[usize::from(class)] += 1);
    let organ = |(at, name): (usize, &'a String)| {
        let voxels = voxels.get(at + 1).copied().unwrap_or(0);
        let ml = spacing_mm.map(|spacing| voxel_ml(spacing) * voxels as f64);
        let training = training.get(at);
        Organ { name, voxels, ml, training, remark: training.map_or(Remark::None, |range| remark(voxels, ml, range)) }
    };
    let region = |region: &'a ClassRegion| {
        let voxels = region.classes.iter().map(|&class| voxels[usize::from(class)]).sum();
        let ml = spacing_mm.map(|spacing| voxel_ml(spacing) * voxels as f64);
        Organ { name: &region.name, voxels, ml, training: None, remark: Remark::None }
    };
    let several = regions.iter().filter(|region| region.classes.len() > 1);
    names.iter().enumerate().map(organ).chain(several.map(region)).collect()
}

fn remark(voxels: u64, ml: Option<f64>, range: &VolumeRange) -> Remark {
    if voxels == 0 {
        return if range.is_in_every_case() { Remark::Missing } else { Remark::None };
    }
    let (Some(ml), Some(low), Some(high)) = (ml, range.low_ml, range.high_ml) else { return Remark::None };
    match ml {
        ml if ml < 0.5 * low => Remark::FarBelow,
        ml if ml > 2.0 * high => Remark::FarAbove,
        ml if ml < low => Remark::Below,
        ml if ml > high => Remark::Above,
        _ => Remark::None,
    }
}

impl Remark {
    fn text(self) -> &'static str {
        match self {
            Remark::None => "",
            Remark::Below => "below the range trained on",
            Remark::Above => "above the range trained on",
            Remark::FarBelow => "less than half of the least trained on",
            Remark::FarAbove => "more than twice the largest trained on",
            Remark::Missing => "missing though every case trained on has it",
        }
    }

    fn is_implausible(self) -> bool {
        matches!(self, Remark::FarBelow | Remark::FarAbove | Remark::Missing)
    }
}

impl Organ<'_> {
    /// A row of the table.
    fn line(&self, case: &str) -> String {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let count = |count: fn(&VolumeRange) -> u32| self.training.map_or(String::new(), |range| count(range).to_string());
        let [low, high] = [|range: &VolumeRange| range.low_ml, |range: &VolumeRange| range.high_ml]
            .map(|end| number(self.training.and_then(end)));
        let cells = [
            field(case),
            field(&one_line(self.name)),
            self.voxels.to_string(),
            number(self.ml),
            low,
            high,
            count(|range| range.cases),
            count(|range| range.with_organ),
            field(self.remark.text()),
        ];
        cells.join(",")
    }

    /// `spleen 212 mL`.
    fn text(&self) -> String {
        format!("{} {}", self.name, self.ml.map_or_else(|| counted(self.voxels, "voxel"), millilitres))
    }

    /// The same with the range trained on.
    fn strange(&self) -> Option<String> {
        if self.remark == Remark::None {
            return None;
        }
        let range = self.training?;
        Some(match (self.remark, range.low_ml.zip(range.high_ml)) {
            (Remark::Missing, _) => format!("no {}, which all have", self.name),
            (_, Some((low, high))) => format!("{} ({} to {})", self.text(), millilitres(low), millilitres(high)),
            (_, None) => self.text(),
        })
    }
}

fn said(case: &str, organs: &[Organ], has_spacing: bool) -> Vec<String> {
    let found: Vec<&Organ> = organs.iter().filter(|organ| organ.voxels > 0).collect();
    let mut lines = Vec::new();
    if !has_spacing && !found.is_empty() {
        lines.push(format!("scan {case}: nothing says its spacing, so its organs are counted in voxels"));
    }
    if !found.is_empty() && found.len() <= PRINTED {
        lines.push(format!("  {}", found.iter().map(|organ| organ.text()).collect::<Vec<_>>().join(", ")));
    } else if found.len() > PRINTED {
        lines.push(format!("  {} of {}", found.len(), counted(organs.len(), "organ")));
    }
    let strange: Vec<String> = organs.iter().filter_map(Organ::strange).collect();
    if !strange.is_empty() && !found.is_empty() {
        let cases = organs.iter().find_map(|organ| organ.training).map_or(0, |range| range.cases);
        let (kind, what) = if organs.iter().any(|organ| organ.remark.is_implausible()) {
            ("warning", "implausible next to")
        } else {
            ("note", "outside the range of")
        };
        lines.push(format!("{kind}: scan {case}: {what} the {}: {}", counted(cases, "training case"), strange.join(", ")));
    }
    lines
}

/// Three digits: `1234 mL`, `212 mL`, `21.2 mL`, `2.12 mL`.
fn millilitres(ml: f64) -> String {
    let decimals = if ml >= 100.0 {
        0
    } else if ml >= 10.0 {
        1
    } else {
        2
    };
    format!("{ml:.decimals$} mL")
}

/// The first field of such a line.
fn first_field(line: &str) -> String {
    let Some(rest) = line.strip_prefix('"') else { return line.split(',').next().unwrap_or_default().into() };
    let mut field = String::new();
    let mut letters = rest.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if letters.next_if_eq(&'"').is_none() => break,
            letter => field.push(letter),
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(low: f64, high: f64, with_organ: u32) -> VolumeRange {
        VolumeRange { cases: 18, with_organ, low_ml: Some(low), high_ml: Some(high) }
    }

    #[test]
    fn volumes_are_held_against_those_trained_on() {
        let liver = range(1000.0, 2000.0, 18);
        let of = |ml: f64| remark(1, Some(ml), &liver);
        let found = [1000.0, 2000.0, 999.0, 2001.0, 499.0, 4001.0].map(of);
        let expected = [Remark::None, Remark::None, Remark::Below, Remark::Above, Remark::FarBelow, Remark::FarAbove];
        assert_eq!(found, expected);
        assert_eq!(remark(0, Some(0.0), &liver), Remark::Missing);
        assert_eq!(remark(0, None, &range(5.0, 9.0, 17)), Remark::None, "some cases lack a gallbladder");
        assert_eq!(remark(9, None, &liver), Remark::None, "without a spacing there is no volume");
        assert_eq!(remark(9, Some(1.0), &VolumeRange { low_ml: None, high_ml: None, ..liver }), Remark::None);
    }

    #[test]
    fn what_is_said_has_the_range_and_what_is_missing() {
        let names = ["liver", "spleen", "gallbladder"].map(String::from);
        let training = [range(1.0, 3.0, 18), range(0.5, 0.9, 18), range(0.1, 0.2, 17)];
        // Voxels of 1 ml: 2 of liver; 9 of spleen, or none.
        let mask = |spleen: usize| [vec![1u8; 2], vec![2; spleen], vec![0; 4]].concat();
        let said_of = |mask: &[u8], spacing| said("7", &organs((&names, &[]), &training, mask, spacing), spacing.is_some());
        let ten = Some([10.0; 3]);
        assert_eq!(
            said_of(&mask(9), ten),
            [
                "  liver 2.00 mL, spleen 9.00 mL",
                "warning: scan 7: implausible next to the 18 training cases: spleen 9.00 mL (0.50 mL to 0.90 mL)"
            ]
        );
        assert_eq!(
            said_of(&mask(0), ten)[1],
            "warning: scan 7: implausible next to the 18 training cases: no spleen, which all have"
        );
        assert_eq!(
            said_of(&mask(1), ten)[1],
            "note: scan 7: outside the range of the 18 training cases: spleen 1.00 mL (0.50 mL to 0.90 mL)"
        );
        assert_eq!(
            said_of(&mask(1), None),
            ["scan 7: nothing says its spacing, so its organs are counted in voxels", "  liver 2 voxels, spleen 1 voxel"]
        );
        assert!(said_of(&[0; 5], ten).is_empty(), "an empty mask is said otherwise");
        assert_eq!([1234.4, 212.3, 21.24, 2.125].map(millilitres), ["1234 mL", "212 mL", "21.2 mL", "2.12 mL"]);
    }

    #[test]
    fn fields_are_quoted_and_read_back() {
        for case in ["0001", "a,b", "a \"b\", c", "#1", " x"] {
            let line = format!("{},liver,3", field(case));
            assert_eq!(first_field(&line), case, "{line}");
        }
    }
}
