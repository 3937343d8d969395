//! The real binary against a fake daemon on a unix socket: what it asks, what it prints, how it exits.

#[cfg(test)]
mod containers;
#[cfg(test)]
mod coord;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod sessions;

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use serde::Serialize;
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use vdc_api::{ApiError, ErrorCode, samples};

    use crate::fake::{Daemon, Reply, meshctl};

    fn text_of(value: &impl Serialize) -> String {
        serde_json::to_string(value).expect("samples are plain data")
    }

    /// Every verb, the request that it must make, and an answer to it.
    fn table() -> Vec<(&'static str, &'static str, &'static str, Value, String)> {
        vec![
            ("vdc list", "GET", "/v1/vdcs", Value::Null, text_of(&samples::vdc_list())),
            (
                "vdc create acme --site paris --as gw1 --ipv4 none",
                "POST",
                "/v1/vdcs",
                json!({"name": "acme", "site": "paris", "node": "gw1", "ipv4": "none"}),
                text_of(&samples::vdc_created()),
            ),
            ("vdc use acme", "PUT", "/v1/vdcs/acme/use", Value::Null, text_of(&samples::vdc())),
            (
                "invite create --site berlin --uses 2 --expires 2d --ephemeral",
                "POST",
                "/v1/vdcs/-/invites",
                json!({"site": "berlin", "uses": 2, "expires_s": 172_800, "ephemeral": true}),
                text_of(&samples::invite_created()),
            ),
            ("invite list --vdc acme", "GET", "/v1/vdcs/acme/invites", Value::Null, text_of(&samples::invite_list())),
            ("invite revoke 3f3f", "DELETE", "/v1/vdcs/-/invites/3f3f", Value::Null, text_of(&samples::invite())),
            ("status", "GET", "/v1/status", Value::Null, text_of(&samples::status())),
            ("status --vdc acme", "GET", "/v1/status?vdc=acme", Value::Null, text_of(&samples::status())),
            ("expose", "GET", "/v1/vdcs/-/exposures", Value::Null, text_of(&samples::exposure_list())),
            (
                "expose 80 53/udp",
                "PATCH",
                "/v1/vdcs/-/exposures",
                json!({"add": ["80/tcp", "53/udp"], "remove": []}),
                text_of(&samples::exposure_list().exposures[1]),
            ),
            (
                "unexpose 80",
                "PATCH",
                "/v1/vdcs/-/exposures",
                json!({"add": [], "remove": ["80/tcp"]}),
                text_of(&samples::exposure_list().exposures[0]),
            ),
            ("peers", "GET", "/v1/vdcs/-/peers", Value::Null, text_of(&samples::peer_list())),
            ("node list", "GET", "/v1/vdcs/-/nodes", Value::Null, text_of(&samples::node_list())),
            ("node show b1", "GET", "/v1/vdcs/-/nodes/b1", Value::Null, text_of(&samples::node_berlin())),
            (
                "node revoke b1.berlin --reason stolen",
                "POST",
                "/v1/vdcs/-/nodes/b1.berlin/revoke",
                json!({"reason": "stolen"}),
                text_of(&samples::node_revoked()),
            ),
            (
                "node revoke b1 --list --keep-through 4",
                "GET",
                "/v1/vdcs/-/nodes/b1/issued?keep_through=4",
                Value::Null,
                text_of(&samples::issued_list()),
            ),
            (
                "node revoke b1 --keep-through 4",
                "POST",
                "/v1/vdcs/-/nodes/b1/revoke",
                json!({"reason": null, "keep_through": 4}),
                text_of(&samples::node_revoked()),
            ),
            (
                "vdc recover --registrar --vdc acme",
                "POST",
                "/v1/vdcs/acme/recover",
                json!({"registrar": true}),
                text_of(&samples::vdc_recovered()),
            ),
            (
                "site add lisbon",
                "POST",
                "/v1/vdcs/-/sites",
                json!({"name": "lisbon", "ipv4": null, "expires_s": 86_400}),
                text_of(&samples::site_added()),
            ),
            ("site list", "GET", "/v1/vdcs/-/sites", Value::Null, text_of(&samples::site_list())),
            (
                "grant b1 --role operator --label web --label db",
                "PATCH",
                "/v1/vdcs/-/nodes/b1/grant",
                json!({"add_roles": ["operator"], "remove_roles": [], "add_labels": ["web", "db"], "remove_labels": []}),
                text_of(&samples::node_berlin()),
            ),
            (
                "grant b1 --label web --remove",
                "PATCH",
                "/v1/vdcs/-/nodes/b1/grant",
                json!({"add_roles": [], "remove_roles": [], "add_labels": [], "remove_labels": ["web"]}),
                text_of(&samples::node_berlin()),
            ),
            (
                "explain lisbon1 fd00::1 80",
                "GET",
                "/v1/vdcs/-/explain?destination=fd00%3A%3A1&flow=80%2Ftcp&source=lisbon1",
                Value::Null,
                text_of(&samples::explanation()),
            ),
            (
                "block --from lisbon1 --port 445",
                "POST",
                "/v1/vdcs/-/blocks",
                json!({"from": "lisbon1", "to": null, "port": "445/tcp", "reason": null}),
                text_of(&samples::block()),
            ),
            ("unblock e7e7", "DELETE", "/v1/vdcs/-/blocks/e7e7", Value::Null, text_of(&samples::block())),
            ("blocks", "GET", "/v1/vdcs/-/blocks", Value::Null, text_of(&samples::block_list())),
            ("leave --force", "POST", "/v1/vdcs/-/leave", json!({"force": true}), text_of(&samples::left())),
            (
                "connect 203.0.113.9:7300",
                "POST",
                "/v1/vdcs/-/connect",
                json!({"address": "203.0.113.9:7300", "node": null}),
                text_of(&samples::connected()),
            ),
            ("renew", "POST", "/v1/vdcs/-/renew", Value::Null, text_of(&samples::renewed())),
            ("events -n 5", "GET", "/v1/events?limit=5", Value::Null, text_of(&samples::event_list())),
        ]
    }

    #[tokio::test]
    async fn every_verb_asks_as_it_should_and_prints_both_forms() {
        for (line, method, path, body, answer) in table() {
            let daemon = Daemon::start(vec![Reply::json(200, &answer), Reply::json(200, &answer)]).await;
            let words: Vec<&str> = line.split(' ').collect();
            let output = daemon.run(&words).await;
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{line}");
            assert!(output.stdout.ends_with('\n') && output.stdout.len() > 10, "{line}: {}", output.stdout);
            assert!(!output.stdout.contains('\u{1b}'), "{line}: no colours without a terminal");
            let output = daemon.run(&[words.as_slice(), &["--output", "json"]].concat()).await;
            assert_eq!(output.code, 0, "{line}");
            let printed: Value = serde_json::from_str(&output.stdout).expect("JSON");
            assert_eq!(printed, serde_json::from_str::<Value>(&answer).expect("JSON"), "{line}");
            for request in daemon.requests() {
                assert_eq!((request.method.as_str(), request.path.as_str()), (method, path), "{line}");
                let sent = if request.body.is_empty() {
                    Value::Null
                } else {
                    serde_json::from_str(&request.body).expect("JSON")
                };
                assert_eq!(sent, body, "{line}");
            }
        }
    }

    #[tokio::test]
    async fn refusals_have_stable_exit_codes_and_full_text() {
        for (code, exit) in [
            (ErrorCode::NotFound, 1),
            (ErrorCode::Internal, 1),
            (ErrorCode::BadRequest, 2),
            (ErrorCode::AmbiguousVdc, 2),
            (ErrorCode::Unavailable, 3),
            (ErrorCode::PermissionDenied, 4),
            (ErrorCode::InviteExpired, 4),
        ] {
            let body = ApiError::new(code, "it did not work").cause("a reason").hint("do this").into_body("id-1");
            let daemon = Daemon::start(vec![Reply::json(code.status(), &text_of(&body))]).await;
            let output = daemon.run(&["node", "list"]).await;
            assert_eq!((output.code, output.stdout.as_str()), (exit, ""), "{code:?}");
            let expected = "error: it did not work\ncaused by: a reason\nhint: do this\n";
            assert!(output.stderr.starts_with(expected), "{}", output.stderr);
            assert_eq!(output.stderr.contains("request: id-1"), code == ErrorCode::Internal);
        }
    }

    #[tokio::test]
    async fn daemon_that_is_not_there_is_exit_3() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("none.sock");
        let output = meshctl(&socket, &["status"]).await;
        assert_eq!(output.code, 3);
        assert_eq!(
            output.stderr,
            format!(
                "error: cannot reach meshd on this machine\ncaused by: there is no socket at {}\n\
                 hint: start it: `sudo systemctl start meshd`\n",
                socket.display()
            )
        );
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket file without a listener"));
        let output = meshctl(&socket, &["status"]).await;
        assert_eq!(output.code, 3);
        assert!(output.stderr.contains("nobody listens"), "{}", output.stderr);

        let output = meshctl(&socket, &["version"]).await;
        assert_eq!(output.code, 0);
        assert!(output.stdout.contains("meshd: cannot reach meshd"), "{}", output.stdout);
        let output = meshctl(&socket, &["version", "-o", "json"]).await;
        assert_eq!(serde_json::from_str::<Value>(&output.stdout).expect("JSON")["meshd"], Value::Null);
    }

    #[tokio::test]
    async fn strange_answers_are_failures() {
        for (reply, exit) in [
            (Reply::json(200, "{}"), 1),
            (Reply::json(200, "not JSON"), 1),
            (Reply::json(500, "<html>"), 1),
            (Reply::Hangup, 3),
        ] {
            let daemon = Daemon::start(vec![reply]).await;
            let output = daemon.run(&["node", "list"]).await;
            assert_eq!(output.code, exit, "{}", output.stderr);
            assert!(output.stderr.starts_with("error: "), "{}", output.stderr);
        }
    }

    #[tokio::test]
    async fn usage_errors_are_exit_2_and_help_is_0() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("none.sock");
        for words in [
            vec!["frobnicate"],
            vec!["expose", "http"],
            vec!["invite", "create", "--expires", "soon"],
            vec!["vdc"],
            vec!["vdc", "list", "--vdc", "acme"],
            vec!["status", "--output", "yaml"],
        ] {
            let output = meshctl(&socket, &words).await;
            assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{words:?}");
        }
        assert_eq!(meshctl(&socket, &[]).await.code, 2);
        let output = meshctl(&socket, &["invite", "create", "--help"]).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        assert!(output.stdout.contains("Examples:\n  meshctl invite create"), "{}", output.stdout);
        assert!(output.stdout.contains("MESHCTL_SOCKET"), "{}", output.stdout);
        assert_eq!(meshctl(&socket, &["--version"]).await.stdout, format!("meshctl {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[tokio::test]
    async fn completion_scripts_name_the_verbs() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for shell in ["bash", "zsh", "fish"] {
            let output = meshctl(&directory.path().join("none.sock"), &["completion", shell]).await;
            assert_eq!(output.code, 0);
            assert!(output.stdout.contains("unexpose") && output.stdout.contains("meshctl"), "{shell}");
        }
    }

    #[tokio::test]
    async fn join_shows_steps_on_stderr_and_the_result_on_stdout() {
        let replies = || vec![Reply::stream(&samples::join_events()), Reply::stream(&samples::join_events())];
        let daemon = Daemon::start(replies()).await;
        let output = daemon.run(&["join", "vdc1.x", "--as", "customer-a", "--node-name", "web1"]).await;
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(output.stdout.starts_with("joined acme in 640ms\n"), "{}", output.stdout);
        assert_eq!(
            output.stderr,
            "✓ reach a registrar  paris1 at 198.51.100.4:7302  84ms\n✓ redeem the invite  121ms\n"
        );
        let sent: Value = serde_json::from_str(&daemon.requests()[0].body).expect("JSON");
        assert_eq!(sent, json!({"token": "vdc1.x", "name": "customer-a", "node": "web1"}));

        let output = daemon.run_with_stdin(&["join", "-", "-o", "json"], "  vdc1.from-stdin \n").await;
        let joined: vdc_api::Joined = serde_json::from_str(&output.stdout).expect("one value");
        assert_eq!(joined, samples::joined());
        assert!(daemon.requests()[1].body.contains("\"vdc1.from-stdin\""));
        assert_eq!(daemon.run_with_stdin(&["join", "-"], " \n").await.code, 2);
    }

    #[tokio::test]
    async fn join_that_fails_half_way_says_why() {
        let body = ApiError::new(ErrorCode::InviteUsed, "the invite was used by another node").into_body("id");
        let daemon = Daemon::start(vec![
            Reply::stream_then_error(&samples::join_events()[..2], &body),
            Reply::stream(&samples::join_events()[..2]),
            Reply::json(
                400,
                &text_of(&ApiError::new(ErrorCode::InviteInvalid, "the token is damaged").into_body("id")),
            ),
        ])
        .await;
        let output = daemon.run(&["join", "vdc1.x"]).await;
        assert_eq!(output.code, 4);
        assert!(output.stderr.ends_with("84ms\nerror: the invite was used by another node\n"), "{}", output.stderr);
        let output = daemon.run(&["join", "vdc1.x"]).await;
        assert_eq!(output.code, 3, "a stream that ends too early is not a success");
        assert_eq!(daemon.run(&["join", "vdc1.x"]).await.code, 4);
    }

    #[tokio::test]
    async fn ping_prints_replies_and_a_summary() {
        let lost = [samples::ping_events().swap_remove(0), samples::ping_events().swap_remove(2)];
        let daemon = Daemon::start(vec![
            Reply::stream(&samples::ping_events()),
            Reply::stream(&samples::ping_events()),
            Reply::stream(&lost),
        ])
        .await;
        let output = daemon.run(&["ping", "-c", "3", "-i", "0.2", "berlin1"]).await;
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(output.stdout.starts_with("PING berlin1.berlin (fd5a:"), "{}", output.stdout);
        assert!(output.stdout.contains("3 sent, 2 received, 33.3 % lost\n"), "{}", output.stdout);
        let request = &daemon.requests()[0];
        assert_eq!(
            request.path,
            "/v1/vdcs/-/ping?count=3&interval_ms=200&size_bytes=56&target=berlin1&timeout_ms=1000"
        );
        let output = daemon.run(&["ping", "berlin1", "-o", "json"]).await;
        let events: Vec<vdc_api::PingEvent> =
            output.stdout.lines().map(|line| serde_json::from_str(line).expect("one value a line")).collect();
        assert_eq!(events, samples::ping_events());
        let output = daemon.run(&["ping", "berlin1"]).await;
        assert_eq!((output.code, output.stderr.as_str()), (1, ""), "nothing came back");
    }

    #[tokio::test]
    async fn interrupted_ping_still_sums_up() {
        let daemon = Daemon::start(vec![Reply::endless_stream(&samples::ping_events())]).await;
        let mut child = daemon.command(&["ping", "berlin1"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("seq=3") {
            line.clear();
            assert!(stdout.read_line(&mut line).await.expect("text") > 0, "the stream goes on");
        }
        interrupt(&child).await;
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).await.expect("text");
        assert!(rest.contains("3 sent, 2 received"), "{rest}");
        assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
    }

    #[tokio::test]
    async fn interrupted_change_waits_for_what_is_told_once() {
        let (reply, release) = Reply::held(&text_of(&samples::vdc_created()));
        let daemon = Daemon::start(vec![reply]).await;
        let mut command = daemon.command(&["vdc", "create", "acme", "--site", "paris"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        daemon.first_request().await;
        interrupt(&child).await;
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).await.expect("text");
        assert!(line.contains("waiting for meshd to finish"), "{line}");
        release.send(()).expect("the reply is held");
        let output = child.wait_with_output().await.expect("it ends");
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("meshd-recovery-1 abcd"));
    }

    #[tokio::test]
    async fn interrupted_join_tells_that_the_daemon_goes_on() {
        let daemon = Daemon::start(vec![Reply::endless_stream(&samples::join_events()[..2])]).await;
        let mut child = daemon.command(&["join", "vdc1.x"]).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut text = String::new();
        stderr.read_line(&mut text).await.expect("the first step");
        interrupt(&child).await;
        stderr.read_to_string(&mut text).await.expect("text");
        assert!(text.contains("error: interrupted; meshd goes on with the join\nhint: "), "{text}");
        assert_eq!(child.wait().await.expect("it ends").code(), Some(130));
    }

    #[tokio::test]
    async fn closed_stdout_ends_quietly() {
        let mut list = samples::event_list();
        // More than a pipe holds.
        list.events = std::iter::repeat_n(list.events, 4_000).flatten().collect();
        let daemon = Daemon::start(vec![Reply::json(200, &text_of(&list))]).await;
        let mut command = daemon.command(&["events"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_u8().await.expect("the first byte");
        drop(stdout);
        let output = child.wait_with_output().await.expect("it ends");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
    }

    #[tokio::test]
    async fn colours_can_be_forced() {
        let daemon = Daemon::start(vec![Reply::json(200, &text_of(&samples::node_list()))]).await;
        let output = daemon.run(&["node", "list", "--color", "always"]).await;
        assert!(output.stdout.contains("\u{1b}[32mcurrent\u{1b}[0m"), "{}", output.stdout);
    }

    #[tokio::test]
    async fn one_peer_is_shown_with_its_candidates() {
        let reply = || Reply::json(200, &text_of(&samples::peer_list()));
        let daemon = Daemon::start(vec![reply(), reply(), reply()]).await;
        let output = daemon.run(&["peers", "berlin1.berlin"]).await;
        assert!(output.stdout.contains("[2001:db8::7]:7301"), "{}", output.stdout);
        let output = daemon.run(&["peers", "b2b2", "-o", "json"]).await;
        let peer: vdc_api::PeerView = serde_json::from_str(&output.stdout).expect("one peer");
        assert_eq!(peer.node, "berlin1");
        let output = daemon.run(&["peers", "ghost"]).await;
        assert_eq!(output.code, 1);
        assert!(output.stderr.contains("error: no peer is called ghost"), "{}", output.stderr);
    }

    async fn interrupt(child: &tokio::process::Child) {
        let pid = child.id().expect("it runs").to_string();
        let status =
            tokio::process::Command::new("kill").args(["-INT", &pid]).status().await.expect("kill(1) is there");
        assert!(status.success());
    }

    #[tokio::test]
    async fn watched_status_goes_on_until_the_reader_leaves() {
        let reply = || Reply::json(200, &text_of(&samples::status()));
        let daemon = Daemon::start(vec![reply(), reply(), reply(), reply(), reply()]).await;
        let mut command = daemon.command(&["status", "--watch", "--interval", "1s", "-o", "json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        for _ in 0..2 {
            let mut line = String::new();
            stdout.read_line(&mut line).await.expect("text");
            let status: vdc_api::Status = serde_json::from_str(&line).expect("one value a line");
            assert_eq!(status, samples::status());
        }
        drop(stdout);
        assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
    }

    /// A daemon that was stopped (SIGSTOP, a dead disk): the kernel still takes connections for it.
    #[tokio::test]
    async fn daemon_that_hangs_is_told_from_one_that_works_long() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("meshd.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a fresh path");
        for words in [&["vdc", "list"][..], &["expose", "80"], &["join", "vdc1.x"], &["version"]] {
            let started = std::time::Instant::now();
            let output = meshctl(&socket, words).await;
            assert!(started.elapsed() < std::time::Duration::from_millis(5_500), "{words:?}: {:?}", started.elapsed());
            let text = format!("{}{}", output.stdout, output.stderr);
            assert!(text.contains("meshd does not answer"), "{words:?}: {text}");
            if words != ["version"] {
                assert_eq!(output.code, 3, "{words:?}");
                assert!(text.contains("caused by:") && text.contains("hint:"), "{words:?}: {text}");
            }
        }
    }

    #[tokio::test]
    async fn full_queue_of_connections_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("meshd.sock");
        let listener = tokio::net::UnixSocket::new_stream().expect("a socket");
        listener.bind(&socket).expect("a fresh path");
        let _listener = listener.listen(0).expect("listening");
        // One connection fits into a queue of length 0.
        let _waiting = std::os::unix::net::UnixStream::connect(&socket).expect("the first one waits");
        let started = std::time::Instant::now();
        let output = meshctl(&socket, &["vdc", "list"]).await;
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
        assert_eq!(output.code, 3, "{}", output.stderr);
        assert!(
            output.stderr.contains("takes no more connections") && output.stderr.contains("hint:"),
            "{}",
            output.stderr
        );
    }

    #[tokio::test]
    async fn stdin_of_a_join_may_be_closed() {
        let daemon = Daemon::start(vec![]).await;
        let mut command = daemon.command(&["join", "-"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary runs");
        child.stdin.take().expect("piped").shutdown().await.expect("it closes");
        assert_eq!(child.wait().await.expect("it ends").code(), Some(2));
    }
}
