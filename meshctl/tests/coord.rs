//! Coordination groups: what the verbs ask, print and leave behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::sys::stat::Mode;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use vdc_api::{ApiError, CoordStatus, ErrorCode, RestoreView, samples};

use crate::fake::{Daemon, Recorded, Reply};
use crate::sessions::{OnTerminal, kill};

const COORD: &str = "/v1/vdcs/-/coord";

fn ok(value: &impl Serialize) -> Reply {
    Reply::json(200, &serde_json::to_string(value).expect("samples are plain data"))
}

fn refused(code: ErrorCode, message: &str) -> Reply {
    let body = ApiError::new(code, message).into_body("id");
    Reply::json(code.status(), &serde_json::to_string(&body).expect("plain data"))
}

fn asked(requests: &[Recorded]) -> Vec<String> {
    requests.iter().map(|request| format!("{} {}", request.method, request.path)).collect()
}

fn body(request: &Recorded) -> Value {
    serde_json::from_str(&request.body).expect("JSON")
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// The status without the VDC's group, of which a voter is down.
fn healthy() -> CoordStatus {
    let mut status = samples::coord_status();
    status.groups.remove(0);
    status
}

/// A backup of berlin's group, and a directory with it in `berlin.coord`.
fn backup() -> (String, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text = samples::backup_header().to_line().expect("short") + &"rows of the group\n".repeat(20_000);
    fs::write(directory.path().join("berlin.coord"), &text).expect("writable");
    (text, directory)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

// ---- status and members

#[tokio::test]
async fn status_says_what_may_fail_and_warns_beside_it() {
    let status = samples::coord_status();
    let daemon = Daemon::start(vec![ok(&status), ok(&status), ok(&status), ok(&status), ok(&healthy())]).await;
    let output = daemon.run(&["coord", "status"]).await;
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("site berlin: serving, any one of 3 may fail now\n"), "{}", output.stdout);
    assert!(output.stderr.starts_with("warning: the VDC: no redundancy: lisbon1 does not answer"), "{}", output.stderr);
    let checked = daemon.run(&["coord", "status", "--check"]).await;
    assert_eq!((checked.code, checked.stdout, checked.stderr), (1, output.stdout, output.stderr));

    let output = daemon.run(&["coord", "status", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<CoordStatus>(&output.stdout).expect("JSON"), status);
    assert!(output.stderr.starts_with("warning: "), "{}", output.stderr);
    let output = daemon.run(&words("coord status --home site:berlin --check -o json")).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let shown: CoordStatus = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(shown.groups, [status.groups[1].clone()]);
    // Of a site that is cut off nothing is known, and one box has no redundancy to lose.
    let output = daemon.run(&["coord", "status", "--check"]).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert_eq!(asked(&daemon.requests()), ["GET /v1/vdcs/-/coord"; 5]);
}

#[tokio::test]
async fn homes_that_make_no_sense_are_told() {
    let daemon = Daemon::start(vec![ok(&healthy()), ok(&healthy()), refused(ErrorCode::NoQuorum, "no quorum")]).await;
    for line in ["coord status --home berlin", "coord backup --home site: x", "coord restore", "coord"] {
        let output = daemon.run(&words(line)).await;
        assert_eq!(output.code, 2, "{line}: {}", output.stderr);
    }
    let output = daemon.run(&["coord", "members", "--home", "site:rome"]).await;
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("there is no coordination group of site rome\nhint: "), "{}", output.stderr);
    let output = daemon.run(&["coord", "backup", "x"]).await;
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("hint: --home site:berlin, or --home site:lisbon"), "{}", output.stderr);
    assert_eq!(daemon.run(&["coord", "status"]).await.code, 1);
}

#[tokio::test]
async fn members_are_listed_by_group() {
    let daemon = Daemon::start(vec![ok(&samples::coord_status()), ok(&samples::coord_status())]).await;
    let output = daemon.run(&["coord", "members"]).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert_eq!(output.stdout.lines().count(), 1 + 4 + 3 + 1, "{}", output.stdout);
    let output = daemon.run(&words("coord members --home vdc -o json")).await;
    let shown: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(shown[0]["home"], "vdc");
    assert_eq!(shown[0]["members"][1]["lag"], 512);
}

// ---- recover

