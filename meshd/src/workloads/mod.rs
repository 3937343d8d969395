//! The containers of this box: which there are, what becomes of them, and the images they run.
//!
//! [`Workloads`] knows all of them; each has a [`life`] of its own, a task that does one thing at a time. What blocks
//! (driver, netlink, files) runs on the pool of blocking threads. The daemon may end at any moment: what was decided is
//! [`kept`] before it is done, and what runs is found again by [`Workloads::restore`].

mod addresses;
mod backend;
mod backoff;
mod images;
mod kept;
mod life;
mod logs;
mod network;
mod spec;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vdc::roster::NameHolder;
use vdc::{Name, VdcId};
use vdc_api::{ApiError, ErrorCode, Severity};
use workloads_container::{Adopted, AdoptedState, Driver, DriverConfig, Launcher, RANGE_IDS, RuntimeError, WorkloadId};
use workloads_image::{Image, Images, StoreOptions};

use self::addresses::Held;
use self::kept::{Kept, Made, Shelf};
use self::life::{Begin, Life, Order, Snapshot, State};
use self::network::{Member, Networks, blocking};
use self::spec::{Spec, VolumeSource};
use crate::clock::system_time;
use crate::config::Config;
use crate::dns_hub::DnsHub;
use crate::entropy::random;
use crate::error::{system, with_causes};
use crate::events::Events;
use crate::vdc_core::chain;

pub(crate) use self::network::VdcFacts;

/// Orders to one workload that may wait.
const ORDERS_MAX: usize = 16;
/// Workloads of one box.
const WORKLOADS_MAX: usize = 4_096;
/// First id of the host that workloads' ids are mapped to; `/etc/subuid` names lower ones.
const UID_BASE: u32 = 1 << 30;
/// Ranges of ids that fit above it, below the kernel's last id.
const UID_RANGES: u32 = 16_383;
/// How long after a start the next one's network is made.
const SPARE_PAUSE: Duration = Duration::from_millis(20);
/// Before a task that failed is begun anew.
const REVIVAL_PAUSE: Duration = Duration::from_secs(1);
/// How long a new workload waits for those that are on the way out.
const VANISH_TIME: Duration = Duration::from_secs(10);
/// Digits of an id that stand for a name.
const SHORT_ID: usize = 12;
/// Where the parent of a container is installed, unless it lies beside the daemon.
const SHIM_PATHS: [&str; 2] = ["/usr/libexec/meshd/meshd-shim", "/usr/local/libexec/meshd/meshd-shim"];

/// One workload as others reach it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) id: WorkloadId,
    pub(crate) vdc: VdcId,
    pub(crate) spec: Arc<Spec>,
    pub(crate) manifest: String,
    pub(crate) created_at: String,
    pub(crate) held: Held,
    uid_base: u32,
    orders: mpsc::Sender<Order>,
    pub(crate) status: watch::Receiver<Snapshot>,
}

impl Handle {
    /// Its name, or the first digits of its id.
    pub(crate) fn name(&self) -> String {
        self.spec.name.as_ref().map_or_else(|| self.id.to_string()[..SHORT_ID].to_owned(), ToString::to_string)
    }

    /// Gives an order and waits until it is done, for as long as a request may take.
    pub(crate) async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), ApiError>>) -> Order,
        limit: Duration,
    ) -> Result<(), ApiError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ApiError::not_found(format!("the workload {} is gone", self.name()));
        self.orders.send(order(reply)).await.map_err(|_| gone())?;
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|_| gone())?,
            Err(_) => Ok(()), // it goes on; the view says where it is
        }
    }
}

#[derive(Debug, Default)]
struct Registry {
    handles: BTreeMap<WorkloadId, Handle>,
    /// Workloads that have ended and whose traces are being removed: nobody sees them any more.
    vanishing: BTreeMap<WorkloadId, Handle>,
    /// Names of workloads that are being made.
    reserved: BTreeSet<(VdcId, Name)>,
    /// Ranges of ids of workloads that are being made.
    ranges: BTreeSet<u32>,
    /// VDCs whose workloads were brought back already.
    restored: BTreeSet<VdcId>,
}

