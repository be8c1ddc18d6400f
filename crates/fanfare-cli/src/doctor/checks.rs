//! What the doctor looks at.

use std::time::Duration;

use fanfare::{BrokerError, Cid, Environment, Fanfare, PublishError, RunId, ServiceName, System};
use fanfare_broker::amqp::redacted;
use fanfare_broker::{QueueState, consumer_timeout};
use fanfare_operator::to_prefix;
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec, counted, limits};

use super::finding::{Finding, Verdict};
use crate::exit::remedy;

/// The oldest version that Fanfare is tested with.
const OLDEST: (u32, u32) = (3, 10);

/// Looks at one broker.
pub(super) struct Examination<'a> {
    pub(super) fanfare: &'a Fanfare,
    /// The coordinators' renewal interval.
    pub(super) renewal: Duration,
    /// What the broker's consumer time-out is said to be.
    pub(super) consumer_timeout: Duration,
    /// Shards of shared aggregation; 0 for none.
    pub(super) shards: u32,
}

impl Examination<'_> {
    /// Whether it can be reached, and its version.
    pub(super) async fn server(&self) -> Finding {
        let server = match self.fanfare.broker().server().await {
            Ok(server) => server,
            Err(error) => {
                return Finding::new(Verdict::Wrong, "broker", error.to_string()).remedy(remedy(&error));
            }
        };
        let found = format!("{} {} at {}", server.product, server.version, server.address);
        match server.release() {
            Some(release) if release < OLDEST => Finding::new(Verdict::Warn, "broker", found)
                .remedy(format!("Fanfare is tested from RabbitMQ {}.{} on: update it", OLDEST.0, OLDEST.1)),
            Some(_) => Finding::new(Verdict::Ok, "broker", found),
            None => {
                Finding::new(Verdict::Note, "broker", format!("{found}, a version that is not known here"))
            }
        }
    }

    /// Tries what publishers, workers and coordinators do, on a queue that is deleted again.
    pub(super) async fn permissions(&self) -> Vec<Finding> {
        let id = System.unique();
        let queue = self.fanfare.names().aggregation(&Cid::from(id), RunId::from(id));
        let broker = self.fanfare.broker();
        let configure = broker.declare(&queue).await;
        let mut findings = vec![self.permission("configure", "declare queues", configure.clone())];
        if configure.is_err() {
            return findings;
        }
        let write = broker.publish(&queue.name, Message::default()).await.map_err(BrokerError::from);
        findings.push(self.permission("write", "publish", write));
        findings.push(self.permission("read", "consume", self.consume(&queue).await));
        findings.push(self.permission("configure", "delete queues", broker.delete(&queue.name).await));
        findings
    }

    async fn consume(&self, queue: &QueueSpec) -> Result<(), BrokerError> {
        let channel = self.fanfare.broker().open().await?;
        let consumed = channel.consume(&queue.name, 1).await.map(drop);
        channel.close().await;
        consumed
    }

    fn permission(&self, permission: &str, what_for: &str, tried: Result<(), BrokerError>) -> Finding {
        let what = format!("permission to {permission} ({what_for})");
        let prefix = self.fanfare.names().prefix().as_str().replace('.', "\\.");
        match tried {
            Ok(()) => Finding::new(Verdict::Ok, what, "granted"),
            Err(BrokerError::Denied(reason)) => Finding::denied(what, "try", &reason),
            Err(error) => Finding::new(Verdict::Wrong, what, error.to_string()).remedy(format!(
                "rabbitmqctl set_permissions -p VHOST USER '^{prefix}\\.' '^({prefix}\\..*|amq\\.default)$' '^{prefix}\\.'"
            )),
        }
    }

    /// Whether the broker takes what is signed with the `user_id`, where there is one.
    pub(super) async fn user_id(&self) -> Option<Finding> {
        let user_id = self.fanfare.publisher().config().user_id.as_ref()?;
        let what = format!("user_id `{user_id}`");
        Some(match self.fanfare.broker().check_user_id(user_id).await {
            Ok(()) => Finding::new(Verdict::Ok, what, "the broker takes it"),
            Err(BrokerError::Denied(reason)) => Finding::denied(what, "try", &reason),
            Err(BrokerError::WrongUser(reason)) => Finding::new(Verdict::Wrong, what, reason).remedy(
                "set it to this login, or leave it out: nobody can invoke or coordinate with another",
            ),
            Err(error) => Finding::new(Verdict::Wrong, what, error.to_string())
                .remedy("see that the broker takes messages: rabbitmq-diagnostics alarms"),
        })
    }

    /// The exchanges through which fan-outs are cancelled, and whether anyone listens.
    pub(super) async fn cancelling(&self) -> Vec<Finding> {
        let names = self.fanfare.names();
        let (coordinators, workers) = (names.coordinators(), names.workers());
        vec![
            self.exchange(&coordinators, "no fan-out can be cancelled").await,
            self.exchange(&workers, "a cancel keeps no target from being run").await,
        ]
    }

    /// Whether an exchange is there and leads to anyone. A message that nobody knows is sent to find out: those who hear it drop it.
    async fn exchange(&self, exchange: &ExchangeSpec, without: &str) -> Finding {
        let finding =
            |verdict, found: &str| Finding::new(verdict, format!("exchange {}", exchange.name), found);
        let broker = self.fanfare.broker();
        let heard = match broker.publish_through(&exchange.name, "", Message::default()).await {
            Err(PublishError::NoExchange(_)) => {
                let deleted =
                    "missing, and coordinators run: it was deleted, and comes back with them within 30 s";
                return match self.is_taken_from_coordinators(exchange).await {
                    true => finding(Verdict::Warn, deleted).remedy(
                        "ask again; until then, no coordinator can be asked, and nothing be cancelled",
                    ),
                    false => finding(Verdict::Note, "not there yet: whoever listens first declares it"),
                };
            }
            heard => heard,
        };
        let declared = match broker.declare_exchange(exchange).await {
            // It may be of another type, which matters only where nobody hears what is sent.
            Err(BrokerError::Denied(_)) => Ok(()),
            declared => declared,
        };
        match (declared, heard) {
            (Err(error), _) => finding(Verdict::Wrong, &error.to_string()).remedy(
                "where it is of another type: rabbitmqadmin delete exchange name=NAME, and have those who listen connect again",
            ),
            (Ok(()), Ok(())) => finding(Verdict::Ok, "there, and heard"),
            (Ok(()), Err(PublishError::Unbound(_))) => {
                finding(Verdict::Note, &format!("there, and nobody listens, so {without}"))
            }
            (Ok(()), Err(error)) => match error.refusal() {
                Some(BrokerError::Denied(reason)) => {
                    Finding::denied(format!("exchange {}", exchange.name), "look", reason)
                }
                _ => finding(Verdict::Wrong, &error.with_cause())
                    .remedy("see that the broker takes messages: rabbitmq-diagnostics alarms"),
            },
        }
    }

    /// Whether it is the one by which coordinators are asked, and some of them run. Workers are known by nothing else than their exchange.
    async fn is_taken_from_coordinators(&self, exchange: &ExchangeSpec) -> bool {
        let names = self.fanfare.names();
        let dead = self.fanfare.broker().inspect(&names.dead_queue()).await;
        *exchange == names.coordinators() && matches!(dead, Ok(Some(QueueState { consumers: 1.., .. })))
    }

    /// The manifests' queue, and whether a coordinator consumes it.
    pub(super) async fn coordinators(&self) -> Vec<Finding> {
        let queue = self.fanfare.names().fanin();
        let (finding, state) = self.queue(&queue).await;
        let start = format!("fanfare coordinator{}", to_prefix(self.fanfare.names()));
        let coordinators = |verdict, found: &str| Finding::new(verdict, "coordinators", found);
        let present = match state.map(|state| (state.consumers, state.messages)) {
            Some((0, waiting)) if waiting > 0 => coordinators(
                Verdict::Wrong,
                &format!("none, and {} for one", counted(waiting, "fan-out waits", "fan-outs wait")),
            )
            .remedy(format!("start one: {start}")),
            // It could not be looked at.
            None if finding.verdict != Verdict::Note => return vec![finding],
            None | Some((0, _)) => coordinators(Verdict::Wrong, "none")
                .remedy(format!("start one, since no fan-out ends without: {start}")),
            Some((consumers, _)) => coordinators(Verdict::Ok, &there(consumers)),
        };
        vec![finding, present]
    }

    /// The shards, whether each is consumed, and whether there are more than were told of.
    pub(super) async fn shards(&self) -> Vec<Finding> {
        let names = self.fanfare.names();
        let mut findings = Vec::new();
        for shard in 0..self.shards {
            let queue = names.shard(shard);
            let (finding, state) = self.queue(&queue).await;
            // It is told below that no coordinator has declared it.
            let missing = finding.verdict == Verdict::Note;
            findings.extend(Some(finding).filter(|_| !missing));
            let (verdict, found) = match state {
                None if missing => {
                    (Verdict::Warn, "none has declared it, so publishers are refused".to_owned())
                }
                Some(QueueState { consumers: 0, messages }) => {
                    let verdict = if messages > 0 { Verdict::Wrong } else { Verdict::Warn };
                    (verdict, format!("nobody consumes it, and {}", waits(messages)))
                }
                _ => continue,
            };
            let finding = Finding::new(verdict, format!("coordinators of {}", queue.name), found);
            findings.push(finding.remedy(format!(
                "have a coordinator serve it: fanfare coordinator --shards {}",
                self.shards
            )));
        }
        let next = names.shard(self.shards).name;
        if self.shards < limits::SHARDS && matches!(self.fanfare.broker().exists(&next).await, Ok(true)) {
            let found = format!("{next} is there, and {} shards are configured here", self.shards);
            findings.push(Finding::new(Verdict::Warn, "number of shards", found).remedy(
                "give all publishers and coordinators the same --shards; where there were more once, drain and delete the others",
            ));
        }
        findings
    }

    /// The queues that should be empty, and what they hold.
    pub(super) async fn left_behind(&self) -> Vec<Finding> {
        let names = self.fanfare.names();
        let parked =
            "each says in its header fanfare-reason why it is there: move back what is good, purge the rest";
        let dead =
            "the broker gave these up, and their header x-death says why: look at what befell their service";
        let mut findings = Vec::new();
        for (queue, remedy) in [(names.parked(), parked), (names.dead(), dead)] {
            let (finding, state) = self.queue(&queue).await;
            findings.push(finding);
            if let Some(state) = state.filter(|state| state.messages > 0) {
                let found = counted(state.messages, "message", "messages");
                findings.push(
                    Finding::new(Verdict::Warn, format!("kept in {}", queue.name), found).remedy(remedy),
                );
            }
        }
        findings
    }

    /// A service's queue, and whether a worker consumes it.
    pub(super) async fn service(&self, service: &ServiceName) -> Vec<Finding> {
        let queue = self.fanfare.names().service(service);
        let (finding, state) = self.queue(&queue).await;
        let workers = |verdict, found: &str| Finding::new(verdict, format!("workers of {service}"), found);
        let prefix = to_prefix(self.fanfare.names());
        let start = format!("start one that serves it: fanfare worker --service {service}{prefix}");
        let present = state.map(|state| match (state.consumers, state.messages) {
            (0, 0) => workers(Verdict::Note, "none, and nothing waits for one"),
            (0, waiting) => {
                workers(Verdict::Wrong, &format!("none, and {} for one", waits(waiting))).remedy(start)
            }
            (consumers, waiting) => {
                workers(Verdict::Ok, &format!("{}, and {}", there(consumers), waits(waiting)))
            }
        });
        std::iter::once(finding).chain(present).collect()
    }

    /// Whether a queue is there, with the right arguments. Only one that is there is declared again, which the broker refuses
    /// where its arguments are others: to declare a missing one would create it.
    async fn queue(&self, queue: &QueueSpec) -> (Finding, Option<QueueState>) {
        let what = format!("queue {}", queue.name);
        let broker = self.fanfare.broker();
        let state = match broker.inspect(&queue.name).await {
            Ok(Some(state)) => state,
            Ok(None) => {
                let found = "not there yet: whoever needs it first declares it";
                return (Finding::new(Verdict::Note, what, found), None);
            }
            Err(error) => return (trouble(what, "look", &error), None),
        };
        let finding = match broker.declare(queue).await {
            Ok(()) => Finding::new(Verdict::Ok, what, "there, with the right arguments"),
            Err(error) => trouble(what, "compare its arguments", &error),
        };
        (finding, Some(state))
    }

    /// What matters and cannot be asked through AMQP, and how to find it out.
    pub(super) async fn what_the_broker_does_not_tell(&self) -> Vec<Finding> {
        let timeout = self.consumer_timeout().await;
        let files = "every open fan-out takes up to two of them on the broker";
        let files = Finding::new(Verdict::Unknown, "file descriptors", files).remedy(
            "see that the limit is 20000 or more, or thrice the fan-outs that are open at a time: \
             rabbitmqctl eval 'file_handle_cache:info([total_limit, total_used]).' on 3.x, ulimit -n of the broker on 4.x",
        );
        vec![timeout, files]
    }
}

