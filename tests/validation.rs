//! `eval --split validation`: the cases that a run held out, scored at the scans' own resolution from the store that it was trained on; and the
//! folds of a cross-validation as one row of a table. Expected scores are counted here, from the label files and the masks as written.

mod cli;
#[path = "common/folders.rs"]
mod folders;

use cli::{assert_refused, on, program, succeed};
use folders::{assert_same_files, files};
use sam_ladder_cache::TrainingSplit;
use sam_ladder_formats::nifti::read_image;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::classes::{SYNAPSE_LABEL_MAP, SYNAPSE_ORGANS};
use sam_ladder_schemas::tables::{CaseRow, ResultRow};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PRECOMPUTE: &str = "precompute --scans @scans --random-encoder 3 --image-size 32 --data-size 32 --augment none --store";
const TRAIN: &str = "train --store @s.zarr --epochs 60 --batch-size 4 --warmup 5 --lr 2e-3";

/// A store of the training cases 5, 6 and 7 and the test cases 1 and 2, of slices of 40 × 40 pixels that the network sees at 32 × 32, and a run
/// of each of two folds: cases 5 and 7, and case 6.
fn cross_validation(at: &Path) {
    succeed(on(at, "phantom --out @scans --cases 5 --size 40 --depth 4 --seed 3"));
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr")));
    for fold in [1, 2] {
        succeed(on(at, &format!("{TRAIN} --max-steps 60 --run @fold{fold} --fold {fold}/2")));
    }
}

fn validate(at: &Path, fold: u32) -> String {
    succeed(on(at, &format!("eval --store @s.zarr --run @fold{fold} --split validation --save-nifti --out @fold{fold}/eval")))
}

/// `table` with rows of folders below `at`.
fn table(at: &Path, words: &str) -> Command {
    let mut command = program(&["table"]);
    command.args(words.split_whitespace()).current_dir(at);
    command
}

/// The classes in a label file.
fn classes(at: &Path, case: &str) -> Vec<u8> {
    let label = read_image(&at.join(format!("scans/RawData/Training/label/label{case}.nii.gz"))).unwrap();
    label.voxels.iter().map(|&raw| SYNAPSE_LABEL_MAP[raw as usize]).collect()
}

/// Dice of each organ of a case by the published rules, from the label file and the mask that was written.
fn dice(at: &Path, evaluation: &str, case: &str) -> Vec<f64> {
    let reference = classes(at, case);
    let predicted = read_image(&at.join(format!("{evaluation}/masks/{case}.nii.gz"))).unwrap().voxels;
    assert_eq!((reference.len(), predicted.len()), (4 * 40 * 40, 4 * 40 * 40));
    let of_organ = |organ: u8| {
        let count =
            |is: &dyn Fn(u8, u8) -> bool| reference.iter().zip(&predicted).filter(|&(&r, &p)| is(r, p as u8)).count() as f64;
        let (r, p) = (count(&|r, _| r == organ), count(&|_, p| p == organ));
        match (r > 0.0, p > 0.0) {
            (_, false) => 0.0,
            (false, true) => 1.0,
            (true, true) => 2.0 * count(&|r, p| r == organ && p == organ) / (r + p),
        }
    };
    (1..=SYNAPSE_ORGANS.len() as u8).map(of_organ).collect()
}

/// The scores that an evaluation wrote: Dice of each organ, by case.
fn written(folder: &Path) -> BTreeMap<String, Vec<f64>> {
    let mut cases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for row in read_rows::<CaseRow>(&folder.join("cases.parquet")).unwrap() {
        cases.entry(row.case).or_default().push(row.dice.unwrap());
    }
    cases
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12, "{what}: {found}, expected {expected}");
    }
}

