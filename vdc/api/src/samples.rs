//! One value of every response, as a three-site VDC would give it: for the tests of servers and clients.

use crate::{
    Addresses, BackupHeader, BlockList, BlockView, CandidateView, Connected, ControlLinkView, CoordStatus,
    DataPathView, DegradedView, DnsState, DnsView, EventList, EventView, ExitReason, ExitView, ExplainStep,
    Explanation, ExposedWorkload, ExposureList, ExposureView, GroupHome, GroupMemberView, GroupState, GroupView,
    Health, HealthSpec, HealthState, HealthStatus, ImageList, ImageView, ImagesFreed, InviteCreated, InviteList,
    InviteState, InviteView, IssuedList, IssuedView, JoinEvent, Joined, Left, LinkState, LinkView, ListenView,
    LogEvent, LogStream, MemberRole, MembershipView, NodeList, NodeRevoked, NodeView, NotServedView, PartyKind,
    PartyView, PathKind, PathView, PeerList, PeerView, Phase, PingEvent, Problem, ProblemCode, ProblemSeverity,
    PullEvent, PullProgress, Reachability, ReachabilityVerdict, RecordView, RecoverView, RecoveryKey, RedemptionView,
    RedundancyLevel, RedundancyView, Renewed, RestartPolicy, RestoreView, RoleHere, RosterView, RunEvent, Severity,
    SiteAdded, SiteList, SiteView, Standing, StatsEvent, Status, StepState, StepVerdict, StepView, VdcCreated, VdcList,
    VdcRecovered, VdcStatus, VdcView, Version, Waited, WorkloadList, WorkloadRemoved, WorkloadRun, WorkloadView,
};

#[must_use]
pub fn version() -> Version {
    Version { daemon: "0.1.0".into(), commit: Some("93e21a4f760b".into()), api: "v1".into() }
}

#[must_use]
pub fn problem() -> Problem {
    Problem {
        code: ProblemCode::NotReachableFromOutside,
        severity: ProblemSeverity::Warning,
        message: "nobody outside this site can open a connection to this node".into(),
        hint: Some("forward UDP port 7300 to this node at one site, or give it a public IPv6 address".into()),
        vdc: Some("acme".into()),
        since: Some("2026-03-01T11:40:00Z".into()),
    }
}

/// The worse kind.
#[must_use]
pub fn degraded() -> Problem {
    Problem {
        code: ProblemCode::ClockSkew,
        severity: ProblemSeverity::Degraded,
        message: "this node's clock is 412 s behind its peers".into(),
        hint: Some("set the clock, for example with `timedatectl set-ntp true`".into()),
        vdc: None,
        since: None,
    }
}

#[must_use]
pub fn health() -> Health {
    Health { state: HealthState::Degraded, uptime_s: 7_500, problems: vec![degraded(), problem()] }
}

#[must_use]
pub fn vdc() -> VdcView {
    VdcView {
        name: "acme".into(),
        genesis_name: "acme".into(),
        id: "5a3c719e02".to_owned() + &"ab".repeat(27),
        in_use: true,
        node: "paris1".into(),
        site: "paris".into(),
        nodes: 3,
        sites: 3,
        domain: "acme.internal".into(),
        ipv6: "fd5a:3c71:9e02::/48".into(),
        ipv4: Some("10.64.0.0/12".into()),
        created_at: "2026-03-01T09:00:00Z".into(),
    }
}

#[must_use]
pub fn vdc_list() -> VdcList {
    let other = VdcView {
        name: "lab".into(),
        genesis_name: "test".into(),
        id: "77".repeat(32),
        in_use: false,
        ipv4: None,
        nodes: 1,
        sites: 1,
        domain: "lab.internal".into(),
        ipv6: "fd77:7777:7777::/48".into(),
        ..vdc()
    };
    VdcList { vdcs: vec![vdc(), other], not_served: vec![] }
}

#[must_use]
pub fn not_served() -> NotServedView {
    NotServedView {
        name: "old".into(),
        reason: "the control plane cannot listen".into(),
        causes: vec!["UDP port 4722 is in use".into()],
        hint: Some("stop the other program, or change network.control_port in /etc/meshd/meshd.toml".into()),
        since: "2027-01-15T07:58:00Z".into(),
        retry_s: 4,
    }
}

