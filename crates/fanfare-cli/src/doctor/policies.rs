//! Policies that would lose messages of Fanfare's queues.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use fanfare::{Cid, Environment, Fanfare, QueueNames, QueueType, RunId, ServiceName, System};
use fanfare_protocol::QueueSpec;
use fanfare_protocol::queue::DELAY_STEPS;
use serde::Deserialize;
use serde_json::Value;

use super::finding::{Finding, Verdict};
use super::harm::{Definition, Harm, Kind, harms};
use super::patterns::{Chosen, Policies};
use crate::management::{Management, WITHOUT_TLS};

/// Looks at the policies of the queues that are there, and at those that others will have.
pub(super) async fn examine(
    management: Option<&Management>,
    fanfare: &Fanfare,
    services: &BTreeSet<ServiceName>,
    shards: u32,
) -> Vec<Finding> {
    let names = fanfare.names();
    match ask(management).await {
        Ok((there, policies)) => judge(there, &expected(fanfare, services, shards), policies, names),
        Err(reason) => {
            let prefix = names.prefix();
            vec![Finding::new(Verdict::Unknown, "policies", reason).remedy(format!(
                "see that no queue `{prefix}.*` has message-ttl, expires, max-length or delivery-limit: \
                 rabbitmqctl list_queues -p VHOST name effective_policy_definition"
            ))]
        }
    }
}

/// The queues that are there, and all policies, where they are told.
async fn ask(management: Option<&Management>) -> Result<(Vec<Queue>, Result<Policies, String>), String> {
    let management = management.ok_or_else(|| WITHOUT_TLS.to_owned())?;
    let there = management.queues("name,type,policy,operator_policy,effective_policy_definition").await?;
    let policies = management.policies().await;
    Ok((there, policies.map(|(users, operators)| Policies::new(users, operators))))
}

/// All queues that there can be, one of each kind that has many.
fn expected(fanfare: &Fanfare, services: &BTreeSet<ServiceName>, shards: u32) -> Vec<QueueSpec> {
    let (names, id) = (fanfare.names(), System.unique());
    let (cid, run) = (Cid::from(id), RunId::from(id));
    let of_fan_outs = match fanfare.publisher().config().queue_type {
        QueueType::Classic => [names.aggregation(&cid, run), names.payload(&cid, run, run)],
        QueueType::Quorum => {
            [names.replicated_aggregation(&cid, run), names.replicated_payload(&cid, run, run)]
        }
    };
    let services = services.iter().map(|service| names.service(service));
    let shards = (0..shards).map(|shard| names.shard(shard));
    let delays = DELAY_STEPS.iter().map(|&seconds| names.delay(seconds));
    let others = [names.fanin(), names.dead(), names.parked()];
    let ears = [names.wait(run), names.coordinator(run), names.worker(run)];
    of_fan_outs.into_iter().chain(services).chain(shards).chain(delays).chain(others).chain(ears).collect()
}

fn judge(
    there: Vec<Queue>,
    expected: &[QueueSpec],
    policies: Result<Policies, String>,
    names: &QueueNames,
) -> Vec<Finding> {
    let mut queues = there;
    if let Ok(policies) = &policies {
        // What the API tells of a queue is some seconds old, and of one that is not there it tells nothing.
        queues.iter_mut().for_each(|queue| queue.choose(policies));
        let is_there: BTreeSet<String> = queues.iter().map(|queue| queue.name.clone()).collect();
        let to_come = expected.iter().filter(|queue| !is_there.contains(&queue.name));
        queues.extend(to_come.map(|queue| Queue::to_come(queue, policies)));
    }
    let others =
        policies.as_ref().map_or_else(|_| Vec::new(), |policies| of_others(policies, &queues, names));
    let known: Vec<(&Queue, Kind)> =
        queues.iter().filter_map(|queue| Some((queue, Kind::of(&queue.name, names)?))).collect();
    // A policy on ten thousand aggregation queues is one finding.
    let mut found: BTreeMap<(Kind, String), (Harm, &Queue, usize)> = BTreeMap::new();
    for (queue, kind) in &known {
        for harm in harms(*kind, &queue.definition()) {
            let key = (*kind, format!("{}{}", queue.policies(), harm.setting));
            found.entry(key).or_insert((harm, queue, 0)).2 += 1;
        }
    }
    let well = found.is_empty().then(|| {
        let there = known.iter().filter(|(queue, _)| !queue.is_to_come).count();
        let to_come = match &policies {
            Ok(_) => "nor of those to come".to_owned(),
            Err(reason) => format!(
                "that was so some seconds ago, and what those to come will have is not known: {reason}"
            ),
        };
        let found = format!("none loses messages of the queues that are there ({there}); {to_come}");
        Finding::new(Verdict::Ok, "policies", found)
    });
    let harmful = found.into_values().map(|(harm, queue, count)| {
        let others = if count > 1 { format!(" and {} like it", count - 1) } else { String::new() };
        let to_come = if queue.is_to_come { ", once it is there" } else { "" };
        let what = format!("policy{} on queue {}{others}{to_come}", queue.policies(), queue.name);
        Finding::new(harm.verdict, what, format!("{} {}", harm.setting, harm.does)).remedy(format!(
            "take the setting out of the policy, or narrow the policy's pattern: {}",
            queue.listed_by()
        ))
    });
    well.into_iter().chain(harmful).chain(others).collect()
}

