//! How errors are printed: what happened, with its causes, in one line; then what to do, in another.

use sam_ladder_eval::EvalError;
use sam_ladder_precompute::encoder::EncoderError;
use sam_ladder_precompute::error::Error as PrecomputeError;
use sam_ladder_precompute::phantom::PhantomError;
use sam_ladder_precompute::scans::ScanError;
use sam_ladder_schemas::setting::{FileError, SettingError};
use sam_ladder_train::TrainError;
use sam_ladder_train::model::ModelError;

/// What the command line itself refuses: what is wrong, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// A [`Refusal`].
pub fn refusal(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Refusal { message: message.into(), hint: hint.into() }.into()
}

/// The whole chain of causes in one line, without those whose text the error above them already quotes.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

/// What to do, from the first error of the chain that knows.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    // As a context a refusal is hidden from the chain, but not from the error.
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Some(refusal.hint.clone());
    }
    error.chain().find_map(|cause| {
        // Each crate's error passes on the hint of the error that it wraps.
        None.or_else(|| cause.downcast_ref::<Refusal>().map(|refusal| refusal.hint.clone()))
            .or_else(|| cause.downcast_ref().and_then(TrainError::hint))
            .or_else(|| cause.downcast_ref().and_then(PrecomputeError::hint))
            .or_else(|| cause.downcast_ref().and_then(ScanError::hint))
            .or_else(|| cause.downcast_ref().and_then(EncoderError::hint))
            .or_else(|| cause.downcast_ref().and_then(PhantomError::hint))
            .or_else(|| cause.downcast_ref().and_then(ModelError::hint))
            .or_else(|| cause.downcast_ref().and_then(EvalError::hint))
            .or_else(|| cause.downcast_ref().and_then(sam_ladder_cache::Error::hint))
            .or_else(|| cause.downcast_ref().and_then(sam_ladder_formats::Error::hint))
            .or_else(|| cause.downcast_ref().and_then(SettingError::hint))
            .or_else(|| cause.downcast_ref().and_then(FileError::hint))
            .or_else(|| cause.downcast_ref().and_then(sam_ladder_formats::io_hint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::setting::Problem;

    #[test]
    fn the_chain_is_printed_once_in_one_line() {
        let error = anyhow::anyhow!("no space left").context("img0001.nii.gz:\n no space left").context("case 0001");
        assert_eq!(one_line(&error), "case 0001: img0001.nii.gz: no space left");
        assert_eq!(hint(&error), None);
    }

    #[test]
    fn the_first_hint_of_the_chain_is_found() {
        let known = vec!["lambda".to_string()];
        let error = anyhow::Error::from(Problem::Unknown { known }.with("lamda")).context("a sweep");
        assert_eq!(one_line(&error), "a sweep: lamda: unknown key");
        assert_eq!(hint(&error).as_deref(), Some("did you mean `lambda`?"));
        let outer = error.context(Refusal { message: "no sweep".into(), hint: "write one".into() });
        assert_eq!(hint(&outer), Some("write one".into()));
    }
}
