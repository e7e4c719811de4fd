//! The end of a simulation: faults stop, everything is asked back, and nothing may be left (invariant 8).

use crate::client::runtime::Phase;
use crate::invariants::is_kept;
use crate::world::World;
use datastore::{Key, Kind, Record};

/// Steps within which what is under way must come to its end.
const PATIENCE: u64 = 20_000;

/// Passes of the collector at the end, each later than the grace period and the cooldown of what the one before freed.
const PASSES: usize = 6;

/// Times that everything is asked back.
const ROUNDS: usize = 20;

impl World {
    /// Lets everything come to its end without further faults.
    pub(crate) fn come_to_rest(&mut self) {
        if !self.end.broken.is_empty() {
            return;
        }
        self.faults = false;
        let step = self.step;
        self.trace.line(|| format!("{step:>5} faults stop"));
        for node in &self.nodes {
            node.clock.correct();
        }
        for task in &mut self.tasks {
            task.held_until = 0;
        }
        for _ in 0..ROUNDS {
            if !self.settle() {
                return;
            }
            if !self.ask_back() {
                break;
            }
        }
        self.keep_node_records();
        // What nobody asks for any more, the collector finds: suspected in one pass, judged in a later one.
        for _ in 0..PASSES {
            self.time.advance(200_000);
            self.begin_pass(true);
            if !self.settle() {
                return;
            }
        }
        self.nothing_is_left();
    }

    /// Goes on until nothing is under way. False: something is broken.
    fn settle(&mut self) -> bool {
        let until = self.step + PATIENCE;
        while !self.is_quiet() {
            if self.step >= until {
                let tasks = self.tasks.iter().map(crate::world::who);
                let hosts = self.nodes.iter().filter_map(|node| node.host.as_ref()?.restless(&node.name));
                let held = tasks.chain(hosts).chain(self.pending()).collect::<Vec<_>>().join("; ");
                self.wrong(format!("8: the world does not come to rest; under way: {held}"));
            }
            if !self.end.broken.is_empty() {
                return false;
            }
            self.advance();
        }
        self.end.broken.is_empty()
    }

    /// What keeps the world from being quiet besides tasks and agents' requests.
    fn pending(&self) -> Vec<String> {
        let db = self.db();
        let mut held = Vec::new();
        if !self.collector_is_quiet() {
            held.push("the collector has more to do".to_owned());
        }
        if db.late() > 0 {
            held.push(format!("{} commits on their way", db.late()));
        }
        if !self.delayed.is_empty() {
            held.push(format!("{} DELs held back", self.delayed.len()));
        }
        held.extend(self.nodes.iter().filter_map(|node| node.host.as_ref()?.unheard(&node.name, &db)));
        held
    }

    /// Sends a DEL for everything that may hold something. False: nothing does.
    fn ask_back(&mut self) -> bool {
        let mut asked = false;
        for index in 0..self.attachments.len() {
            let attachment = &self.attachments[index];
            // A node that came back may not have asked for the address that it has from before.
            let kept = attachment.tunnel && attachment.phase == Phase::Free;
            if kept || matches!(attachment.phase, Phase::Up | Phase::Failed | Phase::Adding | Phase::Downing)
            {
                self.give_up(index);
                self.attachments[index].phase = Phase::Downing;
                self.send_del(index);
                asked = true;
            }
        }
        asked
    }

    fn nothing_is_left(&mut self) {
        let mut wrong = Vec::new();
        {
            let db = self.db();
            for stored in db.all(Kind::Handle) {
                wrong.push(format!("8: {} is left", stored.record.key()));
            }
            for stored in db.all(Kind::Block) {
                if let Record::Block(block) = &stored.record
                    && block.affinity.is_none()
                    && ipam::block::is_empty(block)
                {
                    wrong.push(format!("8: block {} is nobody's, empty, and left", block.cidr));
                }
                if let Record::Block(block) = &stored.record
                    && ipam::block::allocated(block)
                        .any(|(_, held)| held.released_at.is_none() && !is_kept(held))
                {
                    wrong.push(format!(
                        "8: block {} holds {}",
                        block.cidr,
                        crate::trace::shown(&stored.record)
                    ));
                }
            }
            for stored in db.all(Kind::Affinity) {
                let Record::Affinity(affinity) = &stored.record else { continue };
                let block = db.peek(&Key::Block(affinity.cidr));
                let owner = block.and_then(|stored| match &stored.record {
                    Record::Block(block) => block.affinity.clone(),
                    _ => None,
                });
                if owner.as_ref() != Some(&affinity.owner) {
                    wrong.push(format!("8: {} is left without its block", stored.record.key()));
                }
            }
            let standing = |cidr| db.peek(&Key::Block(cidr)).is_some();
            for (one, other) in self.judge.overlapping() {
                if standing(*one) && standing(*other) {
                    wrong.push(format!("4: blocks {one} and {other} overlap at rest"));
                }
            }
        }
        if !self.promises.is_empty() {
            wrong.push("9: promises stand although everything was asked back".to_owned());
        }
        for text in wrong {
            self.wrong(text);
        }
    }
}
