//! One workload's life: started, watched, started again, stopped, removed. One task each, which does one thing at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot, watch};
use vdc::{UnixTime, VdcId};
use vdc_api::{self as api, ApiError, ErrorCode, Phase};
use workloads_container::{
    AdoptedState, Exit, ExitCause, Happening, Happenings, HealthState, RootLayers, StreamPoint, WorkloadId,
};
use workloads_image::Image;

use super::backoff::BackOff;
use super::kept::Kept;
use super::network::{Member, blocking};
use super::spec::{Place, Spec};
use super::{Workloads, driver_error};
use crate::clock::system_time;

/// How long those who are attached have to hear the last words of a workload that ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How often the end of a container without a shim is looked for.
const LOOK: Duration = Duration::from_millis(500);

/// What a user wants of a workload.
#[derive(Debug)]
pub(crate) enum Order {
    Start(oneshot::Sender<Result<(), ApiError>>),
    Stop { grace: Option<Duration>, reply: oneshot::Sender<Result<(), ApiError>> },
    Signal { signal: u8, reply: oneshot::Sender<Result<(), ApiError>> },
    Remove { force: bool, reply: oneshot::Sender<Result<(), ApiError>> },
}

/// How a life begins in this process.
#[derive(Debug)]
pub(crate) enum Begin {
    /// It was just made; if it does not start, it never was.
    New(oneshot::Sender<Result<(), ApiError>>),
    /// It was found.
    Found(AdoptedState),
    /// It was written down, and nothing of it runs.
    Known,
}

/// What others see of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) phase: Phase,
    pub(crate) reason: String,
    pub(crate) since: UnixTime,
    pub(crate) next_retry: Option<UnixTime>,
    pub(crate) pid: Option<u32>,
    pub(crate) exit: Option<api::ExitView>,
    pub(crate) restarts: u32,
    pub(crate) health: api::HealthStatus,
    pub(crate) degraded: Vec<api::DegradedView>,
    /// The streams of a program that waits for somebody to attach.
    pub(crate) held: Option<StreamPoint>,
}

impl Snapshot {
    pub(crate) fn new(kept: &Kept) -> Self {
        Self {
            phase: Phase::Creating,
            reason: "it is being made".into(),
            since: system_time(),
            next_retry: None,
            pid: None,
            exit: kept.exit.clone(),
            restarts: kept.restarts,
            health: api::HealthStatus::None,
            degraded: kept.degraded.clone(),
            held: None,
        }
    }
}

/// One workload and what drives it.
pub(crate) struct Life {
    pub(crate) id: WorkloadId,
    pub(crate) vdc: VdcId,
    pub(crate) host: Arc<Workloads>,
    pub(crate) kept: Kept,
    pub(crate) spec: Arc<Spec>,
    pub(crate) image: Image,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) status: watch::Sender<Snapshot>,
    pub(crate) state: State,
}

/// What changes while it lives.
#[derive(Debug, Default)]
pub(crate) struct State {
    backoff: BackOff,
    started: Option<Instant>,
    watch: Watch,
    retry: Option<tokio::time::Instant>,
    /// Who waits for it to end.
    stopping: Vec<oneshot::Sender<Result<(), ApiError>>>,
    gone: bool,
}

/// How the end of what runs is heard of.
#[derive(Debug, Default)]
enum Watch {
    /// Nothing runs.
    #[default]
    Nothing,
    Shim(UnixDatagram, Happenings),
    /// By looking, now and then.
    Looks,
}

/// What a round of the task waits for.
enum Event {
    Order(Order),
    Happened(Happening),
    /// The shim is gone without a word.
    Lost,
    Retry,
    /// Nobody can ask any more.
    Over,
}

