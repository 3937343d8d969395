//! The daemon itself: version, health, problems.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Release of the daemon.
    #[schema(example = "0.1.0")]
    pub daemon: String,
    /// Commit that it was built from, where the build knew it.
    pub commit: Option<String>,
    /// Version of this API.
    #[schema(example = "v1")]
    pub api: String,
}

/// Whether the daemon does its work, in one word and a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub state: HealthState,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    pub problems: Vec<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    Ok,
    /// Works, with problems of severity `degraded`.
    Degraded,
    /// Does not serve its VDCs.
    Failing,
}

/// Something that an operator should know, and what to do about it. It stays listed for as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    pub code: ProblemCode,
    pub severity: ProblemSeverity,
    /// One lower-case phrase with the figures.
    #[schema(example = "this node's clock is 412 s behind its peers")]
    pub message: String,
    /// What to do, often a command.
    pub hint: Option<String>,
    /// Local name of the VDC concerned; none if it is the node as a whole.
    pub vdc: Option<String>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemSeverity {
    /// Everything works; something would be better otherwise.
    Warning,
    /// Something does not work, or will soon stop working.
    Degraded,
}

/// What kind of problem it is. Codes keep their meaning for ever; new ones may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// The clock differs from the peers' by more than 5 minutes.
    ClockSkew,
    /// The clock went back behind what this node already recorded.
    ClockBehindRecords,
    /// No registrar of this site can be reached or exists: nobody is admitted or renewed.
    NoRegistrar,
    /// The membership is past its renewal deadline.
    MembershipInGrace,
    MembershipExpired,
    MembershipRevoked,
    /// The roster was not compared with any other member for too long.
    RosterOld,
    /// Private keys lie unsealed on disk.
    KeysInClear,
    /// No member answers; after a change of every address one must be named by hand.
    NoPeerReachable,
    /// Nobody outside this site can open a connection to this node.
    NotReachableFromOutside,
    /// UDP segmentation or receive offload is not there; throughput suffers.
    OffloadsOff,
    /// Names of the VDC do not resolve on this host without further setup.
    DnsNotIntegrated,
    /// The state directory cannot be written.
    StateNotWritable,
    /// Signed records contradict each other (equal serials, one name twice).
    RecordConflict,
    /// This node is the only one, or the only one that can do what others depend on: nothing replaces it.
    NoRedundancy,
    /// A coordination group survives less than the boxes that there are would allow.
    CoordinationReduced,
    /// A coordination group takes no changes: too few of its voters answer, or this node refuses to serve it.
    CoordinationStopped,
    /// A VDC of this node is on disk and could not be brought up.
    VdcNotServed,
    /// A part of the daemon stopped and is being restarted.
    PartRestarting,
    /// A code of a newer version.
    #[serde(other)]
    Other,
}
