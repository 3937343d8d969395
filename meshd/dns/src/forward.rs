//! Asking the host's resolvers for workloads: names outside the VDCs.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Questions of one workload that may be on their way.
const IN_FLIGHT_PER_SOURCE_MAX: usize = 64;
/// Questions of all workloads that may be on their way.
const IN_FLIGHT_MAX: usize = 512;
/// Upstreams asked for one question, one after the other.
const UPSTREAMS_MAX: usize = 3;
/// How long one upstream may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(1);

/// Where questions go that no zone answers.
#[derive(Debug, Default)]
pub struct Forwarder {
    upstreams: RwLock<Arc<[SocketAddr]>>,
    in_flight: Mutex<HashMap<IpAddr, usize>>,
}

/// A place in the queue; it is given back when dropped.
struct Place<'a> {
    forwarder: &'a Forwarder,
    source: IpAddr,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.forwarder.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = in_flight.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                in_flight.remove(&self.source);
            }
        }
    }
}

impl Forwarder {
    /// The name servers that are asked, the first that answers in time wins; none: every question fails.
    pub fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        *self.upstreams.write().unwrap_or_else(PoisonError::into_inner) = upstreams.into();
    }

    fn place(&self, source: IpAddr) -> Option<Place<'_>> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.values().sum::<usize>() >= IN_FLIGHT_MAX {
            return None;
        }
        let count = in_flight.entry(source).or_default();
        if *count >= IN_FLIGHT_PER_SOURCE_MAX {
            return None;
        }
        *count += 1;
        Some(Place { forwarder: self, source })
    }

    /// Asks the upstreams in turn; `None` if none answers in time or `source` has too many questions open.
    pub(crate) async fn ask(&self, source: IpAddr, question: &Message) -> Option<Message> {
        let _place = self.place(source)?;
        let upstreams = Arc::clone(&self.upstreams.read().unwrap_or_else(PoisonError::into_inner));
        for upstream in upstreams.iter().take(UPSTREAMS_MAX) {
            match timeout(UPSTREAM_TIMEOUT, ask_one(*upstream, question)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "an upstream name server failed"),
                Err(_) => tracing::debug!(%upstream, "an upstream name server did not answer in time"),
            }
        }
        None
    }
}

/// Whether `answer` is one to `question`, and not to another one.
fn answers(question: &Message, answer: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries
}

async fn ask_one(upstream: SocketAddr, question: &Message) -> io::Result<Message> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let any: IpAddr = if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket, and with it a port, for each question; connected, so that only the upstream is heard.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answers(question, &answer) && answer.metadata.truncation => break,
            Ok(answer) if answers(question, &answer) => return Ok(answer),
            _ => {}
        }
    }
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if answers(question, &answer) { Ok(answer) } else { Err(io::Error::other("an answer to another question")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_places() {
        let forwarder = Forwarder::default();
        let source = |last| IpAddr::from([10, 0, 0, last]);
        let mut places: Vec<_> = (0..IN_FLIGHT_PER_SOURCE_MAX).map(|_| forwarder.place(source(1))).collect();
        assert!(places.iter().all(Option::is_some) && forwarder.place(source(1)).is_none());
        places.extend(
            (2..=8)
                .flat_map(|last| (0..IN_FLIGHT_PER_SOURCE_MAX).map(move |_| last))
                .map(|last| forwarder.place(source(last))),
        );
        assert!(places.iter().all(Option::is_some) && forwarder.place(source(9)).is_none(), "all places are taken");
        drop(places);
        assert!(forwarder.place(source(1)).is_some());
        assert!(forwarder.in_flight.lock().expect("not poisoned").is_empty());
    }
}
