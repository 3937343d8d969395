//! Names through the resolver of a real Debian host: systemd-resolved, told over D-Bus.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use meshlab::{Lab, wait_until};
use tests::resolver::Resolver;
use tests::vdc_lab::{DNS_STUB, Node, PATIENCE, in_lab, site};

/// A name of the internet, and its address.
const OUTSIDE: (&str, Ipv4Addr) = ("www.example.net", Ipv4Addr::new(198, 51, 100, 7));

/// Starts a box whose host uses systemd-resolved.
fn start_resolving(lab: &Lab, site_name: &str, host: &str) -> Result<(Node, Resolver)> {
    let host = site(lab, site_name)?.host(host)?;
    let resolver = Resolver::start(&host)?;
    Ok((Node::start_with(host, "", Resolver::environment())?, resolver))
}

/// Waits until systemd-resolved answers a name with these addresses, asked through the VDC's interface.
fn wait_for_name(resolver: &Resolver, name: &str, addresses: &[&str]) -> Result<()> {
    wait_until(PATIENCE, "systemd-resolved answers", || {
        let text = resolver.query(name).map_err(|e| e.to_string())?;
        let has_all = addresses.iter().all(|address| text.contains(address));
        if has_all && text.contains("link: mesh-") { Ok(()) } else { Err(text) }
    })?;
    Ok(())
}

#[test]
fn host_with_systemd_resolved_resolves_names_of_its_vdc_and_of_the_rest() -> Result<()> {
    in_lab(|lab| {
        lab.name_server().set(OUTSIDE.0, &[IpAddr::V4(OUTSIDE.1)]);
        let (mut paris, mut resolver) = start_resolving(lab, "paris", "paris1")?;
        let berlin = Node::start(site(lab, "berlin")?.host("berlin1")?, "")?;
        berlin.create("acme", "berlin")?;
        ensure!(resolver.query(OUTSIDE.0)?.contains(&OUTSIDE.1.to_string()), "the rest of the world before");

        // The box's own name at once after the command, others' as soon as it has heard of them.
        paris.join(&berlin.invite("paris")?)?;
        let answer = resolver.query("paris1.paris.acme.internal")?;
        ensure!(answer.contains(&paris.address("ipv6")?) && answer.contains("link: mesh-acme"), "{answer}");
        let (v6, v4) = (berlin.address("ipv6")?, berlin.address("ipv4")?);
        let name = "berlin1.berlin.acme.internal";
        wait_for_name(&resolver, name, &[&v6, &v4])?;
        let dns = paris.status()?["dns"].clone();
        ensure!(dns["state"] == "resolved" && dns["detail"].is_null(), "{dns}");
        ensure!(paris.run(&["status"])?.stdout.contains("acme.internal resolved by this host"));
        ensure!(!paris.problems()?.contains(&"dns-not-integrated".to_owned()), "a problem that is none");

        // What the interface may be asked, and by which means.
        let link = resolver.link("mesh-acme")?;
        for part in ["~acme.internal", "~f.ip6.arpa", "-DefaultRoute", "-LLMNR", "-mDNS", "-DNSOverTLS", "DNSSEC=no"] {
            let has = if part == "~f.ip6.arpa" { link.contains(".d.f.ip6.arpa") } else { link.contains(part) };
            ensure!(has, "no {part} in {link}");
        }
        ensure!(link.contains("in-addr.arpa"), "{link}");

        // Back from addresses, through glibc too, and by the name server's own address.
        for address in [&v6, &v4] {
            ensure!(resolver.query(address)?.contains(name), "{address} has no name");
            ensure!(paris.host.ok(&["getent", "hosts", address])?.contains(name), "{address} has no name for glibc");
        }
        ensure!(paris.host.ok(&["getent", "ahosts", name])?.contains(&v6), "glibc asks systemd-resolved's stub");

        // Others are asked about everything else, and about nothing of the VDC's.
        ensure!(resolver.query(OUTSIDE.0)?.contains(&OUTSIDE.1.to_string()), "the rest of the world");
        let asked = lab.name_server().queries();
        ensure!(resolver.query("fd00::1234").is_err_and(|e| format!("{e:#}").contains("not found")), "not ours");
        ensure!(lab.name_server().queries() > asked, "addresses that are not the VDC's are the site's to know");
        let asked = lab.name_server().queries();
        ensure!(resolver.query("nobody.berlin.acme.internal").is_err(), "nobody answers");
        ensure!(lab.name_server().queries() == asked, "a question about the VDC's names left the host");

        // systemd-resolved restarts and has forgotten everything.
        resolver.start_resolved()?;
        let restarted = Instant::now();
        wait_for_name(&resolver, name, &[&v6, &v4])?;
        println!("told again {:?} after systemd-resolved answered", restarted.elapsed());
        ensure!(restarted.elapsed() < Duration::from_secs(6), "{:?}", restarted.elapsed());
        // The bus restarts, and with it systemd-resolved.
        resolver.stop_resolved();
        wait_until(PATIENCE, "status says that nobody resolves", || {
            paris.status().is_ok_and(|s| s["dns"]["state"] == "stub")
        })?;
        resolver.start_bus()?;
        resolver.start_resolved()?;
        wait_for_name(&resolver, name, &[&v6, &v4])?;

        // meshd is killed. While it is away, others' names resolve; the interface stays.
        paris.kill_daemon()?;
        ensure!(resolver.query(OUTSIDE.0)?.contains(&OUTSIDE.1.to_string()), "the rest of the world without meshd");
        paris.start_daemon()?;
        wait_for_name(&resolver, name, &[&v6, &v4])?;
        // Both are: systemd-resolved comes back while there is no meshd, so nobody hears of it.
        paris.kill_daemon()?;
        resolver.start_resolved()?;
        ensure!(resolver.query(name).is_err(), "nobody told it");
        paris.start_daemon()?;
        wait_for_name(&resolver, name, &[&v6, &v4])?;

        paris.ctl(&["leave"])?;
        ensure!(resolver.link("mesh-acme").is_err(), "the interface is left");
        let all = resolver.resolvectl(&["status"])?.stdout;
        ensure!(!all.contains("acme.internal") && !all.contains(".d.f.ip6.arpa"), "{all}");
        ensure!(resolver.query(name).is_err(), "it resolves after leaving");
        ensure!(resolver.query(OUTSIDE.0)?.contains(&OUTSIDE.1.to_string()), "the rest of the world after");
        Ok(())
    })
}

