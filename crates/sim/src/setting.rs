//! What one seed simulates: drawn from the seed alone, so that each seed is another small world (swarm testing).

use crate::db::StoreKind;
use crate::faults::Fault;
use crate::rng::Rng;
use crate::wish::{Breadth, RED, TEAM, ZONE, ZONES};
use api::{AffinityNaming, AssignmentMode, Cidr, IpVersion, IpamConfig, Pool};
use ipam::host_reserved::HostReserved;

/// How the pods of a node get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the node's agent.
    Agent,
    /// By the plugin alone.
    Direct,
    /// By a peer that behaves like Calico.
    Calico,
}

/// How it is decided who goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Everybody alike.
    Fair,
    /// Some tasks are quick and others slow, so that slow ones act on old knowledge.
    Uneven,
}

/// One small world.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Decides everything.
    pub seed: u64,
    /// Which store.
    pub store: StoreKind,
    /// How its affinities are named.
    pub naming: AffinityNaming,
    /// The nodes, and how each serves its pods.
    pub nodes: Vec<Way>,
    /// Containers that a node's runtime works with.
    pub containers: usize,
    /// The pools at the beginning.
    pub pools: Vec<Pool>,
    /// The configuration at the beginning.
    pub config: IpamConfig,
    /// Reserved at the beginning.
    pub reserved: Vec<Cidr>,
    /// Steps with faults; then they stop and the world comes to rest.
    pub steps: u64,
    /// Faults in a thousand calls.
    pub faults_per_mille: usize,
    /// Which faults of calls occur.
    pub call_faults: Vec<Fault>,
    /// Which faults of the cluster occur.
    pub cluster_faults: Vec<Fault>,
    /// A fault of the cluster in so many steps.
    pub cluster_every: usize,
    /// Who goes next.
    pub schedule: Schedule,
    /// Out of a hundred steps, how many tell an agent of a change: the fewer, the older what it knows.
    pub watch_per_cent: usize,
    /// Out of a hundred steps, how many begin an ADD or DEL.
    pub ask_per_cent: usize,
    /// Agents keep a queue of releases.
    pub queues: bool,
    /// Pods keep their names, as those of a StatefulSet do.
    pub same_names: bool,
    /// Time passes fast beside what clients do: pauses outlast grace periods.
    pub brisk: bool,
    /// Agents hold an address for their node's own use, which stays when the node goes and comes back.
    pub tunnels: bool,
    /// What some attachments ask for besides one address of one family; empty in most worlds.
    pub breadth: Vec<Breadth>,
    /// What every other node keeps for itself of each block that it makes.
    pub kept: Option<HostReserved>,
}

const OF_POOLS: [Fault; 3] = [Fault::PoolDisabled, Fault::PoolDeleted, Fault::PoolRecreated];

/// Faults of the cluster, in groups that a world has as a whole or not: one alone of such a group does little.
const OF_THE_CLUSTER: [&[Fault]; 12] = [
    &[Fault::WatchLost, Fault::WatchRepeats],
    &[Fault::ClockForward, Fault::ClockBack],
    &[Fault::NodeRemoved, Fault::NodeRejoined],
    &OF_POOLS,
    &[Fault::CooldownChanged],
    &[Fault::StrictChanged],
    &[Fault::ReservationChanged],
    &[Fault::DelDelayed, Fault::DelRepeated],
    &[Fault::DelEarly],
    &[Fault::AgentRestarted],
    &[Fault::CollectorRestarted],
    &[Fault::LogFails],
];

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a constant of this file")
}

/// A pool of the simulation.
pub fn pool(name: &str, range: Cidr, block_size: u8) -> Pool {
    let mut pool = Pool::with_defaults(name, range);
    pool.block_size = block_size;
    pool
}

/// Tells broad worlds from others. Of the numbers that would do it is one that leaves those seeds narrow which found
/// something before there were broad ones.
const BREADTH: u64 = 0x6272_6561_6401_66fa;

impl Setting {
    /// The world of a seed: one of four is broad.
    pub fn draw(seed: u64) -> Self {
        let mut world = Self::narrow(seed);
        let mut rng = Rng::new(seed ^ BREADTH);
        if rng.chance(1, 4) {
            world.breadth = Breadth::ALL.into_iter().filter(|_| rng.chance(2, 5)).collect();
            if world.breadth.is_empty() {
                world.breadth.extend(rng.pick(&Breadth::ALL));
            }
            world.make_room(&mut rng);
        }
        world
    }

