//! Verbs for containers and images: what they ask, in order, and what they print.

use serde::Serialize;
use serde_json::{Value, json};
use vdc_api::{ApiError, ErrorCode, LogEvent, LogStream, Phase, Waited, WorkloadView, samples};

use crate::fake::{Daemon, Recorded, Reply};

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
    if request.body.is_empty() { Value::Null } else { serde_json::from_str(&request.body).expect("JSON") }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// A verb that makes one request, the request, and the answer to it. What is printed as JSON is the answer, in a list
/// where the verb takes several names.
#[tokio::test]
async fn every_verb_asks_as_it_should_and_prints_both_forms() {
    const WEB: &str = "/v1/vdcs/-/workloads/web";
    let (view, ended) = (samples::workload(), samples::workload_ended());
    let table = [
        ("inspect web", "GET", WEB.to_owned(), Value::Null, json!(view), json!(view)),
        (
            "inspect web --on site=berlin",
            "GET",
            format!("{WEB}?on=site%3Dberlin"),
            Value::Null,
            json!(view),
            json!(view),
        ),
        (
            "ps --all --vdc acme",
            "GET",
            "/v1/vdcs/acme/workloads".into(),
            Value::Null,
            json!(samples::workload_list()),
            json!(samples::workload_list()),
        ),
        ("start web", "POST", format!("{WEB}/start"), Value::Null, json!(view), json!([view])),
        ("stop -t 60 web", "POST", format!("{WEB}/stop"), json!({"grace_s": 60}), json!(ended), json!([ended])),
        ("stop web", "POST", format!("{WEB}/stop"), json!({"grace_s": null}), json!(ended), json!([ended])),
        ("kill web", "POST", format!("{WEB}/signal"), json!({"signal": "KILL"}), json!(view), json!([view])),
        (
            "kill -s HUP web --on berlin1",
            "POST",
            format!("{WEB}/signal?on=berlin1"),
            json!({"signal": "HUP"}),
            json!(view),
            json!([view]),
        ),
        (
            "rm web",
            "DELETE",
            format!("{WEB}?force=false"),
            Value::Null,
            json!(samples::workload_removed()),
            json!([samples::workload_removed()]),
        ),
        (
            "rm -f web",
            "DELETE",
            format!("{WEB}?force=true"),
            Value::Null,
            json!(samples::workload_removed()),
            json!([samples::workload_removed()]),
        ),
        (
            "wait web",
            "GET",
            format!("{WEB}/wait"),
            Value::Null,
            json!(samples::waited()),
            json!(samples::waited().exit),
        ),
        (
            "image ls",
            "GET",
            "/v1/vdcs/-/images".into(),
            Value::Null,
            json!(samples::image_list()),
            json!(samples::image_list()),
        ),
        (
            "image tag debian:12 localhost/base:1",
            "POST",
            "/v1/vdcs/-/images/tag".into(),
            json!({"image": "debian:12", "tag": "localhost/base:1"}),
            json!(samples::image()),
            json!(samples::image()),
        ),
        (
            "image rm localhost/base:1",
            "DELETE",
            "/v1/vdcs/-/images/localhost%2Fbase%3A1".into(),
            Value::Null,
            json!(samples::images_freed()),
            json!([samples::images_freed()]),
        ),
        (
            "image clean",
            "POST",
            "/v1/vdcs/-/images/clean".into(),
            Value::Null,
            json!(samples::images_freed()),
            json!(samples::images_freed()),
        ),
    ];
    for (line, method, path, sent, answer, printed) in table {
        let daemon = Daemon::start(vec![ok(&answer), ok(&answer)]).await;
        let output = daemon.run(&words(line)).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{line}");
        assert!(output.stdout.ends_with('\n') && !output.stdout.contains('\u{1b}'), "{line}: {}", output.stdout);
        let output = daemon.run(&[words(line).as_slice(), &["-o", "json"]].concat()).await;
        assert_eq!(output.code, 0, "{line}");
        assert_eq!(serde_json::from_str::<Value>(&output.stdout).expect("JSON"), printed, "{line}");
        for request in daemon.requests() {
            assert_eq!((request.method.as_str(), &request.path), (method, &path), "{line}");
            assert_eq!(body(&request), sent, "{line}");
        }
    }
}

