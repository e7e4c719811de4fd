//! A fixed set of seeds, each of which must keep every invariant.

use sim::world::{Setting, run};

#[test]
fn no_seed_breaks_an_invariant() {
    let (mut calls, mut assigned, mut cut_short) = (0, 0, 0);
    for seed in 0..300 {
        let end = run(&Setting { seed, ..Setting::default() });
        assert_eq!(end.broken, Vec::<String>::new(), "seed {seed}");
        calls += end.calls;
        assigned += end.assigned;
        cut_short += end.cut_short;
    }
    // A simulation in which nothing happens proves nothing.
    assert!(
        calls > 30_000 && assigned > 3_000 && cut_short > 1_000,
        "{calls} calls, {assigned}, {cut_short}"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let trace = |seed| run(&Setting { seed, ..Setting::default() }).trace;
    assert_eq!(trace(11), trace(11));
    assert_ne!(trace(11), trace(12));
}