    /// Adds what the attachments of a broad world ask for.
    fn make_room(&mut self, rng: &mut Rng) {
        let has = |breadth| self.breadth.contains(&breadth);
        let has_v6 = self.pools.iter().any(|pool| pool.cidr.version() == IpVersion::V6);
        if has(Breadth::Both) && !has_v6 {
            self.pools.push(second_family());
        }
        if (has(Breadth::Both) || has(Breadth::Exact)) && rng.chance(1, 2) {
            // What plugins alone do about these is an operation of its own.
            for way in self.nodes.iter_mut().filter(|way| **way == Way::Agent) {
                *way = Way::Direct;
            }
            let peers = self.nodes.contains(&Way::Calico);
            let has_pools = self.cluster_faults.contains(&Fault::PoolDisabled);
            if !peers && !has_pools && !self.cluster_faults.is_empty() && rng.chance(1, 2) {
                self.cluster_faults.extend(OF_POOLS);
            }
        }
        if has(Breadth::Pools) {
            let manual = pool("pool-m", cidr("10.2.0.0/29"), 30);
            self.pools.push(Pool { assignment_mode: AssignmentMode::Manual, ..manual });
        }
        if has(Breadth::Teams) {
            let selector = Some(format!("{TEAM} == '{RED}'"));
            self.pools.push(Pool { namespace_selector: selector, ..pool("pool-n", cidr("10.3.0.0/29"), 30) });
        }
        if has(Breadth::Zones) {
            let node_selector = format!("{ZONE} == '{}'", ZONES[0]);
            self.pools.push(Pool { node_selector, ..pool("pool-z", cidr("10.4.0.0/29"), 30) });
            self.cluster_faults.push(Fault::ZoneChanged);
        }
        if has(Breadth::Kept) {
            // Such a host cannot use addresses of others' blocks.
            self.kept =
                Some(HostReserved { start: 1, end: u32::from(rng.chance(1, 2)), ..HostReserved::windows() });
            self.config.strict_affinity = true;
            self.cluster_faults.retain(|fault| *fault != Fault::StrictChanged);
        }
    }

    /// What a node keeps for itself of each block that it makes.
    pub fn kept_by(&self, node: usize) -> Option<HostReserved> {
        self.kept.clone().filter(|_| node % 2 == 1)
    }

    /// The world of a seed in which every attachment asks for one address of one family.
    pub fn narrow(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x7071_1e5e_ed00_0000);
        let ways = rng.below(10);
        let peers = rng.chance(1, 4);
        let nodes: Vec<Way> = (0..2 + rng.below(3))
            .map(|_| match ways {
                _ if peers && rng.chance(1, 3) => Way::Calico,
                0..4 => Way::Agent,
                4..7 => Way::Direct,
                _ if rng.chance(1, 2) => Way::Agent,
                _ => Way::Direct,
            })
            .collect();
        let peers = nodes.contains(&Way::Calico);
        let mut more = Rng::new(seed ^ 0x6d6f_7265_0000_7075);
        let call_faults: Vec<Fault> = Fault::OF_CALLS.into_iter().filter(|_| rng.chance(1, 2)).collect();
        let calm = rng.chance(1, 4);
        let cluster_faults = OF_THE_CLUSTER
            .into_iter()
            .filter(|_| !calm && rng.chance(2, 5))
            .flatten()
            .copied()
            .filter(|fault| !(peers && *fault == Fault::PoolRecreated))
            .collect();
        let store = rng.pick(&StoreKind::ALL).unwrap_or(StoreKind::Etcd);
        let tunnels = more.chance(1, 3) && nodes.contains(&Way::Agent);
        Self {
            seed,
            store,
            // Calico names affinities per node, and whoever lives beside it does too (architecture D9).
            naming: match rng.chance(1, 2) && !peers {
                true => AffinityNaming::PerBlock,
                false => AffinityNaming::PerNode,
            },
            nodes,
            containers: 2 + rng.below(5),
            pools: pools(&mut rng),
            config: IpamConfig {
                strict_affinity: rng.chance(1, 4),
                max_blocks_per_host: if rng.chance(1, 4) { 1 } else { 0 },
                ip_cooldown_seconds: if rng.chance(1, 2) { 0 } else { 30 },
                ..IpamConfig::default()
            },
            reserved: if rng.chance(1, 4) {
                vec![cidr("10.0.0.1/32"), cidr("10.0.0.6/31")]
            } else {
                Vec::new()
            },
            steps: 500 + u64::try_from(rng.below(400)).unwrap_or(0),
            faults_per_mille: rng.pick(&[0, 20, 60, 120]).unwrap_or(0),
            call_faults,
            cluster_faults,
            cluster_every: 6 + rng.below(50),
            schedule: if rng.chance(1, 2) { Schedule::Fair } else { Schedule::Uneven },
            watch_per_cent: rng.pick(&[4, 12, 24]).unwrap_or(12),
            ask_per_cent: rng.pick(&[4, 8, 14]).unwrap_or(8),
            queues: rng.chance(1, 2),
            same_names: rng.chance(1, 3),
            brisk: more.chance(1, 4),
            tunnels,
            breadth: Vec::new(),
            kept: None,
        }
    }
}

fn second_family() -> Pool {
    pool("pool-v6", cidr("fd00::/125"), 126)
}

fn pools(rng: &mut Rng) -> Vec<Pool> {
    let mut pools = vec![match rng.below(4) {
        0 => pool("pool-a", cidr("10.0.0.0/28"), 30),
        1 => pool("pool-a", cidr("10.0.0.0/28"), 29),
        2 => pool("pool-a", cidr("10.0.0.0/29"), 31),
        _ => pool("pool-a", cidr("10.0.0.0/29"), 30),
    }];
    if rng.chance(1, 3) {
        pools.push(pool("pool-b", cidr("10.1.0.0/29"), 30));
    }
    if rng.chance(1, 4) {
        pools.push(second_family());
    }
    pools
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_draw_different_worlds_and_each_the_same_again() {
        let shown: Vec<String> = (0..20).map(|seed| format!("{:?}", Setting::draw(seed))).collect();
        let again: Vec<String> = (0..20).map(|seed| format!("{:?}", Setting::draw(seed))).collect();
        assert_eq!(shown, again);
        assert!(shown.iter().collect::<std::collections::BTreeSet<_>>().len() == shown.len());
    }
}