#[tokio::test]
async fn recover_says_what_is_lost_before_it_is_done() {
    let (cost, done) = (samples::recover_view(), samples::recovered_view());
    let daemon = Daemon::start(vec![ok(&cost), ok(&done), ok(&cost), ok(&done), ok(&cost)]).await;
    let output = daemon.run(&words("coord recover --home site:berlin --yes")).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("  - 2 changes after it were acknowledged and are lost\n"), "{}", output.stderr);
    assert!(output.stdout.starts_with("site berlin was founded anew\n"), "{}", output.stdout);
    let output = daemon.run(&words("coord recover --home site:berlin --from berlin2 -y -o json")).await;
    assert_eq!(serde_json::from_str::<Value>(&output.stdout).expect("JSON"), json!(done));
    // Nobody can be asked.
    let output = daemon.run(&words("coord recover --home site:berlin")).await;
    assert_eq!((output.code, output.stdout.as_str()), (2, ""));
    assert!(output.stderr.contains("acknowledged and are lost\n"), "{}", output.stderr);
    assert!(output.stderr.contains("nobody to ask\nhint: "), "{}", output.stderr);

    let requests = daemon.requests();
    assert_eq!(asked(&requests), ["POST /v1/vdcs/-/coord/recover"; 5]);
    let sent = |from: Option<&str>, confirm| json!({"home": {"site": "berlin"}, "from": from, "confirm": confirm});
    let expected = [
        sent(None, false),
        sent(Some("berlin2.berlin"), true),
        sent(Some("berlin2"), false),
        sent(Some("berlin2.berlin"), true),
        sent(None, false),
    ];
    assert_eq!(requests.iter().map(body).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn recover_asks_on_a_terminal() {
    for (typed, code, last) in [(&b"no\n"[..], 1, "error: nothing was done"), (b"yes\n", 0, "founded anew\r\n")] {
        let daemon = Daemon::start(vec![ok(&samples::recover_view()), ok(&samples::recovered_view())]).await;
        let mut terminal = OnTerminal::start(&daemon, &words("coord recover --home site:berlin"));
        let shown = terminal.shows("Type yes to go on: ").await;
        assert!(shown.contains("is lost"), "{shown}");
        terminal.types(typed);
        terminal.shows(last).await;
        assert_eq!(terminal.ended().await, Some(code));
        assert_eq!(daemon.requests().len(), 2 - usize::try_from(code).expect("small"));
    }
}

#[tokio::test]
async fn refusals_of_groups_have_stable_codes() {
    for (code, exit) in [
        (ErrorCode::UnknownGroup, 1),
        (ErrorCode::NoQuorum, 1),
        (ErrorCode::WrongHome, 1),
        (ErrorCode::Conflict, 1),
        (ErrorCode::Refused, 4),
    ] {
        let daemon = Daemon::start(vec![refused(code, "not now")]).await;
        let output = daemon.run(&words("coord recover --home vdc --yes")).await;
        assert_eq!((output.code, output.stderr.as_str()), (exit, "error: not now\n"), "{code:?}");
    }
}

// ---- backup

#[tokio::test]
async fn backup_takes_its_name_when_it_is_whole() {
    let (text, directory) = backup();
    let only_berlin = CoordStatus { groups: vec![samples::coord_status().groups.swap_remove(1)], ..healthy() };
    let whole = || Reply::bytes(text.clone());
    let daemon = Daemon::start(vec![ok(&only_berlin), whole(), whole(), whole()]).await;
    let file = directory.path().join("new.coord");
    let path = file.to_str().expect("text");
    // There is one group only.
    let output = daemon.run(&["coord", "backup", path]).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stdout, format!("site berlin: 38 keys at revision 498 written to {path}, 360.3 kB\n"));
    assert_eq!(fs::read_to_string(&file).expect("it is there"), text);
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);

    fs::write(&file, "an older one").expect("writable");
    let output = daemon.run(&["coord", "backup", "--home", "site:berlin", "-o", "json", path]).await;
    let shown: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!((&shown["file"], &shown["revision"]), (&json!(path), &json!(498)));
    assert_eq!(shown["size_bytes"], text.len());
    assert_eq!(fs::read_to_string(&file).expect("it is there"), text);
    assert_eq!(names(directory.path()), ["berlin.coord", "new.coord"]);

    let output = daemon.run(&["coord", "backup", "--home", "site:berlin", "-"]).await;
    assert_eq!(output.stdout, text);
    assert!(output.stderr.ends_with("written to stdout, 360.3 kB\n"), "{}", output.stderr);
    let requests = daemon.requests();
    assert_eq!(asked(&requests[..2]), [format!("GET {COORD}"), format!("POST {COORD}/backup")]);
    assert!(requests[1..].iter().all(|request| body(request) == json!({"home": {"site": "berlin"}})));
}

