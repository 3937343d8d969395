//! The daemon: owns the VDCs of this box and stands behind the API.

mod attach;
mod backend;
mod coord_backend;
mod invites;
mod metrics;
mod pinging;
mod remote;
#[cfg(test)]
mod tests;
mod workload_backend;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use meshd_state::{StateDir, VdcDir};
use meshd_web::{Api, Listener, WebConfig};
use tokio::sync::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use vdc::{Name, UnixTime};
use vdc_api::{self as api, ApiError, ErrorCode, Severity};

use crate::clock::system_time;
use crate::config::Config;
use crate::data_plane::Fabric;
use crate::dns_hub::DnsHub;
use crate::entropy::random;
use crate::events::Events;
use crate::tasks::TaskSet;
use crate::vdc_core::{CoreHandle, Shared};
use crate::workloads::Workloads;

/// How long tasks have to end after a signal.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(3);
/// Pause before a VDC that is not served is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// File in the state directory that names the VDC in use.
const IN_USE_FILE: &str = "in-use";
/// VDCs that one box can be in: each has two ports of its own.
const VDCS_MAX: usize = 16;

/// One VDC that is being served.
#[derive(Debug)]
struct Served {
    handle: CoreHandle,
    /// Ends the VDC's tasks.
    tasks: TaskSet,
    /// Stops its packets.
    data: meshd_tun::VdcHandle,
    vdc: vdc::VdcId,
    /// Which ports it has, see [`Daemon::ports`].
    slot: usize,
}

/// One VDC of the state directory that could not be brought up.
#[derive(Debug)]
struct NotServed {
    error: ApiError,
    since: UnixTime,
    tried: Instant,
}

impl NotServed {
    fn view(&self, alias: &Name) -> api::NotServedView {
        let retry = RETRY_PAUSE.saturating_sub(self.tried.elapsed());
        api::NotServedView {
            name: alias.to_string(),
            reason: self.error.message.clone(),
            causes: self.error.causes.clone(),
            hint: self.error.hint.clone(),
            since: self.since.to_string(),
            retry_s: retry.as_secs() + u64::from(retry.subsec_nanos() > 0),
        }
    }

    /// What every operation on it is answered with.
    fn refusal(&self, alias: &Name) -> ApiError {
        let mut error = self.error.clone();
        let reason = std::mem::replace(&mut error.message, format!("VDC {alias} is not served at present"));
        error.causes.insert(0, reason);
        error
    }

    fn problem(&self, alias: &Name) -> api::Problem {
        let reason = std::iter::once(&self.error.message).chain(&self.error.causes).cloned().collect::<Vec<_>>();
        api::Problem {
            code: api::ProblemCode::VdcNotServed,
            severity: api::ProblemSeverity::Degraded,
            message: format!("VDC {alias} is not served: {}", reason.join(": ")),
            hint: self.error.hint.clone(),
            vdc: Some(alias.to_string()),
            since: Some(self.since.to_string()),
        }
    }
}

