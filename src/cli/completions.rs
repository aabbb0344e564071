//! `sam-ladder completions` and `sam-ladder man`: what shells and `man` know of the command line, from its own definition.

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use sam_ladder_formats::atomic::write_atomic;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder completions bash
  sam-ladder completions zsh

Shells read the text from a file such as
  ~/.local/share/bash-completion/completions/sam-ladder
  ~/.local/share/zsh/site-functions/_sam-ladder
  ~/.local/share/fish/vendor_completions.d/sam-ladder.fish
where `make install` puts it.")]
pub struct Args {
    /// Shell to print completions for
    shell: Shell,
}

impl Args {
    /// Prints the shell's completions.
    pub fn run(self) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), env!("CARGO_PKG_NAME"), &mut text);
        std::io::stdout().write_all(&text).context("cannot write to standard output")
    }
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder man --out man1
")]
pub struct ManArgs {
    /// Folder for the pages
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    /// Writes a page for the program and one for each command.
    pub fn run(self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let mut program = super::Cli::command();
        program.build();
        let name = program.get_name().to_owned();
        let shown = program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
        let pages: Vec<(String, clap::Command)> = std::iter::once((name.clone(), program.clone()))
            .chain(shown.map(|command| (format!("{name}-{}", command.get_name()), command.clone())))
            .collect();
        for (title, command) in &pages {
            let mut page = Vec::new();
            clap_mangen::Man::new(command.clone()).title(title.to_uppercase()).render(&mut page)?;
            write_atomic(&self.out.join(format!("{title}.1")), &page)?;
        }
        eprintln!("{} pages: {}", pages.len(), self.out.display());
        Ok(())
    }
}
