//! What simulated workers run.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fanfare_protocol::{Channel, RunId};
use fanfare_publisher::{Completion, Fanout, InvokeError, Target, WaitError};
use fanfare_worker::{Context, Registration, Retry, service};
use serde_json::value::RawValue;

use super::journal::INVOCATION;
use super::link::Link;
use super::scenario::{AGAIN, ATTEMPTS, BRIEF, Behaviour, CALLBACKS, Draft, STREAMING, TARGETS};
use crate::oracle::{Event, Outcome, mark};

/// How long a service of [`BRIEF`] may take.
const BRIEF_LIMIT: Duration = Duration::from_secs(2);

/// The services of one worker.
pub(super) fn all(link: &Arc<Link>, concurrency: usize) -> Vec<Registration> {
    let targets = TARGETS.iter().map(|name| {
        let link = Arc::clone(link);
        let target = service(name, move |context: Context, behaviour: Behaviour| {
            let link = Arc::clone(&link);
            async move { link.alive(run_target(&link, context, behaviour)).await }
        });
        match *name {
            BRIEF => target.timeout(BRIEF_LIMIT),
            AGAIN => target.retry(Retry::exponential(ATTEMPTS)),
            _ => target,
        }
    });
    let callbacks = CALLBACKS.iter().map(|name| {
        let link = Arc::clone(link);
        let callback = service(name, move |context: Context, payload: Box<RawValue>| {
            let link = Arc::clone(&link);
            async move { link.alive(run_callback(&link, &context, payload.get().to_owned())).await }
        });
        if *name == STREAMING { callback.streaming() } else { callback }
    });
    targets.chain(callbacks).map(|registration| registration.concurrency(concurrency)).collect()
}

/// Counts a service that runs, until this is dropped.
struct Busy<'a>(&'a Link);

