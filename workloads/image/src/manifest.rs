//! Manifests and indexes of the OCI image specification and their older Docker forms, read strictly.
//!
//! Both families are read into the same types. What the rest of the crate must be able to trust is checked here: sizes,
//! digests, kinds of content, and that a document is not two things at once.

use std::fmt;

use serde::Deserialize;

use crate::digest::{Digest, DigestError};

/// Longest manifest or index, as registries have it.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Longest configuration of an image.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most layers of an image: overlayfs stacks 500, and builders stop at 127.
pub const LAYERS_MAX: usize = 256;
/// Most entries of an index.
const INDEX_ENTRIES_MAX: usize = 1_024;
/// Longest media type that is looked at.
const MEDIA_TYPE_BYTES_MAX: usize = 256;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The first Docker form began with this: it cannot be verified layer by layer and is refused.
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What a client of registries says it accepts, best first.
pub const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Media types of layers that can be unpacked. How they are compressed is read from their first bytes.
const LAYER_TYPES: [&str; 8] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// Content by its kind, digest and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The kind of the content.
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The size of the content in bytes.
    pub size_bytes: u64,
    /// For which machine the content is, if the index says it.
    pub platform: Option<Platform>,
    /// The name that an image layout gives the content: `org.opencontainers.image.ref.name`.
    pub name: Option<String>,
    /// Whether the content is about another entry of the index: a signature or the statement of a builder.
    about_another: bool,
}

/// An image: its configuration and its layers, bottom first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The media type of the manifest itself.
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// Several images of one name, for several machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Its entries in their order.
    pub entries: Vec<Descriptor>,
}

/// What an address of a registry answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// For which machine an image is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// The operating system, as Go names it.
    pub os: String,
    /// The architecture, as Go names it.
    pub architecture: String,
    /// The level of the architecture: `v7` of arm, `v8` of arm64.
    pub variant: Option<String>,
}

