//! Sites and invites: whom this node lets in, and where they find the door.

use std::collections::BTreeMap;
use std::time::Duration;

use meshd_state::Changes;
use vdc::invite::{INVITE_USES_MAX, Invite, InviteOptions, InviteRegistrar, InviteState};
use vdc::record::{ContactAddress, Home};
use vdc::roster::issue;
use vdc::{InviteId, Key, Name, SiteNumber};
use vdc_api::{self as api, ApiError, ErrorCode};

use super::Core;
use super::commands::{is_public, not_a_member, parse_name};
use super::issuing::Signer;
use crate::coord::Coord;
use crate::entropy::random;
use crate::views;

/// Longest life of an invite: a year. A longer one is a standing door.
const INVITE_LIFETIME_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Invites kept, open or ended; the oldest ended ones make room.
const INVITES_MAX: usize = 4096;

/// What [`Core::invite_revoke`] leaves to do.
pub(crate) enum Revoking {
    Done(api::InviteView),
    /// The invite stands in a group.
    Shared {
        coord: Coord,
        home: Home,
        id: InviteId,
    },
}

impl Core {
    /// Whether this is the VDC of that id.
    pub(crate) fn is_of(&self, vdc: &vdc::VdcId) -> bool {
        self.view.vdc == *vdc
    }

    /// # Errors
    /// [`ApiError`] unless this node is a member by that very invite.
    pub(crate) fn check_joined_by(&self, invite: &InviteId) -> Result<(), ApiError> {
        self.check_not_revoked()?;
        if self.joined_by.as_ref() == Some(invite) {
            return Ok(());
        }
        let text = format!("this node is a member of the VDC already, as {}", self.own_node()?.fqdn);
        let how = match &self.joined_by {
            Some(used) => format!("it joined by invite {}, not by this token's {}", used, invite),
            None => "it founded the VDC and joined by no invite".to_owned(),
        };
        Err(ApiError::new(ErrorCode::Conflict, text)
            .cause(how)
            .hint("nothing is left to do, and the token was not used; to join anew, run `meshctl leave` first"))
    }

    /// Finds or founds a site. Returns its number and whether it is new.
    fn ensure_site(&mut self, name: &Name) -> Result<(SiteNumber, bool), ApiError> {
        if let Some(site) = self.view.site_by_name(name.as_str()) {
            return Ok((site.number, false));
        }
        let founder = self.own().ok_or_else(not_a_member)?.site;
        let now = self.now();
        self.publish(Signer::NodeOrOwner, |view, key| issue::site(view, key, name, founder, now))?;
        let site = self.view.site_by_name(name.as_str());
        let site = site.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the new site is not in the view"))?;
        Ok((site.number, true))
    }

    pub(crate) fn invite_create(&mut self, request: &api::InviteCreate) -> Result<api::InviteCreated, ApiError> {
        let uses = u16::try_from(request.uses).ok().filter(|uses| (1..=INVITE_USES_MAX).contains(uses));
        let uses =
            uses.ok_or_else(|| ApiError::bad_request("uses", format!("an invite has 1 to {INVITE_USES_MAX} uses")))?;
        let name = match &request.site {
            Some(text) => parse_name("site", text)?,
            None => self.own().ok_or_else(not_a_member)?.site_name.clone(),
        };
        let (site, site_created) = self.ensure_site(&name)?;
        self.invite(site, uses, request.expires_s, request.ephemeral, false, site_created)
    }

