use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fanfare_protocol::{HeaderValue, Message, header};
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

/// What one service of this worker runs and has lately finished, so that a message which the broker takes back while it is
/// still worked on, as it does at its consumer time-out, is neither run again here nor handed out for ever.
///
/// It only ever concerns redeliveries, and it is a help and no promise: another worker knows nothing of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    running: BTreeMap<Work, CancellationToken>,
    /// With the queue that nobody has needed since, where there was one.
    finished: BTreeMap<Work, Option<String>>,
    /// The finished ones, in their order.
    order: VecDeque<Work>,
}

/// What tells a message from all others, and is the same at every redelivery of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Work {
    run: SmolStr,
    message_id: SmolStr,
    attempt: i64,
    /// What was put back by an operator is to be run again, whatever became of it before.
    replayed: Option<SmolStr>,
}

/// What is to be done with a delivery.
pub(crate) enum Turn {
    /// It is to be run.
    Run(Running),
    /// It runs here already. The token is cancelled when that has ended.
    Wait(CancellationToken),
    /// It was run here, and all that follows from it is safe. The queue is the one that nobody has needed since.
    Finished(Option<String>),
}

/// A run, until this is dropped.
pub(crate) struct Running {
    work: Work,
    history: History,
    ended: CancellationToken,
}

impl Work {
    /// None where the message does not say which it is.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        // All are shared with the message, and nothing is copied.
        let text = |name| match message.headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text.clone()),
            _ => None,
        };
        Some(Self {
            run: text(header::RUN)?,
            message_id: message.properties.message_id.clone()?,
            attempt: message.int(header::ATTEMPT).unwrap_or(1),
            replayed: text(header::REPLAYED),
        })
    }
}

impl History {
    /// Finished ones that are remembered: more than a worker can finish between the time-out of a delivery and its return.
    const MOST: usize = 10_000;

    pub(crate) fn turn(&self, work: Work, redelivered: bool) -> Turn {
        let mut known = self.known();
        if redelivered {
            if let Some(ended) = known.running.get(&work) {
                return Turn::Wait(ended.clone());
            }
            if let Some(unneeded) = known.finished.get(&work) {
                return Turn::Finished(unneeded.clone());
            }
        }
        let ended = CancellationToken::new();
        known.running.insert(work.clone(), ended.clone());
        drop(known);
        Turn::Run(Running { work, history: self.clone(), ended })
    }

    /// Where it was run to its end here, the queue that nobody has needed since.
    pub(crate) fn finished(&self, work: &Work) -> Option<Option<String>> {
        self.known().finished.get(work).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// All that follows from it is safe, and nobody needs this queue any more.
    pub(crate) fn finish(self, unneeded: Option<String>) {
        let mut known = self.history.known();
        if known.finished.insert(self.work.clone(), unneeded).is_none() {
            known.order.push_back(self.work.clone());
        }
        if known.order.len() > History::MOST
            && let Some(oldest) = known.order.pop_front()
        {
            known.finished.remove(&oldest);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.history.known().running.remove(&self.work);
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Headers, Properties};
    use uuid::Uuid;

    use super::*;

    fn work(n: usize) -> Work {
        Work { run: "run".into(), message_id: n.to_string().into(), attempt: 1, replayed: None }
    }

    fn run(history: &History, n: usize) -> Running {
        match history.turn(work(n), false) {
            Turn::Run(running) => running,
            _ => panic!("what is delivered for the first time is run"),
        }
    }

    #[test]
    fn redelivery_waits_for_the_run_under_way_and_is_not_run_after_it() {
        let history = History::default();
        let running = run(&history, 1);
        let Turn::Wait(ended) = history.turn(work(1), true) else { panic!("it runs") };
        assert!(!ended.is_cancelled());
        running.finish(Some("parts".to_owned()));
        assert!(ended.is_cancelled() && history.finished(&work(1)).is_some());
        assert!(matches!(history.turn(work(1), true), Turn::Finished(Some(queue)) if queue == "parts"));
        assert!(matches!(history.turn(Work { attempt: 2, ..work(1) }, true), Turn::Run(_)));
    }

    #[test]
    fn redelivery_of_what_was_put_back_is_run_though_it_was_run_before() {
        let properties = Properties { message_id: Some("c/final/0".into()), ..Properties::default() };
        let headers = Headers::from([(header::RUN, "run".into())]);
        let message = Message { properties, headers, ..Message::default() };
        let (history, first) = (History::default(), Work::of(&message).unwrap());
        let Turn::Run(running) = history.turn(first.clone(), false) else { panic!("it is new") };
        running.finish(None);
        let at = "2025-01-19 19:55:45".parse().unwrap();
        let replayed = message.parked("fanfare.svc.a", "it failed", at, Uuid::from_u128(1)).unparked();
        let again = Work::of(&replayed).unwrap();
        assert!(matches!(history.turn(first, true), Turn::Finished(None)));
        assert!(matches!(history.turn(again, true), Turn::Run(_)));
    }

    #[test]
    fn redelivery_of_a_run_that_was_dropped_is_run() {
        let history = History::default();
        drop(run(&history, 1));
        assert!(matches!(history.turn(work(1), true), Turn::Run(_)));
    }

    #[test]
    fn only_a_fixed_number_is_remembered() {
        let history = History::default();
        (0..=History::MOST).for_each(|n| run(&history, n).finish(None));
        assert!(history.finished(&work(0)).is_none() && history.finished(&work(1)).is_some());
        assert_eq!(history.known().finished.len(), History::MOST);
        assert!(history.known().running.is_empty());
    }
}