#[test]
fn two_vdcs_of_one_host_do_not_mix_and_neighbours_are_told_nothing() -> Result<()> {
    in_lab(|lab| {
        let (both, resolver) = start_resolving(lab, "paris", "paris1")?;
        let lan = site(lab, "berlin")?;
        let (acme, shop) = (Node::start(lan.host("acme1")?, "")?, Node::start(lan.host("shop1")?, "")?);
        acme.create("acme", "berlin")?;
        shop.create("shop", "berlin")?;
        both.join(&acme.invite("paris")?)?;
        both.join(&shop.invite("paris")?)?;
        let (in_acme, in_shop) = (acme.address("ipv6")?, shop.address("ipv6")?);
        for (name, address, link) in [
            ("acme1.berlin.acme.internal", &in_acme, "mesh-acme"),
            ("shop1.berlin.shop.internal", &in_shop, "mesh-shop"),
        ] {
            wait_for_name(&resolver, name, &[address])?;
            ensure!(resolver.query(name)?.contains(&format!("link: {link}")), "{name} by another way");
            ensure!(resolver.query(address)?.contains(name), "{address} has no name");
        }
        ensure!(resolver.query("acme1.berlin.shop.internal").is_err(), "a node of one in the other");
        let status = both.ctl(&["status"])?;
        let servers: Vec<&str> =
            status["vdcs"].as_array().into_iter().flatten().filter_map(|vdc| vdc["dns"]["server"].as_str()).collect();
        ensure!(servers.len() == 2 && servers[0] != servers[1], "{status}");

        // Each VDC's name server knows that VDC alone, and tells this host alone.
        let ask = |server: &str, name: &str| {
            both.host.ok(&["dig", "+time=2", "+tries=1", &format!("@{server}"), "AAAA", name])
        };
        let at = |vdc: usize| servers[vdc].trim_end_matches(":53").trim_matches(['[', ']']);
        ensure!(ask(at(0), "acme1.berlin.acme.internal")?.contains(&in_acme), "the VDC's own");
        ensure!(ask(at(0), "shop1.berlin.shop.internal")?.contains("REFUSED"), "the other VDC's");
        both.ctl(&["expose", "53/udp", "53", "--vdc", "acme"])?;
        let own = status["vdcs"][0]["node"]["addresses"]["ipv6"].as_str().unwrap_or_default().to_owned();
        let peer = wait_until(PATIENCE, "the exposed port is open", || {
            acme.host.ok(&["dig", "+time=1", "+tries=1", &format!("@{own}"), "AAAA", "paris1.paris.acme.internal"])
        })?;
        ensure!(peer.contains("REFUSED"), "another node was told: {peer}");

        // Leaving one leaves the other.
        both.ctl(&["leave", "--vdc", "acme"])?;
        ensure!(resolver.query("acme1.berlin.acme.internal").is_err(), "it resolves after leaving");
        ensure!(resolver.query("shop1.berlin.shop.internal")?.contains(&in_shop), "the other is gone too");
        // And again, with the same addresses.
        both.join(&acme.invite("paris")?)?;
        wait_for_name(&resolver, "acme1.berlin.acme.internal", &[&in_acme])?;
        Ok(())
    })
}

