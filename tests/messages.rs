//! Snapshots of every command's `--help`, and of the errors after mistakes on the command line and in settings files.
//!
//! `INSTA_UPDATE=always cargo test --release --test messages` updates the snapshots after an intended change.

mod cli;

use cli::{nifti, program, refusal, succeed, write_pair};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Every command.
const COMMANDS: [&str; 18] = [
    "phantom",
    "inspect",
    "precompute",
    "verify",
    "train",
    "learning-curve",
    "compare-encoders",
    "audit",
    "sweep",
    "eval",
    "predict",
    "table",
    "status",
    "doctor",
    "export",
    "schema",
    "completions",
    "man",
];

/// `--help` at a fixed width, whatever the terminal.
fn help(words: &[&str]) -> String {
    let mut command = program(words);
    command.arg("--help").env("COLUMNS", "100");
    succeed(command)
}

#[test]
fn help_texts() {
    insta::assert_snapshot!("help", help(&[]));
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help-{command}"), help(&[command]));
    }
}

/// The program in a folder, as a user types it.
fn typed(folder: &Path, line: &str) -> Command {
    let mut command = program(&line.split_whitespace().collect::<Vec<_>>());
    command.current_dir(folder).env("PATH", "");
    command
}

/// Each command line with its output.
fn refused(folder: &Path, lines: &[&str]) -> String {
    let printed = lines.iter().map(|line| format!("$ sam-ladder {line}\n{}\n", refusal(typed(folder, line), folder)));
    printed.collect::<Vec<_>>().join("\n")
}

/// A store of two phantoms, and a folder that is not a store.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "phantom --out scans --cases 5 --size 32 --depth 3",
        "precompute --scans scans --store s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none",
    ] {
        succeed(typed(folder.path(), line));
    }
    fs::create_dir(folder.path().join("empty")).unwrap();
    folder
}