#[test]
fn held_out_cases_are_scored_at_their_own_resolution_and_folds_are_pooled() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cross_validation(at);
    let store = files(&at.join("s.zarr"));
    let mut by_case = Vec::new();
    for (fold, cases) in [(1, &["0005", "0007"][..]), (2, &["0006"][..])] {
        let table = validate(at, fold);
        assert!(table.contains("Validation: scored are training cases that were held out, not test scans"), "{table}");
        let evaluation = format!("fold{fold}/eval");
        let scores = written(&at.join(&evaluation));
        assert_eq!(scores.keys().collect::<Vec<_>>(), cases, "fold {fold}");
        for case in cases {
            let expected = dice(at, &evaluation, case);
            assert!(expected.iter().any(|&dice| dice > 0.0 && dice < 1.0), "case {case}: {expected:?} tells nothing");
            assert_close(&scores[*case], &expected, case);
            by_case.push(expected);
        }
        if fold == 2 {
            // The mask is that of `predict`, which encodes the scan itself.
            let case = cases[0];
            let image = format!("@scans/RawData/Training/img/img{case}.nii.gz");
            succeed(on(at, &format!("predict --scan {image} --run @fold{fold} --out @{case}.nii.gz")));
            let read = |name: String| read_image(&at.join(name)).unwrap().voxels;
            assert!(read(format!("{case}.nii.gz")) == read(format!("{evaluation}/masks/{case}.nii.gz")), "case {case}");
        }
        let report = std::fs::read_to_string(at.join(&evaluation).join("report.html")).unwrap();
        assert!(report.contains("not test scans") && report.contains(&cases.join(", ")));
    }
    assert_same_files(&at.join("s.zarr"), &store, "nothing is encoded again");

    let text = succeed(table(at, "--row cv=fold1,fold2 --out tables"));
    assert!(text.contains("Folds of a cross-validation are one row"), "{text}");
    let rows: Vec<ResultRow> = read_rows(&at.join("tables/table.parquet")).unwrap();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let deviation = |values: &[f64]| {
        let centre = mean(values);
        (values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
    };
    for (organ, name) in SYNAPSE_ORGANS.into_iter().enumerate() {
        let row = rows.iter().find(|row| row.organ == name).unwrap();
        let values: Vec<f64> = by_case.iter().map(|case| case[organ]).collect();
        assert_close(&[row.dice.unwrap(), row.dice_sd.unwrap()], &[mean(&values), deviation(&values)], name);
    }
    let row = rows.iter().find(|row| row.organ == "mean").unwrap();
    let values: Vec<f64> = by_case.iter().map(|case| mean(case)).collect();
    assert_close(&[row.dice.unwrap(), row.dice_sd.unwrap()], &[mean(&values), deviation(&values)], "mean");
    assert_eq!((row.seeds, row.folds, row.cases), (Some(1), Some(2), Some(3)));
}

#[test]
fn test_cases_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cross_validation(at);
    validate(at, 1);
    let expected = written(&at.join("fold1/eval"));
    // Nothing that is stored of the test scans can be read any more.
    let harmed: Vec<_> = files(&at.join("s.zarr"))
        .into_iter()
        .filter(|(name, _)| name.starts_with("test") && name.file_name().unwrap().to_string_lossy().starts_with("c."))
        .collect();
    assert_eq!(harmed.len(), 2 * 4 * 3 + 2, "three arrays of eight slices, and two masks");
    for (name, bytes) in harmed {
        std::fs::write(at.join("s.zarr").join(name), vec![0; bytes.len()]).unwrap();
    }
    std::fs::remove_dir_all(at.join("scans")).unwrap();
    std::fs::remove_dir_all(at.join("fold1/eval")).unwrap();
    validate(at, 1);
    assert_eq!(written(&at.join("fold1/eval")), expected);
    let refused = assert_refused(on(at, "eval --store @s.zarr --run @fold1 --out @test"));
    assert!(refused.contains("test/"), "{refused}");
}

