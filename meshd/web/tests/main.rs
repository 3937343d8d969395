//! The server over a real unix socket, with a fake daemon behind it.

#[cfg(test)]
mod client;
#[cfg(test)]
mod coord;
#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use vdc_api::{ErrorCode, Reply, STREAM_PROTOCOL, endpoint};

    use crate::client::Sse;
    use crate::fake::{Daemon, limits};

    /// A body that each changing operation accepts.
    fn body_for(operation: &str) -> Value {
        match operation {
            "vdc_create" => json!({"name": "acme", "site": "paris"}),
            "join" => json!({"token": "vdc1.x"}),
            "connect" => json!({"address": "203.0.113.7:7300"}),
            "site_add" => json!({"name": "lisbon"}),
            "exposure_change" => json!({"add": ["80"]}),
            "workload_run" | "image_pull" => json!({"image": "debian:12"}),
            "workload_signal" => json!({"signal": "HUP"}),
            "workload_copy" => json!({"direction": "out", "path": "/etc"}),
            "coord_recover" | "coord_backup" => json!({"home": {"site": "berlin"}}),
            "image_tag" => json!({"image": "debian:12", "tag": "localhost/base:1"}),
            _ => Value::Null,
        }
    }

    fn path_for(operation: &endpoint::Operation) -> String {
        let path = operation.path.replace("{vdc}", "acme").replace("{node}", "berlin1.berlin");
        let path = path.replace("{invite}", "3f3f").replace("{block}", "e7e7");
        let path = path.replace("{workload}", "web").replace("{image}", "debian%3A12");
        match operation.id {
            "ping" => path + "?target=berlin1&count=3",
            "coord_restore" => path + "?home=site:berlin",
            "explain" => path + "?source=a&destination=b&flow=80",
            _ => path,
        }
    }

    #[tokio::test]
    async fn every_operation_is_served_as_listed() {
        let daemon = Daemon::start().await;
        for operation in endpoint::ALL {
            let body = body_for(operation.id);
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let client = daemon.client().await;
            if operation.reply == Reply::Upgrade {
                let mut upgrade = client.upgrade(&path_for(operation), &body).await.expect(operation.id);
                assert_eq!(upgrade.headers["upgrade"], STREAM_PROTOCOL, "{}", operation.id);
                assert!(upgrade.headers.contains_key("x-request-id"), "{}", operation.id);
                let mut greeting = [0; 5];
                upgrade.pipe.read_exact(&mut greeting).await.expect(operation.id);
                continue;
            }
            let answer = if operation.takes_bytes() {
                let backup = vdc_api::samples::backup_header().to_line().expect("short");
                client.upload(&path_for(operation), backup).await
            } else {
                client.send(operation.method.as_str(), &path_for(operation), &body).await
            };
            assert_eq!(answer.status, 200, "{}: {}", operation.id, answer.text());
            assert!(answer.header("x-request-id").is_some_and(|id| id.len() == 15), "{}", operation.id);
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            match operation.reply {
                Reply::Json => assert_eq!(answer.header("content-type"), Some("application/json")),
                Reply::Stream => {
                    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
                    assert!(!Sse::parse(&answer.text()).is_empty(), "{}", operation.id);
                }
                Reply::Bytes => assert_eq!(answer.header("content-type"), Some("application/octet-stream")),
                Reply::Text | Reply::Upgrade => {}
            }
        }
        let called: BTreeSet<String> = daemon.calls().iter().map(|call| call.operation.to_owned()).collect();
        let expected = endpoint::ALL.iter().map(|o| o.id.to_owned()).filter(|id| id != "openapi").collect();
        assert_eq!(called, expected);
    }

    #[tokio::test]
    async fn answers_and_arguments_pass_unchanged() {
        let daemon = Daemon::start().await;
        let answer = daemon.client().await.send("GET", "/v1/status?vdc=acme", "").await;
        assert_eq!(answer.json::<vdc_api::Status>(), vdc_api::samples::status());
        let path = endpoint::NODE_REVOKE.path_with(&["-", "a b/c%"]);
        daemon.client().await.send("POST", &path, r#"{"reason":"stolen"}"#).await;
        let call = daemon.calls().pop().expect("the call was made");
        assert_eq!(
            call.arguments,
            r#"- a b/c% NodeRevoke { reason: Some("stolen"), keep_through: None, owner_key: None }"#
        );
        let caller = call.call.expect("a change has a caller").caller;
        assert_eq!(caller.pid, i32::try_from(std::process::id()).ok());
        let metrics = daemon.client().await.send("GET", "/metrics", "").await;
        assert_eq!(metrics.text(), vdc_api::samples::metrics());
        assert_eq!(metrics.header("content-type"), Some(vdc_api::MEDIA_METRICS));
        let document: Value = daemon.client().await.send("GET", "/v1/openapi.json", "").await.json();
        assert_eq!(document["info"]["title"], "meshd");
    }

    #[tokio::test]
    async fn stranger_may_read_and_not_change() {
        let daemon = Daemon::start_with(|config| config.access.uids = vec![]).await;
        for operation in endpoint::ALL {
            let client = daemon.client().await;
            let answer = client.send(operation.method.as_str(), &path_for(operation), "").await;
            if operation.is_guarded() {
                let error = answer.error(403, ErrorCode::PermissionDenied);
                assert!(error.hint.expect("it says what to do").contains("group meshd-test"), "{}", operation.id);
            } else {
                assert_eq!(answer.status, 200, "{}", operation.id);
            }
        }
        assert!(daemon.calls().iter().all(|call| call.call.is_none()), "no change reached the daemon");
    }

    #[tokio::test]
    async fn calls_for_other_nodes_are_carried_and_answered_there() {
        let daemon = Daemon::start().await;
        let list = "/v1/vdcs/acme/workloads";
        let answer = daemon.client().await.send("GET", &format!("{list}?on=berlin1"), "").await;
        assert_eq!(answer.json::<vdc_api::WorkloadList>(), vdc_api::samples::workload_list());
        let stream = "/v1/vdcs/acme/workloads/web/logs?follow=true&on=site%3Dberlin";
        let answer = daemon.client().await.send("GET", stream, "").await;
        assert_eq!(Sse::parse(&answer.text()).len(), vdc_api::samples::log_events().len());
        let local = daemon.client().await.send("GET", &format!("{list}?on=here"), "").await;
        assert_eq!(local.status, 200);
        let away = daemon.client().await.send("GET", &format!("{list}?on=away"), "").await;
        away.error(502, ErrorCode::RemoteUnreachable);
        daemon.client().await.send("GET", &format!("{list}?on="), "").await.error(400, ErrorCode::BadRequest);
        // Elsewhere it means nothing, and queries refuse what they do not know.
        daemon.client().await.send("GET", "/v1/status?on=berlin1", "").await.error(400, ErrorCode::BadRequest);
        let asked: Vec<String> =
            daemon.calls().iter().filter(|c| c.operation == "remote").map(|c| c.arguments.clone()).collect();
        assert_eq!(asked, ["acme berlin1", "acme site=berlin", "acme here", "acme away"]);
    }

    #[tokio::test]
    async fn other_nodes_may_ask_for_workloads_only_and_only_with_the_right() {
        let daemon = Daemon::start().await;
        for (missing, path, expected) in [
            (false, "/v1/vdcs/lab/workloads", 200),
            (false, "/v1/vdcs/lab/images", 200),
            (false, "/v1/vdcs/lab/nodes", 403),
            (false, "/v1/status", 403),
            (false, "/v1/vdcs/lab/workloads?on=berlin1", 403),
            (true, "/v1/vdcs/lab/workloads", 403),
        ] {
            let answer = daemon.ask_as_node(missing, path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{path}: {answer}");
            assert_eq!(answer.contains("remote-refused"), expected == 403, "{path}: {answer}");
        }
        let calls = daemon.calls();
        let listed = calls.iter().find(|call| call.operation == "workload_list").expect("asked");
        assert_eq!(listed.arguments, "acme", "the VDC is the one whose member asks, whatever it calls it");
    }

    #[tokio::test]
    async fn group_membership_counts_at_once() {
        let daemon = Daemon::start_with(|config| config.access.uids = vec![]).await;
        let try_it = async || daemon.client().await.send("PUT", "/v1/vdcs/acme/use", "").await.status;
        assert_eq!(try_it().await, 403);
        daemon.add_own_user_to_group();
        assert_eq!(try_it().await, 200);
    }

    #[tokio::test]
    async fn malformed_requests_are_json_errors_that_name_the_field() {
        let daemon = Daemon::start().await;
        let send = async |method: &str, path: &str, body: &str| daemon.client().await.send(method, path, body).await;

        send("GET", "/v1/nothing", "").await.error(404, ErrorCode::NotFound);
        send("GET", "/", "").await.error(404, ErrorCode::NotFound);
        let error = send("PUT", "/v1/vdcs", "").await.error(405, ErrorCode::MethodNotAllowed);
        assert!(error.message.contains("PUT"), "{}", error.message);
        let error = send("POST", "/v1/vdcs", "{").await.error(400, ErrorCode::BadRequest);
        assert_eq!(error.field, None);
        let error = send("POST", "/v1/vdcs", r#"{"name":"acme"}"#).await.error(400, ErrorCode::BadRequest);
        assert_eq!(error.field.as_deref(), Some("site"));
        let error = send("PATCH", "/v1/vdcs/-/exposures", r#"{"add":[1]}"#).await.error(400, ErrorCode::BadRequest);
        assert_eq!(error.field.as_deref(), Some("add[0]"));
        let error = send("GET", "/v1/status?vcd=a", "").await.error(400, ErrorCode::BadRequest);
        assert_eq!(error.field.as_deref(), Some("vcd"));
        let error = send("GET", "/v1/vdcs/-/ping", "").await.error(400, ErrorCode::BadRequest);
        assert_eq!(error.field.as_deref(), Some("target"));
        send("GET", "/v1/vdcs/%FF/nodes", "").await.error(400, ErrorCode::BadRequest);
        let client = daemon.client().await;
        let answer = client.send_as("text/plain", "POST", "/v1/vdcs", "{}").await;
        answer.error(415, ErrorCode::UnsupportedMediaType);
        assert!(daemon.calls().is_empty());
    }

    #[tokio::test]
    async fn oversize_body_is_refused_and_the_answer_arrives() {
        let daemon = Daemon::start().await;
        let body = format!(r#"{{"name":"{}"}}"#, "a".repeat(vdc_api::REQUEST_BYTES_MAX));
        daemon.client().await.send("POST", "/v1/vdcs", &body).await.error(413, ErrorCode::TooLarge);
        let body = format!(r#"{{"name":"acme","site":"{}"}}"#, "a".repeat(vdc_api::REQUEST_BYTES_MAX - 100));
        assert_eq!(daemon.client().await.send("POST", "/v1/vdcs", &body).await.status, 200, "just below the limit");
    }

    #[tokio::test]
    async fn errors_of_the_daemon_arrive_whole() {
        let daemon = Daemon::start().await;
        let answer = daemon.client().await.send("GET", "/v1/vdcs/-/nodes/ghost", "").await;
        let id = answer.header("x-request-id").expect("present").to_owned();
        let error = answer.error(404, ErrorCode::NotFound);
        assert_eq!(error.message, "no node is called ghost");
        assert_eq!(error.hint.as_deref(), Some("list them with `meshctl node list`"));
        assert_eq!(error.causes, ["looked in acme"]);
        assert_eq!(error.request_id, id);
    }

    #[tokio::test]
    async fn panic_fails_its_request_only() {
        let daemon = Daemon::start().await;
        for (method, path, body) in [
            ("GET", "/v1/vdcs/-/nodes/panic", ""),
            ("DELETE", "/v1/vdcs/-/blocks/panic", ""),
            ("POST", "/v1/join", r#"{"token":"panic"}"#),
        ] {
            daemon.client().await.send(method, path, body).await.error(500, ErrorCode::Internal);
        }
        let answer = daemon.client().await.send("POST", "/v1/join", r#"{"token":"panic-later"}"#).await;
        let events = Sse::parse(&answer.text());
        assert_eq!(events.last().expect("an end").error().code, ErrorCode::Internal);
        assert_eq!(daemon.client().await.send("GET", "/v1/version", "").await.status, 200);
    }

    #[tokio::test]
    async fn streams_carry_items_and_a_final_error() {
        let daemon = Daemon::start().await;
        let answer = daemon.client().await.send("POST", "/v1/join", r#"{"token":"vdc1.x"}"#).await;
        let items: Vec<vdc_api::JoinEvent> = Sse::parse(&answer.text()).iter().map(Sse::item).collect();
        assert_eq!(items, vdc_api::samples::join_events());

        let answer = daemon.client().await.send("POST", "/v1/join", r#"{"token":"used"}"#).await;
        let events = Sse::parse(&answer.text());
        assert_eq!(events.len(), 2);
        events[0].item::<vdc_api::JoinEvent>();
        let error = events[1].error();
        assert_eq!(error.code, ErrorCode::InviteUsed);
        assert_eq!(Some(error.request_id.as_str()), answer.header("x-request-id"));

        let answer = daemon.client().await.send("POST", "/v1/join", r#"{"token":"bad"}"#).await;
        answer.error(400, ErrorCode::InviteInvalid);
    }

    #[tokio::test]
    async fn change_goes_on_without_its_client() {
        let daemon = Daemon::start().await;
        for (path, body) in [("/v1/vdcs/slow/renew", ""), ("/v1/join", r#"{"token":"slow"}"#)] {
            let client = daemon.client().await;
            let pending = client.send("POST", path, body);
            tokio::select! {
                _ = pending => panic!("the answer is held back"),
                () = daemon.gate.entered() => {}
            }
            // The connection is gone with the future; only now may the work go on.
            daemon.gate.open();
            daemon.gate.finished().await;
        }
    }

    #[tokio::test]
    async fn read_and_its_stream_end_with_the_client() {
        let daemon = Daemon::start().await;
        let client = daemon.client().await;
        tokio::select! {
            _ = client.send("GET", "/v1/vdcs/slow/ping?target=a", "") => panic!("the stream has no end"),
            () = daemon.gate.entered() => {}
        }
        daemon.gate.dropped().await;
    }

    #[tokio::test]
    async fn too_much_at_once_is_refused_as_busy() {
        let daemon = Daemon::start_with(|config| {
            config.limits.requests_max = 1;
            config.limits.streams_max = 1;
        })
        .await;
        let (one, two) = (daemon.client().await, daemon.client().await);
        let held = one.send("POST", "/v1/vdcs/slow/renew", "");
        let meanwhile = async {
            daemon.gate.entered().await;
            two.send("GET", "/v1/version", "").await.error(503, ErrorCode::Busy);
            daemon.gate.open();
        };
        let (held, ()) = tokio::join!(held, meanwhile);
        assert_eq!(held.status, 200);

        let (one, two) = (daemon.client().await, daemon.client().await);
        tokio::select! {
            _ = one.send("GET", "/v1/vdcs/slow/ping?target=a", "") => panic!("the stream has no end"),
            () = async {
                daemon.gate.entered().await;
                let answer = two.send("GET", "/v1/vdcs/-/ping?target=a", "").await;
                answer.error(503, ErrorCode::Busy);
            } => {}
        }
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_a_slot() {
        let daemon = Daemon::start_with(|config| config.limits.connections_max = 1).await;
        let first = daemon.client().await;
        let (first_keeps, second) = (first.send_keeping("GET", "/v1/version").await, daemon.client().await);
        let waiting = second.send("GET", "/v1/version", "");
        let release = async move {
            assert_eq!(first_keeps.status, 200);
            drop(first);
        };
        let (answer, ()) = tokio::join!(waiting, release);
        assert_eq!(answer.status, 200);
    }

    #[tokio::test]
    async fn slow_daemon_and_slow_client_run_into_deadlines() {
        let daemon = Daemon::start_with(|config| {
            config.limits.request_time = Duration::from_millis(50);
            config.limits.body_time = Duration::from_millis(50);
            config.limits.head_time = Duration::from_millis(50);
        })
        .await;
        let error = daemon.client().await.send("POST", "/v1/vdcs/slow/renew", "").await.error(504, ErrorCode::Timeout);
        assert!(error.hint.expect("a change may still come about").contains("status"));
        daemon.gate.entered().await;
        daemon.gate.open();
        daemon.gate.finished().await;

        let head =
            "POST /v1/vdcs HTTP/1.1\r\nhost: meshd\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
        let answer = daemon.raw(head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("did not arrive in time"), "{answer}");
        let answer = daemon.raw(b"GET /v1/version HTT").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }

    #[tokio::test]
    async fn garbage_is_answered_or_hung_up_on() {
        let daemon = Daemon::start_with(|config| config.limits = limits()).await;
        let long = [b"GET /".as_slice(), &[b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
        for garbage in
            [b"\x00\x01\x02\xff\r\n\r\n".as_slice(), b"GET\r\n\r\n", b"GET /v1/version HTTP/9.9\r\n\r\n", &long]
        {
            let answer = daemon.raw(garbage).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"),
                "{answer}"
            );
        }
        assert_eq!(daemon.client().await.send("GET", "/v1/version", "").await.status, 200);
    }

    const EXEC: &str = "/v1/vdcs/acme/workloads/web/exec";
    const SLOW_EXEC: &str = "/v1/vdcs/slow/workloads/web/exec";

    async fn read_all(pipe: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).await.expect("an end in good order");
        bytes
    }

    #[tokio::test]
    async fn upgraded_connection_carries_bytes_both_ways_to_both_ends() {
        let daemon = Daemon::start().await;
        let upgrade = daemon.client().await.upgrade(EXEC, r#"{"args":["cat"]}"#).await.expect("switched");
        let (mut from, mut to) = tokio::io::split(upgrade.pipe);
        // More than all buffers on the way hold, so that it must flow.
        let sent: Vec<u8> = (0_u32..1 << 20).map(|n| n.to_le_bytes()[0]).collect();
        let write = async {
            to.write_all(&sent).await.expect("it is read");
            // The end of one direction arrives, and the other direction goes on.
            to.shutdown().await.expect("half of it closes");
        };
        let ((), received) = tokio::join!(write, read_all(&mut from));
        assert_eq!(received, [b"exec:".as_slice(), &sent, b"that was all"].concat());
        let call = daemon.calls().pop().expect("noted");
        assert_eq!(call.arguments, r#"acme web ["cat"]"#);
        assert!(call.call.is_some(), "it counts as a change");
    }

    #[tokio::test]
    async fn client_that_hangs_up_ends_its_pipe() {
        let daemon = Daemon::start().await;
        let upgrade = daemon.client().await.upgrade(SLOW_EXEC, "{}").await.expect("switched");
        daemon.gate.entered().await;
        drop(upgrade);
        daemon.gate.dropped().await;
    }

    #[tokio::test]
    async fn operation_that_needs_the_connection_says_so() {
        let daemon = Daemon::start().await;
        for operation in endpoint::ALL.iter().filter(|operation| operation.reply == Reply::Upgrade) {
            let body = body_for(operation.id);
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let answer = daemon.client().await.send("POST", &path_for(operation), &body).await;
            let error = answer.error(426, ErrorCode::UpgradeRequired);
            assert!(error.hint.expect("it says how").contains(STREAM_PROTOCOL), "{}", operation.id);
        }
        let other = format!(
            "POST {EXEC} HTTP/1.1\r\nhost: meshd\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n"
        );
        // The connection goes on as HTTP; the second request ends it.
        let last = "GET /v1/version HTTP/1.1\r\nhost: meshd\r\nconnection: close\r\n\r\n";
        let answer = daemon.raw(format!("{other}{last}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
        assert!(daemon.calls().iter().all(|call| call.operation == "version"), "nothing was begun");
    }

    #[tokio::test]
    async fn refused_upgrade_is_an_answer_like_any_other() {
        let daemon = Daemon::start().await;
        let refused = daemon.client().await.upgrade("/v1/vdcs/-/workloads/stopped/exec", "{}").await;
        refused.expect_err("it does not run").error(409, ErrorCode::NotRunning);
        let refused = daemon.client().await.upgrade(EXEC, r#"{"arg":[]}"#).await.expect_err("misspelt");
        assert_eq!(refused.error(400, ErrorCode::BadRequest).field.as_deref(), Some("arg"));
        let strangers = Daemon::start_with(|config| config.access.uids = vec![]).await;
        let refused = strangers.client().await.upgrade(EXEC, "{}").await.expect_err("a stranger");
        refused.error(403, ErrorCode::PermissionDenied);
    }

    #[tokio::test]
    async fn pipes_are_counted_apart_from_requests() {
        let daemon = Daemon::start_with(|config| {
            config.limits.requests_max = 1;
            config.limits.upgrades_max = 1;
        })
        .await;
        let held = daemon.client().await.upgrade(SLOW_EXEC, "{}").await.expect("the first one");
        assert_eq!(daemon.client().await.send("GET", "/v1/version", "").await.status, 200, "a pipe is no request");
        let refused = daemon.client().await.upgrade(EXEC, "{}").await.expect_err("one too many");
        refused.error(503, ErrorCode::Busy);
        drop(held);
        daemon.gate.dropped().await;
        // The place is free a moment after the pipe was dropped.
        loop {
            match daemon.client().await.upgrade(EXEC, "{}").await {
                Ok(_) => break,
                Err(refused) => drop(refused.error(503, ErrorCode::Busy)),
            }
        }
    }

    #[tokio::test]
    async fn shutdown_ends_pipes() {
        let daemon = Daemon::start().await;
        let mut upgrade = daemon.client().await.upgrade(SLOW_EXEC, "{}").await.expect("switched");
        daemon.gate.entered().await;
        daemon.shutdown.cancel();
        let mut received = Vec::new();
        // How it ends is the client's to judge: there was no last word.
        drop(upgrade.pipe.read_to_end(&mut received).await);
        assert!(b"exec:".starts_with(&received));
        daemon.gate.dropped().await;
        daemon.stopped().await;
    }

    #[tokio::test]
    async fn run_goes_on_without_its_client_and_tells_why_it_failed() {
        let daemon = Daemon::start().await;
        let path = "/v1/vdcs/acme/workloads";
        tokio::select! {
            _ = daemon.client().await.send("POST", path, r#"{"image":"slow"}"#) => panic!("it is held back"),
            () = daemon.gate.entered() => {}
        }
        daemon.gate.open();
        daemon.gate.finished().await;
        let answer = daemon.client().await.send("POST", path, r#"{"image":"ghost"}"#).await;
        let events = Sse::parse(&answer.text());
        assert_eq!(events.last().expect("an end").error().code, ErrorCode::ImageNotFound);
        let answer = daemon.client().await.send("POST", path, r#"{"image":"debian:12"}"#).await;
        let events: Vec<vdc_api::RunEvent> = Sse::parse(&answer.text()).iter().map(Sse::item).collect();
        assert_eq!(events, vdc_api::samples::run_events());
    }

    #[tokio::test]
    async fn shutdown_ends_streams_finishes_changes_and_removes_the_socket() {
        let daemon = Daemon::start().await;
        let (one, two) = (daemon.client().await, daemon.client().await);
        let stream = one.send("GET", "/v1/vdcs/slow/ping?target=a", "");
        let change = two.send("POST", "/v1/vdcs/slow/renew", "");
        let stop = async {
            daemon.gate.entered().await;
            daemon.gate.entered().await;
            daemon.shutdown.cancel();
            daemon.gate.dropped().await;
            daemon.gate.open();
        };
        let (stream, change, ()) = tokio::join!(stream, change, stop);
        let events = Sse::parse(&stream.text());
        assert_eq!(events.last().expect("an end").error().code, ErrorCode::Unavailable);
        assert_eq!(change.status, 200, "a change under way is finished");
        let path = daemon.socket.clone();
        daemon.stopped().await;
        assert!(!path.exists());
    }
}
