//! What can be wrong with a setting, wherever it was written: on the command line, in a file, in a run's record.

use std::fmt;

/// A setting that cannot be used: which one, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingError {
    /// Its path: `lambda`, `settings.lr.min`, `settings.optimizer[1]`; empty if the text as a whole is wrong.
    pub setting: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// There is no such setting.
    #[error("unknown key")]
    Unknown {
        /// The keys that exist.
        known: Vec<String>,
    },
    /// A value of another kind, or out of range.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// The accepted values, in words.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A required setting is missing.
    #[error("expected {0}, found nothing")]
    Missing(String),
    /// Another setting has to be changed first.
    #[error("{reason}")]
    Conflict {
        /// The settings that conflict.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The text is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
}

impl Problem {
    /// [`Problem::Expected`].
    pub fn expected(expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Problem::Expected { expected: expected.to_string(), found: found.to_string() }
    }

    /// [`Problem::Conflict`].
    pub fn conflict(reason: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Problem::Conflict { reason: reason.to_string(), hint: hint.to_string() }
    }

    /// The problem with a setting of this path.
    pub fn with(self, setting: impl fmt::Display) -> SettingError {
        SettingError { setting: setting.to_string(), problem: self }
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.setting.as_str() {
            "" => self.problem.fmt(f),
            setting => write!(f, "{setting}: {}", self.problem),
        }
    }
}

impl std::error::Error for SettingError {}

impl SettingError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match &self.problem {
            Problem::Unknown { known } => {
                let key = self.setting.rsplit('.').next().unwrap_or_default();
                Some(match nearest(key, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the keys here are {}", known.join(", ")),
                })
            }
            Problem::Conflict { hint, .. } => Some(hint.clone()),
            Problem::Expected { .. } | Problem::Missing(_) | Problem::Syntax(_) => None,
        }
    }
}

/// A setting of a file that cannot be used, and where it stands.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{file}:{line}:{column}: {error}")]
pub struct FileError {
    /// The file's name.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub error: SettingError,
}

impl FileError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        self.error.hint()
    }
}

/// The known word most similar to a mistyped one; `None` if none is similar.
fn nearest<'a>(typed: &str, known: &'a [String]) -> Option<&'a String> {
    let typed = typed.replace('-', "_");
    let likeness = |word: &String| strsim::jaro_winkler(&typed, &word.replace('-', "_"));
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then_some(best)
}
