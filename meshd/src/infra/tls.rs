//! Mutual TLS 1.3 with raw Ed25519 node keys (RFC 7250, RFC 8410): no certificates, no names, no authorities.

use std::collections::HashSet;
use std::sync::{Arc, RwLock};

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use vdc::{Key, SigningKey};

/// The reachable members' node keys, replaced whenever the view changes.
pub(crate) type MemberKeys = Arc<RwLock<Arc<HashSet<Key>>>>;

/// The protocols of the infra plane (RFC 7301): one question, the node's API, and coordination groups.
pub(super) const HELLO_PROTOCOL: &[u8] = b"meshd-hello/1";
pub(super) const API_PROTOCOL: &[u8] = b"meshd-api/1";
pub(super) const COORD_PROTOCOL: &[u8] = b"meshd-coord/1";

/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// PKCS #8 of an Ed25519 seed up to the seed itself (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A node's TLS identity and whom it accepts.
#[derive(Clone, Debug)]
pub(crate) struct InfraTls {
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    members: MemberKeys,
    server: Arc<ServerConfig>,
}

impl InfraTls {
    pub(super) fn new(key: &SigningKey, members: MemberKeys) -> Self {
        let provider = Arc::new(ring::default_provider());
        let pkcs8 = [PKCS8_PREFIX.as_slice(), &key.seed()].concat();
        let signer = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).expect("a well-formed Ed25519 seed");
        let spki = CertificateDer::from([SPKI_PREFIX.as_slice(), &key.public().0].concat());
        let certified = Arc::new(CertifiedKey::new(vec![spki], signer));
        let verifier = Arc::new(Verifier {
            members: Arc::clone(&members),
            expected: None,
            algorithms: provider.signature_verification_algorithms,
        });
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring supports TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&certified))));
        // Who names no protocol asks the first one's question.
        let mut server = server;
        server.alpn_protocols = vec![API_PROTOCOL.to_vec(), COORD_PROTOCOL.to_vec(), HELLO_PROTOCOL.to_vec()];
        Self { certified, provider, members, server: Arc::new(server) }
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// A client that talks to `peer` and nobody else, by this protocol.
    pub(super) fn client(&self, peer: Key, protocol: &[u8]) -> Arc<ClientConfig> {
        let verifier = Arc::new(Verifier {
            members: Arc::clone(&self.members),
            expected: Some(peer),
            algorithms: self.provider.signature_verification_algorithms,
        });
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring supports TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&self.certified))));
        let mut config = config;
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }
}

/// TLS wants a server name; identity comes from the key alone.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("infra.meshd.internal").expect("a literal name")
}

/// Accepts exactly the members' keys, and as a client exactly the one that was asked for.
#[derive(Debug)]
struct Verifier {
    members: MemberKeys,
    expected: Option<Key>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The node key of a peer's raw public key.
pub(super) fn key_of(spki: &CertificateDer<'_>) -> Option<Key> {
    spki.as_ref().strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok()).map(Key)
}

impl Verifier {
    fn check(&self, spki: &CertificateDer<'_>) -> Result<(), Error> {
        let refused = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let key = key_of(spki).ok_or_else(refused)?;
        let members = self.members.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if members.contains(&key) && self.expected.is_none_or(|expected| expected == key) {
            Ok(())
        } else {
            Err(refused())
        }
    }

    fn signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not spoken, so its signatures never come.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, spki, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, spki, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
