//! Cases of one patient stay on one side of every split: `train --group-by`, and `group_by` of a sweep.

mod cli;
mod common;
#[path = "common/store.rs"]
mod store;

use cli::{assert_refused, program, succeed};
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::sweep::SweepRecord;
use sam_ladder_schemas::train::RUN_LOG;
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::read_record;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A folder with a store whose training cases are 0005, 0006 and 0007, and a table that gives the first two to one patient.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    store::write_store(&folder.path().join("store.zarr"), StoreDtype::F32, AugmentPolicy::None, 1);
    fs::write(folder.path().join("patients.csv"), "case,age,patient\n0005,61,A\n0006,61,A\n0007,48,B\n").unwrap();
    folder
}

/// `train` in the folder, with its words.
fn train(folder: &Path, run: &str, words: &[&str]) -> Command {
    let mut command = program(&["train", "--store", "store.zarr", "--run", run, "--batch-size", "3", "--warmup", "0"]);
    command.args(words).current_dir(folder);
    command
}

#[test]
fn a_fold_holds_whole_patients_and_a_resume_needs_no_table() {
    let folder = workplace();
    let base = folder.path();
    // Without patients fold 1 of 2 holds every second case.
    for (run, fold, by, expected) in [
        ("plain", "1/2", None, vec!["0005", "0007"]),
        ("first", "1/2", Some("csv:patients.csv:patient"), vec!["0005", "0006"]),
        ("second", "2/2", Some("csv:patients.csv:patient"), vec!["0007"]),
        ("named", "1/2", Some("regex:^000([56])?"), vec![]),
        ("matched", "1/2", Some("regex:000[^7]|0007"), vec!["0005", "0007"]),
    ] {
        let mut command = train(base, run, &["--fold", fold, "--epochs", "2", "--max-steps", "1"]);
        by.map(|by| command.args(["--group-by", by]));
        if expected.is_empty() {
            let error = assert_refused(command);
            assert!(error.contains("case 0007 does not match ^000([56])?\nhint: change the expression"), "{error}");
            continue;
        }
        succeed(command);
        let record = read_record(&base.join(run)).unwrap();
        assert_eq!(record.config.val_cases, expected, "{run}");
        assert_eq!(record.groups.len(), if by.is_some() { 3 } else { 0 }, "{run}");
    }
    let record = read_record(&base.join("first")).unwrap();
    assert_eq!(record.groups["0006"], "A");
    fs::remove_file(base.join("patients.csv")).unwrap();
    for more in [&[][..], &["--fold", "1/2"], &["--group-by", "csv:patients.csv:patient"]] {
        let mut resumed = program(&["train", "--run", "first", "--resume"]);
        resumed.args(more).args(["--max-steps", "2"]).current_dir(base);
        succeed(resumed);
    }
    assert_eq!(read_record(&base.join("first")).unwrap().groups, record.groups);
    let mut other = program(&["train", "--run", "first", "--resume", "--group-by", "regex:.*"]);
    let error = assert_refused({
        other.current_dir(base);
        other
    });
    assert!(error.contains("group_by differs"), "{error}");
}

#[test]
fn what_is_wrong_with_the_patients_is_named() {
    let folder = workplace();
    let base = folder.path();
    fs::write(base.join("short.csv"), "case,patient\n0005,A\n0007,B\n").unwrap();
    fs::write(base.join("empty.csv"), "case,patient\n").unwrap();
    fs::write(base.join("twice.csv"), "case,patient,patient\n0005,A,1\n0006,A,2\n0007,B,3\n").unwrap();
    for (words, expected) in [
        (&["--fold", "1/3", "--group-by", "csv:patients.csv:patient"][..], "3 training cases of 2 patients, fewer than 3 folds"),
        (&["--fold", "1/2", "--group-by", "csv:short.csv:patient"], "short.csv has no line of case 0006"),
        (&["--fold", "1/2", "--group-by", "csv:empty.csv:patient"], "it has no line below its first"),
        (&["--fold", "1/2", "--group-by", "csv:patients.csv:sex"], "it has no column sex, its columns are case, age, patient"),
        (&["--fold", "1/2", "--group-by", "csv:twice.csv:patient"], "twice.csv: its columns 2 and 3 are both called patient"),
        (&["--fold", "1/2", "--group-by", "csv:none.csv:sex"], "cannot read none.csv"),
        (&["--fold", "1/2", "--group-by", "regex:("], "( is not a regular expression: unclosed group"),
        (
            &["--val-cases", "0005", "--group-by", "csv:patients.csv:patient"],
            "0005 is held out for validation and 0006 is trained on",
        ),
        (&["--fold", "1/2", "--group-by", "patient"], "expected regex:EXPR or csv:FILE:COLUMN, found patient"),
    ] {
        let output = train(base, "run", words).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(expected), "{words:?}: {error}");
        assert!(!base.join("run").exists(), "{words:?}");
    }
}

