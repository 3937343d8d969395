//! What is believed of the workloads that nodes name.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::lab::*;
use crate::address::{HOST, INFRA, WORKLOAD_MIN};
use crate::policy::{Flow, Kind, Reason, Selector, Service};
use crate::record::{Body, Exposure, Grant, PortRange, Protocol, Role, WorkloadExposure};
use crate::roster::issue::{self, IssueError};
use crate::roster::{Clash, NameHolder, Roster, View};
use crate::{Key, Office, Signed};

fn tcp(port: u16) -> PortRange {
    PortRange { protocol: Protocol::Tcp, first: port, last: port }
}

fn workload(text: &str, offset: u32) -> WorkloadExposure {
    WorkloadExposure {
        name: name(text),
        offset: WORKLOAD_MIN + offset,
        ipv4: None,
        ports: vec![tcp(80)],
        labels: vec![name("rack1")],
    }
}

/// A VDC with a second node in Berlin.
fn berlin() -> Lab {
    let mut lab = Lab::new();
    lab.admit("berlin1", "berlin2", lab.berlin);
    lab
}

fn expose(lab: &mut Lab, node: &str, workloads: Vec<WorkloadExposure>) {
    let draft = issue::exposure(&lab.view(), &key(node).public(), vec![tcp(22)], workloads).expect("a member");
    lab.issue(node, draft);
}

/// The names of a node's workloads, those that have their short names marked.
fn names(view: &View, node: &str) -> Vec<(String, bool)> {
    view.members[&key(node).public()].workloads.iter().map(|w| (w.name.to_string(), w.has_short_name)).collect()
}

fn body(workloads: Vec<WorkloadExposure>) -> Body {
    Body::Exposure(Exposure { node: key("berlin2").public(), serial: 1, ports: vec![], workloads })
}

#[test]
fn record_without_workloads_has_the_bytes_of_one_from_before() {
    let lab = berlin();
    let record = lab.forge("berlin2", lab.of_berlin1(), 2, body(vec![]));
    let decoded = Signed::decode(&record.encode()).expect("canonical");
    assert_eq!(decoded, record);
    // The golden record of an exposure was signed before workloads were in it: its body is an array of three.
    let Body::Exposure(exposure) = &record.body else { panic!("an exposure") };
    assert_eq!(crate::codec::encode(exposure)[0], 0x83);
    let Body::Exposure(with) = body(vec![workload("web", 0)]) else { panic!("an exposure") };
    assert_eq!(crate::codec::encode(&with)[0], 0x84);
    // No second form: an empty list, or null, is not what nobody writes.
    for last in [0x80, 0xf6] {
        let mut bytes = crate::codec::encode(exposure);
        bytes[0] = 0x84;
        bytes.push(last);
        assert!(crate::codec::decode::<Exposure>("exposure", &bytes, 4096).is_err(), "{last:#x}");
    }
}

