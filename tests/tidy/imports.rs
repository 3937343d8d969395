//! Who may import whom.

use crate::workspace::{Dependency, Kind, Workspace};

/// Crates that read no clock, randomness, file or socket: time and seeds are arguments.
pub(crate) const PURE: &[&str] = &["vdc", "vdc-api", "vdc-coord", "vdc-overlay", "workloads-wire"];

/// The only foreign crates that pure crates may reach, directly or not. Before adding one, look that it cannot read a
/// clock, the system's randomness, files or sockets with the features in use.
const PURE_CLOSURE: &[&str] = &[
    "arrayvec",
    "blake3",
    "block-buffer",
    "cfg-if",
    "constant_time_eq",
    "cpufeatures",
    "crypto-common",
    "curve25519-dalek",
    "data-encoding",
    "digest",
    "ed25519",
    "ed25519-dalek",
    "equivalent",
    "hashbrown",
    "hybrid-array",
    "indexmap",
    "itoa",
    "memchr",
    "minicbor",
    "rand_core",
    "serde",
    "serde_core",
    "serde_json",
    "sha2",
    "signature",
    "subtle",
    "thiserror",
    "typenum",
    "utoipa",
    "x25519-dalek",
    "zeroize",
    "zmij",
];

/// Programs and what only serves them: nothing imports these.
const BINARIES: &[&str] = &["meshd", "meshd-shim", "meshctl", "simulations", "tests", "xtask"];
/// Crates that exist for tests only.
const TEST_SUPPORT: &[&str] = &["coordbox", "fuzz-targets", "meshlab"];

/// Heavy or dangerous dependencies and the only crates that may name them.
const LEAVES: &[(&str, &[&str], &str)] = &[
    ("libp2p", &["meshd-control"], "a swarm library is minutes of compile time, and its types must not spread"),
    ("axum", &["meshd-web"], "the HTTP server is the API's door and nobody else's"),
    ("hickory", &["meshd-dns"], "DNS messages are parsed in one place"),
    ("boringtun", &["meshd-tun"], "the pure overlay sees the Noise trait only; the real engine reads clocks"),
    ("rtnetlink", &["meshd-tun"], "links, addresses and routes are set in one place"),
    ("nftables", &["meshd-firewall"], "the packet filter is written in one place"),
    ("openraft", &["meshd-coord"], "consensus is behind the driver's own types, which outlive any release of it"),
    (
        "redb",
        &["meshd-coord", "meshd-state"],
        "what is on disk is written in two places: the roster's store and the groups'",
    ),
    ("libcontainer", &["meshd-shim"], "it forks from its caller: only a program with one thread may hold it"),
    (
        "oci-spec",
        &["meshd-shim", "workloads-container", "workloads-image"],
        "the OCI's documents are read and written where they are used, and are no types of ours",
    ),
    ("zbus", &["meshd-dns"], "D-Bus is spoken to the host's resolver only"),
    ("clap", &["coordbox", "meshd", "meshctl", "simulations", "tests", "xtask"], "only programs have a command line"),
    (
        "anyhow",
        &["coordbox", "meshd", "meshctl", "meshlab", "simulations", "tests", "xtask"],
        "libraries have typed errors",
    ),
];

/// Why `member` may not depend on our crate `on`, if so.
fn refusal(member: &str, on: &str, kind: Kind) -> Option<&'static str> {
    if BINARIES.contains(&on) {
        return Some("nothing imports the binaries");
    }
    if kind == Kind::Dev && TEST_SUPPORT.contains(&on) {
        return None;
    }
    match member {
        // The composition root meets every crate but the test support, and `tests` may use that too.
        "meshd" if !TEST_SUPPORT.contains(&on) => None,
        "meshd" => Some("the daemon ships nothing that exists for tests"),
        "tests" => None,
        "meshctl" if on == "vdc-api" => None,
        "meshctl" => {
            Some("the CLI knows the HTTP API and nothing else of ours, so that the API is enough for everybody")
        }
        "xtask" => Some("routines build even when the product does not"),
        "meshlab" => Some("the lab knows networks, not the product"),
        "simulations" | "fuzz-targets" if PURE.contains(&on) => None,
        // Its decoders read bytes at hand and touch nothing; only what is around them does.
        "fuzz-targets" if on == "workloads-image" => None,
        "simulations" => Some("what deserves simulation must be pure"),
        "fuzz-targets" => Some("every decoder of foreign bytes lives in a pure crate"),
        _ if PURE.contains(&on) => None,
        _ if PURE.contains(&member) => Some("pure crates import pure crates only"),
        _ => Some("IO crates meet each other only in package meshd, through handles and channels"),
    }
}

