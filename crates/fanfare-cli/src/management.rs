//! RabbitMQ's management API, which alone tells about policies and lists queues: AMQP does not.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fanfare_broker::amqp::Address;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The port of the management plugin where nobody changed it.
const DEFAULT_PORT: u16 = 15672;
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer: some 100,000 queues.
const ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// Why it is not asked at a broker that is reached through TLS.
pub(crate) const WITHOUT_TLS: &str = "the broker is reached through TLS, and the management API only without: give its URL, \
                                      http://HOST:PORT, with --management where that is safe";

/// Where it is.
#[derive(Debug, Clone)]
pub(crate) struct ManagementUrl(String);

impl FromStr for ManagementUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |url: &Uri| url.scheme_str() == Some("http") && url.query().is_none();
        let host = |url: &Uri| url.authority().is_some_and(|host| !host.as_str().contains('@'));
        match text.parse::<Uri>() {
            Ok(url) if is_plain(&url) && host(&url) => Ok(Self(text.trim_end_matches('/').to_owned())),
            // It may hold a password.
            _ => Err("it is not the URL of a management API: give http://HOST:PORT, without user and password, which are \
                      those of --broker"
                .to_owned()),
        }
    }
}

/// The management API of one broker, for one virtual host.
pub(crate) struct Management {
    url: String,
    authorization: String,
    virtual_host: String,
}

impl Management {
    /// The one of a broker, at a URL where that is given. None where a password would travel in the clear that does not so
    /// far.
    pub(crate) fn of(broker: &Address, url: Option<&ManagementUrl>) -> Option<Self> {
        if broker.is_tls() && url.is_none() {
            return None;
        }
        let credentials = format!("{}:{}", broker.user(), broker.password());
        let default = || match broker.host() {
            host if host.contains(':') => format!("http://[{host}]:{DEFAULT_PORT}"),
            host => format!("http://{host}:{DEFAULT_PORT}"),
        };
        Some(Self {
            url: url.map_or_else(default, |ManagementUrl(url)| url.clone()),
            authorization: format!("Basic {}", STANDARD.encode(credentials)),
            virtual_host: broker.virtual_host().to_owned(),
        })
    }

    /// The queues of the virtual host, with these columns.
    ///
    /// # Errors
    /// Why it does not tell.
    pub(crate) async fn queues<T: DeserializeOwned>(&self, columns: &str) -> Result<Vec<T>, String> {
        self.told(&format!("/api/queues/{}?columns={columns}", encoded(&self.virtual_host))).await
    }

    /// The policies of the virtual host, and the operators' policies.
    ///
    /// # Errors
    /// Why it does not tell.
    pub(crate) async fn policies<T: DeserializeOwned>(&self) -> Result<(Vec<T>, Vec<T>), String> {
        let virtual_host = encoded(&self.virtual_host);
        let users = self.told(&format!("/api/policies/{virtual_host}")).await?;
        Ok((users, self.told(&format!("/api/operator-policies/{virtual_host}")).await?))
    }

    async fn told<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let told = match self.ask(Method::GET, path).await {
            Ok((status, body)) if status.is_success() => {
                serde_json::from_slice(&body).map_err(|error| error.to_string())
            }
            Ok((status, _)) => Err(format!("it answered {status}")),
            Err(reason) => Err(reason),
        };
        told.map_err(|reason| format!("{self} does not tell: {reason}"))
    }

    /// The tags of a queue's consumers.
    ///
    /// # Errors
    /// Why it does not tell.
    pub(crate) async fn consumer_tags(&self, queue: &str) -> Result<Vec<String>, String> {
        #[derive(Deserialize)]
        struct Consumer {
            consumer_tag: String,
        }
        #[derive(Deserialize)]
        struct Queue {
            consumer_details: Vec<Consumer>,
        }
        let path = format!("/api/queues/{}/{}", encoded(&self.virtual_host), encoded(queue));
        let Queue { consumer_details } = self.told(&path).await?;
        Ok(consumer_details.into_iter().map(|consumer| consumer.consumer_tag).collect())
    }

    /// Deletes a queue, unless it is consumed.
    ///
    /// # Errors
    /// Why it is not deleted, or may not be.
    pub(crate) async fn delete_unused(&self, queue: &str) -> Result<(), String> {
        let path = format!("/api/queues/{}/{}?if-unused=true", encoded(&self.virtual_host), encoded(queue));
        match self.ask(Method::DELETE, &path).await? {
            (status, _) if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            (status, body) => Err(format!("{self} answered {status}: {}", String::from_utf8_lossy(&body))),
        }
    }

    async fn ask(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), String> {
        let url: Uri = format!("{}{path}", self.url).parse().map_err(|error| format!("{error}"))?;
        let request = Request::builder().method(method).uri(url).header(AUTHORIZATION, &self.authorization);
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = async {
            let response = client.request(request).await.map_err(|_| "nobody answers there".to_owned())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let timed_out = |_| format!("it did not answer within {ANSWER_TIMEOUT:?}");
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(timed_out)?
    }
}

impl fmt::Display for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the management API at {}", self.url)
    }
}

/// A name as a part of a path.
fn encoded(name: &str) -> String {
    name.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes everything");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_url_of_a_management_api_is_refused_without_its_password() {
        for text in
            ["nonsense", "https://host:15671", "http://me:hunter2@host", "http://host/?a=b", "", "/api"]
        {
            let error = text.parse::<ManagementUrl>().unwrap_err();
            assert!(error.contains("give http://HOST:PORT") && !error.contains("hunter2"), "{error}");
        }
        assert_eq!("http://host:15672/".parse::<ManagementUrl>().unwrap().0, "http://host:15672");
        assert!("http://[::1]:15672/behind/a/proxy".parse::<ManagementUrl>().is_ok());
    }
}