/// Why some bytes are no manifest, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than any manifest is.
    #[error("the manifest has {size_bytes} bytes and may have {MANIFEST_BYTES_MAX}")]
    TooLong {
        /// How long it is.
        size_bytes: u64,
    },
    /// The bytes are no JSON of a manifest.
    #[error("the manifest cannot be read as JSON of a manifest")]
    Json(#[source] serde_json::Error),
    /// Docker's first form, which names no digest of a configuration.
    #[error("the manifest is of Docker's schema 1, which no current tool writes: push the image anew")]
    SchemaOne,
    /// Another version than the one there is.
    #[error("the manifest has schema version {version}, not 2")]
    Schema {
        /// The version it says.
        version: u64,
    },
    /// The kind of the document is none of an image.
    #[error("{media_type:?} is neither an image nor an index of images")]
    MediaType {
        /// The kind it says.
        media_type: String,
    },
    /// The document says to be something else than the registry, or something else than it holds.
    #[error("the manifest is announced as {announced:?} and holds {held:?}")]
    Contradiction {
        /// What was announced: by the registry, or by the document's own type.
        announced: String,
        /// What it holds.
        held: String,
    },
    /// A digest that is none.
    #[error("the digest of the manifest's {of} cannot be read")]
    Digest {
        /// Whose digest.
        of: &'static str,
        /// Why not.
        #[source]
        source: DigestError,
    },
    /// A size below zero, or beyond what is taken.
    #[error("the manifest's {of} has a size of {size} bytes, and 0 to {max} are taken")]
    Size {
        /// Whose size.
        of: &'static str,
        /// The size as written.
        size: i64,
        /// The largest that is taken.
        max: u64,
    },
    /// The configuration is of another thing than an image: a chart, a signature, a model.
    #[error("{media_type:?} is no configuration of an image: the name is of an artifact that cannot be run")]
    Artifact {
        /// The kind it says.
        media_type: String,
    },
    /// A layer of a kind that cannot be unpacked.
    #[error("a layer of kind {media_type:?} cannot be unpacked: build the image with tar layers (gzip, zstd or plain)")]
    LayerType {
        /// The kind it says.
        media_type: String,
    },
    /// More of something than is taken.
    #[error("the manifest has {count} {of}, and {max} are taken")]
    TooMany {
        /// Of what.
        of: &'static str,
        /// How many there are.
        count: usize,
        /// How many are taken.
        max: usize,
    },
    /// The index has nothing for this machine.
    #[error("the image is not there for {wanted}, only for {offered}")]
    NoPlatform {
        /// What was looked for.
        wanted: Platform,
        /// What there is.
        offered: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: i64,
    platform: Option<RawPlatform>,
    annotations: Option<RawAnnotations>,
}

#[derive(Deserialize)]
struct RawAnnotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
    #[serde(rename = "vnd.docker.reference.type")]
    reference_type: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Reads a manifest or an index. `announced` is the media type that came with it, if one did.
///
/// # Errors
///
/// [`ManifestError`]: the document is too long, no JSON, contradicts itself or what was announced, or is of a kind that
/// cannot be run.
pub fn decode(bytes: &[u8], announced: Option<&str>) -> Result<Document, ManifestError> {
    let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size_bytes > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLong { size_bytes });
    }
    let announced = announced.map(essence).filter(|text| !is_generic(text));
    if announced.is_some_and(|text| text.starts_with(DOCKER_SCHEMA_1)) {
        return Err(ManifestError::SchemaOne);
    }
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    match raw.schema_version {
        2 => {}
        1 => return Err(ManifestError::SchemaOne),
        version => return Err(ManifestError::Schema { version }),
    }
    let said = raw.media_type.as_deref();
    if let (Some(announced), Some(said)) = (announced, said)
        && announced != said
    {
        return Err(ManifestError::Contradiction { announced: clip(announced), held: clip(said) });
    }
    // A document with the members of both could be read as either by two programs: none of them is believed.
    let is_index =
        match (raw.manifests.is_some(), raw.config.is_some() || raw.layers.is_some() || raw.fs_layers.is_some()) {
            (true, false) => true,
            (false, true) => false,
            _ => {
                return Err(ManifestError::Contradiction {
                    announced: clip(said.or(announced).unwrap_or("nothing")),
                    held: "neither one image nor one index".to_owned(),
                });
            }
        };
    if let Some(kind) = said.or(announced) {
        let says_index = match kind {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            other => return Err(ManifestError::MediaType { media_type: clip(other) }),
        };
        if says_index != is_index {
            let held = if is_index { "an index" } else { "an image" };
            return Err(ManifestError::Contradiction { announced: clip(kind), held: held.to_owned() });
        }
    }
    if is_index {
        return index(raw.manifests.unwrap_or_default()).map(Document::Index);
    }
    let media_type = said.or(announced).unwrap_or(OCI_MANIFEST).to_owned();
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return Err(ManifestError::Contradiction { announced: media_type, held: "half an image".to_owned() });
    };
    manifest(media_type, config, layers).map(Document::Manifest)
}

fn index(raw: Vec<RawDescriptor>) -> Result<Index, ManifestError> {
    limit("entries", raw.len(), INDEX_ENTRIES_MAX)?;
    let entries = raw.into_iter().map(|raw| raw.check("entry", MANIFEST_BYTES_MAX)).collect::<Result<_, _>>()?;
    Ok(Index { entries })
}

fn manifest(media_type: String, config: RawDescriptor, layers: Vec<RawDescriptor>) -> Result<Manifest, ManifestError> {
    limit("layers", layers.len(), LAYERS_MAX)?;
    let config = config.check("configuration", CONFIG_BYTES_MAX)?;
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        return Err(ManifestError::Artifact { media_type: clip(&config.media_type) });
    }
    let layers: Vec<Descriptor> =
        layers.into_iter().map(|raw| raw.check("layer", i64::MAX.unsigned_abs())).collect::<Result<_, _>>()?;
    if let Some(layer) = layers.iter().find(|layer| !LAYER_TYPES.contains(&layer.media_type.as_str())) {
        return Err(ManifestError::LayerType { media_type: clip(&layer.media_type) });
    }
    Ok(Manifest { media_type, config, layers })
}

