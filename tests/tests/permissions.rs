//! The users of `deploy/rabbitmq/definitions.json`: each role works with its own, and can do nothing of another's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fanfare_broker::amqp::{self, AmqpBroker};
use fanfare_broker::{Broker, BrokerError, Environment, PublishError, System};
use fanfare_coordinator::Coordinator;
use fanfare_operator::{Config as OperatorConfig, LookError, Operator, ParkedQuery, Whereabouts};
use fanfare_protocol::{Cid, Message, QueueNames, QueueSpec, RunId, ServiceName, StatusQuery};
use fanfare_publisher::{Aggregation, Failure, InvokeError, Publisher, Target};
use fanfare_tests::{Operator as Rabbitmqctl, eventually};
use fanfare_worker::{Context, Retry, Worker, service};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DEFINITIONS: &str = include_str!("../../deploy/rabbitmq/definitions.json");
const VIRTUAL_HOST: &str = "fanfare";
const ROLES: [&str; 4] = ["publisher", "worker", "coordinator", "operator"];
const PASSWORD: &str = "of-this-test-only";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_works_with_its_own_user() {
    with_definitions(async |broker| {
        let stop = CancellationToken::new();
        let worker = broker.of("worker");
        let echo = service("my.target", |_: Context, n: u32| async move {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Ok(n)
        });
        let fails =
            service("my.failing", |_: Context, _: Value| async { Err::<(), _>("it always does".into()) });
        let sees = service("my.callback", |_: Context, _: Value| async { Ok(()) });
        let (begun, mut begins) = mpsc::unbounded_channel();
        let (ended, mut ends) = mpsc::unbounded_channel();
        let holds = service("my.holding", move |context: Context, _: Value| {
            let (begun, ended) = (begun.clone(), ended.clone());
            async move {
                begun.send(())?;
                context.cancellation().cancelled().await;
                Ok(ended.send(())?)
            }
        });
        let config = fanfare_worker::Config::default();
        // Its retry waits in a queue that the worker declares.
        let fails = fails.retry(Retry::exponential(2));
        let running = Worker::new(publisher(&worker, None), config).services([echo, fails, sees, holds]);
        let worker_task = tokio::spawn(running.run_until(stop.clone().cancelled_owned()));
        let mut config = fanfare_coordinator::Config {
            accepted_users: Some(["fanfare-publisher", "fanfare-operator"].map(str::to_owned).into()),
            user_id: Some("fanfare-coordinator".to_owned()),
            absence_pause: Duration::from_millis(300),
            ..Default::default()
        };
        // Manifests are renewed, by the coordinator's user.
        config.limits.renewal = Duration::from_millis(400);
        // It declares the queues of the final payloads' parts, and the worker reads and deletes them.
        config.limits.large_payload_bytes = 1;
        let coordinator = Coordinator::new(broker.of("coordinator"), Arc::new(System), config);
        let coordinator_task = tokio::spawn(coordinator.run_until(stop.clone().cancelled_owned()));
        let admin = broker.admin();
        for service in ["my.target", "my.failing", "my.callback", "my.holding"] {
            let queue = service_queue(service);
            eventually(
                &queue,
                async || matches!(admin.inspect(&queue).await, Ok(Some(state)) if state.consumers > 0),
            )
            .await;
        }

        let names = QueueNames::default();
        for exchange in [names.coordinators(), names.workers()] {
            eventually(&exchange.name, async || {
                admin.publish_through(&exchange.name, "", Message::default()).await.is_ok()
            })
            .await;
        }

        let publisher = publisher(&broker.of("publisher"), Some("fanfare-publisher"));
        let targets = (0..3).map(|n| Target::new("my.target", n).key(n.to_string()));
        let fanout = targets.fold(publisher.fanout("my.source"), fanfare_publisher::Fanout::add);
        let fanout = fanout.on_target("my.callback").on_final("my.callback");
        let payload = fanout.invoke_and_wait(fanfare_tests::PATIENCE).await.expect("it ends");
        assert_eq!((payload.data.len(), payload.failures().count()), (3, 0));

        // A cancel reaches the coordinator, and by it the worker.
        let held = publisher.fanout("my.source").target("my.holding", 1).on_final("my.callback");
        let held = held.invoke().await.expect("it is accepted");
        assert_eq!(begins.recv().await, Some(()));
        // Before it is, an operator sees it, and where its target is.
        let operator = operator(&broker.of("operator"));
        eventually("where its target is", async || {
            let explanation = operator.explain(&held.cid, Some(held.run), 10).await.expect("it is told");
            let missing = explanation.fan_outs.first().and_then(|fan_out| fan_out.missing.first());
            missing.is_some_and(|target| matches!(target.whereabouts, Whereabouts::Running { .. }))
        })
        .await;
        let query = StatusQuery { cid_prefix: Some(held.cid.to_string()), ..StatusQuery::default() };
        let status = operator.status(&query).await.expect("it is told");
        assert_eq!((status.matching, status.coordinators.silent), (1, Some(0)));
        let cancellation = publisher.cancel(&held).await.expect("it is cancelled");
        assert_eq!((cancellation.responded, cancellation.missing), (0, 1));
        broker.until_queue_is_gone(&names.aggregation(&held.cid, held.run).name).await;
        assert_eq!(ends.recv().await, Some(()));

        // The publisher learns that nobody serves a service, and the worker parks what failed and has nobody to answer to.
        let error = publisher.fanout("my.source").target("nobody", 1).on_final("my.callback").invoke().await;
        assert!(matches!(error, Err(InvokeError::Invalid(_))), "{error:?}");
        publisher.send("my.source", "my.failing", 1).await.expect("it is sent");
        broker.until_queue_holds("fanfare.parked", 1).await;
        let parked = operator.parked(&ParkedQuery::default(), 10).await.expect("it can be looked at");
        assert_eq!(parked.messages[0].from, Some(service_queue("my.failing")));
        // It fails again, and is parked again.
        let replayed = operator.replay(&ParkedQuery::default()).await.expect("it can be put back");
        assert!(replayed[0].outcome.is_ok(), "{replayed:?}");
        broker.until_queue_holds("fanfare.parked", 1).await;

        // A result that nobody wants any more is told from an outage, and its request let go of.
        broker
            .of("publisher")
            .publish(&service_queue("my.target"), late_request())
            .await
            .expect("it is sent");
        // What the worker holds when it is stopped, it finishes.
        broker.until_queue_holds(&service_queue("my.target"), 0).await;
        stop.cancel();
        worker_task.await.expect("it does not panic").expect("the worker is refused nothing");
        coordinator_task.await.expect("it does not panic").expect("the coordinator is refused nothing");
        for (queue, left) in [("fanfare.fanin", 0), (&service_queue("my.target"), 0), ("fanfare.parked", 1)] {
            let state = admin.inspect(queue).await.expect("the broker answers").expect("it is there");
            assert_eq!(state.messages, left, "{queue}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_can_read_delete_or_configure_what_is_anothers() {
    with_definitions(async |broker| {
        let admin = broker.admin();
        let (aggregation, payload, shard) = ("fanfare.agg.c.r", "fanfare.payload.c.r.w", "fanfare.shard.0");
        for (queue, kind) in
            [(&*service_queue("a"), "quorum"), (aggregation, "classic"), (payload, "classic")]
        {
            admin.declare(&queue_of(queue, kind)).await.expect("it is declared");
        }
        let service = service_queue("a");
        admin.declare(&QueueNames::default().shard(0)).await.expect("it is declared");
        let (fanin, dead, parked) = ("fanfare.fanin", "fanfare.dead", "fanfare.parked");
        let service = service.as_str();
        for (role, unreadable, untouchable) in [
            (
                "publisher",
                vec![service, aggregation, payload, shard, fanin, dead, parked],
                vec![service, payload, shard, fanin, dead, parked],
            ),
            (
                "worker",
                vec![aggregation, shard, fanin, dead, parked],
                vec![aggregation, shard, fanin, dead, parked],
            ),
            ("coordinator", vec![service, payload, parked], vec![service]),
            ("operator", vec![service, aggregation, payload, fanin, dead], vec![]),
        ] {
            let user = broker.of(role);
            for queue in unreadable {
                let channel = user.open().await.expect("a channel can be opened");
                let consumed = channel.consume(queue, 1).await;
                assert!(
                    matches!(consumed, Err(BrokerError::Denied(_))),
                    "{role} reads {queue}: {consumed:?}"
                );
            }
            for queue in untouchable {
                let deleted = user.delete(queue).await;
                assert!(
                    matches!(deleted, Err(BrokerError::Denied(_))),
                    "{role} deletes {queue}: {deleted:?}"
                );
            }
            for queue in ["elsewhere", "fanfare.other", "shop.service.a"] {
                let declared = user.declare(&queue_of(queue, "quorum")).await;
                assert!(
                    matches!(declared, Err(BrokerError::Denied(_))),
                    "{role} declares {queue}: {declared:?}"
                );
            }
            // And yet everyone can tell whether there is a queue to write to.
            for (queue, there) in [(fanin, role == "publisher"), (service, role != "worker"), (shard, true)] {
                if there {
                    assert!(user.exists(queue).await.expect("it may be looked for"), "{role}: {queue}");
                }
            }
            // An operator sees what is in the queues that a doctor and who explains a fan-out look at.
            for queue in
                [service, aggregation, shard, fanin, dead, parked].into_iter().filter(|_| role == "operator")
            {
                let looked = user.inspect(queue).await;
                assert!(matches!(looked, Ok(Some(_))), "{role} looks at {queue}: {looked:?}");
            }
        }
        for queue in [service, aggregation, payload, shard, fanin, dead, parked] {
            assert!(admin.exists(queue).await.expect("the broker answers"), "{queue} is still there");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_are_reached_by_all_but_workers_and_workers_by_coordinators_and_operators() {
    with_definitions(async |broker| {
        let names = QueueNames::default();
        let id = || RunId::from(System.unique());
        let (coordinators, workers) = (names.coordinators(), names.workers());
        for (role, asks, tells) in [
            ("publisher", true, false),
            ("worker", false, false),
            ("coordinator", true, true),
            ("operator", true, true),
        ] {
            let user = broker.of(role);
            for (exchange, may) in [(&coordinators, asks), (&workers, tells)] {
                let outcome = user.publish_through(&exchange.name, "", Message::default()).await;
                // Nobody listens.
                let allowed = matches!(outcome, Err(PublishError::Unbound(_)));
                assert_eq!(allowed, may, "{role} publishes to {}: {outcome:?}", exchange.name);
                let deleted = user.delete_exchange(&exchange.name).await;
                let may = role == "coordinator" && exchange == &coordinators;
                assert_eq!(deleted.is_ok(), may, "{role} deletes {}: {deleted:?}", exchange.name);
                broker.admin().declare_exchange(exchange).await.expect("it is declared");
            }
            let hears = [
                (&coordinators, names.coordinator(id()), role == "coordinator"),
                (&workers, names.worker(id()), role == "worker"),
            ];
            for (exchange, queue, may) in hears {
                let hear = async {
                    let channel = user.open().await?;
                    channel.declare_exclusive(&queue).await?;
                    channel.bind(&queue.name, &exchange.name).await?;
                    channel.delete(&queue.name).await
                };
                let heard = hear.await;
                assert_eq!(heard.is_ok(), may, "{role} listens to {}: {heard:?}", exchange.name);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_without_their_permissions_say_so_and_end() {
    with_definitions(async |broker| {
        let echo = service("my.target", |_: Context, n: u32| async move { Ok(n) });
        let publishing_user = publisher(&broker.of("publisher"), None);
        let worker = Worker::new(publishing_user, fanfare_worker::Config::default()).service(echo);
        let refused = worker.run_until(std::future::pending()).await.expect_err("a publisher serves nothing");
        assert!(
            matches!(refused, fanfare_worker::WorkerError::Broker(BrokerError::Denied(_))),
            "{refused:?}"
        );
        broker.admin().delete("fanfare.fanin").await.expect("deleted");
        let coordinator =
            Coordinator::new(broker.of("worker"), Arc::new(System), fanfare_coordinator::Config::default());
        let refused =
            coordinator.run_until(std::future::pending()).await.expect_err("a worker coordinates nothing");
        let fanfare_coordinator::Error::Broker(BrokerError::Denied(reason)) = &refused else {
            panic!("{refused:?}")
        };
        assert!(reason.contains("fanfare.fanin"), "{reason}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_consume_ends_at_the_start_and_tries_on_later() {
    with_definitions(async |broker| {
        let lacks = |user: &str, queue: &str| {
            format!(
                "user 'fanfare-{user}' lacks the right to read on queue '{queue}' in vhost '{VIRTUAL_HOST}'"
            )
        };
        let coordinator = || {
            let config = fanfare_coordinator::Config::default();
            Coordinator::new(broker.of("coordinator"), Arc::new(System), config)
        };
        let names = QueueNames::default();
        for queue in [names.fanin_queue(), names.dead_queue()] {
            broker.deny("coordinator", &queue).await;
            let refused = coordinator().run_until(std::future::pending()).await.expect_err("it is denied");
            let fanfare_coordinator::Error::Broker(BrokerError::Denied(reason)) = &refused else {
                panic!("{refused:?}")
            };
            assert_eq!(reason, &lacks("coordinator", &queue));
        }
        broker.deny("worker", &service_queue("a")).await;
        let worker = Worker::new(publisher(&broker.of("worker"), None), fanfare_worker::Config::default());
        let services = ["a", "b"].map(|name| service(name, |_: Context, n: u32| async move { Ok(n) }));
        let refused = worker.services(services).run_until(std::future::pending()).await;
        let Err(fanfare_worker::WorkerError::Broker(BrokerError::Denied(reason))) = refused else {
            panic!("{refused:?}")
        };
        // It dead-letters, so that it takes this right to declare it, too; RabbitMQ 3.10 does not say which is lacking.
        assert_eq!(reason.replace("configure or to read", "read"), lacks("worker", &service_queue("a")));

        broker.grant("coordinator", ".*").await;
        let (stop, coordinator) = (CancellationToken::new(), coordinator());
        let readiness = coordinator.handle().readiness().clone();
        let running = tokio::spawn(coordinator.run_until(stop.clone().cancelled_owned()));
        eventually("it is ready", async || readiness.hindrances().is_empty()).await;
        broker.deny("coordinator", &names.fanin_queue()).await;
        broker.operator.control(&["close_all_connections", "-p", VIRTUAL_HOST, "a test"]).await;
        eventually("it is denied", async || {
            readiness
                .hindrances()
                .get(&names.fanin_queue())
                .is_some_and(|why| why.contains("lacks the right"))
        })
        .await;
        broker.grant("coordinator", ".*").await;
        eventually("it is ready again", async || readiness.hindrances().is_empty()).await;
        stop.cancel();
        running.await.expect("it does not panic").expect("what was denied later ends nothing");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_begins_with_a_user_id_that_the_broker_refuses() {
    with_definitions(async |broker| {
        let admin = broker.admin();
        admin.declare(&queue_of(&service_queue("my.callback"), "quorum")).await.expect("it is declared");
        let is_told = |refused: &BrokerError, login: &str| {
            let BrokerError::WrongUser(reason) = refused else { panic!("{refused:?}") };
            assert!(reason.contains("'somebody'") && reason.contains(&format!("'{login}'")), "{reason}");
        };
        let coordinator = |connection| {
            let config = fanfare_coordinator::Config {
                accepted_users: Some([].into()),
                user_id: Some("somebody".to_owned()),
                ..Default::default()
            };
            Coordinator::new(connection, Arc::new(System), config)
        };
        match coordinator(broker.of("coordinator")).run_until(std::future::pending()).await {
            Err(fanfare_coordinator::Error::Broker(refused)) => is_told(&refused, "fanfare-coordinator"),
            started => panic!("{started:?}"),
        }
        let services = [service("my.target", |_: Context, n: u32| async move { Ok(n) })];
        let worker = publisher(&broker.of("worker"), Some("somebody"));
        let worker = Worker::new(worker, fanfare_worker::Config::default()).services(services);
        match worker.run_until(std::future::pending()).await {
            Err(fanfare_worker::WorkerError::Broker(refused)) => is_told(&refused, "fanfare-worker"),
            started => panic!("{started:?}"),
        }
        let invoke = async |user| {
            let publisher = publisher(&broker.of("publisher"), Some(user));
            publisher.fanout("my.source").target("my.target", 1).on_final("my.callback").invoke().await
        };
        match invoke("somebody").await {
            Err(InvokeError::NotAccepted {
                requests_sent: false, source: Failure::Broker(refused), ..
            }) => {
                is_told(&refused, "fanfare-publisher");
            }
            invoked => panic!("{invoked:?}"),
        }
        broker.until_queue_holds(&service_queue("my.target"), 0).await;

        // An impersonator may be anybody, from its next connection on. This one takes nobody else's manifests.
        broker.operator.control(&["set_user_tags", "fanfare-coordinator", "impersonator"]).await;
        let connection = broker.client("fanfare-coordinator", PASSWORD);
        let stop = CancellationToken::new();
        let running = coordinator(Arc::clone(&connection)).run_until(stop.clone().cancelled_owned());
        let running = tokio::spawn(running);
        invoke("fanfare-publisher").await.expect("the broker takes it");
        broker.until_queue_holds("fanfare.parked", 1).await;
        let parked = operator(&broker.of("operator")).parked(&ParkedQuery::default(), 10).await;
        let parked = parked.expect("it can be looked at").messages;
        assert!(parked[0].reason.contains("user_id `fanfare-publisher` is not among"), "{parked:?}");
        stop.cancel();
        running.await.expect("it does not panic").expect("it is refused nothing");
        connection.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_look_at_what_is_parked_is_told_so_though_nothing_is() {
    with_definitions(async |broker| {
        let names = QueueNames::default();
        let stop = CancellationToken::new();
        let config = fanfare_coordinator::Config::default();
        let coordinator = Coordinator::new(broker.of("coordinator"), Arc::new(System), config);
        let running = tokio::spawn(coordinator.run_until(stop.clone().cancelled_owned()));
        let exchange = names.coordinators().name;
        eventually("it listens", async || {
            broker.admin().publish_through(&exchange, "", Message::default()).await.is_ok()
        })
        .await;
        let cid = Cid::new("c-1").expect("a proper CID");
        let advice = async || {
            let operator = operator(&broker.of("operator"));
            let explanation = operator.explain(&cid, None, 10).await.expect("it is told");
            explanation.advice(&names).join("\n")
        };
        assert!(advice().await.contains("longer ago than coordinators remember, or it was never accepted"));

        broker.deny("operator", &names.parked().name).await;
        let lacks = "user 'fanfare-operator' lacks the right to read on queue 'fanfare.parked'";
        let looked = operator(&broker.of("operator")).parked(&ParkedQuery::default(), 10).await;
        assert!(
            matches!(&looked, Err(LookError::Broker(BrokerError::Denied(why))) if why.contains(lacks)),
            "{looked:?}"
        );
        let advice = advice().await;
        for expected in [lacks, "remember, it was refused, and is parked, or it was never accepted"] {
            assert!(advice.contains(expected), "{expected}: {advice}");
        }
        stop.cancel();
        running.await.expect("it does not panic").expect("it is refused nothing");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publisher_shares_the_shards_that_a_coordinator_has_declared_and_can_declare_none() {
    with_definitions(async |broker| {
        let shard = QueueNames::default().shard(0);
        let user = broker.of("publisher");
        let declared = user.declare(&shard).await;
        assert!(matches!(declared, Err(BrokerError::Denied(_))), "{declared:?}");
        broker
            .admin()
            .declare(&queue_of(&service_queue("my.callback"), "quorum"))
            .await
            .expect("it is declared");
        let aggregation = Aggregation::Shared { shards: 1 };
        let config = fanfare_publisher::Config { aggregation, ..Default::default() };
        let publisher = Publisher::new(user, Arc::new(System), config);
        let invoke = async || publisher.fanout("my.source").on_final("my.callback").invoke().await;
        let refused = invoke().await;
        let Err(InvokeError::NotAccepted { source: Failure::NoShard { .. }, .. }) = refused else {
            panic!("{refused:?}")
        };
        broker.of("coordinator").declare(&shard).await.expect("it may");
        invoke().await.expect("it is accepted");
        broker.until_queue_holds(&shard.name, 1).await;
    })
    .await;
}

#[test]
fn definitions_hold_no_usable_password() {
    let definitions: Value = serde_json::from_str(DEFINITIONS).expect("the definitions are JSON");
    let users = definitions["users"].as_array().expect("there are users");
    assert_eq!(users.len(), ROLES.len());
    for user in users {
        assert_eq!(user["password_hash"], "", "{user}");
        assert!(user.get("password").is_none(), "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_whose_password_was_not_set_cannot_log_in() {
    with_virtual_host(async |broker| {
        for role in ROLES {
            for password in ["", PASSWORD, "guest"] {
                let client = broker.client(&format!("fanfare-{role}"), password);
                let refused = client.exists("fanfare.fanin").await;
                assert!(matches!(refused, Err(BrokerError::Denied(_))), "{role} {password:?}: {refused:?}");
                client.close().await;
            }
        }
    })
    .await;
}

/// A broker that has the definitions.
struct Defined {
    operator: Rabbitmqctl,
    clients: std::sync::Mutex<BTreeMap<String, Arc<dyn Broker>>>,
}

impl Defined {
    /// The connection of a role's user.
    fn of(&self, role: &str) -> Arc<dyn Broker> {
        let user = format!("fanfare-{role}");
        let mut clients = self.clients.lock().expect("nobody panics");
        Arc::clone(clients.entry(user.clone()).or_insert_with(|| self.client(&user, PASSWORD)))
    }

    /// The connection of a user who may do everything.
    fn admin(&self) -> Arc<dyn Broker> {
        let mut clients = self.clients.lock().expect("nobody panics");
        Arc::clone(clients.entry("guest".to_owned()).or_insert_with(|| self.client("guest", "guest")))
    }

    fn client(&self, user: &str, password: &str) -> Arc<dyn Broker> {
        let url = self.operator.url_of(user, password, VIRTUAL_HOST);
        Arc::new(AmqpBroker::new(amqp::Config::parse(&url).expect("a proper URL"), Arc::new(System)))
    }

    /// Lets a role's user read all but one queue, and do everything else.
    async fn deny(&self, role: &str, queue: &str) {
        self.grant(role, &format!("^(?!{}$)", queue.replace('.', "\\."))).await;
    }

    /// Lets a role's user read what matches a pattern, and do everything else.
    async fn grant(&self, role: &str, read: &str) {
        let user = format!("fanfare-{role}");
        self.operator.control(&["set_permissions", "-p", VIRTUAL_HOST, &user, ".*", ".*", read]).await;
    }

    async fn until_queue_is_gone(&self, queue: &str) {
        let admin = self.admin();
        eventually(&format!("{queue} is gone"), async || matches!(admin.inspect(queue).await, Ok(None)))
            .await;
    }

    async fn until_queue_holds(&self, queue: &str, messages: u64) {
        let admin = self.admin();
        eventually(
            &format!("{queue} holds {messages}"),
            async || matches!(admin.inspect(queue).await, Ok(Some(state)) if state.messages == messages),
        )
        .await;
    }
}

/// Runs a test with the definitions imported and passwords set, and takes all of it away again.
async fn with_definitions(test: impl AsyncFnOnce(&Defined)) {
    with_virtual_host(async |broker| {
        for role in ROLES {
            broker.operator.control(&["change_password", &format!("fanfare-{role}"), PASSWORD]).await;
        }
        test(broker).await;
    })
    .await;
}

/// Runs a test with the definitions imported as they are.
async fn with_virtual_host(test: impl AsyncFnOnce(&Defined)) {
    Rabbitmqctl::run(async |operator| {
        remove_definitions(&operator).await;
        // What `rabbitmqctl import_definitions` does, for a broker that may not see this file.
        let bytes: Vec<String> = DEFINITIONS.bytes().map(|byte| byte.to_string()).collect();
        operator
            .control(&["eval", &format!("rabbit_definitions:import_raw(<<{}>>).", bytes.join(","))])
            .await;
        operator.control(&["set_permissions", "-p", VIRTUAL_HOST, "guest", ".*", ".*", ".*"]).await;
        let broker = Defined { operator, clients: std::sync::Mutex::default() };
        test(&broker).await;
        let clients = std::mem::take(&mut *broker.clients.lock().expect("nobody panics"));
        for client in clients.values() {
            client.close().await;
        }
        remove_definitions(&broker.operator).await;
    })
    .await;
}

/// Removes what an earlier test may have left as well.
async fn remove_definitions(operator: &Rabbitmqctl) {
    let hosts = operator.control(&["list_vhosts", "name"]).await;
    if hosts.lines().any(|host| host.trim() == VIRTUAL_HOST) {
        operator.control(&["delete_vhost", VIRTUAL_HOST]).await;
    }
    let users = operator.control(&["list_users"]).await;
    for user in users.lines().filter_map(|line| line.split_whitespace().next()) {
        if user.starts_with("fanfare-") {
            operator.control(&["delete_user", user]).await;
        }
    }
}

fn publisher(broker: &Arc<dyn Broker>, user: Option<&str>) -> Publisher {
    let config = fanfare_publisher::Config { user_id: user.map(str::to_owned), ..Default::default() };
    Publisher::new(Arc::clone(broker), Arc::new(System), config)
}

fn operator(broker: &Arc<dyn Broker>) -> Operator {
    let user_id = Some("fanfare-operator".to_owned());
    let config = OperatorConfig { user_id, patience: fanfare_tests::PATIENCE, ..Default::default() };
    Operator::new(Arc::clone(broker), Arc::new(System), config)
}

fn service_queue(service: &str) -> String {
    QueueNames::default().service(&ServiceName::new(service).expect("a proper name")).name
}

fn queue_of(name: &str, kind: &'static str) -> QueueSpec {
    QueueSpec { name: name.to_owned(), exclusive: false, arguments: [("x-queue-type", kind.into())].into() }
}

/// A request of a fan-out that is over.
fn late_request() -> Message {
    let run = "0123456789abcdef0123456789abcdef";
    let mut request = Message { body: "1".into(), ..Message::default() }
        .with_header("fanfare-version", 1)
        .with_header("fanfare-run", run)
        .with_header("fanfare-channel", "fanout-call")
        .with_header("fanfare-source", "my.source")
        .with_header("fanfare-target", "my.target")
        .with_header("fanfare-key", "my.target");
    request.properties.content_type = Some("application/json".into());
    request.properties.kind = Some("fanfare.request".into());
    request.properties.correlation_id = Some("over".into());
    request.properties.message_id = Some("over/0".into());
    request.properties.reply_to = Some(format!("fanfare.agg.over.{run}").into());
    request
}
