//! Images that a node has.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{PullProgress, RegistryAccess};

/// Gets an image from a registry, a directory or a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImagePull {
    /// `[REGISTRY/]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or `docker-archive:FILE` (paths of the node).
    pub image: String,
    /// Name it so, too.
    pub tag: Option<String>,
    pub registry: RegistryAccess,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum PullEvent {
    Progress(PullProgress),
    /// Last.
    Done(ImageView),
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// In full; none for an image that lost its names.
    pub names: Vec<String>,
    /// Digest of its manifest.
    pub manifest: String,
    /// Unpacked; layers are stored once, whoever shares them.
    pub size_bytes: u64,
    pub layers: u32,
    pub created_at: Option<String>,
    /// Workloads that it is kept for.
    pub in_use: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    pub images: Vec<ImageView>,
}

/// Gives an image one more name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageTag {
    /// A name, a digest or the first 12 digits of one.
    pub image: String,
    pub tag: String,
}

/// What a removal or clean-up gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagesFreed {
    /// Names that mean nothing any more.
    pub names: Vec<String>,
    pub layers: u32,
    pub bytes: u64,
}
