use std::collections::{BTreeSet, VecDeque};

use fanfare_fanin::FanIn;
use fanfare_protocol::{Ending, Explained, FanOutState, ServiceName, WireTime, limits};

use crate::inquiry;

/// How fan-outs have ended here lately, for operators. A fixed number of them, and of their bytes.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// The latest first.
    records: VecDeque<Record>,
    bytes: usize,
}

/// How one fan-out has ended.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) explained: Explained,
    /// Those that its targets invoked.
    services: BTreeSet<ServiceName>,
}

impl Record {
    pub(crate) fn new<T: Clone>(machine: &FanIn<T>, ending: Ending, at: WireTime) -> Self {
        let Ending { missing, by, .. } = ending;
        let state = FanOutState::Ended { ended_utc: at, missing, ended_by: by };
        let status = inquiry::status(machine, state);
        let explained = Explained {
            status,
            missing: Vec::new(),
            responded: inquiry::responded(machine, limits::FAILURES_TOLD),
            failures: inquiry::failures(machine),
        };
        let services: BTreeSet<_> = machine.manifest().targets.iter().map(|target| &target.service).collect();
        Self { explained, services: services.into_iter().cloned().collect() }
    }

    /// Whether a target of it invoked this service.
    pub(crate) fn invokes(&self, service: &ServiceName) -> bool {
        self.services.contains(service)
    }

    /// Bytes that it takes up, about.
    fn bytes(&self) -> usize {
        /// Of all that is no text of the caller's.
        const AROUND: usize = 500;
        let failures = self.explained.failures.iter();
        let failures = failures
            .map(|failed| failed.key.as_str().len() + failed.service.as_str().len() + failed.exception.len());
        let responded = self.explained.responded.iter();
        let responded = responded.map(|target| target.key.as_str().len() + target.service.as_str().len());
        let services = self.services.iter().map(|service| service.as_str().len());
        AROUND + failures.chain(responded).chain(services).map(|text| AROUND / 5 + text).sum::<usize>()
    }
}

impl Records {
    /// Fan-outs that are remembered.
    const MOST: usize = 1_000;
    /// Bytes that they may take up together.
    const MOST_BYTES: usize = 8 * 1024 * 1024;

    pub(crate) fn push(&mut self, record: Record) {
        self.bytes += record.bytes();
        self.records.push_front(record);
        while self.records.len() > Self::MOST || self.bytes > Self::MOST_BYTES {
            let Some(oldest) = self.records.pop_back() else { break };
            self.bytes -= oldest.bytes();
        }
    }

    /// The latest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Cid, FailedTarget, FanOutStatus, RunId, Source, TargetKey};
    use uuid::Uuid;

    use super::*;

    fn service() -> ServiceName {
        ServiceName::new("a").unwrap()
    }

    fn record(n: usize, exceptions: usize) -> Record {
        let at = WireTime::from_timestamp(1_000).unwrap();
        let status = FanOutStatus {
            cid: Cid::new(n.to_string()).unwrap(),
            run: RunId::from(Uuid::from_u128(n as u128)),
            source: Source::new("s").unwrap(),
            req_ts_utc: at,
            targets: 100,
            done: 100,
            failed: 100,
            deadline_utc: None,
            state: FanOutState::Ended { ended_utc: at, missing: 0, ended_by: None },
        };
        let failed = |n: usize| FailedTarget {
            key: TargetKey::new(n.to_string()).unwrap(),
            service: service(),
            exception: "x".repeat(2_000),
        };
        let explained = Explained {
            status,
            missing: vec![],
            responded: vec![],
            failures: (0..exceptions).map(failed).collect(),
        };
        Record { explained, services: [service()].into() }
    }

    fn kept(records: &Records) -> Vec<&str> {
        records.iter().map(|record| record.explained.status.cid.as_str()).collect()
    }

    #[test]
    fn only_a_fixed_number_is_remembered_and_the_latest_comes_first() {
        let mut records = Records::default();
        (0..=Records::MOST).for_each(|n| records.push(record(n, 0)));
        let kept = kept(&records);
        assert_eq!((kept.len(), kept[0], kept[Records::MOST - 1]), (Records::MOST, "1000", "1"));
        assert!(records.iter().all(|record| record.invokes(&service())));
    }

    #[test]
    fn only_so_many_bytes_are_remembered() {
        let mut records = Records::default();
        let all = 2 * Records::MOST_BYTES / 200_000;
        (0..all).for_each(|n| records.push(record(n, 100)));
        assert!(records.bytes <= Records::MOST_BYTES && kept(&records).len() < all, "{}", records.bytes);
        assert_eq!(records.bytes, records.iter().map(Record::bytes).sum::<usize>());
        assert_eq!(kept(&records)[0], (all - 1).to_string());
    }
}
