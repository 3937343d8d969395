//! Sites: a router, its LAN and its uplink to the WAN.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Attempt, Error, Result};
use crate::host::{Addresses, Host};
use crate::lab::{Shared, lock};
use crate::link::{Direction, Family, LinkCounters, LinkOptions, Prefixes};
use crate::sys;
use crate::wait::require_tools;
use crate::wan::network::PortId;

/// Packets that a router may queue for the WAN while its thread waits for a processor: 10 ms of small ones at 1 Mpps.
const WAN_QUEUE_PACKETS: u32 = 10_000;
/// Last number of the first host's addresses.
const FIRST_HOST: u8 = 10;

/// How a site is connected.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// The uplink's knobs.
    pub link: LinkOptions,
    /// The families that the site has addresses of.
    pub family: Family,
    /// What its router does to addresses.
    pub nat: Nat,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self { link: LinkOptions::default(), family: Family::Dual, nat: Nat::None }
    }
}

/// What a site's router does to addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Nothing: hosts have public addresses, and everybody reaches them.
    None,
    /// What most sites have. IPv4: the LAN is 192.168.1.0/24 (at every such site the same) behind one public address. IPv6:
    /// public addresses behind a stateful filter. From outside come only answers and forwarded ports.
    ///
    /// Whether the router itself takes packets from outside decides more than it seems: with `accepts_input`, an early packet
    /// of a peer holds a conntrack entry that moves the later mapping of the inside host to another port.
    Masquerade { accepts_input: bool },
}

/// What a forwarded port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A site. A cheap handle.
#[derive(Clone, Debug)]
pub struct Site {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    family: Family,
    nat: Nat,
    router: Host,
    port: PortId,
    hosts: Mutex<Vec<Host>>,
    shared: Arc<Shared>,
}

