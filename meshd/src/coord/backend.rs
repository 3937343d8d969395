//! What people ask about groups: how they stand, and to mend, keep and restore them.

use std::io::{BufReader, BufWriter, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use meshd_coord::succession;
use meshd_web::{Backup, Pieces};
use vdc::record::Home;
use vdc::roster::View;
use vdc::{Hash, Key};
use vdc_api::{
    ApiError, BackupHeader, CoordBackup, CoordRecover, CoordStatus, ErrorCode, GroupHome, GroupMemberView, GroupState,
    GroupView, MemberRole, RecoverView, RedundancyLevel, RedundancyView, RestoreQuery, RestoreView, RoleHere,
};
use vdc_coord::voting::Redundancy;
use vdc_coord::wire::Standing;
use vdc_coord::{Revision, backup};

use super::look::{self, Look};
use super::{Coord, Here, Kept, access, home_view, keeper, name_of};
use crate::clock::system_time;
use crate::error::system;

/// How long a group may take to go on after it was founded anew: the nodes must hear of it, and elect.
const ANEW_LIMIT: Duration = Duration::from_secs(40);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(250);
/// How long a node that is told what was decided elsewhere may take to have it.
const READ_LIMIT: Duration = Duration::from_secs(8);
/// Bytes of a piece of a backup.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces of a backup that wait to be written down.
const PIECES_MAX: usize = 16;
/// Files of a group that is being made from a backup.
const RESTORING: &str = "restoring";

impl Coord {
    /// All groups that there should be, as this node sees them.
    pub(crate) async fn status(&self) -> CoordStatus {
        let view = self.view();
        let homes: Vec<Home> =
            [Home::Vdc].into_iter().chain(view.sites.keys().map(|number| Home::Site(*number))).collect();
        let groups = homes.iter().map(|home| self.group_view(&view, *home));
        let mut groups = futures::future::join_all(groups).await;
        groups.sort_by(|a, b| a.home.cmp(&b.home));
        CoordStatus { vdc: self.0.core.alias().to_string(), groups }
    }

    async fn group_view(&self, view: &View, home: Home) -> GroupView {
        let Some((kept, look)) = look::fresh(self, home).await else { return unfounded(view, home) };
        let Kept { founding, here, .. } = &kept;
        let newest = look.standings.values().max_by_key(|standing| (standing.term, standing.applied_index));
        let redundancy = redundancy_view(view, &look.redundancy);
        let (state, reason) = state(here, &look);
        let own = self.0.own;
        let role_here = match () {
            () if look.membership.voters.contains(&own) => RoleHere::Voter,
            () if look.membership.learners.contains(&own) => RoleHere::Learner,
            () => RoleHere::Client,
        };
        let mut warnings = vec![];
        if look.redundancy.below_table {
            warnings.push(redundancy.words.clone());
        }
        if let Here::Failed(why) = here {
            warnings.push(format!("this node cannot serve it at the moment: {why}"));
        }
        GroupView {
            home: home_view(view, home),
            group: Some(founding.group.to_string()),
            founded_by: Some(name_of(view, &founding.founder)),
            founded_at: Some(founding.created.to_string()),
            state,
            reason,
            leader: look.membership.leader.map(|leader| name_of(view, &leader)),
            term: newest.map(|standing| standing.term),
            revision: newest.map(|standing| standing.summary.revision.0),
            compacted: newest.map(|standing| standing.summary.oldest.0),
            keys: newest.map(|standing| standing.summary.keys),
            size_bytes: newest.map(|standing| standing.summary.bytes),
            role_here,
            redundancy,
            warnings,
            members: self.members(view, founding.group, &look),
        }
    }

    fn members(&self, view: &View, group: Hash, look: &Look) -> Vec<GroupMemberView> {
        let leader = look.membership.leader.and_then(|leader| look.standings.get(&leader));
        let member = |key: &Key, role| {
            let standing = look.standings.get(key);
            let heard = self.heard(group, *key).filter(|_| *key != self.0.own);
            GroupMemberView {
                node: view.members.get(key).map_or_else(|| key.short(), |member| member.name.to_string()),
                site: view.members.get(key).map_or_else(String::new, |member| member.site_name.to_string()),
                role,
                reachable: standing.is_some(),
                last_heard_ms: heard.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
                lag: leader.zip(standing).map(|(leader, own)| leader.last_index.saturating_sub(own.applied_index)),
                since: None,
            }
        };
        let mut voters: Vec<_> = look.membership.voters.iter().map(|key| member(key, MemberRole::Voter)).collect();
        let mut learners: Vec<_> =
            look.membership.learners.iter().map(|key| member(key, MemberRole::Learner)).collect();
        voters.sort_by(|a, b| a.node.cmp(&b.node));
        learners.sort_by(|a, b| a.node.cmp(&b.node));
        voters.extend(learners);
        voters
    }

    /// The group that is meant, as it stands now.
    async fn meant(&self, view: &View, text: &GroupHome) -> Result<(Home, Kept, Arc<Look>), ApiError> {
        let home = match text {
            GroupHome::Vdc => Some(Home::Vdc),
            GroupHome::Site(name) => view.site_by_name(name).map(|site| Home::Site(site.number)),
        };
        let unknown = || {
            ApiError::new(ErrorCode::UnknownGroup, format!("there is no coordination group {text}"))
                .hint("`meshctl coord status` shows all")
        };
        let home = home.ok_or_else(unknown)?;
        let (kept, look) = look::fresh(self, home).await.ok_or_else(unknown)?;
        Ok((home, kept, look))
    }

    /// Recovery and restore are for admins, those of a site for its registrars too.
    fn check_rights(&self, view: &View, home: Home) -> Result<(), ApiError> {
        let own = self.0.own;
        let is_registrar = match home {
            Home::Vdc => false,
            Home::Site(number) => view.registrars_for(number).iter().any(|registrar| registrar.key == own),
        };
        if is_registrar || view.is_admin(&own) {
            return Ok(());
        }
        let who = if home == Home::Vdc { "an admin's node" } else { "an admin's node, or the site's registrar" };
        Err(ApiError::refused("this node may not found a coordination group anew")
            .hint(format!("run the command on {who} (`meshctl node list` shows roles)")))
    }

    /// Founds a group anew from one node's copy, or says what that would cost.
    pub(crate) async fn recover(&self, request: CoordRecover) -> Result<RecoverView, ApiError> {
        let view = self.view();
        let (home, _, look) = self.meant(&view, &request.home).await?;
        self.check_rights(&view, home)?;
        if look.membership.leader.is_some() && look.redundancy.works() {
            let text = format!("the group {} works: {}", request.home, redundancy_view(&view, &look.redundancy).words);
            return Err(ApiError::new(ErrorCode::Conflict, text)
                .hint("nothing is to be recovered; voters that stay away are replaced by themselves"));
        }
        let from = copy_to_go_on_from(&view, home, &look, request.from.as_deref())?;
        let standing = look.standings.get(&from).cloned().ok_or_else(|| nothing_held(&name_of(&view, &from)))?;
        let mut recovery = recovery_view(&view, request.home, &look, &from, &standing);
        if !request.confirm {
            return Ok(recovery);
        }
        let succeeds = view.founding_head(home).map(|head| head.serial);
        let group = self.0.core.with(move |core| core.found_group(home, from, succeeds)).await??;
        self.wait_for(home, group).await?;
        recovery.done = true;
        recovery.group = Some(group.to_string());
        Ok(recovery)
    }

    /// Waits until a group that was founded just now works.
    async fn wait_for(&self, home: Home, group: Hash) -> Result<(), ApiError> {
        let deadline = Instant::now() + ANEW_LIMIT;
        loop {
            if let Some((kept, look)) = look::fresh(self, home).await
                && kept.founding.group == group
                && look.membership.leader.is_some()
                && look.redundancy.works()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = format!("the group was founded anew as {}, and does not answer yet", group.short());
                return Err(ApiError::new(ErrorCode::Timeout, text)
                    .hint("the node whose copy counts must hear of it: `meshctl coord status` shows when it has"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// All that a group holds.
    pub(crate) async fn backup(&self, request: CoordBackup) -> Result<Backup, ApiError> {
        let view = self.view();
        let (home, kept, look) = self.meant(&view, &request.home).await?;
        let Here::Open(group) = &kept.here else {
            let holds: Vec<String> = look.standings.keys().take(3).map(|key| name_of(&view, key)).collect();
            let text = format!("this node holds nothing of the group {}", request.home);
            return Err(ApiError::new(ErrorCode::Refused, text)
                .hint(format!("take the backup on a node that does: {}", holds.join(", "))));
        };
        let no_quorum = |error: &dyn std::error::Error| {
            ApiError::new(ErrorCode::NoQuorum, format!("the group {} does not say what is newest", request.home))
                .caused_by(error)
                .hint("`meshctl coord status` shows how it stands")
        };
        let (_, revision) = kept.client.get(b"-", READ_LIMIT).await.map_err(|error| no_quorum(&error))?;
        let reached = tokio::time::timeout(READ_LIMIT, group.wait_revision(revision)).await;
        reached.map_err(|late| no_quorum(&late))?.map_err(|error| no_quorum(&error))?;
        let copy = group.copy().await.map_err(|error| system("the group cannot be read", &error))?;
        let summary = copy.summary().map_err(|error| system("the group cannot be read", &error))?;
        let header = BackupHeader {
            vdc: view.vdc.to_string(),
            home: home_view(&view, home),
            group: kept.founding.group.to_string(),
            revision: summary.revision.0,
            keys: summary.keys,
            about_bytes: summary.bytes + summary.keys * 6 + 46,
            taken_at: system_time().to_string(),
            node: name_of(&view, &self.0.own),
        };
        Ok(Backup { header, rows: pieces_of(copy) })
    }

    /// Founds a group anew with what a backup holds.
    pub(crate) async fn restore(&self, query: RestoreQuery, backup: Backup) -> Result<RestoreView, ApiError> {
        let view = self.view();
        let (home, kept, look) = self.meant(&view, &query.home).await?;
        self.check_rights(&view, home)?;
        let Backup { header, rows } = backup;
        check_origin(&view, &query.home, &header)?;
        if look.membership.leader.is_none() || !look.redundancy.works() {
            return Err(ApiError::new(ErrorCode::NoQuorum, format!("the group {} takes no changes", query.home))
                .cause(redundancy_view(&view, &look.redundancy).words)
                .hint(format!("recover it first: `meshctl coord recover --home {}`", query.home)));
        }
        let newest = look.standings.values().map(|standing| standing.summary.revision).max().unwrap_or_default();
        if !query.force && newest.0 > header.revision {
            let keys = look.standings.values().map(|standing| standing.summary.keys).max().unwrap_or_default();
            let refused = format!(
                "the group is at revision {newest}, the backup at {}: what was changed since {} would be lost",
                header.revision,
                header.taken_at,
                newest = newest.0,
            );
            return Ok(RestoreView { home: query.home, revision: newest.0, keys, refused: Some(refused) });
        }
        if !access::may_serve(&view, home, &self.0.own) {
            return Err(ApiError::refused(format!("this node cannot serve the group {}", query.home))
                .hint("restore it on a node of the site"));
        }
        let _one = self.0.restoring.lock().await;
        let spool = Spool(self.0.directory.join("restoring.rows"));
        let keys = spool.take(rows).await?;
        let last = Revision(newest.0.max(header.revision));
        let revision = self.fill(&spool, last).await?;
        let succeeds = kept.founding.serial;
        let directory = self.0.directory.clone();
        let published = self.0.core.with(move |core| core.found_group_with(home, succeeds, &directory)).await;
        let group = published.flatten()?;
        self.wait_for(home, group).await?;
        Ok(RestoreView { home: query.home, revision: revision.0, keys, refused: None })
    }

    async fn fill(&self, spool: &Spool, last: Revision) -> Result<Revision, ApiError> {
        let file = std::fs::File::open(&spool.0).map_err(|error| system("the backup cannot be read again", &error))?;
        let mut reader = backup::Reader::new(BufReader::new(file));
        let filled = succession::fill(&self.0.env, RESTORING, self.0.own, last, move || reader.row()).await;
        filled.map_err(|error| {
            ApiError::new(ErrorCode::Storage, "the backup cannot be written down; nothing was changed")
                .caused_by(&error)
        })
    }
}

/// Gives the files that were made from a backup to the group of that name.
///
/// # Errors
/// Those of the disk.
pub(crate) fn adopt(directory: &std::path::Path, home: Home, serial: u64, group: &Hash) -> std::io::Result<()> {
    let name = keeper::file_name(home, serial, group);
    for kind in ["log", "state"] {
        std::fs::rename(directory.join(format!("{RESTORING}.{kind}")), directory.join(format!("{name}.{kind}")))?;
    }
    std::fs::File::open(directory)?.sync_all()
}

fn unfounded(view: &View, home: Home) -> GroupView {
    GroupView {
        home: home_view(view, home),
        group: None,
        founded_by: None,
        founded_at: None,
        state: GroupState::NotHere,
        reason: Some("nobody has founded it yet: an admin's node does for the VDC, a registrar for its site".into()),
        leader: None,
        term: None,
        revision: None,
        compacted: None,
        keys: None,
        size_bytes: None,
        role_here: RoleHere::Client,
        redundancy: RedundancyView {
            level: RedundancyLevel::Lost,
            words: "there is no group yet".into(),
            below_table: false,
        },
        warnings: vec![],
        members: vec![],
    }
}

fn redundancy_view(view: &View, redundancy: &Redundancy) -> RedundancyView {
    let level = match () {
        () if !redundancy.works() => RedundancyLevel::Lost,
        () if redundancy.spare() == 0 => RedundancyLevel::None,
        () if redundancy.answering < redundancy.voters => RedundancyLevel::Reduced,
        () => RedundancyLevel::Ok,
    };
    let words = redundancy.words(|number| look::site_name(view, number));
    RedundancyView { level, words, below_table: redundancy.below_table }
}

fn state(here: &Here, look: &Look) -> (GroupState, Option<String>) {
    if let Here::Refused(why) = here {
        return (GroupState::Refused, Some(why.clone()));
    }
    let works = look.redundancy.works();
    match (here, look.membership.leader.is_some() && works) {
        (_, true) => (GroupState::Serving, None),
        (Here::Open(_), false) if works => (GroupState::NoLeader, Some("its voters are electing a leader".into())),
        (Here::Open(_), false) => {
            (GroupState::ReadOnly, Some("too few of its voters answer, so nothing can be changed".into()))
        }
        (_, false) if works => (GroupState::NoLeader, Some("its voters are electing a leader".into())),
        (_, false) => (GroupState::NotHere, Some("nobody who serves it answers this node".into())),
    }
}

fn nothing_held(node: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("{node} does not answer with a copy of the group"))
        .hint("`meshctl coord members` shows which nodes answer")
}

/// Whose copy counts: the one that is asked for, or the newest of those that answer.
fn copy_to_go_on_from(view: &View, home: Home, look: &Look, from: Option<&str>) -> Result<Key, ApiError> {
    if let Some(text) = from {
        let member = view.find(text).map_err(|error| ApiError::not_found(error.to_string()))?;
        if !access::may_serve(view, home, &member.node) {
            return Err(ApiError::refused(format!("{} cannot serve that group", member.full_name())));
        }
        return Ok(member.node);
    }
    let copies = look.standings.iter().filter(|(key, _)| access::may_serve(view, home, key));
    let newest = copies.max_by_key(|(_, standing)| (standing.last_term, standing.last_index, standing.applied_index));
    newest.map(|(key, _)| *key).ok_or_else(|| nothing_held("no node"))
}

fn recovery_view(view: &View, home: GroupHome, look: &Look, from: &Key, standing: &Standing) -> RecoverView {
    let given_up: Vec<String> =
        look.membership.voters.iter().filter(|voter| *voter != from).map(|voter| name_of(view, voter)).collect();
    let elsewhere = look.standings.values().map(|other| other.applied_index).max().unwrap_or_default();
    let beyond = elsewhere.saturating_sub(standing.last_index);
    let mut would = vec![format!(
        "what {} holds counts from now on: {} keys, the last change is revision {}",
        name_of(view, from),
        standing.summary.keys,
        standing.summary.revision.0
    )];
    let silent: Vec<String> = look
        .membership
        .voters
        .iter()
        .filter(|voter| !look.standings.contains_key(voter))
        .map(|voter| name_of(view, voter))
        .collect();
    if !silent.is_empty() {
        would.push(format!("changes that only {} hold are lost, also those that were confirmed", silent.join(", ")));
    }
    if beyond > 0 {
        would.push(format!("{beyond} entries that another node holds as confirmed are lost"));
    }
    would.push("leases taken from now on are newer than all before; whoever watches reads everything anew".into());
    RecoverView {
        home,
        from: name_of(view, from),
        revision: standing.summary.revision.0,
        acknowledged_elsewhere: (silent.is_empty() || beyond > 0).then_some(beyond),
        voters_given_up: given_up,
        would,
        done: false,
        group: None,
    }
}

fn check_origin(view: &View, home: &GroupHome, header: &BackupHeader) -> Result<(), ApiError> {
    let foreign = |what: String| ApiError::new(ErrorCode::BackupForeign, what);
    if header.vdc != view.vdc.to_string() {
        return Err(foreign(format!("this is a backup of another VDC, {}", header.vdc))
            .hint("the backup was taken by the node that it names: restore it in that node's VDC"));
    }
    if header.home != *home {
        return Err(foreign(format!("this is a backup of the group {}, not of {home}", header.home))
            .hint(format!("`meshctl coord restore --home {}`", header.home)));
    }
    Ok(())
}

/// The rows of a copy as pieces of a backup.
fn pieces_of(copy: meshd_coord::Copy) -> Pieces {
    struct Going {
        copy: Arc<meshd_coord::Copy>,
        behind: Vec<u8>,
        writer: backup::Writer,
    }
    let going = Going { copy: Arc::new(copy), behind: vec![], writer: backup::Writer::default() };
    let pieces = stream::unfold(Some(going), |going| async move {
        let mut going = going?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let behind = std::mem::take(&mut going.behind);
            let more = going.copy.rows(&behind, PIECE_BYTES, &mut |key, value| {
                going.writer.row(key, value, &mut piece);
                going.behind = key.to_vec();
            });
            (more, piece, going)
        });
        match read.await {
            Ok((Ok(true), piece, going)) => Some((Ok(Bytes::from(piece)), Some(going))),
            Ok((Ok(false), mut piece, going)) => {
                piece.extend(going.writer.end());
                Some((Ok(Bytes::from(piece)), None))
            }
            Ok((Err(error), ..)) => Some((Err(system("the group cannot be read", &error)), None)),
            Err(error) => Some((Err(ApiError::new(ErrorCode::Internal, error.to_string())), None)),
        }
    });
    pieces.boxed()
}

/// A backup on disk, on its way into a group. It goes with this.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // it may not have been made
    }
}

