//! `--slurm` and `status` with stand-ins for Slurm's programs, which record their arguments. `make test-slurm` runs a real Slurm
//! (`tests/slurm_cluster.rs`).

#![cfg(unix)]

mod cli;

use cli::{assert_refused, program, succeed};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with two scans, options for Slurm, and stand-ins for its programs in `bin`.
struct Place {
    folder: tempfile::TempDir,
}

/// Records its arguments, one per line, and answers with the next number from 41.
const SBATCH: &str = "#!/bin/bash\nprintf '%s\\n' \"$@\" -- >> told\nn=$(( $(cat number 2>/dev/null || echo 40) + 1 ))\n\
                      [ -n \"$REFUSE_FROM\" ] && [ \"$n\" -ge \"$REFUSE_FROM\" ] && { echo 'sbatch: error: invalid partition' >&2; exit 1; }\n\
                      echo $n > number; echo \"$n;here\"\n";

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.tool("sbatch", SBATCH);
        place.tool("squeue", "#!/bin/bash\ncat queue 2>/dev/null\n");
        place.tool("sacct", "#!/bin/bash\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n");
        place.write("slurm.toml", "[job]\npartition = \"gpu\"\ntime = \"01:00:00\"\ntasks = 3\n[finish]\npartition = \"cpu\"\n");
        succeed(place.run("phantom --out scans --cases 3 --size 32 --depth 4"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: impl AsRef<Path>) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn tool(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path("bin")).unwrap();
        self.write(&format!("bin/{name}"), text);
        fs::set_permissions(self.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The program in the folder, with the stand-ins first on the PATH.
    fn run(&self, words: &str) -> Command {
        let mut command = program(&words.split_whitespace().collect::<Vec<_>>());
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        command.current_dir(self.folder.path()).env("PATH", path);
        command
    }

    fn precompute(&self, more: &str) -> Command {
        self.run(&format!(
            "precompute --scans scans --store s.zarr --random-encoder 1 --image-size 32 --data-size 32 --augment none {more}"
        ))
    }
}

#[test]
fn workers_and_the_job_that_finishes_are_submitted_in_turn() {
    let place = Place::new();
    let told = succeed(place.precompute("--slurm slurm.toml"));
    assert_eq!(told, "precompute is job 41, 3 tasks\nfinish is job 42, after job 41\n");
    let folder = place.folder.path().canonicalize().unwrap().join("s.zarr.slurm");
    let folder = folder.to_str().unwrap();
    let expected = format!(
        "--parsable\n{folder}/precompute.sh\n--\n--parsable\n--dependency=afterany:41\n--kill-on-invalid-dep=yes\n{folder}/finish.sh\n--\n"
    );
    assert_eq!(place.read("told"), expected);
    let workers = place.read("s.zarr.slurm/precompute.sh");
    let words = "precompute --scans scans --store s.zarr --random-encoder 1 --image-size 32 --data-size 32 --augment none";
    // A build folder may be a link: the program uses the resolved name.
    let program = std::fs::canonicalize(env!("CARGO_BIN_EXE_sam-ladder")).unwrap();
    let line = format!("{} {words} --worker \"$SLURM_ARRAY_TASK_ID/3\" &", program.display());
    assert!(workers.lines().any(|found| found == line), "{line} is not in\n{workers}");
    assert!(workers.contains("#SBATCH --partition=gpu\n") && workers.contains("#SBATCH --array=1-3\n"), "{workers}");
    let finish = place.read("s.zarr.slurm/finish.sh");
    assert!(finish.contains("#SBATCH --partition=cpu\n") && !finish.contains("--worker"), "{finish}");
    assert!(finish.contains(&format!("{words} &\n")), "{finish}");
    assert!(!place.path("s.zarr").exists(), "nothing is computed here");

    // Jobs that are still queued are not submitted again.
    place.write(
        "queue",
        "41_1|COMPLETED|0:09|n1|None\n41_2|RUNNING|0:03|n2|None\n41_[3]|PENDING|0:00||Resources\n42|PENDING|0:00||Dependency\n",
    );
    let error = assert_refused(place.precompute("--slurm slurm.toml"));
    assert!(error.contains("job 41") && error.contains("is still running") && error.contains("scancel 41"), "{error}");

    let text = succeed(place.run("status --store s.zarr"));
    let expected = "s.zarr does not exist yet\nprecompute job 41: 1 COMPLETED; 1 PENDING (Resources); 1 RUNNING on n2\n\
                    finish     job 42: 1 PENDING (Dependency)\n";
    assert_eq!(text, expected);

    // The script of a task is that task's work.
    for task in 1..=3 {
        let mut shell = Command::new("bash");
        shell.arg(place.path("s.zarr.slurm/precompute.sh")).current_dir(place.folder.path());
        succeed({
            shell.env("SLURM_ARRAY_TASK_ID", task.to_string());
            shell
        });
    }
    let status: serde_json::Value = serde_json::from_str(&succeed(place.run("status --store s.zarr --json"))).unwrap();
    assert_eq!(status["store"]["complete"], true);
    assert_eq!((&status["store"]["images_stored"], &status["store"]["images_total"]), (&12.into(), &12.into()));
    assert_eq!(status["jobs"].as_array().unwrap().len(), 4);
    assert_eq!((&status["jobs"][1]["kind"], &status["jobs"][1]["state"]), (&"precompute".into(), &"RUNNING".into()));
    succeed(place.precompute("--slurm slurm.toml"));
    assert_eq!(place.read("number").trim(), "42", "a complete store needs no job");

    // Without accounting, jobs that left the queue are unknown, which is reported.
    place.write("queue", "");
    let text = succeed(place.run("status --store s.zarr"));
    assert!(text.contains("s.zarr is complete: 12 of 12 images (100.0 %)"), "{text}");
    assert!(text.contains("3 UNKNOWN") && text.contains("note: jobs that ended a while ago"), "{text}");
    place.tool("sacct", "#!/bin/bash\nprintf '41_1|COMPLETED|00:00:09|n1|0:0\\n41_2|NODE_FAIL|00:01:00|n2|1:0\\n41_3|COMPLETED|00:00:09|n1|0:0\\n42|COMPLETED|00:00:01|n1|0:0\\n'\n");
    let text = succeed(place.run("status --store s.zarr"));
    assert!(text.contains("precompute job 41: 2 COMPLETED; 1 NODE_FAIL on n2 (1:0)\n") && !text.contains("note"), "{text}");
}

#[test]
fn scripts_can_be_seen_without_submitting() {
    let place = Place::new();
    let printed = succeed(place.precompute("--slurm slurm.toml --dry-run"));
    assert_eq!(printed.matches("#!/bin/bash").count(), 2, "{printed}");
    assert!(!printed.contains("--slurm") && !printed.contains("--dry-run"), "{printed}");
    assert!(!place.path("s.zarr.slurm").exists() && !place.path("told").exists());

    // Without Slurm, scripts are written and can be submitted by the printed commands.
    fs::remove_file(place.path("bin/sbatch")).unwrap();
    let printed = succeed(place.precompute("--slurm slurm.toml --slurm-script-only"));
    assert_eq!(fs::read_dir(place.path("s.zarr.slurm")).unwrap().count(), 2);
    place.tool("sbatch", SBATCH);
    let path = format!("{}:/usr/bin:/bin", place.path("bin").display());
    let mut shell = Command::new("bash");
    shell.args(["-c", &printed]).current_dir(place.folder.path()).env("PATH", path);
    succeed(shell);
    assert!(place.read("told").contains("--dependency=afterany:41"), "{}", place.read("told"));
}

#[test]
fn what_is_missing_or_wrong_is_said_with_what_to_do() {
    let place = Place::new();
    let error = assert_refused({
        let mut command = place.precompute("--slurm slurm.toml");
        command.env("REFUSE_FROM", "42");
        command
    });
    assert!(error.contains("job 41 is in the queue already") && error.contains("invalid partition"), "{error}");
    assert!(place.read("s.zarr.slurm/jobs.json").contains("41"), "what was submitted is written down");
    fs::remove_dir_all(place.path("s.zarr.slurm")).unwrap();

    fs::remove_file(place.path("bin/sbatch")).unwrap();
    let error = assert_refused({
        let mut command = place.precompute("--slurm slurm.toml");
        command.env("PATH", place.path("bin"));
        command
    });
    assert!(error.contains("no `sbatch` on the PATH") && error.contains("--slurm-script-only"), "{error}");

    place.write("slurm.toml", "[job]\npartition = \"gpu\"\ngpu = 1\n");
    let error = assert_refused(place.precompute("--slurm slurm.toml"));
    assert!(error.contains("slurm.toml:3:1: job.gpu: unknown key\nhint: did you mean `gpus`?"), "{error}");
    assert_refused(place.precompute("--slurm none.toml"));
    assert_refused(place.run("status"));
    assert!(!place.run("precompute --slurm-script-only").output().unwrap().status.success());
    assert!(!place.precompute("--slurm slurm.toml --worker 1/2").output().unwrap().status.success());
}
