//! Coordination groups: how they stand, and the three things that only people decide about them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What the first line of every backup begins with; the version behind the slash is that of all that follows.
const BACKUP_MAGIC: &str = "meshd-coord-backup/1 ";
/// Longest first line of a backup in bytes, with its line feed.
pub const BACKUP_HEADER_BYTES_MAX: usize = 4 << 10;
/// Longest backup in bytes. A group of a million keys of 200 bytes has about 0.4 GB.
pub const BACKUP_BYTES_MAX: u64 = 16 << 30;

/// Which group is meant: that of the VDC, or that of a site. As text `vdc` or `site:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupHome {
    Vdc,
    /// By the site's name.
    Site(String),
}

impl fmt::Display for GroupHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vdc => f.write_str("vdc"),
            Self::Site(site) => write!(f, "site:{site}"),
        }
    }
}

/// A text that names no home.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a home: write vdc, or site: and the name of a site")]
pub struct GroupHomeError(String);

impl FromStr for GroupHome {
    type Err = GroupHomeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "vdc" => Ok(Self::Vdc),
            Some(("site", site)) if !site.is_empty() => Ok(Self::Site(site.to_owned())),
            // What is quoted is bounded.
            _ => Err(GroupHomeError(text.chars().take(80).collect())),
        }
    }
}

/// A home as text, where a value must be flat.
mod home_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use super::GroupHome;

    pub(super) fn serialize<S: Serializer>(home: &GroupHome, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(home)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GroupHome, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// The coordination groups that this node knows of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CoordStatus {
    /// Local name of the VDC.
    pub vdc: String,
    /// The VDC's first, then the sites' by name.
    pub groups: Vec<GroupView>,
}

/// One coordination group, as this node sees it. What it cannot know at the moment is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    pub home: GroupHome,
    /// Hash of its founding record; none before it was founded.
    pub group: Option<String>,
    /// `NODE.SITE` of the node that founded it.
    pub founded_by: Option<String>,
    /// RFC 3339.
    pub founded_at: Option<String>,
    pub state: GroupState,
    /// Why it is in that state, where there is more to say.
    pub reason: Option<String>,
    /// `NODE.SITE`; none while the voters have not agreed on one.
    pub leader: Option<String>,
    /// Elections so far, at most.
    pub term: Option<u64>,
    /// Number of the last change.
    pub revision: Option<u64>,
    /// The oldest revision from which changes can still be told.
    pub compacted: Option<u64>,
    pub keys: Option<u64>,
    /// Bytes of keys and values.
    pub size_bytes: Option<u64>,
    pub role_here: RoleHere,
    pub redundancy: RedundancyView,
    /// What somebody should look at, one phrase each.
    pub warnings: Vec<String>,
    /// Voters first, then learners, by name.
    pub members: Vec<GroupMemberView>,
}

impl GroupView {
    /// Whether somebody should act: it does not take changes, or survives less than its boxes would allow.
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        let stands = match self.state {
            GroupState::Serving | GroupState::NotHere => true,
            GroupState::ReadOnly | GroupState::NoLeader | GroupState::Refused => false,
        };
        !stands || self.redundancy.below_table
    }
}

/// What a group does for its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupState {
    /// Reads and changes.
    Serving,
    /// What this node holds can be read and may be old; nothing can be changed.
    ReadOnly,
    /// Its voters elect a leader, which takes seconds; longer than that, too few of them answer.
    NoLeader,
    /// This node has no part in it and cannot ask those who have.
    NotHere,
    /// This node refuses to serve it: `reason` says why.
    Refused,
}

/// What a node is to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RoleHere {
    /// It has a vote, and all that the group holds.
    Voter,
    /// It has all that the group holds, and no vote.
    Learner,
    /// It asks those who have.
    Client,
}

/// What of a group may fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RedundancyView {
    pub level: RedundancyLevel,
    /// The same as a phrase.
    #[schema(example = "any one of 3 may fail now")]
    pub words: String,
    /// Whether the boxes that there are would allow for more.
    pub below_table: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RedundancyLevel {
    /// All voters answer, and at least one of them may fail.
    Ok,
    /// Some voter does not answer; one more may still fail.
    Reduced,
    /// It works, and stops when the next voter fails.
    None,
    /// Too few voters answer: nothing can be changed.
    Lost,
}

