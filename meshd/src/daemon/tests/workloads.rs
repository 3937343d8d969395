//! What becomes known of a node's workloads, and when.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vdc::record::{PortRange, Protocol};
use vdc::roster::NameHolder;

use super::*;
use crate::vdc_core::CoreWorkload;

#[test]
fn workloads_are_known_at_once_and_signed_a_moment_later() {
    in_namespaces("workloads::workloads_are_known_at_once_and_signed_a_moment_later", known_and_signed);
}

/// What the record says: its number, the host's ports, the workloads' names.
type Exposed = (u64, Vec<String>, Vec<String>);

async fn exposed(core: &CoreHandle) -> Exposed {
    let list = core.with(|core| core.exposure_list()).await.expect("served");
    let own = list.exposures.into_iter().next().expect("the own node comes first");
    let workloads = own.workloads.into_iter().map(|w| w.fqdn).collect();
    (own.record.map_or(0, |record| record.number), own.ports, workloads)
}

/// Waits until the record was signed again since `number`.
async fn signed_since(core: &CoreHandle, number: u64) -> Exposed {
    let signed = async {
        loop {
            let now = exposed(core).await;
            if now.0 > number {
                return now;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, signed).await.expect("the record follows")
}

fn tcp(port: u16) -> PortRange {
    PortRange { protocol: Protocol::Tcp, first: port, last: port }
}

fn text(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Whether the kernel's table has an address among those that flows may go to.
fn is_target(address: IpAddr) -> bool {
    let map = if address.is_ipv4() { "to4_dport" } else { "to6_dport" };
    let namespace = std::fs::read_dir("/run/netns").expect("mounted").next().expect("one VDC").expect("readable");
    let output = Command::new("ip")
        .args(["netns", "exec"])
        .arg(namespace.file_name())
        .args(["nft", "list", "map", "inet", "meshd", map])
        .output()
        .expect("package iproute2");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).contains(&format!("{address} : goto"))
}

/// How a flow between two parties would be judged: by whom, and whether it is allowed.
async fn explained(core: &CoreHandle, source: &str, destination: &str, flow: &str) -> (bool, String) {
    let query = api::ExplainQuery { source: source.into(), destination: destination.into(), flow: flow.into() };
    let told = core.with(move |core| core.explain(&query)).await.expect("served").expect("both are known");
    (told.allowed, told.reason)
}

async fn known_and_signed() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = daemon(directory.path()).await;
    let core = founded(&daemon, Some("10.64.0.0/12")).await;
    let node = core.with(|core| core.own_node()).await.expect("served").expect("a member");
    let host: (Ipv6Addr, Ipv4Addr) = (
        node.addresses.ipv6.parse().expect("an address"),
        node.addresses.ipv4.expect("has a block").parse().expect("an address"),
    );
    let v6 = |offset: u128| Ipv6Addr::from_bits(host.0.to_bits() - 1 + offset);
    let v4 = |offset: u32| Ipv4Addr::from_bits(host.1.to_bits() - 1 + offset);
    let web = CoreWorkload {
        name: Some(name("web")),
        v6: v6(0x1_0000),
        v4: Some(v4(2)),
        ports: vec![tcp(80)],
        labels: vec![name("front")],
        published: vec![],
    };
    let job = CoreWorkload { name: None, v6: v6(0x1_0001), v4: None, ports: vec![], labels: vec![], ..web.clone() };
    let nameless = CoreWorkload { v6: v6(0x1_0002), ports: vec![tcp(81)], ..job.clone() };

    // Wrong lists change nothing.
    for (wrong, why) in [
        (vec![CoreWorkload { v6: host.0, ..web.clone() }], "no address for a workload"),
        (vec![CoreWorkload { v4: Some(host.1), ..web.clone() }], "no address for a workload of this node"),
        (vec![web.clone(), CoreWorkload { v4: None, name: None, ..web.clone() }], "another workload's"),
        (vec![web.clone(), CoreWorkload { v4: None, v6: v6(0x1_0009), ..web.clone() }], "two workloads are called web"),
        (vec![CoreWorkload { ports: (1..=65).map(|n| tcp(2 * n)).collect(), ..web.clone() }], "at most 64"),
    ] {
        let error = core.set_workloads(wrong).await.expect_err(why);
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains(why), "{error:?}");
    }
    assert_eq!(exposed(&core).await, (0, vec![], vec![]));

    // Known at once: to the name server, to the kernel, to `explain`.
    core.set_workloads(vec![web.clone()]).await.expect("taken").loaded().await.expect("loaded");
    let table = core.with(|core| core.firewall_generation()).await.expect("served");
    core.set_workloads(vec![web.clone(), job.clone()]).await.expect("taken").loaded().await.expect("loaded");
    let same = core.with(|core| core.firewall_generation()).await.expect("served");
    assert_eq!(table, same, "a workload that nobody may reach is no reason to load a table");
    assert_eq!(exposed(&core).await, (0, vec![], text(&["web.paris.acme.internal"])), "not signed yet");
    let hosts = core.with(|core| core.names_served()).await.expect("served");
    assert_eq!(hosts["web.paris"], [IpAddr::from(web.v6), v4(2).into()]);
    assert_eq!(hosts["web.paris"], hosts["web.paris1.paris"]);
    assert!(is_target(web.v6.into()) && is_target(v4(2).into()) && !is_target(job.v6.into()));
    core.set_workloads(vec![web.clone(), job.clone(), nameless.clone()])
        .await
        .expect("taken")
        .loaded()
        .await
        .expect("loaded");
    assert!(is_target(nameless.v6.into()));
    let job_address = job.v6.to_string();
    for (source, destination, flow, allowed, reason) in [
        ("web.paris", "paris1.paris", "80", false, "the destination has not declared the port"),
        ("paris1", "web.paris1.paris.acme.internal", "80", true, "rule \"members\" allows it"),
        ("web.paris", "10.64.0.1", "icmp", true, "rule \"members\" allows it"),
        (&job_address, "web.paris", "80", true, "rule \"members\" allows it"),
        ("web.paris", &job_address, "icmp", false, "no workload is known at the destination"),
        ("web.paris", &nameless.v6.to_string(), "81", true, "rule \"members\" allows it"),
        ("paris1", "paris1", "80", true, "a host's traffic to itself never enters the VDC"),
    ] {
        let told = explained(&core, source, destination, flow).await;
        assert_eq!(told.0, allowed, "{source} to {destination}: {told:?}");
        assert!(told.1.starts_with(reason), "{source} to {destination}: {told:?}");
    }

    // Several changes, one record; the host's ports and the workloads keep each other.
    let db = CoreWorkload { name: Some(name("db")), v6: v6(0x1_0003), v4: None, ..web.clone() };
    core.set_workloads(vec![web.clone(), db.clone()]).await.expect("taken").loaded().await.expect("loaded");
    let both = text(&["db.paris.acme.internal", "web.paris.acme.internal"]);
    let table = core.with(|core| core.firewall_generation()).await.expect("served");
    let first = signed_since(&core, 0).await;
    assert_eq!((&first.1, &first.2), (&vec![], &both));
    let same = core.with(|core| core.firewall_generation()).await.expect("served");
    assert_eq!(table, same, "and neither is a record that says what the table has already");
    let change = api::ExposureChange { add: vec!["22".into()], remove: vec![] };
    core.with(move |core| core.exposure_change(&change)).await.expect("served").expect("declared");
    let second = exposed(&core).await;
    assert_eq!(second, (first.0 + 1, text(&["22/tcp"]), both.clone()));
    core.set_workloads(vec![db.clone(), job.clone()]).await.expect("taken").loaded().await.expect("loaded");
    let third = signed_since(&core, second.0).await;
    assert_eq!(third, (second.0 + 1, text(&["22/tcp"]), text(&["db.paris.acme.internal"])));
    // What no record says makes none.
    core.set_workloads(vec![db.clone()]).await.expect("taken").loaded().await.expect("loaded");
    assert!(!core.with(|core| core.is_record_due()).await.expect("served"));

    let taken = core.name_is_free(&name("paris1")).await.expect("a member");
    assert_eq!(taken, Err(NameHolder::Node { full_name: "paris1.paris".into() }));
    assert_eq!(core.name_is_free(&name("db")).await.expect("a member"), Ok(()), "its own workloads do not count");

    // A task that starts again knows what its record says, until it is told what runs.
    core.with(|core| core.forget_workloads()).await.expect("served");
    assert_eq!(exposed(&core).await, third);
    assert!(is_target(db.v6.into()), "its port stays open without anybody's word");
    core.set_workloads(vec![db.clone()]).await.expect("taken").loaded().await.expect("loaded");
    assert!(!core.with(|core| core.is_record_due()).await.expect("served"));

    // Nothing runs when the daemon has started again: what its record says is taken back.
    daemon.unserve(&name("acme")).await.expect("stopped");
    let core = daemon.serve(daemon.vdc_dir(&name("acme")).expect("still there")).await.expect("served again");
    let last = signed_since(&core, third.0).await;
    assert_eq!(last, (third.0 + 1, text(&["22/tcp"]), vec![]));
    assert!(!is_target(db.v6.into()));
}
