//! Real containers, by the runtimes of the host: as root, with busybox (package busybox-static), `crun` and `runc`.
//!
//! Every test has directories, a network namespace and a control group of its own, and compares what is left at its end.
#![expect(clippy::unwrap_used, reason = "a test's own steps must not fail")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use workloads_container::{
    AdoptedState, Copy, Driver, DriverConfig, ExecRequest, ExitCause, HeldPort, Launcher, Limits, RootLayers,
    RuntimeError, Security, StartRequest, StreamPoint, Volume, WorkloadId,
};
use workloads_wire::frame::{self, Frame, Kind};

const BASE: u32 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(20);
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A place for containers, and one image with busybox in it.
struct Scene {
    directory: tempfile::TempDir,
    name: String,
    launcher: Launcher,
}

impl Scene {
    fn new(runtime: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let name = format!("wct-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run_ok("ip", &["netns", "add", &name]);
        let layer = directory.path().join("layers/base");
        for made in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(layer.join(made)).unwrap();
        }
        fs::set_permissions(directory.path().join("layers"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.expect("package busybox-static is not installed"), layer.join("bin/busybox")).unwrap();
        for applet in ["sh", "true", "id", "cat", "sleep", "grep", "ls", "dd", "hostname", "mount", "unshare", "touch"]
        {
            symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n").unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:34:\nssl:x:50:web\n").unwrap();
        Self { directory, name, launcher: launcher(runtime) }
    }

    fn driver(&self) -> Driver {
        Driver::open(DriverConfig {
            run_directory: self.directory.path().join("run"),
            state_directory: self.directory.path().join("state"),
            cgroup_parent: format!("/{}", self.name),
            shim_cgroup: None,
            launcher: self.launcher.clone(),
        })
        .unwrap()
    }

    fn request(&self, script: &str) -> StartRequest {
        let args = ["/bin/sh", "-c", script];
        StartRequest {
            id: WorkloadId([7; 16]),
            generation: 3,
            root: RootLayers {
                directory: self.directory.path().join("layers"),
                layers: vec!["base".to_owned()],
                root_layer: Some("base".to_owned()),
            },
            args: args.map(|arg| arg.as_bytes().to_vec()).to_vec(),
            env: vec![("COLOUR".to_owned(), "light blue".to_owned())],
            workdir: "/tmp".to_owned(),
            user: String::new(),
            tty: false,
            stdin: false,
            hold_for_attach: false,
            limits: Limits::default(),
            security: Security::default(),
            volumes: Vec::new(),
            held_ports: Vec::new(),
            health: None,
            uid_base: BASE,
            netns: Path::new("/run/netns").join(&self.name),
            hostname: "web-1".to_owned(),
            resolv_conf: "nameserver 169.254.1.1\n".to_owned(),
            hosts: "127.0.0.1 localhost\n".to_owned(),
            remove: true,
        }
    }

    /// Runs a script to its end; its status, and what it wrote to `/out`.
    fn outcome(&self, driver: &Driver, request: &StartRequest) -> (i32, String) {
        driver.start(request).unwrap();
        let exit = driver.wait(request.id, PATIENCE).unwrap().expect("the container ends");
        assert_eq!(exit.cause, ExitCause::Process);
        (exit.code, fs::read_to_string(self.upper(request.id).join("out")).unwrap_or_default())
    }

    fn upper(&self, id: WorkloadId) -> PathBuf {
        self.directory.path().join("state").join(id.to_string()).join("upper")
    }

    /// Nothing of any container is left: directories, control groups, mounts.
    fn assert_clean(&self) {
        for directory in ["run", "state"] {
            let left: Vec<_> = fs::read_dir(self.directory.path().join(directory)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(groups(&self.name), Vec::<PathBuf>::new());
        let (own, run) = (self.directory.path().to_str().unwrap(), self.directory.path().join("run"));
        let left: Vec<String> = mounts().into_iter().filter(|line| line.contains(own)).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].contains(&format!(" {} ", run.display())), "the run directory is the only mount: {left:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let run_directory = self.directory.path().join("run");
        // What a failed test left running.
        for entry in fs::read_dir(&run_directory).unwrap() {
            if let Ok(id) = entry.unwrap().file_name().to_str().unwrap().parse::<WorkloadId>() {
                let _failed = self.driver().remove(id, false);
            }
        }
        let _own = Command::new("umount").arg(run_directory).status();
        run_ok("ip", &["netns", "del", &self.name]);
        for tree in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let _empty = fs::remove_dir(tree.unwrap().path().join(&self.name));
        }
        let _unified = fs::remove_dir(Path::new("/sys/fs/cgroup").join(&self.name));
    }
}

fn launcher(name: &str) -> Launcher {
    if name == "meshd-shim" {
        let built = std::env::current_exe().unwrap();
        let built = built.ancestors().nth(2).unwrap();
        let folder = std::env::var_os("MESHD_BIN_DIR").map_or_else(|| built.to_path_buf(), PathBuf::from);
        let path = folder.join(name);
        assert!(path.exists(), "{} is missing: cargo build -p meshd-shim", path.display());
        return Launcher::Shim(path);
    }
    let found = ["/usr/bin", "/usr/sbin"].map(|bin| Path::new(bin).join(name));
    let found = found.into_iter().find(|path| path.exists());
    Launcher::External(found.expect("packages crun and runc are not both installed"))
}

fn run_ok(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mounts() -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect()
}

/// Groups of containers below `parent` in any tree.
fn groups(parent: &str) -> Vec<PathBuf> {
    let trees = fs::read_dir("/sys/fs/cgroup").unwrap().map(|tree| tree.unwrap().path());
    let parents = trees.map(|tree| tree.join(parent)).chain([Path::new("/sys/fs/cgroup").join(parent)]);
    let inside = parents.filter_map(|parent| fs::read_dir(parent).ok()).flatten();
    inside.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// The same for each runtime.
fn with_each(test: impl Fn(&Scene, &Driver)) {
    for runtime in ["meshd-shim", "crun", "runc"] {
        let scene = Scene::new(runtime);
        test(&scene, &scene.driver());
        scene.assert_clean();
    }
}

#[test]
fn a_container_is_fenced_in_and_leaves_nothing() {
    with_each(|scene, driver| {
        let script = "{ cat /proc/self/uid_map; grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapAmb):' /proc/self/status; \
            id; hostname; cat /etc/resolv.conf /etc/hosts; echo $COLOUR; echo $HOME; ls /sys/class/net; ls -ld /bin; \
            ls /proc/1/root >/dev/null && echo proc; echo x > /etc/hosts || echo hosts-ro; \
            echo x > /proc/sys/kernel/hostname || echo sys-ro; unshare -n true || echo no-unshare; \
            mount -t tmpfs x /tmp || echo no-mount; pwd; } > /out 2>/dev/null; exit 7";
        let mut request = scene.request(script);
        request.limits =
            Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(500), pids: Some(32), io_weight: None };
        let (code, out) = scene.outcome(driver, &request);
        assert_eq!(code, 7, "{out}");
        let lines: Vec<String> = out.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for expected in [
            "0 1073741824 65536",
            "Seccomp: 2",
            "NoNewPrivs: 1",
            "CapEff: 00000000800405fb",
            "CapBnd: 00000000800405fb",
            "CapAmb: 0000000000000000",
            "uid=0(root) gid=0(root) groups=0(root)",
            "web-1",
            "nameserver 169.254.1.1",
            "127.0.0.1 localhost",
            "light blue",
            "/root",
            "lo",
            "proc",
            "hosts-ro",
            "sys-ro",
            "no-unshare",
            "no-mount",
            "/tmp",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {out}");
        }
        assert!(lines.iter().any(|line| line.starts_with("drwxr-xr-x 2 root root")), "{out}");
        driver.remove(request.id, false).unwrap();
        driver.remove(request.id, false).unwrap();
    });
}

#[test]
fn limits_bind_and_the_end_of_memory_is_told() {
    with_each(|scene, driver| {
        let facts = driver.facts().clone();
        for needed in ["memory", "pids", "cpu"] {
            assert!(facts.controllers.iter().any(|name| name == needed), "{facts:?}");
        }
        let mut request = scene.request("dd if=/dev/zero of=/dev/shm/full bs=1M count=60; sleep 600");
        request.limits = Limits { memory_bytes: Some(16 << 20), ..Limits::default() };
        driver.start(&request).unwrap();
        // The shell survives its child; a second one tells how the kernel's count reads.
        let oom = || driver.stats(request.id).unwrap().oom_kills;
        let end = std::time::Instant::now() + PATIENCE;
        while oom() == 0 && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(oom() > 0);
        let stats = driver.stats(request.id).unwrap();
        assert!(stats.cpu_ns > 0 && stats.memory_bytes_max <= 16 << 20 && stats.pids >= 1, "{stats:?}");
        driver.remove(request.id, false).unwrap();

        let mut request = scene.request("for i in 1 2 3 4 5 6 7 8 9; do sleep 600 & done; echo $? > /out; sleep 600");
        request.limits = Limits { pids: Some(5), ..Limits::default() };
        driver.start(&request).unwrap();
        let exit = driver.wait(request.id, PATIENCE).unwrap().expect("a shell that cannot fork ends");
        assert_ne!(exit.code, 0);
        driver.remove(request.id, false).unwrap();
    });
}

#[test]
fn a_signal_ends_it_and_what_it_wrote_can_be_kept() {
    with_each(|scene, driver| {
        let mut request =
            scene.request("trap 'echo bye > /kept; exit 5' TERM; echo up > /ready; while :; do sleep 1; done");
        request.remove = false;
        let started = driver.start(&request).unwrap();
        assert!(Path::new("/proc").join(started.pid.to_string()).exists());
        wait_until(|| scene.upper(request.id).join("ready").exists());
        assert!(matches!(driver.start(&request), Err(RuntimeError::Refused { .. })), "it runs already");
        assert!(driver.wait(request.id, Duration::from_millis(1)).unwrap().is_none());
        driver.signal(request.id, 15).unwrap();
        let exit = driver.wait(request.id, PATIENCE).unwrap().unwrap();
        assert_eq!((exit.code, exit.signal, exit.cause), (5, None, ExitCause::Process));
        assert!(matches!(driver.signal(request.id, 15), Err(RuntimeError::NotFound { .. })));
        driver.remove(request.id, true).unwrap();
        assert_eq!(fs::read_to_string(scene.upper(request.id).join("kept")).unwrap(), "bye\n");

        let mut again = scene.request("cat /kept > /out; kill -9 $$");
        again.remove = false;
        again.args[2] = b"cat /kept > /out; sleep 600".to_vec();
        driver.start(&again).unwrap();
        wait_until(|| fs::read_to_string(scene.upper(again.id).join("out")).is_ok_and(|out| out == "bye\n"));
        driver.signal(again.id, 9).unwrap();
        let exit = driver.wait(again.id, PATIENCE).unwrap().unwrap();
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
        driver.remove(again.id, false).unwrap();
    });
}

#[test]
fn users_are_those_of_the_image() {
    with_each(|scene, driver| {
        let check = |user: &str, expected: &str| {
            let mut request = scene.request("{ id; echo $HOME; } > /tmp/out");
            request.user = user.to_owned();
            driver.start(&request).unwrap();
            let exit = driver.wait(request.id, PATIENCE).unwrap().unwrap();
            let out = fs::read_to_string(scene.upper(request.id).join("tmp/out")).unwrap_or_default();
            assert_eq!((exit.code, out.as_str()), (0, expected), "{user}");
            driver.remove(request.id, false).unwrap();
        };
        check("web", "uid=33(web) gid=34(web) groups=34(web),50(ssl)\n/srv\n");
        check("33:0", "uid=33(web) gid=0(root) groups=0(root)\n/srv\n");
        check("4000", "uid=4000 gid=0(root) groups=0(root)\n/\n");
        let mut request = scene.request("true");
        request.user = "nobody-here".to_owned();
        assert!(matches!(driver.start(&request), Err(RuntimeError::UnknownUser(_))));
    });
}

#[test]
fn failed_starts_say_why_and_leave_nothing() {
    with_each(|scene, driver| {
        let check = |change: &dyn Fn(&mut StartRequest)| -> String {
            let mut request = scene.request("true");
            change(&mut request);
            let error = driver.start(&request).unwrap_err();
            scene.assert_clean();
            error.to_string()
        };
        let missing = check(&|request| request.args = vec![b"/bin/nothing".to_vec()]);
        assert!(missing.contains("/bin/nothing"), "{missing}");
        let layer = check(&|request| request.root.layers = vec!["gone".to_owned()]);
        assert!(layer.starts_with("could not mount the root"), "{layer}");
        let netns = check(&|request| request.netns = "/run/netns/nothing-here".into());
        assert!(netns.contains("network namespace"), "{netns}");
        let none = check(&|request| request.args.clear());
        assert!(none.contains("no program"), "{none}");
        let capability = check(&|request| request.security.add_capabilities = vec!["CAP_FLY".to_owned()]);
        assert!(capability.contains("CAP_FLY"), "{capability}");
        let escape = check(&|request| request.workdir = "/tmp/../..".to_owned());
        assert!(escape.contains("absolute"), "{escape}");
        check(&|request| request.args.push(b"a\0b".to_vec()));
        check(&|request| request.env = vec![("A=B".to_owned(), String::new())]);
    });
}

#[test]
fn the_images_own_links_lead_nowhere_outside() {
    with_each(|scene, driver| {
        let layer = scene.directory.path().join("layers/base");
        fs::remove_file(layer.join("etc/passwd")).unwrap();
        // The host's file has no such user; one that follows the link on the host would find root's line alone.
        fs::write(scene.directory.path().join("outside"), "spy:x:0:0::/:/bin/sh\n").unwrap();
        symlink(scene.directory.path().join("outside"), layer.join("etc/passwd")).unwrap();
        let mut request = scene.request("true");
        request.user = "spy".to_owned();
        assert!(matches!(driver.start(&request), Err(RuntimeError::UnknownUser(_))));
    });
}

#[test]
fn volumes_show_the_containers_own_ids() {
    with_each(|scene, driver| {
        let (writable, fixed) = (scene.directory.path().join("data"), scene.directory.path().join("fixed"));
        fs::create_dir(&writable).unwrap();
        fs::set_permissions(&writable, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(writable.join("mine"), "33").unwrap();
        chown(writable.join("mine"), Some(33), Some(34)).unwrap();
        fs::write(&fixed, "fixed").unwrap();
        let script =
            "ls -ln /data/mine > /out; cat /fixed >> /out; echo new > /data/new; echo x > /fixed || echo ro >> /out";
        let mut request = scene.request(script);
        request.volumes = vec![
            Volume { source: writable.clone(), target: "/data".to_owned(), read_only: false, seed: false },
            Volume { source: fixed.clone(), target: "/fixed".to_owned(), read_only: true, seed: false },
        ];
        let (code, out) = scene.outcome(driver, &request);
        assert_eq!(code, 0, "{out}");
        assert!(out.contains(" 33 ") && out.contains(" 34 ") && out.contains("fixed") && out.contains("ro\n"), "{out}");
        let new = fs::metadata(writable.join("new")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&new), 0, "stored as the container sees it");
        driver.remove(request.id, false).unwrap();
        assert_eq!(fs::read_to_string(fixed).unwrap(), "fixed");
    });
}

#[test]
fn another_driver_adopts_what_runs() {
    with_each(|scene, driver| {
        let request = scene.request("echo up > /out; sleep 600");
        let started = driver.start(&request).unwrap();
        let next = scene.driver();
        let adopted = next.adopt().unwrap();
        assert_eq!(adopted.len(), 1);
        assert_eq!((adopted[0].id, adopted[0].generation), (request.id, 3));
        assert_eq!(adopted[0].state, AdoptedState::Running { pid: started.pid });
        assert_eq!(next.adopt().unwrap(), adopted);
        next.remove(request.id, false).unwrap();
        assert!(next.adopt().unwrap().is_empty());
        driver.remove(request.id, false).unwrap();

        // Half made, and a group that nobody knows.
        let half = scene.directory.path().join("run").join(WorkloadId([9; 16]).to_string());
        fs::create_dir(half).unwrap();
        let tree = Path::new("/sys/fs/cgroup/pids").join(&scene.name).join(WorkloadId([8; 16]).to_string());
        fs::create_dir_all(tree).unwrap();
        assert!(next.adopt().unwrap().is_empty());
    });
}

#[test]
fn privileged_stays_in_its_user_namespace() {
    with_each(|scene, driver| {
        let script = "mount -t tmpfs x /tmp && echo mounted > /out; echo 1 > /proc/sys/kernel/sysrq || echo fenced >> /out; \
            cat /proc/self/uid_map >> /out; echo 1 > /sys/kernel/profiling || echo sys >> /out";
        let mut request = scene.request(script);
        request.security = Security { privileged: true, ..Security::default() };
        let (_, out) = scene.outcome(driver, &request);
        assert!(out.starts_with("mounted\nfenced\n") && out.contains("1073741824") && out.contains("sys\n"), "{out}");
        driver.remove(request.id, false).unwrap();
    });
}

#[test]
fn gaining_privileges_costs_the_filter_and_is_told() {
    with_each(|scene, driver| {
        let mut request = scene.request("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status > /out");
        request.security.no_new_privs = false;
        let started = driver.start(&request).unwrap();
        assert!(started.degraded.iter().any(|missing| missing.what == "seccomp"), "{started:?}");
        assert_eq!(driver.wait(request.id, PATIENCE).unwrap().unwrap().code, 0);
        let out = fs::read_to_string(scene.upper(request.id).join("out")).unwrap();
        let mut lines: Vec<String> = out.split_whitespace().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["0", "0", "NoNewPrivs:", "Seccomp:"]);
        driver.remove(request.id, false).unwrap();
    });
}

