//! What lies at an output is replaced only with `--force`, and only if the same command made it.

mod cli;

use cli::{assert_refused, on, succeed};
use std::fs;
use std::path::Path;

/// Phantoms, a store, a run, and two evaluations.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(on(at, "phantom --out @scans --cases 3 --size 32 --depth 2"));
    succeed(on(at, "precompute --scans @scans --store @s.zarr --random-encoder 0 --image-size 32 --data-size 32 --augment none"));
    succeed(on(at, "train --store @s.zarr --run @r --max-steps 1 --batch-size 2"));
    succeed(on(at, "eval --store @s.zarr --run @r --out @e"));
    folder
}

const SCAN: &str = "@scans/RawData/Training/img/img0001.nii.gz";

/// Runs a command that is refused with `--force` too, and leaves `file` as it is.
fn keeps(at: &Path, words: &str, file: &str) {
    let before = fs::read(at.join(file)).unwrap();
    for force in ["", " --force"] {
        let error = assert_refused(on(at, &format!("{words}{force}")));
        assert!(error.contains("hint: "), "{words}{force}: {error}");
        assert!(fs::read(at.join(file)).unwrap() == before, "{words}{force} changed {file}");
    }
    assert!(assert_refused(on(at, &format!("{words} --force"))).contains("is not replaced"), "{words}");
}

/// Runs a command whose own output is there: it is refused, and replaces it with `--force`.
fn replaces(at: &Path, words: &str) {
    let error = assert_refused(on(at, words));
    assert!(error.contains("--force"), "{words}: {error}");
    succeed(on(at, &format!("{words} --force")));
}

#[test]
fn an_evaluation_next_to_masks_of_predict() {
    let folder = workplace();
    let at = folder.path();
    fs::create_dir_all(at.join("study/masks")).unwrap();
    succeed(on(at, &format!("predict --scan {SCAN} --run @r --out @study/masks")));
    keeps(at, "eval --store @s.zarr --run @r --out @study --save-nifti", "study/masks/img0001.nii.gz");
    keeps(at, "eval --store @s.zarr --run @r --out @study", "study/masks/img0001.nii.gz");
    replaces(at, "eval --store @s.zarr --run @r --out @e");
    // Masks that were put next to an evaluation that had none.
    fs::create_dir(at.join("e/masks")).unwrap();
    fs::write(at.join("e/masks/corrected.nii.gz"), "by hand").unwrap();
    let words = "eval --store @s.zarr --run @r --out @e --save-nifti --force";
    assert!(assert_refused(on(at, words)).contains("corrected.nii.gz"));
    assert_eq!(fs::read(at.join("e/masks/corrected.nii.gz")).unwrap(), b"by hand");
}

#[test]
fn tables_masks_and_models_of_another_origin() {
    let folder = workplace();
    let at = folder.path();
    fs::create_dir(at.join("mine")).unwrap();
    for name in ["comparison.md", "table.tex", "img0001.nii.gz", "m.label", "m.pth", "m.safetensors"] {
        fs::write(at.join("mine").join(name), "years of work").unwrap();
    }
    keeps(at, "eval --compare @e @e --out @mine", "mine/comparison.md");
    keeps(
        at,
        "table --row a=@e --out @mine".replace("a=@e", &format!("a={}", at.join("e").display())).as_str(),
        "mine/table.tex",
    );
    keeps(at, &format!("predict --scan {SCAN} --run @r --out @mine"), "mine/img0001.nii.gz");
    keeps(at, "export --run @r --out @mine/m.pth", "mine/m.pth");
    keeps(at, "export --run @r --out @mine/m.safetensors", "mine/m.safetensors");
    // A run's own model is no export.
    keeps(at, "export --run @r --out @r/checkpoint.safetensors", "r/checkpoint.safetensors");
    let labels = format!("predict --scan {SCAN} --run @r --out @mine/m.nii.gz");
    keeps(at, &labels, "mine/m.label");

    succeed(on(at, "eval --compare @e @e --out @c"));
    replaces(at, "eval --compare @e @e --out @c");
    let table = format!("table --row a={} --out @t", at.join("e").display());
    succeed(on(at, &table));
    replaces(at, &table);
    let predict = format!("predict --scan {SCAN} --run @r --out @m.nii.gz");
    succeed(on(at, &predict));
    replaces(at, &predict);
    for name in ["m.pth", "m.safetensors"] {
        succeed(on(at, &format!("export --run @r --out @{name}")));
        replaces(at, &format!("export --run @r --out @{name}"));
    }
    succeed(on(at, "man --out @man"));
    succeed(on(at, "man --out @man"));
    fs::write(at.join("man/sam-ladder.1"), "mine").unwrap();
    assert!(assert_refused(on(at, "man --out @man")).contains("sam-ladder.1"));
}

#[test]
fn runs_and_sweeps_of_another_origin() {
    let folder = workplace();
    let at = folder.path();
    fs::create_dir(at.join("best")).unwrap();
    fs::copy(at.join("r/checkpoint.safetensors"), at.join("best/checkpoint.safetensors")).unwrap();
    let before = fs::read(at.join("best/checkpoint.safetensors")).unwrap();
    assert!(assert_refused(on(at, "train --store @s.zarr --run @best --max-steps 1 --batch-size 2")).contains("best"));
    assert_eq!(fs::read(at.join("best/checkpoint.safetensors")).unwrap(), before);
    let sweep = "[settings]\nlr = [1e-3]\nepochs = 1\nbatch_size = 2\n[validation]\nfold = \"1/2\"\n[budget]\ntrials = 1\n";
    fs::write(at.join("sweep.toml"), sweep).unwrap();
    fs::create_dir_all(at.join("w/trials/mine")).unwrap();
    fs::create_dir(at.join("x")).unwrap();
    fs::write(at.join("x/sweep.toml"), "# another one\n").unwrap();
    for name in ["w", "x"] {
        let error = assert_refused(on(at, &format!("sweep --store @s.zarr --config @sweep.toml --out @{name}")));
        assert!(error.contains("hint: choose another --out"), "{error}");
    }
    assert_eq!(fs::read_to_string(at.join("x/sweep.toml")).unwrap(), "# another one\n");
}

/// A second evaluation into one folder waits for nobody: it is refused.
#[test]
fn two_evaluations_into_one_folder() {
    let folder = workplace();
    let at = folder.path();
    let out = fs::File::open(at.join("e")).unwrap();
    out.lock().unwrap();
    let error = assert_refused(on(at, "eval --store @s.zarr --run @r --out @e --force"));
    assert!(error.contains("is being written by another process"), "{error}");
    drop(out);
    replaces(at, "eval --store @s.zarr --run @r --out @e");
}
