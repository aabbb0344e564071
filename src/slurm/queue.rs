//! Where jobs stand: `squeue` for those in the queue, `sacct` for those that have left it.

use super::client::{complaint, run};
use sam_ladder_schemas::slurm::JobRecord;
use serde::Serialize;
use std::collections::BTreeMap;

/// A task of a job's array, or a job without an array, as Slurm reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskState {
    /// Slurm's number of the job.
    pub job: u64,
    /// Index in the array.
    pub task: Option<u32>,
    /// Slurm's own word: `PENDING`, `RUNNING`, `COMPLETED`, `FAILED`, `NODE_FAIL` …, or `UNKNOWN`.
    pub state: String,
    /// Time it has run: `1-02:03:04`.
    pub elapsed: String,
    /// Nodes it runs or ran on.
    pub nodes: String,
    /// Why it waits, or its exit status.
    pub reason: String,
}

/// States in which a job is still to do something.
const ALIVE: [&str; 8] = ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED"];

impl TaskState {
    /// Whether it waits or runs.
    pub fn is_alive(&self) -> bool {
        ALIVE.contains(&self.state.as_str())
    }
}

/// Every task of some jobs, in their order, and a note where Slurm could not tell all.
///
/// # Errors
/// When one of Slurm's programs cannot be run.
pub fn tasks_of(jobs: &[JobRecord]) -> anyhow::Result<(Vec<TaskState>, Option<String>)> {
    if jobs.is_empty() {
        return Ok((Vec::new(), None));
    }
    let ids = jobs.iter().map(|job| job.id.to_string()).collect::<Vec<_>>().join(",");
    let mut note = None;
    let mut known = BTreeMap::new();
    let format = "--format=%i|%T|%M|%N|%r".to_string();
    let arguments = ["--noheader".into(), "--array".into(), "--states=all".into(), format!("--jobs={ids}"), format];
    match run("squeue", &arguments)? {
        None => note = Some("this machine has no `squeue` on the PATH, so where jobs stand is not known".to_string()),
        // Of jobs that left the queue long ago it knows nothing any more.
        Some(output) if !output.status.success() && !complaint(&output).contains("Invalid job id") => {
            note = Some(format!("squeue: {}", complaint(&output)));
        }
        Some(output) => known.extend(parse(&String::from_utf8_lossy(&output.stdout))),
    }
    let gone = |known: &BTreeMap<_, _>| jobs.iter().any(|job| tasks(job).any(|task| !known.contains_key(&(job.id, task))));
    if note.is_none() && gone(&known) {
        let format = "--format=JobID,State,Elapsed,NodeList,ExitCode".to_string();
        let arguments = [
            "--noheader".into(),
            "--parsable2".into(),
            "--allocations".into(),
            "--array".into(),
            format!("--jobs={ids}"),
            format,
        ];
        match run("sacct", &arguments)? {
            Some(output) if output.status.success() => {
                for (key, state) in parse(&String::from_utf8_lossy(&output.stdout)) {
                    known.entry(key).or_insert(state);
                }
            }
            _ if gone(&known) => {
                note = Some("jobs that ended a while ago are UNKNOWN: this Slurm keeps no accounting (sacct)".to_string());
            }
            _ => {}
        }
    }
    let unknown = |job: &JobRecord, task| TaskState {
        job: job.id,
        task,
        state: "UNKNOWN".into(),
        elapsed: String::new(),
        nodes: String::new(),
        reason: String::new(),
    };
    let all = jobs.iter().flat_map(|job| tasks(job).map(move |task| (job, task)));
    Ok((all.map(|(job, task)| known.get(&(job.id, task)).cloned().unwrap_or_else(|| unknown(job, task))).collect(), note))
}

/// Indices of a job's tasks.
fn tasks(job: &JobRecord) -> impl Iterator<Item = Option<u32>> + use<> {
    let (array, alone) = (job.tasks.unwrap_or(0), job.tasks.is_none());
    (1..=array).map(Some).chain(alone.then_some(None))
}

/// Lines of `id|state|elapsed|nodes|reason`, where an id is `12`, `12_3`, or, for what waits together, `12_[3-5,7%2]`.
fn parse(text: &str) -> Vec<((u64, Option<u32>), TaskState)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().splitn(5, '|').collect();
        let [id, state, elapsed, nodes, reason] = fields[..] else { continue };
        let (job, indices) = id.split_once('_').map_or((id, None), |(job, indices)| (job, Some(indices)));
        let Ok(job) = job.parse() else { continue };
        // `CANCELLED by 1000` is how sacct says who did.
        let state = state.split_whitespace().next().unwrap_or("UNKNOWN").to_string();
        for task in indices.map_or_else(|| vec![None], expand) {
            let (elapsed, nodes, reason) = (elapsed.into(), nodes.into(), reason.into());
            all.push(((job, task), TaskState { job, task, state: state.clone(), elapsed, nodes, reason }));
        }
    }
    all
}

fn expand(indices: &str) -> Vec<Option<u32>> {
    let inside = indices.trim_start_matches('[').trim_end_matches(']');
    let listed = inside.split('%').next().unwrap_or_default();
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => Some(from.parse::<u32>().ok()?..=to.parse().ok()?),
        None => part.parse().ok().map(|one| one..=one),
    };
    listed.split(',').filter_map(range).flatten().map(Some).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_read_line_by_line() {
        let text = "12_1|RUNNING|0:03|n1|None\n12_[2-3,5%2]|PENDING|0:00||Resources\n13|PENDING|0:00||Dependency\nslurm_load_jobs error\n";
        let parsed: Vec<_> = parse(text).into_iter().map(|(key, task)| (key, task.state, task.reason)).collect();
        let expected = [
            ((12, Some(1)), "RUNNING", "None"),
            ((12, Some(2)), "PENDING", "Resources"),
            ((12, Some(3)), "PENDING", "Resources"),
            ((12, Some(5)), "PENDING", "Resources"),
            ((13, None), "PENDING", "Dependency"),
        ];
        assert_eq!(parsed, expected.map(|(key, state, reason)| (key, state.to_string(), reason.to_string())));
        let accounted = parse("7_2|CANCELLED by 1000|00:01:00|n2|0:15");
        assert_eq!((accounted[0].1.state.as_str(), accounted[0].1.is_alive()), ("CANCELLED", false));
    }
}
