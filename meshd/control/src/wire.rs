//! One message on one stream: a 4-byte big-endian length, then that many bytes of canonical CBOR.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vdc::codec::DecodeError;
use vdc::invite::{DoorRequest, DoorResponse};
use vdc::peer;

/// Unit of the read budget in bytes: what one semaphore permit stands for.
const BUDGET_UNIT_BYTES: usize = 1 << 10;
/// Read step in bytes: a peer that announces a long message and sends little costs little.
const READ_STEP_BYTES: usize = 64 << 10;

/// A request-response protocol: its name, limits and message codecs.
pub(crate) trait Protocol: fmt::Debug + Send + Sync + 'static {
    type Request: fmt::Debug + Send + 'static;
    type Response: fmt::Debug + Send + 'static;

    const NAME: &'static str;
    const REQUEST_BYTES_MAX: usize;
    const RESPONSE_BYTES_MAX: usize;
    /// Requests of one connection that are read or answered at a time; further streams are reset.
    const INBOUND_STREAMS_MAX: usize;

    fn decode_request(bytes: &[u8]) -> Result<Self::Request, DecodeError>;
    fn encode_response(response: &Self::Response) -> Vec<u8>;
    fn decode_response(bytes: &[u8]) -> Result<Self::Response, DecodeError>;
}

/// What members speak.
#[derive(Debug)]
pub(crate) struct PeerProtocol;

impl Protocol for PeerProtocol {
    type Request = peer::Request;
    type Response = peer::Response;

    const NAME: &'static str = peer::PROTOCOL;
    const REQUEST_BYTES_MAX: usize = peer::MESSAGE_BYTES_MAX;
    const RESPONSE_BYTES_MAX: usize = peer::MESSAGE_BYTES_MAX;
    const INBOUND_STREAMS_MAX: usize = 16;

    fn decode_request(bytes: &[u8]) -> Result<Self::Request, DecodeError> {
        peer::Request::decode(bytes)
    }

    fn encode_response(response: &Self::Response) -> Vec<u8> {
        response.encode()
    }

    fn decode_response(bytes: &[u8]) -> Result<Self::Response, DecodeError> {
        peer::Response::decode(bytes)
    }
}

/// What a joiner and a registrar speak.
#[derive(Debug)]
pub(crate) struct DoorProtocol;

impl Protocol for DoorProtocol {
    type Request = DoorRequest;
    type Response = DoorResponse;

    const NAME: &'static str = vdc::invite::DOOR_PROTOCOL;
    const REQUEST_BYTES_MAX: usize = vdc::invite::DOOR_REQUEST_BYTES_MAX;
    const RESPONSE_BYTES_MAX: usize = vdc::invite::DOOR_RESPONSE_BYTES_MAX;
    const INBOUND_STREAMS_MAX: usize = 2;

    fn decode_request(bytes: &[u8]) -> Result<Self::Request, DecodeError> {
        DoorRequest::decode(bytes)
    }

    fn encode_response(response: &Self::Response) -> Vec<u8> {
        response.encode()
    }

    fn decode_response(bytes: &[u8]) -> Result<Self::Response, DecodeError> {
        DoorResponse::decode(bytes)
    }
}

/// How many bytes of messages may be held in memory at a time, over all connections of a swarm.
///
/// A message takes its whole length before its first byte is read and gives it back when it has been answered. Whoever
/// finds the budget spent waits, until its own deadline.
#[derive(Clone, Debug)]
pub(crate) struct ReadBudget(Arc<Semaphore>);

impl ReadBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / BUDGET_UNIT_BYTES)))
    }

    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).expect("messages are limited to a few MiB");
        Arc::clone(&self.0).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }
}

/// Writes one message and flushes it.
pub(crate) async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads one message of at most `length_max` bytes.
pub(crate) async fn read_message<S: AsyncRead + Unpin>(
    stream: &mut S,
    length_max: usize,
    budget: &ReadBudget,
) -> io::Result<(Vec<u8>, OwnedSemaphorePermit)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).expect("this is Linux on 32 bits or more");
    if length > length_max {
        let why = format!("message of {length} bytes is longer than the {length_max} allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let held = budget.take(length).await;
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let start = bytes.len();
        bytes.resize(length.min(start + READ_STEP_BYTES), 0);
        stream.read_exact(&mut bytes[start..]).await?;
    }
    Ok((bytes, held))
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;

    use super::*;

    fn read(bytes: &[u8], length_max: usize) -> io::Result<Vec<u8>> {
        let budget = ReadBudget::new(1 << 20);
        let read = block_on(read_message(&mut Cursor::new(bytes), length_max, &budget)).map(|(bytes, _)| bytes);
        assert_eq!(budget.0.available_permits(), 1 << 10, "the budget is whole again");
        read
    }

    #[test]
    fn message_written_is_read() {
        for length in [0, 1, READ_STEP_BYTES, READ_STEP_BYTES + 1, 3 * READ_STEP_BYTES] {
            let message = vec![0xa5; length];
            let mut stream = Cursor::new(Vec::new());
            block_on(write_message(&mut stream, &message)).expect("memory takes it");
            assert_eq!(read(&stream.into_inner(), length).expect("as it was written"), message);
        }
    }

    #[test]
    fn foreign_bytes_are_errors() {
        for (bytes, kind) in [
            (&[][..], io::ErrorKind::UnexpectedEof),
            (&[0, 0, 0][..], io::ErrorKind::UnexpectedEof),
            (&[0, 0, 0, 2, 1][..], io::ErrorKind::UnexpectedEof),
            (&[0xff, 0xff, 0xff, 0xff][..], io::ErrorKind::InvalidData),
            (&[0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9][..], io::ErrorKind::InvalidData),
        ] {
            assert_eq!(read(bytes, 8).expect_err("not a message").kind(), kind, "{bytes:?}");
        }
    }
}
