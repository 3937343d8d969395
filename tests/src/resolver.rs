//! The resolver of a Debian host in a lab: dbus-daemon and systemd-resolved, real programs, from packages that are unpacked
//! rather than installed. Nothing of it is seen outside of the host.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use meshlab::{Host, Output, Service, wait_until};

use crate::vdc_lab::PATIENCE;

/// Where the system's programs look for the system bus.
const BUS: &str = "unix:path=/run/dbus/system_bus_socket";
/// What systemd-resolved remembers over a restart.
const MEMORY: &str = "/run/systemd/resolve";
/// The user that systemd-resolved becomes, and who alone may have its name on the bus.
const USER: &str = "systemd-resolve";

/// A host's resolver.
#[derive(Debug)]
pub struct Resolver {
    host: Host,
    bus: Option<Service>,
    resolved: Option<Service>,
}

impl Resolver {
    /// Sets a host up as `apt install systemd-resolved` does, with the name servers that it asked before, and starts it.
    ///
    /// # Errors
    /// If a program is missing or does not come up.
    pub fn start(host: &Host) -> Result<Self> {
        meshlab::require_tools(&["dbus-daemon"])?;
        let servers = host.read_file("/etc/resolv.conf")?;
        let servers: Vec<&str> = servers.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
        ensure!(!servers.is_empty(), "{} has no name servers", host.name());
        // All that could get into the way of split DNS is on: it has to be off for the VDC's interface.
        let config = format!(
            "[Resolve]\nDNS={}\nFallbackDNS=\nDNSSEC=no\nDNSOverTLS=opportunistic\nLLMNR=yes\nMulticastDNS=yes\n",
            servers.join(" ")
        );
        host.write_file("/etc/systemd/resolved.conf", &config)?;
        host.write_file("/etc/meshlab/bus.conf", &bus_config(&unpacked("usr/share/dbus-1/system.d")?))?;
        host.sh(&format!(
            "getent passwd {USER} || echo {USER}:x:995:995::/:/usr/sbin/nologin >> /etc/passwd
             getent group {USER} || echo {USER}:x:995: >> /etc/group
             getent passwd messagebus || echo messagebus:x:994:994::/:/usr/sbin/nologin >> /etc/passwd
             mkdir -p /run/dbus /run/systemd
             ln -sf {MEMORY}/stub-resolv.conf /etc/resolv.conf"
        ))?;
        let mut this = Self { host: host.clone(), bus: None, resolved: None };
        this.start_bus()?;
        this.start_resolved()?;
        Ok(this)
    }

    /// Starts the bus (again) and waits until it listens.
    ///
    /// # Errors
    /// If it does not.
    pub fn start_bus(&mut self) -> Result<()> {
        self.bus = None;
        self.host.sh("rm -f /run/dbus/system_bus_socket")?;
        self.bus = Some(self.host.spawn(&["dbus-daemon", "--config-file=/etc/meshlab/bus.conf", "--nofork"])?);
        wait_until(PATIENCE, "the system bus listens", || self.host.sh("test -S /run/dbus/system_bus_socket").is_ok())?;
        Ok(())
    }

    /// Starts systemd-resolved without memory of an earlier one, and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn start_resolved(&mut self) -> Result<()> {
        self.stop_resolved();
        self.host.sh(&format!("rm -rf {MEMORY}"))?;
        let mut command = self.host.command(unpacked("lib/systemd/systemd-resolved")?);
        command.env("LD_LIBRARY_PATH", libraries()?).env("DBUS_SYSTEM_BUS_ADDRESS", BUS);
        self.resolved = Some(command.spawn()?);
        wait_until(PATIENCE, "systemd-resolved answers", || {
            let status = self.resolvectl(&["status"]).map_err(|e| e.to_string())?;
            if status.is_ok() { Ok(()) } else { Err(status.stderr) }
        })?;
        Ok(())
    }

    /// Ends systemd-resolved.
    pub fn stop_resolved(&mut self) {
        self.resolved = None;
    }

    /// Environment of programs that shall use this host's bus.
    #[must_use]
    pub fn environment() -> Vec<(String, String)> {
        vec![("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), BUS.to_owned())]
    }

    /// Runs `resolvectl` and returns whatever it did.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn resolvectl(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.host.command(unpacked("usr/bin/resolvectl")?);
        command.env("LD_LIBRARY_PATH", libraries()?).env("DBUS_SYSTEM_BUS_ADDRESS", BUS);
        Ok(command.arg("--no-pager").args(words).run()?)
    }

    /// What `resolvectl query` says of a name or an address; an error says why there is no answer.
    ///
    /// # Errors
    /// If systemd-resolved has no answer.
    pub fn query(&self, name: &str) -> Result<String> {
        let output = self.resolvectl(&["query", "--cache=no", name])?;
        ensure!(output.is_ok(), "{name}: {}", output.stderr.trim());
        Ok(output.stdout)
    }

    /// What `resolvectl status` says of one interface; an error if there is no such interface.
    ///
    /// # Errors
    /// If there is none.
    pub fn link(&self, interface: &str) -> Result<String> {
        let output = self.resolvectl(&["status", interface])?;
        // It calls a missing interface a success.
        ensure!(output.stdout.contains(&format!("({interface})")), "{interface}: {}", output.stderr.trim());
        Ok(output.stdout)
    }
}

/// A file of the packages that are unpacked. `MESHD_DEBIAN_DIR` names their folder; `cargo xtask` sets it.
///
/// # Errors
/// If it is missing.
pub fn unpacked(path: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("MESHD_DEBIAN_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debian")), PathBuf::from);
    let path = folder.join(path);
    let hint = || format!("{} is missing: cargo xtask test --stage packages", path.display());
    path.canonicalize().with_context(hint)
}

/// The unpacked libraries, of the same release as the programs.
fn libraries() -> Result<String> {
    let usr = unpacked("usr/lib")?;
    let found = std::fs::read_dir(&usr)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<PathBuf> = found.filter(|path| path.to_string_lossy().ends_with("-linux-gnu")).collect();
    folders.extend(folders.clone().iter().map(|folder| folder.join("systemd")));
    let texts: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Ok(texts.join(":"))
}

/// What matters of Debian's own configuration of the system bus: nobody may own or call anything that is not allowed.
fn bus_config(policies: &std::path::Path) -> String {
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <user>messagebus</user>
  <auth>EXTERNAL</auth>
  <listen>{BUS}</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <includedir>{}</includedir>
</busconfig>
"#,
        policies.display()
    )
}
