//! Answering on the socket until told to stop.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use vdc_api::REQUEST_ID_HEADER;

use crate::route::Shared;
use crate::{Backend, Call, Caller, Listener, RemoteNode, WebConfig, routes};

/// Bytes of a request's head, and of a connection's buffer.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// How long to wait when the system has no file descriptor left for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Requests being answered; further ones are refused as busy.
    pub requests_max: usize,
    /// Streams being sent; further ones are refused as busy.
    pub streams_max: usize,
    /// Connections that became pipes; further ones are refused as busy.
    pub upgrades_max: usize,
    /// Calls that are carried to other nodes; further ones are refused as busy.
    pub remotes_max: usize,
    /// For a request's head to arrive, and for an idle connection to stay.
    pub head_time: Duration,
    /// For a request's body to arrive; of an upload, for the next piece.
    pub body_time: Duration,
    /// Bytes of an upload.
    pub upload_bytes_max: u64,
    /// For an upload to arrive and to be dealt with.
    pub upload_time: Duration,
    /// For an answer, or the start of a stream.
    pub request_time: Duration,
    /// For all that is under way to end once the daemon stops.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            requests_max: 64,
            streams_max: 32,
            upgrades_max: 64,
            remotes_max: 16,
            head_time: Duration::from_secs(15),
            body_time: Duration::from_secs(10),
            upload_bytes_max: vdc_api::BACKUP_BYTES_MAX,
            upload_time: Duration::from_hours(1),
            request_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(5),
        }
    }
}

/// The API, ready to answer on any connection. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    router: Router,
    ids: Arc<RequestIds>,
    limits: Limits,
    stop: CancellationToken,
    detached: TaskTracker,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// An API in front of `backend`, until `shutdown` is cancelled.
    #[must_use]
    pub fn new(config: &WebConfig, backend: Arc<dyn Backend>, shutdown: &CancellationToken) -> Self {
        let (limits, stop, detached) = (config.limits, shutdown.child_token(), TaskTracker::new());
        let router = routes::router(Arc::new(Shared {
            backend,
            access: config.access.clone(),
            limits,
            requests: Arc::new(Semaphore::new(limits.requests_max)),
            streams: Arc::new(Semaphore::new(limits.streams_max)),
            upgrades: Arc::new(Semaphore::new(limits.upgrades_max)),
            remotes: Arc::new(Semaphore::new(limits.remotes_max)),
            detached: detached.clone(),
            stop: stop.clone(),
        }));
        Self { router, ids: Arc::new(RequestIds::new()), limits, stop, detached }
    }

    /// Serves another node's connection to its end.
    pub async fn serve_node(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, node: RemoteNode) {
        let nobody = Caller { uid: u32::MAX, gid: u32::MAX, pid: None };
        connection(stream, nobody, Some(node), self.clone()).await;
    }
}

impl Api {
    /// Answers requests on the socket until the API's shutdown; then takes no more, ends streams, lets changes finish
    /// within the drain time, and removes the socket.
    ///
    /// # Errors
    /// If the socket cannot be handed to the runtime. Afterwards, whatever goes wrong concerns one connection only.
    ///
    /// # Cancel safety
    /// Dropping the future drops all connections and whatever they were doing.
    pub async fn listen(self, listener: Listener) -> io::Result<()> {
        let config = listener.config.clone();
        let limits = self.limits;
        let socket = UnixListener::from_std(listener.socket.try_clone()?)?;
        // Streams and connections hear of the end through a child, so that they also end if this future is dropped.
        let stop = self.stop.clone();
        let _stop_on_drop = stop.clone().drop_guard();
        let detached = self.detached.clone();
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        let mut connections = JoinSet::new();
        info!(socket = %config.socket.display(), "API is served");
        loop {
            // One slot before each accept: what finds none waits in the kernel's queue.
            let accepted = tokio::select! {
                // cancel-safe: a level.
                () = stop.cancelled() => break,
                // cancel-safe: a finished connection is taken only when this arm wins.
                Some(_) = connections.join_next() => continue,
                // cancel-safe: losing the arm gives the slot back, and `accept` takes nothing until it wins.
                accepted = async {
                    let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                    (slot, socket.accept().await)
                } => accepted,
            };
            match accepted {
                (slot, Ok((stream, _))) => {
                    let api = self.clone();
                    connections.spawn(async move {
                        user_connection(stream, api).await;
                        drop(slot);
                    });
                }
                (_, Err(error)) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(socket);
        drop(listener);
        detached.close();
        let drained = async {
            while connections.join_next().await.is_some() {}
            detached.wait().await;
        };
        if tokio::time::timeout(limits.drain_time, drained).await.is_err() {
            warn!(connections = connections.len(), changes = detached.len(), "API stops with work under way");
        }
        Ok(())
    }
}

/// Serves one connection of a user of this host to its end.
async fn user_connection(stream: UnixStream, api: Api) {
    let caller = match stream.peer_cred() {
        Ok(peer) => Caller { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() },
        Err(error) => return debug!(%error, "peer without credentials"),
    };
    connection(stream, caller, None, api).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    caller: Caller,
    node: Option<RemoteNode>,
    api: Api,
) {
    let Api { router, ids, limits, stop, .. } = api;
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let request_id = ids.next();
        request.extensions_mut().insert(Call { caller, node: node.clone(), request_id: request_id.clone() });
        let answer = inner.call(request.map(Body::new));
        async move { answer.await.map(|response| with_headers(response, &request_id)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // cancel-safe: the connection is polled on below.
        ended = connection.as_mut() => ended,
        // cancel-safe: a level.
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

fn with_headers(mut response: Response<Body>, request_id: &str) -> Response<Body> {
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID_HEADER, value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Ids that tell requests apart across restarts: a number drawn at the start, and a counter.
struct RequestIds {
    run: u32,
    count: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        // Keyed from the system's randomness; need not be secret.
        let drawn = RandomState::new().hash_one(std::process::id());
        Self { run: u32::try_from(drawn >> 32).expect("32 bits"), count: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{:08x}-{count:06x}", self.run)
    }
}
