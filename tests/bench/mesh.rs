//! Throughput, processor time and round trip of a two-node VDC between two namespaces, beside wireguard-go in the same run
//! where it is installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::tests::figures::{Figure, percentile};
use ::tests::vdc_lab::PATIENCE;
use anyhow::{Context as _, Result, ensure};
use meshlab::{require_tools, wait_until};
use serde_json::Value;

use crate::Bench;

pub(crate) const BENCH: Bench = Bench {
    name: "mesh",
    about: "a tunnel between two namespaces: TCP, processor time, round trip; beside wireguard-go",
    run,
};

/// Measurements of each, by turns; medians are shown.
const ROUNDS: usize = 3;
const SECONDS: &str = "10";
/// The underlay, as the contender script expects it.
const UNDERLAY: [&str; 2] = ["10.201.0.1", "10.201.0.2"];

/// A family of addresses inside the tunnel.
struct Family {
    /// As the contender script takes it.
    number: &'static str,
    name: &'static str,
    /// The inside of wireguard-go's tunnel. A VDC picks its own addresses.
    wireguard: [&'static str; 2],
    prefix_length: u8,
    /// Of one address.
    host_length: u8,
}

const FAMILIES: [Family; 2] = [
    Family { number: "4", name: "IPv4", wireguard: ["10.202.0.1", "10.202.0.2"], prefix_length: 24, host_length: 32 },
    Family {
        number: "6",
        name: "IPv6",
        wireguard: ["fd00:202::1", "fd00:202::2"],
        prefix_length: 64,
        host_length: 128,
    },
];

fn run() -> Result<Vec<Figure>> {
    require_tools(&["ip:iproute2", "iperf3", "ping:iputils-ping", "jq", "unshare:util-linux"])?;
    let has_wireguard = require_tools(&["wireguard-go", "wg:wireguard-tools"]).is_ok();
    let mut figures = vec![];
    for family in &FAMILIES {
        figures.extend(of_family(family, has_wireguard)?);
    }
    Ok(figures)
}

fn of_family(family: &Family, has_wireguard: bool) -> Result<Vec<Figure>> {
    /// Name, unit, and where a sample has it.
    type Kind = (&'static str, &'static str, fn(&Sample) -> f64);

    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        if has_wireguard {
            theirs.push(measure(wireguard_go, family)?);
        }
        ours.push(measure(meshd, family)?);
    }
    let median = |samples: &[Sample], of: fn(&Sample) -> f64| {
        percentile(&samples.iter().map(of).collect::<Vec<_>>(), 50).context("there are samples")
    };
    let mut figures = vec![];
    let kinds: [Kind; 3] = [
        ("TCP single stream", "Mbit/s", |s| s.tcp_mbit),
        ("processor time", "s/GB", |s| s.cpu_s_per_gb),
        ("round trip p50", "µs", |s| s.rtt_us),
    ];
    for (name, unit, of) in kinds {
        let value = median(&ours, of)?;
        let named = format!("{}: {name}", family.name);
        figures.push(Figure::new(&named, value, unit));
        if has_wireguard {
            let other = median(&theirs, of)?;
            figures.push(Figure::new(format!("{named}, wireguard-go"), other, unit));
            let ratio = Figure::new(format!("{named}, ratio"), value / other, "");
            figures.push(match name {
                "TCP single stream" => ratio.at_least(1.2),
                "processor time" => ratio.at_most(0.8),
                _ => ratio.at_most(0.7),
            });
        }
    }
    Ok(figures)
}

#[derive(Debug)]
struct Sample {
    tcp_mbit: f64,
    cpu_s_per_gb: f64,
    rtt_us: f64,
}

/// Two namespaces joined by a cable, gone with everything in them when dropped.
struct Pair {
    names: [String; 2],
    dir: PathBuf,
}

