//! What an error of lapin means.

use lapin::{Error, ErrorKind};

use crate::BrokerError;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;
const NOT_IMPLEMENTED: u16 = 540;

/// What RabbitMQ grants to a user, for queues and exchanges whose names match a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// To declare and to delete.
    Configure,
    /// To declare a queue that dead-letters takes both.
    ConfigureOrRead,
    /// To publish to an exchange, and to bind a queue.
    Write,
    /// To consume a queue, and to bind to an exchange.
    Read,
}

/// An operation on a queue that takes this right failed.
///
/// An error ends its channel, and with it every operation under way there: only an error that names this queue speaks about
/// it. That matters most for "no queue", on which the end of a fan-out is decided.
pub(super) fn on_queue(error: &Error, queue: &str, right: Right) -> BrokerError {
    let Some((code, reason)) = reply(error) else { return plain(error) };
    if !names(&reason, queue) {
        return match code {
            // Where a queue dead-letters to.
            ACCESS_REFUSED if reason.contains("access to exchange") => denied(reason, Right::Write),
            ACCESS_REFUSED => denied(reason, right),
            PRECONDITION_FAILED => BrokerError::Refused(reason),
            _ => plain(error),
        };
    }
    let queue = queue.to_owned();
    match code {
        NOT_FOUND if reason.starts_with("NOT_FOUND - no queue") => BrokerError::NoQueue(queue),
        // The queue's node is down, or did not answer in time.
        NOT_FOUND => BrokerError::Unavailable { queue, reason },
        PRECONDITION_FAILED if reason.contains("inequivalent arg") => {
            BrokerError::QueueDiffers { queue, reason }
        }
        PRECONDITION_FAILED => BrokerError::Refused(reason),
        RESOURCE_LOCKED => BrokerError::Locked(queue),
        ACCESS_REFUSED if reason.contains("exclusive") => BrokerError::Locked(queue),
        ACCESS_REFUSED => denied(reason, right),
        _ => plain(error),
    }
}

/// An operation on an exchange that takes this right failed.
pub(super) fn on_exchange(error: &Error, exchange: &str, right: Right) -> BrokerError {
    match reply(error) {
        Some((ACCESS_REFUSED, reason)) => denied(reason, right),
        Some((NOT_FOUND, reason)) if is_no_exchange(&reason, exchange) => {
            BrokerError::NoExchange(exchange.to_owned())
        }
        Some((PRECONDITION_FAILED, reason)) => BrokerError::Refused(reason),
        _ => plain(error),
    }
}

/// To bind a queue to an exchange failed.
pub(super) fn on_binding(error: &Error, queue: &str, exchange: &str) -> BrokerError {
    match reply(error) {
        Some((_, reason)) if is_no_exchange(&reason, exchange) || is_of_exchange(&reason, exchange) => {
            on_exchange(error, exchange, Right::Read)
        }
        _ => on_queue(error, queue, Right::Write),
    }
}

/// What a user lacks. RabbitMQ 3.10 names all but the right, which the operation tells.
fn denied(reason: String, right: Right) -> BrokerError {
    let lacks = |text: &str| {
        let (named, resource) = text.strip_prefix("ACCESS_REFUSED - ")?.split_once("access to ")?;
        let (resource, user) = resource.rsplit_once(" refused for user ")?;
        let right = match named.trim_end() {
            "" => right.name(),
            named => named,
        };
        Some(format!("user {user} lacks the right to {right} on {resource}"))
    };
    BrokerError::Denied(lacks(&reason).unwrap_or(reason))
}

impl Right {
    /// As RabbitMQ names it.
    const fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::ConfigureOrRead => "configure or to read",
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

fn is_of_exchange(reason: &str, exchange: &str) -> bool {
    reason.contains("access to exchange") && names(reason, exchange)
}

fn is_no_exchange(reason: &str, exchange: &str) -> bool {
    reason.starts_with("NOT_FOUND - no exchange") && names(reason, exchange)
}

/// A connection, or something that concerns no queue, failed.
pub(super) fn plain(error: &Error) -> BrokerError {
    match (reply(error), error.kind()) {
        // What concerns neither is a login, or a message on its way.
        (Some((ACCESS_REFUSED, reason)), _) => denied(reason, Right::Write),
        // While the broker starts, its virtual hosts are down.
        (Some((NOT_ALLOWED, reason)), _) if !reason.contains("is down") => BrokerError::Refused(reason),
        (Some((NOT_IMPLEMENTED, reason)), _) => BrokerError::Refused(reason),
        (Some((PRECONDITION_FAILED, reason)), _) if is_of_wrong_user(&reason) => {
            BrokerError::WrongUser(reason)
        }
        (Some((_, reason)), _) => BrokerError::Unreachable(reason),
        (None, ErrorKind::AuthProviderError(reason)) => BrokerError::Denied(reason.clone()),
        (None, ErrorKind::IOError(cause)) => BrokerError::Unreachable(cause.to_string()),
        (None, _) => BrokerError::Unreachable(error.to_string()),
    }
}

/// Whether the broker refused a message whose `user_id` is not the login that published it.
fn is_of_wrong_user(reason: &str) -> bool {
    reason.contains("user_id property set to")
}

/// The code and the text that the broker sent.
pub(super) fn reply(error: &Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
        _ => None,
    }
}

