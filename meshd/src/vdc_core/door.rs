//! The registrar at its door: challenges, redemptions, renewals.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use meshd_state::Changes;
use tokio::sync::oneshot;
use vdc::invite::{
    Challenge, DoorRequest, DoorResponse, InviteState, Redeem, Refusal, RefusalCode, Renew, grant, prove, renew,
};
use vdc::record::Home;
use vdc::roster::{Outcome, issue};
use vdc::{Hash, Key, Name, Signed};
use vdc_api::{ApiError, ErrorCode, Severity};

use super::issuing::Signer;
use super::task::Done;
use super::{Core, CoreHandle};
use crate::coord::{Coord, RedeemError};
use crate::entropy::random;

impl Core {
    /// Answers a stranger whose key the link has authenticated; at once, or when the site's group has decided.
    pub(super) fn handle_door(
        &mut self,
        from: Key,
        remote: IpAddr,
        request: DoorRequest,
        reply: oneshot::Sender<DoorResponse>,
    ) {
        let result = match request {
            DoorRequest::Hello(hello) if hello.vdc != self.view.vdc => {
                Err(Refusal::new(RefusalCode::WrongVdc, "this registrar belongs to another VDC", "check the token"))
            }
            DoorRequest::Hello(_) => self.challenges.ask(&random(), from, Instant::now()),
            DoorRequest::Redeem(redeem) => match self.challenges.take(&from, Instant::now()) {
                Ok(challenge) => match self.group_of_invites() {
                    Some((coord, home)) => {
                        let core = self.handle.clone();
                        return self.spawn(async move {
                            let result = redeem_by_group(&core, &coord, home, remote, redeem, challenge).await;
                            answer(core.alias(), from, remote, result, reply);
                            Done::Nothing
                        });
                    }
                    None => self.redeem(remote, &redeem, challenge),
                },
                Err(refusal) => Err(refusal),
            },
            DoorRequest::Renew(request) => self.renew_other(from, &request),
        };
        answer(&self.alias, from, remote, result, reply);
    }

    /// Where this site's invites are decided about; none before it has a group.
    pub(super) fn group_of_invites(&self) -> Option<(Coord, Home)> {
        let home = Home::Site(self.own()?.site);
        let coord = self.handle.coord()?;
        self.view.foundings.contains_key(&home).then(|| (coord.clone(), home))
    }

    /// Redeems an invite that only this node knows.
    fn redeem(&mut self, remote: IpAddr, request: &Redeem, challenge: Challenge) -> Result<DoorResponse, Refusal> {
        let state = self.invites.get(&request.invite).ok_or_else(unknown_invite)?;
        let (own, now) = (self.own_key(), self.now());
        let number = self.roster.next_number(&own);
        let redemption = state.redeem(&self.view, &self.secrets.node, number, request, challenge, now)?;
        let extra = Changes { put_invites: vec![(request.invite, redemption.state.encode())], ..Changes::default() };
        let is_new = !redemption.records.is_empty();
        self.keep(redemption.records, extra)?;
        self.invites.insert(request.invite, redemption.state);
        Ok(self.granted(is_new, remote, request))
    }

    /// Whether a joiner may have a use of an invite; its use must be agreed before [`Self::admit`]. The challenge is answered by
    /// the first of several tries.
    fn reserve(
        &self,
        state: &InviteState,
        request: &Redeem,
        challenge: Option<Challenge>,
    ) -> Result<Option<InviteState>, Refusal> {
        if let Some(challenge) = challenge {
            state.prove(&self.view, &self.own_key(), request, challenge)?;
        }
        state.reserve(&self.view, request, &self.own_key(), self.now())
    }

    /// Makes a joiner a member that has its use of an invite.
    fn admit(&mut self, state: InviteState, remote: IpAddr, request: &Redeem) -> Result<DoorResponse, Refusal> {
        let number = self.roster.next_number(&self.own_key());
        let records = state.admit(&self.view, &self.secrets.node, number, request, self.now())?;
        let is_new = !records.is_empty();
        self.keep(records, Changes::default())?;
        self.invites.insert(request.invite, state);
        Ok(self.granted(is_new, remote, request))
    }

    fn granted(&self, is_new: bool, remote: IpAddr, request: &Redeem) -> DoorResponse {
        if is_new {
            let name = self.view.members.get(&request.node).map(|m| m.full_name());
            let text = format!("joined by invite {} from {remote}", request.invite);
            self.event(Severity::Info, "invite-redeemed", name, text);
        }
        grant(&self.roster, &request.node)
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

fn unknown_invite() -> Refusal {
    let hint = "ask for a new one (`meshctl invite create`)";
    Refusal::new(RefusalCode::InviteUnknown, "this registrar knows no such invite", hint)
}

/// Redeems an invite that all registrars of the site share: its use is agreed first, the membership is signed then. A joiner that
/// asks again after a crash in between has its use and gets its membership.
async fn redeem_by_group(
    core: &CoreHandle,
    coord: &Coord,
    home: Home,
    remote: IpAddr,
    request: Redeem,
    challenge: Challenge,
) -> Result<DoorResponse, Refusal> {
    let gone = |error: ApiError| Refusal::new(RefusalCode::Busy, &error.message, "try again in a moment");
    let (id, request) = (request.invite, Arc::new(request));
    // One that this node made before its site had a group, and has not moved yet.
    if let Some(state) = core.with(move |core| core.kept_invite(&id)).await.map_err(gone)? {
        coord.put_invite(home, &state).await.map_err(|error| undecided(&error.to_string()))?;
    }
    let challenge = Mutex::new(Some(challenge));
    let decided = coord.change_invite(home, &id, |state| {
        let request = Arc::clone(&request);
        let challenge = challenge.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { core.with(move |core| core.reserve(&state, &request, challenge)).await.map_err(gone).flatten() }
    });
    let state = decided.await.map_err(|error| match error {
        RedeemError::Unknown => unknown_invite(),
        RedeemError::Refused(refusal) => refusal,
        error => undecided(&error.to_string()),
    })?;
    core.with(move |core| core.admit(state, remote, &request)).await.map_err(gone).flatten()
}

fn undecided(why: &str) -> Refusal {
    let hint = "the same token can be tried again; at the registrar, `meshctl coord status` shows why";
    Refusal::new(RefusalCode::Busy, &format!("the registrar cannot decide now: {why}"), hint)
}

fn answer(
    vdc: &Name,
    from: Key,
    remote: IpAddr,
    result: Result<DoorResponse, Refusal>,
    reply: oneshot::Sender<DoorResponse>,
) {
    let response = result.unwrap_or_else(|refusal| {
        tracing::info!(%vdc, code = refusal.code, "a request at the door was refused");
        tracing::debug!(%remote, key = %from.short(), "it came from here");
        DoorResponse::Refused(refusal)
    });
    let _ = reply.send(response); // the joiner may have gone; it can ask again
}
