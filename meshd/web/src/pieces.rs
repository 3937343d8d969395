//! Bodies that are streams of bytes: those that come are carried to the backend piece by piece, those that go end in good
//! order or break off.

use std::panic::AssertUnwindSafe;

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use futures::{FutureExt, Stream};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use vdc_api::{ApiError, ErrorCode, MEDIA_BYTES};

use crate::{Limits, reply};

/// A body as it comes or goes. An error is the last piece.
pub type Pieces = BoxStream<'static, Result<Bytes, ApiError>>;

/// Pieces of an upload that wait for the backend; then the client waits too. A piece is as large as a connection's buffer
/// at most: 0.5 MiB an upload.
const PIECES_MAX: usize = 16;

/// What is said once about an upload's end: that it was the end, or why there is none.
type Piece = Result<Option<Bytes>, ApiError>;

/// A body as pieces, and the work that carries them there. The work also takes what nobody wants any more, so that the client
/// gets to read the answer: closing a unix socket with unread bytes in it resets the peer. Dropped half-way, it leaves the
/// pieces with an error at their end.
pub(crate) fn upload(body: Body, limits: Limits) -> (Pieces, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    (pieces(receiver).boxed(), carry(body, Some(sender), limits))
}

/// Reads a body that nobody wants.
pub(crate) async fn discard(body: Body, limits: Limits) {
    carry(body, None, limits).await;
}

async fn carry(mut body: Body, mut sender: Option<mpsc::Sender<Piece>>, limits: Limits) {
    let mut seen_bytes = 0_u64;
    let last = loop {
        let frame = match tokio::time::timeout(limits.body_time, body.frame()).await {
            Err(_) => break Err(ApiError::new(ErrorCode::Timeout, "the upload came to a halt")),
            Ok(None) => break Ok(None),
            Ok(Some(Err(_))) => break Err(broke_off()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(piece) = frame.into_data() else { continue };
        seen_bytes = seen_bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if seen_bytes > limits.upload_bytes_max.saturating_mul(2) {
            return;
        }
        let piece = if seen_bytes > limits.upload_bytes_max { Err(too_large(limits)) } else { Ok(Some(piece)) };
        let ends = piece.is_err();
        if let Some(waiting) = &sender
            && (waiting.send(piece).await.is_err() || ends)
        {
            sender = None;
        }
    };
    if let Some(sender) = sender {
        // Whoever does not wait for the end has made up his mind.
        drop(sender.send(last).await);
    }
}

fn pieces(receiver: mpsc::Receiver<Piece>) -> impl Stream<Item = Result<Bytes, ApiError>> + Send {
    stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(Some(piece))) => Some((Ok(piece), Some(receiver))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(broke_off()), None)),
        }
    })
}

fn broke_off() -> ApiError {
    ApiError::new(ErrorCode::BadRequest, "the upload broke off")
}

fn too_large(limits: Limits) -> ApiError {
    ApiError::new(ErrorCode::TooLarge, format!("the upload is larger than {} bytes", limits.upload_bytes_max))
}

/// Sends the pieces until they end. If one is an error, or the daemon stops, the connection breaks off: the client must not
/// take what it has for the whole.
pub(crate) fn download(
    pieces: Pieces,
    request_id: String,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let sending = Some((pieces, request_id, stop, permit));
    let pieces = stream::unfold(sending, |sending| async move {
        let (mut pieces, request_id, stop, permit) = sending?;
        let next = AssertUnwindSafe(pieces.next()).catch_unwind();
        let piece = tokio::select! {
            // cancel-safe: a piece is taken from the stream only when this arm wins.
            piece = next => piece.unwrap_or_else(|_| Some(Err(reply::panicked())))?,
            // cancel-safe: a level, not an edge.
            () = stop.cancelled() => Err(reply::stopping()),
        };
        match piece {
            Ok(piece) => Some((Ok(piece), Some((pieces, request_id, stop, permit)))),
            Err(error) => {
                warn!(request = request_id, code = error.code.as_str(), "a download broke off");
                debug!(request = request_id, message = error.message, causes = ?error.causes, "it broke off because");
                // What was given so far is sent when there is nothing more for the moment; an error would overtake it.
                tokio::task::yield_now().await;
                Some((Err(error), None))
            }
        }
    });
    reply::text(MEDIA_BYTES, Body::from_stream(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { upload_bytes_max: 8, ..Limits::default() }
    }

    fn body(pieces: &'static [&'static str]) -> Body {
        Body::from_stream(
            stream::iter(pieces.iter().map(|piece| match *piece {
                "break" => Err(std::io::ErrorKind::BrokenPipe),
                piece => Ok(piece),
            }))
            .map(|piece| piece.map_err(std::io::Error::from)),
        )
    }

    async fn received(sent: &'static [&'static str]) -> (String, Option<ErrorCode>) {
        let (pieces, work) = upload(body(sent), limits());
        let (pieces, ()) = tokio::join!(pieces.collect::<Vec<_>>(), work);
        let (mut text, mut error) = (String::new(), None);
        for piece in pieces {
            assert_eq!(error, None, "nothing follows an error");
            match piece {
                Ok(piece) => text.push_str(std::str::from_utf8(&piece).expect("text")),
                Err(failure) => error = Some(failure.code),
            }
        }
        (text, error)
    }

    #[tokio::test]
    async fn end_of_an_upload_is_told_from_its_breaking_off() {
        assert_eq!(received(&["ab", "cd"]).await, ("abcd".into(), None));
        assert_eq!(received(&[]).await, (String::new(), None));
        assert_eq!(received(&["ab", "break"]).await, ("ab".into(), Some(ErrorCode::BadRequest)));
        assert_eq!(received(&["abcd", "efgh"]).await, ("abcdefgh".into(), None));
        assert_eq!(received(&["abcd", "efgh", "i", "j"]).await, ("abcdefgh".into(), Some(ErrorCode::TooLarge)));
        assert_eq!(received(&["abcdefghijklmnopqrst"]).await, (String::new(), Some(ErrorCode::BadRequest)));
    }

    #[tokio::test]
    async fn work_that_is_dropped_leaves_no_good_end() {
        let (mut pieces, work) = upload(body(&["ab"]), limits());
        drop(work);
        let error = pieces.next().await.expect("a piece").expect_err("no end");
        assert_eq!(error.message, "the upload broke off");
        assert!(pieces.next().await.is_none());
    }

    #[tokio::test]
    async fn rest_is_taken_when_nobody_wants_it() {
        let (pieces, work) = upload(body(&["ab", "cd", "ef"]), limits());
        drop(pieces);
        work.await;
        discard(body(&["ab", "cd", "ef", "gh", "ij", "kl", "mn"]), limits()).await;
    }
}
