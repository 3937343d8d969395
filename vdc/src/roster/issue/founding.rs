//! Which node makes the coordination group of a site or of the VDC.

use super::{Draft, IssueError, admin_office, registrar_office};
use crate::record::{Body, Founding, Home};
use crate::roster::view::{Standing, View};
use crate::{Key, Office, UnixTime};

/// Who is told to make the group of a home.
#[derive(Clone, Copy, Debug)]
pub struct GroupFounding {
    pub home: Home,
    /// A member; for a site's group, of that site.
    pub founder: Key,
    /// The serial of the founding that is lost and shall be succeeded; none where there was no group yet.
    pub succeeds: Option<u64>,
    pub now: UnixTime,
}

/// Tells one node to make the group of a home. A second founding makes an empty group in place of the first: it is refused
/// unless it names the founding that it succeeds ([`View::founding_head`]).
///
/// # Errors
/// [`IssueError::Founded`] if there is a founding that is not the one to be succeeded, [`IssueError::NotFounded`] if there
/// is none to succeed; others if the issuer may not sign it, or the founder is no member of the home.
pub fn founding(view: &View, issuer: &Key, group: &GroupFounding) -> Result<Draft, IssueError> {
    let GroupFounding { home, founder, succeeds, now } = *group;
    let under = founding_office(view, issuer, home, now)?;
    check_founder(view, &founder, home)?;
    let head = view.founding_head(home);
    let serial = match (head, succeeds) {
        (None, None) => 1,
        (Some(head), Some(serial)) if head.serial == serial => {
            serial.checked_add(1).ok_or(IssueError::SerialsUsedUp)?
        }
        (Some(head), _) => {
            let founder = view.members.get(&head.founder).map_or_else(|| head.founder.to_string(), |m| m.full_name());
            let home = home_words(view, home);
            return Err(IssueError::Founded { home, founder, created: head.created, serial: head.serial });
        }
        (None, Some(_)) => return Err(IssueError::NotFounded { home: home_words(view, home) }),
    };
    Draft::checked(under, Body::Founding(Founding { home, serial, founder, created: now }))
}

/// The office in which a key may found the group of a home at this moment.
fn founding_office(view: &View, issuer: &Key, home: Home, now: UnixTime) -> Result<Office, IssueError> {
    match home {
        Home::Vdc => admin_office(view, issuer),
        Home::Site(number) => {
            let site = view.sites.get(&number).ok_or_else(|| IssueError::UnknownSite(number.0.to_string()))?;
            admin_office(view, issuer).or_else(|_| registrar_office(view, issuer, site, now))
        }
    }
}

fn check_founder(view: &View, founder: &Key, home: Home) -> Result<(), IssueError> {
    let member = view.members.get(founder).ok_or(IssueError::UnknownNode(*founder))?;
    if member.standing == Standing::Revoked {
        return Err(IssueError::Revoked(member.name.clone()));
    }
    match home {
        Home::Site(site) if member.site != site => {
            Err(IssueError::FounderElsewhere { node: member.full_name(), home: home_words(view, home) })
        }
        Home::Site(_) | Home::Vdc => Ok(()),
    }
}

/// `the VDC`, or `site NAME`.
fn home_words(view: &View, home: Home) -> String {
    match home {
        Home::Vdc => "the VDC".to_owned(),
        Home::Site(site) => match view.sites.get(&site) {
            Some(site) => format!("site {}", site.name),
            None => format!("site {}", site.0),
        },
    }
}
