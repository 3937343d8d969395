//! What a registry did instead of handing out an image, and what to do about it.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::digest::DigestError;

/// Longest piece of a registry's own words in a message.
const WORDS_MAX: usize = 200;

/// Why an image could not be had from its registry.
///
/// The message says which registry was asked for what and what it did, [`Self::hint`] what to do about it.
#[derive(Debug)]
pub struct RegistryError {
    registry: String,
    asked: String,
    fault: Box<Fault>,
}

/// Of which kind a [`RegistryError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryErrorKind {
    /// The registry has no such image.
    NotFound,
    /// The registry, or something on the way to it, does not answer or not as a registry does. Another try may help.
    Unreachable,
    /// The registry wants to know who asks, or does not hand the image to whom it knows.
    Denied,
    /// What the registry handed out is not what was asked for.
    Invalid,
}

impl RegistryError {
    pub(crate) fn new(registry: &str, asked: &str, fault: Fault) -> Self {
        Self { registry: registry.to_owned(), asked: asked.to_owned(), fault: Box::new(fault) }
    }

    /// Of which kind it is.
    #[must_use]
    pub fn kind(&self) -> RegistryErrorKind {
        self.fault.kind()
    }

    /// Host and, if it was written, port of the registry.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        self.fault.hint()
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry {}, asked for {}, {}", self.registry, self.asked, self.fault)
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.fault.source()
    }
}

