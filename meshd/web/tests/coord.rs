//! Coordination groups: bytes both ways, and what comes of connections that break off.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vdc_api::{CoordStatus, ErrorCode, RecoverView, RestoreView, samples};

use crate::fake::{Daemon, ROWS};

const BERLIN: &str = r#"{"home":{"site":"berlin"}}"#;
const RESTORE: &str = "/v1/vdcs/acme/coord/restore?home=site:berlin";

fn header() -> String {
    samples::backup_header().to_line().expect("short")
}

#[tokio::test]
async fn status_and_recovery_are_json_like_any_other() {
    let daemon = Daemon::start().await;
    let answer = daemon.client().await.send("GET", "/v1/vdcs/acme/coord", "").await;
    assert_eq!(answer.json::<CoordStatus>(), samples::coord_status());
    let path = "/v1/vdcs/acme/coord/recover";
    let answer = daemon.client().await.send("POST", path, BERLIN).await;
    assert_eq!(answer.json::<RecoverView>(), samples::recover_view());
    let confirmed = r#"{"home":"vdc","from":"berlin2","confirm":true}"#;
    let answer = daemon.client().await.send("POST", path, confirmed).await;
    assert_eq!(answer.json::<RecoverView>(), samples::recovered_view());
    let call = daemon.calls().pop().expect("noted");
    assert_eq!(call.arguments, r#"acme CoordRecover { home: Vdc, from: Some("berlin2"), confirm: true }"#);
    assert!(call.call.is_some(), "it is a change");
    let answer = daemon.client().await.send("POST", path, r#"{"home":"berlin"}"#).await;
    assert_eq!(answer.error(400, ErrorCode::BadRequest).field.as_deref(), Some("home"));
}

#[tokio::test]
async fn backup_is_its_first_line_and_the_rows() {
    let daemon = Daemon::start().await;
    let (bytes, whole) = daemon.client().await.download("/v1/vdcs/acme/coord/backup", BERLIN).await;
    assert!(whole);
    assert_eq!(String::from_utf8(bytes).expect("text"), header() + &ROWS.concat());
    let nowhere = r#"{"home":{"site":"nowhere"}}"#;
    let answer = daemon.client().await.send("POST", "/v1/vdcs/acme/coord/backup", nowhere).await;
    answer.error(404, ErrorCode::UnknownGroup);
}

#[tokio::test]
async fn backup_that_fails_on_the_way_has_no_good_end() {
    let daemon = Daemon::start().await;
    for vdc in ["broken", "panic"] {
        let path = format!("/v1/vdcs/{vdc}/coord/backup");
        let (bytes, whole) = daemon.client().await.download(&path, BERLIN).await;
        assert!(!whole, "{vdc}");
        assert!((header() + &ROWS.concat()).as_bytes().starts_with(&bytes), "{vdc}");
    }
}

#[tokio::test]
async fn backup_ends_with_its_client_and_with_the_daemon() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    tokio::select! {
        _ = client.download("/v1/vdcs/slow/coord/backup", BERLIN) => panic!("it has no end"),
        () = daemon.gate.entered() => {}
    }
    daemon.gate.dropped().await;
    let client = daemon.client().await;
    let stop = async {
        daemon.gate.entered().await;
        daemon.shutdown.cancel();
    };
    let ((_, whole), ()) = tokio::join!(client.download("/v1/vdcs/slow/coord/backup", BERLIN), stop);
    assert!(!whole);
    daemon.gate.dropped().await;
    daemon.stopped().await;
}

#[tokio::test]
async fn restore_takes_more_than_any_buffer_holds() {
    let daemon = Daemon::start().await;
    let rows = vec![7_u8; 3 << 20];
    let body = [header().as_bytes(), &rows].concat();
    let answer = daemon.client().await.upload(&format!("{RESTORE}&force=true"), body).await;
    assert_eq!(answer.json::<RestoreView>(), RestoreView { revision: 3 << 20, ..samples::restore_view() });
    let call = daemon.calls().pop().expect("noted");
    assert_eq!(call.arguments, r#"acme RestoreQuery { home: Site("berlin"), force: true }"#);
}

/// The client has sent next to nothing of what it wants to send when it is refused, and hears why all the same.
#[tokio::test]
async fn refused_restore_is_heard_by_whoever_still_sends() {
    let daemon = Daemon::start_with(|config| config.limits.upload_bytes_max = 4 << 20).await;
    let body = [header().as_bytes(), &vec![7; 3 << 20]].concat();
    let send = async |path: &str, body: Vec<u8>| daemon.client().await.upload(path, body).await;
    let foreign = send("/v1/vdcs/foreign/coord/restore?home=vdc", body.clone()).await;
    foreign.error(409, ErrorCode::BackupForeign);
    let no_backup = send(RESTORE, vec![0; 3 << 20]).await.error(400, ErrorCode::BackupInvalid);
    assert!(no_backup.hint.expect("what to do").contains("coord backup"));
    let short = send(RESTORE, header().as_bytes()[..30].to_vec()).await.error(400, ErrorCode::BackupInvalid);
    assert_eq!(short.causes, ["it ends within its first line"]);
    send(RESTORE, vec![]).await.error(400, ErrorCode::BackupInvalid);
    send(RESTORE, [body, vec![7; 3 << 20]].concat()).await.error(413, ErrorCode::TooLarge);
    let nowhere = send("/v1/vdcs/acme/coord/restore?home=berlin", vec![0; 3 << 20]).await;
    assert!(nowhere.error(400, ErrorCode::BadRequest).message.contains("is not a home"));
    send("/v1/vdcs/acme/coord/restore", vec![]).await.error(400, ErrorCode::BadRequest);
    let json = daemon.client().await.send("POST", RESTORE, "{}").await;
    assert!(json.error(415, ErrorCode::UnsupportedMediaType).hint.expect("what to do").contains("octet-stream"));

    let strangers = Daemon::start_with(|config| config.access.uids = vec![]).await;
    let refused = strangers.client().await.upload(RESTORE, vec![0; 3 << 20]).await;
    refused.error(403, ErrorCode::PermissionDenied);
    assert!(strangers.calls().is_empty());
}

/// The head of a restore, and its first line, with the length told beforehand or in chunks.
fn begin(vdc: &str, chunked: bool) -> String {
    let (line, path) = (header(), format!("/v1/vdcs/{vdc}/coord/restore?home=site:berlin"));
    let head = format!("POST {path} HTTP/1.1\r\nhost: meshd\r\ncontent-type: application/octet-stream\r\n");
    if chunked {
        format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{line}\r\n4\r\nrows\r\n", line.len())
    } else {
        format!("{head}content-length: 1000000\r\n\r\n{line}rows")
    }
}

#[tokio::test]
async fn restore_whose_client_goes_away_is_told_so() {
    for chunked in [true, false] {
        let daemon = Daemon::start().await;
        let mut stream = UnixStream::connect(&daemon.socket).await.expect("the server listens");
        stream.write_all(begin("slow", chunked).as_bytes()).await.expect("there is room");
        daemon.gate.entered().await;
        drop(stream);
        loop {
            // The backend is told in its own time.
            if let Some(told) = daemon.calls().iter().find(|call| call.operation == "coord_restore_failed") {
                assert_eq!(told.arguments, "the upload broke off");
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn restore_in_chunks_ends_with_the_last_one() {
    let daemon = Daemon::start().await;
    let mut stream = UnixStream::connect(&daemon.socket).await.expect("the server listens");
    let request = begin("acme", true).replacen("host:", "connection: close\r\nhost:", 1) + "0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("there is room");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""revision":4,"#), "{answer}");
}

#[tokio::test]
async fn restore_that_comes_to_a_halt_is_given_up() {
    let daemon = Daemon::start_with(|config| config.limits.body_time = std::time::Duration::from_millis(50)).await;
    let mut stream = UnixStream::connect(&daemon.socket).await.expect("the server listens");
    stream.write_all(begin("acme", false).as_bytes()).await.expect("there is room");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("came to a halt"), "{answer}");
}
