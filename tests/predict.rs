//! `predict`: a new scan's mask equals the one from store and `eval`, on the scan's own grid; inputs and outputs are checked.

mod cli;

use cli::{assert_refused, nifti, on, succeed};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sam_ladder_formats::nifti::{Geometry, NiftiVersion, read_image, write_nifti};
use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// All that a command says that fails: its warnings, too.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// Phantoms, a store of them in a number format, and a run; enough steps that masks have organs in them.
fn trained(at: &Path, sizes: &str, steps: usize, options: &str) {
    succeed(on(at, "phantom --out @scans --cases 3 --size 48 --depth 5 --seed 3"));
    succeed(on(at, &format!("precompute --scans @scans --store @s.zarr --random-encoder 3 {sizes} --augment none")));
    succeed(on(
        at,
        &format!(
            "train --store @s.zarr --run @run --epochs 60 --max-steps {steps} --batch-size 5 --warmup 5 --lr 2e-3 {options}"
        ),
    ));
    succeed(on(at, "eval --store @s.zarr --run @run --out @eval --save-nifti --scans @scans"));
}

#[test]
fn a_new_scans_mask_is_the_evaluations() {
    // Number formats round the model's input; both ways must round in the same way.
    for (sizes, steps, options) in [
        ("--image-size 64 --data-size 48", 60, ""),
        ("--image-size 32 --data-size 40 --dtype q8", 2, ""),
        ("--image-size 32 --data-size 40 --channels-from neighbours", 2, ""),
        ("--image-size 32 --data-size 40 --channels-from windows --windows bone,-125:275,liver", 2, ""),
        ("--image-size 32 --data-size 40 --rungs 2,11 --rung-channels 8", 2, ""),
        ("--image-size 32 --data-size 40", 9, "--neighbours 1 --decoder skips"),
        ("--image-size 32 --data-size 40 --half-labels", 9, "--decoder skips-half"),
        ("--image-size 32 --data-size 40 --rungs 2,11 --rung-channels 8", 9, "--ladder gated"),
        ("--image-size 48 --data-size 40 --rungs 0,5,11 --dtype q8", 4, "--ladder gated --neighbours 1 --side-network vit-tiny"),
        ("--image-size 32 --data-size 40 --rungs 1,11 --rung-projection none", 4, "--ladder gated --gate pixel"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        trained(at, sizes, steps, options);
        let scan = "@scans/RawData/Training/img/img0001.nii.gz";
        succeed(on(at, &format!("predict --scan {scan} --run @run --out @mask.nii.gz")));
        let mask = bytes(&at.join("mask.nii.gz"));
        assert_eq!(mask, bytes(&at.join("eval/masks/0001.nii.gz")), "{sizes}");
        if steps > 10 {
            assert!(mask[352..].iter().any(|&class| class > 0), "the mask has organs");
        }
        // The header is the scan's except for the voxels' type.
        let image = bytes(&at.join(&scan[1..]));
        for field in [40..56, 76..108, 123..124, 252..328, 344..348] {
            assert_eq!(mask[field.clone()], image[field.clone()], "bytes {field:?} of the header");
        }
        assert_eq!(mask[70..74], [2, 0, 8, 0], "uint8");
        check_volumes(at, &mask, steps > 10);
        for name in ["mask.label", "mask.ctbl"] {
            assert!(std::fs::read_to_string(at.join(name)).unwrap().contains("pancreas"), "{name}");
        }

        // Through a store: the same, and the encoder runs once.
        let kept = |out: &str| {
            let mut command =
                on(at, &format!("predict --scan @scans/RawData/Training/img --run @run --store @new.zarr --out @{out}"));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(bytes(&at.join(out).join("img0001.nii.gz")), mask);
            String::from_utf8(output.stderr).unwrap()
        };
        assert!(kept("kept").contains("15 slices encoded"));
        assert!(kept("again").contains("\n0 slices encoded"));
        assert!(at.join("kept/labels.label").is_file() && at.join("kept/labels.ctbl").is_file());
        let refused = assert_refused(on(at, "eval --store @new.zarr --run @run --out @e"));
        assert!(refused.contains("without a reference"), "{refused}");
        let refused = assert_refused(on(at, "train --store @new.zarr --run @r"));
        assert!(refused.contains("without labels"), "{refused}");
        succeed(on(at, "verify --store @new.zarr"));
    }
}

/// The table's rows are the mask's voxels, times the header's voxel; what is known of the training is the run's.
fn check_volumes(at: &Path, mask: &[u8], has_organs: bool) {
    let text = std::fs::read_to_string(at.join("mask.volumes.csv")).unwrap();
    let rows: Vec<Vec<&str>> =
        text.lines().filter(|line| line.starts_with("img0001,")).map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 8, "{text}");
    let pixdim = |axis: usize| f64::from(f32::from_le_bytes(mask[76 + 4 * axis..][..4].try_into().unwrap()));
    let voxel_ml = pixdim(1) * pixdim(2) * pixdim(3) / 1000.0;
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(at.join("run/config.json")).unwrap()).unwrap();
    for (index, row) in rows.iter().enumerate() {
        let voxels = mask[352..].iter().filter(|&&class| usize::from(class) == index + 1).count();
        assert_eq!((row[1], row[2]), (SYNAPSE_ORGANS[index], &*voxels.to_string()), "{text}");
        let ml: f64 = row[3].parse().unwrap();
        assert!((ml - voxel_ml * voxels as f64).abs() < 1e-3, "{ml} is not {voxels} of {voxel_ml}");
        // Case 0001 is a test scan; the other two are trained on, and phantoms have all organs.
        let trained = &record["training_volumes"][index];
        assert_eq!((row[6], row[7], &trained["cases"]), ("2", "2", &serde_json::json!(2)), "{text}");
        let [low, high]: [f64; 2] = [4, 5].map(|column| row[column].parse().unwrap());
        assert!(low > 0.0 && low <= high && (low - trained["low_ml"].as_f64().unwrap()).abs() < 1e-3, "{text}");
        let expected = match () {
            () if voxels == 0 => "missing",
            () if ml < 0.5 * low => "less than half",
            () if ml > 2.0 * high => "more than twice",
            () if ml < low => "below",
            () if ml > high => "above",
            () => "",
        };
        assert!(row[8].starts_with(expected) && (expected.is_empty() == row[8].is_empty()), "{text}");
    }
    assert!(!has_organs || rows.iter().any(|row| row[2] != "0"));
}

