use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fanfare_broker::trace;
use fanfare_protocol::{
    Channel, Cid, Manifest, ManifestTarget, Message, QueueSpec, Request, RunId, ServiceName, TargetOf,
    WireTime, limits,
};

use crate::publisher::Shared;
use crate::{Aggregation, Fanout, Invalid};

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
}

impl Fanout {
    /// Checks the whole and fixes it. `waiter` is the queue of a caller who waits.
    pub(crate) fn plan(mut self, waiter: Option<String>) -> Result<Plan, Invalid> {
        if let Some(mistake) = self.mistake.take() {
            return Err(mistake);
        }
        self.check_callbacks(waiter.is_some())?;
        self.check_keys()?;
        let completion =
            self.completion.map(|completion| completion.policy(self.targets.len())).transpose()?.flatten();
        let shared = self.publisher.shared;
        let environment = &shared.environment;
        let cid = self.cid.unwrap_or_else(|| Cid::from(environment.sequential()));
        let run = RunId::from(environment.unique());
        let progress = waiter.is_some() && self.on_progress.is_some();
        let (targets, bodies) = self
            .targets
            .into_iter()
            .map(|target| (ManifestTarget { key: target.key, service: target.service }, target.body))
            .unzip();
        let queue = shared.config.gathering(&cid, run)?;
        let manifest = Manifest {
            reply_to: queue.name.clone(),
            cid,
            run,
            source: self.source.expect("a source that is not allowed is a mistake, which was checked for"),
            req_ts_utc: WireTime::from(environment.now()),
            channel: if self.parallel { Channel::ParallelExecCall } else { Channel::FanoutCall },
            targets,
            on_target: self.on_target,
            on_final: self.on_final,
            deadline_ms: self.deadline.map(milliseconds),
            deadline_utc: None,
            waiter,
            progress,
            sentinel: shared.config.aggregation == Aggregation::PerCid,
            completion,
            metadata: self.metadata,
            traceparent: trace::current(),
        };
        let manifest_message = message(&manifest, &shared);
        let bytes = manifest_message.body.len();
        if bytes > limits::MESSAGE_BYTES {
            return Err(Invalid::ManifestTooLarge { bytes });
        }
        let (declare_missing, nested) = (self.declare_missing, self.nested);
        Ok(Plan { manifest, manifest_message, queue, bodies, declare_missing, nested })
    }

    fn check_callbacks(&self, waits: bool) -> Result<(), Invalid> {
        for (kind, callbacks) in [("on-target", &self.on_target), ("final", &self.on_final)] {
            if callbacks.len() > limits::CALLBACKS {
                return Err(Invalid::TooManyCallbacks { kind, count: callbacks.len() });
            }
            let mut names = BTreeSet::new();
            if let Some(twice) = callbacks.iter().find(|callback| !names.insert(*callback)) {
                return Err(Invalid::DuplicateCallback { kind, callback: twice.clone() });
            }
        }
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

impl Plan {
    /// Makes it another run of the same fan-out. Nothing of it may have been sent.
    pub(crate) fn draw_again(&mut self, shared: &Shared) {
        let run = RunId::from(shared.environment.unique());
        self.queue =
            shared.config.gathering(&self.manifest.cid, run).expect("it was checked for the first run");
        self.manifest.run = run;
        self.manifest.reply_to.clone_from(&self.queue.name);
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
    message.properties.user_id = shared.config.user_id.clone();
    message
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
