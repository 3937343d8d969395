//! Real containers from a root of busybox-static, in namespaces and control groups of the test's own. Needs root.

mod lab;
mod life;
mod programs;