#[test]
fn the_hosts_ids_can_be_asked_for() {
    with_each(|scene, driver| {
        let mut request = scene.request("cat /proc/self/uid_map > /out; grep CapEff /proc/self/status >> /out");
        request.security = Security { user_namespace: false, ..Security::default() };
        let (code, out) = scene.outcome(driver, &request);
        assert_eq!(code, 0);
        assert!(out.contains("4294967295") && out.contains("00000000800405fb"), "{out}");
        driver.remove(request.id, false).unwrap();
    });
}

#[test]
fn a_read_only_root_takes_no_writes() {
    with_each(|scene, driver| {
        let mut request = scene.request("touch /x && exit 1; touch /dev/shm/x || exit 2; exit 0");
        request.security.read_only = true;
        assert_eq!(scene.outcome(driver, &request).0, 0);
        driver.remove(request.id, false).unwrap();
    });
}

/// Everything that the streams behind `point` say up to the end: output, errors, and the status.
fn read_streams(point: &StreamPoint, input: &[u8]) -> (String, String, Option<i32>) {
    let mut socket = UnixStream::connect(&point.socket).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = point.token.to_vec();
    frame::encode(Kind::Stdin, input, &mut hello);
    frame::encode(Kind::StdinEof, b"", &mut hello);
    socket.write_all(&hello).unwrap();
    let (mut bytes, mut output, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        while let Some(Frame { kind, body, length }) = frame::decode(&bytes).unwrap() {
            match kind {
                Kind::Stdout => output.extend_from_slice(body),
                Kind::Stderr => errors.extend_from_slice(body),
                Kind::Exit => {
                    let status = i32::from_be_bytes(body.try_into().unwrap());
                    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                    return (text(output), text(errors), Some(status));
                }
                _ => {}
            }
            bytes.drain(..length);
        }
        let mut more = [0; 4_096];
        let read = socket.read(&mut more).unwrap();
        if read == 0 {
            return (String::from_utf8(output).unwrap(), String::from_utf8(errors).unwrap(), None);
        }
        bytes.extend_from_slice(&more[..read]);
    }
}

