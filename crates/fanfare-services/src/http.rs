use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fanfare_protocol::{limits, quoted};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use serde_json::value::RawValue;

use crate::DEFAULT_TIMEOUT;
use crate::answer::{self, NotJson};

/// Bytes of a failure's body that are read to quote its start.
const FAILURE_BYTES: usize = 4 * 1024;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A URL that is posted to as a service: the payload as JSON in the request, the answer as JSON in the response.
///
/// Only this URL is ever requested: a redirect is a failure, and neither payload nor context can change where it goes. What it
/// is invoked for travels in the headers `Fanfare-Cid`, `Fanfare-Run`, `Fanfare-Key`, `Fanfare-Source`, `Fanfare-Channel`, `Fanfare-Message-Id`
/// and `Fanfare-Attempt`, and the caller's metadata, where there is any, as a JSON object in `Fanfare-Metadata`; what is no visible ASCII in
/// them is percent-encoded, as UTF-8, and so is `%`.
///
/// A 2xx status is success; an empty body then answers `null`. Any other status is a failure with the start of the body in
/// `exception`; one of 4xx is not retried, but for 408, 425 and 429, which say that it was only too early. For `https`, the certificates that the system trusts are trusted.
#[derive(Debug, Clone)]
pub struct HttpService {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    timeout: Duration,
}

/// A URL cannot be posted to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// It is not a URL.
    #[error("{} is not a URL: give http://host/path or https://host/path", quoted(.url))]
    Malformed {
        /// What was given.
        url: String,
        /// What does not fit.
        source: hyper::http::uri::InvalidUri,
    },
    /// It is of another kind.
    #[error("{} does not begin with http:// or https://", quoted(.0))]
    Scheme(String),
    /// It holds a user name or a password, which would end up in logs.
    #[error("a URL with a user name or a password is not allowed: let a proxy beside the worker add them")]
    Credentials,
    /// The certificates that the system trusts cannot be read.
    #[error(
        "the certificates that the system trusts cannot be read: install them (on Debian, package ca-certificates)"
    )]
    Certificates(#[source] std::io::Error),
}

/// Posting to a URL did not bring an answer. The URL is shown without its query, which may hold a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server could not be reached, or the connection was lost.
    #[error("POST {url} failed")]
    Connection {
        /// The URL.
        url: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server did not answer in time.
    #[error("POST {url} did not end within {timeout:?}")]
    TimedOut {
        /// The URL.
        url: String,
        /// The time-out.
        timeout: Duration,
    },
    /// The server answered with another status than 2xx.
    #[error("POST {url} answered {status}: {start}")]
    Status {
        /// The URL.
        url: String,
        /// The status.
        status: StatusCode,
        /// The start of the body.
        start: String,
    },
    /// The answer is larger than a result can be.
    #[error(
        "POST {url} answered more than {} bytes: store the data elsewhere and return a reference to it",
        limits::RESULT_BYTES
    )]
    TooLarge {
        /// The URL.
        url: String,
    },
    /// The answer is not JSON.
    #[error("POST {url} answered something that is not JSON")]
    NotJson {
        /// The URL.
        url: String,
        /// What does not fit.
        source: NotJson,
    },
}

impl HttpError {
    /// Whether the server says that the request is wrong, so that another attempt would only repeat the failure.
    pub(crate) fn is_fatal(&self) -> bool {
        const PASSING: [StatusCode; 3] =
            [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
        matches!(self, Self::Status { status, .. } if status.is_client_error() && !PASSING.contains(status))
    }
}

impl HttpService {
    /// Whether a URL is one that can be posted to, without looking for the certificates that this takes.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn check(url: &str) -> Result<(), InvalidUrl> {
        parse(url).map(drop)
    }

    /// A service that posts to an `http://` or `https://` URL.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        let url = parse(url)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(&url).map_err(InvalidUrl::Certificates)?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, url, timeout: DEFAULT_TIMEOUT })
    }

    /// Sets how long one invocation may take, from the connection to the end of the answer; 5 minutes otherwise.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Posts once. The request is given up when the future is dropped.
    pub(crate) async fn run(
        &self,
        input: Bytes,
        context: &[(&'static str, String)],
    ) -> Result<Box<RawValue>, HttpError> {
        let timed_out = |_| HttpError::TimedOut { url: self.shown(), timeout: self.timeout };
        tokio::time::timeout(self.timeout, self.post(input, context)).await.map_err(timed_out)?
    }

    async fn post(
        &self,
        input: Bytes,
        context: &[(&'static str, String)],
    ) -> Result<Box<RawValue>, HttpError> {
        let lost = |source| HttpError::Connection { url: self.shown(), source };
        let response = self.client.request(self.request(input, context)).await.map_err(|e| lost(e.into()))?;
        let status = response.status();
        if !status.is_success() {
            let start = start_of_body(response).await;
            return Err(HttpError::Status { url: self.shown(), status, start });
        }
        let body =
            Limited::new(response.into_body(), limits::RESULT_BYTES).collect().await.map_err(|source| {
                if source.is::<LengthLimitError>() {
                    HttpError::TooLarge { url: self.shown() }
                } else {
                    lost(source)
                }
            })?;
        answer::parse(&body.to_bytes()).map_err(|source| HttpError::NotJson { url: self.shown(), source })
    }

    fn request(&self, input: Bytes, context: &[(&'static str, String)]) -> Request<Full<Bytes>> {
        let mut request = Request::post(self.url.clone())
            .body(Full::new(input))
            .expect("a URL that was parsed is one that can be requested");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, JSON);
        for (name, value) in context {
            let value = HeaderValue::try_from(percent_encoded(value)).expect("only plain ASCII is left");
            headers.insert(HeaderName::from_static(name), value);
        }
        request
    }

    fn shown(&self) -> String {
        let (scheme, host) = (self.url.scheme_str().unwrap_or_default(), self.url.authority());
        format!("{scheme}://{}{}", host.map_or("", |host| host.as_str()), self.url.path())
    }
}

fn parse(text: &str) -> Result<Uri, InvalidUrl> {
    // Looked for before anything is quoted in an error.
    if text.split(['/', '?', '#']).nth(2).is_some_and(|authority| authority.contains('@')) {
        return Err(InvalidUrl::Credentials);
    }
    let url: Uri = text.parse().map_err(|source| InvalidUrl::Malformed { url: text.to_owned(), source })?;
    match url.scheme_str() {
        Some("http" | "https") => Ok(url),
        _ => Err(InvalidUrl::Scheme(text.to_owned())),
    }
}

/// Reads the system's certificates only where they are needed: a small container may have none.
fn tls_config(url: &Uri) -> std::io::Result<ClientConfig> {
    let provider = rustls::crypto::ring::default_provider().into();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring offers the protocol versions that rustls takes for safe");
    let builder = match url.scheme_str() {
        Some("https") => builder.with_native_roots()?,
        _ => builder.with_root_certificates(RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

async fn start_of_body(response: Response<Incoming>) -> String {
    let mut body = response.into_body();
    let mut start = BytesMut::new();
    while start.len() < FAILURE_BYTES {
        let Some(Ok(frame)) = body.frame().await else { break };
        start.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    match answer::start_of(&start) {
        empty if empty.is_empty() => "an empty body".to_owned(),
        start => start,
    }
}

/// A key can hold any characters, and a header only some of ASCII.
fn percent_encoded(value: &str) -> String {
    value.bytes().fold(String::with_capacity(value.len()), |mut encoded, byte| {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
        encoded
    })
}

#[cfg(test)]
mod tests;
