//! A daemon of canned replies, and a way to run the binary against it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use vdc_api::frame::{self, Kind};
use vdc_api::{ErrorBody, MEDIA_BYTES, MEDIA_JSON, MEDIA_SSE, STREAM_PROTOCOL};

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
    /// Sends the body and breaks the connection off.
    Broken(String),
    /// Closes the connection without an answer.
    Hangup,
    /// Makes the connection a pipe, with this at its far end.
    Talk(Talk),
}

/// The far end of a pipe.
pub(crate) type Talk = Box<dyn FnOnce(Peer) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Frames both ways.
pub(crate) struct Peer {
    wire: TokioIo<Upgraded>,
    received: Vec<u8>,
}

impl Peer {
    pub(crate) async fn send(&mut self, kind: Kind, body: &[u8]) {
        let mut out = Vec::new();
        frame::encode(kind, body, &mut out);
        // A client that left hears no more.
        drop(self.wire.write_all(&out).await);
    }

    /// The next frame; none when the client has closed.
    pub(crate) async fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut piece = [0; 4 << 10];
        loop {
            if let Some(frame) = frame::decode(&self.received).expect("frames of meshctl") {
                let (kind, body, length) = (frame.kind, frame.body.to_vec(), frame.length);
                self.received.drain(..length);
                return Some((kind, body));
            }
            match self.wire.read(&mut piece).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
            }
        }
    }

    /// What is sent as input until its end.
    pub(crate) async fn input(&mut self) -> Vec<u8> {
        let mut input = Vec::new();
        loop {
            match self.next().await.expect("the end of the input is told") {
                (Kind::Stdin, bytes) => input.extend(bytes),
                (Kind::StdinEof, _) => return input,
                (kind, _) => panic!("{kind:?} instead of input"),
            }
        }
    }

    pub(crate) async fn exit(&mut self, code: i32) {
        self.send(Kind::Exit, &code.to_be_bytes()).await;
    }
}

impl Reply {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::Whole { status, media: MEDIA_JSON, body: body.to_owned() }
    }

    pub(crate) fn bytes(body: String) -> Self {
        Self::Whole { status: 200, media: MEDIA_BYTES, body }
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

    pub(crate) fn broken_stream(items: &[impl Serialize]) -> Self {
        Self::Broken(events(items))
    }

    pub(crate) fn talk<F>(talk: impl FnOnce(Peer) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::Talk(Box::new(|peer| Box::pin(talk(peer))))
    }

    pub(crate) fn held(body: &str) -> (Self, oneshot::Sender<()>) {
        let (release, released) = oneshot::channel();
        (Self::Held(released, body.to_owned()), release)
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
    talks: Mutex<JoinSet<()>>,
}

impl Daemon {
    /// Answers one request after the other with the replies.
    #[expect(clippy::unused_async, reason = "must run inside the runtime")]
    pub(crate) async fn start(replies: Vec<Reply>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("meshd.sock");
        let listener = UnixListener::bind(&socket).expect("a fresh path");
        let (replies, requests, came) = (Mutex::new(replies.into()), Mutex::default(), Semaphore::new(0));
        let shared = Arc::new(Shared { replies, requests, came, talks: Mutex::default() });
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
        let write = async {
            // It may end without having read everything.
            drop(pipe.write_all(stdin.as_bytes()).await);
            drop(pipe);
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        finish(output.expect("it ends"))
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

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

fn whole(body: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn answer(shared: Arc<Shared>, mut request: Request<Incoming>) -> Result<Answer, &'static str> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
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
        return Ok(respond(200, MEDIA_JSON, whole(version)));
    }
    shared.requests.lock().expect("no test panics with it").push(recorded);
    shared.came.add_permits(1);
    match reply.expect("a reply for each request") {
        Reply::Whole { status, media, body } => Ok(respond(status, media, whole(body))),
        Reply::Endless(body) => Ok(respond(200, MEDIA_SSE, Endless(Some(Bytes::from(body))).boxed_unsync())),
        Reply::Broken(body) => {
            let body = Breaking { bytes: Some(Bytes::from(body)), flushed: false };
            Ok(respond(200, MEDIA_SSE, body.boxed_unsync()))
        }
        Reply::Talk(talk) => {
            assert_eq!(head.headers["upgrade"], STREAM_PROTOCOL);
            let upgrade = upgrade.expect("the client wants the connection");
            shared.talks.lock().expect("no test panics with it").spawn(async move {
                let wire = TokioIo::new(upgrade.await.expect("the connection is handed over"));
                talk(Peer { wire, received: Vec::new() }).await;
            });
            let mut answer = Response::new(whole(""));
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            answer.headers_mut().insert("connection", "upgrade".parse().expect("plain"));
            answer.headers_mut().insert("upgrade", STREAM_PROTOCOL.parse().expect("plain"));
            Ok(answer)
        }
        Reply::Held(released, body) => {
            released.await.expect("the test releases it");
            Ok(respond(200, MEDIA_JSON, whole(body)))
        }
        Reply::Hangup => Err("hang up"),
    }
}

fn respond(status: u16, media: &str, body: UnsyncBoxBody<Bytes, io::Error>) -> Answer {
    Response::builder().status(status).header("content-type", media).body(body).expect("well-formed")
}

/// Gives its bytes and never ends.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<Frame<Bytes>>>> {
        // Pending without a waker: only the end of the connection ends it.
        self.0.take().map_or(std::task::Poll::Pending, |bytes| std::task::Poll::Ready(Some(Ok(Frame::data(bytes)))))
    }
}

/// Gives its bytes and fails, which breaks the connection off.
struct Breaking {
    bytes: Option<Bytes>,
    flushed: bool,
}

impl Body for Breaking {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(bytes) = self.bytes.take() {
            return std::task::Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if !std::mem::replace(&mut self.flushed, true) {
            // What was given is sent when there is nothing more for the moment.
            context.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into())))
    }
}
