//! The API's operations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, FuturesUnordered};
use meshd_control::{CallError, RequestError};
use meshd_web::{Backend, Call, CoordBackend, Items, Pipe};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use vdc::peer::{Request, Response};
use vdc::sync::{Message, Packed};
use vdc::{Ipv4Block, Name};
use vdc_api::{self as api, ApiError, ErrorCode};

use super::{Daemon, IN_USE_FILE, invites, metrics, pinging, remote};
use crate::clock::system_time;
use crate::data_plane::DataPlane;
use crate::entropy::random;
use crate::events;
use crate::joining::{self, Progress};
use crate::ping::Pinger;
use crate::vdc_core::{
    Core, CoreHandle, Revoked, Wish, chain, found, id_of, parse_name, parse_owner_key, print_owner_key,
};

/// How long a revocation waits for members to confirm it before it answers.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `connect` waits for a link: a TCP handshake is given up after 10 s, and so is the hello after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(21);
/// How long `renew` waits: for the dial of a registrar, and for its answers.
const RENEW_TIMEOUT: Duration = Duration::from_secs(25);
/// Failed attempts that an error of `connect` lists.
const CAUSES_MAX: usize = 6;
/// Progress events that may wait for a slow client.
const PROGRESS_MAX: usize = 64;
/// Bits of the default IPv4 range of a VDC: room for 64 sites of 256 nodes.
const IPV4_RANGE_LENGTH: u8 = 14;

/// The daemon as the API sees it.
#[derive(Clone, Debug)]
pub(super) struct Operations(pub(super) Arc<Daemon>);

impl std::ops::Deref for Operations {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

#[async_trait]
impl Backend for Operations {
    async fn version(&self) -> Result<api::Version, ApiError> {
        Ok(version())
    }

    async fn health(&self) -> Result<api::Health, ApiError> {
        let status = self.status(api::StatusQuery::default()).await?;
        let failing = status.vdcs.is_empty() && !status.not_served.is_empty();
        let mut problems = status.problems;
        problems.extend(status.vdcs.into_iter().flat_map(|vdc| vdc.problems));
        let degraded = problems.iter().any(|p| p.severity == api::ProblemSeverity::Degraded);
        let state = match (failing, degraded) {
            (true, _) => api::HealthState::Failing,
            (false, true) => api::HealthState::Degraded,
            (false, false) => api::HealthState::Ok,
        };
        Ok(api::Health { state, uptime_s: status.uptime_s, problems })
    }

    async fn status(&self, query: api::StatusQuery) -> Result<api::Status, ApiError> {
        let handles = match &query.vdc {
            Some(vdc) => match self.find_not_served(vdc).await {
                Some(_) => vec![],
                None => vec![self.find(vdc).await?],
            },
            None => self.handles().await,
        };
        let not_served = self.not_served.read().await;
        let meant = |alias: &Name| query.vdc.as_deref().is_none_or(|vdc| vdc == alias.as_str());
        let failed: Vec<_> = not_served.iter().filter(|(alias, _)| meant(alias)).collect();
        let problems = failed.iter().map(|(alias, failed)| failed.problem(alias)).collect();
        let views = failed.iter().map(|(alias, failed)| failed.view(alias)).collect();
        drop(not_served);
        let mut vdcs = vec![];
        for handle in handles {
            let dns = self.shared.dns.view(handle.alias().as_str()).await;
            vdcs.push(handle.with(move |core| core.status(dns)).await??);
        }
        Ok(api::Status {
            version: version(),
            uptime_s: self.started.elapsed().as_secs(),
            now: system_time().to_string(),
            vdcs,
            not_served: views,
            problems,
        })
    }

    async fn events(&self, query: api::EventsQuery) -> Result<api::EventList, ApiError> {
        Ok(api::EventList { events: self.shared.events.list(&query) })
    }

    async fn events_stream(&self, query: api::EventsQuery) -> Result<Items<api::EventView>, ApiError> {
        let (kept, receiver) = self.shared.events.subscribe(&query);
        let live = BroadcastStream::new(receiver).filter_map(move |event| {
            let wanted = event.ok().filter(|event| events::matches(event, &query)); // a gap shows in the numbers
            async move { wanted }
        });
        Ok(stream::iter(kept).chain(live).map(Ok).boxed())
    }

    async fn metrics(&self) -> Result<String, ApiError> {
        let status = self.status(api::StatusQuery::default()).await?;
        Ok(metrics::render(&status, &self.fabric.counters()))
    }

