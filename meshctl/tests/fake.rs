//! A daemon of canned replies, and a way to run the binary against it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use vdc_api::{ErrorBody, MEDIA_JSON, MEDIA_SSE, STREAM_PROTOCOL};

/// What the daemon does with one request.
pub(crate) enum Reply {
    Whole {
        status: u16,
        media: &'static str,
        body: String,
    },
    /// Sends the body and keeps the stream open.
    Endless(String),
    /// Waits, then answers 200.
    Held(oneshot::Receiver<()>, String),
    /// Closes the connection without an answer.
    Hangup,
    /// The connection becomes a pipe, which the test holds.
    Upgrade(oneshot::Sender<OnUpgrade>),
}

pub(crate) type Pipe = TokioIo<Upgraded>;

/// A pipe to be.
pub(crate) struct Upgrading(oneshot::Receiver<OnUpgrade>);

impl Upgrading {
    pub(crate) async fn pipe(self) -> Pipe {
        TokioIo::new(self.0.await.expect("it is asked for").await.expect("the client takes it"))
    }
}

impl Reply {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::Whole { status, media: MEDIA_JSON, body: body.to_owned() }
    }

    pub(crate) fn stream(items: &[impl Serialize]) -> Self {
        Self::Whole { status: 200, media: MEDIA_SSE, body: events(items) }
    }

    pub(crate) fn stream_then_error(items: &[impl Serialize], error: &ErrorBody) -> Self {
        let error = serde_json::to_string(error).expect("plain data");
        Self::Whole { status: 200, media: MEDIA_SSE, body: format!("{}event: error\ndata: {error}\n\n", events(items)) }
    }

    pub(crate) fn endless_stream(items: &[impl Serialize]) -> Self {
        Self::Endless(events(items))
    }

    pub(crate) fn held(body: &str) -> (Self, oneshot::Sender<()>) {
        let (release, released) = oneshot::channel();
        (Self::Held(released, body.to_owned()), release)
    }

    pub(crate) fn upgrade() -> (Self, Upgrading) {
        let (sender, coming) = oneshot::channel();
        (Self::Upgrade(sender), Upgrading(coming))
    }
}

fn events(items: &[impl Serialize]) -> String {
    let event =
        |item| format!(": hello\n\nevent: message\ndata: {}\n\n", serde_json::to_string(item).expect("plain data"));
    items.iter().map(event).collect()
}

#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) body: String,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Daemon {
    socket: PathBuf,
    shared: Arc<Shared>,
    _directory: TempDir,
    _server: JoinSet<()>,
}

struct Shared {
    replies: Mutex<VecDeque<Reply>>,
    requests: Mutex<Vec<Recorded>>,
    came: Semaphore,
}

impl Daemon {
    /// Answers one request after the other with the replies.
    #[expect(clippy::unused_async, reason = "must run inside the runtime")]
    pub(crate) async fn start(replies: Vec<Reply>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("meshd.sock");
        let listener = UnixListener::bind(&socket).expect("a fresh path");
        let (replies, requests, came) = (Mutex::new(replies.into()), Mutex::default(), Semaphore::new(0));
        let shared = Arc::new(Shared { replies, requests, came });
        let mut server = JoinSet::new();
        let of_server = Arc::clone(&shared);
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("the listener works");
                let shared = Arc::clone(&of_server);
                let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                // Errors are hang-ups, ours among them.
                connections.spawn(async move {
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await)
                });
            }
        });
        Self { socket, shared, _directory: directory, _server: server }
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        command(&self.socket, words)
    }

    pub(crate) async fn run(&self, words: &[&str]) -> Output {
        meshctl(&self.socket, words).await
    }

    pub(crate) async fn run_with_stdin(&self, words: &[&str], stdin: &str) -> Output {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let mut pipe = child.stdin.take().expect("piped");
        pipe.write_all(stdin.as_bytes()).await.expect("it reads");
        drop(pipe);
        finish(child.wait_with_output().await.expect("it ends"))
    }

    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.lock().expect("no test panics with it").clone()
    }

    /// Waits until a request has come.
    pub(crate) async fn first_request(&self) {
        self.shared.came.acquire().await.expect("never closed").forget();
    }
}

fn command(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(words).env("MESHCTL_SOCKET", socket).env_remove("MESHCTL_VDC").kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub(crate) async fn meshctl(socket: &Path, words: &[&str]) -> Output {
    finish(command(socket, words).stdin(Stdio::null()).output().await.expect("the binary runs"))
}

fn finish(output: std::process::Output) -> Output {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let code = output.status.code().expect("it was not killed");
    Output { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(shared: Arc<Shared>, mut request: Request<Incoming>) -> Result<Answer, &'static str> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let recorded = Recorded {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        body: String::from_utf8(body.to_vec()).expect("text"),
    };
    let reply = shared.replies.lock().expect("no test panics with it").pop_front();
    // While it waits for long, meshctl asks whether the daemon is there at all.
    if reply.is_none() && recorded.path == "/v1/version" {
        let version = serde_json::to_string(&vdc_api::samples::version()).expect("plain data");
        return Ok(respond(200, MEDIA_JSON, Full::new(Bytes::from(version)).boxed_unsync()));
    }
    shared.requests.lock().expect("no test panics with it").push(recorded);
    shared.came.add_permits(1);
    match reply.expect("a reply for each request") {
        Reply::Whole { status, media, body } => Ok(respond(status, media, Full::new(Bytes::from(body)).boxed_unsync())),
        Reply::Endless(body) => Ok(respond(200, MEDIA_SSE, Endless(Some(Bytes::from(body))).boxed_unsync())),
        Reply::Held(released, body) => {
            released.await.expect("the test releases it");
            Ok(respond(200, MEDIA_JSON, Full::new(Bytes::from(body)).boxed_unsync()))
        }
        Reply::Hangup => Err("hang up"),
        Reply::Upgrade(sender) => {
            assert_eq!(head.headers.get("upgrade").map(|value| value.as_bytes()), Some(STREAM_PROTOCOL.as_bytes()));
            drop(sender.send(upgrade));
            let response = Response::builder().status(101).header("connection", "upgrade");
            let response = response.header("upgrade", STREAM_PROTOCOL);
            Ok(response.body(Full::new(Bytes::new()).boxed_unsync()).expect("well-formed"))
        }
    }
}

fn respond(status: u16, media: &str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    Response::builder().status(status).header("content-type", media).body(body).expect("well-formed")
}

/// Gives its bytes and never ends.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Pending without a waker: only the end of the connection ends it.
        self.0.take().map_or(std::task::Poll::Pending, |bytes| std::task::Poll::Ready(Some(Ok(Frame::data(bytes)))))
    }
}
