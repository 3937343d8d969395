//! Authority beyond the first box: taking over with an owner key, second admins, and what a closed issuer's records
//! were.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vdc::record::{Authority, Body};
use vdc::roster::{MemberView, Outcome, Standing, View, issue};
use vdc::{Key, Signed, SigningKey};
use vdc_api::{self as api, ApiError, ErrorCode};
use zeroize::Zeroizing;

use super::Core;
use super::commands::{Revoked, not_a_member};
use super::issuing::{Signer, owner_key_needed};

/// An admin's delegation with less than this left is renewed when somebody recovers: the span in which it would be
/// renewed by itself where an owner key is kept.
const ADMIN_RENEW_BEFORE: Duration = Duration::from_secs(90 * 86_400);
/// What every printed owner key begins with.
const OWNER_KEY_PREFIX: &str = "recovery1.";
/// The role that the owners give by a delegation.
const ADMIN: &str = "admin";

/// The text of an owner key, as it is printed once and typed by hand.
pub(crate) fn print_owner_key(key: &SigningKey) -> String {
    format!("{OWNER_KEY_PREFIX}{}", data_encoding::BASE32_NOPAD.encode(Zeroizing::new(key.seed()).as_slice()))
}

/// Reads an owner key: case, spaces and hyphens do not matter, because it may have been copied from paper.
///
/// # Errors
/// [`ApiError`] if the text is no such key.
pub(crate) fn parse_owner_key(text: &api::OwnerKey) -> Result<SigningKey, ApiError> {
    let bad = |what: &str| {
        ApiError::bad_request("owner_key", format!("this is no recovery key: {what}")).hint(format!(
            "it is one line that `meshctl vdc create` printed: {OWNER_KEY_PREFIX}… and 52 more characters"
        ))
    };
    let mut plain = Zeroizing::new(String::with_capacity(text.secret().len()));
    plain.extend(text.secret().chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_uppercase()));
    let digits = plain.strip_prefix(&OWNER_KEY_PREFIX.to_ascii_uppercase());
    let digits = digits.ok_or_else(|| bad("it has another beginning"))?;
    let decoded = data_encoding::BASE32_NOPAD.decode(digits.as_bytes());
    let decoded = Zeroizing::new(decoded.map_err(|_| bad("a character in it is wrong, or some are missing"))?);
    let seed: Zeroizing<[u8; 32]> =
        Zeroizing::new(decoded.as_slice().try_into().map_err(|_| bad("characters are missing, or too many"))?);
    Ok(SigningKey::from_seed(&seed))
}

impl Core {
    /// Whether a key is one of the VDC's owners, and enough by itself.
    ///
    /// # Errors
    /// [`ApiError`] that names the VDC whose key it is not.
    pub(crate) fn check_owner(&self, key: &Key) -> Result<(), ApiError> {
        let (name, id) = (&self.view.name, self.view.vdc);
        if !self.view.owners.contains(key) {
            let id: String = id.to_string().chars().take(8).collect();
            return Err(ApiError::refused(format!("this is not an owner key of VDC {name} ({id})")).hint(
                "look for the key that was printed when this VDC was created; one wrong character makes another key",
            ));
        }
        if self.view.threshold > 1 {
            let threshold = self.view.threshold;
            return Err(ApiError::refused(format!("VDC {name} asks for {threshold} owners' signatures, this is one")));
        }
        Ok(())
    }

    /// Runs `work` with an owner key at hand, if one was given, and forgets the key (it is wiped when dropped).
    pub(crate) fn as_owner<T>(&mut self, key: Option<SigningKey>, work: impl FnOnce(&mut Self) -> T) -> T {
        let Some(key) = key else { return work(self) };
        let kept = self.secrets.owner.replace(key);
        let result = work(self);
        self.secrets.owner = kept;
        result
    }

