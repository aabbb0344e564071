//! An observer that keeps every message.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use sam_ladder_schemas::observer::{Observer, Phase, Progress, Silent};
use std::sync::Mutex;

/// The messages so far; progress is passed over.
#[derive(Debug, Default)]
pub struct Said(Mutex<Vec<String>>);

impl Said {
    /// The messages since the last call, oldest first.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Said {
    fn message(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }

    fn begin(&self, _: Phase<'_>) -> Box<dyn Progress> {
        Box::new(Silent)
    }
}
