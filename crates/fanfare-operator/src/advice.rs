//! What an explanation comes down to, and what to do, in plain words.

use std::collections::BTreeMap;

use fanfare_protocol::{FanOutState, QueueNames, ServiceName, counted, header};

use crate::explain::{MissingFrom, ServiceQueue, Shard};
use crate::{Explanation, Told, Whereabouts};

/// Of a queue that nothing is known of.
const UNSEEN: &str = "cannot be looked at (see that its node runs, and that this user has some right to it, which RabbitMQ 4.3 \
                      wants for a look)";

impl Explanation {
    /// What stands in the way, a sentence each, with what to do about it. Nothing, where there is nothing to wait for.
    #[must_use]
    pub fn advice(&self, names: &QueueNames) -> Vec<String> {
        let mut advice = Vec::new();
        advice.extend(self.of_coordinators(names));
        if let Some(reason) = &self.workers_unasked {
            advice.push(format!("what runs at workers is not known here: {reason}"));
        }
        if let Some(reason) = &self.parked_unseen {
            let what = if self.parked.is_empty() { "anything" } else { "more" };
            advice.push(format!("whether {what} of it is parked is not known here: {reason}"));
        }
        if self.fan_outs.is_empty() {
            advice.extend(self.of_nothing(names));
        }
        advice.extend(self.fan_outs.iter().filter_map(of_state));
        advice.extend(self.of_missing(names));
        advice.extend(self.of_parked(names));
        advice
    }

    /// Those who may know more.
    fn of_coordinators(&self, names: &QueueNames) -> Option<String> {
        let remedy = match self.coordinators.refused {
            0 => "ask again, and restart one that stays silent: another takes up what it holds",
            _ => "ask as a user whom they tell",
        };
        match self.coordinators.shortfall() {
            Some(shortfall) => Some(format!("{shortfall}; what the others hold is missing here: {remedy}")),
            None if self.coordinators.are_all() || !self.fan_outs.is_empty() => None,
            None => Some(format!(
                "whether all coordinators have answered is not known here: who consumes `{}`, as each of them does, {UNSEEN}",
                names.dead_queue()
            )),
        }
    }

    /// No coordinator that has told knows a fan-out with this CID.
    fn of_nothing(&self, names: &QueueNames) -> Option<String> {
        let cid = &self.cid;
        let is_manifest = |kind: &str| kind == header::TYPE_MANIFEST;
        if self.parked.iter().any(|parked| is_manifest(&parked.kind)) {
            // What is parked is told of below.
            return None;
        }
        if let Some(waiting @ 1..) = self.manifests_waiting {
            return Some(format!(
                "{} in `{}` until a coordinator has room, and {cid} may be {}: start another coordinator, or raise --channels",
                counted(waiting, "fan-out waits", "fan-outs wait"),
                names.fanin_queue(),
                if waiting == 1 { "that" } else { "one of them" },
            ));
        }
        let fanin = match self.manifests_waiting {
            None => format!(", it waits in `{}`, which {UNSEEN}", names.fanin_queue()),
            Some(_) => String::new(),
        };
        let parked = if self.parked_unseen.is_some() { ", it was refused, and is parked" } else { "" };
        let shard = match &self.shard {
            Some(shard) => of_shard(shard).map_or_else(String::new, |waits| format!("; {waits}")),
            None => {
                "; whether it waits in a shard is not known here: where fan-outs are shared, give --shards"
                    .to_owned()
            }
        };
        let (who, held) = match self.coordinators.are_all() {
            true => ("no coordinator", ""),
            false => ("no coordinator that has told", " one that has not may hold it,"),
        };
        let (what, given) = match self.run {
            Some(run) => (format!("run {run} of {cid}"), "CID, run"),
            None => (cid.to_string(), "CID"),
        };
        Some(format!(
            "{who} knows {what}:{held} it has ended longer ago than coordinators remember{fanin}{parked}, or it was never accepted; \
             see that {given} and --prefix are right, and that it was invoked with as many --shards as the coordinators have{shard}"
        ))
    }