impl Life {
    pub(crate) async fn run(mut self, begin: Begin) {
        self.begin(begin).await;
        while !self.state.gone {
            let retry = self.state.retry;
            let event = tokio::select! {
                // cancel-safe: a queue keeps what was not taken.
                order = self.orders.recv() => order.map_or(Event::Over, Event::Order),
                // cancel-safe: what was not read stays in the socket, or in the record of the end.
                event = next(&self.host, self.id, &self.state.watch) => event,
                // cancel-safe: the time stays what it was.
                () = tokio::time::sleep_until(retry.unwrap_or_else(tokio::time::Instant::now)), if retry.is_some() => Event::Retry,
            };
            match event {
                Event::Order(order) => self.obey(order).await,
                Event::Happened(Happening::Ended(exit)) => self.ended(exit).await,
                Event::Happened(Happening::Health { state, .. }) => self.told_health(state),
                Event::Lost => {
                    let exit = self.end_of_lost().await;
                    self.ended(exit).await;
                }
                Event::Retry => self.start_again().await,
                Event::Over => return,
            }
        }
    }

    async fn begin(&mut self, begin: Begin) {
        match begin {
            Begin::New(reply) => {
                let started = self.bring_up().await;
                let failed = started.is_err();
                if failed {
                    self.host.hide(self.id);
                }
                // Whoever asked may have gone; the workload runs all the same.
                let _ = reply.send(started);
                if failed {
                    self.vanish().await;
                }
            }
            Begin::Found(AdoptedState::Running { pid }) => self.adopt(pid).await,
            Begin::Found(AdoptedState::Exited(exit)) => self.ended(exit).await,
            Begin::Known => self.after_restart().await,
        }
    }

    /// It is written down and does not run: the host was started again, or it had ended before.
    async fn after_restart(&mut self) {
        let restarts = self.restarts_after(self.kept.exit.as_ref());
        if self.kept.exit.is_none() && self.kept.wanted {
            let at = system_time().to_string();
            let exit =
                api::ExitView { code: 255, signal: None, oom_killed: false, at, cause: api::ExitReason::HostReboot };
            self.kept.exit = Some(exit);
            self.save();
        }
        if restarts {
            self.start_again().await;
        } else {
            self.rest("it ended before the daemon was started");
        }
    }

    /// Whether it is started again after this end; `None` is the host's restart.
    fn restarts_after(&self, exit: Option<&api::ExitView>) -> bool {
        self.kept.wanted
            && match self.spec.run.restart {
                api::RestartPolicy::Never => false,
                api::RestartPolicy::Always => true,
                api::RestartPolicy::OnFailure => exit.is_none_or(|exit| exit.code != 0),
            }
    }

    async fn adopt(&mut self, pid: u32) {
        if let Err(error) = self.connect().await {
            tracing::warn!(id = %self.id, %error, "a running workload's network was not adopted");
        }
        self.state.started = Some(Instant::now());
        self.watch().await;
        let no_reason = || "it was found running".to_owned();
        self.status.send_modify(|s| {
            (s.phase, s.reason, s.since, s.pid) = (Phase::Running, no_reason(), system_time(), Some(pid))
        });
    }

    // ---- start

    /// Network, driver, names: everything that a running workload has.
    async fn bring_up(&mut self) -> Result<(), ApiError> {
        self.set_phase(Phase::Creating, "it is being started");
        self.state.retry = None;
        let (facts, held) = (self.host.networks.facts(self.vdc)?, self.kept.held());
        let netns = self.host.networks.connect(self.id, self.vdc, held).await?;
        let hostname =
            self.spec.name.as_ref().map_or_else(|| self.id.to_string()[..12].to_owned(), ToString::to_string);
        let place = Place {
            id: self.id,
            generation: u64::from(self.kept.restarts) + 1,
            root: RootLayers {
                directory: self.image.layers_directory.clone(),
                layers: self.image.layers.clone(),
                root_layer: self.image.root_layer.clone(),
            },
            uid_base: self.kept.uid_base,
            netns,
            resolv_conf: facts.resolv_conf(),
            hosts: facts.hosts(&held, &hostname, self.spec.name.as_ref()),
            hostname,
            volumes: self.host.volumes(self.id, &self.spec, &self.image.config.volumes).await?,
        };
        let request = self.spec.request(&self.image.config, place);
        let (driver, status) = (Arc::clone(&self.host.driver), self.status.clone());
        let started = blocking(move || {
            driver.start_attached(&request, &mut |point| status.send_modify(|s| s.held = Some(point.clone())))
        });
        let started = started.await?.map_err(|error| driver_error(&error))?;
        self.state.started = Some(Instant::now());
        let degraded = started.degraded.into_iter().map(|d| api::DegradedView { what: d.what.into(), why: d.why });
        let degraded: Vec<api::DegradedView> = degraded.collect();
        self.status.send_modify(|s| (s.degraded, s.pid) = (degraded.clone(), Some(started.pid)));
        if self.kept.exit.take().is_some() || self.kept.degraded != degraded {
            self.kept.degraded = degraded;
            self.save();
        }
        self.watch().await;
        self.announce().await?;
        let health = match (&self.spec.run.health, &self.image.config.health, self.spec.run.no_health) {
            (Some(_), _, false) | (None, Some(_), false) => api::HealthStatus::Starting,
            _ => api::HealthStatus::None,
        };
        self.status.send_modify(|s| {
            (s.exit, s.held, s.health) = (None, None, health);
        });
        self.set_phase(Phase::Running, "it runs");
        Ok(())
    }

