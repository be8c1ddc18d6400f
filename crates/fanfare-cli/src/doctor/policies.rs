//! Policies that would lose messages of Fanfare's queues.

use std::collections::BTreeMap;
use std::fmt::Write;

use fanfare::QueueNames;
use fanfare_protocol::queue::{AGGREGATION_EXPIRES_MS, PAYLOAD_EXPIRES_MS};
use serde::Deserialize;
use serde_json::Value;

use super::finding::{Finding, Verdict};
use crate::management::{Management, WITHOUT_TLS};

/// Looks at the policies of the queues that are there.
pub(super) async fn examine(management: Option<&Management>, names: &QueueNames) -> Vec<Finding> {
    let asked = match management {
        Some(management) => {
            management.queues("name,policy,operator_policy,effective_policy_definition").await
        }
        None => Err(WITHOUT_TLS.to_owned()),
    };
    match asked {
        Ok(queues) => judge(&queues, names),
        Err(reason) => {
            let prefix = names.prefix();
            vec![Finding::new(Verdict::Unknown, "policies", reason).remedy(format!(
                "see that no queue `{prefix}.*` has message-ttl, expires, max-length or delivery-limit: \
                 rabbitmqctl list_queues -p VHOST name effective_policy_definition"
            ))]
        }
    }
}

fn judge(queues: &[Queue], names: &QueueNames) -> Vec<Finding> {
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
    if found.is_empty() {
        let unseen = match known.iter().any(|(_, kind)| *kind == Kind::Aggregation) {
            true => "",
            false => "; an aggregation queue was not among them: ask again while a fan-out is open",
        };
        let looked_at = format!("none loses messages of the {} queues that are there{unseen}", known.len());
        return vec![Finding::new(Verdict::Ok, "policies", looked_at)];
    }
    let findings = found.into_values().map(|(harm, queue, count)| {
        let others = if count > 1 { format!(" and {} like it", count - 1) } else { String::new() };
        let what = format!("policy{} on queue {}{others}", queue.policies(), queue.name);
        Finding::new(harm.verdict, what, format!("{} {}", harm.setting, harm.does)).remedy(
            "take the setting out of the policy, or narrow the policy's pattern: rabbitmqctl list_policies",
        )
    });
    findings.collect()
}

/// A queue as the management API tells of it.
#[derive(Debug, Deserialize)]
struct Queue {
    name: String,
    policy: Option<String>,
    operator_policy: Option<String>,
    #[serde(default)]
    effective_policy_definition: Value,
}

impl Queue {
    /// What the policies set. Where they set nothing, the API has an empty list for the object.
    fn definition(&self) -> Definition {
        serde_json::from_value(self.effective_policy_definition.clone()).unwrap_or_default()
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Definition {
    message_ttl: Option<i64>,
    expires: Option<i64>,
    max_length: Option<i64>,
    max_length_bytes: Option<i64>,
    overflow: Option<String>,
    delivery_limit: Option<i64>,
}

/// What a queue of Fanfare's is, as far as policies matter to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It dead-letters to Fanfare's own queue, and refuses what it has no room for.
    Service,
    /// It passes on what expires.
    Delay,
    /// It goes by itself when nobody has used it for long.
    Aggregation,
    /// The same, with parts that a callback still refers to.
    Payload,
    /// Manifests, shards, dead letters, parked messages: whatever leaves it without an ack is lost.
    Own,
}

impl Kind {
    fn of(queue: &str, names: &QueueNames) -> Option<Self> {
        let rest = queue.strip_prefix(names.prefix().as_str())?.strip_prefix('.')?;
        match rest.split_once('.').map_or(rest, |(kind, _)| kind) {
            "service" => Some(Self::Service),
            "delay" => Some(Self::Delay),
            "agg" => Some(Self::Aggregation),
            "payload" => Some(Self::Payload),
            "fanin" | "shard" | "dead" | "parked" => Some(Self::Own),
            // A waiting caller's queue holds one message, for as long as the caller is there.
            _ => None,
        }
    }

    /// Arguments of the queue, which go before any policy.
    const fn refuses_when_full(self) -> bool {
        matches!(self, Self::Service | Self::Delay)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Harm {
    verdict: Verdict,
    setting: &'static str,
    does: &'static str,
}

/// What policies do to a queue that they should not.
fn harms(kind: Kind, policy: &Definition) -> Vec<Harm> {
    let mut harms = Vec::new();
    let mut add = |verdict, setting, does| harms.push(Harm { verdict, setting, does });
    if policy.message_ttl.is_some() {
        match kind {
            Kind::Service => {
                add(
                    Verdict::Warn,
                    "message-ttl",
                    "fails targets and parks callbacks that wait for a worker so long",
                );
            }
            Kind::Delay => {
                add(Verdict::Note, "message-ttl", "makes retries come early where it is the shorter time")
            }
            Kind::Aggregation | Kind::Payload | Kind::Own => {
                add(Verdict::Wrong, "message-ttl", "loses what waits so long");
            }
        }
    }
    match (kind, policy.expires) {
        (Kind::Aggregation, Some(milliseconds)) if milliseconds >= AGGREGATION_EXPIRES_MS => {}
        (Kind::Payload, Some(milliseconds)) if milliseconds >= PAYLOAD_EXPIRES_MS => {}
        (Kind::Payload, Some(_)) => add(
            Verdict::Warn,
            "expires",
            "parks callbacks with large payloads that wait for a worker so long",
        ),
        (_, Some(_)) => {
            add(Verdict::Wrong, "expires", "deletes the queue with all that it holds when nobody uses it")
        }
        (_, None) => {}
    }
    let refuses = kind.refuses_when_full() || policy.overflow.as_deref() == Some("reject-publish");
    for (setting, limit) in [("max-length", policy.max_length), ("max-length-bytes", policy.max_length_bytes)]
    {
        match limit {
            Some(_) if refuses => {
                add(Verdict::Note, setting, "makes publishers wait or fail while the queue is full")
            }
            Some(_) => {
                add(Verdict::Wrong, setting, "drops the oldest messages: it needs overflow reject-publish")
            }
            None => {}
        }
    }
    match (kind, policy.delivery_limit) {
        // A classic queue does not count; a replicated one loses results.
        (_, None | Some(..=-1)) | (Kind::Delay, _) => {}
        (Kind::Service, Some(_)) => add(
            Verdict::Warn,
            "delivery-limit",
            "fails, with a target that kills its worker, all others that the worker held: workers have a limit of their own",
        ),
        (Kind::Aggregation | Kind::Payload | Kind::Own, Some(_)) => {
            add(
                Verdict::Wrong,
                "delivery-limit",
                "loses what was redelivered as often, by restarts for instance",
            );
        }
    }
    harms
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
        let findings = judge(&queues, &QueueNames::default());
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
        ] {
            let found = one(queue, definition);
            assert!(found.starts_with(expected), "{found}");
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
        let names = QueueNames::default();
        let examined = examine(Some(&management), &names);
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
        let untold = examine(None, &QueueNames::default()).await;
        assert_eq!(untold[0].verdict, Verdict::Unknown);
    }
}
