//! A cluster of values, and what the collector wants done about it.

mod absurd;
mod reasons;

use super::*;
use crate::reservations::ReservationSet;
use api::AffinityState;
use datastore::Version;

const START: Timestamp = Timestamp::UNIX_EPOCH;
const GRACE: SignedDuration = SignedDuration::from_mins(15);

/// Everything that a pass sees, and what the authority would answer.
#[derive(Default)]
struct World {
    cluster: Cluster,
    /// Pods as the authority has them, where they differ from what is seen.
    truly: BTreeMap<PodName, Option<Pod>>,
    /// Nodes that the authority has although they are not seen.
    nodes_truly: BTreeSet<String>,
    records: Records,
    grace: Option<SignedDuration>,
}

fn seen<T>(value: T, revision: u64) -> Seen<T> {
    Seen { value, version: Version { revision: Revision(revision), uid: None }, created: None }
}

impl World {
    fn of(nodes: &[&str]) -> Self {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        let cluster = Cluster { nodes, pods: Pods::new() };
        Self { cluster, grace: Some(GRACE), ..Self::default() }
    }

    fn block(&mut self, cidr: &str, owner: &str) -> &mut Block {
        let cidr: Cidr = cidr.parse().unwrap();
        let made = || seen(block::new_block(cidr, &Owner::host(owner), START), 1);
        &mut self.records.blocks.entry(cidr).or_insert_with(made).value
    }

    fn affinity(&mut self, cidr: &str, owner: &str, state: AffinityState) {
        let cidr = cidr.parse().unwrap();
        let affinity = Affinity { owner: Owner::host(owner), cidr, state, deleted: false };
        self.records.affinities.push(seen(affinity, 7));
    }

    fn handle(&mut self, id: &str, blocks: &[(&str, u32)]) {
        let blocks = blocks.iter().map(|(cidr, count)| (cidr.parse().unwrap(), *count)).collect();
        let handle = seen(Handle { id: id.to_owned(), blocks, deleted: false }, 7);
        self.records.handles.get_or_insert_default().insert(id.to_owned(), handle);
    }

    /// Takes one address of the block for `attributes`.
    fn take(&mut self, cidr: &str, owner: &str, handle: &str, attributes: &[(&str, &str)]) -> IpAddr {
        let attributes =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let taken = block::take(
            self.block(cidr, owner),
            &block::Take {
                count: 1,
                handle: Some(handle),
                attributes: &attributes,
                reserved: &ReservationSet::default(),
                avoid: &BTreeSet::new(),
                only_owner: None,
            },
        );
        taken.unwrap()[0].address
    }

    fn pod(&mut self, name: &str, node: &str) -> IpAddr {
        let attributes = [("node", node), ("namespace", "default"), ("pod", name), (POD_UID, "first")];
        let address = self.take("10.0.0.0/28", node, name, &attributes);
        let pod = Pod { node: node.to_owned(), addresses: BTreeSet::from([address]), ..Pod::default() };
        self.cluster.pods.insert(self::name(name), pod);
        address
    }

    fn remove_pod(&mut self, name: &str) {
        self.cluster.pods.remove(&self::name(name));
    }

    fn answers(&self, questions: &Questions) -> Answers {
        let exists = |node: &&String| self.cluster.nodes.contains(*node) || self.nodes_truly.contains(*node);
        let pod = |name: &PodName| {
            self.truly.get(name).cloned().unwrap_or_else(|| self.cluster.pods.get(name).cloned())
        };
        Answers {
            gone: questions.nodes.iter().filter(|node| !exists(node)).cloned().collect(),
            pods: questions.pods.iter().map(|name| (name.clone(), pod(name))).collect(),
        }
    }

