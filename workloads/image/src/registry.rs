//! A repository of a registry, by the distribution specification: manifests and blobs, proven as they come.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::auth::Login;
use crate::digest::Digest;
use crate::fault::{Fault, RegistryError, Said, clean};
use crate::manifest::{ACCEPTED, MANIFEST_BYTES_MAX};
use crate::pull::PullOptions;
use crate::reference::Reference;
use crate::store::verify;
use crate::transport::{Answer, Ask, Cut, Origin, Transport, TransportOptions, Url};

/// The registry that is meant by its old name.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// Longest refusal that is read for its words.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;
/// How often a registry that is busy is asked again.
const BUSY_TRIES_MAX: u32 = 3;
/// Longest that a busy registry is waited for each time.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often in a row a broken download is taken up again.
const RESUMES_MAX: u32 = 5;
/// After so much, a download that breaks again has come further and is not at its last try.
const RESUME_BYTES: u64 = 1 << 20;
/// Wait before the first new try; each next one is twice as long.
const BACK_OFF: Duration = Duration::from_millis(100);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A repository of a registry.
pub(crate) struct Registry {
    name: String,
    repository: String,
    origin: Origin,
    transport: Transport,
    login: Login,
}

/// A manifest or an index, whose digest was compared with what was asked for.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: Option<String>,
}

impl Registry {
    pub(crate) fn new(reference: &Reference, options: &PullOptions) -> Self {
        let name = reference.registry().to_owned();
        let authority = if name == HUB.0 { HUB.1 } else { &name };
        let given = |tls| {
            let unknown = Origin { tls, host: authority.to_owned(), port: if tls { 443 } else { 80 } };
            Origin::parse(authority, tls).unwrap_or(unknown)
        };
        // This host is asked in plain HTTP, unless something says that it speaks TLS.
        let secure = given(true);
        let says_tls = !options.ca_pem.is_empty() || authority.ends_with(":443");
        let plain = options.plain_http || (secure.is_loopback() && !says_tls);
        let transport = Transport::new(TransportOptions {
            plain_http: options.plain_http,
            ca_pem: options.ca_pem.clone(),
            connect: options.connect,
            stall: options.stall,
        });
        Self {
            repository: reference.repository().to_owned(),
            origin: given(!plain),
            transport,
            login: Login::new(reference, options.credentials.clone(), options.credential_files.clone()),
            name,
        }
    }

    pub(crate) fn error(&self, asked: &str, fault: Fault) -> RegistryError {
        RegistryError::new(&self.name, asked, fault)
    }

    /// Gets a manifest or an index by its tag or digest.
    pub(crate) async fn manifest(&self, tag: &str, digest: Option<&Digest>) -> Result<Fetched, RegistryError> {
        let (wanted, separator) = match digest {
            Some(digest) => (digest.to_string(), '@'),
            None => (tag.to_owned(), ':'),
        };
        let asked = format!("the manifest {}{separator}{wanted}", self.repository);
        self.manifest_of(&wanted, digest).await.map_err(|fault| self.error(&asked, fault))
    }

