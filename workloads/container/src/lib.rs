//! The container driver.

mod cgroup;
mod error;
mod idmap;
mod rootfs;
mod seccomp;
mod sys;
