//! Container runtimes: what becomes of their attachments to the network, by the answers that they get.
//!
//! ```text
//!   Free ──ADD──► Adding ──► Up ──DEL──► Downing ──► Down ──► Free, with the same container id or another
//!                   └──► Failed ──DEL──────┘
//! ```
//!
//! A DEL may be sent late, again, or while its ADD is under way. From the moment a runtime decides on it, the address
//! is promised to nobody.

use crate::faults::Fault;
use crate::invariants::Judge;
use crate::promises::Promise;
use crate::setting::Way;
use crate::wish::{Breadth, Wish};
use crate::world::World;
use api::{Attribute, IpVersion};
use ipam::agent::INTERFACE;
use ipam::block;
use std::collections::BTreeSet;
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
    /// What it asks for.
    pub wish: Wish,
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
    /// What its ADDs were told since it was last known to hold nothing.
    pub told: BTreeSet<IpAddr>,
    /// Nothing befell what was asked for it since then.
    pub clean: bool,
}

impl Attachment {
    /// Whether a DEL is under way, so that without an agent nobody says what comes of an ADD.
    pub(crate) fn is_contested(&self) -> bool {
        self.dels > 0
    }

    /// Its interface.
    pub(crate) fn interface(&self) -> &str {
        self.wish.interface.unwrap_or("eth0")
    }

    /// Whether an allocation is its own.
    pub(crate) fn holds(&self, held: &Attribute) -> bool {
        held.released_at.is_none()
            && held.handle_id.as_deref().map(block::sanitized) == Some(self.handle.as_str())
            && self
                .wish
                .interface
                .is_none_or(|mine| held.secondary.get(INTERFACE).is_none_or(|interface| interface == mine))
    }

    /// Name of its present pod.
    pub fn pod(&self, index: usize) -> String {
        if self.same_name { format!("pod-{index}") } else { format!("pod-{index}-{}", self.life) }
    }

    /// Identity of its present pod.
    pub fn uid(&self, index: usize) -> String {
        let life = if self.is_machine() { 0 } else { self.life };
        format!("uid-{index}-{life}")
    }

    /// Whether it is a virtual machine's, whose pods share one address.
    pub fn is_machine(&self) -> bool {
        self.wish.cap > 0
    }

    /// Name of the pod that its machine migrates to.
    pub(crate) fn target(&self, index: usize) -> String {
        format!("{}-target", self.pod(index))
    }
}

impl World {
    /// The containers of a node that is new, and what it holds for itself.
    pub(crate) fn attach_containers(&mut self, node: usize) {
        for _ in 0..self.setting.containers {
            self.attach(node);
            if self.setting.breadth.contains(&Breadth::Interfaces)
                && self.nodes[node].host.is_some()
                && self.rng.chance(1, 2)
            {
                self.attach_second(node);
            }
        }
        self.attach_tunnel(node);
    }

    /// Another container of a node.
    pub(crate) fn attach(&mut self, node: usize) {
        let has_v6 = self.setting.pools.iter().any(|pool| pool.cidr.version() == IpVersion::V6);
        let version = if has_v6 && self.rng.chance(1, 3) { IpVersion::V6 } else { IpVersion::V4 };
        let mut wish = match self.setting.breadth.as_slice() {
            _ if self.setting.nodes[node] == Way::Calico => Wish::one(version),
            [] => Wish::one(version),
            breadth => Wish::draw(&mut self.rng, breadth, &self.setting.pools, version),
        };
        if self.setting.kept_by(node).is_some() && wish.address.is_some() {
            wish = Wish::one(version);
        }
        let number = self.attachments.len();
        let is_machine = wish.cap > 0;
        let handle = if is_machine { format!("net.vmi.default.m{number}") } else { format!("net.c{number}") };
        if is_machine {
            self.judge.capped.insert(handle.clone());
        }
        if wish.address.is_some() {
            self.judge.may_be_reserved.insert(handle.clone());
        }
        self.attachments.push(Attachment {
            node,
            handle,
            wish,
            phase: Phase::Free,
            epoch: 0,
            adds: 0,
            dels: 0,
            given: None,
            life: 0,
            same_name: self.setting.same_names || is_machine,
            tunnel: false,
            told: BTreeSet::new(),
            clean: true,
        });
    }