#[test]
fn workloads_beyond_limits_are_refused() {
    let lab = berlin();
    let web = || workload("web", 0);
    let many = |n: u32| (0..n).map(|i| workload(&format!("w{i:03}"), i)).collect::<Vec<_>>();
    for (workloads, why) in [
        (many(257), "more than 256"),
        (vec![web(), workload("db", 1)], "not ascending"),
        (vec![web(), workload("web", 1)], "one name twice"),
        (vec![workload("db", 0), web()], "one address twice"),
        (vec![WorkloadExposure { offset: HOST, ..web() }], "the host's address"),
        (vec![WorkloadExposure { offset: INFRA, ..web() }], "the infra plane's address"),
        (vec![WorkloadExposure { offset: WORKLOAD_MIN - 1, ..web() }], "an address below the workloads'"),
        (vec![WorkloadExposure { ports: vec![tcp(2), tcp(1)], ..web() }], "ports not ascending"),
        (vec![WorkloadExposure { ports: vec![PortRange { first: 9, ..tcp(8) }], ..web() }], "an empty range"),
        (vec![WorkloadExposure { ports: (1..=65).map(|n| tcp(n * 2)).collect(), ..web() }], "65 ranges"),
        (vec![WorkloadExposure { labels: vec![name("b"), name("a")], ..web() }], "labels not ascending"),
        (
            vec![WorkloadExposure { labels: (0..65).map(|n| name(&format!("l{n:02}"))).collect(), ..web() }],
            "more than 64 labels",
        ),
        (
            ["a", "b"]
                .map(|n| WorkloadExposure { ipv4: Some(Ipv4Addr::LOCALHOST), ..workload(n, n.as_bytes()[0].into()) })
                .into(),
            "one IPv4 address twice",
        ),
    ] {
        let record = lab.forge("berlin2", lab.of_berlin1(), 2, body(workloads));
        assert!(Signed::decode(&record.encode()).is_err(), "{why}");
    }
    let record = lab.forge("berlin2", lab.of_berlin1(), 2, body(many(256)));
    let decoded = Signed::decode(&record.encode()).expect("256 are allowed");
    assert!(decoded.heap_bytes() > 256 * size_of::<WorkloadExposure>());

    // Each within its limits, all together longer than a record.
    let long = |i: u32| WorkloadExposure {
        labels: (10..26).map(|n| name(&format!("label-of-thirty-characters-{n}"))).collect(),
        ..workload(&format!("w{i:03}"), i)
    };
    let berlin2 = key("berlin2").public();
    let too_long = issue::exposure(&lab.view(), &berlin2, vec![], (0..256).map(long).collect());
    assert!(matches!(too_long, Err(IssueError::TooLong(_))), "{too_long:?}");
}

#[test]
fn issued_workloads_are_put_in_order() {
    let mut lab = berlin();
    let mut web = workload("web", 0);
    web.ports = vec![tcp(81), tcp(80)];
    web.labels = vec![name("b"), name("a"), name("b")];
    expose(&mut lab, "berlin2", vec![web, workload("db", 1)]);
    let view = lab.view();
    let exposure = view.members[&key("berlin2").public()].exposure().expect("signed");
    let web = &exposure.workloads[1];
    assert_eq!((web.name.as_str(), &web.labels), ("web", &vec![name("a"), name("b")]));
    assert_eq!(web.ports, [PortRange { last: 81, ..tcp(80) }]);
}

#[test]
fn labels_and_ipv4_count_only_if_they_are_the_nodes_to_give() {
    let mut lab = berlin();
    let berlin2 = key("berlin2").public();
    let block = lab.view().members[&berlin2].ipv4.expect("allotted");
    let at = |offset| Some(block.address(offset).expect("inside"));
    let given = |text: &str, offset: u32, ipv4| WorkloadExposure { ipv4, ..workload(text, offset) };
    let outside = Some(Ipv4Addr::new(10, 64, 0, 2));
    let wrong = vec![given("a", 0, at(2)), given("b", 1, at(1)), given("c", 2, outside), given("d", 3, at(15))];
    expose(&mut lab, "berlin2", wrong);
    let ipv4 = |view: &View| view.members[&berlin2].workloads.iter().map(|w| w.ipv4).collect::<Vec<_>>();
    let view = lab.view();
    assert_eq!(ipv4(&view), [at(2), None, None, None]);
    let clash = |text: &str, address: Option<Ipv4Addr>| Clash::WorkloadIpv4 {
        node: berlin2,
        name: name(text),
        address: address.expect("given"),
    };
    assert_eq!(view.clashes, [clash("b", at(1)), clash("c", outside), clash("d", at(15))]);

    let labels = |view: &View| view.members[&berlin2].workloads[0].labels.clone();
    assert_eq!(labels(&view), [], "the node has no grant");
    let draft = issue::grant(&view, &key("paris1").public(), &berlin2, vec![], vec![name("rack1"), name("rack2")]);
    lab.issue("paris1", draft.expect("an admin"));
    assert_eq!(labels(&lab.view()), [name("rack1")], "and not what only the node was given");
    // A node cannot grant itself anything.
    let grant = Grant { subject: berlin2, serial: 9, roles: vec![], labels: vec![name("rack9")] };
    lab.roster.insert(lab.forge("berlin2", lab.of_berlin1(), 50, Body::Grant(grant)));
    assert_eq!(labels(&lab.view()), [name("rack1")]);
}