impl Spool {
    /// Writes a backup's rows down and checks that they are whole. Says how many there are.
    async fn take(&self, mut rows: Pieces) -> Result<u64, ApiError> {
        let failed = |error: &std::io::Error| {
            ApiError::new(ErrorCode::Storage, "the backup cannot be written down; nothing was changed")
                .caused_by(error)
                .hint("free some space on this node")
        };
        let path = self.0.clone();
        let (pieces, mut queue) = tokio::sync::mpsc::channel::<Bytes>(PIECES_MAX);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = BufWriter::with_capacity(PIECE_BYTES, std::fs::File::create(path)?);
            while let Some(piece) = queue.blocking_recv() {
                file.write_all(&piece)?;
            }
            file.flush()
        });
        while let Some(piece) = rows.next().await {
            if pieces.send(piece?).await.is_err() {
                break; // it says why below
            }
        }
        drop(pieces);
        let written = written.await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        written.map_err(|error| failed(&error))?;
        let path = self.0.clone();
        let counted = tokio::task::spawn_blocking(move || {
            let mut reader = backup::Reader::new(BufReader::new(std::fs::File::open(path)?));
            let mut count = 0;
            while reader.row()?.is_some() {
                count += 1;
            }
            Ok(count)
        });
        let counted: std::io::Result<u64> =
            counted.await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        counted.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => {
                ApiError::new(ErrorCode::BackupInvalid, "the backup is damaged; nothing was changed").caused_by(&error)
            }
            _ => failed(&error),
        })
    }
}