/// What the API works on.
#[derive(Debug)]
pub(crate) struct Daemon {
    shared: Shared,
    state: StateDir,
    fabric: Fabric,
    pub(crate) workloads: Arc<Workloads>,
    /// What answers this host's users, and other nodes.
    api: OnceLock<Api>,
    started: Instant,
    vdcs: RwLock<BTreeMap<Name, Served>>,
    /// Those of the state directory that are not in `vdcs`, with the reason.
    not_served: RwLock<BTreeMap<Name, NotServed>>,
    in_use: Mutex<Option<Name>>,
    /// Only one VDC is created, joined or left at a time.
    membership: Mutex<()>,
    token: CancellationToken,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// If the state directory, the API's socket or the data plane cannot be had.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let state = StateDir::open(&config.state_dir)?;
    let web = WebConfig { socket: config.socket.clone(), ..WebConfig::default() };
    let listener = Listener::bind(web.clone())?;
    let token = CancellationToken::new();
    let fabric = Fabric::start(&config).context("the data plane did not start")?;
    let events = Events::default();
    let shared = Shared {
        config: Arc::clone(&config),
        events: events.clone(),
        dns: Arc::new(DnsHub::new(config.dns.clone())),
        boot_nonce: random(),
    };
    let workloads = Workloads::open(&config, Arc::clone(&shared.dns), events.clone(), token.child_token())
        .await
        .context("containers cannot be looked after")?;
    let in_use = std::fs::read_to_string(config.state_dir.join(IN_USE_FILE)).ok();
    let daemon = Arc::new(Daemon {
        shared,
        state,
        fabric,
        workloads: Arc::clone(&workloads),
        api: OnceLock::new(),
        started: Instant::now(),
        vdcs: RwLock::default(),
        not_served: RwLock::default(),
        in_use: Mutex::new(in_use.and_then(|text| Name::new(text.trim()).ok())),
        membership: Mutex::new(()),
        token: token.clone(),
    });
    let mut tasks = TaskSet::new(token.clone());
    let names = Arc::clone(&daemon.shared.dns);
    tasks.spawn("names", async move { names.run().await });
    tasks.spawn_draining("workloads", workloads.keep());
    let api = Api::new(&web, Arc::new(backend::Operations(Arc::clone(&daemon))), &token);
    let api = daemon.api.get_or_init(|| api).clone();
    daemon.serve_all().await?;
    tasks.spawn_draining("api", async move {
        if let Err(error) = api.listen(listener).await {
            tracing::error!(%error, "the API is not served");
        }
    });
    let watched = Arc::clone(&daemon);
    tasks.spawn("supervisor", async move { watched.supervise().await });
    events.push(Severity::Info, "started", None, None, format!("meshd {} started", env!("CARGO_PKG_VERSION")));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]); // nothing listens outside systemd
    tokio::select! {
        () = crate::signals::stop() => tracing::info!("stopping"),
        ended = tasks.next_ended() => tracing::error!(?ended, "a part of the daemon ended; stopping"),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    token.cancel();
    for (_, served) in std::mem::take(&mut *daemon.vdcs.write().await) {
        served.handle.control().shutdown();
        served.tasks.shutdown(SHUTDOWN_DEADLINE).await;
    }
    tasks.shutdown(SHUTDOWN_DEADLINE).await;
    daemon.fabric.shutdown();
    Ok(())
}

impl Daemon {
    /// Starts every VDC of the state directory. One that does not start is reported and retried by the supervisor.
    async fn serve_all(&self) -> anyhow::Result<()> {
        for dir in self.state.vdcs()? {
            self.try_serve(dir).await;
        }
        Ok(())
    }

    /// Brings a VDC of the state directory up, or notes why it cannot be; the log and the events tell each reason once.
    async fn try_serve(&self, dir: VdcDir) {
        let alias = dir.alias().clone();
        let Err(error) = self.serve(dir).await else {
            self.not_served.write().await.remove(&alias);
            return;
        };
        let mut not_served = self.not_served.write().await;
        let known = not_served.get(&alias);
        let (is_new, since) = (known.is_none_or(|n| n.error != error), known.map_or_else(system_time, |n| n.since));
        let failed = NotServed { error, since, tried: Instant::now() };
        if is_new {
            let text = failed.problem(&alias).message;
            self.shared.events.push(Severity::Error, "vdc-not-served", Some(alias.as_str()), None, text);
        }
        not_served.insert(alias, failed);
    }

    /// Restarts what ended by itself: a panic in one VDC's task costs that task, not its tunnels.
    async fn supervise(&self) {
        let mut pause = tokio::time::interval(RETRY_PAUSE);
        loop {
            pause.tick().await;
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            let ended: Vec<Name> = {
                let vdcs = self.vdcs.read().await;
                vdcs.iter().filter(|(_, served)| served.handle.is_closed()).map(|(alias, _)| alias.clone()).collect()
            };
            let Ok(_guard) = self.membership.try_lock() else { continue };
            for alias in ended {
                if let Some(served) = self.vdcs.write().await.remove(&alias) {
                    self.shared.events.push(
                        Severity::Error,
                        "vdc-restarting",
                        Some(alias.as_str()),
                        None,
                        "the VDC's task ended unexpectedly and is being started again",
                    );
                    served.handle.control().shutdown();
                    served.tasks.shutdown(SHUTDOWN_DEADLINE).await;
                    attach::detach(&served.data).await;
                    let error = ApiError::new(ErrorCode::Unavailable, "its task ended unexpectedly")
                        .hint("it is started again at once; if it stays so, look at the log: `journalctl -u meshd`");
                    let failed = NotServed { error, since: system_time(), tried: Instant::now() };
                    self.not_served.write().await.insert(alias, failed);
                }
            }
            let Ok(dirs) = self.state.vdcs() else { continue };
            self.not_served.write().await.retain(|alias, _| dirs.iter().any(|dir| dir.alias() == alias));
            for dir in dirs {
                if !self.vdcs.read().await.contains_key(dir.alias()) {
                    self.try_serve(dir).await;
                }
            }
        }
    }

