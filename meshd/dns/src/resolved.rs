//! Split DNS through systemd-resolved's D-Bus interface (org.freedesktop.resolve1(5)).

use std::net::IpAddr;

use zbus::Connection;
use zbus::proxy;

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
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, interface_index: i32, mode: &str) -> zbus::Result<()>;
    fn revert_link(&self, interface_index: i32) -> zbus::Result<()>;
}

/// Why systemd-resolved could not be told.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    #[error("systemd-resolved is not reachable over D-Bus")]
    NotRunning(#[source] zbus::Error),
    #[error("systemd-resolved refused the DNS settings of interface {interface_index}")]
    Refused {
        interface_index: u32,
        #[source]
        source: zbus::Error,
    },
}

/// A connection to systemd-resolved.
#[derive(Clone, Debug)]
pub struct Resolved {
    manager: ManagerProxy<'static>,
}

impl Resolved {
    /// Connects to the system bus and checks that systemd-resolved answers there.
    ///
    /// # Errors
    /// [`ResolvedError::NotRunning`] on a box without D-Bus or without systemd-resolved: use the stub address there.
    pub async fn connect() -> Result<Self, ResolvedError> {
        let connection = Connection::system().await.map_err(ResolvedError::NotRunning)?;
        let bus = zbus::fdo::DBusProxy::new(&connection).await.map_err(ResolvedError::NotRunning)?;
        let name = "org.freedesktop.resolve1".try_into().expect("a literal bus name");
        bus.get_name_owner(name).await.map_err(|error| ResolvedError::NotRunning(error.into()))?;
        let manager = ManagerProxy::new(&connection).await.map_err(ResolvedError::NotRunning)?;
        Ok(Self { manager })
    }

    /// Sends questions about `zones` (and nothing else) from this host to `servers` through one interface. Idempotent.
    ///
    /// # Errors
    /// [`ResolvedError::Refused`].
    pub async fn set_link(
        &self,
        interface_index: u32,
        servers: &[IpAddr],
        zones: &[&str],
    ) -> Result<(), ResolvedError> {
        let index = i32::try_from(interface_index).unwrap_or(i32::MAX);
        let refused = |source| ResolvedError::Refused { interface_index, source };
        let addresses: Vec<(i32, Vec<u8>)> = servers
            .iter()
            .map(|address| match address {
                IpAddr::V4(v4) => (2, v4.octets().to_vec()),  // AF_INET
                IpAddr::V6(v6) => (10, v6.octets().to_vec()), // AF_INET6
            })
            .collect();
        // `true`: a routing-only domain, which is not appended to single-label names.
        let domains: Vec<(&str, bool)> = zones.iter().map(|zone| (*zone, true)).collect();
        self.manager.set_link_dns(index, &addresses).await.map_err(refused)?;
        self.manager.set_link_domains(index, &domains).await.map_err(refused)?;
        self.manager.set_link_default_route(index, false).await.map_err(refused)?;
        self.manager.set_link_dnssec(index, "no").await.map_err(refused)?;
        self.manager.set_link_llmnr(index, "no").await.map_err(refused)
    }

    /// Takes back what [`Resolved::set_link`] set.
    ///
    /// # Errors
    /// [`ResolvedError::Refused`].
    pub async fn revert_link(&self, interface_index: u32) -> Result<(), ResolvedError> {
        let index = i32::try_from(interface_index).unwrap_or(i32::MAX);
        self.manager.revert_link(index).await.map_err(|source| ResolvedError::Refused { interface_index, source })
    }
}
