//! Containers of a VDC's nodes.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Longest time in seconds that one request waits for a workload to end; clients repeat it.
pub const WAIT_S_MAX: u32 = 20;

/// Runs a container on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadRun {
    /// `[REGISTRY/]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or `docker-archive:FILE` (paths of the node that runs it).
    #[schema(example = "registry.example:5000/nginx:1")]
    pub image: String,
    /// A DNS label, unique in the site: `NAME.SITE.VDC.internal` leads to it. Without one the id is the name, and there is
    /// no DNS name.
    pub name: Option<String>,
    /// Arguments in place of the image's CMD.
    pub command: Vec<String>,
    /// Program in place of the image's ENTRYPOINT; empty: none.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=VALUE`, above the image's.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// A terminal instead of three pipes.
    pub tty: bool,
    /// Its input stays open for those who attach.
    pub stdin: bool,
    /// The program waits up to 5 s for the caller to attach, who then misses nothing.
    pub attach: bool,
    /// Ports that the VDC may reach: `80`, `53/udp`, `8000-8010`.
    pub ports: Vec<String>,
    /// Ports of the host that lead to it: `[IP:]HOST_PORT:PORT[/udp]`.
    pub publish: Vec<String>,
    /// `NAME:/PATH[:ro]` or `/HOST/PATH:/PATH[:ro]`.
    pub volumes: Vec<String>,
    /// Labels for policy; believed as far as the node's own grant carries them.
    pub labels: Vec<String>,
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Processes and threads; 4,096 unless given.
    pub pids: Option<u32>,
    /// 10 to 1,000.
    pub io_weight: Option<u16>,
    pub restart: RestartPolicy,
    /// `TERM`, `SIGTERM` or a number, in place of the image's.
    pub stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL; 10 unless given.
    pub stop_grace_s: Option<u32>,
    /// In place of the image's HEALTHCHECK.
    pub health: Option<HealthSpec>,
    /// Without the image's HEALTHCHECK.
    pub no_health: bool,
    /// All capabilities, no seccomp filter, nothing masked; still in its own user namespace unless `host_users`.
    pub privileged: bool,
    /// Without a user namespace of its own: root in it is root of the host.
    pub host_users: bool,
    /// `NET_RAW` or `CAP_NET_RAW`.
    pub add_capabilities: Vec<String>,
    /// The same, or `ALL`.
    pub drop_capabilities: Vec<String>,
    /// The root cannot be written.
    pub read_only: bool,
    /// Without the system call filter.
    pub no_seccomp: bool,
    /// The program may gain privileges by set-user-id files (and has no system call filter).
    pub new_privileges: bool,
    /// It is removed when it ends, and is not restored after a reboot.
    pub remove: bool,
    pub pull: PullPolicy,
    pub registry: RegistryAccess,
}

/// Whether a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// If the node does not have the image.
    #[default]
    Missing,
    Always,
    Never,
}

/// How a registry is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryAccess {
    /// HTTP without TLS.
    pub plain_http: bool,
    /// Certificates in PEM form that are trusted beside the system's.
    pub ca_pem: Option<String>,
    /// Without one, the node's docker credential files are asked.
    pub username: Option<String>,
    pub password: Option<String>,
}

/// What happens when a container ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    Never,
    /// Started again, after a pause that grows to a minute, if its status was not 0.
    OnFailure,
    /// Started again whatever its status was.
    Always,
}

/// A program in the container that tells by its status how it fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthSpec {
    pub args: Vec<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Failures this early do not count.
    #[serde(default)]
    pub start_period_ms: u64,
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum RunEvent {
    Pulling(PullProgress),
    /// It exists; with `attach` its program waits for the caller now.
    Created {
        id: String,
        name: String,
    },
    /// Last.
    Started(Box<WorkloadView>),
}

/// How far a pull or import has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullProgress {
    pub layers_done: u32,
    pub layers_total: u32,
    pub bytes_done: u64,
    /// Of the layers that are not there yet.
    pub bytes_total: u64,
}

