//! Writes the corpora's seeds: a valid input of each kind that a decoder knows, and damaged copies of the first one.
//! Run it after a format changed; inputs that a search once found stay.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use fuzz_targets::Statement;
use fuzz_targets::overlay::host_packet;
use minicbor::bytes::{ByteArray, ByteVec};
use vdc::invite::{
    DoorRequest, DoorResponse, Hello, Invite, InviteRegistrar, InviteState, Pass, Question, Redeem, Refusal, Renew,
};
use vdc::record::{
    Authority, Block, BlockMatch, Contact, ContactAddress, Delegation, Estate, Exposure, Founding, Genesis, Grant,
    Home, Member, Policy, PortRange, Protocol, Site, Tombstone, WorkloadExposure,
};
use vdc::{
    Body, Hash, InviteId, Ipv4Block, Key, Name, Office, Role, Signed, SigningKey, SiteNumber, UnixTime, VdcId, WgKey,
    codec, peer, policy, sync,
};
use vdc_coord::{ClientId, Compare, Condition, Entry, LeaseId, Op, Revision, Row, Transaction, wire};
use workloads_wire::message::{self, Command, Config, Event, Exec, Exit, HealthCheck, HealthState, Held, Phase};
use workloads_wire::{frame, log};

const VDC: VdcId = VdcId([7; 32]);
const NOW: UnixTime = UnixTime(1_790_000_000);

fn main() -> std::io::Result<()> {
    let owner = SigningKey::from_seed(&[1; 32]);
    binary("record", &records(&owner))?;
    binary("policy-document", &[("version-1", codec::encode(&policy::Document::default()))])?;
    binary("door-request", &door_requests())?;
    binary("door-response", &door_responses(&owner))?;
    binary("peer-request", &peer_requests(&owner))?;
    binary("peer-response", &peer_responses())?;
    let messages = sync_messages(&owner);
    let encoded: Vec<_> = messages.iter().map(|(name, message)| (*name, message.encode())).collect();
    binary("sync-message", &encoded)?;
    binary("invite", &[("one-registrar", token(&owner).into_bytes())])?;
    binary("invite-state", &invite_states(&owner))?;
    binary("roster", &histories())?;
    coord()?;
    overlay()?;
    shim()?;
    image()?;
    text("name", &["paris", "a", "berlin-1"], &["", "Paris", "-a", "a.b"])?;
    text(
        "ipv4-block",
        &["10.64.0.0/16", "0.0.0.0/0", "10.0.0.1/32"],
        &["10.64.0.1/16", "10.0.0.0/33", "10/8", "::/0"],
    )?;
    text("key", &[&"5a".repeat(32)], &["5a", &"zz".repeat(32)])?;
    text("port-spec", &["80", "443/tcp", "8000-8010/udp"], &["0", "80/sctp", "9-1", "+80"])?;
    text("flow-spec", &["icmp", "53/udp"], &["ICMP", "1-2"])
}

