//! What the API asks of workloads, apart from HTTP: views, runs, logs, statistics.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use vdc::VdcId;
use vdc_api::{self as api, ApiError, LogEvent, Phase, RunEvent, StatsEvent};

use super::life::{Order, Snapshot};
use super::logs::{self, LogReader};
use super::network::{blocking, texts};
use super::spec::{self, Spec};
use super::{Handle, Workloads, driver_error};
use crate::error::system;

/// How long a request waits for an order to be done; what takes longer goes on.
const ORDER_TIME: Duration = Duration::from_secs(50);
/// Events of one run that may wait.
const EVENTS_MAX: usize = 64;
/// How often a followed log is looked at.
const LOG_STEP: Duration = Duration::from_millis(100);
/// How often followed statistics are told.
const STATS_STEP: Duration = Duration::from_secs(1);

/// The items of a stream of the API.
pub(crate) type Items<T> = BoxStream<'static, Result<T, ApiError>>;

impl Workloads {
    /// A workload as users see it.
    pub(crate) fn view(&self, handle: &Handle) -> Result<api::WorkloadView, ApiError> {
        let facts = self.networks.facts(handle.vdc)?;
        let status: Snapshot = handle.status.borrow().clone();
        let node = facts.node.as_str();
        Ok(api::WorkloadView {
            id: handle.id.to_string(),
            name: handle.name(),
            node: node.to_owned(),
            site: facts.site.to_string(),
            fqdn: handle.spec.name.as_ref().map(|name| facts.fqdn(name)),
            addresses: texts(&facts.addresses(&handle.held)),
            manifest: handle.manifest.clone(),
            phase: status.phase,
            reason: status.reason,
            since: status.since.to_string(),
            next_retry: status.next_retry.map(|at| at.to_string()),
            pid: status.pid,
            exit: status.exit,
            restarts: status.restarts,
            health: status.health,
            degraded: status.degraded,
            created_at: handle.created_at.clone(),
            spec: api::WorkloadRun { registry: api::RegistryAccess::default(), ..handle.spec.run.clone() },
        })
    }

    /// Gets the image, makes the workload and starts it; tells how far it is.
    pub(crate) fn run(self: &Arc<Self>, vdc: VdcId, request: api::WorkloadRun) -> Result<Items<RunEvent>, ApiError> {
        let spec = Spec::check(request)?;
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let workloads = Arc::clone(self);
        drop(self.tasks.spawn(async move {
            if let Err(error) = workloads.run_to_start(vdc, spec, &events).await {
                let _ = events.send(Err(error)).await; // nobody may be listening any more
            }
        }));
        Ok(ReceiverStream::new(received).boxed())
    }

    async fn run_to_start(
        self: &Arc<Self>,
        vdc: VdcId,
        spec: Spec,
        events: &mpsc::Sender<Result<RunEvent, ApiError>>,
    ) -> Result<(), ApiError> {
        let progress = events.clone();
        let image = self
            .image(&spec.run.image, spec.run.pull, &spec.run.registry, move |step| {
                // A listener that is too slow misses steps, not the end.
                let _ = progress.try_send(Ok(RunEvent::Pulling(step)));
            })
            .await?;
        let waits = spec.run.attach;
        let making = self.make(vdc, spec, image).await?;
        let (handle, mut started) = (making.handle, making.started);
        let created = RunEvent::Created { id: handle.id.to_string(), name: handle.name() };
        let mut status = handle.status.clone();
        let mut told = false;
        if waits {
            // Told once the program waits for the caller, who would come too early before.
            tokio::select! {
                // cancel-safe: the value that was waited for stays.
                waiting = is_held(&mut status) => {
                    told = waiting;
                    if told {
                        let _ = events.send(Ok(created.clone())).await; // nobody may be listening any more
                    }
                }
                // cancel-safe: taken once, below, if this branch did not take it.
                answer = &mut started => return self.tell_started(&handle, answer, (!told).then_some(created), events).await,
            }
        }
        let answer = started.await;
        self.tell_started(&handle, answer, (!told).then_some(created), events).await
    }

    async fn tell_started(
        &self,
        handle: &Handle,
        answer: Result<Result<(), ApiError>, tokio::sync::oneshot::error::RecvError>,
        created: Option<RunEvent>,
        events: &mpsc::Sender<Result<RunEvent, ApiError>>,
    ) -> Result<(), ApiError> {
        answer.map_err(|_| crate::error::unavailable())??;
        let view = self.view(handle)?;
        for event in created.into_iter().chain([RunEvent::Started(Box::new(view))]) {
            let _ = events.send(Ok(event)).await; // nobody may be listening any more
        }
        Ok(())
    }

    /// Starts a workload that does not run.
    pub(crate) async fn start(&self, handle: &Handle) -> Result<api::WorkloadView, ApiError> {
        handle.order(Order::Start, ORDER_TIME).await?;
        self.view(handle)
    }

    /// Stops a workload; answers when it has ended, or as it is if that takes too long.
    pub(crate) async fn stop(
        &self,
        handle: &Handle,
        request: &api::StopRequest,
    ) -> Result<api::WorkloadView, ApiError> {
        let grace = request.grace_s.map(|seconds| Duration::from_secs(seconds.into()));
        handle.order(|reply| Order::Stop { grace, reply }, ORDER_TIME).await?;
        self.view(handle)
    }

