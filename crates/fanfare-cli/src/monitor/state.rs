//! `/api/state`: what a process is about to do and has lately done, as JSON.

use fanfare::coordinator::{Ended, Failed, Progress};
use serde::Serialize;

use super::Subject;

/// Fan-outs that are listed, the longest open first. How many there are is told beside.
const MOST_LISTED: usize = 200;

/// What the page is drawn from.
#[derive(Debug, Serialize)]
pub(super) struct State {
    role: &'static str,
    version: &'static str,
    /// Why it is of no use for now; empty where it is.
    hindrances: Vec<String>,
    /// How many fan-outs are open here.
    open_count: usize,
    open: Vec<Open>,
    ended: Vec<Closed>,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct Open {
    cid: String,
    run: String,
    source: String,
    invoked_at: String,
    targets: usize,
    succeeded: usize,
    failed: usize,
    missing: usize,
}

#[derive(Debug, Serialize)]
struct Closed {
    #[serde(flatten)]
    fan_out: Open,
    ended_at: String,
    ended_by: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Failure {
    cid: String,
    key: String,
    service: String,
    at: String,
    exception: String,
}

impl State {
    pub(super) fn of(subject: &Subject, hindrances: Vec<String>) -> Self {
        let seen = subject.coordinator.as_ref().map(fanfare::CoordinatorHandle::snapshot).unwrap_or_default();
        Self {
            role: subject.role,
            version: env!("CARGO_PKG_VERSION"),
            hindrances,
            open_count: seen.open.len(),
            open: seen.open.into_iter().take(MOST_LISTED).map(Open::from).collect(),
            ended: seen.ended.into_iter().map(Closed::from).collect(),
            failures: seen.failures.into_iter().map(Failure::from).collect(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }
}

impl From<Progress> for Open {
    fn from(progress: Progress) -> Self {
        Self {
            cid: progress.cid.to_string(),
            run: progress.run.to_string(),
            source: progress.source.to_string(),
            invoked_at: progress.invoked_at.to_string(),
            targets: progress.targets,
            succeeded: progress.succeeded,
            failed: progress.failed,
            missing: progress.missing,
        }
    }
}

impl From<Ended> for Closed {
    fn from(ended: Ended) -> Self {
        Self {
            fan_out: ended.progress.into(),
            ended_at: ended.at.to_string(),
            ended_by: ended.by.map(|by| by.as_str()),
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self {
            cid: failed.cid.to_string(),
            key: failed.key.to_string(),
            service: failed.service.to_string(),
            at: failed.at.to_string(),
            exception: failed.exception,
        }
    }
}
