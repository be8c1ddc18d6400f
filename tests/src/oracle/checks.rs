use std::collections::{BTreeMap, BTreeSet};

use super::Rules;
use super::history::{Call, Disturbed, FanOut, History, Left, Published};
use super::record::{Disturbance, Outcome, Role};
use super::verdict::{Kind, Verdict};

/// Why a manifest is parked whose queue is gone.
const NO_QUEUE: &str = "aggregation queue does not exist";

/// Why a manifest is parked whose queue a killed broker has brought back without what was in it.
const EMPTIED: &str = "aggregation queue has lost what was in it";

/// A callback message that a plan leads to.
struct Expected<'a> {
    callback: &'a str,
    channel: &'static str,
    key: Option<&'a str>,
}

/// One fan-out, and where its violations go.
pub(super) struct Case<'a, 'v> {
    pub(super) history: &'a History<'a>,
    rules: Rules,
    name: &'a str,
    pub(super) fan_out: &'a FanOut<'a>,
    /// By `message_id`.
    expected: BTreeMap<String, Expected<'a>>,
    verdict: &'v mut Verdict,
}

pub(super) fn check(history: &History<'_>, rules: Rules, verdict: &mut Verdict) {
    for disturbed in &history.disturbances {
        let what = format!("{:?} {:?}", disturbed.role, disturbed.how).to_lowercase();
        *verdict.counts.disturbances.entry(what).or_default() += 1;
    }
    for stranger in &history.strangers {
        verdict.violated(Kind::Unexpected, stranger, "it was seen, and nobody invoked it");
    }
    for (name, fan_out) in &history.fan_outs {
        let expected = expected_of(fan_out);
        Case { history, rules, name, fan_out, expected, verdict }.check();
    }
    check_what_is_left(history, verdict);
}

/// What may be in no queue at the end, whichever fan-out it belongs to.
fn check_what_is_left(history: &History<'_>, verdict: &mut Verdict) {
    let of_run = |run: &str| history.fan_outs.iter().find(|(_, fan_out)| fan_out.runs.contains(run));
    let broker_killed = history.disturbances.iter().any(is_kill_of_broker);
    for left in &history.messages_left {
        let owner = left.run.and_then(of_run);
        let excuses = owner.map_or(&[][..], |(_, fan_out)| &fan_out.plan.excuses);
        let reason = left.reason.unwrap_or_default();
        let excused = excuses.iter().any(|excuse| reason.contains(excuse.as_str()));
        let name = owner.map_or("of no known invocation", |(name, _)| name);
        match (left.queue, left.kind) {
            ("parked", "fanfare.manifest") if reason.contains(NO_QUEUE) => verdict.counts.parked += 1,
            ("parked", "fanfare.manifest") if reason.contains(EMPTIED) && broker_killed => {
                verdict.counts.parked += 1;
            }
            // Whether its callback was invoked before is what counts.
            ("parked", "fanfare.callback") => {}
            ("parked" | "dead", kind) if !excused => {
                let what = format!(
                    "{kind} {} is in queue `{}`: {reason}",
                    left.message_id.unwrap_or("?"),
                    left.queue
                );
                verdict.violated(Kind::Unexpected, name, what);
            }
            (queue, kind @ "fanfare.request")
                if queue.starts_with("service.") || queue.starts_with("delay.") =>
            {
                verdict.violated(Kind::NeverEnded, name, format!("{kind} is left in queue `{queue}`"));
            }
            (queue, kind) if queue.starts_with("shard.") => {
                verdict.violated(Kind::NeverEnded, name, format!("{kind} is left in queue `{queue}`"));
            }
            ("fanin", kind) if owner.is_none() => {
                verdict.violated(Kind::NeverEnded, name, format!("{kind} is left in queue `fanin`"));
            }
            _ => {}
        }
    }
}

fn expected_of<'a>(fan_out: &FanOut<'a>) -> BTreeMap<String, Expected<'a>> {
    let plan = fan_out.plan;
    let cid = &plan.cid;
    let channel = if plan.parallel { "parallel-exec-on-target" } else { "fanout-on-target" };
    let on_target = plan.targets.iter().enumerate().flat_map(|(place, target)| {
        plan.on_target.iter().map(move |callback| {
            let id = format!("{cid}/{place}/on-target/{callback}");
            (id, Expected { callback, channel, key: Some(&target.key) })
        })
    });
    let on_final = plan.on_final.iter().map(|callback| {
        let id = format!("{cid}/on-final/{callback}");
        (id, Expected { callback, channel: "fanout-on-final", key: None })
    });
    on_target.chain(on_final).collect()
}

