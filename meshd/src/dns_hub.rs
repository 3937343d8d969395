//! The box's name servers, fed by all its VDCs, and the host's resolver that is kept told of them.
//!
//! VDCs say what their names are ([`DnsHub::set_zone`]), which takes effect at once. What needs sockets or the bus is done
//! by one task ([`DnsHub::run`]): it compares what should be with what is, on every change and, while something failed,
//! again and again.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshd_dns::{Audience, NameServer, Presence, Resolved, Zone, Zones, ZonesHandle};
use tokio::sync::{Notify, watch};
use vdc_api as api;

use crate::config::{Dns, DnsMode};
use crate::vdc_core::chain;
use crate::views::TOP_DOMAIN;

/// Port of name servers.
const PORT: u16 = 53;
/// Pause before a port that was in use, or an interface that systemd-resolved has not heard of yet, is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Pause before the system bus is looked for again on a box without one.
const BUS_RETRY: Duration = Duration::from_secs(5);
/// How often, and how many times, systemd-resolved is asked whether it uses an interface before the pause: for a second.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS_MAX: usize = 50;
/// How long `status` waits for a change that is on its way.
const SETTLE: Duration = Duration::from_secs(2);

/// Answers for all VDCs of this box and keeps the host's resolver told.
#[derive(Debug)]
pub(crate) struct DnsHub {
    config: Dns,
    inner: Mutex<Inner>,
    /// Of all VDCs: what the stub answers.
    zones: ZonesHandle,
    wanted: Notify,
    /// The last [`Inner::generation`] that was looked after.
    done: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// Counts what the task must look at.
    generation: u64,
    entries: BTreeMap<String, Entry>,
    /// Where the stub answers, or why it does not.
    stub: Result<SocketAddr, String>,
    /// Why systemd-resolved cannot be spoken to.
    bus: Option<String>,
}

/// One VDC.
#[derive(Debug)]
struct Entry {
    wanted: Wanted,
    zone: Zone,
    link: Link,
}

/// What the task needs to know of one VDC.
#[derive(Clone, Debug)]
struct Wanted {
    /// Of this VDC alone: what its members' resolvers are led to.
    zones: ZonesHandle,
    /// The domain and the reverse zones.
    names: Vec<String>,
    /// The host's interface and addresses in the VDC.
    interface: Option<(u32, Vec<IpAddr>)>,
}

/// How far systemd-resolved has been told about one VDC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    /// Where it was told to ask.
    servers: Vec<SocketAddr>,
    /// What is missing.
    error: Option<String>,
}

impl DnsHub {
    /// Nothing is answered before [`DnsHub::run`] runs.
    pub(crate) fn new(config: Dns) -> Self {
        let stub = Err("the stub does not answer yet".to_owned());
        let inner = Inner { generation: 1, entries: BTreeMap::new(), stub, bus: None };
        Self {
            config,
            inner: Mutex::new(inner),
            zones: ZonesHandle::default(),
            wanted: Notify::new(),
            done: watch::Sender::new(0),
        }
    }

    /// The zones of all VDCs, as they are at any time.
    pub(crate) fn zones(&self) -> ZonesHandle {
        self.zones.clone()
    }

    /// Replaces what one VDC's names are.
    pub(crate) fn set_zone(&self, alias: &str, zone: Zone, interface: Option<(u32, Vec<IpAddr>)>) {
        let own = Zones::new(BTreeMap::from([(domain(alias), zone.clone())]));
        let names: Vec<String> = own.names().map(str::to_owned).collect();
        let mut inner = self.lock();
        let old = inner.entries.remove(alias);
        let is_same = old.as_ref().is_some_and(|e| e.wanted.names == names && e.wanted.interface == interface);
        let (zones, link) = old.map(|entry| (entry.wanted.zones, entry.link)).unwrap_or_default();
        zones.replace(own);
        let wanted = Wanted { zones, names, interface };
        inner.entries.insert(alias.to_owned(), Entry { wanted, zone, link });
        self.publish(&inner);
        if !is_same {
            self.want(&mut inner);
        }
    }

    /// Forgets a VDC that this box leaves, and waits a little until the host's resolver did so too.
    pub(crate) async fn remove_zone(&self, alias: &str) {
        {
            let mut inner = self.lock();
            if inner.entries.remove(alias).is_none() {
                return;
            }
            self.publish(&inner);
            self.want(&mut inner);
        }
        self.settle().await;
    }

