//! What runtimes ask for, and by which way: through the node's agent, by the plugin alone, or through a peer.

use crate::client::agent::Asked;
use crate::client::machines::delete;
use crate::client::runtime::{Attachment, Phase};
use crate::faults::{Fault, Operation};
use crate::invariants::Leave;
use crate::peer::{Calico, Failure, Wanted};
use crate::port::SimStore;
use crate::setting::Way;
use crate::task::{Outcome, Purpose};
use crate::wish::{TEAM, Wish};
use crate::world::World;
use api::{Cidr, IpVersion, Owner, Use};
use datastore::{Kind, Record};
use ipam::Clock;
use ipam::agent::{Demand, INTERFACE, Surrender};
use ipam::assign::{AssignRequest, assign};
use ipam::assign_address::assign_address;
use ipam::block::{Release, Taken};
use ipam::collect::POD_UID;
use ipam::dual_stack::assign_both;
use ipam::plan::{AddressRequest, Want};
use ipam::release::{release_addresses, release_by_handle_in};
use std::collections::BTreeMap;
use std::net::IpAddr;

impl World {
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
            Phase::Up if self.attachments[index].is_machine() && self.rng.chance(2, 3) => {
                self.migrate(index);
            }
            Phase::Up if self.rng.chance(1, 12) => self.send_add(index),
            Phase::Up | Phase::Failed if self.rng.chance(2, 3) => self.decide_del(index),
            Phase::Failed => self.send_add(index),
            Phase::Down => self.reuse(index),
            _ => {}
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

