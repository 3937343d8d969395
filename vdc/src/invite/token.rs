//! The invite token: `vdc1.` and base64url of `length ‖ CBOR ‖ checksum`.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};

use crate::codec::{self, DecodeError};
use crate::record::{ContactAddress, SigningKey, verify};
use crate::{InviteId, Key, Name, SiteNumber, UnixTime, VdcId};

/// Longest token in characters: three registrars with eight DNS names each stay below it.
pub const TOKEN_CHARS_MAX: usize = 12 << 10;
/// What every token of this format begins with.
const PREFIX: &str = "vdc1.";
/// Format version inside the token.
const FORMAT: u32 = 1;
/// Bytes around the CBOR: its length before it, four bytes of BLAKE3 after it.
const LENGTH_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 4;
/// Domain separation of the pass's signature.
const PASS_DOMAIN: &[u8] = b"meshd pass 1";

/// Why a token is not (or no longer) an invite. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    #[error(
        "this is not an invite: one begins with \"vdc1.\"; copy the whole line that `meshctl invite create` printed"
    )]
    NotInvite,
    #[error("the invite has format {found}, this release reads vdc1; upgrade meshd on this box")]
    UnknownVersion { found: String },
    #[error("the invite is longer than {TOKEN_CHARS_MAX} characters, so it is not one; copy only the token itself")]
    TooLong,
    #[error("the invite was cut off: {found} of {expected} characters are here; copy the whole line again")]
    Truncated { found: usize, expected: usize },
    #[error("{extra} characters follow the end of the invite; copy only the token itself")]
    Trailing { extra: usize },
    #[error("character {position} of the invite cannot be part of one; it was damaged on its way, copy it again")]
    Character { position: usize },
    #[error("the invite was damaged on its way (its checksum does not fit); copy it again, do not retype it")]
    Checksum,
    #[error("the invite is intact but not valid; ask for a new one")]
    Invalid(#[source] DecodeError),
    #[error("the invite's pass was not signed by the registrar that it names; ask for a new one")]
    Pass,
    #[error(
        "the invite expired at {expired}, and it is {now} here; check this box's clock, or ask for a new one \
         (`meshctl invite create`)"
    )]
    Expired { expired: UnixTime, now: UnixTime },
}

/// A registrar that the joiner may dial.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InviteRegistrar {
    /// Its node key, which is its PeerId: the first contact is pinned.
    #[n(0)]
    pub key: Key,
    /// Where its door listens, at most [`InviteRegistrar::ADDRESSES_MAX`].
    #[n(1)]
    pub addresses: Vec<ContactAddress>,
}

impl InviteRegistrar {
    pub const ADDRESSES_MAX: usize = 8;
}

/// The registrar's word that an invite of its own is out: any member can check it offline before it relays a joiner.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Pass {
    #[n(0)]
    pub vdc: VdcId,
    #[n(1)]
    pub invite: InviteId,
    #[n(2)]
    pub registrar: Key,
    #[n(3)]
    pub expires: UnixTime,
    #[n(4)]
    pub signature: ByteArray<64>,
}

impl Pass {
    /// Signs a pass as the registrar that owns the invite.
    #[must_use]
    pub fn sign(vdc: VdcId, registrar: &SigningKey, invite: InviteId, expires: UnixTime) -> Self {
        let message = pass_message(&vdc, &invite, &registrar.public(), expires);
        let signature = ByteArray::from(registrar.sign(&message));
        Self { vdc, invite, registrar: registrar.public(), expires, signature }
    }

    /// Whether the registrar signed it. The caller checks that the key is a registrar's, and the time.
    #[must_use]
    pub fn verify(&self) -> bool {
        let message = pass_message(&self.vdc, &self.invite, &self.registrar, self.expires);
        verify(&self.registrar, &message, &self.signature)
    }
}

fn pass_message(vdc: &VdcId, invite: &InviteId, registrar: &Key, expires: UnixTime) -> Vec<u8> {
    let mut message = PASS_DOMAIN.to_vec();
    message.extend_from_slice(&vdc.0);
    message.extend_from_slice(&invite.0);
    message.extend_from_slice(&registrar.0);
    message.extend_from_slice(&expires.0.to_be_bytes());
    message
}

