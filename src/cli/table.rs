//! `sam-ladder table`: several evaluations as one table, in Markdown, LaTeX and Parquet.

use crate::error::refusal;
use crate::print::{print_line, print_note};
use sam_ladder_eval::{EvaluationFolder, Method, ResultsTable, tabulate};
use sam_ladder_schemas::eval::PublishedRows;
use std::path::{Path, PathBuf};

/// Arguments of `table`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder table --row ladder=runs/first --published --out tables
  sam-ladder table --row full=runs/first --row untrained=untrained --against full \\
      --published=ablation --out tables --name ablation
")]
pub struct Args {
    /// A row: its name, and the folder of an evaluation or of a run that has one. Several folders, separated by commas, are seeds of one method
    #[arg(long = "row", value_name = "[NAME=]DIR[,DIR…]", required = true)]
    rows: Vec<String>,
    /// Put published rows above, with their sources; only for the eight Synapse organs
    #[arg(long, value_enum, value_name = "ROWS", num_args = 0..=1, require_equals = true, default_missing_value = "methods")]
    published: Option<PublishedRows>,
    /// Name of the row to test the others against
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
    /// Folder for the three files: Markdown, LaTeX and Parquet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the files, without .md, .tex and .parquet
    #[arg(long, value_name = "NAME", default_value = "table")]
    name: String,
    /// Replace existing files
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Reads, puts together, writes.
    pub fn run(self) -> anyhow::Result<()> {
        if Path::new(&self.name).file_name().is_none_or(|name| name != self.name.as_str()) {
            return Err(refusal(
                format!("--name {:?} has a folder, expected a file name", self.name),
                "choose the folder with --out",
            ));
        }
        ResultsTable::may_write(&self.out, &self.name, self.force)?;
        let methods = self.rows.iter().map(|row| method(row)).collect::<anyhow::Result<Vec<Method>>>()?;
        for (index, method) in methods.iter().enumerate() {
            if methods[..index].iter().any(|earlier| earlier.name == method.name) {
                let message = format!("two rows are called {:?}", method.name);
                return Err(refusal(message, "give one of them another name: --row NAME=DIR"));
            }
        }
        if let Some(against) = &self.against {
            let names: Vec<&str> = methods.iter().map(|method| &*method.name).collect();
            if !names.contains(&&**against) {
                let message = format!("--against {against:?} is not a row of this table");
                return Err(refusal(message, format!("choose one of {}", names.join(", "))));
            }
        }
        let table = tabulate(&methods, self.published, self.against.as_deref())?;
        let written = table.write(&self.out, &self.name)?;
        print_line!("{}", table.markdown().trim_end());
        print_note!("table: {}", written.display());
        Ok(())
    }
}

/// A row as typed. Without a name it is called by its folder's.
fn method(text: &str) -> anyhow::Result<Method> {
    let (name, folders) = match text.split_once('=') {
        Some((name, folders)) => (Some(name.to_string()), folders),
        None => (None, text),
    };
    let paths: Vec<PathBuf> = folders.split(',').map(PathBuf::from).collect();
    let malformed =
        |what: &str| refusal(format!("--row {text:?}: {what} is missing"), "write --row NAME=DIR or --row NAME=DIR,DIR");
    if paths.iter().any(|path| path.as_os_str().is_empty()) {
        return Err(malformed("a folder"));
    }
    let by_folder =
        || paths[0].file_name().map_or_else(|| paths[0].display().to_string(), |name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(by_folder);
    if name.trim().is_empty() {
        return Err(malformed("the name"));
    }
    let seeds = paths.iter().map(|path| EvaluationFolder::open(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(Method { name, seeds })
}
