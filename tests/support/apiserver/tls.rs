//! Certificates, made on the spot.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A certificate authority and a server certificate for 127.0.0.1; another authority for clients, if they need one.
pub(crate) struct Tls {
    alpn: Vec<Vec<u8>>,
    authority: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<Authority>,
}

/// What a client presents.
pub(crate) struct Client {
    /// PEM.
    pub(crate) certificate: String,
    /// PEM.
    pub(crate) key: String,
    pub(super) der: Vec<u8>,
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Tls {
    pub(crate) fn new(alpn: &[&[u8]]) -> Tls {
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|it| it.to_vec()).collect();
        let (authority, chain, key) = make();
        Tls { alpn, authority, chain, key, clients: None }
    }

    pub(crate) fn rotate(&mut self) {
        (self.authority, self.chain, self.key) = make();
    }

    /// The authority's certificate, PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// A certificate for a client. From now on every client needs one of this authority.
    pub(super) fn issue_client(&mut self) -> Client {
        let authority = self.clients.get_or_insert_with(Authority::new);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:kube-proxy");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        Client {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }

    /// The next client's certificate is of another authority.
    pub(super) fn forget_clients(&mut self) {
        self.clients = None;
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let builder = ServerConfig::builder();
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(self.chain.clone(), self.key.clone_key()).unwrap();
        config.alpn_protocols.clone_from(&self.alpn);
        Arc::new(config).into()
    }
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: Issuer::new(params, key) }
    }
}

/// An authority's certificate as PEM, and a server's chain and key.
fn make() -> (String, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = server.signed_by(&key, &authority.issuer).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (authority.certificate.pem(), chain, key)
}
