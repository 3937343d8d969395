//! The network of workloads on this node: their ports, the way out, the host's ports that lead in, and their name server.
//!
//! What one workload needs is made for it; what a VDC needs for all of them (way out, name server) is made with its first
//! one, so that a host without workloads forwards nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meshd_dns::{Audience, Forwarder, NameServer, STUB};
use meshd_firewall::{EgressPort, Firewall, PublishedPort, compile_host};
use meshd_tun::{
    EgressConfig, GATEWAY_V4, NetworkConfig, VdcNetwork, WorkloadPort, egress_interface, ensure_egress,
    ensure_workload_port, list_workload_ports, remove_egress, remove_workload_port,
};
use vdc::{Name, VdcId};
use vdc_api::{ApiError, ErrorCode};
use workloads_container::WorkloadId;

use super::addresses::{Addresses, Held};
use super::kept::Kept;
use super::spec::{Publish, Spec};
use crate::dns_hub::DnsHub;
use crate::error::{system, with_causes};
use crate::vdc_core::{CoreHandle, CoreWorkload};
use crate::views::TOP_DOMAIN;

/// Offsets that are written down ahead, so that most workloads cost no write.
const OFFSETS_AHEAD: u32 = 256;
/// How often the host's links and resolvers are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(5);
/// Where the host's resolvers are listed: systemd-resolved's list of the real ones first.
const RESOLVERS: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
/// Name servers of the host that are asked.
const UPSTREAMS_MAX: usize = 3;
/// Marks of VDCs' ways out on the host begin here; they are numbers of routing tables as well, of which the lower ones are
/// likely to be somebody else's.
const MARK_BASE: u32 = 0x6d00_0000;
/// The host's own network namespace.
const HOST_NAMESPACE: &str = "/proc/self/ns/net";

/// One VDC as its workloads need it.
#[derive(Clone, Debug)]
pub(crate) struct VdcFacts {
    pub(crate) vdc: VdcId,
    /// The VDC's local name.
    pub(crate) alias: Name,
    /// `NODE.SITE` of this node.
    pub(crate) node: Name,
    pub(crate) site: Name,
    pub(crate) network: Arc<VdcNetwork>,
    pub(crate) config: NetworkConfig,
    pub(crate) core: CoreHandle,
}

impl VdcFacts {
    /// The DNS name of a workload.
    pub(crate) fn fqdn(&self, workload: &Name) -> String {
        format!("{workload}.{}.{}.{TOP_DOMAIN}", self.site, self.alias)
    }

    /// All addresses of a workload, IPv6 first.
    pub(crate) fn addresses(&self, held: &Held) -> Vec<IpAddr> {
        let v6 = self.config.prefix.address(held.offset);
        std::iter::once(IpAddr::V6(v6)).chain(held.ipv4.map(IpAddr::V4)).collect()
    }

    /// What `/etc/resolv.conf` of a workload says.
    pub(crate) fn resolv_conf(&self) -> String {
        let domain = format!("{}.{TOP_DOMAIN}", self.alias);
        format!("nameserver {GATEWAY_V4}\nsearch {}.{domain} {domain}\n", self.site)
    }

    /// What `/etc/hosts` of a workload says.
    pub(crate) fn hosts(&self, held: &Held, hostname: &str, name: Option<&Name>) -> String {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
        for address in self.addresses(held) {
            match name {
                Some(name) => text.push_str(&format!("{address} {} {hostname}\n", self.fqdn(name))),
                None => text.push_str(&format!("{address} {hostname}\n")),
            }
        }
        text
    }

    fn mark(&self) -> u32 {
        let [a, b, c, ..] = self.vdc.0;
        MARK_BASE | u32::from_be_bytes([0, a, b, c])
    }

    fn egress_port(&self) -> EgressPort {
        EgressPort {
            interface: egress_interface(&self.config.name, &self.vdc),
            mark: self.mark(),
            prefix: self.config.prefix,
            ipv4: self.config.ipv4,
        }
    }
}

/// A network that waits for its workload: making one takes longer than most programs need to start.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) id: WorkloadId,
    pub(crate) held: Held,
    netns: PathBuf,
}

/// What the network knows of a workload that runs or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) vdc: VdcId,
    pub(crate) held: Held,
    pub(crate) name: Option<Name>,
    pub(crate) ports: Vec<vdc::record::PortRange>,
    pub(crate) publish: Vec<Publish>,
    pub(crate) labels: Vec<Name>,
}

