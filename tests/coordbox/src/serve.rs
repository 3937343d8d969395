//! A node: its groups, and who connects to it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use meshd_coord::frames;
use meshd_coord::{FRAME_BYTES_MAX, Group, GroupSettings, Node, Timing};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use vdc::Key;

use crate::net::{BoxEnv, CONTROL, Peer, group, key, seed};

/// Who connects says by then who it is.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Connections at a time; more are hung up on.
const CONNECTIONS_MAX: usize = 4_096;

/// What `coordbox serve` takes.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Number of this node
    #[arg(long, visible_alias = "key-seed", value_name = "NUMBER")]
    pub seed: u32,
    /// Where others reach it
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Its files
    #[arg(long, value_name = "DIRECTORY")]
    pub data: PathBuf,
    /// The other nodes; again for each
    #[arg(long = "peer", value_name = "SEED=ADDRESS:PORT")]
    pub peers: Vec<Peer>,
    /// Whether it makes the groups, where they are not there yet
    #[arg(long)]
    pub found: bool,
    /// How many groups it serves, numbered from 0
    #[arg(long, default_value_t = 1)]
    pub groups: u32,
}

/// Serves a node until it is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// If the address or the files cannot be used.
pub async fn serve(options: &Serve) -> Result<()> {
    let env = BoxEnv::new(options.seed, &options.peers, &options.data)?;
    let node = Node::new(env.clone(), key(options.seed));
    // Waits in line from now on are answered once all groups are open.
    let listener = TcpListener::bind(options.listen).await.with_context(|| options.listen.to_string())?;
    for number in 0..options.groups {
        let settings = GroupSettings {
            id: group(number),
            node: key(options.seed),
            files: format!("group-{number}"),
            timing: Timing::default(),
            found: options.found,
            entries_per_checkpoint: GroupSettings::ENTRIES_PER_CHECKPOINT,
        };
        node.add(Group::open(env.clone(), settings).await.with_context(|| format!("group {number}"))?);
    }
    let mut out = std::io::stdout();
    writeln!(out, "{}", json!({ "listening": options.listen.to_string(), "seed": options.seed }))?;
    out.flush()?;
    let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // cancel-safe: a connection or a signal is taken whole.
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                while connections.try_join_next().is_some() {}
                if connections.len() < CONNECTIONS_MAX {
                    connections.spawn(connection(node.clone(), stream));
                }
            }
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    for group in node.groups() {
        group.close().await;
    }
    Ok(())
}

async fn connection(node: Node<BoxEnv>, mut stream: TcpStream) {
    let Ok(Ok(from)) = timeout(GREETING_LIMIT, stream.read_u32()).await else { return };
    let _ = stream.set_nodelay(true); // it is only slower without
    if from == CONTROL {
        let answer = move |frame: Bytes| {
            let node = node.clone();
            async move {
                let answered = control(&node, &frame).await;
                Bytes::from(answered.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })).to_string())
            }
        };
        frames::serve(stream, FRAME_BYTES_MAX, answer).await;
    } else {
        let from = key(from);
        let answer = move |frame: Bytes| {
            let node = node.clone();
            async move { node.answer(from, &frame).await }
        };
        frames::serve(stream, FRAME_BYTES_MAX, answer).await;
    }
}

fn number(question: &Value, name: &str) -> Result<u32> {
    let number = question[name].as_u64().and_then(|number| u32::try_from(number).ok());
    number.with_context(|| format!("{name} is missing"))
}

async fn control(node: &Node<BoxEnv>, frame: &[u8]) -> Result<Value> {
    let question: Value = serde_json::from_slice(frame).context("ask in JSON")?;
    let id = number(&question, "group").unwrap_or(0);
    let group = node.group(&group(id)).with_context(|| format!("group {id} is not served here"))?;
    match question["do"].as_str().unwrap_or_default() {
        "status" => {
            let standing = group.standing()?;
            let seeds = |keys: &mut dyn Iterator<Item = &Key>| keys.map(seed).collect::<BTreeSet<_>>();
            Ok(json!({
                "leader": standing.leader.as_ref().map(seed),
                "term": standing.term,
                "voters": seeds(&mut standing.voters.iter()),
                "learners": seeds(&mut standing.learners.iter()),
                "last_index": standing.last_index,
                "applied_index": standing.applied_index,
                "revision": standing.summary.revision.0,
                "keys": standing.summary.keys,
                "bytes": standing.summary.bytes,
                "stopped": group.running().err(),
            }))
        }
        "learner" => done(group.add_learner(key(number(&question, "node")?)).await),
        "remove" => done(group.remove_learner(key(number(&question, "node")?)).await),
        "voters" => {
            let nodes = question["nodes"].as_array().context("nodes are missing")?;
            let seeds = nodes.iter().map(|node| node.as_u64().and_then(|node| u32::try_from(node).ok()));
            let seeds: Option<Vec<u32>> = seeds.collect();
            let keys: Vec<Key> = seeds.context("nodes are numbers")?.into_iter().map(key).collect();
            done(group.set_voters(&keys).await)
        }
        other => bail!("{other:?} is no question; there are status, learner, remove, voters"),
    }
}

fn done(outcome: Result<(), meshd_coord::Trouble>) -> Result<Value> {
    outcome.map(|()| json!({ "done": true })).map_err(|trouble| anyhow::anyhow!("{trouble}"))
}
