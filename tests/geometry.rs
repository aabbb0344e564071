//! Where voxels lie in space, end to end: masks on the scans' own grids whatever their orientation, and no millimetres where nothing says them.

mod cli;

use cli::{assert_refused, on, succeed};
use sam_ladder_cache::Store;
use sam_ladder_formats::nifti::{Geometry, NiftiImage, read_image, write_nifti};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::tables::{CaseRow, SpacingSource, SummaryRow};
use std::path::Path;
use std::process::Command;

/// A scan of LPS as it lies in another orientation, with its affine; what NumPy's `transpose` and `flip` make of the array.
fn stored_as(lps: &NiftiImage, codes: &str) -> NiftiImage {
    let [depth, height, width] = lps.geometry.shape;
    let sides = [width, height, depth];
    let axes: Vec<(usize, bool)> = codes
        .chars()
        .map(|letter| (["LR", "PA", "SI"].iter().position(|axis| axis.contains(letter)).unwrap(), !"LPS".contains(letter)))
        .collect();
    let mut affine = lps.geometry.affine;
    for (row, base) in affine.iter_mut().zip(lps.geometry.affine) {
        for (column, &(axis, reversed)) in axes.iter().enumerate() {
            row[column] = if reversed { -base[axis] } else { base[axis] };
            row[3] += if reversed { base[axis] * (sides[axis] - 1) as f64 } else { 0.0 };
        }
    }
    let [n1, n2, n3] = [0, 1, 2].map(|column| sides[axes[column].0]);
    let mut voxels = Vec::with_capacity(lps.voxels.len());
    for k in 0..n3 {
        for j in 0..n2 {
            for i in 0..n1 {
                let mut at = [0; 3];
                for (index, &(axis, reversed)) in [i, j, k].into_iter().zip(&axes) {
                    at[axis] = if reversed { sides[axis] - 1 - index } else { index };
                }
                voxels.push(lps.voxels[at[0] + width * (at[1] + height * at[2])]);
            }
        }
    }
    NiftiImage { geometry: Geometry::of_affine([n3, n2, n1], Some(affine)), voxels, scaling: None, inexact: None }
}

/// Standard error of a command that must succeed.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{command:?}:\n{said}");
    said
}

fn write(path: &Path, image: &NiftiImage) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_nifti(path, &image.geometry, &image.voxels).unwrap();
}

