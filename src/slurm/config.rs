//! The file of `--slurm`.

use sam_ladder_formats::Error;
use sam_ladder_schemas::setting::FileError;
use sam_ladder_schemas::slurm::SlurmConfig;
use sam_ladder_schemas::toml_file::TomlFile;
use std::path::Path;

/// Reads the TOML file of `--slurm`.
///
/// # Errors
/// A file that cannot be read, and an unknown key or a value that `sbatch` would not take, with line and column.
pub fn read_config(path: &Path) -> anyhow::Result<SlurmConfig> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(parse(&path.display().to_string(), &text)?)
}

fn parse(name: &str, text: &str) -> Result<SlurmConfig, FileError> {
    let file = TomlFile::parse(name, text)?;
    let config: SlurmConfig = file.read()?;
    config.validate().map_err(|error| file.locate(error))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::slurm::JobKind;

    #[test]
    fn options_are_read() {
        let text = "[job]\npartition = \"gpu\"\ngpus = 1\ncpus-per-task = 8\ntime = \"08:00:00\"\n[sweep]\ngpus = \"a100:1\"\n";
        let config = parse("s.toml", text).unwrap();
        assert_eq!(config.of(JobKind::Sweep).gpus.unwrap().to_string(), "a100:1");
        assert_eq!(config.of(JobKind::Finish).cpus_per_task, Some(8));
    }

    #[test]
    fn what_is_wrong_is_reported_with_line_column_and_key() {
        for (text, expected) in [
            (
                "[job]\npartition = \"gpu\"\npartitions = \"gpu\"\n",
                "s.toml:3:1: job.partitions: unknown key, did you mean `partition`?",
            ),
            ("[job]\ntasks = \"four\"\n", "s.toml:2:1: job.tasks: expected a whole number from 1, found \"four\""),
            ("[job]\ngpus = true\n", "s.toml:2:1: job.gpus: expected a whole number from 0 or a string, found true"),
            ("[train]\n", "s.toml:1:2: train: unknown key, the keys here are job, precompute, finish, sweep, final"),
            (
                "[job]\n\n[sweep]\noptions = [\n  \"--exclusive\",\n  \"--array=1-9\",\n]\n",
                "s.toml:6:3: sweep.options[1]: --array is set by the program, leave it out",
            ),
            ("[job]\ntime = 1:00\n", "s.toml:2:8: not TOML"),
        ] {
            let error = parse("s.toml", text).unwrap_err();
            let both = format!("{error}{}", error.hint().map_or_else(String::new, |hint| format!(", {hint}")));
            assert!(both.starts_with(expected), "{both}\n{expected}");
        }
    }
}
