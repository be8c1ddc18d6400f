//! The crate as a user has it: its handle, services, callbacks and test kit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use fanfare::testkit::{TestKit, recorder};
use fanfare::{
    Channel, ConnectError, Context, Fanfare, FinalPayload, InvokeError, Target, TargetResult, service,
    services,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    id: String,
    items: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Quote {
    cents: u64,
}

fn quote(order: &Order) -> Result<Quote, std::num::TryFromIntError> {
    Ok(Quote { cents: 500 * u64::try_from(order.items.len())? })
}

#[tokio::test]
async fn order_is_enriched_by_its_back_ends() {
    let order = Order { id: "o-1".to_owned(), items: vec!["shoe".to_owned(), "sock".to_owned()] };
    let price = service("price.quote", |_: Context, order: Order| async move { Ok(quote(&order)?) })
        .concurrency(8)
        .timeout(Duration::from_secs(30));
    let stock = service("stock.check", |ctx: Context, order: Order| async move {
        match ctx.key().map(ToString::to_string).as_deref() {
            Some("warehouse-2") => Ok(order.items),
            _ => Err(anyhow::anyhow!("the warehouse is closed").context("no answer"))?,
        }
    });
    let (enriched, mut enriched_with) = recorder("order.enriched");
    let (audit, mut audited) = recorder("audit.log");
    let kit = TestKit::start([price, stock, enriched, audit, services::input_logger()]).await;

    let accepted = kit
        .fanout("orders.intake")
        .metadata("order", &order.id)
        .target("price.quote", &order)
        .add(Target::new("stock.check", &order).key("warehouse-1"))
        .add(Target::new("stock.check", &order).key("warehouse-2"))
        .on_target("audit.log")
        .on_final(["order.enriched", "helpers.input-logger"])
        .invoke()
        .await
        .unwrap();

    let received = enriched_with.next().await;
    assert_eq!(received.context.channel(), Channel::FanoutOnFinal);
    assert_eq!(received.context.cid(), &accepted.cid);
    assert_eq!(received.context.metadata().get("order"), Some("o-1"));
    let all: FinalPayload = received.payload().unwrap();
    assert_eq!(all.get::<Quote>("price.quote").unwrap(), Quote { cents: 1000 });
    assert_eq!(all.get::<Vec<String>>("warehouse-2").unwrap(), order.items);
    let failure = all.get::<Vec<String>>("warehouse-1").unwrap_err().to_string();
    assert!(failure.contains("no answer: the warehouse is closed"), "{failure}");

    let mut keys = Vec::new();
    for _ in 0..3 {
        let one = audited.next().await;
        assert_eq!(one.context.channel(), Channel::FanoutOnTarget);
        assert_eq!(one.payload::<TargetResult>().unwrap().cid, accepted.cid);
        keys.push(one.context.key().unwrap().to_string());
    }
    keys.sort();
    assert_eq!(keys, ["price.quote", "warehouse-1", "warehouse-2"]);
    kit.stop().await;
    assert!(enriched_with.try_next().is_none(), "the final callback was invoked twice");
}

#[tokio::test]
async fn service_that_nobody_serves_is_refused_before_anything_is_sent() {
    let (served, mut recorded) = recorder("served");
    let kit = TestKit::start([served]).await;
    let error = kit.fanout("test").target("served", 1).on_final("unserved").invoke().await.unwrap_err();
    assert!(matches!(error, InvokeError::Invalid(_)), "{error}");
    assert!(error.to_string().contains("no worker serves `unserved`"), "{error}");
    kit.stop().await;
    assert!(recorded.try_next().is_none());
}

#[tokio::test]
async fn plain_invocation_reaches_its_service() {
    let (served, mut recorded) = recorder("served");
    let kit = TestKit::start([served]).await;
    kit.send("test", "served", ["a"]).await.unwrap();
    let received = recorded.next().await;
    assert_eq!((received.context.channel(), received.json()), (Channel::Invoke, r#"["a"]"#));
}

#[tokio::test]
async fn echo_answers_byte_for_byte() {
    let kit = TestKit::start(services::stock()).await;
    let payload = serde_json::value::RawValue::from_string(r#"{"b": 1.50, "a":null}"#.to_owned()).unwrap();
    let all = kit
        .fanout("test")
        .target("helpers.echo", &payload)
        .invoke_and_wait(Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(all.data.get("helpers.echo").unwrap().response.get(), payload.get());
}

#[tokio::test]
async fn caller_who_waits_is_told_how_far_the_fan_out_has_come() {
    let (told, responded) = tokio::sync::watch::channel(0);
    // The second one answers once the caller has been told of the first.
    let second = service("second", move |_: Context, (): ()| {
        let mut responded = responded.clone();
        async move { Ok(*responded.wait_for(|responded| *responded == 1).await?) }
    });
    let kit = TestKit::start(services::stock().chain([second])).await;
    let all = kit
        .fanout("test")
        .target("helpers.echo", 1)
        .target("second", ())
        .on_progress(move |responded| {
            told.send_replace(responded);
        })
        .invoke_and_wait(Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(all.get::<usize>("second").unwrap(), 1);
}

#[tokio::test]
async fn program_as_a_service_is_told_what_it_is_invoked_for() {
    let script = r#"printf '["%s","%s","%s","%s",' "$FANFARE_CID" "$FANFARE_KEY" "$FANFARE_SOURCE" "$FANFARE_CHANNEL"; cat; printf ']'"#;
    let program = services::ExecService::new(["sh", "-c", script]).unwrap();
    let kit = TestKit::start([fanfare::Registration::new("a.program", program)]).await;
    let all = kit
        .fanout("shop")
        .cid("c-1")
        .add(Target::new("a.program", 7).key("größe"))
        .invoke_and_wait(Duration::from_secs(10))
        .await
        .unwrap();
    let answer = all.data.get("größe").unwrap().response.get();
    assert_eq!(answer, r#"["c-1","größe","shop","FANOUT_CALL",7]"#);
}

#[tokio::test]
async fn program_as_a_service_is_told_the_exact_length_of_its_payload() {
    let script = r#"printf '[%d,%d]' "$FANFARE_PAYLOAD_BYTES" "$(wc -c)""#;
    let program = services::ExecService::new(["sh", "-c", script]).unwrap();
    let kit = TestKit::start([fanfare::Registration::new("a.program", program)]).await;
    // A character may be more than one byte, and a payload more than a pipe holds.
    let payloads = [String::new(), "größe".to_owned(), "ü".repeat(100_000)];
    let mut fanout = kit.fanout("test");
    for (key, payload) in ["empty", "short", "long"].into_iter().zip(&payloads) {
        fanout = fanout.add(Target::new("a.program", payload).key(key));
    }
    let all = fanout.invoke_and_wait(Duration::from_secs(10)).await.unwrap();
    let told = all.data.iter().map(|(_, result)| result.response.get());
    let bytes = payloads.iter().map(|payload| payload.len() + "\"\"".len());
    assert!(told.eq(bytes.map(|bytes| format!("[{bytes},{bytes}]"))), "{all:?}");
}

#[test]
fn what_is_no_broker_is_refused_without_its_password() {
    let error = Fanfare::builder("http://me:hunter2@localhost").build().unwrap_err();
    assert!(matches!(error, ConnectError::Address(_)) && !error.to_string().contains("hunter2"), "{error}");
    let error = Fanfare::builder("memory://").build().unwrap_err();
    assert!(matches!(error, ConnectError::Memory), "{error}");
    let error = Fanfare::builder("amqp://localhost").prefix("a b").build().unwrap_err();
    assert!(matches!(error, ConnectError::Prefix(_)), "{error}");
}