fn limit(of: &'static str, count: usize, max: usize) -> Result<(), ManifestError> {
    if count > max { Err(ManifestError::TooMany { of, count, max }) } else { Ok(()) }
}

impl RawDescriptor {
    fn check(self, of: &'static str, max: u64) -> Result<Descriptor, ManifestError> {
        let digest = self.digest.parse().map_err(|source| ManifestError::Digest { of, source })?;
        let size = self.size;
        let size_bytes = u64::try_from(size).ok().filter(|bytes| *bytes <= max);
        let size_bytes = size_bytes.ok_or(ManifestError::Size { of, size, max })?;
        let annotations = self.annotations.unwrap_or(RawAnnotations { name: None, reference_type: None });
        let platform =
            self.platform.map(|raw| Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant });
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest,
            size_bytes,
            platform: platform.map(Platform::normalized),
            name: annotations.name,
            about_another: annotations.reference_type.is_some(),
        })
    }
}

/// A media type without its parameters.
fn essence(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

/// What servers say that do not know what they hold.
fn is_generic(text: &str) -> bool {
    matches!(text, "" | "application/json" | "application/octet-stream" | "text/plain")
}

/// Foreign text for a message, cut to a bound.
fn clip(text: &str) -> String {
    text.chars().take(MEDIA_TYPE_BYTES_MAX).collect()
}

impl Descriptor {
    /// Content of which kind, digest and size are known.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size_bytes: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size_bytes, platform: None, name: None, about_another: false }
    }

    /// Whether the content is an index, by its kind.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    /// Whether the content is a tar without compression, by its kind.
    #[must_use]
    pub fn is_plain_tar(&self) -> bool {
        self.media_type.ends_with(".tar")
    }
}

impl Index {
    /// The entry for a machine: of equal ones the first.
    ///
    /// # Errors
    ///
    /// [`ManifestError::NoPlatform`] with what there is.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        let images = self.entries.iter().filter(|entry| !entry.about_another);
        let best = images
            .clone()
            .filter_map(|entry| Some((entry.platform.as_ref().and_then(|offered| wanted.rank(offered))?, entry)))
            .min_by_key(|(rank, _)| *rank);
        if let Some((_, entry)) = best {
            return Ok(entry);
        }
        // An entry that says nothing is meant for whoever asks, if it is the only one; its configuration says more.
        let mut silent = images.clone().filter(|entry| entry.platform.is_none());
        if let (Some(only), None) = (silent.next(), silent.next()) {
            return Ok(only);
        }
        let mut offered: Vec<String> =
            images.filter_map(|entry| entry.platform.as_ref()).map(Platform::to_string).collect();
        offered.sort();
        offered.dedup();
        offered.truncate(32);
        let offered = if offered.is_empty() { "no machine at all".to_owned() } else { clip(&offered.join(", ")) };
        Err(ManifestError::NoPlatform { wanted: wanted.clone(), offered })
    }
}

