//! The task that opens and closes a VDC's groups on this node and, where the node leads one, sees to who votes in it.
//!
//! A group's files are named by its home, the serial of its founding and its id. Beside them lies a mark that they were made: a
//! node that voted and has lost its files must not begin anew, or what it had promised would be forgotten. It serves the
//! group again when the others have taken its vote away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use meshd_coord::{GroupSettings, Timing, succession};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vdc::record::Home;
use vdc::roster::{FoundingView, View};
use vdc::{Hash, Key};
use vdc_coord::voting::{Membership, Seen, Step, plan};
use vdc_coord::wire::Standing;

use super::look::{self, Look};
use super::{Client, Coord, Group, Groups, Here, Kept, access, name_of};

/// How often the keeper looks after its groups.
const STEP: Duration = Duration::from_secs(1);
/// How often it is asked how a group stands: one that concerns this node; one in trouble; one of somebody else.
const LOOK: Duration = Duration::from_secs(15);
const LOOK_TROUBLED: Duration = Duration::from_secs(3);
const LOOK_AWAY: Duration = Duration::from_secs(120);
/// Pause before a group that failed is opened again; doubles.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long it is told why a group failed, though it may be open again.
const FAILURE_TOLD: Duration = Duration::from_secs(30);
/// A follower that was not heard for so long is silent.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// Entries that a learner may be behind and still become a voter.
const CAUGHT_UP: u64 = 1_000;
/// How long one change of members may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(15);
/// Nodes that may serve a group and do not, asked at a time whether they are up.
const PROBED: usize = 4;
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// Files of a group that was founded anew go when they are so old.
const OLD_FILES: Duration = Duration::from_secs(7 * 86_400);

/// One group as the keeper has it.
struct Tended {
    founding: FoundingView,
    client: Client,
    here: Here,
    look: Option<Arc<Look>>,
    looked: Option<Instant>,
    is_looking: bool,
    /// When it may be opened again, and the pause after that.
    again: Instant,
    pause: Duration,
    /// When it failed last, and why.
    failure: Option<(Instant, String)>,
    leading: Leading,
}

/// What a leader knows of the others.
#[derive(Default)]
struct Leading {
    /// Whether a node answers, and since when.
    sightings: HashMap<Key, (bool, Instant)>,
    probed: HashMap<Key, Instant>,
    is_changing: bool,
}

impl Leading {
    fn saw(&mut self, node: Key, answers: bool) {
        let now = Instant::now();
        let sighting = self.sightings.entry(node).or_insert((answers, now));
        if sighting.0 != answers {
            *sighting = (answers, now);
        }
    }
}

/// What came of something that took a while.
enum Done {
    Looked { home: Home, group: Hash, look: Look },
    Probed { home: Home, node: Key, answers: bool },
    Changed { home: Home, step: Step, result: Result<(), String> },
}

struct Keeper {
    coord: Coord,
    homes: BTreeMap<Home, Tended>,
    jobs: JoinSet<Done>,
}

/// Looks after the groups until `token` says that it is over.
pub(super) async fn run(coord: Coord, token: CancellationToken) {
    let mut keeper = Keeper { coord: coord.clone(), homes: BTreeMap::new(), jobs: JoinSet::new() };
    let mut views = coord.views();
    if let Err(error) = sweep(&coord).await {
        tracing::warn!(%error, "old files of coordination groups are left");
    }
    let mut step = tokio::time::interval(STEP);
    step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // cancel-safe: each arm is a signal that stays, or a set of tasks.
        tokio::select! {
            () = token.cancelled() => break,
            changed = views.changed() => if changed.is_err() { break },
            () = coord.0.wake.notified() => {}
            Some(done) = keeper.jobs.join_next(), if !keeper.jobs.is_empty() => {
                if let Ok(done) = done {
                    keeper.handle(done);
                }
            }
            _ = step.tick() => {}
        }
        let view = Arc::clone(&views.borrow_and_update());
        keeper.tend(&view).await;
    }
    for tended in keeper.homes.values() {
        if let Here::Open(group) = &tended.here {
            drop(coord.0.node.remove(&tended.founding.group));
            group.close().await;
        }
    }
    // What others still hold of this would keep the files open.
    coord.0.groups.send_replace(Arc::default());
}

