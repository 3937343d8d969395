//! Who may reach what: exposed ports, blocks, and the explanation of a verdict.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Declares and withdraws ports at which this host may be reached in the VDC, in one change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExposureChange {
    /// [`crate::PortSpec`] texts.
    #[serde(default)]
    #[schema(example = json!(["80/tcp", "8000-8010/udp"]))]
    pub add: Vec<String>,
    #[serde(default)]
    pub remove: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExposureList {
    /// Local name of the VDC.
    pub vdc: String,
    /// This node first, then the others that declared something or have workloads.
    pub exposures: Vec<ExposureView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExposureView {
    pub node: String,
    pub site: String,
    pub fqdn: String,
    pub local: bool,
    /// Of the host. Ascending.
    pub ports: Vec<String>,
    /// The node's workloads that have a name, ascending by it.
    #[serde(default)]
    pub workloads: Vec<ExposedWorkload>,
    /// The exposure record, if one was ever signed.
    pub record: Option<RecordView>,
}

/// A workload that its node makes known to the VDC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExposedWorkload {
    pub name: String,
    /// `WORKLOAD.SITE.VDC.internal`, or `WORKLOAD.NODE.SITE.VDC.internal` if the short name is somebody else's.
    #[schema(example = "web.berlin.acme.internal")]
    pub fqdn: String,
    pub ipv6: String,
    pub ipv4: Option<String>,
    /// What it may be reached at. Ascending.
    pub ports: Vec<String>,
    /// Those of its labels that count: its node must have been granted them.
    pub labels: Vec<String>,
}

/// Signs a block: deny-only, works with the rest of the VDC out of reach, lasts until lifted. What is absent matches
/// everything; at least one of `from`, `to`, `port` must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockCreate {
    /// Node that may no longer open flows.
    pub from: Option<String>,
    /// Node to which flows are denied.
    pub to: Option<String>,
    /// [`crate::PortSpec`] text.
    pub port: Option<String>,
    /// For the audit log, at most 200 bytes.
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockList {
    /// Local name of the VDC.
    pub vdc: String,
    /// Active ones.
    pub blocks: Vec<BlockView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockView {
    /// 64 hexadecimal digits; the first few are enough to lift it.
    pub id: String,
    pub from: Option<String>,
    pub to: Option<String>,
    pub port: Option<String>,
    pub reason: String,
    pub lifted: bool,
    pub record: RecordView,
}

/// Asks how a flow would be judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// Node (name, `NAME.SITE`, key prefix), workload (`WORKLOAD.SITE`, `WORKLOAD.NODE.SITE`) or overlay address.
    pub source: String,
    pub destination: String,
    /// [`crate::FlowSpec`] text: `80`, `53/udp`, `icmp`.
    pub flow: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub vdc: String,
    pub allowed: bool,
    pub source: PartyView,
    pub destination: PartyView,
    /// [`crate::FlowSpec`] text in full: `80/tcp`.
    pub flow: String,
    /// The record that decided; none if nobody owns an address.
    pub decided_by: Option<RecordView>,
    /// One lower-case phrase.
    pub reason: String,
    /// The steps of the judgement in order.
    pub steps: Vec<ExplainStep>,
    /// How the verdict could be changed, if somebody wanted to.
    pub hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartyView {
    /// As it was asked for.
    pub asked: String,
    /// None if no reachable member is meant.
    pub node: Option<String>,
    /// What of the node is meant.
    #[serde(default)]
    pub kind: PartyKind,
    /// The workload's name, if it has one that is known.
    #[serde(default)]
    pub workload: Option<String>,
    pub site: Option<String>,
    pub address: Option<String>,
    /// None of a workload.
    pub roles: Vec<String>,
    pub labels: Vec<String>,
}

/// What of a node a flow comes from or goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PartyKind {
    #[default]
    Host,
    Workload,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainStep {
    /// What was looked at.
    #[schema(example = "block records")]
    pub title: String,
    pub verdict: StepVerdict,
    /// What was found.
    pub detail: String,
    pub record: Option<RecordView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepVerdict {
    /// Decided nothing; the next step looks further.
    Continue,
    Allow,
    Deny,
}

/// Which signed record it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecordView {
    /// `genesis`, `delegation`, `site`, `member`, `grant`, `contact`, `exposure`, `tombstone`, `block`, `policy`,
    /// `founding`.
    pub kind: String,
    /// The first 16 hexadecimal digits of its hash.
    pub hash: String,
    /// Name of the node that signed it, or the first digits of the key if that is no node (any more).
    pub issuer: String,
    /// The issuer's number of it.
    pub number: u64,
}
