//! Nodes, and how this node reaches them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{OwnerKey, RecordView};

/// A node's addresses in a VDC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Addresses {
    /// The host as a tenant.
    #[schema(example = "fd5a:3c71:9e02:1:a1b2:c3d4:0:1")]
    pub ipv6: String,
    /// None in a VDC without IPv4.
    #[schema(example = "10.64.0.17")]
    pub ipv4: Option<String>,
    /// The node's infra plane: between members only.
    pub infra: String,
    /// The node's whole `/96`.
    pub prefix: String,
}

/// Whether a member counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Current,
    /// Past its renewal deadline, still reachable.
    Grace,
    Expired,
    Revoked,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// Local name of the VDC.
    pub vdc: String,
    pub nodes: Vec<NodeView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    #[schema(example = "berlin1")]
    pub name: String,
    pub site: String,
    /// The node's DNS name.
    #[schema(example = "berlin1.berlin.acme.internal")]
    pub fqdn: String,
    /// The node's Ed25519 key: 64 hexadecimal digits.
    pub key: String,
    /// Whether this is the node that answers.
    pub local: bool,
    pub standing: Standing,
    /// `host`, `operator`, `registrar`, `admin`, `owner`.
    pub roles: Vec<String>,
    pub labels: Vec<String>,
    pub addresses: Addresses,
    /// Ports that it declared, as [`crate::PortSpec`] text.
    pub exposed: Vec<String>,
    pub membership: MembershipView,
    /// Where its control swarm says it can be dialled: `HOST:PORT`.
    pub contacts: Vec<String>,
    /// How this node reaches it; none for itself.
    pub link: Option<LinkView>,
}

/// What a node's membership rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MembershipView {
    pub serial: u64,
    /// RFC 3339.
    pub not_before: String,
    /// The renewal deadline, RFC 3339.
    pub not_after: String,
    /// Seconds until the deadline; negative once it has passed.
    pub renewal_due_s: i64,
    /// When it stops being reachable without a renewal, RFC 3339.
    pub reachable_until: String,
    pub ephemeral: bool,
    /// The member record.
    pub record: RecordView,
    /// The grant record, if rights were ever granted.
    pub grant: Option<RecordView>,
    /// The tombstone, if it was revoked or left.
    pub tombstone: Option<RecordView>,
    /// The reason that the tombstone gives.
    pub ended_because: Option<String>,
}

/// How this node reaches a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkView {
    pub state: LinkState,
    /// The path in use, or the last one.
    pub path: Option<PathView>,
    /// Smoothed round-trip time over the path.
    pub rtt_ms: Option<f64>,
    /// Since the last completed WireGuard handshake.
    pub handshake_age_ms: Option<u64>,
    /// Since the last authenticated packet.
    pub received_age_ms: Option<u64>,
    /// Payload in bytes since the daemon started.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// The control link, if one is open.
    pub control: Option<ControlLinkView>,
    /// Why it is in this state, where that is not obvious.
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// A tunnel is up.
    Active,
    /// A handshake is under way.
    Connecting,
    /// No tunnel, because nothing needs one.
    Idle,
    /// Tried and not reached.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathView {
    pub kind: PathKind,
    /// The peer's underlay address.
    #[schema(example = "203.0.113.7:51820")]
    pub endpoint: String,
    /// The relaying node.
    pub relay: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// Straight, within one LAN.
    Lan,
    /// Straight, over routers.
    Direct,
    /// Over another member.
    Relay,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ControlLinkView {
    /// The peer's address.
    pub address: String,
    /// `quic` or `tcp`.
    pub transport: String,
    /// Seconds since it opened.
    pub age_s: u64,
    /// The peer's release.
    pub version: Option<String>,
    /// The peer's clock minus ours.
    pub clock_offset_ms: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerList {
    /// Local name of the VDC.
    pub vdc: String,
    pub peers: Vec<PeerView>,
}

/// A peer with everything that is known about the ways to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerView {
    pub node: String,
    pub site: String,
    /// 64 hexadecimal digits.
    pub key: String,
    pub standing: Standing,
    pub link: LinkView,
    pub candidates: Vec<CandidateView>,
}

/// An endpoint that may lead to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CandidateView {
    pub endpoint: String,
    pub kind: PathKind,
    /// From the last probe that was answered.
    pub rtt_ms: Option<f64>,
    pub in_use: bool,
    /// Where it was learnt: `asked`, `observed`, `last-seen`, `manual`.
    pub source: String,
}

/// Ends a node's membership at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeRevoke {
    /// For the audit log, at most 200 bytes.
    pub reason: Option<String>,
    /// If the node signed records for others: everything after its record of this number is void. All that this node knows
    /// is kept if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_through: Option<u64>,
    /// Needed to revoke an admin, unless an owner key is kept on this node. Used for this request and kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_key: Option<OwnerKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRevoked {
    pub node: String,
    pub site: String,
    pub key: String,
    /// The tombstone.
    pub record: RecordView,
    /// Members that confirmed the tombstone before the answer was given.
    pub confirmed: u32,
    /// Members that must hear of it, this node not counted.
    pub members: u32,
    /// Names of members that could not be told yet; they learn it when they next meet any other.
    pub unconfirmed: Vec<String>,
    /// Members, as `NODE.SITE`, that are void because the record that admitted them is: they must join anew.
    pub void: Vec<String>,
    /// What else follows, for example invites that ended with it.
    pub notes: Vec<String>,
}

/// Changes a node's roles and labels. What is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantChange {
    #[serde(default)]
    pub add_roles: Vec<String>,
    #[serde(default)]
    pub remove_roles: Vec<String>,
    #[serde(default)]
    pub add_labels: Vec<String>,
    #[serde(default)]
    pub remove_labels: Vec<String>,
    /// Needed for the role `admin`, unless an owner key is kept on this node. Used for this request and kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_key: Option<OwnerKey>,
}

/// Names a member's control address by hand: the way back in after every address has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// `HOST:PORT`, `IPV4:PORT` or `[IPV6]:PORT` of a member's control swarm.
    #[schema(example = "vpn.example.org:7300")]
    pub address: String,
    /// The node expected there; any member if absent.
    pub node: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connected {
    pub node: String,
    pub site: String,
    pub key: String,
    /// The address that answered.
    pub address: String,
    /// `quic` or `tcp`.
    pub transport: String,
    pub elapsed_ms: u64,
}
