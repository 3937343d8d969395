//! Creating, inviting, joining, leaving.

use vdc_api::{
    InviteCreated, InviteList, InviteState, InviteView, Joined, Left, ReachabilityVerdict, Renewed, SiteAdded,
    VdcCreated, VdcList, VdcRecovered, VdcView,
};

use super::table::{Cell, Table, or_none};
use super::{Show, facts, human, short, status};
use crate::terminal::{Paint, Style};

const TEXT_WIDTH: usize = 90;

impl Show for VdcCreated {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &self.vdc.name);
        let mut addresses = vec![self.addresses.ipv6.clone()];
        addresses.extend(self.addresses.ipv4.clone());
        let mut text = format!("created {name}\n");
        text.push_str(&facts(
            &[("node", self.fqdn.clone()), ("addresses", addresses.join("  ")), ("id", self.vdc.id.clone())],
            style,
        ));
        let key = &self.recovery_key;
        let (threshold, owners) = (key.threshold, key.owners);
        text.push_str(&format!("\nrecovery key ({threshold} of {owners} owner keys is enough), shown only now:\n\n"));
        text.push_str(&format!("  {}\n\n", style.paint(Paint::Strong, &key.secret)));
        human::wrap(&key.instructions, TEXT_WIDTH).iter().for_each(|line| text.push_str(&format!("{line}\n")));
        text.push('\n');
        text.push_str(&super::hint("let the next box in with `meshctl invite create`", style));
        text
    }
}

impl Show for VdcRecovered {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &format!("{}.{}", self.node.name, self.node.site));
        let verb = if self.admin_signed { "is an admin now" } else { "is an admin already" };
        let mut text = format!("{name} {verb}\n");
        let roles = self.node.roles.join(", ");
        let (taken, served) = (self.sites_taken.join(", "), self.sites_served.join(", "));
        text.push_str(&facts(
            &[("until", self.admin_until.clone()), ("roles", roles), ("registrar of", taken), ("serves", served)],
            style,
        ));
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    }
}

impl Show for VdcList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["VDC", "NODE", "SITE", ">NODES", ">SITES", "IPV6", "IPV4", "ID", ""]);
        for vdc in &self.vdcs {
            let name = if vdc.name == vdc.genesis_name {
                vdc.name.clone()
            } else {
                format!("{} ({})", vdc.name, vdc.genesis_name)
            };
            table.row([
                name.into(),
                vdc.node.as_str().into(),
                vdc.site.as_str().into(),
                vdc.nodes.to_string().into(),
                vdc.sites.to_string().into(),
                vdc.ipv6.as_str().into(),
                or_none(vdc.ipv4.clone(), |block| block),
                short(&vdc.id).into(),
                Cell::new(if vdc.in_use { "in use" } else { "" }).paint(Paint::Good),
            ]);
        }
        let not_served = status::not_served(&self.not_served, style);
        match (self.vdcs.is_empty(), not_served.is_empty()) {
            (true, false) => not_served,
            (_, true) => table.render_or("this box is in no VDC", style),
            (false, false) => format!("{}\n{not_served}", table.render(style)),
        }
    }
}

/// The answer to `vdc use`.
impl Show for VdcView {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &self.name);
        let ipv4 = match &self.ipv4 {
            Some(block) => format!("this host's IPv4 routes for {block} lead into it"),
            None => "it has no IPv4".to_owned(),
        };
        format!("using {name}: {ipv4}\n")
    }
}

impl Show for InviteCreated {
    fn show(&self, style: Style) -> String {
        let invite = &self.invite;
        let what = if invite.founder { "founder invite" } else { "invite" };
        let uses = human::count(u64::from(invite.uses), "box").replace("boxs", "boxes");
        let good = format!("for {uses}, until {} (in {})", invite.expires_at, human::age_s(invite.expires_in_s));
        let mut text = String::new();
        if self.site_created {
            text.push_str(&format!("created site {}\n", style.paint(Paint::Strong, &invite.site)));
        }
        text.push_str(&format!("{what} to site {}\n", style.paint(Paint::Strong, &invite.site)));
        let kind = if invite.ephemeral { "ephemeral: gone when its membership is not renewed" } else { "" };
        text.push_str(&facts(&[("good", good), ("id", short(&invite.id)), ("kind", kind.to_owned())], style));
        text.push_str(&format!("\n  {}\n\n", style.paint(Paint::Strong, &format!("meshctl join {}", self.token))));
        let reachability = &self.reachability;
        let (label, paint) = match reachability.verdict {
            ReachabilityVerdict::Reachable => ("reachable:", Paint::Good),
            ReachabilityVerdict::Likely => ("likely reachable:", Paint::Good),
            ReachabilityVerdict::LocalOnly => ("warning:", Paint::Warn),
            ReachabilityVerdict::Unreachable => ("warning:", Paint::Bad),
        };
        let addresses = match reachability.addresses.as_slice() {
            [] => String::new(),
            addresses => format!(" ({})", addresses.join(", ")),
        };
        text.push_str(&format!("{} {}{addresses}\n", style.paint(paint, label), reachability.message));
        if let Some(hint) = &reachability.hint {
            text.push_str(&super::hint(hint, style));
        }
        text
    }
}

