//! The API's operations on invites: where a site has a coordination group its invites stand there, and its registrars share them.

use vdc::invite::InviteState;
use vdc_api::{self as api, ApiError, ErrorCode};

use crate::vdc_core::{CoreHandle, Revoking};

/// What to look at when a coordination group does not decide.
const GROUP_HINT: &str = "`meshctl coord status` shows how the site's coordination group stands";

pub(super) async fn list(handle: &CoreHandle) -> Result<api::InviteList, ApiError> {
    learn(handle).await?;
    handle.with(|core| core.invite_list()).await
}

pub(super) async fn create(handle: &CoreHandle, request: api::InviteCreate) -> Result<api::InviteCreated, ApiError> {
    let created = handle.with(move |core| core.invite_create(&request)).await??;
    share(handle, &created.invite.id).await?;
    Ok(created)
}

/// Founds a site, and invites its first node.
pub(super) async fn add_site(handle: &CoreHandle, request: api::SiteAdd) -> Result<api::SiteAdded, ApiError> {
    let added = handle.with(move |core| core.site_add(&request)).await??;
    share(handle, &added.invite.invite.id).await?;
    Ok(added)
}

pub(super) async fn revoke(handle: &CoreHandle, invite: &str) -> Result<api::InviteView, ApiError> {
    let text = invite.to_owned();
    learn(handle).await?;
    let (coord, home, id) = match handle.with(move |core| core.invite_revoke(&text)).await?? {
        Revoking::Done(view) => return Ok(view),
        Revoking::Shared { coord, home, id } => (coord, home, id),
    };
    let revoke = |state: InviteState| {
        let changed = (!state.revoked).then_some(InviteState { revoked: true, ..state });
        std::future::ready(Ok::<_, std::convert::Infallible>(changed))
    };
    let state = coord.change_invite(home, &id, revoke).await.map_err(|error| {
        let refused = ApiError::new(ErrorCode::NoQuorum, "the invite was not revoked");
        coord.explained(home, refused.caused_by(&error).hint(GROUP_HINT))
    })?;
    handle.with(move |core| core.show_invite(state)).await?
}

/// Looks at the site's invites as they are in its group. While it does not answer, what was known last is shown.
async fn learn(handle: &CoreHandle) -> Result<(), ApiError> {
    let Some((coord, home, known)) = handle.with(|core| core.shared_invites()).await? else { return Ok(()) };
    match coord.learn_invites(home).await {
        Err(error) if !known => {
            let refused = ApiError::new(ErrorCode::NoQuorum, "the site's invites cannot be read");
            Err(coord.explained(home, refused.caused_by(&error).hint(GROUP_HINT)))
        }
        _ => Ok(()),
    }
}

/// Puts a new invite into the site's group, where there is one: no token is shown that could not be redeemed.
async fn share(handle: &CoreHandle, id: &str) -> Result<(), ApiError> {
    let text = id.to_owned();
    let Some((coord, home, state)) = handle.with(move |core| core.new_invite(&text)).await? else { return Ok(()) };
    let Err(error) = coord.put_invite(home, &state).await else { return Ok(()) };
    handle.with(move |core| core.forget_invite(&state.id)).await?;
    let refused = ApiError::new(ErrorCode::NoQuorum, "the invite was not made").caused_by(&error).hint(GROUP_HINT);
    Err(coord.explained(home, refused))
}