impl<'a> Busy<'a> {
    fn new(link: &'a Link) -> Self {
        link.busy.fetch_add(1, Ordering::Relaxed);
        Self(link)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// From one time at which services answer together to the next.
const TOGETHER_MS: u64 = 100;

async fn run_target(link: &Link, context: Context, behaviour: Behaviour) -> fanfare_worker::Result<String> {
    let _busy = Busy::new(link);
    let shared = &link.shared;
    let invocation = invocation_of(&context);
    let key = context.key().map(ToString::to_string).unwrap_or_default();
    let execution = format!("x{}", shared.next_number());
    let marked = mark(&execution);
    shared.journal.record(
        &link.name,
        Event::Started {
            invocation: invocation.clone(),
            run: context.run().to_string(),
            key: key.clone(),
            attempt: context.attempt(),
            execution: execution.clone(),
        },
    );
    match behaviour {
        Behaviour::Answers(ms) => pause(ms).await,
        Behaviour::AnswersWithOthers => {
            let now = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or_default();
            pause(TOGETHER_MS - now % TOGETHER_MS).await;
        }
        Behaviour::Fails(ms) => {
            pause(ms).await;
            return Err(format!("it fails on purpose {marked}").into());
        }
        Behaviour::AnswersAt(attempt) if context.attempt() < attempt => {
            return Err(format!("it fails for now {marked}").into());
        }
        Behaviour::AnswersAt(_) => {}
        // A panic that no hook prints.
        Behaviour::Panics => std::panic::resume_unwind(Box::new(format!("on purpose {marked}"))),
        Behaviour::Invokes(draft, wait) => {
            let name = format!("{invocation}.{key}.{execution}");
            let wait = wait.map(Duration::from_millis);
            invoke(link, context.fanout_or_parallel(draft.parallel), &name, &name, &draft, wait).await;
        }
    }
    Ok(marked)
}

/// Starts what a draft is: a fan-out or a parallel execution.
trait Either {
    fn fanout_or_parallel(&self, parallel: bool) -> Fanout;
}

impl Either for Context {
    fn fanout_or_parallel(&self, parallel: bool) -> Fanout {
        if parallel { self.parallel() } else { self.fanout() }
    }
}

async fn run_callback(link: &Link, context: &Context, payload: String) -> fanfare_worker::Result<()> {
    let _busy = Busy::new(link);
    let shared = &link.shared;
    let streams = context.service().as_str() == STREAMING && context.channel() == Channel::FanoutOnFinal;
    let body = if streams { streamed(context, payload).await? } else { payload };
    shared.journal.record(
        &link.name,
        Event::Called {
            invocation: invocation_of(context),
            run: context.run().to_string(),
            cid: context.cid().to_string(),
            callback: context.service().to_string(),
            channel: context.channel().as_header().to_owned(),
            key: context.key().map(ToString::to_string),
            message_id: context.message_id().to_owned(),
            body,
            // Whoever sees publications need not tell.
            redelivered: false,
        },
    );
    pause(shared.random.of(0..=20)).await;
    if shared.happens(shared.faults.failing_callback) {
        return Err("it fails on purpose".into());
    }
    Ok(())
}

/// The payload that a callback has streamed, as it would have been given whole.
async fn streamed(context: &Context, payload: String) -> fanfare_worker::Result<String> {
    let (mut results, mut entries) = (context.results()?, Vec::new());
    while let Some((key, result)) = results.next().await? {
        entries.push(format!("{}:{}", serde_json::to_string(&key)?, serde_json::to_string(&result)?));
    }
    let data = format!(",\"data\":{{{}}}}}", entries.join(","));
    if payload.ends_with(&data) {
        return Ok(payload);
    }
    Ok(format!("{}{data}", payload.trim_end_matches('}')))
}

fn invocation_of(context: &Context) -> String {
    context.metadata().get(INVOCATION).unwrap_or_default().to_owned()
}

async fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// Invokes a draft, and tells the oracle what came of it. Whoever is dead by then tells nothing. Returns the run where it was
/// accepted and nobody has waited for it.
pub(super) async fn invoke(
    link: &Link,
    fanout: Fanout,
    name: &str,
    cid: &str,
    draft: &Draft,
    wait: Option<Duration>,
) -> Option<RunId> {
    let journal = &link.shared.journal;
    let record = |event: Event| {
        if !link.is_over() {
            journal.record(&link.name, event);
        }
    };
    let invocation = name.to_owned();
    record(Event::Invoking { invocation: invocation.clone(), plan: draft.plan(cid) });
    let fanout = composed(fanout, name, cid, draft);
    let returned = |outcome: Outcome| Event::Returned { invocation: invocation.clone(), outcome };
    let accepted = |run: RunId| returned(Outcome::Accepted { run: run.to_string() });
    let Some(timeout) = wait else {
        let invoked = fanout.invoke().await;
        record(match &invoked {
            Ok(invoked) => accepted(invoked.run),
            Err(error) => returned(outcome_of(error)),
        });
        return invoked.ok().map(|invoked| invoked.run);
    };
    match fanout.invoke_and_wait(timeout).await {
        Ok(payload) => {
            let payload = serde_json::to_string(&payload).expect("a payload is JSON");
            record(Event::Waited { invocation: invocation.clone(), payload });
        }
        Err(WaitError::Invoke(error)) => record(returned(outcome_of(&error))),
        Err(WaitError::TimedOut { run, .. } | WaitError::Lost { run, .. }) => record(accepted(run)),
        // What is malformed is for the oracle to see: nobody accepted it, and yet it is there.
        Err(_) => record(returned(Outcome::NotAccepted)),
    }
    None
}

fn outcome_of(error: &InvokeError) -> Outcome {
    match error {
        InvokeError::Unknown { run, .. } => Outcome::Unknown { run: run.to_string() },
        _ => Outcome::NotAccepted,
    }
}

fn composed(fanout: Fanout, name: &str, cid: &str, draft: &Draft) -> Fanout {
    let fanout = fanout.cid(cid).metadata(INVOCATION, name);
    let fanout = fanout.on_target(&draft.on_target).on_final(&draft.on_final);
    let fanout = match draft.deadline_ms {
        Some(milliseconds) => fanout.deadline(Duration::from_millis(milliseconds)),
        None => fanout.without_deadline(),
    };
    let rules = draft.completion.into_iter().flat_map(|policy| {
        let succeeded = policy.succeeded.map(Completion::succeeded);
        let responded = policy.responded.map(Completion::responded);
        [succeeded, responded, policy.failed_above.map(Completion::failed_above)]
    });
    let fanout = rules.flatten().fold(fanout, Fanout::complete_when);
    let targets = draft.targets.iter().enumerate();
    targets.fold(fanout, |fanout, (place, (service, behaviour))| {
        fanout.add(Target::new(service, behaviour).key(Draft::key(place)))
    })
}
