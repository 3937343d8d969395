//! Policy compiled to nftables: one table per VDC namespace, replaced atomically.
//!
//! ```text
//!  host0 (routed veth to the host)          mesh0 (TUN to the peers)
//!        └──────────── forward, policy drop ─────────┘
//!   source check → infra plane closed → generation mark → blocks → identity × protocol × port → rule
//! ```
//! [`compile()`] is pure and gives the whole table; [`Firewall`] is its one effect.

mod compile;
mod host;
mod nft;

pub use compile::{Counter, LocalWorkload, Table, compile, relevant};
pub use host::{EGRESS_HOST_INTERFACES, EgressPort, HOST_PORT_INTERFACES, HOST_TABLE, PublishedPort, compile_host};
pub use nft::{Firewall, FirewallError};

/// The table's name inside the VDC's namespace.
pub const TABLE: &str = "meshd";
/// The TUN to the peers.
pub const MESH_INTERFACE: &str = "mesh0";
/// The inner end of the routed veth to the host.
pub const HOST_INTERFACE: &str = "host0";
/// The ports of workloads, as a pattern of interface names.
pub const WORKLOAD_INTERFACES: &str = "w-*";
/// The inner end of the routed veth to the world outside the VDC.
pub const EGRESS_INTERFACE: &str = "egress0";