fn coord() -> std::io::Result<()> {
    let bytes = |text: &str| ByteVec::from(text.as_bytes().to_vec());
    let request = |number, command| vdc_coord::Request { client: ClientId([7; 16]), number, command };
    let lease = LeaseId(1);
    let when = |condition| Compare { key: bytes("k"), condition };
    let grant = request(1, vdc_coord::Command::GrantLease { ttl_ms: 1_000 });
    let put = |key, lease| Op::Put { key: bytes(key), value: bytes("v"), lease };
    let claim = Transaction {
        compares: vec![when(Condition::Absent), when(Condition::LeaseHeld(lease))],
        success: vec![put("k", Some(lease)), put("l", None), Op::Read { key: bytes("k") }],
        failure: vec![Op::Read { key: bytes("k") }],
    };
    let change = Transaction {
        compares: vec![
            when(Condition::Present),
            when(Condition::Version(1)),
            when(Condition::Modified(Revision(2))),
            when(Condition::Value(bytes("v"))),
            when(Condition::Lease(lease)),
        ],
        success: vec![Op::Delete { key: bytes("l") }, Op::DeleteRange { from: bytes("a"), to: bytes("") }],
        failure: vec![],
    };
    let claim = request(2, vdc_coord::Command::Transact(claim));
    let change = request(3, vdc_coord::Command::Transact(change));
    let keep_alive = request(4, vdc_coord::Command::KeepAlive { lease });
    let revoke = request(5, vdc_coord::Command::Revoke { lease });
    let compact = request(6, vdc_coord::Command::Compact { before: Revision(2) });
    let last = request(u64::MAX, vdc_coord::Command::Open);
    let row = Row { value: bytes("v"), created: Revision(1), modified: Revision(300), version: 2, lease: Some(lease) };
    binary("coord-row", &[("leased", codec::encode(&row)), ("plain", codec::encode(&Row { lease: None, ..row }))])?;
    let requests = [
        ("grant", &grant),
        ("claim", &claim),
        ("change", &change),
        ("keep-alive", &keep_alive),
        ("revoke", &revoke),
        ("compact", &compact),
        ("last", &last),
    ];
    binary("coord-request", &requests.map(|(name, request)| (name, codec::encode(request))))?;
    let entry = |stamp_ms, requests: &[&vdc_coord::Request]| {
        codec::encode(&Entry { stamp_ms, requests: requests.iter().map(|request| (*request).clone()).collect() })
    };
    let entries = [
        ("all", entry(5, &[&grant, &claim, &change, &keep_alive, &revoke, &compact])),
        ("claimed", entry(u64::MAX, &[&grant, &claim])),
        ("out-of-order", entry(5, &[&last, &grant, &claim])),
        ("empty", entry(0, &[])),
    ];
    binary("coord-entry", &entries)?;
    let backup = |rows: &[(&[u8], &[u8])]| {
        let (mut writer, mut bytes) = (vdc_coord::backup::Writer::default(), vec![]);
        rows.iter().for_each(|(key, value)| writer.row(key, value, &mut bytes));
        bytes.extend(writer.end());
        bytes
    };
    binary("coord-backup", &[("empty", backup(&[])), ("rows", backup(&[(b"a", b""), (b"name/web", &[7; 32])]))])?;
    coord_frames(&claim)
}

