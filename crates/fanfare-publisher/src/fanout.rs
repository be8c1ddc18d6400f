use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fanfare_protocol::{Cid, FinalPayload, Metadata, ServiceName, Source, limits};
use serde::Serialize;

use crate::schedule::Schedule;
use crate::target::CheckedTarget;
use crate::waiting::{self, WhileWaiting};
use crate::{
    Accepted, Completion, IntoNames, Invalid, InvokeError, Publisher, Target, WaitError, invocation,
};

/// The longest deadline. What is to take longer has none.
const LONGEST_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Mistakes that are reported.
const MOST_MISTAKES: usize = 10;

/// A fan-out or parallel execution that is being put together. Nothing is sent before [`invoke`](Fanout::invoke), and
/// mistakes wait until then, and are reported together.
///
/// ```
/// use std::sync::Arc;
/// use fanfare_broker::{System, memory::MemoryBroker};
/// use fanfare_publisher::{Config, Publisher, Target};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let publisher = Publisher::new(Arc::new(MemoryBroker::new()), Arc::new(System), Config::default());
/// let fanout = publisher
///     .fanout("orders.intake")
///     .metadata("order", 7)
///     .target("price.quote", ["shoe"])
///     .add(Target::new("stock.check", "shoe").key("warehouse-1"))
///     .add(Target::new("stock.check", "shoe").key("warehouse-2"))
///     .on_target("audit.log")
///     .on_final(["order.enriched", "helpers.input-logger"]);
/// let error = fanout.invoke().await.expect_err("nobody serves any of it yet");
/// assert!(error.to_string().starts_with("no worker serves `audit.log`, `helpers.input-logger`"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is sent before `invoke` or `invoke_and_wait`"]
pub struct Fanout {
    pub(crate) publisher: Publisher,
    pub(crate) parallel: bool,
    pub(crate) source: Option<Source>,
    pub(crate) cid: Option<Cid>,
    pub(crate) targets: Vec<CheckedTarget>,
    pub(crate) on_target: Vec<ServiceName>,
    pub(crate) on_final: Vec<ServiceName>,
    pub(crate) metadata: Metadata,
    pub(crate) deadline: Option<Duration>,
    pub(crate) completion: Option<Completion>,
    pub(crate) declare_missing: bool,
    pub(crate) nested: bool,
    pub(crate) mistakes: Vec<Invalid>,
    while_waiting: Option<Arc<dyn WhileWaiting>>,
    pub(crate) on_progress: Option<OnProgress>,
}

/// Is told how many targets have responded.
#[derive(Clone)]
pub(crate) struct OnProgress(pub(crate) Arc<dyn Fn(usize) + Send + Sync>);

impl fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnProgress")
    }
}

impl Fanout {
    pub(crate) fn new(publisher: Publisher, parallel: bool, source: &str) -> Self {
        let (deadline, declare_missing) = {
            let config = publisher.config();
            (config.deadline, config.declare_missing)
        };
        let mut fanout = Self {
            publisher,
            parallel,
            source: None,
            cid: None,
            targets: Vec::new(),
            on_target: Vec::new(),
            on_final: Vec::new(),
            metadata: Metadata::default(),
            deadline: None,
            completion: None,
            declare_missing,
            nested: false,
            mistakes: Vec::new(),
            while_waiting: None,
            on_progress: None,
        };
        fanout.source = fanout.checked(Source::new(source));
        match deadline {
            Some(deadline) => fanout.deadline(deadline),
            None => fanout,
        }
    }

    /// Adds a target that is known by its service's name.
    pub fn target(self, service: impl AsRef<str>, payload: impl Serialize) -> Self {
        self.add(Target::new(service, payload))
    }

    /// Adds a target, which may have a key of its own.
    #[expect(clippy::should_implement_trait, reason = "no one adds a target to a fan-out with `+`")]
    pub fn add(mut self, target: Target) -> Self {
        self.push(target);
        self
    }

    /// Adds targets from a map or list of services and payloads, in its order.
    pub fn targets(mut self, targets: impl IntoIterator<Item = (impl AsRef<str>, impl Serialize)>) -> Self {
        for (service, payload) in targets {
            if !self.push(Target::new(service, payload)) {
                break;
            }
        }
        self
    }

    /// Adds services that are invoked each time a target completes. Called again, it adds to them.
    pub fn on_target(mut self, callbacks: impl IntoNames) -> Self {
        let names = self.names(callbacks);
        self.on_target.extend(names);
        self
    }

    /// Adds services that are invoked when all targets have completed. Called again, it adds to them.
    pub fn on_final(mut self, callbacks: impl IntoNames) -> Self {
        let names = self.names(callbacks);
        self.on_final.extend(names);
        self
    }

    /// Sets the CID. Without one, a fresh one is drawn. Two fan-outs with the same CID never mix.
    pub fn cid(mut self, cid: impl AsRef<str>) -> Self {
        self.cid = self.checked(Cid::new(cid.as_ref()));
        self
    }

    /// Tells every target and callback something beside its payload: 4 KiB in all.
    pub fn metadata(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        let inserted = self.metadata.insert(name, value.to_string());
        self.checked(inserted);
        self
    }

    /// Declares the queues of services and callbacks that no worker has declared yet, instead of refusing them.
    pub fn declare_missing(mut self) -> Self {
        self.declare_missing = true;
        self
    }

