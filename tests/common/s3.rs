//! An S3 server on loopback in the test's process, and child processes of the test binary that find it through the `AWS_*` variables.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The only bucket.
pub const BUCKET: &str = "lab";
/// The credentials.
const USER: (&str, &str) = ("AKIDTEST", "a secret of the tests");

/// A server that stops when it is dropped.
pub struct Server {
    _runtime: Runtime,
    address: String,
    folder: tempfile::TempDir,
    requests: Arc<AtomicUsize>,
    /// One request in this many is refused, as by an overloaded server; 0 for none.
    pub refuse_every: Arc<AtomicUsize>,
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
        let (counter, every) = (requests.clone(), refuse_every.clone());
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (s3, counter, every) = (s3.clone(), counter.clone(), every.clone());
                let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
                    let every = every.load(Ordering::SeqCst);
                    let s3 = s3.clone();
                    async move {
                        if every > 0 && number % every == 0 {
                            let refusal = hyper::Response::builder().status(503).body(s3s::Body::empty()).unwrap();
                            return Ok::<_, Infallible>(refusal);
                        }
                        Ok(Service::call(&s3, request).await.unwrap())
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
            }
        });
        Server { _runtime: runtime, address, folder, requests, refuse_every }
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
