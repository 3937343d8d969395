//! The workloads of this node: what the VDC is told of them, and what the box itself does at once.
//!
//! Whoever runs workloads says again and again which ones there are ([`CoreHandle::set_workloads`]). Names and the policy
//! table follow at once. The signed record follows a moment later, and only if it says something else then: it is all that
//! other nodes know. Until somebody has said so after a start, what the last record says holds: workloads outlive the
//! daemon.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use meshd_firewall::LocalWorkload;
use tokio::sync::oneshot;
use vdc::address::WORKLOAD_MIN;
use vdc::policy::Model;
use vdc::record::{PortRange, WorkloadExposure};
use vdc::roster::{MemberView, NameHolder, issue};
use vdc::{Name, NodePrefix};
use vdc_api::{ApiError, ErrorCode};

use super::commands::not_a_member;
use super::exposure::normalised;
use super::issuing::Signer;
use super::{Core, CoreHandle};
use crate::error::unavailable;

/// How long workloads that come and go together are waited for before the record is signed.
const RECORD_DELAY: Duration = Duration::from_millis(200);

/// A workload that runs on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoreWorkload {
    /// Unique on the node. One without a name is in no record and has no DNS name; its ports are open all the same.
    pub(crate) name: Option<Name>,
    /// Inside the node's prefix, at [`WORKLOAD_MIN`] or higher.
    pub(crate) v6: Ipv6Addr,
    /// Inside the node's block.
    pub(crate) v4: Option<Ipv4Addr>,
    /// What it declares to the VDC.
    pub(crate) ports: Vec<PortRange>,
    /// Count only if the node's own grant carries them.
    pub(crate) labels: Vec<Name>,
    /// Its own ports that the host publishes to the world outside the VDC.
    pub(crate) published: Vec<PortRange>,
}

/// What the core keeps of them.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    /// None until somebody has said so since the start.
    told: Option<Vec<CoreWorkload>>,
    /// When the record is looked at.
    pub(super) record_due: Option<Instant>,
}

/// Tells when the policy table that was wanted is in the kernel, or why it is not.
pub(super) type Loaded = oneshot::Receiver<Result<(), String>>;

/// A list of workloads that the VDC's task has taken: names have it, the kernel's policy table is about to.
#[must_use]
#[derive(Debug)]
pub(crate) struct Known(Option<Loaded>);

impl Known {
    /// Waits until the policy table is loaded.
    ///
    /// # Errors
    /// If it was not; it is tried again by itself.
    pub(crate) async fn loaded(self) -> Result<(), ApiError> {
        let Some(loaded) = self.0 else { return Ok(()) };
        loaded.await.map_err(|_| unavailable())?.map_err(|why| {
            ApiError::new(ErrorCode::System, "the policy table with this node's workloads was not loaded").cause(why)
        })
    }
}

impl CoreHandle {
    /// Replaces what is known of this node's workloads; what is not in the list does not run. The list that is sent last
    /// counts.
    ///
    /// # Errors
    /// If the list is not one that a node can have, or the VDC is not served: then nothing is changed.
    ///
    /// # Cancel safety
    /// Once sent, the list counts whether or not the future is dropped.
    pub(crate) async fn set_workloads(&self, workloads: Vec<CoreWorkload>) -> Result<Known, ApiError> {
        self.with(|core| core.set_workloads(workloads)).await?.map(Known)
    }

    /// Whether a workload of this node may be called so: no node of the site is, and no workload of another node. If
    /// not, who is.
    ///
    /// # Errors
    /// If this node is no member (any more), or the VDC is not served.
    pub(crate) async fn name_is_free(&self, name: &Name) -> Result<Result<(), NameHolder>, ApiError> {
        let name = name.clone();
        self.with(move |core| {
            let own = core.own().ok_or_else(not_a_member)?;
            Ok(core.view.name_holder(&own.node, own.site, &name).map_or(Ok(()), Err))
        })
        .await?
    }
}

impl Core {
    fn set_workloads(&mut self, workloads: Vec<CoreWorkload>) -> Result<Option<Loaded>, ApiError> {
        let own = self.own().ok_or_else(not_a_member)?;
        check(&workloads, own)?;
        let (ports, entries) = (own.ports().to_vec(), entries(&workloads));
        issue::exposure(&self.view, &own.node, ports, entries)
            .map_err(|error| ApiError::bad_request("workloads", error.to_string()))?;
        if self.workloads.told.as_ref() != Some(&workloads) {
            self.workloads.told = Some(workloads);
            self.refresh();
            if self.is_record_old() {
                self.workloads.record_due.get_or_insert_with(|| Instant::now() + RECORD_DELAY);
            }
        }
        Ok(self.firewall_loaded())
    }

    /// What the record should say of this node's workloads.
    pub(super) fn exposed_workloads(&self) -> Vec<WorkloadExposure> {
        match &self.workloads.told {
            Some(told) => entries(told),
            None => self.recorded_workloads().to_vec(),
        }
    }

    fn recorded_workloads(&self) -> &[WorkloadExposure] {
        self.own().and_then(MemberView::exposure).map_or(&[], |exposure| &exposure.workloads)
    }

    fn is_record_old(&self) -> bool {
        let is_member = self.own().is_some_and(|own| own.standing.is_reachable());
        is_member && self.exposed_workloads() != self.recorded_workloads()
    }