/// Where a workload is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Pulling,
    Creating,
    Running,
    Stopping,
    Exited,
    /// It will be started again at `next_retry`.
    BackOff,
}

/// What its health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HealthStatus {
    /// There is no health check.
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// Something asked for that the node cannot do, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DegradedView {
    #[schema(example = "memory limit")]
    pub what: String,
    pub why: String,
}

/// How a workload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitView {
    /// The status, or 128 + n for signal n.
    pub code: i32,
    pub signal: Option<u8>,
    pub oom_killed: bool,
    pub at: String,
    pub cause: ExitReason,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// The program's own status.
    Process,
    /// The process that kept the container was lost, and the status with it.
    ShimLost,
    /// The host was started again.
    HostReboot,
    /// The program never ran.
    StartFailed,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkloadView {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The first 12 digits of the id where none was given.
    pub name: String,
    pub node: String,
    pub site: String,
    /// Its DNS name, if it was given a name.
    pub fqdn: Option<String>,
    /// IPv6 first.
    pub addresses: Vec<String>,
    /// Digest of the image's manifest.
    pub manifest: String,
    pub phase: Phase,
    /// Why it is in that phase.
    pub reason: String,
    pub since: String,
    pub next_retry: Option<String>,
    /// Of its first process, in the host's numbers.
    pub pid: Option<u32>,
    pub exit: Option<ExitView>,
    pub restarts: u32,
    pub health: HealthStatus,
    pub degraded: Vec<DegradedView>,
    pub created_at: String,
    /// What was asked for, without secrets of registries.
    pub spec: WorkloadRun,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkloadList {
    pub workloads: Vec<WorkloadView>,
}

/// Stops a workload; it stays stopped until it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// Seconds between the stop signal and SIGKILL; the workload's own unless given.
    pub grace_s: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// `HUP`, `SIGHUP` or a number.
    pub signal: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct RemoveQuery {
    /// Kill it first if it runs.
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkloadRemoved {
    pub id: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer after so many seconds at the latest, 20 at most.
    pub timeout_s: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waited {
    /// `null`: it still runs.
    pub exit: Option<ExitView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// Go on with what is written from now on.
    pub follow: bool,
    /// Nothing older than this time.
    pub since: Option<String>,
    /// Only the last so many lines of what is there.
    pub tail: Option<u32>,
    /// Only this one.
    pub stream: Option<LogStream>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// What a workload wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum LogEvent {
    Line {
        /// With fractions of a second.
        at: String,
        stream: LogStream,
        /// As written, with its end of line if it has one; what is not UTF-8 is in `base64` instead.
        text: String,
        base64: Option<String>,
    },
    /// So many records, of one or more lines each, were rotated away before they could be read.
    Gap { records: u64 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct StatsQuery {
    /// Every second until the client goes away; once otherwise.
    pub follow: bool,
}

/// What a workload used up to now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatsEvent {
    pub at: String,
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub memory_bytes_max: u64,
    pub pids: u64,
    pub oom_kills: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// What a node has left for workloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// `NODE.SITE`.
    pub node: String,
    pub processors: u32,
    pub memory_bytes: u64,
    pub memory_free_bytes: u64,
    /// Workloads that run.
    pub running: u32,
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// Runs one more program in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    pub args: Vec<String>,
    /// `KEY=VALUE`, above the container's.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// `USER[:GROUP]`; the container's own unless given.
    pub user: Option<String>,
    /// With a terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// Its input is what the client sends.
    pub stdin: bool,
}

/// Joins a running container's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttachRequest {
    pub terminal: Option<TerminalSize>,
}

/// Which way files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CopyDirection {
    /// From the container: a tar stream comes as `stdout` frames; its first name is the last of the path.
    Out,
    /// Into the directory at the path: a tar stream goes as `stdin` frames.
    In,
}

/// Copies files out of a container or into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    pub direction: CopyDirection,
    /// Absolute, in the container.
    pub path: String,
}