/// Policies that may be for queues of Fanfare's, and are not known to be.
fn of_others(policies: &Policies, queues: &[Queue], names: &QueueNames) -> Vec<Finding> {
    let unread = policies.unread.iter().map(|policy| {
        Finding::new(Verdict::Unknown, format!("policy `{policy}`"), "its pattern is not understood here")
            .remedy(format!("see that it matches no queue `{}.*`, or does it no harm", names.prefix()))
    });
    let looked_at: Vec<&str> = queues.iter().map(|queue| queue.name.as_str()).collect();
    let of_none = policies.of_none(names.prefix().as_str(), &looked_at).into_iter().filter_map(|policy| {
        let definition: Definition =
            serde_json::from_value(policy.definition.clone().into()).unwrap_or_default();
        let settings: Vec<_> = harms(Kind::Own, &definition).into_iter().map(|harm| harm.setting).collect();
        let found = format!(
            "its pattern `{}` matches none of the queues that were looked at, and it sets {}",
            policy.pattern,
            settings.join(", ")
        );
        (!settings.is_empty()).then(|| {
            Finding::new(Verdict::Note, format!("policy `{}`", policy.name), found)
                .remedy("see that it matches no queue to come, such as those of CIDs or services of yours")
        })
    });
    unread.chain(of_none).collect()
}

/// A queue as the management API tells of it.
#[derive(Debug, Deserialize)]
struct Queue {
    name: String,
    r#type: Option<String>,
    policy: Option<String>,
    operator_policy: Option<String>,
    #[serde(default)]
    effective_policy_definition: Value,
    /// Whether it is not there yet.
    #[serde(skip)]
    is_to_come: bool,
}

impl Queue {
    fn to_come(queue: &QueueSpec, policies: &Policies) -> Self {
        let is_quorum = queue.is_quorum();
        let mut queue = Self {
            name: queue.name.clone(),
            r#type: is_quorum.then(|| "quorum".to_owned()),
            policy: None,
            operator_policy: None,
            effective_policy_definition: Value::Null,
            is_to_come: true,
        };
        queue.choose(policies);
        queue
    }

    fn choose(&mut self, policies: &Policies) {
        let is_quorum = self.r#type.as_deref() == Some("quorum");
        let Chosen { policy, operator_policy, definition } = policies.of(&self.name, is_quorum);
        (self.policy, self.operator_policy) = (policy, operator_policy);
        self.effective_policy_definition = definition.into();
    }

    /// What the policies set. Where they set nothing, the API has an empty list for the object.
    fn definition(&self) -> Definition {
        serde_json::from_value(self.effective_policy_definition.clone()).unwrap_or_default()
    }