#[tokio::test]
async fn lists_and_views_say_what_matters() {
    let list = samples::workload_list();
    let daemon = Daemon::start(vec![ok(&list), ok(&list), ok(&list), ok(&list.workloads[1])]).await;
    let output = daemon.run(&["ps"]).await;
    assert!(output.stdout.contains("running (healthy) *") && !output.stdout.contains("job"), "{}", output.stdout);
    let output = daemon.run(&["ps", "-a"]).await;
    assert!(output.stdout.contains("exited (137)") && output.stdout.contains("8080:80 80/tcp"), "{}", output.stdout);
    assert_eq!(daemon.run(&["ps", "-q"]).await.stdout, format!("{}\n", samples::workload().id));
    let output = daemon.run(&["inspect", "web"]).await;
    let wanted = ["memory limit: the controller memory is not there", "memory 268.4 MB", "web.berlin.acme.internal"];
    for wanted in wanted {
        assert!(output.stdout.contains(wanted), "{wanted}: {}", output.stdout);
    }
}

#[tokio::test]
async fn detached_run_sends_what_was_asked_and_prints_the_name() {
    let events = samples::run_events();
    let daemon = Daemon::start(vec![Reply::stream(&events), Reply::stream(&events), Reply::stream(&events)]).await;
    let line = "run -d --name web --port 80 --publish 8080:80 -v data:/data -e MODE=fast --memory 256M --cpus 1.5 \
                --restart always --cap-drop ALL --read-only --pull never -l web -u 33 --stop-timeout 3 \
                registry.example:5000/nginx:1 nginx -g daemon";
    let output = daemon.run(&words(line)).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "web\n"), "{}", output.stderr);
    assert!(output.stderr.contains("getting the image: 33 %"), "{}", output.stderr);
    assert!(output.stderr.contains("note: this node cannot do the memory limit"), "{}", output.stderr);
    let sent: vdc_api::WorkloadRun = serde_json::from_str(&daemon.requests()[0].body).expect("a request");
    let expected = vdc_api::WorkloadRun {
        image: "registry.example:5000/nginx:1".into(),
        name: Some("web".into()),
        command: vec!["nginx".into(), "-g".into(), "daemon".into()],
        env: vec!["MODE=fast".into()],
        user: Some("33".into()),
        ports: vec!["80/tcp".into()],
        publish: vec!["8080:80".into()],
        volumes: vec!["data:/data".into()],
        labels: vec!["web".into()],
        memory_bytes: Some(256 << 20),
        cpu_millis: Some(1_500),
        restart: vdc_api::RestartPolicy::Always,
        stop_grace_s: Some(3),
        drop_capabilities: vec!["ALL".into()],
        read_only: true,
        pull: vdc_api::PullPolicy::Never,
        ..vdc_api::WorkloadRun::default()
    };
    assert_eq!(sent, expected);
    let output = daemon.run(&["run", "-d", "debian:12", "-o", "json"]).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    let sent = body(&daemon.requests()[1]);
    assert_eq!(sent["command"], json!(["-o", "json"]), "what follows the image is the program's");
    let output = daemon.run(&["-o", "json", "run", "-d", "debian:12"]).await;
    let printed: WorkloadView = serde_json::from_str(&output.stdout).expect("one view");
    assert_eq!(printed, samples::workload());
    assert_eq!(asked(&daemon.requests()), ["POST /v1/vdcs/-/workloads"; 3]);
}

#[tokio::test]
async fn run_that_is_refused_or_fails_has_the_codes_of_the_field() {
    let pulling = &samples::run_events()[..1];
    let late = |code, message: &str| Reply::stream_then_error(pulling, &ApiError::new(code, message).into_body("id"));
    let daemon = Daemon::start(vec![
        refused(ErrorCode::BadRequest, "no such option"),
        late(ErrorCode::ImageNotFound, "the registry does not have it"),
        late(ErrorCode::ProgramNotFound, "no such program"),
        late(ErrorCode::ProgramNotExecutable, "it cannot be executed"),
        Reply::stream(pulling),
        Reply::Hangup,
    ])
    .await;
    for code in [125, 125, 127, 126, 125, 125] {
        let output = daemon.run(&["run", "-d", "debian:12"]).await;
        assert_eq!((output.code, output.stdout.as_str()), (code, ""), "{}", output.stderr);
        assert!(output.stderr.contains("error: "), "{}", output.stderr);
    }
}

