//! The only place that writes to standard output and standard error.
//!
//! `println!` panics when its reader has gone (`sam-ladder … | head`) or its disk is full. Here a reader that has gone is the end of
//! printing and no failure; anything else is kept, and ends the command with an error after its work is done. What standard error does not
//! take is lost: there is no other place to say it.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

/// Standard output, as far as is known.
#[derive(Debug)]
enum Output {
    Open,
    /// Its reader has gone.
    Closed,
    /// Why nothing more is written.
    Failed(io::Error),
}

static OUTPUT: Mutex<Output> = Mutex::new(Output::Open);

/// Writes a line to standard output; see [`result`] for what cannot be written.
pub fn line(text: impl Display) {
    write(|out| writeln!(out, "{text}"));
}

/// Writes to standard output, without a line's end.
pub fn raw(text: &[u8]) {
    write(|out| out.write_all(text));
}

/// Lets `body` write to standard output, unless an earlier write failed.
pub fn write(body: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let mut output = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*output, Output::Open) {
        let mut stdout = io::stdout().lock();
        *output = after(body(&mut stdout).and_then(|()| stdout.flush()));
    }
}

fn after(written: io::Result<()>) -> Output {
    match written {
        Ok(()) => Output::Open,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Output::Closed,
        Err(error) => Output::Failed(error),
    }
}

/// Whether everything was written that anybody still reads.
///
/// # Errors
/// Standard output is full, or cannot be written for another reason than that its reader has gone.
pub fn result() -> anyhow::Result<()> {
    let mut output = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *output, Output::Closed) {
        Output::Failed(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
        _ => Ok(()),
    }
}

/// Writes a line to standard error.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// As the function [`line()`], with the arguments of `format!`.
macro_rules! print_line {
    ($($text:tt)*) => { $crate::print::line(format_args!($($text)*)) };
}

/// As the function [`note()`], with the arguments of `format!`.
macro_rules! print_note {
    ($($text:tt)*) => { $crate::print::note(format_args!($($text)*)) };
}

pub(crate) use {print_line, print_note};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        assert!(matches!(after(Err(ErrorKind::BrokenPipe.into())), Output::Closed));
        assert!(matches!(after(Err(ErrorKind::StorageFull.into())), Output::Failed(_)));
        assert!(matches!(after(Ok(())), Output::Open));
    }
}