/// A node of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupMemberView {
    pub node: String,
    pub site: String,
    pub role: MemberRole,
    pub reachable: bool,
    /// Milliseconds since it was last heard; none if it never was, or is this node.
    pub last_heard_ms: Option<u64>,
    /// Entries of the log that it does not have yet; only the leader knows.
    pub lag: Option<u64>,
    /// Since when it has this role, RFC 3339.
    pub since: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemberRole {
    Voter,
    Learner,
}

/// Founds a group anew from what one node holds of it, after more voters were lost than it survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CoordRecover {
    pub home: GroupHome,
    /// The node whose copy counts; the newest of those that answer by default.
    #[serde(default)]
    pub from: Option<String>,
    /// Without it nothing is done, and the answer says what would be.
    #[serde(default)]
    pub confirm: bool,
}

/// What a recovery costs, or has cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoverView {
    pub home: GroupHome,
    /// `NODE.SITE` whose copy counts.
    pub from: String,
    /// The last change in that copy.
    pub revision: u64,
    /// Entries beyond that copy which are known to have been acknowledged to clients: these are lost for certain. None if
    /// nobody who answers can know.
    pub acknowledged_elsewhere: Option<u64>,
    /// `NODE.SITE` of voters that lose their vote. What only they hold is lost.
    pub voters_given_up: Vec<String>,
    /// The same and whatever else may be lost, one phrase each.
    pub would: Vec<String>,
    /// Whether it was done.
    pub done: bool,
    /// Hash of the new founding record, once it was done.
    pub group: Option<String>,
}

/// Asks for all that a group holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CoordBackup {
    pub home: GroupHome,
}

/// The first line of a backup. What follows it is checked by the daemon that restores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupHeader {
    /// Id of the VDC.
    pub vdc: String,
    pub home: GroupHome,
    /// Hash of the group's founding record.
    pub group: String,
    /// The last change in it.
    pub revision: u64,
    pub keys: u64,
    /// How many bytes follow, about: for progress only.
    pub about_bytes: u64,
    /// RFC 3339.
    pub taken_at: String,
    /// `NODE.SITE` that wrote it.
    pub node: String,
}

/// Why a text is no first line of a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupHeaderError {
    #[error("it does not begin as a backup of a coordination group does")]
    NoBackup,
    #[error("its first line is longer than {BACKUP_HEADER_BYTES_MAX} bytes")]
    TooLong,
    #[error("its first line is damaged")]
    Damaged(#[source] serde_json::Error),
}

impl BackupHeader {
    /// The line, with its line feed.
    ///
    /// # Errors
    /// If it is longer than [`BACKUP_HEADER_BYTES_MAX`], which no names of nodes and sites make it.
    pub fn to_line(&self) -> Result<String, BackupHeaderError> {
        let header = serde_json::to_string(self).map_err(BackupHeaderError::Damaged)?;
        let line = format!("{BACKUP_MAGIC}{header}\n");
        if line.len() > BACKUP_HEADER_BYTES_MAX { Err(BackupHeaderError::TooLong) } else { Ok(line) }
    }

    /// Reads the line at the beginning of `bytes` and says how long it is with its line feed; nothing if more bytes are
    /// needed to tell.
    ///
    /// # Errors
    /// If this is no beginning of a backup.
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, BackupHeaderError> {
        let begins = bytes.len().min(BACKUP_MAGIC.len());
        if bytes[..begins] != BACKUP_MAGIC.as_bytes()[..begins] {
            return Err(BackupHeaderError::NoBackup);
        }
        let looked = &bytes[..bytes.len().min(BACKUP_HEADER_BYTES_MAX)];
        let Some(end) = looked.iter().position(|byte| *byte == b'\n') else {
            return if looked.len() < BACKUP_HEADER_BYTES_MAX { Ok(None) } else { Err(BackupHeaderError::TooLong) };
        };
        let header = serde_json::from_slice(&bytes[BACKUP_MAGIC.len()..end]).map_err(BackupHeaderError::Damaged)?;
        Ok(Some((header, end + 1)))
    }
}