    /// Another interface of the container that came last.
    fn attach_second(&mut self, node: usize) {
        self.attach(node);
        let second = self.attachments.len() - 1;
        let handle = self.attachments[second - 1].handle.clone();
        if self.attachments[second].is_machine() || self.attachments[second - 1].is_machine() {
            return;
        }
        self.attachments[second - 1].wish.interface = Some("eth0");
        if self.attachments[second].wish.address.is_some() {
            self.judge.may_be_reserved.insert(handle.clone());
        }
        self.attachments[second].wish.interface = Some("net1");
        self.attachments[second].handle = handle;
    }

    /// The address that an agent holds for its node, in worlds that have such.
    pub(crate) fn attach_tunnel(&mut self, node: usize) {
        if self.setting.tunnels && self.nodes[node].host.is_some() {
            let handle = format!("vxlan-tunnel-addr-{}", self.nodes[node].name);
            self.attach(node);
            if let Some(attachment) = self.attachments.last_mut() {
                let wish = Wish::one(IpVersion::V4);
                (attachment.handle, attachment.wish, attachment.tunnel) = (handle, wish, true);
            }
        }
    }

    /// From here on nobody may count on the attachment's addresses.
    pub(crate) fn give_up(&mut self, index: usize) {
        self.promises.take_back(index);
        self.attachments[index].epoch += 1;
    }

    /// An ADD was answered.
    pub(crate) fn added(&mut self, index: usize, epoch: u32, result: Result<Vec<(IpAddr, u64)>, String>) {
        self.attachments[index].adds = self.attachments[index].adds.saturating_sub(1);
        let attachment = self.attachments[index].clone();
        let direct = self.nodes[attachment.node].host.is_none();
        let judged = direct && attachment.epoch == epoch;
        let stands = attachment.epoch == epoch && !(direct && attachment.is_contested());
        let step = self.step;
        self.trace.line(|| match &result {
            Ok(given) => format!("{step:>5}     attachment {index} has {given:?}"),
            Err(reason) => format!("{step:>5}     attachment {index} failed: {reason}"),
        });
        if let Ok(given) = &result {
            self.attachments[index].told.extend(given.iter().map(|(address, _)| *address));
        }
        match result {
            Ok(given) if stands => {
                self.end.added += 1;
                self.attachments[index].given = Some(given.clone());
                self.is_what_was_asked_for(index, &given);
                let had: Vec<IpAddr> = self.promises.addresses_of(index).collect();
                if !direct && !had.is_empty() && given.iter().any(|(address, _)| !had.contains(address)) {
                    self.wrong(format!("9: {} has {had:?} and was told {given:?}", attachment.handle));
                }
                for (address, sequence) in given {
                    // A machine's address that is handed on meanwhile has another stamp than its ADD is told.
                    let stamp = if attachment.is_machine() { 0 } else { sequence };
                    let (block, missing) =
                        match Judge::promised(&self.db(), address, &attachment.handle, stamp) {
                            Ok(block) => (Some(block), None),
                            Err(missing) => (None, Some(missing)),
                        };
                    let promise =
                        Promise { attachment: index, handle: attachment.handle.clone(), block, sequence };
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
        if judged {
            self.plugin_holds_what_it_was_told(index);
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
            self.nothing_is_held(index);
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

    /// An ADD or DEL ended without an answer.
    pub(crate) fn in_doubt(&mut self, index: usize, del: bool) {
        self.end.cut_short += 1;
        let attachment = &mut self.attachments[index];
        attachment.given = None;
        attachment.clean = false;
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
