//! HTTP/1.1 to a registry: one request at a time and connection, each wait bounded, every address checked before it is
//! gone to.
//!
//! A connection is driven by whoever reads its answer: nothing runs in the background, and a dropped answer closes its
//! connection at once.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::fault::{Fault, Trust};

/// Most redirects of one request.
pub(crate) const REDIRECTS_MAX: usize = 5;
/// Longest address that is gone to: those of object stores carry signatures.
const URL_BYTES_MAX: usize = 8_192;
/// What a connection reads ahead, and so the longest piece of an answer and the longest head of one.
pub(crate) const PIECE_BYTES_MAX: usize = 64 << 10;
/// An answer that brings less than this while the stall time is waited for has stalled, whatever it drips.
const PROGRESS_BYTES_MIN: u64 = 1_024;
/// Connections that are kept for the next request.
const IDLE_MAX: usize = 8;
/// How long one address is tried alone (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;

/// How to talk to registries.
#[derive(Clone, Debug)]
pub(crate) struct TransportOptions {
    /// Any host may be asked in plain HTTP, not only this one.
    pub(crate) plain_http: bool,
    /// More certificates of authorities, PEM.
    pub(crate) ca_pem: Vec<Vec<u8>>,
    /// How long connecting may take, TLS and names included.
    pub(crate) connect: Duration,
    /// How long an answer may bring nothing, and how long it may be waited for.
    pub(crate) stall: Duration,
}

/// A server: how it is spoken to and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Origin {
    /// Whether it is this very host, as far as its name says.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Reads `host`, `host:port`, `[address]:port`.
    pub(crate) fn parse(authority: &str, tls: bool) -> Option<Self> {
        let default = if tls { 443 } else { 80 };
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
            }
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = if port.is_empty() { default } else { port.parse().ok().filter(|_| digits)? };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let known = host.contains(':') || (!host.is_empty() && host.len() <= 253 && host.bytes().all(is_host));
        (known && port != 0).then(|| Self { tls, host: host.to_ascii_lowercase(), port })
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// An address of HTTP. Written without its query, which may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Path and query.
    pub(crate) target: String,
}

impl Url {
    pub(crate) fn new(origin: &Origin, target: String) -> Self {
        Self { origin: origin.clone(), target }
    }

    /// Reads a whole address.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (scheme, rest) = text.split_once("://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let target = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { origin: Origin::parse(authority, tls)?, target })
    }

    /// Where an answer from here redirects to.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        let scheme = if self.origin.tls { "https" } else { "http" };
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let before_path = location.split(['/', '?', '#']).next().unwrap_or_default();
        if before_path.contains(':') {
            return Self::parse(location);
        }
        let path = self.target.split('?').next().unwrap_or_default();
        let target = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            Some('#') | None => self.target.clone(),
            Some(_) => format!("{}{location}", &path[..=path.rfind('/').unwrap_or(0)]),
        };
        Self::parse(&format!("{}{target}", self.origin))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.target.split('?').next().unwrap_or_default())
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Driver = http1::Connection<TokioIo<Box<dyn Io>>, Full<Bytes>>;

