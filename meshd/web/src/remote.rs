//! Carrying a call to the API of another node, and its answer back: nothing is kept on the way.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tracing::debug;
use vdc_api::{ApiError, ErrorCode, STREAM_PROTOCOL};

use crate::route::Shared;
use crate::{Call, Pipe, upgrade};

/// How long the way to the other node may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Longer than the other node lets an answer take.
const ANSWER_TIME: Duration = Duration::from_secs(65);

/// Takes the node that is meant out of the query.
pub(crate) fn take_on(request: &mut Request<Body>) -> Result<Option<String>, ApiError> {
    let uri = request.uri();
    let Some(query) = uri.query() else { return Ok(None) };
    let mut on = None;
    let rest: Vec<&str> = query
        .split('&')
        .filter(|part| match part.strip_prefix("on=") {
            Some(value) => {
                on = Some(value.to_owned());
                false
            }
            None => !part.is_empty(),
        })
        .collect();
    let Some(on) = on else { return Ok(None) };
    let text = decode(&on).filter(|text| !text.is_empty());
    let text =
        text.ok_or_else(|| ApiError::bad_request("on", "it names no node").hint("`on=NODE` or `on=site%3DSITE`"))?;
    let path = if rest.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), rest.join("&")) };
    let path: PathAndQuery = path.parse().map_err(|_| ApiError::bad_request("on", "the query is not valid"))?;
    *request.uri_mut() = Uri::from(path);
    Ok(Some(text))
}

/// Percent-decoded text (RFC 3986 §2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            bytes.push(digit(rest.next())? << 4 | digit(rest.next())?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Has the node that `on` means answer the request; nothing if that is this node.
pub(crate) async fn carry(
    shared: &Arc<Shared>,
    call: &Call,
    parts: &[String],
    on: &str,
    request: &mut Request<Body>,
) -> Result<Option<Response<Body>>, ApiError> {
    if call.node.is_some() {
        return Err(ApiError::new(ErrorCode::RemoteRefused, "a call from another node is not carried further")
            .hint("name the node itself with --on"));
    }
    let busy = || ApiError::new(ErrorCode::Busy, "too many calls to other nodes at once").hint("try again in a moment");
    let permit = Arc::clone(&shared.remotes).try_acquire_owned().map_err(|_| busy())?;
    let vdc = parts.first().map_or("-", String::as_str);
    let connected = tokio::time::timeout(CONNECT_TIME, shared.backend.remote(vdc, on)).await;
    let Some(pipe) = connected.map_err(|_| silent(on))?? else { return Ok(None) };
    let wanted = upgrade::wanted(request);
    let (head, body) = std::mem::replace(request, Request::new(Body::empty())).into_parts();
    let (mut sender, connection) = http1::handshake(TokioIo::new(pipe)).await.map_err(|error| broken(on, &error))?;
    let stop = shared.stop.clone();
    drop(shared.detached.spawn(async move {
        tokio::select! {
            // cancel-safe: nothing follows.
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    debug!(%error, "a connection to another node ended early");
                }
            }
            // cancel-safe: a level.
            () = stop.cancelled() => {}
        }
        drop(permit);
    }));
    let mut carried = Request::builder().method(head.method).uri(head.uri).header(header::HOST, "meshd");
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        carried = carried.header(header::CONTENT_TYPE, kind);
    }
    if wanted.is_some() {
        carried = carried.header(header::CONNECTION, "upgrade").header(header::UPGRADE, STREAM_PROTOCOL);
    }
    let carried = carried.body(body).map_err(|error| broken(on, &error))?;
    let answered = tokio::time::timeout(ANSWER_TIME, sender.send_request(carried)).await;
    let mut answer = answered.map_err(|_| silent(on))?.map_err(|error| broken(on, &error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = wanted
    {
        let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|error| broken(on, &error))?;
        let pipe: Pipe = Box::new(TokioIo::new(upgraded));
        drop(shared.detached.spawn(upgrade::splice(client, pipe, shared.stop.clone())));
        return Ok(Some(upgrade::switching()));
    }
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = head.status;
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::clone(kind));
    }
    Ok(Some(response))
}

fn silent(on: &str) -> ApiError {
    ApiError::new(ErrorCode::RemoteUnreachable, format!("{on} does not answer over the infra plane"))
        .hint(format!("is it up? `meshctl ping --infra {on}`"))
}

fn broken(on: &str, error: &dyn std::error::Error) -> ApiError {
    ApiError::new(ErrorCode::RemoteUnreachable, format!("the connection to {on} broke off"))
        .caused_by(error)
        .hint("it refuses connections of members whose membership ended; try again in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(uri: &str) -> (Result<Option<String>, ApiError>, String) {
        let mut request = Request::builder().uri(uri).body(Body::empty()).expect("a request");
        let on = take_on(&mut request);
        (on, request.uri().to_string())
    }

    #[test]
    fn node_is_taken_out_of_the_query_and_the_rest_stays() {
        for (uri, on, rest) in [
            ("/v1/x", None, "/v1/x"),
            ("/v1/x?a=1", None, "/v1/x?a=1"),
            ("/v1/x?on=berlin1", Some("berlin1"), "/v1/x"),
            ("/v1/x?a=1&on=site%3Dberlin&b=2", Some("site=berlin"), "/v1/x?a=1&b=2"),
        ] {
            let (taken, uri) = taken(uri);
            assert_eq!((taken.expect("valid").as_deref(), uri.as_str()), (on, rest));
        }
        for wrong in ["/v1/x?on=", "/v1/x?on=%zz", "/v1/x?on=%ff"] {
            assert_eq!(taken(wrong).0.expect_err(wrong).field.as_deref(), Some("on"));
        }
    }
}
