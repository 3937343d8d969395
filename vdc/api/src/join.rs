//! Joining, renewing, leaving.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Addresses, Problem, VdcView};

/// Joins a VDC. The daemon carries on to the end even if the client goes away; the same token may be sent again and then
/// gives the same result.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// `vdc1.…`
    pub token: String,
    /// What this node will call the VDC; the VDC's own name by default.
    pub name: Option<String>,
    /// What this node would like to be called; its host name by default. The registrar may add a number.
    pub node: Option<String>,
}

impl std::fmt::Debug for JoinRequest {
    /// Leaves the token out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("name", &self.name).field("node", &self.node).finish_non_exhaustive()
    }
}

/// What a join says while it goes on. The last event is [`JoinEvent::Joined`], or the stream ends with an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum JoinEvent {
    Step(StepView),
    Joined(Box<Joined>),
}

/// A step of long work. Each is announced once as started and once as done or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Stable id in kebab case.
    #[schema(example = "redeem")]
    pub id: String,
    /// For people.
    #[schema(example = "redeem the invite")]
    pub title: String,
    pub state: StepState,
    /// What came of it, or what is awaited.
    pub detail: Option<String>,
    /// Milliseconds that the step has taken.
    pub elapsed_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    Started,
    Done,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Joined {
    pub vdc: VdcView,
    /// This node's name in the VDC.
    pub node: String,
    pub site: String,
    /// The node's DNS name.
    pub fqdn: String,
    pub addresses: Addresses,
    /// The node that admitted it.
    pub registrar: String,
    /// Whether it had joined before with this token.
    pub already_member: bool,
    /// Milliseconds from the request to the tunnel being ready.
    pub elapsed_ms: u64,
    pub problems: Vec<Problem>,
}

/// Ends this node's own membership and forgets the VDC's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Leave even if the VDC or a site then has no registrar or admin left, or nobody could be told.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Left {
    /// What this node called the VDC.
    pub vdc: String,
    pub node: String,
    /// Members that confirmed the tombstone before the answer was given.
    pub confirmed: u32,
    /// Members that there are besides this node.
    #[serde(default)]
    pub members: u32,
    /// Names of those that did not confirm: those out of reach learn it from the others.
    #[serde(default)]
    pub unconfirmed: Vec<String>,
    /// What else follows.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Renewed {
    pub node: String,
    pub serial: u64,
    /// The new renewal deadline, RFC 3339.
    pub not_after: String,
    /// The node that renewed it.
    pub registrar: String,
}