/// Rungs come from the run's own projection: with another run, alone or together, through a store or not, a mask is the evaluation's or refused.
#[test]
fn rungs_of_new_scans_are_made_by_the_runs_projection() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let store = |name: &str, rungs: &str| {
        let sizes = "--random-encoder 3 --image-size 32 --data-size 40 --augment none --rungs";
        succeed(on(at, &format!("precompute --scans @scans --store @{name}.zarr {sizes} {rungs}")));
    };
    let train = |store: &str, run: &str, options: &str| {
        let words = format!("train --store @{store}.zarr --run @{run} --epochs 60 --max-steps 5 --batch-size 5 --warmup 2");
        succeed(on(at, &format!("{words} --lr 2e-3 {options}")));
    };
    succeed(on(at, "phantom --out @scans --cases 3 --size 48 --depth 5 --seed 3"));
    store("s", "2,11 --rung-channels 8");
    store("other", "2,11 --rung-channels 8 --rung-projection random");
    train("s", "climbing", "--ladder gated");
    train("s", "plain", "--seed 2");
    train("s", "second", "--ladder gated --seed 3");
    train("other", "elsewhere", "--ladder gated");
    let runs = "--run @plain --run @climbing --run @second";
    succeed(on(at, &format!("eval --store @s.zarr {runs} --out @eval --save-nifti --scans @scans")));
    let scan = "@scans/RawData/Training/img/img0001.nii.gz";
    succeed(on(at, &format!("predict --scan {scan} {runs} --out @mask.nii.gz")));
    let mask = bytes(&at.join("mask.nii.gz"));
    assert_eq!(mask, bytes(&at.join("eval/masks/0001.nii.gz")));
    succeed(on(at, &format!("predict --scan {scan} {runs} --store @new.zarr --out @stored.nii.gz")));
    assert_eq!(bytes(&at.join("stored.nii.gz")), mask);
    assert_eq!(
        std::fs::read(at.join("new.zarr/rung_projection.safetensors")).unwrap(),
        std::fs::read(at.join("s.zarr/rung_projection.safetensors")).unwrap()
    );

    let refused = |words: &str| assert_refused(on(at, &format!("predict --scan {scan} --out @no.nii.gz {words}")));
    let error = refused("--run @climbing --run @elsewhere");
    assert!(error.contains("was trained on other rungs than") && error.contains("projection"), "{error}");
    // Another run's store: its rungs are others, even if its settings were the same.
    let error = refused("--run @elsewhere --store @new.zarr");
    assert!(error.contains("new.zarr") && error.contains("another --store"), "{error}");
    let error = refused("--checkpoint @climbing/checkpoint.safetensors");
    assert!(error.contains("a model with a ladder") && error.contains("pass --run too"), "{error}");
    let error = refused("--run @elsewhere --checkpoint @climbing/checkpoint.safetensors");
    assert!(error.contains("takes other rungs than"), "{error}");
    let error = assert_refused(on(at, "eval --store @other.zarr --run @climbing --out @no"));
    assert!(error.contains("was trained on tensors that") || error.contains("was trained on rungs that"), "{error}");
    let projection = at.join("climbing/rung_projection.safetensors");
    let mut damaged = std::fs::read(&projection).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&projection, damaged).unwrap();
    assert!(refused("--run @climbing").contains("rung_projection.safetensors: is damaged"));
    std::fs::remove_file(&projection).unwrap();
    assert!(refused("--run @climbing").contains("rung_projection.safetensors"));
    assert!(!at.join("no.nii.gz").exists() && !at.join("no").exists());
}

