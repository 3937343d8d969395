//! Ports as text: `80`, `443/tcp`, `8000-8010/udp`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port or a range of ports, both ends included. Its text is `FIRST[-LAST][/tcp|/udp]`; without a protocol it is TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSpec {
    pub transport: Transport,
    pub first: u16,
    pub last: u16,
}

/// A port or flow that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct PortSpecError {
    text: String,
    expected: &'static str,
}

const PORT_FORM: &str = "a port: use PORT, FIRST-LAST, and /tcp or /udp behind it, with ports from 1 to 65535";
const FLOW_FORM: &str = "a flow: use PORT, PORT/udp or icmp";

impl PortSpecError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(40).collect(), expected }
    }
}

impl FromStr for PortSpec {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        let error = || PortSpecError::new(text, PORT_FORM);
        let (ports, transport) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(error()),
        };
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(error()),
        };
        let (first, last) = match ports.split_once('-') {
            None => (port(ports)?, port(ports)?),
            Some((first, last)) => (port(first)?, port(last)?),
        };
        if last < first { Err(error()) } else { Ok(Self { transport, first, last }) }
    }
}

impl fmt::Display for PortSpec {
    /// Always with the protocol: `80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}/{}", self.first, self.transport)
        } else {
            write!(f, "{}-{}/{}", self.first, self.last, self.transport)
        }
    }
}

/// What `explain` asks about: one port, or `icmp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowSpec {
    Icmp,
    Port(Transport, u16),
}

impl FromStr for FlowSpec {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        if text == "icmp" {
            return Ok(Self::Icmp);
        }
        match text.parse::<PortSpec>() {
            Ok(spec) if spec.first == spec.last => Ok(Self::Port(spec.transport, spec.first)),
            _ => Err(PortSpecError::new(text, FLOW_FORM)),
        }
    }
}

impl fmt::Display for FlowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("icmp"),
            Self::Port(transport, port) => write!(f, "{port}/{transport}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_forms_are_read_and_written_in_full() {
        for (text, canonical) in [
            ("80", "80/tcp"),
            ("443/tcp", "443/tcp"),
            ("53/udp", "53/udp"),
            ("8000-8010", "8000-8010/tcp"),
            ("1-65535/udp", "1-65535/udp"),
            ("5-5", "5/tcp"),
        ] {
            let spec: PortSpec = text.parse().expect("a port");
            assert_eq!(spec.to_string(), canonical);
            assert_eq!(canonical.parse::<PortSpec>().expect("canonical"), spec);
        }
    }

    #[test]
    fn malformed_ports_are_refused() {
        for text in
            ["", "0", "65536", "80/sctp", "80/", "/tcp", "9-8", "-", "80-", "+80", " 80", "80/tcp/tcp", "1-2-3", "http"]
        {
            assert!(text.parse::<PortSpec>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn flows_are_one_port_or_icmp() {
        assert_eq!("icmp".parse::<FlowSpec>().expect("icmp"), FlowSpec::Icmp);
        assert_eq!("53/udp".parse::<FlowSpec>().expect("port").to_string(), "53/udp");
        assert!("80-81".parse::<FlowSpec>().is_err());
    }
}
