//! Invites.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes an invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteCreate {
    /// Site that the joining node will belong to; this node's by default. A new site is created if this node is an admin.
    pub site: Option<String>,
    /// How many nodes may join with it.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1)]
    pub uses: u32,
    /// Seconds until it expires.
    #[serde(default = "hour")]
    #[schema(default = 3600, minimum = 1)]
    pub expires_s: u64,
    /// Nodes that join with it get no grace after their membership's deadline.
    #[serde(default)]
    pub ephemeral: bool,
}

fn one() -> u32 {
    1
}

fn hour() -> u64 {
    3_600
}

impl Default for InviteCreate {
    /// One use, one hour, this node's site.
    fn default() -> Self {
        Self { site: None, uses: one(), expires_s: hour(), ephemeral: false }
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InviteCreated {
    /// The token, `vdc1.…`. It is given once, here; whoever holds it can join.
    pub token: String,
    pub invite: InviteView,
    /// Whether a joining box could reach a registrar.
    pub reachability: Reachability,
    /// Whether its site was created on the way.
    pub site_created: bool,
}

impl std::fmt::Debug for InviteCreated {
    /// Leaves the token out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InviteCreated").field("invite", &self.invite).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InviteList {
    /// Local name of the VDC.
    pub vdc: String,
    /// Of this registrar, newest first.
    pub invites: Vec<InviteView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InviteView {
    /// 32 hexadecimal digits.
    pub id: String,
    pub site: String,
    pub state: InviteState,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub expires_at: String,
    /// Seconds until it expires; 0 once it has.
    pub expires_in_s: u64,
    pub uses: u32,
    pub uses_left: u32,
    pub ephemeral: bool,
    /// Whether the node that joins becomes its site's registrar (`meshctl site add`).
    pub founder: bool,
    /// The node that redeems it.
    pub registrar: String,
    pub redeemed: Vec<RedemptionView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InviteState {
    Open,
    Used,
    Expired,
    Revoked,
}

/// One use of an invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RedemptionView {
    /// Name of the node that joined.
    pub node: String,
    pub key: String,
    /// RFC 3339.
    pub at: Option<String>,
    /// The underlay address that it came from.
    pub address: Option<String>,
}

/// Who could reach the registrar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reachability {
    pub verdict: ReachabilityVerdict,
    /// One lower-case phrase.
    pub message: String,
    /// How to fix it, if nobody or only the LAN could.
    pub hint: Option<String>,
    /// The addresses in the token: `HOST:PORT`.
    pub addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReachabilityVerdict {
    /// Seen from outside.
    Reachable,
    /// A public address or DNS name is there, but nobody has come in by it yet.
    Likely,
    /// Private addresses only: boxes on the same network.
    LocalOnly,
    /// Nobody.
    Unreachable,
}