/// The workloads of this box.
#[derive(Debug)]
pub(crate) struct Workloads {
    pub(crate) driver: Arc<Driver>,
    pub(crate) images: Images,
    pub(crate) networks: Networks,
    shelf: Shelf,
    volumes: PathBuf,
    events: Events,
    registry: Mutex<Registry>,
    /// What was found at the start and not yet given to a life.
    found: Mutex<BTreeMap<WorkloadId, (Option<Adopted>, Kept)>>,
    /// Told when a workload has vanished.
    vanished: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A name that is being given; free again when dropped.
struct Reservation<'a> {
    workloads: &'a Workloads,
    name: (VdcId, Name),
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.workloads.lock().reserved.remove(&self.name);
    }
}

/// A workload that is being started.
pub(crate) struct Making {
    pub(crate) handle: Handle,
    pub(crate) started: oneshot::Receiver<Result<(), ApiError>>,
}

impl Workloads {
    /// Looks at the host, and finds what runs.
    ///
    /// # Errors
    /// If the directories or the store of images cannot be had.
    pub(crate) async fn open(
        config: &Config,
        dns: Arc<DnsHub>,
        events: Events,
        stop: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let (state, run) = (config.state_dir.clone(), run_directory(config));
        let launcher = launcher(config);
        let parent = config.workloads.cgroup.clone();
        let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let driver = Driver::open(DriverConfig {
                run_directory: run.join("w"),
                state_directory: state.join("containers"),
                cgroup_parent: format!("{parent}/w"),
                shim_cgroup: Some(format!("{parent}/shims")),
                launcher,
            })?;
            let images = Images::open(&state.join("images"), StoreOptions::default())?;
            let shelf = Shelf::open(state.join("workloads"), run.join("workloads"))?;
            let volumes = state.join("volumes");
            std::fs::create_dir_all(&volumes)?;
            let adopted = driver.adopt()?;
            Ok((driver, images, shelf, volumes, adopted))
        });
        let (driver, images, shelf, volumes, adopted) = opened.await??;
        let networks = Networks::new(config.state_dir.join("workloads"), dns);
        let workloads = Self {
            driver: Arc::new(driver),
            images,
            networks,
            shelf,
            volumes,
            events,
            registry: Mutex::default(),
            found: Mutex::default(),
            vanished: Notify::new(),
            tasks: TaskTracker::new(),
            stop,
        };
        workloads.sort_out(adopted).await;
        Ok(Arc::new(workloads))
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts together what runs and what is written down; what is only one of both and should not be is removed.
    async fn sort_out(&self, adopted: Vec<Adopted>) {
        let (kept, wrong) = self.shelf.load();
        for why in wrong {
            let text = format!("a workload's file cannot be read and is left alone: {why}");
            self.events.push(Severity::Error, "workload-unreadable", None, None, text);
        }
        let mut running: BTreeMap<WorkloadId, Adopted> = adopted.into_iter().map(|one| (one.id, one)).collect();
        let mut found = BTreeMap::new();
        for (id, kept) in kept {
            let adopted = running.remove(&id);
            if adopted.is_none() && kept.spec.remove {
                // It ended together with the host, or before it was begun.
                self.clear(id, false).await;
                continue;
            }
            found.insert(id, (adopted, kept));
        }
        for id in running.into_keys() {
            tracing::warn!(%id, "a container that nobody knows is removed");
            self.clear(id, false).await;
        }
        for id in self.networks.present().await {
            if !found.contains_key(&id) {
                // Also those that were made ahead by a daemon that was killed.
                tracing::info!(%id, "a network without a workload is removed");
                if let Err(error) = self.networks.disconnect(id).await {
                    tracing::warn!(%id, %error, "it was not removed");
                }
            }
        }
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// Takes away what is left of a workload without a life.
    async fn clear(&self, id: WorkloadId, keep_upper: bool) {
        let driver = Arc::clone(&self.driver);
        if let Ok(Err(error)) = blocking(move || driver.remove(id, keep_upper)).await {
            tracing::warn!(%id, error = chain(&error), "what is left of a workload could not be removed");
        }
        if let Err(error) = self.networks.disconnect(id).await {
            tracing::warn!(%id, %error, "what is left of a workload's network could not be removed");
        }
        if let Err(error) = self.shelf.forget(id) {
            tracing::warn!(%id, %error, "a workload's file could not be removed");
        }
    }

    /// Follows the host while the daemon runs, and lets all tasks end with it. What runs goes on.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(network::LOOK);
        loop {
            tokio::select! {
                // cancel-safe: a tick that was not taken comes again.
                _ = ticks.tick() => self.networks.look().await,
                () = self.stop.cancelled() => break,
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.networks.drop_spares().await;
    }

    // ---- VDCs

    /// A VDC is served: its workloads are taken up, once; later calls tell its new task of them.
    pub(crate) async fn vdc_up(self: &Arc<Self>, facts: VdcFacts) {
        let vdc = facts.vdc;
        self.networks.vdc_up(facts);
        let first = self.lock().restored.insert(vdc);
        let mine: Vec<(WorkloadId, (Option<Adopted>, Kept))> = {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let text = vdc.to_string();
            let ids: Vec<WorkloadId> =
                found.iter().filter(|(_, (_, kept))| kept.vdc() == text).map(|(id, _)| *id).collect();
            ids.into_iter().filter_map(|id| Some((id, found.remove(&id)?))).collect()
        };
        for (id, (adopted, kept)) in mine {
            self.networks.hold(vdc, &kept.held());
            self.restore(id, vdc, adopted, kept);
        }
        // Also without any: what an earlier run of the daemon made known is withdrawn.
        if let Err(error) = self.networks.tell_core(vdc).await {
            tracing::warn!(%error, first, "a VDC was not told of its workloads");
        }
    }

    /// A VDC is left for good: its workloads go with it.
    pub(crate) async fn vdc_down(&self, vdc: VdcId) {
        let handles: Vec<Handle> = self.lock().handles.values().filter(|handle| handle.vdc == vdc).cloned().collect();
        for handle in handles {
            if let Err(error) =
                handle.order(|reply| Order::Remove { force: true, reply }, Duration::from_secs(30)).await
            {
                tracing::warn!(id = %handle.id, %error, "a workload of a VDC that was left is not removed");
            }
        }
        self.networks.vdc_down(vdc).await;
        self.lock().restored.remove(&vdc);
    }

    /// Gives a workload of before its life back.
    fn restore(self: &Arc<Self>, id: WorkloadId, vdc: VdcId, adopted: Option<Adopted>, kept: Kept) {
        let problem = |why: String| {
            self.events.push(Severity::Error, "workload-not-restored", None, None, format!("workload {id}: {why}"));
        };
        let spec = match Spec::check(kept.spec.clone()) {
            Ok(spec) => spec,
            Err(error) => return problem(error.to_string()),
        };
        let Some(image) = self.images.resolve(&kept.manifest) else {
            return problem(format!("its image {} is not here any more", kept.manifest));
        };
        let begin = adopted.map_or(Begin::Known, |adopted| Begin::Found(adopted.state));
        if matches!(begin, Begin::Found(AdoptedState::Running { .. })) {
            self.networks.expect(id, Member::new(vdc, &kept, &spec));
        }
        drop(self.give_life(id, vdc, kept, Arc::new(spec), image, begin));
    }

    fn give_life(
        self: &Arc<Self>,
        id: WorkloadId,
        vdc: VdcId,
        kept: Kept,
        spec: Arc<Spec>,
        image: Image,
        begin: Begin,
    ) -> Handle {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let (status, snapshots) = watch::channel(Snapshot::new(&kept));
        let handle = Handle {
            id,
            vdc,
            spec: Arc::clone(&spec),
            manifest: kept.manifest.clone(),
            created_at: kept.created_at.clone(),
            held: kept.held(),
            uid_base: kept.uid_base,
            orders,
            status: snapshots,
        };
        self.lock().handles.insert(id, handle.clone());
        let life = Life {
            id,
            vdc,
            host: Arc::clone(self),
            kept,
            spec,
            image,
            orders: received,
            status,
            state: State::default(),
        };
        let (host, stop) = (Arc::clone(self), self.stop.clone());
        drop(self.tasks.spawn(async move {
            tokio::select! {
                // cancel-safe: what runs goes on, and what was decided is written down.
                lived = AssertUnwindSafe(life.run(begin)).catch_unwind() => if lived.is_err() {
                    host.revive(id, vdc).await;
                },
                // cancel-safe: a level.
                () = stop.cancelled() => {}
            }
        }));
        handle
    }

    /// Begins a life anew whose task was lost to a defect: the workload itself goes on.
    fn revive(self: Arc<Self>, id: WorkloadId, vdc: VdcId) -> BoxFuture<'static, ()> {
        async move {
            let text = format!("the task of workload {id} failed and is begun anew; please report what the log says");
            self.events.push(Severity::Error, "workload-task-failed", None, None, text);
            tokio::time::sleep(REVIVAL_PAUSE).await;
            let (driver, shelf) = (Arc::clone(&self.driver), self.shelf.clone());
            let found = blocking(move || {
                let kept = shelf.load().0.into_iter().find(|(known, _)| *known == id);
                let adopted = driver.adopt().unwrap_or_default().into_iter().find(|one| one.id == id);
                kept.map(|(_, kept)| (kept, adopted))
            });
            match found.await {
                Ok(Some((kept, adopted))) if adopted.is_some() || !kept.spec.remove => {
                    self.restore(id, vdc, adopted, kept);
                }
                _ => {
                    self.networks.withdraw(id).await;
                    self.clear(id, false).await;
                    self.forget(id);
                }
            }
        }
        .boxed()
    }

    // ---- making

    /// Makes a workload of a checked specification and starts it. What came of it is told by the answer's receiver.
    pub(crate) async fn make(self: &Arc<Self>, vdc: VdcId, spec: Spec, image: Image) -> Result<Making, ApiError> {
        let facts = self.networks.facts(vdc)?;
        if let Some(name) = &spec.name
            && let Err(holder) = facts.core.name_is_free(name).await?
        {
            let holder = match holder {
                NameHolder::Node { full_name } => format!("the node {full_name}"),
                NameHolder::WorkloadOf { full_name } => format!("a workload of the node {full_name}"),
            };
            return Err(name_taken(name, &holder));
        }
        if spec.name.is_some() || !spec.publish.is_empty() {
            self.let_vanish().await;
        }
        let _reservation = self.reserve(vdc, spec.name.as_ref())?;
        let uid_base = self.free_range()?;
        let (id, held) = match self.networks.take_spare(vdc) {
            Some(spare) => (spare.id, spare.held),
            None => {
                let held = self.networks.take(vdc).inspect_err(|_| {
                    self.lock().ranges.remove(&uid_base);
                })?;
                (WorkloadId(random()), held)
            }
        };
        let (host, spare) = (Arc::clone(self), WorkloadId(random()));
        drop(self.tasks.spawn(async move {
            // After the start that it would otherwise slow down.
            tokio::time::sleep(SPARE_PAUSE).await;
            host.networks.make_spare(vdc, spare).await;
        }));
        let kept = Kept::new(
            Made {
                id,
                vdc,
                manifest: image.manifest.to_string(),
                created_at: system_time().to_string(),
                uid_base,
                offset: held.offset,
                ipv4: held.ipv4,
                link_local: held.link_local,
            },
            &spec.run,
        );
        let saved = if spec.run.remove {
            self.shelf.save(id, &kept)
        } else {
            tokio::task::block_in_place(|| self.shelf.save(id, &kept))
        };
        if let Err(error) = saved {
            self.networks.give_back(vdc, &held);
            self.lock().ranges.remove(&uid_base);
            return Err(crate::error::storage(&error));
        }
        let (reply, started) = oneshot::channel();
        let handle = self.give_life(id, vdc, kept, Arc::new(spec), image, Begin::New(reply));
        self.lock().ranges.remove(&uid_base);
        Ok(Making { handle, started })
    }

    fn reserve(&self, vdc: VdcId, name: Option<&Name>) -> Result<Option<Reservation<'_>>, ApiError> {
        let mut registry = self.lock();
        if registry.handles.len() >= WORKLOADS_MAX {
            return Err(ApiError::new(ErrorCode::Busy, format!("{WORKLOADS_MAX} workloads are on this node already"))
                .hint("remove some with `meshctl rm`"));
        }
        let Some(name) = name else { return Ok(None) };
        let held = registry.handles.values().find(|h| h.vdc == vdc && h.spec.name.as_ref() == Some(name));
        if let Some(holder) = held {
            let holder = format!("workload {}", &holder.id.to_string()[..SHORT_ID]);
            return Err(name_taken(name, &format!("{holder} of this node")));
        }
        let name = (vdc, name.clone());
        if !registry.reserved.insert(name.clone()) {
            return Err(name_taken(&name.1, "a workload that is being made"));
        }
        Ok(Some(Reservation { workloads: self, name }))
    }

    /// A range of ids that no workload has. It is reserved until it stands in a handle.
    fn free_range(&self) -> Result<u32, ApiError> {
        let mut registry = self.lock();
        let held = registry.handles.values().chain(registry.vanishing.values());
        let mut taken: BTreeSet<u32> = held.map(|handle| handle.uid_base).collect();
        taken.extend(registry.ranges.iter());
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        taken.extend(found.values().map(|(_, kept)| kept.uid_base));
        let mut bases = (0..UID_RANGES).map(|index| UID_BASE + index * RANGE_IDS);
        let base = bases.find(|base| !taken.contains(base));
        let base = base.ok_or_else(|| ApiError::new(ErrorCode::Busy, "no range of user ids is free"))?;
        registry.ranges.insert(base);
        Ok(base)
    }

    /// Takes a workload off the list that others see: it has ended, and its traces are about to be removed.
    pub(crate) fn hide(&self, id: WorkloadId) {
        let mut registry = self.lock();
        if let Some(handle) = registry.handles.remove(&id) {
            registry.vanishing.insert(id, handle);
        }
    }

    /// Takes a workload off all lists: its life is over.
    pub(crate) fn forget(&self, id: WorkloadId) {
        let mut registry = self.lock();
        registry.handles.remove(&id);
        registry.vanishing.remove(&id);
        drop(registry);
        self.vanished.notify_waiters();
    }

    /// Waits until nobody holds a name or port any more who is on the way out.
    async fn let_vanish(&self) {
        let empty = async {
            loop {
                let told = self.vanished.notified();
                if self.lock().vanishing.is_empty() {
                    return;
                }
                told.await;
            }
        };
        if tokio::time::timeout(VANISH_TIME, empty).await.is_err() {
            tracing::warn!("a workload that ended takes long to be removed");
        }
    }

    /// Where a workload's volumes are. Named ones are made with their first user; the image's own lie with the workload
    /// and go with it.
    pub(crate) async fn volumes(
        &self,
        id: WorkloadId,
        spec: &Spec,
        of_image: &[String],
    ) -> Result<Vec<workloads_container::Volume>, ApiError> {
        let mut volumes = vec![];
        for volume in &spec.volumes {
            let (source, is_ours) = match &volume.source {
                VolumeSource::Host(path) => (path.clone(), false),
                VolumeSource::Named(name) => (self.volumes.join(name.as_str()), true),
            };
            let path = source.clone();
            let there = blocking(move || if is_ours { make_volume(&path) } else { std::fs::metadata(&path).map(drop) });
            there.await?.map_err(|error| {
                let api = ApiError::bad_request("volumes", format!("the volume {} is not there", source.display()));
                with_causes(api, Some(&error)).hint("a path of the host must exist; a name without / makes a volume")
            })?;
            let (target, read_only) = (volume.target.clone(), volume.read_only);
            volumes.push(workloads_container::Volume { source, target, read_only, seed: is_ours });
        }
        let own = self.driver.own_directory(id).join("volumes");
        for (index, target) in of_image.iter().enumerate() {
            let covered = |volume: &workloads_container::Volume| {
                volume.target.trim_end_matches('/') == target.trim_end_matches('/')
            };
            if volumes.iter().any(covered) || target.trim_matches('/').is_empty() {
                continue;
            }
            let source = own.join(index.to_string());
            let path = source.clone();
            let made = blocking(move || make_volume(&path)).await?;
            made.map_err(|error| system("a volume of the image cannot be made", &error))?;
            volumes.push(workloads_container::Volume { source, target: target.clone(), read_only: false, seed: true });
        }
        Ok(volumes)
    }

    // ---- finding

    /// All workloads of a VDC, named ones first.
    pub(crate) fn of_vdc(&self, vdc: VdcId) -> Vec<Handle> {
        let registry = self.lock();
        let mut handles: Vec<Handle> = registry.handles.values().filter(|handle| handle.vdc == vdc).cloned().collect();
        handles.sort_by_key(|handle| (handle.spec.name.is_none(), handle.spec.name.clone(), handle.created_at.clone()));
        handles
    }

    /// The workload that a text means: its name, or the first digits of its id.
    pub(crate) fn find(&self, vdc: VdcId, text: &str) -> Result<Handle, ApiError> {
        let registry = self.lock();
        let mine = || registry.handles.values().filter(|handle| handle.vdc == vdc);
        if let Some(named) = mine().find(|handle| handle.spec.name.as_ref().is_some_and(|n| n.as_str() == text)) {
            return Ok(named.clone());
        }
        let hexadecimal = !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let fitting: Vec<&Handle> =
            mine().filter(|handle| hexadecimal && handle.id.to_string().starts_with(text)).take(2).collect();
        match fitting.as_slice() {
            [only] => Ok((*only).clone()),
            [] => Err(ApiError::not_found(format!("there is no workload {text:?} on this node"))
                .hint("`meshctl ps --all` lists them; `--on NODE` asks another node")),
            _ => Err(ApiError::new(ErrorCode::AmbiguousName, format!("several workloads' ids begin with {text}"))
                .hint("give more digits")),
        }
    }

    /// How many workloads run an image.
    pub(crate) fn uses_of(&self, manifest: &str) -> usize {
        self.lock().handles.values().filter(|handle| handle.manifest == manifest).count()
    }

    /// Manifests that workloads need.
    pub(crate) fn manifests(&self) -> BTreeSet<String> {
        let registry = self.lock();
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = found.values().map(|(_, kept)| kept.manifest.clone());
        registry.handles.values().map(|handle| handle.manifest.clone()).chain(kept).collect()
    }
}

