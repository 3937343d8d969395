//! Hosts: machines made of namespaces.

use std::fs;
use std::io::{self, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::error::{Attempt, Error, Result};
use crate::lab::{Shared, lock, name_server_addresses};
use crate::link::Family;
use crate::namespace::Namespace;
use crate::process::{Command, Output, Service};

/// A machine of a site, or a site's router: own network, `/run`, `/sys`, `/proc`, host name, and changes below `/etc`,
/// `/var/lib` and `/var/log` of its own. A cheap handle.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    dir: PathBuf,
    namespace: Namespace,
    addresses: Mutex<Addresses>,
    /// The router and the name of the port that this host's cable ends in; none for a router.
    port: Option<(Host, String)>,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Host {
    pub(crate) fn create(
        shared: &Arc<Shared>,
        name: &str,
        family: Family,
        port: Option<(Self, String)>,
    ) -> Result<Self> {
        shared.reserve_name(name)?;
        let dir = shared.dir.join(name);
        fs::create_dir(&dir).attempt(|| format!("make {}", dir.display()))?;
        let namespace = Namespace::create(&shared.init, name, &etc_files(name, family))
            .attempt(|| format!("make the namespaces of {name}"))?;
        let host = Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                dir,
                namespace,
                addresses: Mutex::default(),
                port,
                shared: Arc::clone(shared),
            }),
        };
        host.sysctl(&[
            // Addresses are ours to give, and usable at once.
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            // Tests ping in the hundreds per second.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ])?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// This host's directory in the lab's, where the logs of its services are; room for state that tests look at.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The IPv4 address: on the LAN, or a router's public one.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Addr> {
        lock(&self.inner.addresses).v4
    }

    /// The global IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Addr> {
        lock(&self.inner.addresses).v6
    }

    /// All underlay addresses, IPv6 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Addresses { v4, v6 } = *lock(&self.inner.addresses);
        v6.map(IpAddr::V6).into_iter().chain(v4.map(IpAddr::V4)).collect()
    }

    /// A command to run on this host. A program without a slash is looked up in `PATH`; it starts in [`Host::dir`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        Command::new(self.clone(), program.as_ref())
    }

    /// Runs a command to its end; see [`Command::run`]. The first word is the program.
    ///
    /// # Errors
    /// If it cannot start or runs too long. A bad exit status is no error.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.words(words).run()
    }

    /// Runs a command that must succeed and returns what it printed; see [`Command::ok`].
    ///
    /// # Errors
    /// If it cannot start, runs too long or ends with anything but 0.
    pub fn ok(&self, words: &[&str]) -> Result<String> {
        self.words(words).ok()
    }

    /// Runs a shell script that must succeed and returns what it printed.
    ///
    /// # Errors
    /// Those of [`Host::ok`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.ok(&["sh", "-euc", script])
    }

    /// Starts a command in the background; see [`Command::spawn`].
    ///
    /// # Errors
    /// If it cannot start.
    pub fn spawn(&self, words: &[&str]) -> Result<Service> {
        self.words(words).spawn()
    }

    fn words(&self, words: &[&str]) -> Command {
        let (program, arguments) = words.split_first().expect("a command has at least a program");
        let mut command = self.command(program);
        command.args(arguments);
        command
    }

    /// Runs `body` inside this host, on a fresh thread: its network, files and host name. For raw sockets, and for looking
    /// at files that only the host sees. `/proc/self` is missing there: the thread is no process of the lab.
    ///
    /// # Errors
    /// If the namespaces cannot be entered.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.namespace.enter(|| Ok(body())).attempt(|| format!("enter {}", self.name()))
    }

    /// Reads a file as the host sees it.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        let read = self.inner.namespace.enter(|| fs::read_to_string(path));
        read.attempt(|| format!("read {} on {}", path.display(), self.name()))
    }

    /// Writes a file where only the host sees it, if it is below `/etc`, `/run`, `/var/lib` or `/var/log`.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn write_file(&self, path: impl AsRef<Path>, contents: &str) -> Result<()> {
        let path = path.as_ref();
        let write = self.inner.namespace.enter(|| {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            fs::write(path, contents)
        });
        write.attempt(|| format!("write {} on {}", path.display(), self.name()))
    }

    /// Pulls the host's cable out of the LAN. Does nothing to a router, whose cable is the [`crate::Uplink`].
    ///
    /// # Errors
    /// If the port cannot be changed.
    pub fn unplug(&self) -> Result<()> {
        self.set_port("down")
    }

    /// Puts the cable back in.
    ///
    /// # Errors
    /// If the port cannot be changed.
    pub fn plug(&self) -> Result<()> {
        self.set_port("up")
    }

    fn set_port(&self, state: &str) -> Result<()> {
        match &self.inner.port {
            Some((router, port)) => router.ip(&format!("link set {port} {state}")),
            None => Ok(()),
        }
    }

    /// The start of a shell command that runs the rest on this host, for people who look around in a running lab.
    #[must_use]
    pub fn enter_hint(&self) -> String {
        self.inner.namespace.nsenter(&self.inner.shared.init)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }

    pub(crate) fn set_addresses(&self, addresses: Addresses) {
        *lock(&self.inner.addresses) = addresses;
    }

    fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inner
            .namespace
            .enter_network(|| {
                settings.iter().try_for_each(|(key, value)| match fs::write(format!("/proc/sys/{key}"), value) {
                    // Some belong to the whole machine on older kernels.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result,
                })
            })
            .attempt(|| format!("set up the network of {}", self.name()))
    }

    /// Makes this host forward packets.
    pub(crate) fn enable_forwarding(&self) -> Result<()> {
        self.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])
    }

    /// Runs `ip -batch` with these lines in this host's network.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        self.configure("ip", &["-batch", "-"], lines)
    }

    /// Runs a set-up tool in this host's network namespace only.
    pub(crate) fn configure(&self, tool: &str, arguments: &[&str], input: &str) -> Result<()> {
        let run = || -> io::Result<std::process::Output> {
            let mut stdin = tempfile::tempfile_in(&self.inner.shared.dir)?;
            stdin.write_all(input.as_bytes())?;
            stdin.rewind()?;
            self.inner
                .namespace
                .enter_network(|| std::process::Command::new(tool).args(arguments).stdin(Stdio::from(stdin)).output())
        };
        let output = run().attempt(|| format!("run {tool} for {}", self.name()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::CommandFailed {
            host: self.name().to_owned(),
            command: format!("{tool} {}", arguments.join(" ")),
            status: output.status.to_string(),
            output: format!("{}{input}", String::from_utf8_lossy(&output.stderr)),
        })
    }
}

fn etc_files(name: &str, family: Family) -> [(&'static str, String); 4] {
    let servers: String =
        name_server_addresses().iter().filter(|a| family.has(**a)).map(|a| format!("nameserver {a}\n")).collect();
    [
        ("resolv.conf", format!("{servers}options timeout:1 attempts:2\n")),
        ("hosts", format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {name}\n")),
        ("hostname", format!("{name}\n")),
        ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n".to_owned()),
    ]
}
