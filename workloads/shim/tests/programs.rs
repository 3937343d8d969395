//! Further programs in a running container, and clients at its own.

use std::fs;

use crate::lab::{Lab, UID_BASE, eventually, exec, status};
use workloads_wire::frame::Kind;
use workloads_wire::message::{Command, Event, Exec};

#[test]
fn an_exec_is_confined_exactly_as_the_container_s_own_program() {
    let lab = Lab::new(&["sleep", "1000"]);
    let (shim, init) = lab.run();
    let (pid, streams) = shim.exec(Exec { stdin: true, ..exec(&["cat"]) }).expect("started");
    for field in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb", "Seccomp", "NoNewPrivs", "Uid", "Gid", "Groups"] {
        assert_eq!(status(pid, field), status(init, field), "{field}");
    }
    assert_eq!((status(pid, "Seccomp"), status(pid, "NoNewPrivs")), ("2".to_owned(), "1".to_owned()));
    assert!(status(pid, "Uid").starts_with(&UID_BASE.to_string()));
    assert_eq!(status(init, "NSpid").split_whitespace().last(), Some("1"));
    for namespace in ["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("a link");
        assert_eq!(of(pid), of(init), "{namespace}");
        assert_ne!(of(pid), of(std::process::id()), "{namespace}");
    }
    for file in ["uid_map", "gid_map", "cgroup", "limits", "oom_score_adj"] {
        let of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read");
        assert_eq!(of(pid), of(init), "{file}");
    }
    let open = |pid: u32| {
        let mut fds: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/fd")).expect("read").map(|e| e.expect("entry").file_name()).collect();
        fds.sort();
        fds
    };
    assert_eq!(
        (open(init), open(pid)),
        (vec!["0".into(), "1".into(), "2".into()], vec!["0".into(), "1".into(), "2".into()])
    );
    drop(streams);
    eventually("the exec ends when its caller hangs up", || !fs::exists(format!("/proc/{pid}")).expect("asked"));
    finish(&lab, shim);
}

#[test]
fn an_exec_has_streams_environment_directory_user_and_code() {
    let lab = Lab::new(&["sleep", "1000"]);
    let (shim, _) = lab.run();

    let (_, mut streams) = shim.exec(Exec { stdin: true, ..exec(&["cat"]) }).expect("started");
    let long = vec![b'x'; 300_000];
    let writer = &mut streams;
    for part in long.chunks(30_000) {
        writer.send(Kind::Stdin, part);
        while writer.stdout.len() < part.len() {
            assert_eq!(writer.step(), None);
        }
        assert_eq!(std::mem::take(&mut writer.stdout), part);
    }
    streams.send(Kind::StdinEof, b"");
    assert_eq!(streams.end(), (0, String::new(), String::new()));

    let program = Exec {
        env: vec![("COLOUR".to_owned(), "red".to_owned())],
        workdir: Some("/bin".to_owned()),
        user: Some((1000, 1000, vec![7])),
        ..exec(&["sh", "-c", "echo $COLOUR $HOME; pwd; id; echo err >&2; mkdir /tmp/x; exit 9"])
    };
    let (_, streams) = shim.exec(program).expect("started");
    let (code, out, err) = streams.end();
    assert_eq!(code, 9);
    assert_eq!(out, "red /home\n/bin\nuid=1000(user) gid=1000 groups=7\n");
    assert!(err.starts_with("err\n") && err.contains("Operation not permitted"), "{err}");

    for (args, code, says) in
        [(["no-such-program"], 127, "no such program"), (["/etc/plain"], 126, "cannot be executed")]
    {
        let (message, found) = shim.exec(exec(&args)).err().expect("refused");
        assert_eq!(found, code, "{message}");
        assert!(message.contains(says), "{message}");
    }
    finish(&lab, shim);
}

#[test]
fn an_exec_with_a_terminal_has_its_size_and_control_keys() {
    let lab = Lab::new(&["sleep", "1000"]);
    let (shim, _) = lab.run();
    let (_, mut streams) = shim.exec(Exec { tty: Some((30, 90)), stdin: true, ..exec(&["sh"]) }).expect("started");
    streams.send(Kind::Stdin, b"stty size; tty\n");
    streams.until("30 90\r\n/dev/pts/");
    streams.send(Kind::Resize, &[0, 40, 0, 100]);
    streams.send(Kind::Stdin, b"stty size\n");
    streams.until("40 100\r\n");
    streams.send(
        Kind::Stdin,
        b"sh -c 'trap \"exit 130\" INT; echo ready; while true; do sleep 0.01; done'; echo code $?\n",
    );
    streams.until("ready\r\n");
    streams.send(Kind::Stdin, b"\x03");
    streams.until("code 130\r\n");
    streams.send(Kind::Stdin, b"exit 4\n");
    assert_eq!(streams.end().0, 4);
    finish(&lab, shim);
}