impl Pair {
    fn new() -> Result<Self> {
        let own = std::process::id();
        let names = ["a", "b"].map(|side| format!("meshbench-{own}-{side}"));
        let dir = std::env::temp_dir().join(format!("meshbench-{own}"));
        std::fs::create_dir_all(&dir)?;
        let pair = Self { names, dir };
        for name in &pair.names {
            ok(Command::new("ip").args(["netns", "add", name]))?;
            ok(&mut pair.inside(name, &["ip", "link", "set", "lo", "up"]))?;
        }
        let [a, b] = &pair.names;
        ok(Command::new("ip")
            .args(["link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b]))?;
        for (name, address) in pair.names.iter().zip(UNDERLAY) {
            ok(&mut pair.inside(name, &["ip", "addr", "add", &format!("{address}/24"), "dev", "cable"]))?;
            ok(&mut pair.inside(name, &["ip", "link", "set", "cable", "up"]))?;
        }
        Ok(pair)
    }

    #[expect(clippy::unused_self, reason = "the namespaces live as long as the pair")]
    fn inside(&self, name: &str, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).args(words);
        command
    }

    /// Processes that live in the two namespaces.
    fn pids(&self) -> Vec<u32> {
        let list = |name: &String| Command::new("ip").args(["netns", "pids", name]).output();
        let outputs = self.names.iter().filter_map(|name| list(name).ok());
        outputs
            .flat_map(|out| {
                String::from_utf8_lossy(&out.stdout).lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for signal in ["-TERM", "-KILL"] {
            let pids: Vec<String> = self.pids().iter().map(u32::to_string).collect();
            if pids.is_empty() {
                break;
            }
            let _ = Command::new("kill").arg(signal).args(pids).output();
            let _ = wait_until(Duration::from_secs(2), "they end", || self.pids().is_empty());
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn ok(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A tunnel that is up: the two addresses inside, and what must live on.
type Tunnel = ([String; 2], Vec<Child>);

/// The contender script of this folder, for whoever compares with other tools as well.
fn meshd(pair: &Pair, family: &Family) -> Result<Tunnel> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/mesh-contender.sh");
    let mut command = Command::new(script);
    command.arg("up").args(&pair.names).args(family.wireguard).env("MESH_FAMILY", family.number);
    command.env("MP_DIR", &pair.dir).env("MP_UA", UNDERLAY[0]).env("MP_UB", UNDERLAY[1]);
    let said = ok(&mut command)?;
    let (a, b) =
        said.lines().last().and_then(|line| line.split_once(' ')).context("the script printed no addresses")?;
    Ok(([a.to_owned(), b.to_owned()], vec![]))
}

fn wireguard_go(pair: &Pair, family: &Family) -> Result<Tunnel> {
    /// One end: its namespace, interface, file with the secret key, public key.
    type End<'a> = (&'a String, String, String, String);

    let (mut daemons, mut ends): (Vec<Child>, Vec<End<'_>>) = (vec![], vec![]);
    for (name, side) in pair.names.iter().zip(["a", "b"]) {
        // The name is known to the whole machine: wireguard-go's sockets lie in one folder.
        let device = format!("wg{}{side}", std::process::id());
        let secret = ok(Command::new("wg").arg("genkey"))?;
        let file = pair.dir.join(&device);
        std::fs::write(&file, &secret)?;
        let public = ok(Command::new("sh").args(["-c", "wg pubkey <\"$0\""]).arg(&file))?;
        let mut daemon = pair.inside(name, &["wireguard-go", "-f", &device]);
        daemons.push(daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        ends.push((name, device, file.display().to_string(), public.trim().to_owned()));
    }
    for (side, (name, device, file, _)) in ends.iter().enumerate() {
        let other = 1 - side;
        let endpoint = format!("{}:51820", UNDERLAY[other]);
        let allowed = format!("{}/{}", family.wireguard[other], family.host_length);
        let mut set = vec!["wg", "set", device, "private-key", file, "listen-port", "51820"];
        set.extend(["peer", &ends[other].3, "allowed-ips", &allowed, "endpoint", &endpoint]);
        wait_until(PATIENCE, "wireguard-go's interface", || ok(&mut pair.inside(name, &set)))?;
        let own = format!("{}/{}", family.wireguard[side], family.prefix_length);
        ok(&mut pair.inside(name, &["ip", "addr", "add", &own, "dev", device]))?;
        ok(&mut pair.inside(name, &["ip", "link", "set", device, "mtu", "1420", "up"]))?;
    }
    Ok((family.wireguard.map(str::to_owned), daemons))
}

fn measure(start: fn(&Pair, &Family) -> Result<Tunnel>, family: &Family) -> Result<Sample> {
    let pair = Pair::new()?;
    let ([_, target], mut daemons) = start(&pair, family)?;
    let [a, b] = &pair.names;
    wait_until(PATIENCE, "the tunnel", || ok(&mut pair.inside(a, &["ping", "-n", "-c", "1", "-W", "1", &target])))?;
    // Those that run now are the daemons under test.
    let pids = pair.pids();
    let pings = ok(&mut pair.inside(a, &["ping", "-n", "-i", "0.002", "-c", "2000", &target]))?;
    let rtts: Vec<f64> = pings
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok())
        .map(|ms| ms * 1e3)
        .collect();
    let mut server = pair.inside(b, &["iperf3", "-s"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let listening = || ok(&mut pair.inside(b, &["sh", "-c", "ss -Hlnt sport = :5201 | grep -q ."]));
    wait_until(PATIENCE, "iperf3 listens", listening)?;
    let before = cpu_s(&pids)?;
    let report = ok(&mut pair.inside(a, &["iperf3", "-c", &target, "-t", SECONDS, "-J"]))?;
    let took = cpu_s(&pids)? - before;
    let report: Value = serde_json::from_str(&report)?;
    let received = |what: &str| report["end"]["sum_received"][what].as_f64().context("iperf3's report");
    let sample = Sample {
        tcp_mbit: received("bits_per_second")? / 1e6,
        cpu_s_per_gb: took / (received("bytes")? / 1e9),
        rtt_us: percentile(&rtts, 50).context("answered pings")?,
    };
    server.kill()?;
    server.wait()?;
    drop(pair);
    for daemon in &mut daemons {
        daemon.wait()?;
    }
    Ok(sample)
}

fn cpu_s(pids: &[u32]) -> Result<f64> {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a daemon ended")?;
        crate::cpu::own_s(&stat).context("cannot read its processor time")
    };
    pids.iter().map(of).sum()
}
