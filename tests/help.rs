//! Runs every example of every command's `--help`, in the order of the work, on small phantoms and without SAM's weights.

mod cli;

use cli::{program, succeed};
use std::path::Path;

/// The commands, each after those whose output it needs.
const ORDER: [&str; 18] = [
    "phantom",
    "inspect",
    "precompute",
    "verify",
    "train",
    "learning-curve",
    "compare-encoders",
    "audit",
    "export",
    "eval",
    "predict",
    "sweep",
    "table",
    "status",
    "doctor",
    "schema",
    "completions",
    "man",
];
/// The files that a user writes for a sweep.
const SWEEP: &str = "[settings]\nepochs = 1\nlr = [1e-3, 3e-3]\n[search]\nmethod = \"grid\"\n[validation]\nfold = \"1/2\"\n";
const SLURM: &str = "[job]\ntasks = 2\ntime = \"10\"\n";

/// Options whose values are made small, so that an example is fast. Options that an example lacks are added for the commands in the second
/// list.
const SMALL: [(&str, &str); 6] =
    [("--size", "32"), ("--depth", "3"), ("--cases", "5"), ("--image-size", "32"), ("--data-size", "32"), ("--epochs", "1")];
const ADDED: [(&str, &[&str]); 4] = [
    ("phantom", &["--size", "--depth", "--cases"]),
    ("precompute", &["--image-size", "--data-size"]),
    ("train", &["--epochs"]),
    ("learning-curve", &["--epochs"]),
];
/// Options that need published files.
const DROPPED: [&str; 2] = ["--sam-checkpoint", "--cnn-checkpoint"];

/// The examples of a `--help`: lines that start with the program's name below `Examples:`, continued after a backslash.
fn examples(help: &str) -> Vec<Vec<String>> {
    let Some((_, examples)) = help.split_once("Examples:\n") else { return Vec::new() };
    let joined = examples.replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| line.strip_prefix("  sam-ladder "));
    lines.map(|line| line.split_whitespace().map(String::from).collect()).collect()
}

fn commands() -> Vec<String> {
    let help = succeed(program(&["--help"]));
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let names = names.filter_map(|line| line.split_whitespace().next()).map(String::from);
    names.filter(|name| name != "help").collect()
}

/// An example's words as run: small, without published weights.
fn made_small(words: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut words_left = words.iter();
    while let Some(word) = words_left.next() {
        if word == "--encoder-checkpoint" {
            words_left.next();
            out.extend(["--encoder", "dinov2_vits14_reg"].map(String::from));
        } else if DROPPED.contains(&word.as_str()) {
            words_left.next();
            if words[0] == "precompute" {
                out.extend(["--random-encoder", "0"].map(String::from));
            }
        } else if let Some((_, small)) = SMALL.iter().find(|(option, _)| option == word) {
            words_left.next();
            out.extend([word.clone(), small.to_string()]);
        } else {
            out.push(word.replace("/data/RawData", "scans/RawData"));
        }
    }
    let added = ADDED.iter().filter(|(command, _)| *command == words[0]).flat_map(|(_, options)| options.iter());
    for option in added {
        if !out.iter().any(|word| word == option) {
            let (_, small) = SMALL.iter().find(|(name, _)| name == option).unwrap();
            out.extend([option.to_string(), small.to_string()]);
        }
    }
    out
}

fn run(folder: &Path, words: &[String]) {
    let mut command = program(&[]);
    command.args(words).current_dir(folder);
    succeed(command);
}

#[test]
fn every_example_runs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for command in commands() {
        assert!(ORDER.contains(&command.as_str()), "{command} is not in the order of the work");
    }
    std::fs::write(at.join("sweep.toml"), SWEEP).unwrap();
    std::fs::write(at.join("slurm.toml"), SLURM).unwrap();
    for command in ORDER {
        let help = succeed(program(&[command, "--help"]));
        let examples = examples(&help);
        assert!(!examples.is_empty(), "{command} --help has no examples");
        if command == "predict" {
            // The user's own files: scans, and a checkpoint of the published code.
            let image = |case: &str| at.join(format!("scans/RawData/Training/img/img{case}.nii.gz"));
            std::fs::create_dir(at.join("new-scans")).unwrap();
            std::fs::copy(image("0001"), at.join("patient.nii.gz")).unwrap();
            std::fs::copy(image("0005"), at.join("new-scans/a.nii.gz")).unwrap();
            std::fs::copy(image("0006"), at.join("new-scans/b.nii.gz")).unwrap();
        }
        for example in examples {
            assert_eq!(example[0], command);
            let mut words = made_small(&example);
            // Without SAM's weights the exported file has no image encoder, so `predict` also needs the run that knows it.
            if let Some(at_name) = words.iter().position(|word| word == "epoch_194.pth") {
                words[at_name] = "model.pth".into();
                if command == "predict" {
                    words.extend(["--run", "runs/first"].map(String::from));
                }
            }
            run(at, &words);
        }
    }
    assert!(
        at.join("mask.nii.gz").is_file() && at.join("masks/b.nii.gz").is_file() && at.join("man1/sam-ladder-predict.1").is_file()
    );
    assert!(at.join("sweeps/first/final/eval/report.html").is_file() && at.join("tables/ablation.tex").is_file());
}

#[test]
fn examples_name_existing_options() {
    for command in commands() {
        let help = succeed(program(&[&command, "--help"]));
        let (options, _) = help.split_once("Examples:\n").unwrap_or((&help, ""));
        for example in examples(&help) {
            assert_eq!(example[0], command);
            for option in example.iter().filter(|word| word.starts_with("--")) {
                // `--published=ablation` in an example, `--published[=<ROWS>]` in the list.
                let name = |word: &str| word.split(['=', '[', ',']).next().unwrap_or_default().to_string();
                let listed = options.split_whitespace().any(|word| name(word) == name(option));
                assert!(listed, "{command} --help has an example with {option}, and no such option");
            }
        }
    }
}
