//! How soon each agent serves again after a fault: a container attached after it, at every agent.

use crate::PATIENCE;
use crate::load::Load;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Attaches one container at every agent, and detaches it again. Answers how long after `since` each ADD was answered; all of
/// them began after it.
///
/// # Panics
/// If one is not answered within [`PATIENCE`].
pub(crate) fn all(sockets: &[PathBuf], round: usize, since: Instant, load: &Load) -> Vec<Duration> {
    std::thread::scope(|scope| {
        let probes: Vec<_> = sockets
            .iter()
            .enumerate()
            .map(|(at, socket)| {
                scope.spawn(move || {
                    let container = format!("probe{round}-{at}");
                    let address = loop {
                        if let Some(address) = load.ledger.add(socket, &container) {
                            break address;
                        }
                        assert!(since.elapsed() < PATIENCE, "agent {at} does not serve after fault {round}");
                        std::thread::sleep(Duration::from_millis(20));
                    };
                    let resumed = since.elapsed();
                    load.ledger.del(socket, &container, Some(address));
                    resumed
                })
            })
            .collect();
        probes.into_iter().map(|probe| probe.join().unwrap()).collect()
    })
}