    async fn vdc_list(&self) -> Result<api::VdcList, ApiError> {
        let mut vdcs = vec![];
        for handle in self.handles().await {
            vdcs.push(handle.with(|core| core.vdc_view()).await?);
        }
        let not_served = self.not_served.read().await.iter().map(|(alias, failed)| failed.view(alias)).collect();
        Ok(api::VdcList { vdcs, not_served })
    }

    async fn vdc_create(&self, _: &Call, request: api::VdcCreate) -> Result<api::VdcCreated, ApiError> {
        let _guard = self.membership.lock().await;
        let node = match &request.node {
            Some(text) => parse_name("node", text)?,
            None => host_name(),
        };
        let ipv4 = match request.ipv4.as_deref() {
            Some("none") => None,
            Some(text) => Some(
                text.parse().map_err(|e: vdc::address::Ipv4BlockError| ApiError::bad_request("ipv4", e.to_string()))?,
            ),
            None => default_ipv4(),
        };
        let (name, site) = (parse_name("name", &request.name)?, parse_name("site", &request.site)?);
        let wish = Wish { name: name.clone(), site, node, ipv4, now: system_time() };
        let new = found(&self.state, wish)?;
        let handle = match self.serve(new.dir).await {
            Ok(handle) => handle,
            Err(error) => {
                // Nobody has seen the recovery key yet: served later, this would be a VDC without one.
                self.discard(&name, new.id).await;
                return Err(error);
            }
        };
        let node = handle.with(|core| core.own_node()).await??;
        let vdc = handle.with(|core| core.vdc_view()).await?;
        let text = format!("VDC {} was created", vdc.name);
        self.shared.events.push(api::Severity::Info, "vdc-created", Some(&vdc.name), None, text);
        Ok(api::VdcCreated {
            vdc,
            node: node.name,
            site: node.site,
            fqdn: node.fqdn,
            addresses: node.addresses,
            recovery_key: api::RecoveryKey {
                secret: print_owner_key(&new.recovery),
                public_key: new.recovery.public().to_string(),
                threshold: new.threshold,
                owners: new.owners,
                instructions: "Write this key down and put it into a safe, away from this box. It is shown once and kept \
                               nowhere. Whoever holds it owns the VDC: with it, control is regained when the owner key on \
                               this box is lost or stolen."
                    .into(),
            },
        })
    }

    async fn vdc_use(&self, _: &Call, vdc: &str) -> Result<api::VdcView, ApiError> {
        let chosen = self.find(vdc).await?;
        let alias = chosen.alias().clone();
        let path = self.shared.config.state_dir.join(IN_USE_FILE);
        meshd_state::write_durably(&path, format!("{alias}\n").as_bytes()).map_err(|e| crate::error::storage(&e))?;
        *self.in_use.lock().await = Some(alias.clone());
        // The one before gives its IPv4 routes up first: two VDCs may have the same ranges.
        for handle in self.handles().await.into_iter().filter(|handle| *handle.alias() != alias) {
            handle.with(|core| core.set_in_use(false)).await??;
        }
        chosen.with(|core| core.set_in_use(true)).await??;
        chosen.with(|core| core.vdc_view()).await
    }

    async fn join(&self, _: &Call, request: api::JoinRequest) -> Result<Items<api::JoinEvent>, ApiError> {
        let invite = joining::parse(&request.token)?;
        let alias = match &request.name {
            Some(text) => parse_name("name", text)?,
            None => invite.vdc_name.clone(),
        };
        let node_name = match &request.node {
            Some(text) => parse_name("node", text)?,
            None => host_name(),
        };
        let (sender, receiver) = mpsc::channel(PROGRESS_MAX);
        let daemon = Arc::clone(&self.0);
        let progress = Progress::new(sender);
        // The join is carried on to its end by the stream, which the server drains even if the client goes away.
        let work = stream::once(async move {
            let started = Instant::now();
            let join = Box::pin(daemon.join_to_the_end(&invite, &alias, node_name, &progress, started));
            match join.await {
                Ok(joined) => progress.tell(api::JoinEvent::Joined(Box::new(joined))).await,
                Err(error) => progress.fail(error).await,
            }
        })
        .filter_map(|()| async { None });
        Ok(stream::select(ReceiverStream::new(receiver), work).boxed())
    }

