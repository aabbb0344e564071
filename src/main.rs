//! The command line of sam-ladder: parse, dispatch, print what went wrong once.

mod allocator;
mod cli;
mod error;
mod interrupt;
mod slurm;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_pages();
    let Err(error) = cli::Cli::parse().run() else { return ExitCode::SUCCESS };
    let interrupted = interrupt::is_interruption(&error);
    let label = if interrupted { "" } else { "error: " };
    eprintln!("{label}{}", error::one_line(&error));
    if let Some(hint) = error::hint(&error) {
        eprintln!("hint: {hint}");
    }
    if interrupted { ExitCode::from(interrupt::EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
}
