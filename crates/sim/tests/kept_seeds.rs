//! Seeds that found something, each with what it found. Worlds are drawn from seeds alone, so they stay the same worlds; what
//! happens in them changes with the code, so that each is also just one more seed.

use sim::world::run;

#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    let kept = [
        (926, "a claim under per-block names tried another node's young affinity a hundred times"),
        (1684, "a claim whose answer was lost took its block back and left the affinity confirmed"),
        (1730, "an agent removed a handle while the block with its address was still to arrive"),
        (2062, "an agent kept a job of its own and was never asked to look at it again"),
        (2073, "a DEL that was queued after a later ADD freed what that was given"),
        (2937, "a repeated ADD was answered with an address that a late DEL then freed"),
        (3701, "an agent kept a job of its own and was never asked to look at it again"),
        (5334, "a block was taken back, and its affinity's confirmation arrived afterwards"),
        (6195, "a queue of releases and an agent met at one handle whose block was still to arrive"),
        (7356, "a repeated ADD was answered from a read that was under way before it came"),
        (
            146_358,
            "a repeated ADD was answered, and the collector freed its address by a verdict from before",
        ),
        (322_239, "a delete of an affinity was undone each time that the block's owner wrote the block"),
        (1_024_667, "a repeated ADD was answered, and the DEL of an agent that had ended freed its address"),
        (1_072_303, "a block that was undone and the next one had the same stamps"),
        (
            1_154_474,
            "a repeated ADD was answered, and the collector freed its address by a verdict from before",
        ),
        (1_454_820, "a DEL was judged by what an ADD after it was given"),
        (1_803_753, "the answer to an old read of a handle hid what a DEL was to free"),
        (1_810_203, "a block across another was judged although it was about to be taken back"),
        (2_017_551, "a machine's ADD looked a hundred times at a count that a crash had left"),
        (
            2_070_842,
            "an address that was answered again kept the name of an earlier pod, and was freed as that pod's",
        ),
        (2_092_758, "a block was deleted under a check that failed, and made again too late"),
        (
            2_111_385,
            "an address that was answered again kept the name of an earlier pod, and was freed as that pod's",
        ),
        (2_191_367, "a block was deleted under a check that failed, and made again too late"),
        (
            2_745_636,
            "a block was deleted under a check that failed, and another was made across it meanwhile",
        ),
        (3_013_980, "a peer took off a handle what the collector had taken off it already"),
    ];
    for (seed, found) in kept {
        assert_eq!(run(seed, false).broken, Vec::<String>::new(), "seed {seed}, which once found: {found}");
    }
}
