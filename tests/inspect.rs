//! `inspect` on folders of scans: what it prints, and what its page has.

mod cli;

use cli::{assert_refused, nifti, on, succeed};
use std::fs;
use std::path::Path;

/// A dataset in nnU-Net's layout: three usable cases, and one whose label has a class that the dataset lacks.
fn dataset(at: &Path) {
    let image: Vec<f32> = (0..24).map(|i| i as f32 * 20.0 - 200.0).collect();
    for (case, classes) in [("a", [1.0, 2.0]), ("b", [1.0, 1.0]), ("c", [0.0, 1.0]), ("d", [1.0, 9.0])] {
        let label: Vec<f32> = (0..24)
            .map(|i| {
                if i < 6 {
                    classes[0]
                } else if i < 8 {
                    classes[1]
                } else {
                    0.0
                }
            })
            .collect();
        for (folder, name, voxels) in
            [("imagesTr", format!("{case}_0000.nii"), &image), ("labelsTr", format!("{case}.nii"), &label)]
        {
            fs::create_dir_all(at.join(folder)).unwrap();
            fs::write(at.join(folder).join(name), nifti([4, 3, 2], voxels)).unwrap();
        }
    }
    let json = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "file_ending": ".nii"}"#;
    fs::write(at.join("dataset.json"), json).unwrap();
}

#[test]
fn voxels_give_volumes_and_name_the_case_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    dataset(&at.join("scans"));
    fs::write(at.join("scans/imagesTr/notes.nii.bz2"), "x").unwrap();
    let printed = succeed(on(at, "inspect --scans @scans --voxels --no-time --test-cases c --out @page.html"));
    // Voxels of 1 × 1 × 3 mm; the liver has 6 voxels in a, 8 in b, 2 in c, the test case.
    for expected in [
        "nnU-Net's layout",
        "3 × 1 × 1",
        "liver           2 of 2      1 of 1         0.0 ml",
        "warning: case d cannot be used: ",
        "warning: spleen: 1 of 2 training cases have it",
        "notes.nii.bz2",
    ] {
        assert!(printed.contains(expected), "{expected:?} is not in\n{printed}");
    }
    let page = fs::read_to_string(at.join("page.html")).unwrap();
    assert!(
        page.contains("cannot be used: ") && page.contains("notes.nii.bz2") && page.matches("class=\"mark-box\"").count() == 3
    );

    // An earlier page is replaced only if that is asked for, and no other file.
    assert!(assert_refused(on(at, "inspect --scans @scans --no-time --out @page.html")).contains("--force"));
    succeed(on(at, "inspect --scans @scans --no-time --out @page.html --force"));
    fs::write(at.join("page.html"), "mine").unwrap();
    assert!(assert_refused(on(at, "inspect --scans @scans --no-time --out @page.html --force")).contains("page.html"));
}

/// Cases that cannot be used do not hide what is known of the others.
#[test]
fn what_is_wrong_with_single_cases_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let scans = at.join("scans");
    dataset(&scans);
    fs::remove_file(scans.join("labelsTr/b.nii")).unwrap();
    let label: Vec<f32> = vec![1.0; 12];
    fs::write(scans.join("labelsTr/c.nii"), nifti([4, 3, 1], &label)).unwrap();
    fs::copy(scans.join("imagesTr/a_0000.nii"), scans.join("imagesTr/e.nii")).unwrap();
    fs::copy(scans.join("imagesTr/a_0000.nii"), scans.join("imagesTr/f_0000.nii")).unwrap();
    fs::copy(scans.join("labelsTr/a.nii"), scans.join("labelsTr/f.nii")).unwrap();
    fs::write(scans.join("labelsTr/g.nii"), "damaged").unwrap();
    let printed = succeed(on(at, "inspect --scans @scans --voxels --no-time --out @new/page.html"));
    let warnings: Vec<&str> = printed.lines().filter(|line| line.contains("warning: ")).collect();
    let has = |parts: &[&str]| warnings.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    for parts in [
        ["a case cannot be used: ", "labelsTr/b.nii"],
        ["a case cannot be used: ", "labelsTr/c.nii"],
        ["a case cannot be used: ", "imagesTr/e.nii"],
        ["a case cannot be used: ", "labelsTr/g.nii"],
        ["case d cannot be used: ", "9"],
        ["training case a and training case f are the same scan", "f_0000.nii"],
    ] {
        assert!(has(&parts), "{parts:?} is not in\n{printed}");
    }
    assert!(at.join("new/page.html").exists());
    // If none can be used, that is an error.
    for case in ["a", "d", "f"] {
        fs::remove_file(scans.join(format!("labelsTr/{case}.nii"))).unwrap();
    }
    assert!(assert_refused(on(at, "inspect --scans @scans --no-time")).contains("imagesTr/"));
}

