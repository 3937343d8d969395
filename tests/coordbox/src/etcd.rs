//! As much of etcd's gRPC as the load needs: one question, one answer.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A connection to a member. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Etcd {
    address: SocketAddr,
    send: SendRequest<Bytes>,
}

/// A field of a protobuf message that holds bytes.
fn field(number: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    let mut length = value.len();
    while length > 0x7f {
        out.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).expect("seven bits"));
    out.extend_from_slice(value);
}

fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut message = vec![];
    field(1, key, &mut message);
    field(2, value, &mut message);
    message
}

impl Etcd {
    /// Connects; `moving` gets the task that moves the connection's bytes.
    pub(crate) async fn connect(address: SocketAddr, moving: &mut JoinSet<()>) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
        stream.set_nodelay(true)?;
        let (send, connection) = h2::client::handshake(stream).await.context("it speaks HTTP/2")?;
        moving.spawn(async move {
            let _ended = connection.await; // who asks is told
        });
        Ok(Self { address, send })
    }

    async fn ask(&self, method: &str, message: &[u8]) -> Result<Vec<u8>> {
        let request = Request::post(format!("http://{}/etcdserverpb.{method}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len())?);
        body.put_slice(message);
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(body.freeze(), true)?;
        let response = response.await?;
        let mut headers = response.headers().clone();
        let (mut body, mut answer) = (response.into_body(), vec![]);
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            answer.extend_from_slice(&chunk);
            body.flow_control().release_capacity(chunk.len())?;
        }
        headers.extend(body.trailers().await?.unwrap_or_default());
        match headers.get("grpc-status").map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(answer),
            _ => bail!("{method}: {:?}", headers.get("grpc-message")),
        }
    }

    /// Puts rows, in one transaction if there are more than one.
    pub(crate) async fn put(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        if let [(key, value)] = rows {
            return self.ask("KV/Put", &put(key, value)).await.map(drop);
        }
        let mut message = vec![];
        for (key, value) in rows {
            let mut operation = vec![];
            field(2, &put(key, value), &mut operation);
            field(2, &operation, &mut message);
        }
        self.ask("KV/Txn", &message).await.map(drop)
    }

    /// Reads a row, linearizable.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<()> {
        let mut message = vec![];
        field(1, key, &mut message);
        self.ask("KV/Range", &message).await.map(drop)
    }

    /// Whether the member leads.
    pub(crate) async fn leads(&self) -> Result<bool> {
        let answer = self.ask("Maintenance/Status", &[]).await?;
        let answer = answer.get(5..).unwrap_or_default();
        // Its own number is field 2 of the header, which is field 1; the leader's is field 4.
        let header = fields(answer).find_map(|(number, _, bytes)| (number == 1).then_some(bytes)).unwrap_or_default();
        let own = fields(header).find_map(|(number, value, _)| (number == 2).then_some(value));
        Ok(own.is_some() && own == fields(answer).find_map(|(number, value, _)| (number == 4).then_some(value)))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The fields of a message: number, and its value or its bytes; up to one of another kind.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, u64, &[u8])> {
    std::iter::from_fn(move || {
        let tag = varint(&mut message)?;
        let value = varint(&mut message)?;
        match tag & 7 {
            0 => Some((tag >> 3, value, &[][..])),
            2 => {
                let (bytes, rest) = message.split_at_checked(usize::try_from(value).ok()?)?;
                message = rest;
                Some((tag >> 3, 0, bytes))
            }
            _ => None,
        }
    })
}
