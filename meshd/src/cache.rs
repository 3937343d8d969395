//! Small files that spare a restarted daemon the search: where members were last found, which tunnels were in use.
//!
//! They may be lost without harm. Format: canonical CBOR with a version (see `vdc::codec`).

use std::net::SocketAddr;

use minicbor::{Decode, Encode};
use vdc::{Key, codec};

/// File of [`Places`] holding control addresses.
pub(crate) const SEEN_FILE: &str = "last-seen";
/// File of [`Places`] holding the data-plane paths of tunnels in use.
pub(crate) const PATHS_FILE: &str = "last-paths";
/// Most entries kept: every member of a large VDC at a few addresses.
pub(crate) const PLACES_MAX: usize = 4096;
const VERSION: u32 = 1;
/// Longest file in bytes: 4,096 entries of at most 60 bytes.
const FILE_BYTES_MAX: usize = 256 << 10;

/// Where nodes were found, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places(pub(crate) Vec<(Key, SocketAddr)>);

#[derive(Encode, Decode)]
struct File {
    #[n(0)]
    version: u32,
    #[n(1)]
    places: Vec<Place>,
}

#[derive(Encode, Decode)]
struct Place {
    #[n(0)]
    node: Key,
    #[cbor(n(1), with = "vdc::codec::ip")]
    ip: std::net::IpAddr,
    #[n(2)]
    port: u16,
}

impl Places {
    /// Remembers that `node` is found at `address` now.
    pub(crate) fn saw(&mut self, node: Key, address: SocketAddr) {
        self.0.retain(|place| *place != (node, address));
        self.0.push((node, address));
        if self.0.len() > PLACES_MAX {
            self.0.remove(0);
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let place = |(node, address): &(Key, SocketAddr)| Place { node: *node, ip: address.ip(), port: address.port() };
        codec::encode(&File { version: VERSION, places: self.0.iter().map(place).collect() })
    }

    /// Reads what [`Places::encode`] wrote; a file that cannot be read is as good as none, and said so in the log.
    pub(crate) fn decode(name: &'static str, bytes: &[u8]) -> Self {
        match codec::decode::<File>(name, bytes, FILE_BYTES_MAX) {
            Ok(file) if file.version == VERSION => {
                Self(file.places.into_iter().map(|p| (p.node, SocketAddr::new(p.ip, p.port))).collect())
            }
            Ok(file) => {
                tracing::warn!(name, version = file.version, "starting without a cache file of another release");
                Self::default()
            }
            Err(error) => {
                tracing::warn!(name, %error, "starting without a damaged cache file");
                Self::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_and_keep_order_without_duplicates() {
        let mut places = Places::default();
        let (a, b) = ("192.0.2.1:5".parse().expect("valid"), "[2001:db8::1]:6".parse().expect("valid"));
        places.saw(Key([1; 32]), a);
        places.saw(Key([2; 32]), b);
        places.saw(Key([1; 32]), a);
        assert_eq!(places.0, [(Key([2; 32]), b), (Key([1; 32]), a)]);
        assert_eq!(Places::decode(SEEN_FILE, &places.encode()), places);
        assert_eq!(Places::decode(SEEN_FILE, b"garbage"), Places::default());
    }

    #[test]
    fn stored_form_is_stable() {
        let places = Places(vec![(Key([0xab; 32]), "192.0.2.1:4710".parse().expect("valid"))]);
        let key = "ab".repeat(32);
        let golden = format!("820181835820{key}44c0000201191266");
        assert_eq!(data_encoding::HEXLOWER.encode(&places.encode()), golden);
    }
}