/// In the other layouts, too.
#[test]
fn single_cases_of_every_layout_may_be_unusable() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @raw --cases 5 --size 32 --depth 3"));
    let training = at.join("raw/RawData/Training");
    fs::remove_file(training.join("label/label0005.nii.gz")).unwrap();
    fs::write(training.join("img/scan.nii.gz"), "x").unwrap();
    let printed = succeed(on(at, "inspect --scans @raw --no-time"));
    assert!(printed.contains("label0005.nii.gz") && printed.contains("scan.nii.gz"), "{printed}");
    assert!(
        assert_refused(on(at, "precompute --scans @raw --store @s.zarr --random-encoder 0 --dry-run")).contains("scan.nii.gz")
    );

    let published = at.join("published/train_npz");
    fs::create_dir_all(&published).unwrap();
    for name in ["case0005_slice000.npz", "case0006_slice001.npz", "case_x.npz"] {
        fs::write(published.join(name), "x").unwrap();
    }
    let printed = succeed(on(at, "inspect --scans @published --no-time"));
    assert!(printed.contains("case 0006") && printed.contains("case_x.npz"), "{printed}");
}

#[test]
fn headers_are_enough_for_geometry_and_costs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 5 --size 32 --depth 3"));
    let printed = succeed(on(at, "inspect --scans @scans --no-time"));
    assert!(printed.contains("the raw Synapse layout") && !printed.contains(" ml"), "{printed}");
    // Each slice of the training cases in 44 variants, of the test cases once; precompute says the same.
    let planned = succeed(on(at, "precompute --scans @scans --store @s.zarr --random-encoder 0 --preset native224 --dry-run"));
    let images = planned.split("; ").find_map(|part| part.lines().next()?.split_once(" images to encode")).unwrap().0.to_string();
    let line =
        printed.lines().find(|line| line.trim_start().starts_with("--preset native224 ") && !line.contains("flips")).unwrap();
    assert!(line.split_whitespace().any(|word| word == images), "{images} is not in {line}");

    // With rungs the bytes are those of precompute, too.
    let rungs = "--rungs 2,5,8,11 --rung-channels 32";
    let printed = succeed(on(at, &format!("inspect --scans @scans --no-time {rungs}")));
    assert!(printed.contains(&format!("--preset native224 {rungs}")), "{printed}");
    let planned = succeed(on(
        at,
        &format!("precompute --scans @scans --store @s.zarr --random-encoder 0 --preset native224 --dry-run {rungs}"),
    ));
    // All twelve slices of the training cases are sampled: there are fewer than 64.
    assert!(planned.contains(" slices to sample for the rungs' projection; "), "{planned}");
    let bytes = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        words
            .windows(2)
            .find(|pair| ["MB", "GB"].contains(&pair[1].trim_end_matches(',')))
            .map(|pair| pair[0].parse::<f64>().unwrap())
    };
    let line = |printed: &str, with: &str| {
        let found =
            printed.lines().find(|line| line.contains("--preset native224 ") && !line.contains("flips") && line.contains(with));
        found.map(str::to_string).unwrap_or_default()
    };
    let plain = succeed(on(at, "inspect --scans @scans --no-time"));
    let [without, with] = [line(&plain, ""), line(&printed, "--rungs")].map(|line| bytes(&line).unwrap());
    // In float16 the images have 224² numbers, the embeddings 256·14² and the labels 56² bytes; the rungs 4·32·14².
    let [before, after] = [0.0, 128.0 * 196.0].map(|rungs| 2.0 * (50176.0 + 50176.0 + rungs) + 3136.0);
    assert!((with / without - after / before).abs() < 0.01, "{with} and {without}");
    assert!(assert_refused(on(at, "inspect --scans @scans --no-time --rungs 12")).contains("blocks from 0 to 11"));
}

#[test]
fn a_folder_without_scans_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    dataset(&folder.path().join("all/Dataset001"));
    let refused = assert_refused(on(folder.path(), "inspect --scans @all"));
    assert!(refused.contains("Dataset001"), "{refused}");
}
