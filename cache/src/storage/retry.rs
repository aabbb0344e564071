//! Requests that are made again: what the library gives up at once although another attempt may succeed, such as an answer that is cut.

use object_store::client::HttpError;
use object_store::{BackoffConfig, Error, RetryConfig};
use std::error::Error as _;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// How long a request is made again. Work that takes hours must survive a server's restart.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The same for the first request to a bucket: a mistyped address should fail quickly.
pub(super) const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// Pauses grow from the first to the longest, on average by half; their length is random, so that many clients do not come back at once.
const PAUSES: BackoffConfig =
    BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(10), base: 3.0 };
/// More attempts than fit any patience.
const UNBOUNDED: usize = 1_000_000;

/// The library's own attempts, bounded by time only.
pub(super) fn policy(patience: Duration) -> RetryConfig {
    RetryConfig { backoff: PAUSES, max_retries: UNBOUNDED, retry_timeout: patience }
}

/// Makes a request until it succeeds, is refused, or `patience` has passed since the first attempt.
pub(super) async fn patiently<T, F>(patience: Duration, mut request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let started = Instant::now();
    let mut longest = PAUSES.init_backoff;
    loop {
        match request().await {
            Err(error) if is_cut(&error) && started.elapsed() < patience => {
                tokio::time::sleep(longest.mul_f64(0.5 + random() / 2.0)).await;
                longest = longest.mul_f64(1.5).min(PAUSES.max_backoff);
            }
            done => return done,
        }
    }
}

/// Whether a request failed on its way, or its answer is not whole.
fn is_cut(error: &Error) -> bool {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<HttpError>() {
            // Without credentials the library asks an Amazon machine's own server, which is nowhere else.
            return !is_about_credentials(&text);
        }
        text = format!("{text} {inner}");
        cause = inner.source();
    }
    text.contains("Got invalid list response")
}

/// Whether an error's text is about a request for credentials.
pub(super) fn is_about_credentials(text: &str) -> bool {
    ["InstanceCredentialProvider", "instance metadata", "/latest/api/token"].iter().any(|part| text.contains(part))
}

/// From 0 to 1.
fn random() -> f64 {
    random_word() as f64 / u64::MAX as f64
}

/// A number that no other process draws.
pub(super) fn random_word() -> u64 {
    // The standard library seeds each new hasher randomly.
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::client::HttpErrorKind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cut() -> Error {
        let source = HttpError::new(HttpErrorKind::Decode, std::io::Error::other("the connection was closed"));
        Error::Generic { store: "S3", source: Box::new(source) }
    }

    fn attempts(patience: Duration, error: fn() -> Error) -> (usize, bool) {
        let count = AtomicUsize::new(0);
        let request = || async { if count.fetch_add(1, Ordering::SeqCst) < 2 { Err(error()) } else { Ok(()) } };
        let done = super::super::bucket::wait(patiently(patience, request));
        (count.into_inner(), done.is_ok())
    }

    #[test]
    fn a_cut_answer_is_requested_again_and_a_refusal_is_not() {
        assert_eq!(attempts(PATIENCE, cut), (3, true));
        assert_eq!(attempts(Duration::ZERO, cut), (1, false));
        let refusal = || Error::PermissionDenied { path: "a".into(), source: "no".into() };
        assert_eq!(attempts(PATIENCE, refusal), (1, false));
    }
}
