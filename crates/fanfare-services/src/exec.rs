use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use fanfare_protocol::limits;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::DEFAULT_TIMEOUT;
use crate::answer::{self, NotJson};

/// Bytes of standard error that a failure quotes: the last ones, where the reason usually is.
const STDERR_TAIL_BYTES: usize = 16 * 1024;

/// Bytes read from a pipe at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// A program that is run as a service: the payload as JSON on its standard input, the answer as JSON on its standard output.
///
/// The program is started directly, not through a shell, with exactly the arguments given here: nothing of a payload can
/// become part of the command. It sees the worker's environment without `FANFARE_BROKER` and `FANFARE_MANAGEMENT`, which can hold a password,
/// and what it is invoked for as `FANFARE_CID`, `FANFARE_RUN`, `FANFARE_KEY`, `FANFARE_SOURCE`, `FANFARE_CHANNEL`,
/// `FANFARE_MESSAGE_ID` and `FANFARE_ATTEMPT`, and the caller's metadata, where there is any, as a JSON object in `FANFARE_METADATA`;
/// and the bytes of its input in `FANFARE_PAYLOAD_BYTES`, which are fewer where its worker was killed meanwhile.
///
/// Exit code 0 is success; no output at all then answers `null`. Anything else is a failure, with the last 16 KiB of
/// standard error in `exception`; exit code 65 (`EX_DATAERR`, the input is wrong) is one that is not retried. At its time-out, and when its invocation is cancelled, the program is killed with all that it
/// started (its process group); what it started is also killed when it exits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecService {
    program: String,
    arguments: Vec<String>,
    timeout: Duration,
    directory: Option<PathBuf>,
    variables: BTreeMap<String, String>,
}

/// Running a program did not bring an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// It could not be started.
    #[error("`{program}` cannot be started")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its pipes could not be read or written.
    #[error("talking to `{program}` failed")]
    Pipe {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It exited with another code than 0, or was killed by a signal.
    #[error("`{program}` failed with {status}{}", quoted(.stderr))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last of its standard error.
        stderr: String,
    },
    /// It did not end in time and was killed.
    #[error("`{program}` did not end within {timeout:?} and was killed")]
    TimedOut {
        /// The program.
        program: String,
        /// The time-out.
        timeout: Duration,
    },
    /// It wrote more than a result can hold and was killed.
    #[error(
        "`{program}` wrote more than {} bytes to its standard output and was killed: store the data elsewhere and return a \
         reference to it",
        limits::RESULT_BYTES
    )]
    TooMuchOutput {
        /// The program.
        program: String,
    },
    /// Its standard output is not JSON.
    #[error("the standard output of `{program}` is not JSON{}", quoted(.stderr))]
    NotJson {
        /// The program.
        program: String,
        /// What does not fit.
        source: NotJson,
        /// The last of its standard error.
        stderr: String,
    },
}

impl ExecError {
    /// What `sysexits.h` calls `EX_DATAERR`.
    const DATA_ERROR: i32 = 65;

    /// Whether the program says that its input is wrong, so that another attempt would only repeat the failure.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::Failed { status, .. } if status.code() == Some(Self::DATA_ERROR))
    }
}

/// A command is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the command is empty: give the program and its arguments, such as [\"python3\", \"resize.py\"]")]
pub struct EmptyCommand;

impl ExecService {
    /// A service that runs a program: its name or path, and its arguments.
    ///
    /// # Errors
    /// [`EmptyCommand`] where there is no program.
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, EmptyCommand> {
        let mut command = command.into_iter().map(Into::into);
        let program = command.next().filter(|program: &String| !program.is_empty()).ok_or(EmptyCommand)?;
        let arguments = command.collect();
        let (directory, variables) = (None, BTreeMap::new());
        Ok(Self { program, arguments, timeout: DEFAULT_TIMEOUT, directory, variables })
    }

