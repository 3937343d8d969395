//! What is said at the door, and how possession of keys is proven there.
//!
//! ```text
//! joiner                                   registrar
//!   Hello{vdc, invite}            →
//!                                 ←        Challenge{nonce, dh}
//!   Redeem{keys, proofs}          →
//!                                 ←        Granted{records}  or  Refused{code, message, hint}
//! ```
//! The link under it has authenticated both PeerIds. Every proof covers the transcript `domain ‖ vdc_id ‖ invite_id ‖
//! registrar ‖ joiner ‖ challenge ‖ node key ‖ WireGuard key`, so none can be replayed to another registrar, by another
//! peer, for other keys, or a second time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::codec::{self, DecodeError};
use crate::record::{SigningKey, verify};
use crate::{InviteId, Key, Name, VdcId, WgKey};

/// Name of the door protocol; the number changes when an older node could not follow.
pub const DOOR_PROTOCOL: &str = "/meshd/door/1";
/// Longest request in bytes: keys, proofs and a name.
pub const DOOR_REQUEST_BYTES_MAX: usize = 4 << 10;
/// Longest response in bytes: 3 MiB of records and their framing.
pub const DOOR_RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of records in a grant; the rest comes by record sync.
pub const GRANT_BYTES_MAX: usize = 3 << 20;
/// Most records in a grant.
pub(super) const GRANT_RECORDS_MAX: usize = 1 << 16;
/// How long a challenge can be answered.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_secs(30);
/// Most characters of a refusal's message and of its hint.
const REFUSAL_CHARS_MAX: usize = 500;
/// Format version of door messages.
const FORMAT: u32 = 1;
const REDEEM_DOMAIN: &[u8] = b"meshd redeem 1";
const RENEW_DOMAIN: &[u8] = b"meshd renew 1";

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum DoorRequest {
    /// Asks for a challenge.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Redeems an invite.
    #[n(1)]
    Redeem(#[n(0)] Redeem),
    /// Renews an existing membership.
    #[n(2)]
    Renew(#[n(0)] Renew),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum DoorResponse {
    /// To be answered within [`CHALLENGE_LIFETIME`], once, by the peer that asked.
    #[n(0)]
    Challenge(#[n(0)] Question),
    /// Encoded records, what gives a right before what needs it; the caller's own member record among them. To a revoked
    /// node that asks for its renewal: its tombstone alone.
    #[n(1)]
    Granted(#[cbor(n(0), with = "granted_records")] Vec<ByteVec>),
    #[n(2)]
    Refused(#[n(0)] Refusal),
}

/// What the registrar asks, once.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Question {
    #[n(0)]
    pub nonce: ByteArray<32>,
    /// The registrar's X25519 public key for this question only.
    #[n(1)]
    pub dh: WgKey,
}

/// The two ends of the link, as it authenticated them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub registrar: Key,
    pub joiner: Key,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    #[n(0)]
    pub vdc: VdcId,
    /// None for a renewal.
    #[n(1)]
    pub invite: Option<InviteId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Redeem {
    #[n(0)]
    pub vdc: VdcId,
    #[n(1)]
    pub invite: InviteId,
    #[n(2)]
    pub node: Key,
    #[n(3)]
    pub wg: WgKey,
    /// What the node would like to be called; the registrar makes it unique.
    #[n(4)]
    pub name: Name,
    /// The challenge's nonce.
    #[n(5)]
    pub challenge: ByteArray<32>,
    #[n(6)]
    pub invite_signature: ByteArray<64>,
    #[n(7)]
    pub node_signature: ByteArray<64>,
    #[n(8)]
    pub wg_proof: ByteArray<32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Renew {
    #[n(0)]
    pub vdc: VdcId,
    #[n(1)]
    pub node: Key,
    /// The same as before, or a new one.
    #[n(2)]
    pub wg: WgKey,
    #[n(3)]
    pub challenge: ByteArray<32>,
    #[n(4)]
    pub node_signature: ByteArray<64>,
    #[n(5)]
    pub wg_proof: ByteArray<32>,
}

/// Why the registrar says no.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// See [`RefusalCode::as_str`]; text, so that a newer registrar's codes reach an older joiner.
    #[n(0)]
    pub code: String,
    #[n(1)]
    pub message: String,
    /// What to do about it.
    #[n(2)]
    pub hint: String,
}

/// The reasons that this release gives, stable for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalCode {
    WrongVdc,
    WrongRegistrar,
    InviteUnknown,
    InviteUsed,
    InviteExpired,
    InviteRevoked,
    ChallengeStale,
    BadProof,
    NotMember,
    Revoked,
    CannotIssue,
    Clock,
    Busy,
}

impl RefusalCode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongVdc => "wrong-vdc",
            Self::WrongRegistrar => "wrong-registrar",
            Self::InviteUnknown => "invite-unknown",
            Self::InviteUsed => "invite-used",
            Self::InviteExpired => "invite-expired",
            Self::InviteRevoked => "invite-revoked",
            Self::ChallengeStale => "challenge-stale",
            Self::BadProof => "bad-proof",
            Self::NotMember => "not-member",
            Self::Revoked => "revoked",
            Self::CannotIssue => "cannot-issue",
            Self::Clock => "clock",
            Self::Busy => "busy",
        }
    }
}

