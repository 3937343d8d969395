//! The join: admission, slots and final closings.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::authority::{Closed, Closing, EstateEntry, OfficeState, Powers};
use super::{
    CLOSINGS_MAX, CONFLICTS_MAX, Conflict, MergeReport, NODE_BLOCKS_MAX, OFFICE_RECORDS_MAX, Outcome, RefusedReason,
    Roster, RosterError, genesis_vdc, kind_order,
};
use crate::record::{Authority, Body, Estate, Tombstone};
use crate::{Hash, Key, Office, Signed, VdcId, codec};

/// Remembers which records were verified, so that one offered again costs a look-up instead of a signature check.
///
/// A record's hash covers its signatures, so the hash alone identifies what was verified. What a roster stores needs no
/// memory here; this is for what is offered and not stored, and for several rosters of one VDC in one process, which
/// share one through [`Roster::insert_with`]. The oldest are forgotten first.
#[derive(Clone, Debug)]
pub struct Verifier {
    known: BTreeSet<Hash>,
    order: VecDeque<Hash>,
    hashes_max: usize,
    checks: u64,
}

impl Default for Verifier {
    /// Remembers 512 records.
    fn default() -> Self {
        Self::new(512)
    }
}

impl Verifier {
    #[must_use]
    pub fn new(hashes_max: usize) -> Self {
        Self { known: BTreeSet::new(), order: VecDeque::new(), hashes_max, checks: 0 }
    }

    /// How many records had their signatures checked.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.checks
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.order.capacity() * size_of::<Hash>() + self.known.len() * size_of::<Hash>() * 16 / 11
    }

    fn verify(&mut self, vdc: &VdcId, record: &Signed) -> bool {
        let hash = record.hash();
        if self.known.contains(&hash) {
            return true;
        }
        self.checks += 1;
        if !record.verify(vdc) {
            return false;
        }
        self.known.insert(hash);
        self.order.push_back(hash);
        if self.order.len() > self.hashes_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Whether signatures are still to be checked.
enum Trust<'a> {
    Check(&'a mut Verifier),
    /// A roster of the same VDC holds the record.
    Verified,
}

impl Trust<'_> {
    fn verify(&mut self, vdc: &VdcId, record: &Signed) -> bool {
        match self {
            Self::Check(verifier) => verifier.verify(vdc, record),
            Self::Verified => true,
        }
    }
}

/// Where a record belongs: one slot holds one record.
///
/// A truncated hash keeps the index small. Two slots of one issuer that collide (2^64 work) would only displace each
/// other; hitting somebody else's slot takes 2^128.
fn slot(record: &Signed, vdc: &VdcId) -> [u8; 16] {
    let (subject, part): (&[u8], u64) = match &record.body {
        Body::Genesis(_) | Body::Policy(_) => (&[], 0),
        Body::Delegation(d) => match d.authority {
            Authority::Admin => (&d.subject.0, 0),
            Authority::Registrar(site) => (&d.subject.0, u64::from(site.0) + 1),
        },
        Body::Site(s) => (&[], u64::from(s.number.0)),
        Body::Member(m) => (&m.node.0, 0),
        Body::Grant(g) => (&g.subject.0, 0),
        Body::Contact(c) => (&c.node.0, 0),
        Body::Exposure(e) => (&e.node.0, 0),
        // Every closing counts: it has a slot of its own, whoever cosigned it.
        Body::Tombstone(t) if t.estate.is_some() => {
            let body = blake3::hash(&codec::encode(&record.body));
            return slot_of(&record.office(vdc), CLOSING, body.as_bytes(), 0);
        }
        Body::Tombstone(t) => (&t.subject.0, 0),
        Body::Block(b) => (&b.id.0, 0),
        // Every founding is kept: whatever a thief signs with an issuer's key, even the same body with another signature,
        // must not remove the record whose hash is a group's id.
        Body::Founding(_) => return slot_of(&record.office(vdc), FOUNDING, &record.hash().0, 0),
    };
    slot_of(&record.office(vdc), kind_order(&record.body), subject, part)
}

/// In place of a kind: the slots of closings.
const CLOSING: u8 = 200;
/// Likewise, of foundings.
const FOUNDING: u8 = 201;

fn member_slot(office: &Office, node: &Key) -> [u8; 16] {
    slot_of(office, 5, &node.0, 0)
}

fn slot_of(office: &Office, kind: u8, subject: &[u8], part: u64) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("meshd 2026 roster slot");
    hasher.update(&office.0).update(&[kind]).update(&part.to_be_bytes()).update(subject);
    let mut slot = [0; 16];
    slot.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    slot
}

