//! Who may decide: the owner key for the safe, recovery, and what an issuer signed.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use zeroize::Zeroize;

use crate::NodeView;

/// The secret of an owner key as `vdc create` printed it. Wiped from memory when dropped, and never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct OwnerKey(String);

impl OwnerKey {
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The text, for the one who parses it.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl Drop for OwnerKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for OwnerKey {
    /// Leaves the secret out: debug output ends in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnerKey(..)")
    }
}

/// Makes this node an admin by an owner's signature, and lets it stand in for registrars that are gone. Twice is the same
/// as once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VdcRecover {
    /// Needed unless this node is an admin already, or holds an owner key. Used for this request and kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_key: Option<OwnerKey>,
    /// Also become the registrar of this node's site if it has none, and of sites that nobody serves any more.
    #[serde(default)]
    pub registrar: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VdcRecovered {
    /// Local name of the VDC.
    pub vdc: String,
    /// This node afterwards.
    pub node: NodeView,
    /// Whether a delegation was signed: false if this node was an admin already.
    pub admin_signed: bool,
    /// When the admin's delegation ends, RFC 3339.
    pub admin_until: String,
    /// Sites whose registrar this node became by this request.
    pub sites_taken: Vec<String>,
    /// Sites that this node admits and renews in, by its own right or as their founder's registrar.
    pub sites_served: Vec<String>,
    /// What remains to be done.
    pub notes: Vec<String>,
}

/// What would become of an issuer's records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct IssuedQuery {
    /// The last number that would be kept; all that this node knows if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_through: Option<u64>,
}

/// What an issuer signed, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuedList {
    /// Local name of the VDC.
    pub vdc: String,
    pub node: String,
    pub site: String,
    /// 64 hexadecimal digits.
    pub key: String,
    /// As asked.
    pub keep_through: Option<u64>,
    /// By number, ascending. What a later record of the same kind and subject replaced is not kept.
    pub records: Vec<IssuedView>,
    /// Members that would be void, as `NODE.SITE`.
    pub void: Vec<String>,
    /// What else to know before it is done, for example that this node may not do it.
    pub notes: Vec<String>,
}

/// One record of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuedView {
    /// The issuer's own number.
    pub number: u64,
    /// `member`, `delegation`, `site`, …
    pub kind: String,
    /// The first digits of the record's hash.
    pub hash: String,
    /// What it is about: a node, a site, a version.
    pub subject: String,
    /// The date that the issuer wrote into it, RFC 3339; many kinds have none. A thief dates as he likes.
    pub at: Option<String>,
    /// Whether it would be void.
    pub void: bool,
}
