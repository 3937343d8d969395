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
/// The shim's protocol, by its one source.
#[expect(dead_code, reason = "the shim's own half of its protocol")]
#[path = "../../shim/src/wire.rs"]
mod wire;

pub use cgroup::Layout;
pub use driver::{Driver, DriverConfig, Launcher};
pub use idmap::RANGE_IDS;
pub use request::{
    Adopted, AdoptedState, Degraded, ExecRequest, Exit, ExitCause, HostFacts, Limits, RootLayers, RuntimeError, Security, StartRequest,
    Started, Stats, StreamPoint, Volume, WorkloadId,
};
pub use user::{ResolvedUser, UserError, find_user};
