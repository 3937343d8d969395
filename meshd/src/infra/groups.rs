//! What coordination groups say to each other, and clients to them: frames over connections that last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use meshd_coord::FRAME_BYTES_MAX;
use meshd_coord::frames;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client;
use tokio_rustls::server::TlsStream;
use vdc::Key;

use super::tls::{self, COORD_PROTOCOL, InfraTls, MemberKeys};

/// How soon a node that lost its membership is cut off.
const LOOK: Duration = Duration::from_millis(200);
/// Connections of one member at a time: one for each class of messages, and as many that it has not noticed to be dead.
const CONNECTIONS_EACH: usize = 12;
/// Connections of all.
const CONNECTIONS_MAX: usize = 2_048;

/// Answers a member's frame.
pub(crate) type Answer = Arc<dyn Fn(Key, Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;

/// Serves members' frames.
#[derive(Clone)]
pub(crate) struct GroupLines {
    members: MemberKeys,
    answer: Answer,
    open: Arc<Mutex<HashMap<Key, usize>>>,
}

impl std::fmt::Debug for GroupLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupLines")
    }
}

/// A connection's place among those of its member.
struct Place {
    open: Arc<Mutex<HashMap<Key, usize>>>,
    member: Key,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.member) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.member);
            }
        }
    }
}

impl GroupLines {
    pub(crate) fn new(members: MemberKeys, answer: Answer) -> Self {
        Self { members, answer, open: Arc::default() }
    }

    fn place(&self, member: Key) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let count = open.entry(member).or_default();
        if *count >= CONNECTIONS_EACH || all >= CONNECTIONS_MAX {
            if *count == 0 {
                open.remove(&member);
            }
            return None;
        }
        *count += 1;
        Some(Place { open: Arc::clone(&self.open), member })
    }

    fn is_member(&self, key: &Key) -> bool {
        self.members.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Answers a member until it hangs up or is none any more.
    pub(super) async fn serve(self, stream: TlsStream<TcpStream>) {
        let key = stream.get_ref().1.peer_certificates().and_then(|chain| tls::key_of(chain.first()?));
        let Some(key) = key else { return };
        let Some(_place) = self.place(key) else {
            return tracing::warn!(node = key.short(), "a member has too many connections for coordination groups");
        };
        let _ = stream.get_ref().0.set_nodelay(true); // it is slower without
        let answer = Arc::clone(&self.answer);
        let served = frames::serve(stream, FRAME_BYTES_MAX, move |frame| answer(key, frame));
        let lost = async {
            while self.is_member(&key) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            // cancel-safe: the connection ends with this.
            () = served => {}
            // cancel-safe: nothing follows.
            () = lost => tracing::info!(node = key.short(), "a node that is no member any more was cut off"),
        }
    }
}

/// Connects to `peer` for frames. `stream` was connected inside the VDC's namespace.
pub(crate) async fn connect(
    own: &InfraTls,
    peer: Key,
    stream: TcpStream,
) -> std::io::Result<client::TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    TlsConnector::from(own.client(peer, COORD_PROTOCOL)).connect(tls::server_name(), stream).await
}
