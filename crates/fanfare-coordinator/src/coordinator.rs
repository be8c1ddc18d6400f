use std::collections::BTreeMap;
use std::sync::Arc;

use fanfare_broker::{
    Aftercare, Backoff, Broker, BrokerError, Delivery, Environment, Receipt, Subscription,
    SubscriptionOptions,
};
use fanfare_fanin::{FanIn, Hold};
use fanfare_protocol::{
    CancelAnswer, CancelRequest, CancelState, Cid, Manifest, Message, Presence, RunId, header, limits,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dead_letters;
use crate::deadline::deadline;
use crate::delivery::Tag;
use crate::ended::LatelyEnded;
use crate::fan_out::{Conclusion, FanOut, Ties, Word};
use crate::handle::Inquiry;
use crate::inquiry::{Inquiries, Known, gather};
use crate::messenger::Messenger;
use crate::outbox::{Absence, Outbox, Outcome};
use crate::shards::Shards;
use crate::trust::Trust;
use crate::view::View;
use crate::{Config, Error, Handle};

/// Dead letters that one coordinator is handed at a time. There are none, unless an operator's policy makes some.
const DEAD_LETTERS_AT_A_TIME: u16 = 100;

/// Takes manifests and brings each fan-out to its end. Run as many of them as you like.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    outbox: Outbox,
    messenger: Messenger,
    trust: Trust,
    /// The origin of the machines' time.
    started: Instant,
    open: BTreeMap<RunId, Open>,
    tasks: JoinSet<Conclusion>,
    shards: Shards,
    /// What is no manifest, on its way to the parked messages, dead letters on their way to where they belong, and what others
    /// are told.
    parking: TaskTracker,
    /// Cancelled where a stop waits no longer for them.
    cut_off: CancellationToken,
    ended: LatelyEnded,
    inquiries: Inquiries,
    /// Set while as many fan-outs are open as may be, once that was told.
    full: bool,
    stop: CancellationToken,
    /// What others see of it.
    handle: Handle,
    /// What they ask.
    inquired: mpsc::Receiver<Inquiry>,
    /// What its fan-outs have lately come to.
    view: View,
}

/// A fan-out with a task.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) inbox: mpsc::UnboundedSender<Word>,
}

