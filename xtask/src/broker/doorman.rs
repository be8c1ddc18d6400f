//! Lets a test ask for things to be done with a broker that another process owns.
//!
//! The owner listens on a socket and does the work, so that the broker stays its child and ends with it. The
//! command that a test is given only connects, asks, and waits for the answer.

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

use crate::process::POLL;
use crate::say;

/// How an answer begins where what was asked for is done. An owner that ends half-way sends none.
const DONE: &str = "done\n";

/// How long an asker may take to say what it wants.
const QUESTION_LIMIT: Duration = Duration::from_secs(5);

/// Options of the hidden command that asks.
#[derive(Args)]
pub(crate) struct AskOptions {
    /// The socket on which the owner of the broker listens.
    socket: PathBuf,
    /// What is asked for.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    question: Vec<String>,
}

/// Answers one asker after the other, until this is dropped.
pub(super) struct Doorman {
    socket: PathBuf,
    program: PathBuf,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Doorman {
    /// Has `answer` answer what is asked at the door called `name`. What it owns ends when the doorman does.
    pub(super) fn new(
        name: &str,
        answer: impl FnMut(&str) -> Result<String> + Send + 'static,
    ) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("fanfare-{name}-{}.socket", std::process::id()));
        // One of the same number was left by a process that was killed: this one has the number now.
        let _ = std::fs::remove_file(&socket);
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let ended = Arc::new(AtomicBool::new(false));
        let program = std::env::current_exe().context("cannot find this program")?;
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || serve(&listener, answer, &ended)
        });
        Ok(Self { socket, program, ended, listener: Some(thread) })
    }

    /// The shell words that ask for what is appended to them, and print the answer.
    pub(super) fn command(&self) -> String {
        format!("'{}' ask '{}'", self.program.display(), self.socket.display())
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(listener: &UnixListener, mut answer: impl FnMut(&str) -> Result<String>, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((mut asker, _)) => {
                let answer = match asked(&mut asker).and_then(|question| answer(&question)) {
                    Ok(answer) => format!("{DONE}{answer}"),
                    Err(error) => format!("{error:#}"),
                };
                // One that no longer listens has given up on its test.
                let _ = asker.write_all(answer.as_bytes());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL),
            Err(error) => {
                say(format_args!("cannot be asked for anything any more: {error}"));
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

/// Asks the owner of a broker, and prints what it answers.
pub(crate) fn ask(options: AskOptions) -> Result<()> {
    let mut owner = UnixStream::connect(&options.socket)
        .with_context(|| format!("nobody listens on {}", options.socket.display()))?;
    let question = options.question.join(" ");
    owner.write_all(question.as_bytes())?;
    owner.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    owner.read_to_string(&mut answer)?;
    let Some(answer) = answer.strip_prefix(DONE) else { bail!("`{question}` was not done: {answer}") };
    std::io::stdout().write_all(answer.as_bytes()).context("cannot print the answer")
}
