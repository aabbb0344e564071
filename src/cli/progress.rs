//! What the commands show of their work: bars on standard error where that is a terminal, and lines in any case.

use crate::print::print_note;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Unit};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a bar is drawn while nothing moves.
const REDRAW: Duration = Duration::from_secs(1);
/// Where there is no terminal: shortest time between two lines of a phase.
pub const LINE_AFTER: Duration = Duration::from_secs(60);

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
        let state = State::new(&phase, Instant::now());
        if !self.is_terminal {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
            return Box::new(Bar { bar, state: Mutex::new(state), is_hidden: true });
        }
        let bar = self.bars.add(bar);
        // A template that indicatif does not know leaves the bar plain.
        if let Ok(style) = ProgressStyle::with_template(template(&phase)) {
            bar.set_style(style);
        }
        bar.set_prefix(phase.name.to_owned());
        bar.set_message(state.text(Instant::now()));
        bar.enable_steady_tick(REDRAW);
        Box::new(Bar { bar, state: Mutex::new(state), is_hidden: false })
    }
}

/// The message is cut where the terminal ends.
fn template(phase: &Phase<'_>) -> &'static str {
    match (phase.unit, phase.total) {
        (Unit::Epochs, _) => "  {prefix:40} {bar:12} {wide_msg}",
        (Unit::Trials, _) | (_, None) => "{spinner} {wide_msg}",
        _ => "{bar:20} {wide_msg}",
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far a phase is, and how fast.
#[derive(Debug)]
struct State {
    unit: Unit,
    total: Option<u64>,
    done: u64,
    /// The phase's last description; of an epoch's bar, its name stands elsewhere.
    description: String,
    /// When the first units of this start were done, and how many were done then: they do not tell how long the others take, since they load
    /// weights, kernels and caches.
    first: Option<(Instant, u64)>,
    /// When the last units were done.
    last: Instant,
    /// When the last line was given, or the phase began.
    said: Instant,
}

impl State {
    fn new(phase: &Phase<'_>, now: Instant) -> Self {
        let description = if phase.unit == Unit::Epochs { String::new() } else { phase.name.into() };
        State { unit: phase.unit, total: phase.total, done: phase.done, description, first: None, last: now, said: now }
    }

    fn advance(&mut self, units: u64, now: Instant) {
        if units > 0 {
            (self.done, self.last) = (self.done + units, now);
            self.first.get_or_insert((now, self.done));
        }
    }

    /// Units per second, once it can be known.
    fn rate(&self) -> Option<f64> {
        let (since, before) = self.first?;
        let (units, seconds) = (self.done - before, self.last.duration_since(since).as_secs_f64());
        (units > 0 && seconds > 0.0).then(|| units as f64 / seconds)
    }

    /// The time left, or that only the end of the work is; nothing before it can be known.
    fn left(&self, now: Instant) -> Option<String> {
        let total = self.total?;
        if self.done >= total {
            return (total > 0).then(|| "finishing".into());
        }
        let seconds = (total - self.done) as f64 / self.rate()? - now.duration_since(self.last).as_secs_f64();
        Some(format!("{} left", duration(seconds.max(1.0).ceil())))
    }

    /// What is done: `3/20 slices`.
    fn count(&self) -> Option<String> {
        let done = self.done;
        match (self.unit, self.total) {
            (Unit::Bytes, Some(total)) => Some(format!("{} of {}", HumanBytes(done), HumanBytes(total))),
            (Unit::Trials, Some(total)) => Some(format!("{done}/{} ended", counted(total, noun(self.unit)))),
            (Unit::Trials, None) => Some(format!("{} ended", counted(done, noun(self.unit)))),
            (unit, Some(total)) => Some(format!("{done}/{}", counted(total, noun(unit)))),
            (_, None) => None,
        }
    }

    /// What is cut off first on a narrow terminal stands last.
    fn text(&self, now: Instant) -> String {
        let rate = if self.unit == Unit::Trials { None } else { self.rate() };
        let rate = rate.map(|rate| rate_text(self.unit, rate));
        let description = Some(self.description.clone()).filter(|text| !text.is_empty());
        [self.count(), self.left(now), description, rate].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// A line for where no bar is seen, at most one per [`LINE_AFTER`]. Runs and sweeps give theirs otherwise.
    fn line(&mut self, now: Instant) -> Option<String> {
        let has_lines = matches!(self.unit, Unit::Bytes | Unit::Files | Unit::Slices | Unit::Images);
        let is_due = has_lines && now.duration_since(self.said) >= LINE_AFTER;
        is_due.then(|| {
            self.said = now;
            self.text(now)
        })
    }
}

fn noun(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "byte",
        Unit::Files => "file",
        Unit::Tensors => "tensor",
        Unit::Slices => "slice",
        Unit::Images => "image",
        Unit::Steps => "step",
        Unit::Epochs => "epoch",
        Unit::Trials => "trial",
    }
}

/// `3.2 images/s`, or of what takes longer than a second `2.5 s per image`.
pub fn rate_text(unit: Unit, per_second: f64) -> String {
    let noun = noun(unit);
    match per_second {
        _ if unit == Unit::Bytes => format!("{}/s", HumanBytes(per_second as u64)),
        100.0.. => format!("{per_second:.0} {noun}s/s"),
        1.0.. => format!("{per_second:.1} {noun}s/s"),
        _ => format!("{} per {noun}", duration(1.0 / per_second.max(1e-9))),
    }
}

/// A phase's bar. It ends with the phase and leaves nothing: what came of it is said in lines.
#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    state: Mutex<State>,
    is_hidden: bool,
}

impl Progress for Bar {
    fn advance(&self, units: u64) {
        let (text, line) = {
            let (mut state, now) = (locked(&self.state), Instant::now());
            state.advance(units, now);
            (state.text(now), if self.is_hidden { state.line(now) } else { None })
        };
        self.bar.inc(units);
        self.bar.set_message(text);
        if let Some(line) = line {
            print_note!("{line}");
        }
    }

    fn describe(&self, text: &str) {
        let text = {
            let mut state = locked(&self.state);
            state.description = text.into();
            state.text(Instant::now())
        };
        self.bar.set_message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Seconds in words: `4 s`, `4.2 s`, `42 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    let whole = Duration::from_secs_f64(seconds.min(1e15)).as_secs();
    match whole {
        0..10 if seconds == whole as f64 && whole > 0 => format!("{whole} s"),
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: [Unit; 8] =
        [Unit::Bytes, Unit::Files, Unit::Tensors, Unit::Slices, Unit::Images, Unit::Steps, Unit::Epochs, Unit::Trials];

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said = [0.04, 4.0, 9.94, 42.0, 200.0, 7500.0, f64::INFINITY].map(duration);
        assert_eq!(said[..6], ["0.0 s", "4 s", "9.9 s", "42 s", "3 min 20 s", "2 h 05 min"]);
    }

    #[test]
    fn rates_have_units() {
        let said = [(Unit::Images, 512.0), (Unit::Slices, 3.21), (Unit::Steps, 0.4), (Unit::Bytes, 2048.0)];
        let said = said.map(|(unit, rate)| rate_text(unit, rate));
        assert_eq!(said, ["512 images/s", "3.2 slices/s", "2.5 s per step", "2.00 KiB/s"]);
    }

    #[test]
    fn every_phase_has_a_template_that_indicatif_knows() {
        for (unit, total) in UNITS.into_iter().flat_map(|unit| [(unit, None), (unit, Some(3))]) {
            let phase = Phase { name: "", unit, total, done: 0 };
            assert!(ProgressStyle::with_template(template(&phase)).is_ok(), "{unit:?}");
        }
    }

    /// Four steps of 10 s after a first one of a minute; an earlier start did five.
    #[test]
    fn the_time_left_is_said_once_it_is_known() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let phase = Phase { done: 5, ..Phase::new("first step", Unit::Steps, 10) };
        let mut state = State::new(&phase, begun);
        assert_eq!(state.text(at(30)), "5/10 steps, first step");
        state.advance(1, at(60));
        state.description = "loss 0.5".into();
        assert_eq!(state.text(at(60)), "6/10 steps, loss 0.5", "the first step tells nothing of the others");
        state.advance(1, at(70));
        assert_eq!(state.text(at(70)), "7/10 steps, 30 s left, loss 0.5, 10 s per step");
        assert_eq!(state.text(at(75)), "7/10 steps, 25 s left, loss 0.5, 10 s per step");
        state.advance(2, at(90));
        assert_eq!(state.text(at(200)), "9/10 steps, 1 s left, loss 0.5, 10 s per step");
        state.advance(1, at(100));
        assert_eq!(state.text(at(103)), "10/10 steps, finishing, loss 0.5, 10 s per step");
        assert_eq!(state.line(at(500)), None, "a run gives its own lines");
    }

    #[test]
    fn one_thing_is_in_the_singular() {
        let text = |unit, total, done| State::new(&Phase { name: "", unit, total, done }, Instant::now()).text(Instant::now());
        assert_eq!(text(Unit::Slices, Some(1), 0), "0/1 slice");
        assert_eq!(text(Unit::Files, Some(2), 1), "1/2 files");
        assert_eq!(
            (text(Unit::Trials, None, 1), text(Unit::Trials, Some(8), 1)),
            ("1 trial ended".into(), "1/8 trials ended".into())
        );
        assert_eq!(text(Unit::Bytes, Some(2048), 1024), "1.00 KiB of 2.00 KiB");
        assert_eq!(text(Unit::Tensors, None, 0), "");
        assert_eq!(text(Unit::Slices, Some(0), 0), "0/0 slices", "nothing to do is not about to finish");
    }

    #[test]
    fn without_a_terminal_long_work_gives_a_line_a_minute() {
        let begun = Instant::now();
        let mut state = State::new(&Phase::new("reading", Unit::Images, 300), begun);
        let lines: Vec<String> = (1..=240)
            .filter_map(|second| {
                let now = begun + Duration::from_secs(second);
                state.advance(1, now);
                state.line(now)
            })
            .collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "60/300 images, 4 min 00 s left, reading, 1.0 images/s");
    }
}
