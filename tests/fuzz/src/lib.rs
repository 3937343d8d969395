//! Fuzz targets over every decoder of foreign bytes, with their corpora.
//!
//! A [`Target`] must survive any input, and checks more than that: what it accepts has exactly one encoding, which is the
//! input. The replay test below is part of every test run; the search for new inputs is the binary `fuzz`.

mod coord;
mod image;
mod roster;

pub use roster::Statement;

pub mod overlay;

use std::fmt::Display;
use std::str::FromStr;

use vdc::invite::{DoorRequest, DoorResponse, Invite, InviteState};
use vdc::{Ipv4Block, Key, Name, Signed, VdcId, codec, peer, policy, sync};
use vdc_api::{FlowSpec, PortSpec};
use vdc_coord::wire;
use workloads_image::Reference;
use workloads_wire::{frame, log, message};

/// One decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of its corpus folder.
    pub name: &'static str,
    /// Decodes the input and checks what must hold; returns whether the input was accepted.
    ///
    /// # Panics
    /// When something that must hold does not: that is the finding.
    pub run: fn(&[u8]) -> bool,
}

/// Every decoder, ascending by name.
pub const TARGETS: &[Target] = &[
    Target { name: "coord-backup", run: coord::backup },
    Target { name: "coord-entry", run: coord::entry },
    Target { name: "coord-frame", run: |bytes| canonical(bytes, wire::decode_frame, codec::encode) },
    Target { name: "coord-reply", run: |bytes| canonical(bytes, wire::decode_reply, codec::encode) },
    Target { name: "coord-request", run: coord::request },
    Target { name: "coord-row", run: coord::row },
    Target { name: "docker-archive", run: image::archive },
    Target { name: "door-request", run: |bytes| canonical(bytes, DoorRequest::decode, DoorRequest::encode) },
    Target { name: "door-response", run: |bytes| canonical(bytes, DoorResponse::decode, DoorResponse::encode) },
    Target { name: "flow-spec", run: parsed_and_written::<FlowSpec> },
    Target { name: "image-reference", run: parsed_and_written::<Reference> },
    Target { name: "invite", run: invite },
    Target { name: "invite-state", run: |bytes| canonical(bytes, InviteState::decode, InviteState::encode) },
    Target { name: "ipv4-block", run: parsed_and_written::<Ipv4Block> },
    Target { name: "key", run: parsed_and_written::<Key> },
    Target { name: "log-record", run: log_record },
    Target { name: "name", run: parsed_and_written::<Name> },
    Target { name: "oci-layer", run: image::layer },
    Target { name: "oci-manifest", run: image::document },
    Target { name: "overlay-demux", run: overlay::classify },
    Target { name: "overlay-packet", run: overlay::parse },
    Target { name: "overlay-script", run: overlay::play },
    Target { name: "peer-request", run: |bytes| canonical(bytes, peer::Request::decode, peer::Request::encode) },
    Target { name: "peer-response", run: |bytes| canonical(bytes, peer::Response::decode, peer::Response::encode) },
    Target { name: "policy-document", run: policy_document },
    Target { name: "port-spec", run: parsed_and_written::<PortSpec> },
    Target { name: "record", run: record },
    Target { name: "roster", run: roster::run },
    Target { name: "shim-command", run: shim_message::<message::Command> },
    Target { name: "shim-config", run: shim_message::<message::Config> },
    Target { name: "shim-event", run: shim_message::<message::Event> },
    Target { name: "shim-exit", run: shim_message::<message::Exit> },
    Target { name: "stream-frame", run: stream_frame },
    Target { name: "sync-message", run: |bytes| canonical(bytes, sync::Message::decode, sync::Message::encode) },
    Target { name: "www-authenticate", run: image::challenges },
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// A binary format: whatever decodes must encode to the very same bytes, or two nodes could disagree about a hash.
fn canonical<T, E>(bytes: &[u8], decode: fn(&[u8]) -> Result<T, E>, encode: fn(&T) -> Vec<u8>) -> bool {
    let Ok(value) = decode(bytes) else { return false };
    assert!(encode(&value) == bytes, "accepted, and encodes to something else");
    true
}

/// A text format: whatever parses must be written in a form that parses to the same value.
fn parsed_and_written<T: FromStr + Display + PartialEq>(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(value) = text.parse::<T>() else { return false };
    let written = value.to_string();
    assert!(written.parse::<T>().is_ok_and(|again| again == value), "{text:?} is written {written:?} and then differs");
    true
}

/// A message between daemon and shim: fields of later versions are skipped, so what was understood must come back, not the
/// bytes.
fn shim_message<T>(bytes: &[u8]) -> bool
where
    T: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> + PartialEq,
{
    let Ok(value) = message::decode::<T>(bytes) else { return false };
    assert!(message::decode::<T>(&message::encode(&value)).is_ok_and(|again| again == value), "differs when sent on");
    true
}

fn stream_frame(bytes: &[u8]) -> bool {
    let Ok(Some(found)) = frame::decode(bytes) else { return false };
    let mut written = Vec::new();
    frame::encode(found.kind, found.body, &mut written);
    assert!(written == bytes[..found.length], "accepted, and encodes to something else");
    true
}

fn log_record(bytes: &[u8]) -> bool {
    let Ok(Some((found, size))) = log::decode(bytes) else { return false };
    let mut written = Vec::new();
    log::encode(&found, &mut written);
    assert!(written == bytes[..size], "accepted, and encodes to something else");
    true
}

fn record(bytes: &[u8]) -> bool {
    if let Ok(record) = Signed::decode(bytes) {
        // Cheap questions that a roster asks of every record before it trusts it.
        assert!(record.heap_bytes() >= size_of::<Signed>());
        assert!(record.signers().next() == Some(record.issuer));
        std::hint::black_box(record.verify(&VdcId([7; 32])));
    }
    canonical(bytes, Signed::decode, Signed::encode)
}

fn policy_document(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| codec::decode::<policy::Document>("policy", bytes, vdc::record::PLAIN_RECORD_BYTES_MAX);
    if let Ok(document) = decode(bytes) {
        std::hint::black_box(document.is_within_limits());
    }
    canonical(bytes, decode, codec::encode)
}

/// A token's white space is ignored, so not the text but the invite in it must come back.
fn invite(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(invite) = Invite::parse(text) else { return false };
    assert!(
        Invite::parse(&invite.token()).is_ok_and(|again| again == invite),
        "the token of an invite reads differently"
    );
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// Every committed input, by the target whose corpus holds it.
    fn corpora() -> BTreeMap<String, Vec<(PathBuf, Vec<u8>)>> {
        let mut corpora: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for dir in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).expect("there is a corpus folder")
        {
            let dir = dir.expect("it can be listed");
            let inputs = corpora.entry(dir.file_name().into_string().expect("ASCII names")).or_default();
            for file in fs::read_dir(dir.path()).expect("each target has a folder") {
                let path = file.expect("it can be listed").path();
                let bytes = fs::read(&path).expect("it can be read");
                inputs.push((path, bytes));
            }
        }
        corpora
    }

    #[test]
    fn each_target_has_a_corpus_and_each_corpus_a_target() {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        let folders: Vec<_> = corpora().into_keys().collect();
        assert_eq!(folders, names, "corpus folders, and targets in their order");
    }

    #[test]
    fn corpora_hold_accepted_and_refused_inputs() {
        for (name, inputs) in corpora() {
            let target = target(&name).expect("each corpus has a target");
            let accepted = inputs.iter().filter(|(_, bytes)| (target.run)(bytes)).count();
            assert!(accepted > 0, "{name}: nothing is accepted; did the format change? See the README for new seeds");
            assert!(accepted < inputs.len(), "{name}: everything is accepted, so refusing is not tried");
        }
    }

    #[test]
    fn every_input_survives_every_target() {
        let corpora = corpora();
        for target in TARGETS {
            for (path, bytes) in corpora.values().flatten() {
                let outcome = std::panic::catch_unwind(|| (target.run)(bytes));
                assert!(outcome.is_ok(), "target {} panics on {}", target.name, path.display());
            }
        }
    }

    #[test]
    fn targets_find_what_is_not_canonical() {
        let lenient: fn(&[u8]) -> Result<u8, ()> = |bytes| bytes.first().copied().ok_or(());
        assert!(canonical(&[1], lenient, |value| vec![*value]));
        let outcome = std::panic::catch_unwind(|| canonical(&[1, 2], lenient, |value| vec![*value]));
        assert!(outcome.is_err(), "trailing bytes were forgiven");
    }
}
