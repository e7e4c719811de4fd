//! Virtual machines: their pods ask by one handle that may hold one address, and the address goes from pod to pod.
//!
//! A machine has a pod that runs it and one that it migrates to. Both are there as long as the machine is, so that whatever
//! comes late names a pod that is there. Nothing of this may free or move the address.

use crate::client::ask::attributes;
use crate::faults::Operation;
use crate::invariants::Leave;
use crate::port::SimStore;
use crate::task::{Outcome, Purpose};
use crate::world::World;
use ipam::Clock;
use ipam::owner_attributes::PodName;
use ipam::release::release_by_handle;
use ipam::vm;

/// What is done about a machine's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// The pod that runs it asks again.
    Reuse,
    /// The pod that it migrates to is announced.
    Announce,
    /// The machine runs there now.
    Promote,
}

fn named(pod: &str) -> PodName {
    PodName { namespace: "default".to_owned(), name: pod.to_owned() }
}

impl World {
    /// A machine that runs migrates, or begins to.
    pub(crate) fn migrate(&mut self, index: usize) {
        let deeds = [Deed::Reuse, Deed::Announce, Deed::Announce, Deed::Promote, Deed::Promote];
        let Some(deed) = self.rng.pick(&deeds) else { return };
        let attachment = self.attachments[index].clone();
        let Some(address) = self.promises.addresses_of(index).next() else { return };
        let node = attachment.node;
        let name = self.nodes[node].name.clone();
        let target = attachment.target(index);
        let mut owner = attributes(&attachment, index, &name);
        if deed != Deed::Reuse {
            owner.insert("pod".to_owned(), target.clone());
            owner.insert(ipam::collect::POD_UID.to_owned(), attachment.uid(index));
        }
        // Who names stamps to the queue has them from an answer after which nobody handed the address on.
        self.attachments[index].given = None;
        let handle = attachment.handle;
        self.trace.mix(&[22, u64::try_from(index).unwrap_or(0)]);
        let step = self.step;
        self.trace.line(|| format!("{step:>5} node-{node} machine {index} {handle}: {deed:?}"));
        let operation = Operation::MoveOwner;
        self.begin(operation, Some(node), Purpose::Errand, Leave::Nothing, move |store, clock| async move {
            Outcome::Administered(match deed {
                Deed::Reuse => vm::reuse(&store, &clock, &handle, None, &owner).await.is_ok(),
                Deed::Announce => vm::announce_target(&store, &clock, &handle, None, &owner).await.is_ok(),
                Deed::Promote => vm::promote(&store, &clock, address, &handle, &named(&target)).await.is_ok(),
            })
        });
    }
}

/// The machine is deleted: each of its pods goes, and the address with the last.
pub(super) async fn delete(
    store: &SimStore,
    clock: &impl Clock,
    handle: &str,
    pods: [&str; 2],
) -> Result<(), String> {
    for pod in pods {
        vm::forget(store, clock, handle, &named(pod), true).await.map_err(|error| error.to_string())?;
    }
    // Whoever announced a pod meanwhile has left an owner.
    release_by_handle(store, clock, handle).await.map(drop).map_err(|error| error.to_string())
}
