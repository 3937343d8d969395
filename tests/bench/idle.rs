//! What a VDC costs while nothing happens: packets on the lines, memory, processor time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::tests::figures::Figure;
use ::tests::vdc_lab::{Node, ThreeSites, in_lab};
use anyhow::{Context as _, Result};
use meshlab::{Direction, wait_until};

use crate::Bench;

pub(crate) const BENCH: Bench =
    Bench { name: "idle", about: "3 sites without traffic, 4 minutes: packets per link, memory, processor time", run };

/// Longer than several keep-alives of every kind.
const SPAN: Duration = Duration::from_secs(240);
/// Until tunnels that nobody uses are closed.
const SETTLE: Duration = Duration::from_secs(400);
/// The span in which a link may send one packet.
const LINK_SPAN: Duration = Duration::from_secs(20);
/// The data plane's port; all others of the daemon belong to the control plane.
const DATA_PORT: u16 = 4710;

#[derive(Debug, Default)]
struct Counts {
    data: AtomicU64,
    control: AtomicU64,
    other: AtomicU64,
}

fn run() -> Result<Vec<Figure>> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let nodes = [&vdc.paris, &vdc.berlin, &vdc.lisbon];
        wait_until(SETTLE, "unused tunnels are closed", || {
            let tunnels: f64 =
                nodes.iter().map(|n| n.metric("meshd_tunnels_active{vdc=\"acme\"}").unwrap_or(99.0)).sum();
            if tunnels == 0.0 { Ok(()) } else { Err(format!("{tunnels} ends of tunnels")) }
        })?;
        // Each link has two ends.
        let ends: f64 = nodes.iter().map(|n| n.metric("meshd_control_links{vdc=\"acme\"}")).sum::<Result<f64>>()?;
        let links = ends / 2.0;
        let counts = Arc::new(Counts::default());
        for site in &vdc.sites {
            let counts = Arc::clone(&counts);
            site.uplink().tap(move |direction, packet| {
                if direction == Direction::Up {
                    let counter = match ports(packet) {
                        Some(ports) if ports.contains(&DATA_PORT) => &counts.data,
                        Some(_) => &counts.control,
                        None => &counts.other,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let before = nodes.iter().map(|node| cpu_s(node)).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(SPAN); // what is measured is this time
        let after = nodes.iter().map(|node| cpu_s(node)).collect::<Result<Vec<_>>>()?;
        let percent = before.iter().zip(&after).map(|(a, b)| 100.0 * (b - a) / SPAN.as_secs_f64()).fold(0.0, f64::max);
        let rss_mb = nodes.iter().map(|node| rss_mb(node)).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let spans = SPAN.as_secs_f64() / LINK_SPAN.as_secs_f64();
        Ok(vec![
            Figure::new("data-plane packets", count(&counts.data), "").at_most(0.0),
            Figure::new("control packets per link per 20 s", count(&counts.control) / links / spans, "").at_most(1.0),
            Figure::new("other packets (ICMP, neighbours of the WAN)", count(&counts.other), ""),
            Figure::new("control links", links, ""),
            Figure::new("resident memory, largest of 3", rss_mb, "MB").at_most(50.0),
            Figure::new("processor time, largest of 3", percent, "%").at_most(0.2),
        ])
    })
}

/// Source and destination port of a UDP or TCP packet without extension headers.
fn ports(packet: &[u8]) -> Option<[u16; 2]> {
    let (protocol, offset) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, usize::from(packet[0] & 15) * 4),
        6 => (*packet.get(6)?, 40),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    matches!(protocol, 6 | 17).then(|| Some([port(offset)?, port(offset + 2)?])).flatten()
}

fn rss_mb(node: &Node) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}

fn cpu_s(node: &Node) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid()?))?;
    crate::cpu::own_s(&stat).context("cannot read its processor time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_both_families() {
        let mut v4 = [0_u8; 28];
        (v4[0], v4[9], v4[21], v4[23]) = (0x45, 17, 7, 9);
        assert_eq!(ports(&v4), Some([7, 9]));
        let mut v6 = [0_u8; 60];
        (v6[0], v6[6], v6[40], v6[42]) = (0x60, 6, 1, 2);
        assert_eq!(ports(&v6), Some([256, 512]));
        v6[6] = 58;
        assert_eq!(ports(&v6), None);
        assert_eq!(ports(&v4[..22]), None);
        assert_eq!(ports(&[]), None);
    }
}
