//! After an execution: crashes stop, everything is asked back, the collector runs, and nothing may be left.

use super::actors::{Operation, later, pass_of};
use super::{Execution, connect};
use crate::port::{Port, Verdict};
use datastore::{Kind, Record};
use ipam::collect::Collector;
use ipam::release::release_by_handle;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Calls of one errand at most: it has the store for itself.
const CALLS: usize = 1_000;

impl Execution {
    /// Repairs, and adds to what is wrong whatever is left.
    pub(super) fn repair(&mut self) {
        let actor = self.actors.len() + 1;
        // Whoever was killed is asked back by its runtime, and so is what was promised.
        // Beside a collector at work nobody is: whatever is left is left to it.
        let has =
            |operation: fn(&Operation) -> bool| self.actors.iter().any(|actor| operation(&actor.operation));
        let joined = has(|operation| matches!(operation, Operation::Join(..)));
        let collected = has(|operation| matches!(operation, Operation::Collect)) && !joined;
        if !collected {
            for handle in self.handles.clone() {
                let (store, port) = connect(&self.db);
                let clock = later(actor, 7_200);
                let done = alone(&port, async { release_by_handle(&store, &clock, &handle).await.is_ok() });
                if done != Some(true) {
                    self.wrong.push(format!("8: {handle} cannot be released"));
                }
            }
        }
        let mut collector = Collector::default();
        for pass in 0..6 {
            let (store, port) = connect(&self.db);
            let clock = later(actor, 10_000 + 3_600 * pass);
            let pods = BTreeSet::new();
            if alone(&port, pass_of(&store, &mut collector, &clock, &pods)) != Some(true) {
                self.wrong.push("8: the collector fails".to_owned());
            }
        }
        let mut left = Vec::new();
        {
            let db = self.db();
            left.extend(db.all(Kind::Handle).map(|stored| format!("8: {} is left", stored.record.key())));
            for stored in db.all(Kind::Block) {
                if let Record::Block(block) = &stored.record
                    && (block.affinity.is_none() || block.allocations.iter().any(Option::is_some))
                {
                    left.push(format!("8: left: {:?}", stored.record));
                }
            }
            for stored in db.all(Kind::Affinity) {
                let Record::Affinity(affinity) = &stored.record else { continue };
                let block = db.peek(&datastore::Key::Block(affinity.cidr));
                let owned = block.is_some_and(|stored| {
                    matches!(&stored.record, Record::Block(block) if block.affinity.as_ref() == Some(&affinity.owner))
                });
                if !owned {
                    left.push(format!("8: {} without its block is left", stored.record.key()));
                }
            }
        }
        self.wrong.append(&mut left);
    }
}

/// Runs an errand that has the store for itself. `None`: it does not end.
fn alone<T>(port: &Port, errand: impl Future<Output = T>) -> Option<T> {
    let mut errand = pin!(errand);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..CALLS {
        if let Poll::Ready(done) = errand.as_mut().poll(&mut context) {
            return Some(done);
        }
        port.grant(0, Verdict::Proceed)?;
    }
    None
}
