use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::oracle::{Event, Record};

/// The last part of a journal's file name.
const EXTENSION: &str = "jsonl";

/// What one process writes down for the oracle: a record a line, each in the file before whatever follows from it is seen by
/// anyone else. So what anyone saw of a process is in its journal, however the process ended.
#[derive(Debug)]
pub struct Journal {
    file: File,
    process: String,
    drawn: AtomicU64,
}

impl Journal {
    /// The journal of a process, in a folder.
    ///
    /// # Errors
    /// Where there is one already, or it cannot be written.
    pub fn create(folder: &Path, process: &str) -> Result<Self> {
        let path = path(folder, process);
        let file = File::options().append(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, process: process.to_owned(), drawn: AtomicU64::new(0) })
    }

    /// The process's name.
    pub(crate) fn process(&self) -> &str {
        &self.process
    }

    /// A name that nothing else has in any journal of the folder.
    pub(crate) fn draw_name(&self) -> String {
        format!("{}/{}", self.process, self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    /// Writes down what happened. When this returns, no kill of the process takes it away again.
    pub(crate) fn write(&self, event: Event) -> Result<()> {
        let at_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or_default();
        let mut line = serde_json::to_vec(&Record { at_ms, by: self.process.clone(), event })?;
        line.push(b'\n');
        // One call: who is killed in it leaves the line or the start of it, and two threads never mix theirs.
        let written = (&self.file).write(&line)?;
        ensure!(written == line.len(), "the disk is full: {written} of {} bytes were written", line.len());
        Ok(())
    }
}

fn path(folder: &Path, process: &str) -> PathBuf {
    folder.join(format!("{process}.{EXTENSION}"))
}

/// The records of all journals in a folder. The last line of a process that was killed while it wrote is left out: nothing
/// had followed from it.
pub(crate) fn read_all(folder: &Path) -> Result<Vec<Record>> {
    let mut paths = fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        let text = fs::read(&path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or_default();
        let lines = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for (n, line) in lines.enumerate() {
            let record = serde_json::from_slice(line);
            records.push(record.with_context(|| format!("{}:{} is no record", path.display(), n + 1))?);
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_that_a_kill_cut_short_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::create(folder.path(), "worker-1").unwrap();
        let left = |run: &str| Event::QueueLeft { run: run.to_owned() };
        journal.write(left("one")).unwrap();
        journal.write(left("two")).unwrap();
        let path = path(folder.path(), "worker-1");
        let whole = fs::read(&path).unwrap();
        let runs = |bytes: &[u8]| -> Vec<Event> {
            fs::write(&path, bytes).unwrap();
            read_all(folder.path()).unwrap().into_iter().map(|record| record.event).collect()
        };
        assert_eq!(runs(&whole), [left("one"), left("two")]);
        assert_eq!(runs(&whole[..whole.len() - 1]), [left("one")]);
        assert_eq!(runs(b""), []);
        assert!(Journal::create(folder.path(), "worker-1").is_err(), "no two processes share one");
    }
}
