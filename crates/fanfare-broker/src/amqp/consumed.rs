//! Which queues are read on a connection, for whoever has to find a message that nobody can read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connection::Link;

/// Queues that are named in the log, where there are more.
const NAMED: usize = 10;

/// The queues that are read on one connection, each with the number of its readers.
#[derive(Debug, Clone, Default)]
pub(super) struct Consumed(Arc<Mutex<BTreeMap<String, usize>>>);

/// Reads a queue for as long as it lives. What it holds is the connection alone: what holds a [`Line`](super::trunk::Line) counts as
/// a channel of it.
#[derive(Debug)]
pub(super) struct Reader {
    link: Arc<Link>,
    queue: String,
}

impl Consumed {
    pub(super) fn is_empty(&self) -> bool {
        self.readers().is_empty()
    }

    fn readers(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Consumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readers = self.readers();
        let named: Vec<&str> = readers.keys().take(NAMED).map(String::as_str).collect();
        f.write_str(&named.join(", "))?;
        match readers.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl Reader {
    pub(super) fn of(link: Arc<Link>, queue: &str) -> Self {
        *link.consumed().readers().entry(queue.to_owned()).or_default() += 1;
        Self { link, queue: queue.to_owned() }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.link.is_connected() {
            // What was read when the connection ended is still to be told.
            return;
        }
        let mut readers = self.link.consumed().readers();
        if let Some(count) = readers.get_mut(&self.queue) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.queue);
            }
        }
    }
}
