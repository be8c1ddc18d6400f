use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fanfare_broker::trace;
use fanfare_protocol::{
    Channel, Cid, CompletionPolicy, Manifest, ManifestTarget, Message, QueueSpec, Request, RunId,
    ServiceName, TargetOf, WireTime, limits,
};

use crate::publisher::Shared;
use crate::spares::Spare;
use crate::{Aggregation, Fanout, Invalid, QueueType};

/// A fan-out that keeps all rules which can be checked without the broker: what is to be sent, and in which order.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) manifest: Manifest,
    pub(crate) manifest_message: Message,
    /// Where its results are gathered.
    pub(crate) queue: QueueSpec,
    /// The payloads of the manifest's targets, in its order.
    pub(crate) bodies: Vec<Bytes>,
    pub(crate) declare_missing: bool,
    pub(crate) nested: bool,
    /// Whether its CID was drawn.
    pub(crate) is_drawn: bool,
}

impl Fanout {
    /// Checks the whole and fixes it. `waiter` is the queue of a caller who waits.
    pub(crate) fn plan(self, waiter: Option<String>) -> Result<Plan, Invalid> {
        let fanout = self.check(waiter.is_some())?;
        let completion = fanout.completion_policy()?;
        let shared = fanout.publisher.shared;
        let environment = &shared.environment;
        let is_drawn = fanout.cid.is_none();
        let cid = fanout.cid.unwrap_or_else(|| Cid::from(environment.sequential()));
        let run = RunId::from(environment.unique());
        let progress = waiter.is_some() && fanout.on_progress.is_some();
        let (targets, bodies) = fanout
            .targets
            .into_iter()
            .map(|target| (ManifestTarget { key: target.key, service: target.service }, target.body))
            .unzip();
        let queue = shared.config.gathering(&cid, run)?;
        let manifest = Manifest {
            reply_to: queue.name.clone(),
            cid,
            run,
            source: fanout.source.expect("a source that is not allowed is a mistake, which was checked for"),
            req_ts_utc: WireTime::from(environment.now()),
            channel: if fanout.parallel { Channel::ParallelExecCall } else { Channel::FanoutCall },
            targets,
            on_target: fanout.on_target,
            on_final: fanout.on_final,
            deadline_ms: fanout.deadline.map(milliseconds),
            deadline_utc: None,
            waiter,
            progress,
            sentinel: shared.config.aggregation == Aggregation::PerCid,
            replicated: matches!(
                (shared.config.aggregation, shared.config.queue_type),
                (Aggregation::PerCid, QueueType::Quorum)
            ),
            completion,
            metadata: fanout.metadata,
            traceparent: trace::current(),
        };
        let manifest_message = message(&manifest, &shared);
        let bytes = manifest_message.body.len();
        if bytes > limits::MESSAGE_BYTES {
            return Err(Invalid::ManifestTooLarge { bytes });
        }
        let (declare_missing, nested) = (fanout.declare_missing, fanout.nested);
        Ok(Plan { manifest, manifest_message, queue, bodies, declare_missing, nested, is_drawn })
    }

    /// Adds what is wrong with the whole to the mistakes that were made on the way. Of what was left out then, nothing is said again.
    pub(crate) fn check_whole(&mut self, waits: bool) {
        let (is_whole, are_named) = (
            self.mistakes.is_empty(),
            !self.mistakes.iter().any(|mistake| matches!(mistake, Invalid::Name(_))),
        );
        let on_target = check_callbacks("on-target", &self.on_target);
        let on_final = check_callbacks("final", &self.on_final);
        let kinds = if are_named { self.check_kinds(waits) } else { Ok(()) };
        let completion = if is_whole { self.completion_policy().map(drop) } else { Ok(()) };
        for checked in [on_target, on_final, kinds, self.check_keys(), completion] {
            checked.unwrap_or_else(|mistake| self.mistaken(mistake));
        }
    }