    pub(crate) fn site_add(&mut self, request: &api::SiteAdd) -> Result<api::SiteAdded, ApiError> {
        if request.ipv4.is_some() {
            return Err(ApiError::bad_request("ipv4", "a site's IPv4 block is the next free one of the VDC's range")
                .hint("leave --ipv4 out"));
        }
        let name = parse_name("name", &request.name)?;
        let (number, created) = self.ensure_site(&name)?;
        let site = self.view.sites.get(&number).ok_or_else(not_a_member)?;
        if site.registrars.iter().any(|r| r.active && !r.closed) && !created {
            return Err(ApiError::new(ErrorCode::Conflict, format!("site {name} has its own registrar already"))
                .hint(format!("invite further nodes with `meshctl invite create --site {name}` there")));
        }
        if !self.view.is_admin(&self.own_key()) {
            return Err(ApiError::refused("only an admin can give a site its own registrar")
                .hint("run the command on an admin's node (`meshctl node list` shows roles)"));
        }
        let invite = self.invite(number, 1, request.expires_s, false, true, created)?;
        let site = self.view.sites.get(&number).ok_or_else(not_a_member)?;
        Ok(api::SiteAdded { site: self.with_context(|context| context.site(site)), invite, existed: !created })
    }

    /// Where this node's invites stand, if it is a registrar of a site that has a group; and whether any are known here.
    pub(crate) fn shared_invites(&self) -> Option<(Coord, Home, bool)> {
        let (coord, home) = self.group_of_invites()?;
        let own = self.own_key();
        let registrar = self.view.sites.values().any(|site| site.serving().iter().any(|r| r.key == own));
        registrar.then_some((coord, home, !self.invites.is_empty()))
    }

    /// The invites that stand in this node's store and nowhere else.
    pub(crate) fn kept_invites(&self) -> Vec<InviteState> {
        self.kept_invites.iter().filter_map(|id| self.invites.get(id)).cloned().collect()
    }

    pub(super) fn kept_invite(&self, id: &InviteId) -> Option<InviteState> {
        self.invites.get(id).filter(|_| self.kept_invites.contains(id)).cloned()
    }

    /// Takes what the site's group says of all invites, and lets go of those that were moved there.
    pub(crate) fn invites_of_group(&mut self, invites: BTreeMap<InviteId, InviteState>, moved: &[InviteId]) {
        let changes = Changes { remove_invites: moved.to_vec(), ..Changes::default() };
        if !moved.is_empty() && self.store.commit(&changes).is_err() {
            return; // they are moved again, which changes nothing
        }
        self.kept_invites.retain(|id| !moved.contains(id));
        self.invites.retain(|id, _| self.kept_invites.contains(id));
        self.invites.extend(invites);
    }

    /// Whether an invite was just made that must still be put into the site's group.
    pub(crate) fn new_invite(&self, text: &str) -> Option<(Coord, Home, InviteState)> {
        let (coord, home) = self.group_of_invites()?;
        let state = self.invites.values().find(|state| state.id.to_string() == text)?;
        (!self.kept_invites.contains(&state.id)).then(|| (coord, home, state.clone()))
    }

    /// Takes back an invite that could not be put into the site's group.
    pub(crate) fn forget_invite(&mut self, id: &InviteId) {
        self.invites.remove(id);
    }

