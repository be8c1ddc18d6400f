//! From an address to a stream of bytes, with TLS where the address asks for it.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_rs::Runtime;
use async_rs::traits::{Reactor, RuntimeKit};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, RustlsConnector, RustlsConnectorConfig, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::config::Tls;

/// How long one address may take to accept a connection, where its URL does not say.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an address may take to accept a connection.
pub(super) fn timeout(uri: &AMQPUri) -> Duration {
    uri.query.connection_timeout.map_or(DIAL_TIMEOUT, Duration::from_millis)
}

/// Connects to an address. lapin's own way there has no time-out, and insists on the system's authorities, which a small
/// container does not have.
pub(super) async fn dial<Kit: RuntimeKit + Send + Sync>(
    uri: &AMQPUri,
    tls: &Tls,
    runtime: &Runtime<Kit>,
) -> io::Result<AsyncTcpStream<<Kit as Reactor>::TcpStream>> {
    let mut plain = uri.clone();
    plain.scheme = AMQPScheme::AMQP;
    let dialled = async {
        let stream = plain.connect_with_config_async(TLSConfig::default(), runtime).await?;
        match uri.scheme {
            AMQPScheme::AMQP => Ok(stream),
            AMQPScheme::AMQPS => stream.into_rustls(&connector(tls)?, &uri.authority.host).await,
        }
    };
    let limit = timeout(uri);
    tokio::time::timeout(limit, dialled)
        .await
        .unwrap_or_else(|_| Err(io::Error::other(format!("no connection within {limit:?}"))))
}

fn connector(tls: &Tls) -> io::Result<RustlsConnector> {
    let config = match &tls.authorities {
        Some(path) => {
            RustlsConnectorConfig::default().with_parsable_certificates(certificates("authorities", path)?)
        }
        None => RustlsConnectorConfig::new_with_native_certs()?,
    };
    match &tls.client {
        Some(client) => config.connector_with_single_cert(
            certificates("client certificate", &client.certificate)?,
            private_key(&client.key)?,
        ),
        None => config.connector_with_no_client_auth(),
    }
}

fn certificates(what: &str, path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| unreadable(what, path, &error))?.collect();
    let found = found.map_err(|error| unreadable(what, path, &error))?;
    if found.is_empty() {
        return Err(unreadable(what, path, &"it holds no certificate in PEM form"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable("client key", path, &error))
}

fn unreadable(what: &str, path: &Path, reason: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("the TLS {what} in `{}` cannot be used: {reason}", path.display()))
}
