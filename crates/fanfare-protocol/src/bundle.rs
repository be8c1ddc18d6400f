//! Several results in one message.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use smol_str::SmolStr;

use crate::message::{HeaderValue, Message};
use crate::object::Object;
use crate::{Malformed, TraceParent, header, limits};

/// Several results that travel as one message: what a worker holds ready for the same queue at the same time, be it of one fan-out or,
/// in a shard, of several. It stands for these messages and for nothing else: who reads it takes each as if that had come alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bundle;

/// One of them but for its body, which comes last.
#[derive(Serialize)]
struct Label<'a> {
    message_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
}

#[derive(Deserialize)]
struct Bundled<'a> {
    message_id: SmolStr,
    correlation_id: Option<SmolStr>,
    run: Option<SmolStr>,
    key: Option<SmolStr>,
    #[serde(default, deserialize_with = "TraceParent::read")]
    traceparent: Option<TraceParent>,
    #[serde(borrow)]
    result: &'a RawValue,
}

impl Bundle {
    /// The message that stands for these, which [`TargetResult::message`](crate::TargetResult::message) made for one queue. None where
    /// there are none.
    #[must_use]
    pub fn encode(results: &[Message]) -> Option<Message> {
        let first = results.first()?;
        let (cid, run) = (first.properties.correlation_id.as_deref(), first.text(header::RUN));
        let mut body = Vec::with_capacity(results.iter().map(Self::bytes).sum());
        for result in results {
            body.push(if body.is_empty() { b'[' } else { b',' });
            body.extend(crate::result::to_json(&Label {
                message_id: result.properties.message_id.as_deref().unwrap_or_default(),
                correlation_id: other(result.properties.correlation_id.as_deref(), cid),
                run: other(result.text(header::RUN), run),
                key: result.text(header::KEY),
                traceparent: result.text(header::TRACEPARENT),
            }));
            body.pop();
            body.extend(br#","result":"#);
            body.extend(&result.body);
            body.push(b'}');
        }
        body.push(b']');
        let mut properties = first.properties.clone();
        properties.kind = Some(SmolStr::new_static(header::TYPE_RESULTS));
        properties.message_id = properties.message_id.map(|id| format!("{id}s").into());
        let shared = [header::VERSION, header::RUN].into_iter();
        let headers = shared.filter_map(|name| Some((name, first.headers.get(name)?.clone())));
        Some(Message { properties, headers: headers.collect(), body: body.into() })
    }

    /// Bytes that a result takes up in one, about.
    #[must_use]
    pub fn bytes(result: &Message) -> usize {
        /// Field names, marks, and a `traceparent`.
        const AROUND: usize = 128;
        let texts = [result.properties.message_id.as_deref(), result.text(header::KEY)];
        result.body.len() + texts.into_iter().flatten().map(str::len).sum::<usize>() + AROUND
    }

    /// The results that a message stands for.
    ///
    /// # Errors
    /// Where it is not a list of them, or has more than [`limits::BUNDLED`].
    pub fn decode(bundle: &Message) -> Result<Vec<Message>, Malformed> {
        let wrong = |reason: String| Malformed::new(format!("the results are malformed: {reason}"));
        let bundled: Vec<Object<Bundled<'_>>> =
            serde_json::from_slice(&bundle.body).map_err(|error| wrong(error.to_string()))?;
        let (has, most) = (bundled.len(), limits::BUNDLED);
        if has > most {
            return Err(wrong(format!("they are {has}, and {most} is the most of one message")));
        }
        let single = |Object(bundled): Object<Bundled<'_>>| {
            let mut result = Message {
                properties: bundle.properties.clone(),
                headers: bundle.headers.clone(),
                // A slice would keep all of the bundle in memory for as long as one of its results is held.
                body: Bytes::copy_from_slice(bundled.result.get().as_bytes()),
            };
            result.properties.kind = Some(SmolStr::new_static(header::TYPE_RESULT));
            result.properties.message_id = Some(bundled.message_id);
            if let Some(cid) = bundled.correlation_id {
                result.properties.correlation_id = Some(cid);
            }
            for (name, text) in [(header::RUN, bundled.run), (header::KEY, bundled.key)] {
                if let Some(text) = text {
                    result.headers.insert(name, HeaderValue::Text(text));
                }
            }
            result.traced(bundled.traceparent)
        };
        Ok(bundled.into_iter().map(single).collect())
    }
}

/// What a result has of its own where the first has another.
fn other<'a>(own: Option<&'a str>, first: Option<&str>) -> Option<&'a str> {
    own.filter(|own| Some(*own) != first)
}
