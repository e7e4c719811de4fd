//! Worlds that give a planted mistake room to do harm: the world of a seed, with the faults that it takes.

use crate::db::StoreKind;
use crate::faults::Fault;
use crate::setting::{Setting, Way, pool};
use crate::wish::Breadth;
use api::{AffinityNaming, Cidr};
use ipam::mistake::Mistake;

const POOLS: [Fault; 3] = [Fault::PoolDisabled, Fault::PoolDeleted, Fault::PoolRecreated];
const NODES: [Fault; 2] = [Fault::NodeRemoved, Fault::NodeRejoined];
const DEATHS: [Fault; 2] = [Fault::DeathBefore, Fault::DeathAfter];

/// The world of a seed in which a mistake is looked for: every other one is drawn as always, the rest give it room.
pub fn world(planted: Option<Mistake>, seed: u64) -> Setting {
    planted.filter(|_| seed % 2 == 1).map_or_else(|| Setting::draw(seed), |planted| roomy(planted, seed))
}

/// The world of a seed, with what the mistake needs to do harm.
pub fn roomy(planted: Mistake, seed: u64) -> Setting {
    let mut world = Setting::narrow(seed);
    world.faults_per_mille = 60;
    world.cluster_every = 8;
    let all = |way| vec![way; 3];
    let tiny = || vec![pool("pool-a", Cidr::containing([10, 0, 0, 0].into(), 30).expect("a network"), 31)];
    let wide = || vec![pool("pool-a", Cidr::containing([10, 0, 0, 0].into(), 27).expect("a network"), 30)];
    match planted {
        Mistake::SequenceUnchecked => {
            // One address of a block goes to and fro while the other is in use.
            (world.nodes, world.pools, world.brisk) = (vec![Way::Agent; 2], tiny(), true);
            (world.containers, world.steps, world.ask_per_cent) = (2, 1_500, 20);
            world.cluster_faults = vec![Fault::DelDelayed];
            world.config.ip_cooldown_seconds = 0;
            world.config.max_blocks_per_host = 0;
            world.reserved.clear();
            world.same_names = true;
        }
        Mistake::BlockBeforeHandle => {
            (world.store, world.nodes, world.ask_per_cent) = (StoreKind::Kubernetes, all(Way::Agent), 24);
        }
        Mistake::PendingSkipped => {
            (world.store, world.nodes) = (StoreKind::Kubernetes, all(Way::Direct));
        }
        Mistake::OwnerUnchecked => {
            (world.nodes, world.cluster_faults) = (all(Way::Direct), POOLS[..2].to_vec());
            (world.store, world.naming) = (StoreKind::Kubernetes, AffinityNaming::PerNode);
            (world.call_faults, world.cluster_every) = (DEATHS.to_vec(), 3);
            (world.faults_per_mille, world.nodes) = (150, vec![Way::Direct; 5]);
            world.pools =
                vec![pool("pool-a", Cidr::containing([10, 0, 0, 0].into(), 29).expect("a network"), 30)];
            world.config.max_blocks_per_host = 0;
            world.reserved.clear();
        }
        Mistake::OverlapUnchecked => {
            (world.nodes, world.cluster_faults) = (all(Way::Direct), POOLS.to_vec());
        }
        Mistake::ChangedBeforeWritten => {
            (world.nodes, world.call_faults) = (all(Way::Agent), vec![Fault::Refused]);
            (world.faults_per_mille, world.ask_per_cent) = (150, 24);
        }
        Mistake::StalePool => {
            (world.nodes, world.cluster_faults) = (all(Way::Direct), POOLS.to_vec());
            (world.call_faults, world.faults_per_mille) = (vec![Fault::Delay], 80);
            (world.brisk, world.cluster_every, world.ask_per_cent) = (true, 3, 24);
        }
        Mistake::StaleAffinityTrusted => {
            (world.nodes, world.cluster_faults) = (all(Way::Direct), POOLS.to_vec());
            (world.store, world.call_faults) = (StoreKind::Kubernetes, DEATHS.to_vec());
            (world.faults_per_mille, world.cluster_every) = (100, 4);
        }
        Mistake::CooldownIgnored => {
            world.nodes = all(Way::Direct);
            world.config.ip_cooldown_seconds = 30;
            world.config.strict_affinity = false;
        }
        Mistake::RejoinedTrusted => {
            (world.store, world.nodes, world.tunnels) = (StoreKind::Etcd, all(Way::Agent), true);
            (world.brisk, world.cluster_faults, world.cluster_every) = (true, NODES.to_vec(), 10);
            (world.faults_per_mille, world.watch_per_cent, world.ask_per_cent) = (0, 40, 20);
            (world.pools, world.containers, world.steps) = (wide(), 1, 1_500);
            world.config.strict_affinity = false;
            world.reserved.clear();
        }
        Mistake::ReplayedRelease => {
            (world.nodes, world.queues) = (all(Way::Agent), true);
            world.cluster_faults = vec![Fault::AgentRestarted];
        }
        Mistake::StampReissued => {}
        Mistake::AnsweredUnrenewed => {
            // A container id comes back after a DEL that came late or not at all, and asks for the address that it had.
            (world.nodes, world.brisk, world.breadth) = (vec![Way::Direct; 2], true, vec![Breadth::Exact]);
            (world.containers, world.steps, world.ask_per_cent) = (3, 1_500, 20);
            world.cluster_faults = vec![Fault::DelDelayed, Fault::DelEarly];
            world.call_faults = vec![Fault::DeathAfter, Fault::Late];
            world.config.ip_cooldown_seconds = 0;
            world.reserved.clear();
            world.same_names = true;
        }
        Mistake::LentYoung => {
            (world.store, world.nodes) = (StoreKind::Kubernetes, vec![Way::Direct; 4]);
            (world.cluster_faults, world.cluster_every) = (POOLS.to_vec(), 3);
            (world.call_faults, world.faults_per_mille) = (vec![Fault::Delay], 60);
            (world.containers, world.steps, world.ask_per_cent) = (4, 1_500, 24);
            (world.config.ip_cooldown_seconds, world.config.strict_affinity) = (0, false);
            world.reserved.clear();
        }
        Mistake::HandleCollected => {
            // Each node has a block that nobody else writes, and others are at work while one is paused.
            (world.store, world.nodes, world.containers) = (StoreKind::Kubernetes, vec![Way::Direct; 7], 1);
            world.pools = wide();
            (world.config.strict_affinity, world.brisk, world.ask_per_cent) = (true, true, 40);
            (world.call_faults, world.faults_per_mille) = (vec![Fault::Delay], 60);
            (world.cluster_faults, world.cluster_every) = (Vec::new(), 8);
            world.reserved.clear();
        }
    }
    world
}