impl Refusal {
    #[must_use]
    pub fn new(code: RefusalCode, message: &str, hint: &str) -> Self {
        let cut = |text: &str| text.chars().take(REFUSAL_CHARS_MAX / 4).collect();
        Self { code: code.as_str().to_owned(), message: cut(message), hint: cut(hint) }
    }

    #[must_use]
    pub fn is(&self, code: RefusalCode) -> bool {
        self.code == code.as_str()
    }
}

#[derive(Encode, Decode)]
struct Versioned<T> {
    #[n(0)]
    format: u32,
    #[n(1)]
    message: T,
}

/// Refuses a long list before it takes memory.
mod granted_records {
    use minicbor::bytes::ByteVec;
    use minicbor::{Decoder, Encoder};

    use crate::codec;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        records: &Vec<ByteVec>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.encode_with(records, ctx)?.ok()
    }

    pub(super) fn decode<'b, C>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Vec<ByteVec>, minicbor::decode::Error> {
        codec::decode_list(d, ctx, super::GRANT_RECORDS_MAX)
    }
}

fn encode<T: Encode<()>>(message: T) -> Vec<u8> {
    codec::encode(&Versioned { format: FORMAT, message })
}

fn decode<'b, T>(what: &'static str, bytes: &'b [u8], length_max: usize) -> Result<T, DecodeError>
where
    T: Decode<'b, ()> + Encode<()>,
{
    let wire: Versioned<T> = codec::decode(what, bytes, length_max)?;
    if wire.format == FORMAT {
        Ok(wire.message)
    } else {
        Err(DecodeError::Version { what, version: wire.format, supported: FORMAT })
    }
}

impl DoorRequest {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self.clone())
    }

    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical request within [`DOOR_REQUEST_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode("door request", bytes, DOOR_REQUEST_BYTES_MAX)
    }
}

impl DoorResponse {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self.clone())
    }

    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical response within [`DOOR_RESPONSE_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let response: Self = decode("door response", bytes, DOOR_RESPONSE_BYTES_MAX)?;
        match &response {
            Self::Refused(r) if [&r.code, &r.message, &r.hint].iter().any(|t| t.len() > REFUSAL_CHARS_MAX) => {
                Err(DecodeError::Invalid { what: "door response", why: "a refusal's text is longer than 500 bytes" })
            }
            Self::Challenge(_) | Self::Granted(_) | Self::Refused(_) => Ok(response),
        }
    }
}

/// The secrets of a node that is about to join or renew.
#[derive(Clone)]
pub struct NodeSecrets {
    pub node: SigningKey,
    wg: StaticSecret,
}

impl fmt::Debug for NodeSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeSecrets(of {})", self.node.public().short())
    }
}

