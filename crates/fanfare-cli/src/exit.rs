//! What the process ends with.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::anyhow;
use fanfare::{BrokerError, Fanfare};
use serde::Serialize;

/// The exit codes, which scripts rely on. They are documented in `fanfare --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All went well.
    Done = 0,
    /// A target failed, a fan-out was not cancelled, the doctor found something wrong, or the broker refuses what no waiting changes.
    Failed = 1,
    /// An argument, a setting or a file is wrong. Nothing was sent.
    BadInput = 2,
    /// No broker can be reached, or none that lets this user in. Nothing was sent.
    NoBroker = 3,
    /// The fan-out was not accepted: no callback will come.
    NotAccepted = 4,
    /// Whether the fan-out was accepted, or cancelled, or is known to a coordinator, is unknown, or this user may not look at
    /// something.
    Unknown = 5,
    /// The wait ended without the final payload. The fan-out goes on.
    TimedOut = 6,
}

/// Shown in the help of every command that can end with most of them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a target failed (with --wait), and with --until-succeeded too few succeeded
  2  bad input: nothing was sent
  3  no broker, or it does not take this user, password and virtual host: nothing was sent
  4  not accepted: no callback will come; the error says whether targets may have run
  5  unknown whether accepted: to invoke it again may run it twice
  6  the wait timed out, or was cut off with its connection: the fan-out goes on";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the process cannot do what it was asked to, and what it ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    pub(crate) fn bad_input(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::BadInput, error)
    }

    /// There is no broker to be had: says why, and what to look at.
    pub(crate) fn no_broker(error: &BrokerError) -> Self {
        Self::new(Exit::NoBroker, anyhow!("{error}; {}", remedy(error)))
    }

    /// Tells the user, with all causes, in one line where they are short.
    pub(crate) fn report(&self) -> ExitCode {
        say(format_args!("error: {:#}", self.error));
        self.exit.into()
    }
}

/// What to do where there is no connection.
pub(crate) const fn remedy(error: &BrokerError) -> &'static str {
    match error {
        BrokerError::Denied(_) | BrokerError::Refused(_) => {
            "check user, password and virtual host in the URL of --broker"
        }
        _ => "check that RabbitMQ runs and that host and port of --broker are right",
    }
}

/// Why there is no broker to be had, where there is none.
pub(crate) async fn without_broker(fanfare: &Fanfare) -> Option<Failure> {
    fanfare.broker().server().await.err().map(|error| Failure::no_broker(&error))
}

impl From<io::Error> for Failure {
    /// Writing the output failed.
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// Tells the person at the terminal something. Where nobody can be told, nobody is.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Writes one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(print(line)?)
}

/// Set when nobody reads the output any more.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Whether somebody still reads the output, as far as it has shown.
pub(crate) fn is_read() -> bool {
    !UNREAD.load(Ordering::Relaxed)
}

/// Writes one line of output. A reader who has seen enough, as `head` does, is no failure.
pub(crate) fn print(line: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            UNREAD.store(true, Ordering::Relaxed);
            Ok(())
        }
        written => written,
    }
}