/// With the shim alone.
fn with_shim(test: impl Fn(&Scene, &Driver)) {
    let scene = Scene::new("meshd-shim");
    test(&scene, &scene.driver());
    scene.assert_clean();
}

#[test]
fn a_further_program_lives_in_the_same_fences() {
    with_shim(|scene, driver| {
        let request = scene.request("echo up > /ready; sleep 600");
        driver.start(&request).unwrap();
        wait_until(|| scene.upper(request.id).join("ready").exists());
        let fences = "cat /proc/self/uid_map; grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd):' /proc/self/status; id; \
            ls /sys/class/net; cat; echo oops >&2; exit 4";
        let exec = ExecRequest {
            args: ["/bin/sh", "-c", fences].map(|arg| arg.as_bytes().to_vec()).to_vec(),
            user: Some("web".to_owned()),
            stdin: true,
            ..ExecRequest::default()
        };
        let point = driver.exec(request.id, &exec).unwrap();
        let (output, errors, status) = read_streams(&point, b"from outside\n");
        let lines: Vec<String> = output.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for expected in [
            "0 1073741824 65536",
            "Seccomp: 2",
            "NoNewPrivs: 1",
            "CapBnd: 00000000800405fb",
            "CapEff: 0000000000000000",
            "uid=33(web) gid=34(web) groups=34(web),50(ssl)",
            "lo",
            "from outside",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {output}");
        }
        assert_eq!((errors.as_str(), status), ("oops\n", Some(4)));
        let unknown = ExecRequest { user: Some("nobody-here".to_owned()), ..exec.clone() };
        assert!(matches!(driver.exec(request.id, &unknown), Err(RuntimeError::UnknownUser(_))));
        let missing = ExecRequest { args: vec![b"/bin/nothing".to_vec()], ..ExecRequest::default() };
        assert!(matches!(driver.exec(request.id, &missing), Err(RuntimeError::Failed { code: 127, .. })));
        driver.remove(request.id, false).unwrap();
        assert!(matches!(driver.exec(request.id, &exec), Err(RuntimeError::NotFound { .. })));
    });
}

