//! The HTTP API server of a node: JSON over a unix socket, as `vdc-api` lists it.
//!
//! - [`Backend`] is what the daemon implements: one method per operation.
//! - [`Listener::bind`] takes the socket, once per machine; [`Api::listen`] answers on it until it is told to stop, and
//!   [`Api::serve_node`] answers another node on a connection of its own.
//! - [`Access`] decides who may change something: uid 0 and the members of one group. Whoever can open the socket may
//!   read.
//!
//! Not here: what any operation does, and TCP.
//!
//! Invariants:
//! - A change runs to its end even if the client goes away; a read ends with its client.
//! - Every failure is an `ErrorBody`, whoever noticed it, and carries the request's id, which stands in the log too.
//! - Connections, requests, streams, bodies and times are bounded by [`Limits`]: at most 128 connections of 32 KiB
//!   buffer, 64 requests of 64 KiB body, 32 streams of 256 queued events or 16 queued pieces.
//! - A panic in the backend fails its request and nothing else.
#![forbid(unsafe_code)]

mod backend;
mod caller;
mod coord;
mod listen;
mod pieces;
mod remote;
mod reply;
mod request;
mod route;
mod routes;
mod serve;
mod upgrade;
mod workloads;

pub use backend::{Backend, Call, Duplex, Items, Pipe, RemoteNode};
pub use caller::{Access, Caller};
pub use coord::{Backup, CoordBackend};
pub use listen::{ListenError, Listener, WebConfig};
pub use pieces::Pieces;
pub use serve::{Api, Limits};
pub use workloads::WorkloadBackend;
