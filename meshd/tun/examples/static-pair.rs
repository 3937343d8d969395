//! Two nodes with keys known beforehand: the data plane alone, without records, joining or policy.
//!
//! ```text
//! static-pair ME PEER REMOTE:PORT [--no-offload]     ME and PEER: 1 to 14
//! ```
//! Run it once in each of two network namespaces (as root). It sets up a VDC named `pairME`, prints the host's IPv6 and
//! IPv4 address in it, and carries packets until standard input ends. For measurements: `benches/pair-contender.sh`.
#![expect(clippy::print_stdout, reason = "an example that tells its addresses")]

use std::io::Read;
use std::net::SocketAddr;

use meshd_tun::{BoringFactory, DataPlane, DataPlaneConfig, NetworkConfig, VdcConfig, VdcNetwork};
use vdc::{Ipv4Block, Key, Name, NodePrefix, SiteNumber, VdcId};
use vdc_overlay::{Event, Member};

const VDC: VdcId = VdcId([0x5a; 32]);
const PORT: u16 = 51820;

fn member(number: u8) -> Member {
    let range: Ipv4Block = "10.203.0.0/24".parse().expect("a block");
    Member {
        node: Key([number; 32]),
        wg: BoringFactory::new([number; 32]).public(),
        prefix: NodePrefix::derive(&VDC, SiteNumber(1), &Key([number; 32]), 0),
        ipv4: range.sub_block(28, u32::from(number)),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [me, peer, remote, options @ ..] = arguments.as_slice() else {
        return Err("usage: static-pair ME PEER REMOTE:PORT [--no-offload]".into());
    };
    let (me, peer, remote): (u8, u8, SocketAddr) = (me.parse()?, peer.parse()?, remote.parse()?);
    let own = member(me);
    let network = NetworkConfig {
        vdc: VDC,
        name: Name::new(&format!("pair{me}"))?,
        prefix: own.prefix,
        ipv4: own.ipv4,
        ipv4_ranges: vec!["10.203.0.0/24".parse()?],
        mtu_bytes: meshd_tun::MTU_BYTES,
        host_ipv4: true,
    };
    let (_network, mut tun) = VdcNetwork::ensure(&network)?;
    if options.iter().any(|option| option == "--no-offload") {
        tun.disable_offloads()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let plane = DataPlane::start(DataPlaneConfig { port: PORT })?;
    let (events, mut wanted) = tokio::sync::mpsc::channel(16);
    let vdc = VdcConfig {
        wireguard_secret: [me; 32],
        prefix: own.prefix,
        ipv4: own.ipv4,
        seed: [me; 32],
        members: vec![member(peer)],
        last_paths: Vec::new(),
        tun,
        events,
    };
    let handle = runtime.block_on(plane.add_vdc(vdc))?;
    let addresses: Vec<String> = network.host_addresses().iter().map(ToString::to_string).collect();
    println!("{}", addresses.join(" "));

    let answers = handle.clone();
    let answering = std::thread::spawn(move || {
        while let Some(event) = wanted.blocking_recv() {
            if let Event::EndpointsWanted(node) = event
                && let Err(error) = answers.set_candidates(node, vec![remote])
            {
                println!("{error}");
            }
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    runtime.block_on(handle.remove())?;
    plane.stop();
    answering.join().map_err(|_| "the answering thread panicked")?;
    VdcNetwork::remove(&network.name, &VDC)?;
    Ok(())
}
