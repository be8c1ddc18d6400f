//! `/api/state`: what a process is about to do and what has lately happened, as JSON.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fanfare::{
    Environment, FanOutStatus, Heard, Lately, Operator, RecentFailure, Roll, RunId, ServiceName,
    ServiceQueue, Status, StatusQuery, System, Totals, WireTime,
};
use fanfare_operator::to_prefix;
use serde::Serialize;
use tokio::time::timeout;

use super::{LOOP_PATIENCE, SILENT_LOOP, Subject};

/// Fan-outs that are listed, the longest open first. How many there are is told beside.
const MOST_LISTED: usize = 200;
/// Fan-outs that have ended, and failures, that are listed, the latest first.
const MOST_LATELY: usize = 50;
/// Services whose queues are looked at.
const MOST_SERVICES: usize = 100;

/// What the page is drawn from.
#[derive(Debug, Serialize)]
pub(super) struct State {
    role: &'static str,
    version: &'static str,
    /// The time of day here, in milliseconds since 1970.
    now_ms: i64,
    /// Why it is of no use for now; empty where it is.
    hindrances: Vec<String>,
    /// None in a worker.
    #[serde(flatten)]
    fan_outs: Option<FanOuts>,
}

#[derive(Debug, Default, Serialize)]
struct FanOuts {
    /// Whether it tells of one coordinator only.
    own: bool,
    /// Whether any coordinator has told. Else nothing is known of fan-outs, open and ended, and of failures.
    told: bool,
    /// Why nothing, or not all, is told.
    shortfall: Option<String>,
    coordinators: Vec<Coordinator>,
    /// How many fan-outs are open.
    open_count: usize,
    open: Vec<FanOutStatus>,
    ended: Vec<FanOutStatus>,
    failures: Vec<RecentFailure>,
    /// The queues of the services that were invoked lately; none for one that cannot be looked at.
    services: BTreeMap<ServiceName, Option<ServiceQueue>>,
    /// Fan-outs that wait for a coordinator.
    waiting: Option<u64>,
    /// Messages that are kept for a person.
    parked: Option<u64>,
    /// What follows a command that the page names, so that it means these queues.
    to_prefix: String,
}

#[derive(Debug, Serialize)]
struct Coordinator {
    #[serde(flatten)]
    heard: Heard,
    /// What it has counted since it started; none where it does not answer.
    totals: Option<Totals>,
}

/// What was told before: who is silent now can be named by that.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    roll: Roll,
    /// Those of the last time that coordinators told of any.
    services: BTreeSet<ServiceName>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) async fn of(subject: &Subject, memory: &Memory, hindrances: Vec<String>) -> Self {
        let fan_outs = match &subject.operator {
            Some(operator) => Some(FanOuts::of(subject, operator, memory).await),
            None => None,
        };
        let now_ms = System.now().timestamp_millis();
        Self { role: subject.role, version: env!("CARGO_PKG_VERSION"), now_ms, hindrances, fan_outs }
    }
}

impl FanOuts {
    async fn of(subject: &Subject, operator: &Operator, memory: &Memory) -> Self {
        let told = status(subject, operator).await;
        let mut shown = Self { own: subject.coordinator.is_some(), ..Self::default() };
        let (heard, mut lately) = match told {
            Ok(Status { matching, fan_outs, lately, coordinators }) => {
                (shown.told, shown.shortfall) = (true, coordinators.shortfall());
                (shown.open_count, shown.open) = (matching, fan_outs);
                (coordinators.heard, lately)
            }
            Err(reason) => {
                shown.shortfall = Some(reason);
                (BTreeMap::new(), BTreeMap::new())
            }
        };
        let services = {
            let mut memory = memory.lock();
            let heard = memory.roll.call(heard, WireTime::from(System.now()));
            let totals = |id: &RunId| lately.get(id).map(|lately| lately.totals);
            shown.coordinators =
                heard.into_iter().map(|heard| Coordinator { totals: totals(&heard.id), heard }).collect();
            let services = lately.values_mut().flat_map(|lately| std::mem::take(&mut lately.services));
            let services: BTreeSet<_> = services.take(MOST_SERVICES).collect();
            if !services.is_empty() {
                memory.services = services;
            }
            memory.services.clone()
        };
        shown.lately(lately.into_values());
        let names = operator.names();
        shown.to_prefix = to_prefix(names);
        for service in services {
            let queue = operator.queue(&names.service_queue(&service)).await;
            shown.services.insert(service, queue);
        }
        let waiting = |queue: Option<ServiceQueue>| queue.map(|queue| queue.waiting);
        shown.waiting = waiting(operator.queue(&names.fanin_queue()).await);
        shown.parked = waiting(operator.queue(&names.parked().name).await);
        shown
    }

    /// Puts together what several coordinators tell, each fan-out and each failure once.
    fn lately(&mut self, lately: impl Iterator<Item = Lately>) {
        let (mut ended, mut failures) = (BTreeMap::new(), BTreeMap::new());
        for lately in lately {
            ended.extend(lately.ended.into_iter().map(|status| (status.run, status)));
            let failed = lately.failures.into_iter();
            failures.extend(failed.map(|failure| ((failure.run, failure.target.key.clone()), failure)));
        }
        // What one has ended, another may hold until it learns of that.
        let listed = self.open.len();
        self.open.retain(|open| !ended.contains_key(&open.run));
        self.open_count = self.open_count.saturating_sub(listed - self.open.len());
        self.ended = ended.into_values().collect();
        let query = StatusQuery { ended: true, limit: MOST_LATELY, ..StatusQuery::default() };
        query.select(&mut self.ended);
        self.failures = failures.into_values().collect();
        self.failures.sort_by_key(|failure| Reverse(failure.at_utc));
        self.failures.truncate(MOST_LATELY);
    }
}

/// What coordinators tell, or this process's own.
async fn status(subject: &Subject, operator: &Operator) -> Result<Status, String> {
    let query = StatusQuery { lately: true, limit: MOST_LISTED, ..StatusQuery::default() };
    let status = match &subject.coordinator {
        Some(own) => {
            let answer = timeout(LOOP_PATIENCE, own.status(query.clone())).await;
            let answer = answer.ok().flatten().ok_or(SILENT_LOOP)?;
            Status::of(vec![answer], None, &query)
        }
        None => operator.status(&query).await,
    };
    status.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}
