//! Ctrl-C (and SIGTERM): the first time work stops at its next safe point, the second time at once.

use crate::print::print_note;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Exit status of a program that was interrupted, by the shells' convention (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;

/// A batch system may signal a job's shell and the program in it, and the shell passes its signal on: signals this close together are one.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// A flag that the first Ctrl-C sets. `finishing` says what is done before the program stops.
///
/// # Errors
/// When the system lets no handler be installed.
pub fn stop_flag(finishing: &'static str) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let mut first: Option<Instant> = None;
    ctrlc::set_handler(move || {
        if let Some(first) = first {
            if first.elapsed() > SAME_SIGNAL {
                std::process::exit(EXIT_INTERRUPTED.into());
            }
            return;
        }
        first = Some(Instant::now());
        flag.store(true, Ordering::Relaxed);
        print_note!("stopping: {finishing} first; interrupt once more to stop at once");
    })?;
    Ok(stop)
}

/// Whether an error only says that the user stopped the program.
pub fn is_interruption(error: &anyhow::Error) -> bool {
    use sam_ladder_precompute::error::Error;
    use sam_ladder_train::TrainError;
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(Error::Stopped { .. }))
            || matches!(cause.downcast_ref(), Some(TrainError::Stopped { .. } | TrainError::SweepStopped { .. }))
    })
}
