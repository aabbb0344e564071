//! The command line of sam-ladder: parse, dispatch, print the error chain once.

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
        Err(error) if interrupt::is_interruption(&error) => {
            eprintln!("{}", one_line(&error));
            ExitCode::from(interrupt::EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_printed_once_in_one_line() {
        let error = anyhow::anyhow!("no space left").context("img0001.nii.gz:\n no space left").context("case 0001");
        assert_eq!(one_line(&error), "case 0001: img0001.nii.gz: no space left");
    }
}