#[test]
fn a_training_case_gives_its_mask_and_slices_in_the_order_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 4 --size 24 --depth 3 --seed 5"));
    let image = |case: &str| at.join(format!("scans/RawData/Training/img/img{case}.nii.gz"));
    // Case 5 comes into the store after 6 and 7, so that its rows are the last.
    std::fs::rename(image("0005"), at.join("img0005.nii.gz")).unwrap();
    let label = at.join("scans/RawData/Training/label/label0005.nii.gz");
    std::fs::rename(&label, at.join("label0005.nii.gz")).unwrap();
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr")));
    std::fs::rename(at.join("img0005.nii.gz"), image("0005")).unwrap();
    std::fs::rename(at.join("label0005.nii.gz"), &label).unwrap();
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr")));
    let store = TrainingSplit::open(at.join("s.zarr")).unwrap();
    assert_eq!(store.cases(), ["0005", "0006", "0007"]);
    for (case, first) in [("0006", 0), ("0007", 3), ("0005", 6)] {
        let mask = store.mask(case).unwrap();
        assert_eq!((mask.shape, &mask.labels), ([3, 24, 24], &classes(at, case)), "{case}");
        let slices = store.case_slices(case).unwrap();
        assert_eq!(slices.iter().map(|slice| slice.row).collect::<Vec<_>>(), [first, first + 1, first + 2], "{case}");
        for (slice, plane) in slices.iter().zip(mask.labels.chunks(24 * 24)) {
            let counted: Vec<u64> = (1..=8).map(|organ| plane.iter().filter(|&&class| class == organ).count() as u64).collect();
            assert_eq!(slice.voxels, counted, "{case}, slice {}", slice.slice_index);
        }
    }
    assert!(store.mask("0001").unwrap_err().to_string().contains("has no train case \"0001\""));
}

#[test]
fn slices_of_the_published_layout_are_scored_as_they_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let scans = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/synapse_mini/Synapse");
    let precompute = format!("precompute --scans {scans} --random-encoder 3 --image-size 32 --data-size 32 --augment none");
    succeed(on(at, &format!("{precompute} --store @s.zarr")));
    let store = TrainingSplit::open(at.join("s.zarr")).unwrap();
    let cases = store.cases();
    succeed(on(at, &format!("train --store @s.zarr --run @run --epochs 1 --max-steps 1 --val-cases {}", cases[0])));
    let table = succeed(on(at, "eval --store @s.zarr --run @run --split validation --save-nifti --out @eval"));
    assert!(table.contains("nothing is measured in millimetres"), "{table}");
    let [depth, height, width] = read_image(&at.join(format!("eval/masks/{}.nii.gz", cases[0]))).unwrap().geometry.shape;
    assert_eq!(store.mask(&cases[0]).unwrap().shape, [depth, height, width]);
    let refused = assert_refused(on(at, "eval --store @s.zarr --run @run --split validation --unit mm --out @mm"));
    assert!(refused.contains(&format!("the voxel spacing of case {} is unknown", cases[0])), "{refused}");
}

#[test]
fn what_is_no_validation_or_no_fold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cross_validation(at);
    let refused = |words: &str| assert_refused(on(at, words));
    let has = |text: String, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    };
    succeed(on(at, &format!("{TRAIN} --run @all --max-steps 1")));
    has(refused("eval --store @s.zarr --run @all --split validation --out @x"), &["all held out no training case", "--fold 1/5"]);
    has(refused("eval --store @s.zarr --zero-shot --split validation --out @x"), &["no run is given", "--split test"]);
    let two = refused("eval --store @s.zarr --run @fold1 --run @fold2 --split validation --out @x");
    has(two, &["held out the cases 0005, 0007, but ", "held out 0006: one was trained on what the other held out", "--row"]);

    for fold in [1, 2] {
        validate(at, fold);
    }
    succeed(on(at, "eval --store @s.zarr --run @fold1 --out @test"));
    has(refused("eval --compare @fold1 @test"), &["scored the split validation, the other test", "--split validation"]);
    has(assert_refused(table(at, "--row a=fold1 --row b=test --out t")), &["scored the split validation, the other test"]);
    has(assert_refused(table(at, "--row a=fold1,fold1 --out t")), &["case 0005 is in two folds"]);
    has(assert_refused(table(at, "--row a=fold1 --row b=fold2 --out t")), &["they have the cases", "--row NAME=DIR,DIR"]);
    has(assert_refused(table(at, "--row a=fold1,fold2 --published --out t")), &["published rows are scores of test scans"]);
    let baseline = "eval --store @s.zarr --run @fold1 --split validation --baseline @test --out @x";
    has(refused(baseline), &["test scored the split test, and this evaluation scores validation"]);
    succeed(on(at, &format!("{TRAIN} --run @other --fold 2/2 --max-steps 1 --lambda 0.5")));
    succeed(on(at, "eval --store @s.zarr --run @other --split validation --out @other/eval"));
    has(
        assert_refused(table(at, "--row a=fold1,other --out t")),
        &["no folds of one cross-validation", "run.config.lambda: the one has 0.8"],
    );

    // A store that has grown holds the same held-out scans; another of the same names does not.
    let expected = written(&at.join("fold1/eval"));
    succeed(on(at, "phantom --out @more --cases 6 --size 40 --depth 4 --seed 3"));
    for (name, bytes) in files(&at.join("more")) {
        std::fs::write(at.join("scans").join(name), bytes).unwrap();
    }
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr")));
    std::fs::remove_dir_all(at.join("fold1/eval")).unwrap();
    validate(at, 1);
    assert_eq!(written(&at.join("fold1/eval")), expected);
    std::fs::remove_dir_all(at.join("scans")).unwrap();
    succeed(on(at, "phantom --out @scans --cases 5 --size 40 --depth 4 --seed 4"));
    succeed(on(at, &format!("{PRECOMPUTE} @others.zarr")));
    let words = "eval --store @others.zarr --run @fold1 --split validation --out @x";
    has(refused(words), &["its training case 0005 is not known to be the scan", "the store that the run was trained on"]);
}