/// What orders the records of one slot, before the hash.
pub(super) fn serial(body: &Body) -> u64 {
    match body {
        Body::Genesis(_) => 0,
        Body::Delegation(d) => d.serial,
        Body::Site(s) => s.serial,
        Body::Member(m) => m.serial,
        Body::Grant(g) => g.serial,
        Body::Contact(c) => c.serial,
        Body::Exposure(e) => e.serial,
        Body::Tombstone(t) => t.floor,
        Body::Block(b) => b.serial,
        Body::Policy(p) => p.version,
        Body::Founding(f) => f.serial,
    }
}

impl Roster {
    /// Offers a record. Cheap refusals come before the signature check.
    pub fn insert(&mut self, record: impl Into<Arc<Signed>>) -> Outcome {
        let mut verifier = std::mem::take(&mut self.verifier);
        let outcome = self.insert_with(&mut verifier, record.into());
        self.verifier = verifier;
        outcome
    }

    /// Offers a record, verified through a verifier that the caller shares between rosters of this VDC.
    pub fn insert_with(&mut self, verifier: &mut Verifier, record: Arc<Signed>) -> Outcome {
        self.join(&mut Trust::Check(verifier), record)
    }

    fn join(&mut self, trust: &mut Trust<'_>, record: Arc<Signed>) -> Outcome {
        if self.contains(&record.hash()) {
            return Outcome::Known;
        }
        // What was decoded is in form; this is for what was signed here: a stored record must decode again.
        if let Err(why) = record.body.check() {
            return Outcome::Refused(RefusedReason::Form(why));
        }
        if let Body::Genesis(_) = &record.body {
            return self.insert_genesis(trust, record);
        }
        if let Err(reason) = self.admit(&record) {
            return Outcome::Refused(reason);
        }
        let slot = slot(&record, &self.vdc);
        if let Some(held) = self.slots.get(&slot)
            && order(held) > order(&record)
        {
            let (kept, same_serial) = (held.hash(), serial(&held.body) == serial(&record.body));
            if same_serial && held.body != record.body && trust.verify(&self.vdc, &record) {
                self.report(record.issuer, kept, record.hash());
            }
            return Outcome::Superseded;
        }
        if !self.slots.contains_key(&slot)
            && let Err(reason) = self.room(&record)
        {
            return Outcome::Refused(reason);
        }
        if !trust.verify(&self.vdc, &record) {
            return Outcome::Refused(RefusedReason::Signature);
        }
        let closing = match self.parse_closing(trust, &record) {
            Ok(closing) => closing,
            Err(reason) => return Outcome::Refused(reason),
        };
        self.place(slot, Arc::clone(&record));
        self.version += 1;
        if let (Some(closing), Body::Tombstone(tombstone)) = (closing, &record.body) {
            self.closings.insert(record.hash(), Arc::clone(&closing));
            if record.under == Office::root(&self.vdc) {
                self.close(tombstone.subject, &closing);
            }
        }
        Outcome::New
    }

    /// The join with another replica's roster.
    ///
    /// # Errors
    /// [`RosterError::OtherVdc`] if the other is not of the same VDC.
    pub fn merge(&mut self, other: &Self) -> Result<MergeReport, RosterError> {
        if other.vdc != self.vdc {
            return Err(RosterError::OtherVdc { ours: self.vdc, theirs: other.vdc });
        }
        let mut report = MergeReport::default();
        for record in other.records() {
            match self.join(&mut Trust::Verified, record) {
                Outcome::New => report.new += 1,
                Outcome::Known => report.known += 1,
                Outcome::Superseded => report.superseded += 1,
                Outcome::Refused(_) => report.refused += 1,
            }
        }
        Ok(report)
    }

    /// Another owner's signature under the same genesis: the higher hash is kept, as everywhere.
    fn insert_genesis(&mut self, trust: &mut Trust<'_>, record: Arc<Signed>) -> Outcome {
        match genesis_vdc(&record) {
            Ok(vdc) if vdc == self.vdc => {}
            Ok(_) | Err(_) => return Outcome::Refused(RefusedReason::NotAllowed),
        }
        if record.hash() < self.genesis.hash() {
            return Outcome::Superseded;
        }
        if !trust.verify(&self.vdc, &record) {
            return Outcome::Refused(RefusedReason::Signature);
        }
        self.records.remove(&self.genesis.hash());
        self.records.insert(record.hash(), Arc::clone(&record));
        self.genesis = record;
        self.version += 1;
        Outcome::New
    }