/// What a box needs to join. Holds a secret: `Debug` does not print it, [`Invite::token`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    pub vdc: VdcId,
    pub vdc_name: Name,
    /// One to three; the first owns the invite and alone redeems it, the others may carry a joiner to it.
    pub registrars: Vec<InviteRegistrar>,
    pub id: InviteId,
    /// Seed of the key that the joiner signs with. Never sent.
    pub seed: [u8; 32],
    pub expires: UnixTime,
    pub uses: u16,
    pub site: SiteNumber,
    pub site_name: Name,
    /// The joiner becomes the registrar of a new site.
    pub founder: bool,
    /// The node gets no grace after its renewal deadline.
    pub ephemeral: bool,
    /// The owning registrar's signature, see [`Invite::pass`].
    pub pass_signature: [u8; 64],
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("vdc", &self.vdc)
            .field("id", &self.id)
            .field("registrars", &self.registrars)
            .field("expires", &self.expires)
            .field("uses", &self.uses)
            .field("site", &self.site_name)
            .finish_non_exhaustive()
    }
}

/// The CBOR inside a token.
#[derive(Encode, Decode)]
struct Wire {
    #[n(0)]
    format: u32,
    #[n(1)]
    vdc: VdcId,
    #[n(2)]
    vdc_name: Name,
    #[n(3)]
    registrars: Vec<InviteRegistrar>,
    #[n(4)]
    id: InviteId,
    #[n(5)]
    seed: ByteArray<32>,
    #[n(6)]
    expires: UnixTime,
    #[n(7)]
    uses: u16,
    #[n(8)]
    site: SiteNumber,
    #[n(9)]
    site_name: Name,
    #[n(10)]
    founder: bool,
    #[n(11)]
    ephemeral: bool,
    #[n(12)]
    pass_signature: ByteArray<64>,
}

impl Invite {
    pub const REGISTRARS_MAX: usize = 3;

    /// The token: one line of text.
    #[must_use]
    pub fn token(&self) -> String {
        let cbor = codec::encode(&Wire {
            format: FORMAT,
            vdc: self.vdc,
            vdc_name: self.vdc_name.clone(),
            registrars: self.registrars.clone(),
            id: self.id,
            seed: ByteArray::from(self.seed),
            expires: self.expires,
            uses: self.uses,
            site: self.site,
            site_name: self.site_name.clone(),
            founder: self.founder,
            ephemeral: self.ephemeral,
            pass_signature: ByteArray::from(self.pass_signature),
        });
        let length = u16::try_from(cbor.len()).expect("limits on addresses keep an invite below 12 KiB");
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&cbor);
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads a token. White space, such as a terminal's line breaks, is ignored.
    ///
    /// # Errors
    /// [`InviteError`], which tells apart what could have happened to it. Its time is checked apart, by
    /// [`Invite::check_time`].
    pub fn parse(text: &str) -> Result<Self, InviteError> {
        if text.len() > 2 * TOKEN_CHARS_MAX {
            return Err(InviteError::TooLong);
        }
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let encoded = match text.strip_prefix(PREFIX) {
            Some(encoded) => encoded.as_bytes(),
            None => return Err(other_format(&text)),
        };
        if encoded.len() > TOKEN_CHARS_MAX {
            return Err(InviteError::TooLong);
        }
        let legal = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
        if let Some(index) = encoded.iter().position(|b| !legal(b)) {
            return Err(InviteError::Character { position: PREFIX.len() + index + 1 });
        }
        let bytes = unpack(encoded)?;
        let wire: Wire = codec::decode("invite", &bytes, TOKEN_CHARS_MAX).map_err(InviteError::Invalid)?;
        Self::from_wire(wire)
    }

