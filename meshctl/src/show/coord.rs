//! Coordination groups.

use serde::{Deserialize, Serialize};
use vdc_api::{
    BackupHeader, CoordStatus, GroupHome, GroupMemberView, GroupState, GroupView, MemberRole, RecoverView,
    RedundancyLevel, RestoreView, RoleHere,
};

use super::table::{Cell, Table, or_none};
use super::{Show, facts, human, short};
use crate::terminal::{Paint, Style};

/// `the VDC`, `site berlin`.
pub(crate) fn home_words(home: &GroupHome) -> String {
    match home {
        GroupHome::Vdc => "the VDC".to_owned(),
        GroupHome::Site(site) => format!("site {}", super::harmless_text(site)),
    }
}

fn state(group: &GroupView) -> (&'static str, Paint) {
    match (group.state, group.redundancy.level) {
        (GroupState::Serving, _) if group.redundancy.below_table => ("serving", Paint::Warn),
        (GroupState::Serving, RedundancyLevel::Ok) => ("serving", Paint::Good),
        (GroupState::Serving, _) => ("serving", Paint::Plain),
        (GroupState::ReadOnly, _) => ("read only", Paint::Bad),
        (GroupState::NoLeader, _) => ("no leader", Paint::Bad),
        (GroupState::NotHere, _) => ("not known here", Paint::Dim),
        (GroupState::Refused, _) => ("refused", Paint::Bad),
    }
}

/// `site berlin: serving, any one of 3 may fail now`.
fn in_words(group: &GroupView, style: Style) -> String {
    let (word, paint) = state(group);
    let mut text = format!("{}: {}", home_words(&group.home), style.paint(paint, word));
    if !matches!(group.state, GroupState::NotHere | GroupState::Refused) {
        text.push_str(&format!(", {}", group.redundancy.words));
    }
    text.extend(group.reason.as_ref().map(|reason| format!(": {reason}")));
    text
}

/// What somebody should look at, one line each, and what to do.
pub(crate) fn warnings(status: &CoordStatus, style: Style) -> String {
    let mut text = String::new();
    for group in &status.groups {
        let mut warn = |words: &str| {
            text.push_str(&format!("{} {}: {words}\n", style.paint(Paint::Warn, "warning:"), home_words(&group.home)));
        };
        if group.is_troubled() {
            let why = match group.state {
                GroupState::Refused => group.reason.as_deref().unwrap_or("this node refuses to serve it"),
                _ => &group.redundancy.words,
            };
            warn(why);
        }
        group.warnings.iter().for_each(|warning| warn(warning));
        if group.redundancy.level == RedundancyLevel::Lost && group.state != GroupState::NotHere {
            let hint = format!(
                "bring its voters back; only if they never come back: `meshctl coord recover --home {}`",
                group.home
            );
            text.push_str(&super::hint(&hint, style));
        }
    }
    text
}

fn role_here(role: RoleHere) -> &'static str {
    match role {
        RoleHere::Voter => "voter",
        RoleHere::Learner => "learner",
        RoleHere::Client => "client",
    }
}

