//! The name server, asked over real sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use meshd_dns::{Audience, DnsError, NameServer, Zone, Zones, ZonesHandle};
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
