//! Boxes that run containers, and images made of Debian's busybox.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use meshlab::{Host, wait_until};
use serde_json::{Value, json};

use crate::vdc_lab::{Node, PATIENCE};

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The name that an image of [`busybox`] has in a box that imported it.
pub const IMAGE: &str = "localhost/busybox:1";

/// A box with room for containers: its state lies on a file system that overlays can be made of, and its control groups
/// are nobody else's.
pub struct ContainerNode {
    pub node: Node,
    cgroup: String,
}

impl std::fmt::Debug for ContainerNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContainerNode({})", self.node.host.name())
    }
}

impl std::ops::Deref for ContainerNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl std::ops::DerefMut for ContainerNode {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.node
    }
}

impl ContainerNode {
    /// Starts the daemon on a host, with extra lines of configuration.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start(host: Host, config: &str) -> Result<Self> {
        let cgroup = format!("/meshd-e2e-{}-{}", std::process::id(), host.name());
        let state = host.dir().join("state");
        let text = format!("state_dir = '{}'\n{config}\n[workloads]\ncgroup = '{cgroup}'\n", state.display());
        Ok(Self { node: Node::start(host, &text)?, cgroup })
    }

    /// Where the daemon keeps its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.host.dir().join("state")
    }

    /// Makes the busybox image known on this box.
    ///
    /// # Errors
    /// If it is refused.
    pub fn import_busybox(&self) -> Result<()> {
        let layout = self.host.dir().join("busybox");
        busybox(&layout)?;
        self.ctl(&["image", "import", &format!("oci:{}:1", layout.display()), "--tag", IMAGE])?;
        Ok(())
    }

    /// Runs a container in the background.
    ///
    /// # Errors
    /// If it is refused.
    pub fn run_detached(&self, words: &[&str]) -> Result<Value> {
        let mut all = vec!["run", "-d"];
        all.extend(words);
        self.ctl(&all)
    }

    /// Runs a shell's script in a container that is removed afterwards; it must succeed. Returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn script(&self, options: &[&str], script: &str) -> Result<String> {
        let mut all = vec!["run", "--rm"];
        all.extend(options);
        all.extend([IMAGE, "sh", "-c", script]);
        let output = self.run(&all)?;
        ensure!(output.is_ok(), "{script}: {:?} {}{}", output.status.code(), output.stdout, output.stderr);
        Ok(output.stdout)
    }

    /// A workload's view.
    ///
    /// # Errors
    /// If there is none.
    pub fn inspect(&self, name: &str) -> Result<Value> {
        self.ctl(&["inspect", name])
    }

    /// Waits until a workload is in a phase.
    ///
    /// # Errors
    /// If that does not happen in time.
    pub fn wait_phase(&self, name: &str, phase: &str) -> Result<Value> {
        Ok(wait_until(PATIENCE, &format!("{name} is {phase}"), || {
            let view = self.inspect(name).map_err(|error| error.to_string())?;
            if view["phase"] == phase { Ok(view) } else { Err(view.to_string()) }
        })?)
    }

    /// The IPv6 address of a workload.
    ///
    /// # Errors
    /// If it has none.
    pub fn workload_address(&self, name: &str) -> Result<String> {
        let view = self.inspect(name)?;
        Ok(view["addresses"][0].as_str().with_context(|| format!("an address in {view}"))?.to_owned())
    }

    /// Everything that containers leave on a host: namespaces, links, mounts, control groups, files, processes. A box
    /// without containers has the same before and after.
    ///
    /// # Errors
    /// If the host cannot be looked at.
    pub fn traces(&self) -> Result<String> {
        let state = self.state();
        let script = format!(
            "ls /run/netns; ip -br link | cut -d' ' -f1; ip -n meshd-acme -br link | cut -d' ' -f1 | cut -d@ -f1; \
             grep -c . /proc/self/mounts; find {CGROUPS} -path '*{}/w/*' -type d; ls /run/meshd/w /run/meshd/workloads; \
             ls {state}/containers {state}/workloads {state}/images/tmp; pgrep -c meshd-shim || true; \
             ip -n meshd-acme route show table all | sort",
            self.cgroup,
            state = state.display(),
        );
        let text = self.host.sh(&script)?;
        // How many addresses were handed out is meant to stay, and so is one network that was made ahead, whose name and
        // addresses are others each time.
        let line = |line: &str| match (line.contains("meshd-w-"), line.contains("w-")) {
            _ if line.starts_with("offset-") => None,
            (true, _) => Some("a workload's namespace".to_owned()),
            (false, true) => Some("a workload's link or route".to_owned()),
            (false, false) => Some(line.to_owned()),
        };
        Ok(text.lines().filter_map(line).collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for ContainerNode {
    fn drop(&mut self) {
        // What the lab's end kills leaves its control groups.
        let Ok(trees) = fs::read_dir(CGROUPS) else { return };
        for tree in trees.filter_map(Result::ok) {
            let parent = tree.path().join(self.cgroup.trim_start_matches('/'));
            if parent.exists() {
                remove_groups(&parent);
            }
        }
    }
}

/// Removes a tree of control groups, whose processes die with the lab.
#[expect(clippy::print_stderr, reason = "a drop can only say it")]
fn remove_groups(parent: &Path) {
    let emptied = wait_until(PATIENCE, "the control groups are empty", || {
        for group in groups_below(parent).into_iter().rev() {
            for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                drop(Command::new("kill").args(["-9", pid]).status());
            }
            drop(fs::remove_dir(&group));
        }
        !parent.exists()
    });
    if let Err(error) = emptied {
        eprintln!("{}: {error}", parent.display());
    }
}

/// The group and all below it, parents first.
fn groups_below(group: &Path) -> Vec<PathBuf> {
    let mut found = vec![group.to_owned()];
    let entries = fs::read_dir(group).into_iter().flatten().filter_map(Result::ok);
    for path in entries.map(|entry| entry.path()).filter(|path| path.is_dir()) {
        found.extend(groups_below(&path));
    }
    found
}

/// Writes an OCI layout with one image: a root with Debian's busybox and a few users.
///
/// # Errors
/// If busybox-static is not installed.
pub fn busybox(layout: &Path) -> Result<()> {
    if layout.exists() {
        return Ok(());
    }
    let root = layout.with_extension("root");
    let directory = |path: &str, mode: u32| fs::DirBuilder::new().recursive(true).mode(mode).create(root.join(path));
    for path in ["bin", "etc", "proc", "sys", "dev", "root", "www", "var", "home/web"] {
        directory(path, 0o755)?;
    }
    directory("tmp", 0o1777)?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let applets = Command::new("/bin/busybox").arg("--list").output();
    let applets = String::from_utf8(applets.context("busybox is missing: apt-get install busybox-static")?.stdout)?;
    copy_busybox(&root, &applets.lines().filter(|applet| *applet != "busybox").collect::<Vec<_>>())?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/home/web:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\nssl:x:50:web\n")?;
    fs::write(root.join("www/index.html"), "hello from a container\n")?;
    // The static wget needs a C library for names of services: `get HOST [PORT [SECONDS]]` fetches a page without.
    let get = "#!/bin/sh\nset -o pipefail\nprintf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w ${3:-5} $1 ${2:-80} | sed '1,/^\\r*$/d' | grep .\n";
    fs::write(root.join("bin/get"), get)?;
    fs::set_permissions(root.join("bin/get"), fs::Permissions::from_mode(0o755))?;
    let config = json!({"Env": ["PATH=/bin", "GREETING=hello"], "Cmd": ["/bin/sh"], "WorkingDir": "/"});
    image(layout, &root, &config)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// Copies Debian's busybox to `bin` under `root`, with links for some of its programs.
///
/// # Errors
/// If busybox-static is not installed.
fn copy_busybox(root: &Path, applets: &[&str]) -> Result<()> {
    copy_into(root, Path::new("/bin/busybox"), Path::new("/bin/busybox"))?;
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

/// Copies programs of this machine, with the libraries that `ldd` names, to the same places under `root`.
///
/// # Errors
/// If a program or a library of it is missing.
pub fn copy_programs(root: &Path, programs: &[(&Path, &str)]) -> Result<()> {
    for (program, target) in programs {
        copy_into(root, program, Path::new(target))?;
        let output = Command::new("ldd").arg(program).output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
        ensure!(!text.contains("not found"), "{} lacks a library:\n{text}", program.display());
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            copy_into(root, Path::new(library), Path::new(library))?;
        }
    }
    Ok(())
}

/// Copies a file to a path under `root`.
fn copy_into(root: &Path, file: &Path, target: &Path) -> Result<()> {
    let copy = root.join(target.strip_prefix("/").unwrap_or(target));
    fs::create_dir_all(copy.parent().context("a file lies in a directory")?)?;
    fs::copy(file, &copy).with_context(|| format!("cannot copy {} into an image", file.display()))?;
    Ok(())
}

/// Writes an OCI layout with one image of one layer, called `1`.
///
/// # Errors
/// If tar fails.
pub fn image(layout: &Path, root: &Path, config: &Value) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = layout.join("layer.tar");
    let packed = Command::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "--xattrs", "-cf"])
        .arg(&layer)
        .arg("-C")
        .arg(root)
        .arg(".")
        .status()?;
    ensure!(packed.success(), "tar: {packed}");
    let digest = digest_of(&layer)?;
    let size = fs::metadata(&layer)?.len();
    fs::rename(&layer, blobs.join(&digest))?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let text = json!({"architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    let (config, config_size) = blob(&blobs, &text)?;
    let descriptor = |kind: &str, digest: &str, size: u64| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config, config_size),
        "layers": [descriptor("layer.v1.tar", &digest, size)]});
    let (manifest, manifest_size) = blob(&blobs, &manifest)?;
    let mut named = descriptor("manifest.v1+json", &manifest, manifest_size);
    named["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [named]}).to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(())
}

/// Writes a value among the blobs of a layout; its digest and size.
pub(crate) fn blob(blobs: &Path, value: &Value) -> Result<(String, u64)> {
    let path = blobs.join("new");
    fs::write(&path, value.to_string())?;
    let digest = digest_of(&path)?;
    let size = fs::metadata(&path)?.len();
    fs::rename(&path, blobs.join(&digest))?;
    Ok((digest, size))
}

/// SHA-256 of a file, in hexadecimal digits.
pub(crate) fn digest_of(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("sha256sum prints a digest")?.to_owned())
}
