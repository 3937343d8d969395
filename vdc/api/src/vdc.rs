//! The VDCs of this node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Addresses;

/// Creates a VDC with this node as its first member, registrar, admin and owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VdcCreate {
    #[schema(example = "acme")]
    pub name: String,
    /// Name of the first site.
    #[schema(example = "paris")]
    pub site: String,
    /// Name of this node in the VDC; the host name by default.
    pub node: Option<String>,
    /// IPv4 range that sites' blocks are carved from, as CIDR; `none` for IPv6 only; the daemon's default if absent.
    #[schema(example = "10.64.0.0/12")]
    pub ipv4: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VdcCreated {
    pub vdc: VdcView,
    /// This node's name in the VDC.
    pub node: String,
    pub site: String,
    /// The node's DNS name.
    #[schema(example = "paris1.paris.acme.internal")]
    pub fqdn: String,
    pub addresses: Addresses,
    /// The second owner key. It is given once, here, and kept nowhere.
    pub recovery_key: RecoveryKey,
}

/// An owner key for the safe.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryKey {
    /// The secret, as the user should write it down.
    pub secret: String,
    /// Its public key, by which records name it.
    pub public_key: String,
    /// Owner signatures needed for what only owners may do.
    pub threshold: u8,
    /// How many owner keys there are.
    pub owners: u8,
    /// What to do with it, in sentences.
    pub instructions: String,
}

impl std::fmt::Debug for RecoveryKey {
    /// Leaves the secret out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecoveryKey").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VdcList {
    /// Those that are served.
    pub vdcs: Vec<VdcView>,
    /// Those that are on disk and could not be brought up.
    #[serde(default)]
    pub not_served: Vec<NotServedView>,
}

/// A VDC that this node is in and cannot serve at present. meshd tries again by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotServedView {
    /// What this node calls it.
    #[schema(example = "acme")]
    pub name: String,
    /// Why, one phrase.
    #[schema(example = "the control plane cannot listen")]
    pub reason: String,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Since when, RFC 3339.
    pub since: String,
    /// Seconds until the next attempt; 0 while it is under way.
    pub retry_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VdcView {
    /// What this node calls it.
    #[schema(example = "acme")]
    pub name: String,
    /// What its genesis record calls it; differs after `join --as`.
    pub genesis_name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Whether the host's IPv4 routes lead into it, and commands mean it when they name none.
    pub in_use: bool,
    /// This node's name in it.
    pub node: String,
    /// This node's site in it.
    pub site: String,
    /// Members that are not expired or revoked.
    pub nodes: u32,
    pub sites: u32,
    /// The domain of its names.
    #[schema(example = "acme.internal")]
    pub domain: String,
    /// Its `/48`.
    #[schema(example = "fd5a:3c71:9e02::/48")]
    pub ipv6: String,
    pub ipv4: Option<String>,
    /// RFC 3339.
    pub created_at: String,
}