    /// Sends a signal.
    pub(crate) async fn signal(
        &self,
        handle: &Handle,
        request: &api::SignalRequest,
    ) -> Result<api::WorkloadView, ApiError> {
        let signal = spec::signal("signal", &request.signal)?;
        handle.order(|reply| Order::Signal { signal, reply }, ORDER_TIME).await?;
        self.view(handle)
    }

    /// Removes a workload and what it wrote.
    pub(crate) async fn remove(&self, handle: &Handle, force: bool) -> Result<api::WorkloadRemoved, ApiError> {
        handle.order(|reply| Order::Remove { force, reply }, ORDER_TIME).await?;
        Ok(api::WorkloadRemoved { id: handle.id.to_string(), name: handle.name() })
    }

    /// Waits until a workload has ended and is not started again by itself.
    pub(crate) async fn wait(&self, handle: &Handle, query: &api::WaitQuery) -> api::Waited {
        let most = Duration::from_secs(query.timeout_s.unwrap_or(api::WAIT_S_MAX).min(api::WAIT_S_MAX).into());
        let mut status = handle.status.clone();
        let ended = status.wait_for(|snapshot| snapshot.phase == Phase::Exited);
        let exit = match tokio::time::timeout(most, ended).await {
            Ok(Ok(snapshot)) => snapshot.exit.clone(),
            Ok(Err(_)) => handle.status.borrow().exit.clone(), // it was removed meanwhile
            Err(_) => None,
        };
        api::Waited { exit }
    }

    /// What it wrote, and what it writes from now on if that is wanted, until it ends.
    pub(crate) async fn logs(&self, handle: &Handle, query: api::LogsQuery) -> Result<Items<LogEvent>, ApiError> {
        let since = match &query.since {
            Some(text) => api::parse_rfc3339(text).ok_or_else(|| {
                ApiError::bad_request("since", format!("{text:?} is no time such as 2026-03-01T12:00:00Z"))
            })?,
            None => 0,
        };
        let reader = LogReader::new(self.driver.log_directory(handle.id), since, query.stream);
        let follow = Follow { reader, status: handle.status.clone(), follow: query.follow, over: false };
        let (first, follow) = match query.tail {
            Some(lines) => {
                let read = blocking(move || {
                    let mut follow = follow;
                    logs::tail(&mut follow.reader, lines).map(|kept| (kept, follow))
                });
                read.await?.map_err(|error| system("the log cannot be read", &error))?
            }
            None => (VecDeque::new(), follow),
        };
        let rest = stream::unfold(Some(follow), |follow| async {
            let mut follow = follow?;
            match follow.next().await {
                Ok(Some(batch)) => Some((Ok(batch), Some(follow))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        let rest = rest.flat_map(|batch| match batch {
            Ok(events) => stream::iter(events.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        Ok(stream::iter(first.into_iter().map(Ok)).chain(rest).boxed())
    }

    /// What it uses, once or every second while it runs.
    pub(crate) async fn stats(self: &Arc<Self>, handle: &Handle, follow: bool) -> Result<Items<StatsEvent>, ApiError> {
        let first = self.stats_now(handle).await?;
        if !follow {
            return Ok(stream::iter([Ok(first)]).boxed());
        }
        let (workloads, handle) = (Arc::clone(self), handle.clone());
        let rest = stream::unfold((workloads, handle), |(workloads, handle)| async {
            tokio::time::sleep(STATS_STEP).await;
            let stats = workloads.stats_now(&handle).await.ok()?; // it ended
            Some((Ok(stats), (workloads, handle)))
        });
        Ok(stream::iter([Ok(first)]).chain(rest).boxed())
    }

    async fn stats_now(&self, handle: &Handle) -> Result<StatsEvent, ApiError> {
        let (driver, id) = (Arc::clone(&self.driver), handle.id);
        let stats = blocking(move || driver.stats(id)).await?.map_err(|error| driver_error(&error))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(StatsEvent {
            at: api::rfc3339_ns(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)),
            cpu_ns: stats.cpu_ns,
            memory_bytes: stats.memory_bytes,
            memory_bytes_max: stats.memory_bytes_max,
            pids: stats.pids,
            oom_kills: stats.oom_kills,
            received_bytes: stats.received_bytes,
            sent_bytes: stats.sent_bytes,
        })
    }
}

/// Whether a program waits for somebody to attach, once that is decided.
async fn is_held(status: &mut tokio::sync::watch::Receiver<Snapshot>) -> bool {
    status.wait_for(|snapshot| snapshot.held.is_some()).await.is_ok()
}

/// A log that is read to its end, or followed until the workload ends.
struct Follow {
    reader: LogReader,
    status: tokio::sync::watch::Receiver<Snapshot>,
    follow: bool,
    /// The workload has ended: what is there now is all that will be.
    over: bool,
}

impl Follow {
    async fn next(&mut self) -> Result<Option<Vec<LogEvent>>, ApiError> {
        loop {
            let over = self.over;
            let reader = std::mem::replace(&mut self.reader, LogReader::new("/".into(), 0, None));
            let read = blocking(move || {
                let mut reader = reader;
                let events = reader.read();
                (reader, events)
            });
            let (reader, events) = read.await?;
            self.reader = reader;
            let events = events.map_err(|error| system("the log cannot be read", &error))?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            if !self.follow || over {
                return Ok(None);
            }
            // What was removed has no sender any more.
            self.over = self.status.borrow().phase == Phase::Exited || self.status.has_changed().is_err();
            if !self.over {
                tokio::time::sleep(LOG_STEP).await;
            }
        }
    }
}
