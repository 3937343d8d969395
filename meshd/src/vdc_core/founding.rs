//! Founding the coordination groups of a VDC and of its sites.

use meshd_state::Changes;
use vdc::record::Home;
use vdc::roster::{View, issue};
use vdc::{Hash, Key, UnixTime};
use vdc_api::ApiError;

use super::Core;
use super::issuing::Signer;

impl Core {
    /// Has every group founded that is not there and that is this node's to found: one node founds each, so that none is
    /// founded twice.
    pub(super) fn found_groups(&mut self) {
        // A node that has just joined does not know yet what there is.
        if self.joined_by.is_some() && self.syncer.last_confirmed().is_none() {
            return;
        }
        let homes = [Home::Vdc].into_iter().chain(self.view.sites.keys().map(|number| Home::Site(*number)));
        let missing: Vec<Home> = homes.filter(|home| self.view.founding_head(*home).is_none()).collect();
        for home in missing {
            if first_issuer(&self.view, home) != Some(self.own_key()) {
                continue;
            }
            let Some(founder) = founder(&self.view, home, &self.own_key()) else { continue };
            match self.found_group(home, founder, None) {
                Ok(group) => tracing::info!(vdc = %self.alias, ?home, group = group.short(), "a group was founded"),
                Err(error) => tracing::warn!(vdc = %self.alias, ?home, %error, "a group was not founded"),
            }
        }
    }

    /// Tells one node to make the group of a home.
    ///
    /// # Errors
    /// [`ApiError`] if this node may not, or there is a group that `succeeds` does not name.
    pub(crate) fn found_group(&mut self, home: Home, founder: Key, succeeds: Option<u64>) -> Result<Hash, ApiError> {
        let now = self.now();
        let group = issue::GroupFounding { home, founder, succeeds, now };
        self.publish(Signer::NodeOrOwner, |view, key| issue::founding(view, key, &group))
    }

    /// Founds a group anew that begins with the files that were made here from a backup.
    ///
    /// # Errors
    /// [`ApiError`] if this node may not, or another founding came in between.
    pub(crate) fn found_group_with(
        &mut self,
        home: Home,
        succeeds: u64,
        directory: &std::path::Path,
    ) -> Result<Hash, ApiError> {
        let group = issue::GroupFounding { home, founder: self.own_key(), succeeds: Some(succeeds), now: self.now() };
        self.transact(|core| {
            let hash = core.issue(Signer::NodeOrOwner, |view, key| issue::founding(view, key, &group))?;
            crate::coord::adopt(directory, home, succeeds.saturating_add(1), &hash)
                .map_err(|error| crate::error::system("the restored group cannot be kept", &error))?;
            Ok((hash, vec![hash], Changes::default()))
        })
    }
}

/// The node that founds the group of a home: the one that may for longest.
fn first_issuer(view: &View, home: Home) -> Option<Key> {
    let mut entitled: Vec<(UnixTime, Key)> = match home {
        Home::Vdc => {
            let admins = view.admins.iter().filter(|admin| admin.active && !admin.closed);
            admins.map(|admin| (admin.delegation.not_before, admin.key)).collect()
        }
        Home::Site(number) => {
            let registrars = view.registrars_for(number).into_iter();
            registrars.map(|registrar| (registrar.delegation.not_before, registrar.key)).collect()
        }
    };
    entitled.retain(|(_, key)| view.members.get(key).is_some_and(|member| member.standing.is_reachable()));
    entitled.into_iter().min().map(|(_, key)| key)
}

/// The node that makes it: the issuer if it belongs there, else the site's first.
fn founder(view: &View, home: Home, own: &Key) -> Option<Key> {
    let belongs = |key: &Key| {
        let member = view.members.get(key).filter(|member| member.standing.is_reachable() && !member.ephemeral);
        member.is_some_and(|member| match home {
            Home::Vdc => true,
            Home::Site(number) => member.site == number,
        })
    };
    if belongs(own) { Some(*own) } else { view.members.keys().find(|key| belongs(key)).copied() }
}