#[test]
fn held_out_cases_are_named_with_spaces_and_count_once() {
    let folder = workplace();
    let output = train(folder.path(), "run", &["--val-cases", "0005, 0007,0005 ", "--max-steps", "1"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("--val-cases names 0005 twice: it counts once\n"), "{said}");
    assert_eq!(read_record(&folder.path().join("run")).unwrap().config.val_cases, ["0005", "0007"]);
}

const SWEEP: &str = r#"
[settings]
epochs = 1
batch_size = 3
lambda = [0.2, 0.8]
[search]
method = "grid"
[validation]
folds = 2
group_by = "csv:patients.csv:patient"
[budget]
trials = 1
"#;

#[test]
fn a_sweep_keeps_patients_together_and_its_resume_needs_no_table() {
    let folder = workplace();
    let base = folder.path();
    fs::write(base.join("sweep.toml"), SWEEP).unwrap();
    let mut start = program(&["sweep", "--store", "store.zarr", "--config", "sweep.toml", "--out", "s"]);
    succeed({
        start.current_dir(base);
        start
    });
    let read = || serde_json::from_slice::<SweepRecord>(&fs::read(base.join("s/sweep.json")).unwrap()).unwrap();
    assert_eq!(read().folds, [vec!["0005", "0006"], vec!["0007"]]);
    fs::remove_file(base.join("patients.csv")).unwrap();
    // The second trial starts without the table.
    fs::write(base.join("sweep.toml"), SWEEP.replace("trials = 1", "trials = 2")).unwrap();
    let mut resumed = program(&["sweep", "--resume", "--config", "sweep.toml", "--out", "s"]);
    succeed({
        resumed.current_dir(base);
        resumed
    });
    let mut trials = 0;
    for trial in fs::read_dir(base.join("s/trials")).unwrap() {
        let run = read_record(&trial.unwrap().path().join("seed-1234-fold-1")).unwrap();
        assert_eq!(run.groups, read().groups);
        assert_eq!(run.groups["0006"], "A");
        trials += 1;
    }
    assert_eq!(trials, 2);
}

#[test]
fn names_of_one_patient_on_both_sides_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let scans = base.join("scans");
    // nnU-Net's layout takes any names.
    for below in ["imagesTr", "labelsTr"] {
        fs::create_dir_all(scans.join(below)).unwrap();
    }
    let json =
        r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 3, "file_ending": ".nii"}"#;
    fs::write(scans.join("dataset.json"), json).unwrap();
    for (case, value) in [("p1_frame01", 10.0), ("p1_frame02", 20.0), ("p2_frame01", 30.0)] {
        let voxels: Vec<f32> = (0..32).map(|i| value + i as f32).collect();
        let labels: Vec<f32> = (0..32).map(|i| f32::from(i % 3 == 0)).collect();
        fs::write(scans.join("imagesTr").join(format!("{case}_0000.nii")), cli::nifti([4, 4, 2], &voxels)).unwrap();
        fs::write(scans.join("labelsTr").join(format!("{case}.nii")), cli::nifti([4, 4, 2], &labels)).unwrap();
    }
    let mut precompute = program(&["precompute", "--random-encoder", "3", "--image-size", "32", "--data-size", "32"]);
    precompute.args(["--augment", "none", "--scans", "scans", "--store", "store.zarr"]).current_dir(base);
    succeed(precompute);
    let said = |run: &str, words: &[&str]| {
        succeed(train(base, run, &[&["--epochs", "1"], words].concat()));
        fs::read_to_string(base.join(run).join(RUN_LOG)).unwrap()
    };
    let advice = "--group-by 'regex:^(.+?)(?:_frame.*)?$'";
    let log = said("split", &["--val-cases", "p1_frame01"]);
    assert!(log.contains("warning: p1_frame01 is held out for validation and p1_frame02 is trained on"), "{log}");
    assert!(log.contains(advice), "{log}");
    let log = said("whole", &["--fold", "1/2", "--group-by", "regex:^(.+?)(?:_frame.*)?$"]);
    assert!(!log.contains("warning: p1") && log.contains("validation: p1_frame01, p1_frame02"), "{log}");
    assert!(!said("other", &["--val-cases", "p2_frame01"]).contains("warning: p"));
    let sweep = SWEEP.replace("group_by = \"csv:patients.csv:patient\"\n", "");
    fs::write(base.join("sweep.toml"), sweep).unwrap();
    let mut start = program(&["sweep", "--store", "store.zarr", "--config", "sweep.toml", "--out", "s"]);
    let output = start.current_dir(base).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && printed.contains("group_by = 'regex:^(.+?)(?:_frame.*)?$' in [validation]"), "{printed}");
}
