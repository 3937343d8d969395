//! HTTP over the daemon's unix socket.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vdc_api::{
    ByteStream, Endpoint, ErrorBody, MEDIA_BYTES, MEDIA_JSON, REQUEST_ID_HEADER, SSE_ERROR, STREAM_PROTOCOL,
};

use crate::failure::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::sse::{Event, Parser};
use crate::terminal::Terminal;

/// The daemon answers within 60 s or says that it could not.
const ANSWER_TIME: Duration = Duration::from_secs(75);
/// A daemon that does not answer the simplest question within this time is stuck, whatever else it was asked. Together
/// with [`CHECK_AFTER`] it makes the five seconds after which people press Ctrl-C.
const CHECK_TIME: Duration = Duration::from_secs(4);
/// When the daemon is first asked whether it is there at all, and the pause between two such questions.
const CHECK_AFTER: Duration = Duration::from_secs(1);
const CHECK_PAUSE: Duration = Duration::from_secs(10);
/// The daemon breaks the silence of a stream every 15 s.
const SILENCE_TIME: Duration = Duration::from_secs(60);
/// Longest answer in bytes: the status of a VDC with 10,000 nodes has about 10 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection that became a pipe.
pub(crate) type Pipe = TokioIo<Upgraded>;

/// Knows where the daemon is. Each call opens a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    /// The node that is asked instead of this one.
    on: Option<String>,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, on: None }
    }

    /// Asks another node by way of this one.
    pub(crate) fn on(&self, on: Option<String>) -> Self {
        Self { on, ..self.clone() }
    }

    pub(crate) fn is_remote(&self) -> bool {
        self.on.is_some()
    }

    /// Reads something.
    pub(crate) async fn read<Q: Serialize, R: DeserializeOwned>(
        &self,
        endpoint: Endpoint<Q, (), R>,
        parts: &[&str],
        query: &Q,
    ) -> Result<R, Failure> {
        let uri = with_query(endpoint.path_with(parts), query);
        let answer = self.exchange(endpoint.method.as_str(), &uri, Bytes::new());
        parse(&self.awake(answer).await?)
    }

    /// Changes something. The first Ctrl-C only says that the answer is awaited: what the daemon tells once (a token, a
    /// recovery key) must not get lost.
    pub(crate) async fn change<B: Serialize, R: DeserializeOwned>(
        &self,
        terminal: &mut Terminal,
        endpoint: Endpoint<(), B, R>,
        parts: &[&str],
        body: &B,
    ) -> Result<R, Failure> {
        let path = endpoint.path_with(parts);
        let body = body_of(body)?;
        let mut interrupt = Interrupt::catch();
        let mut answer = Box::pin(self.awake(self.exchange(endpoint.method.as_str(), &path, body)));
        tokio::select! {
            // cancel-safe: polled on below.
            answer = &mut answer => return parse(&answer?),
            // cancel-safe: see there.
            () = interrupt.pressed() => {}
        }
        terminal.note("waiting for meshd to finish the change; press Ctrl-C again to stop waiting\n");
        tokio::select! {
            // cancel-safe: nothing follows.
            answer = answer => parse(&answer?),
            // cancel-safe: see there.
            () = interrupt.pressed() => Err(Failure::new("interrupted; the change may still come about").exit(Exit::Interrupted)),
        }
    }

    /// Asks something that needs a body and changes nothing.
    pub(crate) async fn ask<B: Serialize, R: DeserializeOwned>(
        &self,
        endpoint: Endpoint<(), B, R>,
        parts: &[&str],
        body: &B,
    ) -> Result<R, Failure> {
        let path = endpoint.path_with(parts);
        let answer = self.exchange(endpoint.method.as_str(), &path, body_of(body)?);
        parse(&self.awake(answer).await?)
    }

    /// Ends something.
    pub(crate) async fn delete<Q: Serialize, R: DeserializeOwned>(
        &self,
        endpoint: Endpoint<Q, (), R>,
        parts: &[&str],
        query: &Q,
    ) -> Result<R, Failure> {
        self.read(endpoint, parts, query).await
    }

    /// Starts a stream.
    pub(crate) async fn stream<Q: Serialize, B: Serialize, R: DeserializeOwned>(
        &self,
        endpoint: Endpoint<Q, B, R>,
        parts: &[&str],
        query: &Q,
        body: &B,
    ) -> Result<Items<R>, Failure> {
        let uri = with_query(endpoint.path_with(parts), query);
        let (response, connection) =
            self.awake(self.send(endpoint.method.as_str(), &uri, body_of(body)?, false)).await?;
        if !response.status().is_success() {
            return Err(within(ANSWER_TIME, refusal(response)).await.unwrap_or_else(|failure| failure));
        }
        let (parser, ready, item) = (Parser::default(), Vec::new().into_iter(), std::marker::PhantomData);
        Ok(Items { body: response.into_body(), parser, ready, item, _connection: connection })
    }

    /// Starts to fetch bytes.
    pub(crate) async fn download<B: Serialize>(
        &self,
        endpoint: Endpoint<(), B, ByteStream>,
        parts: &[&str],
        body: &B,
    ) -> Result<Download, Failure> {
        let path = endpoint.path_with(parts);
        let (response, connection) =
            self.awake(self.send(endpoint.method.as_str(), &path, body_of(body)?, false)).await?;
        if !response.status().is_success() {
            return Err(within(ANSWER_TIME, refusal(response)).await.unwrap_or_else(|failure| failure));
        }
        let request_id = response.headers().get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(Download { body: response.into_body(), request_id, _connection: connection })
    }

    /// Sends bytes and waits for the answer, however long both take, as long as the daemon shows that it is awake. Dropped
    /// half-way, the connection breaks off and nothing is changed.
    pub(crate) async fn upload<Q: Serialize, R: DeserializeOwned>(
        &self,
        endpoint: Endpoint<Q, ByteStream, R>,
        parts: &[&str],
        query: &Q,
        body: Upload,
    ) -> Result<R, Failure> {
        let uri = with_query(endpoint.path_with(parts), query);
        let answer = async {
            let (response, _connection) =
                self.send_body(endpoint.method.as_str(), &uri, Some(MEDIA_BYTES), body, false).await?;
            if response.status().is_success() {
                parse(&collect(response.into_body()).await?)
            } else {
                Err(refusal(response).await?)
            }
        };
        tokio::select! {
            biased;
            // cancel-safe: nothing follows.
            answer = answer => answer,
            // cancel-safe: see there.
            failure = self.asleep() => Err(failure),
        }
    }

    /// Makes the connection a pipe to what the operation opens.
    pub(crate) async fn upgrade<B: Serialize>(
        &self,
        endpoint: Endpoint<(), B, String>,
        parts: &[&str],
        body: &B,
    ) -> Result<Pipe, Failure> {
        let path = endpoint.path_with(parts);
        let (response, connection) =
            self.awake(self.send(endpoint.method.as_str(), &path, body_of(body)?, true)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(within(ANSWER_TIME, refusal(response)).await.unwrap_or_else(|failure| failure));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(&error))?;
        drop(connection);
        Ok(TokioIo::new(upgraded))
    }

    /// Waits for `work`, which may take its time, for as long as the daemon shows that it is awake.
    async fn awake<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            // cancel-safe: nothing follows.
            result = within(ANSWER_TIME, work) => result,
            // cancel-safe: see there.
            failure = self.asleep() => Err(failure),
        }
    }

    /// Returns when the daemon takes connections and no longer answers.
    async fn asleep(&self) -> Failure {
        let version = vdc_api::endpoint::VERSION;
        let uri = version.path_with(&[]);
        tokio::time::sleep(CHECK_AFTER).await;
        loop {
            let answer = self.exchange(version.method.as_str(), &uri, Bytes::new());
            // A refused connection or a failure is an answer; the work itself meets what is behind it.
            if tokio::time::timeout(CHECK_TIME, answer).await.is_err() {
                return Failure::new("meshd does not answer")
                    .exit(Exit::NoDaemon)
                    .because(format!("it takes connections at {} and is silent", self.socket.display()))
                    .hint("look at its log (`journalctl -u meshd`); if it hangs: `sudo systemctl restart meshd`");
            }
            tokio::time::sleep(CHECK_PAUSE).await;
        }
    }

    /// The address with the node that is meant.
    fn with_on<'a>(&self, uri: &'a str) -> Cow<'a, str> {
        let Some(on) = &self.on else { return Cow::Borrowed(uri) };
        let mut uri = format!("{uri}{}on=", if uri.contains('?') { '&' } else { '?' });
        vdc_api::endpoint::percent_encode(on, &mut uri);
        Cow::Owned(uri)
    }

    async fn exchange(&self, method: &str, uri: &str, body: Bytes) -> Result<Bytes, Failure> {
        let (response, _connection) = self.send(method, uri, body, false).await?;
        if response.status().is_success() { collect(response.into_body()).await } else { Err(refusal(response).await?) }
    }

    async fn send(
        &self,
        method: &str,
        uri: &str,
        body: Bytes,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Failure> {
        let media = (!body.is_empty()).then_some(MEDIA_JSON);
        self.send_body(method, uri, media, Full::new(body), upgrade).await
    }

    async fn send_body<T>(
        &self,
        method: &str,
        uri: &str,
        media: Option<&str>,
        body: T,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Failure>
    where
        T: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
    {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| cannot_connect(&self.socket, &error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let mut tasks = JoinSet::new();
        // How the connection ends is seen in the answer.
        tasks.spawn(async move { drop(connection.with_upgrades().await) });
        let uri = self.with_on(uri);
        let mut request = Request::builder().method(method).uri(uri.as_ref()).header(header::HOST, "meshd");
        if upgrade {
            request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, STREAM_PROTOCOL);
        }
        if let Some(media) = media {
            request = request.header(header::CONTENT_TYPE, media);
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::new("the request cannot be put into words").caused_by(&error))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        Ok((response, tasks))
    }
}

/// Bytes on their way from the daemon.
pub(crate) struct Download {
    body: Incoming,
    request_id: Option<String>,
    _connection: JoinSet<()>,
}

impl Download {
    /// The next bytes; none when all have come.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(SILENCE_TIME, self.body.frame()).await;
            let frame = frame.map_err(|_| Failure::new("meshd went silent").exit(Exit::NoDaemon))?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_trailers) => {}
                },
                Some(Err(error)) => {
                    let failure = Failure::new("meshd broke off half-way").caused_by(&error);
                    let failure = failure.hint("look for the reason in its log: `journalctl -u meshd`");
                    return Err(Failure { request_id: self.request_id.clone(), ..failure });
                }
            }
        }
    }
}

