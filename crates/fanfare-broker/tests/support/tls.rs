//! TLS in front of a broker that has none: certificates made for the occasion, and a relay that shows them.

use std::path::PathBuf;
use std::sync::Arc;

use fanfare_broker::amqp::ClientCertificate;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::split;

/// Signs certificates, and keeps them in a folder that goes with it.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

/// Ends TLS and passes on what is inside.
pub(crate) struct TlsRelay {
    /// The broker's URL, by way of the relay.
    pub(crate) url: String,
    _running: DropGuard,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("fanfare-test-{}", Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder is made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key is made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("the authority signs itself");
        std::fs::write(folder.join("authority.pem"), issuer.pem()).expect("a file is written");
        Self { issuer, folder }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    pub(crate) fn client(&self) -> ClientCertificate {
        let (certificate, key) = self.sign("client");
        let (path, key_path) = (self.folder.join("client.pem"), self.folder.join("client.key"));
        std::fs::write(&path, certificate.pem()).expect("a file is written");
        std::fs::write(&key_path, key.serialize_pem()).expect("a file is written");
        ClientCertificate { certificate: path, key: key_path }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key is made");
        let params = CertificateParams::new([name.to_owned()]).expect("the name is valid");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate is signed");
        (certificate, key)
    }

    fn server(&self, clients: Option<&Self>) -> ServerConfig {
        let (certificate, key) = self.sign("localhost");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("the key is valid");
        let builder = ServerConfig::builder();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).expect("the authority is valid");
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                builder.with_client_cert_verifier(verifier.expect("the authority is valid"))
            }
        };
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        builder.with_single_cert(chain, key).expect("the certificate is valid")
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // What is left is for the system to clear away.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl TlsRelay {
    /// A relay with a certificate of `authority`, which asks for certificates of `clients` where there are any.
    pub(crate) async fn start(url: &str, authority: &Authority, clients: Option<&Authority>) -> Self {
        let (_, credentials, broker, path) = split(url);
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(clients)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("the listener is bound").port();
        let running = CancellationToken::new();
        let stop = running.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                let (client, _) = listener.accept().await.expect("the listener is bound");
                let (acceptor, broker) = (acceptor.clone(), broker.clone());
                tokio::spawn(async move {
                    // A client that does not trust this certificate, or is not trusted, is turned away.
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let mut server = TcpStream::connect(&broker).await.expect("the broker is there");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        }));
        Self { url: format!("amqps://{credentials}localhost:{port}{path}"), _running: running.drop_guard() }
    }
}
