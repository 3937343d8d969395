//! From the revoke command to the last packet that anybody accepts from the revoked node, over three sites.

use std::time::{Duration, Instant};

use ::tests::figures::{Figure, percentile};
use ::tests::flow::Flow;
use ::tests::vdc_lab::{Node, PATIENCE, ThreeSites, in_lab};
use anyhow::{Context as _, Result};
use meshlab::wait_until;

use crate::Bench;

pub(crate) const BENCH: Bench =
    Bench { name: "revoke", about: "3 sites, 10 times: revoke command to the last packet accepted anywhere", run };

const RUNS: usize = 10;
/// A flow that has been silent for this long is over: pieces are 5 ms apart.
const SILENCE: Duration = Duration::from_secs(3);

fn run() -> Result<Vec<Figure>> {
    in_lab(|lab| {
        let vdc = ThreeSites::build(lab)?;
        vdc.wait()?;
        let receivers = [&vdc.paris, &vdc.berlin, &vdc.lisbon];
        for node in receivers {
            node.ctl(&["expose", "7000/udp"])?;
        }
        let (mut last, mut confirmed) = (vec![], vec![]);
        for number in 1..=RUNS {
            let name = format!("stolen{number}");
            let stolen = Node::start(vdc.sites[1].host(&name)?, "")?;
            stolen.join(&vdc.paris.invite("berlin")?)?;
            let mut flows = vec![];
            for node in receivers {
                flows.push(Flow::udp(&stolen.host, &node.host, &node.address("ipv6")?, 7000)?);
            }
            for flow in &flows {
                flow.wait_flowing(PATIENCE)?;
            }
            let started = Instant::now();
            vdc.paris.ctl(&["node", "revoke", &name, "--reason", "bench"])?;
            confirmed.push(started.elapsed().as_secs_f64());
            wait_until(PATIENCE, "silence", || {
                flows.iter().all(|flow| flow.last_arrival().is_some_and(|at| at.elapsed() > SILENCE))
            })?;
            let at = flows.iter().filter_map(Flow::last_arrival).max().context("it was heard before")?;
            last.push(at.saturating_duration_since(started).as_secs_f64());
        }
        let of = |samples: &[f64], percent| percentile(samples, percent).context("there are samples");
        Ok(vec![
            Figure::new("revoke to last packet, p50", of(&last, 50)?, "s"),
            Figure::new("revoke to last packet, worst", of(&last, 100)?, "s").at_most(2.0),
            Figure::new("revoke to confirmed by all, worst", of(&confirmed, 100)?, "s"),
        ])
    })
}