fn invite_state(state: InviteState) -> Cell {
    match state {
        InviteState::Open => Cell::new("open").paint(Paint::Good),
        InviteState::Used => Cell::new("used").paint(Paint::Dim),
        InviteState::Expired => Cell::new("expired").paint(Paint::Dim),
        InviteState::Revoked => Cell::new("revoked").paint(Paint::Warn),
    }
}

impl Show for InviteList {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["INVITE", "SITE", "STATE", ">EXPIRES IN", ">LEFT", "KIND", "JOINED"]);
        for invite in &self.invites {
            let kinds = [(invite.founder, "founder"), (invite.ephemeral, "ephemeral")];
            let kinds: Vec<&str> = kinds.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect();
            let joined: Vec<String> = invite
                .redeemed
                .iter()
                .map(|one| {
                    one.address.as_ref().map_or_else(|| one.node.clone(), |from| format!("{} from {from}", one.node))
                })
                .collect();
            let open = invite.state == InviteState::Open;
            table.row([
                short(&invite.id).into(),
                invite.site.as_str().into(),
                invite_state(invite.state),
                or_none(open.then_some(invite.expires_in_s), human::age_s),
                format!("{}/{}", invite.uses_left, invite.uses).into(),
                or_none(Some(kinds).filter(|kinds| !kinds.is_empty()), |kinds| kinds.join(",")),
                or_none(Some(joined).filter(|joined| !joined.is_empty()), |joined| joined.join(", ")),
            ]);
        }
        table.render_or("no invites", style)
    }
}

/// The answer to `invite revoke`.
impl Show for InviteView {
    fn show(&self, style: Style) -> String {
        let id = style.paint(Paint::Strong, &short(&self.id));
        let mut text = format!("revoked invite {id} to site {}\n", self.site);
        if !self.redeemed.is_empty() {
            let names: Vec<&str> = self.redeemed.iter().map(|one| one.node.as_str()).collect();
            text.push_str(&format!("note: who joined with it stays a member: {}\n", names.join(", ")));
            text.push_str(&super::hint("end a node's membership with `meshctl node revoke`", style));
        }
        text
    }
}

impl Show for Joined {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &self.vdc.name);
        let again = if self.already_member { " (it was a member already)" } else { "" };
        let mut addresses = vec![self.addresses.ipv6.clone()];
        addresses.extend(self.addresses.ipv4.clone());
        let mut text = format!("joined {name} in {}{again}\n", human::age_ms(self.elapsed_ms));
        text.push_str(&facts(
            &[
                ("node", self.fqdn.clone()),
                ("site", self.site.clone()),
                ("addresses", addresses.join("  ")),
                ("registrar", self.registrar.clone()),
            ],
            style,
        ));
        text.push_str(&status::problems(&self.problems, style));
        text
    }
}

impl Show for Left {
    fn show(&self, style: Style) -> String {
        let name = style.paint(Paint::Strong, &self.vdc);
        let mut text = match (self.confirmed, u64::from(self.members)) {
            (_, 0) => format!("left {name}\n"),
            (confirmed, members) => {
                format!("left {name}; {confirmed} of {} confirmed it\n", human::count(members, "other member"))
            }
        };
        if !self.unconfirmed.is_empty() && self.confirmed > 0 {
            let names = self.unconfirmed.join(", ");
            text.push_str(&format!("not told yet: {names} (the others pass it on as soon as they reach it)\n"));
        }
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    }
}

impl Show for Renewed {
    fn show(&self, _: Style) -> String {
        format!("{} renewed until {} by {}\n", self.node, self.not_after, self.registrar)
    }
}