/// Bytes on their way to the daemon. An error among them breaks the connection off.
pub(crate) struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    uploaded: Arc<Uploaded>,
}

/// How far an upload is.
#[derive(Debug, Default)]
pub(crate) struct Uploaded {
    bytes: AtomicU64,
    whole: AtomicBool,
    failure: OnceLock<io::Error>,
}

impl Upload {
    pub(crate) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> (Self, Arc<Uploaded>) {
        let uploaded = Arc::default();
        (Self { pieces, uploaded: Arc::clone(&uploaded) }, uploaded)
    }
}

impl Uploaded {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether everything was taken from us.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// Why there were not more bytes to send.
    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.failure.get()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(context));
        let uploaded = &self.uploaded;
        Poll::Ready(match piece {
            None => {
                uploaded.whole.store(true, Ordering::Relaxed);
                None
            }
            Some(Ok(piece)) => {
                let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                uploaded.bytes.fetch_add(length, Ordering::Relaxed);
                Some(Ok(Frame::data(piece)))
            }
            Some(Err(error)) => {
                let kind = error.kind();
                // Nothing is read after the first failure.
                let _first = uploaded.failure.set(error);
                Some(Err(kind.into()))
            }
        })
    }
}

/// A stream of items.
pub(crate) struct Items<R> {
    body: Incoming,
    parser: Parser,
    ready: std::vec::IntoIter<Event>,
    item: std::marker::PhantomData<fn() -> R>,
    _connection: JoinSet<()>,
}

