//! Scans as real folders hold them: in other orientations, on other grids, with other units, in other values. Each input was taken for
//! something else by an earlier version.

use super::*;
use sam_ladder_formats::nifti::{Geometry, read_image, write_nifti};
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::preprocessing::{Channel, Intensity, Preprocessing};
use sam_ladder_schemas::tables::SpacingSource;
use std::fs;

/// Width, height and depth of the scan as it lies in LPS.
const SIDES: [usize; 3] = [5, 4, 3];

/// The affine of that scan: rotated by 8, -5 and 6 degrees about the body's axes, with voxels of 0.7 x 0.8 x 3 mm, so that no axis lies along the body's.
const OBLIQUE: [[f64; 4]; 3] =
    [[-0.6935, 0.0833, -0.2615, 31.0], [-0.064, -0.7889, -0.4159, -12.0], [-0.0703, -0.1035, 2.9595, 7.0]];

/// A scan that lies otherwise: its geometry, and for each of its voxels, first axis fastest, the index of the same voxel in LPS.
fn stored_as(codes: &str) -> (Geometry, Vec<usize>) {
    // For each axis of the file: the axis of LPS, and whether it runs the other way.
    let axes: Vec<(usize, bool)> = codes
        .chars()
        .map(|letter| {
            let axis = ["LR", "PA", "SI"].iter().position(|sides| sides.contains(letter)).unwrap();
            (axis, !"LPS".contains(letter))
        })
        .collect();
    let mut affine = [[0.0; 4]; 3];
    for (row, base) in affine.iter_mut().zip(OBLIQUE) {
        row[3] = base[3];
        for (column, &(axis, reversed)) in axes.iter().enumerate() {
            row[column] = if reversed { -base[axis] } else { base[axis] };
            row[3] += if reversed { base[axis] * (SIDES[axis] - 1) as f64 } else { 0.0 };
        }
    }
    let sides: Vec<usize> = axes.iter().map(|&(axis, _)| SIDES[axis]).collect();
    let mut same = Vec::new();
    for k in 0..sides[2] {
        for j in 0..sides[1] {
            for i in 0..sides[0] {
                let mut at = [0; 3];
                for (index, &(axis, reversed)) in [i, j, k].into_iter().zip(&axes) {
                    at[axis] = if reversed { SIDES[axis] - 1 - index } else { index };
                }
                same.push(at[0] + SIDES[0] * (at[1] + SIDES[1] * at[2]));
            }
        }
    }
    (Geometry::of_affine([sides[2], sides[1], sides[0]], Some(affine)), same)
}

/// Hounsfield units of the voxel with this index in LPS: each has its own.
fn hu(at: usize) -> f32 {
    at as f32 * 6.0 - 110.0
}

fn in_lps() -> Preprocessing {
    Preprocessing { orientation: Some("LPS".parse().unwrap()), ..Preprocessing::default() }
}

/// Writes a scan stored in this orientation as `folder/codes.nii.gz`.
fn write_scan(folder: &Path, codes: &str) -> NewScan {
    let (geometry, same) = stored_as(codes);
    let path = folder.join(format!("{codes}.nii.gz"));
    write_nifti(&path, &geometry, &same.iter().map(|&at| hu(at)).collect::<Vec<f32>>()).unwrap();
    NewScan { case: codes.into(), files: vec![path] }
}

/// What a model could say of each voxel of the slices: it depends on the plane and the place in it, as a network's answer does.
fn answer(shape: [usize; 3], image: &[f32]) -> Vec<u8> {
    let [_, height, width] = shape;
    (0..image.len())
        .map(|at| ((at % width) * 31 + at / width % height * 7 + at / width / height + (image[at] * 50.0) as usize) as u8)
        .collect()
}

