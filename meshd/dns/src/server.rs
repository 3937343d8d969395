//! Answering questions: UDP and TCP, from memory.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

use crate::forward::Forwarder;
use crate::{Answer, Zones};

/// Seconds that an answer may be cached: names follow a workload that moves.
const TTL_SECONDS: u32 = 5;
/// A TCP client that says nothing for so long is cut off.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// Responses that may wait on one TCP connection; a slower reader blocks only itself.
const TCP_RESPONSES_MAX: usize = 16;
/// The largest question that is taken over UDP, as told to those who speak EDNS: what needs no fragments on any path
/// (RFC 9715 §3). Answers rarely come near the 512 bytes of those who do not: a name, an address, an SOA.
const UDP_PAYLOAD_BYTES: u16 = 1_232;

/// Why the name server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot answer DNS at {address}: the port is in use by another name server")]
    PortInUse {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot answer DNS at {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Who is answered. The addresses of a VDC are the host's own, so its LAN neighbours reach them as well, and other VDCs'
/// members may be let in by policy: names of a VDC are told to neither.
#[derive(Clone, Debug)]
pub enum Audience {
    /// Programs of this host only: those whose packets come from a loopback address or from one that is listened at.
    ThisHost,
    /// Whoever reaches the address.
    Everyone,
    /// Workloads of one VDC: only names of `zone` (lower case, no final dot, as in [`Zones::names`]) are told, of other
    /// VDCs nothing; names of nobody here go to the upstreams.
    Workloads { zone: String, upstreams: Arc<Forwarder> },
}

impl Audience {
    /// Whether the answer is none of this audience's business.
    fn is_kept_from(&self, answer: &Answer<'_>) -> bool {
        let Self::Workloads { zone: own, .. } = self else { return false };
        match answer {
            Answer::Apex { zone } | Answer::Addresses { zone, .. } | Answer::NoSuchName { zone } => {
                zone != own && !zone.ends_with(".arpa")
            }
            Answer::Pointer { target, .. } => target.strip_suffix(own.as_str()).is_none_or(|host| !host.ends_with('.')),
            Answer::Foreign => false,
        }
    }
}

/// The zones that name servers answer from. A cheap handle: replaced by one, read by many.
#[derive(Clone, Debug, Default)]
pub struct ZonesHandle {
    zones: Arc<RwLock<Arc<Zones>>>,
}

impl ZonesHandle {
    /// Replaces everything that is known.
    pub fn replace(&self, zones: Zones) {
        *self.zones.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zones);
    }

    /// What is known at this moment.
    #[must_use]
    pub fn load(&self) -> Arc<Zones> {
        Arc::clone(&self.zones.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running name server. Dropping it closes its sockets soon, [`NameServer::shutdown`] at once.
pub struct NameServer {
    server: Server<Handler>,
    listening: Arc<RwLock<Vec<SocketAddr>>>,
}

impl std::fmt::Debug for NameServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NameServer").field("listening", &self.listening()).finish_non_exhaustive()
    }
}

impl NameServer {
    /// A server that does not listen anywhere yet.
    #[must_use]
    pub fn new(zones: ZonesHandle, audience: Audience) -> Self {
        let listening = Arc::default();
        let server = Server::new(Handler { zones, audience, listening: Arc::clone(&listening) });
        Self { server, listening }
    }

    /// Answers at one more address, UDP and TCP. Already listening there is fine. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`DnsError`] naming the address.
    pub async fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, DnsError> {
        if self.listening().contains(&address) {
            return Ok(address);
        }
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => DnsError::PortInUse { address, source },
            _ => DnsError::Listen { address, source },
        };
        let udp = UdpSocket::bind(address).await.map_err(error)?;
        let bound = udp.local_addr().map_err(error)?;
        let tcp = TcpListener::bind(bound).await.map_err(error)?;
        self.listening.write().unwrap_or_else(PoisonError::into_inner).push(bound);
        self.server.register_socket(udp);
        self.server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES_MAX);
        Ok(bound)
    }

    /// Answers on sockets that are bound already, mostly inside a VDC's namespace. Must run inside a tokio runtime; questions
    /// that go to upstreams leave from the namespace of its threads.
    ///
    /// # Errors
    /// [`DnsError::Listen`] if the sockets cannot be handed to the runtime.
    pub fn serve_on(&mut self, udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> Result<(), DnsError> {
        let unbound = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = udp.local_addr().map_err(|source| DnsError::Listen { address: unbound, source })?;
        let error = |source: io::Error| DnsError::Listen { address, source };
        udp.set_nonblocking(true).map_err(error)?;
        tcp.set_nonblocking(true).map_err(error)?;
        let (udp, tcp) = (UdpSocket::from_std(udp).map_err(error)?, TcpListener::from_std(tcp).map_err(error)?);
        self.listening.write().unwrap_or_else(PoisonError::into_inner).push(address);
        self.server.register_socket(udp);
        self.server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES_MAX);
        Ok(())
    }

    /// Where the server answers.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.listening.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops answering; afterwards the addresses are free.
    pub async fn shutdown(mut self) {
        if self.listening().is_empty() {
            return;
        }
        if let Err(error) = self.server.shutdown_gracefully().await {
            tracing::debug!(%error, "a DNS socket had failed before it was closed");
        }
    }
}

struct Handler {
    zones: ZonesHandle,
    audience: Audience,
    listening: Arc<RwLock<Vec<SocketAddr>>>,
}

