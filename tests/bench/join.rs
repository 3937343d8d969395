//! From the join command to the first ping over the overlay, at a round trip of 20 ms to the registrar.

use std::time::Instant;

use ::tests::figures::{Figure, percentile};
use ::tests::vdc_lab::{Node, in_lab, site};
use anyhow::{Context as _, Result};

use crate::Bench;

pub(crate) const BENCH: Bench =
    Bench { name: "join", about: "20 fresh boxes 20 ms away: join command to first overlay ping answered", run };

const RUNS: usize = 20;

fn run() -> Result<Vec<Figure>> {
    in_lab(|lab| {
        let (paris_site, berlin_site) = (site(lab, "paris")?, site(lab, "berlin")?);
        let paris = Node::start(paris_site.host("paris1")?, "")?;
        paris.create("acme", "paris")?;
        let mut samples = vec![];
        for number in 1..=RUNS {
            let node = Node::start(berlin_site.host(&format!("berlin{number}"))?, "")?;
            let token = paris.invite("berlin")?;
            let started = Instant::now();
            node.join(&token)?;
            node.wait_for(&paris)?;
            samples.push(started.elapsed().as_secs_f64());
            node.ctl(&["leave"])?;
        }
        let at = |percent| percentile(&samples, percent).context("there are samples");
        Ok(vec![
            Figure::new("join to first ping, p50", at(50)?, "s"),
            Figure::new("join to first ping, p95", at(95)?, "s").at_most(2.0),
            Figure::new("join to first ping, worst", at(100)?, "s"),
        ])
    })
}