impl Member {
    pub(crate) fn new(vdc: VdcId, kept: &Kept, spec: &Spec) -> Self {
        Self {
            vdc,
            held: kept.held(),
            name: spec.name.clone(),
            ports: spec.ports.clone(),
            publish: spec.publish.clone(),
            labels: spec.labels.clone(),
        }
    }

    /// Whether others must be told of it.
    fn is_known(&self) -> bool {
        self.name.is_some() || !self.ports.is_empty() || !self.publish.is_empty() || !self.labels.is_empty()
    }
}

#[derive(Debug)]
struct Vdc {
    facts: VdcFacts,
    addresses: Addresses,
    /// Offsets below are written down as used.
    reserved: u32,
    /// The host's links that its way out was made for; none before there is one.
    led_out: Option<Vec<String>>,
    names: Option<NameServer>,
}

#[derive(Debug, Default)]
struct Inner {
    vdcs: BTreeMap<VdcId, Vdc>,
    members: BTreeMap<WorkloadId, Member>,
    /// At most one for each VDC.
    spares: BTreeMap<VdcId, Spare>,
    /// Networks that were made ahead for workloads which begin now.
    ready: BTreeMap<WorkloadId, PathBuf>,
}

/// The network of all workloads of this box.
#[derive(Debug)]
pub(crate) struct Networks {
    directory: PathBuf,
    dns: Arc<DnsHub>,
    upstreams: Arc<Forwarder>,
    inner: Mutex<Inner>,
    /// What the host's table was made from; one change at a time.
    host: tokio::sync::Mutex<Option<(Vec<PublishedPort>, Vec<EgressPort>)>>,
    /// One VDC's common parts are made at a time.
    preparing: tokio::sync::Mutex<()>,
    /// One list of workloads is on its way at a time.
    telling: tokio::sync::Mutex<()>,
}

impl Networks {
    /// `directory` keeps which addresses were handed out.
    pub(crate) fn new(directory: PathBuf, dns: Arc<DnsHub>) -> Self {
        let networks = Self {
            directory,
            dns,
            upstreams: Arc::default(),
            inner: Mutex::default(),
            host: tokio::sync::Mutex::default(),
            preparing: tokio::sync::Mutex::default(),
            telling: tokio::sync::Mutex::default(),
        };
        networks.upstreams.set_upstreams(host_resolvers());
        networks
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- VDCs

    /// A VDC is served from now on, perhaps again.
    pub(crate) fn vdc_up(&self, facts: VdcFacts) {
        let mut inner = self.lock();
        let id = facts.vdc;
        if let Some(known) = inner.vdcs.get_mut(&id) {
            known.facts = facts;
            return;
        }
        let next = read_number(&self.offset_file(id)).unwrap_or(0);
        let mut addresses = Addresses::new(facts.config.ipv4, next);
        for member in inner.members.values().filter(|member| member.vdc == id) {
            addresses.hold(&member.held);
        }
        inner.vdcs.insert(id, Vdc { facts, addresses, reserved: next, led_out: None, names: None });
    }

    /// A VDC is left: its way out goes, and its workloads must be gone.
    pub(crate) async fn vdc_down(&self, vdc: VdcId) {
        let spare = self.lock().spares.remove(&vdc);
        if let Some(spare) = spare {
            self.drop_spare(vdc, spare).await;
        }
        let Some(gone) = self.lock().vdcs.remove(&vdc) else { return };
        if let Some(names) = gone.names {
            names.shutdown().await;
        }
        let (name, mark) = (gone.facts.config.name.clone(), gone.facts.mark());
        let removed = tokio::task::spawn_blocking(move || remove_egress(&name, &vdc, mark)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "a VDC's way out was not removed");
        }
        if let Err(error) = self.load_host_table().await {
            tracing::warn!(%error, "the host's table still knows a VDC that was left");
        }
        if let Err(error) = fs::remove_file(self.offset_file(vdc)) {
            tracing::debug!(%error, "no addresses of the VDC were noted");
        }
    }

    pub(crate) fn facts(&self, vdc: VdcId) -> Result<VdcFacts, ApiError> {
        let inner = self.lock();
        inner.vdcs.get(&vdc).map(|vdc| vdc.facts.clone()).ok_or_else(|| {
            ApiError::new(ErrorCode::Unavailable, "the workload's VDC is not served at present")
                .hint("`meshctl status` says why")
        })
    }

    fn offset_file(&self, vdc: VdcId) -> PathBuf {
        self.directory.join(format!("offset-{vdc}"))
    }

    // ---- addresses

