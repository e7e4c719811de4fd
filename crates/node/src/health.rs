//! What the agent says about itself: which parts are up, and how much it has done.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::watch;

/// Parts that must be up before the node may run pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything that is followed has been listed.
    Warm,
    /// The tunnel address is assigned and recorded, or no pool wants one.
    Tunnel,
    /// The kernel was brought to the desired state once.
    Dataplane,
    /// The network configuration is installed.
    Configuration,
}

impl Part {
    const ALL: [Self; 4] = [Self::Warm, Self::Tunnel, Self::Dataplane, Self::Configuration];

    fn text(self) -> &'static str {
        match self {
            Self::Warm => "watches",
            Self::Tunnel => "tunnel address",
            Self::Dataplane => "dataplane",
            Self::Configuration => "network configuration",
        }
    }
}

/// State and counts, shared by the agent's tasks.
#[derive(Debug, Default)]
pub(crate) struct Health {
    up: [AtomicBool; 4],
    /// The store does not answer.
    lost: AtomicBool,
    /// The store is locked while it is migrated.
    locked: AtomicBool,
    /// The store is lost, or has been silent for too long to what it was asked.
    away: watch::Sender<bool>,
    /// Releases that wait on this node for the datastore.
    owed: AtomicUsize,
    counts: [AtomicU64; 8],
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Assigned,
    Released,
    Refused,
    Claimed,
    Conflicts,
    Commits,
    Reads,
    Applied,
}

impl Count {
    const ALL: [(Self, &'static str, &'static str); 8] = [
        (Self::Assigned, "tortie_agent_addresses_assigned_total", "Addresses answered to ADDs."),
        (Self::Released, "tortie_agent_releases_total", "DELs after which nothing was held."),
        (Self::Refused, "tortie_agent_requests_refused_total", "Requests answered with an error."),
        (Self::Claimed, "tortie_agent_blocks_claimed_total", "Blocks claimed or repaired."),
        (Self::Conflicts, "tortie_agent_conflicts_total", "Commits that met a changed record."),
        (Self::Commits, "tortie_agent_commits_total", "Commits sent to the datastore."),
        (Self::Reads, "tortie_agent_reads_total", "Reads sent to the datastore, watches aside."),
        (
            Self::Applied,
            "tortie_agent_dataplane_applies_total",
            "Times the kernel was compared with the desired state.",
        ),
    ];
}

impl Health {
    /// Marks a part as up; answers whether it was not before.
    pub(crate) fn set_up(&self, part: Part) -> bool {
        !self.up[part as usize].swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_up(&self, part: Part) -> bool {
        self.up[part as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn set_lost(&self, lost: bool) {
        self.lost.store(lost, Ordering::Relaxed);
    }

    /// Parts that are missing; empty if the agent can serve.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let parts = Part::ALL.into_iter().filter(|part| !self.is_up(*part)).map(Part::text);
        parts.chain(self.lost.load(Ordering::Relaxed).then_some("connection to the datastore")).collect()
    }

    /// Notes whether the store is locked; answers whether it was.
    pub(crate) fn set_locked(&self, locked: bool) -> bool {
        self.locked.swap(locked, Ordering::Relaxed)
    }

    /// Whether the store is locked.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }

    pub(crate) fn set_owed(&self, releases: usize) {
        self.owed.store(releases, Ordering::Relaxed);
    }

    /// What keeps an ADD from being served now: what is missing, and the lock, with which the node itself is well.
    pub(crate) fn hindrances(&self) -> Vec<&'static str> {
        let locked = self.locked.load(Ordering::Relaxed).then_some("the datastore to be unlocked");
        self.missing().into_iter().chain(locked).collect()
    }

    /// Notes whether the store counts as away.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.send_if_modified(|known| std::mem::replace(known, away) != away);
    }

    /// Whether the store counts as away.
    pub(crate) fn is_away(&self) -> bool {
        *self.away.borrow()
    }

    /// Waits until the store counts as away.
    pub(crate) async fn until_away(&self) {
        let mut away = self.away.subscribe();
        // The sender lives as long as this.
        let _ = away.wait_for(|away| *away).await;
    }

    pub(crate) fn count(&self, what: Count) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as Prometheus reads it.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        for (count, name, help) in Count::ALL {
            let value = self.counts[count as usize].load(Ordering::Relaxed);
            // Writing to a String cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
        }
        let ready = usize::from(self.missing().is_empty());
        let owed = self.owed.load(Ordering::Relaxed);
        for (name, help, value) in [
            ("tortie_agent_ready", "1 while the node can serve requests.", ready),
            ("tortie_agent_releases_owed", "Releases that wait on this node for the datastore.", owed),
        ] {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_can_serve_when_every_part_is_up_and_the_store_answers() {
        let health = Health::default();
        assert_eq!(health.missing().len(), 4);
        for part in Part::ALL {
            assert!(health.set_up(part));
            assert!(!health.set_up(part));
        }
        assert!(health.missing().is_empty());
        health.set_lost(true);
        assert_eq!(health.missing(), ["connection to the datastore"]);
        health.set_lost(false);
        assert!(!health.set_locked(true));
        assert_eq!(health.hindrances(), ["the datastore to be unlocked"]);
        assert!(health.missing().is_empty());
    }

    #[test]
    fn metrics_are_one_help_type_and_value_each() {
        let health = Health::default();
        health.count(Count::Assigned);
        let text = health.metrics();
        assert!(text.contains("\ntortie_agent_addresses_assigned_total 1\n"));
        assert_eq!(text.lines().count(), 30);
    }
}
