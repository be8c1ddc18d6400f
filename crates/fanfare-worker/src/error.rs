use std::error::Error;
use std::fmt;

use fanfare_broker::BrokerError;
use fanfare_protocol::{InvalidName, ServiceName};

/// What a service returns.
pub type Result<T, E = ServiceError> = std::result::Result<T, E>;

/// What made a service fail: any error, taken through `?`, or a text.
///
/// Displays as the error and its causes, in one line where they are, followed by a backtrace where there is one (an
/// `anyhow` error has one if `RUST_BACKTRACE` is set). It is not an [`Error`] itself, or it could not be made of any.
///
/// ```
/// use fanfare_worker::ServiceError;
///
/// fn parse(text: &str) -> Result<u32, ServiceError> {
///     if text.is_empty() {
///         return Err("there is no text".into());
///     }
///     Ok(text.parse()?)
/// }
///
/// assert_eq!(parse("").unwrap_err().to_string(), "there is no text");
/// assert_eq!(parse("x").unwrap_err().to_string(), "invalid digit found in string");
/// ```
pub struct ServiceError {
    context: Option<&'static str>,
    cause: Box<dyn Error + Send + Sync>,
    fatal: bool,
}

impl ServiceError {
    /// An error that another attempt would only repeat: it is not retried, whatever the service's
    /// [`Retry`](crate::Retry) says.
    ///
    /// ```
    /// use fanfare_worker::{Result, ServiceError};
    ///
    /// fn parse(text: &str) -> Result<u32> {
    ///     text.parse().map_err(ServiceError::fatal)
    /// }
    ///
    /// assert!(parse("x").unwrap_err().is_fatal());
    /// ```
    #[must_use]
    pub fn fatal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { context: None, cause: cause.into(), fatal: true }
    }

    /// Whether another attempt would only repeat it.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        self.fatal
    }

    /// What neither the service nor another attempt can help.
    pub(crate) fn unusable(context: &'static str, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { context: Some(context), cause: cause.into(), fatal: true }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for ServiceError {
    fn from(cause: E) -> Self {
        Self { context: None, cause: cause.into(), fatal: false }
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = self.context {
            write!(f, "{context}: ")?;
        }
        let mut before = self.cause.to_string();
        f.write_str(&before)?;
        let mut cause = self.cause.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors show their source in their own text.
            if !before.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            before = text;
            cause = error.source();
        }
        match backtrace(&*self.cause) {
            Some(backtrace) => write!(f, "\n\n{backtrace}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The backtrace that an error carries. The standard library has no stable way to ask an error for it; `anyhow`, the one
/// that most carry it in, writes it at the end of its `Debug` form.
fn backtrace(error: &(dyn Error + Send + Sync)) -> Option<String> {
    const TITLE: &str = "Stack backtrace:\n";
    let debug = format!("{error:?}");
    debug.rfind(&format!("\n\n{TITLE}")).map(|at| debug[at..].trim().to_owned())
}

/// A worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A service's name is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The worker has no services.
    #[error("the worker has no services: give it one with `Worker::service`")]
    NoServices,
    /// Two services have the same name.
    #[error("service `{0}` is registered twice: give one of them another name")]
    Duplicate(ServiceName),
    /// A service could never run.
    #[error("service `{service}` has a concurrency or prefetch of 0 and would never run: give 1 or more")]
    Nothing {
        /// The service.
        service: ServiceName,
    },
    /// A service's retries cannot be as they are to be.
    #[error("service `{service}` cannot be retried: {rule}")]
    Retry {
        /// The service.
        service: ServiceName,
        /// The rule that is broken, and with what.
        rule: String,
    },
    /// The worker could never run anything.
    #[error("the worker has a concurrency of 0 and would never run anything: give 1 or more")]
    NoConcurrency,
    /// The broker refuses something, and no waiting helps.
    #[error("the worker cannot work")]
    Broker(#[from] BrokerError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("middle: {0}")]
    struct Middle(#[source] std::num::ParseIntError);

    #[test]
    fn the_whole_chain_is_shown_and_nothing_twice() {
        let error = Outer(Middle("x".parse::<u8>().unwrap_err()));
        assert_eq!(ServiceError::from(error).to_string(), "outer: middle: invalid digit found in string");
    }

    #[test]
    fn anyhow_comes_through_the_question_mark_with_its_context() {
        fn fails() -> Result<()> {
            Err(std::io::Error::other("disk full")).context("cannot write")?;
            Ok(())
        }
        let shown = fails().unwrap_err().to_string();
        assert!(shown.starts_with("cannot write: disk full"), "{shown}");
    }

    #[test]
    fn a_backtrace_is_shown_after_the_chain() {
        #[derive(thiserror::Error)]
        #[error("it broke")]
        struct Traced;
        impl fmt::Debug for Traced {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("it broke\n\nStack backtrace:\n   0: main")
            }
        }
        assert_eq!(ServiceError::from(Traced).to_string(), "it broke\n\nStack backtrace:\n   0: main");
    }
}