#[test]
fn resolved_that_comes_late_is_found_and_the_stub_serves_until_then() -> Result<()> {
    in_lab(|lab| {
        let node = Node::start(site(lab, "paris")?.host("paris1")?, "")?;
        node.create("acme", "paris")?;
        ensure!(node.status()?["dns"]["state"] == "stub");
        let name = "paris1.paris.acme.internal";
        let asked = node.host.ok(&["dig", "+short", &format!("@{DNS_STUB}"), "AAAA", name])?;
        ensure!(asked.trim() == node.address("ipv6")?, "{asked}");
        let resolver = Resolver::start(&node.host)?;
        wait_for_name(&resolver, name, &[&node.address("ipv6")?])?;
        ensure!(node.status()?["dns"]["state"] == "resolved");
        Ok(())
    })
}

#[test]
fn dig_finds_the_name_server_to_follow_the_rules() -> Result<()> {
    meshlab::require_tools(&["dig:bind9-dnsutils"])?;
    in_lab(|lab| {
        let node = Node::start(site(lab, "paris")?.host("paris1")?, "")?;
        node.create("acme", "paris")?;
        let (v6, v4) = (node.address("ipv6")?, node.address("ipv4")?);
        let dig = |words: &str| {
            let mut all = vec!["dig", "+time=2", "+tries=1", "@127.0.0.77"];
            all.extend(words.split(' '));
            node.host.ok(&all)
        };
        let name = "paris1.paris.acme.internal";
        let soa = "acme.internal. 5 IN SOA acme.internal. nobody.invalid.";
        let (reverse6, reverse4) = (format!("-x {v6}"), format!("-x {v4}"));
        let pointer = format!("PTR {name}.");
        for (words, parts) in [
            (format!("{name} AAAA"), vec!["NOERROR", " aa ", v6.as_str(), "ANSWER: 1", "AUTHORITY: 0"]),
            (format!("{name} A +tcp"), vec!["NOERROR", v4.as_str(), "(TCP)"]),
            (format!("{name} ANY"), vec!["NOERROR", v6.as_str(), v4.as_str(), "ANSWER: 2"]),
            ("PaRiS1.PARIS.Acme.Internal A".into(), vec!["PaRiS1.PARIS.Acme.Internal. 5 IN A", v4.as_str()]),
            (reverse6, vec!["NOERROR", pointer.as_str()]),
            (reverse4, vec!["NOERROR", pointer.as_str()]),
            ("acme.internal SOA".into(), vec!["NOERROR", "ANSWER: 1", soa]),
            ("acme.internal NS".into(), vec!["NOERROR", "NS acme.internal."]),
            ("acme.internal A".into(), vec!["NOERROR", "ANSWER: 0", "AUTHORITY: 1", soa]),
            (format!("{name} MX"), vec!["NOERROR", "ANSWER: 0", "AUTHORITY: 1", soa]),
            ("paris.acme.internal A".into(), vec!["NOERROR", "ANSWER: 0", soa]),
            ("nobody.paris.acme.internal A".into(), vec!["NXDOMAIN", " aa ", "AUTHORITY: 1", soa]),
            ("acme.internal AXFR".into(), vec!["Transfer failed"]),
            ("version.bind CH TXT".into(), vec!["REFUSED"]),
            (format!("{name} CH A"), vec!["REFUSED"]),
            ("www.example.net A".into(), vec!["REFUSED", "ANSWER: 0"]),
            (format!("{name} A +edns=1 +noednsnegotiation"), vec!["BADVERS", "ANSWER: 0", "version: 0"]),
            (format!("{name} A +dnssec +bufsize=512"), vec!["NOERROR", v4.as_str(), "flags: do", "udp: 1232"]),
            (format!("{name} A +noedns"), vec!["NOERROR", v4.as_str(), "ADDITIONAL: 0"]),
            (format!("{name} A +ednsopt=65001:ff"), vec!["NOERROR", v4.as_str()]),
            (format!("{name} A +opcode=NOTIFY"), vec!["NOTIMP"]),
            (format!("{name} A +header-only"), vec!["FORMERR"]),
            (format!("{name} TYPE65280"), vec!["NOERROR", "ANSWER: 0", soa]),
        ] {
            // dig aligns by tabs or blanks as lengths fall.
            let text = dig(&words)?.split_whitespace().collect::<Vec<_>>().join(" ");
            for part in parts {
                ensure!(text.contains(part), "dig {words}: no {part:?} in {text}");
            }
            ensure!(!text.contains("WARNING: ") || text.contains("recursion requested"), "dig {words}: {text}");
            let (_, answer) = text.split_once("Got answer:").unwrap_or_default();
            ensure!(!answer.contains("65001") && !answer.contains("COOKIE"), "options came back: {text}");
        }
        // A validating resolver finds nothing forged: an unsigned answer to what nobody signed.
        let delv = node.host.run(&["delv", "@127.0.0.77", "+noroot", "-i", name, "AAAA"])?;
        ensure!(delv.is_ok() && delv.stdout.contains(&v6), "delv: {}{}", delv.stdout, delv.stderr);
        Ok(())
    })
}