#[test]
fn the_same_anatomy_in_all_48_orientations_gives_the_same_mask() {
    let folder = tempfile::tempdir().unwrap();
    let read = |codes: &str| {
        let scan = write_scan(folder.path(), codes);
        (scan.read(&in_lps()).unwrap(), scan.grid(&in_lps()).unwrap())
    };
    let (lps, _) = read("LPS");
    assert_eq!(lps.shape, [3, 4, 5]);
    assert_eq!(lps.row.axes, [1, 2, 3]);
    let expected = answer(lps.shape, &lps.image);
    let mut seen = 0;
    for orientation in Orientation::all() {
        let codes = orientation.to_string();
        let (scan, grid) = read(&codes);
        assert_eq!((scan.shape, &scan.image), (lps.shape, &lps.image), "{codes}");
        assert_eq!(scan.row.axis_codes.as_deref(), Some(codes.as_str()));
        let apart = (0..3).map(|axis| (scan.spacing_mm.unwrap()[axis] - lps.spacing_mm.unwrap()[axis]).abs());
        assert!(apart.fold(0.0, f64::max) < 1e-6, "{codes}: {:?}", scan.spacing_mm);
        // The mask on the scan's own grid says of each voxel what it says of the same voxel in LPS.
        let mask = grid.turn.inverse().voxels(answer(scan.shape, &scan.image), scan.shape);
        let (geometry, same) = stored_as(&codes);
        assert_eq!(grid.geometry.shape, geometry.shape);
        assert!(mask.iter().zip(&same).all(|(class, &at)| *class == expected[at]), "{codes}");
        assert_eq!((scan.row.file_shape(), scan.row.turned_shape()), (Some(geometry.shape), Some(scan.shape)));
        seen += 1;
    }
    assert_eq!(seen, 48);
}

#[test]
fn a_scan_without_an_affine_is_taken_as_it_lies_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere.nii");
    let geometry = Geometry { sform_code: 0, qform_code: 0, ..Geometry::aligned([3, 4, 5], [3.0, 0.8, 0.7]) };
    write_nifti(&path, &geometry, &(0..60).map(hu).collect::<Vec<f32>>()).unwrap();
    let scan = NewScan { case: "nowhere".into(), files: vec![path.clone()] };
    let read = scan.read(&in_lps()).unwrap();
    assert_eq!(read.image[7], (hu(7) + 125.0) / 400.0);
    assert_eq!((read.row.affine, read.row.axis_codes, read.row.axes), (None, None, vec![1, 2, 3]));
    assert_eq!(read.spacing_mm, Some([3.0, 0.8, 0.7].map(|side: f64| f64::from(side as f32))));
    let grid = scan.grid(&in_lps()).unwrap();
    let notes = grid_notes([("nowhere", path.as_path(), &grid)], in_lps().orientation, false);
    assert!(
        notes.len() == 1
            && notes[0].starts_with("warning: no affine (codes")
            && notes[0].contains(" in 1 of 1 scan; ")
            && notes[0].ends_with(": nowhere"),
        "{notes:?}"
    );
}