/// The Dice of the masks as written is that of the choice; and the rules in the run's folder are applied, whoever wrote them.
#[test]
fn a_postprocessing_is_chosen_on_held_out_cases_and_applied() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 5 --size 40 --depth 4 --seed 3"));
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr")));
    succeed(on(at, &format!("{TRAIN} --max-steps 60 --run @run --fold 1/2")));
    let eval = "eval --store @s.zarr --run @run --save-nifti";
    let refused = assert_refused(on(at, &format!("{eval} --choose-postprocessing --out @e")));
    assert!(refused.contains("--split validation"), "{refused}");
    assert!(!at.join("run/postprocessing.json").exists());

    succeed(on(at, &format!("{eval} --split validation --choose-postprocessing --out @before")));
    let path = at.join("run/postprocessing.json");
    let read_json = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&path).unwrap()).unwrap();
    let found = read_json();
    assert_eq!(found["cases"], serde_json::json!(["0005", "0007"]));
    let rules = found["organs"].as_array().unwrap();
    assert_eq!(rules.len(), SYNAPSE_ORGANS.len());
    let masks = |evaluation: &str| {
        ["0005", "0007"].map(|case| read_image(&at.join(format!("{evaluation}/masks/{case}.nii.gz"))).unwrap().voxels)
    };
    // Means are over the cases in which either mask has the organ.
    let mean = |evaluation: &str, class: usize| {
        let of_case = |(case, predicted): (&str, Vec<f32>)| {
            let reference = classes(at, case);
            let count = |of: &dyn Fn(usize) -> bool| (0..reference.len()).filter(|&at| of(at)).count() as f64;
            let (r, p) = (|at: usize| usize::from(reference[at]) == class, |at: usize| predicted[at] as usize == class);
            let sum = count(&r) + count(&p);
            (sum > 0.0).then(|| 2.0 * count(&|at| r(at) && p(at)) / sum)
        };
        let cases: Vec<f64> = ["0005", "0007"].into_iter().zip(masks(evaluation)).filter_map(of_case).collect();
        if cases.is_empty() { -1.0 } else { cases.iter().sum::<f64>() / cases.len() as f64 }
    };
    succeed(on(at, &format!("{eval} --split validation --out @after")));
    for (evaluation, key) in [("before", "dice_before"), ("after", "dice_after")] {
        for (class, rule) in (1..).zip(rules) {
            let (mean, written) = (mean(evaluation, class), rule[key].as_f64().unwrap_or(-1.0));
            assert!((mean - written).abs() < 1e-12, "{evaluation}, {}: {mean}, expected {written}", rule["organ"]);
        }
    }
    // The organ that is found best is to go wherever it is smaller than the whole scan.
    let dice = |class: &usize| rules[class - 1]["dice_before"].as_f64().unwrap_or(0.0);
    let best = (1..=rules.len()).max_by(|a, b| dice(a).total_cmp(&dice(b))).unwrap();
    assert!(dice(&best) > 0.1, "{found}");
    let mut edited = found.clone();
    edited["organs"][best - 1]["smallest_voxels"] = 1_000_000.into();
    std::fs::write(&path, edited.to_string()).unwrap();
    let image = "@scans/RawData/Training/img/img0005.nii.gz";
    for (option, evaluation) in [("", "edited"), (" --no-postprocessing", "without")] {
        succeed(on(at, &format!("{eval} --split validation --out @{evaluation}{option}")));
        succeed(on(at, &format!("predict --scan {image} --run @run --out @{evaluation}.nii.gz{option}")));
        let predicted = read_image(&at.join(format!("{evaluation}.nii.gz"))).unwrap().voxels;
        assert!(predicted == masks(evaluation)[0], "{evaluation}");
    }
    assert!(masks("without") == masks("before"));
    let gone = masks("before")
        .map(|mask| mask.into_iter().map(|class| if class as usize == best { 0.0 } else { class }).collect::<Vec<f32>>());
    assert!(masks("edited") == gone);

    let again = format!("{eval} --split validation --choose-postprocessing --out @again");
    assert!(assert_refused(on(at, &again)).contains("postprocessing.json exists"));
    succeed(on(at, &format!("{again} --force")));
    assert_eq!(read_json(), found);
    std::fs::write(&path, "{}").unwrap();
    let refused = assert_refused(on(at, &format!("{eval} --split validation --out @damaged")));
    assert!(refused.contains("postprocessing.json is no postprocessing"), "{refused}");
}