    async fn connect(&self) -> Result<(), ApiError> {
        self.host.networks.connect(self.id, self.vdc, self.kept.held()).await?;
        self.announce().await
    }

    async fn announce(&self) -> Result<(), ApiError> {
        self.host.networks.announce(self.id, Member::new(self.vdc, &self.kept, &self.spec)).await
    }

    /// Listens to the shim from now on.
    async fn watch(&mut self) {
        let (driver, id) = (Arc::clone(&self.host.driver), self.id);
        let heard = blocking(move || driver.happenings(id)).await;
        self.state.watch = match heard {
            Ok(Ok(happenings)) => match happenings.socket().and_then(UnixDatagram::from_std) {
                Ok(socket) => Watch::Shim(socket, happenings),
                Err(_) => Watch::Looks,
            },
            _ => Watch::Looks,
        };
    }

    async fn start_again(&mut self) {
        self.kept.restarts = self.kept.restarts.saturating_add(1);
        let restarts = self.kept.restarts;
        self.status.send_modify(|s| s.restarts = restarts);
        if let Err(error) = self.bring_up().await {
            self.take_down(true).await;
            self.pause(Duration::ZERO, format!("it was not started: {}", words(&error)));
        }
    }

    // ---- the end

    async fn ended(&mut self, exit: Exit) {
        let ran = self.state.started.take().map_or(Duration::ZERO, |started| started.elapsed());
        let view = exit_view(&exit);
        let reason = describe(&view);
        self.state.watch = Watch::Nothing;
        self.kept.exit = Some(view.clone());
        self.status.send_modify(|s| {
            (s.exit, s.pid, s.held, s.health) = (Some(view.clone()), None, None, api::HealthStatus::None);
        });
        if self.spec.run.remove {
            self.host.hide(self.id);
            self.set_phase(Phase::Exited, &reason);
            self.listen_out().await;
            return self.vanish().await;
        }
        self.save();
        let again = self.restarts_after(Some(&view));
        if !again {
            self.set_phase(Phase::Exited, &reason);
        }
        self.listen_out().await;
        self.take_down(true).await;
        for reply in std::mem::take(&mut self.state.stopping) {
            let _ = reply.send(Ok(())); // whoever asked may have gone
        }
        if again {
            self.pause(ran, reason);
        }
    }

    /// Lets those who are attached hear the last words.
    async fn listen_out(&self) {
        let (driver, id) = (Arc::clone(&self.host.driver), self.id);
        if let Ok(Err(error)) = blocking(move || driver.reap(id, LAST_WORDS)).await {
            tracing::debug!(%id, %error, "who was attached to a workload that ended is cut off");
        }
    }

    /// The driver writes down how what was lost ended.
    async fn end_of_lost(&self) -> Exit {
        let (driver, id) = (Arc::clone(&self.host.driver), self.id);
        let found = blocking(move || driver.wait(id, LAST_WORDS)).await;
        match found {
            Ok(Ok(Some(exit))) => exit,
            _ => Exit {
                code: 255,
                signal: None,
                oom_killed: false,
                at: std::time::SystemTime::now(),
                cause: ExitCause::ShimLost,
            },
        }
    }

