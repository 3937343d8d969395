//! Short names: which node's workload `WORKLOAD.SITE` means, and which `WORKLOAD` of the whole VDC does.
//!
//! A site's group holds the names of that site, the VDC's group those of the VDC: at `name/WORKLOAD` stands the key of the node
//! to which the name belongs. A node takes a name that nobody has when it has a workload of that name, and gives it up with the
//! workload. Whether a name counts is judged with the records: it must be a workload's that its node names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshd_coord::ClientError;
use tokio::sync::watch;
use vdc::record::Home;
use vdc::roster::{Clash, View};
use vdc::{Key, Name, SiteNumber};
use vdc_coord::{Compare, Condition, Op, Revision, Transaction};

use super::{Client, Coord};

pub(super) const PREFIX: &[u8] = b"name/";
/// What follows all names.
const END: &[u8] = b"name0";
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How often names are looked at again without a reason.
const AGAIN: Duration = Duration::from_secs(30);
/// How soon a change of the view is acted on; several that come together are one.
const SOON: Duration = Duration::from_millis(300);
/// Rows of a page.
const PAGE_ROWS: usize = 1_000;
/// Names of one home that are kept; more are not looked at.
const NAMES_MAX: usize = 100_000;

/// Which node has a name, by home.
pub(crate) type Claims = BTreeMap<Home, BTreeMap<Name, Key>>;

/// Whether a node has a workload of a name where it counts for a home.
pub(super) fn has(view: &View, home: Home, node: &Key, name: &Name) -> bool {
    let member = view.members.get(node).filter(|member| match home {
        Home::Vdc => true,
        Home::Site(number) => member.site == number,
    });
    member.is_some_and(|member| member.workloads.iter().any(|workload| workload.name == *name))
}

/// Takes, gives up and learns names, for as long as the VDC is served.
pub(super) async fn run(coord: Coord, claims: watch::Sender<Arc<Claims>>) {
    let mut views = coord.views();
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let mut known = Claims::default();
        let mut seen = vec![];
        for home in coord.homes_of_names(&view) {
            match names_of(&coord, home).await {
                Ok((names, revision)) => {
                    let changed = settle(&coord, &view, home, &names).await;
                    let again = if changed { names_of(&coord, home).await.ok() } else { None };
                    let (names, revision) = again.unwrap_or((names, revision));
                    known.insert(home, names);
                    seen.push((home, revision));
                }
                Err(error) => {
                    tracing::debug!(?home, %error, "names cannot be read");
                    // What was known goes on to count: names do not change while nobody can agree on a change.
                    let before = claims.borrow().get(&home).cloned();
                    known.extend(before.map(|names| (home, names)));
                }
            }
        }
        for (site, names) in contested_elsewhere(&view, coord.own_site(&view)) {
            let home = Home::Site(site);
            let before = claims.borrow().get(&home).cloned().unwrap_or_default();
            let entry = known.entry(home).or_default();
            for name in names {
                match holder(&coord, home, &name).await {
                    Ok(Some(key)) => drop(entry.insert(name, key)),
                    Ok(None) => {}
                    Err(_) => entry.extend(before.get(&name).map(|key| (name, *key))),
                }
            }
        }
        claims.send_if_modified(|last| {
            let changed = **last != known;
            if changed {
                *last = Arc::new(known);
            }
            changed
        });
        // cancel-safe: nothing is lost with either.
        tokio::select! {
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(SOON).await;
            }
            () = changed(&coord, &seen) => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Names that two nodes of another site claim: what its group says is asked for, as we keep only our own.
fn contested_elsewhere(view: &View, own: Option<SiteNumber>) -> BTreeMap<SiteNumber, BTreeSet<Name>> {
    let mut contested: BTreeMap<SiteNumber, BTreeSet<Name>> = BTreeMap::new();
    for clash in &view.clashes {
        if let Clash::WorkloadName { site, name, .. } = clash
            && Some(*site) != own
        {
            contested.entry(*site).or_default().insert(name.clone());
        }
    }
    contested
}

async fn names_of(coord: &Coord, home: Home) -> Result<(BTreeMap<Name, Key>, Revision), ClientError> {
    let client = coord.client(home)?;
    let mut names = BTreeMap::new();
    let (mut from, mut at) = (PREFIX.to_vec(), None);
    loop {
        let page = client.range(&from, END, PAGE_ROWS, at, LIMIT).await?;
        for (key, row) in &page.rows {
            let name = key.strip_prefix(PREFIX).and_then(|name| Name::new(std::str::from_utf8(name).ok()?).ok());
            let node = row.value.as_slice().try_into().map(Key).ok();
            names.extend(name.zip(node));
        }
        match page.rows.last() {
            Some((last, _)) if page.more && names.len() < NAMES_MAX => {
                from = [last.as_slice(), b"\0"].concat();
                at = Some(page.revision);
            }
            _ => return Ok((names, page.revision)),
        }
    }
}

/// Waits until a name changes in one of these homes, of which is known what was there at a revision.
async fn changed(coord: &Coord, seen: &[(Home, Revision)]) {
    let watches = seen.iter().filter_map(|(home, revision)| {
        let mut watch = coord.client(*home).ok()?.watch(PREFIX, END, Revision(revision.0 + 1));
        Some(Box::pin(async move { watch.next().await }))
    });
    let watches: Vec<_> = watches.collect();
    if watches.is_empty() {
        return std::future::pending().await;
    }
    let _what = futures::future::select_all(watches).await; // it is all read again
}

async fn holder(coord: &Coord, home: Home, name: &Name) -> Result<Option<Key>, ClientError> {
    let (row, _) = coord.client(home)?.get(&key_of(name), LIMIT).await?;
    Ok(row.and_then(|row| row.value.as_slice().try_into().map(Key).ok()))
}

fn key_of(name: &Name) -> Vec<u8> {
    [PREFIX, name.as_str().as_bytes()].concat()
}

/// What this node does about the names of a home.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Take { name: Name, from: Option<Key> },
    GiveUp { name: Name },
}