impl Site {
    pub(crate) fn create(shared: &Arc<Shared>, name: &str, options: SiteOptions) -> Result<Self> {
        let SiteOptions { link, family, nat } = options;
        if nat != Nat::None {
            require_tools(&["nft:nftables"])?;
        }
        let router = Host::create(shared, &format!("{name}-router"), family, None)?;
        shared.reserve_name(name)?;
        router.enable_forwarding()?;
        let tun = router.namespace().enter_network(|| sys::tun_create("wan"));
        let tun = tun.attempt(|| format!("make the TUN of {name}'s router"))?;
        router.ip(&format!(
            "link set wan txqueuelen {WAN_QUEUE_PACKETS} up\n\
             link add lan type bridge mcast_snooping 0 forward_delay 0\n\
             link set lan up\n\
             addr add fe80::1/64 dev lan nodad\n"
        ))?;
        let prefixes = shared.free_prefixes()?;
        let port = shared.wan.connect(tun, prefixes, link).attempt(|| format!("connect {name} to the WAN"))?;
        let shared = Arc::clone(shared);
        let inner = Inner { name: name.to_owned(), family, nat, router, port, hosts: Mutex::default(), shared };
        let site = Self { inner: Arc::new(inner) };
        site.number_router(prefixes)?;
        if let Nat::Masquerade { accepts_input } = nat {
            site.inner.router.configure("nft", &["-f", "-"], &nat_rules(accepts_input))?;
        }
        Ok(site)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The router, as a place to run things: `nft`, `tcpdump -i wan`, `ping`.
    #[must_use]
    pub fn router(&self) -> &Host {
        &self.inner.router
    }

    /// The connection to the WAN.
    #[must_use]
    pub fn uplink(&self) -> Uplink {
        Uplink { shared: Arc::clone(&self.inner.shared), port: self.inner.port }
    }

    /// The site's public space.
    #[must_use]
    pub fn prefixes(&self) -> Prefixes {
        self.inner.shared.wan.network().port(self.inner.port).prefixes
    }

    /// Adds a host to the LAN: `eth0` with one address of each family that the site has, and default routes.
    ///
    /// # Errors
    /// If the name is taken or a device cannot be made.
    pub fn host(&self, name: &str) -> Result<Host> {
        let Inner { family, router, shared, hosts, .. } = &*self.inner;
        let mut hosts = lock(hosts);
        let index =
            u8::try_from(hosts.len()).ok().filter(|i| *i < u8::MAX - FIRST_HOST).ok_or(Error::OutOf("hosts"))?;
        let port = format!("port{index}");
        let host = Host::create(shared, name, *family, Some((router.clone(), port.clone())))?;
        router.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master lan up\n",
            host.namespace().network_path()
        ))?;
        host.ip("link set eth0 up")?;
        self.number_host(&host, index)?;
        hosts.push(host.clone());
        Ok(host)
    }

    /// The hosts in the order of their making.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        lock(&self.inner.hosts).clone()
    }

    /// Lets the router pass a port to the same port of a host of this site. Only for [`Nat::Masquerade`]; without, every
    /// port is reachable.
    ///
    /// # Errors
    /// If the rule is refused.
    pub fn forward_port(&self, transport: Transport, port: u16, host: &Host) -> Result<()> {
        let transport = match transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let mut rules = String::new();
        if let Some(v4) = host.v4() {
            rules += &format!(
                "add rule inet lab pre iifname wan ip daddr @public {transport} dport {port} dnat ip to {v4}\n"
            );
        }
        if let Some(v6) = host.v6() {
            rules += &format!("insert rule inet lab pass iifname wan ip6 daddr {v6} {transport} dport {port} accept\n");
        }
        self.inner.router.configure("nft", &["-f", "-"], &rules)
    }

    /// Gives the site other public space, as providers do after a power cut: all public addresses of router and hosts change
    /// at once, and packets to the old ones find no way.
    ///
    /// # Errors
    /// If an address cannot be set.
    pub fn renumber(&self, prefixes: Prefixes) -> Result<()> {
        self.inner.shared.wan.network().port(self.inner.port).prefixes = prefixes;
        self.number_router(prefixes)?;
        for (index, host) in (0_u8..).zip(self.hosts()) {
            self.number_host(&host, index)?;
        }
        Ok(())
    }

    fn number_router(&self, prefixes: Prefixes) -> Result<()> {
        let Inner { family, nat, router, .. } = &*self.inner;
        let mut lines = "addr flush dev lan scope global\naddr flush dev wan scope global\n".to_owned();
        let (v4, v6) = (prefixes.v4_host(1), prefixes.v6_host(1));
        if family.has_v4() {
            lines += &match nat {
                Nat::None => format!("addr add {v4}/24 dev lan\n"),
                Nat::Masquerade { .. } => format!("addr add 192.168.1.1/24 dev lan\naddr add {v4}/32 dev wan\n"),
            };
            lines += "route replace default dev wan\n";
        }
        if family.has_v6() {
            lines += &format!("addr add {v6}/64 dev lan nodad\nroute replace ::/0 dev wan\n");
        }
        router.ip(&lines)?;
        router.set_addresses(Addresses { v4: family.has_v4().then_some(v4), v6: family.has_v6().then_some(v6) });
        if *nat != Nat::None {
            // The set exists from the second time on; the first time, the rules bring it.
            let set = format!(
                "add table inet lab\nadd set inet lab public {{ type ipv4_addr; }}\n\
                 flush set inet lab public\nadd element inet lab public {{ {v4} }}\n"
            );
            router.configure("nft", &["-f", "-"], &set)?;
        }
        Ok(())
    }

    fn number_host(&self, host: &Host, index: u8) -> Result<()> {
        let Inner { family, nat, .. } = &*self.inner;
        let prefixes = self.prefixes();
        let last = FIRST_HOST + index;
        let (v4, gateway) = match nat {
            Nat::None => (prefixes.v4_host(last), prefixes.v4_host(1)),
            Nat::Masquerade { .. } => ([192, 168, 1, last].into(), [192, 168, 1, 1].into()),
        };
        let v6 = prefixes.v6_host(last);
        let mut lines = "addr flush dev eth0 scope global\n".to_owned();
        if family.has_v4() {
            lines += &format!("addr add {v4}/24 brd + dev eth0\nroute replace default via {gateway}\n");
        }
        if family.has_v6() {
            lines += &format!("addr add {v6}/64 dev eth0 nodad\nroute replace ::/0 via fe80::1 dev eth0\n");
        }
        host.ip(&lines)?;
        host.set_addresses(Addresses { v4: family.has_v4().then_some(v4), v6: family.has_v6().then_some(v6) });
        Ok(())
    }
}

