//! Throw-away network namespaces.

use std::cell::RefCell;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use meshd_tun::{Netns, NetworkConfig, NetworkError, Tun, VdcNetwork};
use vdc::{Ipv4Block, Name, NodePrefix, VdcId};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name nobody else uses: process id and a counter.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A namespace that plays a host. It goes away with the value.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    vdcs: RefCell<Vec<NetworkConfig>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let name = unique("mt-host-");
        let netns = Netns::ensure(&name).expect("tests of this crate need root and a kernel with namespaces");
        let host = Self { name, netns, vdcs: RefCell::default() };
        host.ip("link set lo up");
        host
    }

    /// Makes a VDC's network on this host. It is taken away with the host at the latest.
    pub(crate) fn ensure(&self, config: &NetworkConfig) -> Result<(VdcNetwork, Tun), NetworkError> {
        self.vdcs.borrow_mut().push(config.clone());
        self.netns.run(|| VdcNetwork::ensure(config))
    }

    pub(crate) fn remove(&self, config: &NetworkConfig) {
        self.netns.run(|| VdcNetwork::remove(&config.name, &config.vdc)).expect("removed");
    }

    /// Runs `ip` inside and returns what it printed.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        ip_in(&self.name, arguments)
    }

    /// Runs any command inside.
    pub(crate) fn command(&self, line: &str) -> Output {
        command_in(&self.name, line)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for config in self.vdcs.take() {
            self.remove(&config);
        }
        Netns::remove(&self.name).expect("unpinned");
    }
}

pub(crate) fn command_in(netns: &str, line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg(program).args(words);
    command.output().unwrap_or_else(|error| panic!("cannot run {line:?} (Debian: util-linux, iproute2): {error}"))
}

pub(crate) fn ip_in(netns: &str, arguments: &str) -> String {
    let output = command_in(netns, &format!("ip {arguments}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "ip {arguments}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A VDC with addresses of its own.
pub(crate) fn vdc_id(seed: u8) -> VdcId {
    VdcId([seed; 32])
}

pub(crate) fn node_prefix(vdc: &VdcId, node: u8) -> NodePrefix {
    NodePrefix::derive(vdc, vdc::SiteNumber(1), &vdc::Key([node; 32]), 0)
}

pub(crate) fn local_name() -> Name {
    Name::new(&unique("t")).expect("digits and letters")
}

pub(crate) fn block(text: &str) -> Ipv4Block {
    text.parse().expect("a block")
}