#[tokio::test]
async fn backup_that_fails_leaves_nothing_and_keeps_the_older_one() {
    let (text, directory) = backup();
    let file = directory.path().join("berlin.coord");
    let path = file.to_str().expect("text");
    let cut = text[..text.len() / 2].to_owned();
    let foreign = text.replacen("berlin", "munich", 1);
    let words = ["coord", "backup", "--home", "site:berlin", path];
    for (reply, message) in [
        (Reply::Broken(cut), "error: meshd broke off half-way\ncaused by: "),
        (refused(ErrorCode::NoQuorum, "too few voters answer"), "error: too few voters answer\n"),
        (Reply::bytes("{}".into()), "error: what meshd sent is no backup of this group\n"),
        (Reply::bytes(String::new()), "error: what meshd sent is no backup of this group\n"),
        (Reply::bytes(foreign), "error: what meshd sent is no backup of this group\n"),
        (Reply::Hangup, "error: the connection to meshd broke off\n"),
    ] {
        let daemon = Daemon::start(vec![reply]).await;
        let output = daemon.run(&words).await;
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains(message), "{message}: {}", output.stderr);
        assert_eq!(output.stdout, "");
        assert_eq!(names(directory.path()), ["berlin.coord"], "{message}");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), text);
    }
    let daemon = Daemon::start(vec![]).await;
    let output = daemon.run(&["coord", "backup", "--home", "vdc", directory.path().to_str().expect("text")]).await;
    assert_eq!(output.code, 2, "{}", output.stderr);
    let output = daemon.run(&["coord", "backup", "--home", "vdc", &format!("{path}/x")]).await;
    assert!(output.stderr.starts_with("error: cannot write "), "{}", output.stderr);
}

#[tokio::test]
async fn interrupted_backup_leaves_nothing() {
    let (text, directory) = backup();
    let daemon = Daemon::start(vec![Reply::Endless(text[..text.len() / 2].to_owned())]).await;
    let path = directory.path().join("new.coord");
    let mut child =
        OnTerminal::start(&daemon, &["coord", "backup", "--home", "site:berlin", path.to_str().expect("text")]);
    child.shows("100 %").await;
    assert!(names(directory.path()).iter().any(|name| name.ends_with(".partial")));
    kill(&child.child, "-INT").await;
    child.shows("error: interrupted; no backup was written").await;
    assert_eq!(child.ended().await, Some(130));
    assert_eq!(names(directory.path()), ["berlin.coord"]);
}

// ---- restore

#[tokio::test]
async fn restore_sends_the_backup_as_it_is() {
    let (text, directory) = backup();
    let path = directory.path().join("berlin.coord");
    let path = path.to_str().expect("text");
    let status = || ok(&samples::coord_status());
    let done = || ok(&samples::restore_view());
    let daemon = Daemon::start(vec![status(), done(), status(), done(), status(), done()]).await;
    let output = daemon.run(&["coord", "restore", path, "--yes"]).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stdout, "site berlin: 38 keys restored, now at revision 513\n");
    assert!(
        output.stderr.contains("at revision 512: 14 changes after the backup would be lost\n"),
        "{}",
        output.stderr
    );
    let output = daemon.run(&words(&format!("coord restore --home site:berlin --yes --force -o json {path}"))).await;
    assert_eq!(serde_json::from_str::<RestoreView>(&output.stdout).expect("JSON"), samples::restore_view());
    let output = daemon.run_with_stdin(&["coord", "restore", "-y", "-"], &text).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    let requests = daemon.requests();
    let restore = |force| format!("POST {COORD}/restore?force={force}&home=site%3Aberlin");
    let read = format!("GET {COORD}");
    let expected = [read.clone(), restore(false), read.clone(), restore(true), read, restore(false)];
    assert_eq!(asked(&requests), expected);
    for request in requests.iter().filter(|request| request.method == "POST") {
        assert!(request.body == text, "every byte, and no other");
    }
}

#[tokio::test]
async fn restore_that_is_refused_says_why() {
    let (_, directory) = backup();
    let path = directory.path().join("berlin.coord");
    let path = path.to_str().expect("text");
    let why = RestoreView { refused: Some("14 changes are newer".into()), ..samples::restore_view() };
    for (reply, code, message) in [
        (ok(&why), 4, "error: nothing was restored: 14 changes are newer\nhint: with --force"),
        (refused(ErrorCode::BackupForeign, "of another VDC"), 4, "error: of another VDC\n"),
        (refused(ErrorCode::BackupInvalid, "cut short"), 1, "error: cut short\n"),
        (refused(ErrorCode::TooLarge, "too large"), 1, "error: too large\n"),
    ] {
        let daemon = Daemon::start(vec![ok(&samples::coord_status()), reply]).await;
        let output = daemon.run(&["coord", "restore", path, "--yes"]).await;
        assert_eq!((output.code, output.stdout.as_str()), (code, ""), "{}", output.stderr);
        assert!(output.stderr.contains(message), "{}", output.stderr);
    }
}

