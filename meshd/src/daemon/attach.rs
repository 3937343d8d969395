//! Bringing one VDC up on this box, and taking it away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use meshd_control::{Control, ControlConfig, HelloSource, ListenError};
use meshd_firewall::Firewall;
use meshd_state::VdcDir;
use meshd_tun::VdcHandle;
use vdc::address::INFRA;
use vdc::peer::Hello;
use vdc::{Key, Name, VdcId};
use vdc_api::{ApiError, ErrorCode};

use super::{Daemon, SHUTDOWN_DEADLINE, Served, VDCS_MAX};
use crate::cache::{PATHS_FILE, Places};
use crate::clock::system_time;
use crate::coord;
use crate::data_plane::{Attached, DataPlane, Network};
use crate::error::system;
use crate::infra;
use crate::infra::groups::GroupLines;
use crate::infra::remote::Guests;
use crate::tasks::TaskSet;
use crate::vdc_core::{self, CoreHandle, Start};
use crate::workloads::VdcFacts;

/// How long a port that was just given up may take to be free.
const PORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the infra plane's address may take to become usable after it was set.
const INFRA_BIND_TIMEOUT: Duration = Duration::from_secs(5);

impl Daemon {
    /// Serves a VDC of the state directory: namespace, tunnels, links, names, and its task.
    pub(super) async fn serve(&self, dir: VdcDir) -> Result<CoreHandle, ApiError> {
        let alias = dir.alias().clone();
        let slot = self.free_slot().await?;
        let loaded = vdc_core::load(&dir)?;
        let view = loaded.roster.view(loaded.clock.now());
        let own = loaded.secrets.node.public();
        let member = view.members.get(&own).ok_or_else(|| {
            ApiError::new(ErrorCode::Storage, format!("this node has no member record in VDC {alias}"))
                .hint("run `meshctl leave --force`, then join with a new invite")
        })?;
        let in_use = self.claim_in_use(&alias).await;
        let paths = dir.read_cache(PATHS_FILE).map(|bytes| Places::decode(PATHS_FILE, &bytes)).unwrap_or_default();
        let (control_port, door_port) = self.ports(slot);
        let network = Network {
            vdc: view.vdc,
            alias: alias.clone(),
            prefix: member.prefix,
            ipv4: member.ipv4,
            ipv4_ranges: view.ipv4.into_iter().collect(),
            host_ipv4: in_use,
            wg_secret: loaded.secrets.wg,
            last_paths: paths.0,
            door_port,
        };
        let Attached { data, events: data_events, addresses, bridge } =
            DataPlane::attach(&self.fabric, network).await?;
        // Closed before anybody can talk: members are told to the tunnels only once the VDC's task runs.
        if let Err(error) = close(data.namespace()).await {
            detach(&data.handle()).await;
            return Err(error);
        }
        let infra_address = SocketAddr::new(member.prefix.address(INFRA).into(), infra::PORT);
        let boot_nonce = self.shared.boot_nonce;
        let hello: HelloSource = Arc::new(move || Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_nonce,
            time: system_time(),
            observed: None,
        });
        let control = start_control(|| ControlConfig {
            port: control_port,
            door_port,
            mdns: self.shared.config.network.mdns,
            seen: loaded.seen.0.clone(),
            ..ControlConfig::new(view.vdc, loaded.secrets.node.seed(), Arc::clone(&hello))
        })
        .await;
        let Control { handle: control, events: control_events, task: control_task } = match control {
            Ok(control) => control,
            Err(error) => {
                detach(&data.handle()).await;
                drop(data);
                DataPlane::remove(&alias, view.vdc).await?;
                return Err(system("the control plane cannot listen", &error)
                    .hint("stop the other program, or change network.control_port in /etc/meshd/meshd.toml"));
            }
        };
        let token = self.token.child_token();
        let mut tasks = TaskSet::new(token.clone());
        tasks.spawn_draining("control", control_task.run());
        tasks.spawn("bridge", bridge.run());
        let infra_members = vdc_core::no_members();
        let infra_operators = vdc_core::no_members();
        let infra_tls = infra::tls(&loaded.secrets.node, Arc::clone(&infra_members));
        let bound = bind_infra(&data, infra_address).await;
        let namespace = data.namespace();
        let (network, network_config) = data.network();
        let (node, site) = (member.name.clone(), member.site_name.clone());
        let (data_handle, vdc_id) = (data.handle(), view.vdc);
        let coordination = dir.coordination();
        let server_tls = infra_tls.clone();
        let members = Arc::clone(&infra_members);
        let guests = self.api.get().map(|api| Guests {
            api: api.clone(),
            vdc: alias.clone(),
            members: Arc::clone(&infra_members),
            operators: Arc::clone(&infra_operators),
            accepts: self.shared.config.remote.accept_operators,
        });
        let start = Start {
            dir,
            shared: self.shared.clone(),
            data,
            data_events,
            control,
            control_events,
            infra_members,
            infra_operators,
            infra_tls,
            namespace,
            in_use,
            addresses,
            loaded,
        };
        let (handle, task) = vdc_core::run(start, token.clone());
        tasks.spawn_draining("vdc", task);
        let settings = self.shared.config.coordination.clone();
        let groups = match coord::start(&mut tasks, &handle, own, coordination, settings) {
            Ok(coord) => {
                handle.set_coord(coord.clone());
                let answer = move |from, frame| -> BoxFuture<'static, Bytes> {
                    let coord = coord.clone();
                    Box::pin(async move { coord.answer(from, frame).await })
                };
                Some(GroupLines::new(members, Arc::new(answer)))
            }
            Err(error) => {
                tracing::error!(vdc = %alias, %error, "coordination groups are not served");
                None
            }
        };
        match bound {
            Ok(listener) => tasks.spawn("infra", infra::serve(listener, server_tls, hello, guests, groups)),
            Err(error) => tracing::error!(vdc = %alias, %error, "the infra plane does not listen"),
        }
        let served = Served { handle: handle.clone(), tasks, data: data_handle, vdc: vdc_id, slot };
        let (name, core) = (alias.clone(), handle.clone());
        let facts = VdcFacts { vdc: vdc_id, alias: name, node, site, network, config: network_config, core };
        self.workloads.vdc_up(facts).await;
        self.vdcs.write().await.insert(alias, served);
        Ok(handle)
    }

    async fn free_slot(&self) -> Result<usize, ApiError> {
        let vdcs = self.vdcs.read().await;
        (0..VDCS_MAX).find(|slot| vdcs.values().all(|served| served.slot != *slot)).ok_or_else(|| {
            ApiError::new(ErrorCode::Conflict, format!("this node is in {VDCS_MAX} VDCs already"))
                .hint("leave one with `meshctl leave --vdc NAME`")
        })
    }

    /// The first VDC of a box is the one in use.
    async fn claim_in_use(&self, alias: &Name) -> bool {
        let mut in_use = self.in_use.lock().await;
        let known = in_use.as_ref().is_some_and(|name| self.state.contains(name));
        if !known {
            *in_use = Some(alias.clone());
        }
        in_use.as_ref() == Some(alias)
    }

    /// Stops serving a VDC and takes its interfaces, namespace and firewall away.
    pub(super) async fn unserve(&self, alias: &Name) -> Result<(), ApiError> {
        let Some(served) = self.vdcs.write().await.remove(alias) else { return Ok(()) };
        self.workloads.vdc_down(served.vdc).await;
        served.handle.control().shutdown();
        served.tasks.shutdown(SHUTDOWN_DEADLINE).await;
        self.shared.dns.remove_zone(alias.as_str()).await;
        detach(&served.data).await;
        DataPlane::remove(alias, served.vdc).await?;
        let mut in_use = self.in_use.lock().await;
        if in_use.as_ref() == Some(alias) {
            *in_use = self.vdcs.read().await.keys().next().cloned();
        }
        Ok(())
    }

    /// Takes away what is left of a VDC that was founded but could not be served. What stays is logged.
    pub(super) async fn discard(&self, alias: &Name, vdc: VdcId) {
        let network = DataPlane::remove(alias, vdc).await;
        let files = self.vdc_dir(alias).and_then(|dir| dir.remove().map_err(|error| crate::error::storage(&error)));
        for error in [network.err(), files.err()].into_iter().flatten() {
            tracing::warn!(vdc = %alias, %error, "something of a VDC that was not founded is left");
        }
    }
}

