//! Joining a VDC by token: the joiner's side of the door, from the text of the token to a VDC on disk.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use meshd_control::{DoorClient, DoorError, DoorTarget};
use meshd_state::{Changes, KeyKind, StateDir, VdcDir};
use tokio::sync::mpsc;
use vdc::invite::{DoorRequest, DoorResponse, Hello, Invite, InviteError, Joined, Link, NodeSecrets, Redeem, Refusal};
use vdc::{Key, Name};
use vdc_api::{self as api, ApiError, ErrorCode};

use crate::clock::system_time;
use crate::entropy::random;
use crate::error::{storage, with_causes};
use crate::vdc_core::META_INVITE;

/// How long dialling all addresses of the invite may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the registrar may take to answer; it writes to disk in between.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Tells whoever watches how far a piece of long work is. Nobody has to be watching.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    sender: mpsc::Sender<Result<api::JoinEvent, ApiError>>,
}

impl Progress {
    pub(crate) fn new(sender: mpsc::Sender<Result<api::JoinEvent, ApiError>>) -> Self {
        Self { sender }
    }

    /// Runs one named step.
    pub(crate) async fn step<T>(
        &self,
        id: &str,
        title: &str,
        detail: impl FnOnce(&T) -> Option<String>,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let started = Instant::now();
        let view = |state, detail| api::StepView {
            id: id.into(),
            title: title.into(),
            state,
            detail,
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.tell(api::JoinEvent::Step(view(api::StepState::Started, None))).await;
        let result = work.await;
        let (state, detail) = match &result {
            Ok(value) => (api::StepState::Done, detail(value)),
            Err(error) => (api::StepState::Failed, Some(error.to_string())),
        };
        self.tell(api::JoinEvent::Step(view(state, detail))).await;
        result
    }

    /// # Cancel safety
    /// Losing it loses one line of progress.
    pub(crate) async fn tell(&self, event: api::JoinEvent) {
        let _ = self.sender.send(Ok(event)).await; // nobody watching is no failure
    }

    pub(crate) async fn fail(&self, error: ApiError) {
        let _ = self.sender.send(Err(error)).await; // nobody watching is no failure
    }
}

/// Reads a token, and says what is wrong with it in the user's words.
pub(crate) fn parse(token: &str) -> Result<Invite, ApiError> {
    let invite = Invite::parse(token).map_err(|error| invite_error(&error))?;
    invite.check_time(system_time()).map_err(|error| invite_error(&error))?;
    Ok(invite)
}

fn invite_error(error: &InviteError) -> ApiError {
    let code = match error {
        InviteError::Expired { .. } => ErrorCode::InviteExpired,
        _ => ErrorCode::InviteInvalid,
    };
    let text = error.to_string();
    let api = match text.split_once("; ") {
        Some((what, hint)) => ApiError::new(code, what).hint(hint),
        None => ApiError::new(code, text),
    };
    with_causes(api, std::error::Error::source(error))
}

/// A membership that is on disk.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) dir: VdcDir,
    pub(crate) registrar: Key,
    pub(crate) already_member: bool,
}

/// Redeems the invite and writes the membership down, or changes nothing that matters.
///
/// The node's keys are written before the registrar is asked, and found again if this is interrupted: the same token
/// then gives the same membership.
pub(crate) fn admit<'a>(
    state: &'a StateDir,
    invite: &'a Invite,
    alias: &'a Name,
    node_name: Name,
    progress: &'a Progress,
) -> BoxFuture<'a, Result<Admitted, ApiError>> {
    Box::pin(async move {
        let dir = state.begin(alias).map_err(|error| storage(&error))?;
        let already_member = dir.has_key(KeyKind::WireGuard);
        let secrets = prepare_keys(&dir).map_err(|error| storage(&error))?;
        let targets: Vec<DoorTarget> =
            invite.registrars.iter().map(|r| DoorTarget { registrar: r.key, addresses: r.addresses.clone() }).collect();
        let dial = async {
            DoorClient::connect(secrets.node.seed(), &targets, DIAL_TIMEOUT).await.map_err(|error| unreachable(&error))
        };
        let where_found = |door: &DoorClient| Some(door.address().to_string());
        let mut door = progress.step("dial", "reach a registrar", where_found, dial).await?;
        let registrar = door.registrar();
        let redeem = redeem(&mut door, invite, &secrets, node_name);
        let title = "redeem the invite";
        let records = progress.step("redeem", title, |r: &Vec<_>| Some(format!("{} records", r.len())), redeem).await?;
        let keep = async {
            let joined = Joined::verify(&invite.vdc, &secrets, &records, system_time()).map_err(|error| {
                ApiError::new(ErrorCode::Refused, "the registrar's answer does not prove a membership")
                    .hint("ask for a new invite; if it stays, the registrar is not who the invite says")
                    .caused_by(&error)
            })?;
            let put_records = joined.roster.records().iter().map(|r| (r.hash(), r.encode())).collect();
            let put_meta = vec![(META_INVITE, invite.id.0.to_vec())];
            let changes = Changes { put_records, put_meta, ..Changes::default() };
            let mut store = dir.open_store().map_err(|error| storage(&error))?;
            store.commit(&changes).map_err(|error| storage(&error))?;
            drop(store);
            dir.publish().map_err(|error| storage(&error))
        };
        let dir = progress.step("keep", "write the membership down", |_| None, keep).await?;
        Ok(Admitted { dir, registrar, already_member })
    })
}