    /// Addresses for a new workload.
    pub(crate) fn take(&self, vdc: VdcId) -> Result<Held, ApiError> {
        let mut inner = self.lock();
        let file = self.offset_file(vdc);
        let known = inner.vdcs.get_mut(&vdc);
        let known = known.ok_or_else(|| ApiError::new(ErrorCode::Unavailable, "the VDC is not served at present"))?;
        let held = known.addresses.take(Instant::now());
        let next = known.addresses.next();
        if next > known.reserved || next < held.offset {
            let ahead = next.saturating_add(OFFSETS_AHEAD);
            if let Err(error) = meshd_state::write_durably(&file, ahead.to_string().as_bytes()) {
                known.addresses.release(&held, Instant::now());
                return Err(crate::error::storage(&error));
            }
            known.reserved = ahead;
        }
        Ok(held)
    }

    /// Gives the addresses of a workload that never came about back.
    pub(crate) fn give_back(&self, vdc: VdcId, held: &Held) {
        if let Some(vdc) = self.lock().vdcs.get_mut(&vdc) {
            vdc.addresses.release(held, Instant::now());
        }
    }

    // ---- workloads

    /// Makes or adopts a workload's namespace with its port; returns where it is pinned.
    pub(crate) async fn connect(&self, id: WorkloadId, vdc: VdcId, held: Held) -> Result<PathBuf, ApiError> {
        if let Some(netns) = self.lock().ready.remove(&id) {
            return Ok(netns);
        }
        self.prepare(vdc).await?;
        let facts = self.facts(vdc)?;
        let port = WorkloadPort {
            id: id.0,
            interface: WorkloadPort::interface_of(&id.0),
            v6: facts.config.prefix.address(held.offset),
            v4: held.ipv4.or(held.link_local),
            mtu_bytes: facts.config.mtu_bytes,
        };
        let work = move || ensure_workload_port(facts.network.netns(), &port).map(|made| made.path().to_owned());
        blocking(work).await?.map_err(|error| network_error("the workload's network was not set up", &error))
    }

    /// A network for a new workload that was made ahead, if there is one.
    pub(crate) fn take_spare(&self, vdc: VdcId) -> Option<Spare> {
        let mut inner = self.lock();
        let spare = inner.spares.remove(&vdc)?;
        inner.ready.insert(spare.id, spare.netns.clone());
        Some(spare)
    }

    /// Makes a network ahead, for the next workload of the VDC.
    pub(crate) async fn make_spare(&self, vdc: VdcId, id: WorkloadId) {
        if self.lock().spares.contains_key(&vdc) {
            return;
        }
        let Ok(held) = self.take(vdc) else { return };
        let spare = match self.connect(id, vdc, held).await {
            Ok(netns) => Spare { id, held, netns },
            Err(error) => {
                tracing::debug!(%error, "no network was made ahead");
                return self.give_back(vdc, &held);
            }
        };
        let surplus = {
            let mut inner = self.lock();
            if inner.vdcs.contains_key(&vdc) { inner.spares.insert(vdc, spare) } else { Some(spare) }
        };
        if let Some(surplus) = surplus {
            self.drop_spare(vdc, surplus).await;
        }
    }

    async fn drop_spare(&self, vdc: VdcId, spare: Spare) {
        if let Err(error) = self.disconnect(spare.id).await {
            tracing::warn!(%error, "a network that was made ahead is left");
        }
        self.give_back(vdc, &spare.held);
    }

    /// Takes the networks away that were made ahead.
    pub(crate) async fn drop_spares(&self) {
        let spares = std::mem::take(&mut self.lock().spares);
        for (vdc, spare) in spares {
            self.drop_spare(vdc, spare).await;
        }
    }

    /// Takes a workload's namespace away.
    pub(crate) async fn disconnect(&self, id: WorkloadId) -> Result<(), ApiError> {
        let removed = blocking(move || remove_workload_port(&id.0)).await?;
        removed.map_err(|error| network_error("the workload's network was not taken away", &error))
    }

    /// Lets the VDC and the host know of a workload, and waits until packets find it.
    pub(crate) async fn announce(&self, id: WorkloadId, member: Member) -> Result<(), ApiError> {
        let (vdc, known, publishes) = (member.vdc, member.is_known(), !member.publish.is_empty());
        let before = self.lock().members.insert(id, member.clone());
        if !known {
            return Ok(());
        }
        if before.as_ref() != Some(&member) {
            self.tell_core(vdc).await?;
        }
        if publishes { self.load_host_table().await } else { Ok(()) }
    }

    /// Notes a workload that was found running: it stays known while its life is being taken up.
    pub(crate) fn expect(&self, id: WorkloadId, member: Member) {
        self.lock().members.insert(id, member);
    }

