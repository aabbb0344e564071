//! What is said of a folder of scans before anything is computed: `inspect`.

use super::{CaseEntry, Layout, ScanSource};
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::inspection::{InspectedCase, InspectedVoxels};
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::tables::PERCENTILES;

/// Cases whose voxels are in memory at the same time.
const AT_ONCE: usize = 2;
/// Largest to smallest, above which scans count as unlike one another.
const UNLIKE: f64 = 2.0;
/// Depth to width of a voxel, above which nnU-Net treats scans as anisotropic.
const ANISOTROPIC: f64 = 3.0;
/// An organ that fewer training cases have than this is hardly learnt.
const FEW_CASES: usize = 3;

impl ScanSource {
    /// Name of the folder's layout.
    pub fn layout_name(&self) -> &'static str {
        self.layout.name()
    }

    /// Every case by its headers, and by its voxels if they are to be read; what is strange about the values goes to the observer. Voxels
    /// that cannot be used are no error: the case says so.
    pub fn inspect(&self, num_organs: usize, voxels: bool, observer: &dyn Observer) -> Vec<InspectedCase> {
        let mut cases: Vec<InspectedCase> = self.cases.iter().map(|case| self.by_header(case)).collect();
        if voxels {
            let progress = observer.begin(Phase::new("reading the voxels", Unit::Files, self.cases.len() as u64));
            for (entries, cases) in self.cases.chunks(AT_ONCE).zip(cases.chunks_mut(AT_ONCE)) {
                let read: Vec<_> = entries.par_iter().map(|entry| self.by_voxels(entry, num_organs)).collect();
                for (case, (plane, found, notes)) in cases.iter_mut().zip(read) {
                    notes.iter().for_each(|note| observer.message(note));
                    (case.plane, case.voxels) = (plane.or(case.plane), Some(found));
                }
                progress.advance(entries.len() as u64);
            }
        }
        cases
    }

    fn by_header(&self, entry: &CaseEntry) -> InspectedCase {
        let stated = if self.layout == Layout::Published { self.preprocessing.spacing_mm } else { None };
        InspectedCase {
            case: entry.case.clone(),
            split: entry.split,
            file: entry.files.first().map(|file| self.source_name(file)).unwrap_or_default(),
            slices: entry.num_slices,
            plane: entry.grid.as_ref().map(|grid| grid.shape()).map(|[_, h, w]| [h, w]),
            spacing_mm: entry.grid.as_ref().map_or(stated, |grid| grid.spacing_mm()),
            orientation: entry.grid.as_ref().and_then(|grid| grid.orientation()).map(|codes| codes.to_string()),
            voxels: None,
        }
    }

    /// Height and width, what the voxels are, and what the user should know of them.
    fn by_voxels(&self, entry: &CaseEntry, num_organs: usize) -> (Option<[usize; 2]>, InspectedVoxels, Vec<String>) {
        let scan = match self.read(entry) {
            Ok(scan) => scan,
            Err(error) => return (None, InspectedVoxels::Unusable(error.with_hint()), Vec::new()),
        };
        let mut organ_voxels = vec![0; num_organs];
        for &class in scan.label.iter().filter(|&&class| class > 0) {
            if let Some(count) = organ_voxels.get_mut(usize::from(class) - 1) {
                *count += 1;
            }
        }
        let of_channel = |five: &[f64]| std::array::from_fn(|i| five.get(i).copied().unwrap_or(f64::NAN));
        let percentiles = scan.row.percentiles.chunks(PERCENTILES.len()).map(of_channel).collect();
        let usable = InspectedVoxels::Usable { percentiles, in_window: scan.row.in_window.clone(), organ_voxels };
        (Some([scan.shape[1], scan.shape[2]]), usable, scan.notes)
    }
}