/// Ctrl-C ends a curve, and the advice is of the curve, not of one of its runs.
fn interrupt_a_curve(at: &Path) {
    let line = "learning-curve --store @s.zarr --val-cases 0005 --numbers 1 --epochs 100000 --warmup 1 --out @stopped";
    let child = on(at, line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !at.join("stopped/cases-001-seed-1234/config.json").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command continues the curve") && !said.contains("sam-ladder train"), "{said}");
}

/// The scores are those that the runs' own tables have, and a second call trains nothing.
#[test]
fn a_learning_curve_trains_on_growing_numbers_of_cases() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 6 --size 32 --depth 3 --seed 3"));
    succeed(on(at, &format!("{PRECOMPUTE} @s.zarr")));
    let line = "learning-curve --store @s.zarr --val-cases 0005 --numbers 1,2,3 --seeds 7,8 --epochs 2 --batch-size 4 --warmup 1 --out @curve";
    let said = succeed(on(at, line));
    assert_eq!(said.lines().filter(|line| line.contains("validation Dice")).count(), 3, "{said}");
    assert!(said.contains("over 2 seeds") && said.contains("with 6 cases the Dice is likely to change by"), "{said}");
    let table = std::fs::read_to_string(at.join("curve/learning-curve.csv")).unwrap();
    for cases in [1usize, 2, 3] {
        for seed in [7, 8] {
            let run = at.join(format!("curve/cases-{cases:03}-seed-{seed}"));
            let record: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("config.json")).unwrap()).unwrap();
            let trained = record["trained_cases"].as_array().map_or(3, Vec::len);
            assert_eq!((trained, &record["config"]["seed"]), (cases, &serde_json::json!(seed)));
            let epochs: Vec<sam_ladder_schemas::tables::EpochRow> = read_rows(&run.join("epochs.parquet")).unwrap();
            let best = epochs.iter().filter_map(|row| row.val_dice).fold(0.0, f64::max);
            assert!(table.contains(&format!("\n{cases},{seed},{best}\n")), "{table}");
        }
    }
    let log = at.join("curve/cases-001-seed-7/steps.parquet");
    let before = std::fs::metadata(&log).unwrap().modified().unwrap();
    assert_eq!(succeed(on(at, line)), said);
    assert_eq!(std::fs::metadata(&log).unwrap().modified().unwrap(), before);
    assert!(said.starts_with("   1 case: ") && said.contains("\n  2 cases: "), "{said}");
    let refused = assert_refused(on(at, &line.replace("1,2,3", "4")));
    assert!(refused.contains("a run on 4 cases: 3 are not held out"), "{refused}");
    let refused = assert_refused(on(at, &line.replace("--val-cases 0005", "--val-cases 0006")));
    assert!(refused.contains("val_cases differs") && refused.contains("repeat the command that began"), "{refused}");
    assert!(!refused.contains("sam-ladder train"), "{refused}");
    interrupt_a_curve(at);
    let refused = assert_refused(on(at, &line.replace("--val-cases 0005", "")));
    assert!(refused.contains("no case is held out to measure by"), "{refused}");
}