fn addresses(site: u8, node: u8) -> Addresses {
    let prefix = format!("fd5a:3c71:9e02:{site}:a1b2:c3d{node}");
    Addresses {
        ipv6: format!("{prefix}:0:1"),
        ipv4: Some(format!("10.64.{}.17", u16::from(site) * 16)),
        infra: format!("{prefix}::"),
        prefix: format!("{prefix}::/96"),
    }
}

#[must_use]
pub fn record(kind: &str, number: u64) -> RecordView {
    RecordView { kind: kind.into(), hash: format!("{number:02x}").repeat(8), issuer: "paris1.paris".into(), number }
}

#[must_use]
pub fn vdc_created() -> VdcCreated {
    VdcCreated {
        vdc: VdcView { nodes: 1, sites: 1, ..vdc() },
        node: "paris1".into(),
        site: "paris".into(),
        fqdn: "paris1.paris.acme.internal".into(),
        addresses: addresses(1, 1),
        recovery_key: RecoveryKey {
            secret: "meshd-recovery-1 abcd-efgh-ijkl-mnop".into(),
            public_key: "0c".repeat(32),
            threshold: 1,
            owners: 2,
            instructions:
                "Write this key down or print it, and keep it in a safe. It can replace this node as the owner of \
                           the VDC. It is shown once and stored nowhere."
                    .into(),
        },
    }
}

/// An active, direct link.
#[must_use]
pub fn link() -> LinkView {
    LinkView {
        state: LinkState::Active,
        path: Some(PathView { kind: PathKind::Direct, endpoint: "203.0.113.7:7301".into(), relay: None }),
        rtt_ms: Some(21.37),
        handshake_age_ms: Some(41_000),
        received_age_ms: Some(800),
        bytes_sent: 3_200_000,
        bytes_received: 512,
        control: Some(ControlLinkView {
            address: "203.0.113.7:7300".into(),
            transport: "quic".into(),
            age_s: 3_700,
            version: Some("0.1.0".into()),
            clock_offset_ms: Some(-12),
        }),
        reason: None,
    }
}

fn membership(ephemeral: bool) -> MembershipView {
    MembershipView {
        serial: 4,
        not_before: "2026-03-01T09:00:00Z".into(),
        not_after: "2026-03-02T09:00:00Z".into(),
        renewal_due_s: 75_600,
        reachable_until: "2026-03-16T09:00:00Z".into(),
        ephemeral,
        record: record("member", 7),
        grant: None,
        tombstone: None,
        ended_because: None,
    }
}

/// This node.
#[must_use]
pub fn node_paris() -> NodeView {
    NodeView {
        name: "paris1".into(),
        site: "paris".into(),
        fqdn: "paris1.paris.acme.internal".into(),
        key: "1c".repeat(32),
        local: true,
        standing: Standing::Current,
        roles: vec!["host".into(), "operator".into(), "registrar".into(), "admin".into(), "owner".into()],
        labels: vec![],
        addresses: addresses(1, 1),
        exposed: vec![],
        membership: membership(false),
        contacts: vec!["198.51.100.4:7300".into()],
        link: None,
    }
}

/// A node that is reached directly.
#[must_use]
pub fn node_berlin() -> NodeView {
    NodeView {
        name: "berlin1".into(),
        site: "berlin".into(),
        fqdn: "berlin1.berlin.acme.internal".into(),
        key: "b2".repeat(32),
        local: false,
        roles: vec!["host".into()],
        labels: vec!["web".into()],
        addresses: addresses(2, 2),
        exposed: vec!["80/tcp".into(), "8000-8010/udp".into()],
        contacts: vec!["203.0.113.7:7300".into(), "berlin.example.org:7300".into()],
        link: Some(link()),
        ..node_paris()
    }
}