#[test]
fn a_scan_stored_otherwise_has_the_mask_of_the_same_anatomy() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 3 --size 32 --depth 4 --seed 3"));
    succeed(on(at, "precompute --scans @scans --store @s.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none"));
    succeed(on(at, "train --store @s.zarr --run @run --epochs 60 --max-steps 60 --batch-size 4 --warmup 5 --lr 2e-3"));
    let store = Store::open(at.join("s.zarr")).unwrap();
    assert_eq!(store.config().preprocessing.orientation.unwrap().to_string(), "LPS");
    let lps = read_image(&at.join("scans/RawData/Training/img/img0001.nii.gz")).unwrap();
    let others = ["LPS", "RAS", "LAS", "ASR", "SPL"];
    for codes in others {
        write(&at.join(format!("new/{codes}.nii.gz")), &stored_as(&lps, codes));
    }
    let mut nowhere = lps.clone();
    (nowhere.geometry.sform_code, nowhere.geometry.qform_code) = (0, 0);
    write(&at.join("new/nowhere.nii.gz"), &nowhere);
    let told = said(on(at, "predict --scan @new --run @run --out @masks"));
    assert!(told.contains("turned to the orientation LPS: 4 of 6 scans: ASR, LAS, RAS, SPL"), "{told}");
    assert!(told.contains("in 1 of 6 scans; slices are taken as they lie") && told.contains(": nowhere"), "{told}");
    let mask = |name: &str| read_image(&at.join(format!("masks/{name}.nii.gz"))).unwrap();
    let expected = mask("LPS");
    assert!(expected.voxels.iter().any(|&class| class > 0.0), "the mask has organs");
    for codes in others {
        let (found, turned) = (mask(codes), stored_as(&expected, codes));
        assert_eq!(found.voxels, turned.voxels, "{codes}");
        assert_eq!(found.geometry, read_image(&at.join(format!("new/{codes}.nii.gz"))).unwrap().geometry, "{codes}");
    }
    assert_eq!((mask("nowhere").voxels, mask("nowhere").geometry), (expected.voxels.clone(), nowhere.geometry));
    // A scan whose values are shifted is named, with those of the training scans.
    let mut shifted = lps.clone();
    shifted.voxels.iter_mut().for_each(|value| *value += 1024.0);
    write(&at.join("shifted.nii.gz"), &shifted);
    for store in ["", " --store @shifted.zarr"] {
        let told = said(on(at, &format!("predict --scan @shifted.nii.gz --run @run --out @m.nii.gz --force{store}")));
        assert!(told.contains("scan shifted: its CT values differ from the training scans' (in brackets): "), "{told}");
        assert!(told.contains("no value is below 0"), "{told}");
    }
    // A model of a few steps makes implausible masks, and that is said; of the scan itself nothing is.
    let told = said(on(at, "predict --scan @new/LPS.nii.gz --run @run --out @n.nii.gz"));
    let of_scan = told.lines().filter(|line| line.starts_with("warning") && !line.contains("implausible next to the "));
    assert_eq!(of_scan.collect::<Vec<_>>(), [""; 0], "{told}");
    // Through a store, too; and a stated orientation goes before the run's.
    let told = said(on(at, "predict --scan @new --run @run --out @stored --store @new.zarr"));
    assert!(told.contains(": 4 of 6 scans: ASR"), "{told}");
    let stored = read_image(&at.join("stored/ASR.nii.gz")).unwrap();
    assert_eq!(stored.voxels, mask("ASR").voxels);
    succeed(on(at, "predict --scan @new/ASR.nii.gz --run @run --out @as-it-lies.nii.gz --orientation ASR"));
    assert_ne!(read_image(&at.join("as-it-lies.nii.gz")).unwrap().voxels, mask("ASR").voxels);
}

