//! `/api/fan-out?cid=CID&run=RUN`: what the page of one fan-out is drawn from.

use std::collections::BTreeMap;

use fanfare::{Cid, Environment, Explanation, RunId, ServiceName, ServiceQueue, System, Told};
use serde::Serialize;
use tokio::time::timeout;

use super::{LOOP_PATIENCE, SILENT_LOOP, Subject};

/// Targets that are shown, of those that are missing and of those that have responded each.
const MOST_TARGETS: usize = 200;

#[derive(Debug, Default, Serialize)]
pub(super) struct Shown {
    /// The time of day here, in milliseconds since 1970, up to which bars are drawn.
    now_ms: i64,
    /// Why nothing is told.
    problem: Option<String>,
    fan_out: Option<Told>,
    /// The queues of the services whose targets are missing.
    queues: BTreeMap<ServiceName, Option<ServiceQueue>>,
    /// What stands in the way, and what to do about it.
    advice: Vec<String>,
}

impl Shown {
    pub(super) async fn of(subject: &Subject, cid: &Cid, run: RunId) -> Self {
        let shown = match (&subject.coordinator, &subject.operator) {
            (Some(own), _) => {
                let answer = timeout(LOOP_PATIENCE, own.explain(cid, Some(run), MOST_TARGETS)).await;
                answer.ok().flatten().ok_or_else(|| SILENT_LOOP.to_owned()).map(|answer| {
                    let fan_out = answer.fan_outs.into_iter().next().map(Told::from);
                    let unknown = "this coordinator does not know it: `fanfare dashboard` asks all of them";
                    let problem = fan_out.is_none().then(|| unknown.to_owned());
                    Self { fan_out, problem, ..Self::default() }
                })
            }
            (None, Some(operator)) => {
                let told = operator.follow(cid, Some(run), MOST_TARGETS).await;
                told.map_err(|error| error.to_string()).map(|explanation| {
                    let advice = explanation.advice(operator.names());
                    let Explanation { fan_outs, queues, .. } = explanation;
                    Self { fan_out: fan_outs.into_iter().next(), queues, advice, ..Self::default() }
                })
            }
            (None, None) => Err("a worker knows of no fan-outs".to_owned()),
        };
        let shown = shown.unwrap_or_else(|problem| Self { problem: Some(problem), ..Self::default() });
        Self { now_ms: System.now().timestamp_millis(), ..shown }
    }
}