/// What nnU-Net's fingerprint would show of the set as a whole: scans that are unlike one another, organs that are rare.
pub fn unlike_scans(cases: &[InspectedCase], class_names: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    let spacings: Vec<(&InspectedCase, [f64; 3])> = cases.iter().filter_map(|case| Some((case, case.spacing_mm?))).collect();
    type Measure = fn(&InspectedCase, [f64; 3]) -> Option<f64>;
    let measures: [(&str, Measure); 3] = [
        ("the distance between slices", |_, [z, ..]| Some(z)),
        ("the side of a pixel", |_, [_, y, _]| Some(y)),
        ("the field of view", |case, [_, y, _]| case.plane.map(|[h, _]| y * h as f64)),
    ];
    for (what, measure) in measures {
        let values: Vec<(&str, f64)> =
            spacings.iter().filter_map(|(case, spacing)| Some((case.case.as_str(), measure(case, *spacing)?))).collect();
        let least = values.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = values.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some((first, least)), Some((last, most))) = (least, most)
            && *most > UNLIKE * least
        {
            warnings.push(format!(
                "{what} is from {least:.2} mm ({first}) to {most:.2} mm ({last}). nnU-Net would resample the scans to one spacing; here every \
                 slice is resized to the same number of pixels"
            ));
        }
    }
    let mut flat: Vec<f64> = spacings.iter().map(|(_, [z, y, _])| z / y).collect();
    flat.sort_by(f64::total_cmp);
    if let Some(ratio) = flat.get(flat.len() / 2).filter(|&&ratio| ratio < 1.0 / ANISOTROPIC) {
        warnings.push(format!(
            "slices lie closer to one another than pixels do (depth to height of a voxel {ratio:.2} in the middle scan): look whether the axes \
             are what they should be"
        ));
    }
    warnings.extend(rare_organs(cases, class_names));
    warnings
}

/// Organs that no training case, or that few of them have.
fn rare_organs(cases: &[InspectedCase], class_names: &[String]) -> Vec<String> {
    let training: Vec<&[u64]> =
        cases.iter().filter(|case| case.split == Split::Train).filter_map(InspectedCase::organ_voxels).collect();
    if training.is_empty() {
        return Vec::new();
    }
    let with = |organ: usize| training.iter().filter(|voxels| voxels.get(organ).is_some_and(|&count| count > 0)).count();
    let rare = class_names.iter().enumerate().map(|(organ, name)| (name, with(organ)));
    rare.filter(|(_, count)| *count < FEW_CASES.min(training.len()))
        .map(|(name, count)| format!("{name}: {count} of {} training cases have it", training.len()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, spacing_mm: [f64; 3], organ_voxels: &[u64]) -> InspectedCase {
        InspectedCase {
            case: name.into(),
            split: Split::Train,
            file: format!("{name}.nii.gz"),
            slices: 10,
            plane: Some([512, 512]),
            spacing_mm: Some(spacing_mm),
            orientation: None,
            voxels: Some(InspectedVoxels::Usable {
                percentiles: Vec::new(),
                in_window: Vec::new(),
                organ_voxels: organ_voxels.to_vec(),
            }),
        }
    }

    #[test]
    fn sets_that_are_alike_have_no_warning() {
        let cases = [case("a", [3.0, 0.8, 0.8], &[5, 7]), case("b", [5.0, 0.7, 0.7], &[1, 1])];
        assert_eq!(unlike_scans(&cases, &["liver".into(), "spleen".into()]), [""; 0]);
    }

    #[test]
    fn unlike_spacings_and_rare_organs_are_named() {
        let cases = [
            case("a", [1.0, 0.5, 0.5], &[5, 0]),
            case("b", [5.0, 0.9, 0.9], &[5, 0]),
            case("c", [5.0, 1.2, 1.2], &[5, 3]),
            case("d", [5.0, 1.0, 1.0], &[0, 0]),
        ];
        let found = unlike_scans(&cases, &["liver".into(), "spleen".into()]);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("the distance between slices is from 1.00 mm (a) to 5.00 mm"), "{found:#?}");
        assert!(found[1].starts_with("the side of a pixel is from 0.50 mm (a) to 1.20 mm (c)"), "{found:#?}");
        assert!(found[2].starts_with("the field of view is from 256.00 mm (a) to 614.40 mm (c)"), "{found:#?}");
        assert_eq!(found[3], "spleen: 1 of 4 training cases have it");
    }

    #[test]
    fn axes_that_may_be_exchanged_are_seen() {
        let cases = [case("a", [0.7, 3.0, 3.0], &[]), case("b", [0.8, 3.0, 3.0], &[])];
        let found = unlike_scans(&cases, &[]);
        assert!(found.len() == 1 && found[0].starts_with("slices lie closer to one another"), "{found:#?}");
    }
}
