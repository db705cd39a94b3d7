//! Which certificates of controllers are trusted: the one that is pinned, or any that the machine trusts.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use godwit_types::power::Fingerprint;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, ring::default_provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Whom the machine trusts; none if that is nobody.
pub(in crate::power) type Roots = Option<Arc<RootCertStore>>;

/// Whom this machine trusts, read once.
pub(in crate::power) fn of_machine() -> Roots {
    static ROOTS: OnceLock<Roots> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("some certificates that this machine trusts cannot be read: {error}");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        (!roots.is_empty()).then(|| Arc::new(roots))
    };
    ROOTS.get_or_init(read).clone()
}

/// Looks at what a controller shows, and remembers it, so that people can be told what they might pin.
#[derive(Debug)]
pub(super) struct Trust {
    pinned: Option<Fingerprint>,
    /// None if nobody is trusted.
    signed: Option<Arc<WebPkiServerVerifier>>,
    seen: Mutex<Option<Fingerprint>>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    pub(super) fn new(pinned: Option<Fingerprint>, roots: Roots) -> Arc<Self> {
        let provider = Arc::new(default_provider());
        let verifier =
            |roots| WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        // Of a store that is not empty one can be made.
        let signed = roots.and_then(|roots| verifier(roots).ok());
        Arc::new(Self { pinned, signed, seen: Mutex::default(), provider })
    }

    /// What was shown last.
    pub(super) fn seen(&self) -> Option<Fingerprint> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// TLS by this trust.
    ///
    /// # Errors
    /// None with versions that the provider has.
    pub(super) fn config(self: &Arc<Self>) -> Result<ClientConfig, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as _);
        Ok(config.with_no_client_auth())
    }
}

/// Of the certificate itself, as `openssl x509 -fingerprint -sha256` has it.
fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Fingerprint(bytes)
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = fingerprint(end_entity);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        match (self.pinned, &self.signed) {
            (Some(pinned), _) if pinned == shown => Ok(ServerCertVerified::assertion()),
            (Some(_), _) => Err(CertificateError::ApplicationVerificationFailure.into()),
            (None, Some(signed)) => {
                signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            (None, None) => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What speaks against a certificate, in words.
pub(super) struct Why<'a>(pub(super) &'a rustls::Error);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
                f.write_str("it is another one than the one that is pinned")
            }
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                f.write_str("this machine does not trust whoever has signed it")
            }
            other => other.fmt(f),
        }
    }
}
