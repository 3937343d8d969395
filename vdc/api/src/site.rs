//! Sites.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::InviteCreated;

/// Adds a site that will have its own registrar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteAdd {
    #[schema(example = "lisbon")]
    pub name: String,
    /// The site's IPv4 block as CIDR; the next free one by default.
    pub ipv4: Option<String>,
    /// Seconds until the founder invite expires.
    #[serde(default = "day")]
    #[schema(default = 86400, minimum = 1)]
    pub expires_s: u64,
}

fn day() -> u64 {
    86_400
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteAdded {
    pub site: SiteView,
    /// The founder invite: the node that joins with it becomes the site's registrar.
    pub invite: InviteCreated,
    /// Whether the site existed already (and gets its own registrar only now).
    pub existed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteList {
    /// Local name of the VDC.
    pub vdc: String,
    pub sites: Vec<SiteView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteView {
    pub name: String,
    pub number: u16,
    /// Its `/64`.
    pub ipv6: String,
    pub ipv4: Option<String>,
    /// The site whose registrars admit and renew here until it has its own.
    pub founder: String,
    /// Names of its own registrars.
    pub registrars: Vec<String>,
    /// Members that are not expired or revoked.
    pub nodes: u32,
    /// Members that this node reaches now, by a tunnel or a control link.
    pub nodes_reached: u32,
    /// RFC 3339.
    pub created_at: String,
}
