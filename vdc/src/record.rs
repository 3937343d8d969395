//! Signed records: what each kind says and how it is signed.
//!
//! A record is a [`Body`] that an issuer signed together with the office it stands on and the issuer's own consecutive
//! number. Wire form, canonical CBOR (see [`crate::codec`]): `[format, issuer, under, number, body, signature,
//! [[cosigner, signature], …]]`. The signature covers `"meshd record 1" ‖ vdc_id ‖ CBOR(issuer) ‖ CBOR(under) ‖
//! CBOR(number) ‖ CBOR(body)`, so a record means nothing in another VDC.
//!
//! This module checks what a record can say for itself: canonical form, limits, signatures. Whether the issuer had the
//! right to sign it is a question to the [`crate::roster`].

mod founding;
mod workload;

pub use founding::{Founding, Home};
pub use workload::WorkloadExposure;

use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::address::Ipv4Block;
use crate::codec::{self, DecodeError};
use crate::{Hash, Key, Name, Office, SiteNumber, UnixTime, VdcId, WgKey};

/// Format version of a stored or sent record.
pub const FORMAT: u32 = 1;
/// Longest record in bytes: a tombstone with the estate of an issuer of 4,096 records stays below it.
pub const RECORD_BYTES_MAX: usize = 2 << 20;
/// Longest record of any other kind, in bytes.
pub const PLAIN_RECORD_BYTES_MAX: usize = 64 << 10;
/// Domain separation of record signatures.
const DOMAIN: &[u8] = b"meshd record 1";

/// An Ed25519 signing key (RFC 8032), made from a seed that the caller drew.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    #[must_use]
    pub fn public(&self) -> Key {
        Key(self.0.verifying_key().to_bytes())
    }

    /// The 32-byte secret seed, for the key file and for libp2p.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Signs `message`; callers prepend their own domain.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey(of {})", self.public().short())
    }
}