impl Platform {
    /// The machine that this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Names in one spelling: `x86_64` is `amd64`, arm64 without a variant is `v8`, amd64 `v1` is without one.
    #[must_use]
    pub fn normalized(self) -> Self {
        let os = if self.os.eq_ignore_ascii_case("macos") { "darwin".to_owned() } else { self.os.to_ascii_lowercase() };
        let variant = self.variant.map(|text| text.to_ascii_lowercase()).filter(|text| !text.is_empty());
        let architecture = self.architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", Some("v8")),
            ("aarch64" | "arm64", other) => ("arm64", other),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("i386" | "i486" | "i586" | "i686" | "386", other) => ("386", other),
            (other, variant) => (other, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well something made for `offered` runs here: 0 is made for this very machine, `None` does not run.
    fn rank(&self, offered: &Self) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        if offered.variant == self.variant {
            return Some(0);
        }
        // A level of an architecture runs what lower levels were built for: "v8.2" above "v8", "v7" above "v6".
        let level = |variant: &Option<String>| match (variant.as_deref(), self.architecture.as_str()) {
            (None, "arm") => Some((7, 0)),
            (None, "arm64") => Some((8, 0)),
            (None, _) => Some((1, 0)),
            (Some(text), _) => {
                let (major, minor) = text.strip_prefix('v')?.split_once('.').unwrap_or((text.strip_prefix('v')?, "0"));
                Some((major.parse::<u16>().ok()?, minor.parse::<u16>().ok()?))
            }
        };
        let ((major, minor), (offered_major, offered_minor)) = (level(&self.variant)?, level(&offered.variant)?);
        let below = (u32::from(major) << 16 | u32::from(minor))
            .checked_sub(u32::from(offered_major) << 16 | u32::from(offered_minor));
        below.map(|below| below.saturating_add(1))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn image(change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
        let mut manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": DIGEST, "size": 7 },
            "layers": [{ "mediaType": LAYER_TYPES[1], "digest": DIGEST, "size": 3 }],
        });
        change(&mut manifest);
        manifest.to_string().into_bytes()
    }

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
        let entries: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(size, (os, architecture, variant))| {
                let platform = serde_json::json!({ "os": os, "architecture": architecture, "variant": variant });
                serde_json::json!({ "mediaType": OCI_MANIFEST, "digest": DIGEST, "size": size, "platform": platform })
            })
            .collect();
        let document = serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string();
        match decode(document.as_bytes(), Some(OCI_INDEX)) {
            Ok(Document::Index(index)) => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn image_of_either_family_is_read() {
        let docker = image(|manifest| {
            manifest["mediaType"] = DOCKER_MANIFEST.into();
            manifest["config"]["mediaType"] = DOCKER_CONFIG.into();
            manifest["layers"][0]["mediaType"] = LAYER_TYPES[7].into();
        });
        let silent = image(|manifest| drop(manifest.as_object_mut().map(|members| members.remove("mediaType"))));
        for (bytes, announced) in [
            (image(|_| {}), None),
            (image(|_| {}), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")),
            (image(|_| {}), Some("application/octet-stream")),
            (docker, Some(DOCKER_MANIFEST)),
            (silent.clone(), Some(OCI_MANIFEST)),
            (silent, None),
        ] {
            match decode(&bytes, announced) {
                Ok(Document::Manifest(manifest)) => {
                    assert_eq!((manifest.config.size_bytes, manifest.layers[0].size_bytes), (7, 3));
                }
                other => panic!("{announced:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn document_that_could_be_read_in_two_ways_is_refused() {
        let both = image(|manifest| manifest["manifests"] = serde_json::json!([]));
        let neither = br#"{"schemaVersion":2}"#.to_vec();
        let half = image(|manifest| drop(manifest.as_object_mut().map(|members| members.remove("config"))));
        let index_by_name = image(|manifest| manifest["mediaType"] = OCI_INDEX.into());
        for (bytes, announced) in [
            (both, None),
            (neither, None),
            (half, None),
            (index_by_name, None),
            (image(|_| {}), Some(DOCKER_MANIFEST)),
            (image(|_| {}), Some(OCI_INDEX)),
        ] {
            let error = decode(&bytes, announced).expect_err("it is refused");
            assert!(matches!(error, ManifestError::Contradiction { .. }), "{error:?}");
        }
        let twice = br#"{"schemaVersion":2,"layers":[],"layers":[]}"#;
        assert!(matches!(decode(twice, None), Err(ManifestError::Json(_))));
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_what_it_is() {
        let set = |path: &'static str, value: serde_json::Value| {
            image(move |manifest| *manifest.pointer_mut(path).expect("it is there") = value.clone())
        };
        let check = |bytes: Vec<u8>, fits: fn(&ManifestError) -> bool| {
            let error = decode(&bytes, None).expect_err("it is refused");
            assert!(fits(&error), "{error:?}");
        };
        check(set("/schemaVersion", 1.into()), |error| matches!(error, ManifestError::SchemaOne));
        check(set("/schemaVersion", 3.into()), |error| matches!(error, ManifestError::Schema { version: 3 }));
        check(set("/mediaType", "text/html".into()), |error| matches!(error, ManifestError::MediaType { .. }));
        let chart = "application/vnd.cncf.helm.config.v1+json";
        check(set("/config/mediaType", chart.into()), |error| matches!(error, ManifestError::Artifact { .. }));
        let encrypted = format!("{}+encrypted", LAYER_TYPES[1]);
        check(set("/layers/0/mediaType", encrypted.into()), |error| matches!(error, ManifestError::LayerType { .. }));
        check(set("/layers/0/digest", "sha256:../../x".into()), |error| matches!(error, ManifestError::Digest { .. }));
        check(set("/layers/0/size", (-1).into()), |error| matches!(error, ManifestError::Size { size: -1, .. }));
        check(set("/config/size", (9 << 20).into()), |error| matches!(error, ManifestError::Size { .. }));
        let layer = serde_json::json!({ "mediaType": LAYER_TYPES[0], "digest": DIGEST, "size": 1 });
        let layers = vec![layer; LAYERS_MAX + 1];
        check(set("/layers", layers.into()), |error| matches!(error, ManifestError::TooMany { of: "layers", .. }));
        check(vec![b' '; (4 << 20) + 1], |error| matches!(error, ManifestError::TooLong { .. }));
        check(b"<html>".to_vec(), |error| matches!(error, ManifestError::Json(_)));
        let old = decode(b"{}", Some("application/vnd.docker.distribution.manifest.v1+prettyjws"));
        assert!(matches!(old, Err(ManifestError::SchemaOne)));
    }

    #[test]
    fn entry_for_the_machine_is_chosen() {
        let machine = |architecture: &str, variant: Option<&str>| {
            let variant = variant.map(str::to_owned);
            Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }.normalized()
        };
        let offered: [(&str, &str, Option<&str>); 9] = [
            ("windows", "amd64", None),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", None),
            ("linux", "arm", Some("v5")),
            ("linux", "arm", Some("v7")),
            ("linux", "arm", Some("v6")),
            ("linux", "arm64", None),
            ("linux", "arm64", Some("v9")),
            ("linux", "386", None),
        ];
        let index = index(&offered);
        for (wanted, entry) in [
            (machine("amd64", None), 2),
            (machine("x86_64", Some("v1")), 2),
            (machine("amd64", Some("v3")), 1),
            (machine("amd64", Some("v2")), 2),
            (machine("arm64", Some("v8")), 6),
            (machine("aarch64", None), 6),
            (machine("arm64", Some("v9")), 7),
            (machine("arm", None), 4),
            (machine("arm", Some("v6")), 5),
            (machine("arm", Some("v8")), 4),
            (machine("386", None), 8),
        ] {
            assert_eq!(index.choose(&wanted).map(|entry| entry.size_bytes).ok(), Some(entry), "{wanted}");
        }
        let error = index.choose(&machine("riscv64", None)).expect_err("nothing fits");
        assert!(error.to_string().contains("linux/arm64/v8"), "{error}");
    }

    #[test]
    fn statements_about_an_image_are_not_the_image() {
        let entry = |platform: serde_json::Value, annotations: serde_json::Value| {
            let kind = OCI_MANIFEST;
            serde_json::json!({ "mediaType": kind, "digest": DIGEST, "size": 1, "platform": platform, "annotations": annotations })
        };
        let unknown = serde_json::json!({ "os": "unknown", "architecture": "unknown" });
        let about = serde_json::json!({ "vnd.docker.reference.type": "attestation-manifest" });
        let nothing = serde_json::Value::Null;
        let read = |entries: Vec<serde_json::Value>| {
            let document = serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string();
            match decode(document.as_bytes(), None) {
                Ok(Document::Index(index)) => index,
                other => panic!("{other:?}"),
            }
        };
        // Only one entry is an image, and it does not say of which machine.
        let index = read(vec![entry(unknown.clone(), about.clone()), entry(nothing.clone(), nothing.clone())]);
        assert!(index.choose(&Platform::host()).is_ok());
        let index = read(vec![entry(unknown, about)]);
        let error = index.choose(&Platform::host()).expect_err("none is an image");
        assert!(error.to_string().contains("no machine at all"), "{error}");
        let index = read(vec![entry(nothing.clone(), nothing.clone()), entry(nothing.clone(), nothing)]);
        assert!(index.choose(&Platform::host()).is_err(), "which of the two?");
    }
}
