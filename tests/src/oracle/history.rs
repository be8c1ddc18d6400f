use std::collections::{BTreeMap, BTreeSet};

use super::record::{Disturbance, Event, Outcome, Plan, Record, Role};

/// A moment in a log: the place of its record.
pub(super) type Moment = usize;

/// A log, sorted by what it is about.
#[derive(Debug, Default)]
pub(super) struct History<'a> {
    /// By invocation.
    pub(super) fan_outs: BTreeMap<&'a str, FanOut<'a>>,
    pub(super) disturbances: Vec<Disturbed>,
    /// Invocations that somebody saw and nobody made.
    pub(super) strangers: BTreeSet<&'a str>,
    /// When an operator deleted the queue of which run first.
    pub(super) deleted_queues: BTreeMap<&'a str, Moment>,
    /// Consumers that the broker ended before they were handed anything.
    pub(super) ended_unread: Vec<(Moment, &'a str)>,
    pub(super) queues_left: BTreeSet<&'a str>,
    pub(super) messages_left: Vec<Left<'a>>,
    /// Whether callback messages were seen on their way into their queues.
    pub(super) sees_publications: bool,
}

#[derive(Debug)]
pub(super) struct Disturbed {
    pub(super) at: Moment,
    pub(super) at_ms: u64,
    pub(super) role: Role,
    pub(super) how: Disturbance,
}

#[derive(Debug)]
pub(super) struct Left<'a> {
    pub(super) queue: &'a str,
    pub(super) kind: &'a str,
    pub(super) run: Option<&'a str>,
    pub(super) message_id: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
}

/// All that a log tells of one invocation.
#[derive(Debug)]
pub(super) struct FanOut<'a> {
    pub(super) plan: &'a Plan,
    pub(super) invoked: Moment,
    pub(super) invoked_ms: u64,
    pub(super) outcome: Option<&'a Outcome>,
    pub(super) committed: bool,
    pub(super) runs: BTreeSet<&'a str>,
    pub(super) waited: Vec<Waited<'a>>,
    pub(super) executions: Vec<Execution<'a>>,
    /// Callback messages that came into their queues.
    pub(super) published: Vec<Published<'a>>,
    pub(super) calls: Vec<Call<'a>>,
}

/// One copy of a callback message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published<'a> {
    pub(super) at: Moment,
    pub(super) at_ms: u64,
    pub(super) message_id: &'a str,
}

#[derive(Debug)]
pub(super) struct Waited<'a> {
    pub(super) at_ms: u64,
    pub(super) payload: &'a str,
}

#[derive(Debug)]
pub(super) struct Execution<'a> {
    pub(super) at: Moment,
    pub(super) key: &'a str,
    pub(super) attempt: u32,
    pub(super) name: &'a str,
}

#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) at: Moment,
    pub(super) at_ms: u64,
    pub(super) cid: &'a str,
    pub(super) callback: &'a str,
    pub(super) channel: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) message_id: &'a str,
    pub(super) body: &'a str,
    pub(super) redelivered: bool,
}