    /// Takes away what a running workload has, and what it wrote too unless that is kept.
    async fn take_down(&mut self, keep_upper: bool) {
        self.state.watch = Watch::Nothing;
        self.host.networks.withdraw(self.id).await;
        let (driver, id) = (Arc::clone(&self.host.driver), self.id);
        let removed = blocking(move || driver.remove(id, keep_upper)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%id, error = crate::vdc_core::chain(&error), "something of a workload that ended is left");
        }
        if let Err(error) = self.host.networks.disconnect(id).await {
            tracing::warn!(%id, %error, "the network of a workload that ended is left");
        }
    }

    /// Waits before it is started again.
    fn pause(&mut self, ran: Duration, reason: String) {
        let pause = self.state.backoff.on_exit(ran);
        self.state.retry = Some(tokio::time::Instant::now() + pause);
        let next = system_time().plus(pause + Duration::from_millis(999));
        self.set_phase(Phase::BackOff, &reason);
        self.status.send_modify(|s| s.next_retry = Some(next));
    }

    /// Nothing of it stays.
    async fn vanish(&mut self) {
        self.take_down(false).await;
        if let Err(error) = self.host.shelf.forget(self.id) {
            tracing::warn!(id = %self.id, %error, "a removed workload's file is left");
        }
        self.host.networks.give_back(self.vdc, &self.kept.held());
        self.host.forget(self.id);
        for reply in std::mem::take(&mut self.state.stopping) {
            let _ = reply.send(Ok(())); // whoever asked may have gone
        }
        self.state.gone = true;
    }

    // ---- orders

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Start(reply) => {
                let started = self.start().await;
                let _ = reply.send(started); // whoever asked may have gone
            }
            Order::Stop { grace, reply } => self.stop(grace, reply).await,
            Order::Signal { signal, reply } => {
                let (driver, id) = (Arc::clone(&self.host.driver), self.id);
                let sent = blocking(move || driver.signal(id, signal)).await;
                let sent = sent.and_then(|sent| sent.map_err(|error| driver_error(&error)));
                let _ = reply.send(sent); // whoever asked may have gone
            }
            Order::Remove { force, reply } => {
                if !force && !matches!(self.state.watch, Watch::Nothing) {
                    let error = ApiError::new(ErrorCode::Conflict, "the workload runs")
                        .hint("stop it first, or remove it with --force");
                    let _ = reply.send(Err(error)); // whoever asked may have gone
                } else {
                    self.vanish().await;
                    let _ = reply.send(Ok(())); // whoever asked may have gone
                }
            }
        }
    }

    async fn start(&mut self) -> Result<(), ApiError> {
        if !matches!(self.state.watch, Watch::Nothing) {
            return Ok(());
        }
        self.kept.wanted = true;
        self.state.backoff = BackOff::default();
        let started = self.bring_up().await;
        if let Err(error) = &started {
            self.take_down(true).await;
            self.rest(&format!("it was not started: {}", words(error)));
        }
        self.save();
        started
    }

    async fn stop(&mut self, grace: Option<Duration>, reply: oneshot::Sender<Result<(), ApiError>>) {
        self.kept.wanted = false;
        self.save();
        if matches!(self.state.watch, Watch::Nothing) {
            if self.state.retry.take().is_some() {
                self.rest("it was stopped");
            }
            let _ = reply.send(Ok(())); // whoever asked may have gone
            return;
        }
        let (signal, usual) = self.spec.stop(&self.image.config);
        let (driver, id) = (Arc::clone(&self.host.driver), self.id);
        let told = blocking(move || driver.stop(id, signal, grace.unwrap_or(usual))).await;
        match told.and_then(|told| told.map_err(|error| driver_error(&error))) {
            // It ended just now, which is what was asked for: its end is on the way.
            Ok(()) => {}
            Err(error) if error.code == ErrorCode::NotRunning => {}
            Err(error) => {
                let _ = reply.send(Err(error)); // whoever asked may have gone
                return;
            }
        }
        self.set_phase(Phase::Stopping, "it was told to stop");
        self.state.stopping.push(reply);
    }

    // ---- what others see

    fn rest(&mut self, reason: &str) {
        self.state.retry = None;
        let exit = self.kept.exit.clone();
        self.status.send_modify(|s| s.exit = exit);
        let reason = self.kept.exit.as_ref().map_or_else(|| reason.to_owned(), describe);
        self.set_phase(Phase::Exited, &reason);
    }

    fn set_phase(&self, phase: Phase, reason: &str) {
        self.status.send_modify(|s| {
            (s.phase, s.reason, s.since, s.next_retry) = (phase, reason.to_owned(), system_time(), None);
        });
    }

    fn told_health(&self, state: HealthState) {
        let health = match state {
            HealthState::Starting => api::HealthStatus::Starting,
            HealthState::Healthy => api::HealthStatus::Healthy,
            HealthState::Unhealthy => api::HealthStatus::Unhealthy,
        };
        self.status.send_modify(|s| s.health = health);
    }

    fn save(&self) {
        if let Err(error) = self.host.shelf.save(self.id, &self.kept) {
            tracing::error!(id = %self.id, %error, "what became of a workload was not written down");
        }
    }
}

