//! From creation to the exit record.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, Shim, eventually};
use workloads_wire::message::{Command, Event, Exit, HealthCheck, HealthState, Held, Phase};

/// The most memory of its own that a shim may have. Its text is shared by all shims of a host and as large as the profile
/// makes it; of these tests' unoptimised one, 0.7 MiB are relocations.
const OWN_KB_MAX: u64 = 1_280;

fn own_kb(shim: &Shim) -> u64 {
    kb(shim, "RssAnon")
}

fn kb(shim: &Shim, field: &str) -> u64 {
    shim.status(field).trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_program_runs_logs_and_leaves_nothing() {
    let mut lab = Lab::new(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
    lab.config.durable = true;
    let (mut shim, _) = lab.run();
    let exit = shim.exited();
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.start_failed), (3, None, false, false));
    shim.reap();
    assert_eq!(lab.exit_file(), exit);
    let log = String::from_utf8(lab.log()).expect("text");
    assert!(log.contains("out\n") && log.contains("err\n"), "{log}");
    lab.assert_clean();
    assert_eq!(shim.errors(), "");
}

#[test]
fn the_program_is_in_the_given_network_and_not_with_the_host() {
    let lab = Lab::new(&["sleep", "1000"]);
    let (mut shim, pid) = lab.run();
    use std::os::unix::fs::MetadataExt;
    let inside = fs::metadata(format!("/proc/{pid}/ns/net")).expect("read").ino();
    assert_eq!(inside, fs::metadata(lab.config.netns.as_ref().expect("one")).expect("read").ino());
    // The shim stays with the host: the ports it holds are the host's.
    let ours = fs::metadata("/proc/self/ns/net").expect("read").ino();
    assert_eq!(fs::metadata(format!("/proc/{}/ns/net", shim.child.id())).expect("read").ino(), ours);
    assert!(own_kb(&shim) <= OWN_KB_MAX, "{} KiB", own_kb(&shim));
    assert_eq!(shim.status("Threads"), "1");
    // What only the start needed goes once the run is no short one.
    let started_with = kb(&shim, "RssFile");
    eventually("program text is given back", || kb(&shim, "RssFile") < started_with);
    shim.say(&Command::Signal { signal: 9 });
    assert_eq!(shim.exited().signal, Some(9));
    shim.reap();
    lab.assert_clean();
}

