//! Records of absurd size: judged without overflow, with a bounded number of tasks.

use super::*;

#[test]
fn a_handle_that_counts_more_than_there_is_in_thousands_of_blocks_is_one_task() {
    let mut world = World::of(&["a"]);
    let pool: Cidr = "fd00::/48".parse().unwrap();
    let blocks: Vec<Cidr> = (0..5_000).filter_map(|index| pool.nth_block(122, index << 20)).collect();
    for cidr in blocks.iter().take(1_000) {
        world.take(&cidr.to_string(), "a", "held", &[("node", "a")]);
    }
    for id in ["held", "\u{1f431}\r\n", ""] {
        let counts: Vec<String> = blocks.iter().map(Cidr::to_string).collect();
        let counts: Vec<(&str, u32)> = counts.iter().map(|cidr| (cidr.as_str(), u32::MAX)).collect();
        world.handle(id, &counts);
    }
    let mut collector = Collector::default();
    world.grace = None;
    let lowers = |tasks: &[Task]| {
        tasks
            .iter()
            .filter(|task| matches!(task, Task::LowerHandle { blocks, .. } if blocks.len() == 5_000))
            .count()
    };
    assert_eq!(lowers(&world.pass(&mut collector, 0)), 0);
    let tasks = world.pass(&mut collector, 2);
    assert_eq!((lowers(&tasks), tasks.len()), (3, 3));
}

#[test]
fn clocks_of_any_year_do_not_overflow() {
    let mut world = World::of(&["a"]);
    world.pod("p", "a");
    world.remove_pod("p");
    world.grace = Some(SignedDuration::MAX);
    world.records.cooldown_seconds = u32::MAX;
    let mut collector = Collector::default();
    let handles = false;
    for now in [Timestamp::MAX, Timestamp::MIN, Timestamp::MAX, START] {
        collector.step(now, Event::Begin { handles, grace: world.grace });
        collector.step(now, Event::Records(Arc::new(world.records.clone())));
        let effects = collector.step(now, Event::Cluster(world.cluster.clone()));
        assert!(
            effects.iter().all(|effect| !matches!(effect, Effect::Do(Task::Release { .. }))),
            "{effects:?}"
        );
    }
}
