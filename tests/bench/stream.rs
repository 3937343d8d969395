//! TCP between two containers of two sites, beside that between the sites' hosts in the same run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ::tests::containers::{ContainerNode, copy_programs, image};
use ::tests::figures::{Figure, percentile};
use ::tests::vdc_lab::{PATIENCE, in_lab, site};
use anyhow::{Context as _, Result};
use meshlab::wait_until;
use serde_json::{Value, json};

use crate::Bench;

pub(crate) const BENCH: Bench =
    Bench { name: "stream", about: "TCP between containers of two sites, beside TCP between their hosts", run };

/// Measurements of each, by turns; medians are shown.
const ROUNDS: usize = 5;
const IMAGE: &str = "localhost/iperf3:1";
/// The first second is not counted: the window opens in it.
const CLIENT: [&str; 7] = ["iperf3", "-t", "6", "-O", "1", "-J", "-c"];

fn run() -> Result<Vec<Figure>> {
    in_lab(|lab| {
        let berlin = ContainerNode::start(site(lab, "berlin")?.host("berlin1")?, "")?;
        let lisbon = ContainerNode::start(site(lab, "lisbon")?.host("lisbon1")?, "")?;
        berlin.create("acme", "berlin")?;
        lisbon.join(&berlin.invite("lisbon")?)?;
        lisbon.wait_for(&berlin)?;
        for node in [&berlin, &lisbon] {
            let layout = node.host.dir().join("iperf3");
            iperf3(&layout)?;
            node.ctl(&["image", "import", &format!("oci:{}:1", layout.display()), "--tag", IMAGE])?;
        }
        berlin.ctl(&["expose", "5201"])?;
        let server = berlin.host.spawn(&["iperf3", "-s", "--forceflush"])?;
        server.wait_for_log(PATIENCE, "listening")?;
        berlin.run_detached(&["--name", "server", "--port", "5201", IMAGE, "iperf3", "-s"])?;
        let (host, container) = (berlin.address("ipv6")?, berlin.workload_address("server")?);

        let from_host = || mbit(&lisbon.host.ok(&[&CLIENT[..], &[host.as_str()]].concat())?);
        let from_container = || {
            let words = [&["run", "--rm", IMAGE][..], &CLIENT, &[container.as_str()]].concat();
            mbit(&lisbon.run(&words)?.stdout)
        };
        wait_until(PATIENCE, "the host answers", || from_host().map_err(|error| error.to_string()))?;
        wait_until(PATIENCE, "the container answers", || from_container().map_err(|error| error.to_string()))?;
        let (mut hosts, mut containers) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            hosts.push(from_host()?);
            containers.push(from_container()?);
        }
        let median = |samples: &[f64]| percentile(samples, 50).context("there are samples");
        let (hosts, containers) = (median(&hosts)?, median(&containers)?);
        Ok(vec![
            Figure::new("TCP host to host", hosts, "Mbit/s"),
            Figure::new("TCP container to container", containers, "Mbit/s"),
            Figure::new("container to container beside host to host", containers / hosts, "ratio").at_least(0.9),
        ])
    })
}

/// The received rate in iperf3's report.
fn mbit(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).with_context(|| format!("iperf3 said {report:?}"))?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in {report}"))? / 1e6)
}

/// Writes an OCI layout with this machine's iperf3.
fn iperf3(layout: &Path) -> Result<()> {
    let root = layout.with_extension("root");
    for path in ["dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    copy_programs(&root, &[(Path::new("/usr/bin/iperf3"), "/usr/bin/iperf3")])?;
    image(layout, &root, &json!({"Env": ["PATH=/usr/bin"], "Cmd": ["iperf3", "-s"]}))?;
    fs::remove_dir_all(&root)?;
    Ok(())
}
