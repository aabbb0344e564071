//! What the commands show of their work: bars on standard error where that is a terminal, and lines in any case.

use crate::print::print_note;
use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a bar is drawn while nothing moves.
const REDRAW: Duration = Duration::from_secs(1);

/// Standard error.
#[derive(Debug)]
pub struct Terminal {
    is_terminal: bool,
    bars: MultiProgress,
}

impl Terminal {
    /// For one command.
    pub fn new() -> Arc<Self> {
        Arc::new(Terminal { is_terminal: std::io::stderr().is_terminal(), bars: MultiProgress::new() })
    }
}

impl Observer for Terminal {
    fn message(&self, text: &str) {
        if self.is_terminal {
            // Above the bars. If the terminal is gone, the work continues.
            let _ = self.bars.println(text);
        } else {
            print_note!("{text}");
        }
    }

    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress> {
        let bar = phase.total.map_or_else(ProgressBar::no_length, ProgressBar::new).with_position(phase.done);
        if !self.is_terminal {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
            return Box::new(Bar::new(bar, phase));
        }
        let bar = self.bars.add(bar);
        // A template that indicatif does not know leaves the bar plain.
        if let Ok(style) = ProgressStyle::with_template(template(&phase)) {
            bar.set_style(style);
        }
        if phase.unit == Unit::Epochs {
            bar.set_prefix(phase.name.to_owned());
        } else {
            bar.set_message(phase.name.to_owned());
        }
        bar.enable_steady_tick(REDRAW);
        Box::new(Bar::new(bar, phase))
    }
}

fn template(phase: &Phase<'_>) -> &'static str {
    match (phase.unit, phase.total) {
        (Unit::Bytes, _) => "{wide_bar} {msg}, {bytes}/{total_bytes}, {eta} left",
        (Unit::Files, _) => "{wide_bar} {pos}/{len} files checked, {eta} left",
        (Unit::Images, _) => "{wide_bar} {pos}/{len} images, {msg}, {per_sec}, {eta} left",
        (Unit::Slices, _) => "{wide_bar} {pos}/{len} slices, {msg}, {eta} left",
        (Unit::Steps, _) => "{wide_bar} {pos}/{len}  {msg}  {eta_precise} left",
        (Unit::Epochs, _) => "  {prefix:40} {bar:20} {pos:>4}/{len:4} {wide_msg}",
        (Unit::Tensors, Some(_)) => "{wide_bar} {msg}, {pos}/{len} tensors, {eta} left",
        (Unit::Tensors, None) | (Unit::Trials, _) => "{spinner} {wide_msg}",
    }
}

/// A phase's bar.
#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    unit: Unit,
    total: Option<u64>,
    started: Instant,
    /// The first units that were done; of trials, those that an earlier start ended, which took no time of this one.
    first: Mutex<Option<u64>>,
}

impl Bar {
    fn new(bar: ProgressBar, phase: Phase<'_>) -> Self {
        Bar { bar, unit: phase.unit, total: phase.total, started: Instant::now(), first: Mutex::default() }
    }

    /// How many trials have ended, and the time that is left where that can be guessed.
    fn trials(&self) -> String {
        let ended = self.bar.position();
        let before = *self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(ended);
        let of = self.total.map_or(String::new(), |total| format!("/{total}"));
        let here = ended - before.min(ended);
        let left = self.total.filter(|_| here > 0).map_or(String::new(), |total| {
            let left = self.started.elapsed().mul_f64(total.saturating_sub(ended) as f64 / here as f64);
            format!("  ·  {} left", HumanDuration(left))
        });
        format!("{ended}{of} trials ended{left}")
    }
}

impl Progress for Bar {
    fn advance(&self, units: u64) {
        self.bar.inc(units);
        // The first units (weights, kernels, caches) do not tell how long the others take.
        if self.unit != Unit::Trials && self.first.lock().unwrap_or_else(PoisonError::into_inner).replace(units).is_none() {
            self.bar.reset_eta();
        }
    }

    fn describe(&self, text: &str) {
        let text = if self.unit == Unit::Trials { format!("{}  ·  {text}", self.trials()) } else { text.to_owned() };
        self.bar.set_message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // A run's bar stays, with its last losses.
        match self.unit {
            Unit::Steps if Some(self.bar.position()) == self.total => self.bar.finish(),
            Unit::Steps => self.bar.abandon(),
            _ => self.bar.finish_and_clear(),
        }
    }
}

/// Seconds in words: `42 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said = [0.04, 9.94, 42.0, 200.0, 7500.0].map(duration);
        assert_eq!(said, ["0.0 s", "9.9 s", "42 s", "3 min 20 s", "2 h 05 min"]);
    }

    #[test]
    fn every_phase_has_a_template_that_indicatif_knows() {
        let units =
            [Unit::Bytes, Unit::Files, Unit::Tensors, Unit::Slices, Unit::Images, Unit::Steps, Unit::Epochs, Unit::Trials];
        for (unit, total) in units.into_iter().flat_map(|unit| [(unit, None), (unit, Some(3))]) {
            let phase = Phase { name: "", unit, total, done: 0 };
            assert!(ProgressStyle::with_template(template(&phase)).is_ok(), "{unit:?}");
        }
    }
}
