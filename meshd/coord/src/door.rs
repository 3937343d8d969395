//! Who may speak in a group's log: members, and each for itself.
//!
//! - Entries, snapshots and a hand-over come from the leader in whose name they speak, votes are asked for by the candidate:
//!   nobody speaks for another.
//! - It must be a member, as far as is known here. A node that was away may not know those who became members since, and its
//!   vote may be the one that they need: so a node that has heard from nobody for a while listens to those that it does not
//!   know, and then stays with the one it follows. So does one that knows no members at all. A node that is in touch with its
//!   leader knows the members, and a stranger cannot make it leave.
//!
//! Who may come to be a member is for the caller to judge, before it hands a frame over.

use std::time::Duration;

use openraft::{AsyncRuntime, Instant as _, RaftMetrics};
use parking_lot::Mutex;
use vdc::Key;
use vdc_coord::wire::{Ask, Trouble, VoteForm};

use crate::types::Types;

/// How much longer than its patience with a leader a node hears from nobody before it listens to strangers.
const PATIENCE: u32 = 5;

/// Whom a node follows, and when it last heard from them.
pub(crate) struct Door<R: AsyncRuntime> {
    heard: Mutex<(Option<Key>, R::Instant)>,
    patience: Duration,
}

impl<R: AsyncRuntime> Door<R> {
    /// `election_max` is the longest that a follower waits for its leader.
    pub(crate) fn new(election_max: Duration) -> Self {
        Self { heard: Mutex::new((None, R::Instant::now())), patience: election_max * PATIENCE }
    }

    /// A leader was obeyed.
    pub(crate) fn note_leader(&self, leader: Key) {
        *self.heard.lock() = (Some(leader), R::Instant::now());
    }

    /// Judges whether `from` may say this; questions that are none of the log's are for others to judge.
    ///
    /// # Errors
    /// [`Trouble::Forbidden`] with the reason.
    pub(crate) fn judge(&self, from: Key, ask: &Ask, metrics: &RaftMetrics<Types<R>>) -> Result<(), Trouble> {
        let forbidden = |why: String| Err(Trouble::Forbidden { why });
        let (speaker, is_sound) = match ask {
            Ask::Append { vote, .. } | Ask::SnapshotBegin { vote, .. } | Ask::SnapshotEnd { vote, .. } => {
                (vote.leader, vote.committed)
            }
            Ask::Transfer { from, .. } => (from.leader, from.committed),
            Ask::Vote(ballot) | Ask::PreVote(ballot) => (ballot.vote.leader, is_candidate(&ballot.vote)),
            // These go on with what was begun, and must come from where that came from.
            Ask::SnapshotRows { .. } => (from, true),
            Ask::Requests(_)
            | Ask::ReadIndex
            | Ask::Get { .. }
            | Ask::Range { .. }
            | Ask::Events { .. }
            | Ask::Status => {
                return Ok(());
            }
        };
        if speaker != from {
            return forbidden(format!("{} speaks for {}", from.short(), speaker.short()));
        }
        if !is_sound {
            return forbidden(format!("{} speaks as what it is not", from.short()));
        }
        let membership = metrics.membership_config.membership();
        let knows_nobody = membership.nodes().next().is_none();
        if knows_nobody || membership.get_node(&from).is_some() || self.listens_to(from, metrics.state.is_leader()) {
            return Ok(());
        }
        forbidden(format!("{} is no member of the group", from.short()))
    }

    fn listens_to(&self, stranger: Key, leads: bool) -> bool {
        let (leader, at) = *self.heard.lock();
        leader == Some(stranger) || (!leads && at.elapsed() > self.patience)
    }
}

fn is_candidate(vote: &VoteForm) -> bool {
    !vote.committed
}
