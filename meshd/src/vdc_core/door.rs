//! The registrar at its door: challenges, redemptions, renewals.

use std::net::IpAddr;
use std::time::Instant;

use meshd_state::Changes;
use vdc::invite::{DoorRequest, DoorResponse, Redeem, Refusal, RefusalCode, Renew, grant, prove, renew};
use vdc::roster::{Outcome, issue};
use vdc::{Hash, Key, Signed};
use vdc_api::{ApiError, ErrorCode, Severity};

use super::Core;
use super::issuing::Signer;
use crate::entropy::random;

impl Core {
    /// Answers a stranger whose key the link has authenticated.
    pub(super) fn handle_door(&mut self, from: Key, remote: IpAddr, request: DoorRequest) -> DoorResponse {
        let result = match request {
            DoorRequest::Hello(hello) if hello.vdc != self.view.vdc => {
                Err(Refusal::new(RefusalCode::WrongVdc, "this registrar belongs to another VDC", "check the token"))
            }
            DoorRequest::Hello(_) => self.challenges.ask(&random(), from, Instant::now()),
            DoorRequest::Redeem(redeem) => self.redeem(from, remote, &redeem),
            DoorRequest::Renew(request) => self.renew_other(from, &request),
        };
        result.unwrap_or_else(|refusal| {
            tracing::info!(vdc = %self.alias, code = refusal.code, "a request at the door was refused");
            tracing::debug!(%remote, key = %from.short(), "it came from here");
            DoorResponse::Refused(refusal)
        })
    }

    fn redeem(&mut self, from: Key, remote: IpAddr, request: &Redeem) -> Result<DoorResponse, Refusal> {
        let challenge = self.challenges.take(&from, Instant::now())?;
        let Some(state) = self.invites.get(&request.invite) else {
            let hint = "ask for a new one (`meshctl invite create`)";
            return Err(Refusal::new(RefusalCode::InviteUnknown, "this registrar knows no such invite", hint));
        };
        let (own, now) = (self.own_key(), self.now());
        let number = self.roster.next_number(&own);
        let redemption = state.redeem(&self.view, &self.secrets.node, number, request, challenge, now)?;
        let new = !redemption.records.is_empty();
        let extra = Changes { put_invites: vec![(request.invite, redemption.state.encode())], ..Changes::default() };
        self.keep(redemption.records, extra)?;
        self.invites.insert(request.invite, redemption.state);
        if new {
            let name = self.view.members.get(&request.node).map(|m| m.full_name());
            let text = format!("joined by invite {} from {remote}", request.invite);
            self.event(Severity::Info, "invite-redeemed", name, text);
        }
        Ok(grant(&self.roster, &request.node))
    }

    fn renew_other(&mut self, from: Key, request: &Renew) -> Result<DoorResponse, Refusal> {
        let challenge = self.challenges.take(&from, Instant::now())?;
        let number = self.roster.next_number(&self.own_key());
        let record = match renew(&self.view, &self.secrets.node, number, request, challenge, self.now()) {
            Ok(record) => record,
            // It has proved to be the node that was revoked, and gets the proof of that, alone.
            Err(refusal) if refusal.is(RefusalCode::Revoked) => {
                return self.show_tombstone(&request.node).ok_or(refusal);
            }
            Err(refusal) => return Err(refusal),
        };
        self.keep(vec![record], Changes::default())?;
        Ok(prove(&self.roster, &request.node))
    }

    fn show_tombstone(&self, node: &Key) -> Option<DoorResponse> {
        let tombstone = self.record(&self.view.members.get(node)?.records.tombstone?)?;
        Some(DoorResponse::Granted(vec![tombstone.encode().into()]))
    }

    /// Makes freshly signed records durable with `extra`, in one transaction, before anybody hears of them.
    fn keep(&mut self, records: Vec<Signed>, extra: Changes) -> Result<(), Refusal> {
        self.transact(|core| {
            let mut hashes: Vec<Hash> = vec![];
            for record in records {
                hashes.push(record.hash());
                match core.roster.insert(record) {
                    Outcome::New | Outcome::Known => {}
                    Outcome::Superseded => return Err(ApiError::new(ErrorCode::Conflict, "a newer record exists")),
                    Outcome::Refused(reason) => return Err(ApiError::refused(reason.to_string())),
                }
            }
            Ok(((), hashes, extra))
        })
        .map_err(|error| {
            tracing::error!(vdc = %self.alias, %error, causes = ?error.causes, "a membership could not be recorded");
            let hint = "tell the site's administrator; the same token can be tried again";
            Refusal::new(RefusalCode::CannotIssue, &format!("the registrar could not record it: {error}"), hint)
        })
    }

    /// Renews this node's own membership under its own delegation.
    pub(super) fn renew_self(&mut self) -> Result<(), ApiError> {
        let (own, now) = (self.own_key(), self.now());
        self.publish(Signer::Node, |view, key| issue::renewal(view, key, &own, None, now)).map(|_| ())
    }
}
