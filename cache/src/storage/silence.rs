//! Ends a request to which a server says nothing for a while, which the library's own time limits cannot: they make the request again and
//! again, and take a server that receives a large object for one that hangs.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use std::error::Error as _;
use std::time::{Duration, Instant};

/// Bytes that a server is given a second to receive, in which it says nothing.
const SENT_PER_SECOND: f64 = (1u64 << 20) as f64;
/// Most bytes for which memory is reserved because an answer announces them.
const RESERVED: usize = 64 << 20;

/// The server has said nothing since then. Its text is the library's of a request that took too long.
#[derive(Debug, thiserror::Error)]
#[error("operation timed out")]
pub(super) struct Silent {
    pub(super) since: Instant,
}

/// Since when the server has been silent, if that is the error.
pub(super) fn silent_since(error: &object_store::Error) -> Option<Instant> {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(silent) = inner.downcast_ref::<Silent>() {
            return Some(silent.since);
        }
        cause = inner.source();
    }
    None
}

/// Makes clients that give up a request after `silence` without a byte of the server.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) silence: Duration,
}

impl HttpConnector for Listening {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Listener { inner, silence: self.silence }))
    }
}

#[derive(Debug)]
struct Listener {
    inner: HttpClient,
    silence: Duration,
}

#[async_trait]
impl HttpService for Listener {
    /// The answer with all its bytes, which the callers need anyway.
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut heard = Instant::now();
        let sending = Duration::from_secs_f64(request.body().content_length() as f64 / SENT_PER_SECOND);
        let answer = match tokio::time::timeout(self.silence + sending, self.inner.execute(request)).await {
            Err(_) => return Err(silent(heard)),
            // No connection came about in its time.
            Ok(Err(error)) if error.kind() == HttpErrorKind::Timeout => return Err(silent(heard)),
            Ok(answer) => answer?,
        };
        let (parts, body) = answer.into_parts();
        let announced = parts.headers.get("content-length").and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
        let mut stream = body.bytes_stream();
        let mut whole: Vec<u8> = Vec::new();
        heard = Instant::now();
        loop {
            match tokio::time::timeout(self.silence, stream.next()).await {
                Err(_) => return Err(silent(heard)),
                Ok(None) => return Ok(HttpResponse::from_parts(parts, Bytes::from(whole).into())),
                Ok(Some(bytes)) => {
                    let bytes = bytes?;
                    if whole.is_empty() {
                        whole.reserve_exact(announced.unwrap_or_default().clamp(bytes.len(), RESERVED.max(bytes.len())));
                    }
                    whole.extend_from_slice(&bytes);
                    heard = Instant::now();
                }
            }
        }
    }
}

/// Of a kind that the library does not try again: that is decided where all attempts are known.
fn silent(since: Instant) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, Silent { since })
}
