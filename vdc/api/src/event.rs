//! What happened: joins, revocations, changes of path, problems that came and went.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only of this VDC.
    pub vdc: Option<String>,
    /// Only after this number. The stream starts with what is kept after it; without it, with what happens next.
    pub after: Option<u64>,
    /// At most this many, the newest; 1 to 1,000, default 100. The stream ignores it.
    pub limit: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<EventView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Rises by one with each event of this daemon's run.
    pub seq: u64,
    /// RFC 3339.
    pub at: String,
    /// Local name of the VDC.
    pub vdc: Option<String>,
    pub severity: Severity,
    /// Stable id in kebab case.
    #[schema(example = "node-revoked")]
    pub kind: String,
    /// The node concerned.
    pub node: Option<String>,
    /// One lower-case phrase.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    Error,
}
