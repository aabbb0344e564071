//! `audit`: what runs that held out a case agree on against its label. What is expected is counted here, from the label files and from the masks that
//! `eval --split validation --save-nifti` writes of each run.

mod cli;

use cli::{assert_refused, on, succeed};
use sam_ladder_formats::nifti::read_image;
use sam_ladder_formats::volume::read_geometry;
use sam_ladder_schemas::classes::SYNAPSE_LABEL_MAP;
use std::collections::BTreeMap;
use std::path::Path;

const SIZE: usize = 40;
const DEPTH: usize = 4;
const PRECOMPUTE: &str =
    "precompute --scans @scans --random-encoder 3 --image-size 32 --data-size 32 --augment none --store @s.zarr";
const TRAIN: &str = "train --store @s.zarr --epochs 60 --batch-size 4 --warmup 5 --lr 2e-3 --max-steps 20";

fn label_path(at: &Path, case: &str) -> std::path::PathBuf {
    at.join(format!("scans/RawData/Training/label/label{case}.nii.gz"))
}

fn classes(at: &Path, case: &str) -> Vec<u8> {
    read_image(&label_path(at, case)).unwrap().voxels.iter().map(|&raw| SYNAPSE_LABEL_MAP[raw as usize]).collect()
}

/// The masks of each run of a case.
fn masks(at: &Path, runs: &[&str], case: &str) -> Vec<Vec<u8>> {
    let read = |run: &&str| {
        let mask = read_image(&at.join(format!("{run}/eval/masks/{case}.nii.gz"))).unwrap();
        mask.voxels.iter().map(|&class| class as u8).collect()
    };
    runs.iter().map(read).collect()
}

/// Disputed pixels of a slice: those within a square of nine on which all masks agree against the label.
fn disputed(label: &[u8], masks: &[&[u8]]) -> usize {
    let against = |y: usize, x: usize| {
        let at = y * SIZE + x;
        label[at] != masks[0][at] && masks.iter().all(|mask| mask[at] == masks[0][at])
    };
    let square = |y: usize, x: usize| (y..y + 3).all(|y| (x..x + 3).all(|x| against(y, x)));
    let within = |y: usize, x: usize| {
        (y.saturating_sub(2)..=y.min(SIZE - 3)).any(|top| (x.saturating_sub(2)..=x.min(SIZE - 3)).any(|left| square(top, left)))
    };
    (0..SIZE * SIZE).filter(|at| within(at / SIZE, at % SIZE)).count()
}

#[test]
fn slices_are_ranked_by_what_all_runs_hold_against_the_label() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, &format!("phantom --out @scans --cases 5 --size {SIZE} --depth {DEPTH} --seed 3")));
    succeed(on(at, PRECOMPUTE));
    for (run, fold, seed) in [("a1", 1, 1), ("a2", 1, 2), ("b1", 2, 1)] {
        succeed(on(at, &format!("{TRAIN} --run @{run} --fold {fold}/2 --seed {seed}")));
        succeed(on(at, &format!("eval --store @s.zarr --run @{run} --split validation --save-nifti --out @{run}/eval")));
    }
    let line = "audit --store @s.zarr --run @a1 @a2 @b1 --pictures 3 --out @audit";
    let said = succeed(on(at, line));

    let mut expected: BTreeMap<(String, usize), usize> = BTreeMap::new();
    for (case, runs) in [("0005", &["a1", "a2"][..]), ("0007", &["a1", "a2"]), ("0006", &["b1"])] {
        let (label, masks) = (classes(at, case), masks(at, runs, case));
        for slice in 0..DEPTH {
            let plane = |of: &Vec<u8>| of[slice * SIZE * SIZE..][..SIZE * SIZE].to_vec();
            let planes: Vec<Vec<u8>> = masks.iter().map(plane).collect();
            let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            match disputed(&plane(&label), &planes) {
                0 => {}
                count => drop(expected.insert((case.into(), slice), count)),
            }
        }
    }
    let table = std::fs::read_to_string(at.join("audit/audit.csv")).unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().skip(1).filter(|line| !line.starts_with('#')).map(|line| line.split(',').collect()).collect();
    let found: BTreeMap<(String, usize), usize> =
        rows.iter().map(|row| ((row[1].into(), row[2].parse().unwrap()), row[4].parse().unwrap())).collect();
    assert_eq!(found, expected, "{table}");
    assert_eq!(rows.len(), expected.len(), "{table}");
    // Area times agreement, which counts as 1 where there is none.
    let weight = |row: &Vec<&str>| row[3].parse::<f64>().unwrap() * row[9].parse().unwrap_or(1.0);
    assert!(rows.iter().map(weight).is_sorted_by(|a, b| a >= b), "{table}");
    assert!(rows.iter().all(|row| row[8] == if row[1] == "0006" { "1" } else { "2" }), "{table}");
    let [_, row_mm, column_mm] = read_geometry(&label_path(at, "0006")).unwrap().spacing_mm();
    let row = rows[0].clone();
    let [area, pixels] = [3, 4].map(|column| row[column].parse::<f64>().unwrap());
    assert!((area / (row_mm * column_mm) - pixels).abs() < 1e-3, "{table}");

    assert!(rows.len() > 3 && said.contains(&format!("{} disputed slices", rows.len())), "{said}");
    let page = std::fs::read_to_string(at.join("audit/audit.html")).unwrap();
    assert_eq!(page.matches("<figure").count(), rows.len().min(3));
    assert!(page.contains(&format!("Case {}, slice {}", row[1], row[2])));
    what_is_refused(at, line);
}

/// What cannot be audited, and an audit that somebody has edited.
fn what_is_refused(at: &Path, line: &str) {
    let refused = assert_refused(on(at, line));
    assert!(refused.contains("audit.csv"), "{refused}");
    succeed(on(at, &format!("{line} --force")));
    let refused = assert_refused(on(at, &line.replace("@a2", "@a1/../a1")));
    assert!(refused.contains("twice"), "{refused}");
    std::fs::write(at.join("audit/audit.csv"), "my notes\n").unwrap();
    let refused = assert_refused(on(at, &format!("{line} --force")));
    assert!(refused.contains("audit.csv"), "{refused}");
    assert_eq!(std::fs::read_to_string(at.join("audit/audit.csv")).unwrap(), "my notes\n");
    succeed(on(at, &format!("{TRAIN} --run @whole")));
    let refused = assert_refused(on(at, "audit --store @s.zarr --run @whole --out @none"));
    assert!(refused.contains("held out") && !at.join("none").exists(), "{refused}");
}
