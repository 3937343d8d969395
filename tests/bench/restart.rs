//! How long traffic towards a node stands still when its daemon is killed and started again at once.

use std::time::Instant;

use ::tests::figures::{Figure, percentile};
use ::tests::flow::Flow;
use ::tests::vdc_lab::{PATIENCE, ThreeSites, in_lab};
use anyhow::{Context as _, Result};

use crate::Bench;

pub(crate) const BENCH: Bench =
    Bench { name: "restart", about: "SIGKILL and restart, 10 times: gap of inbound-only UDP and of TCP", run };

const RUNS: usize = 10;

fn run() -> Result<Vec<Figure>> {
    in_lab(|lab| {
        let mut vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        vdc.berlin.ctl(&["expose", "7000", "7000/udp"])?;
        let address = vdc.berlin.address("ipv6")?;
        let udp = Flow::udp(&vdc.paris.host, &vdc.berlin.host, &address, 7000)?;
        udp.wait_flowing(PATIENCE)?;
        let tcp = Flow::tcp(&vdc.lisbon.host, &vdc.berlin.host, &address, 7000)?;
        tcp.wait_flowing(PATIENCE)?;
        let (mut udp_gaps, mut tcp_gaps) = (vec![], vec![]);
        for _ in 0..RUNS {
            let killed = Instant::now();
            vdc.berlin.kill_daemon()?;
            vdc.berlin.start_daemon()?;
            udp.wait_flowing(PATIENCE)?;
            tcp.wait_flowing(PATIENCE)?;
            udp_gaps.push(udp.longest_gap(killed).as_secs_f64());
            tcp_gaps.push(tcp.longest_gap(killed).as_secs_f64());
        }
        let of = |samples: &[f64], percent| percentile(samples, percent).context("there are samples");
        Ok(vec![
            Figure::new("gap of inbound-only UDP, p50", of(&udp_gaps, 50)?, "s"),
            Figure::new("gap of inbound-only UDP, worst", of(&udp_gaps, 100)?, "s").at_most(2.0),
            Figure::new("gap of TCP, p50", of(&tcp_gaps, 50)?, "s"),
            Figure::new("gap of TCP, worst", of(&tcp_gaps, 100)?, "s").at_most(2.0),
        ])
    })
}
