//! nnU-Net's raw layout as a source: classes, names and channels from `dataset.json` reach the store, the network and the tables.

mod cli;

use cli::{assert_refused, nifti, program, succeed};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_precompute::preprocess::DataSlice;
use sam_ladder_precompute::scans::{Scan, ScanSource, SourceOptions, configure};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::preprocessing::Intensity;
use sam_ladder_schemas::tables::{CaseRow, EpochRow};
use sam_ladder_schemas::variants::VariantKind;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Width, height, depth of the scans.
const SHAPE: [i16; 3] = [20, 18, 3];
const VOXELS: usize = 20 * 18 * 3;

fn dataset_json(channels: &[&str], labels: &str) -> String {
    let channels: Vec<String> = channels.iter().enumerate().map(|(i, name)| format!(r#""{i}": "{name}""#)).collect();
    format!(r#"{{"channel_names": {{{}}}, "labels": {labels}, "numTraining": 3, "file_ending": ".nii.gz"}}"#, channels.join(", "))
}

/// Compresses a scan and writes it.
fn write(path: &Path, voxels: &[f32]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &nifti(SHAPE, voxels)).unwrap();
    fs::write(path, encoder.finish().unwrap()).unwrap();
}

/// Voxel values that differ between cases and channels: a box of class 1 and one of class 2 on a slope.
fn voxels(case: usize, channel: usize) -> Vec<f32> {
    let slope = |at: usize| ((at * 31 + case * 7 + channel * 13) % 101) as f32;
    (0..VOXELS).map(|at| slope(at) + 200.0 * labels()[at] * (1.0 + channel as f32)).collect()
}

fn labels() -> Vec<f32> {
    let box_of = |at: usize| match (at % 20, at / 20 % 18) {
        (3..9, 3..9) => 1.0,
        (11..18, 8..16) => 2.0,
        _ => 0.0,
    };
    (0..VOXELS).map(box_of).collect()
}

/// Three training cases with these channels, and with `labels_ts` also a test case.
fn write_dataset(root: &Path, channels: &[&str], labels_ts: bool) {
    fs::create_dir_all(root).unwrap();
    fs::write(root.join("dataset.json"), dataset_json(channels, r#"{"background": 0, "tumour|core": 1, "edema": 2}"#)).unwrap();
    let halves = [("Tr", vec!["brain_001", "brain_002", "brain_010"]), ("Ts", vec!["brain_003"])];
    for (half, cases) in halves.into_iter().take(if labels_ts { 2 } else { 1 }) {
        for (number, case) in cases.into_iter().enumerate() {
            for channel in 0..channels.len() {
                write(&root.join(format!("images{half}/{case}_{channel:04}.nii.gz")), &voxels(number, channel));
            }
            write(&root.join(format!("labels{half}/{case}.nii.gz")), &labels());
        }
    }
}

fn published() -> PrecomputeConfig {
    PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 })
}

/// The cases of a folder under some options.
fn read_all(root: &Path, options: &SourceOptions) -> (PrecomputeConfig, Vec<Scan>) {
    let config = configure(root, options, published()).unwrap();
    config.validate().unwrap();
    let source = ScanSource::open(root, &config.preprocessing).unwrap().with_test_cases(&config.test_cases).unwrap();
    let scans = source.cases().iter().map(|case| source.read(case).unwrap()).collect();
    (config, scans)
}

fn splits(scans: &[Scan]) -> Vec<(&str, Split)> {
    scans.iter().map(|scan| (scan.case.as_str(), scan.split)).collect()
}

#[test]
fn ct_is_windowed_and_other_channels_are_scaled_by_their_percentiles() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write_dataset(root, &["ct", "PET"], true);
    let (config, scans) = read_all(root, &SourceOptions::default());
    assert_eq!(config.class_names, ["tumour|core", "edema"]);
    assert_eq!(config.preprocessing.label_map, [0, 1, 2]);
    let intensities = config.preprocessing.channels.iter().map(|channel| channel.intensity).collect::<Vec<_>>();
    assert_eq!(intensities, [Intensity::Window, Intensity::Percentiles { low: 0.5, high: 99.5 }]);
    let (train, test) = (Split::Train, Split::Test);
    assert_eq!(splits(&scans), [("brain_001", train), ("brain_002", train), ("brain_010", train), ("brain_003", test)]);

    let scan = &scans[1];
    assert_eq!((scan.shape, scan.spacing_mm), ([3, 18, 20], Some([3.0, 1.0, 1.0])));
    assert_eq!(scan.slice_sources[2].path, "imagesTr/brain_002_0000.nii.gz");
    let read: Vec<String> = scan.files.iter().map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(read, ["brain_002_0000.nii.gz", "brain_002_0001.nii.gz", "brain_002.nii.gz"], "hashed as they are read");
    let [ct, mut pet] = [0, 1].map(|channel| voxels(1, channel));
    pet.sort_by(f32::total_cmp);
    // Position 0.005·1079 = 5.395 and its mirror, between neighbours.
    let percentile = |below: usize, part: f32| pet[below] + (pet[below + 1] - pet[below]) * part;
    let (low, high) = (percentile(5, 0.395), percentile(1073, 0.605));
    for (at, (&ct, pet)) in ct.iter().zip(voxels(1, 1)).enumerate() {
        let (slice, pixel) = (at / 360, at % 360);
        assert_eq!(scan.image[slice * 720 + pixel], (ct.clamp(-125.0, 275.0) + 125.0) / 400.0);
        let expected = (pet.clamp(low, high) - low) / (high - low);
        assert!((scan.image[slice * 720 + 360 + pixel] - expected).abs() < 1e-6, "voxel {at}");
    }
    assert_eq!(scan.label.iter().map(|&class| f32::from(class)).collect::<Vec<_>>(), labels());
}

#[test]
fn options_choose_channels_window_and_test_cases() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write_dataset(root, &["T1", "T1ce", "T2", "FLAIR"], false);
    let error = configure(root, &SourceOptions::default(), published()).unwrap_err();
    let error = format!("{error}\nhint: {}", error.hint().unwrap());
    assert!(error.contains("0 T1, 1 T1ce, 2 T2, 3 FLAIR") && error.contains("--channels"), "{error}");

    let test_cases = ["brain_010", "brain_001"].map(String::from).to_vec();
    let options =
        SourceOptions { window: Some([0.0, 100.0]), channels: Some(vec![3, 0]), test_cases, ..SourceOptions::default() };
    let (config, scans) = read_all(root, &options);
    let channels: Vec<_> = config.preprocessing.channels.iter().map(|c| (c.index, c.name.as_str(), c.intensity)).collect();
    assert_eq!(channels, [(3, "FLAIR", Intensity::Window), (0, "T1", Intensity::Window)]);
    assert_eq!(config.test_cases, ["brain_001", "brain_010"]);
    assert_eq!(splits(&scans), [("brain_002", Split::Train), ("brain_001", Split::Test), ("brain_010", Split::Test)]);
    assert_eq!(scans[0].image[360], voxels(1, 0)[0].min(100.0) / 100.0);
    // Channels that are not chosen are ignored.
    fs::remove_file(root.join("imagesTr/brain_002_0001.nii.gz")).unwrap();
    read_all(root, &options);

    let with = |change: fn(&mut SourceOptions)| {
        let mut options = options.clone();
        change(&mut options);
        let config = configure(root, &options, published()).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())?;
        let source = ScanSource::open(root, &config.preprocessing).map_err(|e| e.to_string())?;
        source.with_test_cases(&config.test_cases).map(|_| ()).map_err(|e| e.to_string())
    };
    for (error, part) in [
        (with(|o| o.channels = Some(vec![0, 4])), "no channel 4"),
        (with(|o| o.channels = Some(vec![2, 2])), "channel 2 is there twice"),
        (with(|o| o.channels = Some(vec![1])), "brain_002_0001.nii.gz"),
        (with(|o| o.test_cases = vec!["brain_01".into()]), "\"brain_01\""),
        (with(|o| o.window = Some([5.0, 5.0])), "expected two ascending numbers"),
    ] {
        let error = error.unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn one_ct_channel_is_the_published_config() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), &["CT"], false);
    // Test scans without labels are no use to an evaluation.
    write(&folder.path().join("imagesTs/brain_003_0000.nii.gz"), &voxels(3, 0));
    let (config, scans) = read_all(folder.path(), &SourceOptions::default());
    assert_eq!(config.preprocessing.channels, published().preprocessing.channels);
    assert_eq!(scans[0].image.len(), VOXELS);
    assert!(scans.iter().all(|scan| scan.split == Split::Train), "without labelsTs and --test-cases all train");
}