    /// One whole pass.
    fn pass(&self, collector: &mut Collector, minutes: i64) -> Vec<Task> {
        let now = START + SignedDuration::from_mins(minutes);
        let handles = self.records.handles.is_some();
        let mut effects = collector.step(now, Event::Begin { handles, grace: self.grace });
        let mut tasks = Vec::new();
        while let Some(effect) = effects.pop() {
            let event = match effect {
                Effect::ListRecords { .. } => Event::Records(Arc::new(self.records.clone())),
                Effect::ListCluster => Event::Cluster(self.cluster.clone()),
                Effect::Ask(questions) => Event::Answers(self.answers(&questions)),
                Effect::Do(task) => {
                    tasks.push(task);
                    continue;
                }
                Effect::Note(_) => continue,
            };
            effects.extend(collector.step(now, event));
        }
        tasks.reverse();
        tasks
    }
}

fn name(pod: &str) -> PodName {
    ("default".to_owned(), pod.to_owned())
}

fn released(tasks: &[Task]) -> Vec<IpAddr> {
    let releases = tasks.iter().flat_map(|task| match task {
        Task::Release { releases, .. } => releases.as_slice(),
        _ => &[],
    });
    releases.map(|release| release.address).collect()
}

fn given_up(tasks: &[Task]) -> Vec<&str> {
    let owners = tasks.iter().filter_map(|task| match task {
        Task::GiveUpNode { owner } => Some(owner.name.as_str()),
        _ => None,
    });
    owners.collect()
}

fn spare(tasks: &[Task]) -> Vec<Cidr> {
    let blocks = tasks.iter().filter_map(|task| match task {
        Task::GiveUpBlock { block, .. } => Some(*block),
        _ => None,
    });
    blocks.collect()
}

#[test]
fn address_of_a_living_pod_is_never_released() {
    let mut world = World::of(&["a"]);
    world.pod("p", "a");
    let mut collector = Collector::default();
    for minutes in [0, 20, 400] {
        assert_eq!(world.pass(&mut collector, minutes), []);
    }
}

#[test]
fn address_without_its_pod_is_released_after_the_grace_period_and_not_before() {
    let mut world = World::of(&["a"]);
    let address = world.pod("p", "a");
    world.remove_pod("p");
    let mut collector = Collector::default();
    assert_eq!(world.pass(&mut collector, 100), []);
    assert_eq!(collector.suspects().collect::<Vec<_>>(), [address]);
    assert_eq!(world.pass(&mut collector, 115), []);
    let tasks = world.pass(&mut collector, 116);
    assert_eq!(released(&tasks), [address]);
    let Task::Release { releases, gone: None, .. } = &tasks[0] else { panic!("{tasks:?}") };
    assert_eq!((releases[0].handle.as_deref(), releases[0].sequence), (Some("p"), Some(0)));
}

#[test]
fn one_look_after_a_leap_of_the_clock_is_not_two() {
    let mut world = World::of(&["a"]);
    world.pod("p", "a");
    world.remove_pod("p");
    assert_eq!(world.pass(&mut Collector::default(), 100_000), []);
}

#[test]
fn a_clock_that_was_set_back_starts_the_wait_anew() {
    let mut world = World::of(&["a"]);
    world.pod("p", "a");
    world.remove_pod("p");
    let mut collector = Collector::default();
    world.pass(&mut collector, 1_000);
    assert_eq!(world.pass(&mut collector, 10), []);
    assert_eq!(world.pass(&mut collector, 25), []);
    assert_eq!(released(&world.pass(&mut collector, 26)).len(), 1);
}

#[test]
fn pod_that_comes_back_starts_the_clock_anew() {
    let mut world = World::of(&["a"]);
    world.pod("p", "a");
    let pods = world.cluster.pods.clone();
    world.cluster.pods.clear();
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    world.cluster.pods = pods;
    world.pass(&mut collector, 10);
    world.cluster.pods.clear();
    assert_eq!(world.pass(&mut collector, 16), []);
    assert_eq!(world.pass(&mut collector, 31), []);
    assert_eq!(released(&world.pass(&mut collector, 32)).len(), 1);
}

#[test]
fn address_that_was_assigned_again_starts_the_clock_anew() {
    let mut world = World::of(&["a"]);
    world.pod("p", "a");
    world.remove_pod("p");
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    let stamps = Arc::make_mut(&mut world.block("10.0.0.0/28", "a").sequence_for_allocation);
    *stamps.values_mut().next().unwrap() += 1;
    assert_eq!(world.pass(&mut collector, 16), []);
}

