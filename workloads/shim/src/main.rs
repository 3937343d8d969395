//! x
mod cgroup;
mod create;
mod exec;
mod executor;
mod report;
mod sys;
fn main() {}
