//! Documents that would rot otherwise.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A crate's README is a door sign, not a manual.
const README_LINES_MAX: usize = 40;
/// Headings that a decision page must have.
const DECISION_HEADINGS: [&str; 3] = ["## Context", "## Choice", "## What would change it"];

/// Targets of the inline links in a Markdown text, with their line numbers; fenced code is left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, tail)) = after.split_once(')') else { break };
            found.push((number, target.split_ascii_whitespace().next().unwrap_or_default().to_owned()));
            rest = tail;
        }
    }
    found
}

/// Lines outside fenced code, with their numbers from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let mut outside = Vec::new();
    for (number, line) in numbered {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            outside.push((number, line));
        }
    }
    outside
}

/// The anchors that a Markdown text's headings make: lower case, blanks to hyphens, other punctuation gone.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).into_iter().filter(|(_, line)| line.starts_with('#'));
    let slug = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(|(_, line)| slug(line)).collect()
}

/// Links of `documents` that lead nowhere. `exists` answers for paths that are not documents.
fn dead_links(documents: &BTreeMap<PathBuf, String>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for (path, text) in documents {
        for (line, target) in links(text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let dir = path.parent().unwrap_or(Path::new(""));
            let file = if file.is_empty() { path.clone() } else { normal(&dir.join(file)) };
            let alive = match documents.get(&file) {
                Some(document) => anchor.is_empty() || anchors(document).iter().any(|a| a == anchor),
                None => exists(&file),
            };
            if !alive {
                violations.push(format!("{}:{line}: {target}", path.display()));
            }
        }
    }
    violations
}

/// The codes of an enum that is written in kebab case on the wire, read off its source; the catch-all is left out.
fn kebab_variants(source: &str, name: &str) -> Vec<String> {
    let start = format!("pub enum {name} {{");
    let Some((_, body)) = source.split_once(&start) else { return vec![] };
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    let variants = body.lines().filter_map(|line| line.trim().strip_suffix(','));
    let kebab = |variant: &str| {
        let mut code = String::new();
        for c in variant.chars() {
            if c.is_ascii_uppercase() && !code.is_empty() {
                code.push('-');
            }
            code.push(c.to_ascii_lowercase());
        }
        code
    };
    variants
        .filter(|variant| variant.chars().all(|c| c.is_ascii_alphanumeric()))
        .map(kebab)
        .filter(|c| c != "other")
        .collect()
}

/// Directives of systemd that give a service a mount namespace of its own (systemd.exec(5)).
const MOUNT_NAMESPACE_DIRECTIVES: [&str; 31] = [
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExtensionDirectories",
    "ExtensionImages",
    "InaccessiblePaths",
    "LogNamespace",
    "MountAPIVFS",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateBPF",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
];
/// What the unit must say.
const UNIT_LINES: [&str; 4] = ["Type=notify", "Restart=always", "KillMode=process", "Delegate=yes"];