    async fn leave(&self, _: &Call, vdc: &str, request: api::LeaveRequest) -> Result<api::Left, ApiError> {
        let _guard = self.membership.lock().await;
        if request.force
            && let Some(alias) = self.find_not_served(vdc).await
        {
            return self.forget(&alias).await;
        }
        let handle = self.find(vdc).await?;
        let alias = handle.alias().clone();
        let mut notes = match handle.coord() {
            Some(coord) => coord.hand_over().await,
            None => vec![],
        };
        let (node, members, confirmed, unconfirmed) = match handle.with(move |core| core.leave(request.force)).await? {
            Ok(gone) => {
                let (confirmed, unconfirmed) = spread(&handle, &gone).await;
                if confirmed == 0 && !gone.members.is_empty() {
                    notes.push(format!(
                        "none of {} members could be told; revoke this node there with `meshctl node revoke {}`",
                        unconfirmed.len(),
                        gone.member.full_name()
                    ));
                }
                (gone.member.full_name(), gone.members.len(), confirmed, unconfirmed)
            }
            Err(error) if request.force => {
                notes.push(format!("left without a word to the others: {error}"));
                (handle.with(|core| core.own_key().short()).await?, 0, 0, vec![])
            }
            Err(error) => return Err(error),
        };
        let unconfirmed = handle.with(move |core| core.names(&unconfirmed)).await?;
        self.unserve(&alias).await?;
        self.vdc_dir(&alias)?.remove().map_err(|error| crate::error::storage(&error))?;
        let text = format!("this node left VDC {alias}");
        self.shared.events.push(api::Severity::Info, "left", Some(alias.as_str()), None, text);
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        Ok(api::Left { vdc: alias.to_string(), node, confirmed, members, unconfirmed, notes })
    }