fn coord_frames(request: &vdc_coord::Request) -> std::io::Result<()> {
    let (key, revision) = (Key([3; 32]), Revision(9));
    let place = wire::Place { term: 2, leader: key, index: 70_000 };
    let vote = wire::VoteForm { term: 2, leader: key, committed: true };
    let membership = wire::MembershipForm { voters: vec![vec![key], vec![key, Key([4; 32])]], members: vec![key] };
    let stored = wire::StoredMembershipForm { place: Some(place), membership: membership.clone() };
    let form = wire::SnapshotForm { place: Some(place), membership: stored };
    let at = wire::Cursor { table: 1, key: b"k".to_vec().into() };
    let row = wire::SnapshotRow { at: at.clone(), value: b"v".to_vec().into() };
    let ballot = || wire::Ballot { vote, last: Some(place), transfer: false };
    let payloads = [
        wire::PayloadForm::Blank,
        wire::PayloadForm::Entry(codec::encode(&Entry { stamp_ms: 5, requests: vec![request.clone()] }).into()),
        wire::PayloadForm::Membership(membership),
    ];
    let entries = payloads.map(|payload| wire::EntryForm { place, payload }).to_vec();
    let bytes = || ByteVec::from(b"k".to_vec());
    let asks = [
        ("append", wire::Ask::Append { vote, before: Some(place), entries, committed: None }),
        ("vote", wire::Ask::Vote(ballot())),
        ("pre-vote", wire::Ask::PreVote(ballot())),
        ("transfer", wire::Ask::Transfer { from: vote, to: key, last: None }),
        ("snapshot-begin", wire::Ask::SnapshotBegin { vote, form: form.clone() }),
        ("snapshot-rows", wire::Ask::SnapshotRows { form: form.clone(), behind: Some(at.clone()), rows: vec![row] }),
        ("snapshot-end", wire::Ask::SnapshotEnd { vote, form, rows: 1, hash: Hash([5; 32]) }),
        ("requests", wire::Ask::Requests(vec![request.clone()])),
        ("read-index", wire::Ask::ReadIndex),
        ("get", wire::Ask::Get { key: bytes(), stale: true }),
        ("range", wire::Ask::Range { from: bytes(), to: bytes(), rows_max: 9, at: Some(revision), stale: false }),
        ("events", wire::Ask::Events { from: revision, wait_ms: 10_000, first: bytes(), end: bytes() }),
        ("status", wire::Ask::Status),
    ];
    let frame = |ask| codec::encode(&wire::Frame { group: Hash([6; 32]), ask });
    binary("coord-frame", &asks.map(|(name, ask)| (name, frame(ask))))?;
    let row = Row { value: bytes(), created: revision, modified: revision, version: 1, lease: None };
    let event = vdc_coord::Event { revision, key: bytes(), before: Some(row.clone()), after: None };
    let done = vdc_coord::Done { succeeded: true, revision, reads: vec![None, Some(row.clone())], deleted: 1 };
    let refusal = vdc_coord::Refusal::Compacted { oldest: revision };
    let standing = wire::Standing {
        leader: Some(key),
        term: 2,
        voters: vec![key],
        learners: vec![],
        last_index: 7,
        applied_index: 6,
        summary: vdc_coord::Summary::default(),
        last_term: 3,
    };
    let replies = [
        ("append", wire::Reply::Append(wire::Appended::Upto(Some(place)))),
        ("vote", wire::Reply::Vote { vote, granted: true, last: None }),
        ("snapshot", wire::Reply::Snapshot { have: Some(at) }),
        ("installed", wire::Reply::Installed(vote)),
        ("done", wire::Reply::Done),
        ("answers", wire::Reply::Answers(vec![Ok(vdc_coord::Answer::Done(done)), Err(refusal.clone())])),
        ("read-index", wire::Reply::ReadIndex(Some(place))),
        ("row", wire::Reply::Row { row: Some(row.clone()), revision }),
        ("page", wire::Reply::Page(vdc_coord::Page { rows: vec![(bytes(), row)], revision, more: true })),
        ("events", wire::Reply::Events { events: vec![event], next: revision }),
        ("status", wire::Reply::Status(standing)),
        ("refused", wire::Reply::Refused(refusal)),
        ("trouble", wire::Reply::Trouble(wire::Trouble::NotLeader { leader: Some(key) })),
    ];
    binary("coord-reply", &replies.map(|(name, reply)| (name, codec::encode(&reply))))
}