#[test]
fn pod_that_only_the_authority_knows_keeps_its_address_and_no_answer_does_too() {
    let mut world = World::of(&["a"]);
    let address = world.pod("p", "a");
    let pod = world.cluster.pods.remove(&name("p"));
    world.truly.insert(name("p"), pod);
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    assert_eq!(world.pass(&mut collector, 60), []);

    let now = START + SignedDuration::from_mins(61);
    collector.step(now, Event::Begin { handles: false, grace: Some(GRACE) });
    collector.step(now, Event::Records(Arc::new(world.records.clone())));
    let asked = collector.step(now, Event::Cluster(world.cluster.clone()));
    assert!(matches!(&asked[..], [Effect::Ask(questions)] if questions.pods.contains(&name("p"))));
    let effects = collector.step(now, Event::Answers(Answers::default()));
    assert_eq!(effects, [Effect::Note(Note::Spared { address })]);
}

#[test]
fn pods_are_looked_at_only_after_the_records_and_a_failed_read_decides_nothing() {
    let mut world = World::of(&[]);
    world.pod("p", "b");
    world.remove_pod("p");
    let mut collector = Collector::default();
    // Before a pass, and before its records, a list of pods is no basis for anything.
    assert_eq!(collector.step(START, Event::Cluster(world.cluster.clone())), []);
    let begin = Event::Begin { handles: false, grace: None };
    assert_eq!(collector.step(START, begin.clone()), [Effect::ListRecords { handles: false }]);
    assert_eq!(collector.step(START, Event::Cluster(world.cluster.clone())), []);
    assert_eq!(collector.step(START, Event::Answers(Answers::default())), []);
    assert_eq!(collector.step(START, Event::Records(Arc::default())), [Effect::ListCluster]);
    assert_eq!(collector.step(START, Event::Failed), []);
    assert_eq!(collector.step(START, Event::Cluster(world.cluster.clone())), []);
    // A new pass forgets what the old one was about to do.
    collector.step(START, begin.clone());
    collector.step(START, Event::Records(Arc::new(world.records.clone())));
    assert!(!collector.step(START, Event::Cluster(world.cluster.clone())).is_empty());
    collector.step(START, begin);
    let gone = Answers { gone: BTreeSet::from(["b".to_owned()]), pods: BTreeMap::from([(name("p"), None)]) };
    assert_eq!(collector.step(START, Event::Answers(gone)), []);
}

#[test]
fn two_addresses_under_one_handle_go_together_or_not_at_all() {
    let mut world = World::of(&["a"]);
    let attributes = [("node", "a"), ("namespace", "default"), ("pod", "p")];
    let kept = world.take("10.0.0.0/28", "a", "h", &attributes);
    world.take("10.0.0.16/28", "a", "h", &attributes);
    let pod = Pod { node: "a".to_owned(), addresses: BTreeSet::from([kept]), ..Pod::default() };
    world.cluster.pods.insert(name("p"), pod.clone());
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    assert_eq!(released(&world.pass(&mut collector, 60)), [] as [IpAddr; 0]);
    world.cluster.pods.clear();
    world.pass(&mut collector, 61);
    // The same where only the authority knows that one of them is needed.
    world.truly.insert(name("p"), Some(pod));
    assert_eq!(released(&world.pass(&mut collector, 119)), [] as [IpAddr; 0]);
    world.truly.clear();
    assert_eq!(released(&world.pass(&mut collector, 120)).len(), 2);
}

#[test]
fn deleted_node_gives_everything_back_at_once_with_its_tunnel_address() {
    let mut world = World::of(&["a"]);
    let pod = world.pod("p", "b");
    world.remove_pod("p");
    let tunnel = world.take("10.0.0.0/28", "b", "t", &[("node", "b"), ("type", "vxlanTunnelAddress")]);
    let tasks = world.pass(&mut Collector::default(), 0);
    assert_eq!(released(&tasks), [pod, tunnel]);
    assert_eq!(given_up(&tasks), ["b"]);
    let conditional = |task: &Task| !matches!(task, Task::Release { gone: None, .. });
    assert!(tasks.iter().all(conditional), "{tasks:?}");
    // The block has no affinity that would lead to it.
    let owner = Owner::host("b");
    assert!(tasks.contains(&Task::Abandon { owner, block: "10.0.0.0/28".parse().unwrap() }));
}