#[test]
fn files_go_out_and_in_with_volumes_and_owners() {
    with_each(|scene, driver| {
        let data = scene.directory.path().join("data");
        fs::create_dir(&data).unwrap();
        let mut request = scene.request("echo text > /data/file; touch /ready; sleep 600");
        request.volumes =
            vec![Volume { source: data.clone(), target: "/data".to_owned(), read_only: false, seed: false }];
        driver.start(&request).unwrap();
        wait_until(|| scene.upper(request.id).join("ready").exists());
        let out = driver.copy(request.id, Copy::Out, Path::new("/data/file")).unwrap();
        let (stream, _, status) = read_streams(&out, b"");
        assert_eq!(status, Some(0));
        assert!(stream.starts_with("file\0") && stream.contains("text\n"));
        let into = driver.copy(request.id, Copy::In, Path::new("/tmp")).unwrap();
        assert_eq!(read_streams(&into, stream.as_bytes()).2, Some(0));
        let copied = scene.upper(request.id).join("tmp/file");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "text\n");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(copied).unwrap()), BASE);
        let none = driver.copy(request.id, Copy::Out, Path::new("/none")).unwrap();
        assert_eq!(read_streams(&none, b"").2, Some(1));
        driver.remove(request.id, false).unwrap();
        assert!(matches!(driver.copy(request.id, Copy::Out, Path::new("/")), Err(RuntimeError::NotFound { .. })));
    });
}