/// A header and its content, padded to whole blocks.
fn member(name: &str, flag: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\x000000000\x000000000\0");
    put(124, format!("{:011o}\x0000000000000\0", content.len()).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\x000000003\0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = [&header, content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn image() -> std::io::Result<()> {
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let end = vec![0; 1_024];
    let tree = [
        member("etc/", b'5', "", b""),
        member("etc/passwd", b'0', "", b"root"),
        member("link", b'2', "etc", b""),
        member("same", b'1', "etc/passwd", b""),
        member("null", b'3', "", b""),
        member("etc/.wh.old", b'0', "", b""),
        end.clone(),
    ];
    let records: &[u8] = b"18 path=n/\xc3\xa4/deep\n27 mtime=1234567890.123456\n27 SCHILY.xattr.user.a=b=c\n";
    let pax = [member("pax", b'x', "", records), member("short", b'0', "", b"1"), end.clone()];
    let sparse_records: &[u8] =
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n21 GNU.sparse.name=f\n27 GNU.sparse.realsize=100\n";
    let mut map = b"2\n0\n1\n99\n1\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"ab");
    let sparse = [member("pax", b'x', "", sparse_records), member("g/f", b'0', "", &map), end.clone()];
    let long = [member("l", b'L', "", &[b'n'; 300]), member("short", b'0', "", b"1"), end.clone()];
    // "abc" in one stored block of gzip and one raw block of zstd, no tars: only the way into them is walked.
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\x03\0\xfc\xffabc\xc2\x41\x24\x35\x03\0\0\0".to_vec();
    let zstd = b"\x28\xb5\x2f\xfd\x20\x03\x19\0\0abc".to_vec();
    let layers = [
        ("tree", tree.concat()),
        ("pax", pax.concat()),
        ("sparse", sparse.concat()),
        ("long-name", long.concat()),
        ("gzip", gzip),
        ("zstd", zstd),
    ];
    binary("oci-layer", &layers)?;
    let old = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["0/layer.tar"]}]"#;
    let archive = [
        member("manifest.json", b'0', "", old.as_bytes()),
        member("c.json", b'0', "", b"{}"),
        member("0/layer.tar", b'2', "../1/layer.tar", b""),
        end,
    ];
    binary("docker-archive", &[("old", archive.concat())])?;
    let of = |kind: &str, size: u64| {
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{ABC}","size":{size}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{}}},"layers":[{}}}]}}"#,
        of("config.v1+json", 3),
        of("layer.v1.tar+gzip", 4)
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{},"platform":{{"os":"linux","architecture":"arm","variant":"v6"}}}}]}}"#,
        of("manifest.v1+json", 5)
    );
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{ABC}"]}},"config":{}}}"#,
        r#"{"User":"1:2","Env":["A=b"],"Cmd":["sh"],"Volumes":{"/data":{}},"StopSignal":"RTMIN+3","ExposedPorts":{"53/udp":{}},"Healthcheck":{"Test":["CMD","x"],"Interval":1}}"#
    );
    let documents = [("image", manifest), ("index", index), ("configuration", config)];
    binary("oci-manifest", &documents.map(|(name, text)| (name, text.into_bytes())))?;
    text(
        "image-reference",
        &["debian", "localhost:5000/a/b:1", "[::1]:5000/a", &format!("a.example/x__y/z:v1@{ABC}")],
        &["", "a//b", "Debian", "a:", "a@sha256:00", "http://a.example/b", "a..b"],
    )?;
    text(
        "www-authenticate",
        &[
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#,
            r#"Basic realm="with \"quotes\" and \\""#,
            "Negotiate YWJj==, Basic realm=x , Digest",
        ],
        &["", "realm=x", "Basic realm=\"x", "Basic realm=x, realm=y", "Basic a=b c", "Bearer \"x\""],
    )
}

fn shim() -> std::io::Result<()> {
    let exit = Exit { code: 137, signal: Some(9), oom_killed: true, at_ms: 1_790_000_000_000, start_failed: false };
    let args = || vec![ByteVec::from(b"/bin/true".to_vec())];
    let exec = Exec { args: args(), user: Some((1, 2, vec![3])), tty: Some((24, 80)), ..Exec::default() };
    let health = HealthCheck { args: args(), interval_ms: 30_000, timeout_ms: 1_000, retries: 3, start_period_ms: 0 };
    let config = Config {
        id: "0".repeat(32),
        filter: vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f],
        held: vec![Held { address: None, port: 80, udp: false }],
        health: Some(health),
        ..Config::default()
    };
    let state = Event::State {
        phase: Phase::Exited,
        pid: Some(7),
        generation: 1,
        started_ms: Some(1),
        health: Some(HealthState::Starting),
        exit: Some(exit.clone()),
    };
    binary(
        "shim-command",
        &[
            ("stop", message::encode(&Command::Stop { signal: 15, grace_ms: 10_000 })),
            ("exec", message::encode(&Command::Exec(exec))),
            ("reap", message::encode(&Command::Reap)),
        ],
    )?;
    binary("shim-config", &[("all", message::encode(&config))])?;
    binary(
        "shim-event",
        &[("state", message::encode(&state)), ("attached", message::encode(&Event::Attached { token: [7; 16] }))],
    )?;
    binary("shim-exit", &[("killed", message::encode(&exit))])?;
    let mut framed = Vec::new();
    frame::encode(frame::Kind::Resize, &[0, 24, 0, 80], &mut framed);
    binary("stream-frame", &[("resize", framed)])?;
    let mut logged = Vec::new();
    let record =
        log::Record { stream: log::Stream::Stderr, partial: true, unix_ns: 1, sequence: 2, text: b"half a line" };
    log::encode(&record, &mut logged);
    binary("log-record", &[("partial", logged)])
}