fn nat_rules(accepts_input: bool) -> String {
    let input = if accepts_input { "" } else { "iifname wan ct state new drop" };
    format!(
        "table inet lab {{
            chain pre {{
                type nat hook prerouting priority dstnat;
            }}
            chain post {{
                type nat hook postrouting priority srcnat;
                oifname wan meta nfproto ipv4 masquerade
            }}
            chain input {{
                type filter hook input priority filter;
                {input}
            }}
            chain pass {{
                type filter hook forward priority filter;
                iifname wan ct state established,related accept
                iifname wan ct status dnat accept
                iifname wan drop
            }}
        }}\n"
    )
}

/// A site's connection to the WAN: its knobs, its counters and what crosses it. A cheap handle; all changes apply at once.
#[derive(Clone, Debug)]
pub struct Uplink {
    shared: Arc<Shared>,
    port: PortId,
}

impl Uplink {
    #[must_use]
    pub fn options(&self) -> LinkOptions {
        self.shared.wan.network().port(self.port).options.clone()
    }

    /// Turns knobs: `uplink.set(|o| o.loss = 0.01)`. Packets under way keep the fate they were given.
    pub fn set(&self, change: impl FnOnce(&mut LinkOptions)) {
        change(&mut self.shared.wan.network().port(self.port).options);
    }

    /// Cuts the line; what is under way is lost too.
    pub fn cut(&self) {
        self.shared.wan.network().port(self.port).is_cut = true;
    }

    pub fn heal(&self) {
        self.shared.wan.network().port(self.port).is_cut = false;
    }

    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.shared.wan.network().port(self.port).is_cut
    }

    #[must_use]
    pub fn counters(&self) -> LinkCounters {
        self.shared.wan.network().port(self.port).counters
    }

    /// Calls `tap` with every IP packet that the router sends or receives here, from the WAN's thread: be quick, and do not
    /// touch the lab. A super-packet comes as one, and the checksum may be left for the interface to finish.
    pub fn tap(&self, tap: impl FnMut(Direction, &[u8]) + Send + 'static) {
        self.shared.wan.network().port(self.port).taps.push(Box::new(tap));
    }

    /// Counts the packets that `filter` picks, from now on.
    pub fn count(&self, mut filter: impl FnMut(Direction, &[u8]) -> bool + Send + 'static) -> PacketCount {
        let count = PacketCount::default();
        let packets = Arc::clone(&count.0);
        self.tap(move |direction, packet| {
            if filter(direction, packet) {
                packets.fetch_add(1, Ordering::Relaxed);
            }
        });
        count
    }

    /// Writes every packet from now on into a capture file, for `tcpdump -r` and Wireshark.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn capture(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let open = || -> io::Result<File> {
            let mut file = File::create(path)?;
            file.write_all(&capture_header())?;
            Ok(file)
        };
        let mut file = open().attempt(|| format!("make {}", path.display()))?;
        // One write each, so that the file is whole at any moment. A full disk ends the capture, not the test.
        self.tap(move |_, packet| drop(file.write_all(&capture_record(SystemTime::now(), packet))));
        Ok(())
    }
}

/// How many packets a filter has picked; see [`Uplink::count`].
#[derive(Clone, Debug, Default)]
pub struct PacketCount(Arc<AtomicU64>);

impl PacketCount {
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The head of a pcap file of raw IP packets with microseconds, in this machine's byte order.
fn capture_header() -> [u8; 24] {
    const LINKTYPE_RAW: u32 = 101;
    let mut header = [0; 24];
    header[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_ne_bytes());
    header[4..6].copy_from_slice(&2_u16.to_ne_bytes());
    header[6..8].copy_from_slice(&4_u16.to_ne_bytes());
    // In between: time zone and precision, which nobody uses.
    header[16..20].copy_from_slice(&65_575_u32.to_ne_bytes());
    header[20..].copy_from_slice(&LINKTYPE_RAW.to_ne_bytes());
    header
}

fn capture_record(now: SystemTime, packet: &[u8]) -> Vec<u8> {
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // The format has 32 bits; they are enough until 2106.
    let seconds = u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX);
    let len = u32::try_from(packet.len()).expect("a packet has at most 64 KiB");
    let mut record = Vec::with_capacity(16 + packet.len());
    for word in [seconds, since_epoch.subsec_micros(), len, len] {
        record.extend_from_slice(&word.to_ne_bytes());
    }
    record.extend_from_slice(packet);
    record
}
