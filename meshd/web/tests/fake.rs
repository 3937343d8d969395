//! A daemon that answers with the samples, notes every call, and can be held.

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use meshd_web::{
    Api, Backend, Backup, Call, CoordBackend, Items, Limits, Listener, Pipe, RemoteNode, WebConfig, WorkloadBackend,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vdc_api::*;

use crate::client::Client;

/// Limits with short times, for tests that run into them.
pub(crate) fn limits() -> Limits {
    Limits { head_time: Duration::from_millis(200), ..Limits::default() }
}

/// A running server.
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    pub(crate) shutdown: CancellationToken,
    pub(crate) gate: Arc<Gate>,
    calls: Arc<Mutex<Vec<Noted>>>,
    directory: TempDir,
    server: JoinSet<()>,
    api: Api,
}

/// A call that reached the backend.
#[derive(Clone, Debug)]
pub(crate) struct Noted {
    pub(crate) operation: &'static str,
    pub(crate) arguments: String,
    pub(crate) call: Option<Call>,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    #[expect(clippy::unused_async, reason = "must run inside the runtime")]
    pub(crate) async fn start_with(change: impl FnOnce(&mut WebConfig)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = WebConfig { socket: directory.path().join("meshd.sock"), ..WebConfig::default() };
        config.access.uids = vec![own_uid()];
        config.access.group = "meshd-test".into();
        config.access.group_file = directory.path().join("group");
        config.access.passwd_file = directory.path().join("passwd");
        fs::write(&config.access.group_file, "").expect("writable");
        fs::write(&config.access.passwd_file, format!("tester:x:{}:1::/:/bin/sh\n", own_uid())).expect("writable");
        change(&mut config);
        let (gate, calls) = (Arc::new(Gate::new()), Arc::default());
        let backend = Arc::new_cyclic(|own| Fake {
            own: Weak::clone(own),
            pipes: Mutex::default(),
            socket: config.socket.clone(),
            gate: Arc::clone(&gate),
            calls: Arc::clone(&calls),
        });
        let socket = config.socket.clone();
        let shutdown = CancellationToken::new();
        let api = Api::new(&config, backend, &shutdown);
        let listener = Listener::bind(config).expect("the socket is free");
        let mut server = JoinSet::new();
        let listening = api.clone();
        server.spawn(async move { listening.listen(listener).await.expect("the server runs") });
        Self { socket, shutdown, gate, calls, directory, server, api }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket).await
    }

    pub(crate) fn calls(&self) -> Vec<Noted> {
        self.calls.lock().expect("no test panics with it").clone()
    }

    pub(crate) fn add_own_user_to_group(&self) {
        fs::write(self.directory.path().join("group"), "meshd-test:x:54321:other,tester\n").expect("writable");
    }

    /// Sends bytes and returns what comes back until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.expect("the server listens");
        // The server may hang up before it has read everything.
        drop(stream.write_all(bytes).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks as another node would, over a connection of its own.
    pub(crate) async fn ask_as_node(&self, missing: bool, path: &str) -> String {
        let (mut near, far) = tokio::io::duplex(64 << 10);
        let missing = missing.then(|| ApiError::new(ErrorCode::RemoteRefused, "the right is missing"));
        let node = RemoteNode {
            key: "0a1b".into(),
            vdc: "acme".into(),
            missing,
            cut: CancellationToken::new(),
            alive: Arc::new(()),
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        near.write_all(request.as_bytes()).await.expect("there is room");
        let mut answer = Vec::new();
        let read = near.read_to_end(&mut answer);
        let (_, read) = tokio::join!(self.api.serve_node(far, node), read);
        read.expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Waits until the server has returned by itself.
    pub(crate) async fn stopped(mut self) {
        self.server.join_next().await.expect("one task").expect("it did not panic");
    }
}

fn own_uid() -> u32 {
    fs::metadata("/proc/self").expect("a Linux system").uid()
}

/// Holds calls that name the VDC `slow` until it is opened. Each count is a level to wait for.
pub(crate) struct Gate {
    entered: Semaphore,
    opened: Semaphore,
    finished: Semaphore,
    dropped: Semaphore,
}

impl Gate {
    fn new() -> Self {
        let zero = || Semaphore::new(0);
        Self { entered: zero(), opened: zero(), finished: zero(), dropped: zero() }
    }

    async fn take(semaphore: &Semaphore) {
        semaphore.acquire().await.expect("never closed").forget();
    }

    async fn pass(&self) {
        self.entered.add_permits(1);
        Self::take(&self.opened).await;
        self.finished.add_permits(1);
    }

    /// A call has come.
    pub(crate) async fn entered(&self) {
        Self::take(&self.entered).await;
    }

    /// Lets one call pass.
    pub(crate) fn open(&self) {
        self.opened.add_permits(1);
    }

    /// A call has passed.
    pub(crate) async fn finished(&self) {
        Self::take(&self.finished).await;
    }

    /// An endless stream or a pipe was dropped.
    pub(crate) async fn dropped(&self) {
        Self::take(&self.dropped).await;
    }
}

/// Tells the gate when it goes.
struct Dropped(Arc<Gate>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.dropped.add_permits(1);
    }
}

struct Fake {
    own: Weak<Self>,
    pipes: Mutex<JoinSet<()>>,
    socket: PathBuf,
    gate: Arc<Gate>,
    calls: Arc<Mutex<Vec<Noted>>>,
}

impl Fake {
    fn note(&self, operation: &'static str, call: Option<&Call>, arguments: &[&dyn Debug]) {
        let arguments: Vec<String> =
            arguments.iter().map(|argument| format!("{argument:?}").trim_matches('"').to_owned()).collect();
        let noted = Noted { operation, arguments: arguments.join(" "), call: call.cloned() };
        self.calls.lock().expect("no test panics with it").push(noted);
    }
}

fn items<T: Send + 'static>(items: Vec<T>) -> Items<T> {
    stream::iter(items.into_iter().map(Ok)).boxed()
}