/// What went wrong. The messages go on from "registry R, asked for X,".
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("is unknown: the name {host} does not resolve")]
    Lookup {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot be reached at {at}")]
    Connect {
        at: String,
        #[source]
        source: io::Error,
    },
    #[error("could not be connected to at {at} within {} s", .waited.as_secs_f32())]
    ConnectTime { at: String, waited: Duration },
    #[error("could not be talked to over TLS at {at}")]
    Tls {
        at: String,
        trust: Trust,
        #[source]
        source: io::Error,
    },
    #[error("cannot be verified: what was given as certificates is no PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("cannot be verified: no certificate was found in what was given as PEM")]
    PemEmpty,
    #[error("cannot be talked to by TLS as this program does")]
    TlsSetUp(#[source] rustls::Error),
    #[error("began no answer within {} s", .waited.as_secs_f32())]
    HeadTime { waited: Duration },
    #[error("stalled: no more came for {} s, {received} of {} were there", .waited.as_secs_f32(), Of(*.expected))]
    Stalled { waited: Duration, received: u64, expected: Option<u64> },
    #[error("took more than {} s for a small answer", .waited.as_secs_f32())]
    Slow { waited: Duration },
    #[error("broke the connection after {received} of {}{}", Of(*.expected), Tries(*.resumed))]
    Broken {
        received: u64,
        expected: Option<u64>,
        resumed: u32,
        #[source]
        source: hyper::Error,
    },
    #[error("does not speak HTTP/1.1 at {at}")]
    Protocol {
        at: String,
        #[source]
        source: hyper::Error,
    },
    #[error("closed the connection to {at} without an answer")]
    NoAnswer {
        at: String,
        #[source]
        source: hyper::Error,
    },
    #[error("redirected {count} times and there was no end")]
    Redirects { count: usize },
    #[error("redirected from HTTPS to HTTP, to {to}: that is not followed")]
    Downgrade { to: String },
    #[error("wants to be asked in plain HTTP at {to}: that is not done")]
    PlainHttp { to: String },
    #[error("redirected to {to:?}, which is no address")]
    Location { to: String },
    #[error("says that it is not there{said}")]
    NotFound { said: Said },
    #[error("refused it to {whom}: {status}{said}")]
    Denied { status: u16, whom: &'static str, said: Said },
    #[error("redirected to {at}, which wants to know who asks: that is told to the registry only")]
    Elsewhere { at: String },
    #[error("wants a proof of who asks that it does not name or that is not known here: {challenge:?}")]
    Challenge { challenge: String },
    #[error("sent here for a token: {at}, which refused one to {whom}: {status}{said}")]
    TokenDenied { at: String, whom: &'static str, status: u16, said: Said },
    #[error("sent here for a token: {at}, which answered with none")]
    Token { at: String },
    #[error("wants to know who asks, and the credential helper {helper} did not say: {why}")]
    Helper { helper: String, why: String },
    #[error("wants to know who asks, and {path} cannot be used: {why}")]
    CredentialFile { path: String, why: String },
    #[error("cannot be given these credentials: a user's name has no colon, and neither part has control characters")]
    Credentials,
    #[error("is too busy: {status}{}", Wait(*.wait))]
    Busy { status: u16, wait: Option<Duration> },
    #[error("failed: {status}{said}")]
    Status { status: u16, said: Said },
    #[error("answered with a web page: {start:?}")]
    Html { start: String },
    #[error("answered with more than {max} bytes")]
    TooLong { max: u64 },
    #[error("lied about the length: {expected} bytes were announced by the manifest, {found} by the answer")]
    Announced { expected: u64, found: u64 },
    #[error("lied about the length: {expected} bytes were announced, {found} came")]
    Length { expected: u64, found: u64 },
    #[error("answered with another part than was asked for: {range:?}")]
    Range { range: String },
    #[error("answered in an encoding that was not asked for: {encoding:?}")]
    Encoding { encoding: String },
    #[error("answered with something else")]
    Digest(#[source] DigestError),
    #[error("calls its answer {header:?}, and that is not what it is")]
    Header { header: String },
    #[error("has indexes of indexes of indexes, and no image")]
    Nested,
}

/// Why a TLS connection failed, as far as it matters for what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    UnknownAuthority,
    AuthorityAsServer,
    WrongName,
    Expired,
    NotTls,
    Other,
}

impl Trust {
    pub(crate) fn of(error: &io::Error) -> Self {
        use rustls::{CertificateError, Error, InvalidMessage};
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Self::NotTls,
            Some(Error::InvalidCertificate(error)) => match error {
                // The second: an authority of the same name that is known has another key.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                // The verifier's own type for this is no part of the interface.
                CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                    Self::AuthorityAsServer
                }
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

impl Fault {
    pub(crate) fn kind(&self) -> RegistryErrorKind {
        match self {
            Self::NotFound { .. } => RegistryErrorKind::NotFound,
            Self::Denied { .. }
            | Self::Elsewhere { .. }
            | Self::Challenge { .. }
            | Self::TokenDenied { .. }
            | Self::Helper { .. }
            | Self::CredentialFile { .. }
            | Self::Credentials => RegistryErrorKind::Denied,
            Self::Status { status, .. } if *status < 500 => RegistryErrorKind::Invalid,
            Self::TooLong { .. }
            | Self::Announced { .. }
            | Self::Length { .. }
            | Self::Range { .. }
            | Self::Encoding { .. }
            | Self::Digest(_)
            | Self::Header { .. }
            | Self::Nested => RegistryErrorKind::Invalid,
            _ => RegistryErrorKind::Unreachable,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "check the registry's name, and that this node can resolve it",
            Self::Connect { .. } | Self::ConnectTime { .. } => {
                "check that the registry runs, that its name and port are right, and that no firewall is in between"
            }
            Self::Tls { trust, .. } => match trust {
                Trust::UnknownAuthority => {
                    "its certificate is of an authority that this node does not trust: give the authority's \
                     certificate (PEM), or add it to those of the host"
                }
                Trust::AuthorityAsServer => {
                    "its certificate is its own authority: have a certificate for the server signed by an authority, \
                     and give that authority's certificate (PEM)"
                }
                Trust::WrongName => "its certificate is for another name: call the registry by the certificate's name",
                Trust::Expired => "its certificate is not valid today: renew it, or set this node's clock",
                Trust::NotTls => "it does not speak TLS: if it is meant to be asked in plain HTTP, say so",
                Trust::Other => "look at the registry's log; TLS 1.2 and 1.3 are spoken here",
            },
            Self::Pem(_) | Self::PemEmpty => {
                "give certificates as PEM: text that begins with -----BEGIN CERTIFICATE-----"
            }
            Self::TlsSetUp(_) => "report this with the log",
            Self::HeadTime { .. } | Self::Stalled { .. } | Self::Slow { .. } | Self::Broken { .. } => {
                "try again; if it stays so, look at the registry's log and at what is between"
            }
            Self::Protocol { .. } | Self::NoAnswer { .. } => {
                "check the port; if the registry speaks TLS, do not ask for plain HTTP, and give its authority's \
                 certificate (PEM) if it is one on this host"
            }
            Self::Redirects { .. } | Self::Location { .. } => "repair the registry's settings, or those of its proxy",
            Self::Downgrade { .. } => "set the registry's own address (its external URL) to https://",
            Self::PlainHttp { .. } => "if the network to it can be trusted, ask for plain HTTP",
            Self::NotFound { .. } => "check the name and the tag; a private image may need credentials to be seen",
            Self::Denied { .. } | Self::TokenDenied { .. } => {
                "check the name; if the image is private, give a user's name and password that may pull it"
            }
            Self::Elsewhere { .. } => {
                "call the registry by the name that it redirects to, or have it sign its redirects to its storage"
            }
            Self::Challenge { .. } => "have the registry take user and password (Basic) or tokens (Bearer)",
            Self::Token { .. } => "look at the log of the registry's token server",
            Self::Helper { .. } => "install the helper where the daemon finds it, or give user and password",
            Self::CredentialFile { .. } => "repair the file, or give user and password",
            Self::Credentials => "check user and password",
            Self::Busy { .. } => "try again later; a user that is known is often allowed more",
            Self::Status { status, .. } if *status < 500 => "check the name, and that the address is a registry's",
            Self::Status { .. } => "try again; if it stays so, look at the registry's log",
            Self::Html { .. } => "something between, or the address itself, is no registry: check the name and proxies",
            Self::TooLong { .. }
            | Self::Announced { .. }
            | Self::Length { .. }
            | Self::Range { .. }
            | Self::Encoding { .. }
            | Self::Digest(_)
            | Self::Header { .. } => {
                "nothing was stored; push the image again, and check the registry's disk and what is between"
            }
            Self::Nested => "name one image of the index by its digest",
        }
    }
}

/// What a registry said in its own words, if it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said(String);

impl Said {
    /// The first message of a registry's list of errors, or the beginning of a text.
    pub(crate) fn of(body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Errors {
            #[serde(default)]
            errors: Vec<One>,
            #[serde(default)]
            details: String,
        }
        #[derive(serde::Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let text = match serde_json::from_slice::<Errors>(body) {
            Ok(said) => match said.errors.first() {
                Some(one) if one.message.is_empty() => one.code.clone(),
                Some(one) => one.message.clone(),
                None => said.details,
            },
            Err(_) => String::from_utf8_lossy(&body[..body.len().min(4 * WORDS_MAX)]).into_owned(),
        };
        Self(clean(&text, WORDS_MAX))
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {:?}", self.0) }
    }
}

/// Foreign text for a message: on one line, without control characters, cut.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(8 * max).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(max).collect()
}

struct Of(Option<u64>);

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes} bytes"),
            None => write!(f, "some bytes"),
        }
    }
}

struct Wait(Option<Duration>);

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wait) => write!(f, ", and asks to be left alone for {} s", wait.as_secs()),
            None => Ok(()),
        }
    }
}

struct Tries(u32);

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ", and {} more tries brought no more", self.0) }
    }
}
