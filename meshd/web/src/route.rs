//! From an operation of `vdc_api::endpoint` and a closure to a route: reading, permission, limits, panics, answers.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, State};
use axum::http::{Request, Response};
use axum::routing::{MethodFilter, on};
use axum::{Extension, Router};
use futures::{FutureExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span, info, warn};
use vdc_api::endpoint::Operation;
use vdc_api::{ApiError, ByteStream, Endpoint, ErrorCode, Method, STREAM_PROTOCOL, endpoint};

use crate::request::{check_bytes, parse_body, parse_query, read_body};
use crate::upgrade::{self, wanted as wanted_upgrade};
use crate::{Access, Backend, Call, Caller, CoordBackend, Items, Limits, Pieces, Pipe, pieces, remote, reply};

/// Events of a detached stream that wait for a slow client. A client that lets more pile up loses its stream, not its
/// operation. An event is below 4 KiB: at most 1 MiB a stream.
const DETACHED_EVENTS_MAX: usize = 256;

/// What all routes share.
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    /// Connections that became something else.
    pub(crate) upgrades: Arc<Semaphore>,
    /// Calls that are carried to other nodes.
    pub(crate) remotes: Arc<Semaphore>,
    /// Work that outlives its client.
    pub(crate) detached: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// One request, as a route's closure sees it.
pub(crate) struct Ctx {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) call: Call,
    parts: Vec<String>,
    /// The connection, if the client wants it to become [`STREAM_PROTOCOL`].
    upgrade: Option<OnUpgrade>,
}

impl Ctx {
    /// The first varying segment of the path.
    pub(crate) fn vdc(&self) -> &str {
        self.parts.first().expect("the path starts with a VDC")
    }

    /// The second varying segment: a node, an invite, a block.
    pub(crate) fn id(&self) -> &str {
        self.parts.get(1).expect("the path names something in the VDC")
    }

    pub(crate) fn coord(&self) -> Result<Arc<dyn CoordBackend>, ApiError> {
        self.backend.coord().ok_or_else(|| {
            ApiError::new(ErrorCode::Unavailable, "this node has no part in any coordination group yet")
                .hint("try again in a moment")
        })
    }
}

/// What becomes of a stream whose client goes away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnHangUp {
    Drop,
    RunToEnd,
}

/// The routes so far.
pub(crate) struct Routes(pub(crate) Router<Arc<Shared>>);

impl Routes {
    /// An operation that answers with JSON.
    pub(crate) fn json<Q, B, R, F, Fut>(self, endpoint: Endpoint<Q, B, R>, run: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Ctx, Q, B) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ApiError>> + Send + 'static,
    {
        self.route(endpoint, move |shared, ctx, query, body| {
            let work = run(ctx, query, body);
            async move { reply::json(&to_end(&shared, endpoint.method, work).await?) }
        })
    }

