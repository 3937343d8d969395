//! What can go wrong, and what was tried before it did.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use vdc::Key;
use vdc::codec::DecodeError;

use crate::key::Transport;

/// Why a swarm cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("port {port} ({transport}) of {address} is in use by another program")]
    PortInUse { port: u16, transport: Transport, address: IpAddr },
    #[error("no permission to listen on port {port} ({transport}) of {address}")]
    NoPermission { port: u16, transport: Transport, address: IpAddr },
    #[error("cannot listen on {address} ({transport})")]
    Bind {
        address: SocketAddr,
        transport: Transport,
        #[source]
        source: io::Error,
    },
    #[error("none of the addresses to listen on exists on this host")]
    NoAddress,
    #[error("the control task has stopped")]
    Stopped,
}

/// One address that was dialled, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// `address:port`, or `name:port` when it did not resolve.
    pub address: String,
    /// None when there was nothing to dial yet.
    pub transport: Option<Transport>,
    pub why: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Some(transport) => write!(f, "{} ({transport}): {}", self.address, self.why),
            None => write!(f, "{}: {}", self.address, self.why),
        }
    }
}

/// A list of attempts on one line.
pub(crate) struct Attempts<'a>(pub(crate) &'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no address is known");
        }
        for (i, attempt) in self.0.iter().enumerate() {
            write!(f, "{}{attempt}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why a request to a member had no answer.
#[derive(Debug, thiserror::Error)]
#[error("request to node {}", node.short())]
pub struct RequestError {
    pub node: Key,
    #[source]
    pub cause: CallError,
}

impl RequestError {
    /// Whether the link went away under the request: over another link it may well be answered.
    #[must_use]
    pub fn is_link_lost(&self) -> bool {
        matches!(self.cause, CallError::LinkLost | CallError::Broken(_))
    }
}

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the node is not a member")]
    NotMember,
    #[error("it could not be reached: {}", Attempts(.attempts))]
    Unreachable { attempts: Vec<Attempt> },
    #[error("no answer within the deadline")]
    Deadline,
    #[error("the link went down before the answer came")]
    LinkLost,
    #[error("too many requests are under way")]
    Busy,
    #[error("the request of {length} bytes is longer than the {length_max} allowed")]
    TooLong { length: usize, length_max: usize },
    #[error("it does not speak {protocol}")]
    Unsupported { protocol: &'static str },
    #[error("it broke the exchange off")]
    Broken(#[source] io::Error),
    #[error("its answer makes no sense")]
    Malformed(#[source] DecodeError),
    #[error("the control task has stopped")]
    Stopped,
}

/// Why a joiner got no answer from a registrar.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("no registrar of the invite could be reached: {}", Attempts(.attempts))]
    Unreachable { attempts: Vec<Attempt> },
    #[error("registrar {} at {address} did not answer", registrar.short())]
    Call {
        registrar: Key,
        address: SocketAddr,
        #[source]
        cause: CallError,
    },
}