impl<R: DeserializeOwned> Items<R> {
    /// The next item; none when the stream has ended in good order.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<R>, Failure> {
        loop {
            if let Some(event) = self.ready.next() {
                if event.name == SSE_ERROR {
                    return Err(parse::<ErrorBody>(event.data.as_bytes())?.into());
                }
                return parse(event.data.as_bytes()).map(Some);
            }
            let frame = tokio::time::timeout(SILENCE_TIME, self.body.frame()).await;
            let frame = frame.map_err(|_| Failure::new("meshd went silent").exit(Exit::NoDaemon))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| broken(&error))?;
            if let Some(bytes) = frame.data_ref() {
                let events = self.parser.feed(bytes);
                self.ready = events.map_err(|_| Failure::new("meshd sent an event that is too long"))?.into_iter();
            }
        }
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || {
        Failure::new(format!("no answer from meshd within {} s", time.as_secs()))
            .exit(Exit::NoDaemon)
            .hint("look at its log: `journalctl -u meshd`")
    };
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err(late()))
}

/// The failure that a response states.
async fn refusal(response: Response<Incoming>) -> Result<Failure, Failure> {
    let status = response.status();
    let bytes = collect(response.into_body()).await?;
    let unknown = || Failure::new(format!("meshd answered {status} without saying why"));
    Ok(serde_json::from_slice::<ErrorBody>(&bytes).map_or_else(|_| unknown(), Failure::from))
}