    /// Makes this node an admin, and with `registrar` the registrar where one is missing.
    ///
    /// # Errors
    /// [`ApiError`] if an owner key is needed and not at hand, or this node is no member.
    pub(crate) fn recover(&mut self, registrar: bool) -> Result<Recovered, ApiError> {
        let own = self.own().filter(|own| own.standing != Standing::Revoked).ok_or_else(not_a_member)?;
        let (own_key, own_site) = (own.node, own.site);
        let now = self.now();
        if self.view.is_closed(&own_key) {
            return Err(ApiError::refused("this node was revoked as an admin or registrar, and that is final")
                .hint("recover on another node, or let this box join again as a new one"));
        }
        // Where an owner key is kept or given, a delegation near its end is renewed too; without one, being admin is enough.
        let remaining = if self.secrets.owner.is_some() { ADMIN_RENEW_BEFORE } else { Duration::ZERO };
        let admin_signed = self.view.admin_due(&own_key, remaining);
        if admin_signed {
            self.need_owner("making this node an admin")?;
            self.publish(Signer::OwnerOrNode, |view, owner| issue::admin(view, owner, own_key, now))?;
            self.event(api::Severity::Warning, "admin-made", None, "this node became an admin by an owner key");
        }
        let mut sites_taken = vec![];
        let wanted = if registrar { self.view.sites_to_serve(own_site) } else { vec![] };
        for site in wanted {
            self.publish(Signer::Node, |view, admin| issue::registrar(view, admin, own_key, site, now))?;
            let name = self.view.sites.get(&site).map_or_else(|| site.0.to_string(), |s| s.name.to_string());
            let text = format!("this node became the registrar of site {name}");
            self.event(api::Severity::Warning, "registrar-made", None, text);
            sites_taken.push(name);
        }
        self.open_door();
        Ok(Recovered { admin_signed, sites_taken })
    }

    /// What [`Core::recover`] came to; asked apart, once the owner key is forgotten.
    ///
    /// # Errors
    /// [`ApiError`] if this node is no member.
    pub(crate) fn recovered(&self, done: Recovered) -> Result<api::VdcRecovered, ApiError> {
        let own = self.own_key();
        let node = self.own_node()?;
        let admin = self.view.admin(&own);
        let served = |number: &vdc::SiteNumber| self.view.registrars_for(*number).iter().any(|r| r.key == own);
        let mut sites_served: Vec<String> =
            self.view.sites.values().filter(|s| served(&s.number)).map(|s| s.name.to_string()).collect();
        sites_served.sort();
        let mut notes = vec![];
        if !self.view.unserved().is_empty() {
            notes.push(self.unserved_note());
        }
        let others = self.view.admins.iter().filter(|a| a.active && !a.closed && a.key != own);
        let names: BTreeSet<String> = self.with_context(|context| others.map(|a| context.name_of(&a.key)).collect());
        if done.admin_signed && !names.is_empty() {
            let names: Vec<String> = names.into_iter().collect();
            notes.push(format!(
                "still admins: {}; if a box among them is lost, run `meshctl node revoke NODE`, then `meshctl vdc recover \
                 --registrar` to serve its sites",
                names.join(", ")
            ));
        }
        if self.secrets.owner.is_none() && self.view.admin_due(&own, ADMIN_RENEW_BEFORE) {
            notes.push("the admin's delegation ends soon: give the recovery key again to renew it".to_owned());
        }
        Ok(api::VdcRecovered {
            vdc: self.alias.to_string(),
            node,
            admin_signed: done.admin_signed,
            admin_until: admin.map_or_else(String::new, |a| a.delegation.not_after.to_string()),
            sites_taken: done.sites_taken,
            sites_served,
            notes,
        })
    }

    fn unserved_note(&self) -> String {
        let names =
            self.view.unserved().into_iter().filter_map(|n| self.view.sites.get(&n)).map(|s| s.name.to_string());
        let names: Vec<String> = names.collect();
        format!(
            "nobody admits or renews at {} now: `meshctl vdc recover --registrar` on an admin makes it stand in",
            names.join(", ")
        )
    }

    fn need_owner(&self, what: &str) -> Result<(), ApiError> {
        if self.secrets.owner.is_some() { Ok(()) } else { Err(owner_key_needed(what)) }
    }

    // ---- admins