#[test]
fn an_evaluations_masks_lie_where_their_scans_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @p --cases 3 --size 32 --depth 4 --seed 3"));
    // Three cases of one anatomy each, in three orientations; labels counted up from the background, as nnU-Net's.
    for (case, number, codes) in [("a", "0005", "LPS"), ("b", "0006", "RAS"), ("c", "0001", "ASR")] {
        let read = |kind: &str| {
            stored_as(&read_image(&at.join(format!("p/RawData/Training/{kind}/{kind}{number}.nii.gz"))).unwrap(), codes)
        };
        write(&at.join(format!("d/imagesTr/{case}_0000.nii.gz")), &read("img"));
        let mut label = read("label");
        label.voxels.iter_mut().for_each(|value| *value = f32::from(u8::from(*value == 6.0)));
        write(&at.join(format!("d/labelsTr/{case}.nii.gz")), &label);
    }
    let json =
        r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 3, "file_ending": ".nii.gz"}"#;
    std::fs::write(at.join("d/dataset.json"), json).unwrap();
    let precompute = "precompute --scans @d --random-encoder 3 --image-size 32 --data-size 32 --augment none --test-cases c";
    let told = said(on(at, &format!("{precompute} --store @s.zarr")));
    assert!(told.contains("turned to the orientation LPS: 2 of 3 scans: b, c"), "{told}");
    let store = Store::open(at.join("s.zarr")).unwrap();
    let [scan] = store.scans(Split::Test) else { panic!("one test scan") };
    let file = read_image(&at.join("d/imagesTr/c_0000.nii.gz")).unwrap();
    assert_eq!((scan.axis_codes.as_deref(), scan.spacing_source), (Some("ASR"), SpacingSource::Header));
    assert_eq!((scan.file_shape(), scan.affine_rows()), (Some(file.geometry.shape), file.geometry.world_affine()));
    assert_eq!((scan.percentiles.len(), scan.in_window.len()), (5, 1));
    assert_eq!(store.slices(Split::Test).len(), 4, "slices lie as in LPS");

    succeed(on(at, "train --store @s.zarr --run @run --epochs 1 --batch-size 4"));
    succeed(on(at, "eval --store @s.zarr --run @run --out @eval --save-nifti --protocol standard"));
    succeed(on(at, "predict --scan @d/imagesTr/c_0000.nii.gz --run @run --out @mask.nii.gz"));
    let evaluated = read_image(&at.join("eval/masks/c.nii.gz")).unwrap();
    let predicted = read_image(&at.join("mask.nii.gz")).unwrap();
    assert_eq!(evaluated.voxels, predicted.voxels);
    assert_eq!(evaluated.geometry.shape, file.geometry.shape);
    assert_eq!(evaluated.geometry.world_affine(), file.geometry.world_affine());
    // With the scans, the whole header.
    succeed(on(at, "eval --store @s.zarr --run @run --out @eval2 --save-nifti --scans @d"));
    assert_eq!(read_image(&at.join("eval2/masks/c.nii.gz")).unwrap(), predicted);
    succeed(on(at, "verify --store @s.zarr"));

    // A label without a class in the last case is found before anything is encoded, and in a dry run.
    let path = at.join("d/labelsTr/c.nii.gz");
    let mut label = read_image(&path).unwrap();
    label.voxels[5] = 99.0;
    write(&path, &label);
    for words in ["--store @other.zarr", "--store @other.zarr --dry-run"] {
        let refused = assert_refused(on(at, &format!("{precompute} {words}")));
        assert!(refused.contains("labelsTr/c.nii.gz: label 99 in slice 0"), "{refused}");
        assert!(!at.join("other.zarr").exists(), "nothing is begun");
    }
}

#[test]
fn nothing_is_in_millimetres_where_no_file_says_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let scans = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/synapse_mini/Synapse");
    let precompute = format!("precompute --scans {scans} --random-encoder 3 --image-size 32 --data-size 32 --augment none");
    let told = said(on(at, &format!("{precompute} --store @s.zarr")));
    assert!(told.contains("labels 1 to 8 are taken as spleen, right kidney, left kidney"), "{told}");
    let store = Store::open(at.join("s.zarr")).unwrap();
    let [scan, ..] = store.scans(Split::Test) else { panic!("a test scan") };
    assert_eq!((&scan.affine, &scan.spacing_mm, scan.spacing_source), (&None, &None, SpacingSource::None));
    assert!(store.slices(Split::Test).iter().all(|slice| slice.spacing_mm.is_none()));

    let table = succeed(on(at, "eval --store @s.zarr --zero-shot --out @voxels --save-nifti"));
    assert!(table.contains("HD95, voxels") && table.contains("nothing is measured in millimetres"), "{table}");
    assert!(!table.contains(" mm") && !table.contains("ml"), "{table}");
    let report = std::fs::read_to_string(at.join("voxels/report.html")).unwrap();
    assert!(!report.contains("HD95, mm") && !report.contains("Surface Dice") && !report.contains(", ml"));
    let rows: Vec<CaseRow> = read_rows(&at.join("voxels/cases.parquet")).unwrap();
    let mm = |row: &CaseRow| row.hd95_mm.or(row.hd95_larger_mm).or(row.surface_dice).or(row.volume_difference_ml);
    assert!(!rows.is_empty() && rows.iter().all(|row| mm(row).is_none()));
    let geometry = read_image(&at.join(format!("voxels/masks/{}.nii.gz", scan.case))).unwrap().geometry;
    assert_eq!((geometry.world_affine(), geometry.shape), (None, scan.file_shape().unwrap()));

    let refused = assert_refused(on(at, "eval --store @s.zarr --zero-shot --out @mm --protocol standard"));
    assert!(refused.contains("voxel spacing") && refused.contains("--spacing"), "{refused}");
    succeed(on(at, "eval --store @s.zarr --zero-shot --out @mm --protocol standard --spacing 3,0.8,0.8"));
    let summary: Vec<SummaryRow> = read_rows(&at.join("mm/summary.parquet")).unwrap();
    assert!(summary.iter().all(|row| row.volume_difference_ml.is_some()));
    let typed = on(at, "eval --store @s.zarr --zero-shot --out @x --spacing 3,0.8").output().unwrap();
    assert!(!typed.status.success() && String::from_utf8_lossy(&typed.stderr).contains("three positive numbers"));

    // Stated once, for the store, with the classes and the orientation.
    let classes = "--classes one,two,three,four,five,six,seven,eight";
    let told = said(on(at, &format!("{precompute} --store @stated.zarr --spacing 3,0.8,0.7 --orientation LAS {classes}")));
    assert!(told.contains("labels 1 to 8 are taken as one, two"), "{told}");
    let store = Store::open(at.join("stated.zarr")).unwrap();
    let [scan, ..] = store.scans(Split::Test) else { panic!("a test scan") };
    assert_eq!((scan.spacing_source, scan.spacing_mm.as_deref()), (SpacingSource::Stated, Some(&[0.7, 0.8, 3.0][..])));
    assert_eq!(scan.axis_codes.as_deref(), Some("LAS"));
    assert_eq!(store.config().class_names[1], "two");
    let refused = assert_refused(on(at, "eval --store @stated.zarr --zero-shot --out @y --spacing 3,0.8,0.8"));
    assert!(refused.contains("has a voxel spacing already"), "{refused}");
}

