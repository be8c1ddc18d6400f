use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use fanfare_protocol::{
    Cid, FanOutState, FanOutStatus, Lately, RunId, StatusAnswer, StatusQuery, StatusRequest,
};
use serde::Serialize;

use crate::{AskError, Operator};

/// Fan-outs, as all coordinators together tell of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// How many match the query.
    pub matching: usize,
    /// The first of them, in the order that was asked for.
    pub fan_outs: Vec<FanOutStatus>,
    /// What has happened at each of the coordinators lately, where that was asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lately: BTreeMap<RunId, Lately>,
    /// Who has told.
    pub coordinators: Coordinators,
}

/// Which coordinators have answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coordinators {
    /// How many have.
    pub answered: usize,
    /// How many will not tell this user.
    pub refused: usize,
    /// How many have not, as far as the broker knows them: what these hold is not told of. None where it does not say.
    pub silent: Option<usize>,
    /// Those who have answered: what whoever runs them calls them, or their IDs.
    pub heard: BTreeMap<RunId, String>,
    /// What those are called who have not, where whoever asked has found that out.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unheard: BTreeSet<String>,
}

impl Coordinators {
    /// What is to be said of those who did not tell; nothing, where all did as far as anybody knows.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        let all = self.answered + self.refused + self.silent.unwrap_or_default();
        match (self.refused, self.silent) {
            (0, None | Some(0)) => None,
            (0, Some(silent)) => Some(format!(
                "{silent} of {all} coordinators did not answer in time: only {} did",
                self.names()
            )),
            (refused, _) => Some(format!("{refused} of {all} coordinators do not tell this user")),
        }
    }

    /// Whether all have told, as far as the broker knows them. False where it does not say how many there are.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.refused == 0 && self.silent == Some(0)
    }

    /// Those who have answered, the first of them where they are many.
    fn names(&self) -> String {
        const MOST: usize = 5;
        let names: Vec<&str> = self.heard.values().take(MOST).map(String::as_str).collect();
        match self.heard.len() - names.len() {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }

    /// Counts answers: whose each is, and why it does not tell.
    pub(crate) fn count<'a>(
        answers: impl Iterator<Item = (RunId, Option<&'a String>, Option<&'a String>)>,
        known: Option<u64>,
    ) -> Result<Self, AskError> {
        let (mut told, mut refused, mut reason, mut heard) = (0, 0, None, BTreeMap::new());
        for (id, name, refusal) in answers {
            *if refusal.is_some() { &mut refused } else { &mut told } += 1;
            reason = refusal.or(reason);
            heard.insert(id, name.cloned().unwrap_or_else(|| id.to_string()));
        }
        let silent = |known| usize::try_from(known).unwrap_or(usize::MAX).saturating_sub(told + refused);
        match reason {
            Some(reason) if told == 0 => Err(AskError::Refused(reason.clone())),
            _ => {
                let silent = known.map(silent);
                Ok(Self { answered: told, refused, silent, heard, unheard: BTreeSet::new() })
            }
        }
    }
}

impl Operator {
    /// Which fan-outs are open, or have ended lately. Those that wait for a coordinator in the manifest queue are
    /// known to none.
    ///
    /// # Errors
    /// [`AskError`], where no coordinator has told. Where only some have, the answer says so.
    pub async fn status(&self, query: &StatusQuery) -> Result<Status, AskError> {
        let id = Cid::from(self.environment.unique());
        let question = |reply_to| StatusRequest { id, reply_to, query: query.clone() }.encode();
        let read = |message: &_| StatusAnswer::decode(message).map(|answer| (answer.coordinator, answer));
        let (answers, known) = self.ask_coordinators(question, read).await?;
        Status::of(answers, known, query)
    }
}

