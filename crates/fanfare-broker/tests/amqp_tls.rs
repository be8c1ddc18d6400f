//! RabbitMQ behind TLS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fanfare_broker::amqp::{Config, Tls};
use fanfare_broker::{Broker, BrokerError};
use support::tls::{Authority, TlsRelay};
use support::{broker, config, consume, declared, id, message, next, url};

fn secured(relay: &TlsRelay, tls: Tls) -> Config {
    let mut config = config(&relay.url);
    config.tls = tls;
    config
}

#[tokio::test]
async fn broker_with_a_certificate_of_the_given_authority_is_trusted() {
    let authority = Authority::new();
    let relay = TlsRelay::start(&url(), &authority, None).await;
    let broker = broker(secured(&relay, Tls { authorities: Some(authority.file()), client: None }));
    let queue = declared(&*broker, "classic").await;
    broker.publish(&queue, message("secret")).await.unwrap();
    let (_channel, mut consumer) = consume(&*broker, &queue).await;
    assert_eq!(id(&next(&mut consumer).await), "secret");
    assert_eq!(broker.server().await.unwrap().product, "RabbitMQ");
    broker.delete(&queue).await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn broker_with_a_certificate_of_another_authority_is_not_trusted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let relay = TlsRelay::start(&url(), &authority, None).await;
    for authorities in [Some(other.file()), None] {
        let broker = broker(secured(&relay, Tls { authorities, client: None }));
        let error = broker.inspect("queue").await.unwrap_err();
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
        broker.close().await;
    }
}

#[tokio::test]
async fn broker_that_is_not_the_one_its_certificate_names_is_not_trusted() {
    let authority = Authority::new();
    let relay = TlsRelay::start(&url(), &authority, None).await;
    let mut secured = secured(&relay, Tls { authorities: Some(authority.file()), client: None });
    secured.urls = config(&relay.url.replace("@localhost:", "@127.0.0.1:")).urls;
    let broker = broker(secured);
    let error = broker.inspect("queue").await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && error.to_lowercase().contains("certificate"), "{error}");
    broker.close().await;
}

#[tokio::test]
async fn client_shows_its_certificate_to_a_broker_that_asks_for_it() {
    let authority = Authority::new();
    let relay = TlsRelay::start(&url(), &authority, Some(&authority)).await;
    let anonymous = broker(secured(&relay, Tls { authorities: Some(authority.file()), client: None }));
    assert!(matches!(anonymous.inspect("queue").await, Err(BrokerError::Unreachable(_))));
    let tls = Tls { authorities: Some(authority.file()), client: Some(authority.client()) };
    let known = broker(secured(&relay, tls));
    known.inspect("queue").await.unwrap();
    known.close().await;
}

#[tokio::test]
async fn file_that_cannot_be_used_is_named() {
    let authority = Authority::new();
    let relay = TlsRelay::start(&url(), &authority, None).await;
    let broker = broker(secured(&relay, Tls { authorities: Some("/nowhere/ca.pem".into()), client: None }));
    let error = broker.inspect("queue").await.unwrap_err().to_string();
    assert!(error.contains("`/nowhere/ca.pem`"), "{error}");
}