    fn of_missing(&self, names: &QueueNames) -> Vec<String> {
        let mut services: BTreeMap<&ServiceName, Vec<&MissingFrom>> = BTreeMap::new();
        for target in self.fan_outs.iter().flat_map(|fan_out| &fan_out.missing) {
            services.entry(&target.target.service).or_default().push(target);
        }
        let advice = services.into_iter().flat_map(|(service, targets)| {
            let queue = self.queues.get(service).copied().flatten();
            let name = names.service_queue(service);
            self.of_service(service, &name, queue, &targets, &to_prefix(names))
        });
        advice.collect()
    }

    fn of_service(
        &self,
        service: &ServiceName,
        name: &str,
        queue: Option<ServiceQueue>,
        targets: &[&MissingFrom],
        to_prefix: &str,
    ) -> Vec<String> {
        let count = |wanted: fn(&Whereabouts) -> bool| {
            targets.iter().filter(|target| wanted(&target.whereabouts)).count()
        };
        let mut advice = Vec::new();
        let ServiceQueue { waiting, consumers, .. } =
            queue.unwrap_or(ServiceQueue { there: false, waiting: 0, consumers: 0 });
        match count(|at| *at == Whereabouts::Queued) {
            0 => {}
            missing if consumers == 0 => advice.push(format!(
                "no worker consumes `{name}`, where {} ({missing} of the missing targets above): start one, as with \
                 `fanfare worker --service {service}{to_prefix}`",
                counted(waiting, "message waits", "messages wait")
            )),
            missing => advice.push(format!(
                "{} in `{name}` for {} ({missing} of the missing targets above), until it is their turn; if that takes too long, see \
                 in the log of the workers whether one runs a message alone, which holds up the others for a while, and else start more \
                 workers or raise their concurrency",
                counted(waiting, "message waits", "messages wait"),
                counted(consumers, "consumer", "consumers")
            )),
        }
        match count(|at| *at == Whereabouts::NoQueue) {
            0 => {}
            missing => advice.push(format!(
                "`{name}` is gone, and {} with it: what is lost fails at the deadline, where there is one; `fanfare cancel` ends \
                 the fan-out before",
                counted(missing, "request", "requests")
            )),
        }
        let retrying = match self.retries_waiting {
            Some(0) => None,
            Some(waiting) => Some(format!(
                "may be among what waits for another attempt ({}),",
                counted(waiting, "message", "messages")
            )),
            None => Some("may wait for another attempt,".to_owned()),
        };
        match count(|at| *at == Whereabouts::Handed) {
            0 => {}
            missing => advice.push(format!(
                "{} to one of {} of `{name}`{}: each may wait for its turn, run at a worker that stands still or does not tell,{} or be \
                 lost; see that each worker answers to /healthz, and restart one that does not: what it holds goes to another; what is \
                 lost fails at the deadline, and `fanfare cancel` ends the fan-out before",
                counted(missing, &format!("target of {service} was handed"), &format!("targets of {service} were handed")),
                counted(consumers, "consumer", "consumers"),
                if self.workers_unasked.is_none() { ", and no worker says that it runs there" } else { "" },
                retrying.as_ref().map(|retrying| format!(" {retrying}")).unwrap_or_default()
            )),
        }
        match count(|at| *at == Whereabouts::Elsewhere) {
            0 => {}
            missing => advice.push(format!(
                "{} in `{name}`, which is empty, and nobody consumes it: each {} or be lost; what is lost fails at the deadline, and \
                 `fanfare cancel` ends the fan-out before",
                counted(missing, &format!("target of {service} is not"), &format!("targets of {service} are not")),
                match &retrying {
                    Some(retrying) => format!("{retrying} for which a worker has to be started,"),
                    None => "may have been on its way when this looked,".to_owned(),
                }
            )),
        }
        match count(|at| *at == Whereabouts::Unknown) {
            0 => {}
            missing => advice.push(format!(
                "{} may wait in `{name}`, which {UNSEEN}",
                counted(missing, "target", "targets")
            )),
        }
        match count(|at| matches!(at, Whereabouts::Running { .. })) {
            0 => {}
            running => advice.push(format!(
                "{}: wait for that, or see the log of the workers",
                counted(running, &format!("target of {service} runs"), &format!("targets of {service} run"))
            )),
        }
        match count(|at| matches!(at, Whereabouts::Retrying { .. })) {
            0 => {}
            retrying => advice.push(format!(
                "{} again {}: mend what the exception says",
                counted(
                    retrying,
                    &format!("target of {service} has failed, and is run"),
                    &format!("targets of {service} have failed, and are run")
                ),
                match consumers {
                    0 => format!("once a worker consumes `{name}`, which none does now"),
                    _ => "after a pause".to_owned(),
                }
            )),
        }
        advice
    }

