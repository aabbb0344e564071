//! `--cache-dir`, `--cache-size`: local copies of what is read from a store on S3.

use sam_ladder_cache::CacheOptions;
use std::path::PathBuf;

/// 20 GiB.
const DEFAULT_BYTES: u64 = 20 << 30;

/// The options themselves.
#[derive(Debug, Default, clap::Args)]
pub struct Cache {
    /// For a store on S3: local folder for copies of what was read; several runs may share it [default: ~/.cache/sam-ladder]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// For a store on S3: maximum size of --cache-dir in bytes; K, M, G and T are powers of 1024 [default: 20G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<u64>,
}

impl Cache {
    /// What was typed, or the defaults.
    pub fn options(&self) -> CacheOptions {
        CacheOptions {
            folder: self.cache_dir.clone().unwrap_or_else(default_folder),
            max_bytes: self.cache_size.unwrap_or(DEFAULT_BYTES),
        }
    }
}

/// The user's own folder for caches: `$XDG_CACHE_HOME/sam-ladder`, `~/.cache/sam-ladder`, or one in the temporary folder.
fn default_folder() -> PathBuf {
    let set = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".cache"));
    set("XDG_CACHE_HOME").or_else(home).unwrap_or_else(std::env::temp_dir).join("sam-ladder")
}

/// `20G`.
fn parse_size(typed: &str) -> Result<u64, String> {
    let digits = typed.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let power = match &typed[digits.len()..] {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let bytes = digits.parse::<u64>().ok().zip(power).and_then(|(number, power)| number.checked_mul(1 << power));
    bytes.ok_or_else(|| format!("expected a number of bytes such as 500M or 20G, found {typed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_size("500"), Ok(500));
        assert_eq!(parse_size("3M"), Ok(3 << 20));
        assert_eq!(parse_size("2T"), Ok(2 << 40));
        for wrong in ["", "G", "1.5G", "-1M", "20GB", "99999999999T"] {
            assert!(parse_size(wrong).unwrap_err().contains("such as 500M or 20G"), "{wrong}");
        }
    }
}