    /// Whether what is stored gives the record's issuer the right to say it.
    fn admit(&self, record: &Signed) -> Result<(), RefusedReason> {
        if record.under == Office::root(&self.vdc) {
            let owners = &self.genesis().owners;
            if !record.signers().all(|k| owners.contains(&k)) {
                return Err(RefusedReason::NotAllowed);
            }
            if record.signers().count() < usize::from(self.genesis().threshold) {
                return Err(RefusedReason::Threshold);
            }
            return allowed(Powers::OWNERS, record);
        }
        if !record.cosignatures.is_empty() {
            return Err(RefusedReason::NotAllowed);
        }
        let powers = self.powers(&record.issuer, &record.under);
        if powers.rank().is_none() {
            return Err(RefusedReason::UnknownIssuer);
        }
        allowed(powers, record)?;
        if self.closed.contains_key(&record.issuer) { Err(RefusedReason::Closed) } else { Ok(()) }
    }

    /// The powers of `issuer` in its office under `under`, as far as stored records give them.
    #[must_use]
    pub fn powers(&self, issuer: &Key, under: &Office) -> Powers {
        let mut powers = self.offices.get(&Office::of(issuer, under)).map_or(Powers::default(), |o| o.powers);
        powers.node = self.offices.get(under).is_some_and(|o| o.powers.registrar && self.has_member(under, o, issuer));
        powers
    }

    /// Whether the office holds a member record of `node`.
    fn has_member(&self, office: &Office, state: &OfficeState, node: &Key) -> bool {
        match self.closed.get(&state.key) {
            Some(closed) => closed
                .remaining
                .values()
                .any(|e| e.record.under == state.under && matches!(&e.record.body, Body::Member(m) if m.node == *node)),
            None => self.slots.contains_key(&member_slot(office, node)),
        }
    }

    /// Whether the record's office may fill one more slot.
    fn room(&self, record: &Signed) -> Result<(), RefusedReason> {
        let office = record.office(&self.vdc);
        if self.offices.get(&office).is_some_and(|o| o.records >= OFFICE_RECORDS_MAX) {
            return Err(RefusedReason::Full);
        }
        if matches!(record.body, Body::Block(_)) && self.node_blocks.get(&office).is_some_and(|n| *n >= NODE_BLOCKS_MAX)
        {
            return Err(RefusedReason::Full);
        }
        if let Body::Tombstone(Tombstone { subject, estate: Some(_), .. }) = &record.body {
            let same = |held: &&Arc<Signed>| {
                held.under == record.under
                    && (held.issuer == record.issuer || record.under == Office::root(&self.vdc))
                    && matches!(&held.body, Body::Tombstone(t) if t.subject == *subject)
            };
            let closings = self.closings.keys().filter_map(|hash| self.records.get(hash));
            if closings.filter(same).count() >= CLOSINGS_MAX {
                return Err(RefusedReason::Full);
            }
        }
        Ok(())
    }

    /// Decodes and verifies the estate of a closing: the subject's own records, ascending by hash. An owners' closing may
    /// hold an admin's closings, which hold none: what an admin can close signs no closings itself.
    fn parse_closing(&self, trust: &mut Trust<'_>, record: &Signed) -> Result<Option<Arc<Closing>>, RefusedReason> {
        let nested = record.under == Office::root(&self.vdc);
        match &record.body {
            Body::Tombstone(Tombstone { subject, estate: Some(estate), .. }) => {
                self.parse_estate(trust, subject, estate, nested).map(|c| Some(Arc::new(c)))
            }
            _ => Ok(None),
        }
    }

    fn parse_estate(
        &self,
        trust: &mut Trust<'_>,
        subject: &Key,
        estate: &Estate,
        nested: bool,
    ) -> Result<Closing, RefusedReason> {
        let mut records = BTreeMap::new();
        let mut last = None;
        for bytes in &estate.records {
            let inner = Signed::decode(bytes).map_err(|_| RefusedReason::Estate("a record in it does not decode"))?;
            if inner.issuer != *subject || inner.number > estate.last || inner.under == Office::root(&self.vdc) {
                return Err(RefusedReason::Estate("a record in it is not the subject's, or beyond its last number"));
            }
            if last.is_some_and(|last| last >= inner.hash()) {
                return Err(RefusedReason::Estate("its records are not ascending"));
            }
            last = Some(inner.hash());
            let inner = match self.records.get(&inner.hash()) {
                Some(held) => Arc::clone(held),
                None if trust.verify(&self.vdc, &inner) => Arc::new(inner),
                None => return Err(RefusedReason::Estate("a signature in it is bad")),
            };
            let closing = match &inner.body {
                Body::Tombstone(Tombstone { subject, estate: Some(estate), .. }) if nested => {
                    Some(Arc::new(self.parse_estate(trust, subject, estate, false)?))
                }
                Body::Tombstone(Tombstone { estate: Some(_), .. }) => {
                    return Err(RefusedReason::Estate("closings are nested too deep"));
                }
                _ => None,
            };
            records.insert(inner.hash(), EstateEntry { record: inner, closing });
        }
        Ok(Closing { records })
    }

