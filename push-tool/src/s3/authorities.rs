//! Certificates of one's own, trusted beside the system's: authorities, or the very one that a store
//! shows.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// TLS that trusts what a PEM file holds.
///
/// # Errors
/// A file without a certificate, or with one that is none.
pub(super) fn trusting(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<ClientConfig, String> {
    let own: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let own = own.map_err(|error| error.to_string())?;
    if own.is_empty() {
        return Err("no certificate in it".into());
    }
    let make = |provider: Arc<CryptoProvider>| -> Result<ClientConfig, Error> {
        let authorities = Verifier::new_with_extra_roots(own.clone(), Arc::clone(&provider))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trust { authorities, own }))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    };
    make(provider).map_err(|error| error.to_string())
}

/// Trusts what authorities say, and a certificate of one's own by itself.
///
/// `openssl req -x509` makes one that is its own authority, which webpki takes for no server's; curl
/// and browsers do, once it is named.
#[derive(Debug)]
struct Trust {
    authorities: Verifier,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Err(refusal) = self.authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) else {
            return Ok(ServerCertVerified::assertion());
        };
        if !lacks_authority(&refusal) || !self.own.iter().any(|own| own == end_entity) {
            return Err(refusal);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Whether nothing but an authority is missing.
///
/// webpki looks at the dates before it says any of these, so the certificate is valid now.
fn lacks_authority(refusal: &Error) -> bool {
    match refusal {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(cause)) => {
            cause.to_string().contains("CaUsedAsEndEntity")
        }
        _ => false,
    }
}