#[test]
fn folders_that_do_not_fit_are_refused() {
    let open = |root: &Path| match configure(root, &SourceOptions::default(), published()) {
        Ok(config) => ScanSource::open(root, &config.preprocessing).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    let refused = |change: &dyn Fn(&Path), parts: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        write_dataset(folder.path(), &["T1", "T2"], true);
        change(folder.path());
        let error = open(folder.path());
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{parts:?}: {error}");
    };
    refused(&|root| fs::remove_file(root.join("dataset.json")).unwrap(), &["dataset.json"]);
    refused(&|root| fs::write(root.join("dataset.json"), "{}").unwrap(), &["dataset.json", "labels"]);
    refused(&|root| fs::remove_file(root.join("labelsTr/brain_010.nii.gz")).unwrap(), &["brain_010_0000.nii.gz", "labelsTr"]);
    refused(&|root| fs::remove_file(root.join("imagesTr/brain_010_0001.nii.gz")).unwrap(), &["brain_010_0001.nii.gz"]);
    refused(&|root| fs::remove_file(root.join("labelsTs/brain_003.nii.gz")).unwrap(), &["brain_003", "labelsTs"]);
    refused(
        &|root| write(&root.join("imagesTr/brain_001_0002.nii.gz"), &[0.0; VOXELS]),
        &["0002.nii.gz", "channel 2", "0 T1, 1 T2"],
    );
    refused(
        &|root| write(&root.join("imagesTr/brain_001.nii.gz"), &[0.0; VOXELS]),
        &["brain_001.nii.gz", "lacks the number of its channel"],
    );
    let twice = |root: &Path| {
        for channel in 0..2 {
            write(&root.join(format!("imagesTs/brain_001_{channel:04}.nii.gz")), &[0.0; VOXELS]);
        }
        write(&root.join("labelsTs/brain_001.nii.gz"), &labels());
    };
    refused(&twice, &["imagesTs/brain_001", "imagesTr/brain_001"]);
    let smaller = |root: &Path| fs::write(root.join("imagesTr/brain_002_0001.nii.gz"), nifti([20, 18, 2], &[0.0; 720])).unwrap();
    refused(&smaller, &["brain_002_0001.nii.gz", "[2, 18, 20]", "[3, 18, 20]"]);
    refused(&|root| fs::create_dir(root.join("train_npz")).unwrap(), &["two layouts"]);
    // Checks that need the voxels.
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), &["T1"], false);
    write(&folder.path().join("labelsTr/brain_001.nii.gz"), &[3.0; VOXELS]);
    let config = configure(folder.path(), &SourceOptions::default(), published()).unwrap();
    let source = ScanSource::open(folder.path(), &config.preprocessing).unwrap();
    let error = source.read(&source.cases()[0]).unwrap_err().to_string();
    assert!(error.contains("labelsTr/brain_001.nii.gz: label 3") && error.contains("from 0 to 2"), "{error}");
}