    /// Changes a node's roles and labels; the role `admin` by a delegation of the owners, the others by a grant.
    ///
    /// # Errors
    /// [`ApiError`] if this node may not, or an owner key is needed and not at hand.
    pub(crate) fn grant_any(&mut self, node: &str, change: &api::GrantChange) -> Result<api::NodeView, ApiError> {
        let asks = |roles: &[String]| roles.iter().any(|role| role == ADMIN);
        let (add, remove) = (asks(&change.add_roles), asks(&change.remove_roles));
        let rest = |roles: &[String]| roles.iter().filter(|role| *role != ADMIN).cloned().collect();
        let (add_roles, remove_roles) = (rest(&change.add_roles), rest(&change.remove_roles));
        let (add_labels, remove_labels) = (change.add_labels.clone(), change.remove_labels.clone());
        let change = api::GrantChange { add_roles, remove_roles, add_labels, remove_labels, owner_key: None };
        let subject = self.find(node)?.node;
        if add && remove {
            return Err(ApiError::bad_request("add_roles", "admin cannot be given and taken away at once"));
        }
        if add {
            self.make_admin(subject)?;
        }
        if remove {
            self.withdraw_admin(subject)?;
        }
        self.grant(&subject.to_string(), &change)
    }

    fn make_admin(&mut self, subject: Key) -> Result<(), ApiError> {
        let member = self.view.members.get(&subject).ok_or_else(not_a_member)?;
        let name = member.full_name();
        if member.standing == Standing::Revoked {
            return Err(ApiError::refused(format!("node {name} was revoked")).hint("give it a new invite first"));
        }
        if self.view.is_closed(&subject) {
            return Err(ApiError::refused(format!("node {name} was closed as an issuer, and that is final"))
                .hint("let the box leave and join again as a new node"));
        }
        if !self.view.admin_due(&subject, ADMIN_RENEW_BEFORE) {
            return Ok(());
        }
        self.need_owner("making an admin")?;
        let now = self.now();
        self.publish(Signer::OwnerOrNode, |view, owner| issue::admin(view, owner, subject, now))?;
        self.event(api::Severity::Warning, "admin-made", Some(name), "became an admin");
        Ok(())
    }

    fn withdraw_admin(&mut self, subject: Key) -> Result<(), ApiError> {
        if !self.view.is_admin(&subject) {
            return Ok(());
        }
        if !self.view.admins.iter().any(|a| a.active && !a.closed && a.key != subject) {
            return Err(ApiError::refused("this is the only admin of the VDC")
                .hint("make another node admin first: `meshctl grant NODE --role admin`"));
        }
        self.need_owner("taking an admin's right back")?;
        let (now, name) = (self.now(), self.view.members.get(&subject).map(MemberView::full_name));
        self.publish(Signer::OwnerOrNode, |view, owner| issue::withdrawal(view, owner, subject, now))?;
        self.event(api::Severity::Warning, "admin-withdrawn", name, "is no admin any more");
        Ok(())
    }

    // ---- closing issuers

