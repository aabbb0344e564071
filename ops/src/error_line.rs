//! Errors of the tensor library in one line.

use candle_core::Error;

/// The error without the backtrace that the tensor library appends to it where `RUST_BACKTRACE` is set.
pub fn error_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_end().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_has_no_backtrace_in_it() {
        assert_eq!(error_line(&Error::msg("no device\n   0: <unknown>\n   1: main")), "no device");
        assert_eq!(error_line(&Error::msg("")), "");
    }
}
