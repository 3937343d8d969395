//! A name server for labs: A and AAAA over UDP from a table, as much of RFC 1035 as resolvers ask for.

use std::collections::BTreeMap;
use std::net::IpAddr;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// Seconds that an answer may be cached: short, because tests change the table.
const TTL_SECONDS: u32 = 1;
/// Addresses in one answer; 12 + question + 16 × 28 stays below 1,232 bytes.
const ANSWERS_MAX: usize = 16;

const RCODE_OK: u8 = 0;
const RCODE_NO_NAME: u8 = 3;
const RCODE_NOT_IMPLEMENTED: u8 = 4;

#[derive(Debug, Default)]
pub(crate) struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) queries: u64,
    pub(crate) is_silent: bool,
}

impl Zone {
    pub(crate) fn set(&mut self, name: &str, addresses: Vec<IpAddr>) {
        self.names.insert(canonical(name), addresses);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.names.remove(&canonical(name));
    }

    /// The answer to a datagram; `None` for what is not a query or when the server plays dead.
    pub(crate) fn answer(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        let question = Question::parse(query)?;
        self.queries += 1;
        if self.is_silent {
            return None;
        }
        let known = self.names.get(&question.name);
        let rcode = match known {
            _ if question.opcode != 0 => RCODE_NOT_IMPLEMENTED,
            None => RCODE_NO_NAME,
            Some(_) => RCODE_OK,
        };
        let wanted = |a: &&IpAddr| question.class == CLASS_IN && question.kind == type_of(a);
        let found: Vec<&IpAddr> = match rcode {
            RCODE_OK => known.into_iter().flatten().filter(wanted).take(ANSWERS_MAX).collect(),
            _ => Vec::new(),
        };
        let count = u8::try_from(found.len()).expect("bounded by ANSWERS_MAX");
        // Response, authoritative; recursion "desired" is copied and recursion is "available", as stub resolvers expect.
        let flags = [0x84 | query[2] & 0x79, 0x80 | rcode];
        let mut message = vec![query[0], query[1], flags[0], flags[1], 0, 1, 0, count, 0, 0, 0, 0];
        message.extend_from_slice(&query[12..question.end]);
        for address in found {
            // A pointer to the name in the question.
            message.extend_from_slice(&[0xc0, 12]);
            message.extend_from_slice(&type_of(address).to_be_bytes());
            message.extend_from_slice(&CLASS_IN.to_be_bytes());
            message.extend_from_slice(&TTL_SECONDS.to_be_bytes());
            match address {
                IpAddr::V4(v4) => {
                    message.extend_from_slice(&[0, 4]);
                    message.extend_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    message.extend_from_slice(&[0, 16]);
                    message.extend_from_slice(&v6.octets());
                }
            }
        }
        Some(message)
    }
}

fn type_of(address: &IpAddr) -> u16 {
    if address.is_ipv4() { TYPE_A } else { TYPE_AAAA }
}

/// Lower case without the final dot.
fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[derive(Debug, PartialEq, Eq)]
struct Question {
    name: String,
    kind: u16,
    class: u16,
    opcode: u8,
    /// Where the question ends in the message.
    end: usize,
}

impl Question {
    fn parse(message: &[u8]) -> Option<Self> {
        let header = message.get(..12)?;
        let is_response = header[2] & 0x80 != 0;
        if is_response || header[4..6] != [0, 1] {
            return None;
        }
        let (mut at, mut labels) = (12, Vec::new());
        loop {
            let len = usize::from(*message.get(at)?);
            at += 1;
            match len {
                0 => break,
                1..=63 => labels.push(String::from_utf8_lossy(message.get(at..at + len)?).to_ascii_lowercase()),
                _ => return None,
            }
            at += len;
        }
        let tail = message.get(at..at + 4)?;
        Some(Self {
            name: labels.join("."),
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            class: u16::from_be_bytes([tail[2], tail[3]]),
            opcode: header[2] >> 3 & 0x0f,
            end: at + 4,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn known_name_is_answered_by_type_and_the_table_may_change() {
        let mut zone = Zone::default();
        zone.set("Seed.Example.", vec!["198.18.1.10".parse().unwrap(), "2001:db8:1::10".parse().unwrap()]);
        let answer = zone.answer(&query("seed.eXample", TYPE_A)).unwrap();
        assert_eq!(answer[..8], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1]);
        assert!(answer.ends_with(&[0, 4, 198, 18, 1, 10]));
        let answer = zone.answer(&query("seed.example", TYPE_AAAA)).unwrap();
        assert_eq!(answer[answer.len() - 18..answer.len() - 12], [0, 16, 0x20, 0x01, 0x0d, 0xb8]);

        let text = zone.answer(&query("seed.example", 16)).unwrap();
        assert_eq!((text[3] & 0x0f, text[7]), (RCODE_OK, 0), "known name, no such type");
        zone.remove("seed.example");
        assert_eq!(zone.answer(&query("seed.example", TYPE_A)).unwrap()[3] & 0x0f, RCODE_NO_NAME);
        assert_eq!(zone.queries, 4);
        zone.is_silent = true;
        assert_eq!(zone.answer(&query("seed.example", TYPE_A)), None);
    }

    #[test]
    fn anything_but_a_whole_query_is_ignored() {
        let whole = query("seed.example", TYPE_A);
        let mut zone = Zone::default();
        for len in 0..whole.len() {
            assert_eq!(zone.answer(&whole[..len]), None, "{len} bytes");
        }
        let mut response = whole.clone();
        response[2] |= 0x80;
        assert_eq!(zone.answer(&response), None);
        let mut compressed = whole;
        compressed[12] = 0xc0;
        assert_eq!(zone.answer(&compressed), None);
    }
}