fn overlay() -> std::io::Result<()> {
    let datagram = |head: &[u8], length: usize| {
        let mut bytes = head.to_vec();
        bytes.resize(length, 0);
        bytes
    };
    let datagrams = [
        ("initiation", datagram(&[1, 0, 0, 0], 148)),
        ("response", datagram(&[2, 0, 0, 0], 92)),
        ("cookie", datagram(&[3, 0, 0, 0], 64)),
        ("data", datagram(&[4, 0, 0, 0, 7], 32)),
        ("quic", datagram(&[0xc0, 0, 0, 0, 1], 100)),
        ("stun", datagram(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42], 20)),
    ];
    binary("overlay-demux", &datagrams)?;
    let mut v4 = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0, 10, 64, 0, 17, 10, 64, 0, 33];
    v4.extend(b"ping");
    let v6 = host_packet(1, 2);
    binary("overlay-packet", &[("v6", v6.clone()), ("v4", v4)])?;
    // Alice's host sends, Alice learns where Bob is, and the wire carries everything to and fro for a while.
    let mut script = vec![0, u8::try_from(v6.len()).map_err(std::io::Error::other)?];
    script.extend(&v6);
    script.extend([7, 0]);
    for _ in 0..4 {
        script.extend([1, 0, 2, 0]);
    }
    script.extend([6, 200]);
    binary("overlay-script", &[("handshake", script)])
}

fn dir(target: &str) -> std::io::Result<std::path::PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Writes the seeds and, of the first, one cut short, one with a bit flipped and one with a byte too many.
fn binary(target: &str, seeds: &[(&str, Vec<u8>)]) -> std::io::Result<()> {
    let dir = dir(target)?;
    for (name, bytes) in seeds {
        fs::write(dir.join(name), bytes)?;
    }
    if let Some((name, bytes)) = seeds.first() {
        fs::write(dir.join(format!("{name}.cut")), &bytes[..bytes.len() / 2])?;
        fs::write(dir.join(format!("{name}.long")), [bytes.as_slice(), b"\0"].concat())?;
        let mut flipped = bytes.clone();
        if let Some(first) = flipped.first_mut() {
            *first ^= 0x20;
        }
        fs::write(dir.join(format!("{name}.flipped")), flipped)?;
    }
    Ok(())
}

fn text(target: &str, good: &[&str], bad: &[&str]) -> std::io::Result<()> {
    let dir = dir(target)?;
    for (kind, texts) in [("good", good), ("bad", bad)] {
        for (number, text) in texts.iter().enumerate() {
            fs::write(dir.join(format!("{kind}-{}", number + 1)), text)?;
        }
    }
    Ok(())
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a literal name")
}

fn block(text: &str) -> Ipv4Block {
    text.parse().expect("a literal block")
}