    fn send_add(&mut self, index: usize) {
        let attachment = &mut self.attachments[index];
        let node = attachment.node;
        if attachment.phase != Phase::Up {
            // A pod whose ADD failed is tried again; what comes after a DEL is another pod.
            attachment.life += u32::from(attachment.phase == Phase::Free);
            attachment.phase = Phase::Adding;
        }
        attachment.adds += 1;
        for task in &mut self.tasks {
            if let Purpose::Del { attachment, alone } = &mut task.purpose {
                *alone &= *attachment != index;
            }
        }
        let attachment = &self.attachments[index];
        let mut epoch = attachment.epoch;
        let attachment = attachment.clone();
        let name = self.nodes[node].name.clone();
        let attributes = attributes(&attachment, index, &name);
        let handle = attachment.handle.clone();
        self.trace.mix(&[20, u64::try_from(index).unwrap_or(0)]);
        let step = self.step;
        self.trace.line(|| format!("{step:>5} node-{node} ADD attachment {index} {handle}"));
        if self.nodes[node].host.is_some() {
            let demand = if attachment.tunnel {
                Demand::vxlan_tunnel(&name, Vec::new())
            } else {
                let wish = &attachment.wish;
                Demand {
                    pools: wish.pools.iter().map(ToString::to_string).collect(),
                    requested: wish.address,
                    namespace_labels: namespace_labels(wish),
                    reserved: self.setting.kept_by(node),
                    max_per_handle: wish.cap,
                    ..Demand::new(handle, wish.versions.clone(), attributes)
                }
            };
            self.demand(node, index, epoch, demand);
            return;
        }
        if attachment.is_contested() {
            // Without an agent nobody orders a DEL and an ADD of one handle: what comes of it is anybody's guess.
            epoch = epoch.wrapping_sub(1);
            self.attachments[index].clean = false;
        }
        let purpose = Purpose::Add { attachment: index, epoch };
        // It may free only what it wrote itself.
        let leave = Leave::Nothing;
        if self.setting.nodes[node] == Way::Calico {
            self.attachments[index].given = None;
            let wanted = Wanted { attributes, ..Wanted::one(&name, attachment.wish.version(), &handle) };
            self.begin(Operation::PeerAdd, Some(node), purpose, leave, |store, clock| async move {
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
        if let Some(address) = attachment.wish.address {
            let request = AddressRequest::new(Owner::host(name), address, Some(&handle));
            let request = AddressRequest { intended_use: Some(Use::Workload), attributes, ..request };
            self.begin(Operation::PluginExact, Some(node), purpose, leave, |store, clock| async move {
                let assigned = assign_address(&store, &clock, &request).await;
                Outcome::Added(
                    assigned.map(|assigned| told(&assigned.taken)).map_err(|error| error.to_string()),
                )
            });
            return;
        }
        let kept = self.setting.kept_by(node);
        let mut requests = requests(&attachment.wish, &name, &handle, &attributes);
        for request in &mut requests {
            request.host_reserved = kept.clone();
        }
        match (requests.pop(), requests.pop()) {
            (Some(second), Some(first)) => {
                self.begin(Operation::PluginBoth, Some(node), purpose, leave, |store, clock| async move {
                    let both = assign_both(&store, &clock, &first, &second).await;
                    Outcome::Added(match both {
                        Ok(both) => Ok(told(both.first.taken.iter().chain(&both.second.taken))),
                        Err(refused) => Err(refused.to_string()),
                    })
                });
            }
            (Some(request), None) => {
                self.begin(Operation::PluginAdd, Some(node), purpose, leave, |store, clock| async move {
                    Outcome::Added(as_many_as_wanted(&store, &clock, &request).await)
                });
            }
            (None, _) => {}
        }
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
        let attachment = attachment.clone();
        // As if the store could not be reached: the queue takes it at once.
        let asked = Asked { attachment: index, epoch: None };
        if self.setting.queues && self.rng.chance(1, 3) && self.queue_del(node, asked) {
            return;
        }
        if self.nodes[node].host.is_some() {
            let interface = attachment.wish.interface.map(str::to_owned);
            self.surrender(node, index, Surrender { handle, interface, legacy_handle: None });
            return;
        }
        let leave = Leave::Handle(handle.clone());
        // What an ADD beside it writes, a DEL need not find.
        let purpose = Purpose::Del { attachment: index, alone: adds == 0 };
        if adds > 0 {
            self.attachments[index].clean = false;
        }
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
        if attachment.is_machine() {
            let pods = [attachment.pod(index), attachment.target(index)];
            self.begin(Operation::PluginDel, Some(node), purpose, leave, |store, clock| async move {
                Outcome::Deleted(delete(&store, &clock, &handle, pods.each_ref().map(String::as_str)).await)
            });
            return;
        }
        let blocks = self.blocks_of(&attachment);
        self.begin(Operation::PluginDel, Some(node), purpose, leave, |store, clock| async move {
            let outcome = release_by_handle_in(&store, &clock, &handle, &blocks).await;
            Outcome::Deleted(outcome.map(drop).map_err(|error| error.to_string()))
        });
    }
}

impl World {
    /// The blocks of what an attachment was given last: the runtime tells its DEL of the addresses that it knows.
    fn blocks_of(&self, attachment: &Attachment) -> Vec<Cidr> {
        let given: Vec<IpAddr> = attachment.given.iter().flatten().map(|(address, _)| *address).collect();
        let db = self.db();
        let blocks = db.all(Kind::Block).filter_map(|stored| match &stored.record {
            Record::Block(block) => Some(block.cidr),
            _ => None,
        });
        blocks.filter(|cidr| given.iter().any(|address| cidr.contains(*address))).collect()
    }
}

pub(super) fn attributes(attachment: &Attachment, index: usize, node: &str) -> BTreeMap<String, String> {
    let (pod, uid) = (attachment.pod(index), attachment.uid(index));
    [
        ("node", node),
        ("namespace", "default"),
        ("pod", &pod),
        (POD_UID, &uid),
        (INTERFACE, attachment.interface()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn namespace_labels(wish: &Wish) -> BTreeMap<String, String> {
    wish.team.map(|team| (TEAM.to_owned(), team.to_owned())).into_iter().collect()
}

/// The requests of a plugin alone: one for each family, in the order asked for.
fn requests(
    wish: &Wish,
    node: &str,
    handle: &str,
    attributes: &BTreeMap<String, String>,
) -> Vec<AssignRequest> {
    let first = wish.version();
    let other = if first == IpVersion::V4 { IpVersion::V6 } else { IpVersion::V4 };
    let families = [first, other].into_iter().filter(|version| wish.count(*version) > 0);
    families
        .map(|version| {
            let (count, attributes) = (wish.count(version), attributes.clone());
            let want = Want { count, handle: Some(handle.to_owned()), attributes };
            AssignRequest {
                pools: wish.pools.iter().copied().filter(|pool| pool.version() == version).collect(),
                namespace_labels: namespace_labels(wish),
                max_per_handle: wish.cap,
                ..AssignRequest::new(Owner::host(node), version, Use::Workload, want)
            }
        })
        .collect()
}

fn told<'a>(taken: impl IntoIterator<Item = &'a Taken>) -> Vec<(IpAddr, u64)> {
    taken.into_iter().map(|taken| (taken.address, taken.sequence)).collect()
}

/// What a plugin answers that was asked for addresses of one family: all of them, or none that it would not give back.
async fn as_many_as_wanted(
    store: &SimStore,
    clock: &impl Clock,
    request: &AssignRequest,
) -> Result<Vec<(IpAddr, u64)>, String> {
    let assigned = assign(store, clock, request).await.map_err(|error| error.to_string())?;
    if assigned.is_enough() && assigned.held.is_empty() {
        return Ok(told(&assigned.taken));
    }
    if assigned.is_enough() {
        // At its cap it is told what it holds.
        return Ok(assigned.held.iter().map(|held| (held.network(), 0)).collect());
    }
    if !assigned.taken.is_empty() {
        let back = assigned.taken.iter().map(|taken| Release {
            address: taken.address,
            handle: request.want.handle.clone(),
            sequence: Some(taken.sequence),
        });
        let back: Vec<Release> = back.collect();
        release_addresses(store, clock, &back).await.map_err(|error| error.to_string())?;
    }
    Err(format!("{} addresses are left", assigned.taken.len()))
}