    /// Ends a node. Returns its view from before, the tombstone, who should hear of it now, and who is void with it.
    ///
    /// # Errors
    /// [`ApiError`] if this node may not, or an owner key is needed and not at hand.
    pub(crate) fn revoke(&mut self, node: &str, reason: &str, keep_through: Option<u64>) -> Result<Revoked, ApiError> {
        let member = self.find(node)?.clone();
        if member.node == self.own_key() {
            return Err(ApiError::new(ErrorCode::Refused, "a node does not revoke itself")
                .hint("use `meshctl leave` here, or revoke it from another admin's node"));
        }
        let issuer = self.is_issuer(&member.node);
        if let (Standing::Revoked, Some(tombstone)) = (member.standing, member.records.tombstone)
            && (keep_through.is_none() || !issuer)
        {
            return Ok(self.revoked(&member, tombstone));
        }
        if keep_through.is_some() && !issuer {
            let text = format!("{} signed nothing for others: it is neither admin nor registrar", member.full_name());
            return Err(ApiError::bad_request("keep_through", text).hint("leave --keep-through out"));
        }
        let keep = self.kept(&member.node, keep_through);
        if let (Standing::Revoked, Some(tombstone)) = (member.standing, member.records.tombstone)
            && keep.len() == self.roster.issued_by(&member.node).len()
        {
            return Ok(self.revoked(&member, tombstone)); // nothing is left beyond that number
        }
        let (now, before) = (self.now(), Arc::clone(&self.view));
        let unserved = self.view.unserved();
        let tombstone = self
            .publish(Signer::OwnerOrNode, |view, key| issue::revocation(view, key, &member.node, reason, now, &keep))?;
        self.event(api::Severity::Warning, "node-revoked", Some(member.full_name()), format!("revoked: {reason}"));
        let mut revoked = self.revoked(&member, tombstone);
        revoked.void = voided(&before, &self.view, &member.node);
        for name in &revoked.void {
            self.event(api::Severity::Warning, "member-void", Some(name.clone()), "void: its registrar was closed");
        }
        if !revoked.void.is_empty() {
            revoked.notes.push(
                "void members that are honest come back by `meshctl leave --force` and a new invite on each".to_owned(),
            );
        }
        if issuer && self.view.unserved() != unserved {
            revoked.notes.push(self.unserved_note());
        }
        Ok(revoked)
    }

    /// What an issuer signed, and what a revocation with `keep_through` would make void. Changes nothing.
    ///
    /// # Errors
    /// [`ApiError`] if there is no such node.
    pub(crate) fn issued(&self, node: &str, keep_through: Option<u64>) -> Result<api::IssuedList, ApiError> {
        let member = self.find(node)?;
        let mut records = self.roster.issued_by(&member.node);
        records.sort_by_key(|r| (r.number, r.hash()));
        let mut notes = vec![];
        if records.windows(2).any(|pair| matches!(pair, [a, b] if a.number == b.number)) {
            notes.push("one number stands on two records: the key is used in two places".to_owned());
        }
        let void = match self.tried(member, keep_through) {
            Ok(after) => voided(&self.view, &after, &member.node),
            Err(error) => {
                notes.push(format!("this node cannot revoke it as things stand: {error}"));
                vec![]
            }
        };
        Ok(api::IssuedList {
            vdc: self.alias.to_string(),
            node: member.name.to_string(),
            site: member.site_name.to_string(),
            key: member.node.to_string(),
            keep_through,
            records: records.iter().map(|r| self.issued_view(r, keep_through)).collect(),
            void,
            notes,
        })
    }

    fn issued_view(&self, record: &Signed, keep_through: Option<u64>) -> api::IssuedView {
        let at = match &record.body {
            Body::Genesis(g) => Some(g.created),
            Body::Delegation(d) => Some(d.not_before),
            Body::Site(s) => Some(s.created),
            Body::Member(m) => Some(m.not_before),
            Body::Tombstone(t) => Some(t.at),
            Body::Founding(f) => Some(f.created),
            Body::Grant(_) | Body::Contact(_) | Body::Exposure(_) | Body::Block(_) | Body::Policy(_) => None,
        };
        let site = |n: &vdc::SiteNumber| self.view.sites.get(n).map_or_else(|| n.0.to_string(), |s| s.name.to_string());
        self.with_context(|context| {
            let (kind, subject) = match &record.body {
                Body::Genesis(g) => ("genesis", g.name.to_string()),
                Body::Delegation(d) => {
                    let right = match &d.authority {
                        Authority::Admin => ADMIN.to_owned(),
                        Authority::Registrar(n) => format!("registrar of {}", site(n)),
                    };
                    ("delegation", format!("{} as {right}", context.name_of(&d.subject)))
                }
                Body::Site(s) => ("site", s.name.to_string()),
                // By its recorded name: of a void member the view knows nothing.
                Body::Member(m) => ("member", format!("{}.{}", m.name, site(&m.site))),
                Body::Grant(g) => ("grant", context.name_of(&g.subject)),
                Body::Contact(c) => ("contact", context.name_of(&c.node)),
                Body::Exposure(e) => ("exposure", context.name_of(&e.node)),
                Body::Tombstone(t) => ("tombstone", context.name_of(&t.subject)),
                Body::Block(b) => ("block", b.id.short()),
                Body::Policy(p) => ("policy", format!("version {}", p.version)),
                Body::Founding(f) => {
                    let (home, founder) = (context.home_words(f.home), context.name_of(&f.founder));
                    ("founding", format!("the group of {home}, by {founder}"))
                }
            };
            api::IssuedView {
                number: record.number,
                kind: kind.to_owned(),
                hash: record.hash().short(),
                subject,
                at: at.map(|at| at.to_string()),
                void: keep_through.is_some_and(|last| record.number > last),
            }
        })
    }

