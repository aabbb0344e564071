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
    for name in ["comparison.md", "table.tex", "img0001.nii.gz", "m.label", "m.pth", "m.safetensors", "m.onnx"] {
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
    keeps(at, "export --run @r --out @mine/m.onnx", "mine/m.onnx");
    // A run's own model is no export.
    keeps(at, "export --run @r --out @r/checkpoint.safetensors", "r/checkpoint.safetensors");
    let labels = format!("predict --scan {SCAN} --run @r --out @mine/m.nii.gz");
    keeps(at, &labels, "mine/m.label");

    succeed(on(at, "eval --compare @e @e --out @c"));
    replaces(at, "eval --compare @e @e --out @c");
    let table = format!("table --row a={} --out @t", at.join("e").display());
    succeed(on(at, &table));
    replaces(at, &table);
    // Texts that someone has edited since, with what belongs to them.
    for (words, file) in [("eval --compare @e @e --out @c", "c/comparison.md"), (&*table, "t/table.tex"), (&*table, "t/table.md")]
    {
        let ours = fs::read_to_string(at.join(file)).unwrap();
        fs::write(at.join(file), format!("a note\n{ours}")).unwrap();
        keeps(at, words, file);
        fs::write(at.join(file), ours).unwrap();
    }
    let predict = format!("predict --scan {SCAN} --run @r --out @m.nii.gz");
    succeed(on(at, &predict));
    replaces(at, &predict);
    let labels = fs::read_to_string(at.join("m.label")).unwrap();
    fs::write(at.join("m.label"), labels.replace("spleen", "Milz")).unwrap();
    keeps(at, &predict, "m.label");
    fs::write(at.join("m.label"), labels).unwrap();
    for name in ["m.pth", "m.safetensors", "m.onnx"] {
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

/// Everything below a folder: its names, links and bytes.
fn tree(at: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap();
        if kind.is_dir() {
            all.push((path.clone(), Vec::new()));
            all.extend(tree(&path));
        } else if kind.is_symlink() {
            all.push((path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
        } else {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

/// A refused `--store` leaves every file as it is, and no new file or folder, neither there nor where the masks would go.
#[test]
fn a_store_is_made_only_where_nothing_is() {
    let folder = workplace();
    let at = folder.path();
    for (name, file) in
        [("photos", "1.jpg"), ("web", "manifest.json"), ("dataset", "zarr.json"), ("slices", "train/slices.parquet")]
    {
        let path = at.join(name).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{\"mine\": 1}").unwrap();
    }
    fs::write(at.join("file"), "mine").unwrap();
    std::os::unix::fs::symlink("nowhere", at.join("link")).unwrap();
    let before = tree(at);
    // `s.zarr` is a store of other settings.
    for store in ["photos", "web", "dataset", "slices", "file", "file/below", "link", "s.zarr"] {
        for words in [
            "precompute --scans @scans --random-encoder 1 --image-size 32 --data-size 32 --augment none".to_string(),
            format!("predict --scan {SCAN} --run @r --out @new/masks"),
        ] {
            let error = assert_refused(on(at, &format!("{words} --store @{store}")));
            let after = tree(at);
            let changed: Vec<_> = after.iter().filter(|entry| !before.contains(entry)).map(|(path, _)| path).collect();
            assert!(after == before, "{words} --store {store} ({error}): {changed:?}");
        }
    }
    // An empty folder is nothing.
    fs::create_dir(at.join("empty")).unwrap();
    succeed(on(at, &format!("predict --scan {SCAN} --run @r --out @new/masks --store @empty")));
    assert!(at.join("new/masks/img0001.nii.gz").is_file() && at.join("empty/zarr.json").is_file());
}

/// What lies where scripts of jobs would go is kept; a script that nobody has changed is written anew.
#[test]
fn scripts_of_jobs_replace_only_their_like() {
    let folder = workplace();
    let at = folder.path();
    fs::write(at.join("slurm.toml"), "[job]\ntasks = 2\n").unwrap();
    fs::write(
        at.join("sweep.toml"),
        "[settings]\nlr = [1e-3]\nepochs = 1\n[search]\nmethod = \"grid\"\n[validation]\nfold = \"1/2\"\n",
    )
    .unwrap();
    let sweep = "sweep --store @s.zarr --config @sweep.toml --out @w --slurm @slurm.toml --slurm-script-only";
    let precompute = "precompute --scans @scans --random-encoder 0 --image-size 32 --data-size 32 --augment flips --store @n.zarr \
                      --slurm @slurm.toml --slurm-script-only";
    for (words, jobs, first, second) in
        [(sweep, "w.slurm", "sweep.sh", "final.sh"), (precompute, "n.zarr.slurm", "precompute.sh", "finish.sh")]
    {
        // A user's file is in the way of the second script: the first one is not written either.
        fs::create_dir(at.join(jobs)).unwrap();
        fs::write(at.join(jobs).join(second), "#!/bin/bash\necho mine\n").unwrap();
        let before = tree(at);
        let error = assert_refused(on(at, words));
        assert!(error.contains(second) && error.contains("hint: move it away"), "{error}");
        assert!(tree(at) == before, "{words}");
        fs::remove_file(at.join(jobs).join(second)).unwrap();
        succeed(on(at, words));
        succeed(on(at, words));
        let script = at.join(jobs).join(first);
        let edited = fs::read_to_string(&script).unwrap().replace("#SBATCH --requeue\n", "");
        fs::write(&script, &edited).unwrap();
        assert!(assert_refused(on(at, words)).contains(first));
        assert_eq!(fs::read_to_string(&script).unwrap(), edited);
        fs::write(at.join(jobs).join("jobs.json"), "mine").unwrap();
        fs::remove_file(&script).unwrap();
        assert!(assert_refused(on(at, words)).contains("jobs.json is damaged"));
        assert_eq!(fs::read(at.join(jobs).join("jobs.json")).unwrap(), b"mine");
    }
}
