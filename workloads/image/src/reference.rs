//! What an image is called: `debian:12`, `registry.example:5000/team/app@sha256:…`.
//!
//! The grammar is the one of the distribution project, with the same short names: a name without a registry is of
//! Docker Hub, and one without a path there is of its `library`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry that a name without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Longest registry and path together, as the distribution grammar has it.
const NAME_BYTES_MAX: usize = 255;
/// Longest tag.
const TAG_BYTES_MAX: usize = 128;
/// Longest whole reference: name, tag and the longest digest, with what parts them.
const REFERENCE_BYTES_MAX: usize = NAME_BYTES_MAX + 1 + TAG_BYTES_MAX + 1 + 7 + 128;

/// Where an image is and which one of it is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and, if it was written, port of the registry.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides when a tag stands beside it.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why some text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Longer than any name may be.
    #[error("the name of an image has at most {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// The part that names the registry is no host with an optional port.
    #[error("{registry:?} is no host of a registry")]
    Registry {
        /// The part as written.
        registry: String,
    },
    /// The path is empty or has a part that the grammar does not allow.
    #[error("{repository:?} is no name of an image: lower-case letters, digits and . _ - between them, parted by /")]
    Repository {
        /// The path as written.
        repository: String,
    },
    /// The tag is empty, too long or has other characters.
    #[error("{tag:?} is no tag: up to {TAG_BYTES_MAX} letters, digits and _ . - of which the first is no . or -")]
    Tag {
        /// The tag as written.
        tag: String,
    },
    /// What follows the @ is no digest.
    #[error("the digest after @ cannot be read")]
    Digest(#[source] DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(ReferenceError::Digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it begins a port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_start..].find(':') {
            Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { tag: tag.to_owned() });
        }
        let (registry, path) = split_registry(name);
        if !is_registry(registry) {
            return Err(ReferenceError::Registry { registry: registry.to_owned() });
        }
        if !path.split('/').all(is_path_part) {
            return Err(ReferenceError::Repository { repository: path.to_owned() });
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// The first part is a registry only if it cannot be a path: it has a dot or a port, or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", path)) => (DEFAULT_REGISTRY, path),
        Some((first, path)) if first == "localhost" || first.contains(['.', ':']) || has_upper(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    port_fits && host.is_none_or(|host| host.split('.').all(is_host_label))
}

fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// Lower-case letters and digits, parted by one dot, one or two underscores, or any number of dashes.
fn is_path_part(part: &str) -> bool {
    let alphanumeric = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part
            .split(alphanumeric)
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= TAG_BYTES_MAX
        && !tag.is_empty()
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_what_the_field_means_by_them() {
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[fd00::1]/app:v1", "[fd00::1]/app:v1"),
            ("Registry/app", "Registry/app:latest"),
            ("a.example/x__y/z--q.r", "a.example/x__y/z--q.r:latest"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), whole);
            assert_eq!(whole.parse(), Ok(reference), "{whole}");
        }
    }

    #[test]
    fn digest_decides_and_needs_no_tag() {
        let digest = Digest::of(b"manifest");
        let alone: Reference = format!("debian@{digest}").parse().expect("a reference");
        assert_eq!((alone.tag(), alone.digest()), (None, Some(&digest)));
        let both: Reference = format!("debian:12@{digest}").parse().expect("a reference");
        assert_eq!((both.tag(), both.digest()), (Some("12"), Some(&digest)));
    }

    #[test]
    fn name_outside_of_the_grammar_is_refused() {
        let long = "a".repeat(250);
        for text in [
            "",
            "/",
            ":",
            "@",
            "Debian",
            "debian:",
            "debian:-1",
            "debian@",
            "debian@sha256:0",
            "a//b",
            "a/../b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "a_",
            "-a",
            "a b",
            "a\n",
            "é",
            "x.example:0/a",
            "x.example:99999/a",
            "x.example:+5/a",
            "x.example:/a",
            "-x.example/a",
            "x..example/a",
            "[::1/a",
            "[zz]:5000/a",
            "[::1]5000/a",
            "user@host/a",
            "http://x.example/a",
            long.as_str(),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