#[test]
fn options_of_one_layout_are_refused_by_another() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/synapse_mini");
    let with = |below: &str, options: SourceOptions| configure(&golden.join(below), &options, published());
    let channels = || SourceOptions { channels: Some(vec![0]), ..Default::default() };
    let test_cases = || SourceOptions { test_cases: vec!["0005".into()], ..Default::default() };
    let window = || SourceOptions { window: Some([-100.0, 240.0]), ..Default::default() };
    for (below, options, named) in [
        ("RawData", channels(), "--channels"),
        ("RawData", test_cases(), "--test-cases"),
        ("Synapse", test_cases(), "--test-cases"),
        ("Synapse", window(), "--window"),
    ] {
        let error = with(below, options).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains(below), "{error}");
    }
    assert_eq!(with("RawData", window()).unwrap().preprocessing.window_hu, [-100.0, 240.0]);
    // nibabel: aff2axcodes of img0005.nii.gz, which is recorded for `predict`; nothing is turned.
    let mut expected = published();
    expected.preprocessing.orientation = Some("RAS".parse().unwrap());
    assert_eq!(with("RawData", SourceOptions::default()).unwrap(), expected);
    assert_eq!(with("Synapse", SourceOptions::default()).unwrap(), published());
}

fn precompute(scans: &Path, store: &Path, more: &[&str]) -> Command {
    let mut command = program(&["precompute", "--random-encoder", "1", "--image-size", "32", "--data-size", "24"]);
    command.args(["--augment", "flips", "--dtype", "f32"]).args(more).arg("--scans").arg(scans).arg("--store").arg(store);
    command
}