impl Keeper {
    async fn tend(&mut self, view: &View) {
        let replaced: Vec<Home> = self
            .homes
            .iter()
            .filter(|(home, tended)| view.foundings.get(home).is_some_and(|now| now.group != tended.founding.group))
            .map(|(home, _)| *home)
            .collect();
        for home in replaced {
            if let Some(mut tended) = self.homes.remove(&home) {
                tracing::info!(?home, group = tended.founding.group.short(), "the group was founded anew");
                self.close(&mut tended).await;
                // Nobody holds on to its files any more.
                self.publish(view);
            }
        }
        for (home, founding) in &view.foundings {
            if !self.homes.contains_key(home) {
                self.homes.insert(*home, self.begin(founding));
            }
        }
        let homes: Vec<Home> = self.homes.keys().copied().collect();
        for home in homes {
            let Some(mut tended) = self.homes.remove(&home) else { continue };
            self.attend(view, &mut tended).await;
            self.homes.insert(home, tended);
        }
        self.publish(view);
    }

    fn begin(&self, founding: &FoundingView) -> Tended {
        Tended {
            founding: founding.clone(),
            client: Client::new(self.coord.0.node.clone(), founding.group, &[founding.founder]),
            here: Here::Away,
            look: None,
            looked: None,
            is_looking: false,
            again: Instant::now(),
            pause: PAUSE,
            failure: None,
            leading: Leading::default(),
        }
    }

    async fn close(&self, tended: &mut Tended) {
        drop(self.coord.0.node.remove(&tended.founding.group));
        if let Here::Open(group) = std::mem::replace(&mut tended.here, Here::Away) {
            group.close().await;
        }
    }

    /// Opens or closes a group as it should be, and does what its leader does.
    async fn attend(&mut self, view: &View, tended: &mut Tended) {
        let home = tended.founding.home;
        let may_serve = access::may_serve(view, home, &self.coord.0.own);
        if let Here::Open(group) = &tended.here {
            let group = group.clone();
            if !may_serve {
                self.close(tended).await;
            } else if let Err(why) = group.running() {
                tracing::error!(?home, why, "the group stopped and is opened again");
                if tended.failure.as_ref().is_none_or(|(at, _)| at.elapsed() > FAILURE_TOLD) {
                    tended.pause = PAUSE;
                }
                self.close(tended).await;
                self.fail(tended, why);
            }
        } else if may_serve && Instant::now() >= tended.again {
            self.open(view, tended).await;
        }
        if let Here::Open(group) = &tended.here {
            let group = group.clone();
            self.lead(view, tended, &group);
        }
        self.look_if_due(view, tended);
        let members = look::members(&self.coord, view, &kept(tended));
        tended.client.set_members(&members);
    }

    fn fail(&self, tended: &mut Tended, why: String) {
        tended.failure = Some((Instant::now(), why.clone()));
        tended.here = Here::Failed(why);
        tended.again = Instant::now() + tended.pause;
        tended.pause = (tended.pause * 2).min(PAUSE_MAX);
    }

    async fn open(&self, view: &View, tended: &mut Tended) {
        let was_away = matches!(tended.here, Here::Away);
        match self.files_ready(tended).await {
            Ok(Ready::Open { found }) => {
                let settings = GroupSettings {
                    id: tended.founding.group,
                    node: self.coord.0.own,
                    files: files(&tended.founding),
                    timing: Timing::default(),
                    found,
                    entries_per_checkpoint: GroupSettings::ENTRIES_PER_CHECKPOINT,
                };
                match Group::open(self.coord.0.env.clone(), settings).await {
                    Ok(group) => {
                        if let Err(error) = self.mark(&tended.founding).await {
                            group.close().await;
                            return self.fail(tended, error.to_string());
                        }
                        self.coord.0.node.add(group.clone());
                        tended.here = Here::Open(group);
                        tended.looked = None;
                        let wanted = &self.coord.0.wanted;
                        wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(&tended.founding.group);
                        tracing::info!(home = ?tended.founding.home, found, "a coordination group is served here");
                    }
                    Err(error) => {
                        let why = crate::vdc_core::chain(&error);
                        tracing::error!(home = ?tended.founding.home, why, "a coordination group cannot be opened");
                        self.fail(tended, why);
                    }
                }
            }
            Ok(Ready::Away) => tended.here = Here::Away,
            Ok(Ready::Refused(why)) => {
                if was_away {
                    tracing::error!(home = ?tended.founding.home, why, "a coordination group is not served");
                }
                self.forget_lost(view, tended).await;
                tended.again = Instant::now() + LOOK_TROUBLED;
                tended.here = Here::Refused(why);
            }
            Err(error) => self.fail(tended, error.to_string()),
        }
    }