#[test]
fn a_command_that_cannot_run_is_told_apart_and_cleaned_up() {
    for (args, code, says) in [
        (["no-such-program"], 127, "no such program"),
        (["/bin/nothing"], 127, "no such program"),
        (["/etc/plain"], 126, "cannot be executed"),
    ] {
        let lab = Lab::new(&args);
        let mut shim = lab.spawn();
        match shim.hear() {
            Event::Failed { step, message, code: found } => {
                assert_eq!((step.as_str(), found), ("create", code), "{message}");
                assert!(message.contains(says), "{message}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(shim.wait(), Some(1));
        assert_eq!((lab.exit_file().code, lab.exit_file().start_failed), (code, true));
        lab.assert_clean();
    }
}

#[test]
fn a_program_that_execve_refuses_fails_the_start() {
    let lab = Lab::new(&["/etc/plain"]);
    let plain = lab.path().join("image/etc/plain");
    fs::set_permissions(plain, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let mut shim = lab.spawn();
    shim.created();
    shim.say(&Command::Start);
    let Event::Failed { step, message, code } = shim.hear() else { panic!("failed") };
    assert_eq!((step.as_str(), code), ("start", 126), "{message}");
    assert!(message.contains("Exec format error"), "{message}");
    assert_eq!(shim.wait(), Some(1));
    lab.assert_clean();
}

#[test]
fn a_broken_set_up_is_told_before_anything_is_made() {
    let mut lab = Lab::new(&["true"]);
    lab.config.netns = Some("/run/netns/there-is-none".to_owned());
    let mut shim = lab.spawn();
    let Event::Failed { step, message, .. } = shim.hear() else { panic!("failed") };
    assert_eq!(step, "create");
    assert!(message.contains("network namespace"), "{message}");
    assert_eq!(shim.wait(), Some(1));
    lab.assert_clean();

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let mut lab = Lab::new(&["true"]);
    lab.config.held = vec![Held { address: Some("127.0.0.1".to_owned()), port, udp: false }];
    let mut shim = lab.spawn();
    let Event::Failed { step, message, .. } = shim.hear() else { panic!("failed") };
    assert_eq!(step, "port", "{message}");
    assert_eq!(shim.wait(), Some(1));
    drop(taken);
    let (mut shim, _) = lab.run();
    assert_eq!(shim.exited().code, 0);
    assert_eq!(
        std::net::TcpListener::bind(("127.0.0.1", port)).expect_err("held").kind(),
        std::io::ErrorKind::AddrInUse
    );
    shim.reap();
    std::net::TcpListener::bind(("127.0.0.1", port)).expect("free");
    lab.assert_clean();
}

#[test]
fn a_stop_is_polite_first_and_final_after_the_grace() {
    let lab = Lab::new(&["sh", "-c", "trap 'exit 42' TERM; echo ready; while true; do sleep 0.01; done"]);
    let (mut shim, _) = lab.run();
    eventually("the trap is set", || lab.log() == b"ready\n");
    shim.say(&Command::Stop { signal: 15, grace_ms: 30_000 });
    assert_eq!(shim.exited().code, 42);
    shim.reap();
    lab.assert_clean();

    let lab = Lab::new(&["sleep", "1000"]);
    let (mut shim, _) = lab.run();
    let asked = Instant::now();
    shim.say(&Command::Stop { signal: 15, grace_ms: 300 });
    let exit = shim.exited();
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    shim.reap();
    lab.assert_clean();
}

#[test]
fn a_memory_hog_is_killed_and_the_record_says_so() {
    let lab = Lab::new(&["dd", "if=/dev/zero", "of=/dev/shm/hog", "bs=1M", "count=60"]);
    let (mut shim, _) = lab.run();
    let exit = shim.exited();
    assert_eq!((exit.oom_killed, exit.signal), (true, Some(9)), "{exit:?}");
    shim.reap();
    lab.assert_clean();
}

#[test]
fn the_container_outlives_its_daemon_and_a_terminated_shim_stays() {
    let lab = Lab::new(&["sh", "-c", "trap 'exit 8' TERM; echo ready; while true; do sleep 0.01; done"]);
    let (mut shim, pid) = lab.run();
    eventually("the trap is set", || lab.log() == b"ready\n");
    let number = Pid::from_raw(i32::try_from(shim.child.id()).expect("small")).expect("a pid");
    kill_process(number, Signal::TERM).expect("sent");
    shim.reconnect();
    shim.say(&Command::State);
    match shim.hear() {
        Event::State { phase, pid: found, generation, started_ms, exit, .. } => {
            assert_eq!((phase, found, generation, exit), (Phase::Running, Some(pid), 7, None));
            assert!(started_ms.is_some());
        }
        other => panic!("{other:?}"),
    }
    shim.say(&Command::Reap);
    assert!(matches!(shim.hear(), Event::Refused { .. }));
    shim.say(&Command::Stop { signal: 15, grace_ms: 30_000 });
    assert_eq!(shim.exited().code, 8);
    // Said again: the answer is the state, with the exit in it.
    shim.reconnect();
    shim.say(&Command::Stop { signal: 15, grace_ms: 30_000 });
    assert!(matches!(shim.hear(), Event::State { phase: Phase::Exited, exit: Some(Exit { code: 8, .. }), .. }));
    shim.reap();
    lab.assert_clean();
}

#[test]
fn a_daemon_that_dies_before_the_start_leaves_nothing() {
    let lab = Lab::new(&["sleep", "1000"]);
    let mut shim = lab.spawn();
    shim.created();
    shim.hang_up();
    assert_eq!(shim.wait(), Some(1));
    lab.assert_clean();
    let lab = Lab::new(&["sleep", "1000"]);
    let mut shim = lab.spawn();
    shim.hang_up();
    assert_eq!(shim.wait(), Some(1));
    lab.assert_clean();
}

#[test]
fn a_container_that_is_stopped_before_its_start_never_started() {
    let lab = Lab::new(&["sleep", "1000"]);
    let mut shim = lab.spawn();
    shim.created();
    shim.say(&Command::Stop { signal: 15, grace_ms: 0 });
    let Event::Failed { step, message, .. } = shim.hear() else { panic!("failed") };
    assert_eq!((step.as_str(), message.as_str()), ("start", "it ended before the start"));
    assert_eq!(shim.wait(), Some(1));
    assert!(lab.exit_file().start_failed);
    lab.assert_clean();
}

#[test]
fn a_second_shim_for_the_same_container_is_refused() {
    let lab = Lab::new(&["sleep", "1000"]);
    let (mut shim, _) = lab.run();
    let mut second = lab.spawn();
    assert!(matches!(second.hear(), Event::Failed { step, .. } if step == "lock"));
    assert_eq!(second.wait(), Some(1));
    shim.say(&Command::Stop { signal: 9, grace_ms: 0 });
    assert_eq!(shim.exited().code, 137);
    shim.reap();
    lab.assert_clean();
}

#[test]
fn health_follows_the_checks() {
    let mut lab = Lab::new(&["sleep", "1000"]);
    let args = ["sh", "-c", "cat /tmp/well"].map(|arg| arg.as_bytes().to_vec().into());
    let well = lab.path().join("image/tmp/well");
    fs::write(&well, "fine").expect("written");
    lab.config.health =
        Some(HealthCheck { args: args.into(), interval_ms: 100, timeout_ms: 5_000, retries: 2, start_period_ms: 0 });
    let (mut shim, _) = lab.run();
    assert_eq!(shim.hear(), Event::Health { state: HealthState::Healthy, output: b"fine".to_vec() });
    fs::remove_file(&well).expect("removed");
    let Event::Health { state, output } = shim.hear() else { panic!("health") };
    assert_eq!(state, HealthState::Unhealthy);
    assert!(String::from_utf8_lossy(&output).contains("No such file"));
    fs::write(&well, "again").expect("written");
    assert_eq!(shim.hear(), Event::Health { state: HealthState::Healthy, output: b"again".to_vec() });
    shim.say(&Command::Stop { signal: 9, grace_ms: 0 });
    assert_eq!(shim.exited().code, 137);
    shim.reap();
    lab.assert_clean();
}

#[test]
fn a_flood_of_output_fills_neither_memory_nor_disk() {
    let lab = Lab::new(&["sh", "-c", "yes 0123456789012345678901234567890123456789 | head -c 200000000"]);
    let (mut shim, _) = lab.run();
    let mut most = 0;
    eventually("the flood ends", || {
        most = most.max(own_kb(&shim));
        lab.path().join("exit").exists()
    });
    assert!(most <= OWN_KB_MAX, "{most} KiB");
    assert_eq!(shim.exited().code, 0);
    shim.reap();
    let sizes: u64 = fs::read_dir(lab.path().join("log"))
        .expect("read")
        .map(|e| e.expect("entry").metadata().expect("size").len())
        .sum();
    assert!(sizes <= 3 << 20, "{sizes}");
    lab.assert_clean();
}

#[test]
fn what_a_grandchild_holds_open_does_not_hold_up_the_end() {
    let lab = Lab::new(&["sleep", "1000"]);
    let (mut shim, _) = lab.run();
    let (_, streams) = shim.exec(crate::lab::exec(&["sh", "-c", "sleep 1000 & exit 2"])).expect("started");
    assert_eq!(streams.end().0, 2);
    shim.say(&Command::Stop { signal: 9, grace_ms: 0 });
    assert_eq!(shim.exited().code, 137);
    shim.reap();
    lab.assert_clean();
}

#[test]
fn many_rounds_leave_nothing() {
    let lab = Lab::new(&["true"]);
    for _ in 0..30 {
        let (mut shim, _) = lab.run();
        assert_eq!(shim.exited().code, 0);
        shim.reap();
        lab.assert_clean();
    }
}