#[tokio::test]
async fn what_is_no_backup_is_not_sent() {
    let (text, directory) = backup();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("writable");
        path.to_str().expect("text").to_owned()
    };
    let daemon = Daemon::start(vec![ok(&samples::coord_status())]).await;
    for (path, home, code, message) in [
        (file("a", b"\x00\x01"), None, 1, "is no backup of a coordination group\ncaused by: it does not begin"),
        (file("b", b""), None, 1, "caused by: it ends within its first line"),
        (file("c", &text.as_bytes()[..40]), None, 1, "caused by: it ends within its first line"),
        (file("d", b"meshd-coord-backup/1 {]\n"), None, 1, "caused by: its first line is damaged"),
        (file("e", text.as_bytes()), Some("vdc"), 2, "this is a backup of site berlin, not of the VDC"),
        ("/nonexistent/f".into(), None, 1, "error: cannot read /nonexistent/f"),
    ] {
        let mut words = vec!["coord", "restore", "--yes", path.as_str()];
        words.extend(home.iter().flat_map(|home| ["--home", home]));
        let output = daemon.run(&words).await;
        assert_eq!(output.code, code, "{}", output.stderr);
        assert!(output.stderr.contains(message), "{}", output.stderr);
    }
    assert!(daemon.requests().is_empty());
    let output = daemon.run(&["coord", "restore", &file("g", text.as_bytes())]).await;
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("14 changes") && output.stderr.contains("nobody to ask"), "{}", output.stderr);
    assert_eq!(asked(&daemon.requests()), [format!("GET {COORD}")]);
}

#[tokio::test]
async fn yes_on_the_terminal_means_force() {
    let (_, directory) = backup();
    let path = directory.path().join("berlin.coord");
    let daemon = Daemon::start(vec![ok(&samples::coord_status()), ok(&samples::restore_view())]).await;
    let mut terminal = OnTerminal::start(&daemon, &["coord", "restore", path.to_str().expect("text")]);
    let shown = terminal.shows("Type yes to go on: ").await;
    assert!(shown.contains("14 changes after the backup would be lost"), "{shown}");
    terminal.types(b"yes\n");
    terminal.shows("now at revision 513\r\n").await;
    assert_eq!(terminal.ended().await, Some(0));
    assert!(daemon.requests()[1].path.contains("force=true"), "{:?}", daemon.requests());
}

#[tokio::test]
async fn restore_is_given_up_while_it_is_sent_and_waited_for_afterwards() {
    let (text, directory) = backup();
    let status = || ok(&samples::coord_status());
    // A pipe whose writer stays has no end.
    let path = directory.path().join("pipe");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
    let daemon = Daemon::start(vec![status(), ok(&samples::restore_view())]).await;
    let mut terminal = OnTerminal::start(&daemon, &["coord", "restore", "--yes", path.to_str().expect("text")]);
    let to = path.clone();
    let begin = samples::backup_header().to_line().expect("short");
    let open = tokio::task::spawn_blocking(move || {
        let mut pipe = fs::OpenOptions::new().write(true).open(to).expect("meshctl reads it");
        std::io::Write::write_all(&mut pipe, begin.as_bytes()).expect("there is room");
        pipe
    });
    let pipe = open.await.expect("it did not panic");
    terminal.shows("of about").await;
    kill(&terminal.child, "-INT").await;
    terminal.shows("error: interrupted; nothing was restored").await;
    assert_eq!(terminal.ended().await, Some(130));
    drop(pipe);

    let (held, release) = Reply::held(&serde_json::to_string(&samples::restore_view()).expect("plain"));
    let daemon = Daemon::start(vec![status(), held]).await;
    let path = directory.path().join("berlin.coord");
    let mut command = daemon.command(&["coord", "restore", "--yes", path.to_str().expect("text")]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    daemon.first_request().await;
    daemon.first_request().await;
    assert!(daemon.requests()[1].body == text);
    kill(&child, "-INT").await;
    let mut errors = child.stderr.take().expect("piped");
    let (mut shown, mut byte) = (Vec::new(), [0]);
    while !shown.ends_with(b"stop waiting\n") {
        errors.read_exact(&mut byte).await.expect("it goes on");
        shown.push(byte[0]);
    }
    release.send(()).expect("it waits");
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"site berlin: 38 keys restored, now at revision 513\n");
}
