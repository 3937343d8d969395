//! The coordination groups of one VDC on this node: which there are, which are served here, and how to ask them.
//!
//! A group is there once a founding record says so ([`vdc::record::Founding`]); its id is that record. [`keeper`] opens the groups
//! that this node serves, closes those that were founded anew, and, where this node leads, has voters chosen and replaced
//! ([`vdc_coord::voting`]). What other nodes ask comes by [`Coord::answer`], after [`access`] has judged it. [`names`] and
//! [`invites`] keep what is exclusive in groups; people look at and mend groups by [`backend`].

mod access;
mod backend;
mod env;
mod invites;
mod keeper;
mod leaving;
mod look;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meshd_coord::ClientError;
use meshd_coord::env::Directory;
use meshd_coord::lines::Lines;
use tokio::sync::{Notify, watch};
use vdc::record::Home;
use vdc::roster::{FoundingView, View};
use vdc::{Hash, Key, SiteNumber};
use vdc_api::ApiError;
use vdc_coord::wire::{Ask, Reply, Trouble, decode_frame};

use crate::config::Coordination;
use crate::tasks::TaskSet;
use crate::vdc_core::CoreHandle;

use env::{Infra, Place};

pub(crate) use backend::adopt;
pub(crate) use invites::RedeemError;
pub(crate) use names::Claims;

/// How long it may take until a group that was founded can be asked.
const FOUNDED_LIMIT: Duration = Duration::from_secs(5);

pub(crate) type Client = meshd_coord::Client<Place>;
type Group = meshd_coord::Group<Place>;
type Node = meshd_coord::Node<Place>;

/// What this node is to a group.
#[derive(Clone, Debug)]
enum Here {
    /// It asks those who serve it.
    Away,
    Open(Group),
    /// It should serve it and must not: why.
    Refused(String),
    /// It does not at the moment: why. It is tried again.
    Failed(String),
}

/// One group.
#[derive(Clone, Debug)]
struct Kept {
    founding: FoundingView,
    client: Client,
    here: Here,
    /// How it looked last, and since when it looked no better.
    look: Option<Arc<look::Look>>,
    /// Why it failed here, a moment ago.
    failure: Option<String>,
}

type Groups = BTreeMap<Home, Kept>;

struct Inner {
    own: Key,
    env: Place,
    node: Node,
    core: CoreHandle,
    views: watch::Receiver<Arc<View>>,
    directory: PathBuf,
    settings: Coordination,
    groups: watch::Sender<Arc<Groups>>,
    /// Groups that are not open here and of which somebody sent something.
    wanted: Mutex<BTreeSet<Hash>>,
    /// The keeper has something to do.
    wake: Notify,
    /// One restore at a time.
    restoring: tokio::sync::Mutex<()>,
    /// When nodes were last heard of as members of a group.
    heard: Mutex<HashMap<(Hash, Key), Instant>>,
}

/// The groups of one VDC. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Coord(Arc<Inner>);

impl std::fmt::Debug for Coord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coord({})", self.0.core.alias())
    }
}

/// Begins to look after a VDC's groups, in `tasks`.
///
/// # Errors
/// [`ApiError`] if their directory cannot be made.
pub(crate) fn start(
    tasks: &mut TaskSet,
    core: &CoreHandle,
    own: Key,
    directory: PathBuf,
    settings: Coordination,
) -> Result<Coord, ApiError> {
    let disk = Directory::open(&directory)
        .map_err(|error| crate::error::system("the directory of coordination groups cannot be made", &error))?;
    let env = Place { disk, lines: Lines::new(Infra { core: core.clone() }) };
    let coord = Coord(Arc::new(Inner {
        own,
        node: Node::new(env.clone(), own),
        env,
        core: core.clone(),
        views: core.views(),
        directory,
        settings,
        groups: watch::Sender::default(),
        wanted: Mutex::default(),
        wake: Notify::new(),
        restoring: tokio::sync::Mutex::default(),
        heard: Mutex::default(),
    }));
    tasks.spawn_draining("groups", keeper::run(coord.clone(), tasks.token()));
    let claims = core.claims();
    tasks.spawn("names", names::run(coord.clone(), claims));
    tasks.spawn("invites", invites::run(coord.clone()));
    Ok(coord)
}

impl Coord {
    fn own_key(&self) -> Key {
        self.0.own
    }

