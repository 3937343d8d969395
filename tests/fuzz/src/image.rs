//! What registries, layouts and archives hold of images: documents and tars.

use std::io::Read;
use std::path::Path;

use workloads_image::archive::Archive;
use workloads_image::manifest::{self, Document, Platform};
use workloads_image::tar::{Entry, Kind, Tar};
use workloads_image::{challenge, config, decompress};

/// As much of a layer is looked at: the search wants many small inputs, and a bomb is the unpacker's to stop.
const PLAIN_BYTES_MAX: u64 = 1 << 20;
/// No content can hold more entries than blocks.
const ENTRIES_MAX: usize = 2_048;

/// A manifest, an index or a configuration.
pub(crate) fn document(bytes: &[u8]) -> bool {
    let configuration = config::decode(bytes);
    if let Ok(config) = &configuration {
        let image = &config.image;
        for path in image.volumes.iter().chain([&image.workdir]) {
            assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path:?} leads elsewhere");
        }
        let words = image.entrypoint.iter().chain(&image.command).chain(image.env.iter().map(|(name, _)| name));
        assert!(!words.clone().any(|word| word.contains('\0')), "an argument ends before its end");
        assert!(image.stop_signal.is_none_or(|signal| (1..=64).contains(&signal)), "no such signal");
        assert!(image.exposed.iter().all(|(port, _)| *port != 0), "no such port");
    }
    let document = manifest::decode(bytes, None);
    match &document {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= manifest::LAYERS_MAX, "more layers than are stacked");
            assert!(manifest.config.size_bytes <= manifest::CONFIG_BYTES_MAX, "a configuration that is not read");
        }
        Ok(Document::Index(index)) => {
            if let Ok(entry) = index.choose(&Platform::host()) {
                assert!(entry.size_bytes <= manifest::MANIFEST_BYTES_MAX, "a manifest that is not read");
            }
        }
        Err(_) => {}
    }
    document.is_ok() || configuration.is_ok()
}

/// A layer, compressed or not.
pub(crate) fn layer(bytes: &[u8]) -> bool {
    let Ok(plain) = decompress::plain(bytes) else { return false };
    let mut tar = Tar::new(plain.take(PLAIN_BYTES_MAX));
    let mut buffer = [0; 4_096];
    let mut entries = 0;
    loop {
        let entry = match tar.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return entries > 0,
            Err(_) => return false,
        };
        entries += 1;
        assert!(entries <= ENTRIES_MAX, "more entries than there are blocks");
        check(&entry);
        let mut left = content_bytes(&entry);
        loop {
            match tar.read_content(&mut buffer) {
                Ok(0) => break,
                Ok(count) => left = left.checked_sub(count as u64).expect("no more content than the entry says"),
                Err(_) => return false,
            }
        }
        assert!(left == 0, "less content than the entry says");
    }
}

fn content_bytes(entry: &Entry) -> u64 {
    match (&entry.kind, &entry.pieces) {
        (Kind::File, None) => entry.size_bytes,
        (Kind::File, Some(pieces)) => pieces.iter().map(|(_, length)| length).sum(),
        _ => 0,
    }
}

fn check(entry: &Entry) {
    assert!(!entry.path.is_empty() && !entry.path.contains(&0), "a name that no file can have");
    assert!(entry.mode <= 0o7777 && entry.mtime.1 < 1_000_000_000, "bits or parts of seconds beyond their range");
    assert!(entry.uid != u32::MAX && entry.gid != u32::MAX, "an owner that means nobody in particular");
    let ends = entry.pieces.iter().flatten().map(|(offset, length)| offset + length);
    assert!(ends.max().is_none_or(|end| end <= entry.size_bytes), "a piece behind the file's end");
}

/// An archive of images, as a file.
pub(crate) fn archive(bytes: &[u8]) -> bool {
    let size = bytes.len() as u64;
    Archive::scan(Path::new("archive"), bytes, size)
        .and_then(|archive| archive.images())
        .is_ok_and(|images| !images.is_empty())
}

/// How a registry wants to be told who asks. What is read is written so that it reads the same.
pub(crate) fn challenges(bytes: &[u8]) -> bool {
    let Ok(field) = std::str::from_utf8(bytes) else { return false };
    let Ok(challenges) = challenge::parse(field) else { return false };
    let written = challenges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // Quotes and commas may make the longest fields too long.
    if written.len() <= challenge::FIELD_BYTES_MAX {
        assert!(challenge::parse(&written).as_ref() == Ok(&challenges), "{field:?} is written {written:?}");
    }
    !challenges.is_empty()
}
