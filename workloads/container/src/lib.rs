//! The container driver.

mod bundle;
mod caps;
mod cgroup;
mod error;
mod idmap;
mod limits;
mod rootfs;
mod seccomp;
mod sys;