#[test]
fn many_rounds_leave_the_process_as_it_was() {
    with_each(|scene, driver| {
        let count = |what: &str| fs::read_dir(Path::new("/proc/self").join(what)).unwrap().count();
        let round = || {
            let request = scene.request("true");
            assert_eq!(scene.outcome(driver, &request).0, 0);
            driver.remove(request.id, false).unwrap();
        };
        round();
        let before = (count("fd"), count("task"));
        (0..15).for_each(|_| round());
        assert_eq!((count("fd"), count("task")), before);
        let children = fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(children, "", "nothing is left to be reaped");
    });
}

#[test]
fn who_attaches_before_the_start_misses_nothing() {
    with_shim(|scene, driver| {
        let mut request = scene.request("echo first; read line; echo got $line; exit 6");
        (request.stdin, request.hold_for_attach) = (true, true);
        let point = std::thread::scope(|scope| {
            let started = scope.spawn(|| driver.start(&request).unwrap());
            let mut point = None;
            wait_until(|| {
                point = driver.attach(request.id).ok();
                point.is_some()
            });
            let seen = read_streams(&point.unwrap(), b"word\n");
            started.join().unwrap();
            seen
        });
        assert_eq!(point, ("first\ngot word\n".to_owned(), String::new(), Some(6)));
        assert_eq!(driver.wait(request.id, PATIENCE).unwrap().unwrap().code, 6);
        let log = scene.directory.path().join("state").join(request.id.to_string()).join("log");
        let segments = fs::read_dir(log).unwrap().map(|segment| fs::read(segment.unwrap().path()).unwrap());
        let kept = String::from_utf8_lossy(&segments.flatten().collect::<Vec<u8>>()).into_owned();
        assert!(kept.contains("first") && kept.contains("got word"), "the log keeps what was said: {kept:?}");
        driver.remove(request.id, false).unwrap();
    });
}

