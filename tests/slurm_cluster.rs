//! `--slurm` with a real Slurm: a cluster of two nodes on this machine. `make test-slurm` starts it (`slurm_cluster/with-slurm.sh`), runs
//! these tests and stops it.

#![cfg(unix)]

mod cli;
#[path = "common/folders.rs"]
mod folders;

use cli::{program, succeed};
use folders::{assert_same_files, files};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for anything on the cluster.
const PATIENCE: Duration = Duration::from_secs(420);

/// A folder with a name that breaks careless scripts.
struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    /// With scans of the given numbers of slices, and options for Slurm.
    fn new(depth: usize, options: &str) -> Self {
        assert!(std::env::var_os("SLURM_CLUSTER").is_some(), "run it by `make test-slurm`");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it's \"50%\" $HOME #1 &");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("slurm.toml"), options).unwrap();
        let place = Place { _folder: folder, path };
        succeed(place.run(&format!("phantom --out scans --cases 3 --size 64 --depth {depth} --seed 5")));
        place
    }

    fn run(&self, words: &str) -> Command {
        let mut command = program(&words.split_whitespace().collect::<Vec<_>>());
        command.current_dir(&self.path);
        command
    }

    fn precompute(&self, store: &str, more: &str) -> Command {
        self.run(&format!(
            "precompute --scans scans --store {store} --random-encoder 1 --image-size 64 --data-size 64 --augment flips --batch-size 1 {more}"
        ))
    }

    /// Content of a store made by one undisturbed process.
    fn expected(&self) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
        succeed(self.precompute("alone.zarr", "").tap("--device cpu"));
        files(&self.path.join("alone.zarr"))
    }

    fn status(&self, what: &str) -> Value {
        serde_json::from_str(&succeed(self.run(&format!("status {what} --json")))).unwrap()
    }

    /// Requests the status until it is as wanted.
    fn wait(&self, what: &str, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status(what);
            if is(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{wanted}: {status:#}\n{}\n{}", slurm("squeue", &[]), self.logs());
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Every log of every job.
    fn logs(&self) -> String {
        let mut text = String::new();
        for folder in ["s.zarr.slurm", "sweep.slurm"] {
            for entry in fs::read_dir(self.path.join(folder)).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    text +=
                        &format!("--- {}\n{}", path.file_name().unwrap().to_string_lossy(), fs::read_to_string(&path).unwrap());
                }
            }
        }
        text
    }
}

/// Adds words to a command.
trait Tap {
    fn tap(self, words: &str) -> Self;
}

impl Tap for Command {
    fn tap(mut self, words: &str) -> Self {
        self.args(words.split_whitespace());
        self
    }
}

fn slurm(program: &str, arguments: &[&str]) -> String {
    succeed({
        let mut command = Command::new(program);
        command.args(arguments);
        command
    })
}

fn jobs<'a>(status: &'a Value, kind: &str) -> Vec<&'a Value> {
    status["jobs"].as_array().unwrap().iter().filter(|job| job["kind"] == kind).collect()
}

fn all_are(status: &Value, state: &str) -> bool {
    let jobs = status["jobs"].as_array().unwrap();
    !jobs.is_empty() && jobs.iter().all(|job| job["state"] == state)
}

fn restarts(job: u64) -> u32 {
    let told = slurm("scontrol", &["show", "job", &job.to_string(), "--oneliner"]);
    told.split_whitespace().filter_map(|word| word.strip_prefix("Restarts=")).map(|n| n.parse::<u32>().unwrap()).max().unwrap()
}