/// A node past its deadline that is not reached.
#[must_use]
pub fn node_lisbon() -> NodeView {
    let link = LinkView {
        state: LinkState::Unreachable,
        path: None,
        rtt_ms: None,
        handshake_age_ms: None,
        received_age_ms: None,
        bytes_sent: 0,
        bytes_received: 0,
        control: None,
        reason: Some("no answer from 2 addresses".into()),
    };
    NodeView {
        name: "lisbon1".into(),
        site: "lisbon".into(),
        fqdn: "lisbon1.lisbon.acme.internal".into(),
        key: "d3".repeat(32),
        standing: Standing::Grace,
        labels: vec![],
        addresses: addresses(3, 3),
        exposed: vec![],
        membership: MembershipView { renewal_due_s: -7_200, ..membership(true) },
        link: Some(link),
        ..node_berlin()
    }
}

#[must_use]
pub fn node_list() -> NodeList {
    NodeList { vdc: "acme".into(), nodes: vec![node_berlin(), node_lisbon(), node_paris()] }
}

#[must_use]
pub fn node_revoked() -> NodeRevoked {
    NodeRevoked {
        node: "lisbon1".into(),
        site: "lisbon".into(),
        key: "d3".repeat(32),
        record: record("tombstone", 12),
        confirmed: 1,
        members: 2,
        unconfirmed: vec!["berlin2".into()],
        void: vec!["lisbon3.lisbon".into()],
        notes: vec!["2 open invites of lisbon1 ended with it".into()],
    }
}

#[must_use]
pub fn vdc_recovered() -> VdcRecovered {
    VdcRecovered {
        vdc: "acme".into(),
        node: node_paris(),
        admin_signed: true,
        admin_until: "2027-03-01T12:00:00Z".into(),
        sites_taken: vec!["paris".into()],
        sites_served: vec!["berlin".into(), "paris".into()],
        notes: vec!["site lisbon is still served by lisbon1.lisbon".into()],
    }
}

/// The registrar of lisbon, of whose records the last one would be void.
#[must_use]
pub fn issued_list() -> IssuedList {
    let member = |number: u64, subject: &str, void| IssuedView {
        number,
        kind: "member".into(),
        hash: format!("{number:02x}").repeat(8),
        subject: subject.into(),
        at: Some(format!("2026-03-01T12:{number:02}:00Z")),
        void,
    };
    IssuedList {
        vdc: "acme".into(),
        node: "lisbon1".into(),
        site: "lisbon".into(),
        key: "d3".repeat(32),
        keep_through: Some(4),
        records: vec![member(4, "lisbon2.lisbon", false), member(7, "lisbon3.lisbon", true)],
        void: vec!["lisbon3.lisbon".into()],
        notes: vec![],
    }
}

#[must_use]
pub fn peer_list() -> PeerList {
    let candidates = vec![
        CandidateView {
            endpoint: "203.0.113.7:7301".into(),
            kind: PathKind::Direct,
            rtt_ms: Some(21.37),
            in_use: true,
            source: "asked".into(),
        },
        CandidateView {
            endpoint: "[2001:db8::7]:7301".into(),
            kind: PathKind::Direct,
            rtt_ms: None,
            in_use: false,
            source: "last-seen".into(),
        },
    ];
    let peer = |node: NodeView, candidates| PeerView {
        node: node.name,
        site: node.site,
        key: node.key,
        standing: node.standing,
        link: node.link.expect("a sample of another node"),
        candidates,
    };
    PeerList { vdc: "acme".into(), peers: vec![peer(node_berlin(), candidates), peer(node_lisbon(), vec![])] }
}

#[must_use]
pub fn connected() -> Connected {
    Connected {
        node: "berlin1".into(),
        site: "berlin".into(),
        key: "b2".repeat(32),
        address: "203.0.113.7:7300".into(),
        transport: "quic".into(),
        elapsed_ms: 64,
    }
}

#[must_use]
pub fn site_list() -> SiteList {
    let site = |name: &str, number: u16, registrars: &[&str], reached| SiteView {
        name: name.into(),
        number,
        ipv6: format!("fd5a:3c71:9e02:{number}::/64"),
        ipv4: Some(format!("10.64.{}.0/20", number * 16)),
        founder: "paris".into(),
        registrars: registrars.iter().map(|&name| name.to_owned()).collect(),
        nodes: 1,
        nodes_reached: reached,
        created_at: "2026-03-01T09:00:00Z".into(),
    };
    let sites = vec![site("berlin", 2, &[], 1), site("lisbon", 3, &["lisbon1"], 0), site("paris", 1, &["paris1"], 1)];
    SiteList { vdc: "acme".into(), sites }
}