impl Handler {
    fn admits(&self, source: IpAddr) -> bool {
        let is_ours = || {
            let listening = self.listening.read().unwrap_or_else(PoisonError::into_inner);
            listening.iter().any(|address| address.ip() == source)
        };
        !matches!(self.audience, Audience::ThisHost) || source.to_canonical().is_loopback() || is_ours()
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let reply = if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            Reply::code(ResponseCode::BADVERS)
        } else if self.admits(request.src().ip()) {
            match (reply(&self.zones.load(), request, &self.audience), &self.audience) {
                (Some(reply), _) => reply,
                (None, Audience::Workloads { upstreams, .. }) => forward(upstreams, request).await,
                (None, _) => Reply::code(ResponseCode::Refused),
            }
        } else {
            Reply::code(ResponseCode::Refused)
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative =
            reply.authoritative && matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain);
        metadata.recursion_available = matches!(self.audience, Audience::Workloads { .. });
        // Our own, not the question's: options that we do not know must not come back (RFC 6891 §6.1.2).
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD_BYTES);
            edns.set_dnssec_ok(asked.flags().dnssec_ok); // copied: RFC 3225 §3
            edns.set_rcode_high(reply.code.high());
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let message = builder.build(metadata, &reply.answers, [], &reply.authority, []);
        response.send_response(message).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "a DNS answer could not be sent");
            ResponseInfo::from(hickory_proto::op::Header {
                metadata: Metadata::response_from_request(&request.metadata),
                counts: hickory_proto::op::HeaderCounts::default(),
            })
        })
    }
}

struct Reply {
    code: ResponseCode,
    answers: Vec<Record>,
    authority: Vec<Record>,
    authoritative: bool,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code, answers: vec![], authority: vec![], authoritative: true }
    }

    /// The name exists; without answers the zone's SOA says for how long there are none (RFC 2308 §2.2).
    fn found(answers: Vec<Record>, zone: Option<&str>) -> Self {
        let authority = if answers.is_empty() { zone.and_then(soa).into_iter().collect() } else { vec![] };
        Self { answers, authority, ..Self::code(ResponseCode::NoError) }
    }
}

/// Hands a question on. A new message is sent, not the client's bytes: an id of ours and nothing but the question.
async fn forward(upstreams: &Forwarder, request: &Request) -> Reply {
    let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(info.query.original().clone());
    match upstreams.ask(request.src().ip(), &question).await {
        Some(answer) => Reply {
            code: answer.metadata.response_code,
            answers: answer.answers,
            authority: answer.authorities,
            authoritative: false,
        },
        None => Reply::code(ResponseCode::ServFail),
    }
}

/// What the zones say, or `None` if the name is none of ours.
fn reply(zones: &Zones, request: &Request, audience: &Audience) -> Option<Reply> {
    if request.metadata.op_code != OpCode::Query {
        return Some(Reply::code(ResponseCode::NotImp));
    }
    let Ok(info) = request.request_info() else { return Some(Reply::code(ResponseCode::FormErr)) };
    let wanted = info.query.query_type();
    let is_of_class = matches!(info.query.query_class(), DNSClass::IN | DNSClass::ANY);
    // There is no other class, and zones are handed out to nobody.
    if !is_of_class || matches!(wanted, RecordType::AXFR | RecordType::IXFR) {
        return Some(Reply::code(ResponseCode::Refused));
    }
    let owner = info.query.original().name().clone();
    let is_wanted = |kind: RecordType| wanted == kind || wanted == RecordType::ANY;
    let record = |data| Record::from_rdata(owner.clone(), TTL_SECONDS, data);
    let found = zones.lookup(&text_of(&owner));
    if audience.is_kept_from(&found) {
        return Some(Reply::code(ResponseCode::Refused));
    }
    Some(match found {
        Answer::Foreign => return None,
        Answer::NoSuchName { zone } => {
            Reply { authority: soa(zone).into_iter().collect(), ..Reply::code(ResponseCode::NXDomain) }
        }
        Answer::Apex { zone } => {
            let start = is_wanted(RecordType::SOA).then(|| soa(zone)).flatten();
            let server = is_wanted(RecordType::NS).then(|| record(RData::NS(NS(owner.clone()))));
            Reply::found(start.into_iter().chain(server).collect(), Some(zone))
        }
        Answer::Pointer { zone, target } => {
            let target = is_wanted(RecordType::PTR).then(|| Name::from_ascii(format!("{target}.")).ok()).flatten();
            Reply::found(target.map(|name| record(RData::PTR(PTR(name)))).into_iter().collect(), zone)
        }
        Answer::Addresses { zone, addresses } => {
            let data = |address: &IpAddr| match address {
                IpAddr::V4(v4) => is_wanted(RecordType::A).then_some(RData::A(A(*v4))),
                IpAddr::V6(v6) => is_wanted(RecordType::AAAA).then_some(RData::AAAA(AAAA(*v6))),
            };
            Reply::found(addresses.iter().filter_map(data).map(record).collect(), Some(zone))
        }
    })
}

/// As [`Zones`] want it: lower case, no final dot. A dot inside a label is not one between labels.
fn text_of(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase().replace("\\.", "\\046");
    text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
}

/// The zone's SOA, which tells resolvers how long to remember that something is not there (RFC 2308 §5). Like the zones
/// that resolvers serve themselves (RFC 6303 §3), it is its own name server and nobody's to write to.
fn soa(zone: &str) -> Option<Record> {
    let owner = Name::from_ascii(format!("{zone}.")).ok()?;
    let nobody = Name::from_ascii("nobody.invalid.").ok()?;
    let soa = SOA::new(owner.clone(), nobody, 1, 3600, 600, 86_400, TTL_SECONDS);
    Some(Record::from_rdata(owner, TTL_SECONDS, RData::SOA(soa)))
}