/// Checks an Ed25519 signature strictly: no small-order keys, no malleable signatures (RFC 8032 §5.1.7).
#[must_use]
pub fn verify(key: &Key, message: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(&key.0).is_ok_and(|k| k.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
}

/// What an issuer says. The order of the variants is the order of authority: what is above can justify what is below.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Body {
    /// The VDC's constitution. Signed by its first owner; the VDC's id is the hash of this body.
    #[n(0)]
    Genesis(#[n(0)] Genesis),
    /// A right to sign records, given by the owners (admins) or an admin (registrars).
    #[n(1)]
    Delegation(#[n(0)] Delegation),
    /// A site: name, number, IPv4 block, who founded it. By an admin.
    #[n(2)]
    Site(#[n(0)] Site),
    /// A node's membership. By a registrar of its site.
    #[n(3)]
    Member(#[n(0)] Member),
    /// Roles and labels of a node. By an admin.
    #[n(4)]
    Grant(#[n(0)] Grant),
    /// Where a node's control swarm can be dialled. By the node itself.
    #[n(5)]
    Contact(#[n(0)] Contact),
    /// Ports at which a node may be reached in the VDC, and its workloads. By the node itself.
    #[n(6)]
    Exposure(#[n(0)] Exposure),
    /// The end of a node or of an issuer. By an admin, by a registrar for its site's nodes, or by the node itself.
    #[n(7)]
    Tombstone(#[n(0)] Tombstone),
    /// Deny-only emergency brake. By an operator, a registrar or an admin.
    #[n(8)]
    Block(#[n(0)] Block),
    /// The head of the policy chain, with its document. By an admin.
    #[n(9)]
    Policy(#[n(0)] Policy),
    /// Which node may make a coordination group. By an admin, or by a registrar for its site.
    #[n(10)]
    Founding(#[n(0)] Founding),
}

/// k-of-n owners and the VDC's name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Genesis {
    #[n(0)]
    pub name: Name,
    /// Owner keys, ascending, 1 to 16 of them.
    #[n(1)]
    pub owners: Vec<Key>,
    /// How many owners must sign what only owners may sign; 1 to the number of owners.
    #[n(2)]
    pub threshold: u8,
    #[n(3)]
    pub created: UnixTime,
    /// 32 random bytes: two VDCs of one name, owner and second still differ.
    #[n(4)]
    pub nonce: Hash,
    /// The range that sites' IPv4 blocks are carved from; none means IPv6 only.
    #[n(5)]
    pub ipv4: Option<Ipv4Block>,
}

impl Genesis {
    /// The VDC's id.
    #[must_use]
    pub fn vdc_id(&self) -> VdcId {
        VdcId(blake3::derive_key("meshd 2026 vdc id", &codec::encode(self)))
    }
}

/// What a delegation allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(flat)]
pub enum Authority {
    /// May sign sites, registrar delegations, grants, policy, tombstones. Only owners give it.
    #[n(0)]
    Admin,
    /// May admit, renew and end nodes of one site.
    #[n(1)]
    Registrar(#[n(0)] SiteNumber),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Delegation {
    #[n(0)]
    pub subject: Key,
    #[n(1)]
    pub authority: Authority,
    /// Orders delegations of the same subject and authority.
    #[n(2)]
    pub serial: u64,
    #[n(3)]
    pub not_before: UnixTime,
    /// A year by default. Member records dated later are not believed. An admin's records carry no date, so an admin
    /// past its end issues nothing more by our own tools; one whose key was lost must be closed.
    #[n(4)]
    pub not_after: UnixTime,
}

impl Delegation {
    /// Whether it says that the right was taken back: it ended when it began, and is renewed by nobody.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.not_after <= self.not_before
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Site {
    #[n(0)]
    pub number: SiteNumber,
    #[n(1)]
    pub name: Name,
    #[n(2)]
    pub serial: u64,
    /// The site's IPv4 block, from which its registrar allots node sub-blocks.
    #[n(3)]
    pub ipv4: Option<Ipv4Block>,
    /// The site whose registrars admit and renew here until this one has a registrar of its own. Itself for the first.
    #[n(4)]
    pub founder: SiteNumber,
    #[n(5)]
    pub created: UnixTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Member {
    /// The node's Ed25519 key: its identity, and its libp2p PeerId.
    #[n(0)]
    pub node: Key,
    #[n(1)]
    pub wg: WgKey,
    #[n(2)]
    pub site: SiteNumber,
    /// Unique within the site; DNS label.
    #[n(3)]
    pub name: Name,
    #[n(4)]
    pub serial: u64,
    /// See [`crate::NodePrefix::derive`]; raised by the registrar when the derived prefix was taken.
    #[n(5)]
    pub bump: u8,
    /// The node's own sub-block of its site's IPv4 block.
    #[n(6)]
    pub ipv4: Option<Ipv4Block>,
    #[n(7)]
    pub not_before: UnixTime,
    /// A renewal deadline, not a cut-off: see [`crate::roster::Standing`].
    #[n(8)]
    pub not_after: UnixTime,
    /// Ephemeral nodes get no grace after `not_after`.
    #[n(9)]
    pub ephemeral: bool,
}

/// What a node may do beyond being asked. Every member is a `host` without any grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Role {
    /// May be asked, may not ask.
    #[n(0)]
    Host,
    /// May use remote verbs and sign block records.
    #[n(1)]
    Operator,
    /// Shown for nodes that hold an admin delegation.
    #[n(2)]
    Admin,
    /// Shown for the node that holds an owner key.
    #[n(3)]
    Owner,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    #[n(0)]
    pub subject: Key,
    /// Orders grants of the same subject, whoever signed them. Nothing else raises it: renewing a member cannot.
    #[n(1)]
    pub serial: u64,
    /// Ascending, at most 16; only [`Role::Host`] and [`Role::Operator`] can be granted.
    #[n(2)]
    pub roles: Vec<Role>,
    /// Ascending, at most 64.
    #[n(3)]
    pub labels: Vec<Name>,
}

impl ContactAddress {
    /// Whether a DNS name in it has the form of one.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Ip(..) => true,
            Self::Dns(name, _) => is_dns_name(name),
        }
    }
}

/// A place where a node's control swarm listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(flat)]
pub enum ContactAddress {
    #[n(0)]
    Ip(#[cbor(n(0), with = "crate::codec::ip")] std::net::IpAddr, #[n(1)] u16),
    /// A DNS name, resolved each time it is dialled: survives a change of every address.
    #[n(1)]
    Dns(#[n(0)] String, #[n(1)] u16),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Contact {
    #[n(0)]
    pub node: Key,
    #[n(1)]
    pub serial: u64,
    /// UDP (QUIC) and TCP on the same port; at most 16, in the node's order of preference.
    #[n(2)]
    pub addresses: Vec<ContactAddress>,
    /// The port of the join door, if the node opens one.
    #[n(3)]
    pub door_port: Option<u16>,
}

/// Transport protocol of a declared port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Protocol {
    #[n(0)]
    Tcp,
    #[n(1)]
    Udp,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct PortRange {
    #[n(0)]
    pub protocol: Protocol,
    #[n(1)]
    pub first: u16,
    #[n(2)]
    pub last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Exposure {
    #[n(0)]
    pub node: Key,
    #[n(1)]
    pub serial: u64,
    /// Of the host. Ascending and disjoint, at most 256.
    #[n(2)]
    pub ports: Vec<PortRange>,
    /// Ascending by name, at most [`WorkloadExposure::ENTRIES_MAX`].
    #[cbor(n(3), with = "workload::list", has_nil)]
    pub workloads: Vec<WorkloadExposure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Tombstone {
    #[n(0)]
    pub subject: Key,
    /// Members and grants of the subject up to this serial are void; `u64::MAX` ends it for good.
    #[n(1)]
    pub floor: u64,
    #[n(2)]
    pub at: UnixTime,
    /// Free text for the audit log, at most 200 bytes.
    #[n(3)]
    pub reason: String,
    /// Present when the subject was an issuer.
    #[n(4)]
    pub estate: Option<Estate>,
}

/// What remains of an issuer that was ended: exactly these records, and nothing else that it ever signed or will sign.
///
/// Carrying the records themselves, not a number and a hash, is what makes the merge a lattice: a forged record may have
/// displaced a true one on some node before the tombstone came, and the estate puts the true one back.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Estate {
    /// The last number accepted from the issuer.
    #[n(0)]
    pub last: u64,
    /// Encoded [`Signed`] records, ascending by hash, at most [`Estate::RECORDS_MAX`].
    #[cbor(n(1), with = "estate_records")]
    pub records: Vec<ByteVec>,
}

impl Estate {
    pub const RECORDS_MAX: usize = 4096;
}

/// Refuses a long list before it takes memory.
mod estate_records {
    use minicbor::bytes::ByteVec;
    use minicbor::{Decoder, Encoder};

    use super::Estate;
    use crate::codec;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        records: &Vec<ByteVec>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.encode_with(records, ctx)?.ok()
    }

    pub(super) fn decode<'b, C>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Vec<ByteVec>, minicbor::decode::Error> {
        codec::decode_list(d, ctx, Estate::RECORDS_MAX)
    }
}

/// What a block record matches. An absent field matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct BlockMatch {
    #[n(0)]
    pub from: Option<Key>,
    #[n(1)]
    pub to: Option<Key>,
    #[n(2)]
    pub ports: Option<PortRange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Block {
    /// 32 random bytes.
    #[n(0)]
    pub id: Hash,
    /// Orders statements about the same block: raised by the record that lifts it.
    #[n(1)]
    pub serial: u64,
    #[n(2)]
    pub matches: BlockMatch,
    #[n(3)]
    pub lifted: bool,
    /// Free text, at most 200 bytes.
    #[n(4)]
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Policy {
    #[n(0)]
    pub version: u64,
    /// [`Policy::body_hash`] of the version before this one; none for version 1.
    #[n(1)]
    pub previous: Option<Hash>,
    #[n(2)]
    pub document: crate::policy::Document,
}

impl Policy {
    /// What the next version names as its previous one.
    #[must_use]
    pub fn body_hash(&self) -> Hash {
        Hash(blake3::derive_key("meshd 2026 policy", &codec::encode(self)))
    }
}

/// A body with its issuer, number and signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub issuer: Key,
    /// The office that gave the issuer the right to say this; [`Office::root`] for owners' statements.
    pub under: Office,
    /// The issuer's own consecutive number of this record, from 1.
    pub number: u64,
    pub body: Body,
    pub signature: [u8; 64],
    /// Further owners' signatures over the same bytes, ascending by key.
    pub cosignatures: Vec<(Key, [u8; 64])>,
    hash: Hash,
}

#[derive(Encode, Decode)]
struct Wire {
    #[n(0)]
    format: u32,
    #[n(1)]
    issuer: Key,
    #[n(2)]
    under: Office,
    #[n(3)]
    number: u64,
    #[n(4)]
    body: Body,
    #[n(5)]
    signature: ByteArray<64>,
    #[n(6)]
    cosignatures: Vec<WireCosignature>,
}

#[derive(Encode, Decode)]
struct WireCosignature {
    #[n(0)]
    key: Key,
    #[n(1)]
    signature: ByteArray<64>,
}

impl Signed {
    /// Signs `body` as the issuer's record `number`, standing on the office `under`; further owners cosign.
    #[must_use]
    pub fn sign(
        vdc: &VdcId,
        key: &SigningKey,
        under: Office,
        number: u64,
        body: Body,
        cosigners: &[&SigningKey],
    ) -> Self {
        let issuer = key.public();
        let message = message(vdc, &issuer, &under, number, &body);
        let others = cosigners.iter().filter(|k| k.public() != issuer);
        let mut cosignatures: Vec<_> = others.map(|k| (k.public(), k.sign(&message))).collect();
        cosignatures.sort_unstable();
        cosignatures.dedup();
        let mut record =
            Self { issuer, under, number, body, signature: key.sign(&message), cosignatures, hash: Hash([0; 32]) };
        record.hash = record_hash(&record.encode());
        record
    }

    /// Decodes and checks form and limits. Signatures are checked apart, by [`Signed::verify`].
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical record of a known format within the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let wire: Wire = codec::decode("record", bytes, RECORD_BYTES_MAX)?;
        if wire.format != FORMAT {
            return Err(DecodeError::Version { what: "record", version: wire.format, supported: FORMAT });
        }
        let record = Self {
            issuer: wire.issuer,
            under: wire.under,
            number: wire.number,
            body: wire.body,
            signature: *wire.signature,
            cosignatures: wire.cosignatures.into_iter().map(|c| (c.key, *c.signature)).collect(),
            hash: record_hash(bytes),
        };
        record.check(bytes.len())?;
        Ok(record)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&Wire {
            format: FORMAT,
            issuer: self.issuer,
            under: self.under,
            number: self.number,
            body: self.body.clone(),
            signature: ByteArray::from(self.signature),
            cosignatures: self
                .cosignatures
                .iter()
                .map(|(key, signature)| WireCosignature { key: *key, signature: ByteArray::from(*signature) })
                .collect(),
        })
    }

    /// Hash of the encoded record: its identity in sync and in conflicts.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Whether every signature on the record is good in this VDC.
    #[must_use]
    pub fn verify(&self, vdc: &VdcId) -> bool {
        let message = message(vdc, &self.issuer, &self.under, self.number, &self.body);
        verify(&self.issuer, &message, &self.signature)
            && self.cosignatures.iter().all(|(key, signature)| verify(key, &message, signature))
    }

    /// Bytes on the heap of one shared record.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let name = |n: &Name| n.as_str().len();
        let inner = match &self.body {
            Body::Genesis(g) => name(&g.name) + g.owners.len() * size_of::<Key>(),
            Body::Delegation(_) | Body::Founding(_) => 0,
            Body::Site(s) => name(&s.name),
            Body::Member(m) => name(&m.name),
            Body::Grant(g) => g.roles.len() + g.labels.iter().map(|l| size_of::<Name>() + name(l)).sum::<usize>(),
            Body::Contact(c) => {
                let dns = |a: &ContactAddress| if let ContactAddress::Dns(name, _) = a { name.len() } else { 0 };
                c.addresses.iter().map(|a| size_of::<ContactAddress>() + dns(a)).sum()
            }
            Body::Exposure(e) => {
                let workloads = e.workloads.iter().map(|w| size_of::<WorkloadExposure>() + w.heap_bytes());
                e.ports.len() * size_of::<PortRange>() + workloads.sum::<usize>()
            }
            Body::Tombstone(t) => {
                let estate = t.estate.iter().flat_map(|e| &e.records);
                t.reason.len() + estate.map(|r| size_of::<ByteVec>() + r.len()).sum::<usize>()
            }
            Body::Block(b) => b.reason.len(),
            Body::Policy(_) => codec::encode(&self.body).len() * 2,
        };
        // Two counters of the Arc, and the allocator's own word.
        size_of::<Self>() + 3 * size_of::<usize>() + inner + self.cosignatures.len() * size_of::<(Key, [u8; 64])>()
    }

    /// The office that this record's issuer holds, and that those stand on to whom the record gives a right.
    #[must_use]
    pub fn office(&self, vdc: &VdcId) -> Office {
        if self.under == Office::root(vdc) { Office::owners(vdc) } else { Office::of(&self.issuer, &self.under) }
    }

    /// The distinct keys whose signatures the record carries.
    pub fn signers(&self) -> impl Iterator<Item = Key> + '_ {
        std::iter::once(self.issuer).chain(self.cosignatures.iter().map(|(key, _)| *key))
    }

    /// Limits and orderings that decoding alone does not enforce.
    fn check(&self, length: usize) -> Result<(), DecodeError> {
        let invalid = |why| Err(DecodeError::Invalid { what: "record", why });
        if length > PLAIN_RECORD_BYTES_MAX && !matches!(self.body, Body::Tombstone(_)) {
            return invalid("too long for its kind");
        }
        if self.number == 0 {
            return invalid("numbers start at 1");
        }
        let keys: Vec<Key> = self.cosignatures.iter().map(|(key, _)| *key).collect();
        if keys.len() > 16 || !keys.is_sorted_by(|a, b| a < b) || keys.contains(&self.issuer) {
            return invalid("cosigners must be at most 16, ascending, and not the issuer");
        }
        self.body.check().or_else(invalid)
    }
}

impl Body {
    /// Limits and orderings that decoding alone does not enforce.
    ///
    /// # Errors
    /// Which one is broken.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let invalid = Err;
        match self {
            Body::Genesis(g) => {
                if g.owners.is_empty() || g.owners.len() > 16 || !g.owners.is_sorted_by(|a, b| a < b) {
                    return invalid("owners must be 1 to 16, ascending");
                }
                if g.threshold == 0 || usize::from(g.threshold) > g.owners.len() {
                    return invalid("threshold must be 1 to the number of owners");
                }
            }
            Body::Delegation(d) if d.not_after < d.not_before => return invalid("ends before it begins"),
            Body::Site(s) if s.number.0 == 0 || s.founder.0 == 0 => return invalid("site numbers start at 1"),
            Body::Member(m) if m.not_after < m.not_before => return invalid("ends before it begins"),
            Body::Member(m) if m.site.0 == 0 => return invalid("site numbers start at 1"),
            Body::Grant(g) => {
                if g.roles.len() > 16 || !g.roles.is_sorted_by(|a, b| a < b) {
                    return invalid("roles must be at most 16, ascending");
                }
                if g.roles.iter().any(|r| matches!(r, Role::Admin | Role::Owner)) {
                    return invalid("admin and owner are delegations, not grants");
                }
                if g.labels.len() > 64 || !g.labels.is_sorted_by(|a, b| a < b) {
                    return invalid("labels must be at most 64, ascending");
                }
            }
            Body::Contact(c) => {
                if c.addresses.len() > 16 || !c.addresses.iter().all(ContactAddress::is_valid) {
                    return invalid("a contact has at most 16 addresses and DNS names of at most 253 bytes");
                }
            }
            Body::Exposure(e) => {
                if e.ports.len() > 256 || !are_disjoint(&e.ports) {
                    return invalid("ports must be at most 256 ascending, disjoint ranges");
                }
                workload::check(&e.workloads)?;
            }
            Body::Tombstone(t) => {
                if t.reason.len() > 200 {
                    return invalid("reason longer than 200 bytes");
                }
                if t.estate.as_ref().is_some_and(|e| e.records.len() > Estate::RECORDS_MAX) {
                    return invalid("estate of more than 4096 records");
                }
            }
            Body::Block(b) if b.reason.len() > 200 => return invalid("reason longer than 200 bytes"),
            Body::Block(b) if b.matches.ports.is_some_and(|p| p.last < p.first) => return invalid("empty port range"),
            Body::Policy(p) if !p.document.is_within_limits() => return invalid("policy document over its limits"),
            Body::Policy(p) if p.version == 0 => return invalid("policy versions start at 1"),
            Body::Policy(p) if !p.document.is_within_limits() => return invalid("policy document beyond its limits"),
            Body::Policy(p) if (p.version == 1) != p.previous.is_none() => {
                return invalid("every policy but the first names the one before it");
            }
            Body::Founding(f) if f.home == Home::Site(SiteNumber(0)) => return invalid("site numbers start at 1"),
            Body::Founding(f) if f.serial == 0 => return invalid("serials of foundings start at 1"),
            Body::Delegation(_)
            | Body::Site(_)
            | Body::Member(_)
            | Body::Block(_)
            | Body::Policy(_)
            | Body::Founding(_) => {}
        }
        Ok(())
    }
}

/// Whether ranges are not empty, ascending and disjoint.
fn are_disjoint(ports: &[PortRange]) -> bool {
    ports.is_sorted_by(|a, b| (a.protocol, a.last) < (b.protocol, b.first)) && ports.iter().all(|p| p.first <= p.last)
}

/// A host name in its usual form: labels of letters, digits and hyphens (RFC 1123 §2.1).
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.len() <= 253 && name.split('.').all(label)
}

fn message(vdc: &VdcId, issuer: &Key, under: &Office, number: u64, body: &Body) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    message.extend_from_slice(&vdc.0);
    message.extend(codec::encode(issuer));
    message.extend(codec::encode(under));
    message.extend(codec::encode(&number));
    message.extend(codec::encode(body));
    message
}

fn record_hash(bytes: &[u8]) -> Hash {
    Hash(blake3::derive_key("meshd 2026 record", bytes))
}
