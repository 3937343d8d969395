//! The container driver.

mod error;
mod idmap;
mod rootfs;
mod seccomp;
mod sys;
