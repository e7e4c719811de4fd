//! A fixed set of seeds, each of which must keep every invariant and come to rest.

use sim::coverage::Coverage;
use sim::faults::{Fault, Operation};
use sim::world::run;

/// Seeds that `make test` runs: as many as it takes for every fault to meet every operation that it can.
const SEEDS: std::ops::Range<u64> = 0..2000;

/// More seeds, for what is rare: a queued release that is on its way when a DEL comes during its ADD.
const RARE: std::ops::Range<u64> = 2375..2400;

/// Seeds that are known to fail, each with what is wrong: see the track record.
const KNOWN: [u64; 0] = [];

#[test]
fn no_seed_breaks_an_invariant_and_every_fault_meets_every_operation() {
    let mut coverage = Coverage::default();
    let (mut seeds, mut calls, mut added, mut deleted, mut cut_short) = (0, 0, 0, 0, 0);
    for seed in SEEDS.chain(RARE).filter(|seed| !KNOWN.contains(seed)) {
        let end = run(seed, false);
        assert_eq!(end.broken, Vec::<String>::new(), "seed {seed}: cargo xtask sim --trace {seed}");
        seeds += 1;
        calls += end.calls;
        added += end.added;
        deleted += end.deleted;
        cut_short += end.cut_short;
        coverage.add(&end.coverage);
    }
    let mut missed = coverage.missed();
    // An agent takes a block from another once in eight seeds, in two calls: what befalls the cluster just then takes tens of
    // thousands of seeds.
    missed.retain(|(fault, what)| *what != Operation::AgentReclaim || Fault::OF_CALLS.contains(fault));
    assert_eq!(missed, [], "what did not happen was not tested\n{coverage}");
    // A simulation in which nothing happens proves nothing.
    assert!(calls > seeds * 300, "{calls} calls in {seeds} seeds");
    assert!(
        added > seeds * 10 && deleted > seeds * 10 && cut_short > seeds,
        "{added} ADDs, {deleted} DELs, {cut_short} cut short"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let digest = |seed, readable| run(seed, readable).digest;
    for seed in 10..20 {
        assert_eq!(digest(seed, false), digest(seed, true), "seed {seed}");
    }
    assert_ne!(digest(11, false), digest(12, false));
}
