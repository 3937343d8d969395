//! A registry that does what a test tells it, connection by connection.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use workloads_image::Digest;

use crate::build::{Blob, documents};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn read(stream: &mut impl Read) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let path = first.split(' ').nth(1)?.to_owned();
        let headers = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
            .collect();
        Some(Self { path, headers })
    }
}

/// What the registry does with a connection after a request.
pub(crate) enum Act {
    /// Sends bytes and closes.
    Send(Vec<u8>),
    /// Sends bytes and waits for the next request.
    Keep(Vec<u8>),
    /// Sends bytes and then nothing, until the other side has enough.
    Hang(Vec<u8>),
    /// Sends all of it, one byte at a time, until the other side has enough.
    Drip(Vec<u8>),
}

impl From<Vec<u8>> for Act {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Send(bytes)
    }
}

/// An answer with a length, and nothing after it.
pub(crate) fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    let length = format!("Content-Length: {}", body.len());
    let own_length = headers.iter().any(|header| header.starts_with("Content-Length") || header.contains("chunked"));
    let length = Some(length.as_str()).filter(|_| !own_length);
    for header in headers.iter().copied().chain(length) {
        head.push_str(header);
        head.push_str("\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// An answer without the announcement that the connection will be closed.
pub(crate) fn open_ended(answer: &[u8]) -> Vec<u8> {
    let mark = b"Connection: close\r\n";
    let at = answer.windows(mark.len()).position(|window| window == mark).expect("it is there");
    [&answer[..at], &answer[at + mark.len()..]].concat()
}

/// A body in the form without a length.
pub(crate) fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in body.chunks(1_000) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

type Answer = dyn Fn(&Asked) -> Act + Send + Sync;

/// The registry. It ends with the value, its connections with their other ends.
pub(crate) struct Rogue {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

impl Rogue {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(answer))
    }

    /// With TLS, by a certificate and its key in PEM.
    pub(crate) fn with_tls(
        certificate: &str,
        key: &str,
        answer: impl Fn(&Asked) -> Act + Send + Sync + 'static,
    ) -> Self {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain.expect("certificates"), key)
            .expect("a certificate for the key");
        Self::listen(Some(Arc::new(config)), Arc::new(answer))
    }

    fn listen(tls: Option<Arc<ServerConfig>>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it has one");
        let (ended, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let connections = Arc::new(AtomicUsize::new(0));
        let rogue = Self {
            address,
            ended: Arc::clone(&ended),
            asked: Arc::clone(&asked),
            connections: Arc::clone(&connections),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (tls, answer, asked) = (tls.clone(), Arc::clone(&answer), Arc::clone(&asked));
                std::thread::spawn(move || match tls {
                    None => serve(&mut &stream, &stream, &*answer, &asked),
                    Some(config) => {
                        let connection = ServerConnection::new(config).expect("a configuration");
                        let handle = stream.try_clone().expect("a descriptor");
                        serve(&mut StreamOwned::new(connection, stream), &handle, &*answer, &asked);
                    }
                });
            }
        });
        rogue
    }

    /// Host and port.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many requests were for a path that ends so.
    pub(crate) fn count(&self, end: &str) -> usize {
        self.asked.lock().iter().filter(|asked| asked.path.ends_with(end)).count()
    }
}

/// What fails here, the other side did: it is what the test looks at.
fn serve(stream: &mut (impl Read + Write), socket: &TcpStream, answer: &Answer, all: &Mutex<Vec<Asked>>) {
    let mut act;
    loop {
        let Some(asked) = Asked::read(stream) else { return };
        all.lock().push(asked.clone());
        act = answer(&asked);
        let Act::Keep(bytes) = &act else { break };
        if stream.write_all(bytes).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
    match act {
        Act::Keep(_) => {}
        Act::Send(bytes) => {
            let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
            let _ = socket.shutdown(Shutdown::Write);
            // Closing with unread bytes would be a reset, which could overtake the answer.
            let _ = std::io::copy(&mut &*socket, &mut std::io::sink());
        }
        Act::Hang(bytes) => {
            let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
            let _ = std::io::copy(&mut &*socket, &mut std::io::sink());
        }
        Act::Drip(bytes) => {
            let _ = socket.set_nodelay(true);
            for byte in bytes {
                if stream.write_all(&[byte]).and_then(|()| stream.flush()).is_err() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

/// An image as an honest registry has it.
#[derive(Clone, Debug)]
pub(crate) struct Goods {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Blob>,
}

impl Goods {
    pub(crate) fn of(layers: Vec<Blob>) -> Self {
        let (manifest, config) = documents(&layers, "sh");
        Self { manifest, config, layers }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The digest of a layer as it is fetched.
    pub(crate) fn layer(&self, index: usize) -> String {
        Digest::of(&self.layers[index].bytes).to_string()
    }

    /// What an honest registry answers, ranges included.
    pub(crate) fn answer(&self, asked: &Asked) -> Vec<u8> {
        let last = asked.path.rsplit('/').next().unwrap_or_default();
        if asked.path.contains("/manifests/") {
            let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
            let named = format!("Docker-Content-Digest: {}", self.digest());
            return answer("200 OK", &[kind, &named], &self.manifest);
        }
        let blobs = self.layers.iter().map(|layer| &layer.bytes).chain([&self.config]);
        let Some(bytes) = blobs.into_iter().find(|bytes| Digest::of(bytes).to_string() == last) else {
            let said = br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
            return answer("404 Not Found", &["Content-Type: application/json"], said);
        };
        let kind = "Content-Type: application/octet-stream";
        match asked.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')) {
            None => answer("200 OK", &[kind], bytes),
            Some(from) => {
                let from: usize = from.parse().expect("a number");
                let range = format!("Content-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                answer("206 Partial Content", &[kind, &range], &bytes[from..])
            }
        }
    }
}