#[must_use]
pub fn status() -> Status {
    let vdc_status = VdcStatus {
        vdc: vdc(),
        node: node_paris(),
        roster: RosterView {
            records: 17,
            size_bytes: 9_412,
            age_s: Some(12),
            compared_with: Some("berlin1".into()),
            conflicts: vec!["two nodes of berlin are named berlin2".into()],
            policy_version: 1,
        },
        nodes: node_list().nodes,
        sites: site_list().sites,
        listen: ListenView {
            data_port: 7_301,
            control_port: 7_300,
            door_port: Some(7_302),
            observed: vec!["198.51.100.4:7301".into()],
        },
        data_path: DataPathView {
            namespace: "meshd-acme".into(),
            device: "mesh0".into(),
            mtu_bytes: 1_280,
            udp_gso: true,
            udp_gro: true,
            tun_offload: false,
            packets_dropped: 3,
        },
        dns: DnsView {
            state: DnsState::Resolved,
            domain: "acme.internal".into(),
            server: Some("fd5a:3c71:9e02:1:a1b2:c3d1:0:1".into()),
            detail: None,
        },
        problems: vec![problem()],
    };
    Status {
        version: version(),
        uptime_s: 7_500,
        now: "2026-03-01T12:00:00Z".into(),
        vdcs: vec![vdc_status],
        not_served: vec![],
        problems: vec![degraded()],
    }
}

#[must_use]
pub fn invite() -> InviteView {
    InviteView {
        id: "3f".repeat(16),
        site: "berlin".into(),
        state: InviteState::Open,
        created_at: "2026-03-01T12:00:00Z".into(),
        expires_at: "2026-03-01T13:00:00Z".into(),
        expires_in_s: 3_540,
        uses: 1,
        uses_left: 1,
        ephemeral: false,
        founder: false,
        registrar: "paris1".into(),
        redeemed: vec![],
    }
}

#[must_use]
pub fn invite_created() -> InviteCreated {
    InviteCreated {
        token: "vdc1.b2hhaS10aGlzLWlzLWEtc2FtcGxl".into(),
        invite: invite(),
        reachability: Reachability {
            verdict: ReachabilityVerdict::LocalOnly,
            message: "only boxes on the same network can reach a registrar".into(),
            hint: Some("forward UDP and TCP port 7302 to this node".into()),
            addresses: vec!["192.168.7.2:7302".into()],
        },
        site_created: true,
    }
}

#[must_use]
pub fn invite_list() -> InviteList {
    let used = InviteView {
        id: "0a".repeat(16),
        state: InviteState::Used,
        expires_in_s: 0,
        uses_left: 0,
        redeemed: vec![RedemptionView {
            node: "berlin1".into(),
            key: "b2".repeat(32),
            at: Some("2026-03-01T12:05:00Z".into()),
            address: Some("203.0.113.7".into()),
        }],
        ..invite()
    };
    InviteList { vdc: "acme".into(), invites: vec![invite(), used] }
}

#[must_use]
pub fn site_added() -> SiteAdded {
    let invite = InviteView { founder: true, site: "lisbon".into(), ..invite() };
    let mut site = site_list().sites.swap_remove(1);
    site.registrars.clear();
    SiteAdded { site, invite: InviteCreated { invite, ..invite_created() }, existed: false }
}

#[must_use]
pub fn joined() -> Joined {
    Joined {
        vdc: VdcView { node: "berlin1".into(), site: "berlin".into(), ..vdc() },
        node: "berlin1".into(),
        site: "berlin".into(),
        fqdn: "berlin1.berlin.acme.internal".into(),
        addresses: addresses(2, 2),
        registrar: "paris1".into(),
        already_member: false,
        elapsed_ms: 640,
        problems: vec![],
    }
}

