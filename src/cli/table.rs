//! `sam-ladder table`: several evaluations as one table, in Markdown, LaTeX and Parquet.

use anyhow::{bail, ensure};
use sam_ladder_eval::{EvaluationFolder, Method, tabulate};
use std::path::{Path, PathBuf};

/// Arguments of `table`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder table --row ladder=runs/first --published --out tables
  sam-ladder table --row full=runs/first --row untrained=untrained --against full \\
      --out tables --name ablation
")]
pub struct Args {
    /// A row: its name, and its evaluation's folder or that of its run; several, with commas between, are seeds of one method
    #[arg(long = "row", value_name = "[NAME=]DIR[,DIR…]", required = true)]
    rows: Vec<String>,
    /// Put the published rows of other methods above (the eight Synapse organs alone have some)
    #[arg(long)]
    published: bool,
    /// Name of the row that the others are tested against
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
    /// Folder for the three files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the files are called, before .md, .tex and .parquet
    #[arg(long, value_name = "NAME", default_value = "table")]
    name: String,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Reads, puts together, writes.
    pub fn run(self) -> anyhow::Result<()> {
        ensure!(
            Path::new(&self.name).file_name().is_some_and(|name| name == self.name.as_str()),
            "--name {:?} must be a plain file name, without a folder",
            self.name
        );
        let target = self.out.join(format!("{}.md", self.name));
        ensure!(
            self.force || !target.exists(),
            "{} is already there; choose another --out or --name, or add --force",
            target.display()
        );
        let methods = self.rows.iter().map(|row| method(row)).collect::<anyhow::Result<Vec<Method>>>()?;
        for (index, method) in methods.iter().enumerate() {
            if methods[..index].iter().any(|earlier| earlier.name == method.name) {
                bail!("two rows are called {:?}: name one of them otherwise, as in --row NAME=DIR", method.name);
            }
        }
        if let Some(against) = &self.against {
            let names: Vec<&str> = methods.iter().map(|method| &*method.name).collect();
            ensure!(names.contains(&&**against), "--against {against:?} is none of the rows {names:?}");
        }
        let table = tabulate(&methods, self.published, self.against.as_deref())?;
        println!("{}", table.markdown().trim_end());
        eprintln!("table: {}", table.write(&self.out, &self.name)?.display());
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
    ensure!(paths.iter().all(|path| !path.as_os_str().is_empty()), "--row {text:?}: a folder's name is missing");
    let by_folder =
        || paths[0].file_name().map_or_else(|| paths[0].display().to_string(), |name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(by_folder);
    ensure!(!name.trim().is_empty(), "--row {text:?}: the name before = is missing");
    let seeds = paths.iter().map(|path| EvaluationFolder::open(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(Method { name, seeds })
}