    /// Sees to it that the files of a group are there, where they may be made.
    async fn files_ready(&self, tended: &Tended) -> io::Result<Ready> {
        let founding = &tended.founding;
        let env = &self.coord.0.env;
        let name = files(founding);
        if succession::exists(env, &name).await? {
            let found = is_first_founder(founding, &self.coord.0.own) && !self.is_marked(founding);
            return Ok(Ready::Open { found });
        }
        if self.is_marked(founding) {
            return Ok(Ready::Refused(
                "its files are gone from this node, which may have voted: it serves the group again when the others have \
                 replaced its vote"
                    .into(),
            ));
        }
        if founding.founder != self.coord.0.own {
            return Ok(if self.coord.is_wanted(&founding.group) { Ready::Open { found: false } } else { Ready::Away });
        }
        if is_first_founder(founding, &self.coord.0.own) {
            return Ok(Ready::Open { found: true });
        }
        let Some(earlier) = self.earlier(founding)? else {
            return Ok(Ready::Refused(
                "this node was told to found the group anew from what it holds, and holds nothing of it".into(),
            ));
        };
        tracing::info!(home = ?founding.home, from = earlier, "the group goes on from what is here");
        let held = succession::succeed(env, &earlier, &name, self.coord.0.own).await.map_err(io::Error::other)?;
        tracing::info!(home = ?founding.home, revision = held.revision.0, "the last change that it has");
        Ok(Ready::Open { found: false })
    }

    /// The newest files of an earlier group of the same home.
    fn earlier(&self, founding: &FoundingView) -> io::Result<Option<String>> {
        let prefix = format!("{}-", home_text(founding.home));
        let mut newest: Option<(u64, String)> = None;
        for entry in std::fs::read_dir(&self.coord.0.directory)? {
            let name = entry?.file_name();
            let found = name.to_str().and_then(|name| {
                let stem = name.strip_suffix(".state")?;
                let serial = stem.strip_prefix(&prefix)?.split('-').next()?.parse().ok()?;
                Some((serial, stem.to_owned()))
            });
            if let Some(found) = found.filter(|(serial, _)| *serial < founding.serial) {
                newest = newest.max(Some(found));
            }
        }
        Ok(newest.map(|(_, stem)| stem))
    }

    fn mark_path(&self, founding: &FoundingView) -> PathBuf {
        self.coord.0.directory.join(format!("{}.made", files(founding)))
    }

    fn is_marked(&self, founding: &FoundingView) -> bool {
        self.mark_path(founding).exists()
    }

