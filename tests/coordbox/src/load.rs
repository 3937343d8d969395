//! Load: many clients that write or read as fast as they can, or at a rate; and whether all that was acknowledged is there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use meshd_coord::{Client, ClientError, Node};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use vdc::Key;
use vdc_coord::{Op, Transaction};

use crate::etcd::Etcd;
use crate::net::{BoxEnv, CLIENT, Peer, group, key};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Requests under way at a rate; more wait.
const UNDER_WAY_MAX: usize = 8_192;
/// Rows of one page of a check.
const PAGE: usize = 1_000;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Writes,
    Reads,
}

/// What `coordbox load` takes.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// The nodes, the one to be asked first; again for each
    #[arg(long = "peer", value_name = "SEED=ADDRESS:PORT")]
    pub peers: Vec<Peer>,
    /// A member of an etcd to be asked instead
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub etcd: Option<SocketAddr>,
    /// Connections to etcd
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Number of the group
    #[arg(long, default_value_t = 0)]
    pub group: u32,
    #[arg(long, value_enum, default_value_t = Kind::Writes)]
    pub kind: Kind,
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// How long
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// After so many requests in all, if that is sooner
    #[arg(long)]
    pub count: Option<u64>,
    /// Different keys that are written and read
    #[arg(long, default_value_t = 1_000)]
    pub keys: u64,
    /// Rows of one transaction
    #[arg(long, default_value_t = 1)]
    pub rows: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 200)]
    pub value_bytes: usize,
    /// Transactions a second, each of a key of its own, instead of as many as there can be
    #[arg(long)]
    pub rate: Option<u32>,
    /// Where to note each request (with --rate)
    #[arg(long, requires = "rate", value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// What `coordbox check` takes.
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// The nodes; again for each
    #[arg(long = "peer", value_name = "SEED=ADDRESS:PORT", required = true)]
    pub peers: Vec<Peer>,
    /// Number of the group
    #[arg(long, default_value_t = 0)]
    pub group: u32,
    /// What `coordbox load --record` noted
    #[arg(long, value_name = "FILE")]
    pub record: PathBuf,
}

#[derive(Clone)]
enum Target {
    Ours(Client<BoxEnv>),
    Etcd(Etcd),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Not,
    Unknown,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Not => "not",
            Self::Unknown => "unknown",
        }
    }
}

impl Target {
    async fn put(&self, rows: Vec<(Vec<u8>, Vec<u8>)>) -> Outcome {
        match self {
            Self::Etcd(etcd) => match etcd.put(&rows).await {
                Ok(()) => Outcome::Done,
                Err(_) => Outcome::Unknown,
            },
            Self::Ours(client) => {
                let put =
                    |(key, value): (Vec<u8>, Vec<u8>)| Op::Put { key: key.into(), value: value.into(), lease: None };
                let success = rows.into_iter().map(put).collect();
                match client.transact(Transaction { success, ..Transaction::default() }, LIMIT).await {
                    Ok(_) => Outcome::Done,
                    Err(ClientError::Unknown { .. }) => Outcome::Unknown,
                    Err(_) => Outcome::Not,
                }
            }
        }
    }

    async fn get(&self, key: &[u8]) -> Outcome {
        let read = match self {
            Self::Etcd(etcd) => etcd.get(key).await.is_ok(),
            Self::Ours(client) => client.get(key, LIMIT).await.is_ok(),
        };
        if read { Outcome::Done } else { Outcome::Not }
    }
}

async fn targets(options: &Load, moving: &mut JoinSet<()>) -> Result<Vec<Target>> {
    if let Some(address) = options.etcd {
        let mut connections = vec![];
        for _ in 0..options.connections.max(1) {
            connections.push(Target::Etcd(Etcd::connect(address, moving).await?));
        }
        return Ok(connections.iter().cycle().take(options.clients).cloned().collect());
    }
    if options.peers.is_empty() {
        bail!("name the nodes with --peer, or a member of etcd with --etcd");
    }
    let node = node(&options.peers)?;
    let keys: Vec<Key> = options.peers.iter().map(|peer| key(peer.seed)).collect();
    Ok((0..options.clients).map(|_| Target::Ours(Client::new(node.clone(), group(options.group), &keys))).collect())
}

fn node(peers: &[Peer]) -> Result<Node<BoxEnv>> {
    // Clients keep nothing there.
    Ok(Node::new(BoxEnv::new(CLIENT, peers, &std::env::temp_dir())?, key(CLIENT)))
}