    /// Notes a workload that holds addresses and is not announced, or takes it off the list.
    pub(crate) async fn withdraw(&self, id: WorkloadId) {
        let Some(member) = self.lock().members.remove(&id) else { return };
        if !member.is_known() {
            return;
        }
        if let Err(error) = self.tell_core(member.vdc).await {
            tracing::debug!(%error, "a workload was not withdrawn from its VDC, which is down");
        }
        if !member.publish.is_empty()
            && let Err(error) = self.load_host_table().await
        {
            tracing::warn!(%error, "published ports were not withdrawn");
        }
    }

    /// Notes the addresses of a workload from before a restart.
    pub(crate) fn hold(&self, vdc: VdcId, held: &Held) {
        if let Some(vdc) = self.lock().vdcs.get_mut(&vdc) {
            vdc.addresses.hold(held);
        }
    }

    /// Tells a VDC's task which workloads there are, once more.
    pub(crate) async fn tell_core(&self, vdc: VdcId) -> Result<(), ApiError> {
        let facts = self.facts(vdc)?;
        // A list must not overtake a newer one.
        let telling = self.telling.lock().await;
        let workloads: Vec<CoreWorkload> = {
            let inner = self.lock();
            let members = inner.members.values().filter(|member| member.vdc == vdc && member.is_known());
            members
                .map(|member| CoreWorkload {
                    name: member.name.clone(),
                    v6: facts.config.prefix.address(member.held.offset),
                    v4: member.held.ipv4,
                    ports: member.ports.clone(),
                    labels: member.labels.clone(),
                    published: member.publish.iter().map(Publish::range).collect(),
                })
                .collect()
        };
        let known = facts.core.set_workloads(workloads).await?;
        drop(telling);
        known.loaded().await
    }

    /// Workloads that have a namespace here, known or not.
    pub(crate) async fn present(&self) -> BTreeSet<WorkloadId> {
        match blocking(list_workload_ports).await {
            Ok(Ok(found)) => found.into_iter().map(WorkloadId).collect(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the namespaces of workloads cannot be listed");
                BTreeSet::new()
            }
            Err(_) => BTreeSet::new(),
        }
    }

    // ---- what a VDC's workloads have in common

    /// Makes the way out and the name server of a VDC, once.
    async fn prepare(&self, vdc: VdcId) -> Result<(), ApiError> {
        if self.lock().vdcs.get(&vdc).is_some_and(|vdc| vdc.led_out.is_some() && vdc.names.is_some()) {
            return Ok(());
        }
        let _one = self.preparing.lock().await;
        self.lead_out(vdc).await?;
        if self.lock().vdcs.get(&vdc).is_some_and(|vdc| vdc.names.is_none()) {
            let names = self.serve_names(vdc).await?;
            if let Some(vdc) = self.lock().vdcs.get_mut(&vdc) {
                vdc.names = Some(names);
            }
        }
        Ok(())
    }

    /// Makes the way out, or adapts it to the links that the host has now.
    async fn lead_out(&self, vdc: VdcId) -> Result<(), ApiError> {
        let links = world_links();
        if self.lock().vdcs.get(&vdc).is_some_and(|vdc| vdc.led_out.as_ref() == Some(&links)) {
            return Ok(());
        }
        let facts = self.facts(vdc)?;
        let egress = EgressConfig { mark: facts.mark(), links: links.clone() };
        let made = blocking(move || ensure_egress(&facts.network, &facts.config, &egress)).await?;
        made.map_err(|error| network_error("the way out of the VDC was not set up", &error))?;
        if let Some(vdc) = self.lock().vdcs.get_mut(&vdc) {
            vdc.led_out = Some(links);
        }
        self.load_host_table().await
    }

    async fn serve_names(&self, vdc: VdcId) -> Result<NameServer, ApiError> {
        let facts = self.facts(vdc)?;
        let address = SocketAddr::new(IpAddr::V4(GATEWAY_V4), 53);
        let zone = format!("{}.{TOP_DOMAIN}", facts.alias);
        let sockets = blocking(move || {
            let netns = facts.network.netns();
            Ok::<_, std::io::Error>((netns.bind_udp(address)?, netns.bind_tcp(address)?))
        });
        let (udp, tcp) = sockets
            .await?
            .map_err(|error| system(format!("workloads' names cannot be answered at {address}"), &error))?;
        let audience = Audience::Workloads { zone, upstreams: Arc::clone(&self.upstreams) };
        let mut server = NameServer::new(self.dns.zones(), audience);
        server.serve_on(udp, tcp).map_err(|error| system("workloads' names cannot be answered", &error))?;
        Ok(server)
    }