async fn collect(mut body: Incoming) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        if let Some(chunk) = frame.data_ref() {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Failure::new(format!("the answer of meshd is larger than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(chunk);
        }
    }
    Ok(Bytes::from(bytes))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::new("the answer of meshd is not understood")
            .caused_by(&error)
            .hint("meshctl and meshd should be of the same release: compare them with `meshctl version`")
    })
}

/// Nothing for `()`.
fn body_of<B: Serialize>(body: &B) -> Result<Bytes, Failure> {
    let bytes = serde_json::to_vec(body)
        .map_err(|error| Failure::new("the request cannot be put into words").caused_by(&error))?;
    Ok(if bytes == b"null" { Bytes::new() } else { Bytes::from(bytes) })
}

/// Appends the query's fields that have a value. Queries are flat.
fn with_query<Q: Serialize>(mut path: String, query: &Q) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(query) else { return path };
    let mut separator = '?';
    for (name, value) in fields {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        path.push(separator);
        path.push_str(&name);
        path.push('=');
        vdc_api::endpoint::percent_encode(&text, &mut path);
        separator = '&';
    }
    path
}

fn cannot_connect(socket: &Path, error: &io::Error) -> Failure {
    let at = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(format!("no permission to use {at}"))
            .caused_by(error)
            .exit(Exit::Refused)
            .hint("use sudo, or add your user to group meshd: `sudo usermod -aG meshd $USER`, then log in anew"),
        io::ErrorKind::NotFound => Failure::new("cannot reach meshd on this machine")
            .exit(Exit::NoDaemon)
            .hint("start it: `sudo systemctl start meshd`")
            .because(format!("there is no socket at {at}")),
        io::ErrorKind::ConnectionRefused => Failure::new("cannot reach meshd on this machine")
            .exit(Exit::NoDaemon)
            .hint("see why it stopped: `systemctl status meshd`")
            .because(format!("nobody listens at {at}")),
        // The kernel's queue of connections that wait to be taken is full.
        io::ErrorKind::WouldBlock => Failure::new("meshd takes no more connections")
            .exit(Exit::NoDaemon)
            .hint("it is overloaded or hangs: look at its log (`journalctl -u meshd`), or restart it: `sudo systemctl restart meshd`")
            .because(format!("too many wait at {at}")),
        _ => Failure::new(format!("cannot reach meshd at {at}")).caused_by(error).exit(Exit::NoDaemon),
    }
}

fn broken(error: &dyn std::error::Error) -> Failure {
    Failure::new("the connection to meshd broke off").caused_by(error).exit(Exit::NoDaemon)
}

#[cfg(test)]
mod tests {
    use vdc_api::{EventsQuery, PingQuery};

    use super::*;
    use crate::terminal::Style;

    #[test]
    fn queries_carry_what_has_a_value() {
        assert_eq!(with_query("/p".into(), &()), "/p");
        assert_eq!(with_query("/p".into(), &EventsQuery::default()), "/p");
        let query = EventsQuery { vdc: Some("a&b".into()), after: Some(7), limit: None };
        assert_eq!(with_query("/p".into(), &query), "/p?after=7&vdc=a%26b");
        assert!(with_query("/p".into(), &PingQuery::new("b1")).contains("interval_ms=1000"));
    }

    #[test]
    fn unreachable_daemon_has_its_own_exit_and_hint() {
        for (kind, exit, hint) in [
            (io::ErrorKind::NotFound, Exit::NoDaemon, "systemctl start meshd"),
            (io::ErrorKind::ConnectionRefused, Exit::NoDaemon, "systemctl status meshd"),
            (io::ErrorKind::PermissionDenied, Exit::Refused, "group meshd"),
            (io::ErrorKind::WouldBlock, Exit::NoDaemon, "systemctl restart meshd"),
        ] {
            let failure = cannot_connect(Path::new("/run/meshd/meshd.sock"), &kind.into());
            assert_eq!(failure.exit, exit);
            assert!(failure.hint.as_ref().is_some_and(|text| text.contains(hint)), "{failure:?}");
            assert!(failure.render(Style::new(false)).contains("/run/meshd/meshd.sock"));
        }
    }
}
