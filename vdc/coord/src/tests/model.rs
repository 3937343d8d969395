//! The naive model: whole copies of the store at every revision, and plain maps.

use std::collections::BTreeMap;

use crate::limits::{WINDOW, check};
use crate::{
    Answer, ClientId, Command, Compare, Condition, Done, Entry, Lease, LeaseId, Op, Refusal, Revision, Row, Transaction,
};

pub(super) type Map = BTreeMap<Vec<u8>, Row>;

#[derive(Clone, Debug)]
pub(super) struct Model {
    /// The rows after each revision that changed them, from 0 on; those of a revision that is not named are those before it.
    pub(super) history: BTreeMap<u64, Map>,
    pub(super) revision: u64,
    pub(super) time_ms: u64,
    pub(super) oldest: u64,
    pub(super) leases: BTreeMap<u64, Lease>,
    pub(super) clients: BTreeMap<ClientId, BTreeMap<u64, Result<Answer, Refusal>>>,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            history: BTreeMap::from([(0, Map::new())]),
            revision: 0,
            time_ms: 0,
            oldest: 0,
            leases: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }

    pub(super) fn at(&self, revision: u64) -> &Map {
        self.history.range(..=revision).next_back().expect("there is revision 0").1
    }

    pub(super) fn now(&self) -> &Map {
        self.at(self.revision)
    }

    pub(super) fn apply(&mut self, entry: &Entry) -> Vec<Result<Answer, Refusal>> {
        self.time_ms = self.time_ms.max(entry.stamp_ms);
        let mut over: Vec<(u64, u64)> = self.leases.iter().map(|(id, lease)| (lease.ends_ms, *id)).collect();
        over.retain(|(ends_ms, _)| *ends_ms <= self.time_ms);
        over.sort_unstable();
        for (_, id) in over {
            self.end(id);
        }
        entry.requests.iter().map(|request| self.once(request.client, request.number, &request.command)).collect()
    }

    fn once(&mut self, id: ClientId, number: u64, command: &Command) -> Result<Answer, Refusal> {
        if number == 0 {
            if *command != Command::Open {
                return Err(Refusal::UnknownClient);
            }
            self.clients.entry(id).or_default();
            return Ok(Answer::Opened);
        }
        let Some(answers) = self.clients.get(&id) else { return Err(Refusal::UnknownClient) };
        if let Some(highest) = answers.keys().next_back()
            && highest.saturating_sub(number) >= WINDOW
        {
            return Err(Refusal::Forgotten { number });
        }
        if let Some(answer) = answers.get(&number) {
            return answer.clone();
        }
        let answer = check(command).and_then(|()| self.perform(command));
        self.clients.entry(id).or_default().insert(number, answer.clone());
        answer
    }

    fn perform(&mut self, command: &Command) -> Result<Answer, Refusal> {
        match command {
            Command::Open => Ok(Answer::Opened),
            Command::Transact(transaction) => self.transact(transaction).map(Answer::Done),
            Command::GrantLease { ttl_ms } => {
                self.revision += 1;
                self.leases.insert(self.revision, Lease { ttl_ms: *ttl_ms, ends_ms: self.time_ms + ttl_ms });
                Ok(Answer::Lease { lease: LeaseId(self.revision), ttl_ms: *ttl_ms })
            }
            Command::KeepAlive { lease } => {
                let held = self.leases.get_mut(&lease.0).ok_or(Refusal::LeaseGone { lease: *lease })?;
                held.ends_ms = self.time_ms + held.ttl_ms;
                Ok(Answer::Lease { lease: *lease, ttl_ms: held.ttl_ms })
            }
            Command::Revoke { lease } => {
                self.leases.get(&lease.0).ok_or(Refusal::LeaseGone { lease: *lease })?;
                Ok(Answer::Revoked { deleted: self.end(lease.0) })
            }
            Command::Compact { before } => {
                if before.0 > self.revision + 1 {
                    return Err(Refusal::Future { asked: *before, now: Revision(self.revision) });
                }
                self.oldest = self.oldest.max(before.0);
                Ok(Answer::Compacted { oldest: Revision(self.oldest) })
            }
        }
    }

    fn end(&mut self, id: u64) -> u64 {
        self.leases.remove(&id);
        let mut rows = self.now().clone();
        rows.retain(|_, row| row.lease != Some(LeaseId(id)));
        let gone = self.now().len() - rows.len();
        self.turn_into(rows);
        gone as u64
    }

    /// A new revision, if anything is different.
    fn turn_into(&mut self, rows: Map) {
        if rows != *self.now() {
            self.revision += 1;
            self.history.insert(self.revision, rows);
            self.oldest = self.oldest.max(1);
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let row = self.now().get(&compare.key[..]);
        match &compare.condition {
            Condition::Absent => row.is_none(),
            Condition::Present => row.is_some(),
            Condition::Version(0) | Condition::Modified(Revision(0)) => row.is_none(),
            Condition::Version(version) => row.is_some_and(|row| row.version == *version),
            Condition::Modified(revision) => row.is_some_and(|row| row.modified == *revision),
            Condition::Value(value) => row.is_some_and(|row| row.value == *value),
            Condition::Lease(lease) => row.is_some_and(|row| row.lease == Some(*lease)),
            Condition::LeaseHeld(lease) => self.leases.contains_key(&lease.0),
        }
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<Done, Refusal> {
        let succeeded = transaction.compares.iter().all(|compare| self.holds(compare));
        let mut rows = self.now().clone();
        let (mut reads, mut deleted) = (vec![], 0);
        let revision = Revision(self.revision + 1);
        for op in if succeeded { &transaction.success } else { &transaction.failure } {
            match op {
                Op::Read { key } => reads.push(rows.get(&key[..]).cloned()),
                Op::Delete { key } => deleted += u64::from(rows.remove(&key[..]).is_some()),
                Op::DeleteRange { from, to } => {
                    let before = rows.len();
                    rows.retain(|key, _| key[..] < from[..] || (!to.is_empty() && key[..] >= to[..]));
                    deleted += (before - rows.len()) as u64;
                }
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease
                        && !self.leases.contains_key(&lease.0)
                    {
                        return Err(Refusal::LeaseGone { lease: *lease });
                    }
                    let before = rows.get(&key[..]);
                    let row = Row {
                        value: value.clone(),
                        created: before.map_or(revision, |row| row.created),
                        modified: revision,
                        version: before.map_or(0, |row| row.version) + 1,
                        lease: *lease,
                    };
                    rows.insert(key.to_vec(), row);
                }
            }
        }
        self.turn_into(rows);
        Ok(Done { succeeded, revision: Revision(self.revision), reads, deleted })
    }
}
