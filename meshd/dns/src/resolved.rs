//! Split DNS through systemd-resolved's D-Bus interface (org.freedesktop.resolve1(5)).

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use zbus::fdo::{DBusProxy, NameOwnerChangedStream};
use zbus::names::BusName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, proxy};

/// The bus name of systemd-resolved.
const NAME: &str = "org.freedesktop.resolve1";
/// How long the bus and systemd-resolved may take for one call: both answer from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// In `ScopesMask`: unicast DNS.
const SCOPE_DNS: u64 = 1;

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Manager {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, interface_index: i32, addresses: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, interface_index: i32, domains: &[(&str, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, interface_index: i32, enable: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, interface_index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, interface_index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, interface_index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, interface_index: i32, mode: &str) -> zbus::Result<()>;
    fn revert_link(&self, interface_index: i32) -> zbus::Result<()>;
    fn get_link(&self, interface_index: i32) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(interface = "org.freedesktop.resolve1.Link", default_service = "org.freedesktop.resolve1")]
trait Link {
    /// By which means names are looked up through the interface at present.
    #[zbus(property)]
    fn scopes_mask(&self) -> zbus::Result<u64>;
}

/// Why systemd-resolved could not be told.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    #[error("the system's D-Bus is not reachable")]
    NoBus(#[source] zbus::Error),
    #[error("systemd-resolved refused the DNS settings of interface {interface_index}")]
    Refused {
        interface_index: u32,
        #[source]
        source: zbus::Error,
    },
    #[error("no answer over the system's D-Bus for {} s", CALL_TIMEOUT.as_secs())]
    NoAnswer,
}

/// A connection to the system bus, to speak to systemd-resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    manager: ManagerProxy<'static>,
}

/// Whether systemd-resolved is on the bus, and when that changes. A new one knows nothing of what the last one was told.
pub struct Presence {
    is_there: bool,
    changes: NameOwnerChangedStream,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("is_there", &self.is_there).finish_non_exhaustive()
    }
}

impl Presence {
    /// As of the last change that was waited for.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// Waits until systemd-resolved comes, goes or is replaced; whether it is there then. `None`: the bus went away, so
    /// connect again.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub async fn changed(&mut self) -> Option<bool> {
        let signal = self.changes.next().await?;
        self.is_there = signal.args().is_ok_and(|args| args.new_owner().is_some());
        Some(self.is_there)
    }
}

impl Resolved {
    /// Connects to the system bus and looks whether systemd-resolved is there.
    ///
    /// # Errors
    /// [`ResolvedError::NoBus`] and [`ResolvedError::NoAnswer`].
    pub async fn connect() -> Result<(Self, Presence), ResolvedError> {
        let connect = async {
            let connection = Connection::system().await?;
            let bus = DBusProxy::new(&connection).await?;
            // In this order: a change between the two is then seen twice rather than never.
            let changes = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await?;
            let is_there = bus.name_has_owner(BusName::from_static_str(NAME)?).await?;
            let manager = ManagerProxy::new(&connection).await?;
            Ok((Self { manager }, Presence { is_there, changes }))
        };
        in_time(connect).await?.map_err(ResolvedError::NoBus)
    }

    /// Sends questions about `zones` (and nothing else) from this host to `servers` through one interface. Idempotent.
    ///
    /// # Errors
    /// [`ResolvedError::Refused`], also shortly after the interface was made, before systemd-resolved heard of it; and
    /// [`ResolvedError::NoAnswer`].
    pub async fn set_link(
        &self,
        interface_index: u32,
        servers: &[IpAddr],
        zones: &[&str],
    ) -> Result<(), ResolvedError> {
        let index = i32::try_from(interface_index).unwrap_or(i32::MAX);
        let addresses: Vec<(i32, Vec<u8>)> = servers
            .iter()
            .map(|address| match address {
                IpAddr::V4(v4) => (2, v4.octets().to_vec()),  // AF_INET
                IpAddr::V6(v6) => (10, v6.octets().to_vec()), // AF_INET6
            })
            .collect();
        // `true`: a routing-only domain, which is not appended to single-label names.
        let domains: Vec<(&str, bool)> = zones.iter().map(|zone| (*zone, true)).collect();
        let calls = async {
            // The servers come last: before, the interface would be asked about everything or by other means.
            self.manager.set_link_default_route(index, false).await?;
            self.manager.set_link_domains(index, &domains).await?;
            self.manager.set_link_dnssec(index, "no").await?;
            self.manager.set_link_dns_over_tls(index, "no").await?;
            self.manager.set_link_llmnr(index, "no").await?;
            self.manager.set_link_multicast_dns(index, "no").await?;
            self.manager.set_link_dns(index, &addresses).await
        };
        in_time(calls).await?.map_err(|source| ResolvedError::Refused { interface_index, source })
    }

    /// Whether systemd-resolved looks names up through an interface. Shortly after it was told so it may not: it also wants
    /// to have heard of the interface being up and of its addresses.
    ///
    /// # Errors
    /// [`ResolvedError::Refused`] and [`ResolvedError::NoAnswer`].
    pub async fn asks_at(&self, interface_index: u32) -> Result<bool, ResolvedError> {
        let index = i32::try_from(interface_index).unwrap_or(i32::MAX);
        let ask = async {
            let path = self.manager.get_link(index).await?;
            let connection = self.manager.inner().connection();
            let link = LinkProxy::builder(connection).path(path).cache_properties(CacheProperties::No).build().await?;
            Ok(link.scopes_mask().await? & SCOPE_DNS != 0)
        };
        in_time(ask).await?.map_err(|source| ResolvedError::Refused { interface_index, source })
    }

    /// Takes back what [`Resolved::set_link`] set.
    ///
    /// # Errors
    /// [`ResolvedError::Refused`] and [`ResolvedError::NoAnswer`].
    pub async fn revert_link(&self, interface_index: u32) -> Result<(), ResolvedError> {
        let index = i32::try_from(interface_index).unwrap_or(i32::MAX);
        let revert = self.manager.revert_link(index);
        in_time(revert).await?.map_err(|source| ResolvedError::Refused { interface_index, source })
    }
}

/// zbus itself waits for ever.
async fn in_time<T>(calls: impl Future<Output = zbus::Result<T>>) -> Result<zbus::Result<T>, ResolvedError> {
    tokio::time::timeout(CALL_TIMEOUT, calls).await.map_err(|_| ResolvedError::NoAnswer)
}