#[test]
fn any_nifti_goes_in_and_what_is_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 2 --size 32 --depth 2 --seed 3"));
    succeed(on(at, "precompute --scans @scans --store @s.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none"));
    succeed(on(at, "train --store @s.zarr --run @run --epochs 1 --batch-size 2"));

    // Oblique, with only the quaternion, of another shape, in both versions of the format; and a file that is not a scan.
    let scans = at.join("new");
    std::fs::create_dir(&scans).unwrap();
    let mut geometry = Geometry::aligned([3, 20, 28], [2.5, 0.7, 0.6]);
    geometry = Geometry { sform_code: 0, affine: [[0.0; 4]; 3], qform_code: 2, quaternion: [0.1, -0.2, 0.3], ..geometry };
    geometry.translation = [-31.5, 12.25, 1.0 / 3.0];
    let voxels: Vec<i16> = (0..3 * 20 * 28).map(|i| (i * 7 % 500 - 150) as i16).collect();
    write_nifti(&scans.join("plain.nii"), &geometry, &voxels).unwrap();
    geometry.version = NiftiVersion::Two;
    write_nifti(&scans.join("second.nii.gz"), &geometry, &voxels).unwrap();
    std::fs::write(scans.join("text.nii.gz"), b"no scan").unwrap();
    let command = || on(at, "predict --scan @new --run @run --out @masks");
    let refused = said(command());
    assert!(refused.contains("scan text") && refused.contains("1 of 3"), "{refused}");
    let second = read_image(&at.join("masks/second.nii.gz")).unwrap();
    assert_eq!(second.geometry, geometry);
    let volumes = || std::fs::read_to_string(at.join("masks/volumes.csv")).unwrap();
    let first_volumes = volumes();
    let of = |case: &str| first_volumes.lines().filter(|line| line.starts_with(&format!("{case},"))).count();
    assert_eq!((of("plain"), of("second"), of("text")), (8, 8, 0), "{first_volumes}");
    let plain = read_image(&at.join("masks/plain.nii.gz")).unwrap();
    assert_eq!(plain.geometry.quaternion, read_image(&scans.join("plain.nii")).unwrap().geometry.quaternion);
    assert_eq!(plain.voxels, second.voxels, "the same voxels make the same mask");

    // The same through a store: a scan whose voxels are bad does not cost the others' masks.
    std::fs::write(scans.join("text.nii.gz"), nifti([8, 8, 2], &[f32::NAN; 128])).unwrap();
    for _ in 0..2 {
        let refused = said(on(at, "predict --scan @new --run @run --store @new.zarr --out @stored --force"));
        assert!(refused.contains("1 of 3") && refused.contains("NaN in slice 0"), "{refused}");
        assert_eq!(read_image(&at.join("stored/second.nii.gz")).unwrap(), second);
        succeed(on(at, "verify --store @new.zarr"));
    }

    // Masks that are there are kept, replaced, or refused, as requested.
    let refused = assert_refused(command());
    assert!(refused.contains("--force") && refused.contains("--skip-existing"), "{refused}");
    std::fs::write(at.join("masks/plain.nii.gz"), b"mine").unwrap();
    std::fs::remove_file(scans.join("text.nii.gz")).unwrap();
    // A kept file must be a mask of its scan's grid; the others are made.
    std::fs::remove_file(at.join("masks/second.nii.gz")).unwrap();
    for wrong in [b"mine".to_vec(), nifti([8, 8, 2], &[0.0; 128]), b"mine".to_vec()] {
        std::fs::write(at.join("masks/plain.nii.gz"), wrong).unwrap();
        let refused = said(on(at, "predict --scan @new --run @run --out @masks --skip-existing"));
        assert!(refused.contains("scan plain is left out") && refused.contains("error: 1 of 2 scans"), "{refused}");
        assert!(at.join("masks/second.nii.gz").is_file());
    }
    let refused = assert_refused(on(at, "predict --scan @new --run @run --out @masks --force"));
    assert!(refused.contains("plain.nii.gz is not a mask by sam-ladder"), "{refused}");
    assert_eq!(std::fs::read(at.join("masks/plain.nii.gz")).unwrap(), b"mine");
    std::fs::remove_file(at.join("masks/plain.nii.gz")).unwrap();
    succeed(on(at, "predict --scan @new --run @run --out @masks --force"));
    assert_eq!(read_image(&at.join("masks/plain.nii.gz")).unwrap(), plain);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().filter(|line| !line.starts_with('#')).map(String::from).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&volumes()), sorted(&first_volumes), "a case's rows are replaced, not added");
    // A table that someone has changed, or of another origin, is not replaced, and no mask is made.
    for (changed, expected) in [(volumes() + "a note\n", "has been changed"), ("mine\n".into(), "is not a table of volumes")] {
        let ours = volumes();
        std::fs::write(at.join("masks/volumes.csv"), &changed).unwrap();
        let refused = assert_refused(on(at, "predict --scan @new --run @run --out @masks --force"));
        assert!(refused.contains("volumes.csv") && refused.contains(expected), "{refused}");
        assert_eq!(volumes(), changed);
        std::fs::write(at.join("masks/volumes.csv"), ours).unwrap();
    }

    // A user has corrected a voxel: the header still says who wrote the mask, its hash no longer fits.
    let mine = at.join("masks/plain.nii.gz");
    let mut corrected = bytes(&mine);
    *corrected.last_mut().unwrap() ^= 1;
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&corrected).unwrap();
    std::fs::write(&mine, packed.finish().unwrap()).unwrap();
    let refused = assert_refused(on(at, "predict --scan @new --run @run --out @masks --force"));
    assert!(refused.contains("plain.nii.gz has been changed since sam-ladder wrote it, and is not replaced"), "{refused}");
    assert_eq!(bytes(&mine), corrected);
    succeed(on(at, "predict --scan @new --run @run --out @masks --skip-existing"));

    // A mask never replaces its scan, and several scans do not go into one file.
    let before = std::fs::read(scans.join("second.nii.gz")).unwrap();
    let refused = assert_refused(on(at, "predict --scan @new/second.nii.gz --run @run --out @new --force"));
    assert!(refused.contains("is the scan itself"), "{refused}");
    assert_eq!(std::fs::read(scans.join("second.nii.gz")).unwrap(), before);
    let refused = assert_refused(on(at, "predict --scan @new --run @run --out @one.nii.gz"));
    assert!(refused.contains("folder"), "{refused}");
    assert!(!at.join("one.nii.gz").exists());
}

