//! What a node that takes over should ask for: questions to a view, after an admin or a registrar was lost.

use std::collections::BTreeSet;
use std::time::Duration;

use super::view::{AdminView, View};
use crate::{Key, SiteNumber};

impl View {
    /// The delegation by which a key is admin at this moment; of several, the one that ends last.
    #[must_use]
    pub fn admin(&self, key: &Key) -> Option<&AdminView> {
        let held = self.admins.iter().filter(|a| a.key == *key && a.active && !a.closed);
        held.max_by_key(|a| a.delegation.not_after)
    }

    /// Whether a key is no admin, or one whose delegation ends within `remaining`.
    #[must_use]
    pub fn admin_due(&self, key: &Key, remaining: Duration) -> bool {
        self.admin(key).is_none_or(|a| a.delegation.not_after.since(self.now) < remaining)
    }

    /// Whether a key is closed as an admin or as a registrar of any site.
    #[must_use]
    pub fn is_closed(&self, key: &Key) -> bool {
        let registrars = self.sites.values().flat_map(|s| &s.registrars);
        self.admins.iter().any(|a| a.key == *key && a.closed)
            || registrars.into_iter().any(|r| r.key == *key && r.closed)
    }

    /// Sites where nobody admits or renews at this moment, neither a registrar of their own nor their founder's.
    #[must_use]
    pub fn unserved(&self) -> Vec<SiteNumber> {
        self.sites.keys().copied().filter(|site| self.registrars_for(*site).is_empty()).collect()
    }

    /// The sites whose registrar a node of site `own` should become so that none stays unserved: its own unless that has a
    /// registrar, and the founder of each unserved site, which serves all that it founded. Ascending.
    ///
    /// A site keeps one registrar at a time: one that is merely out of reach is not replaced, it must be closed first.
    #[must_use]
    pub fn sites_to_serve(&self, own: SiteNumber) -> Vec<SiteNumber> {
        let mut wanted = BTreeSet::new();
        if self.sites.get(&own).is_some_and(|site| site.serving().is_empty()) {
            wanted.insert(own);
        }
        for number in self.unserved() {
            let founder = self.sites.get(&number).map_or(number, |site| site.founder);
            wanted.insert(if self.sites.contains_key(&founder) { founder } else { number });
        }
        wanted.into_iter().collect()
    }
}
