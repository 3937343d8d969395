//! Every operation of the API, once: method, path, and the types that go in and come out.

use std::fmt;
use std::marker::PhantomData;

use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::{
    AttachRequest, BlockCreate, BlockList, BlockView, ByteStream, Capacity, ConnectRequest, Connected, CoordBackup,
    CoordRecover, CoordStatus, CopyRequest, EventList, EventView, EventsQuery, ExecRequest, ExplainQuery, Explanation,
    ExposureChange, ExposureList, ExposureView, GrantChange, Health, ImageList, ImagePull, ImageTag, ImageView,
    ImagesFreed, InviteCreate, InviteCreated, InviteList, InviteView, IssuedList, IssuedQuery, JoinEvent, JoinRequest,
    LeaveRequest, Left, LogEvent, LogsQuery, NodeList, NodeRevoke, NodeRevoked, NodeView, PeerList, PingEvent,
    PingQuery, PullEvent, RecoverView, RemoveQuery, Renewed, RestoreQuery, RestoreView, RunEvent, SignalRequest,
    SiteAdd, SiteAdded, SiteList, StatsEvent, StatsQuery, Status, StatusQuery, StopRequest, VdcCreate, VdcCreated,
    VdcList, VdcRecover, VdcRecovered, VdcView, Version, WaitQuery, Waited, WorkloadList, WorkloadRemoved, WorkloadRun,
    WorkloadView,
};

/// How an operation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates, or starts something.
    Post,
    /// Sets; twice is the same as once.
    Put,
    /// Changes what it names and leaves the rest.
    Patch,
    /// Ends something.
    Delete,
}

impl Method {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// Whether an operation with this method changes something, and therefore needs permission.
    #[must_use]
    pub fn changes(self) -> bool {
        self != Self::Get
    }
}

/// What kind of body a success has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Json,
    /// Server-Sent Events; the response type is that of each event.
    Stream,
    /// Text for another standard's readers.
    Text,
    /// Bytes whose number is not known beforehand; one that fails on the way breaks off. The response type is [`ByteStream`].
    Bytes,
    /// The connection becomes [`crate::STREAM_PROTOCOL`].
    Upgrade,
}

/// One operation: `Q` is its query, `B` its request body, `R` its response or stream item; `()` where there is none.
pub struct Endpoint<Q, B, R> {
    pub method: Method,
    /// With `{…}` for the parts that vary.
    pub path: &'static str,
    pub reply: Reply,
    types: PhantomData<fn(Q, B) -> R>,
}

impl<Q, B, R> Endpoint<Q, B, R> {
    const fn new(method: Method, path: &'static str, reply: Reply) -> Self {
        Self { method, path, reply, types: PhantomData }
    }

    /// The path with its varying parts filled in, in order, percent-encoded.
    ///
    /// # Panics
    /// If the number of parts is not the path's: a defect of the caller.
    #[must_use]
    pub fn path_with(&self, parts: &[&str]) -> String {
        let mut path = String::with_capacity(self.path.len() + 32);
        let mut given = parts.iter();
        for segment in self.path.split('/').skip(1) {
            path.push('/');
            if segment.starts_with('{') {
                percent_encode(given.next().expect("one part for each varying segment"), &mut path);
            } else {
                path.push_str(segment);
            }
        }
        assert!(given.next().is_none(), "more parts than varying segments in {}", self.path);
        path
    }
}

impl<Q, B, R> fmt::Debug for Endpoint<Q, B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method.as_str(), self.path)
    }
}

impl<Q, B, R> Clone for Endpoint<Q, B, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q, B, R> Copy for Endpoint<Q, B, R> {}

/// Appends the text with all but the unreserved characters percent-encoded (RFC 3986 §2.3).
pub fn percent_encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// An operation without its types, for lists.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// In snake case; also the name of the backend's method.
    pub id: &'static str,
    pub method: Method,
    pub path: &'static str,
    pub summary: &'static str,
    pub reply: Reply,
    pub(crate) parameters: Option<fn() -> Vec<Parameter>>,
    pub(crate) body: Option<fn() -> NamedSchema>,
    pub(crate) response: fn() -> NamedSchema,
}