    /// What lists its policies: the two kinds are listed apart.
    fn listed_by(&self) -> &'static str {
        let is_of = |policy: &Option<String>| policy.as_ref().is_some_and(|name| !name.is_empty());
        match (is_of(&self.policy), is_of(&self.operator_policy)) {
            (true, true) => "rabbitmqctl list_policies and rabbitmqctl list_operator_policies",
            (false, true) => "rabbitmqctl list_operator_policies",
            (_, false) => "rabbitmqctl list_policies",
        }
    }

    fn policies(&self) -> String {
        let named =
            [&self.policy, &self.operator_policy].into_iter().flatten().filter(|name| !name.is_empty());
        named.fold(String::new(), |mut all, name| {
            write!(all, " `{name}`").expect("a String takes everything");
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use fanfare_broker::amqp::Address;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn judged(queues: &str) -> String {
        let queues: Vec<Queue> = serde_json::from_str(queues).unwrap();
        let findings = judge(queues, &[], Err("untold".to_owned()), &QueueNames::default());
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    fn one(queue: &str, definition: &str) -> String {
        judged(&format!(
            r#"[{{"name":"{queue}","policy":"p","operator_policy":null,"effective_policy_definition":{definition}}}]"#
        ))
    }

    #[test]
    fn a_policy_that_loses_messages_is_wrong_and_says_why() {
        for (queue, definition, expected) in [
            ("fanfare.fanin", r#"{"message-ttl":1000}"#, "message-ttl loses what waits so long"),
            ("fanfare.parked", r#"{"expires":1000}"#, "expires deletes the queue"),
            ("fanfare.agg.c.r", r#"{"max-length":10}"#, "max-length drops the oldest"),
            ("fanfare.dead", r#"{"max-length-bytes":10,"overflow":"drop-head"}"#, "drops the oldest"),
            ("fanfare.fanin", r#"{"delivery-limit":20}"#, "delivery-limit loses what"),
            ("fanfare.shard.0", r#"{"message-ttl":1000}"#, "message-ttl loses what waits so long"),
            ("fanfare.agg.c.r", r#"{"expires":60000}"#, "expires deletes the queue"),
        ] {
            let found = one(queue, definition);
            assert!(found.starts_with(&format!("WRONG   policy `p` on queue {queue}: ")), "{found}");
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn a_policy_that_ends_in_failed_targets_or_refusals_is_told_and_not_wrong() {
        for (queue, definition, expected) in [
            ("fanfare.service.a", r#"{"message-ttl":1000}"#, "warn "),
            ("fanfare.service.a", r#"{"delivery-limit":5}"#, "warn "),
            ("fanfare.payload.c.r.w", r#"{"expires":60000}"#, "warn "),
            ("fanfare.service.a", r#"{"max-length":10,"overflow":"drop-head"}"#, "note "),
            ("fanfare.fanin", r#"{"max-length":10,"overflow":"reject-publish"}"#, "note "),
            ("fanfare.delay.1", r#"{"message-ttl":10}"#, "note "),
            ("fanfare.wait.r", r#"{"message-ttl":10}"#, "warn "),
            ("fanfare.worker.r", r#"{"max-length":1}"#, "warn "),
        ] {
            let found = one(queue, definition);
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn the_remedy_lists_policies_of_the_kind_that_it_is_about() {
        for (policy, of_operator, expected) in [
            ("p", "", "pattern: rabbitmqctl list_policies"),
            ("", "o", "pattern: rabbitmqctl list_operator_policies"),
            ("p", "o", "pattern: rabbitmqctl list_policies and rabbitmqctl list_operator_policies"),
        ] {
            let found = judged(&format!(
                r#"[{{"name":"fanfare.fanin","policy":"{policy}","operator_policy":"{of_operator}","effective_policy_definition":{{"message-ttl":1}}}}]"#
            ));
            assert!(found.trim_end().ends_with(expected), "{found}");
        }
    }

    #[test]
    fn policies_that_do_no_harm_and_queues_of_others_are_no_findings() {
        let ok = "ok      policies: none loses messages of the";
        for (queue, definition) in [
            ("fanfare.fanin", "[]"),
            ("fanfare.fanin", "null"),
            ("fanfare.fanin", r#"{"queue-leader-locator":"balanced"}"#),
            ("fanfare.agg.c.r", r#"{"expires":604800000}"#),
            ("fanfare.payload.c.r.w", r#"{"expires":2419200000}"#),
            ("fanfare.fanin", r#"{"delivery-limit":-1}"#),
            ("other.fanin", r#"{"message-ttl":1}"#),
            ("fanfare-other.fanin", r#"{"message-ttl":1}"#),
        ] {
            let found = one(queue, definition);
            assert!(found.starts_with(ok), "{queue} {definition}: {found}");
        }
    }

    #[test]
    fn queues_to_come_are_judged_where_they_are_not_there_yet() {
        let fanfare = Fanfare::in_memory();
        let policy = serde_json::json!([
            {"name": "p", "pattern": "^fanfare.agg", "apply-to": "queues", "definition": {"max-length": 9}},
            {"name": "nightly", "pattern": "^fanfare\\.agg\\.nightly-", "apply-to": "queues", "definition": {"expires": 9}}
        ]);
        let odd = serde_json::json!([{"name": "odd", "pattern": "(", "apply-to": "all", "definition": {}}]);
        let (users, operators) =
            (serde_json::from_value(policy).unwrap(), serde_json::from_value(odd).unwrap());
        let expected = expected(&fanfare, &BTreeSet::new(), 0);
        // It was of another policy before.
        let there = r#"[{"name":"fanfare.fanin","type":"quorum","policy":"old","effective_policy_definition":{"expires":1}}]"#;
        let there = serde_json::from_str(there).unwrap();
        let findings = judge(there, &expected, Ok(Policies::new(users, operators)), fanfare.names());
        let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
        let [wrong, unread, unmatched] = &shown[..] else { panic!("{shown:?}") };
        assert!(wrong.starts_with("WRONG   policy `p` on queue fanfare.agg."), "{wrong}");
        assert!(wrong.contains(", once it is there: max-length drops the oldest messages"), "{wrong}");
        assert!(unread.starts_with("unknown policy `odd`: its pattern is not understood here"), "{unread}");
        assert!(unmatched.starts_with("note    policy `nightly`: its pattern `^fanfare"), "{unmatched}");
        assert!(
            unmatched.contains(" matches none of the queues that were looked at, and it sets expires"),
            "{unmatched}"
        );
        let untold = judge(Vec::new(), &expected, Err("it answered 401".to_owned()), fanfare.names());
        assert!(untold[0].to_string().contains("what those to come will have is not known: it answered 401"));
    }

    #[test]
    fn one_policy_on_many_queues_of_a_kind_is_one_finding() {
        let queue = |cid| {
            format!(
                r#"{{"name":"fanfare.agg.{cid}.r","policy":"p","effective_policy_definition":{{"message-ttl":1}}}}"#
            )
        };
        let found = judged(&format!("[{},{},{}]", queue("a"), queue("b"), queue("c")));
        assert!(found.starts_with("WRONG   policy `p` on queue fanfare.agg.a.r and 2 like it: "), "{found}");
        assert_eq!(found.matches("WRONG").count(), 1);
    }

    /// Answers one request, and returns it.
    async fn serve(listener: TcpListener, answer: &'static str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    }

    async fn asked(answer: &'static str) -> (Vec<Finding>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let broker: Address = "amqp://eve:p%40ss@broker.invalid/a%2fb".parse().unwrap();
        let management = Management::of(&broker, Some(&url)).unwrap();
        let (fanfare, services) = (Fanfare::in_memory(), BTreeSet::new());
        let examined = examine(Some(&management), &fanfare, &services, 0);
        let (findings, request) = tokio::join!(examined, serve(listener, answer));
        (findings, request)
    }

    #[tokio::test]
    async fn the_api_is_asked_for_the_virtual_host_with_the_credentials_of_the_broker() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 93\r\n\r\n\
             [{\"name\":\"fanfare.fanin\",\"policy\":\"p\",\"effective_policy_definition\":{\"message-ttl\":5}}]        ";
        let (findings, request) = asked(answer).await;
        assert_eq!(findings[0].verdict, Verdict::Wrong, "{findings:?}");
        assert!(request.starts_with("GET /api/queues/a%2Fb?columns=name,"), "{request}");
        let credentials = STANDARD.encode("eve:p@ss");
        assert!(request.to_lowercase().contains(&format!("basic {credentials}").to_lowercase()), "{request}");
    }

    #[tokio::test]
    async fn where_the_api_does_not_tell_the_doctor_says_so_and_how_to_find_out() {
        let (refused, _) = asked("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(refused[0].verdict, Verdict::Unknown);
        let shown = refused[0].to_string();
        assert!(shown.contains("it answered 401") && shown.contains("rabbitmqctl list_queues"), "{shown}");
        assert!(!shown.contains("p@ss"), "{shown}");
        let secure: Address = "amqps://broker.invalid".parse().unwrap();
        assert!(Management::of(&secure, None).is_none(), "no password leaves in the clear");
        let untold = examine(None, &Fanfare::in_memory(), &BTreeSet::new(), 0).await;
        assert_eq!(untold[0].verdict, Verdict::Unknown);
    }
}
