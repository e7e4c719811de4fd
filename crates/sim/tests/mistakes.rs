//! Every mistake that can be planted in the allocator is found by the simulator, in worlds that give it room.
//!
//! `cargo xtask sim --mistake NAME --seeds 10000` looks for one, every other time in a world as it is drawn; `cargo xtask mistakes` for all.

use ipam::mistake::{self, Mistake};
use sim::room::roomy;
use sim::world::run_setting;

/// Looks for a seed that is well without the mistake and not with it, and says how many were tried.
fn looked_for(planted: Mistake, seeds: u64) -> Option<(u64, String)> {
    for seed in 0..seeds {
        mistake::make(Some(planted));
        let with = run_setting(roomy(planted, seed), false);
        mistake::make(None);
        if let Some(first) = with.broken.first()
            && run_setting(roomy(planted, seed), false).broken.is_empty()
        {
            return Some((seed, first.clone()));
        }
    }
    None
}

macro_rules! found {
    ($($name:ident: $mistake:ident within $seeds:literal,)*) => {
        $(
            #[test]
            fn $name() {
                let found = looked_for(Mistake::$mistake, $seeds);
                assert!(found.is_some(), "{} is not found in {} seeds", Mistake::$mistake, $seeds);
            }
        )*

        #[test]
        fn every_mistake_is_looked_for() {
            assert_eq!(Mistake::ALL, [$(Mistake::$mistake,)*]);
        }
    };
}

found! {
    a_release_without_a_look_at_stamps_is_found: SequenceUnchecked within 6000,
    a_block_written_before_its_handles_is_found: BlockBeforeHandle within 200,
    a_claim_confirmed_from_the_beginning_is_found: PendingSkipped within 200,
    a_block_given_up_without_a_look_at_its_owner_is_found: OwnerUnchecked within 800,
    a_change_that_counts_before_it_is_written_is_found: ChangedBeforeWritten within 300,
    a_block_made_of_a_stale_affinity_is_found: StaleAffinityTrusted within 6000,
    a_block_across_others_is_found: OverlapUnchecked within 200,
    a_borrowed_address_that_still_cools_down_is_found: CooldownIgnored within 100,
    a_node_that_is_back_and_taken_for_gone_is_found: RejoinedTrusted within 600,
    a_block_of_a_pool_that_was_made_anew_is_found: StalePool within 600,
    a_release_replayed_onto_an_address_in_use_is_found: ReplayedRelease within 1000,
    a_stamp_that_is_issued_again_is_found: StampReissued within 200,
    an_address_answered_again_as_it_was_read_is_found: AnsweredUnrenewed within 2000,
    an_address_lent_of_a_block_that_is_about_to_go_is_found: LentYoung within 2000,
    a_handle_collected_under_a_paused_add_is_found: HandleCollected within 600,
}