/// A directory that others cannot reach but by the volume.
fn make_volume(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// What another node may not have run here, whatever its right: what is this host's alone.
pub(crate) fn check_remote(run: &vdc_api::WorkloadRun, volumes: &[PathBuf]) -> Result<(), ApiError> {
    let refused = |message: String| ApiError::new(ErrorCode::RemoteRefused, message);
    if run.host_users {
        return Err(refused("another node may not run anything as this host's own root".into())
            .hint("leave --userns host out, or run it on the node itself"));
    }
    for text in &run.volumes {
        let path = Path::new(text.split(':').next().unwrap_or_default());
        // Only what was named itself: what lies below may be a link that a container made.
        if path.is_absolute() && !volumes.iter().any(|allowed| path == allowed) {
            let message = format!("the node does not let others have {} as a volume", path.display());
            return Err(refused(message)
                .hint("use a volume by name, or have its local team add the directory to `volumes` below [remote]"));
        }
    }
    Ok(())
}

fn name_taken(name: &Name, holder: &str) -> ApiError {
    let error = ApiError::new(ErrorCode::Conflict, format!("the name {name} is taken by {holder}"));
    ApiError { field: Some("name".into()), ..error }.hint("choose another with --name, or remove the holder")
}

/// Where what does not survive the host's restart is: beside the API's socket.
fn run_directory(config: &Config) -> PathBuf {
    config.socket.parent().unwrap_or(Path::new("/run/meshd")).to_owned()
}

/// What runs containers: the shim beside the daemon's own program or where packages put it, or what the configuration says.
fn launcher(config: &Config) -> Launcher {
    if let Some(runtime) = &config.workloads.runtime {
        return Launcher::External(runtime.clone());
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("meshd-shim")));
    let installed = SHIM_PATHS.iter().map(PathBuf::from);
    let candidates: Vec<PathBuf> = config.workloads.shim.clone().into_iter().chain(beside).chain(installed).collect();
    let found = candidates.iter().find(|path| path.exists()).or(candidates.last());
    Launcher::Shim(found.cloned().unwrap_or_else(|| SHIM_PATHS[0].into()))
}

/// What the API says when the driver refuses.
pub(crate) fn driver_error(error: &RuntimeError) -> ApiError {
    match error {
        RuntimeError::NotFound { .. } => {
            ApiError::new(ErrorCode::NotRunning, "the workload does not run").hint("start it with `meshctl start NAME`")
        }
        RuntimeError::UnknownUser(source) => {
            let api = ApiError::new(ErrorCode::UnknownUser, source.to_string());
            ApiError { field: Some("user".into()), ..api }.hint("name a user of the image, or a number")
        }
        RuntimeError::Refused { why } => ApiError::new(ErrorCode::BadRequest, why.clone()),
        RuntimeError::Failed { step, message, code } => life::start_error(step, message, *code),
        RuntimeError::Shim { message } => {
            ApiError::new(ErrorCode::System, "the container was not started").cause(message.clone())
        }
        RuntimeError::Timeout { .. } => ApiError::new(ErrorCode::Timeout, error.to_string()),
        RuntimeError::Host { .. } => system("the host does not let the container be run", error),
    }
}