/// An nnU-Net folder of training cases in these orientations, with one CT channel, or two with `second`; labels are 1 in one half.
fn dataset(cases: &[(&str, &str)], channels: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["imagesTr", "labelsTr"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    let names: Vec<String> = (0..channels).map(|index| format!(r#""{index}": "{}""#, ["CT", "PET"][index])).collect();
    let labels = r#""labels": {"background": 0, "liver": 1, "spleen": 2}, "file_ending": ".nii.gz""#;
    let json = format!(r#"{{"channel_names": {{{}}}, {labels}}}"#, names.join(", "));
    fs::write(dir.path().join("dataset.json"), json).unwrap();
    for (case, codes) in cases {
        let (geometry, same) = stored_as(codes);
        for channel in 0..channels {
            put(&dir, &format!("imagesTr/{case}_{channel:04}"), &geometry, &same.iter().map(|&at| hu(at)).collect::<Vec<_>>());
        }
        put(&dir, &format!("labelsTr/{case}"), &geometry, &same.iter().map(|&at| label(at)).collect::<Vec<_>>());
    }
    dir
}

fn label(at: usize) -> f32 {
    if at > 30 { 2.0 } else { f32::from(u8::from(at > 20)) }
}

fn put(dir: &tempfile::TempDir, below: &str, geometry: &Geometry, voxels: &[f32]) {
    write_nifti(&dir.path().join(format!("{below}.nii.gz")), geometry, voxels).unwrap();
}

fn config_of(dir: &tempfile::TempDir) -> Result<PrecomputeConfig, ScanError> {
    configure(dir.path(), &SourceOptions::default(), PrecomputeConfig::default())
}

fn open(dir: &tempfile::TempDir) -> Result<ScanSource, ScanError> {
    ScanSource::open(dir.path(), &config_of(dir)?.preprocessing)
}

fn refusal(result: Result<impl std::fmt::Debug, ScanError>) -> String {
    let error = result.expect_err("this input is bad");
    assert!(error.hint().is_some(), "no hint: {error}");
    error.to_string()
}

#[test]
fn a_mixed_set_is_brought_to_the_first_training_case() {
    let dir = dataset(&[("a", "RAS"), ("b", "LPS"), ("c", "ASR")], 1);
    let source = open(&dir).unwrap();
    assert_eq!(source.preprocessing.orientation.unwrap().to_string(), "RAS");
    let scans: Vec<Scan> = source.cases().iter().map(|case| source.read(case).unwrap()).collect();
    assert!(scans.iter().all(|scan| (&scan.image, &scan.label) == (&scans[0].image, &scans[0].label)));
    let notes = source.notes(&[]);
    assert!(notes[0].contains("0 test scans found"));
    assert_eq!(notes[1..], ["turned to the orientation RAS: 2 of 3 scans: b, c"]);
    let typed = SourceOptions { orientation: Some("SAR".parse().unwrap()), ..SourceOptions::default() };
    let config = configure(dir.path(), &typed, PrecomputeConfig::default()).unwrap();
    let source = ScanSource::open(dir.path(), &config.preprocessing).unwrap();
    // Width is the axis towards the head, depth the one towards the right.
    assert_eq!((source.cases()[0].num_slices, source.read(&source.cases()[0]).unwrap().shape), (5, [5, 4, 3]));
    assert!(source.notes(&[])[1].contains("turned to the orientation SAR: 3 of 3 scans"));
}

#[test]
fn raw_synapse_scans_are_taken_as_they_lie() {
    // Three of them lie in RAS, three in LAS.
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/synapse_mini/RawData"));
    let config = configure(root, &SourceOptions::default(), PrecomputeConfig::default()).unwrap();
    assert_eq!(config.preprocessing.orientation.unwrap().to_string(), "RAS");
    let source = ScanSource::open(root, &config.preprocessing).unwrap();
    let published = ScanSource::open(root, &Preprocessing::default()).unwrap();
    for (case, as_published) in source.cases().iter().zip(published.cases()) {
        assert_eq!(source.read(case).unwrap(), published.read(as_published).unwrap());
    }
    let notes = source.notes(&[]).join("\n");
    assert!(
        notes.contains("another orientation than RAS")
            && notes.contains("in 3 of 6 scans; ")
            && notes.contains("0006, 0009, 0002"),
        "{notes}"
    );
    // A new scan is turned as the model needs it.
    let new = NewScan { case: "0006".into(), files: vec![source.cases()[1].files[0].clone()] };
    assert_eq!(new.grid(&config.preprocessing).unwrap().turn.axes(), [-1, 2, 3]);
}

#[test]
fn files_of_a_case_on_different_grids_are_refused() {
    let (grid, same) = stored_as("LPS");
    let voxels = |of: fn(usize) -> f32| same.iter().map(|&at| of(at)).collect::<Vec<f32>>();
    let moved = |change: fn(&mut Geometry)| {
        let mut moved = grid.clone();
        change(&mut moved);
        moved
    };
    let with_label = |geometry: &Geometry| {
        let dir = dataset(&[("a", "LPS")], 1);
        put(&dir, "labelsTr/a", geometry, &voxels(label));
        open(&dir).map(|source| source.read(&source.cases()[0]).unwrap().label)
    };
    // Flipped with its affine: in nibabel, the corners of `img` and of `nib.Nifti1Image(data[::-1], flipped)` are 4 * 0.7 mm apart.
    let (flipped, _) = stored_as("RPS");
    let text = refusal(with_label(&flipped));
    assert!(
        text.contains("labelsTr/a.nii.gz") && text.contains("imagesTr/a_0000.nii.gz") && text.contains("up to 2.800 mm"),
        "{text}"
    );
    let text = refusal(with_label(&moved(|moved| moved.affine[1][3] += 30.0)));
    assert!(text.contains("up to 30.000 mm"), "{text}");
    let text = refusal(with_label(&moved(|moved| moved.affine.iter_mut().for_each(|row| row[2] *= 2.0))));
    // Twice the spacing of 3 mm, over two steps.
    assert!(text.contains("up to 6.000 mm"), "{text}");
    // A thousandth of the shortest side is 0.0007 mm.
    assert!(with_label(&moved(|moved| moved.affine[1][3] += 0.0005)).is_ok());
    assert!(with_label(&moved(|moved| moved.affine[1][3] += 0.001)).is_err());

    // Without an affine, the spacings are compared.
    let unplaced = |spacing: [f64; 3]| Geometry { sform_code: 0, qform_code: 0, ..Geometry::aligned(grid.shape, spacing) };
    assert!(with_label(&unplaced(grid.spacing_mm())).is_ok());
    let text = refusal(with_label(&unplaced(grid.spacing_mm().map(|side| side * 2.0))));
    assert!(text.contains("mm apart"), "{text}");

    let dir = dataset(&[("a", "LPS")], 2);
    put(&dir, "imagesTr/a_0001", &flipped, &voxels(hu));
    let text = refusal(open(&dir));
    assert!(text.contains("imagesTr/a_0001.nii.gz") && text.contains("mm apart"), "{text}");
    let preprocessing = config_of(&dataset(&[("a", "LPS")], 2)).unwrap().preprocessing;
    let scan = NewScan {
        case: "a".into(),
        files: ["a_0000", "a_0001"].map(|name| dir.path().join(format!("imagesTr/{name}.nii.gz"))).into(),
    };
    assert!(refusal(scan.grid(&preprocessing)).contains("mm apart"));
    assert!(refusal(scan.read(&preprocessing)).contains("mm apart"));
}

#[test]
fn a_contradicting_pixdim_is_said_and_the_affine_counts() {
    let dir = dataset(&[("a", "LPS")], 1);
    let path = dir.path().join("imagesTr/a_0000.nii.gz");
    let image = read_image(&path).unwrap();
    let mut geometry = Geometry::of_affine([3, 4, 5], Some([[-0.8, 0.0, 0.0, 0.0], [0.0, -0.8, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]));
    geometry.pixdim[1..3].fill(0.6);
    write_nifti(&path, &geometry, &image.voxels).unwrap();
    put(&dir, "labelsTr/a", &geometry, &vec![1.0; 60]);
    let source = open(&dir).unwrap();
    let scan = source.read(&source.cases()[0]).unwrap();
    let rounded = scan.spacing_mm.unwrap().map(|side| (side * 1e6).round() / 1e6);
    assert_eq!((rounded, scan.row.spacing_source), ([3.0, 0.8, 0.8], SpacingSource::Header));
    let notes = source.notes(&[]).join("\n");
    assert!(notes.contains("a_0000.nii.gz: its pixdim says voxels of 0.6") && notes.contains("its affine of 0.8"), "{notes}");
}

#[test]
fn what_is_wrong_with_a_grid_is_said() {
    let notes = |geometry: Geometry| {
        let grid = Grid::new(geometry, None);
        grid_notes([("a", Path::new("a.nii"), &grid)], None, false)
    };
    let fine = || Geometry::aligned([3, 4, 5], [5.0, 2.0, 2.0]);
    let in_one = " in 1 of 1 scan (a: ";
    assert_eq!(notes(fine()), [""; 0]);
    let metres = notes(Geometry { xyzt_units: 1, ..fine() });
    assert_eq!(
        metres,
        [format!(
            "warning: voxels of an improbable size{in_one}2000 × 2000 × 5000 mm, expected sides from 0.01 to 100 mm); check unit \
             (xyzt_units) and affine: a"
        )]
    );
    let micrometres = notes(Geometry { xyzt_units: 3, ..fine() });
    assert!(micrometres[0].contains("(a: 0.002 × 0.002 × 0.005 mm"), "{micrometres:?}");
    // Each slice is moved by 5 tan 25 degrees, as with a tilted gantry.
    let mut tilted = Geometry { qform_code: 0, ..fine() };
    tilted.affine[1][2] = 5.0 * 25f64.to_radians().tan();
    tilted.pixdim[3] = 5.0 / 25f64.to_radians().cos();
    let grid = Grid::new(tilted.clone(), None);
    assert_eq!((grid.spacing_mm(), grid.row("a").spacing_mm, grid.row("a").spacing_source), (None, None, SpacingSource::None));
    let tilted = notes(tilted);
    assert!(tilted.len() == 1 && tilted[0].starts_with(&format!("warning: a sheared affine{in_one}")), "{tilted:?}");
    assert!(tilted[0].contains("(a: an angle of 65.0 degrees between its axes, expected 90.0)"), "{tilted:?}");
    // The sform in LPS, the qform in RAS: the first voxel is the same, and the last ones are 2 * (8, 6, 0) mm apart.
    let mut turned = fine();
    turned.affine[0][0] = -2.0;
    turned.affine[1][1] = -2.0;
    let contradicting = notes(turned);
    assert!(
        contradicting.len() == 1 && contradicting[0].contains("(a: LPS and RAS, corners up to 20.0 mm apart)"),
        "{contradicting:?}"
    );
    // A voxel's shortest side is 2 mm.
    for (moved, said) in [(1.9, 0), (2.1, 1)] {
        let mut geometry = fine();
        geometry.affine[2][3] += moved;
        assert_eq!(notes(geometry).len(), said, "{moved}");
    }
}

/// Messages, as an observer hears them.
#[derive(Debug, Default)]
struct Heard(std::sync::Mutex<Vec<String>>);

impl Observer for Heard {
    fn begin(&self, phase: Phase) -> Box<dyn Progress> {
        Silent.begin(phase)
    }

    fn message(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

#[test]
fn a_class_that_no_training_label_has_is_said() {
    let dir = dataset(&[("a", "LPS"), ("b", "LPS")], 1);
    let said = |test_cases: &[String]| {
        let heard = Heard::default();
        let source = open(&dir).unwrap().with_test_cases(test_cases).unwrap();
        source.check_labels(&["liver".into(), "spleen".into()], &heard).unwrap();
        heard.0.into_inner().unwrap()
    };
    let (grid, same) = stored_as("LPS");
    put(&dir, "labelsTr/a", &grid, &same.iter().map(|&at| label(at).min(1.0)).collect::<Vec<_>>());
    assert_eq!(said(&[]), [""; 0], "the other training scan has it");
    assert_eq!(
        said(&["b".into()]),
        ["warning: 1 of 2 classes have no voxel in any training label, and nothing can learn them: spleen (2)"]
    );
}

#[test]
fn a_label_is_said_as_it_is_stored() {
    let image = NiftiImage {
        geometry: Geometry::of_affine([1, 1, 2], None),
        voxels: vec![0.0, 4294967297i64 as f32],
        scaling: None,
        inexact: Some((1, "4294967297".into())),
    };
    let text = refusal(label_map::StoredLabels::of_volume(Path::new("a.nii"), &image).classes(&[0, 1], Layout::NnUnet));
    assert!(text.contains("label 4294967297 in slice 0"), "{text}");
    let infinite = NiftiImage { voxels: vec![0.0, f32::INFINITY], inexact: None, ..image };
    let text = refusal(label_map::StoredLabels::of_volume(Path::new("a.nii"), &infinite).classes(&[0, 1], Layout::NnUnet));
    assert!(text.contains("label inf in"), "{text}");
}

#[test]
fn labels_a_little_off_are_rounded_and_others_name_the_slope() {
    let map = [0, 1, 2];
    let mapped = |value: f32, scaling| {
        let geometry = Geometry::of_affine([1, 1, 1], None);
        let image = NiftiImage { geometry, voxels: vec![value], scaling, inexact: None };
        label_map::StoredLabels::of_volume(Path::new("a.nii"), &image).classes(&map, Layout::NnUnet)
    };
    for (value, class) in [(2.000009, 2), (1.9995, 2), (0.0009, 0), (-0.0005, 0)] {
        assert_eq!(mapped(value, None).unwrap(), [class], "{value}");
    }
    let text = refusal(mapped(0.9882, Some((0.0038, 0.0))));
    assert!(text.contains("label 0.9882 in slice 0") && text.contains("scl_slope 0.0038"), "{text}");
    assert!(!refusal(mapped(1.5, None)).contains("scl_slope"));
    for value in [3.0, -1.0, f32::NAN, f32::INFINITY, 1e30] {
        assert!(mapped(value, None).is_err(), "{value}");
    }
}

#[test]
fn all_labels_are_checked_before_anything_is_encoded() {
    let dir = dataset(&[("a", "LPS"), ("b", "LPS"), ("z", "LPS")], 1);
    open(&dir).unwrap().check_labels(&[], &Silent).unwrap();
    let (grid, same) = stored_as("LPS");
    put(&dir, "labelsTr/z", &grid, &same.iter().map(|&at| if at == 59 { 99.0 } else { label(at) }).collect::<Vec<_>>());
    let text = refusal(open(&dir).unwrap().check_labels(&[], &Silent));
    assert!(text.contains("labelsTr/z.nii.gz: label 99 in slice 2, expected whole numbers from 0 to 2"), "{text}");
    for case in ["a", "b", "z"] {
        put(&dir, &format!("labelsTr/{case}"), &grid, &[0.0; 60]);
    }
    let text = refusal(open(&dir).unwrap().check_labels(&[], &Silent));
    assert!(text.contains("all 3 training scans are background"), "{text}");
}

#[test]
fn the_same_scan_in_training_and_test_is_named() {
    let dir = dataset(&[("a", "LPS"), ("b", "LPS"), ("c", "RAS")], 1);
    let source = open(&dir).unwrap().with_test_cases(&["b".into(), "c".into()]).unwrap();
    let notes = source.repeated(&source.sources(&Silent).unwrap());
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("training case a and test case b are the same scan"), "{notes:?}");
}

#[test]
fn copies_of_images_and_labels_are_named() {
    let dir = dataset(&[("a", "LPS"), ("b", "LPS"), ("c", "LPS"), ("d", "RAS")], 1);
    let file = |name: &str| dir.path().join(name);
    // b is a whole copy of a; c has a's label, but an image of its own; d shares nothing.
    let (geometry, _) = stored_as("LPS");
    write_nifti(&file("imagesTr/c_0000.nii.gz"), &geometry, &[7i16; 60]).unwrap();
    let source = open(&dir).unwrap();
    let notes = source.repeated(&source.sources(&Silent).unwrap());
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("training case a and training case b are the same scan, byte for byte"), "{notes:?}");
    assert!(notes[1].contains("training case a and training case c are different scans with the same labels"), "{notes:?}");
    assert!(notes[1].contains("labelsTr/a.nii.gz") && notes[1].contains("labelsTr/c.nii.gz"), "{notes:?}");
}

#[test]
fn folders_without_scans_say_where_they_are() {
    let hint = |result: Result<ScanSource, ScanError>| result.unwrap_err().hint().unwrap_or_default();
    let dir = dataset(&[("a", "LPS"), ("b", "LPS")], 1);
    let above = tempfile::tempdir().unwrap();
    fs::rename(dir.path(), above.path().join("Dataset001_A")).unwrap();
    let inside = above.path().join("Dataset001_A");
    let found = hint(ScanSource::open(above.path(), &in_lps()));
    assert_eq!(found, format!("pass --scans the folder that holds them: {}", inside.display()));
    let found = hint(ScanSource::open(&inside.join("imagesTr"), &in_lps()));
    assert_eq!(found, format!("pass --scans the folder that holds them: {}", inside.display()));
    let json = fs::read_to_string(inside.join("dataset.json")).unwrap();
    fs::write(inside.join("dataset.json"), json.replace(".nii.gz", ".mha")).unwrap();
    let found = hint(ScanSource::open(&inside, &in_lps()));
    assert!(found.contains("has 2 files of another ending than .mha, such as a_0000.nii.gz: correct file_ending"), "{found}");
    fs::write(inside.join("dataset.json"), json).unwrap();
    fs::rename(inside.join("labelsTr/a.nii.gz"), inside.join("labelsTr/a_0000.nii.gz")).unwrap();
    let error = ScanSource::open(&inside, &in_lps()).unwrap_err();
    assert!(error.to_string().ends_with("labelsTr/a_0000.nii.gz: labels have no channel, but its name ends in _0000"), "{error}");
    assert!(error.hint().unwrap().starts_with("rename it: a.nii.gz"), "{error:?}");
    // Another label that says that the number is the case's.
    fs::copy(inside.join("labelsTr/a_0000.nii.gz"), inside.join("labelsTr/a_0001.nii.gz")).unwrap();
    let error = ScanSource::open(&inside, &in_lps()).unwrap_err();
    assert!(error.hint().unwrap().starts_with("rename it: a_0000_0000.nii.gz; nnUNetv2_convert_MSD_dataset"), "{error:?}");
}

#[test]
fn fewer_scans_than_dataset_json_promises_are_said() {
    let dir = dataset(&[("a", "LPS"), ("b", "LPS")], 1);
    let path = dir.path().join("dataset.json");
    let json = fs::read_to_string(&path).unwrap();
    for (promised, said) in [(2, false), (3, true)] {
        fs::write(&path, json.replacen('{', &format!(r#"{{"numTraining": {promised}, "#), 1)).unwrap();
        let notes = open(&dir).unwrap().notes(&[]).join("\n");
        assert_eq!(notes.contains("numTraining is 3, but 2 training scans"), said, "{notes}");
    }
}

#[test]
fn values_that_are_no_hounsfield_units_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let (geometry, _) = stored_as("LPS");
    let notes = |values: &dyn Fn(f32) -> f32| {
        let path = dir.path().join("a.nii.gz");
        // A slope of values from air to bone.
        let voxels: Vec<f32> = (0..60).map(|at| values(at as f32 * 30.0 - 1000.0)).collect();
        write_nifti(&path, &geometry, &voxels).unwrap();
        NewScan { case: "a".into(), files: vec![path] }.read(&Preprocessing::default()).unwrap().notes
    };
    assert_eq!(notes(&|hu| hu), [""; 0]);
    assert_eq!(notes(&|hu| hu.clamp(-125.0, 275.0)), [""; 0], "windowed, but in Hounsfield units");
    let shifted = notes(&|hu| hu + 1024.0);
    assert!(shifted[0].contains("no value is below 0") && shifted[0].contains("Values from 24 to 1794; "), "{shifted:?}");
    let unit = notes(&|hu| (hu + 1024.0) / 4095.0);
    assert!(
        unit[0].contains("a.nii.gz: these do not look like Hounsfield units") && unit[0].contains("100.0 % of the voxels"),
        "{unit:?}"
    );
    let outside = notes(&|hu| hu - 2000.0);
    assert!(outside[0].contains("no voxel lies within the window") && outside[0].contains("0.0 % of the voxels"), "{outside:?}");
    let flat = notes(&|hu| hu / 1000.0);
    assert!(flat[0].contains("hardly differ"), "{flat:?}");
    let tenfold = notes(&|hu| 10.0 * hu);
    assert!(
        tenfold[0].contains("more than 0.5 % of the voxels lie above 3071, as only metal does. Values from -10000 to 7700"),
        "{tenfold:?}"
    );
    // From 530 on: 17 of the 60 values, and none above 1000.
    let inverted = notes(&|hu| -hu);
    assert!(inverted[0].contains("28.3 % of the voxels lie above 500, as only dense bone does"), "{inverted:?}");
    // From -1940 to -1160: 14 of the 60 values; the least, -2000, may be padding.
    let twofold = notes(&|hu| 2.0 * hu);
    assert!(twofold[0].contains("23.3 % of the voxels lie below -1100, and air is -1000 HU"), "{twofold:?}");
    for padding in [-2000.0, -3024.0, -32768.0] {
        assert_eq!(notes(&|hu| if hu < -500.0 { padding } else { hu }), [""; 0], "padding with {padding}");
    }
}

#[test]
fn a_ct_that_is_not_called_one_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (geometry, _) = stored_as("LPS");
    let path = dir.path().join("a.nii.gz");
    let notes = |name: &str, values: &dyn Fn(f32) -> f32| {
        let voxels: Vec<f32> = (0..60).map(|at| values(at as f32 * 30.0 - 1000.0)).collect();
        write_nifti(&path, &geometry, &voxels).unwrap();
        let channel = Channel { index: 0, name: name.into(), intensity: Intensity::Percentiles { low: 0.5, high: 99.5 } };
        let preprocessing = Preprocessing { channels: vec![channel], ..Preprocessing::default() };
        NewScan { case: "a".into(), files: vec![path.clone()] }.read(&preprocessing).unwrap().notes
    };
    let ct = notes("CT (HU)", &|hu| hu);
    assert!(ct[0].contains("the channel is called \"CT (HU)\", so each scan is scaled between its own percentiles"), "{ct:?}");
    assert_eq!(notes("T1", &|hu| hu + 1000.0), [""; 0], "MR has no value below 0");
    assert_eq!(notes("ADC", &|hu| hu / 1000.0), [""; 0]);
}

#[test]
fn a_scan_halfway_between_two_orientations_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let turned = |name: &str, degrees: f64| {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let affine = [[-0.8 * cos, 0.8 * sin, 0.0, 0.0], [-0.8 * sin, -0.8 * cos, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
        let geometry = Geometry::of_affine([3, 4, 5], Some(affine));
        let path = dir.path().join(format!("{name}.nii.gz"));
        write_nifti(&path, &geometry, &[0.0f32; 60]).unwrap();
        Grid::read(&path, Some("LPS".parse().unwrap())).unwrap()
    };
    let path = dir.path();
    // NIfTI stores the affine as float32, which rounds 45 degrees to either side.
    let grids = [("a", turned("a", 45.0)), ("b", turned("b", 30.0)), ("c", turned("c", 45.00001))];
    let notes = grid_notes(grids.iter().map(|(case, grid)| (*case, path, grid)), Some("LPS".parse().unwrap()), false);
    let [note] = &notes[..] else { panic!("{notes:?}") };
    assert!(
        note.contains("an affine nearly halfway between two orientations in 2 of 3 scans")
            && note.contains("(a: turned by 45.0 degrees from LPS); the nearest")
            && note.ends_with(": a, c"),
        "{note}"
    );
}

#[test]
fn percentiles_of_the_values_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let scan = write_scan(dir.path(), "ASR").read(&in_lps()).unwrap();
    // np.percentile(np.arange(60) * 6.0 - 110, [0.5, 5, 50, 95, 99.5]), NumPy 2.4; -110 to 244 lies in the window.
    let expected = [-108.23, -92.3, 67.0, 226.3, 242.23];
    let apart = scan.row.percentiles.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(scan.row.percentiles.len() == 5 && apart < 1e-5, "{:?}", scan.row.percentiles);
    assert_eq!(scan.row.in_window, [1.0]);
}