impl Operation {
    /// Whether another node may ask for it, with the right and this node's consent: workloads and images, and what it takes
    /// to choose a node for them. Nothing that changes who belongs to a VDC or may do what.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        ["/v1/vdcs/{vdc}/workloads", "/v1/vdcs/{vdc}/images", "/v1/vdcs/{vdc}/capacity"]
            .iter()
            .any(|prefix| self.path.starts_with(prefix))
    }

    /// Whether its request's body is a stream of bytes instead of JSON.
    #[must_use]
    pub fn takes_bytes(&self) -> bool {
        self.body.is_some_and(|body| body().is_bytes())
    }

    /// Whether it needs permission: it changes something, or shows what workloads were told and what they say.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.method.changes() || self.path.starts_with("/v1/vdcs/{vdc}/workloads")
    }
}

/// A type's schema, and those of the types in it.
pub(crate) struct NamedSchema {
    pub(crate) name: String,
    pub(crate) schema: RefOr<Schema>,
    pub(crate) inner: Vec<(String, RefOr<Schema>)>,
}

impl NamedSchema {
    pub(crate) fn is_bytes(&self) -> bool {
        self.name == ByteStream::name()
    }
}

fn schema_of<T: ToSchema>() -> NamedSchema {
    let mut inner = Vec::new();
    T::schemas(&mut inner);
    NamedSchema { name: T::name().into_owned(), schema: <T as PartialSchema>::schema(), inner }
}

fn parameters_of<T: IntoParams>() -> Vec<Parameter> {
    T::into_params(|| Some(ParameterIn::Query))
}

macro_rules! or {
    ($given:ty; $default:ty) => {
        $given
    };
    (; $default:ty) => {
        $default
    };
}

macro_rules! endpoints {
    ($(
        #[doc = $summary:literal]
        $name:ident = $id:ident: $method:ident $path:literal
            $(? $query:ty)? $(, $body:ty)? => $reply:ident $response:ty;
    )*) => {
        $(
            #[doc = $summary]
            pub const $name: Endpoint<or!($($query)?; ()), or!($($body)?; ()), $response> =
                Endpoint::new(Method::$method, $path, Reply::$reply);
        )*

        /// Every operation, in the order of the documentation.
        pub const ALL: &[Operation] = &[$(
            Operation {
                id: stringify!($id),
                method: Method::$method,
                path: $path,
                // A doc comment's text starts with the space behind its slashes.
                summary: $summary.trim_ascii(),
                reply: Reply::$reply,
                parameters: endpoints!(@parameters $($query)?),
                body: endpoints!(@body $($body)?),
                response: schema_of::<$response>,
            },
        )*];
    };
    (@parameters $type:ty) => { Some(parameters_of::<$type> as fn() -> Vec<Parameter>) };
    (@parameters) => { None };
    (@body $type:ty) => { Some(schema_of::<$type> as fn() -> NamedSchema) };
    (@body) => { None };
}