#[test]
fn the_first_byte_is_not_missed_by_a_client_that_was_asked_for() {
    let mut lab = Lab::new(&["sh", "-c", "echo first; cat; exit 5"]);
    lab.config.stdin = true;
    lab.config.hold_for_attach = true;
    let mut shim = lab.spawn();
    shim.created();
    shim.say(&Command::Start);
    shim.say(&Command::Attach);
    let Event::Attached { token } = shim.hear() else { panic!("attached before the start") };
    let mut streams = shim.streams(token);
    assert_eq!(shim.hear(), Event::Started);
    streams.until("first\n");
    streams.send(Kind::Stdin, b"said\n");
    streams.until("said\n");
    streams.send(Kind::StdinEof, b"");
    assert_eq!(streams.end().0, 5);
    assert_eq!(shim.exited().code, 5);
    shim.reap();
    assert_eq!(lab.log(), b"first\nsaid\n");
    lab.assert_clean();
}

#[test]
fn a_container_with_a_terminal_is_attached_and_left_and_attached_again() {
    let mut lab = Lab::new(&["sh"]);
    lab.config.tty = true;
    lab.config.stdin = true;
    lab.oci["process"]["terminal"] = true.into();
    let (mut shim, _) = lab.run();
    for round in 0..2 {
        shim.say(&Command::Attach);
        let Event::Attached { token } = shim.hear() else { panic!("attached") };
        let mut streams = shim.streams(token);
        streams.send(Kind::Resize, &[0, 11, 0, 22 + round]);
        streams.send(Kind::Stdin, b"stty size\n");
        streams.until(&format!("11 {}\r\n", 22 + round));
    }
    shim.say(&Command::Attach);
    let Event::Attached { token } = shim.hear() else { panic!("attached") };
    let mut streams = shim.streams(token);
    streams.send(Kind::Stdin, b"exit 6\n");
    assert_eq!(streams.end().0, 6);
    assert_eq!(shim.exited().code, 6);
    shim.reap();
    lab.assert_clean();
}

#[test]
fn a_slow_client_holds_the_program_up_and_hears_all_of_it_after_the_reaping() {
    let mut lab = Lab::new(&["sh", "-c", "yes 0123456789 | head -c 1000000; exit 3"]);
    lab.config.hold_for_attach = true;
    let mut shim = lab.spawn();
    shim.created();
    shim.say(&Command::Attach);
    let Event::Attached { token } = shim.hear() else { panic!("attached before the start") };
    let mut streams = shim.streams(token);
    shim.say(&Command::Start);
    assert_eq!(shim.hear(), Event::Started);
    // More than all buffers between us hold is left when we begin to read.
    streams.until("0123456789\n");
    eventually("the log stands still with the program", || {
        let before = lab.log().len();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let after = lab.log().len();
        before > 0 && before == after && after < 1_000_000
    });
    while streams.stdout.len() < 700_000 {
        assert_eq!(streams.step(), None);
    }
    assert_eq!(shim.exited().code, 3);
    shim.say(&Command::Reap);
    let (code, out, _) = streams.end();
    assert_eq!((code, out.len()), (3, 1_000_000));
    assert_eq!(shim.wait(), Some(0));
    lab.assert_clean();
}

#[test]
fn tokens_are_asked_for_and_garbage_is_hung_up_on() {
    use std::io::{Read, Write};
    let lab = Lab::new(&["sleep", "1000"]);
    let (shim, _) = lab.run();
    let mut stranger = std::os::unix::net::UnixStream::connect(lab.path().join("streams")).expect("connected");
    stranger.write_all(&[7; 16]).expect("written");
    assert_eq!(stranger.read(&mut [0; 16]).expect("hung up"), 0);
    let (_, mut streams) = shim.exec(Exec { stdin: true, ..exec(&["cat"]) }).expect("started");
    streams.send(Kind::Exit, b"clients have none");
    finish(&lab, shim);
}

/// Stops the container and checks that nothing stays.
fn finish(lab: &Lab, mut shim: crate::lab::Shim) {
    shim.say(&Command::Stop { signal: 9, grace_ms: 0 });
    let exit = shim.exited();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    shim.reap();
    lab.assert_clean();
    assert_eq!(shim.errors(), "");
}