impl<'a> FanOut<'a> {
    fn new(plan: &'a Plan, invoked: Moment, invoked_ms: u64) -> Self {
        Self {
            plan,
            invoked,
            invoked_ms,
            outcome: None,
            committed: false,
            runs: BTreeSet::new(),
            waited: Vec::new(),
            executions: Vec::new(),
            published: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// The attempt whose outcome is a target's.
    pub(super) fn attempts_of(&self, key: &str) -> Option<u32> {
        self.plan.targets.iter().find(|target| target.key == key).map(|target| target.attempts)
    }

    /// Whether there is proof that its manifest was in its queue.
    pub(super) fn exists(&self) -> bool {
        self.committed
            || matches!(self.outcome, Some(Outcome::Accepted { .. }))
            || !self.calls.is_empty()
            || !self.waited.is_empty()
    }
}

impl<'a> History<'a> {
    pub(super) fn of(records: &'a [Record]) -> Self {
        let mut history = Self::default();
        // What others saw of an invocation may bear the same time as the invocation itself, and come before it.
        for (at, record) in records.iter().enumerate() {
            if let Event::Invoking { invocation, plan } = &record.event {
                history.fan_outs.insert(invocation, FanOut::new(plan, at, record.at_ms));
            }
        }
        for (at, record) in records.iter().enumerate() {
            history.take(at, record);
        }
        history
    }

    fn take(&mut self, at: Moment, record: &'a Record) {
        let at_ms = record.at_ms;
        match &record.event {
            Event::Invoking { .. } => {}
            Event::Returned { invocation, outcome } => {
                let run = match outcome {
                    Outcome::Accepted { run } | Outcome::Unknown { run } => Some(run.as_str()),
                    Outcome::NotAccepted => None,
                };
                if let Some(fan_out) = self.of_run(invocation, run) {
                    fan_out.outcome = Some(outcome);
                }
            }
            Event::Committed { invocation, run } => {
                if let Some(fan_out) = self.of_run(invocation, Some(run)) {
                    fan_out.committed = true;
                }
            }
            Event::Waited { invocation, payload } => {
                if let Some(fan_out) = self.of_run(invocation, None) {
                    fan_out.waited.push(Waited { at_ms, payload });
                }
            }
            Event::Started { invocation, run, key, attempt, execution } => {
                if let Some(fan_out) = self.of_run(invocation, Some(run)) {
                    fan_out.executions.push(Execution { at, key, attempt: *attempt, name: execution });
                }
            }
            Event::Published { invocation, run, message_id } => {
                self.sees_publications = true;
                if let Some(fan_out) = self.of_run(invocation, Some(run)) {
                    fan_out.published.push(Published { at, at_ms, message_id });
                }
            }
            Event::Called { invocation, run, cid, callback, channel, key, message_id, body, redelivered } => {
                let call = Call {
                    at,
                    at_ms,
                    cid,
                    callback,
                    channel,
                    key: key.as_deref(),
                    message_id,
                    body,
                    redelivered: *redelivered,
                };
                if let Some(fan_out) = self.of_run(invocation, Some(run)) {
                    fan_out.calls.push(call);
                }
            }
            Event::Disturbed { role, how, .. } => {
                self.disturbances.push(Disturbed { at, at_ms, role: *role, how: *how });
            }
            Event::QueueDeleted { run } => {
                self.deleted_queues.entry(run).or_insert(at);
            }
            Event::EndedUnread { run } => self.ended_unread.push((at, run)),
            Event::QueueLeft { run } => {
                self.queues_left.insert(run);
            }
            Event::MessageLeft { queue, kind, run, message_id, reason } => self.messages_left.push(Left {
                queue,
                kind,
                run: run.as_deref(),
                message_id: message_id.as_deref(),
                reason: reason.as_deref(),
            }),
        }
    }

    fn of_run(&mut self, invocation: &'a str, run: Option<&'a str>) -> Option<&mut FanOut<'a>> {
        let Some(fan_out) = self.fan_outs.get_mut(invocation) else {
            self.strangers.insert(invocation);
            return None;
        };
        fan_out.runs.extend(run);
        Some(fan_out)
    }

    /// Whether an operator deleted the queue of a run while a coordinator consumed it that had been handed nothing: it takes
    /// the fan-out for one that has completed.
    pub(super) fn deleted_unread(&self, run: &str) -> bool {
        let deleted = self.deleted_queues.get(run);
        deleted
            .is_some_and(|deleted| self.ended_unread.iter().any(|(ended, of)| *of == run && ended > deleted))
    }

    /// Disturbances between two moments.
    pub(super) fn disturbed(&self, from: Moment, to: Moment) -> impl Iterator<Item = &Disturbed> {
        self.disturbances.iter().filter(move |disturbed| (from..=to).contains(&disturbed.at))
    }
}

impl Disturbed {
    /// How often coordinators may repeat a message because of it: who is cut off and lives may repeat what it saw no confirm
    /// of, and so may who takes over.
    pub(super) fn repeats(&self) -> usize {
        match (self.role, self.how) {
            (Role::Publisher | Role::Worker, _) => 0,
            (_, Disturbance::Cut | Disturbance::Restarted) => 2,
            (
                _,
                Disturbance::Killed
                | Disturbance::ConfirmLost
                | Disturbance::StopCutShort
                | Disturbance::Deafened,
            ) => 1,
        }
    }
}
