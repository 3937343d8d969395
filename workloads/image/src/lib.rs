//! Images of containers: what they are called and how their bytes are proven.
//!
//! The crate trusts nothing it is handed: a reference is parsed by the grammar of the field, and content counts only
//! after its digest was computed here.

pub mod digest;
pub mod reference;

pub use digest::{Algorithm, Digest, DigestError, Verifier};
pub use reference::{Reference, ReferenceError};