impl Status {
    /// What coordinators answer to one question, put together. `known` is how many there are, as far as anybody knows.
    ///
    /// # Errors
    /// [`AskError::Refused`], where none of them tells.
    pub fn of(answers: Vec<StatusAnswer>, known: Option<u64>, query: &StatusQuery) -> Result<Self, AskError> {
        let who = answers.iter().map(|it| (it.coordinator, it.name.as_ref(), it.refused.as_ref()));
        let coordinators = Coordinators::count(who, known)?;
        let mut matching = answers.iter().map(|answer| answer.matching).sum();
        let mut runs: BTreeMap<RunId, FanOutStatus> = BTreeMap::new();
        let mut lately = BTreeMap::new();
        for answer in answers {
            lately.extend(answer.lately.map(|lately| (answer.coordinator, lately)));
            for status in answer.fan_outs {
                match runs.entry(status.run) {
                    Entry::Vacant(vacant) => _ = vacant.insert(status),
                    Entry::Occupied(mut other) => {
                        matching = usize::saturating_sub(matching, 1);
                        if is_newer(&status, other.get()) {
                            other.insert(status);
                        }
                    }
                }
            }
        }
        let mut fan_outs = runs.into_values().collect();
        query.select(&mut fan_outs);
        Ok(Self { matching, fan_outs, lately, coordinators })
    }
}

/// Of what two coordinators say of one fan-out, which is on its way from one to the other, what is nearer to its end counts.
pub(crate) fn is_newer(status: &FanOutStatus, other: &FanOutStatus) -> bool {
    let progress = |status: &FanOutStatus| (matches!(status.state, FanOutState::Ended { .. }), status.done);
    progress(status) > progress(other)
}

#[cfg(test)]
mod tests {
    use fanfare_protocol::{Sort, Source, WireTime};
    use uuid::Uuid;

    use super::*;

    fn fan_out(n: u128, done: usize) -> FanOutStatus {
        FanOutStatus {
            cid: Cid::new(format!("c-{n}")).unwrap(),
            run: Uuid::from_u128(n).into(),
            source: Source::new("s").unwrap(),
            req_ts_utc: WireTime::from_timestamp(1_000).unwrap(),
            targets: 9,
            done,
            failed: 0,
            deadline_utc: None,
            state: FanOutState::Gathering,
        }
    }

    fn answer(coordinator: u128, fan_outs: Vec<FanOutStatus>, matching: usize) -> StatusAnswer {
        let name = (coordinator != 2).then(|| format!("host:{coordinator}"));
        let coordinator = Uuid::from_u128(coordinator).into();
        StatusAnswer { coordinator, name, refused: None, matching, fan_outs, lately: None }
    }

    fn query(limit: usize) -> StatusQuery {
        StatusQuery { limit, sort: Sort::Cid, ..StatusQuery::default() }
    }

    #[test]
    fn answers_of_several_coordinators_become_one() {
        let answers = vec![
            answer(1, vec![fan_out(1, 5), fan_out(3, 2)], 7),
            answer(2, vec![fan_out(2, 0), fan_out(3, 4)], 2),
        ];
        let status = Status::of(answers.clone(), Some(2), &query(10)).unwrap();
        assert_eq!(status.matching, 8, "one of them is on its way from one to the other");
        let done: Vec<_> =
            status.fan_outs.iter().map(|fan_out| (fan_out.cid.as_str(), fan_out.done)).collect();
        assert_eq!(done, [("c-1", 5), ("c-2", 0), ("c-3", 4)]);
        assert_eq!(status.coordinators.shortfall(), None);
        assert_eq!(Status::of(answers, Some(2), &query(1)).unwrap().fan_outs.len(), 1);
    }

    #[test]
    fn those_who_are_known_and_do_not_answer_are_counted() {
        let told = |known| Status::of(vec![answer(1, vec![], 0)], known, &query(1)).unwrap().coordinators;
        assert_eq!(
            told(Some(3)).shortfall().unwrap(),
            "2 of 3 coordinators did not answer in time: only host:1 did"
        );
        assert_eq!((told(None).silent, told(None).shortfall()), (None, None));
        // More than the broker knows: one has just lost its connection.
        assert_eq!(told(Some(0)).silent, Some(0));
    }

    #[test]
    fn a_refusal_of_all_is_an_error_and_of_some_a_shortfall() {
        let refused = |n| StatusAnswer { refused: Some("no".to_owned()), ..answer(n, vec![], 0) };
        let error = Status::of(vec![refused(1), refused(2)], Some(2), &query(1)).unwrap_err();
        assert_eq!(error.to_string(), "coordinators do not tell: no");
        let some =
            Status::of(vec![refused(1), answer(2, vec![fan_out(1, 1)], 1)], Some(2), &query(1)).unwrap();
        assert_eq!(some.coordinators.shortfall().unwrap(), "1 of 2 coordinators do not tell this user");
    }
}
