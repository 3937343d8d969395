//! The VDC's name server and the host's resolver set-up.
//!
//! Main types: [`NameServer`] (answers), [`Zones`] (what it answers, replaced as a whole through a [`ZonesHandle`]),
//! [`Resolved`] (tells systemd-resolved) and [`Presence`] (when it must be told again). The daemon's composition root
//! drives them.

mod forward;
mod resolved;
mod server;
mod zones;

pub use forward::Forwarder;
pub use resolved::{Presence, Resolved, ResolvedError};
pub use server::{Audience, DnsError, NameServer, ZonesHandle};
pub use zones::{Answer, Zone, Zones};

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The documented stub address on every box: put `nameserver 127.0.0.77` first in `/etc/resolv.conf` where there is no
/// systemd-resolved (whose own stubs are 127.0.0.53 and 127.0.0.54).
pub const STUB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77)), 53);
