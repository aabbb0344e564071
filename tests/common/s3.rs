//! An S3 server on loopback in the test's process, and child processes of the test binary that find it through the `AWS_*` variables.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The only bucket.
pub const BUCKET: &str = "lab";
/// The credentials.
const USER: (&str, &str) = ("AKIDTEST", "a secret of the tests");

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused, as by an overloaded server.
    Refused,
    /// It is never answered.
    Hangs,
    /// The connection breaks before the server sees it.
    Reset,
    /// The server does what is asked, and the connection breaks before it answers.
    AnswerLost,
    /// The connection breaks in the middle of the answer.
    Cut,
    /// The answer stops in its middle, and the connection stays.
    Stalls,
    /// A byte of the answer is another one.
    Torn,
}

/// A request, as far as a fault depends on it.
pub struct Asked {
    /// From 1.
    pub number: usize,
    pub method: hyper::Method,
    /// Path and query.
    pub target: String,
    pub range: Option<String>,
    /// Whether it writes an object unless it exists.
    pub is_conditional: bool,
}

impl Asked {
    fn new(number: usize, request: &hyper::Request<hyper::body::Incoming>) -> Self {
        let has = |name: &str| request.headers().contains_key(name);
        Asked {
            number,
            method: request.method().clone(),
            target: request.uri().to_string(),
            range: request.headers().get("range").map(|range| range.to_str().unwrap().to_string()),
            is_conditional: has("if-none-match"),
        }
    }

    pub fn is_listing(&self) -> bool {
        self.method == hyper::Method::GET && self.target.contains("list-type=2")
    }
}

/// Decides what goes wrong with each request.
pub type Faults = Box<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

/// An answer's bytes, all or half of them.
struct Answer {
    bytes: Option<Bytes>,
    is_cut: bool,
    stalls: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(match self.bytes.take() {
            Some(bytes) => Some(Ok(Frame::data(bytes))),
            None if self.stalls => return Poll::Pending,
            None if self.is_cut => Some(Err(io::ErrorKind::BrokenPipe.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none() && !self.is_cut && !self.stalls
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if self.is_cut || self.stalls { SizeHint::default() } else { SizeHint::with_exact(left) }
    }
}

/// All bytes of a body.
async fn whole(mut body: s3s::Body) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        bytes.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
    }
    bytes.into()
}

/// An answer as the client gets it.
async fn send(answer: hyper::Response<s3s::Body>, fault: Option<Fault>) -> hyper::Response<Answer> {
    let (mut parts, body) = answer.into_parts();
    let mut bytes = whole(body).await;
    let is_cut = fault == Some(Fault::Cut) && !bytes.is_empty();
    let stalls = fault == Some(Fault::Stalls) && !bytes.is_empty();
    if is_cut || stalls {
        parts.headers.insert("content-length", bytes.len().into());
        bytes = bytes.slice(..bytes.len() / 2);
    }
    if fault == Some(Fault::Torn) && !bytes.is_empty() {
        let mut torn = bytes.to_vec();
        let middle = torn.len() / 2;
        torn[middle] ^= 1;
        bytes = torn.into();
    }
    hyper::Response::from_parts(parts, Answer { bytes: Some(bytes).filter(|bytes| !bytes.is_empty()), is_cut, stalls })
}

/// The answer to a request for more bytes at the end of an object than it has: all of them, and of an empty object a refusal, as S3 answers.
/// The server of `s3s_fs` fails.
fn end_of_short_object(root: &Path, asked: &Asked) -> Option<hyper::Response<s3s::Body>> {
    let wanted: u64 = asked.range.as_ref()?.strip_prefix("bytes=-")?.parse().ok()?;
    let bytes = fs::read(root.join(asked.target.trim_start_matches('/'))).ok()?;
    let len = bytes.len() as u64;
    if len >= wanted || asked.method != hyper::Method::GET {
        return None;
    }
    let answer = hyper::Response::builder();
    let answer = match len {
        0 => answer.status(416).body("<Error><Code>InvalidRange</Code></Error>".to_string().into()),
        _ => answer
            .status(206)
            .header("content-length", len)
            .header("content-range", format!("bytes 0-{}/{len}", len - 1))
            .header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            .body(Bytes::from(bytes).into()),
    };
    Some(answer.unwrap())
}

/// A server that stops when it is dropped.
pub struct Server {
    _runtime: Runtime,
    address: String,
    folder: tempfile::TempDir,
    requests: Arc<AtomicUsize>,
    /// One request in this many is refused, as by an overloaded server; 0 for none.
    pub refuse_every: Arc<AtomicUsize>,
    faults: Arc<Mutex<Option<Faults>>>,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(USER.0, USER.1));
        let s3 = builder.build();
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (requests, refuse_every) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let faults: Arc<Mutex<Option<Faults>>> = Arc::default();
        let (counter, every, chosen) = (requests.clone(), refuse_every.clone(), faults.clone());
        let root = folder.path().to_path_buf();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (s3, counter, every, chosen) = (s3.clone(), counter.clone(), every.clone(), chosen.clone());
                let root = root.clone();
                let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let asked = Asked::new(counter.fetch_add(1, Ordering::SeqCst) + 1, &request);
                    let every = every.load(Ordering::SeqCst);
                    let refused = (every > 0 && asked.number.is_multiple_of(every)).then_some(Fault::Refused);
                    let fault = refused.or_else(|| chosen.lock().unwrap().as_ref().and_then(|faults| faults(&asked)));
                    let (s3, short) = (s3.clone(), end_of_short_object(&root, &asked));
                    async move {
                        match fault {
                            Some(Fault::Refused) => {
                                let refusal = hyper::Response::builder().status(503).body(s3s::Body::empty()).unwrap();
                                return Ok(send(refusal, None).await);
                            }
                            Some(Fault::Hangs) => std::future::pending().await,
                            Some(Fault::Reset) => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                            _ => {}
                        }
                        let answer = match short {
                            Some(answer) => answer,
                            None => Service::call(&s3, request).await.unwrap(),
                        };
                        if fault == Some(Fault::AnswerLost) {
                            return Err(io::ErrorKind::ConnectionReset.into());
                        }
                        Ok(send(answer, fault).await)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
            }
        });
        Server { _runtime: runtime, address, folder, requests, refuse_every, faults }
    }

    /// From now on `faults` decides what goes wrong.
    pub fn break_by(&self, faults: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        *self.faults.lock().unwrap() = Some(Box::new(faults));
    }

    /// The server's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Number of requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Folder where the server keeps the objects of a place, each as a file with the name of its key.
    pub fn folder(&self, place: &str) -> PathBuf {
        self.folder.path().join(place.strip_prefix("s3://").unwrap())
    }

    /// Sets the variables with which a child uses the bucket.
    pub fn tell(&self, command: &mut Command) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("AWS_ENDPOINT_URL", &self.address).env("AWS_REGION", "us-east-1").env("NO_PROXY", "127.0.0.1");
        command.env("AWS_ACCESS_KEY_ID", USER.0).env("AWS_SECRET_ACCESS_KEY", USER.1);
    }

    /// Runs the otherwise ignored `test` of this binary as a child that uses the bucket; `folder` is its working folder.
    pub fn run_child(&self, test: &str, folder: &Path) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--ignored", "--test-threads=1", "--nocapture"]).env("SAM_LADDER_FOLDER", folder);
        self.tell(&mut command);
        let output = command.output().unwrap();
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }
}

/// A child's working folder.
pub fn child_folder() -> PathBuf {
    std::env::var_os("SAM_LADDER_FOLDER").expect("only run as a child").into()
}
