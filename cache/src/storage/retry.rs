//! Requests that are made again: what the library gives up at once although another attempt may succeed, such as an answer that is cut.

use super::silence::silent_since;
use object_store::client::HttpError;
use object_store::{BackoffConfig, Error, RetryConfig};
use std::error::Error as _;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// How long a request is made again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// While the server refuses, or its answers are cut. Work that takes hours must survive a server's restart.
    pub(super) total: Duration,
    /// While the server says nothing: it hangs, and does so longer than it takes to restart.
    pub(super) silence: Duration,
}

impl Patience {
    /// Of all requests but the first.
    pub(super) const USUAL: Patience = Patience { total: Duration::from_secs(120), silence: Duration::from_secs(24) };
    /// Of the first request to a bucket: a mistyped address should fail quickly.
    pub(super) const FIRST: Patience = Patience { total: Duration::from_secs(10), silence: Duration::from_secs(16) };

    /// The silence after which an attempt is given up: there is time for a second one, on another connection.
    pub(super) fn of_an_attempt(self) -> Duration {
        self.silence / 2
    }
}

/// Pauses grow from the first to the longest, on average by half; their length is random, so that many clients do not come back at once.
const PAUSES: BackoffConfig =
    BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: Duration::from_secs(10), base: 3.0 };
/// An attempt that follows another one begins within this time.
const AT_ONCE: Duration = Duration::from_secs(1);
/// More attempts than fit any patience.
const UNBOUNDED: usize = 1_000_000;

/// The library's own attempts, bounded by time only.
pub(super) fn policy(patience: Patience) -> RetryConfig {
    RetryConfig { backoff: PAUSES, max_retries: UNBOUNDED, retry_timeout: patience.total }
}

/// Makes a request until it succeeds, is refused, or `patience` has passed: since the first attempt, or since the server's last sign of life.
pub(super) async fn patiently<T, F>(patience: Patience, mut request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let started = Instant::now();
    let mut longest = PAUSES.init_backoff;
    // Since when the server has been silent, and when the last attempt ended.
    let mut silent: Option<(Instant, Instant)> = None;
    loop {
        let outcome = request().await;
        if let Some(since) = outcome.as_ref().err().and_then(silent_since) {
            // A sign of life between two attempts begins a new silence.
            let before = silent.filter(|(_, ended)| since.saturating_duration_since(*ended) < AT_ONCE);
            let since = before.map_or(since, |(first, _)| first);
            silent = Some((since, Instant::now()));
            // One more attempt takes half of the time.
            if since.elapsed() < patience.silence.mul_f64(0.75) {
                continue;
            }
            return outcome;
        }
        match outcome {
            Err(error) if is_cut(&error) && started.elapsed() < patience.total => {
                silent = None;
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
    use super::super::silence::Silent;
    use super::*;
    use object_store::client::HttpErrorKind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cut() -> Error {
        let source = HttpError::new(HttpErrorKind::Decode, std::io::Error::other("the connection was closed"));
        Error::Generic { store: "S3", source: Box::new(source) }
    }

    fn attempts(patience: Patience, failures: usize, error: impl Fn() -> Error) -> (usize, bool) {
        let count = AtomicUsize::new(0);
        let request = || async { if count.fetch_add(1, Ordering::SeqCst) < failures { Err(error()) } else { Ok(()) } };
        let done = super::super::bucket::wait(patiently(patience, request));
        (count.into_inner(), done.is_ok())
    }

    #[test]
    fn a_silent_server_is_asked_twice_and_reported_within_half_a_minute() {
        let silent = |since: Instant| {
            move || Error::Generic { store: "S3", source: Box::new(HttpError::new(HttpErrorKind::Unknown, Silent { since })) }
        };
        for patience in [Patience::USUAL, Patience::FIRST] {
            let half = patience.of_an_attempt();
            let ago = |time: Duration| Instant::now().checked_sub(time).unwrap();
            // After one attempt there is time for another; after two there is not.
            assert_eq!(attempts(patience, 1, silent(ago(half))), (2, true));
            assert_eq!(attempts(patience, 9, silent(ago(half * 2))), (1, false));
            assert!(half * 2 < Duration::from_secs(28));
        }
    }

    #[test]
    fn a_cut_answer_is_requested_again_and_a_refusal_is_not() {
        assert_eq!(attempts(Patience::USUAL, 2, cut), (3, true));
        assert_eq!(attempts(Patience { total: Duration::ZERO, ..Patience::USUAL }, 2, cut), (1, false));
        let refusal = || Error::PermissionDenied { path: "a".into(), source: "no".into() };
        assert_eq!(attempts(Patience::USUAL, 2, refusal), (1, false));
    }
}