#[test]
fn two_channels_and_two_classes_go_all_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_dataset(&at("scans"), &["CT", "PET"], false);
    succeed(precompute(&at("scans"), &at("s.zarr"), &["--test-cases", "brain_010"]));

    let store = Store::open(at("s.zarr")).unwrap();
    assert_eq!((store.cases(Split::Train).len(), store.cases(Split::Test)), (2, vec!["brain_010".to_string()]));
    assert_eq!((store.config().num_classes(), store.config().num_channels()), (3, 2));
    let source = ScanSource::open(&at("scans"), &store.config().preprocessing).unwrap();
    let scan = source.read(&source.cases()[1]).unwrap();
    let slice = DataSlice::new(&scan.image[2 * 720..], &scan.label[2 * 360..], [18, 20], 24);
    let mut batch = Batch::default();
    store.read_batch(Split::Train, &[(5, 0), (5, 2)], &mut batch).unwrap();
    let stored = [VariantKind::Identity, store.variants(Split::Train)[2].kind].map(|kind| slice.variant(kind, 32).image);
    assert_eq!(batch.images.to_vec(), stored.concat());

    let mut train = program(&["train", "--epochs", "2", "--batch-size", "4", "--warmup", "2"]);
    train.arg("--store").arg(at("s.zarr")).arg("--run").arg(at("run"));
    succeed(train);
    let eval = |store: &str, out: &str| {
        let mut eval = program(&["eval", "--save-nifti"]);
        eval.arg("--store").arg(at(store)).arg("--run").arg(at("run")).arg("--out").arg(at(out));
        eval
    };
    succeed(eval("s.zarr", "eval"));
    let table = fs::read_to_string(at("eval/table.md")).unwrap();
    assert!(table.contains("| tumour\\|core | edema |"), "{table}");
    let report = fs::read_to_string(at("eval/report.html")).unwrap();
    assert!(report.contains("tumour|core") && report.contains("edema") && !report.contains("liver"));
    assert!(at("eval/masks/brain_010.nii.gz").is_file());

    // The same scans with other channels are another store, and another model's.
    let error = assert_refused(precompute(&at("scans"), &at("s.zarr"), &["--test-cases", "brain_010", "--channels", "0"]));
    assert!(error.contains("channels"), "{error}");
    let error = assert_refused(precompute(&at("scans"), &at("s.zarr"), &[]));
    assert!(error.contains("test_cases"), "{error}");
    succeed(precompute(&at("scans"), &at("one.zarr"), &["--test-cases", "brain_010", "--channels", "0"]));
    let error = assert_refused(eval("one.zarr", "mixed"));
    assert!(error.contains("preprocessing.channels"), "{error}");
}