/// Whether the broker speaks of this queue or exchange. It cuts its texts at 255 bytes.
fn names(reason: &str, name: &str) -> bool {
    let shown = name.get(..200).unwrap_or(name);
    let quote = if shown.len() == name.len() { "'" } else { "" };
    reason.contains(&format!("'{shown}{quote}"))
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind};

    use super::*;

    fn from_broker(code: u16, text: &str) -> Error {
        let kind = AMQPErrorKind::from_id(code).expect("a code of AMQP");
        ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into()
    }

    #[test]
    fn only_no_queue_of_this_name_is_absence() {
        let absent = from_broker(404, "NOT_FOUND - no queue 'a.b' in vhost '/'");
        assert!(matches!(on_queue(&absent, "a.b", Right::Configure), BrokerError::NoQueue(_)));
        // An error that another operation on the channel caused.
        assert!(matches!(on_queue(&absent, "a.c", Right::Configure), BrokerError::Unreachable(_)));
        assert!(matches!(on_queue(&absent, "a", Right::Configure), BrokerError::Unreachable(_)));
        for text in [
            "NOT_FOUND - home node 'rabbit@b' of durable queue 'a.b' in vhost '/' is down or inaccessible",
            "NOT_FOUND - failed to perform operation on queue 'a.b' in vhost '/' due to timeout",
            "NOT_FOUND - queue 'a.b' in vhost '/' process is stopped by supervisor",
        ] {
            let error = on_queue(&from_broker(404, text), "a.b", Right::Configure);
            assert!(matches!(error, BrokerError::Unavailable { .. }), "{error}");
        }
    }

    #[test]
    fn a_failed_binding_tells_what_is_missing() {
        let queue = from_broker(404, "NOT_FOUND - no queue 'a' in vhost '/'");
        assert!(matches!(on_binding(&queue, "a", "b"), BrokerError::NoQueue(name) if name == "a"));
        let exchange = from_broker(404, "NOT_FOUND - no exchange 'b' in vhost '/'");
        assert!(matches!(on_binding(&exchange, "a", "b"), BrokerError::NoExchange(name) if name == "b"));
        assert!(matches!(on_exchange(&exchange, "b", Right::Configure), BrokerError::NoExchange(_)));
        // A queue and an exchange may have one name.
        assert!(!matches!(on_queue(&exchange, "b", Right::Configure), BrokerError::NoQueue(_)));
    }

    #[test]
    fn what_only_an_operator_can_change_is_no_outage() {
        let differs =
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'a'";
        for (code, text) in [
            (406, differs),
            (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'"),
            (403, "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'u'"),
            (530, "NOT_ALLOWED - vhost x not found"),
            (540, "NOT_IMPLEMENTED - feature"),
        ] {
            assert!(!on_queue(&from_broker(code, text), "q", Right::Configure).is_outage(), "{text}");
        }
        assert!(matches!(
            on_queue(&from_broker(406, differs), "q", Right::Configure),
            BrokerError::QueueDiffers { .. }
        ));
    }

    #[test]
    fn a_refusal_names_the_user_the_right_and_what_it_is_for() {
        let said = |text: &str| match on_binding(&from_broker(403, text), "q", "x") {
            BrokerError::Denied(reason) => reason,
            error => panic!("{error:?}"),
        };
        for (text, expected) in [
            (
                "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'u'",
                "user 'u' lacks the right to configure on queue 'q' in vhost '/'",
            ),
            (
                "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'",
                "user 'u' lacks the right to write on queue 'q' in vhost '/'",
            ),
            (
                "ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'",
                "user 'u' lacks the right to read on exchange 'x' in vhost '/'",
            ),
            ("ACCESS_REFUSED - Login was refused", "ACCESS_REFUSED - Login was refused"),
        ] {
            assert_eq!(said(text), expected);
        }
    }

    #[test]
    fn what_passes_is_an_outage() {
        for (code, text) in [
            (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"),
            (541, "INTERNAL_ERROR"),
            (530, "NOT_ALLOWED - vhost '/' is down"),
        ] {
            assert!(on_queue(&from_broker(code, text), "q", Right::Configure).is_outage(), "{text}");
        }
        assert!(plain(&ErrorKind::MissingHeartbeatError.into()).is_outage());
    }
}
