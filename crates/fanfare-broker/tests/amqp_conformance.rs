//! RabbitMQ passes the suite that every broker passes.

mod support;

use std::sync::Arc;

use fanfare_broker::Broker;
use fanfare_broker::conformance::{Harness, Kill};
use support::proxy::Proxy;
use support::{broker, config, split, url};

/// The broker that the environment names.
struct RabbitMq;

#[async_trait::async_trait]
impl Harness for RabbitMq {
    async fn connect(&self) -> Arc<dyn Broker> {
        broker(config(&url()))
    }

    fn user(&self) -> String {
        let url = url();
        let (_, credentials, ..) = split(&url);
        credentials.split([':', '@']).next().filter(|user| !user.is_empty()).unwrap_or("guest").to_owned()
    }

    async fn connect_mortal(&self) -> (Arc<dyn Broker>, Kill) {
        let proxy = Proxy::start(&url()).await;
        let client = broker(config(&proxy.url));
        (client, Box::new(move || proxy.cut()))
    }
}

fanfare_broker::conformance_tests!(RabbitMq);