/// A join from its first to its last event.
#[must_use]
pub fn join_events() -> Vec<JoinEvent> {
    let step = |id: &str, title: &str, state, detail: Option<&str>, elapsed_ms| {
        let detail = detail.map(str::to_owned);
        JoinEvent::Step(StepView { id: id.into(), title: title.into(), state, detail, elapsed_ms })
    };
    vec![
        step("dial", "reach a registrar", StepState::Started, None, 0),
        step("dial", "reach a registrar", StepState::Done, Some("paris1 at 198.51.100.4:7302"), 84),
        step("redeem", "redeem the invite", StepState::Started, None, 0),
        step("redeem", "redeem the invite", StepState::Done, None, 121),
        JoinEvent::Joined(Box::new(joined())),
    ]
}

#[must_use]
pub fn left() -> Left {
    Left { vdc: "acme".into(), node: "berlin1".into(), confirmed: 2, members: 2, unconfirmed: vec![], notes: vec![] }
}

#[must_use]
pub fn renewed() -> Renewed {
    Renewed { node: "berlin1".into(), serial: 5, not_after: "2026-03-02T12:00:00Z".into(), registrar: "paris1".into() }
}

#[must_use]
pub fn exposure_list() -> ExposureList {
    let of = |node: NodeView| ExposureView {
        record: (!node.exposed.is_empty()).then(|| record("exposure", 9)),
        workloads: if node.local { vec![] } else { vec![exposed_workload()] },
        node: node.name,
        site: node.site,
        fqdn: node.fqdn,
        local: node.local,
        ports: node.exposed,
    };
    ExposureList { vdc: "acme".into(), exposures: vec![of(node_paris()), of(node_berlin())] }
}

/// A workload of [`node_berlin`].
#[must_use]
pub fn exposed_workload() -> ExposedWorkload {
    ExposedWorkload {
        name: "web".into(),
        fqdn: "web.berlin.acme.internal".into(),
        ipv6: "fd5a:3c71:9e02:2:a1b2:c3d2:1:0".into(),
        ipv4: Some("10.64.32.18".into()),
        ports: vec!["80/tcp".into()],
        labels: vec!["front".into()],
    }
}

#[must_use]
pub fn block() -> BlockView {
    BlockView {
        id: "e7".repeat(32),
        from: Some("lisbon1.lisbon".into()),
        to: None,
        port: Some("445/tcp".into()),
        reason: "worm".into(),
        lifted: false,
        record: record("block", 13),
    }
}

#[must_use]
pub fn block_list() -> BlockList {
    BlockList { vdc: "acme".into(), blocks: vec![block()] }
}

#[must_use]
pub fn explanation() -> Explanation {
    let party = |asked: &str, node: NodeView| PartyView {
        asked: asked.into(),
        node: Some(node.name),
        kind: PartyKind::Host,
        workload: None,
        site: Some(node.site),
        address: Some(node.addresses.ipv6),
        roles: node.roles,
        labels: node.labels,
    };
    Explanation {
        vdc: "acme".into(),
        allowed: true,
        source: party("lisbon1", node_lisbon()),
        destination: party("berlin1", node_berlin()),
        flow: "80/tcp".into(),
        decided_by: Some(record("policy", 3)),
        reason: "rule members of policy version 1 allows declared ports, and berlin1 declared 80/tcp".into(),
        steps: vec![
            ExplainStep {
                title: "block records".into(),
                verdict: StepVerdict::Continue,
                detail: "1 active, none matches".into(),
                record: None,
            },
            ExplainStep {
                title: "rule members".into(),
                verdict: StepVerdict::Allow,
                detail: "declared ports; 80/tcp is declared".into(),
                record: Some(record("exposure", 9)),
            },
        ],
        hint: None,
    }
}

/// Three requests, the second one lost.
#[must_use]
pub fn ping_events() -> Vec<PingEvent> {
    let reply = |seq, rtt_ms| PingEvent::Reply { seq, rtt_ms, size_bytes: 56, path: link().path };
    vec![
        PingEvent::Started {
            node: "berlin1".into(),
            site: "berlin".into(),
            address: "fd5a:3c71:9e02:2:a1b2:c3d2:0:1".into(),
            size_bytes: 56,
        },
        reply(1, 21.4),
        PingEvent::Lost { seq: 2, reason: "no reply within 1000 ms".into() },
        reply(3, 20.6),
    ]
}

