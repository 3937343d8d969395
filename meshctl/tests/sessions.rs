//! Talking with programs in containers: what goes in and comes out, how it ends, and the terminal it happens on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::sync::oneshot;
use vdc_api::frame::Kind;
use vdc_api::{ApiError, ErrorCode, samples};

use crate::fake::{Daemon, Peer, Reply};

fn refusal(code: ErrorCode, message: &str) -> String {
    serde_json::to_string(&ApiError::new(code, message).into_body("id")).expect("plain data")
}

/// A program that says so much on both outputs and ends.
fn ends_with(code: i32) -> Reply {
    Reply::talk(async move |mut peer: Peer| {
        peer.send(Kind::Stdout, b"out\n").await;
        peer.send(Kind::Stderr, b"err\n").await;
        peer.exit(code).await;
    })
}

fn fails_with(code: ErrorCode) -> Reply {
    Reply::talk(async move |mut peer: Peer| peer.send(Kind::Error, refusal(code, "it did not start").as_bytes()).await)
}

#[tokio::test]
async fn exec_ends_as_its_program_and_tells_when_there_was_none() {
    let daemon = Daemon::start(vec![
        ends_with(0),
        ends_with(7),
        ends_with(143),
        fails_with(ErrorCode::ProgramNotFound),
        fails_with(ErrorCode::ProgramNotExecutable),
        fails_with(ErrorCode::UnknownUser),
        Reply::json(409, &refusal(ErrorCode::NotRunning, "web does not run")),
        // It breaks off without a word.
        Reply::talk(async |peer: Peer| drop(peer)),
    ])
    .await;
    for (code, text) in [
        (0, "err\n"),
        (7, "err\n"),
        (143, "err\n"),
        (127, "error: it did not start\n"),
        (126, "error: it did not start\n"),
        (125, "error: it did not start\n"),
        (125, "error: web does not run\n"),
    ] {
        let output = daemon.run(&["exec", "-u", "root", "-e", "A=b", "web", "ls", "-l"]).await;
        assert_eq!((output.code, output.stderr.as_str()), (code, text));
        assert_eq!(output.stdout, if text == "err\n" { "out\n" } else { "" }, "{code}");
    }
    let output = daemon.run(&["exec", "web", "ls"]).await;
    assert_eq!(output.code, 125);
    assert!(output.stderr.contains("broke off") && output.stderr.contains("hint: "), "{}", output.stderr);
    let request = &daemon.requests()[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/vdcs/-/workloads/web/exec"));
    let sent: Value = serde_json::from_str(&request.body).expect("JSON");
    let expected = json!({"args": ["ls", "-l"], "env": ["A=b"], "workdir": null, "user": "root", "terminal": null, "stdin": false});
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn input_goes_to_its_end_and_the_output_comes_back() {
    let cat = || {
        Reply::talk(async |mut peer: Peer| {
            let input = peer.input().await;
            for piece in input.chunks(vdc_api::frame::BODY_BYTES_MAX) {
                peer.send(Kind::Stdout, piece).await;
            }
            peer.exit(0).await;
        })
    };
    let daemon = Daemon::start(vec![cat(), cat()]).await;
    // More than a pipe and a frame hold, with the keys that leave a terminal in it.
    let text = format!("{}\u{10}\u{11}end", "0123456789abcdef".repeat(20_000));
    let output = daemon.run_with_stdin(&["exec", "-i", "web", "cat"], &text).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert!(output.stdout == text, "{} of {} bytes", output.stdout.len(), text.len());
    let output = daemon.run_with_stdin(&["exec", "-i", "web", "cat"], "").await;
    assert_eq!((output.code, output.stdout.as_str()), (0, ""));
}

#[tokio::test]
async fn run_attaches_to_what_it_made_and_ends_as_it_did() {
    let created = &samples::run_events()[..3];
    let late = |code| {
        let error = ApiError::new(code, "it did not start").into_body("id");
        [Reply::stream_then_error(created, &error), Reply::talk(async |peer: Peer| drop(peer))]
    };
    let [refused, closed] = late(ErrorCode::ProgramNotFound);
    let daemon = Daemon::start(vec![
        Reply::endless_stream(created),
        Reply::talk(async |mut peer: Peer| {
            let input = peer.input().await;
            peer.send(Kind::Stdout, &input).await;
            peer.exit(7).await;
        }),
        refused,
        closed,
    ])
    .await;
    let output = daemon.run_with_stdin(&["run", "-i", "--rm", "debian:12", "cat"], "hello").await;
    assert_eq!((output.code, output.stdout.as_str()), (7, "hello"), "{}", output.stderr);
    let requests = daemon.requests();
    let sent: vdc_api::WorkloadRun = serde_json::from_str(&requests[0].body).expect("a request");
    assert!(sent.attach && sent.stdin && sent.remove && !sent.tty);
    let attach = format!("/v1/vdcs/-/workloads/{}/attach", samples::workload().id);
    assert_eq!((requests[1].method.as_str(), &requests[1].path), ("POST", &attach), "by id: a name may be given anew");
    let output = daemon.run(&["run", "debian:12", "nothing"]).await;
    assert_eq!(output.code, 127, "{}", output.stderr);
    assert!(output.stderr.ends_with("error: it did not start\n"), "{}", output.stderr);
}

#[tokio::test]
async fn attach_follows_what_the_container_was_made_with() {
    let daemon = Daemon::start(vec![
        Reply::json(200, &serde_json::to_string(&samples::workload()).expect("plain data")),
        ends_with(3),
    ])
    .await;
    let output = daemon.run(&["attach", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (3, "out\n"));
    assert_eq!(daemon.requests()[1].body, r#"{"terminal":null}"#);
}

#[tokio::test]
async fn signals_go_to_a_program_without_a_terminal() {
    let daemon = Daemon::start(vec![Reply::talk(async |mut peer: Peer| {
        peer.send(Kind::Stdout, b"ready").await;
        let signal = peer.next().await.expect("a frame");
        peer.exit(if signal == (Kind::Signal, vec![15]) { 143 } else { 1 }).await;
    })])
    .await;
    let mut child = daemon.command(&["exec", "web", "sleep"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut ready = [0; 5];
    child.stdout.as_mut().expect("piped").read_exact(&mut ready).await.expect("it is told");
    kill(&child, "-TERM").await;
    assert_eq!(child.wait().await.expect("it ends").code(), Some(143));
}

pub(crate) async fn kill(child: &Child, signal: &str) {
    let pid = child.id().expect("it runs").to_string();
    let status = tokio::process::Command::new("kill").args([signal, &pid]).status().await.expect("kill(1) is there");
    assert!(status.success());
}

// ---- terminals

/// A terminal of its own, with meshctl on it.
pub(crate) struct OnTerminal {
    pub(crate) child: Child,
    master: File,
    /// Kept open, so that it can be looked at afterwards.
    slave: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    pub(crate) fn start(daemon: &Daemon, words: &[&str]) -> Self {
        let size = nix::pty::Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a pseudoterminal");
        let before = tcgetattr(&pty.slave).expect("a terminal");
        assert!(!is_raw(&before), "terminals begin with lines and echo");
        let stdio = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let mut command = daemon.command(&[&["--color", "never"], words].concat());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("the binary runs");
        Self { child, master: File::from(pty.master), slave: pty.slave, before }
    }

    /// Reads what is shown up to a text.
    pub(crate) async fn shows(&self, text: &'static str) -> String {
        let mut master = self.master.try_clone().expect("a descriptor");
        let read = move || {
            let (mut shown, mut byte) = (Vec::new(), [0]);
            while !shown.ends_with(text.as_bytes()) {
                master.read_exact(&mut byte).expect("the terminal is open");
                shown.push(byte[0]);
            }
            String::from_utf8(shown).expect("text")
        };
        tokio::task::spawn_blocking(read).await.expect("it did not panic")
    }

    pub(crate) fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("the terminal is open");
    }

    fn is_raw(&self) -> bool {
        is_raw(&tcgetattr(&self.slave).expect("a terminal"))
    }

    /// The exit code; the terminal must be as it was before.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let status = self.child.wait().await.expect("it ends");
        assert!(tcgetattr(&self.slave).expect("a terminal") == self.before, "the terminal was given back as it was");
        status.code()
    }
}

fn is_raw(termios: &Termios) -> bool {
    !termios.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

/// A program that says when the terminal may be looked at, and goes on when told.
fn ready_then<F>(then: impl FnOnce(Peer) -> F + Send + 'static) -> (Reply, oneshot::Sender<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (go, gone) = oneshot::channel();
    let reply = Reply::talk(async move |mut peer: Peer| {
        peer.send(Kind::Stdout, b"ready").await;
        gone.await.expect("the test goes on");
        then(peer).await;
    });
    (reply, go)
}

#[tokio::test]
async fn terminal_is_raw_while_it_lasts_and_its_size_is_told() {
    let (reply, go) = ready_then(async |mut peer: Peer| {
        // Ctrl-C is the program's.
        let typed = peer.next().await.expect("a frame");
        assert_eq!(typed, (Kind::Stdin, b"\x03\r".to_vec()));
        peer.exit(5).await;
    });
    let daemon = Daemon::start(vec![reply]).await;
    let mut terminal = OnTerminal::start(&daemon, &["exec", "-it", "web", "sh"]);
    terminal.shows("ready").await;
    assert!(terminal.is_raw());
    terminal.types(b"\x03\r");
    go.send(()).expect("it waits");
    assert_eq!(terminal.ended().await, Some(5));
    let sent: Value = serde_json::from_str(&daemon.requests()[0].body).expect("JSON");
    assert_eq!(sent["terminal"], json!({"rows": 33, "columns": 99}));
}

#[tokio::test]
async fn terminal_is_given_back_when_the_daemon_breaks_off() {
    let (reply, go) = ready_then(async |peer: Peer| drop(peer));
    let daemon = Daemon::start(vec![reply]).await;
    let mut terminal = OnTerminal::start(&daemon, &["exec", "-it", "web", "sh"]);
    terminal.shows("ready").await;
    assert!(terminal.is_raw());
    go.send(()).expect("it waits");
    let shown = terminal.shows("hint: ").await;
    assert!(shown.contains("error: the connection to the program broke off\r\n"), "lines begin on the left: {shown:?}");
    assert_eq!(terminal.ended().await, Some(125));
}

#[tokio::test]
async fn terminal_is_given_back_when_meshctl_is_told_to_end() {
    let (reply, _go) = ready_then(async |mut peer: Peer| drop(peer.next().await));
    let daemon = Daemon::start(vec![reply]).await;
    let mut terminal = OnTerminal::start(&daemon, &["exec", "-it", "web", "sh"]);
    terminal.shows("ready").await;
    assert!(terminal.is_raw());
    kill(&terminal.child, "-TERM").await;
    assert_eq!(terminal.ended().await, Some(143));
}

#[tokio::test]
async fn keys_to_detach_leave_the_program_running() {
    let (told, heard) = oneshot::channel();
    let (reply, go) = ready_then(async move |mut peer: Peer| {
        let mut typed = Vec::new();
        while let Some((kind, bytes)) = peer.next().await {
            assert_eq!(kind, Kind::Stdin, "no end of input, no signal");
            typed.extend(bytes);
        }
        told.send(typed).expect("the test waits");
    });
    let daemon = Daemon::start(vec![reply]).await;
    let mut terminal = OnTerminal::start(&daemon, &["exec", "-it", "web", "sh"]);
    terminal.shows("ready").await;
    go.send(()).expect("it waits");
    terminal.types(b"ab\x10c\x10\x11");
    assert_eq!(terminal.ended().await, Some(0));
    assert_eq!(heard.await.expect("told"), b"ab\x10c");
}

// ---- copies

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o640);
    header.set_size(u64::try_from(content.len()).expect("short"));
    builder.append_data(&mut header, name, content).expect("appends");
    builder.into_inner().expect("finishes")
}

/// Names and contents of an archive's files.
fn files(archive: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive");
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        (name, std::io::read_to_string(&mut entry).expect("text"))
    };
    entries.map(read).collect()
}

fn gives(bytes: Vec<u8>, end: Option<&'static str>) -> Reply {
    Reply::talk(async move |mut peer: Peer| {
        // In pieces that no frame or header respects.
        for piece in bytes.chunks(700) {
            peer.send(Kind::Stdout, piece).await;
        }
        match end {
            None => peer.exit(0).await,
            Some(error) => peer.send(Kind::Error, error.as_bytes()).await,
        }
    })
}

fn takes(into: oneshot::Sender<Vec<u8>>) -> Reply {
    Reply::talk(async move |mut peer: Peer| {
        into.send(peer.input().await).expect("the test waits");
        peer.exit(0).await;
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[tokio::test]
async fn files_come_out() {
    let content = "welcome\n".repeat(2_000);
    let given = archive("motd", content.as_bytes());
    let daemon = Daemon::start(vec![
        gives(given.clone(), None),
        gives(given.clone(), None),
        gives(given.clone(), None),
        gives(given[..900].to_vec(), Some("the file went away")),
        gives(given[..900].to_vec(), None),
        gives(vec![], Some("there is no /etc/motd")),
    ])
    .await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (place, other) = (directory.path().join("motd"), directory.path().join("other"));
    assert_eq!(daemon.run(&["cp", "web:/etc/motd", text(directory.path())]).await.code, 0);
    assert_eq!(std::fs::read_to_string(&place).expect("it is there"), content);
    assert_eq!(place.metadata().expect("it is there").permissions().mode() & 0o777, 0o640);
    assert_eq!(daemon.run(&["cp", "web:etc/motd", text(&other)]).await.code, 0);
    assert_eq!(std::fs::read_to_string(&other).expect("under the other name"), content);
    let output = daemon.command(&["cp", "web:/etc/motd", "-"]).output().await.expect("it ends");
    assert!(output.status.success() && output.stdout == given, "the stream itself");
    let request = &daemon.requests()[1];
    assert_eq!(request.path, "/v1/vdcs/-/workloads/web/copy");
    assert_eq!(request.body, r#"{"direction":"out","path":"/etc/motd"}"#);
    for error in ["the file went away", "cannot write the files", "there is no /etc/motd"] {
        let output = daemon.run(&["cp", "web:/etc/motd", text(directory.path())]).await;
        assert_eq!(output.code, 1, "{error}: {}", output.stderr);
        assert!(output.stderr.contains(error), "{error}: {}", output.stderr);
    }
}

#[tokio::test]
async fn hostile_stream_of_a_copy_writes_nothing_outside() {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().expect("gnu").name[..4].copy_from_slice(b"../x");
    header.set_mode(0o644);
    header.set_size(3);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"bad"[..]).expect("appends");
    let daemon = Daemon::start(vec![gives(builder.into_inner().expect("finishes"), None)]).await;
    let scene = tempfile::tempdir().expect("a temporary directory");
    let inside = scene.path().join("in");
    std::fs::create_dir(&inside).expect("makes");
    let output = daemon.run(&["cp", "web:/x", text(&inside)]).await;
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("leads out of the directory"), "{}", output.stderr);
    assert!(!scene.path().join("x").exists());
}

#[tokio::test]
async fn files_go_in() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("page.html");
    std::fs::write(&file, "hello").expect("writable");
    let site = directory.path().join("site");
    std::fs::create_dir(&site).expect("writable");
    std::fs::write(site.join("a"), "1").expect("writable");
    let (first, second, third, fourth) =
        (oneshot::channel(), oneshot::channel(), oneshot::channel(), oneshot::channel());
    let daemon = Daemon::start(vec![
        takes(first.0),
        takes(second.0),
        // What is no directory there may be the name that the file is to have.
        Reply::talk(async |mut peer: Peer| peer.send(Kind::Error, b"/srv/index.html is no directory").await),
        takes(third.0),
        takes(fourth.0),
    ])
    .await;
    let run = async |words: &[&str]| {
        let output = daemon.run(words).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{words:?}");
    };
    run(&["cp", text(&file), "web:/srv"]).await;
    assert_eq!(files(&first.1.await.expect("taken")), [("page.html".to_owned(), "hello".to_owned())]);
    run(&["cp", text(&site), "web:/srv"]).await;
    let taken = files(&second.1.await.expect("taken"));
    assert!(taken.contains(&("site/a".to_owned(), "1".to_owned())), "{taken:?}");
    run(&["cp", text(&file), "web:/srv/index.html"]).await;
    assert_eq!(files(&third.1.await.expect("taken")), [("index.html".to_owned(), "hello".to_owned())]);
    let output = daemon.run_with_stdin(&["cp", "-", "web:/srv"], "a tar stream as it is").await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(fourth.1.await.expect("taken"), b"a tar stream as it is");
    let bodies: Vec<String> = daemon.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies[0], r#"{"direction":"in","path":"/srv"}"#);
    assert_eq!(bodies[2..4], [r#"{"direction":"in","path":"/srv/index.html"}"#, r#"{"direction":"in","path":"/srv"}"#]);
    let output = daemon.run(&["cp", "/nowhere/at/all", "web:/srv"]).await;
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert_eq!(daemon.run(&["cp", "a", "b"]).await.code, 2, "no end is a workload's");
}