impl Show for CoordStatus {
    fn show(&self, style: Style) -> String {
        if self.groups.is_empty() {
            return format!("VDC {} has no coordination group yet\n", self.vdc);
        }
        let mut text: String = self.groups.iter().map(|group| in_words(group, style) + "\n").collect();
        let number = |number: Option<u64>| or_none(number, |number| number.to_string());
        let mut table = Table::new(&[
            "HOME",
            "GROUP",
            "LEADER",
            "HERE",
            ">REVISION",
            ">KEYS",
            ">SIZE",
            ">TERM",
            "FOUNDED BY",
            "AT",
        ]);
        for group in &self.groups {
            table.row([
                group.home.to_string().into(),
                or_none(group.group.as_ref(), |group| short(group)),
                or_none(group.leader.as_ref(), Clone::clone),
                role_here(group.role_here).into(),
                number(group.revision),
                number(group.keys),
                or_none(group.size_bytes, human::bytes),
                number(group.term),
                or_none(group.founded_by.as_ref(), Clone::clone),
                or_none(group.founded_at.as_ref(), Clone::clone),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(style));
        text
    }
}

/// The nodes of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupMembers {
    pub(crate) home: GroupHome,
    pub(crate) leader: Option<String>,
    pub(crate) members: Vec<GroupMemberView>,
}

impl Show for Vec<GroupMembers> {
    fn show(&self, style: Style) -> String {
        let mut table = Table::new(&["HOME", "NODE", "ROLE", "ANSWERS", ">HEARD", ">BEHIND", "SINCE"]);
        for group in self {
            for member in &group.members {
                let node = format!("{}.{}", member.node, member.site);
                let role = match member.role {
                    _ if group.leader.as_ref() == Some(&node) => Cell::new("leader").paint(Paint::Good),
                    MemberRole::Voter => "voter".into(),
                    MemberRole::Learner => Cell::new("learner").paint(Paint::Dim),
                };
                let answers = if member.reachable { Cell::new("yes") } else { Cell::new("no").paint(Paint::Bad) };
                table.row([
                    group.home.to_string().into(),
                    node.into(),
                    role,
                    answers,
                    or_none(member.last_heard_ms, |ms| format!("{} ago", human::age_ms(ms))),
                    or_none(member.lag, |lag| lag.to_string()),
                    or_none(member.since.as_ref(), Clone::clone),
                ]);
            }
        }
        table.render_or("no members", style)
    }
}

/// What a recovery may cost.
pub(crate) fn recovery_cost(view: &RecoverView, style: Style) -> String {
    let home = home_words(&view.home);
    let mut text = format!("{home} would be founded anew from what {} holds. What that means:\n", view.from);
    for line in &view.would {
        text.push_str(&format!("  - {}\n", style.paint(Paint::Warn, line)));
    }
    text
}

impl Show for RecoverView {
    fn show(&self, style: Style) -> String {
        if !self.done {
            return recovery_cost(self, style);
        }
        let lines = [
            ("group", self.group.as_deref().map(short).unwrap_or_default()),
            ("from", self.from.clone()),
            ("revision", self.revision.to_string()),
            ("given up", self.voters_given_up.join("  ")),
        ];
        let title = format!("{} was founded anew", home_words(&self.home));
        format!("{}\n{}", style.paint(Paint::Strong, &title), facts(&lines, style))
    }
}

/// A backup that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackupDone {
    /// None if it went to stdout.
    pub(crate) file: Option<String>,
    pub(crate) size_bytes: u64,
    #[serde(flatten)]
    pub(crate) header: BackupHeader,
}

impl Show for BackupDone {
    fn show(&self, _: Style) -> String {
        let (keys, size) = (human::count(self.header.keys, "key"), human::bytes(self.size_bytes));
        let (home, revision) = (home_words(&self.header.home), self.header.revision);
        let to = self.file.as_deref().unwrap_or("stdout");
        format!("{home}: {keys} at revision {revision} written to {to}, {size}\n")
    }
}

/// What a restore may cost: what the backup has, and what the group has beyond it.
pub(crate) fn restore_cost(backup: &BackupHeader, group: Option<&GroupView>, style: Style) -> String {
    let home = home_words(&backup.home);
    let (keys, revision) = (human::count(backup.keys, "key"), backup.revision);
    let mut text = format!(
        "the backup is of {home}, taken {} by {}: {keys} at revision {revision}\n",
        backup.taken_at, backup.node
    );
    let now = match group {
        Some(GroupView { revision: Some(now), keys: Some(has), group: hash, .. }) => {
            let has = human::count(*has, "key");
            let lost = if hash.as_ref() != Some(&backup.group) {
                "it was founded anew since the backup, and all that it holds now is replaced".to_owned()
            } else if now > &revision {
                format!("{} after the backup would be lost", human::count(now - revision, "change"))
            } else {
                "nothing was changed since the backup".to_owned()
            };
            format!("{home} has {has} at revision {now}: {lost}")
        }
        _ => format!("what {home} holds now is not known here; all of it is replaced"),
    };
    text.push_str(&format!("{}\n", style.paint(Paint::Warn, &now)));
    text
}

impl Show for RestoreView {
    fn show(&self, _: Style) -> String {
        let (home, keys) = (home_words(&self.home), human::count(self.keys, "key"));
        format!("{home}: {keys} restored, now at revision {}\n", self.revision)
    }
}

#[cfg(test)]
mod tests {
    use vdc_api::samples;

    use super::*;

    const PLAIN: Style = Style::new(false);

