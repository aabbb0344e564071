//! Messages that every trial would repeat.

use sam_ladder_schemas::observer::{Observer, Phase, Progress};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Passes each message on only once.
#[derive(Debug)]
pub(super) struct SaidOnce {
    observer: Arc<dyn Observer>,
    said: Mutex<HashSet<String>>,
}

impl SaidOnce {
    pub(super) fn new(observer: Arc<dyn Observer>) -> Self {
        SaidOnce { observer, said: Mutex::default() }
    }
}

impl Observer for SaidOnce {
    fn message(&self, text: &str) {
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            self.observer.message(text);
        }
    }

    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress> {
        self.observer.begin(phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::observer::Silent;

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn message(&self, text: &str) {
            self.0.lock().unwrap().push(text.into());
        }

        fn begin(&self, _: Phase<'_>) -> Box<dyn Progress> {
            Box::new(Silent)
        }
    }

    #[test]
    fn a_message_is_passed_on_once() {
        let heard = Arc::new(Heard::default());
        let once = SaidOnce::new(heard.clone());
        for text in ["a graph", "no graph", "a graph"] {
            once.message(text);
        }
        assert_eq!(*heard.0.lock().unwrap(), ["a graph", "no graph"]);
    }
}
