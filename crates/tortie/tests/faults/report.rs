//! What the run measured: printed, and written as JSON where `TORTIE_FAULTS_REPORT` names a file.

use crate::Fault;
use crate::load::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How soon work shall go on after a fault. Reported; a run fails only where it does not go on at all.
const WISHED: Duration = Duration::from_secs(5);

/// The figures of one run.
#[derive(Debug)]
pub(crate) struct Report {
    members: usize,
    /// For each fault the time after which every agent had served again, and the first had.
    resumed: BTreeMap<Fault, Vec<(Duration, Duration)>>,
    pub(crate) lasted: Duration,
}

impl Report {
    pub(crate) fn new(members: usize) -> Self {
        Self { members, resumed: BTreeMap::new(), lasted: Duration::ZERO }
    }

    /// Notes after how long each agent served again.
    pub(crate) fn note(&mut self, fault: Fault, resumed: &[Duration]) {
        let all = resumed.iter().max().copied().unwrap_or_default();
        let first = resumed.iter().min().copied().unwrap_or_default();
        eprintln!(
            "{}: the first agent served after {} ms, the last after {} ms",
            fault.text(),
            first.as_millis(),
            all.as_millis()
        );
        self.resumed.entry(fault).or_default().push((all, first));
    }

    /// How often a fault was made so far.
    pub(crate) fn times(&self, fault: Fault) -> usize {
        self.resumed.get(&fault).map_or(0, Vec::len)
    }

    /// Prints the sum of it.
    pub(crate) fn finish(mut self, outcome: &Outcome) {
        let mut rows = Vec::new();
        let mut late = 0;
        for (fault, times) in &mut self.resumed {
            times.sort_unstable();
            let within = times.iter().filter(|(all, _)| *all <= WISHED).count();
            late += times.len() - within;
            let (longest, median) = (times[times.len() - 1].0, times[times.len() / 2].0);
            let longest_first = times.iter().map(|(_, first)| *first).max().unwrap_or_default();
            rows.push(json!({
                "fault": fault.text(),
                "times": times.len(),
                "all agents, median, ms": whole(median),
                "all agents, longest, ms": whole(longest),
                "first agent, longest, ms": whole(longest_first),
                "within 5 s": within,
            }));
        }
        let summary = json!({
            "members": self.members,
            "seconds": self.lasted.as_secs(),
            "faults": rows,
            "met": late == 0,
            "adds": outcome.added,
            "dels": outcome.deleted,
            "told to try again": outcome.refused,
            "held at the end": outcome.held.len(),
        });
        eprintln!("{summary:#}");
        if let Some(path) = std::env::var_os("TORTIE_FAULTS_REPORT") {
            // One run after another writes its part.
            let before =
                std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Vec<Value>>(&text).ok());
            let mut runs = before.unwrap_or_default();
            runs.push(summary);
            std::fs::write(&path, format!("{:#}\n", Value::from(runs))).unwrap();
        }
    }
}

fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
