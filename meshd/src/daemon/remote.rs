//! Which node a remote verb means, and the way to its API.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use meshd_web::Pipe;
use vdc::Key;
use vdc_api::{self as api, ApiError, ErrorCode, endpoint};

use crate::vdc_core::{CoreHandle, chain};

/// How long a node of a site has to say what it has left.
const CAPACITY_TIME: Duration = Duration::from_secs(2);
/// Nodes of a site that are asked.
const NODES_MAX: usize = 16;
/// Longest answer of a node that is asked what it has left.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A connection to the API of the node that is meant; none if it is this one.
pub(super) async fn connect(handle: &CoreHandle, on: &str) -> Result<Option<Pipe>, ApiError> {
    let text = on.to_owned();
    let (own, nodes) = handle.with(move |core| core.nodes_meant(&text).map(|nodes| (core.own_key(), nodes))).await??;
    let chosen = match nodes.as_slice() {
        [only] if !on.starts_with("site=") => only.clone(),
        several => roomiest(handle, own, several, on).await?,
    };
    if chosen.0 == own {
        return Ok(None);
    }
    reach(handle, &chosen).await.map(Some)
}

async fn reach(handle: &CoreHandle, (key, name): &(Key, String)) -> Result<Pipe, ApiError> {
    let text = key.to_string();
    let route = handle.with(move |core| core.infra_route(&text)).await??;
    route.api().await.map_err(|error| {
        ApiError::new(ErrorCode::RemoteUnreachable, format!("{name} does not answer over the infra plane"))
            .cause(chain(&error))
            .hint(format!("is it up? `meshctl ping --infra {name}`"))
    })
}

/// The node of a site that lets others use it and has most memory left.
async fn roomiest(handle: &CoreHandle, own: Key, nodes: &[(Key, String)], on: &str) -> Result<(Key, String), ApiError> {
    let asked: FuturesUnordered<_> = nodes
        .iter()
        .take(NODES_MAX)
        .map(|node| async move {
            if node.0 == own {
                return (node, Ok(capacity(0)));
            }
            let answer = tokio::time::timeout(CAPACITY_TIME, ask(handle, node)).await;
            let late = || ApiError::new(ErrorCode::RemoteUnreachable, format!("{} does not answer in time", node.1));
            (node, answer.unwrap_or_else(|_| Err(late())))
        })
        .collect();
    let answers: Vec<_> = asked.collect().await;
    let able = answers.iter().filter_map(|(node, answer)| Some((answer.as_ref().ok()?.memory_free_bytes, *node)));
    if let Some((_, node)) = able.max_by_key(|(free, node)| (*free, std::cmp::Reverse(node.1.clone()))) {
        return Ok(node.clone());
    }
    let site = on.trim_start_matches("site=");
    let mut error = ApiError::new(ErrorCode::RemoteRefused, format!("no node of site {site} can be used"))
        .hint("name one with --on NODE to see what is missing there");
    for (_, answer) in answers {
        if let Err(why) = answer {
            error = error.cause(why.message);
        }
    }
    Err(error)
}

/// What a node says that it has left.
async fn ask(handle: &CoreHandle, node: &(Key, String)) -> Result<api::Capacity, ApiError> {
    let pipe = reach(handle, node).await?;
    let broken = |error: &dyn std::error::Error| {
        ApiError::new(ErrorCode::RemoteUnreachable, format!("the connection to {} broke off", node.1)).caused_by(error)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(pipe)).await.map_err(|error| broken(&error))?;
    let request = hyper::Request::get(endpoint::CAPACITY.path_with(&[api::DEFAULT_VDC]))
        .header(hyper::header::HOST, "meshd")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| broken(&*error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| broken(&error));
        }
        let body: Result<api::ErrorBody, _> = serde_json::from_slice(&bytes);
        let (code, message) = body.map_or((ErrorCode::Unknown, status.to_string()), |body| (body.code, body.message));
        Err(ApiError::new(code, format!("{}: {message}", node.1)))
    };
    tokio::select! {
        // cancel-safe: nothing follows.
        answer = exchange => answer,
        // cancel-safe: nothing follows; the exchange hears of its end.
        ended = connection => Err(broken(&ended.err().map_or_else(|| std::io::Error::other("it was closed"), std::io::Error::other))),
    }
}

/// What this node has left for workloads.
pub(super) fn capacity(running: u32) -> api::Capacity {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kilobytes: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kilobytes.unwrap_or(0) * 1024
    };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    api::Capacity {
        node: String::new(),
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        memory_bytes: field("MemTotal"),
        memory_free_bytes: field("MemAvailable"),
        running,
    }
}