#[test]
fn short_names_are_nodes_first_then_the_lowest_keys() {
    let mut lab = berlin();
    let (one, two) = (key("berlin1").public(), key("berlin2").public());
    expose(&mut lab, "berlin1", vec![workload("berlin2", 0), workload("web", 1)]);
    expose(&mut lab, "berlin2", vec![workload("db", 0), workload("web", 1)]);
    let view = lab.view();
    let first = one < two;
    assert_eq!(names(&view, "berlin1"), [("berlin2".into(), false), ("web".into(), first)]);
    assert_eq!(names(&view, "berlin2"), [("db".into(), true), ("web".into(), !first)]);
    let (site, winner, loser) = (lab.berlin, one.min(two), one.max(two));
    let clashes = [
        Clash::WorkloadName { site, name: name("berlin2"), keeps: two, other: one },
        Clash::WorkloadName { site, name: name("web"), keeps: winner, other: loser },
    ];
    assert_eq!(view.clashes, clashes);
    let of = |text: &str| view.find_workload(text).map(|(m, w)| (m.node, w.name.to_string()));
    assert_eq!(of("web.berlin"), Some((winner, "web".into())));
    assert_eq!(of("web.berlin1.berlin"), Some((one, "web".into())));
    assert_eq!(of("web.berlin2.berlin"), Some((two, "web".into())));
    assert_eq!(of("berlin2.berlin"), None, "the node's");
    assert_eq!(of("berlin2.berlin1.berlin"), Some((one, "berlin2".into())));
    assert_eq!([of("web"), of("web.paris"), of("db.berlin1.berlin"), of("")], [None, None, None, None]);

    let holder = |asking: &str, text: &str| view.name_holder(&key(asking).public(), lab.berlin, &name(text));
    assert_eq!(holder("berlin1", "berlin1"), Some(NameHolder::Node { full_name: "berlin1.berlin".into() }));
    assert_eq!(holder("berlin1", "db"), Some(NameHolder::WorkloadOf { full_name: "berlin2.berlin".into() }));
    assert_eq!(holder("berlin2", "db"), None, "its own");
    assert_eq!(holder("berlin1", "paris1"), None, "of another site");
}

#[test]
fn workloads_of_nobody_reachable_are_nowhere() {
    let mut lab = berlin();
    expose(&mut lab, "berlin2", vec![workload("web", 0)]);
    assert_eq!(lab.view().model().expect("a policy").subjects.len(), 4);
    let draft = issue::revocation(&lab.view(), &key("berlin1").public(), &key("berlin2").public(), "stolen", NOW, &[]);
    lab.issue("berlin1", draft.expect("a registrar"));
    assert_eq!(names(&lab.view(), "berlin2"), []);
    assert_eq!(lab.view().model().expect("a policy").subjects.len(), 2);
}

#[test]
fn node_knows_its_own_workloads_better_than_its_record() {
    let mut lab = berlin();
    let own = key("berlin2").public();
    expose(&mut lab, "berlin1", vec![workload("web", 0)]);
    expose(&mut lab, "berlin2", vec![workload("db", 0)]);
    let mut view = lab.view();
    view.set_workloads(&own, &[workload("cache", 5), workload("web", 6)]);
    let loser = if own < key("berlin1").public() { "berlin1" } else { "berlin2" };
    assert_eq!(names(&view, "berlin2"), [("cache".into(), true), ("web".into(), loser == "berlin1")]);
    assert_eq!(names(&view, "berlin1"), [("web".into(), loser == "berlin2")]);
    assert!(matches!(&view.clashes[..], [Clash::WorkloadName { other, .. }] if *other == key(loser).public()));
    // It is as if the record said so.
    expose(&mut lab, "berlin2", vec![workload("cache", 5), workload("web", 6)]);
    let signed = lab.view();
    let parts =
        |view: &View| (view.clashes.clone(), view.members.values().map(|m| m.workloads.clone()).collect::<Vec<_>>());
    assert_eq!(parts(&view), parts(&signed));
    view.set_workloads(&own, &[]);
    assert_eq!((names(&view, "berlin2"), view.clashes), (vec![], vec![]));
}

