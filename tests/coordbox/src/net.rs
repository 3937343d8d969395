//! Addresses and connections: each begins with four bytes that say who connects.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use meshd_coord::FRAME_BYTES_MAX;
use meshd_coord::env::TokioRuntime;
use meshd_coord::env::{Class, Directory, Env};
use meshd_coord::frames::Line;
use meshd_coord::lines::{Connect, Lines};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use vdc::{Hash, Key};

/// Who connects to ask about the node itself.
pub(crate) const CONTROL: u32 = u32::MAX;
/// Who connects as a client.
pub(crate) const CLIENT: u32 = u32::MAX - 1;
/// How long a question to a node may take.
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take until a group was founded.
const FOUND_LIMIT: Duration = Duration::from_secs(120);

/// A node: `SEED=ADDRESS`.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub seed: u32,
    pub address: SocketAddr,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (seed, address) = text.split_once('=').ok_or("write it as SEED=ADDRESS:PORT")?;
        let seed = seed.parse().map_err(|error| format!("{seed}: {error}"))?;
        Ok(Self { seed, address: address.parse().map_err(|error| format!("{address}: {error}"))? })
    }
}

pub(crate) fn key(seed: u32) -> Key {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_be_bytes());
    Key(bytes)
}

pub(crate) fn seed(key: &Key) -> u32 {
    key.0[..4].iter().fold(0, |all, byte| all << 8 | u32::from(*byte))
}

pub(crate) fn group(number: u32) -> Hash {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    Hash(bytes)
}

/// Connects to nodes by the addresses that the command line gave.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    own: u32,
    peers: BTreeMap<Key, SocketAddr>,
}

impl Connect for Tcp {
    type Stream = TcpStream;

    async fn connect(&self, to: Key, _: Class) -> io::Result<TcpStream> {
        let address = self.peers.get(&to).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        open(*address, self.own).await
    }
}

async fn open(address: SocketAddr, own: u32) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_u32(own).await?;
    Ok(stream)
}

/// The driver's world in this process.
#[derive(Clone, Debug)]
pub(crate) struct BoxEnv {
    disk: Directory,
    lines: Lines<Tcp>,
}

impl BoxEnv {
    pub(crate) fn new(own: u32, peers: &[Peer], data: &Path) -> Result<Self> {
        let peers = peers.iter().map(|peer| (key(peer.seed), peer.address)).collect();
        let disk = Directory::open(data).with_context(|| data.display().to_string())?;
        Ok(Self { disk, lines: Lines::new(Tcp { own, peers }) })
    }
}

impl Env for BoxEnv {
    type Runtime = TokioRuntime;
    type Disk = Directory;
    type Transport = Lines<Tcp>;

    fn disk(&self) -> &Directory {
        &self.disk
    }
    fn transport(&self) -> &Lines<Tcp> {
        &self.lines
    }
    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel has random bytes");
        bytes
    }
}

/// Puts one question to a node.
///
/// # Errors
/// If it cannot be reached, or says that it cannot.
pub async fn ask(address: SocketAddr, question: &Value) -> Result<Value> {
    let asked = async {
        let stream = open(address, CONTROL).await.with_context(|| format!("cannot reach {address}"))?;
        let (line, moving) = Line::new(stream, FRAME_BYTES_MAX);
        let answered = async move { line.ask(Bytes::from(question.to_string())).await };
        let (answer, ()) = tokio::join!(answered, moving);
        let Ok(answer) = answer else { bail!("{address} hung up") };
        let answer: Value = serde_json::from_slice(&answer).context("it answers in JSON")?;
        match answer["error"].as_str() {
            Some(why) => bail!("{address}: {why}"),
            None => Ok(answer),
        }
    };
    timeout(ASK_LIMIT, asked).await.with_context(|| format!("{address} does not answer"))?
}

/// Makes voters of these nodes, of which the first was started with `--found`.
///
/// # Errors
/// If it takes too long.
pub async fn found(peers: &[Peer], groups: u32) -> Result<()> {
    let first = peers.first().context("no peer is named")?;
    for group in 0..groups {
        let deadline = Instant::now() + FOUND_LIMIT;
        for peer in &peers[1..] {
            insist(first.address, &json!({ "do": "learner", "group": group, "node": peer.seed }), deadline).await?;
        }
        let nodes: Vec<u32> = peers.iter().map(|peer| peer.seed).collect();
        insist(first.address, &json!({ "do": "voters", "group": group, "nodes": nodes }), deadline).await?;
    }
    Ok(())
}

async fn insist(address: SocketAddr, question: &Value, deadline: Instant) -> Result<()> {
    while let Err(error) = ask(address, question).await {
        if Instant::now() > deadline {
            return Err(error);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
