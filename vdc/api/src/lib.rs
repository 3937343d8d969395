//! The wire types of meshd's HTTP API, version 1: what `meshctl`, the Cockpit and scripts say to a node's daemon.
//!
//! - [`endpoint`] lists every operation once, with the types it takes and gives. The server, the client and the OpenAPI
//!   document ([`openapi()`]) all follow that list.
//! - The other modules hold the types. They are plain strings and numbers, made for reading, not the model types of the
//!   rooms behind the API: conversion is explicit and lives with the daemon.
//! - [`ApiError`] is how every operation fails; [`ErrorCode`] is stable.
//!
//! Not here: HTTP, sockets, clocks, or anything that decides.
//!
//! Conventions, the same everywhere:
//! - Names are DNS labels (`acme`, `paris`, `berlin1`). A node is meant by its name, `NAME.SITE`, or the first digits of
//!   its key; a VDC by its local name, the first digits of its id, or [`DEFAULT_VDC`].
//! - Keys, ids and hashes are lower-case hexadecimal. Times are RFC 3339 in UTC with seconds ([`rfc3339`]).
//! - Quantities end in their unit: `_ms`, `_s`, `_bytes`. Ages are given beside times where a reader would otherwise
//!   need the daemon's clock.
//! - Requests refuse unknown fields; readers of responses ignore them, so fields may be added within version 1.
//! - A field without a value is `null`.
#![forbid(unsafe_code)]

mod authority;
mod coord;
pub mod endpoint;
mod error;
mod event;
mod image;
mod invite;
mod join;
mod meta;
mod node;
mod openapi;
mod ping;
mod policy;
mod port;
#[cfg(feature = "samples")]
pub mod samples;
mod site;
mod status;
mod time;
mod vdc;
mod workload;

pub use authority::{IssuedList, IssuedQuery, IssuedView, OwnerKey, VdcRecover, VdcRecovered};
pub use coord::{
    BACKUP_BYTES_MAX, BACKUP_HEADER_BYTES_MAX, BackupHeader, BackupHeaderError, CoordBackup, CoordRecover, CoordStatus,
    GroupHome, GroupHomeError, GroupMemberView, GroupState, GroupView, MemberRole, RecoverView, RedundancyLevel,
    RedundancyView, RestoreQuery, RestoreView, RoleHere,
};
pub use endpoint::{Endpoint, Method, Reply};
pub use error::{ApiError, ErrorBody, ErrorCode};
pub use event::{EventList, EventView, EventsQuery, Severity};
pub use image::{ImageList, ImagePull, ImageTag, ImageView, ImagesFreed, PullEvent};
pub use invite::{
    InviteCreate, InviteCreated, InviteList, InviteState, InviteView, Reachability, ReachabilityVerdict, RedemptionView,
};
pub use join::{JoinEvent, JoinRequest, Joined, LeaveRequest, Left, Renewed, StepState, StepView};
pub use meta::{Health, HealthState, Problem, ProblemCode, ProblemSeverity, Version};
pub use node::{
    Addresses, CandidateView, ConnectRequest, Connected, ControlLinkView, GrantChange, LinkState, LinkView,
    MembershipView, NodeList, NodeRevoke, NodeRevoked, NodeView, PathKind, PathView, PeerList, PeerView, Standing,
};
pub use openapi::openapi;
pub use ping::{PingEvent, PingQuery};
pub use policy::{
    BlockCreate, BlockList, BlockView, ExplainQuery, ExplainStep, Explanation, ExposedWorkload, ExposureChange,
    ExposureList, ExposureView, PartyKind, PartyView, RecordView, StepVerdict,
};
pub use port::{FlowSpec, PortSpec, PortSpecError, Transport};
pub use site::{SiteAdd, SiteAdded, SiteList, SiteView};
pub use status::{DataPathView, DnsState, DnsView, ListenView, RosterView, Status, StatusQuery, VdcStatus};
pub use time::{parse_rfc3339, rfc3339, rfc3339_ns};
pub use vdc::{NotServedView, RecoveryKey, VdcCreate, VdcCreated, VdcList, VdcView};
pub use workload::{
    AttachRequest, Capacity, CopyDirection, CopyRequest, DegradedView, ExecRequest, ExitReason, ExitView, HealthSpec,
    HealthStatus, LogEvent, LogStream, LogsQuery, Phase, PullPolicy, PullProgress, RegistryAccess, RemoveQuery,
    RestartPolicy, RunEvent, SignalRequest, StatsEvent, StatsQuery, StopRequest, TerminalSize, WAIT_S_MAX, WaitQuery,
    Waited, WorkloadList, WorkloadRemoved, WorkloadRun, WorkloadView,
};
/// Frames of an upgraded connection, both directions: what `exec`, `attach` and `copy` speak.
pub use workloads_wire::frame;

/// Stands for a body that is a stream of bytes, in the list of operations; there are no values of it.
#[derive(Clone, Copy, Debug)]
pub enum ByteStream {}

impl utoipa::PartialSchema for ByteStream {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        let format = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl utoipa::ToSchema for ByteStream {}

/// Stands for a VDC's name in a path: the only VDC of this node, or else the one in use (`meshctl vdc use`).
pub const DEFAULT_VDC: &str = "-";

/// Where the daemon listens unless its config says otherwise.
pub const SOCKET_PATH: &str = "/run/meshd/meshd.sock";

/// Longest request body in bytes. The largest request is a join with its token, below 4 KiB.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Media type of request and response bodies.
pub const MEDIA_JSON: &str = "application/json";
/// Media type of streams of bytes, in requests and responses.
pub const MEDIA_BYTES: &str = "application/octet-stream";
/// Media type of streams: Server-Sent Events whose `data` is one JSON value; an `error` event carries an [`ErrorBody`].
pub const MEDIA_SSE: &str = "text/event-stream";
/// Media type of the metrics.
pub const MEDIA_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What the connection of an operation with [`Reply::Upgrade`] becomes (RFC 9110 §7.8): [`frame`]s both ways.
pub const STREAM_PROTOCOL: &str = "meshd-stream/1";
/// Header that carries the id of a request; it stands in the daemon's log too.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Name of the stream event that carries an [`ErrorBody`] and ends the stream.
pub const SSE_ERROR: &str = "error";
/// Name of all other stream events.
pub const SSE_DATA: &str = "message";
