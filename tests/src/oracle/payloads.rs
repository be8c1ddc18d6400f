//! What callbacks and waiting callers saw.

use std::collections::{BTreeMap, BTreeSet};

use fanfare_protocol::{EndedBy, FinalPayload, TargetResult};
use serde_json::Value;

use super::checks::Case;
use super::history::Call;
use super::record::mark;
use super::verdict::Kind;

/// How a failed result begins that a worker wrote for a target which took too long.
const BY_TIME_OUT: &str = "timed out after";

impl<'a> Case<'a, '_> {
    /// What callbacks saw is what targets answered, all of it, and the same for everyone.
    pub(super) fn check_payloads(&mut self) {
        let fan_out = self.fan_out;
        let mut seen: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
        let (finals, on_target): (Vec<&Call<'_>>, Vec<&Call<'_>>) =
            fan_out.calls.iter().partition(|call| call.key.is_none());
        let mut bodies = BTreeSet::new();
        for call in &finals {
            if bodies.insert(call.body) {
                self.check_payload(call.body, call.at_ms, &mut seen);
            }
        }
        if let [one, other, ..] = bodies.iter().collect::<Vec<_>>()[..] {
            let what = format!("final callbacks saw {} different payloads: {one} and {other}", bodies.len());
            self.violated(Kind::Contradicted, what);
        }
        for waited in &fan_out.waited {
            let same = |body: &&str| json(body) == json(waited.payload);
            if bodies.iter().any(|body| !same(body)) {
                self.violated(
                    Kind::Contradicted,
                    "the caller who waited saw another payload than the callbacks",
                );
            }
            self.check_payload(waited.payload, waited.at_ms, &mut seen);
        }
        let mut checked = BTreeSet::new();
        for call in &on_target {
            let Some(key) = call.key.filter(|key| checked.insert((*key, call.body))) else { continue };
            match TargetResult::from_body(call.body.as_bytes()) {
                Ok(result) => self.check_result(key, &result, call.at_ms),
                Err(error) => self.violated(Kind::Unexpected, format!("key {key:?}: {error}")),
            }
            seen.entry(key).or_default().insert(call.body.to_owned(), json(call.body));
        }
        for (key, results) in &seen {
            let distinct: BTreeSet<String> = results.values().map(Value::to_string).collect();
            if distinct.len() > 1 {
                let what = format!("callbacks saw different results of key {key:?}: {distinct:?}");
                self.violated(Kind::Contradicted, what);
            }
        }
    }

    fn check_payload(
        &mut self,
        body: &str,
        at_ms: u64,
        seen: &mut BTreeMap<&'a str, BTreeMap<String, Value>>,
    ) {
        let payload: FinalPayload = match serde_json::from_str(body) {
            Ok(payload) => payload,
            Err(error) => {
                return self.violated(Kind::Unexpected, format!("no final payload: {error}: {body}"));
            }
        };
        let keys: Vec<&str> = payload.data.iter().map(|(key, _)| key).collect();
        let planned: Vec<&str> = self.fan_out.plan.targets.iter().map(|target| target.key.as_str()).collect();
        if let Some(missing) = planned.iter().find(|key| !keys.contains(key)) {
            self.violated(Kind::Early, format!("a final payload is without a result of key {missing:?}"));
        } else if keys != planned {
            self.violated(
                Kind::Unexpected,
                format!("a final payload has the keys {keys:?}, not {planned:?}"),
            );
        }
        for key in planned {
            let Some(result) = payload.data.get(key) else { continue };
            self.check_result(key, result, at_ms);
            let value = serde_json::to_value(result).unwrap_or_default();
            seen.entry(key).or_default().insert(value.to_string(), value);
        }
        self.check_completion(&payload);
    }

    /// What was not awaited because enough had responded, had enough responses before it in the queue.
    fn check_completion(&mut self, payload: &FinalPayload) {
        let results = || payload.data.iter().map(|(_, result)| result);
        if !results().any(|result| result.ended_by == Some(EndedBy::Completion)) {
            return;
        }
        let responded = |ok| results().filter(|result| result.ended_by.is_none() && result.ok == ok).count();
        let (succeeded, failed) = (responded(true), responded(false));
        let policy = self.fan_out.plan.completion;
        if policy.and_then(|policy| policy.met(succeeded, failed)).is_none() {
            let what = format!(
                "it was complete when {succeeded} targets had succeeded and {failed} failed, which {policy:?} does not say"
            );
            self.violated(Kind::Early, what);
        }
    }

    /// A result is one of the target's own, or something explains it.
    fn check_result(&mut self, key: &str, result: &TargetResult, at_ms: u64) {
        let fan_out = self.fan_out;
        if result.cid.as_str() != fan_out.plan.cid {
            self.violated(Kind::Unexpected, format!("key {key:?} has a result of CID {}", result.cid));
        }
        let text = result.exception.as_deref().unwrap_or(result.response.get());
        // An attempt that is followed by another has no result.
        let mut last = fan_out.executions.iter().filter(|execution| {
            execution.key == key && Some(execution.attempt) == fan_out.attempts_of(execution.key)
        });
        if last.clone().any(|execution| text.contains(&mark(execution.name))) {
            return;
        }
        let plan = fan_out.plan;
        let explained = !result.ok
            && match (result.ended_by, plan.deadline_ms) {
                (Some(EndedBy::Deadline), Some(deadline)) if at_ms < fan_out.invoked_ms + deadline => {
                    let what = format!("key {key:?} failed by the deadline {at_ms} ms, before it had passed");
                    return self.violated(Kind::Early, what);
                }
                (Some(EndedBy::Deadline), deadline) => deadline.is_some(),
                (Some(EndedBy::Completion), _) => plan.completion.is_some(),
                (Some(EndedBy::Cancel), _) => plan.cancelled,
                (Some(EndedBy::Deletion), _) => {
                    fan_out.runs.iter().any(|run| self.history.deleted_queues.contains_key(run))
                }
                _ if plan.excuses.iter().any(|excuse| text.contains(excuse.as_str())) => true,
                _ if text.starts_with(BY_TIME_OUT) => last.next().is_some(),
                _ => false,
            };
        if !explained {
            self.violated(Kind::Unexpected, format!("key {key:?} has a result that no target gave: {text}"));
        }
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}
