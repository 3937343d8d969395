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
mod sys;
mod user;

pub use cgroup::Layout;
pub use driver::{Driver, DriverConfig};
pub use idmap::RANGE_IDS;
pub use request::{
    Adopted, AdoptedState, Degraded, Exit, ExitCause, HostFacts, Limits, RootLayers, RuntimeError, Security, StartRequest,
    Started, Stats, Volume, WorkloadId,
};
pub use user::{ResolvedUser, UserError, find_user};