    async fn manifest_of(&self, wanted: &str, digest: Option<&Digest>) -> Result<Fetched, Fault> {
        let mut headers = HeaderMap::new();
        for kind in ACCEPTED {
            headers.append(header::ACCEPT, HeaderValue::from_static(kind));
        }
        let answer = self.get(&format!("manifests/{wanted}"), headers).await?;
        if answer.status != 200 {
            return Err(Fault::Status { status: answer.status.as_u16(), said: Said::default() });
        }
        let media_type = answer.header(&header::CONTENT_TYPE);
        let named = answer.header(&CONTENT_DIGEST);
        let bytes = self.transport.read(answer, MANIFEST_BYTES_MAX).await?;
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<') {
            return Err(html(&bytes));
        }
        if let Some(digest) = digest {
            verify(digest, &bytes).map_err(Fault::Digest)?;
        }
        if let Some(named) = named {
            let fits = named.parse().is_ok_and(|named: Digest| verify(&named, &bytes).is_ok());
            if !fits {
                return Err(Fault::Header { header: clean(&named, 160) });
            }
        }
        Ok(Fetched { bytes, media_type })
    }

    /// Begins to get a blob. What comes is of the size that was asked for; its digest is the caller's to compute.
    pub(crate) fn blob(&self, what: &str, digest: &Digest, size_bytes: u64) -> Blob<'_> {
        Blob {
            registry: self,
            asked: format!("{what} {digest} of {}", self.repository),
            path: format!("blobs/{digest}"),
            size_bytes,
            received: 0,
            answer: None,
            skip: 0,
            from: 0,
            resumed: 0,
        }
    }

    /// Gets a small blob, digest included.
    pub(crate) async fn small_blob(
        &self,
        what: &str,
        digest: &Digest,
        size_bytes: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut blob = self.blob(what, digest, size_bytes);
        let mut bytes = Vec::new();
        while let Some(piece) = blob.piece().await? {
            bytes.extend_from_slice(&piece);
        }
        verify(digest, &bytes).map_err(|error| blob.error(Fault::Digest(error)))?;
        Ok(bytes)
    }

    /// Asks for something of the repository, says who asks if that is wanted, and waits for a registry that is busy.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<Answer, Fault> {
        let mut ask = Ask::get(Url::new(&self.origin, format!("/v2/{}/{path}", self.repository)));
        ask.headers = headers;
        let mut authorization = self.login.authorization().await;
        let (mut renewed, mut tries) = (false, 0);
        loop {
            if let Some(value) = &authorization {
                ask.headers.insert(header::AUTHORIZATION, value.clone());
            }
            let answer = self.transport.ask(&ask).await?;
            let status = answer.status.as_u16();
            match status {
                200..300 => return self.check_head(answer).await,
                // What another host names as its token server has no business with the registry's users.
                401 if answer.url.origin != self.origin => {
                    return Err(Fault::Elsewhere { at: answer.url.to_string() });
                }
                401 if !renewed => {
                    renewed = true;
                    let headers = answer.headers.clone();
                    let body = self.transport.read(answer, REFUSAL_BYTES_MAX).await.unwrap_or_default();
                    authorization =
                        self.login.renew(&self.transport, &self.origin, &headers, authorization.as_ref()).await?;
                    if authorization.is_none() {
                        return Err(self.denied(status, &body).await);
                    }
                }
                429 | 503 => {
                    let wait = answer.header(&header::RETRY_AFTER).and_then(|text| text.trim().parse().ok());
                    let wait = wait.map(Duration::from_secs);
                    if tries == BUSY_TRIES_MAX || wait.is_some_and(|wait| wait > BUSY_WAIT_MAX) {
                        return Err(Fault::Busy { status, wait });
                    }
                    tries += 1;
                    tokio::time::sleep(wait.unwrap_or(BACK_OFF * 2_u32.pow(tries))).await;
                }
                _ => {
                    let is_html = is_html(&answer);
                    // What it says is only for the message.
                    let body = self.transport.read(answer, REFUSAL_BYTES_MAX).await.unwrap_or_default();
                    return Err(match status {
                        401 | 403 => self.denied(status, &body).await,
                        400..500 if is_html => html(&body),
                        404 => Fault::NotFound { said: Said::of(&body) },
                        _ => Fault::Status { status, said: Said::of(&body) },
                    });
                }
            }
        }
    }

    async fn denied(&self, status: u16, body: &[u8]) -> Fault {
        Fault::Denied { status, whom: self.login.whom().await, said: Said::of(body) }
    }

    async fn check_head(&self, mut answer: Answer) -> Result<Answer, Fault> {
        if is_html(&answer) {
            let start = answer.piece().await.ok().flatten().unwrap_or_default();
            return Err(html(&start));
        }
        match answer.header(&header::CONTENT_ENCODING) {
            Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
                Err(Fault::Encoding { encoding: clean(&encoding, 40) })
            }
            _ => Ok(answer),
        }
    }
}

