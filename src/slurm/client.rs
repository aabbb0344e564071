//! Slurm's own programs.

use crate::error::refusal;
use anyhow::Context;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

/// Runs one of Slurm's programs; `None` if the machine lacks it.
pub(super) fn run(program: &str, arguments: &[String]) -> anyhow::Result<Option<Output>> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run {program}")),
    }
}

/// What a program complains about, in one line.
pub(super) fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { format!("it ended with {}", output.status) } else { line }
}

/// Submits a script; returns the job's number.
///
/// # Errors
/// When this machine has no `sbatch`, or it refuses.
pub(super) fn sbatch(script: &Path, dependency: Option<&str>) -> anyhow::Result<u64> {
    let mut arguments = vec!["--parsable".to_string()];
    if let Some(dependency) = dependency {
        // A job whose turn can never come would stay in the queue for ever.
        arguments.extend([format!("--dependency={dependency}"), "--kill-on-invalid-dep=yes".into()]);
    }
    arguments.push(script.to_str().with_context(|| format!("{}: Slurm takes only paths in UTF-8", script.display()))?.into());
    let Some(output) = run("sbatch", &arguments)? else {
        let hint = "submit from a machine of the cluster that has Slurm's programs, or write the scripts with --slurm-script-only and submit them there";
        return Err(refusal("there is no `sbatch` on the PATH", hint));
    };
    if !output.status.success() {
        let message = format!("sbatch refuses {}: {}", script.display(), complaint(&output));
        return Err(refusal(message, "mend the options in the file of --slurm, and submit again"));
    }
    // `NUMBER` or `NUMBER;CLUSTER`.
    let answer = String::from_utf8_lossy(&output.stdout);
    let number = answer.trim().split(';').next().and_then(|number| number.parse().ok());
    number.with_context(|| {
        format!("sbatch submitted {}, and answered {:?} instead of a job number", script.display(), answer.trim())
    })
}
