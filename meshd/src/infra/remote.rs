//! The API of this node for other nodes, and of other nodes for this one.
//!
//! Whoever asks is a member (TLS has seen to that); whether it may is judged for the connection and again and again while it
//! lasts: by its role in this node's own view, and by this node's consent.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meshd_web::{Api, Pipe, RemoteNode};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use vdc::{Key, Name};
use vdc_api::{ApiError, ErrorCode};

use super::tls::{self, API_PROTOCOL, InfraTls, MemberKeys};

/// How soon a node that lost its right or its membership is cut off.
const LOOK: Duration = Duration::from_millis(200);

/// Node keys of those with the role operator, replaced whenever the view changes.
pub(crate) type OperatorKeys = Arc<RwLock<Arc<HashSet<Key>>>>;

/// Who may use this node's API from afar.
#[derive(Clone, Debug)]
pub(crate) struct Guests {
    pub(crate) api: Api,
    /// The VDC's local name.
    pub(crate) vdc: Name,
    pub(crate) members: MemberKeys,
    pub(crate) operators: OperatorKeys,
    /// Whether this node consents at all.
    pub(crate) accepts: bool,
}

impl Guests {
    /// What keeps a member from this node's API.
    fn missing(&self, key: &Key) -> Option<ApiError> {
        let refused = |text: &str| ApiError::new(ErrorCode::RemoteRefused, text);
        let operators = self.operators.read().unwrap_or_else(PoisonError::into_inner);
        if !operators.contains(key) {
            let hint = "an admin gives it: `meshctl grant NODE --role operator`";
            return Some(refused("the asking node does not have the role operator").hint(hint));
        }
        if !self.accepts {
            let hint = "its local team sets `accept_operators = true` below [remote] in /etc/meshd/meshd.toml and restarts meshd";
            return Some(refused("the node does not let others use it").hint(hint));
        }
        None
    }

    fn is_member(&self, key: &Key) -> bool {
        self.members.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Answers a member until it hangs up or may not any more.
    pub(super) async fn serve(self, stream: TlsStream<TcpStream>) {
        let key = stream.get_ref().1.peer_certificates().and_then(|chain| tls::key_of(chain.first()?));
        let Some(key) = key else { return };
        let (missing, cut, alive) = (self.missing(&key), CancellationToken::new(), Arc::new(()));
        let node = RemoteNode {
            key: key.short(),
            vdc: self.vdc.to_string(),
            missing: missing.clone(),
            cut: cut.clone(),
            alive: Arc::clone(&alive),
        };
        let _cut = cut.drop_guard();
        let lost = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if !self.is_member(&key) || self.missing(&key) != missing {
                    return;
                }
            }
        };
        let api = self.api.clone();
        let served = async {
            api.serve_node(stream, node).await;
            // What the connection became goes on.
            while Arc::strong_count(&alive) > 1 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            // cancel-safe: the connection ends with this.
            () = served => {}
            // cancel-safe: nothing follows.
            () = lost => tracing::info!(node = key.short(), "a node that asked may not any more"),
        }
    }
}

/// Connects to the API of `peer`. `stream` was connected inside the VDC's namespace.
pub(crate) async fn connect(own: &InfraTls, peer: Key, stream: TcpStream) -> std::io::Result<Pipe> {
    let connector = TlsConnector::from(own.client(peer, API_PROTOCOL));
    let stream = connector.connect(tls::server_name(), stream).await?;
    Ok(Box::new(stream))
}