    /// What `status` says.
    pub(crate) async fn view(&self, alias: &str) -> api::DnsView {
        let domain = domain(alias);
        if self.config.mode == DnsMode::Off {
            return api::DnsView { state: api::DnsState::Off, domain, server: None, detail: None };
        }
        self.settle().await;
        let inner = self.lock();
        let link = inner.entries.get(alias).map(|entry| entry.link.clone()).unwrap_or_default();
        let (state, server, problem) = match (link.servers.first(), &inner.stub) {
            (Some(server), _) => (api::DnsState::Resolved, Some(server.to_string()), None),
            (None, Ok(stub)) if self.uses_stub() => (api::DnsState::Stub, Some(stub.to_string()), None),
            (None, Err(error)) if self.uses_stub() => (api::DnsState::Off, None, Some(error.clone())),
            (None, _) => (api::DnsState::Off, None, inner.bus.clone()),
        };
        api::DnsView { state, domain, server, detail: link.error.or(problem) }
    }

    /// Listens and tells systemd-resolved, for as long as it is polled.
    pub(crate) async fn run(&self) {
        if self.config.mode == DnsMode::Off {
            return pending().await;
        }
        let stub = NameServer::new(self.zones.clone(), Audience::Everyone);
        let mut keeper = Keeper { hub: self, stub, vdcs: BTreeMap::new(), bus: None };
        loop {
            let pause = keeper.ensure().await;
            tokio::select! {
                // cancel-safe: a permit that was not taken stays.
                () = self.wanted.notified() => {}
                // cancel-safe: says so.
                () = keeper.resolved_changed() => {}
                () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)) => {}
            }
        }
    }

    fn uses_stub(&self) -> bool {
        matches!(self.config.mode, DnsMode::Auto | DnsMode::Stub)
    }

    fn uses_resolved(&self) -> bool {
        matches!(self.config.mode, DnsMode::Auto | DnsMode::Resolved)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Inner) {
        let zones = inner.entries.iter().map(|(alias, entry)| (domain(alias), entry.zone.clone()));
        self.zones.replace(Zones::new(zones.collect()));
    }

    fn want(&self, inner: &mut Inner) {
        // Workloads are answered all the same; there is nothing else to keep told.
        if self.config.mode == DnsMode::Off {
            return;
        }
        inner.generation += 1;
        self.wanted.notify_one();
    }

    /// Waits until the task has looked after everything that is wanted now, for [`SETTLE`] at most.
    async fn settle(&self) {
        let generation = self.lock().generation;
        let mut done = self.done.subscribe();
        // What is late is told as it stands.
        let _ = tokio::time::timeout(SETTLE, done.wait_for(|done| *done >= generation)).await;
    }
}

/// The domain of a VDC that is called so here.
fn domain(alias: &str) -> String {
    format!("{alias}.{TOP_DOMAIN}")
}

/// Until systemd-resolved has heard of an interface that was made just now: before, the VDC's names would go elsewhere.
async fn wait_until_asked(resolved: &Resolved, interface_index: u32) -> Result<(), String> {
    let mut looks = tokio::time::interval(LOOK);
    for _ in 0..LOOKS_MAX {
        looks.tick().await;
        if resolved.asks_at(interface_index).await.map_err(|error| chain(&error))? {
            return Ok(());
        }
    }
    Err(format!("systemd-resolved does not use interface {interface_index} (yet)"))
}

/// What the task holds.
struct Keeper<'a> {
    hub: &'a DnsHub,
    stub: NameServer,
    vdcs: BTreeMap<String, VdcNames>,
    bus: Option<(Resolved, Presence)>,
}

/// The name server that systemd-resolved is sent to for one VDC.
#[derive(Debug)]
struct VdcNames {
    server: NameServer,
    told: Option<Told>,
}

/// What systemd-resolved was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    interface_index: u32,
    servers: Vec<IpAddr>,
    names: Vec<String>,
}