fn records(owner: &SigningKey) -> Vec<(&'static str, Vec<u8>)> {
    let (node, wg) = (Key([2; 32]), WgKey([3; 32]));
    let port = PortRange { protocol: Protocol::Tcp, first: 80, last: 80 };
    let member = Member {
        node,
        wg,
        site: SiteNumber(1),
        name: name("paris1"),
        serial: 1,
        bump: 0,
        ipv4: Some(block("10.64.0.16/28")),
        not_before: NOW,
        not_after: UnixTime(NOW.0 + 86_400),
        ephemeral: false,
    };
    let signed = |number, body| Signed::sign(&VDC, owner, Office::owners(&VDC), number, body, &[]).encode();
    let remaining = signed(1, Body::Member(member.clone()));
    let founding = |home, serial| Body::Founding(Founding { home, serial, founder: node, created: NOW });
    let bodies = [
        (
            "genesis",
            Body::Genesis(Genesis {
                name: name("acme"),
                owners: vec![owner.public()],
                threshold: 1,
                created: NOW,
                nonce: Hash([4; 32]),
                ipv4: Some(block("10.64.0.0/12")),
            }),
        ),
        (
            "delegation",
            Body::Delegation(Delegation {
                subject: node,
                authority: Authority::Registrar(SiteNumber(1)),
                serial: 1,
                not_before: NOW,
                not_after: UnixTime(NOW.0 + 31_536_000),
            }),
        ),
        (
            "site",
            Body::Site(Site {
                number: SiteNumber(1),
                name: name("paris"),
                serial: 1,
                ipv4: Some(block("10.64.0.0/20")),
                founder: SiteNumber(1),
                created: NOW,
            }),
        ),
        ("member", Body::Member(member)),
        (
            "grant",
            Body::Grant(Grant { subject: node, serial: 1, roles: vec![Role::Operator], labels: vec![name("web")] }),
        ),
        (
            "contact",
            Body::Contact(Contact {
                node,
                serial: 1,
                addresses: vec![
                    ContactAddress::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST), 7946),
                    ContactAddress::Dns("gate.example.org".to_owned(), 7946),
                ],
                door_port: Some(7947),
            }),
        ),
        ("exposure", Body::Exposure(Exposure { node, serial: 1, ports: vec![port], workloads: vec![] })),
        ("exposure-workloads", Body::Exposure(Exposure { node, serial: 2, ports: vec![port], workloads: workloads() })),
        (
            "tombstone",
            Body::Tombstone(Tombstone {
                subject: node,
                floor: u64::MAX,
                at: NOW,
                reason: "stolen".to_owned(),
                estate: Some(Estate { last: 1, records: vec![ByteVec::from(remaining)] }),
            }),
        ),
        (
            "block",
            Body::Block(Block {
                id: Hash([5; 32]),
                serial: 1,
                matches: BlockMatch { from: Some(node), to: None, ports: Some(port) },
                lifted: false,
                reason: "scans".to_owned(),
            }),
        ),
        ("policy", Body::Policy(Policy { version: 1, previous: None, document: policy::Document::default() })),
        ("founding-vdc", founding(Home::Vdc, 1)),
        ("founding-site", founding(Home::Site(SiteNumber(1)), 2)),
    ];
    bodies.into_iter().map(|(kind, body)| (kind, signed(2, body))).collect()
}

fn invite_states(owner: &SigningKey) -> Vec<(&'static str, Vec<u8>)> {
    let state = InviteState {
        vdc: VDC,
        id: InviteId([6; 16]),
        registrar: owner.public(),
        key: Key([14; 32]),
        site: SiteNumber(1),
        created: NOW,
        expires: UnixTime(NOW.0 + 3600),
        uses_left: 1,
        founder: false,
        ephemeral: false,
        revoked: false,
        redeemed: Vec::new(),
    };
    let redeemed = InviteState { uses_left: 0, redeemed: vec![(Key([2; 32]), Some(Hash([5; 32])))], ..state.clone() };
    vec![("open", state.encode()), ("redeemed", redeemed.encode())]
}

