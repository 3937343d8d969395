//! Pings through the overlay.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::PathView;

/// Pings a node's host through the overlay until the count is reached or the client goes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PingQuery {
    /// Node (name, `NAME.SITE`, key prefix), DNS name in the VDC, or overlay address.
    pub target: String,
    /// How many requests; without end if absent.
    pub count: Option<u32>,
    /// Milliseconds between requests, 100 to 60,000.
    #[serde(default = "second")]
    #[param(default = 1000, minimum = 100, maximum = 60000)]
    pub interval_ms: u32,
    /// Milliseconds to wait for each reply, 100 to 60,000.
    #[serde(default = "second")]
    #[param(default = 1000, minimum = 100, maximum = 60000)]
    pub timeout_ms: u32,
    /// Payload of each request in bytes, 16 to 1,200.
    #[serde(default = "size")]
    #[param(default = 56, minimum = 16, maximum = 1200)]
    pub size_bytes: u16,
    /// Ask the node's daemon over the infra plane (TLS with node keys through the tunnel) instead of its host by ICMP.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(default = false)]
    pub infra: bool,
}

fn second() -> u32 {
    1_000
}

fn size() -> u16 {
    56
}

impl PingQuery {
    /// One request a second without end.
    #[must_use]
    pub fn new(target: impl Into<String>) -> Self {
        let (interval_ms, timeout_ms) = (second(), second());
        Self { target: target.into(), count: None, interval_ms, timeout_ms, size_bytes: size(), infra: false }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum PingEvent {
    /// First, once.
    Started {
        node: String,
        site: String,
        address: String,
        size_bytes: u16,
    },
    Reply {
        seq: u32,
        rtt_ms: f64,
        size_bytes: u16,
        path: Option<PathView>,
    },
    /// No reply in time, or the request could not be sent.
    Lost {
        seq: u32,
        reason: String,
    },
}
