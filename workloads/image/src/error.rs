//! Why an image was not stored, found or removed.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::decompress::Bomb;
use crate::digest::{Digest, DigestError};
use crate::fault::RegistryError;
use crate::manifest::{ManifestError, Platform};
use crate::reference::ReferenceError;
use crate::unpack::UnpackError;

/// Why an image was not stored, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name of an image that is none.
    #[error("{text:?} is no name of an image")]
    Reference {
        /// The name as given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: ReferenceError,
    },
    /// The registry did not hand it out.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The program is ending.
    #[error("storing the image was interrupted")]
    Interrupted,
    /// The manifest cannot be used.
    #[error("the image cannot be used")]
    Manifest(#[from] ManifestError),
    /// The configuration cannot be used.
    #[error("the image's configuration cannot be used")]
    Config(#[from] ConfigError),
    /// The image is for another kind of machine.
    #[error("the image is for {found}, and this machine is {wanted}")]
    Platform {
        /// What this machine is.
        wanted: Box<Platform>,
        /// What the image says.
        found: Box<Platform>,
    },
    /// Manifest and configuration do not speak of the same layers.
    #[error("the image's manifest has {layers} layers and its configuration {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Layers of the configuration.
        diff_ids: usize,
    },
    /// There is nothing in it.
    #[error("the image has no layers: there is nothing to run")]
    NoLayers,
    /// Content that is not what it was asked for by.
    #[error("{what} is not what was asked for: it was damaged or exchanged on the way")]
    Digest {
        /// What the content is.
        what: &'static str,
        /// Which digests.
        #[source]
        source: DigestError,
    },
    /// Content shorter or longer than announced.
    #[error("{digest} has {found} bytes or more, and {announced} were announced")]
    Size {
        /// The content.
        digest: Digest,
        /// What was announced.
        announced: u64,
        /// How many came before that was noticed.
        found: u64,
    },
    /// The source of a layer failed.
    #[error("layer {digest} cannot be read from its source")]
    Source {
        /// The layer.
        digest: Digest,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// A layer that cannot be unpacked.
    #[error("layer {digest} cannot be unpacked")]
    Layer {
        /// The layer.
        digest: Digest,
        /// Why not.
        #[source]
        source: UnpackError,
    },
    /// A layer that was made to fill the disk.
    #[error("layer {digest} is refused")]
    Bomb {
        /// The layer.
        digest: Digest,
        /// What it does.
        #[source]
        source: Bomb,
    },
    /// A layer before those below it, or an image before all its layers.
    #[error("layer {index} of the image is not there yet")]
    Order {
        /// The layer that is missing, bottom first.
        index: usize,
    },
    /// There is not enough room.
    #[error(
        "the disk is full: the image needs about {needed_bytes} bytes and {free_bytes} are free; remove images that are not used"
    )]
    DiskFull {
        /// What the image needs, with what is kept free for the host.
        needed_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// No such image is stored.
    #[error("there is no image {text:?} here")]
    NotFound {
        /// What was looked for.
        text: String,
    },
    /// Another process has the store open.
    #[error("{} is in use by another process", .directory.display())]
    Busy {
        /// The store.
        directory: PathBuf,
    },
    /// A layout or an archive that has not what it should have.
    #[error("{}: {why}", .path.display())]
    Import {
        /// The layout or archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk or the kernel did not do what was asked.
    #[error("{}: {step}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