/// Why `member` may not depend on the foreign crate `on`, if so.
fn leaf_refusal(member: &str, on: &str) -> Option<String> {
    let (_, owners, why) = LEAVES
        .iter()
        .find(|(prefix, _, _)| on == *prefix || on.strip_prefix(prefix).is_some_and(|r| r.starts_with('-')))?;
    (!owners.contains(&member)).then(|| format!("{member} may not depend on {on}, only {}: {why}", owners.join(", ")))
}

/// Manifest sections that hold dependencies, with each entry.
fn declared(manifest: &toml::Table) -> Vec<(String, &toml::Value)> {
    let mut sections: Vec<&toml::Table> = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        sections.extend(targets.values().filter_map(toml::Value::as_table));
    }
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let tables = sections.iter().flat_map(|s| kinds.iter().filter_map(|kind| s.get(*kind)?.as_table()));
    tables.flat_map(|table| table.iter().map(|(name, value)| (name.clone(), value))).collect()
}

fn inherits(value: &toml::Value) -> bool {
    value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
}

/// Entries of `[workspace.dependencies]` that no member names.
fn unused_entries(workspace: &toml::Table, members: &[&toml::Table]) -> Vec<String> {
    let entries = workspace.get("workspace").and_then(|w| w.get("dependencies")).and_then(toml::Value::as_table);
    let used: Vec<String> = members.iter().flat_map(|m| declared(m)).map(|(name, _)| name).collect();
    entries.into_iter().flat_map(toml::Table::keys).filter(|name| !used.contains(name)).cloned().collect()
}

/// Dependencies of a member whose Rust name stands in none of its sources.
fn unmentioned(dependencies: &[Dependency], sources: &[String]) -> Vec<String> {
    let mentioned = |name: &str| {
        let rust_name = name.replace('-', "_");
        sources.iter().any(|code| !crate::scan::lines_with(code, &rust_name).is_empty())
    };
    dependencies.iter().map(|d| d.name.clone()).filter(|name| !mentioned(name)).collect()
}