#[must_use]
pub fn event_list() -> EventList {
    let event = |seq, kind: &str, severity, node: &str, message: &str| EventView {
        seq,
        at: format!("2026-03-01T12:00:{seq:02}Z"),
        vdc: Some("acme".into()),
        severity,
        kind: kind.into(),
        node: Some(node.into()),
        message: message.into(),
    };
    EventList {
        events: vec![
            event(1, "node-joined", Severity::Info, "berlin1", "berlin1 joined site berlin by invite 3f3f3f3f"),
            event(2, "node-revoked", Severity::Warning, "lisbon1", "lisbon1 was revoked: stolen"),
        ],
    }
}

#[must_use]
pub fn metrics() -> String {
    "# HELP meshd_up Whether the daemon runs.\n# TYPE meshd_up gauge\nmeshd_up 1\n# EOF\n".into()
}

/// A container that runs, with a limit that its node cannot keep.
#[must_use]
pub fn workload() -> WorkloadView {
    let spec = WorkloadRun {
        image: "registry.example:5000/nginx:1".into(),
        name: Some("web".into()),
        command: vec!["nginx".into(), "-g".into(), "daemon off;".into()],
        env: vec!["MODE=fast".into()],
        ports: vec!["80/tcp".into()],
        publish: vec!["8080:80".into()],
        volumes: vec!["data:/data".into()],
        memory_bytes: Some(256 << 20),
        cpu_millis: Some(1_500),
        restart: RestartPolicy::Always,
        health: Some(HealthSpec {
            args: vec!["/bin/sh".into(), "-c".into(), "nginx -t".into()],
            interval_ms: 30_000,
            timeout_ms: 5_000,
            retries: 3,
            start_period_ms: 0,
        }),
        ..WorkloadRun::default()
    };
    WorkloadView {
        id: "4f1c".repeat(8),
        name: "web".into(),
        node: "berlin1".into(),
        site: "berlin".into(),
        fqdn: Some("web.berlin.acme.internal".into()),
        addresses: vec!["fd5a:3c71:9e02:2:a1b2:c3d2:4f1c:1".into(), "10.64.32.81".into()],
        manifest: format!("sha256:{}", "6e".repeat(32)),
        phase: Phase::Running,
        reason: "its program runs".into(),
        since: "2026-03-01T12:00:00Z".into(),
        next_retry: None,
        pid: Some(4_711),
        exit: None,
        restarts: 1,
        health: HealthStatus::Healthy,
        degraded: vec![DegradedView { what: "memory limit".into(), why: "the controller memory is not there".into() }],
        created_at: "2026-03-01T11:50:00Z".into(),
        spec,
    }
}

/// A container that was killed for want of memory.
#[must_use]
pub fn workload_ended() -> WorkloadView {
    WorkloadView {
        id: "b7d2".repeat(8),
        name: "job".into(),
        fqdn: Some("job.berlin.acme.internal".into()),
        phase: Phase::Exited,
        reason: "out of memory".into(),
        pid: None,
        exit: Some(exit()),
        restarts: 0,
        health: HealthStatus::None,
        degraded: vec![],
        spec: WorkloadRun { image: "debian:12".into(), name: Some("job".into()), ..WorkloadRun::default() },
        ..workload()
    }
}

fn exit() -> ExitView {
    ExitView {
        code: 137,
        signal: Some(9),
        oom_killed: true,
        at: "2026-03-01T12:01:00Z".into(),
        cause: ExitReason::Process,
    }
}

#[must_use]
pub fn workload_list() -> WorkloadList {
    WorkloadList { workloads: vec![workload_ended(), workload()] }
}

fn progress(layers_done: u32, bytes_done: u64) -> PullProgress {
    PullProgress { layers_done, layers_total: 2, bytes_done, bytes_total: 48_000_000 }
}