    /// Stores an admitted record in its slot, in place of an older one, and opens the office that it gives.
    fn place(&mut self, slot: [u8; 16], record: Arc<Signed>) {
        let office = record.office(&self.vdc);
        self.records.insert(record.hash(), Arc::clone(&record));
        match self.slots.insert(slot, Arc::clone(&record)) {
            Some(old) => {
                self.records.remove(&old.hash());
                self.closings.remove(&old.hash());
                if serial(&old.body) == serial(&record.body) && old.body != record.body {
                    self.report(record.issuer, record.hash(), old.hash());
                }
            }
            None => match self.offices.get_mut(&office) {
                Some(state) => state.records += 1,
                None if matches!(record.body, Body::Block(_)) => *self.node_blocks.entry(office).or_default() += 1,
                None => {}
            },
        }
        if let Body::Delegation(d) = &record.body {
            self.open(d.subject, office, Powers::of(&d.authority));
        }
    }

    /// Opens the office of `key` under `under`, and those which the estate of a closed key opened in turn.
    fn open(&mut self, key: Key, under: Office, powers: Powers) {
        let depth = self.offices.get(&under).map_or(0, |o| o.depth) + 1;
        let office = Office::of(&key, &under);
        let state = self.offices.entry(office).or_insert(OfficeState { key, under, powers, depth, records: 0 });
        state.powers = state.powers.union(powers);
        let estate = self.closed.get(&key).map(|c| c.remaining.values());
        let opened: Vec<_> = estate
            .into_iter()
            .flatten()
            .filter_map(|e| match &e.record.body {
                Body::Delegation(d) if e.record.under == under && state.powers.allow(&key, &e.record.body) => {
                    Some((d.subject, Powers::of(&d.authority)))
                }
                _ => None,
            })
            .collect();
        for (subject, powers) in opened {
            self.open(subject, office, powers);
        }
    }

    /// A final closing: keeps of `subject` what every estate names, then drops all that is no longer justified.
    fn close(&mut self, subject: Key, closing: &Closing) {
        match self.closed.get_mut(&subject) {
            Some(closed) => {
                closed.intersect(closing);
            }
            None => {
                self.closed.insert(subject, Closed { remaining: closing.records.clone() });
            }
        }
        let mut records: Vec<_> = self.records.values().cloned().collect();
        self.sort_for_sending(&mut records);
        self.records = BTreeMap::from([(self.genesis.hash(), Arc::clone(&self.genesis))]);
        self.slots.clear();
        self.node_blocks.clear();
        self.offices = BTreeMap::from([(Office::owners(&self.vdc), OfficeState::owners(&self.vdc))]);
        for record in records {
            if !matches!(record.body, Body::Genesis(_)) && self.admit(&record).is_ok() {
                self.place(slot(&record, &self.vdc), record);
            }
        }
        self.closings.retain(|hash, _| self.records.contains_key(hash));
    }

    /// The keys by whose word `node` is a member: its registrars, and the admins who delegated those.
    pub(crate) fn vouchers(&self, node: &Key) -> BTreeSet<Key> {
        let remaining = self.closed.values().flat_map(|c| c.remaining.values()).map(|e| &e.record);
        let members = self.records.values().chain(remaining);
        let mut keys = BTreeSet::new();
        for record in members.filter(|r| matches!(&r.body, Body::Member(m) if m.node == *node)) {
            keys.insert(record.issuer);
            keys.extend(self.offices.get(&record.under).map(|office| office.key));
        }
        keys
    }

    /// Links between the owners and the record: 0 for owners' statements.
    pub(super) fn depth(&self, record: &Signed) -> u8 {
        match self.offices.get(&record.under) {
            Some(office) => office.depth + 1,
            None => 0,
        }
    }

    fn report(&mut self, issuer: Key, kept: Hash, dropped: Hash) {
        let conflict = Conflict { issuer, kept, dropped };
        if self.conflicts.contains(&conflict) {
            return;
        }
        if self.conflicts.len() == CONFLICTS_MAX {
            self.conflicts.pop_front();
        }
        self.conflicts.push_back(conflict);
    }
}

fn allowed(powers: Powers, record: &Signed) -> Result<(), RefusedReason> {
    if powers.allow(&record.issuer, &record.body) { Ok(()) } else { Err(RefusedReason::NotAllowed) }
}

fn order(record: &Signed) -> (u64, Hash) {
    (serial(&record.body), record.hash())
}
