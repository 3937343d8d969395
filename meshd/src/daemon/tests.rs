//! A daemon in this process: the supervisor against a task that panics, and workloads. Needs root: the daemon under test makes
//! interfaces and namespaces, so a test runs itself again in a network and mount namespace of its own.

mod workloads;

use std::process::Command;

use super::*;
use crate::config::{Dns, DnsMode, Network};
use crate::vdc_core::{Wish, found};

/// Set in the namespaces.
const INSIDE: &str = "MESHD_TEST_INSIDE";
/// How long a restart may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn task_that_panics_is_started_again_and_its_packet_thread_is_not_left() {
    in_namespaces("task_that_panics_is_started_again_and_its_packet_thread_is_not_left", panic_and_come_back);
}

/// Runs the test of this name, which calls this, once more in namespaces of its own, and there `work`.
fn in_namespaces<F: Future<Output = ()>>(test: &str, work: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("threads").block_on(work());
        return;
    }
    let script = "mount -t tmpfs tmpfs /run && ip link set lo up && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", &format!("daemon::tests::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("package util-linux");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// A daemon without a VDC.
async fn daemon(directory: &std::path::Path) -> Daemon {
    let config = Arc::new(Config {
        state_dir: directory.join("state"),
        network: Network { mdns: false, ..Network::default() },
        dns: Dns { mode: DnsMode::Off, ..Dns::default() },
        ..Config::default()
    });
    let (dns, events) = (Arc::new(DnsHub::new(config.dns.clone())), Events::default());
    let token = CancellationToken::new();
    let workloads = Workloads::open(&config, Arc::clone(&dns), events.clone(), token.child_token()).await;
    Daemon {
        workloads: workloads.expect("root can look after containers"),
        state: StateDir::open(&config.state_dir).expect("writable"),
        fabric: Fabric::start(&config).expect("the port is free in here"),
        started: Instant::now(),
        vdcs: RwLock::default(),
        not_served: RwLock::default(),
        api: OnceLock::new(),
        in_use: Mutex::default(),
        membership: Mutex::new(()),
        token,
        shared: Shared { dns, config, events, boot_nonce: random() },
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a literal name")
}

/// Founds VDC acme with node paris1 in site paris, and serves it.
async fn founded(daemon: &Daemon, ipv4: Option<&str>) -> CoreHandle {
    let ipv4 = ipv4.map(|block| block.parse().expect("a literal block"));
    let wish = Wish { name: name("acme"), site: name("paris"), node: name("paris1"), ipv4, now: system_time() };
    daemon.serve(found(&daemon.state, wish).expect("founded").dir).await.expect("served")
}

async fn panic_and_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = daemon(directory.path()).await;
    let handle = founded(&daemon, None).await;
    assert_eq!(packet_threads(), 1);

    let panicked = handle.with(|_| panic!("injected by a test")).await;
    assert_eq!(panicked.map_err(|error: ApiError| error.code), Err::<(), _>(ErrorCode::Unavailable));
    let back = async {
        loop {
            tokio::task::yield_now().await;
            if let Ok(again) = daemon.find("acme").await
                && !again.is_closed()
                && again.with(|core| core.own_node()).await.is_ok_and(|node| node.is_ok())
            {
                return;
            }
        }
    };
    tokio::select! {
        // cancel-safe: nothing follows.
        back = tokio::time::timeout(PATIENCE, back) => back.expect("the supervisor serves it again"),
        // cancel-safe: see there.
        () = daemon.supervise() => panic!("a supervisor does not end"),
    }
    assert!(handle.is_closed(), "the panic ended the first task");
    assert_eq!(packet_threads(), 1, "the first run's packet thread is left");
    assert!(daemon.not_served.read().await.is_empty());
    let told = daemon.shared.events.list(&api::EventsQuery::default());
    assert!(told.iter().any(|event| event.kind == "vdc-restarting"), "{told:?}");
}

/// How many threads read a TUN device.
fn packet_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").expect("proc is mounted");
    let name =
        |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path().join("comm")).ok();
    threads.filter_map(name).filter(|name| name.trim() == "mesh-tx").count()
}
