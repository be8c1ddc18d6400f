use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use fanfare_protocol::{HeaderValue, Message, header};
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

use crate::oracle::{Event, Record};

/// Name of the metadata that carries an invocation's name to every target and callback.
pub(super) const INVOCATION: &str = "invocation";

/// What happened, for the oracle, and for whoever reads the trace of a seed.
#[derive(Debug)]
pub(super) struct Journal {
    started: Instant,
    records: Mutex<Vec<Record>>,
    trace: Option<Arc<Trace>>,
}

/// The lines of a trace.
#[derive(Debug, Default)]
pub(super) struct Trace(Mutex<Vec<String>>);

impl Journal {
    pub(super) fn new(trace: Option<Arc<Trace>>) -> Self {
        Self { started: Instant::now(), records: Mutex::default(), trace }
    }

    /// Takes down what the oracle is to know.
    pub(super) fn record(&self, by: &str, event: Event) {
        self.trace(|| format!("{by}: {}", shown(&event)));
        let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.push(Record { at_ms, by: by.to_owned(), event });
    }

    /// Writes a line where the trace is wanted.
    pub(super) fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.push(self.started.elapsed(), &line());
        }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Trace {
    pub(super) fn push(&self, at: std::time::Duration, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(format!("{:>10.3} {line}", at.as_secs_f64()));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn shown(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}

/// The invocation that a message belongs to, by its metadata.
pub(super) fn invocation_of(message: &Message) -> Option<String> {
    let Some(HeaderValue::Table(metadata)) = message.headers.get(header::METADATA) else { return None };
    match metadata.get(INVOCATION) {
        Some(HeaderValue::Text(name)) => Some(name.to_string()),
        _ => None,
    }
}

/// Sends what Fanfare logs in this thread into a trace, for as long as the guard lives.
pub(super) fn log_into(trace: &Arc<Trace>) -> tracing::subscriber::DefaultGuard {
    let writer = Lines { trace: Arc::clone(trace), started: Instant::now() };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(writer)
        .finish();
    tracing::subscriber::set_default(subscriber)
}

#[derive(Debug, Clone)]
struct Lines {
    trace: Arc<Trace>,
    started: Instant,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl io::Write for Lines {
    /// One event is written at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.trace.push(self.started.elapsed(), String::from_utf8_lossy(event).trim_end());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
