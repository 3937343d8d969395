//! Secret key files: one line of text, version first, never readable by others.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use data_encoding::HEXLOWER;

use crate::StateError;
use crate::file::write_durably;

/// Which secret a file holds; the kind stands in the file, so that two files cannot be swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519 seed of the node.
    Node,
    /// X25519 secret of the WireGuard tunnels.
    WireGuard,
    /// Ed25519 seed of a VDC owner.
    Owner,
}

impl KeyKind {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Node => "node.key",
            Self::WireGuard => "wg.key",
            Self::Owner => "owner.key",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::WireGuard => "wireguard",
            Self::Owner => "owner",
        }
    }
}

pub(crate) fn write(path: &Path, kind: KeyKind, secret: &[u8; 32]) -> Result<(), StateError> {
    write_durably(path, format!("meshd key 1 {} {}\n", kind.label(), HEXLOWER.encode(secret)).as_bytes())
}

pub(crate) fn read(path: &Path, kind: KeyKind) -> Result<[u8; 32], StateError> {
    let mode = fs::metadata(path).map_err(|e| StateError::io("read", path, e))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::KeyFileMode { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(|e| StateError::io("read", path, e))?;
    let bad = |why| StateError::KeyFile { path: path.to_owned(), why };
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let ["meshd", "key", version, label, hex] = words[..] else {
        return Err(bad("expected `meshd key VERSION KIND HEX`"));
    };
    if version != "1" {
        return Err(bad("its version is newer than this release"));
    }
    if label != kind.label() {
        return Err(bad("it holds a key of another kind"));
    }
    let secret = HEXLOWER.decode(hex.as_bytes()).map_err(|_| bad("the key is not hexadecimal"))?;
    secret.try_into().map_err(|_| bad("the key is not 32 bytes long"))
}