/// What is wrong with the service's unit.
fn unit_violations(unit: &str) -> Vec<String> {
    let mut violations: Vec<String> =
        UNIT_LINES.iter().filter(|wanted| !unit.lines().any(|l| l == **wanted)).map(|l| format!("no {l}")).collect();
    let keys = unit.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| key.trim());
    violations.extend(keys.filter(|key| MOUNT_NAMESPACE_DIRECTIVES.contains(key)).map(str::to_owned));
    violations
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// What is wrong with a decision page.
fn decision_violations(path: &Path, text: &str) -> Vec<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut violations = Vec::new();
    let numbered = name.split_once('-').is_some_and(|(n, _)| n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit()));
    if !numbered {
        violations.push(format!("{}: is not named NNNN-what.md", path.display()));
    }
    for heading in DECISION_HEADINGS {
        if !text.lines().any(|line| line == heading) {
            violations.push(format!("{}: no {heading:?}", path.display()));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;
    use crate::workspace::Workspace;

    fn documents(workspace: &Workspace) -> BTreeMap<PathBuf, String> {
        let mut documents = workspace.files(Path::new(""));
        documents.retain(|path, _| path.extension().is_some_and(|e| e == "md"));
        documents
    }

    #[test]
    fn links_lead_somewhere() {
        let workspace = Workspace::load();
        let violations = dead_links(&documents(&workspace), |path| workspace.root.join(path).exists());
        require("links between documents lead somewhere", "a dead link costs a reader's trust", &violations);
    }

    #[test]
    fn each_crate_has_a_short_readme() {
        let workspace = Workspace::load();
        let mut violations = Vec::new();
        for member in &workspace.members {
            let path = member.dir.join("README.md");
            match std::fs::read_to_string(workspace.root.join(&path)) {
                Err(_) => violations.push(format!("{}: is missing", path.display())),
                Ok(text) if text.lines().count() > README_LINES_MAX => {
                    violations.push(format!("{}: {} lines", path.display(), text.lines().count()));
                }
                Ok(_) => {}
            }
        }
        require(
            "each crate has a README of at most 40 lines",
            "what the room is for and what it is not; more belongs into its documentation",
            &violations,
        );
    }

    #[test]
    fn architecture_names_each_crate() {
        let workspace = Workspace::load();
        let text =
            std::fs::read_to_string(workspace.root.join("ARCHITECTURE.md")).expect("there is an ARCHITECTURE.md");
        let dirs = workspace.members.iter().map(|m| format!("`{}/`", m.dir.display()));
        let violations: Vec<_> = dirs.filter(|dir| !text.contains(dir)).collect();
        require("ARCHITECTURE.md names each crate's folder", "it is the map that newcomers start from", &violations);
    }

    #[test]
    fn decisions_say_what_would_change_them() {
        let workspace = Workspace::load();
        let mut pages = workspace.files(Path::new("docs/decisions"));
        pages.remove(Path::new("docs/decisions/README.md"));
        let mut violations: Vec<_> = pages.iter().flat_map(|(path, text)| decision_violations(path, text)).collect();
        let index =
            std::fs::read_to_string(workspace.root.join("docs/decisions/README.md")).expect("there is an index");
        let linked: Vec<_> = links(&index).into_iter().map(|(_, target)| target).collect();
        for path in pages.keys() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !linked.iter().any(|l| *l == name) {
                violations.push(format!("{}: docs/decisions/README.md does not link it", path.display()));
            }
        }
        require(
            "decision pages have their three parts and stand in the index",
            "a decision without its reasons can be neither kept nor changed",
            &violations,
        );
    }

    #[test]
    fn operations_page_explains_every_problem() {
        let workspace = Workspace::load();
        let read = |path: &str| std::fs::read_to_string(workspace.root.join(path)).expect("the file is there");
        let codes = kebab_variants(&read("vdc/api/src/meta.rs"), "ProblemCode");
        assert!(codes.len() > 10, "the codes are found: {codes:?}");
        let page = read("docs/operations.md");
        let violations: Vec<_> = codes.into_iter().filter(|code| !page.contains(&format!("| `{code}` |"))).collect();
        require(
            "docs/operations.md explains each problem that `status` can show",
            "an operator looks the code up at night",
            &violations,
        );
    }

    #[test]
    fn unit_runs_meshd_in_the_hosts_mount_namespace() {
        let workspace = Workspace::load();
        let unit = std::fs::read_to_string(workspace.root.join("packaging/meshd.service")).expect("there is a unit");
        require(
            "the unit restarts meshd always, stops nothing but it, and gives it no mount namespace of its own",
            "meshd pins network namespaces that the host and the next meshd must find",
            &unit_violations(&unit),
        );
    }

    #[test]
    fn codes_are_read_off_their_enum_and_units_are_judged() {
        let source =
            "pub enum Code {\n    /// Text, with a comma,\n    NoPeer,\n    #[serde(other)]\n    Other,\n}\nX,\n";
        assert_eq!(kebab_variants(source, "Code"), ["no-peer"]);
        assert!(unit_violations(&UNIT_LINES.join("\n")).is_empty());
        let bad = format!("{}\nPrivateTmp=yes", UNIT_LINES[1..].join("\n"));
        assert_eq!(unit_violations(&bad), ["no Type=notify", "PrivateTmp"]);
    }

    #[test]
    fn dead_links_are_found() {
        let documents: BTreeMap<PathBuf, String> = [
            (
                "README.md",
                "[a](docs/a.md) [b](docs/b.md)\n```\n[c](nowhere.md)\n```\n[d](#the-end-of-it)\n## The end, of it",
            ),
            (
                "docs/a.md",
                "[up](../README.md#the-end-of-it) [x](../README.md#nope) [y](https://example.org/) [z](z.png)",
            ),
        ]
        .into_iter()
        .map(|(path, text)| (PathBuf::from(path), text.to_owned()))
        .collect();
        let dead = dead_links(&documents, |path| path == Path::new("docs/z.png"));
        assert_eq!(dead, ["README.md:1: docs/b.md", "docs/a.md:1: ../README.md#nope"]);
    }

    #[test]
    fn decision_pages_are_judged() {
        let good = "# 1\n## Context\nx\n## Choice\ny\n## What would change it\nz\n";
        assert!(decision_violations(Path::new("docs/decisions/0001-x.md"), good).is_empty());
        assert_eq!(decision_violations(Path::new("docs/decisions/x.md"), good).len(), 1);
        assert_eq!(decision_violations(Path::new("docs/decisions/0001-x.md"), "# 1").len(), 3);
    }
}
