//! What stands behind the API.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use vdc_api::{
    ApiError, BlockCreate, BlockList, BlockView, ConnectRequest, Connected, EventList, EventView, EventsQuery,
    ExplainQuery, Explanation, ExposureChange, ExposureList, ExposureView, GrantChange, Health, InviteCreate,
    InviteCreated, InviteList, InviteView, IssuedList, IssuedQuery, JoinEvent, JoinRequest, LeaveRequest, Left,
    NodeList, NodeRevoke, NodeRevoked, NodeView, PeerList, PingEvent, PingQuery, Renewed, SiteAdd, SiteAdded, SiteList,
    Status, StatusQuery, VdcCreate, VdcCreated, VdcList, VdcRecover, VdcRecovered, VdcView, Version,
};

use crate::{Caller, CoordBackend, WorkloadBackend};

/// The items of a stream. An error is told to the client and ends the stream.
pub type Items<T> = BoxStream<'static, Result<T, ApiError>>;

/// Bytes both ways between a client and what it asked for.
pub type Pipe = Box<dyn Duplex>;

/// What a [`Pipe`] is made of.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Another node that asks, and whether it may.
#[derive(Clone, Debug)]
pub struct RemoteNode {
    /// The first digits of its key.
    pub key: String,
    /// The local name of the VDC whose member it is.
    pub vdc: String,
    /// What is missing, if something is.
    pub missing: Option<ApiError>,
    /// Cancelled when it may not any more: ends its streams and pipes.
    pub cut: CancellationToken,
    /// Held by whatever still goes on for it.
    pub alive: Arc<()>,
}

/// Who asks for a change, and under which id it stands in the log.
#[derive(Clone, Debug)]
pub struct Call {
    /// Of this host; nobody's if another node asks.
    pub caller: Caller,
    /// The node that asks, if it is another one.
    pub node: Option<RemoteNode>,
    pub request_id: String,
}

/// The daemon, as the API sees it. Each method is the operation of the same name in `vdc_api::endpoint`.
///
/// `vdc` is a local name, an id prefix, or [`vdc_api::DEFAULT_VDC`]; `node`, `invite` and `block` are what the client
/// wrote. Resolving them is the backend's work. Permission was judged before a method with a [`Call`] is entered.
///
/// # Cancel safety
/// Methods with a [`Call`] are never dropped half-way, except when a shutdown outlasts its deadline. All others, and
/// their streams, are dropped when the client goes away.
#[async_trait]
pub trait Backend: WorkloadBackend {
    async fn version(&self) -> Result<Version, ApiError>;
    async fn health(&self) -> Result<Health, ApiError>;
    async fn status(&self, query: StatusQuery) -> Result<Status, ApiError>;
    async fn events(&self, query: EventsQuery) -> Result<EventList, ApiError>;
    async fn events_stream(&self, query: EventsQuery) -> Result<Items<EventView>, ApiError>;
    /// The metrics in OpenMetrics text.
    async fn metrics(&self) -> Result<String, ApiError>;

    async fn vdc_list(&self) -> Result<VdcList, ApiError>;
    async fn vdc_create(&self, call: &Call, request: VdcCreate) -> Result<VdcCreated, ApiError>;
    async fn vdc_use(&self, call: &Call, vdc: &str) -> Result<VdcView, ApiError>;

    async fn vdc_recover(&self, call: &Call, vdc: &str, request: VdcRecover) -> Result<VdcRecovered, ApiError>;

    /// Starts a join. What can be refused at once (a malformed token) is best refused here; the stream is drained to its
    /// end even if the client goes away.
    async fn join(&self, call: &Call, request: JoinRequest) -> Result<Items<JoinEvent>, ApiError>;
    async fn leave(&self, call: &Call, vdc: &str, request: LeaveRequest) -> Result<Left, ApiError>;
    async fn renew(&self, call: &Call, vdc: &str) -> Result<Renewed, ApiError>;

    async fn node_list(&self, vdc: &str) -> Result<NodeList, ApiError>;
    async fn node_show(&self, vdc: &str, node: &str) -> Result<NodeView, ApiError>;
    async fn node_revoke(
        &self,
        call: &Call,
        vdc: &str,
        node: &str,
        request: NodeRevoke,
    ) -> Result<NodeRevoked, ApiError>;
    async fn node_issued(&self, vdc: &str, node: &str, query: IssuedQuery) -> Result<IssuedList, ApiError>;
    async fn grant(&self, call: &Call, vdc: &str, node: &str, change: GrantChange) -> Result<NodeView, ApiError>;
    async fn peers(&self, vdc: &str) -> Result<PeerList, ApiError>;
    async fn connect(&self, call: &Call, vdc: &str, request: ConnectRequest) -> Result<Connected, ApiError>;
    async fn ping(&self, vdc: &str, query: PingQuery) -> Result<Items<PingEvent>, ApiError>;

    async fn invite_list(&self, vdc: &str) -> Result<InviteList, ApiError>;
    async fn invite_create(&self, call: &Call, vdc: &str, request: InviteCreate) -> Result<InviteCreated, ApiError>;
    async fn invite_revoke(&self, call: &Call, vdc: &str, invite: &str) -> Result<InviteView, ApiError>;

    async fn site_list(&self, vdc: &str) -> Result<SiteList, ApiError>;
    async fn site_add(&self, call: &Call, vdc: &str, request: SiteAdd) -> Result<SiteAdded, ApiError>;

    async fn exposure_list(&self, vdc: &str) -> Result<ExposureList, ApiError>;
    async fn exposure_change(&self, call: &Call, vdc: &str, change: ExposureChange) -> Result<ExposureView, ApiError>;

    async fn block_list(&self, vdc: &str) -> Result<BlockList, ApiError>;
    async fn block_create(&self, call: &Call, vdc: &str, request: BlockCreate) -> Result<BlockView, ApiError>;
    async fn block_lift(&self, call: &Call, vdc: &str, block: &str) -> Result<BlockView, ApiError>;

    async fn explain(&self, vdc: &str, query: ExplainQuery) -> Result<Explanation, ApiError>;

    /// A connection to the API of the node that `on` means (a node, or `site=SITE`); none if that is this node.
    async fn remote(&self, vdc: &str, on: &str) -> Result<Option<Pipe>, ApiError>;

    /// The coordination groups; none where the daemon has no part in any.
    fn coord(&self) -> Option<Arc<dyn CoordBackend>> {
        None
    }
}
