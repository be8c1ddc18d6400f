//! Lets a test restart a broker that another process owns.
//!
//! The owner listens on a socket and does the work, so that the broker stays its child and ends with it. The
//! command that a test is given only connects, and waits for the word that the broker is back.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Broker, End};
use crate::process::POLL;
use crate::say;

/// The answer that means that the broker is back. An owner that ends half-way sends none.
const DONE: &str = "restarted";

/// What asks for a restart after a kill. Anything else asks for an orderly restart.
const KILL: &str = "kill";

/// How long an asker may take to say what it wants.
const QUESTION_LIMIT: Duration = Duration::from_secs(5);

/// Options of the hidden command that asks for a restart.
#[derive(Args)]
pub(crate) struct RestartOptions {
    /// The socket on which the owner of the broker listens.
    socket: PathBuf,
    /// Ends the broker by SIGKILL, instead of asking it to stop.
    #[arg(long)]
    kill: bool,
}

/// A broker that restarts when it is asked to over a socket, until this is dropped.
pub(crate) struct Restartable {
    url: String,
    control: Option<String>,
    socket: PathBuf,
    program: PathBuf,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Restartable {
    pub(crate) fn new(broker: Broker) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("fanfare-restart-{}.socket", std::process::id()));
        // One of the same number was left by a process that was killed: this one has the number now.
        let _ = std::fs::remove_file(&socket);
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let ended = Arc::new(AtomicBool::new(false));
        let (url, control) = (broker.url().to_owned(), broker.control());
        let program = std::env::current_exe().context("cannot find this program")?;
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || serve(broker, &listener, &ended)
        });
        Ok(Self { url, control, socket, program, ended, listener: Some(thread) })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn control(&self) -> Option<&str> {
        self.control.as_deref()
    }

    /// The shell words that restart the broker. They return when it accepts connections again.
    pub(crate) fn command(&self) -> String {
        format!("'{}' restart '{}'", self.program.display(), self.socket.display())
    }
}

impl Drop for Restartable {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Serves one request after the other, and ends the broker when it returns.
fn serve(mut broker: Broker, listener: &UnixListener, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((mut asker, _)) => {
                let answer = match asked(&mut asker).and_then(|question| answer(&mut broker, &question)) {
                    Ok(()) => DONE.to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                // One that no longer listens has given up on its test.
                let _ = asker.write_all(answer.as_bytes());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL),
            Err(error) => {
                say(format_args!("cannot be asked for restarts any more: {error}"));
                return;
            }
        }
    }
}

fn asked(asker: &mut UnixStream) -> Result<String> {
    asker.set_read_timeout(Some(QUESTION_LIMIT))?;
    let mut question = String::new();
    asker.read_to_string(&mut question)?;
    Ok(question)
}

fn answer(broker: &mut Broker, question: &str) -> Result<()> {
    match question {
        KILL => broker.end(End::Killed).and_then(|()| broker.start_again()),
        _ => broker.end(End::Stopped).and_then(|()| broker.start_again()),
    }
}

/// Asks the owner of a broker to restart it.
pub(crate) fn ask_for_restart(options: RestartOptions) -> Result<()> {
    let mut owner = UnixStream::connect(&options.socket)
        .with_context(|| format!("nobody listens on {}", options.socket.display()))?;
    let question = if options.kill { KILL } else { "" };
    owner.write_all(question.as_bytes())?;
    owner.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    owner.read_to_string(&mut answer)?;
    if answer == DONE { Ok(()) } else { bail!("the broker did not restart: {answer}") }
}
