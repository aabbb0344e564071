//! `compare-encoders`: every number of its tables is counted again here, from the runs' own tables and the stores' files.

mod cli;
#[path = "common/folders.rs"]
mod folders;

use cli::{assert_refused, on, succeed};
use folders::files;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
use sam_ladder_schemas::tables::{CaseRow, EncoderRow, EpochRow, ResultRow};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const COMPARE: &str = "compare-encoders --store sam=@s.zarr --store @d.zarr --folds 2 --seeds 7,8 --epochs 10 --batch-size 2 --warmup 5 --lr 3e-3 \
                       --ema 0.5 --protocol standard --out";
/// Numbers that the published model trains; and the 1×1 convolution from 384 channels to 256, with bias.
const PUBLISHED_PARAMETERS: u64 = 2_856_737;
const PROJECTION_PARAMETERS: u64 = 384 * 256 + 256;

/// `on`, where also a word's end may be a path: `sam=@s.zarr`.
fn compare(at: &Path, words: &str) -> Command {
    let (start, named) = (format!("{}/", at.display()), |word: &str| word.contains("=@"));
    let words: Vec<String> =
        words.split_whitespace().map(|word| if named(word) { word.replace('@', &start) } else { word.into() }).collect();
    on(at, &words.join(" "))
}

/// A store of SAM's encoder and one of DINOv3's, both with weights by a rule, of the training cases 5, 6 and 7.
fn stores(at: &Path) {
    succeed(on(at, "phantom --out @scans --cases 5 --size 40 --depth 4 --seed 3"));
    let made = "precompute --scans @scans --random-encoder 3 --image-size 32 --data-size 32 --augment none";
    succeed(on(at, &format!("{made} --store @s.zarr")));
    succeed(on(at, &format!("{made} --encoder dinov3_vits16 --store @d.zarr")));
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

fn assert_close(found: Option<f64>, expected: f64, what: &str) {
    let found = found.unwrap_or_else(|| panic!("{what} is undefined"));
    assert!((found - expected).abs() < 1e-12, "{what}: {found}, expected {expected}");
}

/// What the cases of a store's runs scored, by seed, case and organ; undefined ones are left out.
type Scores = BTreeMap<u64, BTreeMap<(String, String), f64>>;

fn scores(out: &Path, name: &str, score: fn(&CaseRow) -> Option<f64>) -> Scores {
    let of_seed = |seed: u64| {
        let folds = [1, 2].map(|fold| out.join(format!("{name}-seed-{seed}-fold-{fold}-of-2/eval/cases.parquet")));
        let rows = folds.iter().flat_map(|path| read_rows::<CaseRow>(path).unwrap());
        (seed, rows.filter_map(|row| Some((score(&row)?, row))).map(|(score, row)| ((row.case, row.organ), score)).collect())
    };
    [7, 8].map(of_seed).into_iter().collect()
}

/// Mean over the seeds of the mean over organs of the mean over cases.
fn overall(scores: &Scores) -> f64 {
    let of_organ = |of_seed: &BTreeMap<(String, String), f64>, organ: &str| {
        let values: Vec<f64> = of_seed.iter().filter(|((_, name), _)| name == organ).map(|(_, score)| *score).collect();
        (!values.is_empty()).then(|| mean(values))
    };
    mean(scores.values().map(|of_seed| mean(SYNAPSE_ORGANS.into_iter().filter_map(|organ| of_organ(of_seed, organ)))))
}

/// Of each case, `second` minus `first`, means over the organs that both have, of means over seeds.
fn differences(first: &Scores, second: &Scores) -> Vec<f64> {
    let over_seeds = |scores: &Scores, key: &(String, String)| {
        let values: Vec<f64> = scores.values().filter_map(|of_seed| of_seed.get(key).copied()).collect();
        (!values.is_empty()).then(|| mean(values))
    };
    let of_case = |case: &str| {
        let keys = SYNAPSE_ORGANS.map(|organ| (case.to_string(), organ.to_string()));
        let pairs: Vec<(f64, f64)> =
            keys.iter().filter_map(|key| Some((over_seeds(first, key)?, over_seeds(second, key)?))).collect();
        (!pairs.is_empty()).then(|| mean(pairs.iter().map(|(_, b)| *b)) - mean(pairs.iter().map(|(a, _)| *a)))
    };
    ["0005", "0006", "0007"].into_iter().filter_map(of_case).collect()
}

/// Of all ways to turn the signs, the share whose mean is as far from 0.
fn permutation_p(differences: &[f64]) -> f64 {
    let found = mean(differences.iter().copied()).abs();
    let turned = |pattern: usize| {
        mean(differences.iter().enumerate().map(|(at, value)| if pattern >> at & 1 == 1 { -value } else { *value })).abs()
    };
    let all = 1usize << differences.len();
    (0..all).filter(|&pattern| turned(pattern) >= found - 1e-12).count() as f64 / all as f64
}

fn rows(out: &Path) -> Vec<EncoderRow> {
    read_rows(&out.join("encoders.parquet")).unwrap()
}

/// All that is not a time.
fn without_times(rows: Vec<EncoderRow>) -> Vec<EncoderRow> {
    rows.into_iter().map(|row| EncoderRow { seconds_per_epoch: None, ..row }).collect()
}

fn check_against_the_runs(at: &Path, out: &Path) {
    let rows = rows(out);
    assert_eq!(
        rows.iter().map(|row| (row.name.as_str(), row.encoder.as_str())).collect::<Vec<_>>(),
        [("sam", "vit_b"), ("d", "dinov3_vits16")]
    );
    let parameters = [PUBLISHED_PARAMETERS, PUBLISHED_PARAMETERS + PROJECTION_PARAMETERS];
    for (row, (store, (channels, parameters))) in
        rows.iter().zip(["s.zarr", "d.zarr"].into_iter().zip([256, 384].into_iter().zip(parameters)))
    {
        assert_eq!((row.channels, row.stride, row.image_size, row.trained_parameters), (channels, 16, 32, parameters));
        assert_eq!((row.seeds, row.folds, row.cases), (2, 2, 3));
        let bytes: usize = files(&at.join(store)).values().map(Vec::len).sum();
        assert_eq!(row.store_bytes, bytes as u64, "{store}");
        let folders = [7, 8].into_iter().flat_map(|seed| [1, 2].map(|fold| (seed, fold)));
        let mut seconds: Vec<f64> = folders
            .flat_map(|(seed, fold)| {
                let run = out.join(format!("{}-seed-{seed}-fold-{fold}-of-2", row.name));
                let epochs: Vec<EpochRow> = read_rows(&run.join("epochs.parquet")).unwrap();
                assert_eq!(epochs.len(), 10);
                epochs.into_iter().map(|epoch| epoch.seconds)
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        assert_close(row.seconds_per_epoch, (seconds[19] + seconds[20]) / 2.0, "seconds");
    }
    let by_organ: Vec<ResultRow> = read_rows(&out.join("scores.parquet")).unwrap();
    type Score = fn(&CaseRow) -> Option<f64>;
    let metrics: [(&str, Score); 2] = [("dice", |row| row.dice), ("hd95", |row| row.hd95)];
    for (metric, score) in metrics {
        let [sam, dino] = ["sam", "d"].map(|name| scores(out, name, score));
        let pick = |row: &EncoderRow| if metric == "dice" { row.dice } else { row.hd95 };
        assert_close(pick(&rows[0]), overall(&sam), metric);
        assert_close(pick(&rows[1]), overall(&dino), metric);
        let mean_row = by_organ.iter().find(|row| row.method == "d" && row.organ == "mean").unwrap();
        assert_eq!(if metric == "dice" { mean_row.dice } else { mean_row.hd95 }, pick(&rows[1]));
        let differences = differences(&sam, &dino);
        assert!(differences.iter().any(|value| value.abs() > 1e-6), "{metric}: {differences:?} tells nothing");
        let [gain, p, wilcoxon] = match metric {
            "dice" => [rows[1].dice_gain, rows[1].dice_permutation_p, rows[1].dice_wilcoxon_p],
            _ => [rows[1].hd95_change, rows[1].hd95_permutation_p, rows[1].hd95_wilcoxon_p],
        };
        assert_close(gain, mean(differences.iter().copied()), metric);
        assert_close(p, permutation_p(&differences), metric);
        assert!(wilcoxon.is_some_and(|p| p > 0.0 && p <= 1.0));
    }
    assert!(rows[0].dice_gain.is_none() && rows[0].dice_wilcoxon_p.is_none() && rows[0].hd95_change.is_none());
}

#[test]
fn the_tables_numbers_are_those_of_the_runs_and_a_second_call_trains_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    stores(at);
    let (out, line) = (at.join("out"), format!("{COMPARE} @out"));
    let said = succeed(compare(at, &line));
    check_against_the_runs(at, &out);
    for part in
        ["| sam | vit_b | 256 | 16 | 32 |", "| d | dinov3_vits16 | 384 | 16 | 32 |", "| 2955297 |", "HD95, mm ↓", "against sam"]
    {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    assert!(fs::read_to_string(out.join("encoders.md")).unwrap().starts_with(said.trim_end()));
    let record = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(out.join(run).join("config.json")).unwrap()).unwrap()
    };
    let [one, other] = ["sam-seed-8-fold-1-of-2", "d-seed-8-fold-1-of-2"].map(record);
    assert_eq!(one["config"], other["config"], "the same settings, seeds and held-out cases");
    assert_eq!((&one["config"]["ema"], &one["config"]["seed"]), (&0.5.into(), &8.into()));
    // The last models score, each by its own file.
    let evaluation = fs::read_to_string(out.join("d-seed-8-fold-2-of-2/eval/evaluation.json")).unwrap();
    let model = fs::read(out.join("d-seed-8-fold-2-of-2/checkpoint.safetensors")).unwrap();
    assert!(evaluation.contains(&sam_ladder_formats::hash::sha256_hex(&model)) && evaluation.contains("the last epoch"));

    // Each session of a run has TensorBoard events of its own.
    let count = || files(&out).keys().filter(|name| !name.to_string_lossy().contains("tensorboard")).count();
    let all = count();
    let steps = out.join("sam-seed-7-fold-1-of-2/steps.parquet");
    let scored = out.join("sam-seed-7-fold-1-of-2/eval/cases.parquet");
    let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let before = [written(&steps), written(&scored)];
    fs::remove_dir_all(out.join("d-seed-7-fold-1-of-2/eval")).unwrap();
    assert_eq!(succeed(compare(at, &line)), said, "what is missing is scored again");
    assert_eq!([written(&steps), written(&scored)], before);
    assert_eq!(count(), all);
    // Other rules score the same models anew.
    let published = succeed(compare(at, &line.replace("--protocol standard", "")));
    assert!(published.contains("HD95, voxels ↓") && written(&scored) != before[1] && written(&steps) == before[0], "{published}");
    fs::write(out.join("encoders.md"), "mine").unwrap();
    assert!(assert_refused(compare(at, &line)).contains("encoders.md"));
}

#[test]
fn a_killed_comparison_ends_in_the_same_scores() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    stores(at);
    let kill = |signal: &str, line: &str, run: &str| {
        let child = compare(at, line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while !at.join(run).join("config.json").exists() {
            assert!(start.elapsed() < Duration::from_secs(120), "the run does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let [line, whole] = ["@killed", "@whole"].map(|out| format!("{COMPARE} {out}").replace("--seeds 7,8", "--seeds 7"));
    assert_eq!(kill("-KILL", &line, "killed/d-seed-7-fold-2-of-2").0, None);
    assert!(!at.join("killed/encoders.parquet").exists(), "no seed is whole");
    succeed(compare(at, &line));
    succeed(compare(at, &whole));
    assert_eq!(without_times(rows(&at.join("killed"))), without_times(rows(&at.join("whole"))));

    let long = line.replace("--epochs 10", "--epochs 100000").replace("@killed", "@stopped");
    let (code, said) = kill("-INT", &long, "stopped/sam-seed-7-fold-1-of-2");
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("the same command continues the comparison") && !said.contains("sam-ladder train"), "{said}");
    let refused = assert_refused(compare(at, &line.replace("--ema 0.5", "--ema 0.9")));
    assert!(refused.contains("ema differs") && refused.contains("repeat the command that began"), "{refused}");
}

#[test]
fn stores_that_cannot_be_compared_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    stores(at);
    let made = "--random-encoder 3 --augment none";
    succeed(on(at, "phantom --out @other --cases 5 --size 40 --depth 4 --seed 4"));
    succeed(on(at, "phantom --out @fewer --cases 4 --size 40 --depth 4 --seed 3"));
    for (store, words) in [
        ("larger", "--scans @scans --image-size 32 --data-size 40"),
        ("other", "--scans @other --image-size 32 --data-size 32"),
        ("fewer", "--scans @fewer --image-size 32 --data-size 32"),
    ] {
        succeed(on(at, &format!("precompute {words} {made} --store @{store}.zarr")));
    }
    let refused = |words: &str| assert_refused(compare(at, &format!("compare-encoders --out @out {words}")));
    for (words, expected) in [
        ("--store @s.zarr --store @larger.zarr --folds 2", "s and larger differ in the data size: 32 and 40"),
        ("--store @s.zarr --store @other.zarr --folds 2", "case 0001 of other was made from other files than in s"),
        ("--store @s.zarr --store @fewer.zarr --folds 2", "is in s and not in fewer"),
        ("--store @s.zarr --store copy=@s.zarr --folds 2", "s and copy are the same store"),
        ("--store @s.zarr --folds 2", "a comparison needs two stores or more"),
        ("--store @s.zarr --store s=@d.zarr --folds 2", "two stores are called \"s\""),
        ("--store @s.zarr --store a/b=@d.zarr --folds 2", "\"a/b\" cannot be the name of a folder"),
        ("--store @s.zarr --store @d.zarr", "no case is held out to score"),
        ("--store @s.zarr --store @d.zarr --folds 4", "3 training cases, fewer than 4 folds"),
        ("--store @s.zarr --store @d.zarr --folds 2 --seed 3", "--seed is one of several here"),
        ("--store @s.zarr --store @d.zarr --folds 2 --ladder gated", "rungs"),
        ("--store @s.zarr --store @d.zarr --val-cases 0001", "0001"),
    ] {
        let said = refused(words);
        assert!(said.contains(expected), "{words}: {said}");
        assert!(!at.join("out/encoders.md").exists());
    }
    // With cases by name, and a note on what else differs.
    succeed(on(at, &format!("precompute --scans @scans --image-size 48 --data-size 32 {made} --store @finer.zarr")));
    let line = "compare-encoders --store @s.zarr @finer.zarr --val-cases 0006 --epochs 1 --batch-size 4 --out @named";
    let output = compare(at, line).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("differ not only in the encoder: image_size: s 32, finer 48"), "{said}");
    let found = rows(&at.join("named"));
    assert_eq!(found.iter().map(|row| (row.image_size, row.folds, row.cases)).collect::<Vec<_>>(), [(32, 1, 1), (48, 1, 1)]);
}
