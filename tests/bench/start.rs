//! How long a container takes from the command to its end, beside podman and containerd's `ctr` by turns where they are
//! installed; what it costs the daemon and its shims; what idle shims hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::tests::figures::{Figure, percentile};
use ::tests::vdc_lab::PATIENCE;
use anyhow::{Context as _, Result, ensure};
use meshlab::{require_tools, wait_until};

use crate::{Bench, cpu};

pub(crate) const BENCH: Bench = Bench {
    name: "start",
    about: "run --rm /bin/true with limits and network; processor time; memory of idle shims; beside podman and ctr",
    run,
};

/// Starts of each, by turns.
const ROUNDS: usize = 50;
const IDLE_CONTAINERS: usize = 20;
/// After this long a shim holds what it will hold.
const REST: Duration = Duration::from_secs(5);
/// Where cgroup v2 lies on a host that has both versions.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

fn run() -> Result<Vec<Figure>> {
    require_tools(&[
        "ip:iproute2",
        "unshare:util-linux",
        "nsenter:util-linux",
        "busybox:busybox-static",
        "awk",
        "tar",
    ])?;
    let scratch = Scratch::new()?;
    let contender = Contender::up(&scratch)?;
    let mut runners = vec![Runner::new("meshd", contender.start.clone())];
    let podman = Podman::new(&scratch, &contender)?;
    runners.extend(podman.iter().flat_map(Podman::runners));
    let containerd = Containerd::new(&scratch, &contender)?;
    runners.extend(containerd.iter().map(Containerd::runner));
    for runner in &mut runners {
        runner.once(0).context("before measuring")?; // whatever is made once
        runner.wall_ms.clear();
    }
    let before = contender.cpu_s()?;
    let own_before = children_s()?;
    for round in 1..=ROUNDS {
        for runner in &mut runners {
            runner.once(round)?;
        }
    }
    let daemon_ms = (contender.cpu_s()? - before) * 1e3 / count(ROUNDS);
    eprintln!("all of them: {:.1} CPU-s in {ROUNDS} rounds", children_s()? - own_before);
    let mut figures = of_runners(&runners)?;
    figures.push(Figure::new("meshd and its shims, per start", daemon_ms, "CPU-ms").at_most(15.0));
    figures.extend(idle(&contender)?);
    Ok(figures)
}

fn of_runners(runners: &[Runner]) -> Result<Vec<Figure>> {
    let mut figures = vec![];
    let of = |runner: &Runner, percent| percentile(&runner.wall_ms, percent).context("there are samples");
    let (own, others) = runners.split_first().context("there is one")?;
    for runner in runners {
        for percent in [50, 95] {
            figures.push(Figure::new(format!("{}, p{percent}", runner.name), of(runner, percent)?, "ms"));
        }
    }
    for other in others {
        let limit = if other.name.starts_with("podman") { 0.25 } else { 0.3 };
        let ratio = of(own, 50)? / of(other, 50)?;
        figures.push(Figure::new(format!("p50 beside {}", other.name), ratio, "ratio").at_most(limit));
    }
    Ok(figures)
}

/// Memory of the shims of containers that do nothing.
fn idle(contender: &Contender) -> Result<Vec<Figure>> {
    for _ in 0..IDLE_CONTAINERS {
        ok(&mut contender.meshctl(&["run", "-d", "localhost/bb:1", "/bin/sleep", "100000"]))?;
    }
    std::thread::sleep(REST);
    let mut kib = vec![];
    for pid in children(contender.pid)? {
        if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "meshd-shim") {
            kib.push(resident_kib(pid)?);
        }
    }
    ensure!(kib.len() == IDLE_CONTAINERS, "{} shims of {IDLE_CONTAINERS} containers", kib.len());
    let mean = kib.iter().sum::<f64>() / count(kib.len());
    let daemon = resident_kib(contender.pid)?;
    Ok(vec![
        Figure::new(format!("shim of an idle container, mean of {IDLE_CONTAINERS}"), mean / 1024.0, "MiB").at_most(3.0),
        Figure::new(
            "shim of an idle container, largest",
            percentile(&kib, 100).context("there are some")? / 1024.0,
            "MiB",
        ),
        Figure::new(format!("meshd with {IDLE_CONTAINERS} containers"), daemon / 1024.0, "MiB"),
    ])
}