impl NodeSecrets {
    /// From the seeds that the caller drew: Ed25519 and X25519.
    #[must_use]
    pub fn from_seeds(node: &[u8; 32], wg: &[u8; 32]) -> Self {
        Self { node: SigningKey::from_seed(node), wg: StaticSecret::from(*wg) }
    }

    /// The public WireGuard key.
    #[must_use]
    pub fn wg_public(&self) -> WgKey {
        WgKey(PublicKey::from(&self.wg).to_bytes())
    }
}

/// What every proof covers.
struct Transcript<'a> {
    vdc: &'a VdcId,
    invite: Option<&'a InviteId>,
    registrar: &'a Key,
    joiner: &'a Key,
    challenge: &'a [u8; 32],
    node: &'a Key,
    wg: &'a WgKey,
}

impl Transcript<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = if self.invite.is_some() { REDEEM_DOMAIN } else { RENEW_DOMAIN }.to_vec();
        bytes.extend_from_slice(&self.vdc.0);
        bytes.extend_from_slice(self.invite.map_or(&[][..], |i| &i.0));
        for part in [&self.registrar.0, &self.joiner.0, self.challenge, &self.node.0, &self.wg.0] {
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// A MAC that only the holder of either X25519 secret can make. None if the other's key is of small order.
fn wg_proof(secret: &StaticSecret, public: &WgKey, transcript: &[u8]) -> Option<[u8; 32]> {
    let shared = secret.diffie_hellman(&PublicKey::from(public.0));
    if !shared.was_contributory() {
        return None;
    }
    let key = blake3::derive_key("meshd 2026 wireguard key possession", shared.as_bytes());
    Some(*blake3::keyed_hash(&key, transcript).as_bytes())
}

impl Redeem {
    /// The joiner's answer to a challenge.
    ///
    /// None if the registrar's challenge key is of small order, which no honest registrar draws.
    #[must_use]
    pub fn answer(
        invite: &super::Invite,
        secrets: &NodeSecrets,
        link: &Link,
        question: &Question,
        name: Name,
    ) -> Option<Self> {
        let (node, wg) = (secrets.node.public(), secrets.wg_public());
        let transcript = Transcript {
            vdc: &invite.vdc,
            invite: Some(&invite.id),
            registrar: &link.registrar,
            joiner: &link.joiner,
            challenge: &question.nonce,
            node: &node,
            wg: &wg,
        }
        .bytes();
        Some(Self {
            vdc: invite.vdc,
            invite: invite.id,
            node,
            wg,
            name,
            challenge: question.nonce,
            invite_signature: ByteArray::from(invite.signing_key().sign(&transcript)),
            node_signature: ByteArray::from(secrets.node.sign(&transcript)),
            wg_proof: ByteArray::from(wg_proof(&secrets.wg, &question.dh, &transcript)?),
        })
    }

    /// Whether the peer holds the invite's secret and both keys. Uses the challenge up.
    pub(super) fn verify(&self, challenge: Challenge, registrar: &Key, invite: &Key) -> bool {
        let transcript = Transcript {
            vdc: &self.vdc,
            invite: Some(&self.invite),
            registrar,
            joiner: &challenge.peer,
            challenge: &challenge.nonce,
            node: &self.node,
            wg: &self.wg,
        }
        .bytes();
        challenge.nonce == *self.challenge
            && verify(invite, &transcript, &self.invite_signature)
            && verify(&self.node, &transcript, &self.node_signature)
            && challenge.proves(&self.wg, &transcript, &self.wg_proof)
    }
}

impl Renew {
    /// A member's answer to a challenge; None as in [`Redeem::answer`].
    #[must_use]
    pub fn answer(vdc: &VdcId, secrets: &NodeSecrets, link: &Link, question: &Question) -> Option<Self> {
        let (node, wg) = (secrets.node.public(), secrets.wg_public());
        let transcript = Transcript {
            vdc,
            invite: None,
            registrar: &link.registrar,
            joiner: &link.joiner,
            challenge: &question.nonce,
            node: &node,
            wg: &wg,
        }
        .bytes();
        Some(Self {
            vdc: *vdc,
            node,
            wg,
            challenge: question.nonce,
            node_signature: ByteArray::from(secrets.node.sign(&transcript)),
            wg_proof: ByteArray::from(wg_proof(&secrets.wg, &question.dh, &transcript)?),
        })
    }

    /// Whether the peer holds both keys. Uses the challenge up.
    pub(super) fn verify(&self, challenge: Challenge, registrar: &Key) -> bool {
        let transcript = Transcript {
            vdc: &self.vdc,
            invite: None,
            registrar,
            joiner: &challenge.peer,
            challenge: &challenge.nonce,
            node: &self.node,
            wg: &self.wg,
        }
        .bytes();
        challenge.nonce == *self.challenge
            && verify(&self.node, &transcript, &self.node_signature)
            && challenge.proves(&self.wg, &transcript, &self.wg_proof)
    }
}

/// A registrar's open question to one peer. Consumed by the check of the answer: it can be answered once.
pub struct Challenge {
    nonce: [u8; 32],
    dh: StaticSecret,
    peer: Key,
    issued: Instant,
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge(to {})", self.peer.short())
    }
}