#[test]
fn mistakes_on_the_command_line() {
    let folder = workplace();
    let lines = [
        "precompute --scans scans --store t.zarr --random-encoder 0 --image-size 30",
        "precompute --scans scans --store t.zarr --random-encoder 0 --image-size 16384",
        "precompute --scans scans --store t.zarr --random-encoder 0 --data-size 0",
        "precompute --scans scans --store t.zarr --random-encoder 0 --augment none --test-augment flips",
        "precompute --scans scans --store t.zarr --random-encoder 0 --window 5,5",
        "precompute --scans scans --store t.zarr",
        "precompute --scans scans --store t.zarr --sam-checkpoint missing.pth",
        "precompute --scans scans --store t.zarr --random-encoder 0 --slurm missing.toml",
        "train --store s.zarr --run r --lambda 1.5",
        "train --store s.zarr --run r --lr 0",
        "train --store s.zarr --run r --lr inf",
        "train --store s.zarr --run r --epochs 0",
        "train --store s.zarr --run r --weight-decay=-1",
        "train --store s.zarr --run missing --resume",
        "status",
        "sweep --store s.zarr --config missing.toml --out o",
        "table --row =empty --out t",
        "table --row a= --out t",
        "table --row a=empty --out t --name x/y",
    ];
    insta::assert_snapshot!(refused(folder.path(), &lines));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_in_a_cpu_build() {
    let folder = workplace();
    insta::assert_snapshot!(refused(folder.path(), &["train --store s.zarr --run r --device cuda:0"]));
}

/// Clap's errors for mistyped options, with our values.
#[test]
fn mistyped_options() {
    let folder = tempfile::tempdir().unwrap();
    let printed = [
        "trian",
        "train --store s.zarr --run r --lamda 0.5",
        "train --store s.zarr --run r --optimizer adamax",
        "train --store s.zarr --run r --epochs many",
        "train --run r",
        "precompute --scans scans --store t.zarr --random-encoder 0 --test-augment reference",
        "train --store s.zarr --run r --device gpu",
        "sweep --store s.zarr --config c --out o --worker 3/2",
        "train --store s.zarr --run r --cache-size 20GB",
        "eval --run r --out e",
        "eval --store s.zarr --out e",
        "predict --scan scan.nii --out m.nii",
        "sweep --store s.zarr --out o",
        "precompute --scans scans --store t.zarr --random-encoder 0 --sam-checkpoint sam.pth",
    ]
    .map(|line| {
        let output = typed(folder.path(), line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        format!("$ sam-ladder {line}\n{}", String::from_utf8(output.stderr).unwrap())
    });
    insta::assert_snapshot!(printed.join("\n"));
}

#[test]
fn mistakes_in_files() {
    let folder = workplace();
    let mut printed = String::new();
    let sweep =
        "[settings]\nlr = { min = 1e-4, max = 1e-2, scale = \"log\" }\n[validation]\nfold = \"1/2\"\n[budget]\ntrials = 2\n";
    for (from, to) in [
        ("[budget]", "[budgets]"),
        ("lr =", "rl ="),
        ("lr =", "gate_kind ="),
        ("max = 1e-2", "max = 1e-5"),
        ("lr =", "seed = 1\nlr ="),
        ("trials = 2", "trials = \"two\""),
        ("\"1/2\"", "\"3/2\""),
        ("lr =", "optimizer = \"sdg\"\nlr ="),
        ("lr =", "lambda = [0.5, 1.5]\nlr ="),
        ("trials = 2", ""),
        ("trials = 2", "trials 2"),
    ] {
        assert!(sweep.contains(from));
        fs::write(folder.path().join("sweep.toml"), sweep.replacen(from, to, 1)).unwrap();
        let error = refusal(typed(folder.path(), "sweep --store s.zarr --config sweep.toml --out o"), folder.path());
        printed += &format!("{from} → {to}\n{error}\n\n");
    }
    for text in
        ["[job]\ngpu = 1\n", "[jobs]\n", "[job]\ntasks = 0\n", "[job]\noptions = [\"--array=1-9\"]\n", "[job]\ntime = 1:00\n"]
    {
        fs::write(folder.path().join("slurm.toml"), text).unwrap();
        let line = "precompute --scans scans --store t.zarr --random-encoder 0 --image-size 32 --data-size 32 --slurm slurm.toml";
        printed += &format!("{text}{}\n\n", refusal(typed(folder.path(), line), folder.path()));
    }
    insta::assert_snapshot!(printed);
}

/// What is wrong, and what makes it so in a folder.
type Mistake<'a> = (&'a str, &'a dyn Fn(&Path));

/// The line's error after each mistake, in a new folder.
fn refused_after(mistakes: &[Mistake<'_>], line: &str, prepare: fn(&Path)) -> String {
    let print = |(mistake, change): &Mistake<'_>| {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        change(folder.path());
        format!("{mistake}\n{}\n", refusal(typed(folder.path(), line), folder.path()))
    };
    mistakes.iter().map(print).collect::<Vec<_>>().join("\n")
}

/// A NIfTI file of `[8, 8, 2]` voxels, all 0 but one.
fn with_voxel(value: f32) -> Vec<u8> {
    let mut voxels = [0.0; 128];
    voxels[20] = value;
    nifti([8, 8, 2], &voxels)
}

#[test]
fn mistakes_in_scans() {
    let training = |folder: &Path| folder.join("scans/RawData/Training");
    let prepare = |folder: &Path| write_pair(&folder.join("scans"), 5, &with_voxel(100.0), &with_voxel(6.0));
    let pair = |folder: &Path, image: &[u8], label: &[u8]| write_pair(&folder.join("scans"), 5, image, label);
    let good = with_voxel(6.0);
    let mistakes: [Mistake<'_>; 16] = [
        ("the folder is missing", &|folder| fs::rename(folder.join("scans"), folder.join("elsewhere")).unwrap()),
        ("no scans", &|folder| fs::remove_dir_all(folder.join("scans/RawData")).unwrap()),
        ("a file instead of a folder", &|folder| {
            fs::remove_dir_all(folder.join("scans")).unwrap();
            fs::write(folder.join("scans"), b"text").unwrap();
        }),
        ("two layouts", &|folder| fs::create_dir(folder.join("scans/imagesTr")).unwrap()),
        ("an image without a label", &|folder| fs::remove_file(training(folder).join("label/label0005.nii.gz")).unwrap()),
        ("a label without an image", &|folder| fs::remove_file(training(folder).join("img/img0005.nii.gz")).unwrap()),
        ("a name without a number", &|folder| fs::write(training(folder).join("img/liver.nii.gz"), b"").unwrap()),
        ("a case twice", &|folder| fs::write(training(folder).join("img/img0005.nii"), b"").unwrap()),
        ("shapes that differ", &|folder| pair(folder, &good, &nifti([8, 8, 3], &[0.0; 192]))),
        ("no NIfTI file", &|folder| pair(folder, b"text that is long enough to be no header at all", &good)),
        ("a truncated file", &|folder| pair(folder, &good[..500], &good)),
        ("an image of two axes", &|folder| {
            let mut flat = good.clone();
            flat[40] = 2;
            pair(folder, &flat, &good);
        }),
        ("voxels of complex numbers", &|folder| {
            let mut complex = good.clone();
            complex[70..72].copy_from_slice(&32i16.to_le_bytes());
            pair(folder, &complex, &good);
        }),
        ("a voxel that is not a number", &|folder| pair(folder, &with_voxel(f32::NAN), &good)),
        ("a label that is not in the map", &|folder| pair(folder, &good, &with_voxel(14.0))),
        ("a label between two classes", &|folder| pair(folder, &good, &with_voxel(1.5))),
    ];
    let line = "precompute --scans scans --store s.zarr --random-encoder 0 --image-size 16 --data-size 16 --augment none";
    insta::assert_snapshot!(refused_after(&mistakes, line, prepare));
}

/// nnU-Net's layout: one case with two channels and the classes `liver` and `tumour`.
fn write_nnunet(folder: &Path) {
    for (name, bytes) in [
        ("imagesTr/a_0000.nii", with_voxel(100.0)),
        ("imagesTr/a_0001.nii", with_voxel(50.0)),
        ("labelsTr/a.nii", with_voxel(2.0)),
        ("dataset.json", DATASET.into()),
    ] {
        let path = folder.join("scans").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

const DATASET: &str =
    r#"{"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "liver": 1, "tumour": 2}, "file_ending": ".nii"}"#;

#[test]
fn mistakes_in_nnunets_layout() {
    let dataset = |from: &'static str, to: &'static str| {
        assert!(DATASET.contains(from));
        move |folder: &Path| fs::write(folder.join("scans/dataset.json"), DATASET.replacen(from, to, 1)).unwrap()
    };
    let write =
        |name: &'static str, bytes: Vec<u8>| move |folder: &Path| fs::write(folder.join("scans").join(name), &bytes).unwrap();
    let remove = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join("scans").join(name)).unwrap();
    let mistakes: [Mistake<'_>; 16] = [
        ("no dataset.json", &remove("dataset.json")),
        ("not JSON", &dataset("}", "")),
        ("no channels", &dataset("channel_names", "channels")),
        ("no labels", &dataset("labels", "classes")),
        ("a channel without a number", &dataset("\"0\": \"T1\"", "\"T1\": \"0\"")),
        ("channels from 1", &dataset("{\"0\": \"T1\", ", "{")),
        ("too many channels", &dataset("\"1\": \"T2\"", "\"1\": \"T2\", \"2\": \"A\", \"3\": \"B\"")),
        ("a label twice", &dataset("\"tumour\": 2", "\"tumour\": 1")),
        ("a region with the background", &dataset("\"tumour\": 2", "\"tumour\": [0, 2]")),
        ("a label to ignore that is not the last", &dataset("\"tumour\": 2", "\"ignore\": 5")),
        ("only background", &dataset(", \"liver\": 1, \"tumour\": 2", "")),
        ("pictures", &dataset(".nii", ".png")),
        ("an image without its label", &remove("labelsTr/a.nii")),
        ("an image without its second channel", &remove("imagesTr/a_0001.nii")),
        ("an image of an unknown channel", &write("imagesTr/a_0002.nii", with_voxel(0.0))),
        ("a class that dataset.json lacks", &write("labelsTr/a.nii", with_voxel(3.0))),
    ];
    let line = "precompute --scans scans --store s.zarr --random-encoder 0 --image-size 16 --data-size 16 --augment none";
    let printed = refused_after(&mistakes, line, write_nnunet);
    let folder = tempfile::tempdir().unwrap();
    write_nnunet(folder.path());
    let of_options = refused(folder.path(), &[&format!("{line} --channels 7"), &format!("{line} --test-cases b")]);
    insta::assert_snapshot!(format!("{printed}\n{of_options}"));
}

/// Writes a safetensors file of float32 zeros.
fn write_tensor(path: &Path, key: &str, shape: &[usize]) {
    let bytes = vec![0u8; 4 * shape.iter().product::<usize>()];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes).unwrap();
    safetensors::serialize_to_file([(key, view)], None, path).unwrap();
}

#[test]
fn mistakes_with_checkpoints() {
    let folder = workplace();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("text.pth"), b"text").unwrap();
    fs::write(at("empty.safetensors"), b"").unwrap();
    write_tensor(&at("resnet.safetensors"), "conv1.weight", &[4]);
    write_tensor(&at("odd.safetensors"), "image_encoder.pos_embed", &[1, 4, 4, 100]);
    write_tensor(&at("large.safetensors"), "image_encoder.pos_embed", &[1, 4, 4, 1024]);
    write_tensor(&at("base.safetensors"), "image_encoder.pos_embed", &[1, 4, 4, 768]);
    let precompute = "precompute --scans scans --store t.zarr --image-size 32 --data-size 32 --augment none --sam-checkpoint";
    let train = "train --store s.zarr --run r --epochs 1 --batch-size 2";
    let lines = [
        format!("{precompute} text.pth"),
        format!("{precompute} empty.safetensors"),
        format!("{precompute} resnet.safetensors"),
        format!("{precompute} odd.safetensors"),
        format!("{precompute} large.safetensors --encoder vit_b"),
        format!("{precompute} base.safetensors"),
        format!("{train} --cnn-checkpoint missing.pth"),
        format!("{train} --cnn-checkpoint base.safetensors"),
        format!("{train} --cnn-checkpoint resnet.safetensors"),
        format!("{train} --init resnet.safetensors"),
    ];
    insta::assert_snapshot!(refused(folder.path(), &lines.each_ref().map(String::as_str)));
}

#[test]
fn mistakes_with_stores() {
    let folder = workplace();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("thesis")).unwrap();
    fs::write(at("thesis/chapter1.tex"), b"years of work").unwrap();
    let precompute = "precompute --scans scans --random-encoder 0 --image-size 32 --data-size 32 --augment none";
    let mut printed = refused(
        folder.path(),
        &[
            &format!("{precompute} --store thesis"),
            &format!("{precompute} --store s.zarr --dtype f32"),
            &format!("{precompute} --store s3://lab"),
            "train --store missing.zarr --run r",
            "train --store thesis --run r",
            "train --store scans/RawData/Training/img/img0005.nii.gz --run r",
            "verify --store missing.zarr",
            "status --store thesis",
        ],
    );
    fs::remove_file(at("s.zarr/train/images/c.0.0.0.0")).unwrap();
    let repair = "verify --store s.zarr --repair";
    let other = "precompute --scans other --store o.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none";
    succeed(typed(folder.path(), "phantom --out other --cases 5 --size 32 --depth 3 --seed 9"));
    succeed(typed(folder.path(), other));
    printed += "\na file of the store is missing\n\n";
    printed += &refused(
        folder.path(),
        &["train --store s.zarr --run r", "verify --store s.zarr", repair, &format!("{repair} --scans other")],
    );
    let manifest = fs::read_to_string(at("o.zarr/zarr.json")).unwrap();
    for (mistake, text) in [
        ("the manifest is damaged", manifest.replacen("\"complete\": true", "\"complete\": false", 1)),
        ("a store of another version", manifest.replacen("\"format_version\": ", "\"format_version\": 9", 1)),
    ] {
        assert_ne!(text, manifest);
        fs::write(at("o.zarr/zarr.json"), text).unwrap();
        printed += &format!("\n{mistake}\n\n{}", refused(folder.path(), &["train --store o.zarr --run r"]));
    }
    // Hashes of the two scans' files.
    let settings = {
        let mut settings = insta::Settings::clone_current();
        settings.add_filter("[0-9a-f]{64}", "SHA-256");
        settings
    };
    settings.bind(|| insta::assert_snapshot!(printed));
}

