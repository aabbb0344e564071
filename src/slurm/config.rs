//! The file of options.

use anyhow::{Context, anyhow};
use sam_ladder_schemas::slurm::SlurmConfig;
use std::path::Path;

/// Reads the TOML file of `--slurm`.
///
/// # Errors
/// When it cannot be read, has a key that is not known, or a value that `sbatch` would not take, naming file, line and key.
pub fn read_config(path: &Path) -> anyhow::Result<SlurmConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the options for Slurm {}", path.display()))?;
    parse(&text).with_context(|| format!("{}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<SlurmConfig> {
    let config: SlurmConfig = toml::from_str(text).map_err(|error| {
        let before = &text.as_bytes()[..error.span().map_or(0, |span| span.start.min(text.len()))];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        anyhow!("line {line}: {}", error.message())
    })?;
    config.validate().map_err(anyhow::Error::msg)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::slurm::JobKind;

    #[test]
    fn options_are_read_and_unknown_keys_refused_with_their_line() {
        let text = "[job]\npartition = \"gpu\"\ngpus = 1\ncpus-per-task = 8\ntime = \"08:00:00\"\n[sweep]\ngpus = \"a100:1\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.of(JobKind::Sweep).gpus.unwrap().to_string(), "a100:1");
        assert_eq!(config.of(JobKind::Finish).cpus_per_task, Some(8));
        let error = format!("{:#}", parse("[job]\npartition = \"gpu\"\npartitions = \"gpu\"\n").unwrap_err());
        assert!(error.starts_with("line 3: unknown field `partitions`, expected one of"), "{error}");
        let error = format!("{:#}", parse("[job]\ntasks = \"four\"\n").unwrap_err());
        assert!(error.starts_with("line 2: invalid type"), "{error}");
        let error = format!("{:#}", parse("[train]\n").unwrap_err());
        assert!(error.contains("unknown field `train`"), "{error}");
    }
}