    fn completion_policy(&self) -> Result<Option<CompletionPolicy>, Invalid> {
        let policy = self.completion.map(|completion| completion.policy(self.targets.len()));
        Ok(policy.transpose()?.flatten())
    }

    fn check_kinds(&self, waits: bool) -> Result<(), Invalid> {
        match (self.parallel, self.on_final.first()) {
            (true, _) if waits => Err(Invalid::WaitOfParallel),
            (true, Some(callback)) => Err(Invalid::FinalCallbackOfParallel(callback.clone())),
            (true, None) if self.on_target.is_empty() => Err(Invalid::NoOnTargetCallback),
            (false, None) if !waits => Err(Invalid::NoFinalCallback),
            _ => Ok(()),
        }
    }

    fn check_keys(&self) -> Result<(), Invalid> {
        let mut keys = BTreeSet::new();
        match self.targets.iter().find(|target| !keys.insert(&target.key)) {
            Some(twice) => Err(Invalid::DuplicateKey { key: twice.key.clone() }),
            None => Ok(()),
        }
    }
}

fn check_callbacks(kind: &'static str, callbacks: &[ServiceName]) -> Result<(), Invalid> {
    if callbacks.len() > limits::CALLBACKS {
        return Err(Invalid::TooManyCallbacks { kind, count: callbacks.len() });
    }
    let mut names = BTreeSet::new();
    match callbacks.iter().find(|callback| !names.insert(*callback)) {
        Some(twice) => Err(Invalid::DuplicateCallback { kind, callback: twice.clone() }),
        None => Ok(()),
    }
}

impl Plan {
    /// Makes it another run of the same fan-out. Nothing of it may have been sent.
    pub(crate) fn draw_again(&mut self, shared: &Shared) {
        let run = RunId::from(shared.environment.unique());
        let queue =
            shared.config.gathering(&self.manifest.cid, run).expect("it was checked for the first run");
        self.gather_in(queue, run, shared);
    }

    /// Has its results gathered in a queue that is there already, under the CID that was drawn for that. Nothing of it may have been sent.
    pub(crate) fn take(&mut self, spare: Spare, shared: &Shared) {
        let Spare { cid, run, queue, .. } = spare;
        self.manifest.cid = cid;
        self.gather_in(queue, run, shared);
    }

    fn gather_in(&mut self, queue: QueueSpec, run: RunId, shared: &Shared) {
        self.manifest.run = run;
        self.manifest.reply_to.clone_from(&queue.name);
        self.queue = queue;
        self.manifest_message = message(&self.manifest, shared);
    }

    /// All services whose queues must be there: targets and callbacks, each once.
    pub(crate) fn services(&self) -> BTreeSet<ServiceName> {
        let targets = self.manifest.targets.iter().map(|target| &target.service);
        targets.chain(&self.manifest.on_target).chain(&self.manifest.on_final).cloned().collect()
    }

    /// The request for the target at a place. Built when it is needed, so that a wide fan-out is not held twice.
    pub(crate) fn request(&self, place: usize) -> Request {
        let manifest = &self.manifest;
        let ManifestTarget { key, service } = &manifest.targets[place];
        Request {
            cid: manifest.cid.clone(),
            run: manifest.run,
            source: manifest.source.clone(),
            service: service.clone(),
            requested_at: manifest.req_ts_utc,
            metadata: manifest.metadata.clone(),
            traceparent: manifest.traceparent,
            body: self.bodies[place].clone(),
            target: Some(TargetOf {
                parallel: manifest.channel == Channel::ParallelExecCall,
                key: key.clone(),
                place,
                reply_to: manifest.reply_to.clone(),
            }),
        }
    }
}

fn message(manifest: &Manifest, shared: &Shared) -> Message {
    let mut message = manifest.encode();
    message.properties.user_id = shared.config.user_id.as_deref().map(Into::into);
    message
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