#[test]
fn node_that_is_back_by_the_time_of_the_question_keeps_everything() {
    let mut world = World::of(&["a"]);
    world.take("10.0.0.0/28", "b", "t", &[("node", "b"), ("type", "vxlanTunnelAddress")]);
    world.nodes_truly.insert("b".to_owned());
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    assert_eq!(world.pass(&mut collector, 600), []);
}

#[test]
fn deleted_node_with_a_pod_left_keeps_everything() {
    let mut world = World::of(&["a"]);
    world.pod("p", "b");
    world.take("10.0.0.0/28", "b", "t", &[("node", "b"), ("type", "vxlanTunnelAddress")]);
    assert_eq!(world.pass(&mut Collector::default(), 0), []);
}

#[test]
fn deleted_node_without_any_block_loses_its_affinities() {
    let mut world = World::of(&["a"]);
    world.affinity("10.0.0.0/28", "b", AffinityState::Confirmed);
    assert_eq!(given_up(&world.pass(&mut Collector::default(), 0)), ["b"]);
}

#[test]
fn address_of_nobody_known_is_never_released_and_keeps_its_node() {
    let mut world = World::of(&[]);
    world.take("10.0.0.0/28", "b", "x", &[("node", "b")]);
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    assert_eq!(world.pass(&mut collector, 600), []);
}

#[test]
fn tunnel_address_of_a_living_node_is_never_released() {
    let mut world = World::of(&["a"]);
    world.take("10.0.0.0/28", "a", "t", &[("node", "a"), ("type", "vxlanTunnelAddress")]);
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    assert_eq!(world.pass(&mut collector, 600), []);
}

#[test]
fn no_grace_period_releases_nothing_on_living_nodes_but_cleans_up_after_deleted_ones() {
    for grace in [None, Some(SignedDuration::ZERO)] {
        let mut world = World::of(&["a"]);
        world.grace = grace;
        world.pod("p", "a");
        world.remove_pod("p");
        world.block("10.0.0.16/28", "a");
        let mut collector = Collector::default();
        world.pass(&mut collector, 0);
        assert_eq!(world.pass(&mut collector, 600), []);
        world.cluster.nodes.clear();
        assert_eq!(given_up(&world.pass(&mut collector, 601)), ["a"]);
    }
}

#[test]
fn living_node_keeps_one_block_of_several_empty_ones() {
    let mut world = World::of(&["a"]);
    for cidr in ["10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28"] {
        world.block(cidr, "a");
    }
    let mut collector = Collector::default();
    assert_eq!(world.pass(&mut collector, 0), []);
    let tasks = world.pass(&mut collector, 16);
    assert_eq!(spare(&tasks).len(), 2);
    for cidr in spare(&tasks) {
        world.records.blocks.remove(&cidr);
    }
    assert_eq!(world.pass(&mut collector, 60), []);
}

#[test]
fn pod_that_moved_ended_or_was_evicted_does_not_need_its_address() {
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let on = |node: &str| Holder { node: node.to_owned(), uid: "first".to_owned(), address };
    let pod = Pod {
        uid: "first".to_owned(),
        node: "a".to_owned(),
        addresses: BTreeSet::from([address]),
        ..Pod::default()
    };
    assert!(needs(Some(&pod), &on("a")));
    assert!(!needs(Some(&pod), &on("b")));
    assert!(!needs(Some(&Pod { finished: true, ..pod.clone() }), &on("a")));
    assert!(!needs(Some(&Pod { evicted: true, ..pod.clone() }), &on("a")));
    assert!(!needs(None, &on("a")));
    let fresh = Pod { addresses: BTreeSet::new(), ..pod.clone() };
    assert!(needs(Some(&fresh), &on("a")));
    // The next pod of a StatefulSet needs the address only once it says so.
    assert!(!needs(Some(&Pod { uid: "second".to_owned(), ..fresh.clone() }), &on("a")));
    assert!(needs(Some(&Pod { uid: "second".to_owned(), ..pod }), &on("a")));
    assert!(needs(Some(&Pod { uid: String::new(), ..fresh }), &on("a")));
}

