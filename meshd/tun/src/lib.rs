//! The data plane of a node: TUNs, the UDP socket, WireGuard's cryptography, and a VDC's place in the kernel's network.
//!
//! [`DataPlane`] owns the socket and the threads, [`VdcHandle`] is one VDC on it, [`VdcNetwork`] its namespace with the
//! persistent TUN. [`AddressWatch`] tells the host's own addresses.
//!
//! It is not the truth about peers: that is `vdc_overlay::Overlay`, a state machine that the overlay thread drives. And
//! it judges no flow: policy is the kernel's, in the VDC's namespace.
//!
//! ```text
//!            mesh0 of each VDC                                  the one UDP socket
//!   TUN ──> mesh-tx (one per VDC): cut, seal ─────────────────────> GSO send
//!   TUN <── write super-packets <── mesh-rx: open, check source, join <── GRO receive
//!                      │ no tunnel        │ handshakes, first data, probes, unknown index
//!                      └──────> mailbox <─┘
//!                      mesh-overlay: Overlay per VDC ──> snapshot for the packet threads, events for the control plane
//! ```
//! Invariants: an established tunnel's packets cross one thread each way, with no channel, allocation or lock per packet
//! (a tunnel is locked once per batch); the packet threads never wait for the control plane; every queue is bounded and
//! drops are counted; bytes from outside never panic.

mod addresses;
mod datapath;
mod driver;
mod egress;
mod mailbox;
mod metrics;
mod netlink;
mod netns;
mod noise;
mod offload;
mod snapshot;
mod socket;
mod sys;
mod tun;
mod tunnel;
mod workload_port;

pub use addresses::AddressWatch;
pub use driver::{DataPlane, DataPlaneConfig, DataPlaneError, VdcConfig, VdcHandle, VdcView};
pub use egress::{EGRESS_INTERFACE, EgressConfig, egress_interface, ensure_egress, remove_egress};
pub use metrics::{Counter, Counters};
pub use netlink::{
    GATEWAY_V4, GATEWAY_V6, HOST_PORT_INTERFACE, MTU_BYTES, MTU_BYTES_MIN, NetworkConfig, NetworkError, VdcNetwork,
    ipv4_routes,
};
pub use netns::Netns;
pub use noise::{BoringFactory, BoringNoise};
pub use socket::{SocketError, SocketOffloads};
pub use tun::{TUN_INTERFACE, Tun, TunOffloads};
pub use workload_port::{
    WORKLOAD_INTERFACE_PREFIX, WorkloadNetns, WorkloadPort, ensure_workload_port, list_workload_ports,
    remove_workload_port,
};
