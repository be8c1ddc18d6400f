use std::sync::Arc;
use std::time::Duration;

use fanfare_worker::{Context, Registration, Result, service};
use serde_json::value::RawValue;

use super::mix::{self, Does, Draft, INVOCATION, ON_FINAL, ON_TARGET, TARGET};
use super::{Journal, invoke};
use crate::oracle::{Event, mark};

/// How long a target waits for a fan-out of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// The services of a worker: the one that every target invokes, and the callbacks.
#[must_use]
pub fn services(journal: &Arc<Journal>, concurrency: usize) -> Vec<Registration> {
    let target = {
        let journal = Arc::clone(journal);
        service(TARGET, move |context: Context, does: Does| work(Arc::clone(&journal), context, does))
    };
    let callbacks = ON_TARGET.into_iter().chain(ON_FINAL).map(|name| {
        let journal = Arc::clone(journal);
        service(name, move |context: Context, payload: Box<RawValue>| {
            let called = called(&context, &payload);
            let journal = Arc::clone(&journal);
            async move { Ok(journal.write(called)?) }
        })
    });
    callbacks.chain([target]).map(|service| service.concurrency(concurrency)).collect()
}

async fn work(journal: Arc<Journal>, context: Context, does: Does) -> Result<String> {
    let execution = journal.draw_name();
    journal.write(Event::Started {
        invocation: invocation(&context),
        run: context.run().to_string(),
        key: context.key().map(ToString::to_string).unwrap_or_default(),
        attempt: context.attempt(),
        execution: execution.clone(),
    })?;
    let mark = mark(&execution);
    match does {
        Does::Answer => {}
        Does::AnswerInBulk => return Ok(mark + &mix::bulk()),
        Does::Fail => return Err(format!("asked to fail {mark}").into()),
        Does::Sleep(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
        Does::FanOutAndWait(width) => {
            let waited = fan_out_and_wait(&journal, &context, width).await;
            waited.map_err(|error| format!("{error} {mark}"))?;
        }
        Does::FanOut(width) => {
            let invoked = fan_out(&journal, &context, width).await;
            invoked.map_err(|error| format!("{error} {mark}"))?;
        }
    }
    Ok(mark)
}

async fn fan_out(journal: &Journal, context: &Context, width: u64) -> anyhow::Result<()> {
    let draft = Draft::inner(width);
    let invocation = journal.draw_name();
    let fanout = invoke::announce(journal, context.fanout(), &draft, &invocation, None)?;
    let outcome = fanout.invoke().await;
    invoke::returned(journal, &invocation, &outcome)?;
    outcome?;
    Ok(())
}

async fn fan_out_and_wait(journal: &Journal, context: &Context, width: u64) -> anyhow::Result<()> {
    let draft = Draft::inner(width);
    let invocation = journal.draw_name();
    let fanout = invoke::announce(journal, context.fanout(), &draft, &invocation, None)?;
    let payload = match fanout.invoke_and_wait(PATIENCE).await {
        Ok(payload) => payload,
        Err(error) => {
            invoke::waited(journal, &invocation, &error)?;
            return Err(error.into());
        }
    };
    journal.write(Event::Waited { invocation, payload: serde_json::to_string(&payload)? })
}

fn invocation(context: &Context) -> String {
    context.metadata().get(INVOCATION).unwrap_or_default().to_owned()
}

fn called(context: &Context, payload: &RawValue) -> Event {
    Event::Called {
        invocation: invocation(context),
        run: context.run().to_string(),
        cid: context.cid().to_string(),
        callback: context.service().to_string(),
        channel: context.channel().as_header().to_owned(),
        key: context.key().map(ToString::to_string),
        message_id: context.message_id().to_owned(),
        body: payload.get().to_owned(),
        redelivered: context.redelivered(),
    }
}
