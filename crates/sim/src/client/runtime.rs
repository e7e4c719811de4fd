//! Container runtimes: they ask for addresses and give them back, through the node's agent or the plugin alone.
//!
//! ```text
//!   Free ──ADD──► Adding ──► Up ──DEL──► Downing ──► Down ──► Free, with the same container id or another
//!                   └──► Failed ──DEL──────┘
//! ```
//!
//! A DEL may be sent late, again, or while its ADD is under way. From the moment a runtime decides on it, the address
//! is promised to nobody.

use crate::client::agent::Asked;
use crate::faults::{Fault, Operation};
use crate::invariants::{Judge, Leave};
use crate::peer::{Calico, Failure, Wanted};
use crate::promises::Promise;
use crate::setting::Way;
use crate::task::{Outcome, Purpose};
use crate::world::World;
use api::{IpVersion, Owner, Use};
use datastore::{Kind, Record};
use ipam::agent::{Demand, INTERFACE, Surrender};
use ipam::assign::{AssignRequest, assign};
use ipam::collect::POD_UID;
use ipam::plan::Want;
use ipam::release::release_by_handle;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was asked for yet.
    Free,
    /// An ADD is under way.
    Adding,
    /// It has its addresses.
    Up,
    /// Nobody knows what it has: a DEL is due.
    Failed,
    /// A DEL is under way, or will be sent.
    Downing,
    /// A DEL succeeded.
    Down,
    /// Its node is gone.
    Gone,
}

/// One container's attachment to the network.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Number of its node.
    pub node: usize,
    /// Handle of its addresses.
    pub handle: String,
    /// Family of its address.
    pub version: IpVersion,
    /// How far it is.
    pub phase: Phase,
    /// How often it was given up: what was asked for before that is nobody's.
    pub epoch: u32,
    /// ADDs sent and not answered.
    pub adds: u32,
    /// DELs sent and not answered.
    pub dels: u32,
    /// What it was given last, address and stamp; `None` where that is not known.
    pub given: Option<Vec<(IpAddr, u64)>>,
    /// Its pod's life: a new pod each time.
    pub life: u32,
    /// Its pods have one name, as those of a StatefulSet.
    pub same_name: bool,
    /// It is the node's own: no pod has it, and no DEL is sent for it.
    pub tunnel: bool,
}

impl Attachment {
    /// Name of its present pod.
    pub fn pod(&self, index: usize) -> String {
        if self.same_name { format!("pod-{index}") } else { format!("pod-{index}-{}", self.life) }
    }

    /// Identity of its present pod.
    pub fn uid(&self, index: usize) -> String {
        format!("uid-{index}-{}", self.life)
    }
}

impl World {
    /// Another container of a node.
    pub(crate) fn attach(&mut self, node: usize) {
        let has_v6 = self.setting.pools.iter().any(|pool| pool.cidr.version() == IpVersion::V6);
        let version = if has_v6 && self.rng.chance(1, 3) { IpVersion::V6 } else { IpVersion::V4 };
        let handle = format!("net.c{}", self.attachments.len());
        self.attachments.push(Attachment {
            node,
            handle,
            version,
            phase: Phase::Free,
            epoch: 0,
            adds: 0,
            dels: 0,
            given: None,
            life: 0,
            same_name: self.setting.same_names,
            tunnel: false,
        });
    }

    /// The address that an agent holds for its node, in worlds that have such.
    pub(crate) fn attach_tunnel(&mut self, node: usize) {
        if self.setting.tunnels && self.nodes[node].host.is_some() {
            let handle = format!("vxlan-tunnel-addr-{}", self.nodes[node].name);
            self.attach(node);
            if let Some(attachment) = self.attachments.last_mut() {
                (attachment.handle, attachment.version, attachment.tunnel) = (handle, IpVersion::V4, true);
            }
        }
    }

    /// An agent looks after its node's own address, once the node is known.
    fn ask_for_tunnel(&mut self, index: usize) {
        let name = &self.nodes[self.attachments[index].node].name;
        match self.attachments[index].phase {
            Phase::Free | Phase::Failed if self.node_names().contains(name) => self.send_add(index),
            Phase::Up if self.rng.chance(1, 4) => self.send_add(index),
            _ => {}
        }
    }