    /// Sets after how long targets that have not answered count as failed: 1 ms to 365 days, from the manifest's first
    /// delivery to a coordinator.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        let allowed = (Duration::from_millis(1)..=LONGEST_DEADLINE).contains(&deadline);
        self.deadline = self.checked(if allowed { Ok(deadline) } else { Err(Invalid::Deadline(deadline)) });
        self
    }

    /// Lets the fan-out wait for its targets for ever.
    pub fn without_deadline(mut self) -> Self {
        self.deadline = None;
        self
    }

    /// Completes it before all targets have responded, once a rule is met. Those that have not responded by then fail, with
    /// the rule as the reason: callbacks are invoked with what there is. A parallel execution ends in the same way, and its
    /// on-target callbacks are invoked with these failures too. What still answers is dropped.
    ///
    /// Called again, it adds a rule, and the one that is met first completes the fan-out.
    ///
    /// ```
    /// # use fanfare_publisher::{Completion, Fanout};
    /// # fn example(fanout: Fanout) -> Fanout {
    /// // The first two of these answers are enough, and one failure can be borne.
    /// fanout
    ///     .targets([("quote.north", 1), ("quote.south", 1), ("quote.west", 1)])
    ///     .complete_when(Completion::succeeded(2))
    ///     .complete_when(Completion::failed_above(1))
    /// # }
    /// # let _ = example;
    /// ```
    pub fn complete_when(mut self, rule: Completion) -> Self {
        self.completion = Some(match self.completion {
            Some(rules) => rules.or(rule),
            None => rule,
        });
        self
    }

    /// Says that a service invokes it, so that it is part of what has begun: see [`Config::most_waiting`](crate::Config). For
    /// whoever runs services.
    pub fn nested(mut self) -> Self {
        self.nested = true;
        self
    }

    /// Sets what gives way while [`invoke_and_wait`](Fanout::invoke_and_wait) waits. For whoever runs services.
    pub fn while_waiting(mut self, while_waiting: Arc<dyn WhileWaiting>) -> Self {
        self.while_waiting = Some(while_waiting);
        self
    }

    /// Sets what is told how many targets have responded while [`invoke_and_wait`](Fanout::invoke_and_wait) waits: for a person
    /// who watches.
    ///
    /// The coordinator sends the number to the caller's own queue, ten times a second at the most, and nothing else about the
    /// fan-out changes. It is called with numbers that grow, unless another coordinator takes the fan-out over and reads it anew;
    /// the last one may be missing, and a coordinator of an older version sends none.
    pub fn on_progress(mut self, told: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(OnProgress(Arc::new(told)));
        self
    }

    /// Invokes it, and returns when the broker has taken all of it. What it leads to happens in the background.
    ///
    /// # Errors
    /// [`InvokeError`] tells whether nothing was sent, the fan-out does not exist, or nobody can say.
    ///
    /// # Cancel safety
    /// An invocation whose future is dropped is given up, and its queue deleted, unless the manifest is being written
    /// already: then it goes on to its end in the background.
    pub async fn invoke(self) -> Result<Accepted, InvokeError> {
        let shared = Arc::clone(&self.publisher.shared);
        let schedule = Schedule::begin(&shared.config);
        let plan = self.plan(None)?;
        invocation::invoke(shared, plan, schedule).await
    }

    /// Invokes it, waits until all targets have completed, and returns what the final callbacks receive. It needs no
    /// final callback; those that it has are invoked all the same.
    ///
    /// `timeout` counts from this call. It cuts the wait short, never the invocation, which has a time limit of its own.
    /// Inside a service, the service gives its place to others while it waits.
    ///
    /// # Errors
    /// [`WaitError`]. Once the fan-out is accepted it goes on, whatever becomes of the wait.
    ///
    /// # Cancel safety
    /// As for [`invoke`](Fanout::invoke); a fan-out that was accepted goes on when the future is dropped.
    pub async fn invoke_and_wait(mut self, timeout: Duration) -> Result<FinalPayload, WaitError> {
        let while_waiting = self.while_waiting.take();
        let yielded = while_waiting.map(|it| it.begin());
        let outcome = waiting::invoke_and_wait(self, timeout).await;
        if let Some(yielded) = yielded {
            yielded.end().await;
        }
        outcome
    }

    /// Says what is wrong with it, as far as that can be seen without the broker. [`invoke`](Fanout::invoke) and
    /// [`invoke_and_wait`](Fanout::invoke_and_wait), for which it `waits`, do so by themselves.
    ///
    /// # Errors
    /// [`Invalid::Several`] where more than one thing is wrong.
    pub fn check(mut self, waits: bool) -> Result<Self, Invalid> {
        self.check_whole(waits);
        match self.mistakes.len() {
            0 => Ok(self),
            1 => Err(self.mistakes.remove(0)),
            _ => Err(Invalid::Several(self.mistakes)),
        }
    }

    /// Returns whether there may be more of them.
    fn push(&mut self, target: Target) -> bool {
        let most = self.publisher.config().most_targets.min(limits::TARGETS);
        let has_room = self.targets.len() < most;
        if has_room {
            let checked = target.check();
            let checked = self.checked(checked);
            self.targets.extend(checked);
        } else if !self.mistakes.iter().any(|mistake| matches!(mistake, Invalid::TooManyTargets(_))) {
            self.mistaken(Invalid::TooManyTargets(most));
        }
        has_room && self.mistakes.len() < MOST_MISTAKES
    }

    fn names(&mut self, names: impl IntoNames) -> Vec<ServiceName> {
        let names: Result<_, _> = names.into_names().into_iter().map(ServiceName::new).collect();
        self.checked(names).unwrap_or_default()
    }

    /// The value, or nothing where it is a mistake, which is kept.
    fn checked<T, E: Into<Invalid>>(&mut self, value: Result<T, E>) -> Option<T> {
        value.map_err(|mistake| self.mistaken(mistake.into())).ok()
    }

    pub(crate) fn mistaken(&mut self, mistake: Invalid) {
        if self.mistakes.len() < MOST_MISTAKES {
            self.mistakes.push(mistake);
        }
    }
}
