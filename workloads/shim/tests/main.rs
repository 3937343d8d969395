//! Real containers from a root of busybox-static, in namespaces and control groups of the test's own. Needs root.

#[path = "../src/frame.rs"]
mod frame;
mod lab;
mod life;
mod programs;
#[path = "../src/wire.rs"]
#[expect(dead_code, reason = "a test speaks one side of the protocol")]
mod wire;