/// Replaces all that a group holds by what a backup holds: the request's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RestoreQuery {
    /// `vdc` or `site:NAME`.
    #[serde(with = "home_text")]
    #[param(value_type = String)]
    pub home: GroupHome,
    /// Also where the group has changes that the backup does not have.
    #[serde(default)]
    pub force: bool,
}

impl RestoreQuery {
    #[must_use]
    pub fn new(home: GroupHome) -> Self {
        Self { home, force: false }
    }
}

/// How a restore went. The group's revision never goes back: what was restored stands at a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreView {
    pub home: GroupHome,
    /// The group's revision afterwards.
    pub revision: u64,
    /// Keys that it holds afterwards.
    pub keys: u64,
    /// Why nothing was restored; `force` overrides it.
    pub refused: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_have_two_forms() {
        for (home, text, json) in [
            (GroupHome::Vdc, "vdc", r#""vdc""#),
            (GroupHome::Site("berlin".into()), "site:berlin", r#"{"site":"berlin"}"#),
        ] {
            assert_eq!(home.to_string(), text);
            assert_eq!(text.parse(), Ok(home.clone()));
            assert_eq!(serde_json::to_string(&home).expect("plain"), json);
            assert_eq!(serde_json::from_str::<GroupHome>(json).expect("valid"), home);
            let query = RestoreQuery::new(home);
            let value = serde_json::to_value(&query).expect("plain");
            assert_eq!(value, serde_json::json!({"home": text, "force": false}));
            assert_eq!(serde_json::from_value::<RestoreQuery>(value).expect("valid"), query);
        }
        for text in ["", "site", "site:", "vdc:acme", "berlin", "Site:berlin", &"x".repeat(1_000)] {
            let error = text.parse::<GroupHome>().expect_err("no home").to_string();
            assert!(error.len() < 200, "{error}");
        }
    }

    #[test]
    fn header_is_read_from_its_first_bytes_on() {
        let header = crate::samples::backup_header();
        let line = header.to_line().expect("short");
        assert!(line.starts_with("meshd-coord-backup/1 {") && line.ends_with("}\n"), "{line}");
        for cut in 0..line.len() {
            assert!(BackupHeader::read(&line.as_bytes()[..cut]).expect("so far so good").is_none(), "{cut}");
        }
        let whole = [line.as_bytes(), b"rows"].concat();
        assert_eq!(BackupHeader::read(&whole).expect("whole"), Some((header, line.len())));
    }

    #[test]
    fn what_is_no_header_is_refused_early() {
        for (bytes, expected) in [
            (b"{".to_vec(), "does not begin"),
            (b"meshd-coord-backup/2 {}\n".to_vec(), "does not begin"),
            (b"meshd-coord-backup/1 {}\n".to_vec(), "damaged"),
            (b"meshd-coord-backup/1 \xff\n".to_vec(), "damaged"),
            ([BACKUP_MAGIC.as_bytes(), &[b' '; BACKUP_HEADER_BYTES_MAX]].concat(), "longer"),
        ] {
            let error = BackupHeader::read(&bytes).expect_err("no header").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let long = BackupHeader { node: "n".repeat(BACKUP_HEADER_BYTES_MAX), ..crate::samples::backup_header() };
        assert!(matches!(long.to_line(), Err(BackupHeaderError::TooLong)));
    }

    #[test]
    fn trouble_is_what_needs_somebody() {
        let serving = crate::samples::coord_status().groups.swap_remove(1);
        assert!(!serving.is_troubled());
        for state in [GroupState::ReadOnly, GroupState::NoLeader, GroupState::Refused] {
            assert!(GroupView { state, ..serving.clone() }.is_troubled(), "{state:?}");
        }
        let below = RedundancyView { below_table: true, ..serving.redundancy.clone() };
        assert!(GroupView { redundancy: below, ..serving.clone() }.is_troubled());
        // One box alone has no redundancy and can have none.
        let alone = RedundancyView { level: RedundancyLevel::None, ..serving.redundancy.clone() };
        assert!(!GroupView { redundancy: alone, ..serving }.is_troubled());
    }
}
