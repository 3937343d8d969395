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

    async fn ask(&self, method: &str, message: &[u8]) -> Result<()> {
        let request = Request::post(format!("http://{}/etcdserverpb.KV/{method}", self.address))
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
        let mut body = response.into_body();
        while let Some(chunk) = body.data().await {
            let length = chunk?.len();
            body.flow_control().release_capacity(length)?;
        }
        headers.extend(body.trailers().await?.unwrap_or_default());
        match headers.get("grpc-status").map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(()),
            _ => bail!("{method}: {:?}", headers.get("grpc-message")),
        }
    }

    /// Puts rows, in one transaction if there are more than one.
    pub(crate) async fn put(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        if let [(key, value)] = rows {
            return self.ask("Put", &put(key, value)).await;
        }
        let mut message = vec![];
        for (key, value) in rows {
            let mut operation = vec![];
            field(2, &put(key, value), &mut operation);
            field(2, &operation, &mut message);
        }
        self.ask("Txn", &message).await
    }

    /// Reads a row, linearizable.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<()> {
        let mut message = vec![];
        field(1, key, &mut message);
        self.ask("Range", &message).await
    }
}