impl Challenge {
    /// A challenge to the authenticated peer, from 32 fresh random bytes.
    #[must_use]
    pub fn new(seed: &[u8; 32], peer: Key, now: Instant) -> Self {
        let nonce = blake3::derive_key("meshd 2026 door challenge nonce", seed);
        let dh = StaticSecret::from(blake3::derive_key("meshd 2026 door challenge key", seed));
        Self { nonce, dh, peer, issued: now }
    }

    /// What the peer is asked.
    #[must_use]
    pub fn question(&self) -> DoorResponse {
        DoorResponse::Challenge(Question {
            nonce: ByteArray::from(self.nonce),
            dh: WgKey(PublicKey::from(&self.dh).to_bytes()),
        })
    }

    /// Whether `proof` was made with the secret half of `wg`.
    fn proves(&self, wg: &WgKey, transcript: &[u8], proof: &[u8; 32]) -> bool {
        // Comparing `blake3::Hash` takes constant time.
        wg_proof(&self.dh, wg, transcript).is_some_and(|own| blake3::Hash::from(own) == blake3::Hash::from(*proof))
    }
}

/// The open challenges of a door, one per peer, bounded.
#[derive(Debug, Default)]
pub struct Challenges {
    open: BTreeMap<Key, Challenge>,
}

impl Challenges {
    /// Most open challenges; a peer beyond that is told to come again.
    pub const OPEN_MAX: usize = 256;

    /// Asks a peer; replaces what it was asked before.
    ///
    /// # Errors
    /// A refusal with [`RefusalCode::Busy`] if too many peers are being asked.
    pub fn ask(&mut self, seed: &[u8; 32], peer: Key, now: Instant) -> Result<DoorResponse, Refusal> {
        self.open.retain(|_, c| now.saturating_duration_since(c.issued) <= CHALLENGE_LIFETIME);
        if self.open.len() >= Self::OPEN_MAX && !self.open.contains_key(&peer) {
            return Err(Refusal::new(RefusalCode::Busy, "too many boxes are joining at once", "try again in a minute"));
        }
        let challenge = Challenge::new(seed, peer, now);
        let question = challenge.question();
        self.open.insert(peer, challenge);
        Ok(question)
    }

    /// Takes the peer's open challenge, if it is still fresh.
    ///
    /// # Errors
    /// A refusal with [`RefusalCode::ChallengeStale`] if there is none.
    pub fn take(&mut self, peer: &Key, now: Instant) -> Result<Challenge, Refusal> {
        let fresh = |c: &Challenge| now.saturating_duration_since(c.issued) <= CHALLENGE_LIFETIME;
        self.open.remove(peer).filter(fresh).ok_or_else(|| {
            Refusal::new(RefusalCode::ChallengeStale, "the challenge was used or is older than 30 s", "try again")
        })
    }

    /// Forgets a peer whose connection closed.
    pub fn forget(&mut self, peer: &Key) {
        self.open.remove(peer);
    }
}