    /// Sets how long the program may run; 5 minutes otherwise.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the directory in which the program runs; the worker's otherwise.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Runs the program once. It is killed with all that it started when the future is dropped.
    pub(crate) async fn run(
        &self,
        input: Bytes,
        context: &[(&'static str, String)],
    ) -> Result<Box<RawValue>, ExecError> {
        let program = || self.program.clone();
        let mut child = self
            .command(context)
            .spawn()
            .map_err(|source| ExecError::Start { program: program(), source })?;
        // Killed when this ends, on whatever path.
        let group = Group::of(&child);
        let talk = tokio::time::timeout(self.timeout, converse(&mut child, input, &group)).await;
        let output = match talk {
            Err(_) => return Err(ExecError::TimedOut { program: program(), timeout: self.timeout }),
            Ok(Err(source)) => return Err(ExecError::Pipe { program: program(), source }),
            Ok(Ok(output)) => output,
        };
        let stderr = output.stderr.into_text();
        match (output.stdout, output.status) {
            (Stdout::TooMuch, _) => Err(ExecError::TooMuchOutput { program: program() }),
            (_, status) if !status.success() => Err(ExecError::Failed { program: program(), status, stderr }),
            (Stdout::Whole(stdout), _) => answer::parse(&stdout).map_err(|source| ExecError::NotJson {
                program: program(),
                source,
                stderr,
            }),
        }
    }

    fn command(&self, context: &[(&'static str, String)]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_remove("FANFARE_BROKER")
            .env_remove("FANFARE_MANAGEMENT")
            .envs(&self.variables)
            .envs(context.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

struct Output {
    stdout: Stdout,
    stderr: Tail,
    status: ExitStatus,
}

enum Stdout {
    Whole(Vec<u8>),
    TooMuch,
}

/// Writes standard input and reads the two outputs at the same time, since a program that writes before it has read
/// everything would otherwise wait for us while we wait for it.
async fn converse(child: &mut Child, input: Bytes, group: &Group) -> io::Result<Output> {
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let stdout = child.stdout.take().expect("standard output is piped");
    let stderr = child.stderr.take().expect("standard error is piped");
    let write = async move {
        // A program need not read its input to the end, or at all.
        let _ = stdin.write_all(&input).await;
    };
    let end = async {
        let status = child.wait().await;
        // What it left behind could hold the pipes open for ever.
        group.kill();
        status
    };
    let read = async {
        let stdout = read_at_most(stdout, limits::RESULT_BYTES).await;
        if matches!(stdout, Ok(Stdout::TooMuch)) {
            group.kill();
        }
        stdout
    };
    // The writer may wait for a pipe that nobody reads, so it does not hold up the others.
    let others = async { tokio::try_join!(read, read_tail(stderr), end) };
    tokio::pin!(others);
    let (stdout, stderr, status) = tokio::select! {
        done = &mut others => done?,
        () = write => others.await?,
    };
    Ok(Output { stdout, stderr, status })
}

async fn read_at_most(mut pipe: impl AsyncRead + Unpin, most: usize) -> io::Result<Stdout> {
    let mut whole = Vec::new();
    (&mut pipe).take(most as u64 + 1).read_to_end(&mut whole).await?;
    Ok(if whole.len() > most { Stdout::TooMuch } else { Stdout::Whole(whole) })
}

async fn read_tail(mut pipe: impl AsyncRead + Unpin) -> io::Result<Tail> {
    let mut tail = Tail::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match pipe.read(&mut chunk).await? {
            0 => return Ok(tail),
            read => tail.push(&chunk[..read]),
        }
    }
}

/// The last bytes of what a program wrote.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    dropped: usize,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(STDERR_TAIL_BYTES);
        self.bytes.drain(..excess);
        self.dropped += excess;
    }

    fn into_text(self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim();
        if self.dropped == 0 { text.to_owned() } else { format!("[{} bytes before] {text}", self.dropped) }
    }
}

fn quoted(stderr: &str) -> String {
    if stderr.is_empty() { "; it wrote nothing to standard error".to_owned() } else { format!(": {stderr}") }
}

/// The process group of a program: itself and what it starts.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// Kills all of it. A group that is gone by now makes no difference: its number is not given to another before the
    /// system has gone through all the others.
    fn kill(&self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests;
