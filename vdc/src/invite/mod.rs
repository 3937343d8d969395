//! How a box becomes a member: the invite token, the talk at the door, and the registrar's decision.
//!
//! 1. A registrar makes an [`Invite`] and keeps an [`InviteState`]; the token's text travels by mail or paper.
//! 2. The joiner dials the registrar pinned by the token, says [`Hello`], gets a [`Challenge`], and answers
//!    with a [`Redeem`] that proves the invite's secret and both of its new keys without sending a secret.
//! 3. The registrar decides ([`InviteState::redeem`]), stores records and state in one transaction, and answers with the
//!    records that prove the membership up to the genesis hash ([`grant`]).
//! 4. The joiner believes nothing else: [`Joined::verify`].
//!
//! Renewal is the same talk without an invite: [`Renew`], [`renew`], [`prove`].

mod door;
mod redeem;
mod token;

#[cfg(test)]
mod tests;

pub use door::{
    CHALLENGE_LIFETIME, Challenge, Challenges, DOOR_PROTOCOL, DOOR_REQUEST_BYTES_MAX, DOOR_RESPONSE_BYTES_MAX,
    DoorRequest, DoorResponse, GRANT_BYTES_MAX, Hello, Link, NodeSecrets, Question, Redeem, Refusal, RefusalCode,
    Renew,
};
pub use redeem::{INVITE_USES_MAX, InviteOptions, InviteState, JoinError, Joined, Redemption, grant, prove, renew};
pub use token::{Invite, InviteError, InviteRegistrar, Pass, TOKEN_CHARS_MAX};
