//! Blocks that nobody uses: when they are taken back, and when they are left alone.

use super::*;

/// An agent with one empty block, and its pool for other nodes from now on.
fn deselected(store: &Memory) -> Bench {
    let mut bench = bench_on(store, "n1");
    bench.address("a");
    let (_, event) = bench.del_event("a");
    bench.run(vec![event]);
    assert_eq!(bench.blocks().len(), 1);
    bench.commits.clear();
    bench
}

fn deselect(store: &Memory) {
    let mut pool = Pool::with_defaults("pool", "10.0.0.0/26".parse().unwrap());
    pool.block_size = 28;
    pool.node_selector = "zone == 'x'".to_owned();
    put(store, Record::Pool(pool));
}

fn lock(store: &Memory, locked: bool) {
    let cluster = ClusterInformation { datastore_ready: !locked, ..ClusterInformation::default() };
    put(store, Record::ClusterInformation(cluster));
}

#[test]
fn nothing_is_given_up_while_the_datastore_is_locked() {
    let store = store();
    let mut bench = deselected(&store);
    lock(&store, true);
    bench.run(Vec::new());
    deselect(&store);
    bench.run(vec![Event::Tick]);
    assert_eq!(bench.commits.len(), 0, "{:?}", bench.commits);
    assert_eq!(bench.blocks().len(), 1);
    lock(&store, false);
    bench.run(vec![Event::Tick]);
    assert_eq!((bench.commits.len(), bench.blocks().len()), (2, 0));
    bench.check();
}

#[test]
fn a_block_that_could_not_be_given_up_is_left_alone_for_a_minute() {
    let store = store();
    let mut bench = deselected(&store);
    bench.faults = [Some(Fault::Unavailable)].into();
    deselect(&store);
    for _ in 0..5 {
        bench.run(vec![Event::Tick]);
    }
    assert_eq!((bench.commits.len(), bench.blocks().len()), (1, 1));
    bench.now = bench.now.checked_add(SignedDuration::from_secs(61)).unwrap();
    bench.run(vec![Event::Tick]);
    assert_eq!((bench.commits.len(), bench.blocks().len()), (3, 0));
    bench.check();
}
