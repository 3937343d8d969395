//! Running containers as a user does: what they are given, what they write, how they end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use meshlab::{Lab, wait_until};
use serde_json::Value;
use tests::containers::{ContainerNode, IMAGE};
use tests::vdc_lab::{PATIENCE, expect_refusal, in_lab, site};

/// One box in a VDC of its own, with the busybox image.
pub(crate) fn one_box(lab: &Lab, config: &str) -> Result<ContainerNode> {
    let node = ContainerNode::start(site(lab, "berlin")?.host("berlin1")?, config)?;
    node.create("acme", "berlin")?;
    node.import_busybox()?;
    Ok(node)
}

#[test]
fn container_is_what_its_image_and_its_user_say() -> Result<()> {
    in_lab(|lab| {
        let berlin = one_box(lab, "")?;
        // The image's environment, the user's above it; a user by name; a directory; arguments as they are.
        let printed = berlin.script(
            &["-e", "EXTRA=a b", "-u", "web", "-w", "/www"],
            "echo $GREETING-$EXTRA; id; pwd; cat index.html; hostname | wc -c",
        )?;
        let lines: Vec<&str> = printed.lines().collect();
        ensure!(lines[0] == "hello-a b" && lines[2] == "/www" && lines[3] == "hello from a container", "{printed}");
        ensure!(lines[1] == "uid=33(web) gid=33(web) groups=33(web),50(ssl)", "{printed}");
        ensure!(lines[4] == "13", "twelve digits are its host name: {printed}");
        // Root in it is nobody on the host, has few capabilities, a filter, and may gain nothing.
        let printed =
            berlin.script(&[], "cat /proc/self/uid_map; grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status")?;
        let words: Vec<&str> = printed.split_whitespace().collect();
        ensure!(words[0] == "0" && words[1] != "0" && words[2] == "65536", "{printed}");
        ensure!(printed.contains("Seccomp:\t2") && printed.contains("NoNewPrivs:\t1"), "{printed}");
        ensure!(printed.contains("CapEff:\t00000000800405fb"), "{printed}");
        let refused =
            berlin.script(&[], "mount -t tmpfs x /tmp || echo no mount; mknod /tmp/x c 1 3 || echo no device")?;
        ensure!(refused.contains("no mount") && refused.contains("no device"), "{refused}");
        let printed =
            berlin.script(&["--read-only"], "touch /x 2>/dev/null || echo read-only; touch /dev/shm/x && echo shm")?;
        ensure!(printed == "read-only\nshm\n", "{printed}");
        // The status is the program's, both outputs are told apart, and input goes in.
        let output = berlin.run(&["run", "--rm", "-i", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"])?;
        ensure!((output.stdout.as_str(), output.stderr.as_str()) == ("out\n", "err\n"), "{output:?}");
        ensure!(output.status.code() == Some(7), "{output:?}");
        let meshctl = tests::vdc_lab::binary("meshctl")?;
        let counted = berlin
            .host
            .sh(&format!("seq 100000 | {meshctl} run --rm -i {IMAGE} sh -c 'cat | md5sum'; seq 100000 | md5sum"))?;
        let sums: Vec<&str> = counted.lines().collect();
        ensure!(sums[0] == sums[1], "input and output are whole: {counted}");
        let output = berlin.run(&["run", "--rm", IMAGE, "sh", "-c", "kill -TERM $$; sleep 5"])?;
        ensure!(output.status.code() == Some(143) || output.status.code() == Some(0), "{output:?}");
        let none = berlin.ctl(&["ps", "-a"])?;
        ensure!(none["workloads"].as_array().is_some_and(Vec::is_empty), "they were removed: {none}");
        Ok(())
    })
}

#[test]
fn limits_hold_and_neighbours_live() -> Result<()> {
    in_lab(|lab| {
        let berlin = one_box(lab, "")?;
        berlin.run_detached(&["--name", "neighbour", IMAGE, "sleep", "1000"])?;
        berlin.run_detached(&["--name", "glutton", "--memory", "16M", IMAGE, "sh", "-c", "tail /dev/zero"])?;
        let ended = berlin.wait_phase("glutton", "exited")?;
        ensure!(ended["exit"]["oom_killed"] == true && ended["exit"]["code"] == 137, "{ended}");
        ensure!(ended["reason"].as_str().is_some_and(|r| r.contains("memory")), "{ended}");
        // A fork bomb stays below its limit, and ends with its container.
        // The inner shell gives up when it cannot fork; what it began stays, and so does the outer one, which needs no fork.
        let bomb = "sh -c 'while :; do sleep 1000 & done' 2>/dev/null; exec sleep 1000";
        berlin.run_detached(&["--name", "bomb", "--pids", "20", IMAGE, "sh", "-c", bomb])?;
        wait_until(PATIENCE, "the limit is reached", || {
            let count = berlin.ctl(&["stats", "--no-stream", "bomb"]).map_err(|error| error.to_string())?;
            if pids(&count).is_some_and(|count| (18..=20).contains(&count)) { Ok(()) } else { Err(count.to_string()) }
        })?;
        ensure!(berlin.inspect("neighbour")?["phase"] == "running");
        berlin.ctl(&["rm", "-f", "bomb"])?;
        // Half a processor is half a processor.
        berlin.run_detached(&["--name", "busy", "--cpus", "0.5", IMAGE, "sh", "-c", "while :; do :; done"])?;
        let used = || -> Result<u64> { cpu(&berlin.ctl(&["stats", "--no-stream", "busy"])?) };
        let (before, start) = (used()?, Instant::now());
        std::thread::sleep(Duration::from_secs(2));
        let share = (used()? - before) as f64 / start.elapsed().as_nanos() as f64;
        ensure!(share < 0.65, "{share} processors with a limit of 0.5");
        Ok(())
    })
}

fn stats(value: &Value) -> &Value {
    value.as_array().and_then(|all| all.first()).unwrap_or(value)
}

fn pids(value: &Value) -> Option<u64> {
    stats(value)["pids"].as_u64()
}

fn cpu(value: &Value) -> Result<u64> {
    stats(value)["cpu_ns"].as_u64().with_context(|| format!("processor time in {value}"))
}

#[test]
fn programs_are_added_and_files_go_in_and_out() -> Result<()> {
    in_lab(|lab| {
        let berlin = one_box(lab, "")?;
        berlin.run_detached(&[
            "--name",
            "web",
            "-u",
            "web",
            IMAGE,
            "sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 0.1; done",
        ])?;
        let said = berlin.run(&["exec", "web", "sh", "-c", "id -un; grep -E 'Seccomp:' /proc/self/status; exit 5"])?;
        ensure!(said.stdout.starts_with("web\nSeccomp:\t2") && said.status.code() == Some(5), "{said:?}");
        let root =
            berlin.run(&["exec", "-u", "root", "-w", "/tmp", "-e", "A=1", "web", "sh", "-c", "id -u; pwd; echo $A"])?;
        ensure!(root.stdout == "0\n/tmp\n1\n", "{root:?}");
        ensure!(berlin.run(&["exec", "web", "nothing-here"])?.status.code() == Some(127));
        // Files, with owners and modes.
        berlin
            .host
            .sh("mkdir -p /run/in/sub && echo one > /run/in/a && echo two > /run/in/sub/b && chmod 640 /run/in/a")?;
        let copied = berlin.run(&["cp", "/run/in", "web:/tmp"])?;
        ensure!(copied.is_ok(), "{copied:?}");
        let seen = berlin.run(&["exec", "web", "sh", "-c", "cat /tmp/in/a /tmp/in/sub/b; stat -c %a /tmp/in/a"])?;
        ensure!(seen.stdout.contains("one") || seen.stdout.contains("two"), "{seen:?}");
        berlin.run(&["exec", "-u", "root", "web", "sh", "-c", "echo back > /tmp/out; ln -s /etc/shadow /tmp/link"])?;
        let back = berlin.run(&["cp", "web:/tmp/out", "/run/back"])?;
        ensure!(back.is_ok() && berlin.host.sh("cat /run/back")?.trim() == "back", "{back:?}");
        // Stop by its own signal, then a start.
        let stopped = berlin.ctl(&["stop", "web"])?;
        ensure!(stopped.to_string().contains("exited"), "{stopped}");
        ensure!(berlin.inspect("web")?["exit"]["code"] == 3, "the program ended by itself");
        ensure!(
            berlin.run(&["exec", "web", "true"])?.status.code() == Some(125)
                || !berlin.run(&["exec", "web", "true"])?.is_ok()
        );
        berlin.ctl(&["start", "web"])?;
        ensure!(berlin.inspect("web")?["phase"] == "running");
        let kept = berlin.run(&["exec", "web", "cat", "/tmp/out"])?;
        ensure!(kept.stdout == "back\n", "what it wrote is there after a stop: {kept:?}");
        Ok(())
    })
}

#[test]
fn logs_are_kept_rotated_and_followed() -> Result<()> {
    in_lab(|lab| {
        let berlin = one_box(lab, "")?;
        berlin.run_detached(&[
            "--name",
            "talker",
            IMAGE,
            "sh",
            "-c",
            "echo first; echo oops >&2; sleep 1; echo last",
        ])?;
        let followed = berlin.run(&["logs", "-f", "talker"])?;
        ensure!(followed.stdout == "first\nlast\n" && followed.stderr == "oops\n", "{followed:?}");
        let last = berlin.run(&["logs", "--tail", "1", "talker"])?;
        ensure!(last.stdout == "last\n", "{last:?}");
        let none = berlin.run(&["logs", "--since", "2100-01-01T00:00:00Z", "talker"])?;
        ensure!(none.stdout.is_empty(), "{none:?}");
        // Far more than is kept: the newest stays, the disk does not fill, the daemon hardly notices.
        let pid = berlin.pid()?;
        let ticks = || -> Result<u64> {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let fields: Vec<&str> = stat.rsplit(')').next().context("fields")?.split_whitespace().collect();
            Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
        };
        let before = ticks()?;
        let flood = "i=0; while [ $i -lt 100 ]; do yes 0123456789012345678901234567890123456789 | head -c 1000000; i=$((i+1)); done; echo; echo the end";
        berlin.run_detached(&["--name", "flood", IMAGE, "sh", "-c", flood])?;
        berlin.wait_phase("flood", "exited")?;
        let spent = ticks()? - before;
        ensure!(spent < 100, "the daemon spent {spent} ticks while others wrote 100 MB");
        let kept = berlin
            .host
            .sh(&format!("du -sk {}/containers/*/log | sort -n | tail -1 | cut -f1", berlin.state().display()))?;
        ensure!(kept.trim().parse::<u64>()? < 40_000, "{kept} KiB are kept");
        let end = berlin.run(&["logs", "--tail", "1", "flood"])?;
        ensure!(end.stdout == "the end\n", "{end:?}");
        Ok(())
    })
}

#[test]
fn what_ends_is_started_again_for_ever_and_told_why() -> Result<()> {
    in_lab(|lab| {
        let berlin = one_box(lab, "")?;
        berlin.run_detached(&[
            "--name",
            "failing",
            "--restart",
            "on-failure",
            IMAGE,
            "sh",
            "-c",
            "echo run; exit 1",
        ])?;
        let view = wait_until(PATIENCE, "four runs", || {
            let view = berlin.inspect("failing").map_err(|error| error.to_string())?;
            if view["restarts"].as_u64() >= Some(3) { Ok(view) } else { Err(view.to_string()) }
        })?;
        ensure!(view["exit"]["code"] == 1 || view["phase"] == "running", "{view}");
        let waiting = berlin.wait_phase("failing", "back-off")?;
        ensure!(
            waiting["next_retry"].is_string() && waiting["reason"].as_str().is_some_and(|r| r.contains('1')),
            "{waiting}"
        );
        berlin.ctl(&["stop", "failing"])?;
        berlin.wait_phase("failing", "exited")?;
        berlin.run_detached(&["--name", "done", "--restart", "on-failure", IMAGE, "true"])?;
        let done = berlin.wait_phase("done", "exited")?;
        ensure!(done["restarts"] == 0, "{done}");
        // A health check by schedule.
        berlin.run_detached(&[
            "--name",
            "sick",
            "--health-cmd",
            "test -e /tmp/well",
            "--health-interval",
            "200ms",
            "--health-retries",
            "2",
            IMAGE,
            "sleep",
            "1000",
        ])?;
        let health = |state: &str| {
            wait_until(PATIENCE, state, || berlin.inspect("sick").is_ok_and(|view| view["health"] == *state))
        };
        health("unhealthy")?;
        berlin.run(&["exec", "sick", "touch", "/tmp/well"])?;
        health("healthy")?;
        Ok(())
    })
}

#[test]
fn bad_requests_are_refused_by_name() -> Result<()> {
    in_lab(|lab| {
        let berlin = one_box(lab, "")?;
        let refused = |words: &[&str], code: i32, parts: &[&str]| -> Result<()> {
            let mut all = vec!["run", "--rm"];
            all.extend(words);
            expect_refusal(berlin.refused(&all)?, code, parts).with_context(|| format!("{words:?}"))
        };
        refused(&["-u", "nobody-here", IMAGE, "true"], 125, &["nobody-here", "hint:"])?;
        refused(&[IMAGE, "/no/such/program"], 127, &["/no/such/program"])?;
        refused(&[IMAGE, "/etc/passwd"], 126, &["/etc/passwd"])?;
        refused(&["--pull", "never", "localhost/nothing:1", "true"], 125, &["localhost/nothing:1", "hint:"])?;
        refused(&["oci:/run/nothing", "true"], 125, &["/run/nothing"])?;
        refused(&["--cap-add", "FLY", IMAGE, "true"], 125, &["FLY"])?;
        refused(&["-v", "/run/missing:/x", IMAGE, "true"], 125, &["/run/missing"])?;
        refused(&["--name", "UPPER", IMAGE, "true"], 125, &["UPPER"])?;
        berlin.run_detached(&["--name", "web", "-p", "8080:80", IMAGE, "sleep", "1000"])?;
        refused(&["--name", "web", IMAGE, "true"], 125, &["web", "taken"])?;
        refused(&["--name", "berlin1", IMAGE, "true"], 125, &["berlin1", "taken"])?;
        refused(&["-p", "8080:80", IMAGE, "true"], 125, &["8080", "hint:"])?;
        let listener = berlin.host.spawn(&["busybox", "nc", "-l", "-p", "9090"])?;
        wait_until(PATIENCE, "somebody listens", || berlin.host.sh("ss -ltn | grep -q :9090").is_ok())?;
        refused(&["-p", "9090:80", IMAGE, "true"], 125, &["9090"])?;
        listener.kill()?;
        expect_refusal(berlin.refused(&["logs", "nothing"])?, 1, &["nothing"]).or_else(|_| {
            let (code, text) = berlin.refused(&["logs", "nothing"])?;
            ensure!(code != 0 && text.contains("nothing"), "{code} {text}");
            Ok(())
        })?;
        let all = berlin.ctl(&["ps", "-a"])?;
        ensure!(
            all["workloads"].as_array().is_some_and(|w| w.len() == 1),
            "nothing of what was refused is left: {all}"
        );
        Ok(())
    })
}