    /// Callbacks and manifests are worth putting back. A request has failed its target when it was parked, and what is malformed stays so.
    fn of_parked(&self, names: &QueueNames) -> Option<String> {
        let (parked, cid, to_prefix) = (self.parked.len(), &self.cid, to_prefix(names));
        let worth = |kind: &str| matches!(kind, header::TYPE_CALLBACK | header::TYPE_MANIFEST);
        let worth = self.parked.iter().filter(|parked| worth(&parked.kind) && parked.from.is_some()).count();
        let what_to_do = match worth {
            0 => format!(
                "nothing waits for them: mend that, and drop them with `fanfare parked purge --cid {cid}{to_prefix}`"
            ),
            all if all == parked => {
                format!("mend that, and put them back with `fanfare parked replay --cid {cid}{to_prefix}`")
            }
            worth => format!(
                "mend that, put back those {worth} that are callbacks or manifests \
                 with `fanfare parked replay ID{to_prefix}`, and drop the others with \
                 `fanfare parked purge ID{to_prefix}`: their targets have failed already"
            ),
        };
        (parked > 0).then(|| {
            let parked = counted(parked, "message of it is", "messages of it are");
            format!("{parked} parked: `fanfare parked list --cid {cid}{to_prefix}` tells why; {what_to_do}")
        })
    }
}

/// What follows a command of `fanfare` that is to mean these names: nothing where they are what it means by itself, else ` --prefix NAME`.
#[must_use]
pub fn to_prefix(names: &QueueNames) -> String {
    if *names == QueueNames::default() { String::new() } else { format!(" --prefix {}", names.prefix()) }
}

/// What else may have become of a fan-out that no coordinator knows, where it belongs to a shard.
fn of_shard(shard: &Shard) -> Option<String> {
    let name = &shard.name;
    Some(match shard.queue {
        None => format!("it would wait in `{name}`, which {UNSEEN}"),
        Some(ServiceQueue { there: false, .. }) => {
            format!("`{name}`, where it would wait, is not there: no coordinator has as many --shards")
        }
        Some(ServiceQueue { waiting: 0, .. }) => return None,
        Some(ServiceQueue { waiting, consumers: 0, .. }) => format!(
            "or it is among what waits in `{name}` ({}), which nobody consumes: start a coordinator with as many --shards",
            counted(waiting, "message", "messages")
        ),
        Some(ServiceQueue { waiting, .. }) => format!(
            "or it is among what waits in `{name}` ({}) until its coordinator reads it: ask again; if that lasts, use more shards",
            counted(waiting, "message", "messages")
        ),
    })
}

fn of_state(fan_out: &Told) -> Option<String> {
    let run = fan_out.status.run;
    Some(match fan_out.status.state {
        FanOutState::Opening => format!(
            "run {run} waits for its aggregation queue: another coordinator may be letting go of it, or the queue's node is down \
             (rabbitmqctl cluster_status)"
        ),
        FanOutState::Calling => format!(
            "all targets of run {run} are done, and its callbacks are on their way: if that lasts, see the coordinator's log, and \
             whether the broker is in alarm (rabbitmq-diagnostics alarms)"
        ),
        FanOutState::Gathering if fan_out.status.deadline_utc.is_none() => {
            format!("run {run} has no deadline: it waits for its targets for as long as that takes")
        }
        _ => return None,
    })
}