#[async_trait]
impl Backend for Fake {
    async fn version(&self) -> Result<Version, ApiError> {
        self.note("version", None, &[]);
        Ok(samples::version())
    }
    async fn health(&self) -> Result<Health, ApiError> {
        self.note("health", None, &[]);
        Ok(samples::health())
    }
    async fn status(&self, query: StatusQuery) -> Result<Status, ApiError> {
        self.note("status", None, &[&query]);
        Ok(samples::status())
    }
    async fn events(&self, query: EventsQuery) -> Result<EventList, ApiError> {
        self.note("events", None, &[&query]);
        Ok(samples::event_list())
    }
    async fn events_stream(&self, query: EventsQuery) -> Result<Items<EventView>, ApiError> {
        self.note("events_stream", None, &[&query]);
        Ok(items(samples::event_list().events))
    }
    async fn metrics(&self) -> Result<String, ApiError> {
        self.note("metrics", None, &[]);
        Ok(samples::metrics())
    }
    async fn vdc_list(&self) -> Result<VdcList, ApiError> {
        self.note("vdc_list", None, &[]);
        Ok(samples::vdc_list())
    }
    async fn vdc_create(&self, call: &Call, request: VdcCreate) -> Result<VdcCreated, ApiError> {
        self.note("vdc_create", Some(call), &[&request]);
        Ok(samples::vdc_created())
    }
    async fn vdc_use(&self, call: &Call, vdc: &str) -> Result<VdcView, ApiError> {
        self.note("vdc_use", Some(call), &[&vdc]);
        Ok(samples::vdc())
    }
    async fn join(&self, call: &Call, request: JoinRequest) -> Result<Items<JoinEvent>, ApiError> {
        self.note("join", Some(call), &[&request]);
        let mut events = samples::join_events();
        match request.token.as_str() {
            "bad" => Err(ApiError::new(ErrorCode::InviteInvalid, "the token is damaged")),
            "panic" => panic!("as asked"),
            "panic-later" => Ok(stream::once(async { panic!("as asked") }).boxed()),
            "used" => {
                let error = ApiError::new(ErrorCode::InviteUsed, "the invite was used by another node");
                Ok(stream::iter([Ok(events.swap_remove(0)), Err(error)]).boxed())
            }
            "slow" => {
                let gate = Arc::clone(&self.gate);
                let last = async move {
                    gate.pass().await;
                    Ok(events.pop().expect("not empty"))
                };
                Ok(stream::once(last).boxed())
            }
            _ => Ok(items(events)),
        }
    }
    async fn vdc_recover(&self, call: &Call, vdc: &str, request: VdcRecover) -> Result<VdcRecovered, ApiError> {
        self.note("vdc_recover", Some(call), &[&vdc, &request]);
        Ok(samples::vdc_recovered())
    }
    async fn leave(&self, call: &Call, vdc: &str, request: LeaveRequest) -> Result<Left, ApiError> {
        self.note("leave", Some(call), &[&vdc, &request]);
        Ok(samples::left())
    }
    async fn renew(&self, call: &Call, vdc: &str) -> Result<Renewed, ApiError> {
        self.note("renew", Some(call), &[&vdc]);
        if vdc == "slow" {
            self.gate.pass().await;
        }
        Ok(samples::renewed())
    }
    async fn node_list(&self, vdc: &str) -> Result<NodeList, ApiError> {
        self.note("node_list", None, &[&vdc]);
        Ok(samples::node_list())
    }
    async fn node_show(&self, vdc: &str, node: &str) -> Result<NodeView, ApiError> {
        self.note("node_show", None, &[&vdc, &node]);
        match node {
            "ghost" => Err(ApiError::not_found("no node is called ghost")
                .hint("list them with `meshctl node list`")
                .cause("looked in acme")),
            "panic" => panic!("as asked"),
            _ => Ok(samples::node_berlin()),
        }
    }
    async fn node_revoke(&self, call: &Call, vdc: &str, node: &str, r: NodeRevoke) -> Result<NodeRevoked, ApiError> {
        self.note("node_revoke", Some(call), &[&vdc, &node, &r]);
        Ok(samples::node_revoked())
    }
    async fn node_issued(&self, vdc: &str, node: &str, query: IssuedQuery) -> Result<IssuedList, ApiError> {
        self.note("node_issued", None, &[&vdc, &node, &query]);
        Ok(samples::issued_list())
    }
    async fn grant(&self, call: &Call, vdc: &str, node: &str, change: GrantChange) -> Result<NodeView, ApiError> {
        self.note("grant", Some(call), &[&vdc, &node, &change]);
        Ok(samples::node_berlin())
    }
    async fn peers(&self, vdc: &str) -> Result<PeerList, ApiError> {
        self.note("peers", None, &[&vdc]);
        Ok(samples::peer_list())
    }
    async fn connect(&self, call: &Call, vdc: &str, request: ConnectRequest) -> Result<Connected, ApiError> {
        self.note("connect", Some(call), &[&vdc, &request]);
        Ok(samples::connected())
    }
    async fn ping(&self, vdc: &str, query: PingQuery) -> Result<Items<PingEvent>, ApiError> {
        self.note("ping", None, &[&vdc, &query]);
        if vdc != "slow" {
            return Ok(items(samples::ping_events()));
        }
        self.gate.entered.add_permits(1);
        let dropped = Dropped(Arc::clone(&self.gate));
        let endless = async move {
            let _dropped = dropped;
            futures::future::pending().await
        };
        Ok(stream::once(endless).boxed())
    }
    async fn invite_list(&self, vdc: &str) -> Result<InviteList, ApiError> {
        self.note("invite_list", None, &[&vdc]);
        Ok(samples::invite_list())
    }
    async fn invite_create(&self, call: &Call, vdc: &str, request: InviteCreate) -> Result<InviteCreated, ApiError> {
        self.note("invite_create", Some(call), &[&vdc, &request]);
        Ok(samples::invite_created())
    }
    async fn invite_revoke(&self, call: &Call, vdc: &str, invite: &str) -> Result<InviteView, ApiError> {
        self.note("invite_revoke", Some(call), &[&vdc, &invite]);
        Ok(samples::invite())
    }
    async fn site_list(&self, vdc: &str) -> Result<SiteList, ApiError> {
        self.note("site_list", None, &[&vdc]);
        Ok(samples::site_list())
    }
    async fn site_add(&self, call: &Call, vdc: &str, request: SiteAdd) -> Result<SiteAdded, ApiError> {
        self.note("site_add", Some(call), &[&vdc, &request]);
        Ok(samples::site_added())
    }
    async fn exposure_list(&self, vdc: &str) -> Result<ExposureList, ApiError> {
        self.note("exposure_list", None, &[&vdc]);
        Ok(samples::exposure_list())
    }
    async fn exposure_change(&self, call: &Call, vdc: &str, change: ExposureChange) -> Result<ExposureView, ApiError> {
        self.note("exposure_change", Some(call), &[&vdc, &change]);
        Ok(samples::exposure_list().exposures.swap_remove(1))
    }
    async fn block_list(&self, vdc: &str) -> Result<BlockList, ApiError> {
        self.note("block_list", None, &[&vdc]);
        Ok(samples::block_list())
    }
    async fn block_create(&self, call: &Call, vdc: &str, request: BlockCreate) -> Result<BlockView, ApiError> {
        self.note("block_create", Some(call), &[&vdc, &request]);
        Ok(samples::block())
    }
    async fn block_lift(&self, call: &Call, vdc: &str, block: &str) -> Result<BlockView, ApiError> {
        assert_ne!(block, "panic", "as asked");
        self.note("block_lift", Some(call), &[&vdc, &block]);
        Ok(BlockView { lifted: true, ..samples::block() })
    }
    async fn explain(&self, vdc: &str, query: ExplainQuery) -> Result<Explanation, ApiError> {
        self.note("explain", None, &[&vdc, &query]);
        Ok(samples::explanation())
    }
    fn coord(&self) -> Option<Arc<dyn CoordBackend>> {
        let own: Arc<dyn CoordBackend> = self.own.upgrade()?;
        Some(own)
    }
    async fn remote(&self, vdc: &str, on: &str) -> Result<Option<Pipe>, ApiError> {
        self.note("remote", None, &[&vdc, &on]);
        match on {
            "here" => Ok(None),
            "away" => Err(ApiError::new(ErrorCode::RemoteUnreachable, "away does not answer")),
            // This very API stands for another node's.
            _ => {
                let stream = UnixStream::connect(&self.socket).await;
                Ok(Some(Box::new(stream.expect("the server listens"))))
            }
        }
    }
}

