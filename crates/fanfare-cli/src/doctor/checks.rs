//! What the doctor looks at.

use std::time::Duration;

use fanfare::{BrokerError, Cid, Environment, Fanfare, PublishError, RunId, ServiceName, System};
use fanfare_broker::amqp::redacted;
use fanfare_broker::{QueueState, consumer_timeout};
use fanfare_protocol::{ExchangeSpec, Message, QueueSpec, limits};

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
        let write = match broker.publish(&queue.name, Message::default()).await {
            Err(PublishError::NotSent(error) | PublishError::Unknown(error)) => Err(error),
            Err(error) => Err(BrokerError::Refused(error.to_string())),
            Ok(()) => Ok(()),
        };
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
                return finding(Verdict::Note, "not there yet: whoever listens first declares it");
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

    /// The manifests' queue, and whether a coordinator consumes it.
    pub(super) async fn coordinators(&self) -> Vec<Finding> {
        let queue = self.fanfare.names().fanin();
        let (finding, state) = self.queue(&queue).await;
        let coordinators = |verdict, found: &str| Finding::new(verdict, "coordinators", found);
        let present = match state.map(|state| (state.consumers, state.messages)) {
            Some((0, waiting)) if waiting > 0 => {
                coordinators(Verdict::Wrong, &format!("none, and {waiting} fan-outs wait for one"))
                    .remedy("start one: fanfare coordinator")
            }
            // It could not be looked at.
            None if finding.verdict != Verdict::Note => return vec![finding],
            None | Some((0, _)) => coordinators(Verdict::Wrong, "none")
                .remedy("start one, since no fan-out ends without: fanfare coordinator"),
            Some((consumers, _)) => coordinators(Verdict::Ok, &format!("there ({consumers} consumers)")),
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
                    (verdict, format!("nobody consumes it, and {messages} messages wait"))
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
                let found = format!("{} messages", state.messages);
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
        let start = format!("start one that serves it: fanfare worker --service {service}");
        let present = state.map(|state| match (state.consumers, state.messages) {
            (0, 0) => workers(Verdict::Note, "none, and nothing waits for one"),
            (0, waiting) => {
                workers(Verdict::Wrong, &format!("none, and {waiting} messages wait for one")).remedy(start)
            }
            (consumers, waiting) => {
                workers(Verdict::Ok, &format!("there ({consumers} consumers), and {waiting} messages wait"))
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
mod tests {
    use std::sync::Arc;

    use fanfare::QueueNames;
    use fanfare_broker::Broker;
    use fanfare_broker::memory::MemoryBroker;

    use super::super::denying::Denying;
    use super::*;

    #[test]
    fn only_a_queue_with_other_arguments_is_to_be_deleted() {
        let queue = "fanfare.fanin".to_owned();
        let differs = BrokerError::QueueDiffers { queue: queue.clone(), reason: "x-queue-type".to_owned() };
        let told = |error: &BrokerError| trouble("queue a".to_owned(), "look", error).to_string();
        assert!(told(&differs).contains("delete_queue"));
        for error in [
            BrokerError::Denied("user 'u' lacks the right to configure".to_owned()),
            BrokerError::Unavailable { queue, reason: "its node is down".to_owned() },
            BrokerError::Unreachable("connection refused".to_owned()),
        ] {
            assert!(!told(&error).contains("delete"), "{error:?}");
        }
    }

    const RENEWAL: Duration = Duration::from_secs(600);

    /// As the settings have it where nobody says otherwise, without shards.
    fn examination(fanfare: &Fanfare) -> Examination<'_> {
        Examination { fanfare, renewal: RENEWAL, consumer_timeout: consumer_timeout::DEFAULT, shards: 0 }
    }

    fn text(findings: &[Finding]) -> String {
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    #[tokio::test]
    async fn permissions_are_tried_and_nothing_is_left_behind() {
        let fanfare = Fanfare::in_memory();
        let found = examination(&fanfare).permissions().await;
        assert!(
            found.len() == 4 && found.iter().all(|finding| finding.verdict == Verdict::Ok),
            "{}",
            text(&found)
        );
    }

    #[tokio::test]
    async fn fan_outs_that_wait_for_a_coordinator_are_wrong() {
        let fanfare = Fanfare::in_memory();
        let examination = examination(&fanfare);
        assert!(
            text(&examination.coordinators().await)
                .contains("WRONG   coordinators: none\n        -> start one")
        );
        fanfare.fanout("test").target("a", 1).on_final("b").declare_missing().invoke().await.unwrap();
        let found = text(&examination.coordinators().await);
        assert!(found.contains("ok      queue fanfare.fanin: there, with the right arguments"), "{found}");
        assert!(found.contains("WRONG   coordinators: none, and 1 fan-outs wait for one"), "{found}");
        let found = text(&examination.service(&ServiceName::new("a").unwrap()).await);
        assert!(found.contains("WRONG   workers of a: none, and 1 messages wait for one"), "{found}");
    }

    #[tokio::test]
    async fn what_the_user_may_not_look_at_is_neither_wrong_nor_well() {
        let (broker, names) = (MemoryBroker::new(), QueueNames::default());
        let shard = names.shard(0);
        for queue in [names.fanin(), shard.clone()] {
            broker.declare(&queue).await.unwrap();
        }
        let channel = broker.open().await.unwrap();
        let _coordinator = channel.consume(&names.fanin().name, 1).await.unwrap();
        broker.declare_exchange(&names.workers()).await.unwrap();
        let ear = names.worker(RunId::from(System.unique()));
        channel.declare_exclusive(&ear).await.unwrap();
        channel.bind(&ear.name, &names.workers().name).await.unwrap();

        for lets_look in [false, true] {
            let could_not = if lets_look { "compare its arguments" } else { "look" };
            let lacks = |name: &str| {
                format!(
                    "denied  queue {name}: could not {could_not}: user 'u' lacks the right to configure on '{name}'\n"
                )
            };
            let denying = Denying { broker: broker.connect(), lets_look };
            let fanfare = Fanfare::on(Arc::new(denying)).build().unwrap();
            let examination = Examination { shards: 1, ..examination(&fanfare) };
            let coordinators = text(&examination.coordinators().await);
            assert!(coordinators.starts_with(&lacks(&names.fanin().name)), "{coordinators}");
            assert_eq!(coordinators.contains("ok      coordinators: there (1 consumers)"), lets_look);
            let shards = text(&examination.shards().await);
            assert!(shards.starts_with(&lacks(&shard.name)), "{shards}");
            assert_eq!(shards.contains("nobody consumes it"), lets_look, "{shards}");
            let permissions = text(&examination.permissions().await);
            assert!(permissions.starts_with("denied  permission to configure"), "{permissions}");
            let exchanges = text(&examination.cancelling().await);
            assert!(exchanges.contains("ok      exchange fanfare.workers: there, and heard"), "{exchanges}");
            for told in [coordinators, shards, permissions, exchanges] {
                assert!(!told.contains("WRONG"), "{told}");
            }
        }
    }

    #[tokio::test]
    async fn exchange_that_nobody_listens_to_is_worth_knowing_and_a_missing_one_is_not_created() {
        let fanfare = Fanfare::in_memory();
        let examination = examination(&fanfare);
        for _ in 0..2 {
            let found = text(&examination.cancelling().await);
            assert_eq!(found.matches("not there yet").count(), 2, "{found}");
        }
        let (broker, workers) = (fanfare.broker(), fanfare.names().workers());
        broker.declare_exchange(&workers).await.unwrap();
        let found = text(&examination.cancelling().await);
        assert!(
            found.contains("note    exchange fanfare.workers: there, and nobody listens, so a cancel"),
            "{found}"
        );
        let channel = broker.open().await.unwrap();
        let queue = fanfare.names().worker(RunId::from(System.unique()));
        channel.declare_exclusive(&queue).await.unwrap();
        channel.bind(&queue.name, &workers.name).await.unwrap();
        let found = text(&examination.cancelling().await);
        assert!(found.contains("ok      exchange fanfare.workers: there, and heard"), "{found}");
    }

    #[tokio::test]
    async fn queue_with_other_arguments_is_wrong_and_a_missing_one_is_not_created() {
        let fanfare = Fanfare::in_memory();
        let examination = examination(&fanfare);
        let service = ServiceName::new("a").unwrap();
        let queue = fanfare.names().service(&service);
        assert!(
            text(&examination.service(&service).await)
                .starts_with("note    queue fanfare.service.a: not there yet")
        );
        assert_eq!(fanfare.broker().inspect(&queue.name).await.unwrap(), None);
        let other = QueueSpec { name: queue.name.clone(), ..fanfare.names().fanin() };
        fanfare.broker().declare(&other).await.unwrap();
        let found = text(&examination.service(&service).await);
        assert!(found.starts_with("WRONG   queue fanfare.service.a: "), "{found}");
    }

    #[tokio::test]
    async fn shard_that_no_coordinator_has_declared_is_told_and_not_created() {
        let fanfare = Fanfare::in_memory();
        let examination = Examination { shards: 2, ..examination(&fanfare) };
        let (broker, names) = (fanfare.broker(), fanfare.names());
        broker.declare(&names.shard(0)).await.unwrap();
        let found = text(&examination.shards().await);
        assert_eq!(
            found,
            "ok      queue fanfare.shard.0: there, with the right arguments\n\
             warn    coordinators of fanfare.shard.0: nobody consumes it, and 0 messages wait\n        \
             -> have a coordinator serve it: fanfare coordinator --shards 2\n\
             warn    coordinators of fanfare.shard.1: none has declared it, so publishers are refused\n        \
             -> have a coordinator serve it: fanfare coordinator --shards 2\n"
        );
        assert!(!broker.exists(&names.shard(1).name).await.unwrap());
    }

    #[tokio::test]
    async fn renewal_that_the_consumer_timeout_would_overtake_is_wrong() {
        let fanfare = Fanfare::in_memory();
        let timed = |consumer_timeout| Examination { consumer_timeout, ..examination(&fanfare) };
        let found = timed(2 * RENEWAL).consumer_timeout().await;
        assert_eq!(found.verdict, Verdict::Wrong, "{found}");
        let found = timed(3 * RENEWAL).consumer_timeout().await;
        assert_eq!(found.verdict, Verdict::Unknown, "{found}");
        assert!(found.to_string().contains("To raise it: set `consumer_timeout"), "{found}");
    }

    #[tokio::test]
    async fn parked_messages_are_counted() {
        let fanfare = Fanfare::in_memory();
        let parked = fanfare.names().parked();
        fanfare.broker().declare(&parked).await.unwrap();
        fanfare.broker().publish(&parked.name, Message::default()).await.unwrap();
        let found = text(&examination(&fanfare).left_behind().await);
        assert!(
            found.contains("warn    kept in fanfare.parked: 1 messages\n        -> each says"),
            "{found}"
        );
    }
}