/// Histories for the target `roster`: keys are 0 the owner's, 1 the first admin's and registrar's, 2 another admin's.
fn histories() -> Vec<(&'static str, Vec<u8>)> {
    let key = |n: u8| SigningKey::from_seed(&[n + 1; 32]).public();
    let site = SiteNumber(10_332);
    let member = |node: u8, serial, wg: u8| {
        Body::Member(Member {
            node: key(node),
            wg: WgKey([wg; 32]),
            site,
            name: name("web"),
            serial,
            bump: 0,
            ipv4: None,
            not_before: NOW,
            not_after: UnixTime(NOW.0 + 86_400),
            ephemeral: false,
        })
    };
    let registrar = |subject: u8, serial| {
        Body::Delegation(Delegation {
            subject: key(subject),
            authority: Authority::Registrar(site),
            serial,
            not_before: NOW,
            not_after: UnixTime(NOW.0 + 86_400),
        })
    };
    let close = |subject: u8| {
        let estate = Some(Estate { last: 0, records: Vec::new() });
        Body::Tombstone(Tombstone { subject: key(subject), floor: 0, at: NOW, reason: String::new(), estate })
    };
    let said = |statements: Vec<(u8, u8, Body)>| {
        let numbered = statements.into_iter().zip(1..);
        let statements: Vec<_> =
            numbered.map(|((by, under, body), number)| Statement { by, under, number, body }).collect();
        codec::encode(&statements)
    };
    let port = PortRange { protocol: Protocol::Udp, first: 1, last: 9 };
    let exposure = Body::Exposure(Exposure { node: key(4), serial: 1, ports: vec![port], workloads: vec![] });
    let exposed =
        |n: u8, serial| Body::Exposure(Exposure { node: key(n), serial, ports: vec![], workloads: workloads() });
    let founding =
        |home, serial, founder: u8| Body::Founding(Founding { home, serial, founder: key(founder), created: NOW });
    vec![
        (
            "displaced",
            said(vec![(1, 2, member(4, 1, 1)), (1, 2, member(4, 2, 2)), (1, 2, member(5, 1, 3)), (4, 4, exposure)]),
        ),
        (
            "revived",
            said(vec![(2, 1, registrar(3, 1)), (3, 3, member(4, 1, 1)), (0, 0, close(2)), (1, 1, registrar(3, 1))]),
        ),
        (
            "workloads",
            said(vec![(1, 2, member(4, 1, 1)), (4, 4, exposed(4, 1)), (1, 4, exposed(1, 1)), (4, 4, exposed(4, 2))]),
        ),
        (
            "foundings",
            said(vec![
                (1, 2, founding(Home::Site(site), 1, 4)),
                (2, 1, founding(Home::Site(site), 1, 1)),
                (1, 2, member(4, 1, 1)),
                (1, 1, founding(Home::Vdc, 1, 1)),
                (2, 1, founding(Home::Vdc, 2, 5)),
                (1, 2, founding(Home::Vdc, 3, 1)),
            ]),
        ),
        ("mutual", said(vec![(1, 1, close(2)), (2, 1, close(1)), (1, 2, member(4, 1, 1)), (0, 0, close(1))])),
    ]
}

fn workloads() -> Vec<WorkloadExposure> {
    let name = |text| Name::new(text).expect("a literal name");
    let port = PortRange { protocol: Protocol::Tcp, first: 80, last: 80 };
    let workload =
        |text, offset, ipv4, ports, labels| WorkloadExposure { name: name(text), offset, ipv4, ports, labels };
    let address = Some(Ipv4Addr::new(10, 64, 0, 2));
    vec![
        workload("paris1", 0x1_0001, None, vec![], vec![]),
        workload("web", 0x1_0000, address, vec![port], vec![name("front")]),
    ]
}

fn door_requests() -> Vec<(&'static str, Vec<u8>)> {
    let (node, wg, invite) = (Key([2; 32]), WgKey([3; 32]), InviteId([6; 16]));
    let challenge = ByteArray::from([8; 32]);
    let redeem = Redeem {
        vdc: VDC,
        invite,
        node,
        wg,
        name: name("berlin1"),
        challenge,
        invite_signature: ByteArray::from([9; 64]),
        node_signature: ByteArray::from([10; 64]),
        wg_proof: ByteArray::from([11; 32]),
    };
    let renew = Renew {
        vdc: VDC,
        node,
        wg,
        challenge,
        node_signature: ByteArray::from([10; 64]),
        wg_proof: ByteArray::from([11; 32]),
    };
    vec![
        ("hello", DoorRequest::Hello(Hello { vdc: VDC, invite: Some(invite) }).encode()),
        ("hello-renew", DoorRequest::Hello(Hello { vdc: VDC, invite: None }).encode()),
        ("redeem", DoorRequest::Redeem(redeem).encode()),
        ("renew", DoorRequest::Renew(renew).encode()),
    ]
}

