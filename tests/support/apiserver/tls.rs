//! Certificates, made on the spot.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority and a server certificate for 127.0.0.1.
pub(crate) struct Tls {
    alpn: Vec<Vec<u8>>,
    authority: String,
    config: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(alpn: &[&[u8]]) -> Tls {
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|it| it.to_vec()).collect();
        let (authority, config) = make(&alpn);
        Tls { alpn, authority, config }
    }

    pub(crate) fn rotate(&mut self) {
        (self.authority, self.config) = make(&self.alpn);
    }

    /// The authority's certificate, PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }
}

fn make(alpn: &[Vec<u8>]) -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = server.signed_by(&server_key, &issuer).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.to_vec();
    (authority, Arc::new(config))
}