impl<'a> Case<'a, '_> {
    fn check(&mut self) {
        let fan_out = self.fan_out;
        let counts = &mut self.verdict.counts;
        counts.invoked += 1;
        match fan_out.outcome {
            Some(Outcome::Accepted { .. }) => counts.accepted += 1,
            Some(Outcome::NotAccepted) => counts.not_accepted += 1,
            Some(Outcome::Unknown { .. }) | None => counts.unknown += 1,
        }
        counts.executions += fan_out.executions.len();
        counts.calls += fan_out.calls.len();

        if fan_out.runs.len() > 1 {
            let what = format!("one invocation has the runs {:?}", fan_out.runs);
            self.violated(Kind::Unexpected, what);
        }
        if matches!(fan_out.outcome, Some(Outcome::NotAccepted)) && fan_out.exists() {
            self.violated(Kind::Unexpected, "it was not accepted, and exists all the same");
        }
        self.check_calls();
        self.check_payloads();
        self.check_order();
        self.check_attempts();
        self.check_repeated_executions();
        self.check_repeated_messages();
        self.check_end();
    }

    pub(super) fn violated(&mut self, kind: Kind, what: impl Into<String>) {
        self.verdict.violated(kind, self.name, what);
    }

    /// Every call is one that the plan leads to.
    fn check_calls(&mut self) {
        for call in &self.fan_out.calls {
            let planned = self.expected.get(call.message_id).is_some_and(|expected| {
                (expected.callback, expected.channel, expected.key) == (call.callback, call.channel, call.key)
            });
            if !planned || call.cid != self.fan_out.plan.cid {
                let Call { callback, channel, key, message_id, .. } = call;
                let what = format!("`{callback}` was invoked by {channel} with {message_id}, key {key:?}");
                self.violated(Kind::Unexpected, what);
            }
        }
    }

    /// No final callback is published before every on-target callback is.
    fn check_order(&mut self) {
        let plan = self.fan_out.plan;
        let first = |wanted: &str| {
            let mut published = self.fan_out.published.iter();
            published.find(|published| published.message_id == wanted).map(|published| published.at)
        };
        let finals = self.expected.iter().filter(|(_, expected)| expected.key.is_none());
        let Some(earliest) = finals.filter_map(|(id, _)| first(id)).min() else { return };
        let on_target = self.expected.iter().filter(|(_, expected)| expected.key.is_some());
        let late: Vec<&String> =
            on_target.map(|(id, _)| id).filter(|id| first(id).is_none_or(|at| at > earliest)).collect();
        if let Some(one) = late.first() {
            let what = format!(
                "a final callback was published before {} of {} on-target callbacks, {one} among them",
                late.len(),
                plan.targets.len() * plan.on_target.len()
            );
            self.violated(Kind::Early, what);
        }
    }

    /// An attempt follows one that failed, and none follows the last.
    fn check_attempts(&mut self) {
        let fan_out = self.fan_out;
        let mut made = BTreeSet::new();
        for execution in &fan_out.executions {
            let (key, attempt) = (execution.key, execution.attempt);
            made.insert((key, attempt));
            let is_beyond = fan_out.attempts_of(key).is_none_or(|last| attempt > last);
            if is_beyond || (attempt > 1 && !made.contains(&(key, attempt - 1))) {
                let what = format!("attempt {attempt} at target {key:?} was made, and was not to be");
                self.violated(Kind::Unexpected, what);
            }
        }
    }

    /// A target runs again only where something was disturbed.
    fn check_repeated_executions(&mut self) {
        let mut runs: BTreeMap<(&str, u32), usize> = BTreeMap::new();
        for execution in &self.fan_out.executions {
            let before = runs.entry((execution.key, execution.attempt)).or_default();
            *before += 1;
            if *before == 1 {
                continue;
            }
            self.verdict.counts.repeated_executions += 1;
            // One disturbance may repeat the request as well as hand every copy of it out again.
            if self.history.disturbed(self.fan_out.invoked, execution.at).next().is_none() {
                let what = format!("target {:?} ran {before} times, and nothing explains it", execution.key);
                self.verdict.violated(Kind::Duplicated, self.name, what);
            }
        }
    }

    /// Callback messages are repeated only where a coordinator was disturbed, and on-target ones only so often.
    fn check_repeated_messages(&mut self) {
        let fan_out = self.fan_out;
        let copies: Vec<Published<'_>> = if self.history.sees_publications {
            fan_out.published.clone()
        } else {
            let own = fan_out.calls.iter().filter(|call| !call.redelivered);
            own.map(|call| Published { at: call.at, at_ms: call.at_ms, message_id: call.message_id })
                .collect()
        };
        let mut of_message: BTreeMap<&str, Vec<Published<'_>>> = BTreeMap::new();
        for copy in copies {
            of_message.entry(copy.message_id).or_default().push(copy);
        }
        let mut on_target = Vec::new();
        for (message_id, copies) in &of_message {
            // Where publications are not seen, the first may have been called late.
            let first = if self.history.sees_publications { copies[0].at_ms } else { fan_out.invoked_ms };
            let from_ms = first.saturating_sub(self.rules.notice_ms).max(fan_out.invoked_ms);
            for (before, again) in copies.iter().enumerate().skip(1) {
                let disturbed = self.history.disturbed(fan_out.invoked, again.at);
                let since = disturbed.filter(|disturbed| disturbed.at_ms >= from_ms);
                let explained: usize = since.map(Disturbed::repeats).sum();
                if explained < before {
                    let what = format!(
                        "{message_id} was repeated {before} times, and what was disturbed explains {explained}"
                    );
                    self.violated(Kind::Duplicated, what);
                }
            }
            let repeats = copies.len() - 1;
            match self.expected.get(*message_id).map(|expected| expected.key.is_some()) {
                Some(true) => on_target.extend(copies[1..].iter().map(|copy| copy.at)),
                Some(false) => self.verdict.counts.repeated_on_final += repeats,
                None => {}
            }
        }
        self.verdict.counts.repeated_on_target += on_target.len();
        let Some(last) = on_target.iter().max() else { return };
        let (mut crashes, mut confirms) = (0, 0);
        for disturbed in self.history.disturbed(fan_out.invoked, *last) {
            match disturbed.how {
                Disturbance::ConfirmLost => confirms += 1,
                _ => crashes += disturbed.repeats(),
            }
        }
        let most = crashes * self.rules.calls_at_risk + confirms;
        if on_target.len() > most {
            let what = format!(
                "{} on-target callbacks were repeated, and {crashes} crashes and {confirms} lost confirms explain {most}",
                on_target.len()
            );
            self.violated(Kind::Duplicated, what);
        }
    }

    /// Whether everything that is owed has come.
    fn check_end(&mut self) {
        let fan_out = self.fan_out;
        let left = |queue: &'static str| {
            move |left: &&Left<'_>| {
                left.queue == queue && left.run.is_some_and(|run| fan_out.runs.contains(run))
            }
        };
        let messages = &self.history.messages_left;
        let manifest_left = messages.iter().any(|message| left("fanin")(&message));
        let manifest_parked =
            messages.iter().filter(left("parked")).any(|message| message.kind == "fanfare.manifest");
        let queue_left = fan_out.runs.iter().any(|run| self.history.queues_left.contains(run));
        if !fan_out.exists() && !manifest_left && !manifest_parked {
            return;
        }
        let called: BTreeSet<&str> = fan_out.calls.iter().map(|call| call.message_id).collect();
        let missing: Vec<&String> = self.expected.keys().filter(|id| !called.contains(id.as_str())).collect();
        let waiting = |id: &&&String| {
            messages.iter().any(|message| {
                (message.queue.starts_with("service.") || message.queue.starts_with("delay."))
                    && message.message_id == Some(id.as_str())
                    && message.run.is_some_and(|run| fan_out.runs.contains(run))
            })
        };
        let (of, first) = (self.expected.len(), missing.first().map_or("", |id| id.as_str()));
        let some_waiting = missing.iter().any(|id| waiting(&id));
        let deleted = fan_out.runs.iter().any(|run| self.history.deleted_queues.contains_key(run));
        // A manifest without a queue is parked; and to a coordinator that takes over and has read nothing, a queue deleted by
        // hand looks like one whose fan-out has completed.
        let explained =
            deleted && (manifest_parked || fan_out.runs.iter().any(|run| self.history.deleted_unread(run)));
        let missing = missing.len();
        let brought_back = queue_left && missing == 0;
        if brought_back && !manifest_left && self.is_broker_killed_after_the_last_call() {
            self.verdict.counts.ended += 1;
            self.verdict.counts.queues_brought_back += 1;
        } else if manifest_left || queue_left {
            let what = match (manifest_left, queue_left) {
                (true, true) => "its manifest and its queue are",
                (true, false) => "its manifest is",
                _ => "its queue is",
            };
            self.violated(
                Kind::NeverEnded,
                format!("{what} left, and {missing} of {of} callbacks are missing"),
            );
        } else if some_waiting {
            self.violated(
                Kind::NeverEnded,
                format!("{first} is in its queue, and its callback was not invoked"),
            );
        } else if missing > 0 && !explained {
            let what = format!("{missing} of {of} callbacks were never invoked, {first} among them");
            self.violated(Kind::Lost, what);
        } else {
            self.verdict.counts.ended += 1;
        }
    }

    /// Whether the broker was killed after the last callback was invoked. It may forget by that that it deleted a queue, which then
    /// is left to its expiry.
    fn is_broker_killed_after_the_last_call(&self) -> bool {
        let last_call = self.fan_out.calls.iter().map(|call| call.at).max();
        let kills = self.history.disturbances.iter().filter(|disturbed| is_kill_of_broker(disturbed));
        last_call.is_some_and(|call| kills.map(|kill| kill.at).any(|kill| kill > call))
    }
}

fn is_kill_of_broker(disturbed: &Disturbed) -> bool {
    (disturbed.role, disturbed.how) == (Role::Broker, Disturbance::Killed)
}
