//! What happened, for `meshctl events` and the log: a bounded ring and a broadcast.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use vdc_api as api;

use crate::clock::system_time;

/// Events kept for those who ask later; about 300 bytes each.
const KEPT_MAX: usize = 1000;
/// Events that a slow stream may lag behind before it loses the oldest.
const LAG_MAX: usize = 256;

/// The event log of one daemon run. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    inner: Arc<Mutex<Ring>>,
    sender: broadcast::Sender<api::EventView>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<api::EventView>,
    last: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self { inner: Arc::default(), sender: broadcast::channel(LAG_MAX).0 }
    }
}

impl Events {
    /// Records an event and logs it at the matching level.
    pub(crate) fn push(
        &self,
        severity: api::Severity,
        kind: &str,
        vdc: Option<&str>,
        node: Option<String>,
        message: impl Into<String>,
    ) {
        let message = message.into();
        match severity {
            api::Severity::Info => tracing::info!(kind, vdc, node, "{message}"),
            api::Severity::Warning => tracing::warn!(kind, vdc, node, "{message}"),
            api::Severity::Error => tracing::error!(kind, vdc, node, "{message}"),
        }
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let event = api::EventView {
            seq: ring.last,
            at: system_time().to_string(),
            vdc: vdc.map(str::to_owned),
            severity,
            kind: kind.into(),
            node,
            message,
        };
        if ring.kept.len() == KEPT_MAX {
            ring.kept.pop_front();
        }
        ring.kept.push_back(event.clone());
        // Sent under the lock, so that a stream that starts now misses nothing between the ring and the broadcast.
        let _ = self.sender.send(event); // nobody listening is no failure
    }

    /// The newest kept events that match, oldest first.
    pub(crate) fn list(&self, query: &api::EventsQuery) -> Vec<api::EventView> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = query.limit.unwrap_or(100).clamp(1, 1000) as usize;
        let mut found: Vec<_> = ring.kept.iter().rev().filter(|e| matches(e, query)).take(limit).cloned().collect();
        found.reverse();
        found
    }

    /// What is kept after `query.after` (nothing if absent), and a receiver of everything from then on.
    pub(crate) fn subscribe(
        &self,
        query: &api::EventsQuery,
    ) -> (Vec<api::EventView>, broadcast::Receiver<api::EventView>) {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match query.after {
            Some(_) => ring.kept.iter().filter(|e| matches(e, query)).cloned().collect(),
            None => vec![],
        };
        (kept, self.sender.subscribe())
    }
}

/// Whether an event is asked for.
pub(crate) fn matches(event: &api::EventView, query: &api::EventsQuery) -> bool {
    query.vdc.as_ref().is_none_or(|vdc| event.vdc.as_ref() == Some(vdc))
        && query.after.is_none_or(|after| event.seq > after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_is_bounded_and_queries_filter() {
        let events = Events::default();
        for i in 0..KEPT_MAX + 10 {
            let vdc = if i % 2 == 0 { "acme" } else { "beta" };
            events.push(api::Severity::Info, "test", Some(vdc), None, format!("event {i}"));
        }
        let all = events.list(&api::EventsQuery { limit: Some(1000), ..Default::default() });
        assert_eq!((all.len(), all[0].seq), (KEPT_MAX, 11));
        let query = api::EventsQuery { vdc: Some("acme".into()), after: Some(1005), limit: None };
        assert_eq!(events.list(&query).iter().map(|e| e.seq).collect::<Vec<_>>(), [1007, 1009]);
        let (kept, mut receiver) = events.subscribe(&query);
        assert_eq!(kept.len(), 2);
        events.push(api::Severity::Warning, "test", None, None, "later");
        assert_eq!(receiver.try_recv().expect("broadcast").message, "later");
    }
}
