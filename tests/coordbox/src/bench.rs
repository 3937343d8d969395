//! The bench: three nodes on this machine, each a process with its own directory, and three of etcd's by turns.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::etcd::Etcd;
use crate::load::{Check, Kind, Load, check, load};
use crate::net::{Peer, ask, found};

/// How long a process may take until it does what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 7_601;
const ETCD_PORT: u16 = 7_701;

/// What `coordbox bench` takes.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// Where the nodes' files are made; the disk of that directory is measured
    #[arg(long, value_name = "DIRECTORY")]
    pub data: PathBuf,
    /// The program of etcd; without it, only our own nodes are measured
    #[arg(long, value_name = "FILE")]
    pub etcd: Option<PathBuf>,
    /// Seconds of each measurement of a rate
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// How often the leader is killed
    #[arg(long, default_value_t = 20)]
    pub kills: usize,
    /// Keys of the large store
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u64,
    /// Measure only this; again for each
    #[arg(long, value_enum)]
    pub only: Vec<Part>,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Writes and linearizable reads a second, beside etcd and raw flushes
    Rates,
    /// How long nobody writes after the leader is killed
    Kills,
    /// A leader that is stopped under load
    Dark,
    /// Processor time of groups that nobody asks
    Idle,
    /// Memory, snapshot and restart of a large store
    Large,
}

/// A process that ends with its handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

fn peers(count: u32) -> Vec<Peer> {
    let port = |seed: u32| PORT + u16::try_from(seed).expect("few nodes");
    (1..=count).map(|seed| Peer { seed, address: SocketAddr::from(([127, 0, 0, 1], port(seed))) }).collect()
}

fn argument(peer: &Peer) -> String {
    format!("{}={}", peer.seed, peer.address)
}

/// Our own nodes.
struct Ours {
    peers: Vec<Peer>,
    nodes: Vec<Option<Process>>,
    data: PathBuf,
    groups: u32,
}

impl Ours {
    async fn start(data: PathBuf, count: u32, groups: u32) -> Result<Self> {
        let peers = peers(count);
        let mut ours = Self { nodes: peers.iter().map(|_| None).collect(), peers, data, groups };
        for index in 0..ours.peers.len() {
            ours.up(index)?;
        }
        found(&ours.peers, groups).await?;
        Ok(ours)
    }

    fn up(&mut self, index: usize) -> Result<()> {
        let own = self.peers[index];
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--seed", &own.seed.to_string(), "--listen", &own.address.to_string()]);
        command.arg("--data").arg(self.data.join(own.seed.to_string())).args(["--groups", &self.groups.to_string()]);
        for peer in self.peers.iter().filter(|peer| peer.seed != own.seed) {
            command.args(["--peer", &argument(peer)]);
        }
        if index == 0 {
            command.arg("--found");
        }
        let child = command.stdout(Stdio::null()).spawn().context("cannot start a node")?;
        self.nodes[index] = Some(Process(child));
        Ok(())
    }

