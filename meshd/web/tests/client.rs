//! A small HTTP client over a unix socket.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use vdc_api::{ErrorBody, ErrorCode, MEDIA_BYTES, MEDIA_JSON, SSE_DATA, SSE_ERROR, STREAM_PROTOCOL};

/// One connection; dropped, it is closed.
pub(crate) struct Client {
    sender: Mutex<SendRequest<Full<Bytes>>>,
    _connection: JoinSet<()>,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.expect("the server listens");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a fresh connection");
        let mut tasks = JoinSet::new();
        // How a connection ends is seen in the answers.
        tasks.spawn(async move { drop(connection.with_upgrades().await) });
        Self { sender: Mutex::new(sender), _connection: tasks }
    }

    pub(crate) async fn send(self, method: &str, path: &str, body: &str) -> Answer {
        self.send_as(MEDIA_JSON, method, path, body).await
    }

    pub(crate) async fn send_as(self, media: &str, method: &str, path: &str, body: &str) -> Answer {
        self.exchange(media, method, path, body).await
    }

    /// Sends bytes.
    pub(crate) async fn upload(self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header("host", "meshd")
            .header("content-type", MEDIA_BYTES)
            .body(Full::new(body.into()))
            .expect("a well-formed request");
        let response = self.sender.lock().await.send_request(request).await.expect("an answer");
        Answer::of(response).await
    }

    /// What comes until the body ends or breaks off, and whether it ended.
    pub(crate) async fn download(self, path: &str, body: &str) -> (Vec<u8>, bool) {
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header("host", "meshd")
            .header("content-type", MEDIA_JSON)
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a well-formed request");
        let response = self.sender.lock().await.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], MEDIA_BYTES);
        let (mut body, mut received) = (response.into_body(), Vec::new());
        loop {
            match body.frame().await {
                None => return (received, true),
                Some(Err(_)) => return (received, false),
                Some(Ok(frame)) => received.extend(frame.into_data().expect("no trailers")),
            }
        }
    }

    /// Leaves the connection open.
    pub(crate) async fn send_keeping(&self, method: &str, path: &str) -> Answer {
        self.exchange(MEDIA_JSON, method, path, "").await
    }

    /// Asks for the connection itself, and gets it or a refusal.
    pub(crate) async fn upgrade(self, path: &str, body: &str) -> Result<Upgrade, Answer> {
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header("host", "meshd")
            .header("content-type", MEDIA_JSON)
            .header("connection", "upgrade")
            .header("upgrade", STREAM_PROTOCOL)
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a well-formed request");
        let response = self.sender.lock().await.send_request(request).await.expect("an answer");
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Answer::of(response).await);
        }
        let headers = response.headers().clone();
        let pipe = TokioIo::new(hyper::upgrade::on(response).await.expect("the connection is handed over"));
        Ok(Upgrade { headers, pipe })
    }

    async fn exchange(&self, media: &str, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "meshd")
            .header("content-type", media)
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a well-formed request");
        let response = self.sender.lock().await.send_request(request).await.expect("an answer");
        Answer::of(response).await
    }
}

/// A connection that became a pipe.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) headers: HeaderMap,
    pub(crate) pipe: TokioIo<Upgraded>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("text")
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The error, which must have this status and code and the form that all errors have.
    pub(crate) fn error(&self, status: u16, code: ErrorCode) -> ErrorBody {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some(MEDIA_JSON));
        let error: ErrorBody = self.json();
        assert_eq!(error.code, code);
        assert_eq!(Some(error.request_id.as_str()), self.header("x-request-id"));
        assert!(!error.message.ends_with('.') && !error.message.is_empty());
        error
    }
}

/// One Server-Sent Event.
#[derive(Debug)]
pub(crate) struct Sse {
    event: String,
    data: String,
}

impl Sse {
    pub(crate) fn parse(text: &str) -> Vec<Self> {
        let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
        let field = |block: &str, name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim_start().to_owned()))
        };
        blocks
            .filter(|block| !block.starts_with(':'))
            .map(|block| Self {
                event: field(block, "event:").expect("events are named"),
                data: field(block, "data:").expect("events have data"),
            })
            .collect()
    }

    pub(crate) fn item<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.event, SSE_DATA, "{}", self.data);
        serde_json::from_str(&self.data).expect("an item")
    }

    pub(crate) fn error(&self) -> ErrorBody {
        assert_eq!(self.event, SSE_ERROR, "{}", self.data);
        serde_json::from_str(&self.data).expect("an error")
    }
}
