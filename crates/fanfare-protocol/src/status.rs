use std::cmp::{Ordering, Reverse};

use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::name::{Cid, RunId, ServiceName, Source};
use crate::{EndedBy, Lately, Malformed, QueueNames, WireTime, header, limits};

/// Asks all coordinators which fan-outs they hold, or have ended lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRequest {
    /// Drawn by whoever asks, and in the answers again.
    pub id: Cid,
    /// The queue of whoever waits for the answers.
    pub reply_to: String,
    /// Which of them.
    pub query: StatusQuery,
}

/// Which fan-outs an operator wants to know of. What is left out leaves none out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusQuery {
    /// Those that have ended lately, in place of those that are open.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Whose source this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Whose CID begins so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cid_prefix: Option<String>,
    /// Of which a target invokes this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// That were invoked so many seconds ago, or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_age_s: Option<u64>,
    /// Also what has happened lately.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lately: bool,
    /// Which of them come first.
    pub sort: Sort,
    /// How many of them, [`limits::TOLD`] at most.
    pub limit: usize,
}

impl Default for StatusQuery {
    fn default() -> Self {
        Self {
            ended: false,
            source: None,
            cid_prefix: None,
            service: None,
            min_age_s: None,
            lately: false,
            sort: Sort::default(),
            limit: 100,
        }
    }
}

/// In which order fan-outs are told of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Sort {
    /// The oldest first, of those that have ended the latest.
    #[default]
    Age,
    /// Those first that wait for most targets.
    Missing,
    /// Those first of which most targets have failed.
    Failed,
    /// Those first whose deadline comes first.
    Deadline,
    /// By source, and for each the oldest first.
    Source,
    /// By CID.
    Cid,
}

/// How far a fan-out has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FanOutStatus {
    /// Its correlation ID.
    pub cid: Cid,
    /// Its run.
    pub run: RunId,
    /// Who invoked it.
    pub source: Source,
    /// When.
    pub req_ts_utc: WireTime,
    /// How many targets it has.
    pub targets: usize,
    /// How many of them have a result, whoever wrote that.
    pub done: usize,
    /// How many of these have failed.
    pub failed: usize,
    /// When it ends without what is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_utc: Option<WireTime>,
    /// What it waits for, or how it ended.
    #[serde(flatten)]
    pub state: FanOutState,
}

/// What a fan-out waits for, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
#[non_exhaustive]
pub enum FanOutState {
    /// Its coordinator waits for the aggregation queue: another coordinator may be letting go of it, or its node is down.
    Opening,
    /// It waits for targets.
    Gathering,
    /// All targets are done, and callbacks are on their way to their queues.
    Calling,
    /// Its callbacks are in their queues, and it is about to be gone.
    Ending,
    /// It has ended.
    Ended {
        /// When.
        ended_utc: WireTime,
        /// How many targets had not responded, and failed for that.
        missing: usize,
        /// What ended it before all of them had.
        #[serde(default, deserialize_with = "EndedBy::read")]
        ended_by: Option<EndedBy>,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

/// What one coordinator answers to a [`StatusRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// Drawn by the coordinator when it started: it tells the coordinators apart.
    pub coordinator: RunId,
    /// What whoever runs it calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How many fan-outs match the query.
    pub matching: usize,
    /// The first of them, in the order that was asked for.
    pub fan_outs: Vec<FanOutStatus>,
    /// What has happened there lately, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::object::maybe")]
    pub lately: Option<Lately>,
}

impl StatusQuery {
    /// Whether a fan-out is one of those that are wanted, as far as its status tells, which does not name the services.
    #[must_use]
    pub fn matches(&self, status: &FanOutStatus, now: WireTime) -> bool {
        let is_ended = matches!(status.state, FanOutState::Ended { .. });
        self.ended == is_ended
            && self.source.as_ref().is_none_or(|source| *source == status.source)
            && self.cid_prefix.as_ref().is_none_or(|prefix| status.cid.as_str().starts_with(prefix))
            && self
                .min_age_s
                .is_none_or(|age| status.req_ts_utc.timestamp().saturating_add(age) <= now.timestamp())
    }

    /// Puts fan-outs into the order that is wanted, and keeps as many as are.
    pub fn select(&self, fan_outs: &mut Vec<FanOutStatus>) {
        fan_outs.sort_by(|one, other| self.sort.compare(one, other).then_with(|| one.run.cmp(&other.run)));
        fan_outs.truncate(self.limit.min(limits::TOLD));
    }
}

impl Sort {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Age, Self::Missing, Self::Failed, Self::Deadline, Self::Source, Self::Cid];

    /// Its word in a query.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Missing => "missing",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::Source => "source",
            Self::Cid => "cid",
        }
    }

    fn compare(self, one: &FanOutStatus, other: &FanOutStatus) -> Ordering {
        let age = |status: &FanOutStatus| match status.state {
            FanOutState::Ended { ended_utc, .. } => (None, Some(Reverse(ended_utc))),
            _ => (Some(status.req_ts_utc), None),
        };
        let missing = |status: &FanOutStatus| match status.state {
            FanOutState::Ended { missing, .. } => missing,
            _ => status.targets.saturating_sub(status.done),
        };
        let order = match self {
            Self::Age => Ordering::Equal,
            Self::Missing => missing(other).cmp(&missing(one)),
            Self::Failed => other.failed.cmp(&one.failed),
            // Without one, it is the last.
            Self::Deadline => {
                let deadline = |status: &FanOutStatus| (status.deadline_utc.is_none(), status.deadline_utc);
                deadline(one).cmp(&deadline(other))
            }
            Self::Source => one.source.cmp(&other.source),
            Self::Cid => one.cid.cmp(&other.cid),
        };
        order.then_with(|| age(one).cmp(&age(other)))
    }
}

