//! The infra plane: what nodes say to each other inside the tunnels, by mutual TLS with their node keys.
//!
//! It lives at `::0` of each node's /96, in the VDC's namespace, at one fixed port, and no workload can reach it. Today it
//! answers one question, the peer's `Hello`: its release and its clock, asked over the data plane and so also a proof
//! that the tunnel carries more than pings. It carries the node's API to those who may use it ([`remote`]), and what
//! coordination groups say ([`groups`]). Later rooms (storage) add theirs.

pub(crate) mod groups;
pub(crate) mod remote;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use vdc::peer::{Hello, Request, Response};
use vdc::{Key, SigningKey};

pub(crate) use tls::{InfraTls, MemberKeys};

/// TCP port of the infra plane.
pub(crate) const PORT: u16 = 4714;
/// Longest message in bytes; a `Hello` has about 60.
const MESSAGE_BYTES_MAX: u32 = 64 << 10;
/// Connections served at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 64;
/// A peer that has not finished its handshake and request by then is cut off.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a question over the infra plane was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InfraError {
    #[error("no answer from {address} within {} s", DEADLINE.as_secs())]
    Timeout { address: SocketAddr },
    #[error("the connection to {address} failed")]
    Io {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{address} sent something that is no answer")]
    Decode {
        address: SocketAddr,
        #[source]
        source: vdc::codec::DecodeError,
    },
    #[error("{address} refused: {why}")]
    Refused { address: SocketAddr, why: String },
}

/// Answers members on `listener` until the future is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: InfraTls,
    hello: Arc<dyn Fn() -> Hello + Send + Sync>,
    guests: Option<remote::Guests>,
    groups: Option<groups::GroupLines>,
) {
    let acceptor = TlsAcceptor::from(tls.server());
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the infra plane cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, hello) = (acceptor.clone(), Arc::clone(&hello));
        let (guests, groups) = (guests.clone(), groups.clone());
        connections.spawn(async move {
            let accepted = tokio::time::timeout(DEADLINE, acceptor.accept(stream)).await;
            let mut stream = match accepted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "an infra connection was refused"),
                Err(_) => return,
            };
            match (stream.get_ref().1.alpn_protocol(), guests, groups) {
                (Some(tls::API_PROTOCOL), guests, _) => {
                    if let Some(guests) = guests {
                        guests.serve(stream).await;
                    }
                    return;
                }
                (Some(tls::COORD_PROTOCOL), _, groups) => {
                    drop(permit); // these last, and are counted by themselves
                    if let Some(groups) = groups {
                        groups.serve(stream).await;
                    }
                    return;
                }
                _ => {}
            }
            let answered = tokio::time::timeout(DEADLINE, async {
                let request = read(&mut stream).await?;
                let response = match Request::decode(&request) {
                    Ok(Request::Hello(_)) => Response::Hello(hello()),
                    Ok(Request::Sync(_) | Request::Endpoints(_) | Request::Revoked(_)) => {
                        Response::Refused("this is asked over control links".into())
                    }
                    Err(error) => Response::Refused(error.to_string()),
                };
                write(&mut stream, &response.encode()).await?;
                stream.shutdown().await
            });
            if let Ok(Err(error)) = answered.await {
                tracing::debug!(%error, "an infra connection ended early");
            }
            drop(permit);
        });
    }
}

/// Asks `peer` for its `Hello` through the tunnel. `stream` was connected inside the VDC's namespace.
pub(crate) async fn ask_hello(tls: &InfraTls, peer: Key, stream: TcpStream, own: Hello) -> Result<Hello, InfraError> {
    let address = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], PORT)));
    let io = |source| InfraError::Io { address, source };
    let exchange = async {
        let connector = TlsConnector::from(tls.client(peer, tls::HELLO_PROTOCOL));
        let mut stream = connector.connect(tls::server_name(), stream).await.map_err(io)?;
        write(&mut stream, &Request::Hello(own).encode()).await.map_err(io)?;
        let bytes = read(&mut stream).await.map_err(io)?;
        match Response::decode(&bytes).map_err(|source| InfraError::Decode { address, source })? {
            Response::Hello(hello) => Ok(hello),
            Response::Refused(why) => Err(InfraError::Refused { address, why }),
            Response::Done | Response::Endpoints(_) => {
                Err(InfraError::Refused { address, why: "another question was answered".into() })
            }
        }
    };
    tokio::time::timeout(DEADLINE, exchange).await.unwrap_or(Err(InfraError::Timeout { address }))
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length > MESSAGE_BYTES_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_u32(length).await?;
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Builds the TLS side of a node's infra plane.
pub(crate) fn tls(key: &SigningKey, members: MemberKeys) -> InfraTls {
    InfraTls::new(key, members)
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use vdc::UnixTime;

    use super::*;

    fn hello(version: &str) -> Hello {
        Hello { version: version.into(), boot_nonce: [1; 16], time: UnixTime(5), observed: None }
    }

    fn members(keys: &[&SigningKey]) -> MemberKeys {
        Arc::new(RwLock::new(Arc::new(keys.iter().map(|k| k.public()).collect())))
    }

    async fn ask(
        server: SocketAddr,
        client: &SigningKey,
        expect: Key,
        trusted: MemberKeys,
    ) -> Result<Hello, InfraError> {
        let stream = TcpStream::connect(server).await.expect("connects");
        ask_hello(&tls(client, trusted), expect, stream, hello("asker")).await
    }

    #[tokio::test]
    async fn members_are_answered_and_others_are_not() {
        let [berlin, paris, stranger] = [1, 2, 3].map(|seed| SigningKey::from_seed(&[seed; 32]));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let trusted = members(&[&berlin, &paris]);
        let server_tls = tls(&berlin, Arc::clone(&trusted));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, server_tls, Arc::new(|| hello("berlin")), None, None));

        let answer = ask(address, &paris, berlin.public(), Arc::clone(&trusted)).await.expect("a member is answered");
        assert_eq!(answer, hello("berlin"));
        let everyone = members(&[&berlin, &paris, &stranger]);
        assert!(ask(address, &stranger, berlin.public(), Arc::clone(&everyone)).await.is_err(), "no member, no answer");
        assert!(
            ask(address, &paris, stranger.public(), everyone).await.is_err(),
            "the server must be who was asked for"
        );
        *trusted.write().expect("unpoisoned") = Arc::new([berlin.public()].into());
        assert!(
            ask(address, &paris, berlin.public(), members(&[&berlin, &paris])).await.is_err(),
            "a revoked member is refused at its next connection"
        );
    }
}