/// The keys of an interrupted attempt, or new ones.
fn prepare_keys(dir: &VdcDir) -> Result<NodeSecrets, meshd_state::StateError> {
    for kind in [KeyKind::Node, KeyKind::WireGuard] {
        if !dir.has_key(kind) {
            dir.write_key(kind, &random())?;
        }
    }
    Ok(NodeSecrets::from_seeds(&dir.read_key(KeyKind::Node)?, &dir.read_key(KeyKind::WireGuard)?))
}

async fn redeem(
    door: &mut DoorClient,
    invite: &Invite,
    secrets: &NodeSecrets,
    name: Name,
) -> Result<Vec<minicbor::bytes::ByteVec>, ApiError> {
    let hello = DoorRequest::Hello(Hello { vdc: invite.vdc, invite: Some(invite.id) });
    let question = match door.call(&hello, ANSWER_TIMEOUT).await.map_err(|error| unreachable(&error))? {
        DoorResponse::Challenge(question) => question,
        DoorResponse::Refused(refusal) => return Err(refused(&refusal)),
        DoorResponse::Granted(_) => return Err(nonsense()),
    };
    let link = Link { registrar: door.registrar(), joiner: secrets.node.public() };
    let answer = Redeem::answer(invite, secrets, &link, &question, name).ok_or_else(nonsense)?;
    match door.call(&DoorRequest::Redeem(answer), ANSWER_TIMEOUT).await.map_err(|error| unreachable(&error))? {
        DoorResponse::Granted(records) => Ok(records),
        DoorResponse::Refused(refusal) => Err(refused(&refusal)),
        DoorResponse::Challenge(_) => Err(nonsense()),
    }
}

fn nonsense() -> ApiError {
    ApiError::new(ErrorCode::Refused, "the registrar's answer makes no sense")
        .hint("compare the releases on both boxes")
}

fn refused(refusal: &Refusal) -> ApiError {
    let code = match refusal.code.as_str() {
        "invite-used" => ErrorCode::InviteUsed,
        "invite-expired" => ErrorCode::InviteExpired,
        "invite-revoked" => ErrorCode::InviteRevoked,
        "invite-unknown" | "wrong-vdc" | "wrong-registrar" => ErrorCode::InviteInvalid,
        "clock" => ErrorCode::ClockSkew,
        "busy" => ErrorCode::Busy,
        _ => ErrorCode::Refused,
    };
    let error = ApiError::new(code, refusal.message.clone()).cause(format!("the registrar said {}", refusal.code));
    if refusal.hint.is_empty() { error } else { error.hint(refusal.hint.clone()) }
}

fn unreachable(error: &DoorError) -> ApiError {
    let hint = "check that this box can reach one of these addresses (UDP or TCP); at the registrar's site a port may have \
                to be forwarded to its join door";
    match error {
        DoorError::Unreachable { attempts } => {
            let api = ApiError::new(ErrorCode::Unreachable, "no registrar of the invite could be reached").hint(hint);
            attempts.iter().fold(api, |api, attempt| api.cause(attempt.to_string()))
        }
        DoorError::Call { .. } => ApiError::new(ErrorCode::Unreachable, "the registrar did not answer")
            .hint("run the same command again: the same token gives the same membership")
            .caused_by(error),
    }
}
