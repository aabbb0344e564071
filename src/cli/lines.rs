//! A training's progress where there is no terminal: a line for each epoch, or for each minute.

use super::progress::LINE_AFTER;
use sam_ladder_schemas::observer::{Observer, Phase, Progress};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The observer for a training run: a terminal shows bars, anything else gets lines.
pub fn with_lines(observer: Arc<dyn Observer>) -> Arc<dyn Observer> {
    if std::io::stderr().is_terminal() { observer } else { Arc::new(Lines { observer, after: LINE_AFTER }) }
}

/// Passes everything on, and in addition gives the state of a phase as messages.
#[derive(Debug)]
struct Lines {
    observer: Arc<dyn Observer>,
    after: Duration,
}

impl Observer for Lines {
    fn message(&self, text: &str) {
        self.observer.message(text);
    }

    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress> {
        let observer = self.observer.clone();
        Box::new(LinesOfPhase { progress: observer.begin(phase), observer, after: self.after, state: Mutex::default() })
    }
}

#[derive(Debug)]
struct LinesOfPhase {
    progress: Box<dyn Progress>,
    observer: Arc<dyn Observer>,
    after: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last line was given; at first, when the phase was first described.
    last: Option<Instant>,
    /// Whether a line was given.
    has_spoken: bool,
    /// A note that came too soon after a line.
    held_back: Option<String>,
}

impl LinesOfPhase {
    fn line(&self, text: &str, is_note: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_due = now.duration_since(*state.last.get_or_insert(now)) >= self.after;
        if is_due || (is_note && !state.has_spoken) {
            (state.last, state.has_spoken, state.held_back) = (Some(now), true, None);
            self.observer.message(text);
        } else if is_note {
            state.held_back = Some(text.into());
        }
    }
}

impl Progress for LinesOfPhase {
    fn advance(&self, units: u64) {
        self.progress.advance(units);
    }

    fn describe(&self, text: &str) {
        self.progress.describe(text);
        self.line(text, false);
    }

    fn note(&self, text: &str) {
        self.progress.note(text);
        self.line(text, true);
    }
}

impl Drop for LinesOfPhase {
    /// The last epoch has its line.
    fn drop(&mut self) {
        if let Some(text) = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).held_back.take() {
            self.observer.message(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::observer::{Silent, Unit};

    #[derive(Debug, Default)]
    struct Said(Mutex<Vec<String>>);

    impl Observer for Said {
        fn message(&self, text: &str) {
            self.0.lock().unwrap().push(text.into());
        }

        fn begin(&self, _: Phase<'_>) -> Box<dyn Progress> {
            Box::new(Silent)
        }
    }

    #[test]
    fn the_first_and_the_last_epoch_and_each_minute_have_a_line() {
        for (after, expected) in
            [(LINE_AFTER, vec!["epoch 1", "epoch 4"]), (Duration::ZERO, vec!["s", "epoch 1", "s", "epoch 2"])]
        {
            let said = Arc::new(Said::default());
            let lines = Lines { observer: said.clone(), after };
            let phase = lines.begin(Phase::new("", Unit::Steps, 4));
            for epoch in 1..=4 {
                phase.describe("s");
                phase.note(&format!("epoch {epoch}"));
            }
            drop(phase);
            let said = said.0.lock().unwrap();
            assert_eq!(said[..expected.len()], expected[..], "{said:?}");
            assert_eq!(said.last().unwrap(), "epoch 4");
        }
    }
}
