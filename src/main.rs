//! The command line of sam-ladder: parse, dispatch, print what went wrong once.

// Their macros panic when a pipe is closed; `print` writes instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod allocator;
mod cli;
mod error;
mod interrupt;
mod print;
mod slurm;

use clap::Parser;
use print::print_note;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_pages();
    let (outcome, code) = match cli::Cli::try_parse() {
        Ok(cli) => (cli.run(), ExitCode::SUCCESS),
        Err(said) => {
            let code = u8::try_from(said.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
            if said.use_stderr() {
                // As with every note: if nobody reads it, it is lost.
                let _ = said.print();
            } else {
                print::write(|_| said.print());
            }
            (Ok(()), code)
        }
    };
    let Err(error) = outcome.and_then(|()| print::result()) else { return code };
    let interrupted = interrupt::is_interruption(&error);
    let label = if interrupted { "" } else { "error: " };
    print_note!("{label}{}", error::one_line(&error));
    if let Some(hint) = error::hint(&error) {
        print_note!("hint: {hint}");
    }
    if interrupted { ExitCode::from(interrupt::EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
}