    /// Loads the host's table if it would be another one than before.
    async fn load_host_table(&self) -> Result<(), ApiError> {
        let mut loaded = self.host.lock().await;
        let (publish, egress) = {
            let inner = self.lock();
            let out = inner.vdcs.values().filter(|vdc| vdc.led_out.is_some());
            let egress: Vec<EgressPort> = out.map(|vdc| vdc.facts.egress_port()).collect();
            let mut publish = vec![];
            for member in inner.members.values() {
                let Some(vdc) = inner.vdcs.get(&member.vdc) else { continue };
                publish.extend(member.publish.iter().map(|port| PublishedPort {
                    host: port.host,
                    host_port: port.host_port,
                    protocol: port.protocol,
                    v6: vdc.facts.config.prefix.address(member.held.offset),
                    v4: member.held.ipv4,
                    port: port.port,
                    mark: vdc.facts.mark(),
                }));
            }
            (publish, egress)
        };
        if loaded.as_ref().is_some_and(|(ports, ways)| *ports == publish && *ways == egress) {
            return Ok(());
        }
        let table = compile_host(&publish, &egress);
        let done = blocking(move || Firewall::new(Path::new(HOST_NAMESPACE)).load(&table)).await?;
        done.map_err(|error| system("the host's table for workloads was not loaded", &error))?;
        *loaded = Some((publish, egress));
        Ok(())
    }

    /// Follows the host's links and resolvers.
    pub(crate) async fn look(&self) {
        self.upstreams.set_upstreams(host_resolvers());
        let led_out: Vec<VdcId> = {
            let inner = self.lock();
            inner.vdcs.iter().filter(|(_, vdc)| vdc.led_out.is_some()).map(|(id, _)| *id).collect()
        };
        for vdc in led_out {
            if let Err(error) = self.lead_out(vdc).await {
                tracing::warn!(%error, "workloads' way out does not follow the host's links");
            }
        }
    }
}

/// Runs what blocks.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a task of the daemon failed: {error}")))
}

fn network_error(what: &str, error: &meshd_tun::NetworkError) -> ApiError {
    let api =
        with_causes(ApiError::new(ErrorCode::System, format!("{what}: {error}")), std::error::Error::source(error));
    match error.hint() {
        Some(hint) => api.hint(hint),
        None => api,
    }
}

fn read_number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The host's name servers. The box's own stub is none: it would answer for other VDCs as well.
fn host_resolvers() -> Vec<SocketAddr> {
    let text = RESOLVERS.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    parse_resolvers(&text)
}

fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    servers.filter(|ip| *ip != STUB.ip()).take(UPSTREAMS_MAX).map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// The links that the host's default routes leave by, in order.
fn world_links() -> Vec<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    parse_links(&v4, &v6)
}

fn parse_links(v4: &str, v6: &str) -> Vec<String> {
    // proc(5): destination and mask in columns 2 and 8; in IPv6's table prefix and length are columns 1 and 2, the link last.
    let of_v4 = v4.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000")).then(|| columns[0])
    });
    let of_v6 = v6.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_default = columns.first().is_some_and(|prefix| prefix.bytes().all(|b| b == b'0'));
        (is_default && columns.get(1) == Some(&"00")).then(|| columns.last().copied()).flatten()
    });
    let links: BTreeSet<&str> = of_v4.chain(of_v6).filter(|link| *link != "lo").collect();
    links.into_iter().map(str::to_owned).collect()
}

/// The addresses of a workload as texts.
pub(crate) fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_the_own_stub_is_not_asked() {
        let text = "# made\nsearch a\nnameserver 127.0.0.77\nnameserver 192.0.2.1\n nameserver fe80::1\noptions x\nnameserver\n";
        let expected: Vec<SocketAddr> = ["192.0.2.1:53", "[fe80::1]:53"].map(|t| t.parse().expect("valid")).into();
        assert_eq!(parse_resolvers(text), expected);
    }

    #[test]
    fn links_to_the_world_are_those_of_default_routes() {
        let v4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  eth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\n\
                  mesh-a 0000400A 00000000 0001 0 0 0 0000FFFF 0 0 0\n";
        let v6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  fe800000000000000000000000000001 00000400 00000001 00000000 00000003 wlan0\n\
                  fd000000000000000000000000000000 30 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000400 00000001 00000000 00000001 mesh-a\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n";
        assert_eq!(parse_links(v4, v6), ["eth0", "wlan0"]);
    }
}