impl Coordinator {
    /// A coordinator on a broker. It does nothing before [`run_until`](Self::run_until).
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>, environment: Arc<dyn Environment>, config: Config) -> Self {
        let outbox = Outbox {
            aftercare: Aftercare::new(Arc::clone(&broker)),
            broker,
            environment,
            names: config.names.clone(),
            absence_pause: config.absence_pause,
            replicated_payloads: config.replicated_payloads,
            refusals: Arc::default(),
        };
        let parking = TaskTracker::new();
        let (handle, inquired) = Handle::new();
        let messenger = Messenger::new(outbox.clone(), parking.clone());
        let (trust, started, view) = (Trust::new(&config), Instant::now(), View::default());
        Self {
            inquiries: Inquiries::new(messenger.clone(), trust.clone(), config.name.clone()),
            shards: Shards::new(&config, messenger.clone(), trust.clone(), started, view.clone()),
            messenger,
            outbox,
            trust,
            config,
            started,
            open: BTreeMap::new(),
            tasks: JoinSet::new(),
            parking,
            cut_off: CancellationToken::new(),
            ended: LatelyEnded::default(),
            full: false,
            stop: CancellationToken::new(),
            handle,
            inquired,
            view,
        }
    }

    /// Looks into it while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Works until `shutdown` completes, through every outage of the broker. It then takes no more manifests, brings what
    /// is open to a point from which another coordinator repeats nothing, and lets it go; what cannot be brought there
    /// within [`Config::stop_within`] is let go as it is.
    ///
    /// # Errors
    /// [`Error::Setting`] where the configuration is out of range: nothing was done then. [`Error::Broker`] where the broker
    /// refuses at the start what every coordinator needs, to a user who lacks a right for instance, or its
    /// [`Config::user_id`]. What it refuses later is tried on.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        self.config.check()?;
        let options =
            SubscriptionOptions { prefetch: self.config.prefetch, most_channels: self.config.most_channels };
        let mut shutdown = std::pin::pin!(shutdown);
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            prepared = self.prepare() => prepared?,
        }
        let names = &self.config.names;
        let broker = Arc::clone(&self.outbox.broker);
        let readiness = &self.handle.readiness;
        let mut manifests =
            Subscription::new(broker, Arc::clone(&self.outbox.environment), names.fanin(), options)
                .unless_denied()
                .reporting_to(readiness.clone());
        let mut dead_letters = Subscription::new(
            Arc::clone(&self.outbox.broker),
            Arc::clone(&self.outbox.environment),
            names.dead(),
            SubscriptionOptions { prefetch: DEAD_LETTERS_AT_A_TIME, most_channels: 1 },
        )
        .unless_denied()
        .reporting_to(readiness.clone());
        let ears = names.clone();
        let mut asked = Subscription::to_exchange(
            Arc::clone(&self.outbox.broker),
            Arc::clone(&self.outbox.environment),
            names.coordinators(),
            move |id| ears.coordinator(id),
        )
        .unless_denied()
        .reporting_to(readiness.clone());
        self.shards.start();
        self.handle.started();
        tracing::info!(queue = names.fanin_queue(), "coordinator started");
        loop {
            tokio::select! {
                // What has ended makes room for what comes, and there is never more of it than was taken.
                biased;
                () = &mut shutdown => break,
                Some(inquiry) = self.inquired.recv() => self.inquiries.ask(inquiry, &self.known()),
                Some(conclusion) = self.tasks.join_next() => self.conclude(conclusion).await,
                () = self.shards.run() => {}
                letter = dead_letters.next() => match letter {
                    Some(letter) => {
                        let settled = dead_letters::settle(self.outbox.clone(), self.trust.clone(), letter);
                        self.parking.spawn(settled);
                    }
                    None => break,
                },
                word = asked.next() => match word {
                    Some(word) => self.hear(word).await,
                    None => break,
                },
                delivery = manifests.next() => match delivery {
                    Some(delivery) => self.take(delivery).await,
                    None => break,
                },
            }
        }
        let denial = [&manifests, &dead_letters, &asked].into_iter().find_map(Subscription::denial).cloned();
        tracing::info!(open = self.open.len(), "coordinator stops");
        let deadline = Instant::now() + self.config.stop_within;
        // A broker that does not answer now puts back what they hold when the connections end.
        let unsubscribed = async { tokio::join!(asked.stop(), dead_letters.stop(), manifests.stop()) };
        let _ = tokio::time::timeout_at(deadline, unsubscribed).await;
        self.stop(deadline).await;
        denial.map_or(Ok(()), |denial| Err(denial.into()))
    }

    /// Sees to it that the queues are there which every coordinator needs, and that the broker takes what it is to sign.
    async fn prepare(&self) -> Result<(), Error> {
        let broker = &self.outbox.broker;
        let names = &self.config.names;
        let shards = (0..self.config.shards).map(|number| names.shard(number));
        let shards = shards.chain((self.config.shards > 0).then(|| names.full()));
        for queue in [names.fanin(), names.parked(), names.dead()].into_iter().chain(shards) {
            let ensure = || async {
                let other = names.settling_payload(RunId::from(self.outbox.environment.unique()));
                broker.ensure(&queue, &other).await
            };
            self.through_outages(&queue.name, ensure).await?;
        }
        if let Some(user_id) = &self.config.user_id {
            self.through_outages("user_id", || broker.check_user_id(user_id)).await?;
        }
        Ok(())
    }

    /// Waits for as long as there is no broker.
    async fn through_outages<F>(&self, of: &str, attempt: impl Fn() -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), BrokerError>>,
    {
        let mut backoff = Backoff::default();
        while let Err(error) = attempt().await {
            if !error.is_outage() {
                return Err(error.into());
            }
            self.handle.waits(&error);
            tracing::warn!(of, %error, "waiting for the broker");
            backoff.wait(&*self.outbox.environment).await;
        }
        Ok(())
    }

    async fn take(&mut self, delivery: Delivery) {
        if let Err(reason) = self.trust.check(&delivery.message) {
            return self.refuse(delivery, &reason).await;
        }
        let manifest = match Manifest::decode(&delivery.message, &self.config.names) {
            Ok(manifest) => manifest,
            Err(reason) => return self.refuse(delivery, &reason.to_string()).await,
        };
        if let Some(shard) = self.config.names.shard_number(&manifest.reply_to) {
            let served = self.config.shards;
            if served > 0 && shard >= served {
                let reason = format!(
                    "it belongs in shard {shard}, and the coordinators serve {served} shards, which count from 0: give them as many as \
                     its publisher has, and replay it"
                );
                return self.refuse(delivery, &reason).await;
            }
            return self.forward(delivery, &manifest);
        }
        let run = manifest.run;
        if self.ended.contains(&run) {
            tracing::debug!(cid = %manifest.cid, %run, "manifest of a fan-out that has ended");
            return delivery.receipt.ack().await;
        }
        if let Some(open) = self.open.get(&run)
            && let Err(reason) = open.manifest.check_repeated(&delivery.message, &manifest)
        {
            return self.refuse(delivery, &reason.to_string()).await;
        }
        let take_over = delivery.redelivered || Manifest::is_renewed(&delivery.message);
        if let Err(reason) = self.trust.check_size(&manifest, take_over) {
            return self.refuse(delivery, &reason).await;
        }
        let tag = Tag::of_manifest(delivery.receipt);
        // Where its task has just ended without having ended the fan-out, this manifest begins anew.
        if let Some(open) = self.open.get(&run)
            && open.inbox.send(Word::Manifest(tag.clone())).is_ok()
        {
            return;
        }
        self.open(manifest, tag, take_over);
    }

    /// Brings a manifest to its shard, or parks it where there is no such shard. Someone has replayed it here.
    fn forward(&self, delivery: Delivery, manifest: &Manifest) {
        let shard = manifest.reply_to.clone();
        tracing::info!(cid = %manifest.cid, run = %manifest.run, shard, "manifest brought to its shard");
        let message = self.trust.sign(manifest.encode_renewed(manifest.deadline_utc));
        let (outbox, queue) = (self.outbox.clone(), self.config.names.fanin_queue());
        let Delivery { message: original, receipt, .. } = delivery;
        self.put_aside(receipt, original.body.len(), async move {
            if let Outcome::TooLarge(most) = outbox.publish(&shard, message, Absence::Parks).await {
                let reason =
                    format!("it does not fit into a message to its shard: this broker takes {most} bytes");
                outbox.park(original, &queue, &reason).await;
            }
        });
    }

    /// Acks a message when something has been done with it, which is not awaited here: an outage, or a queue that takes nothing, is not
    /// to keep manifests from being taken, as long as such messages are small and leave places free. What a stop cuts off comes back.
    fn put_aside(&self, receipt: Receipt, bytes: usize, done: impl Future<Output = ()> + Send + 'static) {
        let cut_off = self.cut_off.clone();
        self.parking.spawn(async move {
            let _room = (bytes <= limits::HELD_BYTES).then(|| receipt.hold());
            if cut_off.run_until_cancelled(done).await.is_some() {
                receipt.ack().await;
            }
        });
    }

    fn open(&mut self, mut manifest: Manifest, tag: Tag, take_over: bool) {
        let deadline = deadline(&mut manifest, take_over, &*self.outbox.environment, self.started);
        let now = self.started.elapsed();
        let run = manifest.run;
        let hold = Hold { token: self.outbox.environment.unique().into(), take_over };
        let (sender, inbox) = mpsc::unbounded_channel();
        tracing::debug!(cid = %manifest.cid, %run, targets = manifest.targets.len(), take_over, "fan-out taken");
        let watched = self.view.hold(&manifest, take_over);
        let machine = FanIn::new(manifest, tag, hold, self.config.limits, now).with_deadline(deadline, now);
        let manifest = Arc::clone(machine.manifest());
        let ties = Ties { inbox, stop: self.stop.clone(), watched };
        let messenger = self.messenger.clone();
        let fan_out = FanOut::new(machine, messenger, self.trust.clone(), self.started, ties);
        self.open.insert(run, Open { manifest, inbox: sender });
        self.tasks.spawn(fan_out.run());
        self.tell_whether_full();
    }

    /// Takes what all coordinators are told or asked. Nobody relies on it: those who ask do so again until they are told.
    async fn hear(&mut self, delivery: Delivery) {
        let Delivery { message, receipt, .. } = delivery;
        receipt.ack().await;
        match message.kind() {
            header::TYPE_CANCEL => self.cancel(&message),
            header::TYPE_PRESENCE => self.meet(&message),
            _ => self.inquiries.take(&message, &self.known()),
        }
    }

    /// Takes what another coordinator tells of itself.
    fn meet(&mut self, message: &Message) {
        match (self.trust.check(message), Presence::decode(message)) {
            (Ok(()), Ok(presence)) => self.shards.heard(presence),
            (Err(_), Ok(presence)) => {
                self.shards.distrust(presence.coordinator, message.properties.user_id.as_deref());
            }
            (_, Err(reason)) => {
                tracing::debug!(%reason, "what another coordinator tells of itself is ignored")
            }
        }
    }

    fn cancel(&self, message: &Message) {
        let CancelRequest { cid, run, reply_to } = match CancelRequest::decode(message, &self.config.names) {
            Ok(request) => request,
            Err(reason) => {
                return tracing::debug!(%reason, "a malformed request to cancel");
            }
        };
        if let Err(reason) = self.trust.check_request(message) {
            tracing::warn!(%cid, reason, "a request to cancel is refused");
            return self.messenger.answer(&cid, reply_to, CancelState::Refused { reason });
        }
        let open = self.open.iter().filter(|(_, open)| open.manifest.cid == cid);
        let mut found = false;
        for (_, open) in open.filter(|(of, _)| run.is_none_or(|run| run == **of)) {
            found = true;
            // Where its task has just ended, the next request finds out how.
            let _ = open.inbox.send(Word::Cancel { reply_to: reply_to.clone() });
        }
        let asked = self.shards.cancel(&cid, run, &reply_to);
        if found {
            return;
        }
        let here = self.ended.find(&cid, run);
        self.messenger.announce_ended(&cid, &here);
        let nothing = match run.filter(|run| self.is_of_another(&cid, run)) {
            Some(run) => CancelState::Refused { reason: format!("run {run} has another CID") },
            None => CancelState::Unknown,
        };
        let coordinator = self.messenger.coordinator();
        self.messenger.tell(reply_to, async move {
            let mut known: Vec<CancelState> = gather(asked).await.into_iter().flatten().collect();
            if known.iter().any(|state| matches!(state, CancelState::Found { .. })) {
                return Vec::new();
            }
            known.extend(here);
            if known.is_empty() {
                known.push(nothing);
            }
            known.into_iter().map(|state| CancelAnswer { coordinator, state }.encode(&cid)).collect()
        });
    }

    /// Whether this run is known here with another CID.
    fn is_of_another(&self, cid: &Cid, run: &RunId) -> bool {
        let known = self.open.get(run).map(|open| &open.manifest.cid).or_else(|| self.ended.cid(run));
        known.is_some_and(|known| known != cid)
    }

    /// What operators can be told.
    fn known(&self) -> Known<'_> {
        Known { open: &self.open, shards: &self.shards, view: &self.view }
    }

    /// Tells, once each time, that further fan-outs wait from here on.
    fn tell_whether_full(&mut self) {
        let (open, most) = (self.open.len(), self.config.most_open());
        if open >= most && !self.full {
            self.full = true;
            let queue = self.config.names.fanin_queue();
            tracing::warn!(
                queue,
                open,
                "as many fan-outs are open here as may be, and others wait: start another coordinator, or raise its channels"
            );
        } else if open < most.div_ceil(2) {
            self.full = false;
        }
    }

    /// Parks a message of the manifest queue that is not a manifest, or not one of an accepted user.
    async fn refuse(&self, delivery: Delivery, reason: &str) {
        let queue = self.config.names.fanin_queue();
        let message_id = delivery.message.properties.message_id.as_deref();
        tracing::warn!(queue, message_id, reason, kind = delivery.message.kind(), "message parked");
        let (outbox, reason) = (self.outbox.clone(), reason.to_owned());
        let Delivery { message, receipt, .. } = delivery;
        self.put_aside(
            receipt,
            message.body.len(),
            async move { outbox.park(message, &queue, &reason).await },
        );
    }

    async fn conclude(&mut self, conclusion: Result<Conclusion, tokio::task::JoinError>) {
        let mut conclusion = match conclusion {
            Ok(conclusion) => conclusion,
            Err(error) => {
                // A defect: what its channel held goes back as the channel drops, and its manifest some seconds later.
                tracing::error!(%error, "a fan-out's task panicked; some coordinator takes the fan-out up again");
                self.open.retain(|_, open| !open.inbox.is_closed());
                return;
            }
        };
        let open = self.open.remove(&conclusion.run);
        self.tell_whether_full();
        if let (Some(open), true) = (open, conclusion.ended) {
            self.ended.insert(conclusion.run, open.manifest.cid.clone(), conclusion.how);
        }
        // Copies of the manifest that arrived too late for the task. Who asked for a cancel asks again.
        conclusion.inbox.close();
        while let Some(word) = conclusion.inbox.recv().await {
            let Word::Manifest(tag) = word else { continue };
            if conclusion.ended { tag.ack().await } else { tag.requeue().await }
        }
    }

    async fn stop(&mut self, deadline: Instant) {
        self.stop.cancel();
        self.shards.leave_all();
        while let Ok(Some(conclusion)) = tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
            self.conclude(conclusion).await;
        }
        if !self.tasks.is_empty() {
            tracing::warn!(
                open = self.tasks.len(),
                "stopped with fan-outs open; another coordinator takes them up"
            );
            self.tasks.shutdown().await;
        }
        if tokio::time::timeout_at(deadline, self.shards.left()).await.is_err() {
            tracing::warn!("stopped before all shards were let go; another coordinator takes them up");
        }
        self.parking.close();
        if tokio::time::timeout_at(deadline, self.parking.wait()).await.is_err() {
            tracing::warn!(
                messages = self.parking.len(),
                "stopped before all that is no manifest was parked or answered"
            );
            self.cut_off.cancel();
        }
    }
}