    fn invite(
        &mut self,
        site: SiteNumber,
        uses: u16,
        expires_s: u64,
        ephemeral: bool,
        founder: bool,
        site_created: bool,
    ) -> Result<api::InviteCreated, ApiError> {
        let lifetime = Duration::from_secs(expires_s);
        if lifetime.is_zero() || lifetime > INVITE_LIFETIME_MAX {
            return Err(ApiError::bad_request("expires_s", "an invite lasts 1 second to 366 days"));
        }
        let own_key = self.own_key();
        let allowed = self.view.registrars_for(site).iter().any(|r| r.key == own_key);
        if !allowed {
            let name = self.view.sites.get(&site).map_or_else(String::new, |s| s.name.to_string());
            return Err(ApiError::refused(format!("this node is not a registrar of site {name}"))
                .hint("create the invite on a registrar of that site (`meshctl node list` shows roles)"));
        }
        let now = self.now();
        let options = InviteOptions { site, uses, expires: now.plus(lifetime), founder, ephemeral };
        let doors = self.doors(site);
        let (id, seed) = (InviteId(random()), random());
        let (invite, state) = InviteState::create(&self.view, &self.secrets.node, doors, &options, id, seed, now)
            .map_err(|error| super::issuing::refused(&error))?;
        self.forget_old_invites();
        if self.invites.len() >= INVITES_MAX {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{INVITES_MAX} invites are open"))
                .hint("end some with `meshctl invite revoke`"));
        }
        // Where the site has a group, the invite stands there, and whoever asked sees to that.
        if self.group_of_invites().is_none() {
            let changes = Changes { put_invites: vec![(invite.id, state.encode())], ..Changes::default() };
            self.transact(|_| Ok(((), vec![], changes)))?;
            self.kept_invites.insert(invite.id);
        }
        self.invites.insert(invite.id, state);
        self.open_door();
        let token = invite.token();
        let view = self.invites.get(&invite.id).map(|state| self.invite_view(&invite.id, state));
        let view = view.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the invite was just made"))?;
        Ok(api::InviteCreated { token, invite: view, reachability: self.reachability(&invite), site_created })
    }

    /// Ended invites go when there is no room, oldest first; their audit trail stays in the records.
    fn forget_old_invites(&mut self) {
        if self.invites.len() < INVITES_MAX {
            return;
        }
        let now = self.now();
        let ended: Vec<InviteId> = self
            .invites
            .iter()
            .filter(|(_, s)| s.check_open(now).is_err())
            .map(|(id, _)| *id)
            .take(INVITES_MAX / 4)
            .collect();
        for id in ended {
            self.invites.remove(&id);
            self.kept_invites.remove(&id);
            let changes = Changes { remove_invites: vec![id], ..Changes::default() };
            if self.store.commit(&changes).is_err() {
                return; // reported by the next write that matters
            }
        }
    }

    pub(crate) fn invite_list(&self) -> api::InviteList {
        let mut invites: Vec<_> = self.invites.iter().map(|(id, state)| self.invite_view(id, state)).collect();
        invites.sort_by(|a, b| (&b.created_at, &a.id).cmp(&(&a.created_at, &b.id)));
        api::InviteList { vdc: self.alias.to_string(), invites }
    }

    /// The invite that `text` means.
    pub(crate) fn find_invite(&self, text: &str) -> Result<InviteId, ApiError> {
        let mut fitting = self.invites.keys().filter(|id| text.len() >= 4 && id.to_string().starts_with(text));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(*id),
            (None, _) => Err(ApiError::not_found(format!("no invite of this registrar begins with {text:?}"))
                .hint("`meshctl invite list` shows them; give at least 4 digits")),
            (Some(_), Some(_)) => {
                Err(ApiError::new(ErrorCode::AmbiguousName, format!("several invites begin with {text:?}"))
                    .hint("give more digits"))
            }
        }
    }

    /// Revokes an invite; says where the site's group must agree first.
    pub(crate) fn invite_revoke(&mut self, text: &str) -> Result<Revoking, ApiError> {
        let id = self.find_invite(text)?;
        if let Some((coord, home)) = self.group_of_invites().filter(|_| !self.kept_invites.contains(&id)) {
            return Ok(Revoking::Shared { coord, home, id });
        }
        let mut state = self.invites.get(&id).cloned().ok_or_else(not_a_member)?;
        state.revoked = true;
        let changes = Changes { put_invites: vec![(id, state.encode())], ..Changes::default() };
        self.transact(|_| Ok(((), vec![], changes)))?;
        self.show_invite(state).map(Revoking::Done)
    }

    /// An invite as it is now.
    pub(crate) fn show_invite(&mut self, state: InviteState) -> Result<api::InviteView, ApiError> {
        let id = state.id;
        self.invites.insert(id, state);
        let state = self.invites.get(&id).ok_or_else(not_a_member)?;
        Ok(self.invite_view(&id, state))
    }

    fn invite_view(&self, id: &InviteId, state: &InviteState) -> api::InviteView {
        let now = self.now();
        let kind = if state.revoked {
            api::InviteState::Revoked
        } else if state.uses_left == 0 {
            api::InviteState::Used
        } else if now > state.expires {
            api::InviteState::Expired
        } else {
            api::InviteState::Open
        };
        let redeemed = state.redeemed.iter().map(|(node, _)| api::RedemptionView {
            node: self.with_context(|context| context.name_of(node)),
            key: node.to_string(),
            at: None,
            address: None,
        });
        let used = u32::try_from(state.redeemed.len()).unwrap_or(u32::MAX);
        api::InviteView {
            id: id.to_string(),
            site: self.view.sites.get(&state.site).map_or_else(|| state.site.0.to_string(), |s| s.name.to_string()),
            state: kind,
            created_at: state.created.to_string(),
            expires_at: state.expires.to_string(),
            expires_in_s: state.expires.since(now).as_secs(),
            uses: u32::from(state.uses_left).saturating_add(used),
            uses_left: u32::from(state.uses_left),
            ephemeral: state.ephemeral,
            founder: state.founder,
            registrar: self.with_context(|context| context.name_of(&state.registrar)),
            redeemed: redeemed.collect(),
        }
    }

    /// The doors to an invite of ours: the own one, with advertised names first, then what peers see, then own addresses; and those
    /// of the other registrars of our site, which share it.
    fn doors(&self, site: SiteNumber) -> Vec<InviteRegistrar> {
        let port = self.door_port.unwrap_or(self.ports().door);
        let own = InviteRegistrar { key: self.own_key(), addresses: self.underlay_addresses(port) };
        let own_site = self.own().map(|own| own.site);
        let shares = |key: &Key| self.view.members.get(key).filter(|member| Some(member.site) == own_site);
        let others = self.view.registrars_for(site).into_iter().filter(|registrar| registrar.key != own.key);
        let others = others.filter_map(|registrar| {
            let contact = shares(&registrar.key)?.contact()?;
            let port = contact.door_port?;
            let at_door = |address: &ContactAddress| match address {
                ContactAddress::Ip(ip, _) => ContactAddress::Ip(*ip, port),
                ContactAddress::Dns(name, _) => ContactAddress::Dns(name.clone(), port),
            };
            Some(InviteRegistrar { key: registrar.key, addresses: contact.addresses.iter().map(at_door).collect() })
        });
        let others: Vec<_> = if self.group_of_invites().is_some() { others.collect() } else { vec![] };
        std::iter::once(own).chain(others).collect()
    }

    /// Says whether a joiner could come in by the addresses in the invite.
    fn reachability(&self, invite: &Invite) -> api::Reachability {
        let addresses = &invite.registrar().addresses;
        let advertised = !self.shared.config.network.advertise.is_empty();
        let public = |address: &ContactAddress| match address {
            ContactAddress::Dns(..) => true,
            ContactAddress::Ip(ip, _) => is_public(*ip),
        };
        let seen_from_outside = self.observed.keys().any(|ip| is_public(*ip) && self.local_addresses.contains(ip));
        let (verdict, message, hint) = if addresses.is_empty() {
            (
                api::ReachabilityVerdict::Unreachable,
                "this node has no address that anybody could reach",
                Some("bring a network interface up, or set `network.advertise` in /etc/meshd/meshd.toml"),
            )
        } else if seen_from_outside {
            (api::ReachabilityVerdict::Reachable, "peers reach this node at a public address", None)
        } else if advertised || addresses.iter().any(public) {
            (
                api::ReachabilityVerdict::Likely,
                "the invite holds a public address or name, but nobody has come in by it yet",
                None,
            )
        } else {
            (
                api::ReachabilityVerdict::LocalOnly,
                "the invite holds private addresses only: boxes on networks that route to them can join",
                Some(
                    "for boxes elsewhere, forward one UDP port at this site to this box's door port, or use IPv6, and set \
                     `network.advertise` in /etc/meshd/meshd.toml",
                ),
            )
        };
        api::Reachability {
            verdict,
            message: message.into(),
            hint: hint.map(str::to_owned),
            addresses: addresses.iter().map(views::contact_text).collect(),
        }
    }
}