impl Keeper<'_> {
    /// Brings everything to where it should be. Returns when to try again what failed.
    async fn ensure(&mut self) -> Option<Duration> {
        let (generation, wanted) = {
            let inner = self.hub.lock();
            let all = inner.entries.iter().map(|(alias, entry)| (alias.clone(), entry.wanted.clone()));
            (inner.generation, all.collect::<BTreeMap<String, Wanted>>())
        };
        let mut pauses = vec![self.ensure_stub().await, self.ensure_bus().await];
        let gone: Vec<String> = self.vdcs.keys().filter(|alias| !wanted.contains_key(*alias)).cloned().collect();
        for alias in gone {
            self.forget(&alias).await;
        }
        for (alias, wanted) in wanted {
            pauses.push(self.ensure_link(&alias, wanted).await);
        }
        self.hub.done.send_replace(generation);
        pauses.into_iter().flatten().min()
    }

    async fn ensure_stub(&mut self) -> Option<Duration> {
        if !self.hub.uses_stub() {
            return None;
        }
        let listening = self.stub.listen(self.hub.config.stub).await.map_err(|error| error.to_string());
        let pause = listening.is_err().then_some(RETRY);
        let mut inner = self.hub.lock();
        if let Err(error) = &listening
            && inner.stub != listening
        {
            tracing::warn!(%error, "the DNS stub does not answer");
        }
        inner.stub = listening;
        pause
    }

    /// A box without D-Bus is looked at again now and then: it may be installed, or come up late.
    async fn ensure_bus(&mut self) -> Option<Duration> {
        if !self.hub.uses_resolved() {
            return None;
        }
        let mut error = None;
        if self.bus.is_none() {
            match Resolved::connect().await {
                Ok(bus) => self.bus = Some(bus),
                Err(failed) => error = Some(failed.to_string()),
            }
        }
        let absent = || "systemd-resolved is not on the system bus".to_owned();
        let is_there = self.bus.as_ref().is_some_and(|(_, presence)| presence.is_there());
        let mut inner = self.hub.lock();
        let pause = error.is_some().then_some(BUS_RETRY);
        let problem = error.or_else(|| (!is_there).then(absent));
        match &problem {
            Some(problem) if inner.bus.as_ref() != Some(problem) => {
                tracing::info!(problem, "this host's resolver is not told of names");
            }
            None if self.hub.done.borrow().eq(&0) || inner.bus.is_some() => {
                tracing::info!("systemd-resolved is on the system bus");
            }
            _ => {}
        }
        inner.bus = problem;
        pause
    }

    /// Lets systemd-resolved ask about a VDC's names at the host's own addresses in it.
    async fn ensure_link(&mut self, alias: &str, wanted: Wanted) -> Option<Duration> {
        let (Some(resolved), Some((interface_index, addresses))) = (self.resolved(), wanted.interface) else {
            self.note(alias, Link::default());
            return None;
        };
        let vdc = self
            .vdcs
            .entry(alias.to_owned())
            .or_insert_with(|| VdcNames { server: NameServer::new(wanted.zones, Audience::ThisHost), told: None });
        let mut link = Link::default();
        for address in addresses {
            match vdc.server.listen((address, PORT).into()).await {
                Ok(bound) => link.servers.push(bound),
                Err(error) => link.error = Some(chain(&error)),
            }
        }
        let servers = link.servers.iter().map(SocketAddr::ip).collect();
        let told = Told { interface_index, servers, names: wanted.names };
        if !told.servers.is_empty() && vdc.told.as_ref() != Some(&told) {
            let names: Vec<&str> = told.names.iter().map(String::as_str).collect();
            let outcome = match resolved.set_link(interface_index, &told.servers, &names).await {
                Ok(()) => wait_until_asked(&resolved, interface_index).await,
                Err(error) => Err(chain(&error)),
            };
            vdc.told = outcome.is_ok().then_some(told);
            if let Err(error) = outcome {
                link = Link { servers: vec![], error: Some(error) };
            }
        }
        let pause = link.error.is_some().then_some(RETRY);
        self.note(alias, link);
        pause
    }

    /// Ends the name server of a VDC that was left.
    async fn forget(&mut self, alias: &str) {
        let Some(VdcNames { server, told }) = self.vdcs.remove(alias) else { return };
        if let (Some(resolved), Some(told)) = (self.resolved(), told)
            && let Err(error) = resolved.revert_link(told.interface_index).await
        {
            // The interface goes away with the VDC, and systemd-resolved forgets it then.
            tracing::debug!(%error, "systemd-resolved kept the settings of an interface that is going away");
        }
        server.shutdown().await;
    }

    /// Waits for systemd-resolved, or the bus, to come, go or be replaced: then it knows nothing.
    async fn resolved_changed(&mut self) {
        match &mut self.bus {
            None => pending().await,
            Some((_, presence)) => {
                if presence.changed().await.is_none() {
                    self.bus = None;
                }
                for vdc in self.vdcs.values_mut() {
                    vdc.told = None;
                }
            }
        }
    }

    fn resolved(&self) -> Option<Resolved> {
        self.bus.as_ref().filter(|(_, presence)| presence.is_there()).map(|(resolved, _)| resolved.clone())
    }

    fn note(&self, alias: &str, link: Link) {
        let mut inner = self.hub.lock();
        let Some(entry) = inner.entries.get_mut(alias) else { return };
        if let Some(error) = &link.error
            && entry.link.error != link.error
        {
            tracing::warn!(vdc = alias, %error, "systemd-resolved is not led to all of the VDC's names");
        }
        entry.link = link;
    }
}
