use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Result, ensure};

use super::journal;
use crate::oracle::{Event, Record, Rules, Verdict, judge};

/// Invocations whose records are shown, of those with a violation. The journals have the others.
const SHOWN: usize = 5;
/// Records of one invocation that are shown.
const RECORDS_SHOWN: usize = 60;
/// Characters of a record that are shown: payloads are long.
const CHARS_SHOWN: usize = 300;

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What the oracle says.
    pub verdict: Verdict,
    /// Faults, and how many of them struck while fan-outs were open.
    faults: (usize, usize),
    /// The records of what violates a promise, as they are to be shown.
    offending: Vec<String>,
}

impl Report {
    /// What the journals in a folder tell.
    ///
    /// # Errors
    /// Where there are none, or one cannot be read.
    pub fn of(folder: &Path) -> Result<Self> {
        let records = journal::read_all(folder)?;
        ensure!(!records.is_empty(), "{} holds no journal", folder.display());
        let faults = faults(&records);
        let verdict = judge(records.clone(), Rules::default());
        let offending = offending(&records, &verdict);
        Ok(Self { verdict, faults, offending })
    }

    /// Whether every promise was kept, and put to the test: most faults struck while there was something to break.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let (all, amid) = self.faults;
        self.verdict.violations.is_empty() && amid * 2 > all
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, amid) = self.faults;
        write!(f, "{}", self.verdict)?;
        writeln!(f, "{amid} of {all} faults struck while fan-outs were open")?;
        self.offending.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Faults, and how many of them struck while a fan-out was open.
fn faults(records: &[Record]) -> (usize, usize) {
    // From when it was invoked to the last that was seen of it.
    let mut open: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for record in records {
        if let Some(invocation) = invocation_of(&record.event) {
            let (from, to) = open.entry(invocation).or_insert((record.at_ms, record.at_ms));
            *from = record.at_ms.min(*from);
            *to = record.at_ms.max(*to);
        }
    }
    let faults = records.iter().filter(|record| matches!(record.event, Event::Disturbed { .. }));
    let amid = |fault: &&Record| open.values().any(|(from, to)| (from..=to).contains(&&fault.at_ms));
    (faults.clone().count(), faults.filter(amid).count())
}

/// The records of invocations with a violation, in the order of time.
fn offending(records: &[Record], verdict: &Verdict) -> Vec<String> {
    let invocations: BTreeSet<&str> =
        verdict.violations.iter().map(|violation| violation.invocation.as_str()).collect();
    let mut lines = Vec::new();
    for invocation in invocations.iter().take(SHOWN) {
        let mut own: Vec<&Record> =
            records.iter().filter(|record| invocation_of(&record.event) == Some(invocation)).collect();
        own.sort_by_key(|record| record.at_ms);
        lines.push(format!("records of {invocation}:"));
        let shown = own.iter().take(RECORDS_SHOWN).filter_map(|record| serde_json::to_string(record).ok());
        lines.extend(shown.map(|line| format!("  {}", line.chars().take(CHARS_SHOWN).collect::<String>())));
        if let Some(more @ 1..) = own.len().checked_sub(RECORDS_SHOWN) {
            lines.push(format!("  and {more} more"));
        }
    }
    if let Some(more @ 1..) = invocations.len().checked_sub(SHOWN) {
        lines.push(format!("and those of {more} more invocations"));
    }
    lines
}

fn invocation_of(event: &Event) -> Option<&str> {
    match event {
        Event::Invoking { invocation, .. }
        | Event::Returned { invocation, .. }
        | Event::Waited { invocation, .. }
        | Event::Started { invocation, .. }
        | Event::Called { invocation, .. } => Some(invocation),
        _ => None,
    }
}