/// The policy of these tests: labels may reach ports, operators anything, members ICMP and what is declared.
fn judged() -> (Lab, [IpAddr; 4]) {
    let mut lab = berlin();
    let berlin2 = key("berlin2").public();
    let grant = issue::grant(
        &lab.view(),
        &key("paris1").public(),
        &berlin2,
        vec![Role::Host, Role::Operator],
        vec![name("rack1")],
    );
    lab.issue("paris1", grant.expect("an admin"));
    let plain = WorkloadExposure { labels: vec![], ports: vec![tcp(81)], ..workload("db", 1) };
    expose(&mut lab, "berlin2", vec![plain, workload("web", 0)]);
    let prefix = lab.view().members[&berlin2].prefix;
    let at = |offset| IpAddr::from(prefix.address(offset));
    (lab, [at(HOST), at(WORKLOAD_MIN), at(WORKLOAD_MIN + 1), at(WORKLOAD_MIN + 2)])
}

#[test]
fn workloads_are_parties_of_their_own() {
    let (lab, [host, web, db, unlisted]) = judged();
    let view = lab.view();
    let mut model = view.model().expect("a policy");
    let paris1 = IpAddr::from(view.members[&key("paris1").public()].prefix.address(HOST));
    let web_subject = model.subject_at(web).expect("listed").into_owned();
    assert_eq!(web_subject.full_name(), "web.berlin2.berlin");
    assert_eq!((&web_subject.roles, &web_subject.labels), (&vec![], &vec![name("rack1")]));
    assert_eq!(model.subject_at(unlisted).expect("a member's").full_name(), "a workload of berlin2.berlin");
    assert_eq!(model.subject_at(unlisted).expect("a member's").kind, Kind::Unlisted);
    let allowed = |model: &crate::policy::Model, from, to, port| {
        model.evaluate(from, to, Flow::Port(Protocol::Tcp, port)).allowed
    };
    // Each is reached at its own declared ports, on one node as well, and nobody for being on a node.
    for (from, to, port, expected) in [
        (paris1, host, 22, true),
        (paris1, host, 80, false),
        (paris1, web, 80, true),
        (paris1, web, 22, false),
        (paris1, db, 81, true),
        (paris1, db, 80, false),
        (web, db, 81, true),
        (db, web, 81, false),
        (host, web, 80, true),
        (host, web, 22, false),
        (web, host, 22, true),
        (web, host, 80, false),
        (unlisted, web, 80, true),
        (host, host, 9, true),
        (web, web, 9, false),
    ] {
        assert_eq!(allowed(&model, from, to, port), expected, "{from} to {to}, port {port}");
    }
    let decision = model.evaluate(paris1, web, Flow::Port(Protocol::Tcp, 80));
    let record = view.members[&key("berlin2").public()].records.exposure;
    assert!(matches!(decision.reason, Reason::Rule { exposure, .. } if exposure == record && record.is_some()));
    for flow in [Flow::Icmp, Flow::Port(Protocol::Tcp, 80)] {
        assert_eq!(model.evaluate(paris1, unlisted, flow).reason, Reason::UnlistedDestination);
        assert_eq!(model.evaluate(host, unlisted, flow).reason, Reason::UnlistedDestination);
    }
    // Roles are the host's; labels those that were given; the site is everybody's.
    let rule = &mut model.document.rules[0];
    rule.services = vec![Service::Any];
    rule.from = Selector { roles: vec![Role::Operator], ..Selector::default() };
    let flow = Flow::Other(47);
    let opens =
        |model: &crate::policy::Model| [host, web, db, unlisted].map(|from| model.evaluate(from, paris1, flow).allowed);
    assert_eq!(opens(&model), [true, false, false, false]);
    model.document.rules[0].from = Selector { labels: vec![name("rack1")], ..Selector::default() };
    assert_eq!(opens(&model), [true, true, false, false]);
    model.document.rules[0].from = Selector { sites: vec![name("berlin")], ..Selector::default() };
    assert_eq!(opens(&model), [true; 4]);
    // A block of the node is a block of all that runs there.
    let mut blocked = model.clone();
    blocked.blocks.push(crate::policy::ActiveBlock {
        matches: crate::record::BlockMatch { from: Some(key("berlin2").public()), ..Default::default() },
        record: crate::Hash([1; 32]),
        issuer: Key([1; 32]),
        reason: String::new(),
    });
    assert_eq!(opens(&blocked), [false; 4]);
}

