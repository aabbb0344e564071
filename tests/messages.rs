//! Snapshots of every command's `--help`, and of the errors after mistakes on the command line and in settings files.
//!
//! `INSTA_UPDATE=always cargo test --release --test messages` updates the snapshots after an intended change.

mod cli;

use cli::{program, refusal, succeed};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Every command.
const COMMANDS: [&str; 13] = [
    "phantom",
    "precompute",
    "verify",
    "train",
    "sweep",
    "eval",
    "predict",
    "table",
    "status",
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
        "precompute --scans scans --store t.zarr",
        "precompute --scans scans --store t.zarr --random-encoder 0 --test-augment reference",
        "train --store s.zarr --run r --device gpu",
        "sweep --store s.zarr --config c --out o --worker 3/2",
        "train --store s.zarr --run r --cache-size 20GB",
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