#[test]
fn address_of_a_migrating_machine_is_kept_for_either_of_its_pods() {
    let mut world = World::of(&["a", "b"]);
    let attributes = [("node", "a"), ("namespace", "default"), ("pod", "source"), ("vmi-name", "vm")];
    let address = world.take("10.0.0.0/28", "a", "vm", &attributes);
    let alternate = [("node", "b"), ("namespace", "default"), ("pod", "target")];
    let block = world.block("10.0.0.0/28", "a");
    Arc::make_mut(&mut Arc::make_mut(&mut block.attributes)[0]).alternate =
        alternate.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let pod = Pod { node: "b".to_owned(), addresses: BTreeSet::from([address]), ..Pod::default() };
    world.cluster.pods.insert(name("target"), pod);
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    assert_eq!(world.pass(&mut collector, 600), []);
}

#[test]
fn what_has_cooled_down_is_freed_and_what_is_nobodys_and_empty_is_deleted() {
    let mut world = World::of(&["a"]);
    world.records.cooldown_seconds = 60;
    world.pod("p", "a");
    block::release_by_handle(world.block("10.0.0.0/28", "a"), "p", None, 60, START);
    world.remove_pod("p");
    let tidy = Task::Tidy { block: "10.0.0.0/28".parse().unwrap(), cooldown_seconds: 60 };
    let mut collector = Collector::default();
    assert_eq!(world.pass(&mut collector, 0), []);
    assert_eq!(world.pass(&mut collector, 2), std::slice::from_ref(&tidy));
    block::collect(world.block("10.0.0.0/28", "a"), 0, START);
    assert_eq!(world.pass(&mut collector, 3), []);
    world.block("10.0.0.0/28", "a").affinity = None;
    assert_eq!(world.pass(&mut collector, 4), [tidy]);
}

#[test]
fn affinity_without_its_block_is_dropped_once_it_has_stood_still_for_a_minute() {
    use AffinityState::{Confirmed, Pending, PendingDeletion};
    for (state, block_of, dropped) in [
        (Pending, None, true),
        (Confirmed, None, true),
        (PendingDeletion, None, true),
        (Pending, Some("a"), false),
        (Confirmed, Some("a"), false),
        (Pending, Some("b"), true),
        (Confirmed, Some("b"), true),
        (PendingDeletion, Some("b"), true),
    ] {
        let mut world = World::of(&["a", "b"]);
        world.affinity("10.0.0.0/28", "a", state);
        if let Some(owner) = block_of {
            world.block("10.0.0.0/28", owner);
        }
        let mut collector = Collector::default();
        assert_eq!(world.pass(&mut collector, 0), [], "{state:?} {block_of:?}");
        let block = "10.0.0.0/28".parse().unwrap();
        let drop = Task::DropAffinity { owner: Owner::host("a"), block, revision: Revision(7) };
        assert_eq!(world.pass(&mut collector, 1).contains(&drop), dropped, "{state:?} {block_of:?}");
        // Whoever has just written it is about to go on.
        world.records.affinities[0].version.revision = Revision(8);
        assert_eq!(world.pass(&mut collector, 2), [], "{state:?} {block_of:?}");
    }
}

#[test]
fn release_of_an_empty_block_that_was_cut_short_is_finished() {
    let mut world = World::of(&["a"]);
    world.affinity("10.0.0.0/28", "a", AffinityState::PendingDeletion);
    world.block("10.0.0.0/28", "a");
    let mut collector = Collector::default();
    assert_eq!(world.pass(&mut collector, 0), []);
    assert_eq!(spare(&world.pass(&mut collector, 1)).len(), 1);
    // With an address in it, its owner goes on using it.
    world.pod("p", "a");
    assert_eq!(world.pass(&mut collector, 2), []);
}

