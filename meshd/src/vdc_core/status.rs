//! What the core tells about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use vdc::roster::{MemberView, Standing};
use vdc_api as api;
use vdc_api::{ApiError, ProblemCode, ProblemSeverity};

use super::commands::{is_public, not_a_member};
use super::{Core, revoked};
use crate::clock::SKEW_MAX;
use crate::coord::Coord;
use crate::views::{Context, LinkInfo};

/// Links come up within seconds; only a node without any for longer is told to be alone.
const ALONE_MAX: Duration = Duration::from_secs(15);
/// A view that was not compared with anybody's for so long is shown as old.
const VIEW_AGE_MAX: Duration = Duration::from_secs(3_600);

impl Core {
    /// Runs `work` with everything that the conversions need.
    pub(super) fn with_context<T>(&self, work: impl FnOnce(&Context<'_>) -> T) -> T {
        let tunnels = self.data.tunnels();
        // A link may have moved to another address since it came up.
        let current = self.control.links();
        let links: BTreeMap<_, _> = self
            .links
            .iter()
            .map(|(key, link)| {
                let moved = current.binary_search_by_key(key, |l| l.node).map(|at| &current[at]);
                let (address, transport) = moved.map_or((link.address, link.transport), |l| (l.address, l.transport));
                let info = LinkInfo {
                    address: address.to_string(),
                    transport: match transport {
                        meshd_control::Transport::Quic => "quic",
                        meshd_control::Transport::Tcp => "tcp",
                    },
                    since: link.since,
                    version: Some(link.version.clone()),
                    clock_offset_s: Some(link.peer_clock.offset_s()),
                };
                (*key, info)
            })
            .collect();
        work(&Context {
            own: self.own_key(),
            keeps_owner_key: self.secrets.owner.is_some(),
            alias: self.alias.as_str(),
            view: &self.view,
            roster: &self.roster,
            now: self.now(),
            tunnels: &tunnels,
            links: &links,
        })
    }

    pub(crate) fn vdc_view(&self) -> api::VdcView {
        self.with_context(|context| context.vdc(self.in_use))
    }

    pub(crate) fn own_node(&self) -> Result<api::NodeView, ApiError> {
        let own = self.own().ok_or_else(not_a_member)?;
        Ok(self.with_context(|context| context.node(own)))
    }

    pub(crate) fn node_show(&self, text: &str) -> Result<api::NodeView, ApiError> {
        let member = self.find(text)?;
        Ok(self.with_context(|context| context.node(member)))
    }

    pub(crate) fn node_list(&self) -> api::NodeList {
        self.with_context(|context| api::NodeList { vdc: context.alias.into(), nodes: context.nodes() })
    }

    pub(crate) fn peers(&self) -> api::PeerList {
        self.with_context(|context| context.peers())
    }

    pub(crate) fn site_list(&self) -> api::SiteList {
        self.with_context(|context| api::SiteList { vdc: context.alias.into(), sites: context.sites() })
    }

    pub(crate) fn exposure_list(&self) -> api::ExposureList {
        let own = self.own_key();
        let says = |m: &&MemberView| m.node == own || !m.ports().is_empty() || !m.workloads.is_empty();
        let mut members: Vec<_> = self.view.reachable().filter(says).collect();
        members.sort_by_key(|m| (m.node != own, m.full_name()));
        self.with_context(|context| api::ExposureList {
            vdc: context.alias.into(),
            exposures: members.iter().map(|member| context.exposure(member)).collect(),
        })
    }

    pub(crate) fn block_list(&self) -> api::BlockList {
        self.with_context(|context| api::BlockList {
            vdc: context.alias.into(),
            blocks: context.view.blocks.iter().map(|block| context.block(block)).collect(),
        })
    }

    /// Everything about this VDC but what the name server says.
    pub(crate) fn status(&self, dns: api::DnsView) -> Result<api::VdcStatus, ApiError> {
        let age = self.view_age();
        let problems = self.problems(&dns);
        let node = self.own_node()?;
        Ok(self.with_context(|context| api::VdcStatus {
            vdc: context.vdc(self.in_use),
            node,
            roster: api::RosterView {
                records: self.roster.len() as u64,
                size_bytes: self.roster.heap_bytes() as u64,
                age_s: age.map(|(_, age)| age.as_secs()),
                compared_with: age.map(|(key, _)| context.name_of(&key)),
                conflicts: context.conflicts(),
                policy_version: self.view.policy.as_ref().map_or(0, |policy| policy.version),
            },
            nodes: context.nodes(),
            sites: context.sites(),
            listen: api::ListenView {
                data_port: self.data.port(),
                control_port: self.control.port(),
                door_port: self.door_port,
                observed: self.observed.keys().map(ToString::to_string).collect(),
            },
            data_path: self.data.view(),
            dns,
            problems,
        }))
    }

    /// What an operator should know, worst first.
    pub(crate) fn problems(&self, dns: &api::DnsView) -> Vec<api::Problem> {
        let mut problems = vec![];
        let mut add = |code, severity, message: String, hint: Option<&str>| {
            let (vdc, hint) = (Some(self.alias.to_string()), hint.map(str::to_owned));
            problems.push(api::Problem { code, severity, message, hint, vdc, since: None });
        };
        use ProblemSeverity::{Degraded, Warning};
        match self.own().map(|own| own.standing) {
            None | Some(Standing::Revoked) => add(
                ProblemCode::MembershipRevoked,
                Degraded,
                self.revocation().unwrap_or_else(|| "this node is no member of the VDC".into()),
                Some(revoked::HINT),
            ),
            Some(Standing::Expired) => add(
                ProblemCode::MembershipExpired,
                Degraded,
                "this node's membership has expired; nobody talks to it".into(),
                Some(
                    "bring a registrar of this site back, or stand in on an admin (`meshctl vdc recover --registrar`)",
                ),
            ),
            Some(Standing::Grace { until }) => add(
                ProblemCode::MembershipInGrace,
                Degraded,
                format!("this node's membership is past its renewal deadline; it is reachable until {until}"),
                Some("bring a registrar of this site back"),
            ),
            Some(Standing::Current) => {}
        }
        if let Some(error) = &self.renewal.error {
            add(ProblemCode::NoRegistrar, Warning, format!("the last renewal failed: {error}"), None);
        }
        if let Some(own) = self.own()
            && self.view.registrars_for(own.site).is_empty()
        {
            add(
                ProblemCode::NoRegistrar,
                Degraded,
                format!("site {} has no registrar: nobody is admitted or renewed", own.site_name),
                Some("stand in on an admin: `meshctl vdc recover --registrar`"),
            );
        }
        if let Some(error) = &self.write_failed {
            let hint = "free some space or make it writable; what arrives now counts until the next restart";
            add(ProblemCode::StateNotWritable, Degraded, error.clone(), Some(hint));
        }
        if let Some(error) = &self.firewall_state.error {
            add(ProblemCode::PartRestarting, Degraded, format!("the policy table was not loaded: {error}"), None);
        }
        let behind = self.clock.behind();
        if behind > SKEW_MAX {
            add(
                ProblemCode::ClockBehindRecords,
                Degraded,
                format!("this node's clock is {} s behind records that exist already", behind.as_secs()),
                Some("set the clock (NTP)"),
            );
        }
        for (key, link) in &self.links {
            let offset_s = link.peer_clock.offset_s();
            if offset_s.unsigned_abs() > SKEW_MAX.as_secs() {
                let name = self.view.members.get(key).map_or_else(|| key.short(), |m| m.full_name());
                let way = if offset_s > 0 { "ahead of" } else { "behind" };
                let text = format!("the clock of {name} is {} s {way} this node's", offset_s.unsigned_abs());
                let hint = "set the clock that is wrong, for example with `timedatectl set-ntp true`";
                add(ProblemCode::ClockSkew, Degraded, text, Some(hint));
            }
        }
        let peers = self.view.reachable().filter(|m| m.node != self.own_key()).count();
        if peers > 0 && self.alone_since.is_some_and(|since| since.elapsed() > ALONE_MAX) {
            add(
                ProblemCode::NoPeerReachable,
                Degraded,
                format!("none of {peers} other nodes answers at any known address"),
                Some("if every address has changed, name one by hand: `meshctl connect ADDRESS:PORT`"),
            );
        }
        match self.view_age() {
            Some((_, age)) if age > VIEW_AGE_MAX && peers > 0 => add(
                ProblemCode::RosterOld,
                Warning,
                format!("this node's view was last compared with another's {} min ago", age.as_secs() / 60),
                None,
            ),
            _ => {}
        }
        if peers > 0
            && !self.local_addresses.iter().any(|ip| is_public(*ip))
            && self.shared.config.network.advertise.is_empty()
        {
            let hint = "fine inside one routed network; otherwise forward a UDP port and set `network.advertise`";
            let text = "this node has private underlay addresses only".into();
            add(ProblemCode::NotReachableFromOutside, Warning, text, Some(hint));
        }
        if let Some(text) = self.only_one() {
            let hint = "let more boxes join (`meshctl invite create`, `meshctl site add`), and back this box up (docs/operations.md)";
            add(ProblemCode::NoRedundancy, Warning, text, Some(hint));
        }
        let path = self.data.view();
        if !(path.udp_gso && path.udp_gro && path.tun_offload) {
            let text = "the kernel lacks some segmentation offloads; throughput suffers".into();
            add(ProblemCode::OffloadsOff, Warning, text, None);
        }
        if dns.state == api::DnsState::Off || dns.detail.is_some() {
            let text = dns.detail.clone().unwrap_or_else(|| "names of the VDC do not resolve on this host".into());
            add(ProblemCode::DnsNotIntegrated, Warning, text, Some("see docs/dns.md"));
        }
        for conflict in self.with_context(|context| context.conflicts()) {
            add(ProblemCode::RecordConflict, Warning, conflict, None);
        }
        add(
            ProblemCode::KeysInClear,
            Warning,
            "keys in clear on disk".into(),
            Some("keep the state directory on an encrypted disk"),
        );
        problems.extend(self.handle.coord().map(Coord::problems).unwrap_or_default());
        problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
        problems
    }

    /// What of the VDC hangs on this box alone, and what its loss would mean. Only the box itself says so: there it can be
    /// backed up.
    fn only_one(&self) -> Option<String> {
        let own = self.own_key();
        if !self.own()?.standing.is_reachable() {
            return None;
        }
        if self.view.reachable().all(|member| member.node == own) {
            return Some("this box is the only node of the VDC: if it is lost, so is the VDC".into());
        }
        let alone = |site: &&vdc::roster::SiteView| {
            let registrars = self.view.registrars_for(site.number);
            !registrars.is_empty() && registrars.iter().all(|registrar| registrar.key == own)
        };
        let mut sites: Vec<String> = self.view.sites.values().filter(alone).map(|site| site.name.to_string()).collect();
        sites.sort();
        let mut admins = self.view.admins.iter().filter(|admin| admin.active && !admin.closed);
        let only_admin = admins.next().is_some_and(|admin| admin.key == own) && admins.next().is_none();
        hanging(&sites, only_admin)
    }
}

/// The sentence of [`Core::only_one`].
fn hanging(sites: &[String], only_admin: bool) -> Option<String> {
    let registrar = match sites {
        [] => None,
        [one] => Some(format!("admit and renew nodes of site {one}")),
        [all @ .., last] => Some(format!("admit and renew nodes of sites {} and {last}", all.join(", "))),
    };
    let admin = only_admin.then(|| "change grants, sites and policy".to_owned());
    let parts: Vec<String> = registrar.into_iter().chain(admin).collect();
    (!parts.is_empty()).then(|| format!("no other box can {}: if this one is lost, nobody can", parts.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_on_one_box_is_said_in_a_sentence() {
        let sites = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(hanging(&[], false), None);
        assert_eq!(
            hanging(&sites(&["berlin"]), false).as_deref(),
            Some("no other box can admit and renew nodes of site berlin: if this one is lost, nobody can")
        );
        assert_eq!(
            hanging(&sites(&["berlin", "lisbon", "paris"]), true).as_deref(),
            Some(
                "no other box can admit and renew nodes of sites berlin, lisbon and paris or change grants, sites and \
                 policy: if this one is lost, nobody can"
            )
        );
    }
}