/// A run from its first to its last event.
#[must_use]
pub fn run_events() -> Vec<RunEvent> {
    let view = workload();
    vec![
        RunEvent::Pulling(progress(0, 16_000_000)),
        RunEvent::Pulling(progress(2, 48_000_000)),
        RunEvent::Created { id: view.id.clone(), name: view.name.clone() },
        RunEvent::Started(Box::new(view)),
    ]
}

#[must_use]
pub fn workload_removed() -> WorkloadRemoved {
    let WorkloadView { id, name, .. } = workload();
    WorkloadRemoved { id, name }
}

#[must_use]
pub fn waited() -> Waited {
    Waited { exit: Some(exit()) }
}

/// Two lines of one moment, one of the other output, and one that is not text.
#[must_use]
pub fn log_events() -> Vec<LogEvent> {
    let line = |at: &str, stream, text: &str| LogEvent::Line {
        at: format!("2026-03-01T12:00:{at}Z"),
        stream,
        text: text.into(),
        base64: None,
    };
    vec![
        LogEvent::Gap { records: 12 },
        line("01.000000000", LogStream::Stdout, "ready\n"),
        line("01.000000000", LogStream::Stdout, "ready\n"),
        line("02.500000000", LogStream::Stderr, "warning: no config\n"),
        LogEvent::Line {
            at: "2026-03-01T12:00:03.000000001Z".into(),
            stream: LogStream::Stdout,
            text: String::new(),
            base64: Some("/wAK".into()),
        },
    ]
}

/// Two looks, a second apart, in which half a processor was used.
#[must_use]
pub fn stats_events() -> Vec<StatsEvent> {
    let look = |second: u64| StatsEvent {
        at: format!("2026-03-01T12:00:{second:02}.000000000Z"),
        cpu_ns: 2_000_000_000 + second * 500_000_000,
        memory_bytes: 24 << 20,
        memory_bytes_max: 31 << 20,
        pids: 3,
        oom_kills: 0,
        received_bytes: 90_112,
        sent_bytes: 512 * second,
    };
    vec![look(1), look(2)]
}

/// A pull from its first to its last event.
#[must_use]
pub fn pull_events() -> Vec<PullEvent> {
    vec![
        PullEvent::Progress(progress(0, 16_000_000)),
        PullEvent::Progress(progress(2, 48_000_000)),
        PullEvent::Done(image()),
    ]
}

#[must_use]
pub fn image() -> ImageView {
    ImageView {
        names: vec!["registry.example:5000/nginx:1".into()],
        manifest: format!("sha256:{}", "6e".repeat(32)),
        size_bytes: 142_000_000,
        layers: 2,
        created_at: Some("2026-02-20T08:00:00Z".into()),
        in_use: 1,
    }
}

#[must_use]
pub fn image_list() -> ImageList {
    let nameless = ImageView {
        names: vec![],
        manifest: format!("sha256:{}", "0d".repeat(32)),
        created_at: None,
        in_use: 0,
        ..image()
    };
    ImageList { images: vec![image(), nameless] }
}

#[must_use]
pub fn images_freed() -> ImagesFreed {
    ImagesFreed { names: vec!["registry.example:5000/nginx:1".into()], layers: 2, bytes: 142_000_000 }
}

/// What a node has left.
#[must_use]
pub fn capacity() -> crate::Capacity {
    crate::Capacity {
        node: "berlin1.berlin".into(),
        processors: 8,
        memory_bytes: 16 << 30,
        memory_free_bytes: 11 << 30,
        running: 3,
    }
}

fn voter(node: &str, site: &str, last_heard_ms: Option<u64>, lag: u64) -> GroupMemberView {
    GroupMemberView {
        node: node.into(),
        site: site.into(),
        role: MemberRole::Voter,
        reachable: true,
        last_heard_ms,
        lag: Some(lag),
        since: Some("2026-03-01T09:30:00Z".into()),
    }
}

