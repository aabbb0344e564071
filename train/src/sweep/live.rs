//! What a sweep shows while it goes on: a table where stderr is a terminal, plain lines otherwise.

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use sam_ladder_schemas::tables::EpochRow;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where a sweep stands, for the table's head.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// Trials that have ended, and that there will be, where that is known.
    pub(crate) ended: usize,
    pub(crate) most: Option<usize>,
    pub(crate) pruned: usize,
    pub(crate) failed: usize,
    /// The best so far, in a few words.
    pub(crate) best: Option<String>,
}

/// The live table.
pub(crate) struct Live {
    shown: bool,
    terminal: bool,
    all: MultiProgress,
    head: ProgressBar,
    bars: Mutex<HashMap<usize, ProgressBar>>,
    begun: Instant,
    /// Trials that had ended when this start began: they took no time of it.
    ended_before: Mutex<Option<usize>>,
}

impl Live {
    pub(crate) fn new(shown: bool) -> Self {
        let terminal = shown && std::io::stderr().is_terminal();
        let all = MultiProgress::new();
        let head = if terminal { all.add(ProgressBar::new_spinner()) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            head.set_style(style);
        }
        if terminal {
            head.enable_steady_tick(Duration::from_millis(250));
        }
        Live { shown, terminal, all, head, bars: Mutex::default(), begun: Instant::now(), ended_before: Mutex::default() }
    }

    /// A trial is trained to so many epochs in all, of which some are done.
    pub(crate) fn begin(&self, trial: usize, name: &str, done: u64, epochs: u64) {
        if !self.terminal {
            return;
        }
        let bar = self.all.add(ProgressBar::new(epochs).with_position(done));
        if let Ok(style) = ProgressStyle::with_template("  {prefix:40} {bar:20} {pos:>4}/{len:4} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_string());
        self.lock().insert(trial, bar);
    }

    /// A run of the trial has closed an epoch.
    pub(crate) fn epoch(&self, trial: usize, row: &EpochRow) {
        if let Some(bar) = self.lock().get(&trial) {
            let dice = row.val_dice.map_or("–".into(), |dice| format!("{dice:.4}"));
            bar.set_message(format!("loss {:.4}  val dice {dice}  gate {:.3}", row.loss, row.gate));
            bar.inc(1);
        }
    }

    /// The trial waits or has ended; `line` tells what it came to.
    pub(crate) fn end(&self, trial: usize, line: &str) {
        if let Some(bar) = self.lock().remove(&trial) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        if self.terminal {
            // A terminal that is gone is no reason to stop.
            let _ = self.all.println(line);
        } else if self.shown {
            eprintln!("{line}");
        }
    }

    /// The table's head.
    pub(crate) fn stand(&self, standing: &Standing) {
        let before = *self.ended_before.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(standing.ended);
        let of = standing.most.map_or(String::new(), |most| format!("/{most}"));
        let mut text = format!("{}{of} trials ended, {} pruned, {} failed", standing.ended, standing.pruned, standing.failed);
        let here = standing.ended - before.min(standing.ended);
        if let (Some(most), true) = (standing.most, here > 0) {
            let left = self.begun.elapsed().mul_f64(most.saturating_sub(standing.ended) as f64 / here as f64);
            text += &format!("  ·  {} left", HumanDuration(left));
        }
        // Last: a narrow terminal cuts it.
        if let Some(best) = &standing.best {
            text += &format!("  ·  best {best}");
        }
        self.head.set_message(text);
    }

    /// The sweep has ended or stopped.
    pub(crate) fn finish(&self) {
        self.lock().drain().for_each(|(_, bar)| bar.finish_and_clear());
        self.head.finish_and_clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, ProgressBar>> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