#[test]
fn mistakes_with_runs() {
    let folder = workplace();
    let train = "train --store s.zarr --run r --epochs 1 --batch-size 2";
    succeed(typed(folder.path(), train));
    let other = "precompute --scans scans --store o.zarr --random-encoder 7 --image-size 32 --data-size 32 --augment none";
    succeed(typed(folder.path(), other));
    let new = "train --store s.zarr --run n --epochs 1 --batch-size 2";
    // As a run on a store with a checkpoint's embeddings has it.
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("r/config.json")).unwrap()).unwrap();
    record["store"]["weights"] = serde_json::json!({"source": "checkpoint", "sha256": "0".repeat(64)});
    fs::create_dir(folder.path().join("c")).unwrap();
    fs::write(folder.path().join("c/config.json"), record.to_string()).unwrap();
    let lines = [
        train.to_string(),
        format!("{train} --resume --lr 0.5"),
        "train --store s.zarr --run r --batch-size 2 --resume --epochs 0".into(),
        "train --store o.zarr --run r --epochs 1 --batch-size 2 --resume".into(),
        "train --store s.zarr --run empty --resume".into(),
        format!("{new} --val-cases 0001"),
        format!("{new} --val-cases 0099"),
        format!("{new} --val-cases 0005,0006,0007"),
        format!("{new} --fold 1/9"),
        format!("{new} --fold 1"),
        format!("{new} --augment reference"),
        format!("{new} --cuda-graph --device cpu"),
        format!("{new} --precision f16 --device cpu"),
        "eval --store s.zarr --run empty --out e".into(),
        "eval --store o.zarr --run r --out e".into(),
        "eval --store s.zarr --run r --out e --average-reflections".into(),
        "eval --store s.zarr --run r --out e --baseline empty".into(),
        "eval --store s.zarr --run r --out e --split validation".into(),
        "eval --store s.zarr --zero-shot --out e --split validation".into(),
        "eval --compare empty r".into(),
        "export --run empty --out m.pth".into(),
        "export --run r --out m.bin".into(),
        "export --run r --out m.pth --sam-checkpoint missing.pth".into(),
        "export --run c --out m.onnx --with-encoder".into(),
    ];
    let printed = refused(folder.path(), &lines.each_ref().map(String::as_str));
    for line in ["eval --store s.zarr --run r --out e", "export --run r --out m.pth"] {
        succeed(typed(folder.path(), line));
    }
    let existing = refused(
        folder.path(),
        &[
            "eval --store s.zarr --run r --out e",
            "export --run r --out m.pth",
            "table --row a=e --row a=e --out t",
            "table --row a=e --out t --against b",
        ],
    );
    insta::assert_snapshot!(format!("{printed}\n{existing}"));
}

