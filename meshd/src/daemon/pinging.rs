//! `ping` as a stream of events.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use meshd_web::Items;
use vdc_api as api;

use crate::ping::Pinger;
use crate::vdc_core::{CoreHandle, chain};

/// What [`events`] goes on from.
struct Pinging {
    handle: CoreHandle,
    /// None: over the infra plane.
    pinger: Option<Pinger>,
    query: api::PingQuery,
    node: api::NodeView,
    destination: IpAddr,
    sequence: u32,
    next: tokio::time::Instant,
}

/// One event for the start, then one for each request, for as long as the client listens or until there were enough.
pub(super) fn events(
    handle: CoreHandle,
    pinger: Option<Pinger>,
    query: api::PingQuery,
    node: api::NodeView,
    destination: IpAddr,
) -> Items<api::PingEvent> {
    let started = api::PingEvent::Started {
        node: node.name.clone(),
        site: node.site.clone(),
        address: destination.to_string(),
        size_bytes: query.size_bytes,
    };
    let next = tokio::time::Instant::now();
    let state = Pinging { handle, pinger, query, node, destination, sequence: 0, next };
    let replies = stream::unfold(state, |mut state| async move {
        if state.query.count.is_some_and(|count| state.sequence >= count) {
            return None;
        }
        tokio::time::sleep_until(state.next).await;
        state.next = tokio::time::Instant::now() + Duration::from_millis(u64::from(state.query.interval_ms.max(100)));
        state.sequence += 1;
        let event = state.once().await;
        Some((event, state))
    });
    stream::once(async { Ok(started) }).chain(replies.map(Ok)).boxed()
}

impl Pinging {
    async fn once(&self) -> api::PingEvent {
        let seq = self.sequence;
        let wire = u16::try_from(seq % (1 << 16)).expect("reduced to 16 bits");
        let timeout = Duration::from_millis(u64::from(self.query.timeout_ms.clamp(100, 60_000)));
        let answer = match &self.pinger {
            Some(pinger) => pinger.ping(wire, timeout).await.map_err(|error| error.to_string()),
            None => self.ask_infra(timeout).await,
        };
        match answer {
            Ok(Some(rtt)) => {
                let key = self.node.key.clone();
                let path = self.handle.with(move |core| core.path_to(&key)).await.ok().flatten();
                let rtt_ms = (rtt.as_secs_f64() * 1e6).round() / 1e3;
                api::PingEvent::Reply { seq, rtt_ms, size_bytes: self.query.size_bytes, path }
            }
            Ok(None) => {
                let key = self.node.key.clone();
                let why = self.handle.with(move |core| core.why_unreached(&key)).await.ok().flatten();
                api::PingEvent::Lost {
                    seq,
                    reason: why.unwrap_or_else(|| format!("no reply from {}", self.destination)),
                }
            }
            Err(reason) => api::PingEvent::Lost { seq, reason },
        }
    }

    async fn ask_infra(&self, timeout: Duration) -> Result<Option<Duration>, String> {
        let key = self.node.key.clone();
        let route = self.handle.with(move |core| core.infra_route(&key)).await.and_then(|route| route);
        let route = route.map_err(|error| error.to_string())?;
        match tokio::time::timeout(timeout, route.ask()).await {
            Ok(answered) => answered.map(Some).map_err(|error| chain(&error)),
            Err(_) => Ok(None),
        }
    }
}
