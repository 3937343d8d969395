//! Containers on the network: over sites, on one host, to the world, and where they must not go.

use anyhow::{Context as _, Result, ensure};
use meshlab::{Lab, wait_until};
use tests::containers::{ContainerNode, IMAGE};
use tests::vdc_lab::{PATIENCE, in_lab, site};

/// Two sites with a box each, in one VDC.
fn two_sites(lab: &Lab) -> Result<(ContainerNode, ContainerNode)> {
    let berlin = ContainerNode::start(site(lab, "berlin")?.host("berlin1")?, "")?;
    let lisbon = ContainerNode::start(site(lab, "lisbon")?.host("lisbon1")?, "")?;
    berlin.create("acme", "berlin")?;
    lisbon.join(&berlin.invite("lisbon")?)?;
    lisbon.wait_for(&berlin)?;
    for node in [&berlin, &lisbon] {
        node.import_busybox()?;
    }
    Ok((berlin, lisbon))
}

#[test]
fn containers_are_reached_by_name_over_sites_and_denied_by_default() -> Result<()> {
    in_lab(|lab| {
        let (berlin, lisbon) = two_sites(lab)?;
        berlin.run_detached(&["--name", "web", "--port", "80", IMAGE, "httpd", "-f", "-h", "/www"])?;
        berlin.run_detached(&["--name", "shy", IMAGE, "httpd", "-f", "-h", "/www"])?;
        lisbon.use_dns_stub()?;
        for family in ["-6", "-4"] {
            wait_until(PATIENCE, "the page from the other site", || {
                lisbon.fetch("http://web.berlin.acme.internal/", family).is_ok_and(|page| page.is_some())
            })?;
            ensure!(lisbon.fetch("http://shy.berlin.acme.internal/", family)?.is_none(), "it declared no port");
        }
        ensure!(lisbon.fetch("http://web.berlin1.berlin.acme.internal/", "-6")?.is_some(), "by its node as well");
        // From a container, by the VDC's name server.
        let page = lisbon.script(&[], "get web.berlin.acme.internal")?;
        ensure!(page.contains("hello"), "{page}");
        let address = berlin.workload_address("web")?;
        let by_address = lisbon.script(&[], &format!("get {address}"))?;
        ensure!(by_address.contains("hello"), "{by_address}");
        // Two containers of one host are no more to each other than to anybody else.
        let shy = berlin.workload_address("shy")?;
        let denied = berlin.script(&[], &format!("get {shy} 80 2 || echo denied"))?;
        ensure!(denied.contains("denied"), "{denied}");
        let allowed = berlin.script(&[], &format!("get {address}"))?;
        ensure!(allowed.contains("hello"), "{allowed}");
        // Explained, and gone with its container.
        let explained = lisbon.ctl(&["explain", "lisbon1", "web.berlin", "80"])?;
        ensure!(explained["allowed"] == true, "{explained}");
        berlin.ctl(&["rm", "-f", "web"])?;
        wait_until(PATIENCE, "its name is gone", || {
            lisbon.host.run(&["getent", "hosts", "web.berlin.acme.internal"]).is_ok_and(|output| !output.is_ok())
        })?;
        Ok(())
    })
}

#[test]
fn world_is_reached_by_masquerade_and_reaches_published_ports_only() -> Result<()> {
    in_lab(|lab| {
        let berlin_site = site(lab, "berlin")?;
        let berlin = ContainerNode::start(berlin_site.host("berlin1")?, "")?;
        berlin.create("acme", "berlin")?;
        berlin.import_busybox()?;
        let world = site(lab, "world")?.host("world1")?;
        let pages = world.dir().join("www");
        world.write_file(pages.join("index.html"), "the world\n")?;
        let _server = world.spawn(&[
            "python3",
            "-m",
            "http.server",
            "--bind",
            "::",
            "--directory",
            &pages.display().to_string(),
            "80",
        ])?;
        let v4 = world.v4().context("an IPv4 address")?;
        wait_until(PATIENCE, "the world serves", || {
            berlin.host.run(&["curl", "-sf", "-m", "2", &format!("http://{v4}/")]).is_ok_and(|output| output.is_ok())
        })?;
        let page = berlin.script(&[], &format!("get {v4}"))?;
        ensure!(page == "the world\n", "{page}");
        if let Some(v6) = world.v6() {
            let page = berlin.script(&[], &format!("get {v6}"))?;
            ensure!(page == "the world\n", "{page}");
        }
        berlin.run_detached(&["--name", "web", "-p", "8080:80", IMAGE, "httpd", "-f", "-h", "/www"])?;
        for address in berlin.host.addresses() {
            let url =
                if address.is_ipv6() { format!("http://[{address}]:8080/") } else { format!("http://{address}:8080/") };
            ensure!(berlin.host.run(&["curl", "-sf", "-m", "5", &url])?.is_ok(), "{url} from the host itself");
        }
        ensure!(berlin.fetch("http://127.0.0.1:8080/", "-4")?.is_some());
        // The host's own services are not the container's.
        let _own = berlin.serve_page(81, "the host's own")?;
        let host_v4 = berlin.host.v4().context("an IPv4 address")?;
        for target in [host_v4.to_string(), "169.254.1.2".to_owned()] {
            let denied = berlin.script(&[], &format!("get {target} 81 2 || echo denied"))?;
            ensure!(denied.contains("denied"), "{target}: {denied}");
        }
        // The host's resolver is asked for names that are nobody's here.
        lab.name_server().set("example.test", &[v4.into()]);
        let found = berlin.script(&[], "nslookup example.test")?;
        ensure!(found.contains(&v4.to_string()), "{found}");
        Ok(())
    })
}

#[test]
fn privileged_container_sees_no_table_spoofs_nobody_and_stays_off_the_infra_plane() -> Result<()> {
    in_lab(|lab| {
        let (berlin, lisbon) = two_sites(lab)?;
        berlin.run_detached(&["--name", "neighbour", "--port", "80", IMAGE, "httpd", "-f", "-h", "/www"])?;
        berlin.run_detached(&["--name", "evil", "--privileged", "-v", "/:/host:ro", IMAGE, "sleep", "1000"])?;
        let evil = |script: &str| berlin.run(&["exec", "evil", "sh", "-c", script]);
        let nft = evil("chroot /host nft list ruleset; echo status $?")?;
        ensure!(!nft.stdout.contains("table inet meshd"), "the table is seen: {nft:?}");
        ensure!(!evil("ip link add dummy0 type veth")?.is_ok(), "it has no rights over its network");
        let (neighbour, own) = (berlin.workload_address("neighbour")?, berlin.workload_address("evil")?);
        ensure!(!evil(&format!("ip addr add {neighbour}/128 dev eth0"))?.is_ok(), "{own} takes {neighbour}");
        let infra = infra_address(&berlin)?;
        for target in [infra, infra_address(&lisbon)?] {
            let said = evil(&format!("nc -w 2 {target} 4714 </dev/null && echo reached"))?;
            ensure!(!said.stdout.contains("reached"), "{target}: {said:?}");
        }
        ensure!(berlin.inspect("neighbour")?["phase"] == "running");
        Ok(())
    })
}

/// The infra address of a box: the first of its own prefix.
fn infra_address(node: &ContainerNode) -> Result<String> {
    let host: std::net::Ipv6Addr = node.address("ipv6")?.parse()?;
    let mut segments = host.segments();
    segments[7] = 0;
    Ok(std::net::Ipv6Addr::from(segments).to_string())
}
