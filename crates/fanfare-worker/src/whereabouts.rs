use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fanfare_protocol::{
    AtWorker, Cid, Doing, ExplainRequest, Invocation, RunId, ServiceName, WireTime, limits,
};

/// Which targets run here, and which failed here and wait for another attempt, for operators who ask. It is a help and no
/// promise: what another worker has begun with since, this one does not know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whereabouts {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    running: BTreeMap<u64, (Cid, AtWorker)>,
    next: u64,
    /// The latest last.
    retrying: VecDeque<(Cid, AtWorker)>,
}

/// A target that runs, until this is dropped.
#[derive(Debug)]
pub(crate) struct Here {
    number: u64,
    whereabouts: Whereabouts,
}

impl Whereabouts {
    /// Targets that wait for another attempt which are remembered.
    const MOST_RETRYING: usize = 1_000;

    /// An invocation begins to run. None where it is no target, which nobody waits for.
    pub(crate) fn begin(
        &self,
        service: &ServiceName,
        invocation: &Invocation,
        now: WireTime,
    ) -> Option<Here> {
        let target = at_worker(service, invocation, Doing::Running { since_utc: now })?;
        let mut known = self.known();
        known.retrying.retain(|(_, waits)| (waits.run, &waits.key) != (target.run, &target.key));
        let number = known.next;
        known.next += 1;
        known.running.insert(number, (invocation.cid.clone(), target));
        drop(known);
        Some(Here { number, whereabouts: self.clone() })
    }

    /// An invocation has failed, and waits for its next attempt.
    pub(crate) fn retries(
        &self,
        service: &ServiceName,
        invocation: &Invocation,
        until_utc: WireTime,
        exception: &str,
    ) {
        let exception = exception.chars().take(limits::EXCEPTION_TOLD_CHARS).collect();
        let Some(target) = at_worker(service, invocation, Doing::Retrying { until_utc, exception }) else {
            return;
        };
        let mut known = self.known();
        known.retrying.push_back((invocation.cid.clone(), target));
        if known.retrying.len() > Self::MOST_RETRYING {
            known.retrying.pop_front();
        }
    }

    /// How many targets of a fan-out are here, and the first of them.
    pub(crate) fn tell(&self, request: &ExplainRequest, now: WireTime) -> (usize, Vec<AtWorker>) {
        let known = self.known();
        // One whose time has come runs again, here or elsewhere.
        let waits = |target: &AtWorker| match target.doing {
            Doing::Retrying { until_utc, .. } => until_utc >= now,
            _ => true,
        };
        let of_run = |run: RunId| request.run.is_none_or(|asked| asked == run);
        let is_meant =
            |(cid, target): &&(Cid, AtWorker)| *cid == request.cid && of_run(target.run) && waits(target);
        let meant = || known.running.values().chain(&known.retrying).filter(is_meant);
        let told = meant().take(request.limit.min(limits::TOLD)).map(|(_, target)| target.clone()).collect();
        (meant().count(), told)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.whereabouts.known().running.remove(&self.number);
    }
}

fn at_worker(service: &ServiceName, invocation: &Invocation, doing: Doing) -> Option<AtWorker> {
    let key = invocation.reply.as_ref()?.key.clone().or_else(|| invocation.key.clone())?;
    Some(AtWorker { run: invocation.run, key, service: service.clone(), attempt: invocation.attempt, doing })
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Channel, QueueNames, Request, Source, TargetKey, TargetOf};
    use uuid::Uuid;

    use super::*;

    fn time(seconds: u64) -> WireTime {
        WireTime::from_timestamp(seconds).unwrap()
    }

    fn service() -> ServiceName {
        ServiceName::new("a").unwrap()
    }

    fn run() -> RunId {
        Uuid::from_u128(1).into()
    }

    fn invocation(key: &str) -> Invocation {
        let cid = Cid::new("c").unwrap();
        let reply_to = QueueNames::default().aggregation(&cid, run()).name;
        let target = TargetOf { key: TargetKey::new(key).unwrap(), place: 0, reply_to, parallel: false };
        let request = Request {
            cid,
            run: run(),
            source: Source::new("s").unwrap(),
            service: service(),
            target: Some(target),
            requested_at: time(0),
            traceparent: None,
            metadata: fanfare_protocol::Metadata::default(),
            body: "1".into(),
        };
        let invocation = Invocation::decode(&request.encode(), &QueueNames::default()).unwrap();
        assert_eq!(invocation.channel, Channel::FanoutCall);
        invocation
    }

    fn told(whereabouts: &Whereabouts, run: Option<RunId>, now: u64) -> Vec<(String, Doing)> {
        let request = ExplainRequest { cid: Cid::new("c").unwrap(), run, reply_to: String::new(), limit: 10 };
        let (matching, targets) = whereabouts.tell(&request, time(now));
        assert_eq!(matching, targets.len());
        targets.into_iter().map(|target| (target.key.to_string(), target.doing)).collect()
    }

    #[test]
    fn a_target_is_told_of_while_it_runs_and_while_it_waits_for_another_attempt() {
        let whereabouts = Whereabouts::default();
        let here = whereabouts.begin(&service(), &invocation("k"), time(5)).unwrap();
        let running = ("k".to_owned(), Doing::Running { since_utc: time(5) });
        assert_eq!(told(&whereabouts, None, 9), std::slice::from_ref(&running));
        assert_eq!(told(&whereabouts, Some(Uuid::from_u128(2).into()), 9), []);
        drop(here);
        assert_eq!(told(&whereabouts, None, 9), []);
        whereabouts.retries(&service(), &invocation("k"), time(20), &"why".repeat(1_000));
        let waiting = told(&whereabouts, Some(run()), 20);
        let [(_, Doing::Retrying { until_utc, exception })] = &waiting[..] else { panic!("{waiting:?}") };
        assert_eq!((*until_utc, exception.len()), (time(20), limits::EXCEPTION_TOLD_CHARS));
        assert_eq!(told(&whereabouts, None, 21), [], "it runs again, or has been");
        let _here = whereabouts.begin(&service(), &invocation("k"), time(5)).unwrap();
        assert_eq!(told(&whereabouts, None, 9), [running]);
    }

    #[test]
    fn only_a_fixed_number_of_those_that_wait_is_remembered() {
        let whereabouts = Whereabouts::default();
        for n in 0..=Whereabouts::MOST_RETRYING {
            whereabouts.retries(&service(), &invocation(&n.to_string()), time(20), "why");
        }
        assert_eq!(whereabouts.known().retrying.len(), Whereabouts::MOST_RETRYING);
        assert_eq!(whereabouts.known().retrying[0].1.key.as_str(), "1");
    }
}