#[test]
fn what_the_run_was_trained_with_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 2 --size 32 --depth 2 --seed 3"));
    succeed(on(at, "precompute --scans @scans --store @s.zarr --random-encoder 3 --image-size 32 --data-size 32 --augment none"));
    succeed(on(at, "train --store @s.zarr --run @run --epochs 1 --batch-size 2"));
    std::fs::write(at.join("scan.nii"), nifti([8, 8, 2], &[0.0; 128])).unwrap();
    std::fs::write(at.join("sam.pth"), b"never read").unwrap();
    let refuse = |words: &str, expected: &[&str]| {
        let refused = assert_refused(on(at, &format!("predict --out @m.nii.gz --scan {words}")));
        for part in expected {
            assert!(refused.contains(part), "{words}: {refused}");
        }
    };
    refuse("@scan.nii --run @run --sam-checkpoint @sam.pth", &["random encoder", "leave --sam-checkpoint out", "run"]);
    refuse("@scan.nii --run @nowhere", &["nowhere", "not a run"]);
    refuse("@gone.nii --run @run", &["gone.nii"]);
    // A checkpoint without its run knows its sizes, but not which encoder it was trained with.
    refuse("@scan.nii --checkpoint @run/checkpoint.safetensors", &["checkpoint.safetensors", "--sam-checkpoint"]);
    refuse("@scan.nii --checkpoint @scan.nii", &["scan.nii"]);
    // A side network's weights by themselves are no model.
    sam_ladder_formats::state_dict::save_safetensors(
        at.join("cnn.safetensors"),
        &[(
            "conv1.weight".into(),
            candle_core::Tensor::zeros((64, 3, 7, 7), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(),
        )],
    )
    .unwrap();
    refuse(
        "@scan.nii --run @run --checkpoint @cnn.safetensors",
        &["conv1.weight", "(1 such key)", "hint: the file must hold a whole model"],
    );
    let refused = assert_refused(on(at, "predict --scan @scan.nii --run @run --out @scan.nii/masks"));
    assert!(refused.contains("scan.nii is a file, expected a folder"), "{refused}");
    // A run that was trained on a SAM checkpoint says which.
    let record = at.join("run/config.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let random = text.find("\"weights\"").unwrap();
    let end = random + text[random..].find('}').unwrap() + 1;
    let hash = "ab".repeat(32);
    let changed =
        format!("{}\"weights\": {{\"source\": \"checkpoint\", \"sha256\": \"{hash}\"}}{}", &text[..random], &text[end..]);
    std::fs::write(&record, changed).unwrap();
    refuse("@scan.nii --run @run", &["--sam-checkpoint", &hash]);
    refuse("@scan.nii --run @run --sam-checkpoint @sam.pth", &["sam.pth"]);
}