    /// An operation that answers with text.
    pub(crate) fn text<Q, B, F, Fut>(self, endpoint: Endpoint<Q, B, String>, media: &'static str, run: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
        F: Fn(Ctx, Q, B) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<String, ApiError>> + Send + 'static,
    {
        self.route(endpoint, move |shared, ctx, query, body| {
            let work = run(ctx, query, body);
            async move { Ok(reply::text(media, to_end(&shared, endpoint.method, work).await?)) }
        })
    }

    /// An operation that answers with a stream of events.
    pub(crate) fn stream<Q, B, R, F, Fut>(self, endpoint: Endpoint<Q, B, R>, hang_up: OnHangUp, run: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Ctx, Q, B) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Items<R>, ApiError>> + Send + 'static,
    {
        self.route(endpoint, move |shared, ctx, query, body| {
            let (request_id, stop) = (ctx.call.request_id.clone(), stop_of(&shared, &ctx.call));
            let permit = Arc::clone(&shared.streams).try_acquire_owned();
            let work = run(ctx, query, body);
            async move {
                let permit = permit.map_err(|_| busy("too many streams are open"))?;
                let items = match hang_up {
                    OnHangUp::Drop => to_end(&shared, endpoint.method, work).await?,
                    OnHangUp::RunToEnd => detach(&shared, work).await?,
                };
                Ok(reply::events(items, request_id, stop, permit))
            }
        })
    }

    /// An operation whose connection becomes a pipe to what the backend opens. Hanging up ends both.
    pub(crate) fn upgrade<Q, B, F, Fut>(self, endpoint: Endpoint<Q, B, String>, run: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
        F: Fn(Ctx, Q, B) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Pipe, ApiError>> + Send + 'static,
    {
        self.route(endpoint, move |shared, mut ctx, query, body| {
            let permit = Arc::clone(&shared.upgrades).try_acquire_owned();
            let connection = ctx.upgrade.take();
            let (run, stop) = (run.clone(), stop_of(&shared, &ctx.call));
            let node = ctx.call.node.clone();
            async move {
                let connection = connection.ok_or_else(|| {
                    ApiError::new(ErrorCode::UpgradeRequired, "this operation needs the connection for itself")
                        .hint(format!("send `Connection: upgrade` and `Upgrade: {STREAM_PROTOCOL}`"))
                })?;
                let permit = permit.map_err(|_| busy("too many programs are attached to"))?;
                let pipe = to_end(&shared, endpoint.method, run(ctx, query, body)).await?;
                let splice = upgrade::splice(connection, pipe, stop);
                drop(shared.detached.spawn(async move {
                    splice.await;
                    drop((permit, node));
                }));
                Ok(upgrade::switching())
            }
        })
    }

    /// An operation that answers with bytes.
    pub(crate) fn download<Q, B, F, Fut>(self, endpoint: Endpoint<Q, B, ByteStream>, run: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
        F: Fn(Ctx, Q, B) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Pieces, ApiError>> + Send + 'static,
    {
        self.route(endpoint, move |shared, ctx, query, body| {
            let (request_id, stop) = (ctx.call.request_id.clone(), stop_of(&shared, &ctx.call));
            let permit = Arc::clone(&shared.streams).try_acquire_owned();
            let work = run(ctx, query, body);
            async move {
                let permit = permit.map_err(|_| busy("too many streams are open"))?;
                let pieces = to_end(&shared, endpoint.method, work).await?;
                Ok(pieces::download(pieces, request_id, stop, permit))
            }
        })
    }

    /// An operation whose body is bytes. It sees a client that goes away as an error among them, and goes on to its end.
    pub(crate) fn upload<Q, R, F, Fut>(self, endpoint: Endpoint<Q, ByteStream, R>, run: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Ctx, Q, Pieces) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ApiError>> + Send + 'static,
    {
        self.raw(endpoint, move |shared, ctx, request| {
            let run = run.clone();
            async move {
                let (head, body) = request.into_parts();
                let (pieces, carrying) = pieces::upload(body, shared.limits);
                let work = async {
                    let permit = Arc::clone(&shared.streams).try_acquire_owned();
                    let _permit = permit.map_err(|_| busy("too many streams are open"))?;
                    check_bytes(&head.headers)?;
                    let work = run(ctx, parse_query(&head.uri)?, pieces);
                    let joined = shared.detached.spawn(work.in_current_span()).await;
                    joined.unwrap_or_else(|_| Err(reply::panicked()))
                };
                // Whoever refuses drops the pieces; the answer waits until the client can hear it.
                let both = futures::future::join(work, carrying);
                let time = shared.limits.upload_time;
                let ended = tokio::time::timeout(time, both).await;
                let (answer, ()) = ended.map_err(|_| late(time, endpoint.method))?;
                reply::json(&answer?)
            }
        })
    }

    fn route<Q, B, R, F, Fut>(self, endpoint: Endpoint<Q, B, R>, answer: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
        R: 'static,
        F: Fn(Arc<Shared>, Ctx, Q, B) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Response<Body>, ApiError>> + Send + 'static,
    {
        self.raw(endpoint, move |shared, ctx, request| {
            let answer = answer.clone();
            async move {
                let (query, body) = read(&shared, request).await?;
                answer(shared, ctx, query, body).await
            }
        })
    }

    /// A route that reads its body itself.
    fn raw<Q, B, R, F, Fut>(self, endpoint: Endpoint<Q, B, R>, answer: F) -> Self
    where
        Q: 'static,
        B: 'static,
        R: 'static,
        F: Fn(Arc<Shared>, Ctx, Request<Body>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Response<Body>, ApiError>> + Send + 'static,
    {
        let operation = endpoint::ALL
            .iter()
            .find(|operation| (operation.method, operation.path) == (endpoint.method, endpoint.path))
            .expect("every endpoint is in the list");
        let takes_bytes = operation.takes_bytes();
        let handler = move |State(shared): State<Arc<Shared>>,
                            Extension(call): Extension<Call>,
                            parts: Result<RawPathParams, RawPathParamsRejection>,
                            mut request: Request<Body>| {
            let answer = answer.clone();
            async move {
                let started = Instant::now();
                let span =
                    debug_span!("api", operation = operation.id, request = call.request_id, uid = call.caller.uid);
                let answered = async {
                    if let Err(refusal) = admit(&shared, operation, &call).await {
                        if takes_bytes {
                            pieces::discard(request.into_body(), shared.limits).await;
                        }
                        return Err(refusal);
                    }
                    let on = if operation.is_remote() { remote::take_on(&mut request)? } else { None };
                    let parts =
                        parts.map_err(|_| ApiError::new(ErrorCode::BadRequest, "the path is not UTF-8 text"))?;
                    let mut parts: Vec<String> = parts.iter().map(|(_, part)| part.to_owned()).collect();
                    if let (Some(node), Some(vdc)) = (&call.node, parts.first_mut()) {
                        // What the other node calls the VDC means nothing here.
                        vdc.clone_from(&node.vdc);
                    }
                    if let Some(on) = on
                        && let Some(answer) = remote::carry(&shared, &call, &parts, &on, &mut request).await?
                    {
                        return Ok(answer);
                    }
                    let upgrade = wanted_upgrade(&mut request);
                    let ctx = Ctx { backend: Arc::clone(&shared.backend), call: call.clone(), parts, upgrade };
                    answer(Arc::clone(&shared), ctx, request).await
                };
                let answered = AssertUnwindSafe(with_permit(&shared, answered)).catch_unwind().instrument(span).await;
                let answered = answered.unwrap_or_else(|_| Err(reply::panicked()));
                log(operation.id, endpoint.method, &call, started.elapsed(), answered.as_ref().err());
                answered.unwrap_or_else(|error| reply::error(error, &call.request_id))
            }
        };
        Self(self.0.route(endpoint.path, on(filter(endpoint.method), handler)))
    }
}

fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Patch => MethodFilter::PATCH,
        Method::Delete => MethodFilter::DELETE,
    }
}

fn busy(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Busy, message).hint("try again in a moment")
}

/// Counts the request while it is being answered.
async fn with_permit<T>(shared: &Shared, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let _permit = shared.requests.try_acquire().map_err(|_| busy("too many requests at once"))?;
    work.await
}

/// What ends streams and pipes of a call.
fn stop_of(shared: &Shared, call: &Call) -> CancellationToken {
    call.node.as_ref().map_or_else(|| shared.stop.clone(), |node| node.cut.clone())
}

/// Judges whether the caller may do what the method means.
async fn admit(shared: &Arc<Shared>, operation: &Operation, call: &Call) -> Result<(), ApiError> {
    if let Some(node) = &call.node {
        if !operation.is_remote() {
            return Err(ApiError::new(
                ErrorCode::RemoteRefused,
                format!("{} is for this node's own users", operation.id),
            )
            .hint("other nodes may ask for workloads and images"));
        }
        return node.missing.clone().map_or(Ok(()), Err);
    }
    if !operation.is_guarded() {
        return Ok(());
    }
    let (judge, caller) = (Arc::clone(shared), call.caller);
    // Reads two small files, hence not on a thread that others wait for.
    let allowed = tokio::task::spawn_blocking(move || judge.access.may_change(&caller)).await.unwrap_or(false);
    if allowed {
        return Ok(());
    }
    let group = &shared.access.group;
    let error = ApiError::new(ErrorCode::PermissionDenied, format!("user {} may not do this here", caller.uid));
    Err(error.hint(format!("use sudo, or add the user to group {group}: `sudo usermod -aG {group} USER`")))
}

async fn read<Q: DeserializeOwned, B: DeserializeOwned>(
    shared: &Shared,
    request: Request<Body>,
) -> Result<(Q, B), ApiError> {
    let (head, body) = request.into_parts();
    // The body first: what is left unread on a unix socket would cost the client the answer.
    let body = read_body(&head.headers, body, shared.limits.body_time).await?;
    Ok((parse_query(&head.uri)?, parse_body(&body)?))
}

/// Waits for the work. A change goes on if its client goes away or the time is up, a read does not.
async fn to_end<T: Send + 'static>(
    shared: &Shared,
    method: Method,
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let time = shared.limits.request_time;
    if !method.changes() {
        return tokio::time::timeout(time, work).await.map_err(|_| late(time, method))?;
    }
    let task = shared.detached.spawn(work.in_current_span());
    let joined = tokio::time::timeout(time, task).await.map_err(|_| late(time, method))?;
    joined.unwrap_or_else(|_| Err(reply::panicked()))
}

fn late(time: Duration, method: Method) -> ApiError {
    let message = format!("no answer within {} s", time.as_secs());
    let error = ApiError::new(ErrorCode::Timeout, message);
    if method.changes() { error.hint("the change may still come about; look at `meshctl status`") } else { error }
}

/// Starts work whose stream is drained to its end, whether or not anybody listens.
async fn detach<T: Send + 'static>(
    shared: &Shared,
    work: impl Future<Output = Result<Items<T>, ApiError>> + Send + 'static,
) -> Result<Items<T>, ApiError> {
    let (started, start) = oneshot::channel();
    let (sender, receiver) = mpsc::channel(DETACHED_EVENTS_MAX);
    let drain = async move {
        let items = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(Ok(items)) => items,
            Ok(Err(error)) => return drop(started.send(Err(error))),
            Err(_) => return drop(started.send(Err(reply::panicked()))),
        };
        // Without a client there is nobody to tell.
        drop(started.send(Ok(())));
        let mut items = AssertUnwindSafe(items).catch_unwind();
        let mut sender = Some(sender);
        while let Some(item) = items.next().await {
            let item = item.unwrap_or_else(|_| Err(reply::panicked()));
            if sender.as_ref().is_some_and(|sender| sender.try_send(item).is_err()) {
                debug!("the client of a detached stream is gone or too slow; the work goes on");
                sender = None;
            }
        }
    };
    drop(shared.detached.spawn(drain.in_current_span()));
    let time = shared.limits.request_time;
    let started = tokio::time::timeout(time, start).await.map_err(|_| late(time, Method::Post))?;
    started.unwrap_or_else(|_| Err(reply::panicked()))?;
    Ok(ReceiverStream::new(receiver).boxed())
}

fn log(operation: &str, method: Method, call: &Call, elapsed: Duration, error: Option<&ApiError>) {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let Call { caller: Caller { uid, .. }, node, request_id: request } = call;
    if let Some(node) = node {
        info!(operation, request, node = node.key, elapsed_ms, "asked by another node");
    }
    match error {
        None if method.changes() => info!(operation, request, uid, elapsed_ms, "change made"),
        None => debug!(operation, request, uid, elapsed_ms, "read answered"),
        Some(error) if error.code.status() >= 500 => {
            warn!(operation, request, uid, elapsed_ms, code = error.code.as_str(), "request failed");
            debug!(request, message = error.message, causes = ?error.causes, "request failed because");
        }
        Some(error) => {
            info!(operation, request, uid, elapsed_ms, code = error.code.as_str(), "request refused");
            debug!(request, message = error.message, causes = ?error.causes, "request refused because");
        }
    }
}