/// The processes of this machine that die with a node: those that run its job, and its daemon.
fn processes_of_node(node: &str) -> Vec<u32> {
    let cluster = PathBuf::from(std::env::var_os("SLURM_CLUSTER").unwrap());
    let daemon: u32 = fs::read_to_string(cluster.join(format!("slurmd-{node}.pid"))).unwrap().trim().parse().unwrap();
    let conf = std::env::var("SLURM_CONF").unwrap();
    let mut found = vec![daemon];
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read =
            |name: &str| fs::read(path.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let environment = read("environ");
        let has = |variable: &str| environment.split('\0').any(|found| found == variable);
        if has(&format!("SLURMD_NODENAME={node}")) && has(&format!("SLURM_CONF={conf}")) {
            found.push(pid);
            // The daemon of the job's step, which is not ours by its environment.
            let status = read("status");
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(|pid| pid.trim().to_string());
            if let Some(parent) = parent
                && fs::read_to_string(format!("/proc/{parent}/comm")).is_ok_and(|name| name.trim() == "slurmstepd")
            {
                found.push(parent.parse().unwrap());
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn kill(pids: &[u32]) {
    signal("-KILL", pids);
}

fn signal(name: &str, pids: &[u32]) {
    let mut command = Command::new("kill");
    command.arg(name).args(pids.iter().map(u32::to_string));
    let _ = command.output().unwrap();
}

/// The programs that Slurm's jobs run on this machine.
fn programs() -> Vec<u32> {
    let is_program = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sam-ladder");
    ["n1", "n2"].into_iter().flat_map(processes_of_node).filter(is_program).collect()
}

/// A line of /proc/PID/status; empty when the process is gone.
fn status_of(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_string()
}

fn is_held(pid: u32) -> bool {
    status_of(pid, "State:").starts_with('T')
}

/// Stops the programs of the jobs until Slurm has signalled each to end, and then continues them, so that none finishes before.
fn hold_until_told(programs: &[u32]) {
    const TERM: u64 = 1 << 14;
    assert!(!programs.is_empty(), "no program is at work: {}", slurm("squeue", &[]));
    let start = Instant::now();
    let wait_until = |what: &str, is: &dyn Fn(u32) -> bool| {
        while !programs.iter().all(|pid| is(*pid)) {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", slurm("squeue", &[]));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    signal("-STOP", programs);
    wait_until("the programs are held", &|pid| is_held(pid) || status_of(pid, "State:").is_empty());
    // Slurm ends the hold itself where it sends TERM to all of a job; where it tells the job's shell, the shell's TERM waits for the program.
    let pending = |pid| u64::from_str_radix(&status_of(pid, "ShdPnd:"), 16).unwrap_or(0);
    wait_until("the programs are told to end", &|pid| pending(pid) & TERM != 0 || !is_held(pid));
    signal("-CONT", programs);
}

fn start_node(node: &str) {
    slurm("slurmd", &["-N", node]);
    let start = Instant::now();
    while !slurm("sinfo", &["--noheader", "--Node", &format!("--nodes={node}"), "--format=%T"]).contains("idle") {
        assert!(start.elapsed() < PATIENCE, "node {node} comes back: {}", slurm("sinfo", &[]));
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Whether a store has some of its images, and not all.
fn is_under_way(status: &Value) -> bool {
    let stored = status["store"]["images_stored"].as_u64().unwrap();
    stored >= 2 && stored + 6 < status["store"]["images_total"].as_u64().unwrap()
}

fn store_folder(place: &Path) -> PathBuf {
    place.join("s.zarr")
}

#[test]
#[ignore = "needs a Slurm cluster: make test-slurm"]
fn workers_of_an_array_make_the_store_of_one_process() {
    let options = "[job]\ntasks = 3\ntime = \"10\"\ncpus-per-task = 1\nsetup = [\"export SETUP_WAS_RUN=yes\"]\noptions = [\"--comment=it's a test\"]\n";
    // A different program from the one that submits, as in a container.
    let wrapper = r#"echo "by the wrapper, setup: $SETUP_WAS_RUN"; exec "$0" "$@""#;
    let place = Place::new(6, &format!("{options}program = ['sh', '-c', '{wrapper}', '{}']\n", env!("CARGO_BIN_EXE_sam-ladder")));
    let expected = place.expected();
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    let status = place.wait("--store s.zarr", "every job is completed", |status| all_are(status, "COMPLETED"));
    assert_eq!((jobs(&status, "precompute").len(), jobs(&status, "finish").len()), (3, 1));
    assert_eq!(status["store"]["complete"], true, "{}", place.logs());
    assert_same_files(&store_folder(&place.path), &expected, "a job array");
    // Each task has its log, in the folder with the careless name.
    let logs = place.logs();
    assert_eq!(logs.matches("--- precompute-").count(), 3, "{logs}");
    assert_eq!(logs.matches("--- finish-").count(), 1, "{logs}");
    assert_eq!(logs.matches("by the wrapper, setup: yes").count(), 4, "{logs}");
}

#[test]
#[ignore = "needs a Slurm cluster: make test-slurm"]
fn a_task_whose_time_is_over_resumes_after_the_queue() {
    // Slurm counts time in minutes, and warns up to a minute late; 55 s before the end of a minute is shortly after the start.
    let place =
        Place::new(60, "[job]\ntasks = 1\ntime = \"1\"\ngrace-seconds = 55\n[finish]\ntime = \"10\"\ngrace-seconds = 60\n");
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    place.wait("--store s.zarr", "the task is at work", is_under_way);
    hold_until_told(&programs());
    let status = place.wait("--store s.zarr", "the first task was requeued", |status| {
        let job = jobs(status, "precompute")[0]["job"].as_u64().unwrap();
        restarts(job) > 0
    });
    let stored = status["store"]["images_stored"].as_u64().unwrap();
    // A slow machine needs many rounds of a minute, and Slurm keeps a requeued job back for two: the second round may take its time.
    slurm("scontrol", &["update", &format!("JobId={}", jobs(&status, "precompute")[0]["job"]), "TimeLimit=10"]);
    let status = place.wait("--store s.zarr", "every job is completed", |status| all_are(status, "COMPLETED"));
    assert!(stored > 0 && status["store"]["complete"] == true, "{}", place.logs());
    let logs = place.logs();
    assert!(logs.contains("stopping: the shards in flight are finished first"), "{logs}");
    assert!(logs.contains("back to the queue"), "{logs}");
    assert_same_files(&store_folder(&place.path), &place.expected(), "a task that was requeued");
}

/// The program of one task of an array, at work.
fn program_of_task(place: &Place, task: u32) -> u32 {
    let start = Instant::now();
    loop {
        let is_its = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).split('\0').any(|found| found == format!("SLURM_ARRAY_TASK_ID={task}"))
        };
        if let Some(pid) = programs().into_iter().find(is_its) {
            return pid;
        }
        assert!(start.elapsed() < PATIENCE, "task {task} is at work: {}\n{}", slurm("squeue", &[]), place.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "needs a Slurm cluster: make test-slurm"]
fn of_an_array_only_the_task_whose_time_is_over_goes_back_to_the_queue() {
    let place = Place::new(60, "[job]\ntasks = 3\ntime = \"10\"\ncpus-per-task = 1\ngrace-seconds = 55\n");
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    let held: Vec<u32> = (1..=3).map(|task| program_of_task(&place, task)).collect();
    // None of them ends before the others have met their fate.
    signal("-STOP", &held);
    let array = jobs(&place.status("--store s.zarr"), "precompute")[0]["job"].as_u64().unwrap();
    let task = |task: u32| format!("{array}_{task}");
    let restarts = |name: u32| {
        let told = slurm("scontrol", &["show", "job", &task(name), "--oneliner"]);
        told.split_whitespace().find_map(|word| word.strip_prefix("Restarts=")).unwrap().parse::<u32>().unwrap()
    };
    slurm("scancel", &[&task(3)]);
    slurm("scontrol", &["update", &format!("JobId={}", task(2)), "TimeLimit=1"]);
    hold_until_told(&held[1..2]);
    let start = Instant::now();
    while restarts(2) == 0 {
        assert!(start.elapsed() < PATIENCE, "task 2 is requeued: {}\n{}", slurm("squeue", &[]), place.logs());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(restarts(1), 0, "a task that has time goes on");
    slurm("scontrol", &["update", &format!("JobId={}", task(2)), "TimeLimit=10"]);
    signal("-CONT", &held);
    let status = place.wait("--store s.zarr", "every job has ended", |status| {
        let jobs = status["jobs"].as_array().unwrap();
        jobs.iter().all(|job| job["state"] == "COMPLETED" || job["state"] == "CANCELLED")
    });
    let state_of =
        |number: u64| jobs(&status, "precompute").into_iter().find(|job| job["task"] == number).unwrap()["state"].clone();
    assert_eq!([1, 2, 3].map(state_of), ["COMPLETED", "COMPLETED", "CANCELLED"], "{status:#}");
    assert_eq!(place.logs().matches("back to the queue").count(), 1, "{}", place.logs());
    // The job after the array makes what the cancelled task has left.
    assert_eq!(status["store"]["complete"], true, "{}", place.logs());
    assert_same_files(&store_folder(&place.path), &place.expected(), "an array of which a task was requeued and one cancelled");
}

#[test]
#[ignore = "needs a Slurm cluster: make test-slurm"]
fn a_preempted_task_resumes_and_a_cancelled_one_does_not() {
    let place = Place::new(30, "[job]\ntasks = 2\ntime = \"10\"\npartition = \"low\"\ncpus-per-task = 2\n");
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    place.wait("--store s.zarr", "both tasks are at work", |status| {
        is_under_way(status) && jobs(status, "precompute").iter().all(|job| job["state"] == "RUNNING")
    });
    // Something urgent takes both nodes for a while.
    let urgent = slurm(
        "sbatch",
        &["--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"],
    );
    hold_until_told(&programs());
    let first = jobs(&place.status("--store s.zarr"), "precompute")[0]["job"].as_u64().unwrap();
    place.wait("--store s.zarr", "the tasks were preempted", |_| restarts(first) > 0);
    let status = place.wait("--store s.zarr", "every job is completed", |status| all_are(status, "COMPLETED"));
    assert_eq!(status["store"]["complete"], true, "{}", place.logs());
    assert!(place.logs().contains("stopping: the shards in flight"), "{}\n{urgent}", place.logs());
    assert_same_files(&store_folder(&place.path), &place.expected(), "tasks that were preempted");

    let place = Place::new(30, "[job]\ntasks = 2\ntime = \"10\"\n");
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    let status = place.wait("--store s.zarr", "the tasks are at work", is_under_way);
    for kind in ["finish", "precompute"] {
        slurm("scancel", &[&jobs(&status, kind)[0]["job"].to_string()]);
    }
    let status = place.wait("--store s.zarr", "every job is cancelled", |status| all_are(status, "CANCELLED"));
    std::thread::sleep(Duration::from_secs(3));
    assert!(all_are(&place.status("--store s.zarr"), "CANCELLED"), "what was cancelled stays so");
    assert_eq!(status["store"]["complete"], false);
    // The same command resumes here, from what the jobs have left.
    succeed(place.precompute("s.zarr", ""));
    assert_same_files(&store_folder(&place.path), &place.expected(), "what cancelled jobs have left");
}

/// Four trials of a grid, each a few seconds long.
const SWEEP: &str = "[settings]\nepochs = 12\nbatch_size = 8\nwarmup = 2\nlr = [1e-3, 3e-3]\nlambda = [0.3, 0.8]\n[search]\nmethod = \"grid\"\n\
                     [validation]\nfold = \"1/2\"\n";

/// Trials of a sweep: id, status, epochs and Dice, by id.
fn trials(sweep: &Path) -> Vec<(String, &'static str, u32, Option<f64>)> {
    let table = sweep.join(sam_ladder_schemas::sweep::TRIALS_TABLE);
    let rows: Vec<sam_ladder_schemas::sweep::TrialRow> = sam_ladder_formats::rows::read_rows(&table).unwrap();
    let mut all: Vec<_> = rows.into_iter().map(|row| (row.trial, row.status.name(), row.epochs, row.dice)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
#[ignore = "needs a Slurm cluster: make test-slurm"]
fn a_sweep_waits_for_its_store_and_survives_the_death_of_a_node() {
    let place = Place::new(12, "[job]\ntasks = 2\ntime = \"10\"\ncpus-per-task = 2\n");
    fs::write(place.path.join("sweep.toml"), SWEEP).unwrap();
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    let told = succeed(place.run("sweep --store s.zarr --config sweep.toml --out sweep --jobs 1 --slurm slurm.toml"));
    assert!(told.lines().all(|line| line.contains("after job")), "{told}");
    // A trial is running on each node when one of them dies.
    place.wait("--sweep sweep", "both tasks train", |status| {
        let tasks = jobs(status, "sweep");
        let both = ["n1", "n2"].iter().all(|node| tasks.iter().any(|job| job["nodes"] == *node && job["state"] == "RUNNING"));
        both && status["sweep"]["states"]["running"].as_u64().unwrap_or(0) >= 2
    });
    std::thread::sleep(Duration::from_secs(2));
    kill(&processes_of_node("n2"));
    let status = place.wait("--sweep sweep", "every job is completed", |status| all_are(status, "COMPLETED"));
    start_node("n2");
    assert!(restarts(jobs(&status, "sweep")[0]["job"].as_u64().unwrap()) > 0, "{}", place.logs());
    assert_eq!(status["sweep"]["states"]["finished"], 4, "{status:#}\n{}", place.logs());
    assert!(place.path.join("sweep/sweep.html").is_file());
    // The result of one undisturbed process.
    succeed(place.run("sweep --store s.zarr --config sweep.toml --out alone --jobs 1"));
    assert_eq!(trials(&place.path.join("sweep")), trials(&place.path.join("alone")));
}

#[test]
#[ignore = "needs a Slurm cluster: make test-slurm"]
fn a_node_that_dies_costs_only_its_current_work() {
    let place = Place::new(30, "[job]\ntasks = 2\ntime = \"10\"\ncpus-per-task = 2\n");
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    let on = |status: &Value, node: &str| {
        jobs(status, "precompute").iter().any(|job| job["nodes"] == node && job["state"] == "RUNNING")
    };
    let status = place.wait("--store s.zarr", "a task is at work on n2", |status| is_under_way(status) && on(status, "n2"));
    let stored = status["store"]["images_stored"].as_u64().unwrap();
    kill(&processes_of_node("n2"));
    let status = place.status("--store s.zarr");
    assert!(status["store"]["images_stored"].as_u64().unwrap() >= stored, "nothing that was written is lost");
    let first = jobs(&status, "precompute")[0]["job"].as_u64().unwrap();
    let status = place.wait("--store s.zarr", "every job is completed", |status| all_are(status, "COMPLETED"));
    let restarted = restarts(first);
    start_node("n2");
    assert!(restarted > 0, "the task went to the other node:\n{}", place.logs());
    assert!(jobs(&status, "precompute").iter().all(|job| job["nodes"] == "n1"), "{status:#}");
    assert_same_files(&store_folder(&place.path), &place.expected(), "a node that died");

    // A program that is killed on a sound node is tried again there.
    let place = Place::new(30, "[job]\ntasks = 1\ntime = \"10\"\n");
    succeed(place.precompute("s.zarr", "--slurm slurm.toml"));
    let status = place.wait("--store s.zarr", "the task is at work", is_under_way);
    let job = jobs(&status, "precompute")[0]["job"].as_u64().unwrap();
    let programs = programs();
    assert_eq!(programs.len(), 1);
    kill(&programs);
    place.wait("--store s.zarr", "every job is completed", |status| all_are(status, "COMPLETED"));
    assert_eq!(restarts(job), 1, "{}", place.logs());
    assert_same_files(&store_folder(&place.path), &place.expected(), "a program that was killed");
}