    /// The view as a revocation would leave it.
    fn tried(&self, member: &MemberView, keep_through: Option<u64>) -> Result<View, ApiError> {
        let keep = self.kept(&member.node, keep_through);
        let owner = self.secrets.owner.as_ref();
        let mut refusal = None;
        for key in owner.into_iter().chain([&self.secrets.node]) {
            match issue::revocation(&self.view, &key.public(), &member.node, "", self.now(), &keep) {
                Ok(draft) => {
                    let mut roster = self.roster.clone();
                    let record = draft.sign(&self.view.vdc, key, roster.next_number(&key.public()), &[]);
                    return match roster.insert(record) {
                        Outcome::New | Outcome::Known => Ok(roster.view(self.view.now)),
                        Outcome::Superseded => Err(ApiError::refused("a newer record exists already")),
                        Outcome::Refused(reason) => Err(ApiError::refused(reason.to_string())),
                    };
                }
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(super::issuing::refused(&refusal.expect("at least one key was tried")))
    }

    fn kept(&self, issuer: &Key, keep_through: Option<u64>) -> Vec<Arc<Signed>> {
        let mut keep = self.roster.issued_by(issuer);
        keep.retain(|record| keep_through.is_none_or(|last| record.number <= last));
        keep
    }

    fn is_issuer(&self, key: &Key) -> bool {
        let mut registrars = self.view.sites.values().flat_map(|s| &s.registrars);
        self.view.admins.iter().any(|a| a.key == *key) || registrars.any(|r| r.key == *key)
    }
}

/// What [`Core::recover`] did.
#[derive(Debug)]
pub(crate) struct Recovered {
    admin_signed: bool,
    sites_taken: Vec<String>,
}

/// Members that others talked to before and do not talk to after, other than the subject of the revocation.
fn voided(before: &View, after: &View, subject: &Key) -> Vec<String> {
    let lives = |key: &Key| after.members.get(key).is_some_and(|m| m.standing.is_reachable());
    let gone = before.reachable().filter(|m| m.node != *subject && !lives(&m.node));
    let mut names: Vec<String> = gone.map(MemberView::full_name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_key_survives_paper_and_typing() {
        let key = SigningKey::from_seed(&[7; 32]);
        let printed = print_owner_key(&key);
        assert_eq!(printed.len(), OWNER_KEY_PREFIX.len() + 52);
        let spaced: String =
            printed.chars().enumerate().flat_map(|(i, c)| [Some(c), (i % 4 == 3).then_some(' ')]).flatten().collect();
        for text in [printed.clone(), printed.to_lowercase(), format!(" {spaced}\n"), spaced.replace(' ', "-")] {
            let parsed = parse_owner_key(&api::OwnerKey::new(text.clone()));
            assert_eq!(parsed.expect(&text).public(), key.public());
        }
        for text in
            ["", "recovery1.", &printed[..40], &printed[10..], &printed.replace('.', ":"), &format!("{printed}AA")]
        {
            let error = parse_owner_key(&api::OwnerKey::new(text.to_owned())).expect_err(text);
            assert_eq!((error.code, error.field.as_deref()), (ErrorCode::BadRequest, Some("owner_key")), "{text}");
            assert!(text.len() < 20 || !error.to_string().contains(&text[12..20]), "the error shows the key");
        }
    }
}