impl StatusRequest {
    /// The message as coordinators take it.
    #[must_use]
    pub fn encode(&self) -> Message {
        let id = format!("{}/status", self.id);
        let mut message = Message::of(header::TYPE_STATUS, &self.id, id, crate::result::to_json(&self.query));
        message.properties.reply_to = Some(self.reply_to.as_str().into());
        message
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed, or names a queue that is no waiter's.
    pub fn decode(message: &Message, names: &QueueNames) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_STATUS)?;
        let query = crate::result::from_json("query", &message.body)?;
        Ok(Self { id: message.cid()?, reply_to: message.waiter(names)?, query })
    }
}

impl StatusAnswer {
    /// The message as whoever asked takes it; `id` is the request's.
    #[must_use]
    pub fn encode(&self, id: &Cid) -> Message {
        let message_id = format!("{id}/status-answer/{}", self.coordinator);
        Message::of(header::TYPE_STATUS_ANSWER, id, message_id, crate::result::to_json(self))
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        message.is_of(header::TYPE_STATUS_ANSWER)?;
        crate::result::from_json("answer", &message.body)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn time(seconds: u64) -> WireTime {
        WireTime::from_timestamp(seconds).unwrap()
    }

    /// The nth of some fan-outs: the higher, the older, the further, and the later its deadline.
    fn open(n: u64) -> FanOutStatus {
        FanOutStatus {
            cid: Cid::new(format!("c-{n}")).unwrap(),
            run: RunId::from(Uuid::from_u128(n.into())),
            source: Source::new(if n.is_multiple_of(2) { "even" } else { "odd" }).unwrap(),
            req_ts_utc: time(1_000 - n),
            targets: 10,
            done: usize::try_from(n).unwrap(),
            failed: usize::try_from(n / 2).unwrap(),
            deadline_utc: (n < 3).then(|| time(2_000 + n)),
            state: FanOutState::Gathering,
        }
    }

    fn ended(n: u64, at: u64) -> FanOutStatus {
        let state = FanOutState::Ended { ended_utc: time(at), missing: 0, ended_by: None };
        FanOutStatus { state, ..open(n) }
    }

    fn selected(sort: Sort, mut fan_outs: Vec<FanOutStatus>) -> Vec<String> {
        StatusQuery { sort, limit: 3, ..StatusQuery::default() }.select(&mut fan_outs);
        fan_outs.into_iter().map(|status| status.cid.to_string()).collect()
    }

    #[test]
    fn the_first_in_the_order_that_is_wanted_are_kept() {
        let all = || (1..=4).map(open).collect();
        for (sort, expected) in [
            (Sort::Age, ["c-4", "c-3", "c-2"]),
            (Sort::Missing, ["c-1", "c-2", "c-3"]),
            (Sort::Failed, ["c-4", "c-3", "c-2"]),
            (Sort::Deadline, ["c-1", "c-2", "c-4"]),
            (Sort::Source, ["c-4", "c-2", "c-3"]),
            (Sort::Cid, ["c-1", "c-2", "c-3"]),
        ] {
            assert_eq!(selected(sort, all()), expected, "{sort:?}");
        }
        let ended = vec![ended(1, 7), ended(2, 9), ended(3, 8)];
        assert_eq!(selected(Sort::Age, ended), ["c-2", "c-3", "c-1"], "the latest first");
    }

    #[test]
    fn every_order_has_its_word() {
        for sort in Sort::ALL {
            assert_eq!(serde_json::to_value(sort).unwrap(), sort.as_str());
        }
    }

    #[test]
    fn each_part_of_a_query_leaves_out_what_does_not_match() {
        let now = time(1_010);
        let matches = |change: fn(&mut StatusQuery)| {
            let mut query = StatusQuery::default();
            change(&mut query);
            [open(1), open(2), ended(3, 1_000)].map(|status| query.matches(&status, now))
        };
        assert_eq!(matches(|_| {}), [true, true, false]);
        assert_eq!(matches(|query| query.ended = true), [false, false, true]);
        assert_eq!(matches(|query| query.source = Source::new("even").ok()), [false, true, false]);
        assert_eq!(matches(|query| query.cid_prefix = Some("c-1".to_owned())), [true, false, false]);
        assert_eq!(matches(|query| query.min_age_s = Some(12)), [false, true, false]);
    }

    #[test]
    fn a_state_of_a_later_version_is_read_as_one_that_is_not_known() {
        let known = serde_json::to_string(&open(1)).unwrap();
        let later: FanOutStatus = serde_json::from_str(
            &known.replace("gathering", "dreaming").replace("\"done\"", "\"x\":1,\"done\""),
        )
        .unwrap();
        assert_eq!(later.state, FanOutState::Other);
    }
}