    fn from_wire(wire: Wire) -> Result<Self, InviteError> {
        let invalid = |why| Err(InviteError::Invalid(DecodeError::Invalid { what: "invite", why }));
        if wire.format != FORMAT {
            return Err(InviteError::UnknownVersion { found: wire.format.to_string() });
        }
        if wire.registrars.is_empty() || wire.registrars.len() > Self::REGISTRARS_MAX {
            return invalid("it must name one to three registrars");
        }
        let too_many = |r: &InviteRegistrar| r.addresses.len() > InviteRegistrar::ADDRESSES_MAX;
        if wire.registrars.iter().any(too_many) {
            return invalid("a registrar has at most 8 addresses");
        }
        if wire.registrars.iter().flat_map(|r| &r.addresses).any(|a| !a.is_valid()) {
            return invalid("an address is not a DNS name");
        }
        if wire.uses == 0 || wire.site.0 == 0 {
            return invalid("uses and site numbers start at 1");
        }
        let invite = Self {
            vdc: wire.vdc,
            vdc_name: wire.vdc_name,
            registrars: wire.registrars,
            id: wire.id,
            seed: *wire.seed,
            expires: wire.expires,
            uses: wire.uses,
            site: wire.site,
            site_name: wire.site_name,
            founder: wire.founder,
            ephemeral: wire.ephemeral,
            pass_signature: *wire.pass_signature,
        };
        if invite.pass().verify() { Ok(invite) } else { Err(InviteError::Pass) }
    }

    /// # Errors
    /// [`InviteError::Expired`] if its time is over by the clock of this box.
    pub fn check_time(&self, now: UnixTime) -> Result<(), InviteError> {
        if now > self.expires { Err(InviteError::Expired { expired: self.expires, now }) } else { Ok(()) }
    }

    /// The registrar that owns the invite.
    #[must_use]
    pub fn registrar(&self) -> &InviteRegistrar {
        self.registrars.first().expect("checked when parsed and when made: one to three registrars")
    }

    /// What a relaying member is shown instead of the token.
    #[must_use]
    pub fn pass(&self) -> Pass {
        Pass {
            vdc: self.vdc,
            invite: self.id,
            registrar: self.registrar().key,
            expires: self.expires,
            signature: ByteArray::from(self.pass_signature),
        }
    }

    /// The key that the joiner signs with; registrars keep only its public half.
    #[must_use]
    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_seed(&self.seed)
    }
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        Self::parse(text)
    }
}

/// Undoes base64, length and checksum.
fn unpack(encoded: &[u8]) -> Result<Vec<u8>, InviteError> {
    let found = PREFIX.len() + encoded.len();
    // Four characters hold the length; without them nothing can be said about the rest.
    let Some(head) = encoded.get(..4).and_then(|head| BASE64URL_NOPAD.decode(head).ok()) else {
        return Err(InviteError::Truncated { found, expected: PREFIX.len() + 300 });
    };
    let length = usize::from(u16::from_be_bytes([head[0], head[1]]));
    let expected = PREFIX.len() + BASE64URL_NOPAD.encode_len(LENGTH_BYTES + length + CHECKSUM_BYTES);
    if found < expected {
        return Err(InviteError::Truncated { found, expected });
    }
    if found > expected {
        return Err(InviteError::Trailing { extra: found - expected });
    }
    let bytes = BASE64URL_NOPAD.decode(encoded).map_err(|_| InviteError::Checksum)?;
    let (covered, sum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if checksum(covered) != sum {
        return Err(InviteError::Checksum);
    }
    Ok(covered[LENGTH_BYTES..].to_vec())
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&blake3::derive_key("meshd 2026 invite checksum", bytes)[..CHECKSUM_BYTES]);
    sum
}

fn other_format(text: &str) -> InviteError {
    let version = text.strip_prefix("vdc").and_then(|rest| rest.split_once('.')).map(|(version, _)| version);
    match version {
        Some(v) if !v.is_empty() && v.len() <= 4 && v.bytes().all(|b| b.is_ascii_digit()) => {
            InviteError::UnknownVersion { found: format!("vdc{v}") }
        }
        _ => InviteError::NotInvite,
    }
}
