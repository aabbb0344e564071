//! Nobody reads standard output or standard error, or their disk is full: every command does its work, writes its files and does not panic.

mod cli;

use cli::{program, succeed};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A command line, with `N` in place of the number of the try, and what it leaves.
const COMMANDS: [(&str, &str); 21] = [
    ("phantom --out pN --cases 2 --size 16 --depth 1", "pN/RawData/Training/img/img0001.nii.gz"),
    (
        "precompute --scans scans --store sN.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none",
        "sN.zarr/manifest.json",
    ),
    ("precompute --scans scans --store s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none --dry-run", ""),
    ("verify --store s.zarr", ""),
    ("train --store s.zarr --run rN --max-steps 1 --batch-size 2", "rN/checkpoint.safetensors"),
    ("sweep --store s.zarr --config sweep.toml --out wN", "wN/trials.parquet"),
    ("eval --store s.zarr --run r --out eN", "eN/cases.parquet"),
    ("eval --compare e e --out cN", "cN/comparison.md"),
    ("eval --compare e e", ""),
    ("predict --scan scans/RawData/Training/img/img0001.nii.gz --run r --out mN.nii", "mN.nii"),
    ("table --row a=e --out tN", "tN/table.md"),
    ("status --store s.zarr", ""),
    ("status --store s.zarr --json", ""),
    ("export --run r --out xN.pth", "xN.pth"),
    ("schema sweep", ""),
    ("completions bash", ""),
    ("man --out manN", "manN/sam-ladder.1"),
    ("--help", ""),
    ("eval --help", ""),
    ("help train", ""),
    ("--version", ""),
];

/// Command lines that are refused, each with its exit status.
const REFUSED: [(&str, i32); 4] =
    [("", 2), ("evaluate", 2), ("train --store s.zarr --run r --max-steps 1", 1), ("table --row a=nothing --out t", 1)];

fn typed(folder: &Path, line: &str) -> Command {
    let mut command = program(&line.split_whitespace().collect::<Vec<_>>());
    command.current_dir(folder);
    command
}

/// A pipe whose reader has gone.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn full() -> Stdio {
    fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "phantom --out scans --cases 3 --size 32 --depth 2",
        "precompute --scans scans --store s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none",
        "train --store s.zarr --run r --max-steps 1 --batch-size 2",
        "eval --store s.zarr --run r --out e",
    ] {
        succeed(typed(folder.path(), line));
    }
    let sweep = "[settings]\nlr = [1e-3]\nepochs = 1\nbatch_size = 2\n[validation]\nfold = \"1/2\"\n[budget]\ntrials = 1\n";
    fs::write(folder.path().join("sweep.toml"), sweep).unwrap();
    folder
}

#[test]
fn no_command_needs_a_reader() {
    let folder = workplace();
    let at = folder.path();
    for (line, left) in COMMANDS {
        let prints = {
            let output = typed(at, &line.replace('N', "0")).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            !output.stdout.is_empty()
        };
        // Standard output, standard error, and the exit status.
        let tries = [
            (closed(), Stdio::piped(), 0),
            (full(), Stdio::piped(), i32::from(prints)),
            (Stdio::null(), closed(), 0),
            (full(), full(), i32::from(prints)),
        ];
        for (number, (stdout, stderr, expected)) in tries.into_iter().enumerate() {
            let number = (number + 1).to_string();
            let line = line.replace('N', &number);
            let output = typed(at, &line).stdout(stdout).stderr(stderr).spawn().unwrap().wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(expected), "try {number} of {line}: {said}");
            assert!(!said.contains("panicked"), "{line}: {said}");
            if number == "2" && prints {
                assert!(said.contains("error: cannot write to standard output: No space left on device"), "{line}: {said}");
            }
            assert!(at.join(left.replace('N', &number)).exists(), "try {number} of {line} left nothing");
        }
    }
}

#[test]
fn no_refusal_needs_a_reader() {
    let folder = workplace();
    for (line, code) in REFUSED {
        for (stdout, stderr) in [(closed(), closed()), (full(), full())] {
            let status = typed(folder.path(), line).stdout(stdout).stderr(stderr).status().unwrap();
            assert_eq!(status.code(), Some(code), "{line:?}");
        }
    }
}
