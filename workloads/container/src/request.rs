//! What the driver is asked for and what it answers. Plain data: paths, numbers and text that were checked before.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::cgroup::Layout;
use crate::error::StepError;
use crate::user::UserError;

/// A workload's identity; as text 32 hexadecimal digits, the name of its directories and control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId(pub [u8; 16]);

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for WorkloadId {
    type Err = ();

    /// Exactly the text that [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(()),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let pairs: &[[u8; 2]; 16] = pairs.try_into().map_err(|_| ())?;
        let mut id = [0; 16];
        for (byte, [high, low]) in id.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        if rest.is_empty() { Ok(Self(id)) } else { Err(()) }
    }
}

/// The layers of an image, as the store keeps them: one directory with one directory per layer, ids unshifted, whiteouts
/// and opaque directories in the overlay's form.
#[derive(Clone, Debug)]
pub struct RootLayers {
    pub directory: PathBuf,
    /// Names in `directory`, bottom first.
    pub layers: Vec<String>,
    /// Which of them says whose the root directory is and with which mode; without one it is root's, and everybody's to
    /// read.
    pub root_layer: Option<String>,
}

/// What a container is kept to. A limit that the host cannot hold it to is left out and told in [`Started`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// 4,096 unless given.
    pub pids: Option<u32>,
    /// 10 to 1,000.
    pub io_weight: Option<u16>,
}

/// How far a container is trusted. Capabilities are named as Linux names them, `CAP_NET_RAW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    pub privileged: bool,
    pub user_namespace: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub read_only: bool,
    pub seccomp: bool,
    pub no_new_privs: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            privileged: false,
            user_namespace: true,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            read_only: false,
            seccomp: true,
            no_new_privs: true,
        }
    }
}

/// A directory or file of the host that the container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// On the host, absolute. The ids in it are the container's own where the filesystem can map them.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    pub read_only: bool,
    /// An empty one gets what the image has there.
    pub seed: bool,
}

/// A port of the host, bound and never served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPort {
    /// All addresses of both families unless given.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub udp: bool,
}

/// A program that tells by its status how the container fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub args: Vec<Vec<u8>>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Failures this early do not count.
    pub start_period: Duration,
}

/// One container to be started: a workload's specification and its image's configuration, already made one.
#[derive(Clone, Debug)]
pub struct StartRequest {
    pub id: WorkloadId,
    /// Of the specification; told again by [`crate::Driver::adopt`].
    pub generation: u64,
    pub root: RootLayers,
    /// Program and arguments.
    pub args: Vec<Vec<u8>>,
    pub env: Vec<(String, String)>,
    pub workdir: String,
    /// As an image writes it; empty is root.
    pub user: String,
    pub tty: bool,
    /// Its input stays open for those who attach.
    pub stdin: bool,
    /// The program waits up to 5 s for somebody who attaches, who then misses nothing.
    pub hold_for_attach: bool,
    pub limits: Limits,
    pub security: Security,
    pub volumes: Vec<Volume>,
    /// Ports of the host that are kept from everybody else while the container lives.
    pub held_ports: Vec<HeldPort>,
    pub health: Option<HealthCheck>,
    /// First of 65,536 ids of the host that nobody else uses.
    pub uid_base: u32,
    /// A pinned network namespace of the host's user namespace.
    pub netns: PathBuf,
    pub hostname: String,
    pub resolv_conf: String,
    pub hosts: String,
    /// Nothing is kept when it ends, so nothing is synced either.
    pub remove: bool,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Of its first process, in the host's numbers.
    pub pid: u32,
    pub degraded: Vec<Degraded>,
}

/// Something asked for that this host does not do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    pub what: &'static str,
    pub why: String,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 128 + n for signal n.
    pub code: i32,
    pub signal: Option<u8>,
    pub oom_killed: bool,
    pub at: SystemTime,
    pub cause: ExitCause,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// The program's own status.
    Process,
    /// The container's parent was lost, and the status with it.
    ShimLost,
    /// The program never ran.
    StartFailed,
}

/// What a health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    Starting,
    Healthy,
    Unhealthy,
}

/// Something that happened to a running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    Health {
        state: HealthState,
        /// The end of what the last check wrote.
        output: String,
    },
    /// Nothing comes after it.
    Ended(Exit),
}

/// A container found under the run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub id: WorkloadId,
    pub generation: u64,
    pub state: AdoptedState,
}

/// What it was doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdoptedState {
    Running { pid: u32 },
    Exited(Exit),
}

/// What a container used up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub memory_bytes_max: u64,
    pub pids: u64,
    pub oom_kills: u64,
    /// Over all its links but the loopback.
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// One more program in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    pub args: Vec<Vec<u8>>,
    pub env: Vec<(String, String)>,
    pub workdir: Option<String>,
    /// As an image writes it; the container's own user unless given.
    pub user: Option<String>,
    /// Rows and columns of its terminal.
    pub tty: Option<(u16, u16)>,
    pub stdin: bool,
}

/// Which way files go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// From the container: a tar stream whose first name is the last of the path.
    Out,
    /// Into the directory at the path.
    In,
}

/// Where a program's streams are: connect, send the token, then frames both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPoint {
    pub socket: PathBuf,
    pub token: [u8; 16],
}

/// What this host can do for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub cgroups: Layout,
    /// `memory`, `swap`, `cpu`, `pids`, `io` and others that were tried and work.
    pub controllers: Vec<String>,
    pub user_namespaces: bool,
    /// The layer directory can be seen through an id map.
    pub id_maps: bool,
    pub seccomp: bool,
    /// Limits of processes can be raised.
    pub sys_resource: bool,
}

/// Why the driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("no container {id} is known here")]
    NotFound { id: WorkloadId },
    #[error(transparent)]
    UnknownUser(#[from] UserError),
    #[error("could not {step}")]
    Host {
        /// Completes "could not …".
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{why}")]
    Refused { why: String },
    /// The program does not run, and why: the shim's step, its words, and the status that stands for it (125, 126, 127).
    #[error("the program was not started: {message}")]
    Failed { step: String, message: String, code: i32 },
    /// What the runtime that makes the container said.
    #[error("the container was not started: {message}")]
    Shim { message: String },
    #[error("the container did not {what} in time")]
    Timeout { what: &'static str },
}

impl From<StepError> for RuntimeError {
    fn from(error: StepError) -> Self {
        Self::Host { step: error.step, source: error.source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_only_as_they_are_written() {
        let id = WorkloadId([0x0f; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let long = "0".repeat(33);
        for bad in ["", "0f", "../../../../../../../../etc/xx/yy", "0F0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", &long] {
            assert_eq!(bad.parse::<WorkloadId>(), Err(()), "{bad}");
        }
    }
}