    /// Some runtime decides on something.
    pub(crate) fn ask(&mut self) {
        let index = self.rng.below(self.attachments.len());
        if self.attachments[index].tunnel {
            self.ask_for_tunnel(index);
            return;
        }
        let phase = self.attachments[index].phase;
        match phase {
            Phase::Free => self.send_add(index),
            Phase::Adding if self.has(Fault::DelEarly) && self.rng.chance(1, 3) => {
                self.met(Fault::DelEarly, Some(self.attachments[index].node));
                self.give_up(index);
                self.send_del(index);
            }
            Phase::Up if self.rng.chance(1, 12) => self.send_add(index),
            Phase::Up | Phase::Failed if self.rng.chance(2, 3) => self.decide_del(index),
            Phase::Failed => self.send_add(index),
            Phase::Down => self.reuse(index),
            _ => {}
        }
    }

    /// The container id is used again, or its place is taken by another container.
    fn reuse(&mut self, index: usize) {
        if self.rng.chance(1, 2) {
            self.attachments[index].phase = Phase::Free;
        } else if !self.delayed.iter().any(|(_, of)| *of == index) {
            let node = self.attachments[index].node;
            self.attachments[index].phase = Phase::Gone;
            self.attach(node);
        }
    }

    /// From here on nobody may count on the attachment's addresses.
    pub(crate) fn give_up(&mut self, index: usize) {
        self.promises.take_back(index);
        self.attachments[index].epoch += 1;
    }

