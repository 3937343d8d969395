//! The container driver: from a request to a container that runs, and back to a host without a trace of it.
//!
//! [`Driver`] makes the root, the limits and the OCI bundle, lets a shim (or a runtime of the host) run it, and finds
//! after a restart of the daemon what is still there. It pulls no image, makes no network namespace and restarts nothing.
//!
//! Invariants: a failed start and [`Driver::remove`] leave no mount, control group, process or directory; what the host
//! cannot do is told by [`Degraded`], never left out in silence; text from images is followed inside of their root only.

mod bundle;
mod caps;
mod cgroup;
mod copy;
mod driver;
mod error;
mod exitfile;
mod external;
mod idmap;
mod limits;
mod process;
mod request;
mod rootfs;
mod seccomp;
mod seed;
mod serve;
mod shim;
mod sys;
mod user;
mod workdir;

pub use caps::ALL as CAPABILITIES;
pub use cgroup::Layout;
pub use driver::{Driver, DriverConfig, Launcher};
pub use idmap::RANGE_IDS;
pub use request::{
    Adopted, AdoptedState, Copy, Degraded, ExecRequest, Exit, ExitCause, Happening, HealthCheck, HealthState, HeldPort,
    HostFacts, Limits, RootLayers, RuntimeError, Security, StartRequest, Started, Stats, StreamPoint, Volume,
    WorkloadId,
};
pub use shim::Happenings;
pub use user::{ResolvedUser, UserError, find_user};

use workloads_wire::message as wire;