    fn views(&self) -> watch::Receiver<Arc<View>> {
        self.0.views.clone()
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.0.views.borrow())
    }

    fn own_site(&self, view: &View) -> Option<SiteNumber> {
        view.members.get(&self.0.own).map(|member| member.site)
    }

    fn groups(&self) -> Arc<Groups> {
        Arc::clone(&self.0.groups.borrow())
    }

    /// Asks the group of a home.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] if none was founded.
    pub(crate) fn client(&self, home: Home) -> Result<Client, ClientError> {
        let kept = self.0.groups.borrow().get(&home).map(|kept| kept.client.clone());
        kept.ok_or_else(|| ClientError::Unavailable { last: "no coordination group was founded for it yet".into() })
    }

    /// The same, for one that was founded a moment ago.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] if none was founded.
    async fn client_soon(&self, home: Home) -> Result<Client, ClientError> {
        let mut groups = self.0.groups.subscribe();
        let founded = tokio::time::timeout(FOUNDED_LIMIT, groups.wait_for(|groups| groups.contains_key(&home)));
        drop(founded.await); // it says why it is not there below
        self.client(home)
    }

    /// Whether there is a group of a home, so that what belongs there is nowhere else.
    pub(crate) fn is_founded(&self, home: Home) -> bool {
        self.0.views.borrow().foundings.contains_key(&home)
    }

    /// Says of an error what this node knows of its reason: whether it is the trouble of this very box.
    pub(crate) fn explained(&self, home: Home, error: ApiError) -> ApiError {
        let failure = self.0.groups.borrow().get(&home).and_then(|kept| kept.failure.clone());
        failure.into_iter().fold(error, |error, why| error.cause(format!("this node could not serve the group: {why}")))
    }

    /// Where short names are taken that count for this node.
    fn homes_of_names(&self, view: &View) -> Vec<Home> {
        let homes = self.own_site(view).map(Home::Site).into_iter().chain([Home::Vdc]);
        homes.filter(|home| view.foundings.contains_key(home)).collect()
    }

    /// Answers a frame that a member sent.
    pub(crate) async fn answer(&self, from: Key, bytes: Bytes) -> Bytes {
        let frame = match decode_frame(&bytes) {
            Ok(frame) => frame,
            Err(error) => return refused(Trouble::Malformed { why: error.to_string() }),
        };
        let view = self.view();
        let known = view.foundings.values().find(|founding| founding.group == frame.group).map(|found| found.home);
        // A group is served on while its founding is out of sight; one that was founded anew counts no more.
        let here = || {
            let groups = self.groups();
            groups.values().map(|kept| &kept.founding).find(|found| found.group == frame.group).map(|found| found.home)
        };
        let home = known.or_else(|| here().filter(|home| !view.foundings.contains_key(home)));
        let Some(home) = home else { return refused(Trouble::UnknownGroup { group: frame.group }) };
        if let Err(trouble) = access::judge(&view, home, &from, &frame.ask) {
            tracing::info!(vdc = %self.0.core.alias(), peer = from.short(), %trouble, "a member asked what it may not");
            return refused(trouble);
        }
        let is_log = matches!(frame.ask, Ask::Append { .. } | Ask::SnapshotBegin { .. });
        if is_log && self.0.node.group(&frame.group).is_none() && access::may_serve(&view, home, &self.0.own) {
            self.want(frame.group);
        }
        self.0.node.answer_frame(from, frame).await
    }

    fn want(&self, group: Hash) {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
        self.0.wake.notify_one();
    }

    fn is_wanted(&self, group: &Hash) -> bool {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(group)
    }

    fn note_heard(&self, group: Hash, nodes: impl IntoIterator<Item = Key>) {
        let now = Instant::now();
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend(nodes.into_iter().map(|node| ((group, node), now)));
    }

    fn heard(&self, group: Hash, node: Key) -> Option<Instant> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&(group, node)).copied()
    }

    /// What somebody should look at.
    pub(crate) fn problems(&self) -> Vec<vdc_api::Problem> {
        look::problems(self)
    }
}

fn refused(trouble: Trouble) -> Bytes {
    vdc::codec::encode(&Reply::Trouble(trouble)).into()
}

/// What a home is called among people: `vdc`, or `site:NAME`.
fn home_view(view: &View, home: Home) -> vdc_api::GroupHome {
    match home {
        Home::Vdc => vdc_api::GroupHome::Vdc,
        Home::Site(number) => {
            let name = view.sites.get(&number).map_or_else(|| number.0.to_string(), |site| site.name.to_string());
            vdc_api::GroupHome::Site(name)
        }
    }
}

fn name_of(view: &View, node: &Key) -> String {
    view.members.get(node).map_or_else(|| node.short(), vdc::roster::MemberView::full_name)
}
