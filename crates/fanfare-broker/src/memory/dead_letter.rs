use fanfare_protocol::header::{DEATHS, FIRST_DEATH_QUEUE, FIRST_DEATH_REASON};
use fanfare_protocol::{HeaderValue, Headers, Message};

use super::queue::Route;

const FIRST_EXCHANGE: &str = "x-first-death-exchange";

/// Why a queue gave a message up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    Expired,
    DeliveryLimit,
}

impl Death {
    const fn as_header(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// The message as it is dead-lettered: with headers that say where and why it died, and without its own expiration, so
/// that it does not expire again.
pub(super) fn died(mut message: Message, queue: &str, route: &Route, death: Death) -> Message {
    message.properties.expiration = None;
    let reason = death.as_header();
    let mut deaths = deaths(&message).to_vec();
    let same = |entry: &HeaderValue| names(entry, "queue", queue) && names(entry, "reason", reason);
    let count = match deaths.iter().position(same).map(|at| deaths.remove(at)) {
        Some(HeaderValue::Table(entry)) => count_of(&entry) + 1,
        _ => 1,
    };
    let entry = Headers::from([
        ("count", HeaderValue::Int(count)),
        ("exchange", route.exchange.as_str().into()),
        ("queue", queue.into()),
        ("reason", reason.into()),
        ("routing-keys", HeaderValue::List(vec![route.key.as_str().into()])),
    ]);
    deaths.insert(0, HeaderValue::Table(entry));
    message.headers.insert(DEATHS, HeaderValue::List(deaths));
    let first =
        [(FIRST_DEATH_REASON, reason), (FIRST_DEATH_QUEUE, queue), (FIRST_EXCHANGE, route.exchange.as_str())];
    for (name, value) in first {
        if !message.headers.contains_key(name) {
            message.headers.insert(name, value);
        }
    }
    message
}

/// Whether a dead letter would come back to a queue where it died before. Nobody rejects messages here, so such a cycle
/// would never end, and the letter is dropped.
pub(super) fn would_cycle(letter: &Message, to: &str) -> bool {
    deaths(letter).iter().any(|entry| names(entry, "queue", to))
}

fn deaths(message: &Message) -> &[HeaderValue] {
    match message.headers.get(DEATHS) {
        Some(HeaderValue::List(deaths)) => deaths,
        _ => &[],
    }
}

fn names(entry: &HeaderValue, field: &str, value: &str) -> bool {
    let HeaderValue::Table(entry) = entry else { return false };
    matches!(entry.get(field), Some(HeaderValue::Text(text)) if text == value)
}

fn count_of(entry: &Headers) -> i64 {
    match entry.get("count") {
        Some(HeaderValue::Int(count)) => *count,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_says_where_it_died_first_and_how_often() {
        let route = Route::to_queue("a");
        let once = died(Message::default(), "a", &route, Death::Expired);
        let twice = died(once, "b", &route, Death::DeliveryLimit);
        let thrice = died(twice, "a", &route, Death::Expired);
        assert_eq!(thrice.text(FIRST_DEATH_REASON), Some("expired"));
        assert_eq!(thrice.text(FIRST_DEATH_QUEUE), Some("a"));
        let HeaderValue::Table(last) = &deaths(&thrice)[0] else { panic!("an entry is a table") };
        assert_eq!((deaths(&thrice).len(), count_of(last)), (2, 2));
    }

    #[test]
    fn a_letter_never_goes_back_to_where_it_died() {
        let letter = died(Message::default(), "a", &Route::to_queue("a"), Death::Expired);
        assert!(would_cycle(&letter, "a"));
        assert!(!would_cycle(&letter, "b"));
    }
}
