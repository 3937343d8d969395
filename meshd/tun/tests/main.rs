//! Tests against the running kernel, as root, in network namespaces made for each test.
#![expect(clippy::tests_outside_test_module, reason = "an integration test binary is one test module")]

mod lab;
mod network;
mod pair;
mod workload;
