//! The command line of sam-ladder: parse, dispatch, print the error chain once, and what to do about it.

mod allocator;
mod cli;
mod interrupt;
mod slurm;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_pages();
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_interruption = interrupt::is_interruption(&error);
            eprintln!("{}{}", if is_interruption { "" } else { "error: " }, one_line(&error));
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
            if is_interruption { ExitCode::from(interrupt::EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

/// The whole chain in one line, leaving out causes whose text the error above them already quotes.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

/// What to do about an error, by the first of its causes that knows.
fn hint(error: &anyhow::Error) -> Option<String> {
    use sam_ladder_train::error::TrainError;
    error.chain().find_map(|cause| cause.downcast_ref().and_then(TrainError::hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_printed_once_in_one_line() {
        let error = anyhow::anyhow!("no space left").context("img0001.nii.gz:\n no space left").context("case 0001");
        assert_eq!(one_line(&error), "case 0001: img0001.nii.gz: no space left");
    }
}
