//! Which policies a queue will get, as RabbitMQ chooses them.

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A policy, or an operator's, as the management API tells of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) pattern: String,
    apply_to: String,
    #[serde(default)]
    priority: i64,
    pub(super) definition: Map<String, Value>,
}

/// All policies of a virtual host.
#[derive(Debug)]
pub(super) struct Policies {
    users: Vec<(Regex, Policy)>,
    operators: Vec<(Regex, Policy)>,
    /// Names of those whose pattern is not understood here.
    pub(super) unread: Vec<String>,
}

/// What a queue gets.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) policy: Option<String>,
    pub(super) operator_policy: Option<String>,
    pub(super) definition: Map<String, Value>,
}

impl Policies {
    pub(super) fn new(users: Vec<Policy>, operators: Vec<Policy>) -> Self {
        let mut unread = Vec::new();
        let mut read = |policies: Vec<Policy>| -> Vec<(Regex, Policy)> {
            let read = policies.into_iter().filter_map(|policy| match Regex::new(&policy.pattern) {
                Ok(pattern) => Some((pattern, policy)),
                Err(_) => {
                    unread.push(policy.name);
                    None
                }
            });
            read.collect()
        };
        let (users, operators) = (read(users), read(operators));
        Self { users, operators, unread }
    }

    /// One policy and one operator's at most, each that of the highest priority whose pattern matches; what the operator's sets comes before
    /// what the other does (<https://www.rabbitmq.com/docs/policies>). Of those with the same priority the broker takes any.
    pub(super) fn of(&self, queue: &str, is_quorum: bool) -> Chosen {
        let (users, operators) =
            (best(&self.users, queue, is_quorum), best(&self.operators, queue, is_quorum));
        let name = |policy: Option<&Policy>| policy.map(|policy| policy.name.clone());
        let definitions = [users, operators].into_iter().flatten().map(|policy| policy.definition.clone());
        Chosen {
            policy: name(users),
            operator_policy: name(operators),
            definition: definitions.flatten().collect(),
        }
    }

    /// Those that name the prefix, and match none of these queues.
    pub(super) fn of_none(&self, prefix: &str, queues: &[&str]) -> Vec<&Policy> {
        let all = self.users.iter().chain(&self.operators);
        let of_none = all.filter(|(pattern, policy)| {
            policy.pattern.replace('\\', "").contains(prefix)
                && !queues.iter().any(|queue| matches(pattern, queue))
        });
        of_none.map(|(_, policy)| policy).collect()
    }
}

fn best<'a>(policies: &'a [(Regex, Policy)], queue: &str, is_quorum: bool) -> Option<&'a Policy> {
    let matching =
        policies.iter().filter(|(pattern, policy)| policy.applies_to(is_quorum) && matches(pattern, queue));
    matching.map(|(_, policy)| policy).max_by_key(|policy| policy.priority)
}

/// A pattern that takes too long to try is as good as none.
fn matches(pattern: &Regex, queue: &str) -> bool {
    pattern.is_match(queue).unwrap_or(false)
}

impl Policy {
    fn applies_to(&self, is_quorum: bool) -> bool {
        match self.apply_to.as_str() {
            "all" | "queues" => true,
            "classic_queues" => !is_quorum,
            "quorum_queues" => is_quorum,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use fanfare::QueueNames;
    use fanfare_protocol::QueueSpec;
    use serde_json::json;

    use super::*;

    fn policies(policies: Value) -> Vec<Policy> {
        serde_json::from_value(policies).unwrap()
    }

    #[test]
    fn the_highest_priority_that_matches_name_and_type_is_chosen() {
        let users = policies(json!([
            {"name": "low", "pattern": "^fanfare", "apply-to": "all", "priority": -1, "definition": {"max-length": 1}},
            {"name": "high", "pattern": r"\.fanin$", "apply-to": "queues", "priority": 7, "definition": {"max-length": 2}},
            {"name": "middle", "pattern": "", "apply-to": "quorum_queues", "priority": 1, "definition": {"max-length": 3}},
            {"name": "classic", "pattern": "", "apply-to": "classic_queues", "priority": 9, "definition": {}},
            {"name": "exchanges", "pattern": "", "apply-to": "exchanges", "priority": 9, "definition": {}},
            {"name": "others", "pattern": "^(?!fanfare)", "apply-to": "all", "priority": 9, "definition": {}},
        ]));
        let operators = policies(json!([
            {"name": "operator", "pattern": "parked", "apply-to": "queues", "definition": {"max-length": 4}},
        ]));
        let policies = Policies::new(users, operators);
        let names = QueueNames::default();
        let chosen = |queue: QueueSpec| {
            let chosen = policies.of(&queue.name, true);
            (chosen.policy.unwrap(), chosen.operator_policy, chosen.definition["max-length"].clone())
        };
        assert_eq!(chosen(names.fanin()), ("high".to_owned(), None, json!(2)));
        assert_eq!(chosen(names.dead()), ("middle".to_owned(), None, json!(3)));
        assert_eq!(chosen(names.parked()), ("middle".to_owned(), Some("operator".to_owned()), json!(4)));
    }

    #[test]
    fn a_pattern_that_is_not_understood_is_named() {
        let users = policies(json!([{"name": "odd", "pattern": "(", "apply-to": "all", "definition": {}}]));
        assert_eq!(Policies::new(users, Vec::new()).unread, ["odd"]);
    }
}