/// `VmRSS` of a process.
fn resident_kib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a living process")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Children of all threads of a process.
fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![];
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("children"))?;
        found.extend(text.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    Ok(found)
}

/// What is started by turns.
struct Runner {
    name: String,
    /// `{}` becomes the number of the round.
    words: Vec<String>,
    environment: Vec<(String, String)>,
    wall_ms: Vec<f64>,
}

impl Runner {
    fn new(name: impl Into<String>, words: Vec<String>) -> Self {
        Self { name: name.into(), words, environment: vec![], wall_ms: vec![] }
    }

    fn once(&mut self, round: usize) -> Result<()> {
        let words = self.words.iter().map(|word| word.replace("{}", &round.to_string()));
        let mut words = words.collect::<Vec<_>>().into_iter();
        let mut command = Command::new(words.next().context("a program")?);
        command.args(words).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let status = command.status().with_context(|| self.name.clone())?;
        self.wall_ms.push(started.elapsed().as_secs_f64() * 1e3);
        ensure!(status.success(), "{}: {status}: {:?}", self.name, self.words);
        Ok(())
    }
}

/// A folder on a file system that overlays can be made of.
struct Scratch {
    dir: PathBuf,
    /// In memory, as /run is: what the peers keep there is there for them as well.
    run: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self> {
        let name = format!("startbench-{}", std::process::id());
        let scratch = Self { dir: std::env::temp_dir().join(&name), run: Path::new("/dev/shm").join(&name) };
        fs::create_dir_all(&scratch.dir)?;
        fs::create_dir_all(&scratch.run)?;
        Ok(scratch)
    }