#[test]
fn a_lost_shim_takes_its_container_along() {
    with_shim(|scene, driver| {
        // One that is this driver's child, then one that was adopted.
        for adopted in [false, true] {
            let request = scene.request("sleep 600");
            let started = driver.start(&request).unwrap();
            let other = scene.driver();
            let driver = if adopted { &other } else { driver };
            if adopted {
                assert_eq!(driver.adopt().unwrap()[0].state, AdoptedState::Running { pid: started.pid });
            }
            let run = scene.directory.path().join("run").join(request.id.to_string());
            let shim = fs::read_to_string(run.join("shim")).unwrap();
            run_ok("kill", &["-9", shim.split(' ').next().unwrap()]);
            let exit = driver.wait(request.id, PATIENCE).unwrap().unwrap();
            assert_eq!(exit.cause, ExitCause::ShimLost);
            assert!(groups(&scene.name).is_empty());
            assert!(matches!(driver.adopt().unwrap()[0].state, AdoptedState::Exited(_)));
            driver.remove(request.id, false).unwrap();
            scene.driver().remove(request.id, false).unwrap();
        }
    });
}

#[test]
fn a_held_port_is_told_when_somebody_has_it() {
    with_shim(|scene, driver| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut request = scene.request("sleep 600");
        request.held_ports = vec![HeldPort { address: Some(address.ip()), port: address.port(), udp: false }];
        let error = driver.start(&request).unwrap_err().to_string();
        assert!(error.contains("port"), "{error}");
        scene.assert_clean();
        drop(taken);
        driver.start(&request).unwrap();
        assert!(std::net::TcpListener::bind(address).is_err(), "held while it runs");
        driver.remove(request.id, false).unwrap();
        std::net::TcpListener::bind(address).unwrap();
    });
}

/// Waits for a level, not for a time.
fn wait_until(mut reached: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !reached() {
        assert!(std::time::Instant::now() < end, "not reached in time");
        std::thread::yield_now();
    }
}