/// The far end of a pipe: echoes what comes; once that ends, says so, and ends too.
async fn echo(mut far: DuplexStream, greeting: &'static str) -> std::io::Result<()> {
    far.write_all(greeting.as_bytes()).await?;
    let mut piece = vec![0; 16 << 10];
    loop {
        let count = far.read(&mut piece).await?;
        if count == 0 {
            far.write_all(b"that was all").await?;
            return far.shutdown().await;
        }
        far.write_all(&piece[..count]).await?;
    }
}

impl Fake {
    /// A pipe to an echo; in the VDC `slow` the gate is told when it begins and when it is dropped.
    fn pipe(&self, vdc: &str, greeting: &'static str) -> Pipe {
        let (near, far) = tokio::io::duplex(16 << 10);
        let dropped = (vdc == "slow").then(|| {
            self.gate.entered.add_permits(1);
            Dropped(Arc::clone(&self.gate))
        });
        // It ends with the pipe; how is seen by the client.
        self.pipes.lock().expect("no test panics with it").spawn(async move {
            drop(echo(far, greeting).await);
            drop(dropped);
        });
        Box::new(near)
    }
}

#[async_trait]
impl WorkloadBackend for Fake {
    async fn workload_run(&self, call: &Call, vdc: &str, request: WorkloadRun) -> Result<Items<RunEvent>, ApiError> {
        self.note("workload_run", Some(call), &[&vdc, &request.image]);
        let mut events = samples::run_events();
        match request.image.as_str() {
            "slow" => {
                let gate = Arc::clone(&self.gate);
                let last = async move {
                    gate.pass().await;
                    Ok(events.pop().expect("not empty"))
                };
                Ok(stream::once(last).boxed())
            }
            "ghost" => {
                let error = ApiError::new(ErrorCode::ImageNotFound, "the registry does not have ghost");
                Ok(stream::iter([Ok(events.swap_remove(0)), Err(error)]).boxed())
            }
            _ => Ok(items(events)),
        }
    }
    async fn workload_list(&self, vdc: &str) -> Result<WorkloadList, ApiError> {
        self.note("workload_list", None, &[&vdc]);
        Ok(samples::workload_list())
    }
    async fn workload_show(&self, vdc: &str, workload: &str) -> Result<WorkloadView, ApiError> {
        self.note("workload_show", None, &[&vdc, &workload]);
        Ok(samples::workload())
    }
    async fn workload_start(&self, call: &Call, vdc: &str, workload: &str) -> Result<WorkloadView, ApiError> {
        self.note("workload_start", Some(call), &[&vdc, &workload]);
        Ok(samples::workload())
    }
    async fn workload_stop(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: StopRequest,
    ) -> Result<WorkloadView, ApiError> {
        self.note("workload_stop", Some(call), &[&vdc, &workload, &request]);
        Ok(samples::workload_ended())
    }
    async fn workload_signal(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: SignalRequest,
    ) -> Result<WorkloadView, ApiError> {
        self.note("workload_signal", Some(call), &[&vdc, &workload, &request]);
        Ok(samples::workload())
    }
    async fn workload_remove(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        query: RemoveQuery,
    ) -> Result<WorkloadRemoved, ApiError> {
        self.note("workload_remove", Some(call), &[&vdc, &workload, &query]);
        Ok(samples::workload_removed())
    }
    async fn workload_wait(&self, vdc: &str, workload: &str, query: WaitQuery) -> Result<Waited, ApiError> {
        self.note("workload_wait", None, &[&vdc, &workload, &query]);
        Ok(samples::waited())
    }
    async fn workload_logs(&self, vdc: &str, workload: &str, query: LogsQuery) -> Result<Items<LogEvent>, ApiError> {
        self.note("workload_logs", None, &[&vdc, &workload, &query]);
        Ok(items(samples::log_events()))
    }
    async fn workload_stats(
        &self,
        vdc: &str,
        workload: &str,
        query: StatsQuery,
    ) -> Result<Items<StatsEvent>, ApiError> {
        self.note("workload_stats", None, &[&vdc, &workload, &query]);
        Ok(items(samples::stats_events()))
    }
    async fn workload_exec(&self, call: &Call, vdc: &str, workload: &str, r: ExecRequest) -> Result<Pipe, ApiError> {
        self.note("workload_exec", Some(call), &[&vdc, &workload, &r.args]);
        match workload {
            "stopped" => Err(ApiError::new(ErrorCode::NotRunning, "stopped does not run")),
            _ => Ok(self.pipe(vdc, "exec:")),
        }
    }
    async fn workload_attach(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: AttachRequest,
    ) -> Result<Pipe, ApiError> {
        self.note("workload_attach", Some(call), &[&vdc, &workload, &request]);
        Ok(self.pipe(vdc, "attach:"))
    }
    async fn workload_copy(
        &self,
        call: &Call,
        vdc: &str,
        workload: &str,
        request: CopyRequest,
    ) -> Result<Pipe, ApiError> {
        self.note("workload_copy", Some(call), &[&vdc, &workload, &request]);
        Ok(self.pipe(vdc, "copy:"))
    }
    async fn capacity(&self, vdc: &str) -> Result<Capacity, ApiError> {
        self.note("capacity", None, &[&vdc]);
        Ok(samples::capacity())
    }
    async fn image_list(&self, vdc: &str) -> Result<ImageList, ApiError> {
        self.note("image_list", None, &[&vdc]);
        Ok(samples::image_list())
    }
    async fn image_pull(&self, call: &Call, vdc: &str, request: ImagePull) -> Result<Items<PullEvent>, ApiError> {
        self.note("image_pull", Some(call), &[&vdc, &request.image]);
        Ok(items(samples::pull_events()))
    }
    async fn image_tag(&self, call: &Call, vdc: &str, request: ImageTag) -> Result<ImageView, ApiError> {
        self.note("image_tag", Some(call), &[&vdc, &request]);
        Ok(samples::image())
    }
    async fn image_remove(&self, call: &Call, vdc: &str, image: &str) -> Result<ImagesFreed, ApiError> {
        self.note("image_remove", Some(call), &[&vdc, &image]);
        Ok(samples::images_freed())
    }
    async fn image_clean(&self, call: &Call, vdc: &str) -> Result<ImagesFreed, ApiError> {
        self.note("image_clean", Some(call), &[&vdc]);
        Ok(samples::images_freed())
    }
}