/// Probabilities of several runs, their entropy and the runs' agreement, computed a second way from the files; and the same through a store.
#[test]
fn several_runs_segment_together_and_say_where_they_disagree() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    trained(at, "--image-size 32 --data-size 32", 8, "");
    succeed(on(at, "train --store @s.zarr --run @two --epochs 60 --max-steps 3 --batch-size 5 --warmup 5 --lr 2e-3 --seed 5"));
    let scan = "@scans/RawData/Training/img/img0001.nii.gz";
    let both = format!("predict --scan {scan} --run @run --run @two --resample logits --average-reflections");
    let mut command = on(at, &format!("{both} --out @both.nii.gz --save-probabilities --save-entropy --statistics @both.csv"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let read = |name: &str| read_image(&at.join(name)).unwrap();
    let mask = read("both.nii.gz");
    let names: Vec<&str> = ["background"].into_iter().chain(SYNAPSE_ORGANS).collect();
    let file = |name: &str| format!("both.probability.{}.nii.gz", name.replace(' ', "_"));
    let probabilities: Vec<Vec<f32>> = names.iter().map(|name| read(&file(name)).voxels).collect();
    let entropy = read("both.entropy.nii.gz");
    assert_eq!(entropy.geometry.affine, mask.geometry.affine);
    for voxel in 0..mask.voxels.len() {
        let p: Vec<f32> = probabilities.iter().map(|plane| plane[voxel]).collect();
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 0.02, "voxel {voxel}: {p:?}");
        let most = p.iter().fold(0.0, |most: f32, p| most.max(*p));
        assert!(p[mask.voxels[voxel] as usize] > most - 0.005, "voxel {voxel}: {p:?}, {}", mask.voxels[voxel]);
        let expected = -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f32>() / 9.0f32.ln();
        assert!((entropy.voxels[voxel] - expected).abs() < 0.03, "voxel {voxel}: {} {expected}", entropy.voxels[voxel]);
    }
    // Each run alone, in the same way: their Dice with one another.
    let alone = |run: &str| {
        let line = format!("predict --scan {scan} --run @{run} --resample logits --average-reflections --out @{run}.nii.gz");
        succeed(on(at, &line));
        read(&format!("{run}.nii.gz")).voxels
    };
    let [one, two] = ["run", "two"].map(alone);
    let table = std::fs::read_to_string(at.join("both.csv")).unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().filter(|line| line.starts_with("img0001,")).map(|row| row.split(',').collect()).collect();
    assert_eq!(rows.len(), 8, "{table}");
    let warning = said.lines().find(|line| line.contains("the 2 runs disagree")).unwrap_or_default();
    let mut disagreed = 0;
    for (class, row) in (1..).zip(&rows) {
        let count = |of: &dyn Fn(usize) -> bool| (0..one.len()).filter(|&at| of(at)).count() as f64;
        let (a, b) = (|at: usize| one[at] as usize == class, |at: usize| two[at] as usize == class);
        let sum = count(&a) + count(&b);
        let expected = (sum > 0.0).then(|| 2.0 * count(&|at| a(at) && b(at)) / sum);
        assert_eq!(row[4].parse::<f64>().ok(), expected, "{table}");
        assert_eq!(row[2].parse::<usize>().unwrap(), mask.voxels.iter().filter(|&&found| found as usize == class).count());
        let named = expected.is_some_and(|dice| dice < 0.8);
        assert_eq!(warning.contains(&format!("{} {:.2}", row[1], expected.unwrap_or(1.0))), named, "{said}");
        disagreed += usize::from(named);
    }
    assert!(disagreed > 0, "{said}");
    // Through a store, which then keeps the reflections.
    succeed(on(at, &format!("{both} --store @kept.zarr --out @stored.nii.gz")));
    assert_eq!(bytes(&at.join("stored.nii.gz")), bytes(&at.join("both.nii.gz")));
    let refused = assert_refused(on(at, &format!("{both} --out @new.nii.gz --statistics @both.csv")));
    assert!(refused.contains("both.csv exists"), "{refused}");
    succeed(on(at, &format!("{both} --out @new.nii.gz --statistics @both.json")));
    let table: serde_json::Value = serde_json::from_slice(&std::fs::read(at.join("both.json")).unwrap()).unwrap();
    assert_eq!(table["rows"].as_array().unwrap().len(), 8);
    // A run counts once, under whatever name.
    let refused = assert_refused(on(at, &format!("predict --scan {scan} --run @run --run @two/../run --out @x.nii.gz")));
    assert!(refused.contains("two/../run twice"), "{refused}");
    // A new mask without maps does not keep those of an earlier one; a file of someone else's stays.
    std::fs::write(at.join("both.probability.liver.nii.gz"), "mine").unwrap();
    succeed(on(at, &format!("predict --scan {scan} --run @run --out @both.nii.gz --force")));
    let maps: Vec<String> = std::fs::read_dir(at).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let maps: Vec<&String> = maps.iter().filter(|name| name.starts_with("both.") && name.ends_with(".nii.gz")).collect();
    assert_eq!(maps.len(), 2, "{maps:?}");
    let refused = assert_refused(on(at, &format!("predict --scan {scan} --run @run --run @two --checkpoint @x --out @x.nii.gz")));
    assert!(refused.contains("--checkpoint replaces the model of one run"), "{refused}");
    // A call that adds to another keeps its rows, and makes anew those of the masks that it makes.
    let kept = std::fs::read_to_string(at.join("both.csv")).unwrap();
    let add = "--out @masks --save-entropy --statistics @more.csv --skip-existing";
    let scans = "@scans/RawData/Training/img";
    succeed(on(at, &format!("predict --scan {scan} --run @run --run @two --resample logits --average-reflections {add}")));
    let first = std::fs::read_to_string(at.join("more.csv")).unwrap();
    assert_eq!(first, kept);
    succeed(on(at, &format!("predict --scan {scans} --run @run --run @two --resample logits --average-reflections {add}")));
    let more = std::fs::read_to_string(at.join("more.csv")).unwrap();
    let scans = std::fs::read_dir(at.join("scans/RawData/Training/img")).unwrap().count();
    assert!(scans > 1 && more.lines().count() == 2 + 8 * scans, "{more}");
    assert!(first.lines().filter(|line| line.starts_with("img0001,")).all(|row| more.contains(row)), "{more}");
    std::fs::remove_file(at.join("masks/img0001.nii.gz")).unwrap();
    succeed(on(at, &format!("predict --scan {scan} --run @run {add}")));
    let again = std::fs::read_to_string(at.join("more.csv")).unwrap();
    assert_eq!(again.lines().count(), more.lines().count());
    assert!(again.lines().filter(|line| line.starts_with("img0001,")).all(|row| row.split(',').nth(4) == Some("")), "{again}");
    // A run that sees other images.
    succeed(on(at, "precompute --scans @scans --store @o.zarr --random-encoder 3 --image-size 48 --data-size 32 --augment none"));
    succeed(on(at, "train --store @o.zarr --run @other --epochs 1 --max-steps 0"));
    let refused = assert_refused(on(at, &format!("predict --scan {scan} --run @run --run @other --out @x.nii.gz")));
    assert!(refused.contains("image_size"), "{refused}");
}
