//! Connections that stop being HTTP: bytes both ways between a client and what the backend opened for it.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use vdc_api::STREAM_PROTOCOL;

use crate::Pipe;

/// How long a client may keep its end open after ours has ended.
const LINGER: Duration = Duration::from_secs(10);

/// Takes the connection out of a request that asks for our protocol.
pub(crate) fn wanted(request: &mut Request<Body>) -> Option<OnUpgrade> {
    let asked = request.headers().get(header::UPGRADE)?;
    if !asked.as_bytes().eq_ignore_ascii_case(STREAM_PROTOCOL.as_bytes()) {
        return None;
    }
    request.extensions_mut().remove::<OnUpgrade>()
}

/// The answer that makes the connection a pipe.
pub(crate) fn switching() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(STREAM_PROTOCOL));
    response
}

/// Carries bytes both ways until the backend's end is reached, the client hangs up, or the daemon stops. An end of one
/// direction is passed on; the other one goes on.
pub(crate) async fn splice(connection: OnUpgrade, pipe: Pipe, stop: CancellationToken) {
    let client = match connection.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return debug!(%error, "the client went away before its connection was upgraded"),
    };
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_pipe, mut to_pipe) = tokio::io::split(pipe);
    let inward = async {
        let copied = copy(&mut from_client, &mut to_pipe).await;
        to_pipe.shutdown().await?;
        copied
    };
    let outward = async {
        let copied = copy(&mut from_pipe, &mut to_client).await;
        to_client.shutdown().await?;
        copied
    };
    let both = async {
        tokio::pin!(inward, outward);
        tokio::select! {
            // cancel-safe: polled on below, or given up together with the connection.
            ended = &mut outward => {
                // What the client still says is heard by nobody.
                drop(tokio::time::timeout(LINGER, &mut inward).await);
                ended
            }
            // cancel-safe: as above.
            ended = &mut inward => match ended {
                Ok(_) => outward.await,
                failed => failed,
            },
        }
    };
    tokio::select! {
        // cancel-safe: both are given up together.
        ended = both => {
            if let Err(error) = ended {
                debug!(%error, "a pipe ended early");
            }
        }
        // cancel-safe: a level.
        () = stop.cancelled() => {}
    }
}