/// What is to be changed so that this node has what it may have, and nothing else.
fn changes(view: &View, home: Home, own: &Key, names: &BTreeMap<Name, Key>) -> Vec<Change> {
    let Some(member) = view.members.get(own).filter(|member| member.standing.is_reachable()) else { return vec![] };
    let given_up = names.iter().filter(|(name, holder)| *holder == own && !has(view, home, own, name));
    let mut changes: Vec<Change> = given_up.map(|(name, _)| Change::GiveUp { name: name.clone() }).collect();
    for workload in &member.workloads {
        let name = &workload.name;
        match names.get(name) {
            Some(holder) if holder == own || has(view, home, holder, name) => {}
            // The one that had it by the records takes it first.
            None if home != Home::Vdc && !workload.has_short_name => {}
            before => changes.push(Change::Take { name: name.clone(), from: before.copied() }),
        }
    }
    changes
}

/// Makes these changes. Says whether there were any.
async fn settle(coord: &Coord, view: &View, home: Home, names: &BTreeMap<Name, Key>) -> bool {
    let own = coord.own_key();
    let changes = changes(view, home, &own, names);
    for change in &changes {
        let done = match coord.client(home) {
            Ok(client) => make(&client, &own, change).await,
            Err(error) => Err(error),
        };
        match done {
            // Somebody was faster: the next look shows who.
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(?home, ?change, %error, "a name was not changed");
                break; // what keeps one back keeps the others back
            }
        }
    }
    !changes.is_empty()
}

async fn make(client: &Client, own: &Key, change: &Change) -> Result<bool, ClientError> {
    let (name, from) = match change {
        Change::Take { name, from } => (name, *from),
        Change::GiveUp { name } => (name, Some(*own)),
    };
    let key: minicbor::bytes::ByteVec = key_of(name).into();
    let condition = from.map_or(Condition::Absent, |holder| Condition::Value(holder.0.to_vec().into()));
    let op = match change {
        Change::Take { .. } => Op::Put { key: key.clone(), value: own.0.to_vec().into(), lease: None },
        Change::GiveUp { .. } => Op::Delete { key: key.clone() },
    };
    let transaction =
        Transaction { compares: vec![Compare { key, condition }], success: vec![op], failure: vec![] };
    Ok(client.transact(transaction, LIMIT).await?.succeeded)
}
