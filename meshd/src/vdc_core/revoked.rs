//! How a revoked node learns of it, believes it, and says so.

use vdc::peer::Response;
use vdc::roster::{Outcome, Standing};
use vdc::{Body, Key, Signed};
use vdc_api::{ApiError, Severity};

use super::Core;

/// What to do about it.
pub(super) const HINT: &str = "run `meshctl leave --force` here, then join with a new invite";

impl Core {
    /// A member says that this node was revoked, and shows the tombstone: it counts if this node's own records make its
    /// issuer somebody who may.
    pub(super) fn handle_revoked(&mut self, from: &Key, bytes: &[u8]) -> Response {
        let record = match Signed::decode(bytes) {
            Ok(record) => record,
            Err(error) => return Response::Refused(error.to_string()),
        };
        if !matches!(&record.body, Body::Tombstone(tombstone) if tombstone.subject == self.own_key()) {
            return Response::Refused("that is not this node's tombstone".into());
        }
        match self.roster.insert(record) {
            Outcome::New => {
                self.settle_received();
                Response::Done
            }
            Outcome::Known | Outcome::Superseded => Response::Done,
            Outcome::Refused(reason) => {
                tracing::warn!(vdc = %self.alias, peer = %from.short(), %reason, "a tombstone of this node is not valid");
                Response::Refused(reason.to_string())
            }
        }
    }

    /// Whether this node was revoked by somebody else.
    pub(super) fn is_revoked(&self) -> bool {
        self.own().is_some_and(|own| own.standing == Standing::Revoked)
    }

    /// Who revoked this node, when and why.
    pub(super) fn revocation(&self) -> Option<String> {
        let hash = self.own()?.records.tombstone?;
        let record = self.record(&hash)?;
        let Body::Tombstone(tombstone) = &record.body else { return None };
        let by = if record.issuer == self.own_key() {
            "itself".to_owned()
        } else {
            self.with_context(|context| context.name_of(&record.issuer))
        };
        let reason = if tombstone.reason.is_empty() { "no reason was given" } else { &tombstone.reason };
        Some(format!("this node was revoked by {by} at {}: {reason}", tombstone.at))
    }

    /// Puts it on record once a run.
    pub(super) fn note_revocation(&mut self) {
        if self.leaving || self.revocation_noted || !self.is_revoked() {
            return;
        }
        if let Some(text) = self.revocation() {
            self.revocation_noted = true;
            self.event(Severity::Error, "membership-revoked", None, text);
        }
    }

    /// # Errors
    /// [`ApiError`] if this node was revoked.
    pub(super) fn check_not_revoked(&self) -> Result<(), ApiError> {
        match self.revocation().filter(|_| self.is_revoked()) {
            Some(text) => Err(ApiError::refused(text).hint(HINT)),
            None => Ok(()),
        }
    }
}
