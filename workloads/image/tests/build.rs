//! Tars, layers and images made by hand, the impossible ones too.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use workloads_image::{Digest, Image, ImageError, Images, StoreOptions};

/// A tar under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tarball(Vec<u8>);

/// A header that says what it is told.
#[derive(Clone, Debug)]
pub(crate) struct Header([u8; 512]);

impl Header {
    pub(crate) fn new(path: &str, flag: u8, size: usize) -> Self {
        let mut header = Self([0; 512]);
        let name = &path.as_bytes()[..path.len().min(100)];
        header.0[..name.len()].copy_from_slice(name);
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.0[156] = flag;
        let mode = if flag == b'5' { 0o755 } else { 0o644 };
        let header = header.octal(100..108, mode).octal(108..116, 0).octal(116..124, 0);
        header
            .octal(124..136, u64::try_from(size).expect("sizes fit"))
            .octal(136..148, 1_700_000_000)
            .octal(329..337, 0)
            .octal(337..345, 0)
    }

    pub(crate) fn octal(mut self, range: std::ops::Range<usize>, value: u64) -> Self {
        let width = range.len() - 1;
        self.0[range.start..range.end - 1].copy_from_slice(format!("{value:0width$o}").as_bytes());
        self
    }

    pub(crate) fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn mode(self, mode: u64) -> Self {
        self.octal(100..108, mode)
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        self.octal(108..116, uid).octal(116..124, gid)
    }

    pub(crate) fn link(self, target: &str) -> Self {
        self.bytes(157, target.as_bytes())
    }

    pub(crate) fn device(self, major: u64, minor: u64) -> Self {
        self.octal(329..337, major).octal(337..345, minor)
    }

    fn sealed(mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl Tarball {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn entry(mut self, header: Header, content: &[u8]) -> Self {
        self.0.extend_from_slice(&header.sealed());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(Header::new(path, b'0', content.len()), content)
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.entry(Header::new(path, b'5', 0), b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Header::new(path, b'2', 0).link(target), b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Header::new(path, b'1', 0).link(target), b"")
    }

    /// An extended header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(Header::new("pax", b'x', content.len()), &content)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1_024, 0);
        self.0
    }

    pub(crate) fn cut(self) -> Vec<u8> {
        self.0
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// As small as gzip gets it, which bombs are about.
pub(crate) fn gzip_best(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A layer as a registry has it.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl Blob {
    pub(crate) fn tar(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        Self { media_type, bytes: tar.to_vec(), diff_id: Digest::of(tar) }
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self { media_type, bytes: gzip(tar), diff_id: Digest::of(tar) }
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        Self { media_type, bytes: zstd(tar), diff_id: Digest::of(tar) }
    }
}

/// Manifest and configuration of layers.
pub(crate) fn documents(layers: &[Blob], command: &str) -> (Vec<u8>, Vec<u8>) {
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let config = serde_json::json!({
        "architecture": workloads_image::Platform::host().architecture,
        "os": "linux",
        "config": { "Cmd": [command] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec(&config).expect("a value");
    let blobs: Vec<_> = layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "mediaType": layer.media_type,
                "digest": Digest::of(&layer.bytes).to_string(),
                "size": layer.bytes.len(),
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config).to_string(),
            "size": config.len(),
        },
        "layers": blobs,
    });
    (serde_json::to_vec(&manifest).expect("a value"), config)
}

/// A store in a directory of its own.
pub(crate) fn store(directory: &Path) -> Images {
    Images::open(directory, StoreOptions::default()).expect("the store opens")
}

/// Stores an image of the layers.
pub(crate) fn put(images: &Images, layers: &[Blob], name: Option<&str>) -> Result<Image, ImageError> {
    let (manifest, config) = documents(layers, name.unwrap_or("nothing"));
    let mut ingest = images.begin(manifest, config)?;
    for (index, layer) in layers.iter().enumerate() {
        ingest.layer(index, layer.bytes.as_slice())?;
    }
    ingest.commit(name)
}

/// Writes an image as a layout, beside those that are there.
pub(crate) fn layout(directory: &Path, tag: &str, layers: &[Blob]) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("folders");
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    let (manifest, config) = documents(layers, tag);
    for bytes in layers.iter().map(|layer| &layer.bytes).chain([&manifest, &config]) {
        fs::write(blobs.join(Digest::of(bytes).hex()), bytes).expect("written");
    }
    let index_path = directory.join("index.json");
    let mut entries = match fs::read(&index_path) {
        Ok(bytes) => serde_json::from_slice::<serde_json::Value>(&bytes).expect("JSON")["manifests"].take(),
        Err(_) => serde_json::json!([]),
    };
    entries.as_array_mut().expect("a list").push(serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(&manifest).to_string(),
        "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": tag },
    }));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries });
    fs::write(index_path, index.to_string()).expect("written");
}

/// Runs a program that must succeed; a missing one is named with its package.
pub(crate) fn run(program: &str, package: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} does not run ({error}): it is of the Debian package {package}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
