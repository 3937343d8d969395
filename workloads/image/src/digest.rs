//! Digests by which content is named, and the check that content has the digest it was asked for by.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256, Sha512};

/// The hash of a digest. The two that the OCI image specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal digits.
    Sha256,
    /// SHA-512, 128 hexadecimal digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The name of some content: `sha256:` and its hash in lower-case hexadecimal.
///
/// The text is checked on the way in, so it is safe as the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// The digest of bytes at hand, by SHA-256.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: HEXLOWER.encode(&Sha256::digest(bytes)) }
    }

    /// Which hash it is.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Why some text is no digest, or content not the content of a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon, or a hash that is not supported.
    #[error("a digest begins with sha256: or sha512:")]
    Algorithm,
    /// The digits are not as many as the hash has, or not lower-case hexadecimal.
    #[error("a {} digest has {expected} lower-case hexadecimal digits", .algorithm.name())]
    Digits {
        /// The hash that was named.
        algorithm: Algorithm,
        /// How many digits it has.
        expected: usize,
    },
    /// The content hashes to something else.
    #[error("the content was asked for as {expected} and is {found}")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Algorithm)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm),
        };
        let expected = algorithm.digits();
        let hexadecimal = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != expected || !hexadecimal {
            return Err(DigestError::Digits { algorithm, expected });
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }
}

/// Hashes content as it passes and compares at the end.
#[derive(Debug)]
pub struct Verifier {
    expected: Digest,
    hash: Hash,
}

#[derive(Debug)]
enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Verifier {
    /// Begins to check content that was asked for by `expected`.
    #[must_use]
    pub fn new(expected: Digest) -> Self {
        let hash = match expected.algorithm {
            Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hash::Sha512(Sha512::new()),
        };
        Self { expected, hash }
    }

    /// The next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hash {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The end of the content.
    ///
    /// # Errors
    ///
    /// [`DigestError::Mismatch`] if the content is not what was asked for.
    pub fn finish(self) -> Result<Digest, DigestError> {
        let hex = match self.hash {
            Hash::Sha256(hash) => HEXLOWER.encode(&hash.finalize()),
            Hash::Sha512(hash) => HEXLOWER.encode(&hash.finalize()),
        };
        let found = Digest { algorithm: self.expected.algorithm, hex };
        if found == self.expected { Ok(found) } else { Err(DigestError::Mismatch { expected: self.expected, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_known_content_is_the_published_one() {
        // FIPS 180-2, appendix B.1: SHA-256 of "abc".
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn digest_in_any_other_spelling_is_refused() {
        let zeros = "0".repeat(64);
        for text in [
            String::new(),
            zeros.clone(),
            format!("md5:{zeros}"),
            format!("SHA256:{zeros}"),
            format!("sha256:{}", &zeros[1..]),
            format!("sha256:{zeros}0"),
            format!("sha512:{zeros}"),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}", "../".repeat(21) + "."),
            format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn content_in_pieces_is_checked_as_a_whole() {
        for (pieces, fits) in [(vec!["a", "bc"], true), (vec!["abc", "d"], false), (vec![], false)] {
            let mut verifier = Verifier::new(Digest::of(b"abc"));
            for piece in &pieces {
                verifier.update(piece.as_bytes());
            }
            assert_eq!(verifier.finish().is_ok(), fits, "{pieces:?}");
        }
    }

    #[test]
    fn sha512_is_checked_by_sha512() {
        // FIPS 180-2, appendix C.1: SHA-512 of "abc".
        let expected: Digest = concat!(
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a",
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        )
        .parse()
        .expect("the digest of the standard");
        let mut verifier = Verifier::new(expected.clone());
        verifier.update(b"abc");
        assert_eq!(verifier.finish(), Ok(expected));
    }
}
