//! One container's directory, and the daemon's side of its shim.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket,
    socketpair,
};
use serde_json::{Value, json};

use workloads_wire::frame::{self, Kind};
use workloads_wire::message::{self as wire, Command, Config, Event};

/// First id of the containers' user namespaces on the host.
pub(crate) const UID_BASE: u32 = 1 << 30;

/// Longest wait for anything; a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(40);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A container to be.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) oci: Value,
    netns: String,
    group: String,
}

impl Lab {
    pub(crate) fn new(args: &[&str]) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shim-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("shim").tempdir().expect("a directory");
        // The container's root is another user outside: it must be able to walk to its files.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("mode");
        let image = dir.path().join("image");
        for below in ["bin", "proc", "dev", "tmp", "etc"] {
            fs::create_dir_all(image.join(below)).expect("made");
        }
        fs::copy("/bin/busybox", image.join("bin/busybox")).expect("package busybox-static");
        for applet in [
            "sh", "true", "false", "cat", "id", "sleep", "echo", "mkdir", "stty", "yes", "head", "dd", "tty", "env",
            "pwd",
        ] {
            std::os::unix::fs::symlink("busybox", image.join("bin").join(applet)).expect("linked");
        }
        fs::write(image.join("etc/passwd"), "root:x:0:0::/tmp:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
            .expect("written");
        fs::write(image.join("etc/plain"), "no program").expect("written");
        assert!(
            Process::new("chown")
                .args(["-hR", &format!("{UID_BASE}:{UID_BASE}")])
                .arg(&image)
                .status()
                .expect("ran")
                .success()
        );
        assert!(Process::new("ip").args(["netns", "add", &name]).status().expect("package iproute2").success());
        let group = format!("/meshd-test-{name}");
        let config = Config {
            id: format!("{number:032x}"),
            generation: 7,
            netns: Some(format!("/run/netns/{name}")),
            cgroup: format!("{group}/c"),
            log_directory: Some(dir.path().join("log").display().to_string()),
            log_segment_bytes: 1 << 20,
            log_segments: 3,
            exit_file: dir.path().join("exit").display().to_string(),
            filter: deny_mkdir(),
            ..Config::default()
        };
        let oci = oci(&image, &config.cgroup, args);
        Self { dir, config, oci, netns: name, group }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the shim; the program waits for [`Command::Start`].
    pub(crate) fn spawn(&self) -> Shim {
        fs::write(self.path().join("config.json"), self.oci.to_string()).expect("written");
        fs::write(self.path().join("shim.cbor"), wire::encode(&self.config)).expect("written");
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
        let errors = fs::File::create(self.path().join("shim.err")).expect("created");
        let number = theirs.as_raw_fd();
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).expect("inheritable");
        // The descriptor becomes number 3 by way of a shell: no code of ours runs between fork and exec.
        let mut command = Process::new("/bin/sh");
        command.arg("-c").arg(format!("exec 3<&{number} {number}<&-; exec \"$0\" \"$1\""));
        command.arg(env!("CARGO_BIN_EXE_meshd-shim")).arg(self.path());
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = command.spawn().expect("the shim starts");
        drop(theirs);
        Shim { child, channel: ours, dir: self.path().to_owned() }
    }

    /// Starts the shim and the program.
    pub(crate) fn run(&self) -> (Shim, u32) {
        let mut shim = self.spawn();
        let pid = shim.created();
        shim.say(&Command::Start);
        assert_eq!(shim.hear(), Event::Started, "{}", shim.errors());
        (shim, pid)
    }

    /// Directories of the container's groups that exist.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let name = self.config.cgroup.trim_start_matches('/');
        hierarchies().into_iter().map(|point| point.join(name)).filter(|path| path.exists()).collect()
    }

    /// What a container may leave behind: nothing.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.groups(), Vec::<PathBuf>::new(), "control groups stay");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
        assert!(!mounts.contains(&self.path().display().to_string()), "mounts stay");
        let library = fs::read_dir(self.path().join("lc")).map_or(0, Iterator::count);
        assert_eq!(library, 0, "the library's directory stays");
    }

    pub(crate) fn exit_file(&self) -> wire::Exit {
        wire::decode(&fs::read(self.path().join("exit")).expect("an exit file")).expect("an exit record")
    }

    /// The log's text, all segments.
    pub(crate) fn log(&self) -> Vec<u8> {
        let mut segments: Vec<PathBuf> =
            fs::read_dir(self.path().join("log")).expect("a log").map(|e| e.expect("entry").path()).collect();
        segments.sort();
        let mut text = Vec::new();
        for segment in segments {
            let bytes = fs::read(segment).expect("read");
            let mut at = 0;
            while let Some(head) = bytes[at..].first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*head)).expect("small");
                text.extend_from_slice(&bytes[at + 22..at + length]);
                at += 4 + length;
            }
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for point in hierarchies() {
            let top = point.join(self.group.trim_start_matches('/'));
            let _ = fs::remove_dir(top.join("c"));
            let _ = fs::remove_dir(top);
        }
        let _ = Process::new("ip").args(["netns", "del", &self.netns]).status();
    }
}

/// The daemon's side of a shim.
pub(crate) struct Shim {
    pub(crate) child: Child,
    channel: OwnedFd,
    dir: PathBuf,
}

impl Shim {
    pub(crate) fn say(&self, command: &Command) {
        send(&self.channel, &wire::encode(command), SendFlags::NOSIGNAL).expect("sent");
    }

