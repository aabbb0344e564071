//! `sam-ladder completions` and `sam-ladder man`: what shells and `man` know of the command line, from its own definition.

use crate::print::{self, print_note};
use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{self, Origin, is_regular_file, is_there};
use sam_ladder_schemas::counted::counted;
use std::path::{Path, PathBuf};

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
        print::raw(&text);
        Ok(())
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
        let files = pages.iter().map(|(title, _)| self.out.join(format!("{title}.1"))).collect::<Vec<_>>();
        // Installing replaces the pages of an earlier version without asking, and no other file.
        for path in files.iter().filter(|path| is_there(path)) {
            outputs::may_write(std::slice::from_ref(path), true, "a manual page of sam-ladder", |path| {
                Origin::ours_if(is_our_page(path))
            })?;
        }
        for ((title, command), path) in pages.iter().zip(&files) {
            let mut page = Vec::new();
            clap_mangen::Man::new(command.clone()).title(title.to_uppercase()).render(&mut page)?;
            write_atomic(path, &page)?;
        }
        print_note!("{}: {}", counted(pages.len(), "page"), self.out.display());
        Ok(())
    }
}

/// Whether a file is a manual page with the program's name in its title.
fn is_our_page(path: &Path) -> bool {
    let title = concat!(".TH ", env!("CARGO_PKG_NAME")).replace('-', "").to_lowercase();
    let is_title = |line: &str| line.replace(['-', '\\'], "").to_lowercase().starts_with(&title);
    is_regular_file(path) && std::fs::read_to_string(path).is_ok_and(|page| page.lines().any(is_title))
}