/// Bytes of a backup behind its first line, in pieces.
pub(crate) const ROWS: [&str; 3] = ["rows and ", "more rows", "\n"];

#[async_trait]
impl CoordBackend for Fake {
    async fn coord_status(&self, vdc: &str) -> Result<CoordStatus, ApiError> {
        self.note("coord_status", None, &[&vdc]);
        Ok(samples::coord_status())
    }
    async fn coord_recover(&self, call: &Call, vdc: &str, request: CoordRecover) -> Result<RecoverView, ApiError> {
        self.note("coord_recover", Some(call), &[&vdc, &request]);
        Ok(if request.confirm { samples::recovered_view() } else { samples::recover_view() })
    }
    async fn coord_backup(&self, call: &Call, vdc: &str, request: CoordBackup) -> Result<Backup, ApiError> {
        self.note("coord_backup", Some(call), &[&vdc, &request]);
        if request.home == GroupHome::Site("nowhere".into()) {
            return Err(ApiError::new(ErrorCode::UnknownGroup, "there is no group of site nowhere"));
        }
        let mut rows: Vec<_> = ROWS.iter().map(|piece| Ok((*piece).into())).collect();
        let rows = match vdc {
            "slow" => {
                self.gate.entered.add_permits(1);
                let dropped = Dropped(Arc::clone(&self.gate));
                let endless = async move {
                    let _dropped = dropped;
                    futures::future::pending().await
                };
                stream::once(endless).boxed()
            }
            "broken" => {
                rows.push(Err(ApiError::new(ErrorCode::Storage, "the disk has gone")));
                stream::iter(rows).boxed()
            }
            "panic" => stream::once(async { panic!("as asked") }).boxed(),
            _ => stream::iter(rows).boxed(),
        };
        Ok(Backup { header: samples::backup_header(), rows })
    }
    async fn coord_restore(
        &self,
        call: &Call,
        vdc: &str,
        query: RestoreQuery,
        mut backup: Backup,
    ) -> Result<RestoreView, ApiError> {
        self.note("coord_restore", Some(call), &[&vdc, &query]);
        if vdc == "foreign" {
            return Err(ApiError::new(ErrorCode::BackupForeign, "this is a backup of another VDC"));
        }
        let mut length = 0;
        while let Some(piece) = backup.rows.next().await {
            let piece = piece.inspect_err(|error| self.note("coord_restore_failed", None, &[&error.message]))?;
            length += u64::try_from(piece.len()).expect("short");
            if vdc == "slow" {
                self.gate.entered.add_permits(1);
            }
        }
        Ok(RestoreView { revision: length, ..samples::restore_view() })
    }
}
