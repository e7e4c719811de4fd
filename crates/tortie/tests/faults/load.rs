//! Runtimes that attach and detach containers at every agent, and remember what they were told.

use crate::{AGENTS, PATIENCE};
use api::attachment::{AddRequest, Attachment, DelRequest};
use cni::agent::Agent;
use cni::error::{CniError, code};
use cni::server::Server;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Name of the network, first part of every handle.
const NETWORK: &str = "net";

/// Runtimes at each agent.
const RUNTIMES: usize = 2;

/// Containers that one runtime keeps at most.
const KEPT: usize = 24;

/// Time between two requests of a runtime: the store shall be busy, and the machine not drown.
const PACE: Duration = Duration::from_millis(4);

/// What all runtimes and probes know together.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Who was told that an address is theirs, until they give it back.
    given: Mutex<BTreeMap<IpAddr, String>>,
    wrong: Mutex<Vec<String>>,
    added: AtomicU64,
    deleted: AtomicU64,
    refused: AtomicU64,
}

/// What came of it all.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Handles of the containers that are left, each with its address.
    pub(crate) held: BTreeMap<String, IpAddr>,
    pub(crate) added: u64,
    pub(crate) deleted: u64,
    /// Requests that were told to try again.
    pub(crate) refused: u64,
}

/// The handle under which a container's addresses stand.
pub(crate) fn handle(container: &str) -> String {
    format!("{NETWORK}.{container}")
}

fn attachment(container: &str) -> Attachment {
    Attachment { network: NETWORK.to_owned(), container: container.to_owned(), interface: "eth0".to_owned() }
}

impl Ledger {
    fn wrong(&self, line: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn given(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, String>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, error: &CniError, what: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if error.code != code::TRY_AGAIN {
            self.wrong(format!("9: {what} was refused for good: {} {}", error.code, error.msg));
        }
    }

    /// One ADD; `None`: it was told to try again.
    pub(crate) fn add(&self, socket: &Path, container: &str) -> Option<IpAddr> {
        let request = AddRequest {
            attachment: attachment(container),
            ipv4: 1,
            ipv6: 0,
            ipv4_pools: Vec::new(),
            ipv6_pools: Vec::new(),
            requested: None,
            attributes: [("pod", container), ("namespace", "default")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            namespace: Some("default".to_owned()),
        };
        match Server::Agent(Agent::at(socket.to_owned())).add(&request) {
            Ok(reply) => {
                self.added.fetch_add(1, Ordering::Relaxed);
                let address = reply.addresses[0].split('/').next().unwrap().parse().unwrap();
                let before = self.given().insert(address, container.to_owned());
                if let Some(other) = before.filter(|other| other != container) {
                    self.wrong(format!("1: {address} was given to {container} and is {other}'s"));
                }
                Some(address)
            }
            Err(error) => {
                self.refused(&error, &format!("ADD of {container}"));
                None
            }
        }
    }

    /// One DEL; false: it was told to try again.
    pub(crate) fn try_del(&self, socket: &Path, container: &str) -> bool {
        let request = DelRequest { attachment: attachment(container), legacy_handle: None };
        match Server::Agent(Agent::at(socket.to_owned())).del(&request) {
            Ok(()) => true,
            Err(error) => {
                self.refused(&error, &format!("DEL of {container}"));
                false
            }
        }
    }

    /// What was answered that must not be.
    pub(crate) fn complaints(&self) -> String {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// DELs until one is answered with success. From the first on the address may be another's.
    pub(crate) fn del(&self, socket: &Path, container: &str, held: Option<IpAddr>) {
        if let Some(address) = held {
            self.given().remove(&address);
        }
        let since = Instant::now();
        while !self.try_del(socket, container) {
            if since.elapsed() > PATIENCE {
                self.wrong(format!("no DEL of {container} was answered in {PATIENCE:?}"));
                return;
            }
            std::thread::sleep(PACE);
        }
        self.deleted.fetch_add(1, Ordering::Relaxed);
    }
}

/// The runtimes at work.
pub(crate) struct Load {
    pub(crate) ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    /// Requests of each agent's runtimes that were answered with success.
    served: Arc<[AtomicU64; AGENTS]>,
    runtimes: Vec<JoinHandle<BTreeMap<String, IpAddr>>>,
}

impl Load {
    pub(crate) fn start(sockets: &[PathBuf]) -> Self {
        let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
        let served: Arc<[AtomicU64; AGENTS]> = Arc::default();
        let runtimes = (0..AGENTS * RUNTIMES)
            .map(|number| {
                let (ledger, stop) = (Arc::clone(&ledger), Arc::clone(&stop));
                let (socket, served) = (sockets[number % AGENTS].clone(), Arc::clone(&served));
                std::thread::spawn(move || runtime(number, &socket, &ledger, &stop, &served[number % AGENTS]))
            })
            .collect();
        Self { ledger, stop, served, runtimes }
    }

    /// How many requests of each agent's runtimes were answered with success so far.
    pub(crate) fn served(&self) -> Vec<u64> {
        self.served.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every agent has answered more than `before` to its runtimes.
    ///
    /// # Panics
    /// If one does not.
    pub(crate) fn goes_on(&self, before: &[u64]) {
        let since = Instant::now();
        while self.served().iter().zip(before).any(|(now, before)| now <= before) {
            assert!(since.elapsed() < PATIENCE, "the load stands: {:?}, before {before:?}", self.served());
            std::thread::sleep(PACE);
        }
    }

    /// Lets every runtime finish what it has begun.
    pub(crate) fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let held = self.runtimes.into_iter().flat_map(|runtime| runtime.join().unwrap());
        let held = held.map(|(container, address)| (handle(&container), address)).collect();
        let wrong = self.ledger.complaints();
        assert!(wrong.is_empty(), "{wrong}");
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (added, deleted) = (count(&self.ledger.added), count(&self.ledger.deleted));
        Outcome { held, added, deleted, refused: count(&self.ledger.refused) }
    }
}

/// One runtime: it attaches, asks again now and then, and detaches in no order. What it could not attach it detaches.
fn runtime(
    number: usize,
    socket: &Path,
    ledger: &Ledger,
    stop: &AtomicBool,
    served: &AtomicU64,
) -> BTreeMap<String, IpAddr> {
    let mut held: BTreeMap<String, IpAddr> = BTreeMap::new();
    let mut draw = number as u64 + 1;
    let mut roll = |sides: usize| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(draw >> 33).unwrap_or(0) % sides
    };
    let mut made = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PACE);
        if held.len() < KEPT && roll(5) < 3 {
            made += 1;
            let container = format!("c{number}-{made}");
            let mut address = ledger.add(socket, &container);
            if address.is_none() && roll(2) == 0 {
                // Some runtimes ask again for the same container.
                address = ledger.add(socket, &container);
            }
            match address {
                Some(address) => {
                    served.fetch_add(1, Ordering::Relaxed);
                    held.insert(container, address);
                }
                None => ledger.del(socket, &container, None),
            }
        } else if let Some((container, address)) = held.iter().nth(roll(KEPT)) {
            let (container, address) = (container.clone(), *address);
            if roll(4) == 0 {
                let again = ledger.add(socket, &container);
                if again.is_some_and(|again| again != address) {
                    ledger.wrong(format!("9: {container} has {address} and was told {again:?}"));
                }
            } else {
                held.remove(&container);
                ledger.del(socket, &container, Some(address));
                served.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    held
}
