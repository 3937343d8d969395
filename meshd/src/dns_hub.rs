//! The box's one name server, fed by all its VDCs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use meshd_dns::{NameServer, Resolved, Zone, Zones};
use tokio::sync::Mutex;
use vdc_api as api;

use crate::config::{Dns, DnsMode};

/// What the hub knows of one VDC.
#[derive(Clone, Debug, Default)]
struct Entry {
    domain: String,
    zone: Zone,
    /// The host's interface and addresses in the VDC.
    interface: Option<(u32, Vec<IpAddr>)>,
}

/// Answers for all VDCs of this box and keeps the host's resolver told.
#[derive(Debug)]
pub(crate) struct DnsHub {
    config: Dns,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    server: NameServer,
    resolved: Option<Resolved>,
    entries: BTreeMap<String, Entry>,
    detail: Option<String>,
}

impl DnsHub {
    /// Starts the stub, or finds systemd-resolved, as the configuration says. A name server that cannot listen is a
    /// problem to show, not a reason not to start.
    pub(crate) async fn start(config: Dns) -> Self {
        let mut inner = Inner::default();
        if matches!(config.mode, DnsMode::Auto | DnsMode::Resolved) {
            match Resolved::connect().await {
                Ok(resolved) => inner.resolved = Some(resolved),
                Err(error) if config.mode == DnsMode::Resolved => inner.detail = Some(error.to_string()),
                Err(error) => tracing::debug!(%error, "no systemd-resolved here; the stub answers"),
            }
        }
        if inner.resolved.is_none()
            && matches!(config.mode, DnsMode::Auto | DnsMode::Stub)
            && let Err(error) = inner.server.listen(config.stub).await
        {
            tracing::warn!(%error, "the DNS stub does not answer");
            inner.detail = Some(error.to_string());
        }
        Self { config, inner: Mutex::new(inner) }
    }

    /// Replaces what one VDC's names are.
    pub(crate) async fn set_zone(
        &self,
        alias: &str,
        domain: String,
        zone: Zone,
        interface: Option<(u32, Vec<IpAddr>)>,
    ) {
        if self.config.mode == DnsMode::Off {
            return;
        }
        let mut inner = self.inner.lock().await;
        let new_interface = inner.entries.get(alias).is_none_or(|entry| entry.interface != interface);
        inner.entries.insert(alias.to_owned(), Entry { domain: domain.clone(), zone, interface: interface.clone() });
        inner.publish();
        if let (true, Some((index, addresses))) = (new_interface, interface) {
            inner.attach(index, &addresses, &domain).await;
        }
    }

    /// Forgets a VDC that this box left.
    pub(crate) async fn remove_zone(&self, alias: &str) {
        let mut inner = self.inner.lock().await;
        let gone = inner.entries.remove(alias);
        inner.publish();
        if let (Some(resolved), Some(Entry { interface: Some((index, _)), .. })) = (&inner.resolved, gone)
            && let Err(error) = resolved.revert_link(index).await
        {
            // The interface goes away with the VDC, and systemd-resolved forgets it then.
            tracing::debug!(%error, "systemd-resolved kept the settings of an interface that is going away");
        }
    }

    /// What `status` says.
    pub(crate) async fn view(&self, domain: String) -> api::DnsView {
        let inner = self.inner.lock().await;
        let (state, server) = match (&inner.resolved, inner.server.listening().first()) {
            _ if self.config.mode == DnsMode::Off => (api::DnsState::Off, None),
            (Some(_), server) => (api::DnsState::Resolved, server),
            (None, Some(server)) => (api::DnsState::Stub, Some(server)),
            (None, None) => (api::DnsState::Off, None),
        };
        api::DnsView { state, domain, server: server.map(ToString::to_string), detail: inner.detail.clone() }
    }
}

impl Inner {
    fn publish(&self) {
        let zones = self.entries.values().map(|entry| (entry.domain.clone(), entry.zone.clone())).collect();
        self.server.set_zones(Zones::new(zones));
    }

    /// Lets systemd-resolved ask us about the VDC's names, at the host's own address in it.
    async fn attach(&mut self, interface_index: u32, addresses: &[IpAddr], domain: &str) {
        let Some(resolved) = self.resolved.clone() else { return };
        let mut servers = vec![];
        for address in addresses {
            match self.server.listen((*address, 53).into()).await {
                Ok(bound) => servers.push(bound.ip()),
                Err(error) => self.detail = Some(error.to_string()),
            }
        }
        if let Err(error) = resolved.set_link(interface_index, &servers, &[domain]).await {
            tracing::warn!(%error, "systemd-resolved was not told about the VDC's names");
            self.detail = Some(error.to_string());
        }
    }
}
