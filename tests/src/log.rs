use std::io::{self, Write};
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::fmt::MakeWriter;

use crate::Stack;

/// What all parts of Fanfare in this process, but not the libraries under them, have logged as a warning or an error, since [`Log::start`].
#[derive(Debug)]
pub struct Log {
    lines: Mutex<Vec<String>>,
}

impl Log {
    /// Starts to listen, where that has not been done before.
    pub fn start() -> &'static Self {
        static LOG: OnceLock<&'static Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log: &'static Self = Box::leak(Box::new(Self { lines: Mutex::default() }));
            tracing_subscriber::fmt()
                .with_env_filter("warn,lapin=off")
                .with_ansi(false)
                .with_writer(Lines(log))
                .init();
            log
        })
    }

    /// The lines that name a queue of a stack, by the part of its name after the prefix.
    #[must_use]
    pub fn of_queue(&self, stack: &Stack, queue: &str) -> Vec<String> {
        let name = format!("{}.{queue}", stack.names().prefix());
        let lines = self.lines.lock().expect("no one panics while it holds this lock");
        lines.iter().filter(|line| line.contains(&name)).cloned().collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct Lines(&'static Log);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Lines {
    /// One event is written at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lines.lock().expect("no one panics while it holds this lock");
        lines.push(String::from_utf8_lossy(event).into_owned());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