    pub(crate) fn hear(&self) -> Event {
        let mut bytes = vec![0; wire::MESSAGE_BYTES_MAX];
        readable(&self.channel, "an event");
        let (count, _) = recv(&self.channel, &mut bytes[..], RecvFlags::empty()).expect("received");
        wire::decode(&bytes[..count])
            .unwrap_or_else(|_| panic!("no event but {:?}: {}", &bytes[..count], self.errors()))
    }

    pub(crate) fn created(&mut self) -> u32 {
        match self.hear() {
            Event::Created { pid } => pid,
            other => panic!("{other:?}: {}", self.errors()),
        }
    }

    pub(crate) fn exited(&self) -> wire::Exit {
        match self.hear() {
            Event::Exited(exit) => exit,
            other => panic!("{other:?}: {}", self.errors()),
        }
    }

    /// What the shim said on its standard error.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(self.dir.join("shim.err")).unwrap_or_default()
    }

    /// Ends the daemon's side, as a daemon that is killed does; the new one connects.
    pub(crate) fn reconnect(&mut self) {
        let channel = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
        connect(&channel, &SocketAddrUnix::new(self.dir.join("sock")).expect("short")).expect("connected");
        self.channel = channel;
    }

    /// Ends the daemon's side for good.
    pub(crate) fn hang_up(&mut self) {
        let (end, _) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
        self.channel = end;
    }

    /// Lets the shim go and waits for it.
    pub(crate) fn reap(&mut self) {
        self.say(&Command::Reap);
        assert_eq!(self.wait(), Some(0), "{}", self.errors());
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("waited").code()
    }

    pub(crate) fn status(&self, field: &str) -> String {
        status(self.child.id(), field)
    }

    /// Connects to a program's streams.
    pub(crate) fn streams(&self, token: [u8; 16]) -> Streams {
        let mut socket = UnixStream::connect(self.dir.join("streams")).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.write_all(&token).expect("written");
        Streams { socket, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// Starts a program, or says why not.
    pub(crate) fn exec(&self, exec: wire::Exec) -> Result<(u32, Streams), (String, i32)> {
        self.say(&Command::Exec(exec));
        match self.hear() {
            Event::ExecStarted { pid, token } => Ok((pid, self.streams(token))),
            Event::Failed { message, code, .. } => Err((message, code)),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Only a test that failed leaves a shim; its container dies with the control groups' members.
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(pid) = fs::read_to_string(self.dir.join("pid")).ok().and_then(|pid| pid.parse().ok()) {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid).expect("a pid"),
                    rustix::process::Signal::KILL,
                );
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// One program's streams.
pub(crate) struct Streams {
    socket: UnixStream,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Streams {
    pub(crate) fn send(&mut self, kind: Kind, body: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(kind, body, &mut bytes);
        self.socket.write_all(&bytes).expect("written");
    }

    /// Reads one frame; its code if it is the program's end.
    pub(crate) fn step(&mut self) -> Option<i32> {
        let mut head = [0; 5];
        self.socket.read_exact(&mut head).expect("a frame");
        let [kind, length @ ..] = head;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("small")];
        self.socket.read_exact(&mut body).expect("a body");
        match kind {
            1 => self.stdout.extend_from_slice(&body),
            2 => self.stderr.extend_from_slice(&body),
            6 => return Some(i32::from_be_bytes(body.try_into().expect("four bytes"))),
            other => panic!("frame {other}"),
        }
        None
    }

    /// Reads until some output is there.
    pub(crate) fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            assert_eq!(self.step(), None, "ended before {text}: {}", String::from_utf8_lossy(&self.stdout));
        }
    }

    /// Reads to the end: the code and the output.
    pub(crate) fn end(mut self) -> (i32, String, String) {
        loop {
            if let Some(code) = self.step() {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (code, text(&self.stdout), text(&self.stderr));
            }
        }
    }
}

pub(crate) fn exec(args: &[&str]) -> wire::Exec {
    wire::Exec { args: args.iter().map(|arg| arg.as_bytes().to_vec().into()).collect(), ..wire::Exec::default() }
}

/// A field of `/proc/PID/status`.
pub(crate) fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn readable(fd: impl AsFd, what: &str) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec::try_from(PATIENCE).expect("short");
    assert_eq!(poll(&mut fds, Some(&timeout)).expect("polled"), 1, "no {what} came");
}

fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let groups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    groups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// A filter that refuses to make directories and allows all else.
fn deny_mkdir() -> Vec<u8> {
    let numbers = [libc::SYS_mkdir, libc::SYS_mkdirat];
    let instructions: [(u16, u8, u8, u32); 5] = [
        (0x20, 0, 0, 0), // load the call's number
        (0x15, 2, 0, u32::try_from(numbers[0]).expect("small")),
        (0x15, 1, 0, u32::try_from(numbers[1]).expect("small")),
        (0x06, 0, 0, 0x7fff_0000), // allow
        (0x06, 0, 0, 0x0005_0001), // EPERM
    ];
    let bytes = |(code, jt, jf, k): (u16, u8, u8, u32)| {
        let [a, b] = code.to_ne_bytes();
        let [w, x, y, z] = k.to_ne_bytes();
        [a, b, jt, jf, w, x, y, z]
    };
    instructions.into_iter().flat_map(bytes).collect()
}

fn oci(image: &Path, cgroup: &str, args: &[&str]) -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]);
    let map = json!([{"containerID": 0, "hostID": UID_BASE, "size": 65_536}]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "COLOUR=blue"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 512}],
        },
        "root": {"path": image, "readonly": false},
        "hostname": "boxed",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "uidMappings": map,
            "gidMappings": map,
            "namespaces": [{"type": "user"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "resources": {"memory": {"limit": 32 << 20}, "pids": {"limit": 64}},
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}
