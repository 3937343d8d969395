//! Answering questions: UDP and TCP, from memory.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
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

/// A running name server. Dropping it closes its sockets.
pub struct NameServer {
    zones: Arc<RwLock<Arc<Zones>>>,
    server: Server<Handler>,
    forwarder: Arc<Forwarder>,
    /// Servers that show one zone each, by zone.
    views: BTreeMap<String, Server<Handler>>,
    listening: Vec<SocketAddr>,
}

impl std::fmt::Debug for NameServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NameServer").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl Default for NameServer {
    fn default() -> Self {
        let zones = Arc::new(RwLock::new(Arc::new(Zones::default())));
        let server = Server::new(Handler { zones: Arc::clone(&zones), view: None });
        Self { zones, server, forwarder: Arc::default(), views: BTreeMap::new(), listening: Vec::new() }
    }
}

impl NameServer {
    /// Answers at one more address, UDP and TCP. Already listening there is fine. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`DnsError`] naming the address.
    pub async fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, DnsError> {
        if self.listening.contains(&address) {
            return Ok(address);
        }
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => DnsError::PortInUse { address, source },
            _ => DnsError::Listen { address, source },
        };
        let udp = UdpSocket::bind(address).await.map_err(error)?;
        let bound = udp.local_addr().map_err(error)?;
        let tcp = TcpListener::bind(bound).await.map_err(error)?;
        self.server.register_socket(udp);
        self.server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES_MAX);
        self.listening.push(bound);
        Ok(bound)
    }

    /// Answers workloads on sockets that are bound already, mostly inside a VDC's namespace: only names of `zone` (lower
    /// case, no final dot, as in [`Zones::names`]) are told, and of other VDCs nothing; the rest goes to the upstreams.
    /// Must run inside a tokio runtime, in the namespace from which upstreams are to be asked.
    ///
    /// # Errors
    /// [`DnsError::Listen`] if the sockets cannot be handed to the runtime.
    pub fn serve_on(
        &mut self,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        zone: &str,
    ) -> Result<(), DnsError> {
        let unbound = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = udp.local_addr().map_err(|source| DnsError::Listen { address: unbound, source })?;
        let error = |source: io::Error| DnsError::Listen { address, source };
        udp.set_nonblocking(true).map_err(error)?;
        tcp.set_nonblocking(true).map_err(error)?;
        let (udp, tcp) = (UdpSocket::from_std(udp).map_err(error)?, TcpListener::from_std(tcp).map_err(error)?);
        let view = View { zone: zone.to_owned(), forwarder: Arc::clone(&self.forwarder) };
        let mut server = Server::new(Handler { zones: Arc::clone(&self.zones), view: Some(view) });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES_MAX);
        // A server that had the zone before is dropped, and its sockets with it.
        self.views.insert(zone.to_owned(), server);
        Ok(())
    }

    /// Stops answering workloads of `zone` and closes its sockets. Not serving it is fine.
    pub fn stop_serving(&mut self, zone: &str) {
        self.views.remove(zone);
    }

    /// Where workloads' questions about other names go, the first that answers in time; none: such questions fail.
    pub fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        self.forwarder.set_upstreams(upstreams);
    }

    /// Replaces everything the server knows.
    pub fn set_zones(&self, zones: Zones) {
        *self.zones.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(zones);
    }

    /// Where the server answers.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }
}

struct Handler {
    zones: Arc<RwLock<Arc<Zones>>>,
    view: Option<View>,
}

/// What a workload sees.
struct View {
    zone: String,
    forwarder: Arc<Forwarder>,
}

impl View {
    /// Whether the answer is none of this VDC's business.
    fn hides(&self, answer: &Answer<'_>) -> bool {
        match answer {
            Answer::Addresses { zone, .. } | Answer::NoSuchName { zone } => *zone != self.zone,
            Answer::Pointer { target } => target.strip_suffix(&self.zone).is_none_or(|host| !host.ends_with('.')),
            Answer::Foreign => false,
        }
    }

    /// Hands a question on. A new message is sent, not the client's bytes: an id of ours and nothing but the question.
    async fn forward(&self, request: &Request) -> Reply {
        let failed = || Reply::code(ResponseCode::ServFail);
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(info.query.original().clone());
        match self.forwarder.ask(request.src().ip(), &question).await {
            Some(answer) => Reply {
                code: answer.metadata.response_code,
                answers: answer.answers,
                authority: answer.authorities,
                authoritative: false,
            },
            None => failed(),
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let zones = Arc::clone(&self.zones.read().unwrap_or_else(std::sync::PoisonError::into_inner));
        let reply = match (reply(&zones, request, self.view.as_ref()), &self.view) {
            (None, Some(view)) => view.forward(request).await,
            (None, None) => Reply::code(ResponseCode::Refused),
            (Some(reply), _) => reply,
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative && reply.code != ResponseCode::Refused;
        metadata.recursion_available = self.view.is_some();
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = request.edns.as_ref() {
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
}

/// What the zones say, or `None` if the name is none of ours.
fn reply(zones: &Zones, request: &Request, view: Option<&View>) -> Option<Reply> {
    if request.metadata.op_code != OpCode::Query {
        return Some(Reply::code(ResponseCode::NotImp));
    }
    let Ok(info) = request.request_info() else { return Some(Reply::code(ResponseCode::FormErr)) };
    let owner = Name::from(info.query.name());
    let mut text = owner.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    let record = |data| Record::from_rdata(owner.clone(), TTL_SECONDS, data);
    let found = zones.lookup(&text);
    if view.is_some_and(|view| view.hides(&found)) {
        return Some(Reply::code(ResponseCode::Refused));
    }
    Some(match found {
        Answer::Foreign => return None,
        Answer::NoSuchName { zone } => Reply { authority: soa(zone), ..Reply::code(ResponseCode::NXDomain) },
        Answer::Pointer { target } => {
            let wanted = matches!(info.query.query_type(), RecordType::PTR | RecordType::ANY);
            let target = wanted.then(|| Name::from_ascii(format!("{target}.")).ok()).flatten();
            let answers = target.map(|name| record(RData::PTR(PTR(name)))).into_iter().collect();
            Reply { answers, ..Reply::code(ResponseCode::NoError) }
        }
        Answer::Addresses { zone, addresses } => {
            let wanted = info.query.query_type();
            let answers: Vec<Record> = addresses
                .iter()
                .filter_map(|address| match (address, wanted) {
                    (IpAddr::V4(v4), RecordType::A | RecordType::ANY) => Some(record(RData::A(A(*v4)))),
                    (IpAddr::V6(v6), RecordType::AAAA | RecordType::ANY) => Some(record(RData::AAAA(AAAA(*v6)))),
                    _ => None,
                })
                .collect();
            let authority = if answers.is_empty() { soa(zone) } else { vec![] };
            Reply { answers, authority, ..Reply::code(ResponseCode::NoError) }
        }
    })
}

/// The zone's SOA, which tells resolvers how long to remember that something is not there (RFC 2308 §5).
fn soa(zone: &str) -> Vec<Record> {
    let name = |text: String| Name::from_ascii(text).ok();
    let record = || {
        let owner = name(format!("{zone}."))?;
        let (primary, mailbox) = (name(format!("ns.{zone}."))?, name(format!("hostmaster.{zone}."))?);
        let soa = SOA::new(primary, mailbox, 1, 3600, 600, 86_400, TTL_SECONDS);
        Some(Record::from_rdata(owner, TTL_SECONDS, RData::SOA(soa)))
    };
    record().into_iter().collect()
}