/// The next thing that happens to what runs; pends for ever while nothing does.
async fn next(host: &Workloads, id: WorkloadId, watch: &Watch) -> Event {
    match watch {
        Watch::Nothing => std::future::pending().await,
        Watch::Looks => loop {
            tokio::time::sleep(LOOK).await;
            let driver = Arc::clone(&host.driver);
            match blocking(move || driver.wait(id, Duration::ZERO)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(exit))) => return Event::Happened(Happening::Ended(exit)),
                Ok(Err(_)) | Err(_) => return Event::Lost,
            }
        },
        Watch::Shim(socket, happenings) => {
            let heard = socket.async_io(Interest::READABLE, || match happenings.next() {
                Ok(Some(happening)) => Ok(Event::Happened(happening)),
                Ok(None) => Err(std::io::ErrorKind::WouldBlock.into()),
                Err(_) => Ok(Event::Lost),
            });
            heard.await.unwrap_or(Event::Lost)
        }
    }
}

fn exit_view(exit: &Exit) -> api::ExitView {
    let at = exit.at.duration_since(std::time::UNIX_EPOCH).map_or(0, |at| at.as_secs());
    api::ExitView {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        at: UnixTime(at).to_string(),
        cause: match exit.cause {
            ExitCause::Process => api::ExitReason::Process,
            ExitCause::ShimLost => api::ExitReason::ShimLost,
            ExitCause::StartFailed => api::ExitReason::StartFailed,
        },
    }
}

/// An end in words.
fn describe(exit: &api::ExitView) -> String {
    match (exit.cause, exit.oom_killed, exit.signal) {
        (api::ExitReason::ShimLost, ..) => "the process that kept it was lost".into(),
        (api::ExitReason::HostReboot, ..) => "the host was started again".into(),
        (api::ExitReason::StartFailed, ..) => "its program never ran".into(),
        (api::ExitReason::Process, true, _) => "it was killed for want of memory".into(),
        (api::ExitReason::Process, false, Some(signal)) => format!("it was ended by signal {signal}"),
        (api::ExitReason::Process, false, None) => format!("it ended with status {}", exit.code),
    }
}

fn words(error: &ApiError) -> String {
    std::iter::once(&error.message).chain(&error.causes).cloned().collect::<Vec<_>>().join(": ")
}

/// What the API says of a program that was not started.
pub(super) fn start_error(step: &str, message: &str, code: i32) -> ApiError {
    match (step, code) {
        ("port", _) => ApiError::new(
            ErrorCode::PortTaken,
            format!("a port of the host is in use: {}", message.trim_start_matches("port: ")),
        )
        .hint("publish another one, or stop who serves it: `ss -ltnup` shows them"),
        (_, 127) => ApiError::new(ErrorCode::ProgramNotFound, format!("the image has no such program: {message}"))
            .hint("name one that it has, with its path if it is not in PATH"),
        (_, 126) => ApiError::new(ErrorCode::ProgramNotExecutable, format!("the program cannot be run: {message}"))
            .hint("is it made for this machine, and may it be executed?"),
        _ => ApiError::new(ErrorCode::System, format!("the container was not started: {message}"))
            .cause(format!("step: {step}")),
    }
}