/// The VDC's group as it should be, without one voter; berlin's as it should be; lisbon's of one box.
#[must_use]
pub fn coord_status() -> CoordStatus {
    let lost = GroupMemberView {
        reachable: false,
        last_heard_ms: Some(190_000),
        lag: Some(512),
        ..voter("lisbon1", "lisbon", None, 0)
    };
    let learner = GroupMemberView { role: MemberRole::Learner, ..voter("berlin2", "berlin", Some(140), 3) };
    let of_vdc = GroupView {
        home: GroupHome::Vdc,
        group: Some("9d".repeat(32)),
        founded_by: Some("paris1.paris".into()),
        founded_at: Some("2026-03-01T09:00:00Z".into()),
        state: GroupState::Serving,
        reason: None,
        leader: Some("paris1.paris".into()),
        term: Some(7),
        revision: Some(90_214),
        compacted: Some(80_001),
        keys: Some(1_204),
        size_bytes: Some(310_000),
        role_here: RoleHere::Voter,
        redundancy: RedundancyView {
            level: RedundancyLevel::None,
            words: "no redundancy: lisbon1 does not answer, and the next voter that fails stops it".into(),
            below_table: true,
        },
        warnings: vec!["lisbon1.lisbon has not answered for 3m10s; it is replaced after 10m00s".into()],
        members: vec![voter("berlin1", "berlin", Some(80), 0), lost, voter("paris1", "paris", None, 0), learner],
    };
    let of_berlin = GroupView {
        home: GroupHome::Site("berlin".into()),
        group: Some("4e".repeat(32)),
        founded_by: Some("berlin1.berlin".into()),
        leader: Some("berlin2.berlin".into()),
        revision: Some(512),
        compacted: Some(1),
        keys: Some(40),
        size_bytes: Some(9_412),
        role_here: RoleHere::Client,
        redundancy: RedundancyView {
            level: RedundancyLevel::Ok,
            words: "any one of 3 may fail now".into(),
            below_table: false,
        },
        warnings: vec![],
        members: ["berlin1", "berlin2", "berlin3"].map(|node| voter(node, "berlin", Some(300), 0)).into(),
        ..of_vdc.clone()
    };
    let of_lisbon = GroupView {
        home: GroupHome::Site("lisbon".into()),
        state: GroupState::NotHere,
        reason: Some("no node of the site answers".into()),
        leader: None,
        term: None,
        revision: None,
        compacted: None,
        keys: None,
        size_bytes: None,
        redundancy: RedundancyView {
            level: RedundancyLevel::None,
            words: "no redundancy: the site has one box".into(),
            below_table: false,
        },
        members: vec![GroupMemberView {
            reachable: false,
            last_heard_ms: None,
            lag: None,
            ..voter("lisbon1", "lisbon", None, 0)
        }],
        ..of_berlin.clone()
    };
    CoordStatus { vdc: "acme".into(), groups: vec![of_vdc, of_berlin, of_lisbon] }
}

/// What it would cost to go on with the copy of one voter of three.
#[must_use]
pub fn recover_view() -> RecoverView {
    RecoverView {
        home: GroupHome::Site("berlin".into()),
        from: "berlin2.berlin".into(),
        revision: 510,
        acknowledged_elsewhere: Some(2),
        voters_given_up: vec!["berlin1.berlin".into(), "berlin3.berlin".into()],
        would: vec![
            "berlin2.berlin holds everything up to revision 510".into(),
            "2 changes after it were acknowledged and are lost".into(),
            "berlin1.berlin and berlin3.berlin are given up: what only they hold is lost".into(),
        ],
        done: false,
        group: None,
    }
}

/// The same, done.
#[must_use]
pub fn recovered_view() -> RecoverView {
    RecoverView { done: true, group: Some("5f".repeat(32)), ..recover_view() }
}

#[must_use]
pub fn backup_header() -> BackupHeader {
    BackupHeader {
        vdc: vdc().id,
        home: GroupHome::Site("berlin".into()),
        group: "4e".repeat(32),
        revision: 498,
        keys: 38,
        about_bytes: 10_000,
        taken_at: "2026-03-01T03:00:00Z".into(),
        node: "berlin2.berlin".into(),
    }
}

#[must_use]
pub fn restore_view() -> RestoreView {
    RestoreView { home: GroupHome::Site("berlin".into()), revision: 513, keys: 38, refused: None }
}