/// Loads a table that lets nothing through, so that a box on which policy cannot be enforced carries nothing at all. A
/// namespace that is adopted after a restart keeps the table that it has until the task loads the next one.
async fn close(namespace: PathBuf) -> Result<(), ApiError> {
    let work = move || {
        let firewall = Firewall::new(&namespace);
        match firewall.counters() {
            Ok(_) => Ok(()), // there is a table already
            Err(_) => firewall.load(&meshd_firewall::compile(&vdc_core::nothing_allowed(), &Key([0; 32]), &[], 1, &[])),
        }
    };
    let loaded = tokio::task::spawn_blocking(work).await;
    loaded.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?.map_err(|error| {
        system("policy cannot be enforced on this box, so the VDC is not served", &error)
            .hint("install the packages nftables and util-linux; the kernel needs nf_tables and conntrack")
    })
}

/// Starts the control plane. A port that this daemon itself has just given up (a VDC that was left and joined again) takes
/// a moment to be free.
async fn start_control(config: impl Fn() -> ControlConfig) -> Result<Control, ListenError> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    loop {
        match meshd_control::start(config()) {
            Err(ListenError::PortInUse { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            started => return started,
        }
    }
}

/// Stops a VDC's packets. The data plane refuses only when it is overloaded or has stopped by itself.
pub(super) async fn detach(data: &VdcHandle) {
    if let Err(error) = data.remove().await {
        tracing::warn!(%error, "a VDC's packet thread was not stopped");
    }
}

/// Listens on the infra address inside the VDC's namespace. A new address takes a moment to be usable.
async fn bind_infra(data: &DataPlane, address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    let deadline = Instant::now() + INFRA_BIND_TIMEOUT;
    loop {
        match data.bind_tcp(address) {
            Ok(listener) => {
                return tokio::net::TcpListener::from_std(listener);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
