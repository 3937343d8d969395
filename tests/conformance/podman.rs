//! The other engine: podman with crun, with a store of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use tests::images::Probe;

use crate::tests::Answer;

/// Hides the tree of control groups of the second version where the first is in use as well, which crun refuses.
const ENTER: &str = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"";

/// Runs a server, asks it until it gives the answer, stops it. Prints the answer and, last, the status.
const SERVE: &str = r#"
answer=$1 image=$2; shift 2
id=$(podman run -d --network=none --ulimit host --env no_proxy= "$image")
tries=0
until said=$(podman exec "$id" "$@" 2>/dev/null; echo .) && [ "$said" = "$answer." ]; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || break; sleep 0.2
done
podman stop -t 20 "$id" >/dev/null
status=$(podman wait "$id")
podman rm -f -v "$id" >/dev/null
printf '%s%s' "${said%.}" "$status"
"#;

/// Podman with what it needs to run inside of a container or a small machine.
#[derive(Debug)]
pub(crate) struct Podman {
    directory: PathBuf,
}

impl Podman {
    pub(crate) fn new(scratch: &Path) -> Result<Self> {
        let directory = scratch.join("podman");
        fs::create_dir_all(directory.join("tmp"))?;
        let shown = directory.display();
        let storage = format!("[storage]\ndriver=\"overlay\"\ngraphroot=\"{shown}/graph\"\nrunroot=\"{shown}/run\"\n");
        fs::write(directory.join("storage.conf"), storage)?;
        // Limits that a machine without CAP_SYS_RESOURCE can set as well.
        let containers = format!(
            "[containers]\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=4096:4096\"]\n\
             [engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\nruntime=\"crun\"\ntmp_dir=\"{shown}/tmp\"\n"
        );
        fs::write(directory.join("containers.conf"), containers)?;
        fs::write(directory.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        Ok(Self { directory })
    }

    /// Makes an image known; its id.
    pub(crate) fn pull(&self, layout: &Path) -> Result<String> {
        let policy = self.directory.join("policy.json").display().to_string();
        let source = format!("oci:{}:1", layout.display());
        let output = self.call(&["podman", "pull", "-q", "--signature-policy", &policy, &source])?;
        ensure!(output.status.success(), "podman pull: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().last().context("podman prints an id")?.trim().to_owned())
    }

    pub(crate) fn asked(&self, image: &str, probe: &Probe) -> Result<Answer> {
        let run = ["podman", "run", "--rm", "--network=none", "--ulimit", "host"];
        match probe {
            Probe::Run { options, words } => {
                let output = self.call(&[&run, *options, &[image], *words].concat())?;
                if matches!(output.status.code(), Some(125..=127)) {
                    eprintln!("podman: {options:?} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
                }
                Ok(Answer::new(output.status.code(), &String::from_utf8_lossy(&output.stdout)))
            }
            Probe::Serve { ask, answer } => {
                let output = self.call(&[&["sh", "-c", SERVE, "serve", *answer, image], *ask].concat())?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let (said, status) = text
                    .rsplit_once('\n')
                    .with_context(|| format!("podman: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
                Ok(Answer::new(status.parse().ok(), said))
            }
        }
    }

    pub(crate) fn remove_all(&self) -> Result<()> {
        self.call(&["podman", "rm", "-af"])?;
        self.call(&["podman", "volume", "rm", "-af"])?;
        let output = self.call(&["podman", "rmi", "-af"])?;
        ensure!(output.status.success(), "podman rmi: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn call(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new("unshare");
        command.args(["-m", "timeout", "120", "sh", "-c", ENTER, "sh"]).args(words).stdin(Stdio::null());
        command.env("CONTAINERS_STORAGE_CONF", self.directory.join("storage.conf"));
        command.env("CONTAINERS_CONF", self.directory.join("containers.conf"));
        command.output().context("unshare is missing")
    }
}
