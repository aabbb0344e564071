//! `sam-ladder schema`.

use crate::print;
use clap::ValueEnum;
use sam_ladder_schemas::json_schema::schema_of;
use sam_ladder_schemas::slurm::SlurmConfig;
use sam_ladder_schemas::sweep::SweepFile;
use sam_ladder_schemas::train::RunRecord;

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder schema sweep
  sam-ladder schema slurm

With the text in a file, a TOML file whose first line is
  #:schema sweep.schema.json
is completed and checked as you type by editors that use Taplo, such as
VS Code with Even Better TOML.")]
pub struct Args {
    /// Which file
    #[arg(value_enum)]
    file: SettingsFile,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SettingsFile {
    /// The file of `sweep --config`: what is searched, and how
    Sweep,
    /// The file of `--slurm`: options of the jobs
    Slurm,
    /// A run's config.json
    Config,
}

impl Args {
    /// Prints the schema.
    pub fn run(self) -> anyhow::Result<()> {
        let schema = match self.file {
            SettingsFile::Sweep => schema_of::<SweepFile>(),
            SettingsFile::Slurm => schema_of::<SlurmConfig>(),
            SettingsFile::Config => schema_of::<RunRecord>(),
        };
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        print::raw(text.as_bytes());
        Ok(())
    }
}
