//! The workspace as the rules see it: members, their manifests, the dependency graph, the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A crate of ours.
pub(crate) struct Member {
    pub(crate) name: String,
    /// Relative to the workspace's root.
    pub(crate) dir: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) manifest: toml::Table,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Build,
    Dev,
}

/// A package of the locked graph, ours or not.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) licence: Option<String>,
    /// `None`: a path in this repository.
    pub(crate) source: Option<String>,
}

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) manifest: toml::Table,
    pub(crate) members: Vec<Member>,
    /// The locked graph for the platforms we ship for, with features that nobody turned on.
    pub(crate) packages: Vec<Package>,
}

/// Platforms we ship for; other platforms' dependencies are in the lock file but in no binary.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

impl Workspace {
    pub(crate) fn load() -> Self {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a folder of the workspace").to_owned();
        let mut arguments = vec!["metadata", "--format-version", "1"];
        for platform in PLATFORMS {
            arguments.extend(["--filter-platform", platform]);
        }
        let metadata: serde_json::Value =
            serde_json::from_str(&cargo(&root, &arguments)).expect("cargo metadata prints JSON");
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let mut members = Vec::new();
        let mut packages = Vec::new();
        for package in list(&metadata["packages"]) {
            let name = text(&package["name"]).expect("packages have names");
            packages.push(Package {
                name: name.clone(),
                version: text(&package["version"]).expect("packages have versions"),
                licence: text(&package["license"]),
                source: text(&package["source"]),
            });
            if list(&metadata["workspace_members"]).contains(&package["id"]) {
                let manifest_path = PathBuf::from(text(&package["manifest_path"]).expect("packages have manifests"));
                let dir = manifest_path.parent().expect("a file is in a folder");
                members.push(Member {
                    name,
                    dir: dir.strip_prefix(&root).expect("members are inside the workspace").to_owned(),
                    dependencies: list(&package["dependencies"]).iter().map(dependency).collect(),
                    manifest: read_toml(&manifest_path),
                });
            }
        }
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Self { manifest: read_toml(&root.join("Cargo.toml")), members, packages, root }
    }

    pub(crate) fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("there is no crate {name}"))
    }

    pub(crate) fn is_member(&self, name: &str) -> bool {
        self.members.iter().any(|m| m.name == name)
    }

    /// Names of every crate that is linked into `member` on our first platform, itself included. Asked of `cargo tree`,
    /// because it resolves features for this package alone; `cargo metadata` unites those of the whole workspace.
    pub(crate) fn closure(&self, member: &str) -> Vec<String> {
        let scope = ["--package", member, "--edges", "normal,no-proc-macro"];
        self.tree(&scope, PLATFORMS[0]).into_iter().map(|(name, _)| name).collect()
    }

    /// The foreign packages that building and testing really compiles: those of [`Self::packages`] that some enabled
    /// feature reaches.
    pub(crate) fn compiled(&self) -> Vec<&Package> {
        let scope = ["--workspace", "--edges", "normal,build,dev"];
        let reached: BTreeSet<_> = PLATFORMS.iter().flat_map(|platform| self.tree(&scope, platform)).collect();
        let is_reached = |p: &&Package| reached.contains(&(p.name.clone(), p.version.clone()));
        self.packages.iter().filter(|p| p.source.is_some()).filter(is_reached).collect()
    }

    /// Names and versions that `cargo tree` prints.
    fn tree(&self, scope: &[&str], platform: &str) -> BTreeSet<(String, String)> {
        let arguments = [&["tree", "--prefix", "none", "--target", platform], scope].concat();
        let text = cargo(&self.root, &arguments);
        let lines = text.lines().filter_map(|line| line.split_once(" v"));
        lines.map(|(name, rest)| (name.to_owned(), rest.split(' ').next().unwrap_or(rest).to_owned())).collect()
    }

    /// Every text file of the repository below `dir`, relative path and content, in a fixed order. What git ignores
    /// (build output) and what is not UTF-8 (fuzz corpora) is left out.
    pub(crate) fn files(&self, dir: &Path) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        let mut pending = vec![self.root.join(dir)];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
                let path = entry.expect("the folder can be listed").path();
                let relative = path.strip_prefix(&self.root).expect("found below the root").to_owned();
                if path.is_symlink() || [".git", "target", "out"].iter().any(|ignored| relative.ends_with(ignored)) {
                    continue;
                }
                if path.is_dir() {
                    pending.push(path);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    files.insert(relative, text);
                }
            }
        }
        files
    }

    /// The Rust sources below `dir`.
    pub(crate) fn rust_files(&self, dir: &Path) -> BTreeMap<PathBuf, String> {
        let mut files = self.files(dir);
        files.retain(|path, _| path.extension().is_some_and(|e| e == "rs"));
        files
    }
}

fn dependency(value: &serde_json::Value) -> Dependency {
    let kind = match value["kind"].as_str() {
        None => Kind::Normal,
        Some("build") => Kind::Build,
        Some(_) => Kind::Dev,
    };
    Dependency { name: value["name"].as_str().expect("dependencies have names").to_owned(), kind }
}

fn list(value: &serde_json::Value) -> &[serde_json::Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn read_toml(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn cargo(root: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root).output().expect("cargo starts");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}
