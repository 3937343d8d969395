//! The node at a glance.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{NodeView, NotServedView, Problem, SiteView, VdcView, Version};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatusQuery {
    /// Only this VDC; all by default.
    pub vdc: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: Version,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The daemon's clock, RFC 3339.
    pub now: String,
    pub vdcs: Vec<VdcStatus>,
    /// VDCs that are on disk and could not be brought up; each has a problem `vdc-not-served` as well.
    #[serde(default)]
    pub not_served: Vec<NotServedView>,
    /// Problems of the node as a whole.
    pub problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VdcStatus {
    pub vdc: VdcView,
    /// This node: its addresses, roles, standing.
    pub node: NodeView,
    pub roster: RosterView,
    /// All nodes, this one among them, by site and name.
    pub nodes: Vec<NodeView>,
    pub sites: Vec<SiteView>,
    pub listen: ListenView,
    pub data_path: DataPathView,
    pub dns: DnsView,
    /// Worst first.
    pub problems: Vec<Problem>,
}

/// What this node knows of the VDC, and how fresh that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RosterView {
    /// Signed records held.
    pub records: u64,
    /// Their size.
    pub size_bytes: u64,
    /// Seconds since it was last found equal to another member's; none if never since the start.
    pub age_s: Option<u64>,
    /// The member with which it was last compared.
    pub compared_with: Option<String>,
    /// Contradictions among the records, one phrase each.
    pub conflicts: Vec<String>,
    /// Version of the policy in force.
    pub policy_version: u64,
}

/// Where this node listens on the underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListenView {
    /// UDP port of the data plane.
    pub data_port: u16,
    /// UDP and TCP port of the control swarm.
    pub control_port: u16,
    /// Port of the join door, while it is open.
    pub door_port: Option<u16>,
    /// Addresses at which other members have seen this node: `IP:PORT`.
    pub observed: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DataPathView {
    /// Network namespace of the VDC.
    pub namespace: String,
    /// TUN device in it.
    pub device: String,
    /// MTU of the overlay in bytes.
    pub mtu_bytes: u32,
    /// UDP segmentation offload.
    pub udp_gso: bool,
    /// UDP receive offload.
    pub udp_gro: bool,
    /// Super-packets on the TUN device.
    pub tun_offload: bool,
    /// Packets dropped since the start, all reasons.
    pub packets_dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsView {
    pub state: DnsState,
    /// The domain it answers for.
    pub domain: String,
    /// Where the VDC's name server listens.
    pub server: Option<String>,
    /// One phrase where there is something to say.
    pub detail: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DnsState {
    /// The host resolves the VDC's names through systemd-resolved.
    Resolved,
    /// The name server answers; the host's resolver was not told.
    Stub,
    Off,
}
