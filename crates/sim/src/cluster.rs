//! What happens to the cluster by itself: clocks jump, nodes go and come back, settings change.

use crate::client::agent::Host;
use crate::client::pools::{delete, put};
use crate::client::runtime::Phase;
use crate::faults::{Fault, Operation};
use crate::invariants::Leave;
use crate::setting::Way;
use crate::task::{Outcome, Purpose};
use crate::wish::ZONES;
use crate::world::World;
use api::{Cidr, IpamConfig, Reservation};
use datastore::{Key, Record};

/// A node is not removed while it is the last but one.
const NODES_AT_LEAST: usize = 1;

impl World {
    /// One of this world's faults of the cluster.
    pub(crate) fn disturb(&mut self) {
        let passes = if self.setting.brisk { 3 } else { 1 };
        if self.rng.chance(passes, 6) {
            self.disturb_collector();
            return;
        }
        if self.rng.chance(1, 8) {
            self.keep_node_records();
            return;
        }
        let Some(fault) = self.rng.pick(&self.setting.cluster_faults) else { return };
        match fault {
            Fault::WatchLost | Fault::WatchRepeats => self.disturb_watch(fault),
            Fault::ClockForward | Fault::ClockBack => self.disturb_clock(fault),
            Fault::NodeRemoved => self.remove_node(),
            Fault::NodeRejoined => self.rejoin_node(),
            Fault::PoolDisabled | Fault::PoolDeleted | Fault::PoolRecreated => self.work_on_pool(),
            Fault::CooldownChanged | Fault::StrictChanged => self.change_config(fault),
            Fault::ReservationChanged => self.change_reservation(),
            Fault::ZoneChanged => self.change_zone(),
            Fault::AgentRestarted => {
                let node = self.some_node();
                if self.nodes[node].host.is_some() {
                    self.met(fault, Some(node));
                    self.restart_agent(node);
                }
            }
            Fault::CollectorRestarted => self.disturb_collector(),
            // These befall when a runtime asks for something.
            _ => {}
        }
    }

    fn disturb_clock(&mut self, fault: Fault) {
        let by = i64::from(self.rng.between(500, 120_000));
        let by = if fault == Fault::ClockBack { -by } else { by };
        if self.rng.chance(1, 4) {
            self.met(fault, None);
            self.time.jump(by);
            return;
        }
        let node = self.some_node();
        if self.rng.chance(1, 3) {
            self.nodes[node].clock.correct();
        } else {
            self.met(fault, Some(node));
            self.nodes[node].clock.jump(by);
        }
    }

    /// A node goes: its pods are nobody's, its processes end, its record is deleted.
    fn remove_node(&mut self) {
        let living = self.nodes.iter().filter(|node| node.exists).count();
        let node = self.rng.below(self.nodes.len());
        if living <= NODES_AT_LEAST || !self.nodes[node].exists {
            return;
        }
        self.met(Fault::NodeRemoved, None);
        self.nodes[node].exists = false;
        self.nodes[node].host = None;
        self.end_tasks_of(node);
        for index in 0..self.attachments.len() {
            if self.attachments[index].node == node {
                self.give_up(index);
                self.attachments[index].phase = Phase::Gone;
            }
        }
        self.write_node_record(node);
    }

    /// Brings a node's record to what is so.
    pub(crate) fn write_node_record(&mut self, node: usize) {
        let record = self.nodes[node].record();
        let (name, exists) = (record.name.clone(), self.nodes[node].exists);
        self.begin(
            Operation::Administer,
            None,
            Purpose::Errand,
            Leave::Nothing,
            move |store, _| async move {
                Outcome::Administered(if exists {
                    put(&store, Record::Node(record)).await
                } else {
                    delete(&store, Key::Node(name)).await
                })
            },
        );
    }

    /// A node of a name that was known before comes, with new pods.
    fn rejoin_node(&mut self) {
        let Some(node) = self.nodes.iter().position(|node| !node.exists) else { return };
        if self.setting.tunnels && !self.is_forgotten(node) {
            return;
        }
        self.met(Fault::NodeRejoined, None);
        let name = self.nodes[node].name.clone();
        self.nodes[node].exists = true;
        if self.setting.nodes[node] == Way::Agent {
            // Its disk is a new one too.
            let queue = self.setting.queues.then(Vec::new);
            self.nodes[node].host = Some(Host::new(&name, queue));
        }
        self.attach_containers(node);
        self.write_node_record(node);
    }

    /// A node is elsewhere from now on.
    fn change_zone(&mut self) {
        let node = self.some_node();
        if self.nodes[node].exists {
            let zone = self.rng.pick(&ZONES);
            self.nodes[node].zone = zone;
            self.nodes[node].zones.extend(zone);
            self.met(Fault::ZoneChanged, None);
            self.write_node_record(node);
        }
    }

    /// Whether a node's record is gone and nobody is about to write or delete one.
    fn is_forgotten(&self, node: usize) -> bool {
        let busy = self.tasks.iter().any(|task| task.operation == Operation::Administer);
        !busy && !self.node_names().contains(&self.nodes[node].name)
    }

    fn change_config(&mut self, fault: Fault) {
        let Some(config) = self.config() else { return };
        let config = match fault {
            Fault::StrictChanged => IpamConfig { strict_affinity: !config.strict_affinity, ..config },
            _ => IpamConfig { ip_cooldown_seconds: self.rng.pick(&[0, 5, 30]).unwrap_or(0), ..config },
        };
        self.met(fault, None);
        self.begin(Operation::Administer, None, Purpose::Errand, Leave::Nothing, |store, _| async move {
            Outcome::Administered(put(&store, Record::Config(config)).await)
        });
    }

    fn config(&self) -> Option<IpamConfig> {
        let stored = self.db().peek(&Key::Config).cloned()?;
        match &stored.record {
            Record::Config(config) => Some(config.clone()),
            _ => None,
        }
    }

    fn change_reservation(&mut self) {
        self.met(Fault::ReservationChanged, None);
        let name = "now-and-then".to_owned();
        let there = self.db().peek(&Key::Reservation(name.clone())).is_some();
        let pool = self.rng.below(self.setting.pools.len());
        let range = self.setting.pools[pool].cidr;
        let prefix = range.version().bits() - u8::from(self.rng.chance(1, 2));
        let within = u32::try_from(range.size()).unwrap_or(8);
        let address = range.address(api::Ordinal(self.rng.between(0, within - 1)));
        let cidrs: Vec<Cidr> =
            address.and_then(|address| Cidr::containing(address, prefix)).into_iter().collect();
        self.begin(Operation::Administer, None, Purpose::Errand, Leave::Nothing, |store, _| async move {
            Outcome::Administered(if there {
                delete(&store, Key::Reservation(name)).await
            } else {
                put(&store, Record::Reservation(Reservation { name, cidrs })).await
            })
        });
    }
}
