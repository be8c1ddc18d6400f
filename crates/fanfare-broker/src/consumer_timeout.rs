//! RabbitMQ's consumer time-out: how long a delivery may stay unacked, and how an operator raises that.
//!
//! The broker does not tell a client what it is set to. What holds a delivery for longer loses it: it is handed out again.

use std::time::Duration;

use fanfare_protocol::Prefix;

use crate::ServerInfo;

/// What it is where nobody changed it.
pub const DEFAULT: Duration = Duration::from_secs(30 * 60);

/// The first version where queues can have one of their own.
const PER_QUEUE: (u32, u32) = (3, 12);
/// The first version where only quorum queues have one.
const QUORUM_ONLY: (u32, u32) = (4, 3);

/// How to raise it for the services' queues of a prefix, on this version of the broker.
///
/// Never by a queue argument: the protocol fixes those, and a queue with others cannot be declared any more.
#[must_use]
pub fn how_to_raise(server: &ServerInfo, prefix: &Prefix) -> String {
    let for_all = "`consumer_timeout = MILLISECONDS` in the broker's rabbitmq.conf, and restart it";
    let policy = |kind: &str| {
        let prefix = prefix.as_str().replace('.', "\\.");
        format!(
            "rabbitmqctl set_policy -p VHOST {prefix}-slow '^{prefix}\\.service\\.NAME$' \
             '{{\"consumer-timeout\":MILLISECONDS}}' --apply-to {kind}; or for all queues {for_all}"
        )
    };
    match server.release() {
        Some(release) if release < PER_QUEUE => {
            format!("set {for_all}: RabbitMQ before 3.12 has one for all queues alike")
        }
        Some(release) if release < QUORUM_ONLY => policy("queues"),
        Some(_) => policy("quorum_queues"),
        None => format!("set {for_all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(version: &str) -> String {
        let server = ServerInfo {
            product: "RabbitMQ".to_owned(),
            version: version.to_owned(),
            address: "amqp://localhost".to_owned(),
        };
        how_to_raise(&server, &Prefix::new("a.b").unwrap())
    }

    #[test]
    fn each_version_is_told_what_it_understands() {
        for version in ["3.10.8", "3.11.28"] {
            assert!(
                !on(version).contains("set_policy") && on(version).contains("rabbitmq.conf"),
                "{version}"
            );
        }
        for version in ["3.12.0", "4.0.5", "4.2.1"] {
            assert!(on(version).contains("--apply-to queues;"), "{version}");
        }
        for version in ["4.3.6", "5.0.0"] {
            assert!(on(version).contains("--apply-to quorum_queues;"), "{version}");
        }
        assert!(on("4.0.5").contains(r"-p VHOST a\.b-slow '^a\.b\.service\.NAME$' '{"));
        assert!(on("unknown").contains("rabbitmq.conf"));
    }
}