#[test]
fn a_sheared_scan_has_its_mask_and_no_millimetres() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @p --cases 3 --size 32 --depth 4 --seed 3"));
    // A gantry tilted by 25 degrees moves each slice along the second axis.
    for kind in ["img", "label"] {
        let path = at.join(format!("p/RawData/Training/{kind}/{kind}0001.nii.gz"));
        let mut image = read_image(&path).unwrap();
        let affine = &mut image.geometry.affine;
        affine[1][2] = affine[2][2] * 25f64.to_radians().tan();
        image.geometry = Geometry::of_affine(image.geometry.shape, Some(*affine));
        write(&path, &image);
    }
    let told =
        said(on(at, "precompute --scans @p --store @s.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none"));
    assert!(told.contains("a sheared affine in 1 of 3 scans") && told.contains("0001: an angle of 65.0 degrees"), "{told}");
    let told = said(on(at, "eval --store @s.zarr --zero-shot --out @voxels --save-nifti"));
    assert!(told.contains("unknown in 1 of 1 scan (case 0001: its affine is sheared, with an angle of 65.0"), "{told}");
    let rows: Vec<CaseRow> = read_rows(&at.join("voxels/cases.parquet")).unwrap();
    assert!(rows.iter().all(|row| row.hd95_mm.is_none() && row.volume_difference_ml.is_none()));
    let mask = read_image(&at.join("voxels/masks/0001.nii.gz")).unwrap().geometry;
    let scan = read_image(&at.join("p/RawData/Training/img/img0001.nii.gz")).unwrap().geometry;
    assert_eq!((mask.shape, mask.world_affine()), (scan.shape, scan.world_affine()));
    let refused = assert_refused(on(at, "eval --store @s.zarr --zero-shot --out @mm --protocol standard"));
    assert!(refused.contains("its affine is sheared") && refused.contains("--spacing"), "{refused}");
    succeed(on(at, "eval --store @s.zarr --zero-shot --out @mm --protocol standard --spacing 3,0.8,0.8"));
    let rows: Vec<CaseRow> = read_rows(&at.join("mm/cases.parquet")).unwrap();
    assert!(rows.iter().all(|row| row.volume_difference_ml.is_some()));
}
