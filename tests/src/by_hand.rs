use fanfare_protocol::{Message, ReplyAddress, TargetKey, TargetResult, WireTime};
use serde::Serialize;

use crate::Stack;

/// Answers a recorded request with success, as the worker of its service would.
///
/// # Panics
/// Where the request is not that of a target.
pub async fn answer(stack: &Stack, request: &Message, response: impl Serialize) {
    let (cid, run) = (request.cid().expect("a CID"), request.run().expect("a run"));
    let text = |name: &str| request.text(name).expect("every request has it").to_owned();
    let at: WireTime = text("fanfare-req-ts").parse().expect("a time");
    let queue = request.properties.reply_to.as_ref().expect("a target has one").to_string();
    let to = ReplyAddress {
        queue: queue.as_str().into(),
        cid: cid.clone(),
        run,
        key: Some(TargetKey::new(text("fanfare-key")).expect("a key")),
        message_id: request.properties.message_id.clone().expect("every request has one"),
    };
    let result = TargetResult {
        source: text("fanfare-source"),
        target: text("fanfare-target"),
        response: serde_json::value::to_raw_value(&response).expect("JSON"),
        req_ts_utc: at,
        resp_ts_utc: at,
        ok: true,
        exception: None,
        cid,
        ended_by: None,
    };
    stack.publish(&queue, TargetResult::message(result.to_body(), &to, at)).await;
}