/// The value at a rank of 100.
fn rank(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Puts load on a group and says how it went.
///
/// # Errors
/// If no node can be named, or the record cannot be written.
pub async fn load(options: &Load) -> Result<Value> {
    let mut moving = JoinSet::new();
    let targets = targets(options, &mut moving).await?;
    match options.rate {
        Some(rate) => at_rate(options, rate, targets).await,
        None => at_once(options, targets).await,
    }
}

async fn at_once(options: &Load, targets: Vec<Target>) -> Result<Value> {
    let (kind, keys, rows, length) = (options.kind, options.keys.max(1), options.rows.max(1), options.value_bytes);
    let (next, count) = (Arc::new(AtomicU64::new(0)), options.count.unwrap_or(u64::MAX));
    let (started, time) = (Instant::now(), Duration::from_secs(options.seconds));
    let mut tasks = JoinSet::new();
    for target in targets {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let (mut took, mut failed) = (vec![], 0_u64);
            while started.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    break;
                }
                let name = |row: u64| format!("key {:09}", (number * rows + row) % keys).into_bytes();
                let began = Instant::now();
                let outcome = match kind {
                    Kind::Writes => target.put((0..rows).map(|row| (name(row), vec![b'v'; length])).collect()).await,
                    Kind::Reads => target.get(&name(0)).await,
                };
                match outcome {
                    Outcome::Done => took.push(micros(began.elapsed())),
                    Outcome::Not | Outcome::Unknown => failed += 1,
                }
            }
            (took, failed)
        });
    }
    let (mut took, mut failed) = (vec![], 0);
    while let Some(ended) = tasks.join_next().await {
        let (more, others) = ended?;
        took.extend(more);
        failed += others;
    }
    let seconds = started.elapsed().as_secs_f64();
    took.sort_unstable();
    Ok(json!({
        "done": took.len(),
        "failed": failed,
        "seconds": seconds,
        "per_second": f64::from(u32::try_from(took.len())?) / seconds,
        "p50_us": rank(&took, 50),
        "p99_us": rank(&took, 99),
    }))
}

/// One request of [`at_rate`], times in microseconds from the beginning.
struct Noted {
    key: String,
    outcome: Outcome,
    asked_us: u64,
    ended_us: u64,
}

async fn at_rate(options: &Load, rate: u32, targets: Vec<Target>) -> Result<Value> {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let (started, time, length) = (Instant::now(), Duration::from_secs(options.seconds), options.value_bytes);
    let mut tasks = JoinSet::new();
    let mut noted: Vec<Noted> = vec![];
    for (number, target) in (0..options.count.unwrap_or(u64::MAX)).zip(targets.iter().cycle()) {
        ticks.tick().await;
        if started.elapsed() >= time {
            break;
        }
        while let Some(ended) = tasks.try_join_next() {
            noted.push(ended?);
        }
        let (place, target) = (Arc::clone(&places).acquire_owned().await?, target.clone());
        tasks.spawn(async move {
            let _place = place;
            let asked_us = micros(started.elapsed());
            let key = format!("once {number:09}");
            let outcome = target.put(vec![(key.clone().into_bytes(), vec![b'v'; length])]).await;
            Noted { key, outcome, asked_us, ended_us: micros(started.elapsed()) }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        noted.push(ended?);
    }
    if let Some(file) = &options.record {
        let mut text = String::new();
        for Noted { key, outcome, asked_us, ended_us } in &noted {
            writeln!(text, "{key}\t{}\t{asked_us}\t{ended_us}", outcome.word())?;
        }
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    let count = |outcome| noted.iter().filter(|noted| noted.outcome == outcome).count();
    let done = noted.iter().filter(|noted| noted.outcome == Outcome::Done);
    let mut ends: Vec<u64> = done.clone().map(|noted| noted.ended_us).collect();
    ends.sort_unstable();
    let mut took: Vec<u64> = done.map(|noted| noted.ended_us - noted.asked_us).collect();
    took.sort_unstable();
    Ok(json!({
        "asked": noted.len(),
        "done": count(Outcome::Done),
        "not": count(Outcome::Not),
        "unknown": count(Outcome::Unknown),
        "seconds": started.elapsed().as_secs_f64(),
        // The longest time in which nothing was acknowledged.
        "pause_us": ends.windows(2).map(|pair| pair[1] - pair[0]).max(),
        "p50_us": rank(&took, 50),
        "p99_us": rank(&took, 99),
    }))
}

/// Holds what was noted against what the group has: each key of the record was put once, or not.
///
/// # Errors
/// If the record cannot be read, or the group does not answer.
pub async fn check(options: &Check) -> Result<Value> {
    let text = std::fs::read_to_string(&options.record).with_context(|| options.record.display().to_string())?;
    let keys: Vec<Key> = options.peers.iter().map(|peer| key(peer.seed)).collect();
    let client = Client::new(node(&options.peers)?, group(options.group), &keys);
    let mut found: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut from = b"once ".to_vec();
    loop {
        let page = client.range(&from, b"once!", PAGE, None, LIMIT).await?;
        let Some((last, _)) = page.rows.last() else { break };
        from = [last.as_slice(), b"\0"].concat();
        found.extend(page.rows.iter().map(|(key, row)| (key.to_vec(), row.version)));
    }
    let (mut lost, mut acknowledged, mut never, mut unknown_there) = (0, 0, 0, 0);
    for line in text.lines() {
        let (key, rest) = line.split_once('\t').context("a line of the record is cut off")?;
        let there = found.contains_key(key.as_bytes());
        match rest.split('\t').next() {
            Some("done") => (acknowledged, lost) = (acknowledged + 1, lost + u64::from(!there)),
            Some("not") => never += u64::from(there),
            _ => unknown_there += u64::from(there),
        }
    }
    Ok(json!({
        "acknowledged": acknowledged,
        "lost": lost,
        "duplicated": found.values().filter(|version| **version != 1).count(),
        "refused_but_there": never,
        "unknown_and_there": unknown_there,
    }))
}