    async fn renew(&self, _: &Call, vdc: &str) -> Result<api::Renewed, ApiError> {
        let handle = self.find(vdc).await?;
        let before = handle.with(|core| core.renew_now()).await??;
        let deadline = Instant::now() + RENEW_TIMEOUT;
        loop {
            let state = handle.with(move |core| core.renewed_since(before)).await??;
            match state {
                Some(renewed) => return Ok(renewed),
                None if Instant::now() > deadline => {
                    return Err(ApiError::new(ErrorCode::Timeout, "no registrar answered in time")
                        .hint("`meshctl status` shows why; renewal goes on by itself"));
                }
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn node_list(&self, vdc: &str) -> Result<api::NodeList, ApiError> {
        self.find(vdc).await?.with(|core| core.node_list()).await
    }

    async fn node_show(&self, vdc: &str, node: &str) -> Result<api::NodeView, ApiError> {
        let node = node.to_owned();
        self.find(vdc).await?.with(move |core| core.node_show(&node)).await?
    }

    async fn node_revoke(
        &self,
        _: &Call,
        vdc: &str,
        node: &str,
        request: api::NodeRevoke,
    ) -> Result<api::NodeRevoked, ApiError> {
        let handle = self.find(vdc).await?;
        let (node, reason) = (node.to_owned(), request.reason.unwrap_or_default());
        if reason.len() > 200 {
            return Err(ApiError::bad_request("reason", "a reason has at most 200 bytes"));
        }
        let owner = self.owner_key(&handle, request.owner_key).await?;
        let keep_through = request.keep_through;
        let work = move |core: &mut Core| core.as_owner(owner, |core| core.revoke(&node, &reason, keep_through));
        let revoked = handle.with(work).await??;
        let (confirmed, unconfirmed) = spread(&handle, &revoked).await;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(api::NodeRevoked {
            node: revoked.member.name.to_string(),
            site: revoked.member.site_name.to_string(),
            key: revoked.member.node.to_string(),
            record: revoked.record,
            confirmed: count(confirmed as usize),
            members: count(revoked.members.len()),
            unconfirmed: handle.with(move |core| core.names(&unconfirmed)).await?,
            void: revoked.void,
            notes: revoked.notes,
        })
    }

    async fn grant(
        &self,
        _: &Call,
        vdc: &str,
        node: &str,
        change: api::GrantChange,
    ) -> Result<api::NodeView, ApiError> {
        let (handle, node, mut change) = (self.find(vdc).await?, node.to_owned(), change);
        let owner = self.owner_key(&handle, change.owner_key.take()).await?;
        handle.with(move |core| core.as_owner(owner, |core| core.grant_any(&node, &change))).await?
    }

    async fn node_issued(&self, vdc: &str, node: &str, query: api::IssuedQuery) -> Result<api::IssuedList, ApiError> {
        let node = node.to_owned();
        self.find(vdc).await?.with(move |core| core.issued(&node, query.keep_through)).await?
    }

    async fn vdc_recover(&self, _: &Call, vdc: &str, request: api::VdcRecover) -> Result<api::VdcRecovered, ApiError> {
        let handle = self.find(vdc).await?;
        let owner = self.owner_key(&handle, request.owner_key).await?;
        let done = handle.with(move |core| core.as_owner(owner, |core| core.recover(request.registrar))).await??;
        handle.with(move |core| core.recovered(done)).await?
    }

    async fn peers(&self, vdc: &str) -> Result<api::PeerList, ApiError> {
        self.find(vdc).await?.with(|core| core.peers()).await
    }

    async fn connect(&self, _: &Call, vdc: &str, request: api::ConnectRequest) -> Result<api::Connected, ApiError> {
        let handle = self.find(vdc).await?;
        let started = Instant::now();
        let addresses = resolve(&request.address).await?;
        let control = handle.control();
        // Whoever is meant by the address alone must be found there.
        let there = request.node.is_none();
        let mut tries = FuturesUnordered::new();
        for address in addresses {
            let node = request.node.clone();
            let keys = handle.with(move |core| core.places_to_try(node.as_deref(), address)).await??;
            tries.extend(keys.into_iter().map(|key| control.connect(key, address, there, CONNECT_TIMEOUT)));
        }
        let mut causes: Vec<String> = vec![];
        let link = loop {
            match tries.next().await {
                Some(Ok(link)) => break link,
                Some(Err(RequestError { cause: CallError::Unreachable { attempts }, .. })) => {
                    causes.extend(attempts.iter().map(ToString::to_string));
                }
                Some(Err(error)) => causes.push(chain(&error)),
                None => {
                    causes.sort();
                    causes.dedup();
                    let error =
                        ApiError::new(ErrorCode::Unreachable, format!("no member answers at {}", request.address))
                            .hint("the port is that of the control plane (`meshctl status` shows it on the other box)");
                    return Err(causes.into_iter().take(CAUSES_MAX).fold(error, ApiError::cause));
                }
            }
        };
        let node = handle.with(move |core| core.node_show(&link.node.to_string())).await??;
        let transport = match link.transport {
            meshd_control::Transport::Quic => "quic",
            meshd_control::Transport::Tcp => "tcp",
        };
        Ok(api::Connected {
            node: node.name,
            site: node.site,
            key: node.key,
            address: link.address.to_string(),
            transport: transport.into(),
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn ping(&self, vdc: &str, query: api::PingQuery) -> Result<Items<api::PingEvent>, ApiError> {
        let handle = self.find(vdc).await?;
        let target = query.target.clone();
        let (source, destination, node) = handle.with(move |core| core.ping_route(&target)).await??;
        let (pinger, destination) = if query.infra {
            (None, node.addresses.infra.parse().unwrap_or(destination))
        } else {
            let pinger = Pinger::open(source, destination, u16::from_le_bytes(random()), query.size_bytes)
                .map_err(|error| crate::error::system("cannot open an ICMP socket", &error))?;
            (Some(pinger), destination)
        };
        Ok(pinging::events(handle, pinger, query, node, destination))
    }

    async fn invite_list(&self, vdc: &str) -> Result<api::InviteList, ApiError> {
        invites::list(&self.find(vdc).await?).await
    }

    async fn invite_create(
        &self,
        _: &Call,
        vdc: &str,
        request: api::InviteCreate,
    ) -> Result<api::InviteCreated, ApiError> {
        invites::create(&self.find(vdc).await?, request).await
    }

    async fn invite_revoke(&self, _: &Call, vdc: &str, invite: &str) -> Result<api::InviteView, ApiError> {
        invites::revoke(&self.find(vdc).await?, invite).await
    }

    fn coord(&self) -> Option<Arc<dyn CoordBackend>> {
        Some(Arc::new(self.clone()))
    }

    async fn site_list(&self, vdc: &str) -> Result<api::SiteList, ApiError> {
        self.find(vdc).await?.with(|core| core.site_list()).await
    }

    async fn site_add(&self, _: &Call, vdc: &str, request: api::SiteAdd) -> Result<api::SiteAdded, ApiError> {
        invites::add_site(&self.find(vdc).await?, request).await
    }

    async fn exposure_list(&self, vdc: &str) -> Result<api::ExposureList, ApiError> {
        self.find(vdc).await?.with(|core| core.exposure_list()).await
    }

    async fn exposure_change(
        &self,
        _: &Call,
        vdc: &str,
        change: api::ExposureChange,
    ) -> Result<api::ExposureView, ApiError> {
        self.find(vdc).await?.with(move |core| core.exposure_change(&change)).await?
    }

    async fn block_list(&self, vdc: &str) -> Result<api::BlockList, ApiError> {
        self.find(vdc).await?.with(|core| core.block_list()).await
    }

    async fn block_create(&self, _: &Call, vdc: &str, request: api::BlockCreate) -> Result<api::BlockView, ApiError> {
        self.find(vdc).await?.with(move |core| core.block_create(&request)).await?
    }

    async fn block_lift(&self, _: &Call, vdc: &str, block: &str) -> Result<api::BlockView, ApiError> {
        let block = block.to_owned();
        self.find(vdc).await?.with(move |core| core.block_lift(&block)).await?
    }

    async fn remote(&self, vdc: &str, on: &str) -> Result<Option<Pipe>, ApiError> {
        let handle = self.find(vdc).await?;
        remote::connect(&handle, on).await
    }

    async fn explain(&self, vdc: &str, query: api::ExplainQuery) -> Result<api::Explanation, ApiError> {
        self.find(vdc).await?.with(move |core| core.explain(&query)).await?
    }
}

impl Daemon {
    /// The owner key that came with a request, if it is one of this VDC's.
    async fn owner_key(
        &self,
        handle: &CoreHandle,
        text: Option<api::OwnerKey>,
    ) -> Result<Option<vdc::SigningKey>, ApiError> {
        let Some(text) = text else { return Ok(None) };
        let key = parse_owner_key(&text)?;
        let public = key.public();
        let Err(mut error) = handle.with(move |core| core.check_owner(&public)).await? else { return Ok(Some(key)) };
        for other in self.handles().await {
            if other.alias() != handle.alias() && other.with(move |core| core.check_owner(&public)).await?.is_ok() {
                error = error.cause(format!("it is an owner key of VDC {}", other.alias()));
                error = error.hint(format!("name that one with `--vdc {}`", other.alias()));
            }
        }
        Err(error)
    }

    /// Takes what is left of a VDC that cannot be served off this box, without a word to its members.
    async fn forget(&self, alias: &Name) -> Result<api::Left, ApiError> {
        let dir = self.vdc_dir(alias)?;
        // Where not even that can be read, the error of the next VDC of this name says which interface is in its way.
        if let Some(vdc) = id_of(&dir) {
            DataPlane::remove(alias, vdc).await?;
        }
        self.vdc_dir(alias)?.remove().map_err(|error| crate::error::storage(&error))?;
        self.not_served.write().await.remove(alias);
        let text = format!("this node forgot VDC {alias}, which it could not serve");
        self.shared.events.push(api::Severity::Info, "left", Some(alias.as_str()), None, text);
        let notes = vec!["left without a word to the others: revoke this node there with `meshctl node revoke`".into()];
        Ok(api::Left {
            vdc: alias.to_string(),
            node: String::new(),
            confirmed: 0,
            members: 0,
            unconfirmed: vec![],
            notes,
        })
    }

    async fn join_to_the_end(
        &self,
        invite: &vdc::invite::Invite,
        alias: &Name,
        node_name: Name,
        progress: &Progress,
        started: Instant,
    ) -> Result<api::Joined, ApiError> {
        let _guard = self.membership.lock().await;
        let vdc = invite.vdc;
        for handle in self.handles().await {
            if *handle.alias() == *alias || handle.with(move |core| core.is_of(&vdc)).await? {
                return joined_before(&handle, invite, started).await;
            }
        }
        let admitted = joining::admit(&self.state, invite, alias, node_name, progress).await?;
        let serve = Box::pin(self.serve(admitted.dir));
        let handle = progress.step("connect", "bring the network up", |_| None, serve).await?;
        let node = handle.with(|core| core.own_node()).await??;
        let vdc = handle.with(|core| core.vdc_view()).await?;
        let text = format!("this node joined as {}", node.fqdn);
        self.shared.events.push(api::Severity::Info, "joined", Some(alias.as_str()), None, text);
        let dns = self.shared.dns.view(&vdc.name).await;
        Ok(api::Joined {
            vdc,
            node: node.name,
            site: node.site,
            fqdn: node.fqdn,
            addresses: node.addresses,
            registrar: handle.with(move |core| core.names(&[admitted.registrar])).await?.concat(),
            already_member: admitted.already_member,
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            problems: handle.with(move |core| core.problems(&dns)).await?,
        })
    }
}

/// An IPv4 range in 10.0.0.0/8 that no route of this host uses, chosen at random so that two VDCs rarely share one.
fn default_ipv4() -> Option<Ipv4Block> {
    let taken = crate::data_plane::ipv4_routes();
    let whole: Ipv4Block = "10.0.0.0/8".parse().expect("a literal block");
    let start = u32::from(u8::from_le_bytes(random()));
    let mut candidates = (0..64).filter_map(|i| whole.sub_block(IPV4_RANGE_LENGTH, (start + i) % 64));
    candidates.find(|block| taken.iter().all(|other| !block.overlaps(*other)))
}

/// The node is in a VDC of this name, or in this VDC: the same membership again if it is by this token.
async fn joined_before(
    handle: &CoreHandle,
    invite: &vdc::invite::Invite,
    started: Instant,
) -> Result<api::Joined, ApiError> {
    let vdc = handle.with(|core| core.vdc_view()).await?;
    if vdc.id != invite.vdc.to_string() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("this node is in another VDC called {:?} already", vdc.name),
        )
        .hint("give this one another local name with --as NAME"));
    }
    let id = invite.id;
    handle.with(move |core| core.check_joined_by(&id)).await??;
    let node = handle.with(|core| core.own_node()).await??;
    Ok(api::Joined {
        vdc,
        node: node.name,
        site: node.site,
        fqdn: node.fqdn,
        addresses: node.addresses,
        registrar: node.membership.record.issuer,
        already_member: true,
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        problems: vec![],
    })
}

fn version() -> api::Version {
    api::Version { daemon: env!("CARGO_PKG_VERSION").into(), commit: None, api: "v1".into() }
}

/// The host's name as a node name: its first label, made to fit.
fn host_name() -> Name {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label: String = text
        .trim()
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(Name::LENGTH_MAX)
        .collect();
    let label = label.trim_start_matches(|c: char| !c.is_ascii_lowercase()).trim_end_matches('-').to_owned();
    Name::new(&label).or_else(|_| Name::new("node")).expect("a literal label")
}

/// Tells every member of a tombstone at once and counts who confirmed; the others learn it by sync.
async fn spread(handle: &CoreHandle, revoked: &Revoked) -> (u32, Vec<vdc::Key>) {
    let Some(record) = &revoked.signed else { return (0, revoked.members.clone()) };
    let message = Message::Records(vec![Packed::Shared(Arc::clone(record))]);
    let links = handle.control().links();
    let mut asked: FuturesUnordered<_> = revoked
        .members
        .iter()
        .filter(|key| links.iter().any(|link| link.node == **key))
        .map(|key| {
            let request = Request::Sync(message.clone());
            async move { (*key, handle.control().request(*key, request, CONFIRM_TIMEOUT).await) }
        })
        .collect();
    let by_itself = handle.control().node() == revoked.member.node;
    let mut confirmed = vec![];
    while let Some((key, answer)) = asked.next().await {
        match answer {
            Ok(Response::Done) => confirmed.push(key),
            Ok(_) => {}
            // Whoever is told by the subject itself cuts the link as soon as it believes it.
            Err(RequestError { cause: CallError::LinkLost | CallError::Broken(_), .. }) if by_itself => {
                confirmed.push(key)
            }
            Err(error) => tracing::debug!(peer = %key.short(), error = chain(&error), "not confirmed"),
        }
    }
    let unconfirmed = revoked.members.iter().copied().filter(|key| !confirmed.contains(key)).collect();
    (u32::try_from(confirmed.len()).unwrap_or(u32::MAX), unconfirmed)
}

/// The addresses that `HOST:PORT` means.
async fn resolve(text: &str) -> Result<Vec<SocketAddr>, ApiError> {
    let error = |why: String| {
        ApiError::bad_request("address", why).hint("use HOST:PORT, IPV4:PORT or [IPV6]:PORT of a member's control port")
    };
    let found = tokio::net::lookup_host(text).await.map_err(|e| error(format!("{text:?} is no address: {e}")))?;
    let found: Vec<SocketAddr> = found.take(8).collect();
    if found.is_empty() { Err(error(format!("{text:?} has no address"))) } else { Ok(found) }
}