#[test]
fn handle_that_counts_too_much_is_lowered_once_it_has_stood_still_for_a_minute() {
    for (counts, held, lowered) in [
        (&[("10.0.0.0/28", 1)][..], 0, Some(&["10.0.0.0/28"][..])),
        (&[("10.0.0.0/28", 2)], 1, Some(&["10.0.0.0/28"])),
        (&[("10.0.0.0/28", 1), ("10.0.0.16/28", 1)], 1, Some(&["10.0.0.16/28"])),
        (&[], 0, Some(&[])),
        (&[("10.0.0.0/28", 1)], 1, None),
    ] {
        let mut world = World::of(&["a"]);
        world.block("10.0.0.0/28", "a");
        for _ in 0..held {
            world.pod("p", "a");
        }
        world.handle("p", counts);
        let mut collector = Collector::default();
        assert_eq!(world.pass(&mut collector, 0), [], "{counts:?}");
        let lower = lowered.map(|blocks| Task::LowerHandle {
            id: "p".to_owned(),
            blocks: blocks.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            revision: Revision(7),
        });
        assert_eq!(world.pass(&mut collector, 1), Vec::from_iter(lower), "{counts:?}");
        world.handle("p", counts);
        world.records.handles.as_mut().unwrap().get_mut("p").unwrap().version.revision = Revision(8);
        assert_eq!(world.pass(&mut collector, 2), [], "{counts:?}");
        // A pass without handles forgets nothing.
        let handles = world.records.handles.take();
        assert_eq!(world.pass(&mut collector, 3), [], "{counts:?}");
        world.records.handles = handles;
        assert_eq!(world.pass(&mut collector, 4).is_empty(), lowered.is_none(), "{counts:?}");
    }
}

#[test]
fn more_handles_than_a_pass_judges_all_have_their_turn_though_none_can_be_lowered() {
    let mut world = World::of(&["a"]);
    let ids: Vec<String> = (0..leftovers::HANDLES + 500).map(|number| format!("p{number:05}")).collect();
    for id in &ids {
        world.handle(id, &[("10.0.0.0/28", 1)]);
    }
    let mut collector = Collector::default();
    assert_eq!(world.pass(&mut collector, 0), []);
    let mut named = |minute| {
        let tasks = world.pass(&mut collector, minute);
        let ids = tasks.into_iter().map(|task| match task {
            Task::LowerHandle { id, .. } => id,
            other => panic!("{other}"),
        });
        ids.collect::<Vec<_>>()
    };
    assert_eq!(named(1), ids[..leftovers::HANDLES]);
    assert_eq!(named(2), [&ids[leftovers::HANDLES..], &ids[..500]].concat());
    assert_eq!(named(3), ids[500..]);
}

#[test]
fn handle_of_a_claim_under_way_is_left_alone_until_the_affinity_is_settled() {
    let mut world = World::of(&["a"]);
    world.affinity("10.0.0.0/28", "a", AffinityState::Pending);
    world.handle("p", &[("10.0.0.0/28", 1)]);
    let mut collector = Collector::default();
    world.pass(&mut collector, 0);
    let tasks = world.pass(&mut collector, 60);
    assert!(matches!(&tasks[..], [Task::DropAffinity { .. }]), "{tasks:?}");
}

#[test]
fn malformed_block_is_named_and_nothing_in_it_is_touched() {
    let mut world = World::of(&[]);
    world.pod("p", "b");
    world.remove_pod("p");
    world.block("10.0.0.0/28", "b").unallocated.push(99);
    let mut collector = Collector::default();
    collector.step(START, Event::Begin { handles: false, grace: None });
    collector.step(START, Event::Records(Arc::new(world.records.clone())));
    let effects = collector.step(START, Event::Cluster(world.cluster.clone()));
    assert!(
        matches!(&effects[..], [Effect::Note(Note::Malformed { fault, .. })] if fault.contains("99")),
        "{effects:?}"
    );
}
