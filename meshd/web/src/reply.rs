//! Writing a response: JSON, text, errors, streams.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use vdc_api::{ApiError, ErrorCode, MEDIA_JSON, SSE_DATA, SSE_ERROR};

use crate::Items;

/// A comment is sent when a stream was silent for so long, so that a client notices a dead daemon and we a dead client.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(crate) fn json<T: Serialize>(value: &T) -> Result<Response<Body>, ApiError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|_| ApiError::new(ErrorCode::Internal, "the answer cannot be written as JSON"))?;
    Ok(text(MEDIA_JSON, bytes))
}

pub(crate) fn text(media: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

pub(crate) fn error(error: ApiError, request_id: &str) -> Response<Body> {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&error.into_body(request_id)).expect("strings always serialise");
    let mut response = text(MEDIA_JSON, body);
    *response.status_mut() = status;
    response
}

pub(crate) fn panicked() -> ApiError {
    ApiError::new(ErrorCode::Internal, "the daemon failed while it worked on this request")
        .hint("look for the request id in its log (`journalctl -u meshd`) and report it")
}

pub(crate) fn stopping() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "meshd is stopping")
}

/// Sends the items as Server-Sent Events until they end, one is an error, or the daemon stops.
pub(crate) fn events<T: Serialize + Send + 'static>(
    items: Items<T>,
    request_id: String,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let items = AssertUnwindSafe(items).catch_unwind().map(|item| item.unwrap_or_else(|_| Err(panicked()))).boxed();
    let sending = Sending { items, request_id, stop, _permit: permit };
    let events = stream::unfold(Some(sending), |sending| async move {
        let mut sending = sending?;
        let item = tokio::select! {
            // cancel-safe: an item is taken from the stream only when this arm wins.
            item = sending.items.next() => item?,
            // cancel-safe: a level, not an edge.
            () = sending.stop.cancelled() => Err(stopping()),
        };
        let event = item.and_then(|item| {
            let unwritable = |_| ApiError::new(ErrorCode::Internal, "the event cannot be written as JSON");
            Event::default().event(SSE_DATA).json_data(&item).map_err(unwritable)
        });
        Some(match event {
            Ok(event) => (Ok::<_, Infallible>(event), Some(sending)),
            Err(error) => {
                let body =
                    serde_json::to_string(&error.into_body(&sending.request_id)).expect("strings always serialise");
                (Ok(Event::default().event(SSE_ERROR).data(body)), None)
            }
        })
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// A stream under way.
struct Sending<T> {
    items: Items<T>,
    request_id: String,
    stop: CancellationToken,
    /// Counts the stream while it lasts.
    _permit: OwnedSemaphorePermit,
}