    async fn mark(&self, founding: &FoundingView) -> io::Result<()> {
        let path = self.mark_path(founding);
        if path.exists() {
            return Ok(());
        }
        let written = tokio::task::spawn_blocking(move || meshd_state::write_durably(&path, b"")).await;
        written.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Lets a node whose files are gone begin again, once a leader says that it has no vote any more.
    async fn forget_lost(&self, view: &View, tended: &Tended) {
        let is_led = |look: &&Arc<Look>| look.membership.leader.is_some() && look.redundancy.works();
        let Some(look) = tended.look.as_ref().filter(is_led) else { return };
        let own = self.coord.0.own;
        if look.membership.voters.contains(&own) || !self.is_marked(&tended.founding) {
            return;
        }
        let path = self.mark_path(&tended.founding);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await;
        tracing::info!(home = ?tended.founding.home, node = name_of(view, &own), ?removed, "it may follow the group again");
    }

    /// Where this node leads: who answers, and what should change.
    fn lead(&mut self, view: &View, tended: &mut Tended, group: &Group) {
        let home = tended.founding.home;
        let (Some(followers), Ok(standing)) = (group.followers(), group.standing()) else {
            tended.leading = Leading { is_changing: tended.leading.is_changing, ..Leading::default() };
            return;
        };
        let own = self.coord.0.own;
        let leading = &mut tended.leading;
        let answering = |key: &Key| followers.get(key).and_then(|f| f.heard).is_some_and(|heard| heard < SILENT_AFTER);
        for key in followers.keys().filter(|key| **key != own) {
            leading.saw(*key, answering(key));
        }
        self.coord.note_heard(tended.founding.group, followers.keys().copied().filter(answering));
        let settings = &self.coord.0.settings;
        let (steady, dead) =
            (Duration::from_secs(settings.steady_after_s), Duration::from_secs(settings.replace_after_s));
        let seen = |key: &Key| match leading.sightings.get(key) {
            _ if *key == own => Seen::Steady,
            Some((true, since)) if since.elapsed() >= steady => Seen::Steady,
            Some((true, _)) => Seen::Fresh,
            Some((false, since)) if since.elapsed() >= dead => Seen::Dead,
            Some((false, _)) | None => Seen::Silent,
        };
        let mut candidates = look::candidates(view, home, seen);
        for candidate in &mut candidates {
            let matched = followers.get(&candidate.key).map(|follower| follower.matched_index);
            candidate.caught_up = matched.is_some_and(|matched| matched + CAUGHT_UP >= standing.last_index);
        }
        let strangers: Vec<Key> =
            candidates.iter().map(|candidate| candidate.key).filter(|key| !serves(&standing, key)).collect();
        let membership = Membership {
            voters: standing.voters.iter().copied().collect(),
            learners: standing.learners.iter().copied().collect(),
            leader: Some(own),
            changing: leading.is_changing || group.is_changing(),
        };
        self.probe(tended, home, &strangers);
        if let Some(step) = plan(look::kind(home), &candidates, &membership) {
            tended.leading.is_changing = true;
            tended.looked = None;
            let group = group.clone();
            self.jobs.spawn(async move {
                let changed = tokio::time::timeout(CHANGE_LIMIT, change(&group, step, &membership.voters)).await;
                let result = changed.unwrap_or_else(|_| Err(format!("not done within {} s", CHANGE_LIMIT.as_secs())));
                Done::Changed { home, step, result }
            });
        }
    }

    /// Asks some of those who could serve the group whether they are up.
    fn probe(&mut self, tended: &mut Tended, home: Home, strangers: &[Key]) {
        let leading = &mut tended.leading;
        leading.probed.retain(|key, _| strangers.contains(key));
        let mut next: Vec<(Option<Instant>, Key)> =
            strangers.iter().map(|key| (leading.probed.get(key).copied(), *key)).collect();
        next.sort_unstable();
        let due = |at: &Option<Instant>| at.is_none_or(|at| at.elapsed() > SILENT_AFTER);
        for (_, node) in next.into_iter().filter(|(at, _)| due(at)).take(PROBED) {
            leading.probed.insert(node, Instant::now());
            let client = tended.client.clone();
            self.jobs.spawn(async move { Done::Probed { home, node, answers: client.is_up(node, PROBE_LIMIT).await } });
        }
    }

    fn look_if_due(&mut self, view: &View, tended: &mut Tended) {
        let home = tended.founding.home;
        let concerns = !matches!(tended.here, Here::Away) || access::may_serve(view, home, &self.coord.0.own);
        let pause = match &tended.look {
            Some(look) if look.stopped.is_none() && look.below.is_none() => LOOK,
            _ => LOOK_TROUBLED,
        };
        let pause =
            if concerns || tended.look.as_ref().is_none_or(|look| look.stopped.is_some()) { pause } else { LOOK_AWAY };
        if tended.is_looking || tended.looked.is_some_and(|looked| looked.elapsed() < pause) {
            return;
        }
        tended.is_looking = true;
        let (coord, kept, group) = (self.coord.clone(), kept(tended), tended.founding.group);
        self.jobs.spawn(async move { Done::Looked { home, group, look: look::look(coord, kept).await } });
    }

    fn handle(&mut self, done: Done) {
        match done {
            Done::Looked { home, group, look } => {
                let tended = self.homes.get_mut(&home).filter(|tended| tended.founding.group == group);
                if let Some(tended) = tended {
                    tended.look = Some(Arc::new(look));
                    tended.looked = Some(Instant::now());
                    tended.is_looking = false;
                }
            }
            Done::Probed { home, node, answers } => {
                if let Some(tended) = self.homes.get_mut(&home) {
                    tended.leading.saw(node, answers);
                }
            }
            Done::Changed { home, step, result } => {
                match &result {
                    Ok(()) => tracing::info!(?home, ?step, "the group's members changed"),
                    Err(why) => tracing::warn!(?home, ?step, why, "the group's members were not changed"),
                }
                if let Some(tended) = self.homes.get_mut(&home) {
                    tended.leading.is_changing = false;
                }
            }
        }
    }

    fn publish(&self, view: &View) {
        let groups: Groups = self.homes.iter().map(|(home, tended)| (*home, kept(tended))).collect();
        let nodes: BTreeSet<Key> = view.reachable().map(|member| member.node).collect();
        self.coord.0.env.lines.keep(|node| nodes.contains(node));
        self.coord.0.groups.send_replace(Arc::new(groups));
        let mut wanted = self.coord.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.retain(|group| view.foundings.values().any(|founding| founding.group == *group));
    }
}

/// What can be done about a group's files.
enum Ready {
    Open { found: bool },
    Away,
    Refused(String),
}

fn kept(tended: &Tended) -> Kept {
    Kept {
        founding: tended.founding.clone(),
        client: tended.client.clone(),
        here: tended.here.clone(),
        look: tended.look.clone(),
        failure: tended.failure.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_TOLD).map(|(_, why)| why.clone()),
    }
}