#[tokio::test]
async fn option_that_is_not_known_is_no_image() {
    let daemon = Daemon::start(vec![]).await;
    let output = daemon.run(&["run", "--nmae", "web", "debian:12"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (125, ""));
    assert!(output.stderr.contains("stands where the image is expected"), "{}", output.stderr);
}

#[tokio::test]
async fn several_are_tried_although_one_fails() {
    let daemon = Daemon::start(vec![
        refused(ErrorCode::NotFound, "no workload is called ghost"),
        ok(&samples::workload_removed()),
        refused(ErrorCode::Conflict, "db runs"),
    ])
    .await;
    let output = daemon.run(&["rm", "ghost", "web", "db"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (1, "web\n"));
    assert_eq!(output.stderr, "error: no workload is called ghost\nerror: db runs\n");
}

#[tokio::test]
async fn stop_and_restart_wait_for_a_long_grace_time() {
    let stopping = WorkloadView { phase: Phase::Stopping, ..samples::workload() };
    let runs = Waited { exit: None };
    let daemon = Daemon::start(vec![
        ok(&stopping),
        ok(&runs),
        ok(&stopping),
        ok(&samples::waited()),
        ok(&samples::workload_ended()),
        ok(&samples::workload()),
    ])
    .await;
    let output = daemon.run(&["restart", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "web  running\n"), "{}", output.stderr);
    let web = |method: &str, rest: &str| format!("{method} /v1/vdcs/-/workloads/web{rest}");
    let expected = [
        web("POST", "/stop"),
        web("GET", "/wait"),
        web("GET", ""),
        web("GET", "/wait"),
        web("GET", ""),
        web("POST", "/start"),
    ];
    assert_eq!(asked(&daemon.requests()), expected);
}

#[tokio::test]
async fn wait_asks_again_until_it_has_ended() {
    let runs = Waited { exit: None };
    let daemon = Daemon::start(vec![ok(&runs), ok(&runs), ok(&samples::waited())]).await;
    let output = daemon.run(&["wait", "job"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "137\n"), "{}", output.stderr);
    assert_eq!(daemon.requests().len(), 3);
}

#[tokio::test]
async fn stats_are_a_table_or_values() {
    let first = || Reply::stream(&samples::stats_events()[..1]);
    let daemon = Daemon::start(vec![first(), ok(&samples::workload_list()), first()]).await;
    let output = daemon.run(&["stats", "--no-stream", "web"]).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert!(output.stdout.contains("25.2 MB") && output.stdout.contains("90.1 kB"), "{}", output.stdout);
    let output = daemon.run(&["stats", "--no-stream", "-o", "json"]).await;
    let rows: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(rows[0]["name"], "web");
    assert_eq!(rows[0]["cpu_ns"], 2_500_000_000_u64);
    let expected = [
        "GET /v1/vdcs/-/workloads/web/stats?follow=false",
        "GET /v1/vdcs/-/workloads",
        "GET /v1/vdcs/-/workloads/web/stats?follow=false",
    ];
    assert_eq!(asked(&daemon.requests()), expected, "without names, those that run");
}

#[tokio::test]
async fn image_pull_tells_progress_and_carries_credentials_from_stdin() {
    let daemon =
        Daemon::start(vec![Reply::stream(&samples::pull_events()), Reply::stream(&samples::pull_events())]).await;
    let line = "image pull --username me --password-stdin --plain-http --tag a:1 registry.example/web:1";
    let output = daemon.run_with_stdin(&words(line), "secret\n").await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.contains("registry.example:5000/nginx:1"), "{}", output.stdout);
    assert!(output.stderr.contains("2 of 2 layers") && !output.stderr.contains("secret"), "{}", output.stderr);
    let sent = json!({
        "image": "registry.example/web:1",
        "tag": "a:1",
        "registry": {"plain_http": true, "ca_pem": null, "username": "me", "password": "secret"},
    });
    assert_eq!(body(&daemon.requests()[0]), sent);
    let output = daemon.run(&["image", "import", "oci:/layout:1", "-o", "json"]).await;
    let printed: vdc_api::ImageView = serde_json::from_str(&output.stdout).expect("one view");
    assert_eq!(printed, samples::image());
    assert_eq!(body(&daemon.requests()[1])["image"], "oci:/layout:1");
}

// ---- logs

fn line(at: &str, text: &str) -> LogEvent {
    let at = format!("2026-03-01T12:00:{at}Z");
    LogEvent::Line { at, stream: LogStream::Stdout, text: format!("{text}\n"), base64: None }
}

#[tokio::test]
async fn logs_go_where_they_were_written_to() {
    let daemon =
        Daemon::start(vec![Reply::stream(&samples::log_events()), Reply::stream(&samples::log_events())]).await;
    let mut command = daemon.command(&words("logs web --tail 4 --since 2026-03-01T12:00:00Z --stream stdout -t"));
    let output = command.output().await.expect("it ends");
    let expected = b"2026-03-01T12:00:01.000000000Z ready\n2026-03-01T12:00:01.000000000Z ready\n\
        2026-03-01T12:00:03.000000001Z \xff\x00\n";
    assert_eq!(output.stdout, expected, "{}", String::from_utf8_lossy(&output.stdout));
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(stderr.starts_with("note: 12 records were rotated away"), "{stderr}");
    assert!(stderr.ends_with("Z warning: no config\n"), "{stderr}");
    let path = "/v1/vdcs/-/workloads/web/logs?follow=false&since=2026-03-01T12%3A00%3A00Z&stream=stdout&tail=4";
    assert_eq!(daemon.requests()[0].path, path);
    let output = daemon.run(&["logs", "web", "-o", "json"]).await;
    let events: Vec<LogEvent> =
        output.stdout.lines().map(|line| serde_json::from_str(line).expect("one value a line")).collect();
    assert_eq!(events, samples::log_events()[1..], "the gap is a note");
}

#[tokio::test]
async fn followed_log_survives_restarts_of_the_daemon_without_loss_or_repetition() {
    let stopping = ApiError::new(ErrorCode::Unavailable, "meshd is stopping").into_body("id");
    let (a, b, c, d, e, f) =
        (line("01", "a"), line("02", "b"), line("02", "b"), line("02", "d"), line("03", "e"), line("04", "f"));
    let daemon = Daemon::start(vec![
        // It breaks off after the second of three lines of one moment, two of which are the same.
        Reply::broken_stream(&[a.clone(), b.clone(), c.clone()]),
        Reply::Hangup,
        // It breaks off again before it has come to what is new.
        Reply::broken_stream(std::slice::from_ref(&b)),
        Reply::stream_then_error(&[b.clone(), c.clone(), d.clone(), e.clone()], &stopping),
        Reply::stream(&[e.clone(), f.clone()]),
    ])
    .await;
    let output = daemon.run(&["logs", "-f", "--tail", "9", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (0, "a\nb\nb\nd\ne\nf\n"), "{}", output.stderr);
    let logs = |rest: &str| format!("GET /v1/vdcs/-/workloads/web/logs?follow=true{rest}");
    let second = logs("&since=2026-03-01T12%3A00%3A02Z");
    let expected = [logs("&tail=9"), second.clone(), second.clone(), second, logs("&since=2026-03-01T12%3A00%3A03Z")];
    assert_eq!(asked(&daemon.requests()), expected);
}

#[tokio::test]
async fn log_that_is_not_followed_fails_when_it_breaks_off() {
    let daemon = Daemon::start(vec![Reply::broken_stream(&[line("01", "a")])]).await;
    let output = daemon.run(&["logs", "web"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (3, "a\n"), "{}", output.stderr);
}

#[tokio::test]
async fn pull_that_ends_too_early_is_not_a_success() {
    let daemon = Daemon::start(vec![Reply::stream(&samples::pull_events()[..2])]).await;
    assert_eq!(daemon.run(&["image", "pull", "debian:12"]).await.code, 3);
}
