//! How the cases of one patient are recognised, as typed: `regex:EXPR` or `csv:FILE:COLUMN`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// How the cases of one patient are recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GroupBy {
    /// By the part of their names that a regular expression matches: its first capture group, or all of it.
    Regex(String),
    /// By a table.
    Csv {
        /// A CSV file with a column `case`.
        file: PathBuf,
        /// The column of the patients.
        column: String,
    },
}

/// The accepted forms, in words.
pub const GROUP_BY_FORMS: &str = "regex:EXPR or csv:FILE:COLUMN";

impl FromStr for GroupBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let csv = |rest: &str| rest.rsplit_once(':').map(|(file, column)| (file.to_string(), column.to_string()));
        match text.split_once(':') {
            Some(("regex", expression)) if !expression.is_empty() => Ok(GroupBy::Regex(expression.into())),
            Some(("csv", rest)) => match csv(rest) {
                Some((file, column)) if !file.is_empty() && !column.is_empty() => Ok(GroupBy::Csv { file: file.into(), column }),
                _ => Err(format!("expected csv:FILE:COLUMN, found {text}")),
            },
            _ => Err(format!("expected {GROUP_BY_FORMS}, found {text}")),
        }
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupBy::Regex(expression) => write!(f, "regex:{expression}"),
            GroupBy::Csv { file, column } => write!(f, "csv:{}:{column}", file.display()),
        }
    }
}

crate::by_text!(GroupBy);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_they_are_written() {
        for (text, expected) in [
            (r"regex:^(\d+)_v:\d", GroupBy::Regex(r"^(\d+)_v:\d".into())),
            ("csv:/data/a b.csv:patient", GroupBy::Csv { file: "/data/a b.csv".into(), column: "patient".into() }),
            (r"csv:C:\a.csv:id", GroupBy::Csv { file: r"C:\a.csv".into(), column: "id".into() }),
        ] {
            let read: GroupBy = text.parse().unwrap();
            assert_eq!(read, expected);
            assert_eq!(read.to_string(), text);
            assert_eq!(serde_json::from_value::<GroupBy>(serde_json::json!(read)).unwrap(), expected);
        }
        for wrong in ["", "regex:", "csv:a.csv", "csv::patient", "csv:a.csv:", "^(.+)_", "table:a.csv:b"] {
            assert!(wrong.parse::<GroupBy>().unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