/// What somebody exposes: names of three, few addresses, so that all kinds of clashes come up.
fn entries() -> impl Strategy<Value = Vec<WorkloadExposure>> {
    let entry = ("[a-c]|berlin[12]", 0..4u32, proptest::option::of(0..20u32), proptest::bool::ANY);
    proptest::collection::vec(entry, 0..5).prop_map(|entries| {
        let base = Ipv4Addr::new(10, 64, 16, 0).to_bits();
        let all = entries.into_iter().map(|(text, offset, ipv4, label)| WorkloadExposure {
            ipv4: ipv4.map(|n| Ipv4Addr::from_bits(base + n)),
            labels: if label { vec![name("rack1")] } else { vec![] },
            ..workload(&text, offset)
        });
        // What a record may not say is left out.
        let mut kept: Vec<WorkloadExposure> = vec![];
        for entry in all {
            let same = |k: &WorkloadExposure| {
                k.name == entry.name || k.offset == entry.offset || (k.ipv4.is_some() && k.ipv4 == entry.ipv4)
            };
            if !kept.iter().any(same) {
                kept.push(entry);
            }
        }
        kept.sort_by(|a, b| a.name.cmp(&b.name));
        kept
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_replica_believes_the_same_and_every_name_and_address_is_one_workloads(
        one in entries(), two in entries(), reversed: bool,
    ) {
        let mut lab = berlin();
        let under = Office::of(&key("berlin1").public(), &lab.of_paris1());
        let say = |node: &str, workloads| {
            let exposure = Exposure { node: key(node).public(), serial: 1, ports: vec![], workloads };
            let record = lab.forge(node, if node == "berlin1" { lab.of_paris1() } else { under }, 9, Body::Exposure(exposure));
            Signed::decode(&record.encode()).expect("within limits")
        };
        let mut records = vec![say("berlin1", one), say("berlin2", two)];
        let mut other: Roster = lab.roster_with(&lab.roster.records());
        records.iter().for_each(|record| { lab.roster.insert(record.clone()); });
        if reversed {
            records.reverse();
        }
        offer_until_stable(&mut other, &records);
        let (view, copy) = (lab.view(), other.view(NOW));
        prop_assert_eq!(&view.members, &copy.members);
        prop_assert_eq!(&view.clashes, &copy.clashes);

        let model = view.model().expect("a policy");
        let all: Vec<_> = view.members.values().flat_map(|m| m.workloads.iter().map(move |w| (m, w))).collect();
        let mut short: Vec<String> = view.members.values().map(|m| m.full_name()).collect();
        short.extend(all.iter().filter(|(_, w)| w.has_short_name).map(|(m, w)| format!("{}.{}", w.name, m.site_name)));
        let count = short.len();
        short.sort();
        short.dedup();
        prop_assert_eq!(short.len(), count, "a short name means two");
        for (m, w) in &all {
            let found = view.find_workload(&format!("{}.{}", w.name, m.full_name()));
            prop_assert_eq!(found, Some((*m, *w)));
            prop_assert!(w.ipv4.is_none_or(|v4| m.ipv4.expect("has IPv4").is_for_workloads(v4)));
            prop_assert_eq!(&w.labels, &vec![], "nobody was granted any");
            for address in std::iter::once(IpAddr::V6(w.v6)).chain(w.ipv4.map(IpAddr::V4)) {
                let owners = model.subjects.iter().filter(|s| s.owns(address)).count();
                prop_assert_eq!(owners, 1);
                prop_assert_eq!(model.subject_at(address).expect("listed").full_name(), format!("{}.{}", w.name, m.full_name()));
            }
        }
        let named = all.iter().filter(|(_, w)| !w.has_short_name).count();
        let told = view.clashes.iter().filter(|c| matches!(c, Clash::WorkloadName { .. })).count();
        prop_assert_eq!(named, told, "each that lost its short name is told");
    }
}
