//! Who may take part in a migration: whoever has its key.
//!
//! The key is the seed of an Ed25519 key pair that both sides have. Each proves with a signature over the handshake that
//! it has it too; no certificate is involved.

use std::sync::Arc;

use godwit_types::MigrationKey;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring::sign::any_eddsa_type, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// What comes before an Ed25519 private key's seed in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What comes before an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What a side signs with, as a raw public key.
pub(crate) fn certified(key: &MigrationKey) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], key.bytes()].concat());
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(public(key)?)], any_eddsa_type(&pkcs8)?)))
}

/// The public key, as a SubjectPublicKeyInfo.
fn public(key: &MigrationKey) -> Result<Vec<u8>, Error> {
    let pair = Ed25519KeyPair::from_seed_unchecked(key.bytes())
        .map_err(|error| Error::General(format!("the migration's key is of no use: {error}")))?;
    Ok([&SPKI_PREFIX[..], pair.public_key().as_ref()].concat())
}

/// Accepts a peer that has the same key.
#[derive(Debug)]
pub(crate) struct SameKey {
    public: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl SameKey {
    pub(crate) fn new(key: &MigrationKey, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        Ok(Self { public: public(key)?, provider })
    }

    fn knows(&self, theirs: &CertificateDer<'_>) -> Result<(), Error> {
        if theirs.as_ref() == self.public { Ok(()) } else { Err(CertificateError::UnknownIssuer.into()) }
    }
}

/// What a verifier says of signatures, whichever side has made them: rustls asks for it in two traits.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            // It is never offered.
            Err(Error::General("TLS 1.2 is not spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            theirs: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let spki = SubjectPublicKeyInfoDer::from(theirs.as_ref());
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for SameKey {
    fn verify_server_cert(
        &self,
        theirs: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.knows(theirs).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for SameKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        theirs: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.knows(theirs).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