endpoints! {
    /// Which daemon answers
    VERSION = version: Get "/v1/version" => Json Version;
    /// Whether the daemon does its work
    HEALTH = health: Get "/v1/health" => Json Health;
    /// The node and its VDCs at a glance
    STATUS = status: Get "/v1/status" ? StatusQuery => Json Status;
    /// Recent events
    EVENTS = events: Get "/v1/events" ? EventsQuery => Json EventList;
    /// Events as they happen
    EVENTS_STREAM = events_stream: Get "/v1/events/stream" ? EventsQuery => Stream EventView;
    /// Metrics for Prometheus
    METRICS = metrics: Get "/metrics" => Text String;
    /// This document
    OPENAPI = openapi: Get "/v1/openapi.json" => Text String;
    /// The VDCs of this node
    VDC_LIST = vdc_list: Get "/v1/vdcs" => Json VdcList;
    /// Create a VDC
    VDC_CREATE = vdc_create: Post "/v1/vdcs", VdcCreate => Json VdcCreated;
    /// Lead the host's IPv4 routes into this VDC and let commands mean it by default
    VDC_USE = vdc_use: Put "/v1/vdcs/{vdc}/use" => Json VdcView;
    /// Make this node an admin by an owner key, and a registrar where one is gone
    VDC_RECOVER = vdc_recover: Post "/v1/vdcs/{vdc}/recover", VdcRecover => Json VdcRecovered;
    /// Join a VDC by token
    JOIN = join: Post "/v1/join", JoinRequest => Stream JoinEvent;
    /// Leave a VDC
    LEAVE = leave: Post "/v1/vdcs/{vdc}/leave", LeaveRequest => Json Left;
    /// Renew this node's membership now
    RENEW = renew: Post "/v1/vdcs/{vdc}/renew" => Json Renewed;
    /// The nodes of a VDC
    NODE_LIST = node_list: Get "/v1/vdcs/{vdc}/nodes" => Json NodeList;
    /// One node
    NODE_SHOW = node_show: Get "/v1/vdcs/{vdc}/nodes/{node}" => Json NodeView;
    /// End a node's membership
    NODE_REVOKE = node_revoke: Post "/v1/vdcs/{vdc}/nodes/{node}/revoke", NodeRevoke => Json NodeRevoked;
    /// What a node signed for others, and what its revocation would make void
    NODE_ISSUED = node_issued: Get "/v1/vdcs/{vdc}/nodes/{node}/issued" ? IssuedQuery => Json IssuedList;
    /// Change a node's roles and labels
    GRANT = grant: Patch "/v1/vdcs/{vdc}/nodes/{node}/grant", GrantChange => Json NodeView;
    /// How this node reaches the others
    PEERS = peers: Get "/v1/vdcs/{vdc}/peers" => Json PeerList;
    /// Reach a member at an address given by hand
    CONNECT = connect: Post "/v1/vdcs/{vdc}/connect", ConnectRequest => Json Connected;
    /// Ping a node through the overlay
    PING = ping: Get "/v1/vdcs/{vdc}/ping" ? PingQuery => Stream PingEvent;
    /// The invites of this registrar
    INVITE_LIST = invite_list: Get "/v1/vdcs/{vdc}/invites" => Json InviteList;
    /// Make an invite
    INVITE_CREATE = invite_create: Post "/v1/vdcs/{vdc}/invites", InviteCreate => Json InviteCreated;
    /// End an invite
    INVITE_REVOKE = invite_revoke: Delete "/v1/vdcs/{vdc}/invites/{invite}" => Json InviteView;
    /// The sites of a VDC
    SITE_LIST = site_list: Get "/v1/vdcs/{vdc}/sites" => Json SiteList;
    /// Add a site with its own registrar
    SITE_ADD = site_add: Post "/v1/vdcs/{vdc}/sites", SiteAdd => Json SiteAdded;
    /// Ports that nodes declared
    EXPOSURE_LIST = exposure_list: Get "/v1/vdcs/{vdc}/exposures" => Json ExposureList;
    /// Declare and withdraw ports of this host
    EXPOSURE_CHANGE = exposure_change: Patch "/v1/vdcs/{vdc}/exposures", ExposureChange => Json ExposureView;
    /// Active blocks
    BLOCK_LIST = block_list: Get "/v1/vdcs/{vdc}/blocks" => Json BlockList;
    /// Sign a block
    BLOCK_CREATE = block_create: Post "/v1/vdcs/{vdc}/blocks", BlockCreate => Json BlockView;
    /// Lift a block
    BLOCK_LIFT = block_lift: Delete "/v1/vdcs/{vdc}/blocks/{block}" => Json BlockView;
    /// How a flow would be judged, and by which record
    EXPLAIN = explain: Get "/v1/vdcs/{vdc}/explain" ? ExplainQuery => Json Explanation;
    /// Run a container
    WORKLOAD_RUN = workload_run: Post "/v1/vdcs/{vdc}/workloads", WorkloadRun => Stream RunEvent;
    /// The workloads of this node
    WORKLOAD_LIST = workload_list: Get "/v1/vdcs/{vdc}/workloads" => Json WorkloadList;
    /// One workload
    WORKLOAD_SHOW = workload_show: Get "/v1/vdcs/{vdc}/workloads/{workload}" => Json WorkloadView;
    /// Start a stopped workload
    WORKLOAD_START = workload_start: Post "/v1/vdcs/{vdc}/workloads/{workload}/start" => Json WorkloadView;
    /// Stop a workload
    WORKLOAD_STOP = workload_stop: Post "/v1/vdcs/{vdc}/workloads/{workload}/stop", StopRequest => Json WorkloadView;
    /// Send a signal to a workload's first process
    WORKLOAD_SIGNAL = workload_signal: Post "/v1/vdcs/{vdc}/workloads/{workload}/signal", SignalRequest
        => Json WorkloadView;
    /// Remove a workload and what it wrote
    WORKLOAD_REMOVE = workload_remove: Delete "/v1/vdcs/{vdc}/workloads/{workload}" ? RemoveQuery
        => Json WorkloadRemoved;
    /// Wait until a workload ends
    WORKLOAD_WAIT = workload_wait: Get "/v1/vdcs/{vdc}/workloads/{workload}/wait" ? WaitQuery => Json Waited;
    /// What a workload wrote
    WORKLOAD_LOGS = workload_logs: Get "/v1/vdcs/{vdc}/workloads/{workload}/logs" ? LogsQuery => Stream LogEvent;
    /// What a workload uses
    WORKLOAD_STATS = workload_stats: Get "/v1/vdcs/{vdc}/workloads/{workload}/stats" ? StatsQuery => Stream StatsEvent;
    /// Run one more program in a workload
    WORKLOAD_EXEC = workload_exec: Post "/v1/vdcs/{vdc}/workloads/{workload}/exec", ExecRequest => Upgrade String;
    /// Join the streams of a workload's program
    WORKLOAD_ATTACH = workload_attach: Post "/v1/vdcs/{vdc}/workloads/{workload}/attach", AttachRequest => Upgrade String;
    /// Copy files out of a workload or into it
    WORKLOAD_COPY = workload_copy: Post "/v1/vdcs/{vdc}/workloads/{workload}/copy", CopyRequest => Upgrade String;
    /// What this node has left for workloads
    CAPACITY = capacity: Get "/v1/vdcs/{vdc}/capacity" => Json Capacity;
    /// The images of this node
    IMAGE_LIST = image_list: Get "/v1/vdcs/{vdc}/images" => Json ImageList;
    /// Get an image
    IMAGE_PULL = image_pull: Post "/v1/vdcs/{vdc}/images", ImagePull => Stream PullEvent;
    /// Give an image one more name
    IMAGE_TAG = image_tag: Post "/v1/vdcs/{vdc}/images/tag", ImageTag => Json ImageView;
    /// Take a name from an image, and the image away with its last
    IMAGE_REMOVE = image_remove: Delete "/v1/vdcs/{vdc}/images/{image}" => Json ImagesFreed;
    /// Remove what no name and no workload needs
    IMAGE_CLEAN = image_clean: Post "/v1/vdcs/{vdc}/images/clean" => Json ImagesFreed;
    /// The coordination groups: who leads, what may fail
    COORD_STATUS = coord_status: Get "/v1/vdcs/{vdc}/coord" => Json CoordStatus;
    /// Found a coordination group anew after too many of its voters were lost, or say what that would cost
    COORD_RECOVER = coord_recover: Post "/v1/vdcs/{vdc}/coord/recover", CoordRecover => Json RecoverView;
    /// All that a coordination group holds
    COORD_BACKUP = coord_backup: Post "/v1/vdcs/{vdc}/coord/backup", CoordBackup => Bytes ByteStream;
    /// Replace all that a coordination group holds by a backup
    COORD_RESTORE = coord_restore: Post "/v1/vdcs/{vdc}/coord/restore" ? RestoreQuery, ByteStream => Json RestoreView;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_percent_encoded() {
        assert_eq!(NODE_SHOW.path_with(&["-", "berlin1.berlin"]), "/v1/vdcs/-/nodes/berlin1.berlin");
        assert_eq!(NODE_SHOW.path_with(&["a/b", "ü?"]), "/v1/vdcs/a%2Fb/nodes/%C3%BC%3F");
        assert_eq!(VERSION.path_with(&[]), "/v1/version");
    }

    #[test]
    fn operations_are_distinct_and_versioned() {
        for (index, one) in ALL.iter().enumerate() {
            assert!(one.path.starts_with("/v1/") || one.path == "/metrics", "{}", one.path);
            assert!(!one.summary.is_empty() && !one.summary.ends_with('.'), "{}", one.id);
            for other in &ALL[index + 1..] {
                assert_ne!(one.id, other.id);
                assert!((one.method, one.path) != (other.method, other.path), "{} and {}", one.id, other.id);
            }
        }
    }
}