    #[test]
    fn status_says_first_what_may_fail() {
        assert_eq!(
            samples::coord_status().show(PLAIN),
            "\
the VDC: serving, no redundancy: lisbon1 does not answer, and the next voter that fails stops it
site berlin: serving, any one of 3 may fail now
site lisbon: not known here: no node of the site answers

HOME         GROUP     LEADER          HERE    REVISION  KEYS      SIZE  TERM  FOUNDED BY      AT
vdc          9d9d9d9d  paris1.paris    voter      90214  1204  310.0 kB     7  paris1.paris    2026-03-01T09:00:00Z
site:berlin  4e4e4e4e  berlin2.berlin  client       512    40    9.4 kB     7  berlin1.berlin  2026-03-01T09:00:00Z
site:lisbon  4e4e4e4e  -               client         -     -         -     -  berlin1.berlin  2026-03-01T09:00:00Z
"
        );
        let none = CoordStatus { groups: vec![], ..samples::coord_status() };
        assert_eq!(none.show(PLAIN), "VDC acme has no coordination group yet\n");
    }

    #[test]
    fn warnings_name_the_group_and_what_to_do() {
        let mut status = samples::coord_status();
        assert_eq!(
            warnings(&status, PLAIN),
            "\
warning: the VDC: no redundancy: lisbon1 does not answer, and the next voter that fails stops it
warning: the VDC: lisbon1.lisbon has not answered for 3m10s; it is replaced after 10m00s
"
        );
        status.groups.swap_remove(0);
        assert_eq!(warnings(&status, PLAIN), "", "berlin is as it should be, of lisbon nothing is known");
        let berlin =
            status.groups.iter_mut().find(|group| group.home.to_string() == "site:berlin").expect("it is there");
        berlin.state = GroupState::NoLeader;
        berlin.redundancy.level = RedundancyLevel::Lost;
        berlin.redundancy.words = "stopped: 2 of 3 voters do not answer".into();
        let text = warnings(&status, PLAIN);
        assert!(text.starts_with("warning: site berlin: stopped: 2 of 3"), "{text}");
        assert!(text.contains("\nhint: ") && text.contains("coord recover --home site:berlin`"), "{text}");
        let berlin =
            status.groups.iter_mut().find(|group| group.home.to_string() == "site:berlin").expect("it is there");
        (berlin.state, berlin.reason) = (GroupState::Refused, Some("two nodes founded it".into()));
        assert!(in_words(berlin, PLAIN).ends_with("site berlin: refused: two nodes founded it"));
        assert!(warnings(&status, PLAIN).starts_with("warning: site berlin: two nodes founded it\n"));
    }

    #[test]
    fn members_tell_who_is_behind() {
        let of_vdc = samples::coord_status().groups.swap_remove(0);
        let group = GroupMembers { home: of_vdc.home, leader: of_vdc.leader, members: of_vdc.members };
        assert_eq!(
            vec![group].show(PLAIN),
            "\
HOME  NODE            ROLE     ANSWERS      HEARD  BEHIND  SINCE
vdc   berlin1.berlin  voter    yes       80ms ago       0  2026-03-01T09:30:00Z
vdc   lisbon1.lisbon  voter    no       3m10s ago     512  2026-03-01T09:30:00Z
vdc   paris1.paris    leader   yes              -       0  2026-03-01T09:30:00Z
vdc   berlin2.berlin  learner  yes      140ms ago       3  2026-03-01T09:30:00Z
"
        );
    }

    #[test]
    fn costs_name_what_is_lost() {
        let text = recovery_cost(&samples::recover_view(), PLAIN);
        assert!(text.starts_with("site berlin would be founded anew from what berlin2.berlin holds."), "{text}");
        assert!(text.contains("\n  - 2 changes after it were acknowledged and are lost\n"), "{text}");
        assert!(
            samples::recovered_view().show(PLAIN).starts_with("site berlin was founded anew\n  group     5f5f5f5f\n")
        );

        let (backup, mut group) = (samples::backup_header(), samples::coord_status().groups.swap_remove(1));
        let cost = |group: Option<&GroupView>| restore_cost(&backup, group, PLAIN);
        let text = cost(Some(&group));
        assert!(
            text.starts_with("the backup is of site berlin, taken 2026-03-01T03:00:00Z by berlin2.berlin"),
            "{text}"
        );
        assert!(
            text.contains("site berlin has 40 keys at revision 512: 14 changes after the backup would be lost"),
            "{text}"
        );
        group.revision = Some(498);
        assert!(cost(Some(&group)).contains("nothing was changed"));
        group.group = Some("00".repeat(32));
        assert!(cost(Some(&group)).contains("founded anew since the backup"));
        assert!(cost(None).contains("not known here; all of it is replaced"));
    }
}