/// Labels that are lists: classes are the parts into which they divide the labels' values, and what is learned, validated and scored are the unions.
#[test]
fn regions_are_learned_and_scored_as_unions() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("scans");
    write_dataset(&root, &["CT"], true);
    let run = |line: &str| {
        let mut command = program(&line.split_whitespace().collect::<Vec<_>>());
        command.current_dir(folder.path());
        command
    };
    let write_labels = |labels: &str| {
        let json = dataset_json(&["CT"], labels).replacen('{', r#"{"regions_class_order": [2, 1], "#, 1);
        fs::write(root.join("dataset.json"), json).unwrap();
    };
    let precompute = "precompute --scans scans --store s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none";
    write_labels(r#"{"background": 0, "whole": [1, 3], "core": [1], "ignore": 4}"#);
    for line in [precompute, "inspect --scans scans", &format!("{precompute} --dry-run")] {
        let refused = assert_refused(run(line));
        assert!(refused.contains("dataset.json") && refused.contains("label 3 but no 2"), "{line}: {refused}");
        assert!(!folder.path().join("s.zarr").exists());
    }
    write_labels(r#"{"background": 0, "whole": [1, 2], "core": [1], "ignore": 3}"#);
    let inspected = succeed(run("inspect --scans scans --voxels"));
    assert!(inspected.contains("whole_only") && inspected.contains("core"), "{inspected}");
    succeed(run(precompute));
    let store = Store::open(folder.path().join("s.zarr")).unwrap();
    let config = store.config();
    assert_eq!((&config.class_names[..], config.ignored_class()), (&["core".to_string(), "whole_only".into()][..], Some(254)));
    assert_eq!(config.scored_names(), ["whole", "core"]);
    assert_eq!(store.mask(Split::Test, "brain_003").unwrap().labels, labels().iter().map(|&l| l as u8).collect::<Vec<_>>());

    succeed(run("train --store s.zarr --run run --epochs 30 --batch-size 3 --warmup 2 --lr 2e-3 --val-cases brain_002"));
    succeed(run("eval --store s.zarr --run run --protocol standard --save-nifti --out run/eval"));
    let read = |name: &str| folder.path().join(name);
    let rows: Vec<CaseRow> = read_rows(&read("run/eval/cases.parquet")).unwrap();
    assert_eq!(rows.iter().map(|row| row.organ.as_str()).collect::<Vec<_>>(), ["whole", "core"]);
    let mask = sam_ladder_formats::nifti::read_image(&read("run/eval/masks/brain_003.nii.gz")).unwrap().voxels;
    let count = |of: &dyn Fn(usize) -> bool| (0..VOXELS).filter(|&at| of(at)).count() as u64;
    for (row, classes) in rows.iter().zip([&[1.0f32, 2.0][..], &[1.0]]) {
        let [found, there] = [&mask, &labels()].map(|of| of.iter().map(|label| classes.contains(label)).collect::<Vec<_>>());
        let both = count(&|at| found[at] && there[at]);
        let sizes = [count(&|at| found[at]), count(&|at| there[at])];
        assert_eq!([row.predicted_voxels, row.reference_voxels], sizes, "{}", row.organ);
        let dice = 2.0 * both as f64 / (sizes[0] + sizes[1]) as f64;
        assert!((row.dice.unwrap() - dice).abs() < 1e-12, "{}: {dice}", row.organ);
    }
    let epochs: Vec<EpochRow> = read_rows(&read("run/epochs.parquet")).unwrap();
    assert!(epochs[29].loss < 0.8 * epochs[0].loss && epochs[29].val_dice.unwrap() > 0.5, "{:?}", epochs[29]);
    let report = fs::read_to_string(read("run/eval/report.html")).unwrap();
    assert!(report.contains("whole_only") && report.contains("whole"), "the pictures' classes have names, too");

    succeed(run("predict --scan scans/imagesTs/brain_003_0000.nii.gz --run run --out mask.nii.gz"));
    let volumes = fs::read_to_string(read("mask.volumes.csv")).unwrap();
    let voxels = |organ: &str| {
        let row = volumes.lines().find(|line| line.split(',').nth(1) == Some(organ)).unwrap_or_else(|| panic!("{volumes}"));
        row.split(',').nth(2).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(voxels("whole"), voxels("core") + voxels("whole_only"));
    assert_eq!(voxels("whole"), rows[0].predicted_voxels);
}

/// nnU-Net's `ignore`: class 254 in the store, no part in the loss, none in the scores.
#[test]
fn voxels_to_ignore_take_no_part() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("scans");
    write_dataset(&root, &["CT"], true);
    fs::write(root.join("dataset.json"), dataset_json(&["CT"], r#"{"background": 0, "a": 1, "b": 2, "ignore": 3}"#)).unwrap();
    // The upper half of every label is to be ignored.
    let ignored: Vec<f32> = labels().iter().enumerate().map(|(at, &label)| if at / 20 % 18 < 9 { 3.0 } else { label }).collect();
    for case in ["labelsTr/brain_001", "labelsTr/brain_002", "labelsTr/brain_010", "labelsTs/brain_003"] {
        write(&root.join(format!("{case}.nii.gz")), &ignored);
    }
    let (config, scans) = read_all(&root, &SourceOptions::default());
    assert_eq!((&config.preprocessing.label_map[..], config.ignored_class()), (&[0, 1, 2, 254][..], Some(254)));
    let expected: Vec<u8> = ignored.iter().map(|&label| if label == 3.0 { 254 } else { label as u8 }).collect();
    assert_eq!(scans[0].label, expected);
    let run = |line: &str| {
        let mut command = program(&line.split_whitespace().collect::<Vec<_>>());
        command.current_dir(folder.path());
        command
    };
    succeed(run("precompute --scans scans --store s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none"));
    succeed(run("verify --store s.zarr"));
    let store = Store::open(folder.path().join("s.zarr")).unwrap();
    let mut batch = Batch::default();
    store.read_batch(Split::Train, &[(0, 0)], &mut batch).unwrap();
    assert!(batch.labels[..8].iter().all(|&label| label == 254) && batch.labels[60] != 254, "{:?}", batch.labels);
    assert_eq!(store.mask(Split::Test, "brain_003").unwrap().labels, expected);
    // Of the first box no row is left, of the second the last seven.
    assert_eq!(store.slices(Split::Train)[0].voxels, [0, 7 * 7]);
    succeed(run("train --store s.zarr --run run --epochs 30 --batch-size 3 --warmup 2 --lr 2e-3 --val-cases brain_002"));
    succeed(run("audit --store s.zarr --run run --out audit"));
    succeed(run("eval --store s.zarr --run run --protocol standard --save-nifti --out run/eval"));
    let rows: Vec<CaseRow> = read_rows(&folder.path().join("run/eval/cases.parquet")).unwrap();
    let mask = sam_ladder_formats::nifti::read_image(&folder.path().join("run/eval/masks/brain_003.nii.gz")).unwrap().voxels;
    for (class, row) in (1u8..).zip(&rows) {
        let counted = |of: &dyn Fn(usize) -> bool| (0..VOXELS).filter(|&at| expected[at] != 254 && of(at)).count() as u64;
        assert_eq!(row.predicted_voxels, counted(&|at| mask[at] as u8 == class), "class {class}");
        assert_eq!(row.reference_voxels, counted(&|at| expected[at] == class), "class {class}");
    }
    let epochs: Vec<EpochRow> = read_rows(&folder.path().join("run/epochs.parquet")).unwrap();
    assert!(epochs.iter().all(|row| row.loss.is_finite() && row.val_dice.is_some()));
    assert!(epochs[29].loss < 0.8 * epochs[0].loss, "{} {}", epochs[0].loss, epochs[29].loss);
}