    /// The place of the leader among the nodes, waited for.
    async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (index, peer) in self.peers.iter().enumerate().filter(|(index, _)| self.nodes[*index].is_some()) {
                let said = ask(peer.address, &json!({ "do": "status" })).await;
                if said.is_ok_and(|said| said["leader"] == peer.seed) {
                    return Ok(index);
                }
            }
            if Instant::now() > deadline {
                bail!("nobody leads");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Load on it, the leader asked first.
    async fn load(&self) -> Result<Load> {
        let leader = self.leader().await?;
        let mut peers = self.peers.clone();
        peers.rotate_left(leader);
        Ok(Load { peers, ..no_load() })
    }

    fn id(&self, index: usize) -> Result<u32> {
        self.nodes[index].as_ref().map(|node| node.0.id()).context("it runs")
    }
}

fn no_load() -> Load {
    Load {
        peers: vec![],
        etcd: None,
        connections: 1,
        group: 0,
        kind: Kind::Writes,
        clients: 1,
        seconds: 5,
        count: None,
        keys: 10_000,
        rows: 1,
        value_bytes: 200,
        rate: None,
        record: None,
    }
}

/// Three members of an etcd, and the address of the one that leads.
async fn start_etcd(program: &Path, data: &Path) -> Result<(Vec<Process>, SocketAddr)> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let cluster: Vec<String> = (0..3).map(|number| format!("e{number}={}", url(ETCD_PORT + 10 + number))).collect();
    let mut members = vec![];
    for number in 0..3 {
        let (client, peer) = (url(ETCD_PORT + number), url(ETCD_PORT + 10 + number));
        let mut command = Command::new(program);
        command.args(["--name", &format!("e{number}"), "--log-level", "error"]);
        command.arg("--data-dir").arg(data.join(format!("e{number}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--quota-backend-bytes", "8000000000"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        members.push(Process(command.spawn().with_context(|| program.display().to_string())?));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        for number in 0..3 {
            let address = SocketAddr::from(([127, 0, 0, 1], ETCD_PORT + number));
            let mut moving = tokio::task::JoinSet::new();
            let Ok(member) = Etcd::connect(address, &mut moving).await else { continue };
            let asked = tokio::time::timeout(Duration::from_secs(2), member.leads()).await;
            if matches!(asked, Ok(Ok(true))) {
                return Ok((members, address));
            }
        }
        if Instant::now() > deadline {
            bail!("no member of etcd leads");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Flushes of 4 KiB that were appended, a second.
fn raw(data: &Path, time: Duration) -> Result<f64> {
    let file = File::create(data.join("raw"))?;
    let (started, mut count) = (std::time::Instant::now(), 0_u32);
    while started.elapsed() < time {
        file.write_all_at(&[7; 4_096], 4_096 * u64::from(count))?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

fn rss_mb(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1_024.0 / 1e6)
}

/// Processor time of a process so far, in seconds.
fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_ascii_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("stat")?.parse()?) };
    // Linux counts them in hundredths for every program.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn rate(said: &Value) -> Result<f64> {
    if said["failed"].as_u64() != Some(0) {
        bail!("some requests failed: {said}");
    }
    said["per_second"].as_f64().context("a rate")
}

/// Writes with 64 clients and with one, and reads with 64.
async fn rates(target: Load, seconds: u64) -> Result<[f64; 3]> {
    let run = |kind, clients| load_owned(Load { kind, clients, seconds, ..target.clone() });
    Ok([rate(&run(Kind::Writes, 64).await?)?, rate(&run(Kind::Writes, 1).await?)?, rate(&run(Kind::Reads, 64).await?)?])
}

async fn load_owned(options: Load) -> Result<Value> {
    load(&options).await
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures everything; prints each figure as it comes, and gives them all.
///
/// # Errors
/// If a process does not start or does not do what it should.
pub async fn bench(options: &Bench, mut tell: impl FnMut(&Value)) -> Result<()> {
    let data = options.data.join("coordbox-bench");
    if data.exists() {
        fs::remove_dir_all(&data)?;
    }
    fs::create_dir_all(&data)?;
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    if wanted(Part::Rates) {
        rates_beside_etcd(options, &data, &mut tell).await?;
    }
    if wanted(Part::Kills) {
        kills(options, &data, &mut tell).await?;
    }
    if wanted(Part::Dark) {
        dark(&data, &mut tell).await?;
    }
    if wanted(Part::Idle) {
        idle(&data, &mut tell).await?;
    }
    if wanted(Part::Large) {
        large(options, &data, &mut tell).await?;
    }
    fs::remove_dir_all(&data)?;
    Ok(())
}

async fn rates_beside_etcd(options: &Bench, data: &Path, tell: &mut impl FnMut(&Value)) -> Result<()> {
    const ROUNDS: usize = 3;
    let names = ["writes/s, 64 clients", "writes/s, 1 client", "linearizable reads/s, 64 clients"];
    let (mut flushes, mut own, mut others) = (vec![], [vec![], vec![], vec![]], [vec![], vec![], vec![]]);
    for round in 0..ROUNDS {
        flushes.push(raw(data, Duration::from_secs(2))?);
        let ours = Ours::start(data.join(format!("ours-{round}")), 3, 1).await?;
        let seen = rates(ours.load().await?, options.seconds).await?;
        own.iter_mut().zip(seen).for_each(|(all, seen)| all.push(seen));
        drop(ours);
        if let Some(program) = &options.etcd {
            let (members, leader) = start_etcd(program, &data.join(format!("etcd-{round}"))).await?;
            let target = Load { etcd: Some(leader), connections: 8, ..no_load() };
            let seen = rates(target, options.seconds).await?;
            others.iter_mut().zip(seen).for_each(|(all, seen)| all.push(seen));
            drop(members);
        }
    }
    let flushes = median(flushes);
    tell(&json!({ "figure": "raw fdatasync of 4 KiB appended", "value": flushes, "unit": "1/s" }));
    for ((name, own), other) in names.into_iter().zip(own).zip(others) {
        let own = median(own);
        tell(&json!({ "figure": name, "value": own, "unit": "1/s" }));
        if !other.is_empty() {
            let other = median(other);
            tell(&json!({ "figure": format!("etcd: {name}"), "value": other, "unit": "1/s" }));
            tell(&json!({ "figure": format!("beside etcd: {name}"), "value": own / other, "unit": "ratio" }));
        }
        if name.contains("1 client") {
            tell(&json!({ "figure": "1 client beside raw fdatasync", "value": own / flushes, "unit": "ratio" }));
        }
    }
    Ok(())
}

async fn kills(options: &Bench, data: &Path, tell: &mut impl FnMut(&Value)) -> Result<()> {
    let mut ours = Ours::start(data.join("kills"), 3, 1).await?;
    let mut took = vec![];
    for _ in 0..options.kills {
        let leader = ours.leader().await?;
        let mut target = ours.load().await?;
        target.peers.rotate_left(1);
        target.count = Some(1);
        ours.nodes[leader] = None;
        let killed = Instant::now();
        rate(&load_owned(target).await?)?;
        took.push(killed.elapsed().as_secs_f64());
        ours.up(leader)?;
        // The next is killed when all three are there again.
        let target = ours.load().await?;
        rate(&load_owned(Load { count: Some(50), ..target }).await?)?;
        let deadline = Instant::now() + PATIENCE;
        while ask(ours.peers[leader].address, &json!({ "do": "status" })).await.is_err() {
            if Instant::now() > deadline {
                bail!("a node does not come back");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    took.sort_by(f64::total_cmp);
    let rank = |percent: usize| took.get((took.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    tell(&json!({ "figure": "leader killed, writes again, p50", "value": rank(50), "unit": "s" }));
    tell(&json!({ "figure": "leader killed, writes again, p95", "value": rank(95), "unit": "s" }));
    Ok(())
}

/// The leader is stopped, as if its site was cut off, and goes on later.
async fn dark(data: &Path, tell: &mut impl FnMut(&Value)) -> Result<()> {
    let ours = Ours::start(data.join("dark"), 3, 1).await?;
    let record = data.join("record");
    let target =
        Load { clients: 64, rate: Some(1_000), seconds: 30, record: Some(record.clone()), ..ours.load().await? };
    let process = ours.id(ours.leader().await?)?;
    let turn = async {
        sleep(Duration::from_secs(10)).await;
        signal(process, "-STOP")?;
        sleep(Duration::from_secs(10)).await;
        signal(process, "-CONT")
    };
    let (said, turned) = tokio::join!(load_owned(target), turn);
    turned?;
    let said = said?;
    let checked = check(&Check { peers: ours.peers.clone(), group: 0, record }).await?;
    let pause = said["pause_us"].as_f64().map(|pause| pause / 1e6);
    tell(&json!({ "figure": "leader dark at 1,000/s: acknowledged", "value": checked["acknowledged"], "unit": "" }));
    tell(&json!({ "figure": "leader dark at 1,000/s: lost", "value": checked["lost"], "unit": "" }));
    tell(&json!({ "figure": "leader dark at 1,000/s: duplicated", "value": checked["duplicated"], "unit": "" }));
    tell(&json!({ "figure": "leader dark at 1,000/s: longest pause", "value": pause, "unit": "s" }));
    Ok(())
}

fn signal(process: u32, signal: &str) -> Result<()> {
    let status = Command::new("kill").args([signal, &process.to_string()]).status()?;
    if status.success() { Ok(()) } else { bail!("kill {signal}: {status}") }
}

async fn idle(data: &Path, tell: &mut impl FnMut(&Value)) -> Result<()> {
    const TIME: Duration = Duration::from_secs(20);
    for groups in [1, 100] {
        let ours = Ours::start(data.join(format!("idle-{groups}")), 3, groups).await?;
        sleep(Duration::from_secs(5)).await;
        let ids: Vec<u32> = (0..3).map(|index| ours.id(index)).collect::<Result<_>>()?;
        let before: Vec<f64> = ids.iter().map(|id| cpu_seconds(*id)).collect::<Result<_>>()?;
        sleep(TIME).await;
        let mut most = 0.0_f64;
        for (id, before) in ids.iter().zip(before) {
            most = most.max((cpu_seconds(*id)? - before) / TIME.as_secs_f64() * 100.0);
        }
        tell(
            &json!({ "figure": format!("idle, {groups} groups, busiest of 3 nodes"), "value": most, "unit": "% CPU" }),
        );
    }
    Ok(())
}

async fn large(options: &Bench, data: &Path, tell: &mut impl FnMut(&Value)) -> Result<()> {
    let mut ours = Ours::start(data.join("large"), 4, 1).await?;
    // The fourth leaves, and comes back empty later.
    let leader = ours.leader().await?;
    ask(ours.peers[leader].address, &json!({ "do": "voters", "nodes": [1, 2, 3] })).await?;
    let target = ours.load().await?;
    ask(ours.peers[leader].address, &json!({ "do": "remove", "node": 4 })).await?;
    ours.nodes[3] = None;
    fs::remove_dir_all(ours.data.join("4"))?;
    let fill =
        Load { clients: 16, rows: 100, keys: options.keys, count: Some(options.keys / 100), seconds: 600, ..target };
    let began = Instant::now();
    rate(&load_owned(fill).await?)?;
    tell(&json!({ "figure": "filling by 100 rows", "value": began.elapsed().as_secs_f64(), "unit": "s" }));
    let mut most = 0.0_f64;
    for index in 0..3 {
        most = most.max(rss_mb(ours.id(index)?)?);
    }
    tell(&json!({ "figure": format!("{} keys: RSS, largest of 3", options.keys), "value": most, "unit": "MB" }));
    let leader = ours.leader().await?;
    ours.up(3)?;
    let began = Instant::now();
    found_one(&ours, leader, 4).await?;
    reach(&ours, 3, options.keys).await?;
    tell(&json!({ "figure": "an empty node has all of it", "value": began.elapsed().as_secs_f64(), "unit": "s" }));
    let other = (leader + 1) % 3;
    ours.nodes[other] = None;
    let began = Instant::now();
    ours.up(other)?;
    reach(&ours, other, options.keys).await?;
    tell(
        &json!({ "figure": "killed and started again, until it has all", "value": began.elapsed().as_secs_f64(), "unit": "s" }),
    );
    tell(&json!({ "figure": "its RSS then", "value": rss_mb(ours.id(other)?)?, "unit": "MB" }));
    Ok(())
}

async fn found_one(ours: &Ours, leader: usize, node: u32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = ask(ours.peers[leader].address, &json!({ "do": "learner", "node": node })).await {
        if Instant::now() > deadline {
            return Err(error);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn reach(ours: &Ours, index: usize, keys: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE * 5;
    loop {
        let said = ask(ours.peers[index].address, &json!({ "do": "status" })).await;
        if said.is_ok_and(|said| said["keys"].as_u64() == Some(keys)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("node {index} does not get there");
        }
        sleep(Duration::from_millis(20)).await;
    }
}
