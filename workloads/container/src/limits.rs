//! Limits as the bundle states them, and those that this host cannot hold a container to.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::request::{Degraded, Limits};

/// Processes of a container that was given no limit.
pub(crate) const PIDS_DEFAULT: u32 = 4_096;
/// Microseconds over which processor time is counted.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no smaller share of a period.
const QUOTA_US_MIN: u64 = 1_000;
/// Weights of input and output that the kernel takes.
const IO_WEIGHT: std::ops::RangeInclusive<u16> = 10..=1_000;
/// Open files of one process, at most; the soft limit is what old programs expect.
const FILES_MAX: u64 = 524_288;
const FILES_SOFT: u64 = 1_024;

/// `linux.resources` with only what `usable` can enforce: a runtime fails the start over anything else.
pub(crate) fn resources(limits: &Limits, usable: &BTreeSet<String>) -> (Value, Vec<Degraded>) {
    let mut stated = Map::new();
    let mut missing = Vec::new();
    let mut state = |controller: &str, what: &'static str, key: &str, value: Value| {
        if usable.contains(controller) {
            stated.insert(key.to_owned(), value);
        } else {
            missing
                .push(Degraded { what, why: format!("this host has no usable control group controller {controller}") });
        }
    };
    if let Some(bytes) = limits.memory_bytes {
        // The kernel counts in signed numbers; more than that is no limit either way.
        let bytes = bytes.min(i64::MAX.unsigned_abs());
        let value =
            if usable.contains("swap") { json!({ "limit": bytes, "swap": bytes }) } else { json!({ "limit": bytes }) };
        state("memory", "memory limit", "memory", value);
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = (u64::from(millis) * PERIOD_US / 1_000).max(QUOTA_US_MIN);
        state("cpu", "cpu limit", "cpu", json!({ "quota": quota, "period": PERIOD_US }));
    }
    state("pids", "limit of processes", "pids", json!({ "limit": limits.pids.unwrap_or(PIDS_DEFAULT) }));
    if let Some(weight) = limits.io_weight {
        let weight = weight.clamp(*IO_WEIGHT.start(), *IO_WEIGHT.end());
        state("io", "io weight", "blockIO", json!({ "weight": weight }));
    }
    if limits.memory_bytes.is_some() && usable.contains("memory") && !usable.contains("swap") {
        missing
            .push(Degraded { what: "swap limit", why: "this host does not count swap per control group".to_owned() });
    }
    if usable.contains("devices") {
        // Everything is denied first; the runtime then allows the few devices that every container has.
        stated.insert("devices".to_owned(), json!([{ "allow": false, "access": "rwm" }]));
    }
    (Value::Object(stated), missing)
}

/// `process.rlimits`, below `files_hard`, the hard limit of open files of this process: lowering needs no privilege,
/// raising would fail the start where CAP_SYS_RESOURCE is missing.
pub(crate) fn rlimits(files_hard: u64) -> Value {
    let hard = files_hard.min(FILES_MAX);
    json!([
        { "type": "RLIMIT_NOFILE", "soft": hard.min(FILES_SOFT), "hard": hard },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const ALL: Limits =
        Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(500), pids: Some(32), io_weight: Some(5_000) };

    #[test]
    fn what_the_host_can_do_is_stated() {
        let (stated, missing) = resources(&ALL, &usable(&["memory", "swap", "cpu", "pids", "io", "devices"]));
        assert_eq!(missing, []);
        assert_eq!(stated["memory"], json!({ "limit": 67_108_864, "swap": 67_108_864 }));
        assert_eq!(stated["cpu"], json!({ "quota": 50_000, "period": 100_000 }));
        assert_eq!(stated["pids"], json!({ "limit": 32 }));
        assert_eq!(stated["blockIO"], json!({ "weight": 1_000 }));
        assert_eq!(stated["devices"][0]["allow"], false);
    }

    #[test]
    fn what_it_cannot_do_is_left_out_and_told() {
        let (stated, missing) = resources(&ALL, &usable(&[]));
        assert_eq!(stated, json!({}));
        let whats: Vec<&str> = missing.iter().map(|m| m.what).collect();
        assert_eq!(whats, ["memory limit", "cpu limit", "limit of processes", "io weight"]);
        let (stated, missing) = resources(&ALL, &usable(&["memory", "cpu", "pids", "io"]));
        assert_eq!(stated["memory"], json!({ "limit": 67_108_864 }));
        assert_eq!(missing.iter().map(|m| m.what).collect::<Vec<_>>(), ["swap limit"]);
    }

    #[test]
    fn the_smallest_share_and_the_default_hold() {
        let limits = Limits { cpu_millis: Some(1), memory_bytes: Some(u64::MAX), ..Limits::default() };
        let (stated, _) = resources(&limits, &usable(&["memory", "swap", "cpu", "pids"]));
        assert_eq!(stated["cpu"]["quota"], 1_000);
        assert_eq!(stated["pids"]["limit"], 4_096);
        assert_eq!(stated["memory"]["limit"], i64::MAX);
    }

    #[test]
    fn open_files_never_exceed_the_hosts_limit() {
        assert_eq!(rlimits(512)[0], json!({ "type": "RLIMIT_NOFILE", "soft": 512, "hard": 512 }));
        assert_eq!(rlimits(u64::MAX)[0], json!({ "type": "RLIMIT_NOFILE", "soft": 1_024, "hard": 524_288 }));
    }
}
