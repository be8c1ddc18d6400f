use std::time::Duration;

use fanfare_protocol::QueueSpec;
use fanfare_protocol::queue::Argument;

use crate::BrokerError;

/// What the arguments of a queue mean.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// A quorum queue, which counts deliveries; else a classic one.
    pub(super) quorum: bool,
    /// Only the consumer that came first is served.
    pub(super) single_active_consumer: bool,
    /// After how long without use the queue goes.
    pub(super) expires: Option<Duration>,
    /// After how long a message that waits expires.
    pub(super) message_ttl: Option<Duration>,
    /// How often a message may go back before it is dead-lettered.
    pub(super) delivery_limit: Option<u64>,
    /// How many messages may wait before publishers are refused.
    pub(super) max_length: Option<usize>,
    /// Where messages go that expire or reach the delivery limit. Without it they are dropped.
    pub(super) dead_letter: Option<DeadLetterTo>,
}

/// Where dead letters of a queue go.
#[derive(Debug, Clone)]
pub(super) struct DeadLetterTo {
    /// A queue, through the default exchange; without one, that which the message's own routing key names.
    pub(super) queue: Option<String>,
    /// Whether they are kept while that queue is missing. Else they are dropped then.
    pub(super) at_least_once: bool,
}

impl Arguments {
    /// Reads the arguments of a queue. One that this broker does not honour is refused, never ignored: what works here
    /// must work on RabbitMQ.
    pub(super) fn read(spec: &QueueSpec) -> Result<Self, BrokerError> {
        let mut read = Self::default();
        let mut exchange = false;
        let mut routing_key = None;
        let mut at_least_once = false;
        let mut reject_publish = false;
        for (name, value) in &spec.arguments {
            match (*name, value) {
                ("x-queue-type", Argument::Text(kind)) if kind == "quorum" => read.quorum = true,
                ("x-queue-type", Argument::Text(kind)) if kind == "classic" => {}
                ("x-single-active-consumer", Argument::Bool(single)) => read.single_active_consumer = *single,
                ("x-expires", Argument::Int(ms @ 1..)) => read.expires = Some(milliseconds(*ms)),
                ("x-message-ttl", Argument::Int(ms @ 0..)) => read.message_ttl = Some(milliseconds(*ms)),
                ("x-delivery-limit", Argument::Int(limit @ 0..)) => {
                    read.delivery_limit = Some(limit.unsigned_abs());
                }
                ("x-max-length", Argument::Int(length @ 0..)) => {
                    read.max_length = Some(usize::try_from(*length).unwrap_or(usize::MAX));
                }
                ("x-overflow", Argument::Text(what)) if what == "reject-publish" => reject_publish = true,
                ("x-dead-letter-exchange", Argument::Text(name)) if name.is_empty() => exchange = true,
                ("x-dead-letter-routing-key", Argument::Text(key)) => routing_key = Some(key.to_string()),
                ("x-dead-letter-strategy", Argument::Text(strategy)) => {
                    at_least_once = match strategy.as_str() {
                        "at-least-once" => true,
                        "at-most-once" => false,
                        _ => return Err(refused(spec, name, value)),
                    };
                }
                _ => return Err(refused(spec, name, value)),
            }
        }
        if exchange {
            read.dead_letter = Some(DeadLetterTo { queue: routing_key, at_least_once });
        }
        let conflict = if read.quorum && spec.exclusive {
            Some("a quorum queue cannot be exclusive")
        } else if !read.quorum && (read.delivery_limit.is_some() || at_least_once) {
            Some("x-delivery-limit and x-dead-letter-strategy are for quorum queues")
        } else if read.max_length.is_some() && !reject_publish {
            Some("the in-memory broker has x-max-length with x-overflow reject-publish only")
        } else {
            None
        };
        match conflict {
            Some(rule) => Err(BrokerError::Refused(format!("queue `{}`: {rule}", spec.name))),
            None => Ok(read),
        }
    }
}

fn milliseconds(count: i64) -> Duration {
    Duration::from_millis(count.unsigned_abs())
}

fn refused(spec: &QueueSpec, name: &str, value: &Argument) -> BrokerError {
    let queue = &spec.name;
    BrokerError::Refused(format!("queue `{queue}`: the in-memory broker does not know {name} = {value:?}"))
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Cid, QueueNames, RunId, ServiceName};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn every_queue_of_the_protocol_is_understood() {
        let names = QueueNames::default();
        let cid = Cid::new("c").unwrap();
        let run: RunId = Uuid::nil().simple().to_string().parse().unwrap();
        let service = names.service(&ServiceName::new("a").unwrap());
        for spec in [
            names.fanin(),
            names.dead(),
            names.parked(),
            names.delay(1),
            names.aggregation(&cid, run),
            names.replicated_aggregation(&cid, run),
            names.payload(&cid, run, run),
            names.replicated_payload(&cid, run, run),
            names.wait(run),
            names.coordinator(run),
            names.worker(run),
        ] {
            Arguments::read(&spec).unwrap();
        }
        let read = Arguments::read(&service).unwrap();
        assert!(read.quorum);
        assert_eq!(read.dead_letter.unwrap().queue.as_deref(), Some("fanfare.dead"));
    }

    #[test]
    fn an_argument_that_would_be_ignored_is_refused() {
        for (name, value) in [
            ("x-max-priority", Argument::Int(3)),
            ("x-queue-type", "stream".into()),
            ("x-delivery-limit", Argument::Int(-1)),
            ("x-dead-letter-exchange", "elsewhere".into()),
            ("x-max-length", Argument::Int(1)),
        ] {
            let arguments = [(name, value)].into();
            let spec = QueueSpec { name: "q".into(), exclusive: false, arguments };
            assert!(matches!(Arguments::read(&spec), Err(BrokerError::Refused(_))), "{name}");
        }
    }
}