impl Examination<'_> {
    /// What is held for longer comes again: the broker does not tell how long that is, so this is what it is said to be.
    async fn consumer_timeout(&self) -> Finding {
        let (said, renewal) = (self.consumer_timeout, self.renewal);
        let ask = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'";
        if renewal.saturating_mul(2) >= said {
            let found =
                format!("said to be {}, and coordinators renew every {}", shown(said), shown(renewal));
            return Finding::new(Verdict::Wrong, "consumer time-out", found).remedy(format!(
                "set coordinator.renewal below half of it; where consumer_timeout is not what the broker has, correct it: {ask}"
            ));
        }
        let found =
            format!("taken for {}; coordinators renew what they hold every {}", shown(said), shown(renewal));
        let raise = match self.fanfare.broker().server().await {
            Ok(server) => consumer_timeout::how_to_raise(&server, self.fanfare.names().prefix()),
            Err(error) => error.to_string(),
        };
        Finding::new(Verdict::Unknown, "consumer time-out", found).remedy(format!(
            "see that it is above {}, and above the time that your longest target takes: {ask} To raise it: {raise}. \
             Then say so in consumer_timeout",
            shown(2 * renewal)
        ))
    }
}

/// Whether one of this command's arguments holds a password, as those of its siblings are likely to.
pub(super) fn password_in_sight(mut arguments: impl Iterator<Item = String>) -> Option<Finding> {
    let holds_password = |argument: String| argument.contains("://") && redacted(&argument) != argument;
    arguments.any(holds_password).then(|| {
        Finding::new(
            Verdict::Warn,
            "password",
            "it is in the command line, which whoever may list processes can read",
        )
        .remedy(
            "give the URL in FANFARE_BROKER or fanfare.toml, or the password alone in --broker-password-file",
        )
    })
}

/// What is to be said of a queue that cannot be looked at or declared. Only one that has other arguments is to be deleted.
fn trouble(what: String, could_not: &str, error: &BrokerError) -> Finding {
    let remedy = match error {
        BrokerError::Denied(reason) => return Finding::denied(what, could_not, reason),
        BrokerError::QueueDiffers { .. } => {
            "with nothing in it that is needed: rabbitmqctl delete_queue NAME; else use another --prefix"
        }
        _ => "see that the nodes of the cluster run that hold it: rabbitmqctl cluster_status",
    };
    Finding::new(Verdict::Wrong, what, error.to_string()).remedy(remedy)
}

fn shown(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}

#[cfg(test)]
mod tests;

fn waits(messages: u64) -> String {
    counted(messages, "message waits", "messages wait")
}

/// A process has as many consumers as it has channels for what it consumes.
fn there(consumers: u64) -> String {
    format!("there ({}, of which a process may have several)", counted(consumers, "consumer", "consumers"))
}