    /// Signs what this node's workloads are, if the last record says something else.
    pub(super) fn publish_workloads(&mut self) {
        self.workloads.record_due = None;
        if !self.is_record_old() {
            return;
        }
        let Some(ports) = self.own().map(|own| own.ports().to_vec()) else { return };
        let entries = self.exposed_workloads();
        let published =
            self.publish(Signer::Node, |view, key| issue::exposure(view, key, ports.clone(), entries.clone()));
        if let Err(error) = published {
            // Tried again by the next housekeeping.
            tracing::warn!(vdc = %self.alias, %error, "the record of this node's workloads was not renewed");
        }
    }

    /// The view knows this node's workloads from the node itself.
    pub(super) fn tell_view_of_workloads(&self, view: &mut vdc::roster::View) {
        if let Some(told) = &self.workloads.told {
            view.set_workloads(&self.own_key(), &entries(told));
        }
    }

    /// The workloads that the policy table has to know: one without a name, a port and a label is judged like any other
    /// address of the node.
    pub(super) fn local_workloads(&self) -> Vec<LocalWorkload> {
        let Some(own) = self.own() else { return vec![] };
        let told = self.workloads.told.as_deref().unwrap_or_default();
        let published = |v6| told.iter().find(|w| w.v6 == v6).map(|w| w.published.clone()).unwrap_or_default();
        let named = own.workloads.iter().map(|w| LocalWorkload {
            name: Some(w.name.clone()),
            v6: w.v6,
            v4: w.ipv4,
            labels: w.labels.clone(),
            declared: w.ports.clone(),
            published: published(w.v6),
        });
        let nameless = told.iter().filter(|w| w.name.is_none() && is_own(w, own)).map(|w| LocalWorkload {
            name: None,
            v6: w.v6,
            v4: w.v4.filter(|v4| own.ipv4.is_some_and(|block| block.is_for_workloads(*v4))),
            labels: w.labels.iter().filter(|label| own.labels.contains(label)).cloned().collect(),
            declared: normalised(&w.ports),
            published: w.published.clone(),
        });
        let is_told_apart = |w: &LocalWorkload| {
            w.name.is_some() || !(w.labels.is_empty() && w.declared.is_empty() && w.published.is_empty())
        };
        let mut locals: Vec<LocalWorkload> = named.chain(nameless).filter(is_told_apart).collect();
        locals.sort_by_key(|w| w.v6);
        locals
    }

    /// What decides about flows, this node's workloads without a name included.
    pub(super) fn model(&self) -> Option<Model> {
        let mut model = self.view.model()?;
        let own = self.own_key();
        let host = model.hosts().find(|s| s.node == own).cloned();
        if let Some(host) = host {
            let nameless = self.local_workloads().into_iter().filter(|w| w.name.is_none());
            model.subjects.extend(nameless.map(|w| w.subject(&host)));
        }
        Some(model)
    }
}

/// Whether the workload's address is this node's to give. The prefix of a node that was admitted anew may be another.
fn is_own(workload: &CoreWorkload, own: &MemberView) -> bool {
    own.prefix.contains(workload.v6) && offset(workload.v6) >= WORKLOAD_MIN
}

fn offset(address: Ipv6Addr) -> u32 {
    let [.., a, b, c, d] = address.octets();
    u32::from_be_bytes([a, b, c, d])
}

/// What a record says of those that have a name.
fn entries(workloads: &[CoreWorkload]) -> Vec<WorkloadExposure> {
    let mut entries: Vec<WorkloadExposure> = workloads
        .iter()
        .filter_map(|w| {
            let labels: BTreeSet<Name> = w.labels.iter().cloned().collect();
            Some(WorkloadExposure {
                name: w.name.clone()?,
                offset: offset(w.v6),
                ipv4: w.v4,
                ports: normalised(&w.ports),
                labels: labels.into_iter().collect(),
            })
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

/// What can be wrong with a list that the record's own limits do not tell.
fn check(workloads: &[CoreWorkload], own: &MemberView) -> Result<(), ApiError> {
    let wrong = |index: usize, why: String| Err(ApiError::bad_request(&format!("workloads[{index}]"), why));
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (index, workload) in workloads.iter().enumerate() {
        if !is_own(workload, own) {
            let prefix: NodePrefix = own.prefix;
            return wrong(index, format!("{} is no address for a workload in {prefix}", workload.v6));
        }
        if let Some(v4) = workload.v4
            && !own.ipv4.is_some_and(|block| block.is_for_workloads(v4))
        {
            return wrong(index, format!("{v4} is no address for a workload of this node"));
        }
        let mut is_new = addresses.insert(std::net::IpAddr::from(workload.v6));
        is_new &= workload.v4.is_none_or(|v4| addresses.insert(v4.into()));
        if !is_new {
            return wrong(index, format!("{} or its IPv4 address is another workload's", workload.v6));
        }
        if let Some(name) = &workload.name
            && !names.insert(name)
        {
            return wrong(index, format!("two workloads are called {name}"));
        }
        if workload.ports.iter().chain(&workload.published).any(|range| range.last < range.first) {
            return wrong(index, "an empty range of ports".into());
        }
    }
    Ok(())
}

#[cfg(test)]
impl Core {
    /// What the name server is told.
    pub(crate) fn names_served(&self) -> std::collections::BTreeMap<String, Vec<std::net::IpAddr>> {
        super::names::hosts(&self.view)
    }

    /// Another one for each policy table that was compiled.
    pub(crate) fn firewall_generation(&self) -> u32 {
        self.firewall_state.generation
    }

    /// As after a start.
    pub(crate) fn forget_workloads(&mut self) {
        self.workloads = Workloads::default();
        self.refresh();
    }

    /// Whether the record is about to be signed again.
    pub(crate) fn is_record_due(&self) -> bool {
        self.workloads.record_due.is_some()
    }
}
