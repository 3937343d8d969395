//! The container driver.

mod bundle;
mod caps;
mod cgroup;
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
mod shim;
mod sys;
mod user;

pub use cgroup::Layout;
pub use driver::{Driver, DriverConfig, Launcher};
pub use idmap::RANGE_IDS;
pub use request::{
    Adopted, AdoptedState, Degraded, ExecRequest, Exit, ExitCause, HostFacts, Limits, RootLayers, RuntimeError, Security, StartRequest,
    Started, Stats, StreamPoint, Volume, WorkloadId,
};
pub use user::{ResolvedUser, UserError, find_user};

use workloads_wire::message as wire;