    /// The VDC on disk that a request means, if it is not served.
    async fn find_not_served(&self, text: &str) -> Option<Name> {
        let not_served = self.not_served.read().await;
        if text != api::DEFAULT_VDC {
            return Name::new(text).ok().filter(|alias| not_served.contains_key(alias));
        }
        let in_use = self.in_use.lock().await.clone();
        let only = || match (self.vdcs.try_read().is_ok_and(|vdcs| vdcs.is_empty()), not_served.len()) {
            (true, 1) => not_served.keys().next().cloned(),
            _ => None,
        };
        in_use.filter(|alias| not_served.contains_key(alias)).or_else(only)
    }

    /// The VDC that a request means.
    async fn find(&self, text: &str) -> Result<CoreHandle, ApiError> {
        // First: what is meant for the VDC in use must not happen in another one because that is down.
        if let Some(alias) = self.find_not_served(text).await
            && let Some(failed) = self.not_served.read().await.get(&alias)
        {
            return Err(failed.refusal(&alias));
        }
        self.find_served(text).await
    }

    async fn find_served(&self, text: &str) -> Result<CoreHandle, ApiError> {
        let vdcs = self.vdcs.read().await;
        if text == api::DEFAULT_VDC {
            let in_use = self.in_use.lock().await;
            if let Some(served) = in_use.as_ref().and_then(|alias| vdcs.get(alias)) {
                return Ok(served.handle.clone());
            }
            let mut all = vdcs.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(only.handle.clone()),
                (None, _) => Err(ApiError::new(ErrorCode::NoVdc, "this node is in no VDC").hint(
                    "create one with `meshctl vdc create NAME --site SITE`, or join one with `meshctl join TOKEN`",
                )),
                (Some(_), Some(_)) => {
                    let names: Vec<&str> = vdcs.keys().map(Name::as_str).collect();
                    Err(ApiError::new(
                        ErrorCode::AmbiguousVdc,
                        format!("this node is in several VDCs: {}", names.join(", ")),
                    )
                    .hint("name one with --vdc NAME, or choose one with `meshctl vdc use NAME`"))
                }
            };
        }
        if let Some(served) = Name::new(text).ok().and_then(|alias| vdcs.get(&alias)) {
            return Ok(served.handle.clone());
        }
        Err(ApiError::not_found(format!("this node is in no VDC called {text:?}"))
            .hint("`meshctl vdc list` shows them"))
    }

    async fn handles(&self) -> Vec<CoreHandle> {
        self.vdcs.read().await.values().map(|served| served.handle.clone()).collect()
    }

    /// Ports of the `slot`th VDC: the first has the configured ones, each further one the next two.
    fn ports(&self, slot: usize) -> (u16, u16) {
        let network = &self.shared.config.network;
        let offset = u16::try_from(slot * 10).unwrap_or(0);
        (network.control_port.saturating_add(offset), network.door_port.saturating_add(offset))
    }

    fn vdc_dir(&self, alias: &Name) -> Result<VdcDir, ApiError> {
        let dirs = self.state.vdcs().map_err(|error| crate::error::storage(&error))?;
        let found = dirs.into_iter().find(|dir| dir.alias() == alias);
        found.ok_or_else(|| ApiError::not_found(format!("there is no VDC {alias} in the state directory")))
    }
}