    fn send_add(&mut self, index: usize) {
        let attachment = &mut self.attachments[index];
        let node = attachment.node;
        if attachment.phase != Phase::Up {
            // A pod whose ADD failed is tried again; what comes after a DEL is another pod.
            attachment.life += u32::from(attachment.phase == Phase::Free);
            attachment.phase = Phase::Adding;
        }
        attachment.adds += 1;
        let mut epoch = attachment.epoch;
        let name = self.nodes[node].name.clone();
        let (pod, uid) = (attachment.pod(index), attachment.uid(index));
        let handle = attachment.handle.clone();
        let version = attachment.version;
        let attributes: BTreeMap<String, String> = [
            ("node", name.as_str()),
            ("namespace", "default"),
            ("pod", &pod),
            (POD_UID, &uid),
            (INTERFACE, "eth0"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        self.trace.mix(&[20, u64::try_from(index).unwrap_or(0)]);
        let step = self.step;
        self.trace.line(|| format!("{step:>5} node-{node} ADD attachment {index} {handle}"));
        if self.nodes[node].host.is_some() {
            let demand = if self.attachments[index].tunnel {
                Demand::vxlan_tunnel(&name, Vec::new())
            } else {
                Demand::new(handle, vec![version], attributes)
            };
            self.demand(node, index, epoch, demand);
            return;
        }
        if self.setting.nodes[node] == Way::Calico {
            self.attachments[index].given = None;
            let wanted = Wanted { attributes, ..Wanted::one(&name, version, &handle) };
            let epoch =
                if attachment_is_contested(&self.attachments[index]) { epoch.wrapping_sub(1) } else { epoch };
            let purpose = Purpose::Add { attachment: index, epoch };
            self.begin(Operation::PeerAdd, Some(node), purpose, Leave::Nothing, |store, clock| async move {
                let answer = Calico { store: &store, clock: &clock }.auto_assign(&wanted).await;
                Outcome::Added(match answer.addresses.as_slice() {
                    [] => Err(answer
                        .failure
                        .map_or_else(|| "none left".to_owned(), |failure| failure.to_string())),
                    addresses => Ok(addresses.iter().map(|address| (*address, 0)).collect()),
                })
            });
            return;
        }
        if attachment_is_contested(&self.attachments[index]) {
            // Without an agent nobody orders a DEL and an ADD of one handle: what comes of it is anybody's guess.
            epoch = epoch.wrapping_sub(1);
        }
        let want = Want { count: 1, handle: Some(handle), attributes };
        let request = AssignRequest::new(Owner::host(name), version, Use::Workload, want);
        let purpose = Purpose::Add { attachment: index, epoch };
        // It may free only what it wrote itself.
        self.begin(Operation::PluginAdd, Some(node), purpose, Leave::Nothing, |store, clock| async move {
            Outcome::Added(match assign(&store, &clock, &request).await {
                Ok(assigned) if assigned.taken.is_empty() => Err("no address is left".to_owned()),
                Ok(assigned) => {
                    Ok(assigned.taken.iter().map(|taken| (taken.address, taken.sequence)).collect())
                }
                Err(error) => Err(error.to_string()),
            })
        });
    }

    /// The runtime decides that a container ends; its DEL goes out now or later.
    pub(crate) fn decide_del(&mut self, index: usize) {
        self.give_up(index);
        self.attachments[index].phase = Phase::Downing;
        if self.has(Fault::DelDelayed) && self.rng.chance(1, 3) {
            self.met(Fault::DelDelayed, Some(self.attachments[index].node));
            let at = self.step + u64::from(self.rng.between(20, 150));
            self.delayed.push((at, index));
        } else {
            self.send_del(index);
        }
    }

    /// Sends the DELs whose time has come.
    pub(crate) fn send_delayed(&mut self) {
        while let Some(place) = self.delayed.iter().position(|(at, _)| *at <= self.step) {
            let (_, index) = self.delayed.swap_remove(place);
            let phase = self.attachments[index].phase;
            if phase == Phase::Gone {
                continue;
            }
            self.give_up(index);
            if phase == Phase::Up {
                self.attachments[index].phase = Phase::Downing;
            }
            self.send_del(index);
        }
    }

    pub(crate) fn send_del(&mut self, index: usize) {
        let attachment = &mut self.attachments[index];
        let (node, handle) = (attachment.node, attachment.handle.clone());
        attachment.dels += 1;
        self.trace.mix(&[21, u64::try_from(index).unwrap_or(0)]);
        let step = self.step;
        self.trace.line(|| format!("{step:>5} node-{node} DEL attachment {index} {handle}"));
        let adds = attachment.adds;
        // As if the store could not be reached: the queue takes it at once.
        let asked = Asked { attachment: index, epoch: None };
        if self.setting.queues && self.rng.chance(1, 3) && self.queue_del(node, asked) {
            return;
        }
        if self.nodes[node].host.is_some() {
            self.surrender(node, index, Surrender { handle, interface: None, legacy_handle: None });
            return;
        }
        let leave = Leave::Handle(handle.clone());
        // What an ADD beside it writes, a DEL need not find.
        let purpose = Purpose::Del { attachment: index, alone: adds == 0 };
        if self.setting.nodes[node] == Way::Calico {
            self.begin(Operation::PeerDel, Some(node), purpose, leave, |store, clock| async move {
                let outcome = Calico { store: &store, clock: &clock }.release_by_handle(&handle).await;
                Outcome::Deleted(match outcome {
                    Ok(()) | Err(Failure::Missing(_)) => Ok(()),
                    Err(failure) => Err(failure.to_string()),
                })
            });
            return;
        }
        self.begin(Operation::PluginDel, Some(node), purpose, leave, |store, clock| async move {
            let outcome = release_by_handle(&store, &clock, &handle).await;
            Outcome::Deleted(outcome.map(drop).map_err(|error| error.to_string()))
        });
    }

    /// An ADD was answered.
    pub(crate) fn added(&mut self, index: usize, epoch: u32, result: Result<Vec<(IpAddr, u64)>, String>) {
        self.attachments[index].adds = self.attachments[index].adds.saturating_sub(1);
        let attachment = self.attachments[index].clone();
        let direct = self.nodes[attachment.node].host.is_none();
        let stands = attachment.epoch == epoch && !(direct && attachment_is_contested(&attachment));
        let step = self.step;
        self.trace.line(|| match &result {
            Ok(given) => format!("{step:>5}     attachment {index} has {given:?}"),
            Err(reason) => format!("{step:>5}     attachment {index} failed: {reason}"),
        });
        match result {
            Ok(given) if stands => {
                self.end.added += 1;
                self.attachments[index].given = Some(given.clone());
                let had: Vec<IpAddr> = self.promises.addresses_of(index).collect();
                if !direct && !had.is_empty() && given.iter().any(|(address, _)| !had.contains(address)) {
                    self.wrong(format!("9: {} has {had:?} and was told {given:?}", attachment.handle));
                }
                for (address, sequence) in given {
                    let missing = Judge::promised(&self.db(), address, &attachment.handle);
                    let promise = Promise { attachment: index, handle: attachment.handle.clone(), sequence };
                    let wrong = self.promises.give(address, promise);
                    for text in missing.into_iter().chain(wrong) {
                        self.wrong(text);
                    }
                }
                self.attachments[index].phase = Phase::Up;
            }
            _ => {
                self.end.cut_short += 1;
                self.attachments[index].given = None;
                if matches!(attachment.phase, Phase::Adding | Phase::Up) && attachment.epoch == epoch
                    || attachment.phase == Phase::Adding
                {
                    self.give_up(index);
                    self.attachments[index].phase = Phase::Failed;
                }
            }
        }
    }

    /// A DEL was answered.
    ///
    /// `alone`: it was sent after every ADD had ended, or to an agent, which keeps their order.
    pub(crate) fn deleted(&mut self, index: usize, alone: bool, result: &Result<(), String>) {
        let attachment = &mut self.attachments[index];
        attachment.dels = attachment.dels.saturating_sub(1);
        let (phase, node, handle) = (attachment.phase, attachment.node, attachment.handle.clone());
        let last = attachment.dels == 0;
        let step = self.step;
        self.trace.line(|| format!("{step:>5}     attachment {index} DEL: {result:?}"));
        if result.is_err() {
            self.end.cut_short += 1;
            if phase == Phase::Downing && last {
                self.attachments[index].phase = Phase::Failed;
            }
            return;
        }
        self.end.deleted += 1;
        if phase != Phase::Downing || !last {
            return;
        }
        if !alone {
            self.attachments[index].phase = Phase::Failed;
            return;
        }
        // A commit that takes effect late may bring back what a DEL did not find.
        if !self.setting.call_faults.contains(&Fault::Late) && !self.judge.spoilt.contains(&handle) {
            self.nothing_is_held(&handle);
        }
        self.is_down(index, node);
    }

    /// A DEL was answered by the node's queue: it will be done.
    pub(crate) fn queued(&mut self, index: usize) {
        let attachment = &mut self.attachments[index];
        attachment.dels = attachment.dels.saturating_sub(1);
        let (node, last) = (attachment.node, attachment.dels == 0);
        self.end.deleted += 1;
        if attachment.phase == Phase::Downing && last {
            self.is_down(index, node);
        }
    }

    fn is_down(&mut self, index: usize, node: usize) {
        self.attachments[index].phase = Phase::Down;
        if self.has(Fault::DelRepeated) && self.rng.chance(1, 3) {
            self.met(Fault::DelRepeated, Some(node));
            let at = self.step + u64::from(self.rng.between(1, 120));
            self.delayed.push((at, index));
        }
    }

    /// Invariant 9 for a DEL: what was answered with success is so.
    fn nothing_is_held(&mut self, handle: &str) {
        let held: Vec<String> = self
            .db()
            .all(Kind::Block)
            .filter_map(|stored| match &stored.record {
                Record::Block(block) => {
                    ipam::block::held_by(block, handle).next().map(|_| block.cidr.to_string())
                }
                _ => None,
            })
            .collect();
        if !held.is_empty() {
            self.wrong(format!("9: {handle} was deleted and holds addresses in {}", held.join(", ")));
        }
    }

    /// An ADD or DEL ended without an answer.
    pub(crate) fn in_doubt(&mut self, index: usize, del: bool) {
        self.end.cut_short += 1;
        let attachment = &mut self.attachments[index];
        attachment.given = None;
        if del {
            attachment.dels = attachment.dels.saturating_sub(1);
        } else {
            attachment.adds = attachment.adds.saturating_sub(1);
        }
        if matches!(self.attachments[index].phase, Phase::Adding | Phase::Downing | Phase::Up) {
            self.give_up(index);
            self.attachments[index].phase = Phase::Failed;
        }
    }
}

fn attachment_is_contested(attachment: &Attachment) -> bool {
    attachment.dels > 0
}