fn door_responses(owner: &SigningKey) -> Vec<(&'static str, Vec<u8>)> {
    let question = Question { nonce: ByteArray::from([8; 32]), dh: WgKey([12; 32]) };
    let granted = records(owner).into_iter().take(3).map(|(_, bytes)| ByteVec::from(bytes)).collect();
    let refusal =
        Refusal { code: "invite-used".to_owned(), message: "used".to_owned(), hint: "ask for another".to_owned() };
    vec![
        ("challenge", DoorResponse::Challenge(question).encode()),
        ("granted", DoorResponse::Granted(granted).encode()),
        ("refused", DoorResponse::Refused(refusal).encode()),
    ]
}

fn hello() -> peer::Hello {
    peer::Hello {
        version: "0.1.0".to_owned(),
        boot_nonce: [13; 16],
        time: NOW,
        observed: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
    }
}

fn endpoints() -> peer::Endpoints {
    let candidates = ["192.0.2.1:51820", "[2001:db8::1]:51820"].map(|a| a.parse().expect("a literal address"));
    peer::Endpoints { boot_nonce: [13; 16], candidates: candidates.to_vec() }
}

fn peer_requests(owner: &SigningKey) -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = vec![
        ("hello", peer::Request::Hello(hello()).encode()),
        ("endpoints", peer::Request::Endpoints(endpoints()).encode()),
    ];
    let (_, message) = sync_messages(owner).swap_remove(0);
    seeds.push(("sync", peer::Request::Sync(message).encode()));
    seeds
}

fn peer_responses() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("hello", peer::Response::Hello(hello()).encode()),
        ("done", peer::Response::Done.encode()),
        ("endpoints", peer::Response::Endpoints(endpoints()).encode()),
        ("refused", peer::Response::Refused("not now".to_owned()).encode()),
    ]
}

fn sync_messages(owner: &SigningKey) -> Vec<(&'static str, sync::Message)> {
    let ids = || [Hash([1; 32]), Hash([2; 32])].into_iter().collect::<sync::Ids>();
    let (count, fingerprint) = sync::Fingerprint::of([Hash([1; 32])].into_iter());
    let root = sync::Range { prefix: sync::Prefix::ROOT, content: sync::Content::Digest(count, fingerprint) };
    let child = sync::Prefix::ROOT.children().next().expect("the root can be split");
    let listed = sync::Range { prefix: child, content: sync::Content::Ids(ids()) };
    let packed = records(owner).into_iter().take(2).map(|(_, bytes)| sync::Packed::Bytes(ByteVec::from(bytes)));
    vec![
        ("digest", sync::Message::Ranges(vec![root])),
        ("ids", sync::Message::Ranges(vec![listed])),
        ("equal", sync::Message::Equal(fingerprint)),
        ("have", sync::Message::Have(ids())),
        ("fetch", sync::Message::Fetch(ids())),
        ("records", sync::Message::Records(packed.collect())),
    ]
}

fn token(owner: &SigningKey) -> String {
    let id = InviteId([6; 16]);
    let expires = UnixTime(NOW.0 + 3_600);
    let invite = Invite {
        vdc: VDC,
        vdc_name: name("acme"),
        registrars: vec![InviteRegistrar {
            key: owner.public(),
            addresses: vec![ContactAddress::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 7947)],
        }],
        id,
        seed: [14; 32],
        expires,
        uses: 1,
        site: SiteNumber(1),
        site_name: name("berlin"),
        founder: false,
        ephemeral: false,
        pass_signature: *Pass::sign(VDC, owner, id, expires).signature,
    };
    invite.token()
}