#[test]
fn mistakes_in_sweeps() {
    let folder = workplace();
    let write = |trials: usize| {
        let text = format!(
            "[settings]\nlr = [1e-4, 1e-3]\nepochs = 1\nbatch_size = 2\n[validation]\nfold = \"1/2\"\n[budget]\ntrials = {trials}\n"
        );
        fs::write(folder.path().join("sweep.toml"), text).unwrap();
    };
    write(1);
    let sweep = "sweep --store s.zarr --config sweep.toml --out o";
    succeed(typed(folder.path(), sweep));
    let printed = refused(
        folder.path(),
        &[
            sweep,
            "sweep --store s.zarr --out empty --resume",
            "sweep --store missing.zarr --config sweep.toml --out p",
            "sweep --store s.zarr --config sweep.toml --out scans",
            "sweep --store s.zarr --out o --resume --final --trial 99",
        ],
    );
    let text = fs::read_to_string(folder.path().join("sweep.toml")).unwrap();
    fs::write(folder.path().join("sweep.toml"), text.replace("1e-4, ", "")).unwrap();
    let other = refused(folder.path(), &[&format!("{sweep} --resume")]);
    insta::assert_snapshot!(format!("{printed}\n{other}"));
}

#[test]
fn mistakes_in_predictions() {
    let folder = workplace();
    let at = |name: &str| folder.path().join(name);
    succeed(typed(folder.path(), "train --store s.zarr --run r --epochs 1 --batch-size 2"));
    fs::write(at("scan.nii"), with_voxel(100.0)).unwrap();
    fs::create_dir(at("bad")).unwrap();
    fs::write(at("bad/cut.nii"), &with_voxel(100.0)[..400]).unwrap();
    write_tensor(&at("other.safetensors"), "conv1.weight", &[4]);
    let predict = "predict --scan scan.nii --out m.nii";
    let lines = [
        format!("{predict} --run empty"),
        format!("{predict} --run r --sam-checkpoint other.safetensors"),
        format!("{predict} --checkpoint other.safetensors"),
        format!("{predict} --checkpoint r/checkpoint.safetensors"),
        "predict --scan missing.nii --run r --out m.nii".into(),
        "predict --scan empty --run r --out m.nii".into(),
        "predict --scan scan.nii --run r --out scan.nii".into(),
        "predict --scan bad scan.nii --run r --out m.nii".into(),
        "predict --scan bad --run r --out masks".into(),
    ];
    let printed = refused(folder.path(), &lines.each_ref().map(String::as_str));
    succeed(typed(folder.path(), &format!("{predict} --run r")));
    let exists = refused(folder.path(), &[&format!("{predict} --run r")]);
    succeed(typed(folder.path(), "predict --scan scan.nii --run r --out other.nii --store new.zarr"));
    let unlabelled = refused(folder.path(), &["train --store new.zarr --run n", "eval --store new.zarr --run r --out e"]);
    insta::assert_snapshot!(format!("{printed}\n{exists}\n{unlabelled}"));
}

/// A bucket without credentials: none are in the environment, and no machine of Amazon's answers.
#[test]
fn a_bucket_without_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = typed(folder.path(), "verify --store s3://lab/s.zarr");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1");
    let printed = refusal(command, folder.path());
    assert!(printed.starts_with("error: cannot use s3://lab/s.zarr: "), "{printed}");
    // The first line is the library's, with the time that it took.
    insta::assert_snapshot!(printed.lines().last().unwrap());
}

#[test]
fn mistakes_with_phantoms() {
    let folder = workplace();
    let lines = [
        "phantom --out scans --cases 5 --size 32 --depth 3",
        "phantom --out p --cases 31",
        "phantom --out p --size 8",
        "phantom --out p --depth 0",
        "phantom --out scans/RawData/Training/img/img0005.nii.gz",
    ];
    insta::assert_snapshot!(refused(folder.path(), &lines));
}
