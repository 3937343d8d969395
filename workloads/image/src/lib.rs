//! Images of containers: what they are called and how their bytes are proven.
//!
//! The crate trusts nothing it is handed: a reference is parsed by the grammar of the field, and content counts only
//! after its digest was computed here.

pub mod archive;
mod auth;
pub mod challenge;
pub mod config;
pub mod decompress;
pub mod digest;
mod error;
mod fault;
mod gc;
mod ingest;
mod layout;
mod lower;
pub mod manifest;
mod pull;
pub mod reference;
mod registry;
mod store;
pub mod tar;
mod transport;
pub mod unpack;

pub use archive::Archive;
pub use auth::Credentials;
pub use challenge::{Challenge, ChallengeError};
pub use config::{ConfigError, HealthCheck, ImageConfig};
pub use decompress::Bomb;
pub use digest::{Algorithm, Digest, DigestError, Verifier};
pub use error::ImageError;
pub use fault::{RegistryError, RegistryErrorKind};
pub use ingest::{Ingest, PlannedLayer};
pub use layout::{OnProgress, Progress};
pub use lower::Lower;
pub use manifest::{Descriptor, Document, Index, Manifest, ManifestError, Platform};
pub use pull::PullOptions;
pub use reference::{Reference, ReferenceError};
pub use store::{Freed, Image, Images, Removed, StoreOptions};
pub use unpack::{Limits, UnpackError, Unpacked};
