//! What a handle holds beside what its ADDs were told: after undisturbed work nothing.
//!
//! Whoever loses an answer or dies may leave something behind that a DEL or the collector finds. Where nothing befell, an
//! ADD that failed has left nothing, of one family as of both, and one that was answered holds what it was told.

use crate::client::runtime::{Attachment, Phase};
use crate::setting::Way;
use crate::world::World;
use api::Cidr;
use datastore::{Kind, Record};
use ipam::block;
use std::net::IpAddr;

impl World {
    /// A fault befell something that attachments of a node have asked for.
    pub(crate) fn spoil_node(&mut self, node: usize) {
        for attachment in self.attachments.iter_mut().filter(|attachment| attachment.node == node) {
            attachment.clean = false;
        }
    }

    /// The agent of a node gave up work of its own for a handle, or left it as it was.
    pub(crate) fn spoil_handle(&mut self, node: usize, handle: &str) {
        let of_node = self.attachments.iter_mut().filter(|attachment| attachment.node == node);
        for attachment in of_node.filter(|attachment| attachment.handle == handle) {
            attachment.clean = false;
        }
    }

    /// Addresses that an attachment holds.
    fn held_by(&self, attachment: &Attachment) -> Vec<IpAddr> {
        let mut held = Vec::new();
        for stored in self.db().all(Kind::Block) {
            if let Record::Block(block) = &stored.record {
                let own = block::allocated(block).filter(|(_, attribute)| attachment.holds(attribute));
                held.extend(own.filter_map(|(ordinal, _)| block.cidr.address(ordinal)));
            }
        }
        held
    }

    /// Judges an answer by what was asked for.
    pub(crate) fn is_what_was_asked_for(&mut self, index: usize, given: &[(IpAddr, u64)]) {
        let attachment = &self.attachments[index];
        let given: Vec<IpAddr> = given.iter().map(|(address, _)| *address).collect();
        let node = attachment.node;
        let selected = |address: &IpAddr| {
            let pool = self.setting.pools.iter().find(|pool| pool.cidr.contains(*address));
            pool.and_then(|pool| attachment.wish.is_not_for(pool, &self.nodes[node].zones))
        };
        let wrong = attachment.wish.is_not(&given);
        // Calico's selections are its own, and so is what a node holds for itself.
        let ours = self.setting.nodes[node] != Way::Calico && !attachment.tunnel;
        let wrong = wrong.or_else(|| {
            let wrong = ours.then(|| given.iter().find_map(selected)).flatten();
            wrong.map(str::to_owned)
        });
        if let Some(wrong) = wrong {
            let handle = attachment.handle.clone();
            self.wrong(format!("0: {handle} was told {given:?}, which is not what was asked for: {wrong}"));
        }
    }

    /// Invariant 9 for a DEL: what was answered with success is so. From then on it is judged anew what comes of its ADDs.
    pub(crate) fn nothing_is_held(&mut self, index: usize) {
        let held = self.held_by(&self.attachments[index]);
        if !held.is_empty() {
            let handle = self.attachments[index].handle.clone();
            self.wrong(format!("9: {handle} was deleted and holds {held:?}"));
        } else if self.attachments[index].adds == 0 {
            self.attachments[index].clean = true;
            self.attachments[index].told.clear();
        }
    }

    /// An ADD of a plugin alone was answered.
    pub(crate) fn plugin_holds_what_it_was_told(&mut self, index: usize) {
        let attachment = &self.attachments[index];
        if self.is_judged(index) && self.setting.nodes[attachment.node] == Way::Direct {
            let held = self.held_by(attachment);
            self.holds_what_it_was_told(index, &held);
        }
    }

    /// The agent of a node has nothing more to do.
    pub(crate) fn node_holds_what_it_was_told(&mut self, node: usize) {
        if self.tasks.iter().any(|task| task.node == Some(node)) {
            return;
        }
        let mut held: Vec<(usize, Vec<IpAddr>)> = Vec::new();
        for index in 0..self.attachments.len() {
            if self.attachments[index].node == node && self.is_judged(index) {
                held.push((index, Vec::new()));
            }
        }
        if held.is_empty() {
            return;
        }
        {
            let db = self.db();
            for stored in db.all(Kind::Block) {
                let Record::Block(block) = &stored.record else { continue };
                for (ordinal, attribute) in block::allocated(block) {
                    let holder = held.iter_mut().find(|(index, _)| self.attachments[*index].holds(attribute));
                    if let Some((_, addresses)) = holder {
                        addresses.extend(block.cidr.address(ordinal));
                    }
                }
            }
        }
        for (index, held) in held {
            self.holds_what_it_was_told(index, &held);
        }
    }

    /// Whether nothing befell what was asked for an attachment, and all of it was answered.
    fn is_judged(&self, index: usize) -> bool {
        let attachment = &self.attachments[index];
        attachment.clean
            && !attachment.tunnel
            && (attachment.adds, attachment.dels) == (0, 0)
            && matches!(attachment.phase, Phase::Up | Phase::Failed)
            && !self.judge.spoilt.contains(&attachment.handle)
            && self.db().late() == 0
    }

    fn holds_what_it_was_told(&mut self, index: usize, held: &[IpAddr]) {
        let attachment = &self.attachments[index];
        let untold: Vec<Cidr> = held
            .iter()
            .filter(|address| !attachment.told.contains(address))
            .map(|address| Cidr::from(*address))
            .collect();
        if !untold.is_empty() {
            let (handle, phase) = (attachment.handle.clone(), attachment.phase);
            self.wrong(format!(
                "8: {handle} ({phase:?}) holds {untold:?}, of which nobody was told although nothing befell it"
            ));
        }
    }
}