fn is_html(answer: &Answer) -> bool {
    answer
        .header(&header::CONTENT_TYPE)
        .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn html(body: &[u8]) -> Fault {
    Fault::Html { start: clean(&String::from_utf8_lossy(&body[..body.len().min(2_048)]), 80) }
}

/// A blob on its way.
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    asked: String,
    path: String,
    size_bytes: u64,
    received: u64,
    answer: Option<Answer>,
    /// What the current answer repeats and has to be left out.
    skip: u64,
    /// Where the current answer began to be of use.
    from: u64,
    /// How often it was taken up again without coming far.
    resumed: u32,
}

impl Blob<'_> {
    pub(crate) fn error(&self, fault: Fault) -> RegistryError {
        self.registry.error(&self.asked, fault)
    }

    /// The next bytes, or `None` when all are there. A download that breaks goes on where it was.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.next().await.map_err(|fault| self.error(fault))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let Some(answer) = &mut self.answer else {
                match self.open().await {
                    Ok(answer) => self.answer = Some(answer),
                    Err(fault) => self.try_again(fault).await?,
                }
                continue;
            };
            match answer.piece().await {
                Ok(Some(mut bytes)) => {
                    let repeated = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                    let bytes = bytes.split_off(repeated);
                    self.skip -= u64::try_from(repeated).unwrap_or(0);
                    if bytes.is_empty() {
                        continue;
                    }
                    self.received += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    if self.received > self.size_bytes {
                        return Err(Fault::Length { expected: self.size_bytes, found: self.received });
                    }
                    return Ok(Some(bytes));
                }
                Ok(None) if self.received == self.size_bytes => {
                    if let Some(answer) = self.answer.take() {
                        self.registry.transport.done(answer);
                    }
                    return Ok(None);
                }
                Ok(None) => return Err(Fault::Length { expected: self.size_bytes, found: self.received }),
                // Some servers end TLS without saying so.
                Err(Cut::Broken(_)) if self.received == self.size_bytes => return Ok(None),
                Err(cut) => {
                    self.answer = None;
                    let fault = cut.fault(self.received, Some(self.size_bytes), self.resumed);
                    self.try_again(fault).await?;
                }
            }
        }
    }

    /// Waits before a new try, if there should be one.
    async fn try_again(&mut self, fault: Fault) -> Result<(), Fault> {
        let came = self.received - self.from;
        let may_pass = match &fault {
            Fault::Broken { .. } => true,
            Fault::Stalled { .. } => came > 0,
            Fault::Connect { .. } | Fault::ConnectTime { .. } | Fault::NoAnswer { .. } | Fault::HeadTime { .. } => true,
            _ => false,
        };
        if came >= RESUME_BYTES {
            self.resumed = 0;
        }
        if !may_pass || self.received == 0 || self.resumed == RESUMES_MAX {
            return Err(fault);
        }
        self.from = self.received;
        let wait = BACK_OFF * 2_u32.pow(self.resumed);
        self.resumed += 1;
        tracing::debug!(received = self.received, tries = self.resumed, %fault, "a download goes on where it broke");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Asks for what is missing, and compares what the head says of it.
    async fn open(&mut self) -> Result<Answer, Fault> {
        let mut headers = HeaderMap::new();
        if self.received > 0 {
            let range = format!("bytes={}-", self.received);
            headers.insert(header::RANGE, HeaderValue::from_str(&range).expect("digits are a header's letters"));
        }
        let answer = self.registry.get(&self.path, headers).await?;
        let (size, received) = (self.size_bytes, self.received);
        let expected = match answer.status.as_u16() {
            200 => {
                self.skip = received;
                size
            }
            206 if received > 0 => {
                let range = answer.header(&header::CONTENT_RANGE).unwrap_or_default();
                let wanted = format!("bytes {received}-{}/", size - 1);
                let total = range.strip_prefix(&wanted).unwrap_or_default();
                if total != "*" && total != size.to_string() {
                    return Err(Fault::Range { range: clean(&range, 80) });
                }
                self.skip = 0;
                size - received
            }
            status => return Err(Fault::Status { status, said: Said::default() }),
        };
        self.from = received;
        match answer.content_length() {
            Some(found) if found != expected => Err(Fault::Announced { expected, found }),
            _ => Ok(answer),
        }
    }
}
