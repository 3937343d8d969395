//! The verbs for containers: what they ask, what passes through their streams, how they exit.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vdc_api::frame::{self, Kind};
use vdc_api::{
    ApiError, ErrorCode, ExitReason, ExitView, HealthStatus, LogEvent, LogStream, Phase, RunEvent, WorkloadList,
    WorkloadRun, WorkloadView,
};

use crate::fake::{Daemon, Pipe, Reply, Upgrading};

const ID: &str = "0123456789abcdef0123456789abcdef";

fn view(name: &str, phase: Phase) -> WorkloadView {
    let exit = ExitView { code: 3, signal: None, oom_killed: false, at: at(9), cause: ExitReason::Process };
    WorkloadView {
        id: ID.into(),
        name: name.into(),
        node: "berlin1".into(),
        site: "berlin".into(),
        fqdn: Some(format!("{name}.berlin.acme.internal")),
        addresses: vec!["fd5a::7".into()],
        manifest: format!("sha256:{}", "0".repeat(64)),
        phase,
        reason: "started".into(),
        since: at(1),
        next_retry: None,
        pid: Some(7),
        exit: (phase == Phase::Exited).then_some(exit),
        restarts: 0,
        health: HealthStatus::None,
        degraded: vec![],
        created_at: at(0),
        spec: WorkloadRun { image: "debian:12".into(), ..WorkloadRun::default() },
    }
}

fn at(second: u32) -> String {
    format!("2026-03-01T12:00:{second:02}.500Z")
}

fn text_of(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

fn created() -> [RunEvent; 1] {
    [RunEvent::Created { id: ID.into(), name: "job".into() }]
}

fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(kind, body, &mut out);
    out
}

/// Reads one whole frame.
async fn next(pipe: &mut Pipe) -> (Kind, Vec<u8>) {
    let mut bytes = vec![0; 5];
    pipe.read_exact(&mut bytes).await.expect("a frame's head");
    let length = u32::from_be_bytes(bytes[1..].try_into().expect("four bytes"));
    let head = bytes.len();
    bytes.resize(head + usize::try_from(length).expect("short"), 0);
    pipe.read_exact(&mut bytes[head..]).await.expect("a frame's body");
    let frame = frame::decode(&bytes).expect("a frame").expect("a whole one");
    (frame.kind, frame.body.to_vec())
}