/// Dependencies that are there for their features or for what they link, not to be named in code.
const UNMENTIONED: &[(&str, &str, &str)] = &[];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;
    use crate::scan::code_only;

    #[test]
    fn our_crates_import_only_whom_they_may() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for member in &workspace.members {
            for on in member.dependencies.iter().filter(|d| workspace.is_member(&d.name)) {
                if let Some(why) = refusal(&member.name, &on.name, on.kind) {
                    violations.push(format!("{} depends on {}: {why}", member.name, on.name));
                }
            }
        }
        require("our crates import only whom they may", "ARCHITECTURE.md, the layers", &violations);
    }

    #[test]
    fn heavy_dependencies_sit_at_leaves() {
        let workspace = Workspace::load();
        let pairs = workspace.members.iter().flat_map(|m| m.dependencies.iter().map(move |d| (m, d)));
        let violations: Vec<_> = pairs.filter_map(|(m, d)| leaf_refusal(&m.name, &d.name)).collect();
        require("heavy dependencies sit at leaves", "editing pure code must rebuild none of them", &violations);
    }

    #[test]
    fn pure_crates_reach_only_pure_crates() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for pure in PURE {
            let foreign = |name: &String| !PURE.contains(&name.as_str()) && !PURE_CLOSURE.contains(&name.as_str());
            violations.extend(
                workspace.closure(pure).into_iter().filter(foreign).map(|name| {
                    format!("{pure} reaches {name} (`cargo tree -p {pure} -e normal -i {name}` shows how)")
                }),
            );
        }
        require(
            "pure crates reach only crates that are known to be pure",
            "simulations replay from a seed only if nothing below can read a clock, randomness, a file or a socket; \
             PURE_CLOSURE lists what was looked at",
            &violations,
        );
    }

    #[test]
    fn pure_closure_lists_nothing_unused() {
        let workspace = Workspace::load();
        let reached: Vec<String> = PURE.iter().flat_map(|pure| workspace.closure(pure)).collect();
        // Optional parts of the listed crates come and go with other members' features only through `cargo update`.
        let violations: Vec<_> =
            PURE_CLOSURE.iter().filter(|name| !reached.iter().any(|r| r == *name)).map(|n| (*n).to_owned()).collect();
        require("PURE_CLOSURE lists only what is reached", "a list of what was looked at must stay true", &violations);
    }

    #[test]
    fn members_inherit_versions_and_lints() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for member in &workspace.members {
            let own = declared(&member.manifest).into_iter().filter(|(_, value)| !inherits(value));
            violations.extend(own.map(|(name, _)| format!("{}: {name} does not say `workspace = true`", member.name)));
            if !member.manifest.get("lints").is_some_and(inherits) {
                violations.push(format!("{}: no `[lints] workspace = true`", member.name));
            }
        }
        require(
            "members take dependencies and lints from the workspace",
            "one version, one feature set, one place where the reason for an odd choice stands",
            &violations,
        );
    }

    #[test]
    fn workspace_dependencies_are_used() {
        let workspace = Workspace::load();
        let manifests: Vec<_> = workspace.members.iter().map(|m| &m.manifest).collect();
        let violations = unused_entries(&workspace.manifest, &manifests);
        require("each entry of [workspace.dependencies] is used by a member", "delete before you add", &violations);
    }

    #[test]
    fn dependencies_are_mentioned_in_code() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for member in &workspace.members {
            let nested: Vec<_> =
                workspace.members.iter().filter(|m| m.dir != member.dir && m.dir.starts_with(&member.dir)).collect();
            let mut files = workspace.rust_files(&member.dir);
            files.retain(|path, _| !nested.iter().any(|n| path.starts_with(&n.dir)));
            let sources: Vec<_> = files.values().map(|text| code_only(text)).collect();
            let unused = unmentioned(&member.dependencies, &sources).into_iter();
            let excused = |name: &String| UNMENTIONED.iter().any(|(m, d, _)| *m == member.name && d == name);
            violations.extend(unused.filter(|name| !excused(name)).map(|name| format!("{}: {name}", member.name)));
        }
        require(
            "each dependency of a crate is mentioned in its code",
            "an unused one costs compile time and trust; one that is there for its features goes into UNMENTIONED",
            &violations,
        );
    }

    #[test]
    fn import_rules_refuse() {
        for (member, on, kind, allowed) in [
            ("vdc-overlay", "vdc", Kind::Normal, true),
            ("vdc", "meshd-tun", Kind::Normal, false),
            ("vdc", "meshlab", Kind::Normal, false),
            ("meshd-tun", "vdc-overlay", Kind::Normal, true),
            ("meshd-tun", "meshd-web", Kind::Normal, false),
            ("meshd-tun", "meshd-web", Kind::Dev, false),
            ("meshd-tun", "meshlab", Kind::Dev, true),
            ("meshd-tun", "meshlab", Kind::Normal, false),
            ("meshd", "meshd-tun", Kind::Normal, true),
            ("meshd", "meshlab", Kind::Normal, false),
            ("tests", "meshd", Kind::Normal, false),
            ("tests", "meshlab", Kind::Normal, true),
            ("meshctl", "vdc-api", Kind::Normal, true),
            ("meshctl", "vdc", Kind::Normal, false),
            ("simulations", "vdc-overlay", Kind::Normal, true),
            ("simulations", "meshd-control", Kind::Normal, false),
            ("xtask", "vdc", Kind::Normal, false),
            ("meshlab", "vdc", Kind::Normal, false),
        ] {
            assert_eq!(refusal(member, on, kind).is_none(), allowed, "{member} on {on} ({kind:?})");
        }
    }

    #[test]
    fn leaf_rules_refuse() {
        assert!(leaf_refusal("meshd", "libp2p").is_some());
        assert!(leaf_refusal("meshd-web", "libp2p-noise").is_some());
        assert!(leaf_refusal("meshd-control", "libp2p").is_none());
        assert!(leaf_refusal("meshd", "hickory-proto").is_some());
        assert!(leaf_refusal("meshd", "libp2pish").is_none());
    }

    #[test]
    fn unused_dependencies_are_found() {
        let workspace: toml::Table = "[workspace.dependencies]\na = '1'\nb-c = '1'\n".parse().expect("toml");
        let member: toml::Table = "[target.'cfg(unix)'.dev-dependencies]\na.workspace = true\n".parse().expect("toml");
        assert_eq!(unused_entries(&workspace, &[&member]), ["b-c"]);
        let dependencies = [
            Dependency { name: "a".to_owned(), kind: Kind::Normal },
            Dependency { name: "b-c".to_owned(), kind: Kind::Normal },
        ];
        assert_eq!(unmentioned(&dependencies, &["use b_c::x; use aa;".to_owned()]), ["a"]);
    }

    #[test]
    fn own_versions_are_found() {
        let member: toml::Table = "[dependencies]\na = '1'\nb = { workspace = true }\n".parse().expect("toml");
        let own: Vec<_> = declared(&member).into_iter().filter(|(_, v)| !inherits(v)).map(|(n, _)| n).collect();
        assert_eq!(own, ["a"]);
    }
}