impl Show for SiteAdded {
    fn show(&self, style: Style) -> String {
        let site = &self.site;
        // Said above already.
        let invite = InviteCreated { site_created: false, ..self.invite.clone() };
        let verb = if self.existed { "site" } else { "added site" };
        let ipv4 = site.ipv4.as_ref().map(|block| format!("  {block}")).unwrap_or_default();
        let name = style.paint(Paint::Strong, &site.name);
        format!("{verb} {name}  {}{ipv4}\n{}", site.ipv6, invite.show(style))
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    const PLAIN: fn() -> Style = || Style::new(false);

    #[test]
    fn created_vdc_shows_the_recovery_key() {
        assert_eq!(
            samples::vdc_created().show(PLAIN()),
            format!(
                "\
created acme
  node       paris1.paris.acme.internal
  addresses  fd5a:3c71:9e02:1:a1b2:c3d1:0:1  10.64.16.17
  id         5a3c719e02{}

recovery key (1 of 2 owner keys is enough), shown only now:

  meshd-recovery-1 abcd-efgh-ijkl-mnop

Write this key down or print it, and keep it in a safe. It can replace this node as the
owner of the VDC. It is shown once and stored nowhere.

hint: let the next box in with `meshctl invite create`
",
                "ab".repeat(27)
            )
        );
    }

    #[test]
    fn invite_shows_the_command_and_who_could_use_it() {
        assert_eq!(
            samples::invite_created().show(PLAIN()),
            "\
created site berlin
invite to site berlin
  good  for 1 box, until 2026-03-01T13:00:00Z (in 59m00s)
  id    3f3f3f3f

  meshctl join vdc1.b2hhaS10aGlzLWlzLWEtc2FtcGxl

warning: only boxes on the same network can reach a registrar (192.168.7.2:7302)
hint: forward UDP and TCP port 7302 to this node
"
        );
        let text = samples::site_added().show(PLAIN());
        assert!(text.starts_with("added site lisbon  fd5a:3c71:9e02:3::/64  10.64.48.0/20\n"), "{text}");
        assert!(text.contains("founder invite to site lisbon\n"), "{text}");
    }

    #[test]
    fn recovery_says_what_the_node_is_now() {
        assert_eq!(
            samples::vdc_recovered().show(PLAIN()),
            "\
paris1.paris is an admin now
  until         2027-03-01T12:00:00Z
  roles         host, operator, registrar, admin, owner
  registrar of  paris
  serves        berlin, paris
note: site lisbon is still served by lisbon1.lisbon
"
        );
    }

    #[test]
    fn lists_are_tables() {
        assert_eq!(
            samples::invite_list().show(PLAIN()),
            "\
INVITE    SITE    STATE  EXPIRES IN  LEFT  KIND  JOINED
3f3f3f3f  berlin  open       59m00s   1/1  -     -
0a0a0a0a  berlin  used            -   0/1  -     berlin1 from 203.0.113.7
"
        );
        assert_eq!(
            samples::vdc_list().show(PLAIN()),
            "\
VDC         NODE    SITE   NODES  SITES  IPV6                 IPV4          ID
acme        paris1  paris      3      3  fd5a:3c71:9e02::/48  10.64.0.0/12  5a3c719e  in use
lab (test)  paris1  paris      1      1  fd77:7777:7777::/48  -             77777777
"
        );
        assert_eq!(VdcList { vdcs: vec![], not_served: vec![] }.show(PLAIN()), "this box is in no VDC\n");
    }

    #[test]
    fn coming_and_going_is_told() {
        assert_eq!(
            samples::joined().show(PLAIN()),
            "\
joined acme in 640ms
  node       berlin1.berlin.acme.internal
  site       berlin
  addresses  fd5a:3c71:9e02:2:a1b2:c3d2:0:1  10.64.32.17
  registrar  paris1
"
        );
        let all = samples::left();
        assert_eq!(all.show(PLAIN()), "left acme; 2 of 2 other members confirmed it\n");
        let some = Left { confirmed: 1, unconfirmed: vec!["lisbon1.lisbon".into()], ..all.clone() };
        assert_eq!(
            some.show(PLAIN()),
            "left acme; 1 of 2 other members confirmed it\n\
             not told yet: lisbon1.lisbon (the others pass it on as soon as they reach it)\n"
        );
        assert_eq!(Left { confirmed: 0, members: 0, ..all }.show(PLAIN()), "left acme\n");
        assert_eq!(samples::renewed().show(PLAIN()), "berlin1 renewed until 2026-03-02T12:00:00Z by paris1\n");
        assert_eq!(samples::vdc().show(PLAIN()), "using acme: this host's IPv4 routes for 10.64.0.0/12 lead into it\n");
        let used = &samples::invite_list().invites[1];
        assert!(used.show(PLAIN()).contains("stays a member: berlin1"));
    }
}