    fn run(&self, name: &str) -> String {
        self.run.join(name).display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        fs::write(self.dir.join(name), text)?;
        Ok(self.path(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for dir in [&self.dir, &self.run] {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// The daemon, as the script of this folder starts it for whoever measures.
struct Contender {
    dir: PathBuf,
    pid: u32,
    start: Vec<String>,
}

impl Contender {
    fn up(scratch: &Scratch) -> Result<Self> {
        let mut script = Self::script(&scratch.dir);
        let said = ok(script.arg("up").env_remove("BUNDLE"))?;
        let dir = scratch.dir.join("meshd-start-contender");
        let pid = fs::read_to_string(dir.join("pid"))?.trim().parse()?;
        Ok(Self { dir, pid, start: said.split_whitespace().map(str::to_owned).collect() })
    }

    fn script(dir: &Path) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/start-contender.sh"));
        command.env("MP_DIR", dir);
        command
    }

    fn meshctl(&self, words: &[&str]) -> Command {
        // Program, --socket, its path.
        let mut command = Command::new(&self.start[0]);
        command.args(&self.start[1..3]).args(words);
        command
    }

    /// The OCI layout of the image that the daemon runs.
    fn layout(&self) -> String {
        self.dir.join("layout").display().to_string()
    }

    /// Of the daemon and of all its children that ended.
    fn cpu_s(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).context("the daemon ended")?;
        let both = cpu::own_s(&stat).zip(cpu::children_s(&stat));
        both.map(|(own, children)| own + children).context("cannot read its processor time")
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let workloads = ok(self.meshctl(&["ps", "-aq"]).stderr(Stdio::null())).unwrap_or_default();
        for workload in workloads.lines() {
            let _ = ok(self.meshctl(&["rm", "-f", workload]).stderr(Stdio::null()));
        }
        let dir = self.dir.parent().unwrap_or(&self.dir);
        let _ = ok(Self::script(dir).arg("down"));
    }
}

/// podman with files of its own; without a network, as it would need more of the host than a bench may take.
struct Podman {
    environment: Vec<(String, String)>,
    image: String,
    /// A mount namespace without cgroup v2, which crun wants to be alone with.
    hidden: Option<Child>,
}

impl Podman {
    fn new(scratch: &Scratch, contender: &Contender) -> Result<Option<Self>> {
        if require_tools(&["podman"]).is_err() {
            return Ok(None);
        }
        let (graph, running) = (scratch.path("podman"), scratch.run("podman"));
        let storage = format!("[storage]\ndriver=\"overlay\"\ngraphroot=\"{graph}\"\nrunroot=\"{running}\"\n");
        let containers = "[containers]\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=4096:4096\"]\n\
            [engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\n";
        let policy = scratch.write("policy.json", "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}")?;
        let environment = vec![
            ("CONTAINERS_STORAGE_CONF".to_owned(), scratch.write("storage.conf", &storage)?),
            ("CONTAINERS_CONF".to_owned(), scratch.write("containers.conf", containers)?),
        ];
        let source = format!("oci:{}:1", contender.layout());
        let mut pull = Command::new("podman");
        pull.args(["pull", "-q", "--signature-policy", &policy, &source]).envs(environment.iter().cloned());
        let image = ok(&mut pull)?.trim().to_owned();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let hidden = if mounts.lines().any(|line| line.split(' ').nth(1) == Some(UNIFIED)) {
            let script = format!("mount --make-rprivate / && umount {UNIFIED} && exec sleep 100000");
            Some(Command::new("unshare").args(["-m", "sh", "-c", &script]).stdin(Stdio::null()).spawn()?)
        } else {
            None
        };
        if let Some(child) = &hidden {
            wait_until(PATIENCE, "cgroup v2 is hidden", || {
                fs::read_to_string(format!("/proc/{}/comm", child.id())).is_ok_and(|name| name.trim() == "sleep")
            })?;
        }
        Ok(Some(Self { environment, image, hidden }))
    }

    fn runners(&self) -> Vec<Runner> {
        let runtimes = [("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc")];
        let installed = runtimes.into_iter().filter(|(_, path)| Path::new(path).exists());
        let runner = |(name, path): (&str, &str)| {
            let mut words: Vec<String> = vec![];
            if let Some(child) = self.hidden.as_ref().filter(|_| name == "crun") {
                words.extend(["nsenter", "-m", "-t", &child.id().to_string()].map(str::to_owned));
            }
            let podman =
                ["podman", "--runtime", path, "run", "--rm", "--network=none", "--ulimit", "host", &self.image];
            words.extend(podman.map(str::to_owned));
            words.push("/bin/true".into());
            Runner { environment: self.environment.clone(), ..Runner::new(format!("podman with {name}"), words) }
        };
        installed.map(runner).collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Some(child) = &mut self.hidden {
            let _ = child.kill();
            let _ = child.wait();
        }
        // It keeps its storage mounted.
        let _ = Command::new("podman").args(["rmi", "-af"]).envs(self.environment.iter().cloned()).output();
        if let Some((_, storage)) = self.environment.first() {
            let graph = Path::new(storage).with_file_name("podman/overlay");
            let _ = Command::new("umount").arg("-l").arg(graph).output();
        }
    }
}

/// containerd with files of its own.
struct Containerd {
    daemon: Child,
    socket: String,
}

impl Containerd {
    fn new(scratch: &Scratch, contender: &Contender) -> Result<Option<Self>> {
        if require_tools(&["containerd", "ctr:containerd"]).is_err() {
            return Ok(None);
        }
        let socket = scratch.path("containerd.sock");
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n",
            scratch.path("containerd"),
            scratch.run("containerd"),
        );
        let config = scratch.write("containerd.toml", &config)?;
        let log = fs::File::create(scratch.path("containerd.log"))?;
        let mut command = Command::new("containerd");
        command.args(["-c", &config]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let this = Self { daemon: command.spawn()?, socket };
        wait_until(PATIENCE, "containerd answers", || ok(this.ctr().args(["images", "ls", "-q"])).is_ok())?;
        let archive = scratch.path("image.tar");
        ok(Command::new("tar").args(["-C", &contender.layout(), "-cf", &archive, "."]))?;
        ok(this.ctr().args(["images", "import", "--base-name", "localhost/bb", &archive]))?;
        Ok(Some(this))
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.args(["-a", &self.socket]);
        command
    }

    fn runner(&self) -> Runner {
        let words = ["ctr", "-a", &self.socket, "run", "--rm", "localhost/bb:1", "bench-{}", "/bin/true"];
        Runner::new("ctr", words.map(str::to_owned).to_vec())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

/// Processor time of all commands that ended.
fn children_s() -> Result<f64> {
    cpu::children_s(&fs::read_to_string("/proc/self/stat")?).context("the times of ended children")
}

#[expect(clippy::cast_precision_loss, reason = "a few dozen")]
fn count(number: usize) -> f64 {
    number as f64
}

fn ok(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
