//! The name server, asked over real sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use meshd_dns::{Audience, DnsError, Forwarder, NameServer, Zone, Zones, ZonesHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("valid"), kind));
    message.to_vec().expect("encodes")
}

async fn ask_udp(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.send_to(bytes, server).await.expect("sends");
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).await.expect("answers");
    Message::from_vec(&buffer[..length]).expect("decodes")
}

async fn ask_tcp(server: SocketAddr, bytes: &[u8]) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("connects");
    let length = u16::try_from(bytes.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await.expect("sends");
    let length = stream.read_u16().await.expect("answers");
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.expect("answers whole");
    Message::from_vec(&buffer).expect("decodes")
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

async fn server() -> ((NameServer, ZonesHandle), SocketAddr) {
    let handle = ZonesHandle::default();
    let mut server = NameServer::new(handle.clone(), Audience::Everyone);
    let address = server.listen("127.0.0.1:0".parse().expect("valid")).await.expect("listens");
    let hosts = BTreeMap::from([(
        "berlin1.berlin".to_owned(),
        vec!["fd12::1".parse().expect("valid"), "10.64.0.1".parse().expect("valid")],
    )]);
    let networks = vec![("fd12::".parse().expect("valid"), 48), ("10.64.0.0".parse().expect("valid"), 14)];
    handle.replace(Zones::new(BTreeMap::from([("acme.internal".to_owned(), Zone { hosts, networks })])));
    ((server, handle), address)
}

#[tokio::test]
async fn names_resolve_over_udp_and_tcp_in_any_case() {
    let (_server, address) = server().await;
    for (name, kind, expected) in [
        ("berlin1.berlin.acme.internal.", RecordType::A, "10.64.0.1"),
        ("BERLIN1.Berlin.acme.INTERNAL.", RecordType::AAAA, "fd12::1"),
    ] {
        let expected: Vec<IpAddr> = vec![expected.parse().expect("valid")];
        assert_eq!(addresses(&ask_udp(address, &question(name, kind)).await), expected, "{name}");
        assert_eq!(addresses(&ask_tcp(address, &question(name, kind)).await), expected, "{name}");
    }
    let pointer = ask_udp(address, &question("1.0.64.10.in-addr.arpa.", RecordType::PTR)).await;
    assert!(matches!(&pointer.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "berlin1.berlin.acme.internal."));
}

#[tokio::test]
async fn absence_is_told_precisely() {
    let ((_server, zones), address) = server().await;
    for (name, kind, code, authority) in [
        ("nobody.berlin.acme.internal.", RecordType::A, ResponseCode::NXDomain, 1),
        ("berlin.acme.internal.", RecordType::A, ResponseCode::NoError, 1),
        ("berlin1.berlin.acme.internal.", RecordType::MX, ResponseCode::NoError, 1),
        ("example.org.", RecordType::A, ResponseCode::Refused, 0),
    ] {
        let answer = ask_udp(address, &question(name, kind)).await;
        assert_eq!((answer.metadata.response_code, answer.authorities.len()), (code, authority), "{name} {kind}");
        assert!(answer.answers.is_empty(), "{name} {kind}");
    }
    zones.replace(Zones::default());
    let answer = ask_udp(address, &question("berlin1.berlin.acme.internal.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "a VDC that was left is not ours any more");
}

#[tokio::test]
async fn garbage_is_survived() {
    let (_server, address) = server().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    for length in 0..64_u8 {
        let noise: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37) ^ length).collect();
        socket.send_to(&noise, address).await.expect("sends");
    }
    let mut cut = question("berlin1.berlin.acme.internal.", RecordType::A);
    cut.truncate(20);
    socket.send_to(&cut, address).await.expect("sends");
    let good = ask_udp(address, &question("berlin1.berlin.acme.internal.", RecordType::A)).await;
    assert_eq!(good.answers.len(), 1);
}

#[tokio::test]
async fn taken_port_is_named() {
    let (_server, address) = server().await;
    let error = NameServer::new(ZonesHandle::default(), Audience::Everyone).listen(address).await.expect_err("taken");
    assert!(matches!(error, DnsError::PortInUse { .. }) && error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn largest_answers_fit_and_what_does_not_is_whole_over_tcp() {
    let label = "a".repeat(63);
    let (host, domain) = (format!("{label}.{label}"), format!("{label}.internal"));
    let addresses: Vec<IpAddr> = ["fd12::1", "10.64.0.1"].map(|text| text.parse().expect("valid")).into();
    let zone = Zone {
        hosts: BTreeMap::from([(host.clone(), addresses)]),
        networks: vec![("fd12::".parse().expect("valid"), 48)],
    };
    let handle = ZonesHandle::default();
    handle.replace(Zones::new(BTreeMap::from([(domain.clone(), zone)])));
    let mut server = NameServer::new(handle, Audience::Everyone);
    let address = server.listen("127.0.0.1:0".parse().expect("valid")).await.expect("listens");
    let reverse = |last: char| format!("{last}.{}2.1.d.f.ip6.arpa.", "0.".repeat(27));
    for (name, kind, answers) in [
        (format!("{host}.{domain}."), RecordType::AAAA, 1),
        (format!("{host}.{domain}."), RecordType::MX, 0),
        (format!("{}.{host}.{domain}.", "b".repeat(50)), RecordType::A, 0),
        (reverse('1'), RecordType::PTR, 1),
        (reverse('2'), RecordType::PTR, 0),
    ] {
        let answer = ask_udp(address, &question(&name, kind)).await;
        assert_eq!(
            (answer.answers.len(), answer.authorities.len()),
            (answers, usize::from(answers == 0)),
            "{name} {kind}"
        );
        assert!(!answer.metadata.truncation, "{name} {kind}");
    }
    // Nobody but a curious person asks for everything; RFC 2181 §9 has it cut short.
    let both = question(&format!("{host}.{domain}."), RecordType::ANY);
    assert!(ask_udp(address, &both).await.metadata.truncation);
    let whole = ask_tcp(address, &both).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (2, false));
}

#[tokio::test]
async fn names_of_a_vdc_are_told_to_its_own_host_only() {
    let hosts = BTreeMap::from([("a.b".to_owned(), vec!["fd12::1".parse().expect("valid")])]);
    let handle = ZonesHandle::default();
    handle.replace(Zones::new(BTreeMap::from([("acme.internal".to_owned(), Zone { hosts, networks: vec![] })])));
    let mut server = NameServer::new(handle.clone(), Audience::ThisHost);
    let address = server.listen("127.0.0.1:0".parse().expect("valid")).await.expect("listens");
    let answer = ask_udp(address, &question("a.b.acme.internal.", RecordType::AAAA)).await;
    assert_eq!(answer.answers.len(), 1, "from a loopback address");
    // After a shutdown the port is free at once.
    server.shutdown().await;
    let mut again = NameServer::new(handle, Audience::ThisHost);
    assert_eq!(again.listen(address).await.expect("the port is free"), address);
}

#[tokio::test]
async fn every_damaged_question_leaves_the_server_answering() {
    let (_server, address) = server().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let good = question("berlin1.berlin.acme.internal.", RecordType::A);
    for index in 0..good.len() {
        for value in [0x00, 0x01, 0x3f, 0x40, 0x80, 0xc0, 0xff] {
            let mut damaged = good.clone();
            damaged[index] = value;
            socket.send_to(&damaged, address).await.expect("sends");
        }
        socket.send_to(&good[..index], address).await.expect("sends");
    }
    // The same over TCP: lengths that promise too much, too little, nothing.
    for length in [0_u16, 1, 11, 12, 40, u16::MAX] {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(&[&length.to_be_bytes(), good.as_slice()].concat()).await.expect("sends");
    }
    assert_eq!(ask_udp(address, &good).await.answers.len(), 1);
    assert_eq!(ask_tcp(address, &good).await.answers.len(), 1);
}

/// A server that shows workloads one of two zones and asks `upstreams` for the rest.
fn view(upstreams: Vec<SocketAddr>) -> (NameServer, Arc<Forwarder>, SocketAddr) {
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let address = udp.local_addr().expect("bound");
    let tcp = std::net::TcpListener::bind(address).expect("binds");
    let forwarder = Arc::new(Forwarder::default());
    forwarder.set_upstreams(upstreams);
    let handle = ZonesHandle::default();
    let audience = Audience::Workloads { zone: "acme.internal".to_owned(), upstreams: Arc::clone(&forwarder) };
    let mut server = NameServer::new(handle.clone(), audience);
    server.serve_on(udp, tcp).expect("serves");
    let hosts = |address: &str| BTreeMap::from([("box.site".to_owned(), vec![address.parse().expect("valid")])]);
    handle.replace(Zones::new(BTreeMap::from([
        ("acme.internal".to_owned(), Zone { hosts: hosts("10.64.0.1"), networks: vec![] }),
        ("rival.internal".to_owned(), Zone { hosts: hosts("10.65.0.1"), networks: vec![] }),
    ])));
    (server, forwarder, address)
}

/// An upstream that answers every question for an address with 192.0.2.7; by UDP it claims that this did not fit.
async fn upstream(truncates: bool) -> (SocketAddr, tokio::task::JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("bound");
    let listener = tokio::net::TcpListener::bind(address).await.expect("binds");
    let mut tasks = tokio::task::JoinSet::new();
    let answer = |bytes: &[u8], truncated: bool| {
        let mut message = Message::from_vec(bytes).expect("meshd's question is well-formed");
        message.metadata.message_type = MessageType::Response;
        message.metadata.truncation = truncated;
        if !truncated {
            let data = RData::A("192.0.2.7".parse().map(hickory_proto::rr::rdata::A).expect("valid"));
            let owner = message.queries[0].name().clone();
            message.add_answer(hickory_proto::rr::Record::from_rdata(owner, 60, data));
        }
        message.to_vec().expect("encodes")
    };
    tasks.spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            // An answer with another id first: it must not be believed.
            let mut forged = answer(&buffer[..length], false);
            forged[0] ^= 1;
            socket.send_to(&forged[..forged.len() - 1], client).await.expect("sends");
            socket.send_to(&answer(&buffer[..length], truncates), client).await.expect("sends");
        }
    });
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
            stream.read_exact(&mut question).await.expect("a question");
            let reply = answer(&question, false);
            stream.write_u16(u16::try_from(reply.len()).expect("short")).await.expect("writes");
            stream.write_all(&reply).await.expect("writes");
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn workloads_see_their_own_zone_and_the_world_but_no_other_vdc() {
    for truncates in [false, true] {
        let (world, _tasks) = upstream(truncates).await;
        let (server, _, address) = view(vec![world]);
        for (name, kind, expected) in
            [("box.site.acme.internal.", RecordType::A, "10.64.0.1"), ("example.org.", RecordType::A, "192.0.2.7")]
        {
            let expected: Vec<IpAddr> = vec![expected.parse().expect("valid")];
            let asked = question(name, kind);
            assert_eq!(addresses(&ask_udp(address, &asked).await), expected, "{name} {truncates}");
            assert_eq!(addresses(&ask_tcp(address, &asked).await), expected, "{name} {truncates}");
        }
        for (name, kind) in [("box.site.rival.internal.", RecordType::A), ("1.0.65.10.in-addr.arpa.", RecordType::PTR)]
        {
            let answer = ask_udp(address, &question(name, kind)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name}");
        }
        server.shutdown().await;
    }
}

#[tokio::test]
async fn silent_upstream_is_passed_over_and_none_is_a_failure() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let (good, _tasks) = upstream(false).await;
    let (_server, forwarder, address) = view(vec![silent.local_addr().expect("bound"), good]);
    let asked = question("example.org.", RecordType::A);
    assert_eq!(addresses(&ask_udp(address, &asked).await).len(), 1);
    forwarder.set_upstreams(vec![]);
    assert_eq!(ask_udp(address, &asked).await.metadata.response_code, ResponseCode::ServFail);
    let own = ask_udp(address, &question("box.site.acme.internal.", RecordType::A)).await;
    assert_eq!(addresses(&own).len(), 1, "names of the VDC need no upstream");
}