struct Connection {
    origin: Origin,
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` when the connection is at its end.
    driver: Option<Pin<Box<Driver>>>,
}

impl Connection {
    /// Lets the connection go on while `wanted` is waited for.
    async fn drive<T>(&mut self, wanted: impl Future<Output = T>) -> T {
        let mut wanted = pin!(wanted);
        let driver = &mut self.driver;
        poll_fn(|cx| {
            if let Some(running) = driver
                && running.as_mut().poll(cx).is_ready()
            {
                // Why it ended is told to who waits for the answer.
                *driver = None;
            }
            wanted.as_mut().poll(cx)
        })
        .await
    }
}

/// A client of HTTP/1.1.
pub(crate) struct Transport {
    options: TransportOptions,
    /// Made with the first connection that needs it.
    tls: tokio::sync::OnceCell<Arc<ClientConfig>>,
    idle: Mutex<Vec<Connection>>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Ask {
    pub(crate) fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// The answer to a request: its head, and its body to be read.
pub(crate) struct Answer {
    /// Who answered, after redirects.
    pub(crate) url: Url,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    connection: Option<Connection>,
    stall: Duration,
    /// Waited for since the last progress.
    waited: Duration,
    fresh_bytes: u64,
    pub(crate) received: u64,
}

/// Why the rest of an answer does not come.
#[derive(Debug)]
pub(crate) enum Cut {
    Broken(hyper::Error),
    Stalled(Duration),
}

impl Cut {
    pub(crate) fn fault(self, received: u64, expected: Option<u64>, resumed: u32) -> Fault {
        match self {
            Self::Broken(source) => Fault::Broken { received, expected, resumed, source },
            Self::Stalled(waited) => Fault::Stalled { waited, received, expected },
        }
    }
}

impl Transport {
    pub(crate) fn new(options: TransportOptions) -> Self {
        Self { options, tls: tokio::sync::OnceCell::new(), idle: Mutex::default() }
    }

    /// Asks, and follows redirects. Who asks is told to the first server only, and nothing goes from HTTPS to HTTP.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Answer, Fault> {
        let mut ask = ask.clone();
        self.check_plain(&ask.url)?;
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.ask_once(&ask).await?;
            let redirects = [301, 302, 303, 307, 308].contains(&answer.status.as_u16()) && ask.method == Method::GET;
            let Some(location) = answer.headers.get(header::LOCATION).filter(|_| redirects) else {
                return Ok(answer);
            };
            let text = String::from_utf8_lossy(location.as_bytes());
            let target = ask.url.join(&text);
            let target = target.ok_or_else(|| Fault::Location { to: text.chars().take(80).collect() })?;
            if ask.url.origin.tls && !target.origin.tls {
                return Err(Fault::Downgrade { to: target.origin.to_string() });
            }
            self.check_plain(&target)?;
            if target.origin != ask.url.origin {
                ask.headers.remove(header::AUTHORIZATION);
            }
            ask.url = target;
        }
        Err(Fault::Redirects { count: REDIRECTS_MAX + 1 })
    }

    fn check_plain(&self, url: &Url) -> Result<(), Fault> {
        if url.origin.tls || self.options.plain_http || url.origin.is_loopback() {
            Ok(())
        } else {
            Err(Fault::PlainHttp { to: url.origin.to_string() })
        }
    }

    async fn ask_once(&self, ask: &Ask) -> Result<Answer, Fault> {
        if let Some(connection) = self.take_idle(&ask.url.origin) {
            // A server may have closed it meanwhile: then the answer is not the server's last word.
            match self.exchange(connection, ask).await {
                Err(Fault::NoAnswer { .. }) => {}
                other => return other,
            }
        }
        let connection = self.connect(&ask.url.origin).await?;
        self.exchange(connection, ask).await
    }

    fn take_idle(&self, origin: &Origin) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let found = idle.iter().rposition(|connection| connection.origin == *origin)?;
        Some(idle.remove(found))
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if connection.driver.is_some() && !connection.sender.is_closed() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    async fn exchange(&self, mut connection: Connection, ask: &Ask) -> Result<Answer, Fault> {
        let at = ask.url.origin.to_string();
        let mut request = Request::new(Full::new(ask.body.clone()));
        request.method_mut().clone_from(&ask.method);
        *request.uri_mut() =
            ask.url.target.parse().map_err(|_| Fault::Location { to: ask.url.target.chars().take(80).collect() })?;
        request.headers_mut().clone_from(&ask.headers);
        let host = HeaderValue::from_str(&ask.url.origin.authority()).expect("an authority has ASCII letters only");
        request.headers_mut().insert(header::HOST, host);
        let agent = concat!("meshd/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(agent));
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let stall = self.options.stall;
        let asked = async {
            let Connection { sender, driver, .. } = &mut connection;
            poll_fn(|cx| {
                if let Some(running) = driver
                    && running.as_mut().poll(cx).is_ready()
                {
                    *driver = None;
                }
                sender.poll_ready(cx)
            })
            .await?;
            let answer = connection.sender.send_request(request);
            connection.drive(answer).await
        };
        let answer = timeout(stall, asked).await.map_err(|_| Fault::HeadTime { waited: stall })?;
        let answer = answer.map_err(|source| {
            if source.is_parse() { Fault::Protocol { at, source } } else { Fault::NoAnswer { at, source } }
        })?;
        let (head, body) = answer.into_parts();
        Ok(Answer {
            url: ask.url.clone(),
            status: head.status,
            headers: head.headers,
            body,
            connection: Some(connection),
            stall,
            waited: Duration::ZERO,
            fresh_bytes: 0,
            received: 0,
        })
    }

    /// Reads an answer of at most `max` bytes to its end.
    pub(crate) async fn read(&self, mut answer: Answer, max: u64) -> Result<Vec<u8>, Fault> {
        let announced = answer.content_length();
        if announced.is_some_and(|length| length > max) {
            return Err(Fault::TooLong { max });
        }
        let mut bytes = Vec::new();
        let waited = self.options.stall * 4;
        let read = async {
            while let Some(piece) = answer.piece().await.map_err(|cut| cut.fault(answer.received, announced, 0))? {
                if answer.received > max {
                    return Err(Fault::TooLong { max });
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(())
        };
        timeout(waited, read).await.map_err(|_| Fault::Slow { waited })??;
        self.done(answer);
        Ok(bytes)
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(crate) fn done(&self, mut answer: Answer) {
        if let Some(connection) = answer.connection.take().filter(|_| answer.body.is_end_stream()) {
            self.keep(connection);
        }
    }

    async fn connect(&self, origin: &Origin) -> Result<Connection, Fault> {
        let waited = self.options.connect;
        let io = timeout(waited, self.open(origin)).await;
        let io = io.map_err(|_| Fault::ConnectTime { at: origin.to_string(), waited })??;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(PIECE_BYTES_MAX);
        let (sender, driver) = builder
            .handshake(TokioIo::new(io))
            .await
            .map_err(|source| Fault::NoAnswer { at: origin.to_string(), source })?;
        Ok(Connection { origin: origin.clone(), sender, driver: Some(Box::pin(driver)) })
    }

    async fn open(&self, origin: &Origin) -> Result<Box<dyn Io>, Fault> {
        let stream = dial(origin).await?;
        if !origin.tls {
            return Ok(Box::new(stream));
        }
        let config = self.tls.get_or_try_init(|| tls(&self.options.ca_pem)).await?;
        let at = origin.to_string();
        let name = ServerName::try_from(origin.host.clone());
        let name =
            name.map_err(|_| Fault::Lookup { host: origin.host.clone(), source: io::ErrorKind::InvalidInput.into() })?;
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
        let stream = stream.map_err(|source| Fault::Tls { at, trust: Trust::of(&source), source })?;
        Ok(Box::new(stream))
    }
}

/// Connects to the first address that answers: each next one is tried when those before were silent for a moment.
async fn dial(origin: &Origin) -> Result<TcpStream, Fault> {
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host((origin.host.as_str(), origin.port)).await {
        Ok(addresses) => addresses.take(ADDRESSES_MAX).collect(),
        Err(source) => return Err(Fault::Lookup { host: origin.host.clone(), source }),
    };
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut waiting = addresses.into_iter();
    let mut dialled = FuturesUnordered::new();
    loop {
        if let Some(address) = waiting.next() {
            dialled.push(TcpStream::connect(address));
        } else if dialled.is_empty() {
            return Err(Fault::Connect { at: origin.to_string(), source: error });
        }
        let answered = if waiting.len() > 0 {
            timeout(NEXT_ADDRESS, dialled.next()).await.unwrap_or_default()
        } else {
            dialled.next().await
        };
        match answered {
            Some(Ok(stream)) => {
                // Small requests, each of which is waited for.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Some(Err(source)) => error = source,
            None => {}
        }
    }
}

/// The authorities of the host and those that were given.
async fn tls(ca_pem: &[Vec<u8>]) -> Result<Arc<ClientConfig>, Fault> {
    let mut roots = RootCertStore::empty();
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    match found {
        Ok(found) => {
            let (_, ignored) = roots.add_parsable_certificates(found.certs);
            if ignored > 0 || !found.errors.is_empty() {
                tracing::debug!(ignored, errors = ?found.errors, "some certificates of the host cannot be read");
            }
        }
        Err(error) => tracing::warn!(%error, "the host's certificates were not read"),
    }
    for pem in ca_pem {
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(Fault::Pem)?).map_err(Fault::TlsSetUp)?;
            count += 1;
        }
        if count == 0 {
            return Err(Fault::PemEmpty);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Fault::TlsSetUp)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Answer {
    /// What the head says of the length, if it says something that can be read.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    pub(crate) fn header(&self, name: &header::HeaderName) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// The next bytes, or `None` at the end. Time that nobody asks for more does not count.
    ///
    /// # Cancel safety
    ///
    /// No bytes are lost.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(None) };
            let body = &mut self.body;
            let frame = connection.drive(poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(frame),
                Poll::Pending => Poll::Pending,
            }));
            let began = Instant::now();
            let frame = timeout(self.stall.saturating_sub(self.waited), frame).await;
            self.waited += began.elapsed();
            let frame = match frame {
                Err(_) => return Err(Cut::Stalled(self.stall)),
                Ok(Some(Err(error))) => return Err(Cut::Broken(error)),
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers say nothing that is of use here.
            let Ok(bytes) = frame.into_data() else { continue };
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.received = self.received.saturating_add(length);
            self.fresh_bytes = self.fresh_bytes.saturating_add(length);
            if self.fresh_bytes >= PROGRESS_BYTES_MIN {
                self.fresh_bytes = 0;
                self.waited = Duration::ZERO;
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly_and_written_without_their_secrets() {
        for (text, expected) in [
            ("https://a.example", Some("https://a.example/")),
            ("HTTPS://A.example:443/b?c=d#e", Some("https://a.example/b")),
            ("http://[::1]:5000/x", Some("http://[::1]:5000/x")),
            ("http://a?b", Some("http://a/")),
            ("http://user:secret@a/", None),
            ("http://a:0/", None),
            ("http://a:65536/", None),
            ("http://a:+1/", None),
            ("http://[::1/", None),
            ("http://[a]/", None),
            ("http:///", None),
            ("http://a b/", None),
            ("ftp://a/", None),
            ("a/b", None),
        ] {
            assert_eq!(Url::parse(text).map(|url| url.to_string()).as_deref(), expected, "{text}");
        }
        assert!(Url::parse(&format!("http://a/{}", "b".repeat(URL_BYTES_MAX))).is_none());
    }

    #[test]
    fn redirects_are_relative_to_where_they_come_from() {
        let from = Url::parse("https://a.example/v2/x/y?z").expect("an address");
        for (location, expected) in [
            ("https://b.example/c", Some("https://b.example/c")),
            ("//b.example/c", Some("https://b.example/c")),
            ("/c?d", Some("https://a.example/c?d")),
            ("c", Some("https://a.example/v2/x/c")),
            ("?q", Some("https://a.example/v2/x/y?q")),
            ("", Some("https://a.example/v2/x/y?z")),
            ("data:text/html,x", None),
            ("http://", None),
            ("/a\tb", None),
        ] {
            let found = from.join(location).map(|url| format!("{}{}", url.origin, url.target));
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn only_this_host_is_loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("127.0.0.1:5000", true),
            ("127.255.0.9", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("128.0.0.1", false),
            ("[::2]", false),
            ("127.0.0.1.example", false),
            ("0.0.0.0", false),
        ] {
            let origin = Origin::parse(host, false).expect("a host");
            assert_eq!(origin.is_loopback(), expected, "{host}");
        }
    }
}