#[tokio::test]
async fn run_passes_streams_and_ends_as_the_program_did() {
    let (upgrade, pipe) = Reply::upgrade();
    let daemon = Daemon::start(vec![Reply::endless_stream(&created()), upgrade]).await;
    let words = ["run", "--rm", "-i", "--memory", "64M", "--on", "site=x", "debian:12", "cat", "-n"];
    let mut command = daemon.command(&words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    let mut pipe = pipe.pipe().await;
    stdin.write_all(b"in").await.expect("it reads");
    assert_eq!(next(&mut pipe).await, (Kind::Stdin, b"in".to_vec()));
    drop(stdin);
    assert_eq!(next(&mut pipe).await, (Kind::StdinEof, vec![]));
    let pid = Pid::from_raw(child.id().expect("it runs").try_into().expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(next(&mut pipe).await, (Kind::Signal, vec![15]));
    let rest =
        [frame(Kind::Stdout, b"out\xff"), frame(Kind::Stderr, b"err"), frame(Kind::Exit, &143_i32.to_be_bytes())];
    pipe.write_all(&rest.concat()).await.expect("it reads");
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(143));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\xff"[..], &b"err"[..]));
    let requests = daemon.requests();
    assert_eq!(requests[0].path, "/v1/vdcs/-/workloads?on=site%3Dx");
    assert_eq!(requests[1].path, format!("/v1/vdcs/-/workloads/{ID}/attach?on=site%3Dx"));
    let sent: WorkloadRun = serde_json::from_str(&requests[0].body).expect("JSON");
    assert_eq!((sent.image.as_str(), sent.command), ("debian:12", vec!["cat".to_owned(), "-n".to_owned()]));
    assert!(sent.attach && sent.remove && sent.stdin && !sent.tty && sent.memory_bytes == Some(64 << 20));
}

#[tokio::test]
async fn programs_that_do_not_run_have_the_exit_codes_of_the_field() {
    for (code, exit) in [
        (ErrorCode::ProgramNotFound, 127),
        (ErrorCode::ProgramNotExecutable, 126),
        (ErrorCode::ImageNotFound, 125),
        (ErrorCode::PortTaken, 125),
    ] {
        let body = ApiError::new(code, "it does not run").hint("do this").into_body("id");
        let nothing: [RunEvent; 0] = [];
        let daemon =
            Daemon::start(vec![Reply::stream_then_error(&nothing, &body), Reply::json(code.status(), &text_of(&body))])
                .await;
        for words in [&["run", "debian:12", "x"][..], &["exec", "web", "x"]] {
            let output = daemon.run(words).await;
            assert_eq!((output.code, output.stdout.as_str()), (exit, ""), "{code:?} {words:?}");
            assert!(output.stderr.starts_with("error: it does not run\nhint: do this\n"), "{}", output.stderr);
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let output = crate::fake::meshctl(&directory.path().join("none.sock"), &["run", "debian:12"]).await;
    assert_eq!(output.code, 125, "{}", output.stderr);
}

/// A terminal, its other end for the binary, and a way to look at its modes.
fn terminal() -> (File, OwnedFd) {
    let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("a terminal");
    (File::from(pty.master), pty.slave)
}

fn modes(end: &OwnedFd) -> Termios {
    tcgetattr(end).expect("a terminal")
}

fn is_cooked(end: &OwnedFd) -> bool {
    modes(end).local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
}

/// Starts a session with a terminal, and returns when it is raw.
async fn raw_session(daemon: &Daemon, pipe: Upgrading) -> RawSession {
    let (mut master, end) = terminal();
    let mut command = daemon.command(&["exec", "-it", "web", "sh"]);
    command.stdin(end.try_clone().expect("a copy")).stdout(end.try_clone().expect("a copy")).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary runs");
    let mut pipe = pipe.pipe().await;
    // Without an end of line: only a raw terminal passes it.
    master.write_all(b"x").expect("writes");
    assert_eq!(next(&mut pipe).await, (Kind::Stdin, b"x".to_vec()));
    assert!(!is_cooked(&end));
    RawSession { master, end, child, pipe }
}

struct RawSession {
    master: File,
    end: OwnedFd,
    child: tokio::process::Child,
    pipe: Pipe,
}

#[tokio::test]
async fn keys_to_detach_leave_the_program_and_the_terminal_as_they_were() {
    let (upgrade, pipe) = Reply::upgrade();
    let daemon = Daemon::start(vec![upgrade]).await;
    let mut session = raw_session(&daemon, pipe).await;
    session.master.write_all(b"\x03y\x10\x11").expect("writes");
    let mut received = Vec::new();
    while received.len() < 2 {
        let (kind, body) = next(&mut session.pipe).await;
        assert_eq!(kind, Kind::Stdin);
        received.extend(body);
    }
    assert_eq!(received, b"\x03y", "Ctrl-C is the program's, the keys to detach are not");
    assert_eq!(session.child.wait().await.expect("it ends").code(), Some(0));
    assert!(is_cooked(&session.end));
    let sent: Value = serde_json::from_str(&daemon.requests()[0].body).expect("JSON");
    assert_eq!(sent["terminal"], json!({"rows": 30, "columns": 100}));
}

#[tokio::test]
async fn terminal_is_restored_however_a_session_ends() {
    let (upgrade, pipe) = Reply::upgrade();
    let daemon = Daemon::start(vec![upgrade]).await;
    let mut session = raw_session(&daemon, pipe).await;
    let pid = Pid::from_raw(session.child.id().expect("it runs").try_into().expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(session.child.wait().await.expect("it ends").code(), Some(143));
    assert!(is_cooked(&session.end), "by a signal");

    let error = ApiError::new(ErrorCode::Internal, "it is over").into_body("id");
    for (last, code) in
        [(vec![], 125), (frame(Kind::Error, text_of(&error).as_bytes()), 125), (vec![99, 0, 0, 0, 0], 125)]
    {
        let (upgrade, pipe) = Reply::upgrade();
        let daemon = Daemon::start(vec![upgrade]).await;
        let mut session = raw_session(&daemon, pipe).await;
        session.pipe.write_all(&last).await.expect("it reads");
        drop(session.pipe);
        assert_eq!(session.child.wait().await.expect("it ends").code(), Some(code), "{last:?}");
        assert!(is_cooked(&session.end), "{last:?}");
    }
}

fn line(second: u32, text: &str) -> LogEvent {
    LogEvent::Line { at: at(second), stream: LogStream::Stdout, text: format!("{text}\n"), base64: None }
}

#[tokio::test]
async fn followed_log_goes_on_after_a_restart_without_loss_and_doubling() {
    let events = |events: &[LogEvent]| Reply::stream_then_error(events, &unavailable());
    let daemon = Daemon::start(vec![
        events(&[line(1, "a"), line(2, "b"), line(2, "c")]),
        Reply::Hangup,
        Reply::stream(&[line(2, "b"), line(2, "c"), line(2, "d"), line(3, "e")]),
    ])
    .await;
    let output = daemon.run(&["logs", "-f", "--tail", "3", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "a\nb\nc\nd\ne\n"), "{}", output.stderr);
    let paths: Vec<String> = daemon.requests().into_iter().map(|request| request.path).collect();
    assert!(paths[0].contains("tail=3") && !paths[0].contains("since"), "{paths:?}");
    assert!(!paths[2].contains("tail") && paths[2].contains("since=2026-03-01T12%3A00%3A02.500Z"), "{paths:?}");

    let daemon = Daemon::start(vec![events(&[line(1, "a")])]).await;
    let output = daemon.run(&["logs", "-t", "web"]).await;
    assert_eq!((output.code, output.stdout), (3, format!("{} a\n", at(1))), "not followed: the failure is told");
}

fn unavailable() -> vdc_api::ErrorBody {
    ApiError::new(ErrorCode::Unavailable, "meshd is going away").into_body("id")
}

#[tokio::test]
async fn lists_are_shown_as_tables_ids_and_json() {
    let list = WorkloadList { workloads: vec![view("web", Phase::Running), view("job", Phase::Exited)] };
    let reply = || Reply::json(200, &text_of(&list));
    let daemon = Daemon::start(vec![reply(), reply(), reply(), reply()]).await;
    let output = daemon.run(&["ps"]).await;
    assert!(output.stdout.contains("web ") && !output.stdout.contains("job "), "{}", output.stdout);
    let output = daemon.run(&["ps", "-a"]).await;
    assert!(output.stdout.contains("exited (3)"), "{}", output.stdout);
    assert_eq!(daemon.run(&["ps", "-q"]).await.stdout, format!("{ID}\n"));
    let output = daemon.run(&["ps", "-a", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<WorkloadList>(&output.stdout).expect("JSON"), list);

    let shown = Reply::json(200, &text_of(&view("web", Phase::Running)));
    let daemon = Daemon::start(vec![shown, Reply::json(200, &text_of(&view("web", Phase::Running)))]).await;
    let output = daemon.run(&["inspect", "web", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<WorkloadView>(&output.stdout).expect("JSON"), view("web", Phase::Running));
    assert!(daemon.run(&["inspect", "web"]).await.stdout.contains("web.berlin.acme.internal"));
}

#[tokio::test]
async fn several_are_ended_whatever_happens_to_one() {
    let missing = ApiError::new(ErrorCode::NotFound, "no workload is called a").into_body("id");
    let removed = json!({"id": ID, "name": "b"}).to_string();
    let daemon = Daemon::start(vec![Reply::json(404, &text_of(&missing)), Reply::json(200, &removed)]).await;
    let output = daemon.run(&["rm", "-f", "a", "b"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (1, "b\n"));
    assert!(output.stderr.contains("no workload is called a"), "{}", output.stderr);
    let requests = daemon.requests();
    assert_eq!(requests[1].method, "DELETE");
    assert_eq!(requests[1].path, "/v1/vdcs/-/workloads/b?force=true");

    let exited = view("web", Phase::Exited);
    let running = json!({"exit": null}).to_string();
    let waited = json!({"exit": exited.exit}).to_string();
    let daemon = Daemon::start(vec![Reply::json(200, &running), Reply::json(200, &waited)]).await;
    let output = daemon.run(&["wait", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "3\n"), "a long wait is asked again");

    let daemon = Daemon::start(vec![
        Reply::json(200, &text_of(&view("web", Phase::Stopping))),
        Reply::json(200, &waited),
        Reply::json(200, &text_of(&exited)),
    ])
    .await;
    let output = daemon.run(&["stop", "--time", "60", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "web  exited\n"), "{}", output.stderr);
    assert_eq!(daemon.requests()[0].body, json!({"grace_s": 60}).to_string());
}

#[tokio::test]
async fn hostile_stream_of_a_copy_writes_nothing_outside() {
    let scene = tempfile::tempdir().expect("a directory");
    let inside = scene.path().join("in");
    std::fs::create_dir(&inside).expect("makes");
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().expect("gnu").name[..4].copy_from_slice(b"../x");
    header.set_mode(0o644);
    header.set_size(3);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"bad"[..]).expect("appends");
    let stream = builder.into_inner().expect("finishes");

    let (upgrade, pipe) = Reply::upgrade();
    let daemon = Daemon::start(vec![upgrade]).await;
    let target = inside.display().to_string();
    let mut command = daemon.command(&["cp", "web:/x", &target]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut pipe = pipe.pipe().await;
    let frames = [frame(Kind::Stdout, &stream), frame(Kind::Exit, &0_i32.to_be_bytes())].concat();
    // It may be gone before it has read all.
    drop(pipe.write_all(&frames).await);
    let output = child.wait_with_output().await.expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("leads out of the directory"), "{stderr}");
    assert!(!scene.path().join("x").exists());
    assert_eq!(std::fs::read_dir(&inside).expect("reads").count(), 0);
}