fn serves(standing: &Standing, key: &Key) -> bool {
    standing.voters.contains(key) || standing.learners.contains(key)
}

/// Whether a node makes an empty group.
fn is_first_founder(founding: &FoundingView, own: &Key) -> bool {
    founding.serial == 1 && founding.founder == *own
}

async fn change(group: &Group, step: Step, voters: &BTreeSet<Key>) -> Result<(), String> {
    let after: Vec<Key> = step.voters_after(voters).into_iter().collect();
    let changed = match step {
        Step::AddLearner(key) => group.add_learner(key).await,
        Step::RemoveLearner(key) => group.remove_learner(key).await,
        Step::Replace { .. } | Step::AddVoter(_) | Step::RemoveVoter(_) => group.set_voters(&after).await,
    };
    changed.map_err(|trouble| trouble.to_string())
}

fn home_text(home: Home) -> String {
    match home {
        Home::Vdc => "vdc".to_owned(),
        Home::Site(number) => format!("site{}", number.0),
    }
}

/// What a group's files begin with.
fn files(founding: &FoundingView) -> String {
    file_name(founding.home, founding.serial, &founding.group)
}

pub(super) fn file_name(home: Home, serial: u64, group: &Hash) -> String {
    format!("{}-{serial}-{}", home_text(home), group.short())
}

/// Removes the files of groups that were founded anew long ago.
async fn sweep(coord: &Coord) -> io::Result<()> {
    let view = coord.view();
    let current: BTreeSet<String> = view.foundings.values().map(files).collect();
    let homes: BTreeSet<String> = view.foundings.keys().map(|home| format!("{}-", home_text(*home))).collect();
    let mut old = BTreeSet::new();
    for entry in std::fs::read_dir(&coord.0.directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some((stem, _)) = name.split_once('.') else { continue };
        let is_known = homes.iter().any(|home| stem.starts_with(home.as_str()));
        let modified = entry.metadata()?.modified()?;
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if is_known && !current.contains(stem) && age > OLD_FILES {
            old.insert(stem.to_owned());
        }
    }
    for stem in old {
        succession::remove(&coord.0.env, &stem).await?;
        std::fs::remove_file(coord.0.directory.join(format!("{stem}.made"))).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(())
}
